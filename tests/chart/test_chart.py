"""What the chart promises: each sentence here is one of its README or values.yaml."""

import json
import os
import pathlib
import re
import tarfile
import tempfile
import tomllib
import unittest

import chart
import helm_python
import readme
import yaml

IMAGE = {"image": {"repository": "registry.example.com/model-serving"}}
MODEL = {"model": {"uri": "gs://bucket/best.onnx"}}
MINIMAL = IMAGE | MODEL
SLICE = {"enabled": True, "resource": "nvidia.com/mig-1g.10gb"}
GKE = {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
CPU_STRATEGY = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
GPU_STRATEGY = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
# As long as Helm allows.
LONG = {"name": "a" * 53, "namespace": "models"}


def pod_of(found: list[dict]) -> dict:
    return chart.find(found, "Deployment")["spec"]["template"]["spec"]


def server_of(found: list[dict]) -> dict:
    return pod_of(found)["containers"][0]


def environment(container: dict) -> dict[str, str]:
    return {variable["name"]: variable.get("value") for variable in container["env"]}


def everywhere(value: object, key: str) -> list:
    """Everything in `value` that stands under `key`."""
    if isinstance(value, dict):
        found = [value[key]] if key in value else []
        return found + [each for inner in value.values() for each in everywhere(inner, key)]
    if isinstance(value, list):
        return [each for inner in value for each in everywhere(inner, key)]
    return []


class Values(unittest.TestCase):
    """What users may write, and what they are told when it is wrong."""

    def test_values_that_cannot_work_are_refused_with_a_word_about_the_right_ones(self):
        source = {"uri": "gs://bucket/best.onnx"}
        for given, expected in (
            (MODEL, "image.repository is not set"),
            (IMAGE, "exactly one of model.uri, model.existingClaim and model.configMap"),
            (IMAGE | {"model": source | {"existingClaim": "models"}}, "exactly one of"),
            (IMAGE | {"model": {"configMap": "models", "sha256": "0" * 64}}, "model.sha256 is checked while"),
            (IMAGE | {"model": {"uri": "http://host/best.onnx"}}, "without TLS"),
            (MINIMAL | {"autoscaling": {"minReplicas": 11}}, "minReplicas is more than"),
            (MINIMAL | {"terminationGracePeriodSeconds": 19}, "before it has drained"),
            (MINIMAL | {"preStopSeconds": 21}, "before it has drained"),
            (MINIMAL | {"settings": {"DRAIN_TIMEOUT": "19s"}}, "the drain (19 s)"),
            (MINIMAL | {"settings": {"DRAIN_TIMEOUT": "2m", "DRAIN_DELAY": "20s"}}, "the drain (140 s)"),
            (MINIMAL | {"settings": {"DRAIN_TIMEOUT": "19000ms"}}, "the drain (19 s)"),
            (MINIMAL | {"settings": {"DRAIN_DELAY": "11s"}}, "the drain (19 s)"),
            (MINIMAL | {"settings": {"DRAIN_TIMEOUT": "1.5s"}}, "settings.DRAIN_TIMEOUT: write 1.5s in whole ms"),
            (MINIMAL | {"extraArgs": ["--drain-timeout=60s"]}, "set it in settings"),
            (MINIMAL | {"settings": {"MODEL_PATH": "/other"}}, "settings.MODEL_PATH would contradict"),
            (MINIMAL | {"settings": {"DEVICE": "cpu"}, "gpu": {"enabled": True}}, "settings.DEVICE would contradict"),
            (MINIMAL | {"podLabels": {"app": "vision"}}, "podLabels.app is the chart's own"),
            (MINIMAL | {"podLabels": {"app.kubernetes.io/instance": "a"}}, "is the chart's own"),
            (MINIMAL | {"admin": {"port": 8000}}, "which is the main port"),
            (
                MINIMAL | {"extraEnv": [{"name": "MODEL_PATH", "value": "/other"}]},
                "extraEnv: MODEL_PATH would contradict",
            ),
            (MINIMAL | {"extraEnv": [{"name": "LOG_LEVEL", "value": "debug"}]}, "extraEnv: LOG_LEVEL would contradict"),
            (MINIMAL | {"extraEnv": [{"name": "PORT", "value": "80"}]}, "extraEnv: PORT would contradict"),
            (MINIMAL | {"extraEnv": [{"name": "DRAIN_TIMEOUT", "value": "60s"}]}, "set it in settings"),
            (IMAGE | {"model": source | {"fetch": {"env": [{"name": "MODEL_URI"}]}}}, "model.fetch.env: MODEL_URI"),
            (MINIMAL | {"route": {"enabled": True}}, "route.parentRefs is empty"),
            (MINIMAL | {"ingress": {"enabled": True}}, "ingress.hosts is empty"),
            (MINIMAL | {"gpu": SLICE | {"nodeSelector": GKE}}, "no node of GKE has nvidia.com/mig-1g.10gb"),
            (MINIMAL | {"gpu": SLICE, "nodeSelector": GKE}, "no node of GKE has"),
            # The schema's.
            (MINIMAL | {"modle": {}}, "modle"),
            (IMAGE | {"model": source | {"sha": "0" * 64}}, "sha"),
            (IMAGE | {"model": {"uri": "ftp://host/best.onnx"}}, "uri"),
            (IMAGE | {"model": source | {"sha256": "sha256:" + "0" * 64}}, "sha256"),
            (IMAGE | {"model": {"configMap": "models", "path": "/absolute"}}, "path"),
            (IMAGE | {"model": {"configMap": "models", "watch": "30"}}, "watch"),
            (MINIMAL | {"image": {"repository": "r", "digest": "abc"}}, "digest"),
            (MINIMAL | {"autoscaling": {"by": "latencies"}}, "latency"),
            (MINIMAL | {"settings": {"max-batch-size": "8"}}, "max-batch-size"),
            (MINIMAL | {"replicas": "two"}, "replicas"),
            (MINIMAL | {"admin": {"port": 80}}, "port"),
            (MINIMAL | {"monitoring": {"labels": {"release": 1}}}, "release"),
        ):
            with self.subTest(given=given), self.assertRaises(helm_python.HelmError) as raised:
                chart.render(given)
            self.assertIn(expected, str(raised.exception))

    def test_what_is_missing_is_named_before_anything_is_made(self):
        with self.assertRaises(helm_python.HelmError) as raised:
            chart.render({})
        self.assertRegex(str(raised.exception), "image.repository|exactly one of")

    def test_the_schema_knows_each_value_and_no_other(self):
        schema = json.loads((chart.CHART / "values.schema.json").read_text())
        defaults = yaml.safe_load((chart.CHART / "values.yaml").read_text())
        places = readme.leaves(schema, defaults)
        self.assertGreater(len(places), 60)
        for place in places:
            with self.subTest(place=place):
                self.assertTrue(readme.is_set(defaults, place), "values.yaml does not have it")
        for section, keys in readme.unknown(schema, defaults):
            self.fail(f"values.schema.json does not know {section}: {keys}")

    def test_the_table_of_values_in_the_readme_is_that_of_values_yaml(self):
        if os.environ.get("UPDATE_DOCS"):
            readme.write()
        self.assertEqual(readme.documented(), readme.table(), "run it again with UPDATE_DOCS=1")

    def test_the_schema_takes_what_the_chart_s_own_sets_say(self):
        self.assertGreaterEqual(len(chart.VALUE_SETS), 7)
        for name in chart.VALUE_SETS:
            with self.subTest(name=name):
                self.assertTrue(chart.objects(chart.values(name)))

    def test_the_values_on_the_page_about_helm_can_be_installed(self):
        page = (chart.ROOT / "docs/helm.md").read_text()
        blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
        self.assertGreaterEqual(len(blocks), 5)
        for block in blocks:
            with self.subTest(block=block):
                self.assertTrue(chart.objects(yaml.safe_load(block)))

    def test_the_digest_of_a_folder_leaves_out_what_fetch_does_on_every_page(self):
        pages = [*(chart.ROOT / "docs").glob("*.md"), chart.ROOT / "README.md"]
        commands = [line for page in pages for line in page.read_text().splitlines() if "find * -type f" in line]
        self.assertGreaterEqual(len(commands), 3)
        for command in commands:
            self.assertIn("-not -path '*/.*'", command)

    def test_the_page_about_helm_names_the_oldest_kubernetes(self):
        oldest = METADATA["kubeVersion"].removeprefix(">=").removesuffix(".0-0")
        self.assertIn(f"Kubernetes {oldest} or newer", (chart.ROOT / "docs/helm.md").read_text())


class Model(unittest.TestCase):
    """Where the model comes from."""

    def test_what_is_served_follows_from_where_the_model_comes_from(self):
        for model, expected in (
            ({"uri": "gs://bucket/folder/best.onnx"}, "/models/best.onnx"),
            ({"uri": "https://host/best.onnx?token=a/b#c"}, "/models/best.onnx"),
            ({"uri": "s3://bucket/repository/"}, "/models"),
            ({"uri": "s3://bucket/repository/", "path": "digits/1/model.onnx"}, "/models/digits/1/model.onnx"),
            ({"uri": "hf://owner/repo@main/onnx/model.onnx"}, "/models/model.onnx"),
            ({"uri": "hf://owner/repo@main"}, "/models"),
            ({"uri": "gs://bucket"}, "/models"),
            ({"uri": "az://container/best.onnx"}, "/models/best.onnx"),
            ({"uri": "https://host/best.onnx"}, "/models/best.onnx"),
            ({"existingClaim": "models"}, "/models/best.onnx"),
            ({"existingClaim": "models", "path": "repository"}, "/models/repository"),
            ({"configMap": "digits"}, "/models/best.onnx"),
        ):
            with self.subTest(model=model):
                found = chart.objects(IMAGE | {"model": model})
                self.assertEqual(environment(server_of(found))["MODEL_PATH"], expected)

    def test_a_uri_is_fetched_by_an_init_container_into_a_volume_that_the_server_only_reads(self):
        found = chart.objects(IMAGE | {"model": {"uri": "gs://bucket/best.onnx", "sha256": "0" * 64}})
        (fetch,) = pod_of(found)["initContainers"]
        self.assertEqual(fetch["args"], ["fetch"])
        expected = {
            "LOG_LEVEL": "info",
            "MODEL_DIR": "/models",
            "MODEL_SHA256": "0" * 64,
            "MODEL_URI": "gs://bucket/best.onnx",
        }
        self.assertEqual(environment(fetch), expected)
        self.assertEqual(fetch["image"], server_of(found)["image"])
        self.assertEqual(fetch["volumeMounts"], [{"name": "models", "mountPath": "/models"}])
        mounted = {"name": "models", "mountPath": "/models", "readOnly": True}
        self.assertEqual(server_of(found)["volumeMounts"], [mounted])
        self.assertEqual(pod_of(found)["volumes"], [{"name": "models", "emptyDir": {"sizeLimit": "5Gi"}}])
        self.assertNotIn("WATCH_MODEL", environment(server_of(found)))

    def test_other_sources_are_watched_and_need_no_init_container(self):
        for model in ({"existingClaim": "models"}, {"configMap": "digits"}):
            with self.subTest(model=model):
                found = chart.objects(IMAGE | {"model": model})
                self.assertNotIn("initContainers", pod_of(found))
                self.assertEqual(environment(server_of(found))["WATCH_MODEL"], "30s")

    def test_credentials_of_the_store_are_for_the_init_container_alone(self):
        found = chart.objects(chart.values("latency"))
        (fetch,) = pod_of(found)["initContainers"]
        self.assertEqual(fetch["envFrom"], [{"secretRef": {"name": "model-store"}}])
        self.assertNotIn("envFrom", server_of(found))
        self.assertFalse([name for name in environment(server_of(found)) if name.startswith("AWS_")])

    def test_a_container_of_azure_s_is_named_with_its_account(self):
        for name in chart.VALUE_SETS:
            found = chart.objects(chart.values(name))
            for fetch in pod_of(found).get("initContainers", []):
                if environment(fetch)["MODEL_URI"].startswith("az://"):
                    self.assertIn("AZURE_STORAGE_ACCOUNT_NAME", environment(fetch))

    def test_another_digest_is_another_pod_template_and_the_old_one_brings_the_old_template_back(self):
        def template(digest: str) -> dict:
            model = {"uri": "gs://bucket/best.onnx", "sha256": digest * 64}
            return chart.find(chart.objects(IMAGE | {"model": model}), "Deployment")["spec"]["template"]

        self.assertNotEqual(template("1"), template("2"))
        self.assertEqual(template("1"), template("1"))


class Pods(unittest.TestCase):
    """What runs."""

    def test_every_container_is_as_pod_security_restricted_asks_and_writes_nowhere_but_into_volumes(self):
        for name in chart.VALUE_SETS:
            found = chart.objects(chart.values(name))
            pods = [pod_of(found), chart.find(found, "Pod")["spec"]]
            for pod in pods:
                with self.subTest(name=name):
                    self.assertTrue(pod["securityContext"]["runAsNonRoot"])
                    self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
                    self.assertFalse(pod["automountServiceAccountToken"])
                    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
                    for volume in pod.get("volumes", []):
                        self.assertLessEqual(set(volume) - {"name"}, allowed)
                for container in pod["containers"] + pod.get("initContainers", []):
                    with self.subTest(name=name, container=container["name"]):
                        context = container["securityContext"]
                        self.assertFalse(context["allowPrivilegeEscalation"])
                        self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
                        self.assertTrue(context["readOnlyRootFilesystem"])
                        self.assertIn("memory", container["resources"]["limits"])

    def test_each_mount_has_its_volume_and_each_file_that_is_named_a_mount(self):
        for name in chart.VALUE_SETS:
            pod = pod_of(chart.objects(chart.values(name)))
            volumes = {volume["name"] for volume in pod["volumes"]}
            for container in pod["containers"] + pod.get("initContainers", []):
                with self.subTest(name=name, container=container["name"]):
                    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
                    self.assertLessEqual({mount["name"] for mount in container["volumeMounts"]}, volumes)
                    for value in environment(container).values():
                        if value and value.startswith("/"):
                            self.assertTrue(any(f"{value}/".startswith(f"{mount}/") for mount in mounts), value)

    def test_each_variable_is_one_that_the_server_reads(self):
        sources = "".join(path.read_text() for path in (chart.ROOT / "src").rglob("*.rs"))
        read = set(re.findall(r'"([A-Z][A-Z0-9_]+)"', sources))
        checked = set()
        for name in chart.VALUE_SETS:
            pod = pod_of(chart.objects(chart.values(name)))
            for container in pod["containers"] + pod.get("initContainers", []):
                own = {variable for variable in environment(container) if not variable.startswith(("AWS_", "AZURE_"))}
                checked |= own - {"SSL_CERT_FILE"}
        self.assertGreater(len(checked), 10)
        self.assertEqual(checked - read, set(), "the server does not read them")

    def test_no_variable_stands_twice(self):
        for name in chart.VALUE_SETS:
            pod = pod_of(chart.objects(chart.values(name)))
            for container in pod["containers"] + pod.get("initContainers", []):
                names = [variable["name"] for variable in container["env"]]
                self.assertEqual(len(names), len(set(names)), name)

    def test_settings_change_the_defaults_and_an_empty_one_unsets_them(self):
        settings = {"LOG_LEVEL": "debug", "MAX_CONNECTION_AGE": "", "MAX_BATCH_SIZE": 8}
        found = environment(server_of(chart.objects(MINIMAL | {"settings": settings})))
        expected = {
            "ADMIN_PORT": "8002",
            "LOG_LEVEL": "debug",
            "MAX_BATCH_SIZE": "8",
            "MODEL_PATH": "/models/best.onnx",
        }
        self.assertEqual(found, expected)

    def test_numbers_are_written_out(self):
        for number in (64, 1048576, 2000000, 10**15):
            found = environment(server_of(chart.objects(MINIMAL | {"settings": {"MAX_QUEUE_SIZE": number}})))
            self.assertEqual(found["MAX_QUEUE_SIZE"], str(number))

    def test_probes_and_scrapes_go_to_the_admin_port_or_where_it_is_off_to_the_main_one(self):
        monitored = {"monitoring": {"podMonitor": {"enabled": True}}}
        for admin, expected in (({"enabled": True, "port": 9002}, "admin"), ({"enabled": False}, "http")):
            with self.subTest(admin=admin):
                found = chart.objects(MINIMAL | monitored | {"admin": admin})
                server = server_of(found)
                probes = [server[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "readiness", "liveness")]
                self.assertEqual(probes, [expected] * 3)
                ports = {port["name"]: port["containerPort"] for port in server["ports"]}
                self.assertIn(expected, ports)
                self.assertEqual(ports.get("admin"), admin.get("port"))
                number = environment(server).get("ADMIN_PORT")
                self.assertEqual(number and int(number), admin.get("port"))
                (endpoint,) = chart.find(found, "PodMonitor")["spec"]["podMetricsEndpoints"]
                self.assertEqual(endpoint["port"], expected)
                scrapes = chart.find(found, "NetworkPolicy")["spec"]["ingress"][-1]
                self.assertEqual(scrapes["ports"][0]["port"], expected)

    def test_on_openshift_the_platform_chooses_the_users(self):
        users = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
        found = chart.objects(MINIMAL | {"podSecurityContext": users})
        for pod in (pod_of(found), chart.find(found, "Pod")["spec"]):
            self.assertEqual(set(pod["securityContext"]), {"runAsNonRoot", "fsGroupChangePolicy", "seccompProfile"})

    def test_a_start_may_take_as_long_as_is_said(self):
        for seconds, failures in ((300, 60), (301, 61), (5, 1)):
            server = server_of(chart.objects(MINIMAL | {"startupSeconds": seconds}))
            probe = server["startupProbe"]
            self.assertEqual((probe["periodSeconds"], probe["failureThreshold"]), (5, failures))

    def test_a_rollout_is_given_up_later_than_the_slowest_start(self):
        for seconds in (300, 3600):
            found = chart.objects(MINIMAL | {"startupSeconds": seconds})
            self.assertEqual(chart.find(found, "Deployment")["spec"]["progressDeadlineSeconds"], seconds + 900)

    def test_a_fetched_model_keeps_no_node_from_being_removed(self):
        local = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
        for given, expected in (
            (MINIMAL, {local: "models"}),
            (MINIMAL | {"podAnnotations": {"owner": "vision"}}, {local: "models", "owner": "vision"}),
            (MINIMAL | {"podAnnotations": {local: "models,scratch"}}, {local: "models,scratch"}),
            (IMAGE | {"model": {"configMap": "digits"}}, None),
        ):
            template = chart.find(chart.objects(given), "Deployment")["spec"]["template"]
            self.assertEqual(template["metadata"].get("annotations"), expected)

    def test_disk_is_asked_for_in_both_containers_where_that_is_said_and_a_model_is_fetched(self):
        fetch = {"fetch": {"ephemeralStorage": "6Gi"}}
        for gpu in (False, True):
            found = chart.objects(IMAGE | {"model": MODEL["model"] | fetch, "gpu": {"enabled": gpu}})
            for container in pod_of(found)["containers"] + pod_of(found)["initContainers"]:
                for figures in container["resources"].values():
                    self.assertEqual(figures["ephemeral-storage"], "6Gi")
                    self.assertIn("memory", figures)
            self.assertEqual("nvidia.com/gpu" in server_of(found)["resources"]["limits"], gpu)
        self.assertNotIn("ephemeral-storage", json.dumps(chart.objects(MINIMAL)))
        self.assertNotIn("ephemeral-storage", json.dumps(chart.objects(IMAGE | {"model": {"configMap": "m"} | fetch})))

    def test_keys_come_from_a_secret_that_only_the_server_mounts(self):
        found = chart.objects(MINIMAL | {"apiKeys": {"existingSecret": "keys", "key": "list"}})
        self.assertEqual(environment(server_of(found))["API_KEY_FILE"], "/secrets/list")
        volume = {"name": "api-keys", "secret": {"secretName": "keys", "defaultMode": 0o440}}
        self.assertIn(volume, pod_of(found)["volumes"])
        (fetch,) = pod_of(found)["initContainers"]
        self.assertEqual([mount["name"] for mount in fetch["volumeMounts"]], ["models"])
        self.assertNotIn("API_KEY_FILE", environment(server_of(chart.objects(MINIMAL))))

    def test_a_gpu_is_asked_for_and_a_rollout_needs_no_spare_one(self):
        found = chart.objects(chart.values("keda"))
        server, pod = server_of(found), pod_of(found)
        self.assertEqual(server["resources"]["limits"]["nvidia.com/mig-1g.10gb"], "1")
        self.assertEqual(server["resources"]["limits"]["memory"], "16Gi")
        self.assertEqual(environment(server)["DEVICE"], "cuda")
        self.assertEqual(pod["runtimeClassName"], "nvidia")
        self.assertEqual(pod["nodeSelector"], {"nvidia.com/gpu.present": "true"})
        self.assertEqual([toleration["key"] for toleration in pod["tolerations"]], ["nvidia.com/gpu"])
        strategy = chart.find(found, "Deployment")["spec"]["strategy"]
        self.assertEqual(strategy, GPU_STRATEGY)
        # Without a GPU nothing of it stays.
        found = chart.objects(MINIMAL | {"gpu": {"nodeSelector": {"a": "b"}, "runtimeClassName": "nvidia"}})
        self.assertNotIn("nvidia", json.dumps(found))
        self.assertNotIn("nodeSelector", pod_of(found))
        strategy = chart.find(found, "Deployment")["spec"]["strategy"]
        self.assertEqual(strategy, CPU_STRATEGY)

    def test_the_image_is_the_chart_s_version_for_the_device_unless_it_is_said(self):
        repository = "registry.example.com/model-serving"
        for image, gpu, expected in (
            ({}, False, f"{repository}:v{APP_VERSION}"),
            ({}, True, f"{repository}:v{APP_VERSION}-gpu"),
            ({"tag": "mine"}, True, f"{repository}:mine"),
            ({"tag": "mine", "digest": "sha256:" + "0" * 64}, False, f"{repository}@sha256:{'0' * 64}"),
        ):
            found = chart.objects(MODEL | {"image": {"repository": repository} | image, "gpu": {"enabled": gpu}})
            self.assertEqual({*everywhere(found, "image")}, {expected})


class Together(unittest.TestCase):
    """Objects that name each other."""

    def test_selectors_find_the_release_s_pods_and_names_lead_to_its_objects(self):
        for name in chart.VALUE_SETS:
            for release in (chart.RELEASE, LONG):
                found = chart.objects(chart.values(name), release)
                labels = chart.find(found, "Deployment")["spec"]["template"]["metadata"]["labels"]
                server = server_of(found)
                ports = {port["name"] for port in server["ports"]}
                service = chart.find(found, "Service")
                with self.subTest(name=name, release=release["name"]):
                    selectors = [service["spec"]["selector"]]
                    for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
                        for each in (each for each in found if each["kind"] == kind):
                            selectors.append(each["spec"]["selector"]["matchLabels"])
                    policy = chart.find(found, "NetworkPolicy")
                    if policy:
                        selectors.append(policy["spec"]["podSelector"]["matchLabels"])
                    for selector in selectors:
                        self.assertLessEqual(selector.items(), labels.items())
                        self.assertEqual(selector["app.kubernetes.io/instance"], release["name"])
                    self.assertEqual(everywhere(service, "targetPort"), ["http"])
                    self.assertIn("http", ports)
                    for target in everywhere(found, "scaleTargetRef"):
                        self.assertEqual(target["name"], chart.find(found, "Deployment")["metadata"]["name"])
                    for backend in everywhere(found, "service"):
                        self.assertEqual(backend, {"name": service["metadata"]["name"], "port": {"name": "http"}})
                    for backends in everywhere(found, "backendRefs"):
                        self.assertEqual(backends[0]["name"], service["metadata"]["name"])
                        self.assertEqual(backends[0]["port"], service["spec"]["ports"][0]["port"])
                    account = chart.find(found, "ServiceAccount")
                    if account:
                        self.assertEqual(pod_of(found)["serviceAccountName"], account["metadata"]["name"])
                    (url,) = [word for word in chart.find(found, "Pod")["spec"]["containers"][0]["args"] if ":" in word]
                    number = service["spec"]["ports"][0]["port"]
                    self.assertEqual(url, f"http://{service['metadata']['name']}:{number}/ready")
                    for each in found:
                        self.assertLessEqual(len(each["metadata"]["name"]), 63)
                        self.assertEqual(each["metadata"]["namespace"], release["namespace"])

    def test_two_releases_in_a_namespace_share_nothing(self):
        everything = chart.values("latency")
        one, other = (chart.objects(everything, {"name": name, "namespace": "models"}) for name in ("one", "other"))
        names = [{(each["kind"], each["metadata"]["name"]) for each in found} for found in (one, other)]
        self.assertEqual(names[0] & names[1], set())
        selector = chart.find(one, "Service")["spec"]["selector"]
        labels = chart.find(other, "Deployment")["spec"]["template"]["metadata"]["labels"]
        self.assertFalse(selector.items() <= labels.items())

    def test_there_is_one_scaler_or_a_number_of_pods(self):
        for by, metrics, scaler in (
            ("none", None, None),
            ("cpu", ["cpu"], "HorizontalPodAutoscaler"),
            ("latency", ["cpu", "inference_latency_p99", "ml_saturation"], "HorizontalPodAutoscaler"),
            ("keda", None, "ScaledObject"),
        ):
            with self.subTest(by=by):
                found = chart.objects(MINIMAL | {"autoscaling": {"by": by}})
                kinds = [each["kind"] for each in found]
                scalers = [kind for kind in kinds if kind in ("HorizontalPodAutoscaler", "ScaledObject")]
                self.assertEqual(scalers, [scaler] if scaler else [])
                replicas = chart.find(found, "Deployment")["spec"].get("replicas")
                self.assertEqual(replicas, 2 if by == "none" else None)
                if metrics:
                    asked = chart.find(found, scaler)["spec"]["metrics"]
                    named = [each.get("resource") or each["pods"]["metric"] for each in asked]
                    self.assertEqual([each["name"] for each in named], metrics)

    def test_a_gateway_shares_requests_between_the_release_and_a_canary(self):
        found = chart.objects(chart.values("keda"), {"name": "vision", "namespace": "models"})
        route = chart.find(found, "HTTPRoute")
        self.assertEqual(route["apiVersion"], "gateway.networking.k8s.io/v1")
        backends = [
            {"name": "vision-model-serving", "port": 80, "weight": 90},
            {"name": "canary-model-serving", "port": 80, "weight": 10},
        ]
        paths = [("Exact", "/predict"), ("PathPrefix", "/v1/models"), ("PathPrefix", "/v2")]
        matches = [{"path": {"type": type, "value": value}} for type, value in paths]
        expected = {
            "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}],
            "hostnames": ["models.example.com"],
            "rules": [{"matches": matches, "backendRefs": backends, "timeouts": {"request": "35s"}}],
        }
        self.assertEqual(route["spec"], expected)

    def test_an_ingress_shows_predictions_and_no_metrics(self):
        (rule,) = chart.find(chart.objects(chart.values("claim")), "Ingress")["spec"]["rules"]
        shown = [(path["pathType"], path["path"]) for path in rule["http"]["paths"]]
        self.assertEqual(shown, [("Exact", "/predict"), ("Prefix", "/v1/models"), ("Prefix", "/v2")])

    def test_thresholds_have_the_unit_that_their_names_say(self):
        scaling = {"latencyMs": 150, "saturationPercent": 40}
        latency = chart.objects(MINIMAL | {"autoscaling": scaling | {"by": "latency"}})
        values = [value for value in everywhere(chart.find(latency, "HorizontalPodAutoscaler"), "averageValue")]
        # Seconds, and a share of the deadline, both in thousandths.
        self.assertEqual(values, ["150m", "400m"])
        keda = chart.objects(MINIMAL | {"autoscaling": scaling | {"by": "keda"}})
        self.assertEqual(everywhere(chart.find(keda, "ScaledObject"), "threshold"), ["0.15", "0.4"])

    def test_keda_asks_about_the_release_s_own_pods(self):
        found = chart.objects(MINIMAL | {"autoscaling": {"by": "keda"}}, {"name": "vision", "namespace": "models"})
        queries = everywhere(chart.find(found, "ScaledObject"), "query")
        self.assertEqual(len(queries), 2)
        for query in queries:
            pattern = re.search(r'{namespace="models",pod=~"([^"]+)"}', query).group(1)
            self.assertRegex("vision-model-serving-6d4cf56db6-x7k2p", f"^{pattern}$")
            self.assertNotRegex("vision-model-serving-canary-6d4cf56db6-x7k2p", f"^{pattern}$")

    def test_the_policy_lets_in_what_is_named_and_nobody_else(self):
        def sources(policy: dict) -> list:
            found = chart.objects(MINIMAL | {"networkPolicy": policy})
            rules = chart.find(found, "NetworkPolicy")["spec"].get("ingress") or []
            return [(rule.get("from"), rule["ports"][0]["port"]) for rule in rules]

        namespace = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
        pods = {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}
        monitoring = [{"namespaceSelector": namespace, "podSelector": pods}]
        labels = {"app.kubernetes.io/name": "model-serving-test", "app.kubernetes.io/instance": "model-serving"}
        tester = {"podSelector": {"matchLabels": labels}}
        self.assertEqual(sources({}), [([{"podSelector": {}}, tester], "http"), (monitoring, "admin")])
        self.assertEqual(sources({"from": []}), [([tester], "http"), (monitoring, "admin")])
        self.assertEqual(sources({"from": [], "monitoringFrom": []}), [([tester], "http")])
        self.assertEqual(sources({"fromAnywhere": True}), [(None, "http"), (monitoring, "admin")])

    def test_helm_s_own_test_gets_through_whoever_else_may_predict(self):
        for name in chart.VALUE_SETS:
            found = chart.objects(chart.values(name), {"name": "vision", "namespace": "models"})
            policy = chart.find(found, "NetworkPolicy")
            if not policy:
                continue
            tester = chart.find(found, "Pod")["metadata"]["labels"]
            peers = [
                peer["podSelector"].get("matchLabels", {})
                for peer in policy["spec"]["ingress"][0]["from"]
                if "namespaceSelector" not in peer
            ]
            self.assertTrue([peer for peer in peers if peer and peer.items() <= tester.items()], name)

    def test_the_policy_lets_out_what_the_model_s_source_and_the_settings_need(self):
        def ports(given: dict) -> set[int]:
            rules = chart.find(chart.objects(IMAGE | given), "NetworkPolicy")["spec"]["egress"]
            return {port["port"] for rule in rules for port in rule["ports"]}

        self.assertEqual(ports({"model": {"configMap": "digits"}}), {53})
        self.assertEqual(ports(MODEL), {53, 80, 443, 987, 988, 8080})
        self.assertEqual(ports(MODEL | {"networkPolicy": {"fetchEgress": False}}), {53})
        collector = {"settings": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}}
        self.assertEqual(ports({"model": {"configMap": "digits"}} | collector), {53, 4318})
        self.assertIn(9000, ports(chart.values("latency")))

    def test_names_can_be_asked_for_wherever_clusters_answer_them(self):
        rules = chart.find(chart.objects(MINIMAL), "NetworkPolicy")["spec"]["egress"]
        (names,) = [rule for rule in rules if {port["port"] for port in rule["ports"]} == {53}]
        self.assertEqual({port["protocol"] for port in names["ports"]}, {"UDP", "TCP"})
        pods = {label for peer in names["to"] for label in everywhere(peer, "k8s-app")}
        self.assertEqual(pods, {"kube-dns", "node-local-dns"})
        self.assertEqual(set(everywhere(names, "cidr")), {"169.254.20.10/32", "169.254.169.254/32"})


