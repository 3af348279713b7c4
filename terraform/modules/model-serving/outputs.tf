output "urls" {
  description = "Where each service answers, by variant."
  value       = { for variant, service in google_cloud_run_v2_service.this : variant => service.uri }
}

output "bucket" {
  description = "Copy models here."
  value       = google_storage_bucket.models.name
}

output "api_key_secret" {
  description = "Add versions with the API keys here."
  value       = google_secret_manager_secret.api_keys.secret_id
}

output "github_variables" {
  description = "The variables of the GitHub environment, as .github/workflows/cloud-run.yml reads them. GitHub refuses empty ones, and one that is missing is empty."
  value = { for name, value in {
    API_KEY_SECRET                 = var.api_key_version == null ? "" : "${google_secret_manager_secret.api_keys.id}/versions/${var.api_key_version}"
    ARTIFACT_REGISTRY              = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
    GCP_PROJECT                    = var.project
    GCP_REGION                     = var.region
    GCP_SERVICE_ACCOUNT            = google_service_account.deployer.email
    GCP_SERVICE_CPU                = try(google_cloud_run_v2_service.this["cpu"].name, "")
    GCP_SERVICE_GPU                = try(google_cloud_run_v2_service.this["gpu"].name, "")
    GCP_WORKLOAD_IDENTITY_PROVIDER = google_iam_workload_identity_pool_provider.github.name
  } : name => value if value != "" }
}

output "github_plan_variables" {
  description = "The variables of the GitHub environment for plans, as .github/workflows/terraform.yml reads them."
  value = {
    GCP_SERVICE_ACCOUNT            = google_service_account.planner.email
    GCP_WORKLOAD_IDENTITY_PROVIDER = google_iam_workload_identity_pool_provider.github.name
  }
}
