# Where models, images and API keys lie.

resource "google_storage_bucket" "models" {
  # checkov:skip=CKV_GCP_62:Cloud Audit Logs record the access; a bucket of access logs would cost more than the models
  name                        = "${var.project}-${local.name}-models"
  project                     = var.project
  location                    = var.region
  labels                      = local.labels
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # A model that was overwritten can be had back for a month.
  versioning {
    enabled = true
  }

  lifecycle_rule {
    condition {
      days_since_noncurrent_time = 30
    }
    action {
      type = "Delete"
    }
  }

  depends_on = [google_project_service.needed]
}

# Cloud Run pulls from here; the images themselves are GitHub's. A package there is private until its owner makes it
# public, and this mirror asks without a password.
resource "google_artifact_registry_repository" "images" {
  # checkov:skip=CKV_GCP_84:Google's own keys encrypt public images well enough
  project       = var.project
  location      = var.region
  repository_id = local.name
  description   = "A mirror of the images on ghcr.io."
  format        = "DOCKER"
  mode          = "REMOTE_REPOSITORY"
  labels        = local.labels

  remote_repository_config {
    docker_repository {
      custom_repository {
        uri = "https://ghcr.io"
      }
    }
  }

  depends_on = [google_project_service.needed]
}

# One key a line. Terraform makes the secret but never its versions, so that no key stands in its state.
resource "google_secret_manager_secret" "api_keys" {
  project   = var.project
  secret_id = "${local.name}-api-keys"
  labels    = local.labels

  replication {
    auto {}
  }

  depends_on = [google_project_service.needed]
}