class Monitoring(unittest.TestCase):
    """Rules and dashboards are those of monitoring/, which Helm reads through links."""

    LINKS = {
        "files/rules.yml": "monitoring/rules/model-serving.yml",
        "files/dashboards/model-serving.json": "monitoring/dashboards/model-serving.json",
        "files/dashboards/model-serving-gpu.json": "monitoring/dashboards/model-serving-gpu.json",
    }

    def test_each_file_is_a_link_into_monitoring_and_none_is_missing(self):
        for link, target in self.LINKS.items():
            path = chart.CHART / link
            self.assertTrue(path.is_symlink(), f"{link} is a copy")
            self.assertEqual(path.resolve(), chart.ROOT / target)
        for folder, pattern in (("rules", "*.yml"), ("dashboards", "*.json")):
            there = {f"monitoring/{folder}/{path.name}" for path in (chart.ROOT / f"monitoring/{folder}").glob(pattern)}
            self.assertLessEqual(there, set(self.LINKS.values()), "the chart does not have it")

    def test_what_is_installed_is_what_is_in_monitoring(self):
        found = chart.objects(chart.values("latency"))
        rules = yaml.safe_load((chart.ROOT / "monitoring/rules/model-serving.yml").read_text())
        self.assertEqual(chart.find(found, "PrometheusRule")["spec"], rules)
        dashboards = chart.find(found, "ConfigMap")["data"]
        for name in ("model-serving.json", "model-serving-gpu.json"):
            expected = json.loads((chart.ROOT / "monitoring/dashboards" / name).read_text())
            self.assertEqual(json.loads(dashboards[name]), expected)
        self.assertEqual(len(dashboards), 2)

    def test_the_package_has_the_files_and_not_the_links_nor_the_values_of_the_checks(self):
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(helm_python.package(chart.CHART, destination=folder)) as package:
                members = {member.name.removeprefix("model-serving/"): member for member in package.getmembers()}
                self.assertFalse([name for name in members if name.startswith("ci/")])
                for link, target in self.LINKS.items():
                    self.assertTrue(members[link].isfile())
                    content = package.extractfile(members[link]).read()
                    self.assertEqual(content, (chart.ROOT / target).read_bytes())

    def test_a_release_fits_into_the_secret_in_which_helm_keeps_it(self):
        with tempfile.TemporaryDirectory() as folder:
            package = pathlib.Path(helm_python.package(chart.CHART, destination=folder))
            rendered = sum(map(len, chart.render(chart.values("latency")).values()))
            # The package, and what it renders, which compresses at least as well as it is alone.
            self.assertLess(package.stat().st_size + rendered, 700_000)

    def test_the_operator_s_objects_carry_the_labels_that_it_looks_for(self):
        found = chart.objects(chart.values("latency"))
        for kind in ("PodMonitor", "PrometheusRule"):
            self.assertEqual(chart.find(found, kind)["metadata"]["labels"]["release"], "kube-prometheus-stack")
        self.assertEqual(chart.find(found, "ConfigMap")["metadata"]["labels"]["grafana_dashboard"], "1")

    def test_each_release_is_a_job_by_a_name_that_the_alerts_know(self):
        rules = (chart.ROOT / "monitoring/rules/model-serving.yml").read_text()
        patterns = set(re.findall(r'job=~"([^"]+)"', rules))
        self.assertTrue(patterns)
        jobs = set()
        for name in ("vision", "model-serving-canary"):
            for override in ("", "speech"):
                given = chart.values("latency") | {"fullnameOverride": override}
                found = chart.objects(given, {"name": name, "namespace": "models"})
                label = chart.find(found, "PodMonitor")["spec"]["jobLabel"]
                job = chart.find(found, "Deployment")["spec"]["template"]["metadata"]["labels"][label]
                for pattern in patterns:
                    self.assertRegex(job, f"^(?:{pattern})$")
                jobs.add(job)
        self.assertEqual(jobs, {"vision-model-serving", "model-serving-canary", "speech-model-serving"})

    def test_a_plain_installation_has_none_of_it(self):
        kinds = {each["kind"] for each in chart.objects(MINIMAL)}
        wanted = {
            "Deployment",
            "HorizontalPodAutoscaler",
            "NetworkPolicy",
            "Pod",
            "PodDisruptionBudget",
            "Service",
            "ServiceAccount",
        }
        self.assertEqual(kinds, wanted)


