#!/usr/bin/env python3
"""Proves the example on a Ray of its own: `make ray-test`. Each step prints what it saw.

Clients, Ray and the servers use the loopback interface, apart from a port of each replica that Ray Serve opens on all. All
of it ends with this program.
"""

import argparse
import asyncio
import contextlib
import os
import pathlib
import secrets
import signal
import socket
import sys
import tempfile
import time

# Before Ray is imported, which reads them then.
os.environ.update(
    # It reports nothing to anybody.
    RAY_USAGE_STATS_ENABLED="0",
    # It listens on the loopback interface only; the variable is named after where that is the default.
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    # Ray ends what a dead worker leaves behind. Here it does not: when Ray is killed as well, nobody else would.
    RAY_process_group_cleanup_enabled="false",
    # A token of its own, which would else be made and kept in the home directory.
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
)

import aiohttp  # noqa: E402
import ray  # noqa: E402
import serve_model  # noqa: E402
from ray import serve  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SAMPLES = ROOT / "models/samples"
JSON = {"Content-Type": "application/json"}
MOST = 3
# Seconds for whatever has to happen on a machine that others use as well.
PATIENCE = 120
# What tells a client to try again: the replica, or Ray's way to it, was gone.
AGAIN = {429, 500, 502, 503, 504}


def processes(program: pathlib.Path) -> dict[int, int]:
    """The server's processes on this machine that this test's Ray started: process and parent."""
    found = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "exe").resolve() == program and b"--port\x000" in (entry / "cmdline").read_bytes():
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                # The parent of one whose replica is gone is another one.
                environment = (entry / "environ").read_bytes()
                if f"MODEL_SERVING_TEST={os.getpid()}".encode() in environment.split(b"\0"):
                    found[int(entry.name)] = parent
    return found


