"""model-serving on Ray Serve: each replica runs the program as a process of its own and passes requests on to it.

Ray Serve places replicas on nodes, counts requests, adds and removes replicas, and replaces those that fail. The
program decodes, checks, batches and executes. Start it on a running Ray:

    serve run serve_model:app program=/usr/local/bin/model-serving model=/models/best.onnx

docs/ray.md has the arguments, and what happens when something fails.
"""

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import threading
import time
import urllib.parse

import aiohttp
import yarl
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

# Headers that are about one connection, and those that each side makes by itself.
OWN = {
    *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    *("host", "content-length", "date", "server"),
}
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


class Program:
    """The server's process. It ends with this one, however this one ends."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.address = ""
        self.process: subprocess.Popen | None = None
        # Whether it was told to end; else its end is a failure.
        self.stopping = False
        self._known = threading.Event()
        self._failure = ""
        # A thread of its own starts the process and stays with it: the kernel's signal for a parent's death goes by the
        # thread that started the child, and that thread must not end before the child does.
        self._thread = threading.Thread(target=self._run, args=(command, environment), daemon=True)
        self._thread.start()

    def _run(self, command: list[str], environment: dict[str, str]) -> None:
        parent = os.getpid()

        def follow_the_parent() -> None:
            # Nobody is left to answer to, and one that hangs would not take a gentler signal.
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        try:
            self.process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=follow_the_parent
            )
        except OSError as error:
            self._failure = f"{command[0]} cannot be started: {error}"
            self._known.set()
            return
        # Its log is this replica's, which Ray keeps. The line about the address is the first of use.
        for line in self.process.stdout:
            print(line, end="", flush=True)
            if not self.address and '"listening"' in line:
                self.address = json.loads(line)["address"]
                self._known.set()
        status = self.process.wait()
        self._failure = f"model-serving ended with {status}; its log says why"
        self._known.set()
        if not self.stopping and self.address:
            # Ray Serve replaces an actor that is gone at once, and asks a sick one three times first. The time is for
            # those whose requests just broke, so that they are told to try again.
            time.sleep(0.5)
            os._exit(1)

    def url(self, timeout: float) -> str:
        """Where it listens, once it does."""
        if not self._known.wait(timeout):
            self._failure = f"model-serving does not listen after {timeout:.0f} s"
        if self._failure:
            raise RuntimeError(self._failure)
        return f"http://{self.address}"

    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def stop(self, patience: float) -> None:
        """Ends the process: it answers what it accepted, and is killed if that takes too long."""
        self.stopping = True
        if not self.running():
            return
        self.process.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()


@serve.deployment
class ModelServer:
    """A replica."""

    async def __init__(
        self, command: list[str], environment: dict[str, str], start_timeout: float, stop_timeout: float
    ):
        self.stop_timeout = stop_timeout
        self.program = Program(command, os.environ | environment)
        # Idle connections end here before they end there, so that no request meets one that is about to be closed.
        self.client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers={"Accept", "Accept-Encoding", "Content-Type", "User-Agent"},
        )
        try:
            deadline = time.monotonic() + start_timeout
            self.url = await asyncio.to_thread(self.program.url, start_timeout)
            while await self.status("/ready") != 200:
                if not self.program.running():
                    raise RuntimeError("model-serving ended before it was ready; its log says why")
                if time.monotonic() > deadline:
                    raise RuntimeError(f"model-serving is not ready after {start_timeout:.0f} s")
                await asyncio.sleep(0.05)
        except BaseException:
            self.program.stop(0)
            raise

    async def status(self, path: str) -> int:
        """The status of a probe; 0 if there is no answer."""
        try:
            async with self.client.get(self.url + path, timeout=aiohttp.ClientTimeout(total=4)) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    async def check_health(self) -> None:
        """Ray Serve replaces the replica when this has failed three times: when a restart is the cure."""
        status = await self.status("/health")
        if status != 200:
            raise RuntimeError(f"GET /health of model-serving: {status or 'no answer'}")

    async def __call__(self, request: Request) -> Response:
        """Passes a request on, and its answer back, as they are."""
        # Below the application's own prefix the paths are the server's.
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        target = self.url + urllib.parse.quote(path or "/", safe="/:")
        if request.scope["query_string"]:
            target += "?" + request.scope["query_string"].decode("latin-1")
        headers = [(name, value) for name, value in request.headers.items() if name not in OWN]
        try:
            async with self.client.request(
                request.method,
                yarl.URL(target, encoded=True),
                headers=headers,
                data=await request.body(),
                allow_redirects=False,
            ) as answer:
                response = Response(await answer.read(), answer.status)
                kept = [(name.lower(), value) for name, value in answer.raw_headers if name.lower().decode() not in OWN]
                length = [header for header in response.raw_headers if header[0] == b"content-length"]
                response.raw_headers = kept + length
                return response
        except aiohttp.ClientError:
            body = {"error": "the server of this replica is gone; try again", "code": "not_ready"}
            return JSONResponse(body, 503, {"Retry-After": "1"})

    def __del__(self):
        # Ray Serve calls this when it removes the replica, after the last request was answered.
        program = getattr(self, "program", None)
        if program is not None:
            program.stop(self.stop_timeout)


def app(args: dict[str, str]) -> serve.Application:
    """The application, from the arguments of `serve run` or of `args` in a Serve configuration file."""
    known = {
        "program": "model-serving",
        "model": "models/best.onnx",
        "flags": "",
        "cpus": "1",
        "gpus": "0",
        "min_replicas": "1",
        "max_replicas": "4",
        "target_ongoing_requests": "16",
        "max_ongoing_requests": "128",
        "upscale_delay_s": "10",
        "downscale_delay_s": "300",
        "metrics_interval_s": "5",
        "start_timeout_s": "300",
    }
    unknown = set(args) - set(known)
    if unknown:
        raise ValueError(f"unknown arguments: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    given = {name: str(args.get(name, default)) for name, default in known.items()}
    cpus, gpus = float(given["cpus"]), float(given["gpus"])
    environment = {
        # Replicas share the node, and each takes what Ray counts as its own.
        "INSTANCES": str(max(1, int(cpus))),
        "INTRA_OP_THREADS": "1",
        "DEVICE": "cuda" if gpus else "cpu",
        # A variable of the node must not move it to a port that another replica has.
        "ADMIN_PORT": "",
    }
    if gpus:
        # Instances on a GPU are no matter of CPUs.
        environment = {name: environment[name] for name in ("DEVICE", "ADMIN_PORT")}
    command = [given["program"], "serve", "--model", given["model"], "--host", "127.0.0.1", "--port", "0"]
    command += ["--log-format", "json", "--log-level", "info", *given["flags"].split()]
    interval = float(given["metrics_interval_s"])
    deployment = ModelServer.options(
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        # Beyond this, requests wait in Ray's proxies. It must leave the program enough of them to fill batches.
        max_ongoing_requests=int(given["max_ongoing_requests"]),
        autoscaling_config={
            "min_replicas": int(given["min_replicas"]),
            "max_replicas": int(given["max_replicas"]),
            "target_ongoing_requests": float(given["target_ongoing_requests"]),
            "upscale_delay_s": float(given["upscale_delay_s"]),
            "downscale_delay_s": float(given["downscale_delay_s"]),
            "metrics_interval_s": interval,
            "look_back_period_s": 3 * interval,
        },
        health_check_period_s=5,
        health_check_timeout_s=5,
        # More than --drain-timeout; Ray kills the actor after it.
        graceful_shutdown_timeout_s=20,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(command, environment, float(given["start_timeout_s"]), 10)
