#!/usr/bin/env python3
"""Renders the Kubernetes overlays with every component, and checks what the objects of each rendering say of each other.

Schemas know nothing of this: names that lead somewhere (with the hashes that kustomize adds), quotas that hold all pods
of a rollout, times that fit together, ports that a policy opens and a container has, one autoscaler for one Deployment.

    check-kubernetes.py FOLDER             renders into FOLDER, which lies in the repository, a file for each
                                           combination, and checks them
    check-kubernetes.py --rendered FILE…   checks files that something else has rendered

It prints each problem in a line, and exits with 1 if there is any.
"""

import pathlib
import re
import subprocess
import sys
import typing

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What is rendered, by name: an overlay, and the components that are added to it.
COMBINATIONS: dict[str, tuple[str, list[str]]] = {
    "cpu": ("cpu", []),
    "cpu-api-keys": ("cpu", ["api-keys"]),
    "cpu-reserve-disk": ("cpu", ["reserve-disk"]),
    "cpu-bundled-model": ("cpu", ["bundled-model"]),
    "cpu-model-volume": ("cpu", ["model-volume"]),
    "cpu-latency": ("cpu", ["scale-by-latency"]),
    "cpu-keda": ("cpu", ["keda"]),
    "cpu-gateway": ("cpu", ["gateway", "allow-ingress-controller"]),
    "cpu-gateway-canary": ("cpu", ["gateway", "allow-ingress-controller", "canary", "api-keys", "scale-by-latency"]),
    "cpu-gateway-gke": ("cpu", ["gateway", "gateway-gke"]),
    "canary": ("canary", []),
    "canary-api-keys": ("canary", ["api-keys"]),
    "canary-gpu-api-keys": ("canary", ["gpu", "api-keys"]),
    "gpu": ("gpu", []),
    "gpu-gateway-canary": ("gpu", ["gateway", "allow-ingress-controller", "canary", "api-keys"]),
    "gpu-keda": ("gpu", ["keda", "gateway", "allow-ingress-controller"]),
    "gpu-model-volume": ("gpu", ["model-volume", "scale-by-latency"]),
    "gpu-gke-l4": ("gpu", ["gpu-gke-l4"]),
    "gpu-gke-l4-spot": ("gpu", ["gpu-gke-l4", "gpu-spot"]),
    "gpu-mig": ("gpu", ["gpu-mig"]),
    "gpu-time-slicing": ("gpu", ["gpu-time-slicing"]),
    "local": ("local", []),
    "knative": ("knative", []),
    "knative-monitoring": ("knative", ["knative-monitoring"]),
    "monitoring": ("monitoring", []),
    "monitoring-stack": ("monitoring", ["kube-prometheus-stack"]),
}

# What cannot work must not be rendered without a word: components before what they change, or without it.
REFUSED: list[tuple[str, list[str]]] = [
    ("cpu", ["canary", "gateway"]),
    ("knative", ["scale-by-latency"]),
    ("knative", ["gpu"]),
    ("knative", ["keda"]),
    ("knative", ["api-keys"]),
    ("knative", ["bundled-model"]),
]

# How long the server drains unless DRAIN_TIMEOUT says otherwise, and how long the last spans may take.
DRAIN_TIMEOUT = 8
SPANS = 1
# The server's own deadline of a request; whoever waits for its answer must wait longer.
REQUEST_TIMEOUT = 30
# Pods that are ending count in a quota until they are gone.
TERMINATING = 3
# What Knative puts beside the server, by its own defaults: requests and limits.
KNATIVE_PROXY = {"requests.cpu": 0.025, "requests.memory": 400 << 20, "limits.cpu": 1, "limits.memory": 800 << 20}

SUFFIXES = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}

Object = dict[str, typing.Any]


def quantity(text: str | float) -> float:
    """A quantity of Kubernetes as a number."""
    number, suffix = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()
    return float(number) * SUFFIXES[suffix]


def seconds(text: str) -> float:
    """A duration of the server's settings, of HTTPRoute or of Prometheus as seconds; endless if it is none of them."""
    found = re.fullmatch(r"([0-9.]+)(ms|s|m|h)", text)
    return float(found[1]) * {"ms": 1e-3, "s": 1, "m": 60, "h": 3600}[found[2]] if found else float("inf")


