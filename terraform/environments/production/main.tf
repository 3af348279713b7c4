# The module's variables that differ between environments stand here; those that differ between users in terraform.tfvars.

terraform {
  required_version = ">= 1.9"
}

# Budgets, and whoever plans with credentials of their own, need to say which project pays for the calls.
provider "google" {
  project               = var.project
  region                = var.region
  billing_project       = var.project
  user_project_override = true
}

provider "google-beta" {
  project               = var.project
  region                = var.region
  billing_project       = var.project
  user_project_override = true
}

variable "project" {
  description = "The Google Cloud project."
  type        = string
}

variable "region" {
  description = "The region."
  type        = string
}

variable "github_repository" {
  description = "The repository whose workflows may deploy here: OWNER/NAME, or OWNER@NUMBER/NAME@NUMBER."
  type        = string
}

variable "github_repository_id" {
  description = "The number of that repository, unless github_repository has it."
  type        = string
  default     = null
}

variable "gpu_image" {
  description = "The first image of the service with an L4, by digest; no such service without it."
  type        = string
  default     = null
}

variable "cpu_image" {
  description = "The first image of the service without a GPU, by digest; no such service without it."
  type        = string
  default     = null
}

variable "l4_quota" {
  description = "The project's quota of L4s without zonal redundancy in the region."
  type        = number
  default     = 3
}

variable "deletion_protection" {
  description = "Whether Terraform refuses to delete the services, or to replace them. In production by default."
  type        = bool
  default     = null
}

variable "args" {
  description = "The arguments of the container, such as those that fetch the model at the start; none by default."
  type        = list(string)
  default     = []
}

variable "alert_emails" {
  description = "Who is told when an alert fires."
  type        = set(string)
  default     = []
}

variable "invokers" {
  description = "Who may call the service; nobody by default."
  type        = set(string)
  default     = []
}

variable "api_key_version" {
  description = "The version of the secret with the API keys; none by default."
  type        = string
  default     = null
}

variable "budget" {
  description = "A monthly budget with alerts; none by default."
  type        = object({ billing_account = string, amount = number })
  default     = null
}

module "model_serving" {
  source = "../../modules/model-serving"

  environment          = "production"
  project              = var.project
  region               = var.region
  github_repository    = var.github_repository
  github_repository_id = var.github_repository_id
  l4_quota             = var.l4_quota
  gpu                  = var.gpu_image == null ? null : { image = var.gpu_image, instances = { min = 1, max = 2 } }
  cpu                  = var.cpu_image == null ? null : { image = var.cpu_image }
  deletion_protection  = var.deletion_protection
  args                 = var.args
  invokers             = var.invokers
  api_key_version      = var.api_key_version
  alert_emails         = var.alert_emails
  budget               = var.budget
}

output "urls" {
  description = "Where each service answers, by variant."
  value       = module.model_serving.urls
}

output "bucket" {
  description = "Copy models here."
  value       = module.model_serving.bucket
}

output "api_key_secret" {
  description = "Add versions with the API keys here."
  value       = module.model_serving.api_key_secret
}

output "github_variables" {
  description = "The variables of the GitHub environment production."
  value       = module.model_serving.github_variables
}

output "github_plan_variables" {
  description = "The variables of the GitHub environment production-plan."
  value       = module.model_serving.github_plan_variables
}
