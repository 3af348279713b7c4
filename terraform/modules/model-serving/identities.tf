# Who may do what. There is no key: the server has its service account, and GitHub's workflows prove who they are.

resource "google_service_account" "runtime" {
  project      = var.project
  account_id   = local.name
  display_name = "model-serving (${var.environment}), the server"

  depends_on = [google_project_service.needed]
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

# Names of accounts have at most 30 letters.
resource "google_service_account" "deployer" {
  project      = var.project
  account_id   = "${local.name}-cd"
  display_name = "model-serving (${var.environment}), the workflow that deploys it"

  depends_on = [google_project_service.needed]
}

# It deploys the services and calls them, and no other ones.
resource "google_cloud_run_v2_service_iam_member" "deployer" {
  for_each = {
    for pair in setproduct(keys(local.services), ["roles/run.developer", "roles/run.invoker"]) :
    join(" ", pair) => { variant = pair[0], role = pair[1] }
  }

  project  = var.project
  location = var.region
  name     = google_cloud_run_v2_service.this[each.value.variant].name
  role     = each.value.role
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

locals {
  # The number stays when a repository or its owner is renamed, and goes to nobody else when one of them is deleted.
  github_repository_id = coalesce(var.github_repository_id, try(regex("@([0-9]+)$", var.github_repository)[0], "none"))

  # Plans are made in an environment of their own: they wait for nobody's approval, and may only read.
  github_identities = {
    deployer = { account = google_service_account.deployer.name, environment = var.environment }
    planner  = { account = google_service_account.planner.name, environment = "${var.environment}-plan" }
  }
}

resource "google_iam_workload_identity_pool_provider" "github" {
  # checkov:skip=CKV_GCP_125:the condition names the repository and the environment, by variables that the check does not read
  project                            = var.project
  workload_identity_pool_id          = google_iam_workload_identity_pool.github.workload_identity_pool_id
  workload_identity_pool_provider_id = "github"
  display_name                       = "GitHub Actions"
  # Only this repository, and only jobs of these environments, whose protection rules so hold here too. By claims of
  # their own, since the subject has two forms: with names only, or with the numbers of owner and repository in it.
  attribute_condition = join(" && ", [
    "assertion.repository_id == '${local.github_repository_id}'",
    "assertion.environment in ['${join("', '", sort([for identity in local.github_identities : identity.environment]))}']",
    # GitHub makes an environment that nobody has made, without a rule, for whichever branch names it. Plans are made of
    # main only.
    "(assertion.environment == '${var.environment}' || assertion.ref == 'refs/heads/main')",
  ])

  attribute_mapping = {
    # The whole subject may be longer than the 127 bytes that are allowed here.
    "google.subject"          = "assertion.repository_id + '/' + assertion.environment"
    "attribute.repository_id" = "assertion.repository_id"
    "attribute.environment"   = "assertion.environment"
  }

  oidc {
    issuer_uri = "https://token.actions.githubusercontent.com"
  }
}

# With access tokens the workflow deploys, with an identity token it calls a private service: both come with this role,
# whose permissions have getAccessToken and getOpenIdToken among them.
resource "google_service_account_iam_member" "github" {
  for_each = local.github_identities

  service_account_id = each.value.account
  role               = "roles/iam.workloadIdentityUser"
  member             = "principalSet://iam.googleapis.com/${google_iam_workload_identity_pool.github.name}/attribute.environment/${each.value.environment}"
}

resource "google_service_account" "planner" {
  project      = var.project
  account_id   = "${local.name}-plan"
  display_name = "model-serving (${var.environment}), the workflow that compares the project with Terraform"

  depends_on = [google_project_service.needed]
}

# All that a plan needs to see: what there is and who may use it, but no model, no key and no log. The state lies in a
# bucket that is not made here, and a budget in a billing account.
resource "google_project_iam_member" "planner" {
  for_each = toset([
    "roles/artifactregistry.reader",
    "roles/browser",
    "roles/iam.securityReviewer",
    "roles/iam.serviceAccountViewer",
    "roles/iam.workloadIdentityPoolViewer",
    "roles/monitoring.viewer",
    "roles/run.viewer",
    "roles/secretmanager.viewer",
    "roles/serviceusage.serviceUsageConsumer",
  ])

  project = var.project
  role    = each.key
  member  = google_service_account.planner.member
}

resource "google_storage_bucket_iam_member" "planner" {
  bucket = google_storage_bucket.models.name
  role   = "roles/storage.legacyBucketReader"
  member = google_service_account.planner.member
}