def all_of(value: typing.Any, key: str) -> typing.Iterator[typing.Any]:
    """Everything in `value` that stands under a key called `key`."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for inner in value.values():
            yield from all_of(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from all_of(inner, key)


def all_of_lists(value: typing.Any, key: str) -> typing.Iterator[typing.Any]:
    """Everything in the lists that stand under a key called `key`."""
    for found in all_of(value, key):
        yield from found


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [item for item in objects if item["kind"] == kind]


def is_knative(item: Object) -> bool:
    return item["apiVersion"].startswith("serving.knative.dev/")


def selects(selector: Object, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    return all(labels.get(label) == value for label, value in wanted.items())


class Rendering:
    """The objects of one rendering, the pods that they make, and what is wrong with them."""

    def __init__(self, name: str, objects: list[Object], known: bool = True) -> None:
        self.name = name
        # Whether the name is that of a combination, so that it says what must be there; of a user's file it says nothing.
        self.known = known and name in COMBINATIONS
        self.objects = objects
        self.problems: list[str] = []
        workloads = [item for item in objects if item["kind"] == "Deployment" or is_knative(item)]
        self.workload = workloads[0] if workloads else None
        self.expect(len(workloads) <= 1, f"{len(workloads)} objects run the server")
        template = self.workload["spec"]["template"] if self.workload else {}
        self.labels = template.get("metadata", {}).get("labels", {})
        self.pod = template.get("spec", {})
        self.is_canary = self.labels.get("app", "").endswith("-canary")
        self.server = self.pod.get("containers", [{}])[0]
        self.fetch = next((it for it in self.pod.get("initContainers") or [] if it["name"] == "fetch"), None)

    def expect(self, true: object, problem: str) -> None:
        if not true:
            self.problems.append(problem)

    def named(self, kind: str, name: str) -> Object | None:
        return next((item for item in of_kind(self.objects, kind) if item["metadata"]["name"] == name), None)

    def variables(self, container: Object) -> dict[str, str]:
        """What the variables of a container are, with those that a ConfigMap has."""
        values = {}
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("configMapKeyRef")
            if reference is None:
                values[variable["name"]] = variable.get("value", "")
                continue
            config = self.named("ConfigMap", reference["name"])
            self.expect(config, f"{variable['name']}: there is no ConfigMap {reference['name']}")
            if config:
                known = reference["key"] in config.get("data", {})
                self.expect(known, f"{variable['name']}: {reference['name']} has no {reference['key']}")
                values[variable["name"]] = config.get("data", {}).get(reference["key"], "")
        return values

    def check(self) -> list[str]:
        self.names()
        self.policies()
        self.monitors()
        self.routes()
        self.load_balancers()
        if self.workload:
            self.model()
            self.security()
            self.ending()
            self.disk()
            self.quota()
            self.devices()
            if not is_knative(self.workload):
                self.starting()
                self.scaling()
        return self.problems

    def names(self) -> None:
        """Names that a pod or a Service needs lead to objects and labels of this rendering."""
        for volume in self.pod.get("volumes", []):
            config = volume.get("configMap", {}).get("name")
            self.expect(config is None or self.named("ConfigMap", config), f"there is no ConfigMap {config}")
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            self.expect(claim is None or self.named("PersistentVolumeClaim", claim), f"there is no claim {claim}")
        for service in of_kind(self.objects, "Service"):
            if not is_knative(service):
                selector = {"matchLabels": service["spec"]["selector"]}
                self.expect(selects(selector, self.labels), f"Service {service['metadata']['name']} selects nothing")
        for budget in of_kind(self.objects, "PodDisruptionBudget"):
            self.expect(selects(budget["spec"]["selector"], self.labels), "the disruption budget selects nothing")
        for item in self.objects:
            namespaced = item["kind"] == "Namespace" or item["metadata"].get("namespace") == "model-serving"
            self.expect(namespaced, f"{item['kind']} {item['metadata']['name']} is in another namespace")

    def model(self) -> None:
        """The model is there before the server starts, the server cannot change it, and a digest pins it."""
        mount = next((it for it in self.server["volumeMounts"] if it["name"] == "models"), None)
        self.expect(mount, "the server has no volume of models")
        volume = next((it for it in self.pod["volumes"] if it["name"] == "models"), {})
        if not mount:
            return
        where = mount["mountPath"]
        settings = self.variables(self.server)
        path = settings.get("MODEL_PATH", "")
        self.expect(path.startswith(f"{where}/"), f"MODEL_PATH {path} is not in {where}")
        if is_knative(self.workload):
            # One container fetches and then serves, which takes a flag behind the dashes.
            wanted = ["fetch", "--to", where, "--", "--model", "$(MODEL_PATH)"]
            self.expect(self.server["args"] == wanted, f"{self.server['args']} does not fetch and then serve")
            brings = settings
        elif self.fetch:
            self.expect(self.fetch["args"] == ["fetch"], f"{self.fetch['args']} does not fetch")
            self.expect(mount.get("readOnly"), "the server may write where the models are")
            own = next((it for it in self.fetch["volumeMounts"] if it["name"] == "models"), {})
            self.expect(own.get("mountPath") and not own.get("readOnly"), "fetch cannot write the model")
            brings = self.variables(self.fetch)
            self.expect(brings.get("MODEL_DIR") == own.get("mountPath"), "fetch writes to where no volume is")
            self.expect(self.fetch["image"] == self.server["image"], "fetch is another image than the server")
        else:
            self.expect("emptyDir" not in volume, "nothing brings a model into the empty volume")
            self.expect(mount.get("readOnly"), "the server may write where the models are")
            return
        self.expect(volume.get("emptyDir", {}).get("sizeLimit"), "the volume of the model has no limit")
        self.expect(re.fullmatch(r"[0-9a-f]{64}", brings.get("MODEL_SHA256", "")), "no digest pins the model")
        uri = brings.get("MODEL_URI", "")
        self.expect(re.match(r"(https|gs|s3|az|hf)://.", uri), f"MODEL_URI {uri} is none")
        brought = uri.endswith("/") or path == f"{where}/{uri.rsplit('/', 1)[-1]}"
        self.expect(brought, f"{uri} does not become {path}")
        self.expect("WATCH_MODEL" not in settings, "files that nobody replaces are watched")

    def security(self) -> None:
        """Every container, those that run first too, is what Pod Security calls restricted."""
        pod = self.pod.get("securityContext", {})
        for container in [*(self.pod.get("initContainers") or []), *self.pod["containers"]]:
            name, own = container["name"], container.get("securityContext", {})
            inherited = {**pod, **own}
            self.expect(inherited.get("runAsNonRoot") is True, f"{name} may run as root")
            self.expect(inherited.get("seccompProfile", {}).get("type") == "RuntimeDefault", f"{name}: no seccomp")
            self.expect(own.get("allowPrivilegeEscalation") is False, f"{name} may gain privileges")
            self.expect(own.get("readOnlyRootFilesystem") is True, f"{name} may write its root filesystem")
            self.expect(own.get("capabilities", {}).get("drop") == ["ALL"], f"{name} keeps capabilities")
            for figure in ("requests", "limits"):
                stated = container.get("resources", {}).get(figure, {})
                self.expect({"cpu", "memory"} <= set(stated), f"{name} states no {figure}")
        self.expect(self.pod.get("automountServiceAccountToken") is False, "the pod gets a token of the API server")

    def ending(self) -> None:
        """A pod that ends has the time to answer what it accepted, and its connections do not live for ever."""
        if is_knative(self.workload):
            waits = self.pod["timeoutSeconds"]
            self.expect(
                waits > REQUEST_TIMEOUT, f"Knative waits {waits} s, the server's deadline is {REQUEST_TIMEOUT} s"
            )
            return
        settings = self.variables(self.server)
        hook = self.server["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = seconds(settings["DRAIN_TIMEOUT"]) if settings.get("DRAIN_TIMEOUT") else DRAIN_TIMEOUT
        delay = seconds(settings["DRAIN_DELAY"]) if settings.get("DRAIN_DELAY") else 0
        grace = self.pod["terminationGracePeriodSeconds"]
        needed = hook + delay + drain + SPANS
        self.expect(grace > needed, f"a pod is killed after {grace} s, and needs {needed:g} s to end")
        if "cloud.google.com/gke-spot" in self.pod.get("nodeSelector", {}):
            self.expect(grace <= 15, f"a spot node leaves 15 s and not {grace} s")
        self.expect("MAX_CONNECTION_AGE" in settings, "connections end never, so that new pods get none of them")

    def starting(self) -> None:
        """A rollout is given up later than the slowest pod starts."""
        probe = self.server["startupProbe"]
        gives_up = self.workload["spec"].get("progressDeadlineSeconds", 600)
        if not all(isinstance(it, int) for it in (probe["periodSeconds"], probe["failureThreshold"], gives_up)):
            # The schemas say so in better words.
            return
        loading = probe["periodSeconds"] * probe["failureThreshold"]
        # Else more pods are ending at once than the quota has room for: each takes as long as its hook sleeps.
        hook = self.server["lifecycle"]["preStop"]["sleep"]["seconds"]
        ready = self.workload["spec"].get("minReadySeconds", 0)
        self.expect(ready * TERMINATING >= hook, f"pods follow each other after {ready} s, and take {hook} s to go")
        # Nothing in the volume is worth a node that stays.
        annotations = self.workload["spec"]["template"]["metadata"].get("annotations", {})
        local = annotations.get("cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes", "").split(",")
        empty = [it["name"] for it in self.pod["volumes"] if "emptyDir" in it]
        self.expect(set(empty) <= set(local), f"the volumes {empty} keep nodes from being removed")
        # An image and a model of some gigabytes take ten minutes on a slow day.
        self.expect(
            gives_up >= loading + 600, f"a rollout is given up after {gives_up} s, loading may take {loading} s"
        )

    def disk(self) -> None:
        """Disk that is asked for holds the model, in all containers: the kubelet counts what all of them may take together."""
        containers = [*(self.pod.get("initContainers") or []), *self.pod["containers"]]
        figures = [
            it["resources"].get(kind, {}).get("ephemeral-storage")
            for it in containers
            for kind in ("requests", "limits")
        ]
        if not any(figures):
            return
        self.expect(len(set(figures)) == 1, f"requests and limits of disk are {figures}")
        volume = next((it for it in self.pod["volumes"] if it["name"] == "models"), {})
        size = quantity(volume.get("emptyDir", {}).get("sizeLimit", 0))
        self.expect(
            all(it and quantity(it) > size for it in figures), f"a model of {size:g} bytes is evicted: {figures}"
        )

    def takes(self) -> dict[str, float]:
        """What one pod counts in a quota: the larger of what its containers need at once, and each first one alone."""
        total: dict[str, float] = {}
        for figure in ("requests", "limits"):
            for container in self.pod["containers"]:
                for name, value in container["resources"].get(figure, {}).items():
                    key = f"{figure}.{name}"
                    total[key] = total.get(key, 0) + quantity(value)
            for container in self.pod.get("initContainers") or []:
                for name, value in container["resources"].get(figure, {}).items():
                    key = f"{figure}.{name}"
                    total[key] = max(total.get(key, 0), quantity(value))
        if is_knative(self.workload):
            for key, value in KNATIVE_PROXY.items():
                total[key] += value
        # Of extended resources, requests are what limits are, and a quota counts them by requests alone.
        for key in [key for key in total if key.startswith("limits.") and "/" in key]:
            total[f"requests.{key.removeprefix('limits.')}"] = total.pop(key)
        return total

    def most(self) -> int:
        """How many pods the autoscaler may want."""
        if is_knative(self.workload):
            annotations = self.workload["spec"]["template"]["metadata"]["annotations"]
            return int(annotations["autoscaling.knative.dev/max-scale"])
        counts = [item["spec"]["maxReplicas"] for item in of_kind(self.objects, "HorizontalPodAutoscaler")]
        counts += [item["spec"]["maxReplicaCount"] for item in of_kind(self.objects, "ScaledObject")]
        return max(counts, default=1)

    def quota(self) -> None:
        """All pods of the autoscaler, those of a rollout and those that are ending have room in the quota."""
        surge = self.workload["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxSurge", 1)
        pods = self.most() + surge + TERMINATING
        for quota in of_kind(self.objects, "ResourceQuota"):
            hard = quota["spec"]["hard"]
            self.expect(int(hard["pods"]) >= pods, f"the quota is for {hard['pods']} pods, a rollout needs {pods}")
            for name, value in self.takes().items():
                # Disk is nothing that the quota counts.
                if name.endswith(".ephemeral-storage") and name not in hard:
                    continue
                needs = value * pods
                has = quantity(hard.get(name, 0))
                self.expect(has >= needs, f"the quota has {has:g} of {name}, {pods} pods need {needs:g}")
            for name in hard:
                if "/" in name:
                    self.expect(name in self.takes(), f"the quota counts {name}, which no pod asks for")

    def devices(self) -> None:
        """A pod with a GPU is scheduled to one, is on CUDA, and its rollout needs no GPU more than there are."""
        limits = self.server["resources"]["limits"]
        devices = [name for name in limits if name.startswith("nvidia.com/")]
        settings = self.variables(self.server)
        self.expect((settings.get("DEVICE") == "cuda") == bool(devices), "DEVICE and the pod's resources differ")
        if not devices:
            return
        self.expect(len(devices) == 1, f"a pod asks for {devices}")
        tolerated = [item["key"] for item in self.pod.get("tolerations", [])]
        self.expect("nvidia.com/gpu" in tolerated, "the taint of GPU nodes keeps the pod off")
        nodes = set(self.pod.get("nodeSelector", {}))
        known = nodes & {"nvidia.com/gpu.present", "cloud.google.com/gke-accelerator"}
        self.expect(len(known) == 1, f"GPU nodes are chosen by {sorted(nodes)}")
        if "cloud.google.com/gke-accelerator" in nodes:
            # There slices and shares are chosen by more labels of the node, and are whole GPUs to the scheduler.
            self.expect(devices == ["nvidia.com/gpu"], f"no node of GKE has {devices}")
        if self.known:
            # Of a user's GPUs nothing is known here; of the overlay it is said that there are two.
            self.expect(self.most() <= 2, f"the autoscaler may want {self.most()} GPUs, and a rollout waits for them")
        if "cloud.google.com/gke-spot" in nodes:
            self.expect("cloud.google.com/gke-spot" in tolerated, "the taint of spot nodes keeps the pod off")
        update = self.workload["spec"]["strategy"]["rollingUpdate"]
        self.expect(update["maxSurge"] == 0, "a rollout waits for a GPU that the old pods hold")
        self.expect(update["maxUnavailable"] == 1, "a rollout takes several GPUs at once, or none")

    def scaling(self) -> None:
        """One autoscaler, of the Deployment that is there; what it asks for is what its component brings a source of."""
        scalers = [item for item in self.objects if item["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
        kinds = [item["kind"] for item in scalers]
        self.expect(len(scalers) == 1, f"the Deployment has the autoscalers {kinds}")
        self.expect("replicas" not in self.workload["spec"], "each 'apply' takes back what the autoscaler did")
        for scaler in scalers:
            target = scaler["spec"]["scaleTargetRef"]["name"]
            self.expect(target == self.workload["metadata"]["name"], f"{scaler['kind']} scales {target}")
            if scaler["kind"] == "ScaledObject":
                self.keda(scaler)
            if scaler["kind"] == "HorizontalPodAutoscaler":
                asked = sorted(
                    item.get("pods", {}).get("metric", {}).get("name", "cpu") for item in scaler["spec"]["metrics"]
                )
                by_cpu, by_latency = ["cpu"], ["cpu", "inference_latency_p99", "ml_saturation"]
                if self.known:
                    wanted = by_latency if "scale-by-latency" in COMBINATIONS[self.name][1] else by_cpu
                    self.expect(asked == wanted, f"the autoscaler asks for {asked}, and not for {wanted}")
                self.expect(asked in (by_cpu, by_latency), f"the autoscaler asks for {asked}")

    def keda(self, scaler: Object) -> None:
        """KEDA takes over an autoscaler that a cluster has, asks about these pods alone, and ends one pod at a time."""
        annotations = scaler["metadata"].get("annotations", {})
        self.expect(
            annotations.get("scaledobject.keda.sh/transfer-hpa-ownership") == "true",
            "KEDA is refused where the HorizontalPodAutoscaler is still there",
        )
        config = scaler["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
        self.expect(config.get("name") == "model-serving-hpa", "KEDA makes a second HorizontalPodAutoscaler")
        slowly = {"type": "Pods", "value": 1, "periodSeconds": 60}
        policies = config["behavior"]["scaleDown"].get("policies")
        self.expect(policies == [slowly], f"KEDA takes pods away by {policies}")
        workload = self.workload["metadata"]
        # As Kubernetes names them; with the name of a canary's pods beside them.
        own, others = f"{workload['name']}-6d4cf56db6-x7k2p", f"{workload['name']}-canary-6d4cf56db6-x7k2p"
        for query in all_of(scaler["spec"], "query"):
            namespace = re.search(r'namespace="([^"]*)"', query)
            self.expect(
                namespace and namespace[1] == workload["namespace"], f"KEDA asks about another namespace: {query}"
            )
            pods = re.search(r'pod=~"([^"]*)"', query)
            found = pods and re.fullmatch(pods[1], own) and not re.fullmatch(pods[1], others)
            self.expect(found, f"KEDA asks about other pods too: {query}")

    def policies(self) -> None:
        """All pods are behind policies that deny by default and say who may come in; names and models can be had."""
        policies = of_kind(self.objects, "NetworkPolicy")
        if not policies:
            # A canary is behind those of the stable pods.
            self.expect(self.workload is None or self.is_canary, "no policy denies by default")
            return
        denies = [it for it in policies if it["spec"]["podSelector"] == {} and "egress" not in it["spec"]]
        whole = denies and sorted(denies[0]["spec"]["policyTypes"]) == ["Egress", "Ingress"]
        self.expect(whole and "ingress" not in denies[0]["spec"], "no policy denies by default")
        ports = {port["name"]: port["containerPort"] for port in self.server["ports"]}
        egress = []
        for policy in policies:
            name, spec = policy["metadata"]["name"], policy["spec"]
            self.expect(selects(spec["podSelector"], self.labels), f"policy {name} selects nothing")
            for rule in spec.get("ingress", []):
                self.expect(rule.get("from"), f"policy {name} lets anybody in")
                for port in rule["ports"]:
                    known = isinstance(port["port"], int) or port["port"] in ports
                    self.expect(known, f"policy {name} opens {port['port']}, which the container does not name")
                    admin = port["port"] == "admin"
                    self.expect(not admin or name == "allow-prometheus", f"policy {name} opens the admin port")
            egress += spec.get("egress", [])
        reached = set()
        for rule in egress:
            peers = [it.get("ipBlock", {}).get("cidr") or (it.get("podSelector") or {}).get("matchLabels", {}).get("k8s-app")
                     for it in rule["to"]]  # fmt: skip
            reached |= {(peer, port["port"], port["protocol"]) for peer in peers for port in rule["ports"]}
        for resolver in ("kube-dns", "node-local-dns", "169.254.20.10/32", "169.254.169.254/32"):
            for protocol in ("UDP", "TCP"):
                self.expect(
                    (resolver, 53, protocol) in reached, f"names cannot be asked for at {resolver} by {protocol}"
                )
        self.expect((None, 4318, "TCP") in reached, "spans reach no collector")
        credentials = {
            ("0.0.0.0/0", 443, "TCP"),
            ("169.254.169.252/32", 988, "TCP"),
            ("169.254.169.254/32", 80, "TCP"),
            ("169.254.170.23/32", 80, "TCP"),
        }
        fetches = self.fetch is not None or is_knative(self.workload)
        wrong = f"of what fetch needs, {sorted(credentials & reached)} is open"
        self.expect(credentials <= reached if fetches else not credentials & reached, wrong)
        for block in all_of(egress, "ipBlock"):
            if block["cidr"] == "0.0.0.0/0":
                self.expect("169.254.0.0/16" in block.get("except", []), "port 443 is open to all metadata servers")

    def monitors(self) -> None:
        for monitor in of_kind(self.objects, "PodMonitor"):
            self.expect(
                monitor["spec"].get("jobLabel") == "app", "the operator would name the job after the PodMonitor"
            )
            knative = self.workload is not None and is_knative(self.workload)
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                port = "user-port" if knative else "admin"
                self.expect(endpoint["port"] == port, f"scrapes go to {endpoint['port']}")
                relabelings = endpoint.get("relabelings", [])
                pending = {"action": "drop", "sourceLabels": ["__meta_kubernetes_pod_phase"], "regex": "Pending"}
                self.expect(pending in relabelings, "a pod that pulls its image or its model pages somebody")
                jobs = [it.get("replacement", "") for it in relabelings if it.get("targetLabel") == "job"]
                ends = any("knative" in job for job in jobs)
                self.expect(ends == knative, f"the alert about jobs that are gone knows pods of Knative by {jobs}")
            if knative:
                # The server's own port: the others are those of the proxy beside it.
                number = self.server["ports"][0]["containerPort"]
                ingress = [
                    it for policy in of_kind(self.objects, "NetworkPolicy") for it in policy["spec"].get("ingress", [])
                ]
                peers = [
                    peer for rule in ingress for peer in rule["from"] if number in [it["port"] for it in rule["ports"]]
                ]
                named = set(all_of(peers, "kubernetes.io/metadata.name"))
                self.expect("monitoring" in named, f"no policy lets Prometheus in at port {number}")
        if self.known and self.name.startswith("monitoring"):
            boards = [
                it
                for it in of_kind(self.objects, "ConfigMap")
                if it["metadata"]["labels"].get("grafana_dashboard") == "1"
            ]
            found = sorted(name for board in boards for name in board["data"])
            there = sorted(path.name for path in (ROOT / "monitoring/dashboards").iterdir())
            self.expect(found == there, f"Grafana's sidecar gets {found} of {there}")
            if self.name == "monitoring-stack":
                for item in self.objects:
                    labels = item["metadata"]["labels"]
                    self.expect(labels.get("release"), f"kube-prometheus-stack overlooks {item['kind']}")

    def routes(self) -> None:
        """Routes lead from a listener to Services that are there; with TLS, or to a redirection to it."""
        stable, both = ["model-serving"], ["model-serving", "model-serving-canary"]
        wanted = [both if "canary" in COMBINATIONS[self.name][1] else stable] if self.known else [stable, both]
        for route in of_kind(self.objects, "HTTPRoute"):
            name = route["metadata"]["name"]
            for parent in route["spec"]["parentRefs"]:
                gateway = self.named("Gateway", parent["name"])
                listeners = gateway["spec"]["listeners"] if gateway else []
                listener = next((it for it in listeners if it["name"] == parent["sectionName"]), None)
                self.expect(listener, f"route {name} has no listener {parent['sectionName']}")
                backends = list(all_of(route["spec"]["rules"], "backendRefs"))
                if listener and backends:
                    self.expect(listener.get("tls", {}).get("certificateRefs"), f"route {name} is without TLS")
            for rule in route["spec"]["rules"]:
                backends = rule.get("backendRefs", [])
                redirects = [it["type"] for it in rule.get("filters", [])] == ["RequestRedirect"]
                self.expect(backends or redirects, f"route {name} leads nowhere")
                if not backends:
                    continue
                names = [backend["name"] for backend in backends]
                self.expect(names in wanted, f"route {name} leads to {names}")
                self.expect(sum(it["weight"] for it in backends) == 100, f"the weights of route {name} are not 100")
                for backend in backends:
                    self.expect(backend["port"] == 80, f"Service {backend['name']} has no port {backend['port']}")
                waits = seconds(rule["timeouts"]["request"])
                self.expect(waits > REQUEST_TIMEOUT, f"route {name} waits {waits:g} s, the server {REQUEST_TIMEOUT} s")

    def load_balancers(self) -> None:
        """Google's load balancers ask a path that the server answers, at the pods' port, and wait longer than it."""
        ports = [port["containerPort"] for port in self.server.get("ports", []) if port["name"] == "http"]
        # The canary's Service is in another rendering.
        services = {item["metadata"]["name"] for item in of_kind(self.objects, "Service")}
        known = services | {f"{name}-canary" for name in services}
        checked = set()
        for policy in of_kind(self.objects, "HealthCheckPolicy"):
            checked.add(policy["spec"]["targetRef"]["name"])
            asks = policy["spec"]["default"]["config"]["httpHealthCheck"]
            self.expect(asks["requestPath"] == "/ready", f"GKE's health check asks for {asks['requestPath']}")
            self.expect([asks["port"]] == ports, f"GKE's health check asks port {asks['port']} and not {ports}")
        for policy in of_kind(self.objects, "GCPBackendPolicy"):
            self.expect(
                policy["spec"]["targetRef"]["name"] in checked, "a Service of GKE's Gateway has no health check"
            )
            waits = policy["spec"]["default"]["timeoutSec"]
            self.expect(waits > REQUEST_TIMEOUT, f"GKE's load balancer waits {waits} s, the server {REQUEST_TIMEOUT} s")
        self.expect(checked <= known, f"GKE's health checks are of {sorted(checked)}")
        on_gke = [it for it in of_kind(self.objects, "Gateway") if it["spec"]["gatewayClassName"].startswith("gke-")]
        if on_gke:
            backends = {it["name"] for it in all_of_lists(of_kind(self.objects, "HTTPRoute"), "backendRefs")}
            missing = sorted(backends - checked)
            self.expect(not missing, f"GKE's health checks ask {missing} for '/', which is 404")
            blocks = {it["cidr"] for it in all_of(of_kind(self.objects, "NetworkPolicy"), "ipBlock")}
            self.expect({"130.211.0.0/22", "35.191.0.0/16"} <= blocks, "Google's load balancers are kept out")


def kustomize(folder: pathlib.Path, may_fail: bool = False) -> str:
    """What an overlay renders; nothing if it fails and may."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode and may_fail:
        return ""
    if done.returncode:
        raise SystemExit(f"{folder.relative_to(ROOT)}: {done.stderr.strip()}")
    return done.stdout


