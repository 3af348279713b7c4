# A Cloud Run service with one L4 per instance, and what it needs around it. Private unless invokers says otherwise.

locals {
  name   = "model-serving-${var.environment}"
  labels = { app = "model-serving", environment = var.environment }
}

data "google_project" "this" {
  project_id = var.project
}

resource "google_project_service" "needed" {
  for_each = toset([
    "artifactregistry.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
    "monitoring.googleapis.com",
    "run.googleapis.com",
    "secretmanager.googleapis.com",
    "sts.googleapis.com",
  ])

  project            = var.project
  service            = each.key
  disable_on_destroy = false
}

resource "google_cloud_run_v2_service" "this" {
  name                = local.name
  project             = var.project
  location            = var.region
  labels              = local.labels
  ingress             = "INGRESS_TRAFFIC_ALL"
  deletion_protection = var.environment == "production"

  template {
    service_account                  = google_service_account.runtime.email
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN2"
    gpu_zonal_redundancy_disabled    = true
    max_instance_request_concurrency = var.concurrency
    timeout                          = "60s"

    scaling {
      min_instance_count = var.instances.min
      max_instance_count = var.instances.max
    }

    node_selector {
      accelerator = "nvidia-l4"
    }

    containers {
      image = var.image

      ports {
        container_port = 8000
      }

      env {
        name  = "DEVICE"
        value = "cuda"
      }

      env {
        name  = "MODEL_PATH"
        value = "/app/models/${var.model_path}"
      }

      # Empty is off.
      env {
        name  = "OTEL_EXPORTER_OTLP_ENDPOINT"
        value = var.otlp_endpoint
      }

      dynamic "env" {
        for_each = var.api_key_version[*]
        content {
          name  = "API_KEY_FILE"
          value = "/secrets/api-keys"
        }
      }

      resources {
        limits = {
          cpu              = tostring(var.cpu)
          memory           = "${var.memory_gib}Gi"
          "nvidia.com/gpu" = "1"
        }
        # A GPU is billed by instance, so the CPU is too.
        cpu_idle          = false
        startup_cpu_boost = true
      }

      # Loading may take four minutes, the most that Cloud Run waits.
      startup_probe {
        period_seconds    = 5
        timeout_seconds   = 4
        failure_threshold = 48

        http_get {
          path = "/ready"
          port = 8000
        }
      }

      liveness_probe {
        period_seconds    = 10
        timeout_seconds   = 5
        failure_threshold = 3

        http_get {
          path = "/health"
          port = 8000
        }
      }

      readiness_probe {
        period_seconds    = 5
        timeout_seconds   = 4
        failure_threshold = 2

        http_get {
          path = "/ready"
          port = 8000
        }
      }

      volume_mounts {
        name       = "models"
        mount_path = "/app/models"
      }

      dynamic "volume_mounts" {
        for_each = var.api_key_version[*]
        content {
          name       = "api-keys"
          mount_path = "/secrets"
        }
      }
    }

    volumes {
      name = "models"

      gcs {
        bucket    = google_storage_bucket.models.name
        read_only = true
      }
    }

    dynamic "volumes" {
      for_each = var.api_key_version[*]
      content {
        name = "api-keys"

        secret {
          secret = google_secret_manager_secret.api_keys.secret_id

          items {
            version = volumes.value
            path    = "api-keys"
          }
        }
      }
    }
  }

  lifecycle {
    # The workflow deploys images and shifts traffic; Terraform owns the rest.
    ignore_changes = [template[0].containers[0].image, template[0].revision, traffic, client, client_version]
  }

  depends_on = [
    google_project_service.needed,
    google_secret_manager_secret_iam_member.readers,
    google_storage_bucket_iam_member.runtime,
  ]
}

resource "google_cloud_run_v2_service_iam_member" "invokers" {
  for_each = var.invokers

  project  = var.project
  location = var.region
  name     = google_cloud_run_v2_service.this.name
  role     = "roles/run.invoker"
  member   = each.key
}

# The uptime check, which comes with Monitoring's own identity.
resource "google_cloud_run_v2_service_iam_member" "uptime_check" {
  project  = var.project
  location = var.region
  name     = google_cloud_run_v2_service.this.name
  role     = "roles/run.invoker"
  member   = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-monitoring-notification.iam.gserviceaccount.com"
}
