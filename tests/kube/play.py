#!/usr/bin/env python3
"""The pod of the CPU overlay, run for real by 'podman play kube': what kustomize renders is what runs here.

The image is made of the program that is named with --server, ONNX Runtime and this machine's own libraries, so that no
registry is needed. The init container fetches the bundled model from a web server of
this script, which refuses the first request and cuts the second answer short. Then the pod is treated as a node would:
probed as the manifest says, loaded, told to stop, and given the time that it asks for.

podman is no kubelet. This script does for it what it does not do: probes, the preStop hook, and the permissions that fsGroup
gives on an empty volume. `make play-kube` runs it; where podman cannot run containers, it says so and why.
"""

import argparse
import ctypes
import hashlib
import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/docker"))

import clients  # noqa: E402
from claims import Failed, prove  # noqa: E402

MODEL = ROOT / "models/best.onnx"
DIGIT = (ROOT / "models/samples/digit-7.json").read_bytes()
IMAGE = "localhost/model-serving-play:latest"
POD = "model-serving-pod-0"
API, FETCH = f"{POD}-api", f"{POD}-fetch"


class CannotRun(Exception):
    """Why there is nothing to prove on this machine."""


class Podman:
    """podman with a store of its own, so that it leaves nothing and needs nothing of the machine's."""

    def __init__(self, folder: pathlib.Path) -> None:
        # The limits that podman would set are more than a container may set that runs all of this.
        config = folder / "containers.conf"
        config.write_text('[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n')
        self.environment = os.environ | {"CONTAINERS_CONF": str(config)}
        self.command = ["podman", "--root", str(folder / "store"), "--runroot", str(folder / "run")]
        self.command += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]

    def run(self, *arguments: str, check: bool = True, limit: float = 120) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )
        if check and done.returncode:
            raise Failed(f"podman {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
        return done

    def inspect(self, container: str) -> dict:
        return json.loads(self.run("container", "inspect", container).stdout)[0]

    def choose_runtime(self) -> None:
        """The first runtime that runs a container here."""
        reasons = []
        for runtime in ("crun", "runc"):
            if shutil.which(runtime):
                done = self.run("--runtime", runtime, "run", "--rm", IMAGE, "--version", check=False)
                if done.returncode == 0:
                    self.command += ["--runtime", runtime]
                    return
                reasons.append(f"{runtime}: {done.stderr.strip().splitlines()[-1:]}")
        raise CannotRun(f"podman runs no container here ({'; '.join(reasons) or 'neither crun nor runc is installed'})")


class Bucket(http.server.ThreadingHTTPServer):
    """Serves the model, after a refusal and after an answer that ends too early."""

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), Handler)
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.server.asked
        asked.append(self.headers.get("Range", "whole"))
        if len(asked) == 1:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = MODEL.read_bytes()
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        last = int(start[2]) if start and start[2] else len(content) - 1
        part = content[first : last + 1]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"1"')
        if start:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        if len(asked) == 2:
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        self.wfile.write(part)


