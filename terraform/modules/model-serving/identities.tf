# Who may do what. There is no key: the server has its service account, and GitHub's workflows prove who they are.

resource "google_service_account" "runtime" {
  project      = var.project
  account_id   = local.name
  display_name = "model-serving (${var.environment}), the server"
}

# All that the server may do: read models, and the API keys.
resource "google_storage_bucket_iam_member" "runtime" {
  bucket = google_storage_bucket.models.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.runtime.member
}

# The workflow reads them too, to predict with a new revision before that gets traffic.
resource "google_secret_manager_secret_iam_member" "readers" {
  for_each = {
    runtime  = google_service_account.runtime.member
    deployer = google_service_account.deployer.member
  }

  project   = var.project
  secret_id = google_secret_manager_secret.api_keys.secret_id
  role      = "roles/secretmanager.secretAccessor"
  member    = each.value
}

resource "google_service_account" "deployer" {
  project      = var.project
  account_id   = "${local.name}-deploy"
  display_name = "model-serving (${var.environment}), the workflow that deploys it"
}

resource "google_cloud_run_v2_service_iam_member" "deployer" {
  for_each = toset(["roles/run.developer", "roles/run.invoker"])

  project  = var.project
  location = var.region
  name     = google_cloud_run_v2_service.this.name
  role     = each.key
  member   = google_service_account.deployer.member
}

resource "google_service_account_iam_member" "deployer_runs_as_runtime" {
  service_account_id = google_service_account.runtime.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.deployer.member
}

resource "google_artifact_registry_repository_iam_member" "deployer" {
  project    = var.project
  location   = var.region
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.deployer.member
}

resource "google_iam_workload_identity_pool" "github" {
  project                   = var.project
  workload_identity_pool_id = local.name
  display_name              = "GitHub (${var.environment})"

  depends_on = [google_project_service.needed]
}

resource "google_iam_workload_identity_pool_provider" "github" {
  # checkov:skip=CKV_GCP_125:the condition names the repository and the environment, by variables that the check does not read
  project                            = var.project
  workload_identity_pool_id          = google_iam_workload_identity_pool.github.workload_identity_pool_id
  workload_identity_pool_provider_id = "github"
  display_name                       = "GitHub Actions"
  # Only this repository, and only jobs of this environment, whose protection rules so hold here too.
  attribute_condition = "assertion.sub == 'repo:${var.github_repository}:environment:${var.environment}'"

  attribute_mapping = {
    "google.subject"       = "assertion.sub"
    "attribute.repository" = "assertion.repository"
  }

  oidc {
    issuer_uri = "https://token.actions.githubusercontent.com"
  }
}

resource "google_service_account_iam_member" "github_is_deployer" {
  service_account_id = google_service_account.deployer.name
  role               = "roles/iam.workloadIdentityUser"
  member             = "principal://iam.googleapis.com/${google_iam_workload_identity_pool.github.name}/subject/repo:${var.github_repository}:environment:${var.environment}"
}
