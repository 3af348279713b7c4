#!/usr/bin/env python3
"""render.py FOLDER: what the chart renders for each set of values, a file each, for the checks of manifests.

Helm's own lint runs before, on each set, with warnings as errors.
"""

import pathlib
import shutil
import sys

import chart
import helm_python
import yaml

# What lint asks of charts in public catalogues.
UNWANTED = "icon is recommended"

# What checkov shall not report, by set of values and kind, with the reason. Users' objects carry none of this.
TAG = {"CKV_K8S_43": "this set shows that a tag will do"}
ALLOWED = {
    ("*", "Pod"): {
        "CKV_K8S_8": "it asks once and ends",
        "CKV_K8S_9": "it answers no requests",
        "CKV2_K8S_6": "a policy of its own would have to be installed before it and removed after it",
    },
    ("cpu", "*"): TAG,
    ("gpu", "*"): TAG,
    ("latency", "Deployment"): {"CKV_K8S_35": "fetch takes credentials from the environment"},
}


def with_allowances(name: str, found: dict) -> dict:
    """The object, with checkov's annotations for what it shall not report."""
    allowed = {}
    for places, checks in ALLOWED.items():
        if all(place in ("*", is_there) for place, is_there in zip(places, (name, found["kind"]), strict=True)):
            allowed.update(checks)
    if allowed:
        skips = [f"{check}={reason}" for check, reason in allowed.items()]
        annotations = found["metadata"].setdefault("annotations", {})
        annotations.update({f"checkov.io/skip{number}": skip for number, skip in enumerate(skips)})
    return found


def main() -> int:
    folder = pathlib.Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wrong = 0
    for name in chart.VALUE_SETS:
        given = chart.values(name)
        report = helm_python.lint(chart.CHART, given, strict=True, namespace="model-serving")
        said = [message for message in report["messages"] if message["error"] != UNWANTED]
        for message in said:
            print(f"helm lint, {name}: {message['path']}: {message['error']}", file=sys.stderr)
        wrong += len(said)
        found = [with_allowances(name, each) for each in chart.objects(given)]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(found, sort_keys=False))
    version = helm_python.helm_sdk_version()
    print(f"chart: {len(chart.VALUE_SETS)} sets of values rendered by Helm {version}, {wrong} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
