# Cloud Run services and what they need around them: one with an L4 per instance, one without a GPU, or both. They are
# private unless invokers says otherwise.

locals {
  name   = "model-serving-${var.environment}"
  labels = { app = "model-serving", environment = var.environment }

  # By the variant of the image that a service runs.
  services = merge(
    var.gpu == null ? {} : { gpu = merge(var.gpu, { name = local.name, device = "cuda" }) },
    var.cpu == null ? {} : { cpu = merge(var.cpu, { name = "${local.name}-cpu", device = "cpu" }) },
  )

  # Those that always have an instance. A check from outside would keep the others awake.
  awake = { for variant, service in local.services : variant => service if service.instances.min > 0 }
}

data "google_project" "this" {
  project_id = var.project
}

resource "google_project_service" "needed" {
  for_each = toset([
    "artifactregistry.googleapis.com",
    "billingbudgets.googleapis.com",
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
  for_each = local.services

  name                = each.value.name
  project             = var.project
  location            = var.region
  labels              = local.labels
  ingress             = "INGRESS_TRAFFIC_ALL"
  deletion_protection = var.deletion_protection == null ? var.environment == "production" : var.deletion_protection

  # Of the service and not of each revision, where it would also count for one that is only tried: the tag would keep
  # its instances, and its GPU.
  scaling {
    min_instance_count = each.value.instances.min
  }

  template {
    service_account                  = google_service_account.runtime.email
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN2"
    gpu_zonal_redundancy_disabled    = each.key == "gpu" ? true : null
    max_instance_request_concurrency = each.value.concurrency
    timeout                          = "60s"

    scaling {
      max_instance_count = each.value.instances.max
    }

    dynamic "node_selector" {
      for_each = each.key == "gpu" ? ["nvidia-l4"] : []
      content {
        accelerator = node_selector.value
      }
    }

    containers {
      image = each.value.image
      args  = var.args

      ports {
        container_port = 8000
      }

      env {
        name  = "DEVICE"
        value = each.value.device
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
        limits = merge(
          { cpu = tostring(each.value.cpu), memory = "${each.value.memory_gib}Gi" },
          each.key == "gpu" ? { "nvidia.com/gpu" = "1" } : {},
        )
        # A GPU is billed by instance, so the CPU is too. Without one, only requests are billed.
        cpu_idle          = each.key == "cpu"
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
    # The workflow deploys images and shifts traffic; Terraform owns the rest. gcloud also writes down who it is, and
    # marks the revision with a label and an annotation of its own.
    ignore_changes = [
      client,
      client_version,
      template[0].annotations,
      template[0].containers[0].image,
      template[0].labels,
      traffic,
    ]
  }

  depends_on = [
    google_project_service.needed,
    google_secret_manager_secret_iam_member.readers,
    google_storage_bucket_iam_member.runtime,
  ]
}

resource "google_cloud_run_v2_service_iam_member" "invokers" {
  for_each = {
    for pair in setproduct(keys(local.services), var.invokers) : join(" ", pair) => { variant = pair[0], member = pair[1] }
  }

  project  = var.project
  location = var.region
  name     = google_cloud_run_v2_service.this[each.value.variant].name
  role     = "roles/run.invoker"
  member   = each.value.member
}

# The uptime check calls as Monitoring's own identity. A project has none before somebody asks for it, and nobody can be
# given a role before that.
resource "google_project_service_identity" "monitoring" {
  provider = google-beta

  project = var.project
  service = "monitoring.googleapis.com"

  depends_on = [google_project_service.needed]
}

resource "google_cloud_run_v2_service_iam_member" "uptime_check" {
  for_each = local.awake

  project  = var.project
  location = var.region
  name     = google_cloud_run_v2_service.this[each.key].name
  role     = "roles/run.invoker"
  member   = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-monitoring-notification.iam.gserviceaccount.com"

  depends_on = [google_project_service_identity.monitoring]
}
