"""Servers as their users start them, on this machine only and on a free port.

Each is a context manager that stops what it started, its children included, whatever happens meanwhile.
"""

import contextlib
import dataclasses
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time

import machine

LOAD = machine.ROOT / "benches/load"
LIBRARY = machine.ROOT / ".onnxruntime/libonnxruntime.so"
PROGRAM = machine.ROOT / "target/release/model-serving"

READY_SECONDS = 120
STOP_SECONDS = 5
# Between two looks at a server that starts; without a pause the looking would take a CPU from it.
POLL_SECONDS = 0.0005


class Failed(Exception):
    """A server did not start, or gave a wrong answer; there is nothing to measure."""


@dataclasses.dataclass
class Server:
    """Something that answers predictions."""

    name: str
    port: int
    process: subprocess.Popen = dataclasses.field(repr=False)
    # The path that each form of request goes to.
    routes: dict

    def ask(self, request):
        """The answer to one request, by which a server is checked."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            body = request.path.read_bytes()
            connection.request("POST", self.routes[request.form], body, request.headers())
            answer = connection.getresponse()
            return answer.status, answer.read()

    def check(self, request):
        """Stops the whole run if the answer is wrong."""
        status, body = self.ask(request)
        complaint = f"status {status}: {body[:200]!r}" if status != 200 else request.check(body)
        if complaint:
            raise Failed(f"{self.name}, {request.path.name}: {complaint}")

    def cpu_seconds(self):
        return machine.cpu_seconds(self.process.pid)


def environment():
    """No setting of the caller's may change what is measured."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "PATH", "TMPDIR") if name in os.environ}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def started(command, **streams):
    """A process in a group of its own, which is stopped at the end."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} | streams
    process = subprocess.Popen(
        [str(word) for word in command], cwd=machine.ROOT, env=environment(), start_new_session=True, **streams
    )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process):
    for stop in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            # Whoever was put to sleep cannot hear that it is to stop.
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            break
    # Children that outlived their parent are still in its group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def listening(name, command, port, ready, routes):
    """A server that was told its port, once it is ready."""
    with tempfile.TemporaryFile() as complaints, started(command, stderr=complaints) as process:
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(port, ready):
            if process.poll() is not None or time.monotonic() > deadline:
                complaints.seek(0)
                raise Failed(f"{name} did not start: {complaints.read()[-2000:].decode(errors='replace')}")
            time.sleep(0.05)
        yield Server(name, port, process, routes)


def _answers(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def until_ready(port):
    """Asks as soon as anybody listens, and then again and again; returns the time at which the answer was yes."""
    deadline = time.perf_counter() + READY_SECONDS
    while time.perf_counter() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stream:
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while time.perf_counter() < deadline:
                    stream.sendall(b"GET /ready HTTP/1.1\r\nHost: bench\r\n\r\n")
                    if stream.recv(4096).startswith(b"HTTP/1.1 200"):
                        return time.perf_counter()
                    time.sleep(POLL_SECONDS)
        except OSError:
            time.sleep(POLL_SECONDS)
    raise Failed("the server was not ready in time")


def command(model, port):
    """How the server is started: as its manual says, and without any tuning."""
    return [PROGRAM, "--model", model, "--host", "127.0.0.1", "--port", port, "--onnxruntime", LIBRARY]


def ours(model):
    port = free_port()
    return listening("model-serving", command(model, port), port, "/ready", {"raw": "/predict", "JSON": "/predict"})


def fastapi(model, *mode):
    port = free_port()
    program = [sys.executable, LOAD / "peers/fastapi_app.py", model, port, *mode]
    name = " ".join(("FastAPI", *mode))
    return listening(name, program, port, "/health", {"raw": "/predict-raw", "JSON": "/predict"})


def lean_fastapi(model):
    return fastapi(model, "lean")


def litserve(model):
    port = free_port()
    program = [sys.executable, LOAD / "peers/litserve_app.py", model, port]
    return listening("LitServe", program, port, "/health", {"JSON": "/predict"})


@contextlib.contextmanager
def asleep(*processes):
    """Peers that do not rest while nobody asks them would take CPU from the others."""
    for process in processes:
        os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)


@contextlib.contextmanager
def beside(program, model):
    """The server, and an empty route in the same process."""
    command = [program, "serve", model, "--", "--onnxruntime", LIBRARY]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None) as process:
        line = _line(process, READY_SECONDS)
        addresses = {name: int(address.rpartition(":")[2]) for name, address in json.loads(line).items()}
        server = Server("model-serving", addresses["server"], process, {"raw": "/predict", "JSON": "/predict"})
        empty = Server("empty route", addresses["empty"], process, {"raw": "/", "JSON": "/"})
        yield server, empty


def _line(process, seconds):
    readable, _, _ = select.select([process.stdout], [], [], seconds)
    line = process.stdout.readline() if readable else b""
    if not line:
        raise Failed(f"{process.args[0]} said nothing")
    return line


def lines(program, *arguments, seconds=600):
    """What a command of the program beside prints until it ends, as objects."""
    command = [program, *arguments]
    with started(command, stdout=subprocess.PIPE, stderr=None) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{arguments[0]} did not end") from None
        if process.returncode:
            raise Failed(f"{arguments[0]} failed with {process.returncode}")
        return [json.loads(line) for line in output.splitlines()]
