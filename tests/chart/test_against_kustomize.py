"""The chart and k8s/ are two ways to the same objects."""

import shutil
import unittest

import chart
import kustomize
import yaml

# Each set of values, and the overlay that it shall equal.
PAIRS = {"cpu": "k8s/overlays/cpu", "gpu": "k8s/overlays/gpu"}


def manifests(kind: str) -> list[dict]:
    """Every object of a kind in k8s/, as it stands there."""
    found = []
    for path in sorted((chart.ROOT / "k8s").rglob("*.yaml")):
        documents = [each for each in yaml.safe_load_all(path.read_text()) if isinstance(each, dict)]
        found += [each for each in documents if each.get("kind") == kind]
    return found


class Overlays(unittest.TestCase):
    def test_each_difference_is_meant(self):
        if not shutil.which("kubectl"):
            print("SKIPPED: kubectl is not installed, so the chart was not compared with the overlays")
            return
        needed = set()
        for name, folder in PAIRS.items():
            theirs, ours = kustomize.kustomized(folder), chart.objects(chart.values(name))
            self.assertGreater(len(theirs), 8)
            said, used = kustomize.differences(theirs, ours)
            needed |= used
            with self.subTest(name=name):
                self.assertEqual(said, [], "\n" + "\n".join(said))
        named = {*kustomize.NOT_IN_CHART, *(place for place, *_ in kustomize.DIFFERENT)}
        self.assertEqual(named - needed, set(), "no longer a difference")


class Monitoring(unittest.TestCase):
    def test_the_pod_monitor_says_the_same(self):
        (theirs,) = [each for each in manifests("PodMonitor") if each["metadata"]["name"] == "model-serving"]
        ours = chart.find(chart.objects(chart.values("latency")), "PodMonitor")
        for spec in (theirs["spec"], ours["spec"]):
            # Each has its own labels on pods; which value of them is the job's name is another test's.
            del spec["selector"]
        self.assertEqual(ours["spec"], theirs["spec"])

    def test_keda_asks_the_same(self):
        (theirs,) = manifests("ScaledObject")
        ours = chart.find(chart.objects(chart.values("keda")), "ScaledObject")
        for each in (theirs, ours):
            for trigger in each["spec"]["triggers"]:
                trigger["metadata"].pop("serverAddress", None)
                if "query" in trigger["metadata"]:
                    trigger["metadata"]["query"] = " ".join(trigger["metadata"]["query"].split())
        self.assertEqual(ours["spec"], theirs["spec"])
        self.assertEqual(ours["metadata"]["annotations"], theirs["metadata"]["annotations"])

    def test_keda_takes_over_the_autoscaler_that_was_there_and_scales_down_as_it_did(self):
        for by_cpu, keda in (
            (chart.objects(chart.values("cpu")), chart.objects(chart.values("keda"))),
            (manifests("HorizontalPodAutoscaler"), manifests("ScaledObject")),
        ):
            before = next(each for each in by_cpu if "behavior" in each.get("spec", {}))
            after = chart.find(keda, "ScaledObject")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
            self.assertEqual(after["name"], before["metadata"]["name"])
            self.assertEqual(after["behavior"], before["spec"]["behavior"])

    def test_scaling_by_latency_asks_for_what_the_adapter_offers(self):
        found = chart.objects(chart.values("latency"))
        asked = chart.find(found, "HorizontalPodAutoscaler")["spec"]["metrics"]
        names = [each["pods"]["metric"]["name"] for each in asked if each["type"] == "Pods"]
        (adapter,) = (chart.ROOT / "k8s").rglob("adapter-values.yaml")
        for name in names:
            self.assertIn(name, adapter.read_text())


if __name__ == "__main__":
    unittest.main()
