#!/usr/bin/env python3
"""check-terraform.py SCHEMA.whl FOLDER: holds every argument of every Google resource in FOLDER against the provider's.

Terraform's own check needs the provider, which is a download of its own. The package of the same schema for another
tool (pulumi-gcp, made from the provider) is an ordinary package that pip can check by hash; its classes are read here
as text and never run. It is of the provider's newest version, and calls lists of blocks by their plural.
"""

import ast
import pathlib
import re
import sys
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
    "google_project_service": "projects.Service",
    "google_secret_manager_secret": "secretmanager.Secret",
    "google_secret_manager_secret_iam_member": "secretmanager.SecretIamMember",
    "google_service_account": "serviceaccount.Account",
    "google_service_account_iam_member": "serviceaccount.IAMMember",
    "google_storage_bucket": "storage.Bucket",
    "google_storage_bucket_iam_member": "storage.BucketIAMMember",
}

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


def main(wheel, folder):
    schema = Schema(wheel)
    complaints, count = [], 0
    for path in sorted(pathlib.Path(folder).rglob("*.tf")):
        with open(path) as file:
            parsed = hcl2.load(file)
        for resource in parsed.get("resource", []):
            for kind, named in resource.items():
                kind = kind.strip('"')
                if kind.startswith("__"):
                    continue
                if kind not in CLASSES:
                    complaints.append(f"{path}: the table in this script does not know {kind}")
                    continue
                for name, body in named.items():
                    if name.startswith("__"):
                        continue
                    arguments, module = schema.resource(CLASSES[kind])
                    where = f"{kind}.{name.strip(chr(34))}"
                    complaints += [
                        f"{path}: {complaint}" for complaint in check(schema, module, arguments, body, where)
                    ]
                    count += 1
    if complaints or count == 0:
        sys.exit(
            "\n".join(f"check-terraform: {complaint}" for complaint in complaints) or "check-terraform: no resource"
        )
    print(f"check-terraform: {count} resources have only arguments that the provider knows")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
