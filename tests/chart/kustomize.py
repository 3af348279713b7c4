"""The chart beside k8s/: the same objects, apart from what is meant to differ and is named here with its reason."""

import fnmatch
import json
import subprocess

import chart
import yaml

# Objects of k8s/ that the chart does not make, as patterns.
NOT_IN_CHART = {
    "ConfigMap model-config-*": "the chart writes the settings into the Deployment, so that each change is a rollout",
    "ConfigMap model-source-*": "the same",
    "LimitRange model-serving": "limits of a namespace are those of whoever owns it",
    "Namespace model-serving": "Helm makes it with --create-namespace; whoever owns it sets its labels",
    "ResourceQuota model-serving": "a quota of a namespace is that of whoever owns it",
}
# Objects of the chart that k8s/ does not have.
NOT_IN_KUSTOMIZE = {
    "Pod model-serving-ready": "for 'helm test', which kustomize has not",
}
# What else differs, by place: what k8s/ says there, what the chart says, and why. None is "nothing there".
DIFFERENT: list[tuple[str, object, object, str]] = [
    (
        "Service model-serving.spec.type",
        None,
        "ClusterIP",
        "the chart says what is the default, since it can be changed",
    ),
    (
        'NetworkPolicy.allowed.ingress {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "model-serving", '
        '"app.kubernetes.io/name": "model-serving-test"}}} {"port": "http", "protocol": "TCP"}',
        None,
        True,
        "for 'helm test', which kustomize has not",
    ),
    (
        'NetworkPolicy.allowed.egress {"namespaceSelector": {}} {"port": 4318, "protocol": "TCP"}',
        True,
        None,
        "the chart opens the collector's port where settings name a collector",
    ),
]


def plain(value: object, pods: list[dict], settings: dict) -> object:
    """A value in a form in which the two can be compared: lists by name, the pods' labels as one word."""
    if isinstance(value, dict):
        # Labels that find the pods, or that they have; each side has its own.
        if value and all(value.items() <= labels.items() for labels in pods):
            return "the pods"
        return {key: plain(each, pods, settings) for key, each in value.items()}
    if isinstance(value, list):
        named = [each for each in value if isinstance(each, dict)]
        for key in ("mountPath", "name", "topologyKey"):
            names = [each[key] for each in named if key in each]
            if names and len(set(names)) == len(value):
                return {each[key]: plain(each, pods, settings) for each in value}
        return [plain(each, pods, settings) for each in value]
    return value


def variables(container: dict, settings: dict) -> dict:
    """The container's variables with their values; one that is empty is unset."""
    found = {}
    for source in container.get("envFrom", []):
        found.update(settings.get(source.get("configMapRef", {}).get("name"), {}))
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("configMapKeyRef")
        found[variable["name"]] = settings[reference["name"]][reference["key"]] if reference else variable.get("value")
    return {name: value for name, value in found.items() if value != ""}


def allowed(policies: list[dict], pods: dict) -> dict:
    """What NetworkPolicies allow the pods together, each peer and port by itself, whatever the order and the grouping."""
    found = {}
    for policy in policies:
        selector = policy["spec"]["podSelector"].get("matchLabels", {})
        if not selector.items() <= pods.items():
            raise LookupError(f"the policy {policy['metadata']['name']} is not about the pods")
        for kind in policy["spec"]["policyTypes"]:
            found[f"{kind} is restricted"] = True
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction, []):
                for peer in rule.get(peers) or ["anywhere"]:
                    for port in rule.get("ports") or ["any"]:
                        words = [direction, json.dumps(peer, sort_keys=True), json.dumps(port, sort_keys=True)]
                        found[" ".join(words)] = True
    return found


def flat(value: object, place: str) -> dict[str, object]:
    """Each value by its place."""
    if isinstance(value, dict) and value:
        found = {}
        for key, each in value.items():
            found.update(flat(each, f"{place}.{key}"))
        return found
    return {place: json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value}


def meaning(objects: list[dict]) -> dict[str, dict[str, object]]:
    """By object: everything that it says, by place. Names of objects, labels and comments are no matter of theirs."""
    deployment = chart.find(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    settings = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    found = {"NetworkPolicy": flat(allowed(policies, labels), "NetworkPolicy.allowed")}
    for each in objects:
        if each["kind"] == "NetworkPolicy":
            continue
        each = json.loads(json.dumps(each))
        name = f"{each['kind']} {each['metadata']['name']}"
        for key in ("labels", "annotations"):
            each["metadata"].pop(key, None)
        if each["kind"] == "Deployment":
            pod = each["spec"]["template"]["spec"]
            for container in pod["containers"] + pod.get("initContainers", []):
                container["env"] = variables(container, settings)
                container.pop("envFrom", None)
        found[name] = flat(plain(each, [labels], settings), name)
    return found


def kustomized(folder: str) -> list[dict]:
    """The objects of a folder of k8s/."""
    done = subprocess.run(
        ["kubectl", "kustomize", folder], cwd=chart.ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return list(yaml.safe_load_all(done.stdout))


def differences(theirs: list[dict], ours: list[dict]) -> tuple[list[str], set[str]]:
    """What differs without being named above, and what of that which is named was met."""
    theirs, ours = meaning(theirs), meaning(ours)
    said, needed = [], set()
    for name in sorted(set(theirs) - set(ours)):
        pattern = next((each for each in NOT_IN_CHART if fnmatch.fnmatchcase(name, each)), None)
        if pattern:
            needed.add(pattern)
        else:
            said.append(f"the chart has no {name}")
    for name in sorted(set(ours) - set(theirs) - set(NOT_IN_KUSTOMIZE)):
        said.append(f"k8s/ has no {name}")
    for name in sorted(set(theirs) & set(ours)):
        for place in sorted(set(theirs[name]) | set(ours[name])):
            pair = theirs[name].get(place), ours[name].get(place)
            if pair[0] == pair[1]:
                continue
            for pattern, here, there, _ in DIFFERENT:
                if place == pattern and pair == (here, there):
                    needed.add(pattern)
                    break
            else:
                said.append(f"{place}: k8s/ has {pair[0]!r}, the chart {pair[1]!r}")
    return said, needed
