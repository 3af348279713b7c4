#!/usr/bin/env python3
"""check-terraform.py SCHEMA.whl FOLDER: holds the Terraform in FOLDER against what can be known without its provider.

Every argument of every Google resource: Terraform's own check needs the provider, which is a download of its own. The
package of the same schema for another tool (pulumi-gcp, made from the provider) is an ordinary package that pip can
check by hash; its classes are read here as text and never run. It is of the provider's newest version, and calls lists
of blocks by their plural.

Every name: what is referred to is declared, and modules are given the variables that they have.

The order: every resource of a project waits for the APIs that the module enables, by what it refers to or depends on.

The variables' own checks: Terraform needs no provider to evaluate them, so it is asked, where it is installed.
"""

import ast
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

import hcl2

# The class that stands for each resource; a resource that is not in this table is an error.
CLASSES = {
    "google_artifact_registry_repository": "artifactregistry.Repository",
    "google_artifact_registry_repository_iam_member": "artifactregistry.RepositoryIamMember",
    "google_billing_budget": "billing.Budget",
    "google_cloud_run_v2_service": "cloudrunv2.Service",
    "google_cloud_run_v2_service_iam_member": "cloudrunv2.ServiceIamMember",
    "google_iam_workload_identity_pool": "iam.WorkloadIdentityPool",
    "google_iam_workload_identity_pool_provider": "iam.WorkloadIdentityPoolProvider",
    "google_monitoring_alert_policy": "monitoring.AlertPolicy",
    "google_monitoring_notification_channel": "monitoring.NotificationChannel",
    "google_monitoring_uptime_check_config": "monitoring.UptimeCheckConfig",
    "google_project_iam_member": "projects.IAMMember",
    "google_project_service": "projects.Service",
    "google_project_service_identity": "projects.ServiceIdentity",
    "google_secret_manager_secret": "secretmanager.Secret",
    "google_secret_manager_secret_iam_member": "secretmanager.SecretIamMember",
    "google_service_account": "serviceaccount.Account",
    "google_service_account_iam_member": "serviceaccount.IAMMember",
    "google_storage_bucket": "storage.Bucket",
    "google_storage_bucket_iam_member": "storage.BucketIAMMember",
}

IMAGE = "europe-west4-docker.pkg.dev/project/images/model-serving@sha256:" + "0" * 64
# What a user must set.
USUAL = {
    "project": "my-project-123",
    "region": "europe-west4",
    "environment": "staging",
    "github_repository": "owner/model-serving",
    "github_repository_id": "456",
    "gpu": {"image": IMAGE},
}
# Values of the module's variables, and what Terraform says of them: a part of its error, or the number by which the
# repository is then known.
VALUES = [
    ({}, 456),
    ({"github_repository": "owner@123/model-serving@789", "github_repository_id": None}, 789),
    ({"github_repository_id": None}, "github_repository_id is not a number"),
    ({"github_repository_id": "owner/model-serving"}, "github_repository_id is not a number"),
    ({"github_repository": "owner@123/model-serving"}, "github_repository is neither"),
    ({"github_repository": "model-serving"}, "github_repository is neither"),
    ({"gpu": None}, "there would be no service"),
    ({"gpu": None, "cpu": {"image": IMAGE}}, 456),
    ({"cpu": {"image": IMAGE}}, 456),
    ({"gpu": {"image": "model-serving:gpu"}}, "gpu.image is not pinned by digest"),
    ({"cpu": {"image": "model-serving:latest"}}, "cpu.image is not pinned by digest"),
    ({"gpu": {"image": IMAGE, "cpu": 2}}, "gpu.cpu is neither 4 nor 8"),
    ({"gpu": {"image": IMAGE, "memory_gib": 8}}, "gpu.memory_gib is not what Cloud Run gives"),
    ({"gpu": {"image": IMAGE, "memory_gib": 32}}, "gpu.memory_gib is not what Cloud Run gives"),
    ({"gpu": {"image": IMAGE, "memory_gib": 32, "cpu": 8}}, 456),
    ({"gpu": {"image": IMAGE, "instances": {"min": 1, "max": 3}}}, "leaves no GPU of l4_quota"),
    ({"gpu": {"image": IMAGE, "instances": {"min": 1, "max": 10}}, "l4_quota": 11}, 456),
    ({"gpu": {"image": IMAGE, "instances": {"min": 2, "max": 1}}}, "gpu.instances must have"),
    ({"cpu": {"image": IMAGE, "memory_gib": 16}}, "cpu.memory_gib is not what Cloud Run gives"),
    ({"cpu": {"image": IMAGE, "cpu": 3}}, "cpu.cpu is none of"),
    ({"api_key_version": "first"}, "api_key_version is not a version"),
    ({"otlp_endpoint": "collector:4318"}, "otlp_endpoint does not begin"),
    ({"invokers": ["somebody"]}, "invokers has a member"),
    ({"budget": {"billing_account": "0-0-0", "amount": 900}}, 456),
    ({"budget": {"billing_account": "0-0-0", "amount": 9.5}}, "budget.amount is not a whole number"),
    ({"deletion_protection": False}, 456),
]