class Versions(unittest.TestCase):
    """Numbers that stand in several files are one."""

    def test_the_chart_is_of_the_server_s_version(self):
        cargo = tomllib.loads((chart.ROOT / "Cargo.toml").read_text())
        self.assertEqual(APP_VERSION, cargo["package"]["version"])

    def test_the_oldest_kubernetes_is_the_one_that_the_manifests_are_checked_for(self):
        oldest = re.search(r"^KUBERNETES := (\S+)$", (chart.ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
        self.assertEqual(METADATA["kubeVersion"], f">={oldest}.0-0")


class Notes(unittest.TestCase):
    """What Helm prints after an installation."""

    def test_they_warn_of_what_is_not_pinned_and_say_what_else_is_needed(self):
        def notes(given: dict) -> str:
            return chart.render(given)["NOTES.txt"]

        self.assertIn("model.sha256 is not set", notes(MINIMAL))
        self.assertIn("image.digest=", notes(MINIMAL))
        pinned = notes(chart.values("latency"))
        self.assertNotIn("WARNING", pinned)
        self.assertNotIn("image.digest=", pinned)
        self.assertIn("prometheus-adapter", pinned)
        missing = "They come from a PodMonitor"
        self.assertNotIn(missing, pinned)
        self.assertNotIn(missing, notes(MINIMAL))
        self.assertIn(missing, notes(chart.values("keda")))
        monitor = {"podMonitor": {"enabled": True}}
        self.assertNotIn(missing, notes(chart.values("keda") | {"monitoring": monitor}))
        self.assertIn(missing, notes(chart.values("latency") | {"monitoring": monitor}))
        self.assertIn("nothing ever scales down", notes(MINIMAL | {"autoscaling": {"by": "latency"}}))
        self.assertIn("Authorization: Bearer", notes(chart.values("claim")))
        self.assertIn("networkPolicy.from", notes(chart.values("keda")))
        self.assertNotIn("networkPolicy.from", notes(MINIMAL))


METADATA = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
APP_VERSION = METADATA["appVersion"]

if __name__ == "__main__":
    unittest.main()