def make_image(podman: Podman, server: pathlib.Path, folder: pathlib.Path) -> None:
    """An image of the program and what it and ONNX Runtime need."""
    runtime = ROOT / ".onnxruntime/libonnxruntime.so"
    files = folder / "image"
    for program in (server, runtime):
        listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            target = files / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    for source, target in ((server, "usr/local/bin/model-serving"), (runtime, "usr/local/lib/libonnxruntime.so")):
        (files / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, files / target)
    # The authorities that the real image's base brings.
    authorities = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
    (files / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
    shutil.copy(authorities, files / authorities.relative_to("/"))
    # As a node makes an empty volume: podman gives a new one what the image has at its place.
    models = files / "models"
    models.mkdir()
    models.chmod(0o777)
    archive = shutil.make_archive(str(folder / "image"), "tar", files)
    changes = [
        'ENTRYPOINT ["/usr/local/bin/model-serving"]',
        "ENV ORT_DYLIB_PATH=/usr/local/lib/libonnxruntime.so",
        "USER 65532:65532",
    ]
    podman.run("import", *(part for change in changes for part in ("--change", change)), archive, IMAGE)


def render(folder: pathlib.Path, uri: str, sha256: str) -> list[dict]:
    """The CPU overlay as a user would adapt it: another image, another model; without what podman would do wrongly."""
    import yaml

    own = folder / "overlay"
    own.mkdir(exist_ok=True)
    to_root = os.path.relpath(ROOT, own)
    name, tag = IMAGE.rsplit(":", 1)
    text = {
        "resources": [f"{to_root}/k8s/overlays/cpu"],
        "images": [{"name": "registry.example.com/model-serving", "newName": name, "newTag": tag}],
        "configMapGenerator": [
            {
                "name": "model-source",
                "namespace": "model-serving",
                "behavior": "merge",
                "literals": [f"uri={uri}", f"sha256={sha256}"],
            }
        ],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(text))
    rendered = subprocess.run(["kubectl", "kustomize", str(own)], capture_output=True, text=True, check=True).stdout
    return [item for item in yaml.safe_load_all(rendered) if item["kind"] in ("ConfigMap", "Deployment")]


def play(
    podman: Podman, folder: pathlib.Path, objects: list[dict], restart: str = "OnFailure"
) -> subprocess.CompletedProcess[str]:
    """Starts the pod; returns when its init container has ended and the server's has started, or when it failed."""
    import copy

    import yaml

    objects = copy.deepcopy(objects)
    for item in objects:
        if item["kind"] == "Deployment":
            pod = item["spec"]["template"]["spec"]
            # With "Always" podman starts an init container again that has ended well.
            pod["restartPolicy"] = restart
            for container in [*pod["initContainers"], *pod["containers"]]:
                container["imagePullPolicy"] = "Never"
                # podman would run them as commands in the container, which has none but the server.
                for probe in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle"):
                    container.pop(probe, None)
    path = folder / "pod.yaml"
    path.write_text(yaml.safe_dump_all(objects))
    done = podman.run("play", "kube", "--network", "podman", str(path), check=False)
    # Debian's podman only recommends the package of that program.
    if "finding pause binary" in done.stderr:
        raise CannotRun("podman cannot make a pod without the program catatonit")
    return done


def clear(podman: Podman) -> None:
    podman.run("pod", "rm", "--all", "--force", check=False)
    podman.run("volume", "rm", "--all", "--force", check=False)


class Node:
    """What a kubelet does for the server's container, by the manifest."""

    def __init__(self, container: dict, address: str) -> None:
        self.container, self.address = container, address
        self.ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    def probe(self, name: str) -> int:
        """The status that a probe gets; 0 if there is no answer in time."""
        probe = self.container[name]
        asks = probe["httpGet"]
        try:
            wait = probe.get("timeoutSeconds", 1)
            return clients.request(self.ports[asks["port"]], "GET", asks["path"], timeout=wait, host=self.address)[0]
        except OSError:
            return 0

    def until_started(self) -> float:
        """Probes as often as the startup probe may fail, and says after how long it did not."""
        probe = self.container["startupProbe"]
        began = time.monotonic()
        for _ in range(probe["failureThreshold"]):
            if self.probe("startupProbe") == 200:
                return time.monotonic() - began
            # A kubelet waits for a whole period; what is found is the same.
            time.sleep(min(probe["periodSeconds"], 0.2))
        raise Failed("the startup probe failed too often")


def last_words(podman: Podman, container: str) -> str:
    """The last line of a container that has ended; its monitor may still be writing it."""
    for _ in range(50):
        log = podman.run("logs", container, check=False)
        if lines := (log.stdout + log.stderr).strip().splitlines():
            return lines[-1]
        time.sleep(0.1)
    return ""


def prove_locked_down(podman: Podman, container: str) -> None:
    found = podman.inspect(container)
    user, config, capabilities = found["Config"]["User"], found["HostConfig"], found["EffectiveCaps"]
    prove(
        f"{container} runs as the manifest says: another user, nothing writable, no capability",
        user.startswith("65532")
        and config["ReadonlyRootfs"]
        and not capabilities
        and "no-new-privileges" in config["SecurityOpt"],
        f"user {user}, {config['SecurityOpt']}, capabilities {capabilities}",
    )


def prove_wrong_digest(podman: Podman, folder: pathlib.Path, uri: str) -> None:
    # A pod of a Deployment would try again for ever, as it should.
    done = play(podman, folder, render(folder, uri, "0" * 64), restart="Never")
    if podman.run("container", "exists", FETCH, check=False).returncode:
        raise Failed(f"podman play kube: {done.stderr.strip()}")
    state = podman.inspect(FETCH)["State"]
    started = podman.inspect(API)["State"]["Status"]
    said = last_words(podman, FETCH)
    failed = done.returncode and state["ExitCode"] == 1 and "0" * 64 in said
    prove("a model of another digest fails the init container", failed, said or done.stderr.strip()[-500:])
    prove("and the server does not start", started in ("created", "configured", "initialized"), started)
    prove_locked_down(podman, FETCH)
    clear(podman)


def prove_pod(podman: Podman, folder: pathlib.Path, bucket: Bucket, uri: str) -> None:
    digest = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    objects = render(folder, uri, digest)
    deployment = next(item for item in objects if item["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    server = pod["containers"][0]
    bucket.asked.clear()
    done = play(podman, folder, objects)
    # podman removes an init container that has ended well, and starts the others only then.
    if done.returncode:
        raise Failed(f"podman play kube: {done.stderr.strip()}\n{last_words(podman, FETCH)}")
    fetched = f"asked for {', '.join(bucket.asked)}"
    prove("the init container fetches the model, after a refusal and half an answer", len(bucket.asked) >= 3, fetched)

    infra = next(
        it["Id"] for it in json.loads(podman.run("pod", "inspect", POD).stdout)["Containers"] if "infra" in it["Name"]
    )
    networks = podman.inspect(infra)["NetworkSettings"]["Networks"]
    address = next(iter(networks.values()))["IPAddress"]
    node = Node(server, address)
    seconds = node.until_started()
    prove("the startup probe succeeds", True, f"{seconds:.1f} s after the init container")
    prove(
        "the readiness and the liveness probe too", node.probe("readinessProbe") == node.probe("livenessProbe") == 200
    )
    status, body = clients.request(node.ports["admin"], "GET", "/metrics", host=address)
    prove("it serves the model of that digest", status == 200 and f'sha256="{digest}"' in body.decode())
    status, body = clients.request(
        node.ports["http"], "POST", "/predict", DIGIT, {"Content-Type": "application/json"}, host=address
    )
    prove("a prediction is right", status == 200 and json.loads(body)["outputs"]["label"] == [7], body.decode()[-20:])

    prove_locked_down(podman, API)
    writable = {mount["Destination"]: mount["RW"] for mount in podman.inspect(API)["Mounts"]}
    prove("the server cannot write where the models are", writable.get("/models") is False, str(writable))
    prove_ending(podman, node, pod)


def prove_ending(podman: Podman, node: Node, pod: dict) -> None:
    """A pod that is deleted under load: hook, signal, drain, within the grace period."""
    hook = node.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = pod["terminationGracePeriodSeconds"]
    load = clients.Clients(node.ports["http"], 8, DIGIT, [7], host=node.address)
    time.sleep(2)
    before = load.answered
    began = time.monotonic()
    # The hook begins, and the Service forgets the pod, which takes a part of its time; until then clients connect anew.
    time.sleep(hook / 2)
    ready = node.probe("readinessProbe")
    load.stopping.set()
    time.sleep(hook / 2)
    podman.run("stop", "--time", str(grace - hook), API)
    seconds = time.monotonic() - began
    load.join()
    state = podman.inspect(API)["State"]
    prove("while the hook sleeps, requests are taken", ready == 200 and load.answered > before, f"{before} before")
    prove(
        "the server ends by itself, with code 0",
        state["ExitCode"] == 0 and not state["OOMKilled"],
        str(state["ExitCode"]),
    )
    prove(f"within the {grace} s that the pod has", seconds < grace, f"{seconds:.1f} s, {hook} of them the hook's")
    prove(
        "under 8 clients, with 0 requests lost and 0 answered wrongly",
        (load.lost, load.wrong) == (0, 0) and load.answered > 100,
        f"{load.answered} answered, {load.lost} lost {load.reasons[:1]}",
    )


def run(arguments: argparse.Namespace) -> None:
    # Another user's containers have a network of their own: no address of a pod is one of this machine, and this machine
    # has none there.
    if os.geteuid() != 0:
        raise CannotRun("podman does not run as root here, so that nobody outside of a pod reaches it")
    for program in ("podman", "kubectl"):
        if not shutil.which(program):
            raise CannotRun(f"{program} is not installed")
    server = pathlib.Path(arguments.server).resolve()
    with tempfile.TemporaryDirectory(prefix="play-kube.") as temporary:
        folder = pathlib.Path(temporary)
        podman = Podman(folder)
        try:
            make_image(podman, server, folder)
            podman.choose_runtime()
            # The pod reaches this script at the address that its network has here.
            network = json.loads(podman.run("network", "inspect", "podman").stdout)[0]
            bucket = Bucket()
            uri = f"http://{network['subnets'][0]['gateway']}:{bucket.server_port}/best.onnx"
            prove_wrong_digest(podman, folder, uri)
            prove_pod(podman, folder, bucket, uri)
        finally:
            clear(podman)
            podman.run("rmi", "--all", "--force", check=False)


def in_the_care_of_a_reaper(work) -> int:
    """Runs `work` in a child, and reaps what it orphans: in a container, often nobody else does.

    A monitor of podman's that nobody reaps looks as if it ran, and podman waits for it in vain.
    """
    pr_set_child_subreaper = 36
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.waitstatus_to_exitcode(status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="target/debug/model-serving", help="the program that the image is made of")
    arguments = parser.parse_args()

    def work() -> int:
        try:
            run(arguments)
        except CannotRun as reason:
            print(f"SKIPPED: {reason}; the pod of the CPU overlay was not run")
            return 0
        except Failed as broken:
            print(broken, file=sys.stderr)
            return 1
        return 0

    return in_the_care_of_a_reaper(work)


if __name__ == "__main__":
    sys.exit(main())