# What everything else waits for.
APIS = "google_project_service.needed"

# Terraform's own arguments of a resource, and what the parser adds.
META = {"count", "depends_on", "for_each", "lifecycle", "provider", "provisioner"}


class Schema:
    """The arguments of each class: their names, and the class of each that is a block."""

    def __init__(self, wheel):
        self._archive = zipfile.ZipFile(wheel)
        self._modules = {}

    def resource(self, name):
        module, _, resource = name.partition(".")
        return self._classes(module)[f"{resource}Args"], module

    def block(self, module, name):
        return self._classes(module)[name]

    def _classes(self, module):
        if module not in self._modules:
            found = {}
            for path in self._archive.namelist():
                if re.fullmatch(rf"pulumi_gcp/{module}/\w+\.py", path):
                    for node in ast.parse(self._archive.read(path)).body:
                        if isinstance(node, ast.ClassDef) and node.name.endswith("Args"):
                            found.setdefault(node.name, self._arguments(node))
            self._modules[module] = found
        return self._modules[module]

    @staticmethod
    def _arguments(node):
        (init,) = (item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__")
        arguments = {}
        for argument in init.args.kwonlyargs:
            block = re.search(r"'(\w+Args)'", ast.unparse(argument.annotation))
            arguments[argument.arg] = block and block[1]
        return arguments


def spellings(name):
    return (name, f"{name}s", f"{name}es", re.sub(r"y$", "ies", name))


def check(schema, module, arguments, body, where):
    """The complaints about one block, and about those in it."""
    for name, value in body.items():
        name = name.strip('"')
        if name.startswith("__") or (name in META and where.count(".") == 1):
            continue
        if name == "dynamic":
            for block in value:
                for label, inner in block.items():
                    if not label.startswith("__"):
                        content = {label.strip('"'): inner["content"]}
                        yield from check(schema, module, arguments, content, where)
            continue
        known = next((spelling for spelling in spellings(name) if spelling in arguments), None)
        if known is None:
            yield f"{where}: there is no argument {name}"
        elif arguments[known]:
            for block in value if isinstance(value, list) else [value]:
                if isinstance(block, dict):
                    inner = schema.block(module, arguments[known])
                    yield from check(schema, module, inner, block, f"{where}.{name}")


def blocks(parsed, kind):
    """The named blocks of a kind, such as the variables, as pairs of name and body."""
    for block in parsed.get(kind, []):
        for name, body in block.items():
            if not name.startswith("__"):
                yield name.strip('"'), body


def arguments(schema, path, parsed):
    """The number of resources, and the complaints about their arguments."""
    complaints, count = [], 0
    for kind, named in blocks(parsed, "resource"):
        if kind not in CLASSES:
            complaints.append(f"the table in this script does not know {kind}")
            continue
        for name, body in named.items():
            if not name.startswith("__"):
                known, module = schema.resource(CLASSES[kind])
                complaints += check(schema, module, known, body, f"{kind}.{name.strip(chr(34))}")
                count += 1
    return count, [f"{path}: {complaint}" for complaint in complaints]


def declared(files):
    """What the files of one folder declare, as it is referred to."""
    found = set()
    for parsed in files.values():
        found |= {f"var.{name}" for name, _ in blocks(parsed, "variable")}
        found |= {f"module.{name}" for name, _ in blocks(parsed, "module")}
        found |= {f"local.{name.strip(chr(34))}" for block in parsed.get("locals", []) for name in block}
        for kind in ("resource", "data"):
            prefix = "data." if kind == "data" else ""
            for name, named in blocks(parsed, kind):
                found |= {f"{prefix}{name}.{label.strip(chr(34))}" for label in named}
    return found


def names(folders):
    """The complaints about names that nothing declares, and about what modules are given."""
    for folder, files in folders.items():
        known = declared(files)
        for path, parsed in files.items():
            text = re.sub(r"(^|\s)#.*", "", path.read_text())
            pattern = r"(?<![\w.])((?:var|local|module|data\.google_\w+|google_\w+)\.\w+)"
            for reference in sorted(set(re.findall(pattern, text))):
                if reference not in known:
                    yield f"{path}: nothing declares {reference}"
            for name, body in blocks(parsed, "module"):
                source = (folder / body["source"].strip('"')).resolve()
                variables = {
                    name: body for parsed in folders[source].values() for name, body in blocks(parsed, "variable")
                }
                given = {name for name in body if not name.startswith("__")} - META - {"source", "providers"}
                needed = {name for name, body in variables.items() if "default" not in body}
                yield from (
                    f"{path}: module.{name} has no variable {extra}" for extra in sorted(given - set(variables))
                )
                yield from (f"{path}: module.{name} is not given {missing}" for missing in sorted(needed - given))
                outputs = {output for parsed in folders[source].values() for output, _ in blocks(parsed, "output")}
                for output in sorted(set(re.findall(rf"module\.{name}\.(\w+)", text)) - outputs):
                    yield f"{path}: module.{name} has no output {output}"


def texts(value):
    """Every text in a parsed block."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    else:
        yield str(value)


def order(folders):
    """The complaints about resources that Terraform would make while the APIs are still being enabled."""
    for folder, files in folders.items():
        refers = {}
        for parsed in files.values():
            for kind, named in blocks(parsed, "resource"):
                refers |= {f"{kind}.{name.strip(chr(34))}": body for name, body in named.items()}
            for block in parsed.get("locals", []):
                refers |= {f"local.{name.strip(chr(34))}": value for name, value in block.items()}
        refers = {
            name: set(re.findall(r"(?<![\w.])(?:local|google_\w+)\.\w+", " ".join(texts(body)))) & set(refers)
            for name, body in refers.items()
        }
        if APIS not in refers:
            continue
        waits = {APIS}
        while more := {name for name in set(refers) - waits if refers[name] & waits}:
            waits |= more
        for name in sorted(refers):
            if name.startswith("google_") and name not in waits:
                yield f"{folder}: {name} does not wait for {APIS}"


def values(module):
    """The complaints about the variables' own checks, which Terraform evaluates here."""
    identity = re.search(r"^ *github_repository_id += (.*)$", (module / "identities.tf").read_text(), re.M)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(module / "variables.tf", folder)
        (pathlib.Path(folder) / "main.tf").write_text(f'output "id" {{\n  value = {identity[1]}\n}}\n')
        terraform = ["terraform", f"-chdir={folder}"]
        environment = os.environ | {"TF_CLI_CONFIG_FILE": os.devnull, "TF_IN_AUTOMATION": "1"}

        def run(*words):
            return subprocess.run(
                [*terraform, *words],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )

        started = run("init", "-input=false", "-no-color")
        if started.returncode != 0:
            yield started.stdout
            return
        for changed, expected in VALUES:
            variables = pathlib.Path(folder) / "terraform.tfvars.json"
            variables.write_text(json.dumps(USUAL | changed))
            done = run("apply", "-input=false", "-auto-approve", "-no-color")
            if isinstance(expected, int):
                got = run("output", "-raw", "id").stdout if done.returncode == 0 else done.stdout
                right = got == str(expected)
            else:
                # Terraform breaks its lines to the width that it likes.
                got = " ".join(done.stdout.replace("│", " ").split())
                right = done.returncode != 0 and expected in got
            if not right:
                yield f"{module}/variables.tf: with {json.dumps(changed)} expected {expected!r}, got {got}"


def main(wheel, folder):
    schema = Schema(wheel)
    folders, complaints, count = {}, [], 0
    for path in sorted(pathlib.Path(folder).resolve().rglob("*.tf")):
        with open(path) as file:
            folders.setdefault(path.parent, {})[path] = hcl2.load(file)
    for path, parsed in ((path, parsed) for files in folders.values() for path, parsed in files.items()):
        resources, wrong = arguments(schema, path, parsed)
        count += resources
        complaints += wrong
    complaints += names(folders)
    complaints += order(folders)
    evaluated = shutil.which("terraform") is not None
    if evaluated:
        complaints += values(pathlib.Path(folder) / "modules/model-serving")
    if complaints or count == 0:
        sys.exit(
            "\n".join(f"check-terraform: {complaint}" for complaint in complaints) or "check-terraform: no resource"
        )
    print(
        f"check-terraform: {count} resources have only arguments that the provider knows, every name is declared, and all wait for the APIs"
    )
    if evaluated:
        print(f"check-terraform: Terraform took or refused {len(VALUES)} sets of variables as it should")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
