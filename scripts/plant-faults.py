#!/usr/bin/env python3
"""Plants a fault in each kind of deployment artifact, one at a time, and shows which check catches it.

A check that has never failed proves little. Each fault below is one edit to one file; the check named with it must
then fail, and say what is expected of it. The file is put back afterwards. `make plant-faults` runs this, on a
checkout without changes of one's own, after `make test` has fetched the tools. Arguments choose faults by a part of
their names.
"""

import pathlib
import subprocess
import sys
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Each is a recipe of `make test`, or one test of it.
ARTIFACTS = "cargo test --quiet --locked --features testkit --test artifacts"
DELIVERY = "cargo test --quiet --locked --features testkit --test delivery"
MANIFESTS = "cargo test --quiet --locked --features testkit --test manifests"
KUBERNETES = "make lint-k8s"
TERRAFORM = "make lint-terraform"
MONITORING = "make lint-monitoring"
LIVE = "cargo test --quiet --locked --features testkit --test monitoring"
WORKFLOWS = "make lint-workflows"
FILES = "make lint-files"
DOCS = "cargo test --quiet --locked --features testkit --test docs"

MODULE = "terraform/modules/model-serving"
DEPLOYMENT = "k8s/base/deployment.yaml"
ACTIONS = ".github/actions"
FLOWS = ".github/workflows"
RULES = "monitoring/rules/model-serving.yml"
DASHBOARD = "monitoring/dashboards/model-serving.json"
GPU_DASHBOARD = "monitoring/dashboards/model-serving-gpu.json"
CHECKOUT = "actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1"


class Fault(typing.NamedTuple):
    """One edit: `old` becomes `new` in `file`; `check` must fail and print `says`, which comes from `tool`."""

    name: str
    file: str
    old: str
    new: str
    check: str
    tool: str
    says: str


