# The module's variables that differ between environments stand here; those that differ between users in terraform.tfvars.

terraform {
  required_version = ">= 1.9"
}

provider "google" {
  project = var.project
  region  = var.region
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
  description = "OWNER/NAME of the repository whose workflows may deploy here."
  type        = string
}

variable "image" {
  description = "The first GPU image, by digest."
  type        = string
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

  environment       = "production"
  project           = var.project
  region            = var.region
  github_repository = var.github_repository
  image             = var.image
  instances         = { min = 1, max = 10 }
  invokers          = var.invokers
  api_key_version   = var.api_key_version
  alert_emails      = var.alert_emails
  budget            = var.budget
}

output "url" {
  description = "Where the service answers."
  value       = module.model_serving.url
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
