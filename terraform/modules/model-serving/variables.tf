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
  description = "The repository whose workflows may deploy here: OWNER/NAME, or OWNER@NUMBER/NAME@NUMBER as in the subject of its tokens."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9-]+(/[A-Za-z0-9._-]+|@[0-9]+/[A-Za-z0-9._-]+@[0-9]+)$", var.github_repository))
    error_message = "github_repository is neither OWNER/NAME nor OWNER@NUMBER/NAME@NUMBER."
  }
}

variable "github_repository_id" {
  description = "The number of that repository, which `gh api repos/OWNER/NAME --jq .id` prints. Not needed if github_repository has it."
  type        = string
  default     = null

  validation {
    condition     = var.github_repository_id == null ? can(regex("@[0-9]+$", var.github_repository)) : can(regex("^[0-9]+$", var.github_repository_id))
    error_message = "github_repository_id is not a number, such as gh api repos/OWNER/NAME --jq .id prints."
  }
}

variable "gpu" {
  description = "The service with one L4 per instance: its first image by digest (later ones are deployed by the workflow, which then owns this), CPUs and memory, the fewest and most instances, and requests that one instance works on at once. No such service by default."
  type = object({
    image       = string
    cpu         = optional(number, 4)
    memory_gib  = optional(number, 16)
    instances   = optional(object({ min = number, max = number }), { min = 1, max = 2 })
    concurrency = optional(number, 80)
  })
  default = null

  validation {
    condition     = var.gpu == null || can(regex("@sha256:[0-9a-f]{64}$", var.gpu.image))
    error_message = "gpu.image is not pinned by digest; write REGISTRY/NAME@sha256:... ."
  }

  validation {
    condition     = var.gpu == null || contains([4, 8], try(var.gpu.cpu, 4))
    error_message = "gpu.cpu is neither 4 nor 8; Cloud Run refuses an L4 with fewer."
  }

  validation {
    condition     = var.gpu == null || try(var.gpu.memory_gib >= 16 && var.gpu.memory_gib <= 4 * var.gpu.cpu, false)
    error_message = "gpu.memory_gib is not what Cloud Run gives with an L4: 16 with 4 CPUs, 16 to 32 with 8."
  }

  validation {
    condition     = var.gpu == null || try(var.gpu.instances.min >= 0 && var.gpu.instances.min <= var.gpu.instances.max && var.gpu.instances.max >= 1, false)
    error_message = "gpu.instances must have 0 <= min <= max and max >= 1."
  }

  # A revision that is tried before it gets traffic needs a GPU beside those that serve.
  validation {
    condition     = var.gpu == null || try(var.gpu.instances.max < var.l4_quota, false)
    error_message = "gpu.instances.max leaves no GPU of l4_quota to a new revision; have the quota raised, then set l4_quota."
  }

  validation {
    condition     = var.gpu == null || try(var.gpu.concurrency >= 1 && var.gpu.concurrency <= 1000, false)
    error_message = "gpu.concurrency is not between 1 and 1000."
  }
}

variable "l4_quota" {
  description = "The project's quota of L4s without zonal redundancy in the region. A new project gets 3."
  type        = number
  default     = 3
}

variable "cpu" {
  description = "The service without a GPU, which scales to zero: as gpu, with the CPU image. No such service by default."
  type = object({
    image       = string
    cpu         = optional(number, 2)
    memory_gib  = optional(number, 4)
    instances   = optional(object({ min = number, max = number }), { min = 0, max = 10 })
    concurrency = optional(number, 40)
  })
  default = null

  validation {
    condition     = var.cpu == null || can(regex("@sha256:[0-9a-f]{64}$", var.cpu.image))
    error_message = "cpu.image is not pinned by digest; write REGISTRY/NAME@sha256:... ."
  }

  validation {
    condition     = var.cpu == null || contains([1, 2, 4, 8], try(var.cpu.cpu, 2))
    error_message = "cpu.cpu is none of 1, 2, 4 and 8."
  }

  validation {
    condition     = var.cpu == null || try(var.cpu.memory_gib >= (var.cpu.cpu >= 8 ? 4 : var.cpu.cpu >= 4 ? 2 : 1) && var.cpu.memory_gib <= 4 * var.cpu.cpu, false)
    error_message = "cpu.memory_gib is not what Cloud Run gives with so many CPUs: at most 4 for each, and at least 1, or 2 with 4 CPUs, or 4 with 8."
  }

  validation {
    condition     = var.cpu == null || try(var.cpu.instances.min >= 0 && var.cpu.instances.min <= var.cpu.instances.max && var.cpu.instances.max >= 1, false)
    error_message = "cpu.instances must have 0 <= min <= max and max >= 1."
  }

  validation {
    condition     = var.cpu == null || try(var.cpu.concurrency >= 1 && var.cpu.concurrency <= 1000, false)
    error_message = "cpu.concurrency is not between 1 and 1000."
  }

  validation {
    condition     = var.cpu != null || var.gpu != null
    error_message = "neither cpu nor gpu is set, so there would be no service."
  }
}

variable "deletion_protection" {
  description = "Whether Terraform refuses to delete the services, or to replace them. In production by default."
  type        = bool
  default     = null
}

variable "args" {
  description = "The arguments of the container; none by default, so that it serves model_path from the bucket. A start that brings the model itself: [\"fetch\", URI, \"--to\", \"/tmp/models\", \"--\", \"--model\", \"/tmp/models/best.onnx\"]."
  type        = list(string)
  default     = []
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
  validation {
    condition     = var.budget == null || try(var.budget.amount > 0 && floor(var.budget.amount) == var.budget.amount, false)
    error_message = "budget.amount is not a whole number of the currency's units, above 0."
  }
}