async def until(what: str, condition, patience: float = PATIENCE) -> float:
    """Waits for an event, and says how long it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > patience:
            raise AssertionError(f"not within {patience:.0f} s: {what}")
        await asyncio.sleep(0.1)
    took = time.monotonic() - began
    print(f"  {what} ({took:.1f} s)", flush=True)
    return took


def replicas() -> dict[str, int]:
    """Replicas by state, as Ray Serve counts them."""
    deployment = serve.status().applications["default"].deployments["ModelServer"]
    return {str(getattr(state, "value", state)): count for state, count in deployment.replica_states.items()}


def running() -> int:
    return replicas().get("RUNNING", 0)


class Load:
    """Clients that ask one after the other, and try again as clients should. None may come away without an answer."""

    def __init__(self, url: str, clients: int):
        self.url = url
        self.answered = self.retried = self.lost = self.wrong = 0
        self.reasons: dict[str, int] = {}
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(clients)]

    async def _client(self, number: int) -> None:
        digit = 7
        body = (SAMPLES / f"digit-{digit}.json").read_bytes()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
            while not self._stop.is_set():
                for attempt in range(40):
                    try:
                        async with client.post(f"{self.url}/predict", data=body, headers=JSON) as answer:
                            if answer.status == 200:
                                label = (await answer.json())["outputs"]["label"]
                                self.answered += 1
                                self.wrong += label != [digit]
                                break
                            reason = str(answer.status)
                            if answer.status not in AGAIN:
                                self.reasons[reason] = self.reasons.get(reason, 0) + 1
                                self.lost += 1
                                break
                    except (aiohttp.ClientError, TimeoutError) as error:
                        reason = type(error).__name__
                    self.reasons[reason] = self.reasons.get(reason, 0) + 1
                    self.retried += 1
                    await asyncio.sleep(min(0.05 * 2**attempt, 1))
                else:
                    self.lost += 1

    async def more(self, count: int) -> None:
        """Waits for as many further answers: the load goes on."""
        wanted = self.answered + count
        await until(f"{count} more answers under load", lambda: self.answered >= wanted)

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)


async def answers_pass_through(url: str) -> None:
    """What the program answers comes back as it is: bodies, statuses, headers, queries."""
    async with aiohttp.ClientSession() as client:
        sample = (SAMPLES / "digit-7.json").read_bytes()
        async with client.post(f"{url}/predict", data=sample, headers=JSON | {"X-Request-Id": "ray-1"}) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.headers.get("X-Request-Id") == "ray-1", "the answer's X-Request-Id is lost"
            # Ray gives answers an X-Request-Id too, but not this one.
            assert "Server-Timing" in answer.headers, "the answer's Server-Timing is lost"
            assert (await answer.json())["outputs"]["label"] == [7]
        raw = (SAMPLES / "digit-7.f32").read_bytes()
        headers = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
        async with client.post(f"{url}/predict?outputs=label", data=raw, headers=headers) as answer:
            assert await answer.read() == (7).to_bytes(8, "little"), answer.headers
            assert answer.headers["X-Tensor-Shape"] == "1"
        async with client.post(f"{url}/v1/models/digits:predict", data=sample, headers=JSON) as answer:
            assert answer.status == 200, await answer.text()
        async with client.post(f"{url}/predict", data=b"{", headers=JSON) as answer:
            assert (answer.status, (await answer.json())["code"]) == (400, "invalid_request")
        # Without a type the body is JSON; nobody on the way may give it another one.
        async with client.post(f"{url}/predict", data=sample, skip_auto_headers={"Content-Type"}) as answer:
            assert answer.status == 200, await answer.text()
        async with client.get(f"{url}/nowhere") as answer:
            assert (answer.status, (await answer.json())["code"]) == (404, "not_found")
        async with client.get(f"{url}/metrics") as answer:
            assert "ml_predictions_total" in await answer.text()
    print("  predictions, errors, headers and queries pass as they are", flush=True)


async def prove(program: pathlib.Path, url: str) -> None:
    print("one replica", flush=True)
    await until("one replica runs", lambda: running() == 1 and len(processes(program)) == 1)
    await answers_pass_through(url)

    print("scaling up", flush=True)
    load = Load(url, 64)
    await until(f"{MOST} replicas run, each with its process", lambda: running() == MOST == len(processes(program)))
    await load.more(200)

    print("a process is killed under load", flush=True)
    (victim, actor), *_ = processes(program).items()
    os.kill(victim, signal.SIGKILL)
    # At once: failed checks of health would take three times as long.
    await until("its replica is gone", lambda: not pathlib.Path(f"/proc/{actor}").exists(), 5)
    await until(f"{MOST} replicas run again", lambda: running() == MOST == len(processes(program)))
    assert victim not in processes(program)
    await load.more(200)

    print("a replica is killed under load", flush=True)
    (orphan, actor), *_ = processes(program).items()
    os.kill(actor, signal.SIGKILL)
    await until("its process ends too", lambda: orphan not in processes(program), 10)
    await until(f"{MOST} replicas run again", lambda: running() == MOST == len(processes(program)))
    await load.more(200)

    print("a process hangs under load", flush=True)
    (hung, _), *_ = processes(program).items()
    os.kill(hung, signal.SIGSTOP)
    await until("Ray Serve gives it up, and it ends", lambda: hung not in processes(program))
    await until(f"{MOST} replicas run again", lambda: running() == MOST == len(processes(program)))
    await load.more(200)

    await load.stop()
    print(
        f"  {load.answered} answered, {load.retried} tried again {load.reasons}, {load.lost} lost, {load.wrong} wrong",
        flush=True,
    )
    assert load.retried > 0, "nothing broke, so nothing was proved"
    assert (load.lost, load.wrong) == (0, 0)

    print("scaling down", flush=True)
    await until("one replica and one process are left", lambda: running() == 1 == len(processes(program)))
    await answers_pass_through(url)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True, type=pathlib.Path)
    program = parser.parse_args().server.resolve(strict=True)
    library = ROOT / ".onnxruntime/libonnxruntime.so"
    os.environ.update(ORT_DYLIB_PATH=str(library), MODEL_SERVING_TEST=str(os.getpid()))
    # Short, since sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        try:
            ray.init(
                address="local",
                num_cpus=MOST,
                num_gpus=0,
                object_store_memory=80 * 2**20,
                include_dashboard=False,
                log_to_driver=False,
                _temp_dir=folder,
                runtime_env={"env_vars": {"PYTHONPATH": str(pathlib.Path(__file__).parent)}},
            )
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            arguments = {
                **{"program": str(program), "model": str(ROOT / "models/best.onnx"), "cpus": "0.5"},
                **{"max_replicas": str(MOST), "target_ongoing_requests": "4", "max_ongoing_requests": "32"},
                **{"upscale_delay_s": "1", "downscale_delay_s": "5", "metrics_interval_s": "1"},
                **{"start_timeout_s": "60"},
            }
            serve.run(serve_model.app(arguments))
            asyncio.run(prove(program, f"http://127.0.0.1:{port}"))
            print("removing it", flush=True)
            serve.shutdown()
            asyncio.run(until("no process is left", lambda: not processes(program)))
        finally:
            ray.shutdown()
            for left in processes(program):
                os.kill(left, signal.SIGKILL)
    print("ray: proved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