def objects_of(text: str) -> list[Object]:
    return [item for item in yaml.safe_load_all(text) if item]


def own_overlay(folder: pathlib.Path, name: str, overlay: str, components: list[str]) -> pathlib.Path:
    """An overlay as somebody would write it: one of ours, with components."""
    own = folder / "overlays" / name
    own.mkdir(parents=True, exist_ok=True)
    to_root = pathlib.Path(*[".."] * len(own.relative_to(ROOT).parts))
    text = {
        "resources": [str(to_root / "k8s/overlays" / overlay)],
        "components": [str(to_root / "k8s/components" / component) for component in components],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return own


def render(folder: pathlib.Path, name: str) -> str:
    """One combination."""
    rendered = kustomize(own_overlay(folder, name, *COMBINATIONS[name]))
    (folder / f"{name}.yaml").write_text(rendered)
    return rendered


def another_model(folder: pathlib.Path, before: list[Object]) -> list[str]:
    """Another digest, or setting, is a rollout, and leaves the ConfigMap of the old one for 'kubectl rollout undo'."""
    own = folder / "overlays" / "another-model"
    own.mkdir(parents=True, exist_ok=True)
    to_root = pathlib.Path(*[".."] * len(own.relative_to(ROOT).parts))
    text = {
        "resources": [str(to_root / "k8s/overlays/cpu")],
        "configMapGenerator": [
            {
                "name": "model-source",
                "namespace": "model-serving",
                "behavior": "merge",
                "literals": ["uri=gs://bucket/digits/2/best.onnx", f"sha256={'0' * 64}"],
            },
            {
                "name": "model-config",
                "namespace": "model-serving",
                "behavior": "merge",
                "literals": ["log_level=debug"],
            },
        ],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(text))
    after = Rendering("another-model", objects_of(kustomize(own)))
    old = Rendering("cpu", before)
    problems = after.check()
    for what, keys in (("model", ("uri", "sha256", "path")), ("setting", ("log_level", "otlp_endpoint"))):
        named = [
            {item["name"] for item in all_of(it.pod, "configMapKeyRef") if item["key"] in keys} for it in (old, after)
        ]
        if len(named[0]) != 1 or len(named[1]) != 1 or named[0] == named[1]:
            problems.append(f"another {what} is no rollout: {named}")
    settings = after.variables(after.fetch or {})
    if settings.get("MODEL_URI") != "gs://bucket/digits/2/best.onnx" or settings.get("MODEL_SHA256") != "0" * 64:
        problems.append(f"an overlay's own model is not the one that is fetched: {settings}")
    return problems


def documented(folder: pathlib.Path) -> list[str]:
    """What docs/kubernetes.md says to write into an overlay renders, and each of its patches changes something.

    A block that names no resources is added to the overlay that its first line names, or to overlays/cpu.
    """
    problems = []
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/kubernetes.md").read_text(), re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks):
        own = folder / "overlays" / f"documented-{number}"
        own.mkdir(parents=True, exist_ok=True)
        to_root = pathlib.Path(*[".."] * len(own.relative_to(ROOT).parts))
        text = yaml.safe_load(block.replace("model-serving/k8s/", f"{to_root}/k8s/"))
        named = re.search(r"^# .*(overlays/[a-z]+)", block)
        text.setdefault("resources", [f"{to_root}/k8s/{named.group(1) if named else 'overlays/cpu'}"])

        def rendered(text: Object, own: pathlib.Path = own) -> str:
            (own / "kustomization.yaml").write_text(yaml.safe_dump(text))
            return kustomize(own)

        whole = rendered(text)
        found = Rendering(f"documented-{number}", objects_of(whole)).check()
        # The block stands for others with the same beginning.
        where = f"docs/kubernetes.md, block {number + 1}"
        problems += [f"{where}: {it}" for it in found if not it.startswith("no digest pins")]
        for index, patch in enumerate(text.get("patches", [])):
            others = [it for it in text["patches"] if it is not patch]
            without = rendered({**text, "patches": others})
            if without == whole:
                problems.append(f"{where}: its patch {index + 1} changes nothing")
    return problems


def refused(folder: pathlib.Path) -> list[str]:
    """What is rendered although it cannot work."""
    rendered = []
    for number, (overlay, components) in enumerate(REFUSED):
        if kustomize(own_overlay(folder, f"refused-{number}", overlay, components), may_fail=True):
            rendered.append(f"{overlay} with {components} is rendered, and does not work")
    return rendered


def changing_pods(name: str) -> set[str]:
    """The components of a combination, its overlay's among them, that change the pods."""
    overlay, components = COMBINATIONS[name]
    text = yaml.safe_load((ROOT / "k8s/overlays" / overlay / "kustomization.yaml").read_text())
    named = [*components, *(pathlib.Path(path).name for path in text.get("components", []))]
    return {component for component in named if (ROOT / "k8s/components" / component / "deployment.yaml").exists()}


def canaries(renderings: dict[str, list[Object]]) -> list[str]:
    """For each combination that shares its requests with a canary there is one with the same components, and it is alike."""
    problems = [f"canary: {it}" for it in apart("cpu", renderings["cpu"], renderings["canary"])]
    for name, (_, components) in COMBINATIONS.items():
        if "canary" not in components:
            continue
        wanted = changing_pods(name)
        found = [it for it in COMBINATIONS if COMBINATIONS[it][0] == "canary" and changing_pods(it) == wanted]
        if not found:
            problems.append(f"{name}: no canary is rendered with {sorted(wanted)}")
        for canary in found:
            these = apart(name, renderings[name], renderings[canary])
            these += alike(renderings[name], renderings[canary])
            problems += [f"{name} and {canary}: {it}" for it in these]
    return problems


# What a canary is for may differ.
TRIED = {"MODEL_PATH", "MODEL_URI", "MODEL_SHA256"}


def alike(stable: list[Object], canary: list[Object]) -> list[str]:
    """What the pods of a canary have otherwise than the stable ones, apart from image and model."""
    seen = []
    for rendering in (Rendering("stable", stable), Rendering("canary", canary)):
        pod = rendering.pod
        found = {key: pod.get(key) for key in ("volumes", "nodeSelector", "tolerations", "runtimeClassName")}
        found["strategy"] = rendering.workload["spec"]["strategy"]
        for container in [*(pod.get("initContainers") or []), *pod["containers"]]:
            own = {key: container.get(key) for key in ("envFrom", "resources", "volumeMounts")}
            variables = rendering.variables(container)
            # Values out of Secrets are none of the rendering's.
            secrets = [it["valueFrom"] for it in container["env"] if "secretKeyRef" in it.get("valueFrom", {})]
            own["env"] = [{key: value for key, value in variables.items() if key not in TRIED}, secrets]
            found |= {f"{key} of {container['name']}": value for key, value in own.items()}
        seen.append(found)
    one, other = seen
    return [
        f"the canary has other {key}: {other.get(key)} and not {one[key]}" for key in one if one[key] != other.get(key)
    ]


def apart(name: str, stable: list[Object], canary: list[Object]) -> list[str]:
    """The Service of the stable pods does not reach those of the canary, and the other way round; policies are for both."""
    problems = []
    both = [Rendering(name, stable), Rendering("canary", canary)]
    for one, other in (both, both[::-1]):
        for item in one.objects:
            name = f"{item['kind']} {item['metadata']['name']}"
            if other.named(item["kind"], item["metadata"]["name"]):
                problems.append(f"{name} is in both, so that each 'apply' changes the other's")
            selector = (
                item["spec"].get("selector")
                if item["kind"] in ("Service", "PodDisruptionBudget", "Deployment")
                else None
            )
            if selector and selects(selector if "matchLabels" in selector else {"matchLabels": selector}, other.labels):
                problems.append(f"{name} selects the pods of {other.name}")
    for policy in of_kind(stable, "NetworkPolicy"):
        if not selects(policy["spec"]["podSelector"], both[1].labels):
            problems.append(f"policy {policy['metadata']['name']} leaves the canary's pods out")
    return problems


def main() -> int:
    problems: list[str] = []
    if sys.argv[1:2] == ["--rendered"]:
        paths = [pathlib.Path(path) for path in sys.argv[2:]]
        renderings = {path.stem: objects_of(path.read_text()) for path in paths}
        known = False
    else:
        known = True
        folder = pathlib.Path(sys.argv[1]).resolve()
        renderings = {name: objects_of(render(folder, name)) for name in COMBINATIONS}
        problems += [f"another model: {it}" for it in another_model(folder, renderings["cpu"])]
        problems += canaries(renderings)
        problems += documented(folder)
        problems += refused(folder)
        # What a user has rendered is called right too, whatever the file's name.
        for name, objects in renderings.items():
            found = Rendering(name, objects, known=False).check()
            problems += [f"{name}, by another name: {it}" for it in found]
        used = {component for _, components in COMBINATIONS.values() for component in components}
        for overlay in (ROOT / "k8s/overlays").iterdir():
            text = yaml.safe_load((overlay / "kustomization.yaml").read_text())
            used |= {pathlib.Path(path).name for path in text.get("components", [])}
        there = {path.name for path in (ROOT / "k8s/components").iterdir()}
        problems += [f"no combination has the component {name}" for name in sorted(there - used)]
    checked = 0
    for name, objects in renderings.items():
        checked += len(objects)
        problems += [f"{name}: {problem}" for problem in Rendering(name, objects, known).check()]
    for problem in problems:
        print(problem)
    print(f"check-kubernetes: {len(renderings)} renderings, {checked} objects, {len(problems)} problems")
    return 1 if problems or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
