output "url" {
  description = "Where the service answers."
  value       = google_cloud_run_v2_service.this.uri
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
  description = "The variables of the GitHub environment, as .github/workflows/cloud-run.yml reads them."
  value = {
    API_KEY_SECRET                 = var.api_key_version == null ? "" : "${google_secret_manager_secret.api_keys.id}/versions/${var.api_key_version}"
    ARTIFACT_REGISTRY              = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
    GCP_PROJECT                    = var.project
    GCP_REGION                     = var.region
    GCP_SERVICE                    = google_cloud_run_v2_service.this.name
    GCP_SERVICE_ACCOUNT            = google_service_account.deployer.email
    GCP_WORKLOAD_IDENTITY_PROVIDER = google_iam_workload_identity_pool_provider.github.name
    MAX_INSTANCES                  = tostring(var.instances.max)
    MIN_INSTANCES                  = tostring(var.instances.min)
    MODEL_BUCKET                   = google_storage_bucket.models.name
    MODEL_PATH                     = "/app/models/${var.model_path}"
    RUNTIME_SERVICE_ACCOUNT        = google_service_account.runtime.email
  }
}