FAULTS = [
    # Kubernetes.
    Fault(
        "k8s: unknown key in the Deployment",
        DEPLOYMENT,
        "imagePullPolicy:",
        "imagePolicy:",
        KUBERNETES,
        "kubernetes-validate",
        "imagePolicy",
    ),
    Fault(
        "k8s: string where a number belongs",
        DEPLOYMENT,
        "failureThreshold: 60",
        "failureThreshold: sixty",
        KUBERNETES,
        "kubernetes-validate",
        "sixty",
    ),
    Fault(
        "k8s: root filesystem writable",
        DEPLOYMENT,
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        KUBERNETES,
        "checkov",
        "CKV_K8S_22",
    ),
    Fault(
        "k8s: no limit of memory",
        DEPLOYMENT,
        'limits:\n              cpu: "2"\n              memory: 4Gi',
        'limits:\n              cpu: "2"',
        KUBERNETES,
        "checkov",
        "CKV_K8S_13",
    ),
    Fault(
        "k8s: wrong container port",
        DEPLOYMENT,
        "containerPort: 8000",
        "containerPort: 8080",
        ARTIFACTS,
        "artifacts",
        "8080",
    ),
    Fault(
        "k8s: probe on a route that does not exist",
        DEPLOYMENT,
        "path: /health",
        "path: /healthz",
        ARTIFACTS,
        "artifacts",
        "/healthz",
    ),
    Fault(
        "k8s: probe on a port that the pod does not name",
        DEPLOYMENT,
        "path: /health\n              port: admin",
        "path: /health\n              port: web",
        MANIFESTS,
        "manifests",
        "web",
    ),
    Fault(
        "k8s: probe on the main port, which clients can fill",
        DEPLOYMENT,
        "path: /health\n              port: admin",
        "path: /health\n              port: http",
        MANIFESTS,
        "manifests",
        "http",
    ),
    Fault(
        "k8s: probes on an admin port that is off",
        DEPLOYMENT,
        '            - name: ADMIN_PORT\n              value: "8002"\n',
        "",
        MANIFESTS,
        "manifests",
        "the admin port is off",
    ),
    Fault(
        "k8s: admin port of another number than the container says",
        DEPLOYMENT,
        'value: "8002"',
        'value: "8003"',
        MANIFESTS,
        "manifests",
        "the admin port is off",
    ),
    Fault(
        "k8s: Service to the admin port",
        "k8s/base/service.yaml",
        "targetPort: http",
        "targetPort: admin",
        MANIFESTS,
        "manifests",
        "the Service shows the admin port",
    ),
    Fault(
        "k8s: scrapes that the NetworkPolicy keeps out",
        "k8s/base/network-policy.yaml",
        "        - port: admin\n",
        "        - port: http\n",
        MANIFESTS,
        "manifests",
        "admin",
    ),
    Fault(
        "k8s: Service to a port that the pod does not name",
        "k8s/base/service.yaml",
        "targetPort: http",
        "targetPort: web",
        MANIFESTS,
        "manifests",
        "web",
    ),
    Fault(
        "k8s: PodMonitor of a port that the pod does not name",
        "k8s/overlays/monitoring/pod-monitor.yaml",
        "port: admin",
        "port: metrics",
        MANIFESTS,
        "manifests",
        "metrics",
    ),
    Fault(
        "k8s: variable that the server does not read",
        DEPLOYMENT,
        "name: LOG_LEVEL",
        "name: LOGLEVEL",
        MANIFESTS,
        "manifests",
        "LOGLEVEL",
    ),
    Fault(
        "k8s: key that the ConfigMap does not have",
        DEPLOYMENT,
        "key: log_level",
        "key: loglevel",
        MANIFESTS,
        "manifests",
        "loglevel",
    ),
    Fault(
        "k8s: killed before it has drained",
        DEPLOYMENT,
        "terminationGracePeriodSeconds: 30",
        "terminationGracePeriodSeconds: 12",
        MANIFESTS,
        "manifests",
        "12",
    ),
    Fault(
        "k8s: model where no volume is",
        DEPLOYMENT,
        "value: /models/best.onnx",
        "value: /model/best.onnx",
        MANIFESTS,
        "manifests",
        "/model/best.onnx is not in any volume",
    ),
    Fault(
        "k8s: budget for pods that do not exist",
        "k8s/base/disruption-budget.yaml",
        "app: model-serving",
        "app: model-server",
        MANIFESTS,
        "manifests",
        "selects nothing",
    ),
    Fault(
        "k8s: autoscaler asks for a metric that nobody offers",
        "k8s/base/autoscaler.yaml",
        "name: ml_saturation",
        "name: ml_saturated",
        ARTIFACTS,
        "artifacts",
        "ml_saturated",
    ),
    Fault(
        "k8s: unknown key in the PodMonitor",
        "k8s/overlays/monitoring/pod-monitor.yaml",
        "interval:",
        "every:",
        KUBERNETES,
        "check-operators",
        "every does not exist",
    ),
    Fault(
        "k8s: KEDA asks for a metric that does not exist",
        "k8s/overlays/monitoring/keda.yaml",
        "max(ml_saturation",
        "max(ml_saturations",
        ARTIFACTS,
        "artifacts",
        "ml_saturations",
    ),
    Fault(
        "k8s: adapter's query is no PromQL",
        "k8s/overlays/monitoring/adapter-values.yaml",
        "or 0 * ml_ready",
        "or or ml_ready",
        LIVE,
        "Prometheus",
        "panicked",
    ),
    Fault(
        "k8s: the operator's rules differ from Prometheus'",
        "k8s/overlays/monitoring/prometheus-rule.yaml",
        "> 0.95",
        "> 0.59",
        ARTIFACTS,
        "artifacts",
        "the_prometheus_operator_gets_the_same_rules",
    ),
    # Terraform and Cloud Run.
    Fault(
        "terraform: an L4 with 2 CPUs allowed",
        f"{MODULE}/variables.tf",
        "contains([4, 8], try(var.gpu.cpu, 4))",
        "contains([2, 4, 8], try(var.gpu.cpu, 4))",
        TERRAFORM,
        "check-terraform",
        "gpu.cpu is neither 4 nor 8",
    ),
    Fault(
        "terraform: an L4 with 4 GiB allowed",
        f"{MODULE}/variables.tf",
        "var.gpu.memory_gib >= 16",
        "var.gpu.memory_gib >= 4",
        TERRAFORM,
        "check-terraform",
        "gpu.memory_gib is not what Cloud Run gives",
    ),
    Fault(
        "terraform: CPU throttled between requests",
        f"{MODULE}/main.tf",
        'cpu_idle          = each.key == "cpu"',
        "cpu_idle          = true",
        DELIVERY,
        "delivery",
        "cpu_idle",
    ),
    Fault(
        "terraform: argument that the provider does not have",
        f"{MODULE}/main.tf",
        "gpu_zonal_redundancy_disabled ",
        "gpu_zone_redundancy_disabled  ",
        TERRAFORM,
        "check-terraform",
        "gpu_zone_redundancy_disabled",
    ),
    Fault(
        "terraform: not formatted",
        f"{MODULE}/storage.tf",
        "  project ",
        " project ",
        TERRAFORM,
        "terraform fmt",
        "storage.tf",
    ),
    Fault(
        "terraform: bucket open to the internet",
        f"{MODULE}/storage.tf",
        'public_access_prevention    = "enforced"',
        'public_access_prevention    = "inherited"',
        TERRAFORM,
        "checkov",
        "CKV_GCP_114",
    ),
    Fault(
        "terraform: wrong port",
        f"{MODULE}/main.tf",
        "container_port = 8000",
        "container_port = 8080",
        DELIVERY,
        "delivery",
        "container_port",
    ),
    Fault(
        "terraform: variable that the server does not read",
        f"{MODULE}/main.tf",
        '"DEVICE"',
        '"DEVICES"',
        DELIVERY,
        "delivery",
        "DEVICES",
    ),
    Fault(
        "terraform: probe on a second port",
        f"{MODULE}/main.tf",
        'path = "/health"\n          port = 8000',
        'path = "/health"\n          port = 8002',
        DELIVERY,
        "delivery",
        "8002",
    ),
    Fault(
        "terraform: more L4s than a new project may use",
        "terraform/environments/production/main.tf",
        "instances = { min = 1, max = 2 }",
        "instances = { min = 1, max = 10 }",
        DELIVERY,
        "delivery",
        "leave no L4 to a new revision",
    ),
    Fault(
        "terraform: a quota that no new project has",
        f"{MODULE}/variables.tf",
        "type        = number\n  default     = 3",
        "type        = number\n  default     = 10",
        TERRAFORM,
        "check-terraform",
        "leaves no GPU of l4_quota",
    ),
    Fault(
        "terraform: a budget without its interface",
        f"{MODULE}/main.tf",
        '    "billingbudgets.googleapis.com",\n',
        "",
        DELIVERY,
        "delivery",
        'billingbudgets.googleapis.com" is not enabled',
    ),
    Fault(
        "terraform: a budget that nobody pays the call for",
        "terraform/environments/staging/main.tf",
        "user_project_override = true",
        "user_project_override = false",
        DELIVERY,
        "delivery",
        "who pays for the call",
    ),
    Fault(
        "terraform: a role for an account that does not exist yet",
        f"{MODULE}/main.tf",
        "depends_on = [google_project_service_identity.monitoring]",
        "depends_on = [google_project_service.needed]",
        DELIVERY,
        "delivery",
        "gets a role before it exists",
    ),
    Fault(
        "terraform: trust by a name that can be given to others",
        f"{MODULE}/identities.tf",
        "assertion.repository_id == '${local.github_repository_id}'",
        "assertion.repository == '${var.github_repository}'",
        DELIVERY,
        "delivery",
        "by its number",
    ),
    Fault(
        "terraform: trust in every environment",
        f"{MODULE}/identities.tf",
        "assertion.environment in [",
        "assertion.ref in [",
        DELIVERY,
        "delivery",
        "does not name the environments",
    ),
    Fault(
        "terraform: the new form of the subject refused",
        f"{MODULE}/variables.tf",
        "(/[A-Za-z0-9._-]+|@[0-9]+/[A-Za-z0-9._-]+@[0-9]+)$",
        "/[A-Za-z0-9._-]+$",
        TERRAFORM,
        "check-terraform",
        "owner@123/model-serving@789",
    ),
    Fault(
        "terraform: a name that nothing declares",
        f"{MODULE}/monitoring.tf",
        "local.service_filters[each.key]",
        "local.service_filter[each.key]",
        TERRAFORM,
        "check-terraform",
        "nothing declares local.service_filter",
    ),
    Fault(
        "terraform: the service without a GPU never sleeps",
        f"{MODULE}/variables.tf",
        "{ min = 0, max = 10 }",
        "{ min = 1, max = 10 }",
        DELIVERY,
        "delivery",
        "min = 0",
    ),
    Fault(
        "terraform: an account with too long a name",
        f"{MODULE}/identities.tf",
        "${local.name}-cd",
        "${local.name}-deploy",
        DELIVERY,
        "delivery",
        "has 31 letters, of 30",
    ),
    Fault(
        "terraform: it takes back what the workflow deployed",
        f"{MODULE}/main.tf",
        "      template[0].containers[0].image,\n",
        "",
        DELIVERY,
        "delivery",
        "the_workflow_sets_image_tag_and_traffic",
    ),
    # Delivery.
    Fault(
        "delivery: a flag that is Terraform's",
        f"{ACTIONS}/deploy-cloud-run/action.yml",
        "--no-traffic --quiet",
        "--no-traffic --cpu=2 --quiet",
        DELIVERY,
        "delivery",
        "--cpu is Terraform's",
    ),
    Fault(
        "delivery: identity token for no service",
        f"{ACTIONS}/deploy-cloud-run/action.yml",
        "steps.candidate.outputs.service }}\n        id_token_include_email",
        "steps.candidate.outputs.candidate }}\n        id_token_include_email",
        DELIVERY,
        "delivery",
        "the audience is not the service's URL",
    ),
    Fault(
        "delivery: identity token of credentials that have none",
        f"{ACTIONS}/deploy-cloud-run/action.yml",
        "${{ steps.identity.outputs.id_token }}",
        "$(gcloud auth print-identity-token)",
        DELIVERY,
        "delivery",
        "action.yml",
    ),
    Fault(
        "delivery: traffic before it has predicted",
        f"{ACTIONS}/deploy-cloud-run/action.yml",
        '        scripts/check-deployment.sh "$CANDIDATE_URL" "$DEVICE"\n',
        "",
        DELIVERY,
        "delivery",
        "it does not answer",
    ),
    Fault(
        "delivery: traffic is left where nothing predicts",
        f"{ACTIONS}/deploy-cloud-run/action.yml",
        '--to-revisions="$PREVIOUS"',
        '--to-revisions="$REVISION=100"',
        DELIVERY,
        "delivery",
        "the traffic is not given back",
    ),
    Fault(
        "delivery: any device will do",
        "scripts/check-deployment.sh",
        "length > 0 and all(.[]; .device | startswith($device))",
        "length > 0",
        DELIVERY,
        "delivery",
        "it is on another device",
    ),
    Fault(
        "delivery: a tag builds again",
        f"{FLOWS}/docker.yml",
        "    branches: [main]\n",
        '    branches: [main]\n    tags: ["v*"]\n',
        DELIVERY,
        "delivery",
        "an_image_is_built_once_on_main_after_all_checks",
    ),
    Fault(
        "delivery: a version is built, not promoted",
        f"{FLOWS}/deploy.yml",
        'docker buildx imagetools create --tag "$IMAGE:$1" "$IMAGE@$2"',
        'docker build --tag "$IMAGE:$1" .',
        DELIVERY,
        "delivery",
        "builds an image",
    ),
    Fault(
        "delivery: images without waiting for the checks",
        f"{FLOWS}/docker.yml",
        "needs: [ci, once]",
        "needs: [once]",
        DELIVERY,
        "delivery",
        "build does not wait for ci",
    ),
    Fault(
        "delivery: a version that can be moved",
        f"{FLOWS}/deploy.yml",
        'if [ -n "$before" ] && [ "$before" != "$2" ]; then',
        "if false; then",
        DELIVERY,
        "delivery",
        "names_of_images_are_never_moved",
    ),
    Fault(
        "delivery: a commit's image that can be moved",
        f"{FLOWS}/docker.yml",
        "if now=$(digest); then",
        "if false; then",
        DELIVERY,
        "delivery",
        "names_of_images_are_never_moved",
    ),
    Fault(
        "delivery: the GPU image signed without a scan",
        f"{FLOWS}/docker.yml",
        "      - uses: aquasecurity/trivy-action@ed142fd0673e97e23eac54620cfb913e5ce36c25 # v0.36.0\n        with:",
        "      - if: matrix.variant == 'cpu'\n"
        "        uses: aquasecurity/trivy-action@ed142fd0673e97e23eac54620cfb913e5ce36c25 # v0.36.0\n        with:",
        DELIVERY,
        "delivery",
        "not every variant is scanned",
    ),
    Fault(
        "delivery: a release before production",
        f"{FLOWS}/deploy.yml",
        "needs: [promote, production, checksums]",
        "needs: [promote, checksums]",
        DELIVERY,
        "delivery",
        "the release does not wait for production",
    ),
    Fault(
        "delivery: deployed without its bill of materials",
        f"{ACTIONS}/verify-image/action.yml",
        "cosign verify-attestation --type spdxjson",
        "cosign verify-attestation --type vuln",
        DELIVERY,
        "delivery",
        "it does not verify",
    ),
    Fault(
        "delivery: deployed without provenance",
        f"{ACTIONS}/verify-image/action.yml",
        "gh attestation verify",
        "gh attestation download",
        DELIVERY,
        "delivery",
        "it does not verify",
    ),
    Fault(
        "delivery: one image is not verified",
        f"{FLOWS}/cloud-run.yml",
        "image: ${{ inputs.image }}@${{ inputs.gpu }}\n          commit",
        "image: ${{ inputs.image }}@${{ inputs.cpu }}\n          commit",
        DELIVERY,
        "delivery",
        "signature_bill_of_materials_and_provenance",
    ),
    Fault(
        "delivery: artifacts by a permission that the job lacks",
        f"{FLOWS}/deploy.yml",
        "      - name: Write and sign the checksums\n",
        '      - run: gh run download "$GITHUB_RUN_ID"\n      - name: Write and sign the checksums\n',
        DELIVERY,
        "delivery",
        "what_a_job_downloads",
    ),
    Fault(
        "delivery: artifacts of a job that nobody waits for",
        f"{FLOWS}/deploy.yml",
        "needs: try\n",
        "needs: promote\n",
        DELIVERY,
        "delivery",
        "which nothing before it uploads",
    ),
    Fault(
        "delivery: a call that allows less than it calls",
        f"{FLOWS}/docker.yml",
        "      contents: read\n      pull-requests: read\n    uses",
        "      contents: read\n    uses",
        DELIVERY,
        "delivery",
        "pull-requests",
    ),
    Fault(
        "delivery: a variable that Terraform does not print",
        f"{FLOWS}/cloud-run.yml",
        "project: ${{ vars.GCP_PROJECT }}",
        "project: ${{ vars.GCP_PROJECT_ID }}",
        DELIVERY,
        "delivery",
        "GCP_PROJECT_ID",
    ),
    Fault(
        "delivery: a failure before a pipe that nobody notices",
        f"{FLOWS}/deploy.yml",
        "    shell: bash\n",
        "    shell: sh\n",
        DELIVERY,
        "delivery",
        "no pipefail",
    ),
    Fault(
        "delivery: skipped checks pass",
        f"{FLOWS}/ci.yml",
        'FAIL_ON_SKIPPED: "1"',
        'FAIL_ON_SKIPPED: "0"',
        DELIVERY,
        "delivery",
        "ci_runs_every_part_of_make_test",
    ),
    Fault(
        "delivery: nobody asks whether checks were skipped",
        "scripts/run-stages.py",
        "        code = 1\n    sys.exit(code)",
        "    sys.exit(code)",
        DELIVERY,
        "delivery",
        "a_skipped_check_fails",
    ),
    Fault(
        "delivery: Terraform checked without Terraform",
        f"{FLOWS}/ci.yml",
        "hashicorp/setup-terraform@dfe3c3f87815947d99a8997f908cb6525fc44e9e # v4.0.1",
        "actions/setup-python@5fda3b95a4ea91299a34e894583c3862153e4b97 # v7.0.0",
        DELIVERY,
        "delivery",
        "hashicorp/setup-terraform@",
    ),
    Fault(
        "delivery: a part of make test that CI leaves out",
        f"{FLOWS}/ci.yml",
        "run-stages.py lint doc",
        "run-stages.py lint",
        DELIVERY,
        "delivery",
        "ci_runs_every_part_of_make_test",
    ),
    Fault(
        "delivery: a tool that is compiled",
        f"{FLOWS}/deploy.yml",
        "      - name: Pack\n",
        "      - run: cargo install cargo-deb\n      - name: Pack\n",
        DELIVERY,
        "delivery",
        "cargo install",
    ),
    Fault(
        "delivery: an action by tag in an action",
        f"{ACTIONS}/prepare/action.yml",
        "actions/cache@55cc8345863c7cc4c66a329aec7e433d2d1c52a9 # v6.1.0",
        "actions/cache@v6",
        DELIVERY,
        "delivery",
        "actions/cache@v6",
    ),
    Fault(
        "delivery: an archive that differs each time",
        "scripts/pack-release.sh",
        '--mtime="@${SOURCE_DATE_EPOCH:?}" ',
        "",
        DELIVERY,
        "delivery",
        "gave another archive",
    ),
    Fault(
        "delivery: an archive without ONNX Runtime",
        "scripts/pack-release.sh",
        '    cp -P "$root"/lib/libonnxruntime.so* "$stage/$name/"\n',
        "",
        DELIVERY,
        "delivery",
        "the_program_of_a_release_serves",
    ),
    Fault(
        "actions: unknown key",
        f"{ACTIONS}/prepare/action.yml",
        "using: composite",
        "use: composite",
        WORKFLOWS,
        "check-jsonschema",
        "composite",
    ),
    # Monitoring.
    Fault(
        "rules: metric that does not exist",
        RULES,
        "max by (job, model_name) (ml_saturation)",
        "max by (job, model_name) (ml_saturations)",
        ARTIFACTS,
        "artifacts",
        "ml_saturations",
    ),
    Fault(
        "rules: no PromQL",
        RULES,
        "expr: ml_ready == 0",
        "expr: ml_ready = 0",
        MONITORING,
        "promtool check",
        "could not parse expression",
    ),
    Fault("rules: wrong threshold", RULES, "p99_rate5m > 0.2", "p99_rate5m > 2", MONITORING, "promtool test", "FAILED"),
    Fault("rules: unknown key", RULES, "for: 10m", "during: 10m", MONITORING, "promtool check", "during"),
    Fault(
        "rules: GPU alert on a metric that does not exist",
        RULES,
        "expr: ml_gpu_temperature_celsius > 85",
        "expr: ml_gpu_temperature > 85",
        ARTIFACTS,
        "artifacts",
        "ml_gpu_temperature",
    ),
    Fault(
        "dashboard: metric that does not exist",
        DASHBOARD,
        "sum(panics_total",
        "sum(ml_panics_total",
        ARTIFACTS,
        "artifacts",
        "ml_panics_total",
    ),
    Fault(
        "dashboard: label that the metric does not have",
        DASHBOARD,
        "sum by (result) (increase(",
        "sum by (outcome) (increase(",
        ARTIFACTS,
        "artifacts",
        "outcome",
    ),
    Fault(
        "dashboard: query that never has data",
        DASHBOARD,
        'sum(panics_total{job=\\"model-serving\\"})',
        'sum(panics_total{job=\\"model_serving\\"})',
        LIVE,
        "Prometheus",
        "model_serving",
    ),
    Fault(
        "dashboard: panel without a unit",
        GPU_DASHBOARD,
        '"unit": "celsius"',
        '"decimals": 0',
        ARTIFACTS,
        "artifacts",
        "unit",
    ),
    Fault(
        "prometheus.yml: unknown key",
        "monitoring/prometheus.yml",
        "scrape_timeout",
        "timeout",
        MONITORING,
        "promtool check",
        "timeout",
    ),
    Fault(
        "prometheus.yml: wrong port",
        "monitoring/prometheus.yml",
        "api:8002",
        "api:8080",
        ARTIFACTS,
        "artifacts",
        "api:8080",
    ),
    Fault(
        "compose: admin port off, where Prometheus scrapes it",
        "docker-compose.yml",
        '      ADMIN_PORT: "8002"\n',
        "",
        ARTIFACTS,
        "artifacts",
        "admin port",
    ),
    # Workflows.
    Fault(
        "workflows: action by tag",
        ".github/workflows/ci.yml",
        f"{CHECKOUT} # v7.0.1",
        "actions/checkout@v7",
        WORKFLOWS,
        "zizmor",
        "unpinned-uses",
    ),
    Fault(
        "workflows: unknown key",
        ".github/workflows/ci.yml",
        "timeout-minutes: 40",
        "timeout: 40",
        WORKFLOWS,
        "check-jsonschema",
        "timeout",
    ),
    Fault(
        "workflows: expression that names nothing",
        ".github/workflows/deploy.yml",
        "needs.promote.outputs.commit",
        "needs.promote.outputs.commits",
        WORKFLOWS,
        "actionlint",
        "commits",
    ),
    Fault(
        "workflows: text of an event in a script",
        ".github/workflows/deploy.yml",
        "version=${GITHUB_REF_NAME#v}",
        "version=${{ github.ref_name }}",
        WORKFLOWS,
        "zizmor",
        "template-injection",
    ),
    Fault(
        "workflows: a job that may write everything",
        ".github/workflows/deploy.yml",
        "permissions:\n      contents: write",
        "permissions: write-all",
        WORKFLOWS,
        "zizmor",
        "excessive-permissions",
    ),
    Fault(
        "workflows: a workflow that may write everything",
        ".github/workflows/ci.yml",
        "permissions:\n  contents: read",
        "permissions: write-all",
        DELIVERY,
        "delivery",
        "write-all",
    ),
    Fault(
        "workflows: the checkout's credentials kept",
        ".github/workflows/ci.yml",
        "\n        with:\n          persist-credentials: false",
        "",
        WORKFLOWS,
        "zizmor",
        "artipacked",
    ),
    Fault(
        "dependabot: actions that nobody looks at",
        ".github/dependabot.yml",
        "directories: [/, /.github/actions/*]",
        "directories: [/]",
        DELIVERY,
        "delivery",
        "nobody looks at /.github/actions/*",
    ),
    Fault(
        "dependabot: unknown key",
        ".github/dependabot.yml",
        "cooldown:",
        "cooling:",
        WORKFLOWS,
        "check-jsonschema",
        "cooling",
    ),
    # Docker and Compose.
    Fault(
        "Dockerfile: base by tag",
        "Dockerfile",
        "@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f",
        "",
        ARTIFACTS,
        "artifacts",
        "pinned_by_digest",
    ),
    Fault(
        "Dockerfile: packages that nobody asked for",
        "Dockerfile",
        " --no-install-recommends",
        "",
        FILES,
        "hadolint",
        "DL3015",
    ),
    Fault(
        "Compose: unknown key",
        "docker-compose.yml",
        "stop_grace_period:",
        "grace_period:",
        FILES,
        "Compose",
        "grace_period",
    ),
    Fault(
        "Compose: variable that the server does not read",
        "docker-compose.yml",
        "MAX_INFLIGHT_BYTES:",
        "MAX_INFLIGHT:",
        ARTIFACTS,
        "artifacts",
        "MAX_INFLIGHT",
    ),
    Fault(
        "Compose: image by tag",
        "docker-compose.yml",
        "@sha256:efd719c99d83b060d9daefdcf00360461adf279f45ef5391f8d111892118753e",
        "",
        ARTIFACTS,
        "artifacts",
        "prometheus",
    ),
    Fault(
        "YAML: a key twice",
        "docker-compose.yml",
        "    stop_grace_period: 15s\n",
        "    stop_grace_period: 15s\n    stop_grace_period: 5s\n",
        FILES,
        "yamllint",
        "duplication",
    ),
    # Documents.
    Fault(
        "README: a default that is not the program's",
        "README.md",
        "| `DRAIN_TIMEOUT` | `8s` |",
        "| `DRAIN_TIMEOUT` | `9s` |",
        DOCS,
        "docs",
        "drain-timeout",
    ),
    Fault(
        "README: a metric that does not exist",
        "README.md",
        "| `ml_queue_rows` |",
        "| `ml_queue_row` |",
        DOCS,
        "docs",
        "ml_queue_row",
    ),
]


