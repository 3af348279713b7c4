variable "project" {
  description = "The Google Cloud project."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project is not a project id, such as my-project-123."
  }
}

variable "region" {
  description = "The region; it must offer L4 GPUs on Cloud Run, and the project must have quota for them there."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]$", var.region))
    error_message = "region is not a region, such as europe-west4."
  }
}

variable "environment" {
  description = "staging or production; part of every name."
  type        = string

  validation {
    condition     = contains(["staging", "production"], var.environment)
    error_message = "environment is neither staging nor production."
  }
}

variable "github_repository" {
  description = "OWNER/NAME of the repository whose workflows may deploy here."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$", var.github_repository))
    error_message = "github_repository is not OWNER/NAME."
  }
}

variable "image" {
  description = "The first GPU image, by digest. Later ones are deployed by the workflow, which then owns this."
  type        = string

  validation {
    condition     = can(regex("@sha256:[0-9a-f]{64}$", var.image))
    error_message = "image is not pinned by digest; write REGISTRY/NAME@sha256:... ."
  }
}

variable "model_path" {
  description = "The model inside the bucket: an .onnx file or a repository folder."
  type        = string
  default     = "best.onnx"
}

variable "otlp_endpoint" {
  description = "The base URL of an OTLP collector that takes OTLP over HTTP without TLS, such as a sidecar's; none by default."
  type        = string
  default     = ""

  validation {
    condition     = var.otlp_endpoint == "" || startswith(var.otlp_endpoint, "http://")
    error_message = "otlp_endpoint does not begin with http://."
  }
}

variable "api_key_version" {
  description = "The version of the secret with the API keys that the server asks for, such as 1; none by default, so that IAM alone decides."
  type        = string
  default     = null

  validation {
    condition     = var.api_key_version == null || can(regex("^([1-9][0-9]*|latest)$", var.api_key_version))
    error_message = "api_key_version is not a version of a secret; write a number such as 1, or latest."
  }
}

variable "cpu" {
  description = "CPUs of an instance. Cloud Run gives no L4 to fewer than 4."
  type        = number
  default     = 4

  validation {
    condition     = contains([4, 8], var.cpu)
    error_message = "cpu is neither 4 nor 8; Cloud Run refuses an L4 with fewer."
  }
}

variable "memory_gib" {
  description = "Memory of an instance in GiB. Cloud Run gives no L4 to less than 16."
  type        = number
  default     = 16

  validation {
    condition     = var.memory_gib >= 16 && var.memory_gib <= 32 && (var.cpu == 8 || var.memory_gib == 16)
    error_message = "memory_gib is not what Cloud Run gives with an L4: 16 with 4 CPUs, 16 to 32 with 8."
  }
}

variable "instances" {
  description = "The fewest and the most instances. The most must not exceed the project's quota of L4s in the region."
  type        = object({ min = number, max = number })
  default     = { min = 1, max = 10 }

  validation {
    condition     = var.instances.min >= 0 && var.instances.max >= 1 && var.instances.min <= var.instances.max
    error_message = "instances must have 0 <= min <= max and max >= 1."
  }
}

variable "concurrency" {
  description = "Requests that one instance works on at once; batches are made of them."
  type        = number
  default     = 80

  validation {
    condition     = var.concurrency >= 1 && var.concurrency <= 1000
    error_message = "concurrency is not between 1 and 1000."
  }
}

variable "invokers" {
  description = "Who may call the service, such as serviceAccount:NAME@PROJECT.iam.gserviceaccount.com. Nobody by default; allUsers makes it public."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.invokers : can(regex("^(allUsers|allAuthenticatedUsers|(user|group|serviceAccount|domain|principal|principalSet):.+)$", member))])
    error_message = "invokers has a member that is not of the form user:…, group:…, serviceAccount:…, domain:… or allUsers."
  }
}

variable "alert_emails" {
  description = "Who is told when an alert fires."
  type        = set(string)
  default     = []
}

variable "latency_objective_ms" {
  description = "The p99 latency in milliseconds above which an alert fires."
  type        = number
  default     = 200
}

variable "budget" {
  description = "A monthly budget with alerts at 50, 90 and 100 %: the billing account, and the amount in its currency. None by default."
  type        = object({ billing_account = string, amount = number })
  default     = null
}
