"""The stack of docker-compose.yml: brought up, asked, measured and stopped under load."""

import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.parse

import clients
import engine
import standins
from claims import Failed, prove, say
from engine import docker, inspect, timestamps, until
from image import prove_failed_start
from standins import ROOT

PROJECT = f"model-serving-proof-{os.getpid()}"
JSON = {"Content-Type": "application/json"}
DIGIT = (ROOT / "models/samples/digit-7.json").read_bytes()

# The promises in figures.
LATEST_READY, GRACE = 1.0, 10.0


class Stack:
    """The project of docker-compose.yml, on ports that the engine chooses."""

    def __init__(self, image, bases, *files, services=("prometheus", "grafana"), **environment):
        self.compose = [*engine.compose_command(), "--project-name", PROJECT, "--project-directory", str(ROOT)]
        for file in (ROOT / "docker-compose.yml", *files):
            self.compose += ["--file", str(file)]
        text = (ROOT / "docker-compose.yml").read_text()
        references = dict(re.findall(r"\$\{(\w+)_IMAGE:-(\S+)\}", text))
        prometheus = bases.get("prometheus", references["PROMETHEUS"])
        grafana = references["GRAFANA"]
        self.has_grafana = "grafana" in services and standins.can_be_had(grafana)
        self.services = ["api", *(service for service in services if service != "grafana" or self.has_grafana)]
        self.environment = {
            **os.environ,
            "MODEL_SERVING_IMAGE": image,
            "PROMETHEUS_IMAGE": prometheus,
            "API_PORT": "0",
            "PROMETHEUS_PORT": "0",
            "GRAFANA_PORT": "0",
            "LOG_LEVEL": "info",
            "GRAFANA_ADMIN_PASSWORD": "",
            **environment,
        }

    def run(self, *arguments):
        done = subprocess.run([*self.compose, *arguments], env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"'compose {' '.join(arguments)}' failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout.strip()

    def container(self, service):
        return self.run("ps", "--quiet", service)

    def port(self, service, private):
        bindings = inspect(self.container(service))["NetworkSettings"]["Ports"][f"{private}/tcp"]
        return int(next(binding["HostPort"] for binding in bindings if ":" not in binding["HostIp"]))

    def __enter__(self):
        try:
            self.run("up", "--detach", "--no-build", *self.services)
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_):
        self.down()

    def down(self):
        subprocess.run(
            [*self.compose, "down", "--volumes", "--timeout", "1"], env=self.environment, capture_output=True
        )


