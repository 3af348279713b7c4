"""The chart beside k8s/: the same objects, apart from what is meant to differ and is named here with its reason."""

import fnmatch
import json
import subprocess

import chart
import yaml

# Objects of k8s/ that the chart does not make.
NOT_IN_CHART = {
    "ConfigMap model-config": "the chart writes the settings into the Deployment, so that each change is a rollout",
    "LimitRange model-serving": "limits of a namespace are those of whoever owns it",
    "Namespace model-serving": "Helm makes it with --create-namespace; whoever owns it sets its labels",
    "NetworkPolicy deny-by-default": "other releases may share the namespace",
    "PersistentVolumeClaim model-storage": "the chart mounts a claim, and makes none",
    "ResourceQuota model-serving": "a quota of a namespace is that of whoever owns it",
}
# Objects of the chart that k8s/ does not have.
NOT_IN_KUSTOMIZE = {
    "Pod model-serving-ready": "for 'helm test', which kustomize has not",
}
# What else differs: object and place, what k8s/ says there, what the chart says, and why. None is "nothing there".
DIFFERENT: list[tuple[str, object, object, str]] = []


def plain(value: object, pods: list[dict], settings: dict) -> object:
    """A value in a form in which the two can be compared: lists by name, the pods' labels as one word."""
    if isinstance(value, dict):
        if value in pods:
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


def rules(policy: dict) -> dict:
    """What a NetworkPolicy allows, each peer and port by itself, whatever the order and the grouping."""
    allowed = {}
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for rule in policy["spec"].get(direction, []):
            for peer in rule.get(peers) or ["anywhere"]:
                for port in rule.get("ports") or ["any"]:
                    allowed[f"{direction} {json.dumps(peer, sort_keys=True)} {json.dumps(port, sort_keys=True)}"] = True
    return allowed


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
    selector = deployment["spec"]["selector"]["matchLabels"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    settings = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    found = {}
    for each in objects:
        each = json.loads(json.dumps(each))
        name = f"{each['kind']} {each['metadata']['name']}"
        for key in ("labels", "annotations"):
            each["metadata"].pop(key, None)
        if each["kind"] == "Deployment":
            pod = each["spec"]["template"]["spec"]
            for container in pod["containers"] + pod.get("initContainers", []):
                container["env"] = variables(container, settings)
                container.pop("envFrom", None)
        if each["kind"] == "NetworkPolicy":
            each["spec"] = {key: each["spec"][key] for key in ("podSelector", "policyTypes")} | {"allowed": rules(each)}
        found[name] = flat(plain(each, [selector, labels], settings), name)
    return found


def kustomized(folder: str) -> list[dict]:
    """The objects of a folder of k8s/."""
    done = subprocess.run(
        ["kubectl", "kustomize", folder], cwd=chart.ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return list(yaml.safe_load_all(done.stdout))


def differences(theirs: list[dict], ours: list[dict], objects: set[str] | None = None) -> tuple[list[str], set[int]]:
    """What differs without being named above, and the numbers of the entries of DIFFERENT that were needed."""
    theirs, ours = meaning(theirs), meaning(ours)
    said, needed = [], set()
    for name in sorted(set(theirs) - set(ours) - set(NOT_IN_CHART)):
        said.append(f"the chart has no {name}")
    for name in sorted(set(ours) - set(theirs) - set(NOT_IN_KUSTOMIZE)):
        said.append(f"k8s/ has no {name}")
    for name in sorted(set(theirs) & set(ours)):
        for place in sorted(set(theirs[name]) | set(ours[name])):
            pair = theirs[name].get(place), ours[name].get(place)
            if pair[0] == pair[1]:
                continue
            for number, (pattern, here, there, _) in enumerate(DIFFERENT):
                if fnmatch.fnmatchcase(place, pattern) and pair == (here, there):
                    needed.add(number)
                    break
            else:
                said.append(f"{place}: k8s/ has {pair[0]!r}, the chart {pair[1]!r}")
    return said, needed