def run(check: str) -> tuple[bool, str]:
    """Whether `check` passes, and what it prints."""
    done = subprocess.run(
        check.split(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode == 0, done.stdout


def main() -> int:
    faults = [fault for fault in FAULTS if not sys.argv[1:] or any(part in fault.name for part in sys.argv[1:])]
    changed = subprocess.run(
        ["git", "status", "--porcelain", *{fault.file for fault in faults}],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    if changed:
        print(f"these files have changes, which could be lost:\n{changed}", file=sys.stderr)
        return 1
    for check in sorted({fault.check for fault in faults}):
        passes, output = run(check)
        if not passes:
            print(f"{output}\n'{check}' fails without any fault", file=sys.stderr)
            return 1
        print(f"passes without a fault: {check}", flush=True)
    missed = 0
    for fault in faults:
        path = ROOT / fault.file
        whole = path.read_text()
        if fault.old not in whole:
            print(f"STALE   {fault.name}: {fault.file} has no {fault.old!r}", flush=True)
            missed += 1
            continue
        try:
            path.write_text(whole.replace(fault.old, fault.new, 1))
            passes, output = run(fault.check)
        finally:
            path.write_text(whole)
        caught = not passes and fault.says in output
        missed += not caught
        print(f"{'caught' if caught else 'MISSED'}  {fault.name}: {fault.tool} ({fault.check})", flush=True)
        if not caught:
            print(output[-2000:], flush=True)
    print(f"{len(faults)} faults, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