def ask(port, expression):
    """The result of an expression in Prometheus."""
    status, body = clients.request(port, "GET", f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    answer = json.loads(body)
    if status != 200:
        raise Failed(f"Prometheus refuses '{expression}': {answer.get('error')}")
    return answer["data"]["result"]


def prove_dashboards(port):
    """Every panel of every dashboard must have something to show, but for the GPU's: the stack is the one without.

    tests/suite/monitoring.rs asks the GPU's queries, with a fake of the driver's library.
    """
    for path in sorted((ROOT / "monitoring/dashboards").glob("*.json")):
        if path.stem.endswith("-gpu"):
            continue
        dashboard = json.loads(path.read_text())
        expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
        for expression in expressions:
            filled = expression.replace("$__rate_interval", "20s").replace("$job", "model-serving")
            # As Grafana does for "All"; there is no namespace and no pod here.
            for variable in ("$namespace", "$pod", "$model"):
                filled = filled.replace(variable, ".*")
            until(f"data for the panel's '{filled}'", 60, functools.partial(ask, port, filled))
        prove(f"every one of the {len(expressions)} queries of {path.name} has data", expressions)


def prove_grafana(stack):
    if not stack.has_grafana:
        say(
            "  SKIPPED: Grafana's image cannot be pulled here and Debian has no package of it; its provisioning was not run"
        )
        return
    port = stack.port("grafana", 3000)
    until("Grafana answers", 120, lambda: clients.request(port, "GET", "/api/health")[0] == 200)
    until(
        "its dashboard is there for anyone",
        60,
        lambda: clients.request(port, "GET", "/api/dashboards/uid/model-serving")[0] == 200,
    )
    say("  ok: Grafana shows its dashboard without a login")
    status, _ = clients.request(port, "POST", "/login", json.dumps({"user": "admin", "password": "admin"}), JSON)
    prove("and has no account with a default password", status == 401, str(status))


def prove_stack(image, bases, row):
    with Stack(image.name, bases) as stack:
        api = stack.container("api")
        until("the API's health state is 'healthy'", 60, lambda: inspect(api)["State"]["Health"]["Status"] == "healthy")
        say("  ok: Docker reports the API as healthy")
        started, ready = timestamps(api, "ready")
        row["ready s"] = (ready - started).total_seconds()
        prove(
            f"from the container's start to ready took at most {LATEST_READY} s",
            row["ready s"] <= LATEST_READY,
            f"{row['ready s']:.3f} s",
        )
        prove_locked_down(api, image.bases["DEBIAN"])
        port = stack.port("api", 8000)
        status, body = clients.request(port, "POST", "/predict", DIGIT, JSON)
        prove(
            "a prediction through the published port is right",
            status == 200 and json.loads(body)["outputs"]["label"] == [7],
            body.decode()[-20:],
        )
        prove_failed_start(
            "a port in use",
            ["8000", "in use"],
            "--network",
            f"container:{api}",
            "--volume",
            f"{ROOT}/models:/app/models:ro",
            image.name,
        )

        prometheus = stack.port("prometheus", 9090)
        until("Prometheus answers", 60, lambda: clients.request(prometheus, "GET", "/-/ready")[0] == 200)
        until("up is 1", 30, lambda: [s["value"][1] for s in ask(prometheus, 'up{job="model-serving"}')] == ["1"])
        say("  ok: Prometheus scrapes the API, up is 1")
        load = clients.Clients(port, 8, DIGIT, [7])
        until(
            "Prometheus counts predictions",
            30,
            lambda: any(float(s["value"][1]) > 100 for s in ask(prometheus, 'ml_predictions_total{status="success"}')),
        )
        say("  ok: Prometheus counts ml_predictions_total")
        prove_dashboards(prometheus)
        prove_grafana(stack)

        load.stopping.set()
        began = time.monotonic()
        docker("stop", api)
        row["stop s"] = time.monotonic() - began
        load.join()
        state = inspect(api)["State"]
        prove(
            "docker stop ends it with code 0",
            state["ExitCode"] == 0 and not state["OOMKilled"],
            f"code {state['ExitCode']}",
        )
        prove(f"within its grace period of {GRACE:.0f} s", row["stop s"] < GRACE, f"{row['stop s']:.2f} s")
        prove(
            "under 8 clients, with no request lost and none answered wrongly",
            (load.lost, load.wrong) == (0, 0),
            f"{load.answered} answered, {load.lost} lost, {load.wrong} wrong {load.reasons[:1]}",
        )
        log = docker("logs", api).stdout.splitlines()
        served = sum('"route":"/predict"' in line and '"status":200' in line for line in log)
        prove(
            "every answer that the server logged arrived",
            0 < served <= load.answered + 1,
            f"{served} logged, {load.answered + 1} arrived",
        )


# A web server of plain HTTP inside the stack, which fetch takes only because the digest is given.
SOURCE = """
services:
  source:
    image: {image}
    entrypoint: [/bin/busybox, httpd, -f, -p, "8080", -h, /models]
    volumes: ["{models}:/models:ro"]
  fetch:
    depends_on: [source]
"""


def prove_fetched(image, bases):
    """The stack with docker-compose.fetch.yml: the model comes before the server, or the server does not come."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Stack(image.name, bases)
        source = pathlib.Path(folder) / "source.yml"
        source.write_text(SOURCE.format(image=plain.environment["PROMETHEUS_IMAGE"], models=ROOT / "models"))
        files = (ROOT / "docker-compose.fetch.yml", source)
        settings = {
            "MODEL_URI": "http://source:8080/best.onnx",
            "MODEL_SHA256": hashlib.sha256((ROOT / "models/best.onnx").read_bytes()).hexdigest(),
        }
        with Stack(image.name, bases, *files, services=(), **settings) as stack:
            port = stack.port("api", 8000)
            until("the fetched model is ready", 30, lambda: clients.request(port, "GET", "/ready")[0] == 200)
            status, body = clients.request(port, "POST", "/predict", DIGIT, JSON)
            prove(
                "a model that was fetched as in docker-compose.fetch.yml is served",
                status == 200 and json.loads(body)["outputs"]["label"] == [7],
            )
        settings["MODEL_SHA256"] = "0" * 64
        try:
            with Stack(image.name, bases, *files, services=(), **settings):
                raise Failed("the stack came up with a model of another digest")
        except Failed as failed:
            # In the words of either generation of Compose.
            told = any(words in str(failed) for words in ("didn't complete successfully", "exited with code 1"))
            prove("with another digest it is not", told, str(failed).splitlines()[-1])


def prove_locked_down(container, debian):
    """What the kernel says of the running process, and not only what was asked for."""
    look = ["run", "--rm", "--pid", f"container:{container}", "--cap-add", "SYS_PTRACE", debian, "cat"]
    status = docker(*look, "/proc/1/status").stdout
    field = dict(line.split(":", 1) for line in status.splitlines())
    prove("the process runs as 65532", field["Uid"].split() == ["65532"] * 4, " ".join(field["Uid"].split()))
    prove("it has no capability and can gain none", int(field["CapEff"], 16) == 0 and int(field["NoNewPrivs"]) == 1)
    mounts = [line.split() for line in docker(*look, "/proc/1/mounts").stdout.splitlines()]
    options = {place: options.split(",") for _, place, _, options, *_ in mounts}
    prove("its root and its models are mounted read-only", "ro" in options["/"] and "ro" in options["/app/models"])
