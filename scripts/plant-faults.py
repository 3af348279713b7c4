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
        "contains([4, 8], var.cpu)",
        "contains([2, 4, 8], var.cpu)",
        ARTIFACTS,
        "artifacts",
        "terraform_gives_an_l4_what_it_needs",
    ),
    Fault(
        "terraform: an L4 with 4 GiB allowed",
        f"{MODULE}/variables.tf",
        "var.memory_gib >= 16",
        "var.memory_gib >= 4",
        ARTIFACTS,
        "artifacts",
        "terraform_gives_an_l4_what_it_needs",
    ),
    Fault(
        "terraform: CPU throttled between requests",
        f"{MODULE}/main.tf",
        "cpu_idle          = false",
        "cpu_idle          = true",
        ARTIFACTS,
        "artifacts",
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
        ARTIFACTS,
        "artifacts",
        "container_port",
    ),
    Fault(
        "terraform: variable that the server does not read",
        f"{MODULE}/main.tf",
        '"DEVICE"',
        '"DEVICES"',
        ARTIFACTS,
        "artifacts",
        "DEVICES",
    ),
    Fault(
        "cloud-run.yml: an L4 with 2 CPUs",
        ".github/workflows/cloud-run.yml",
        "--cpu=4",
        "--cpu=2",
        ARTIFACTS,
        "artifacts",
        "cloud_run_gets_what_an_l4_needs",
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
    Fault(
        "cloud run: probe on a second port",
        ".github/workflows/cloud-run.yml",
        "path=/health,httpGet.port=8000",
        "path=/health,httpGet.port=8002",
        ARTIFACTS,
        "artifacts",
        "8002",
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
        "needs.image.outputs.tag",
        "needs.image.outputs.tags",
        WORKFLOWS,
        "actionlint",
        "tags",
    ),
    Fault(
        "workflows: text of an event in a script",
        ".github/workflows/deploy.yml",
        "[[ $RELEASE =~",
        "[[ ${{ github.event.release.tag_name }} =~",
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
        ARTIFACTS,
        "artifacts",
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
