"""A server as its users start it, on a free port of this machine, and the memory that it holds."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = ROOT / ".onnxruntime/libonnxruntime.so"
MIB = 1 << 20
READY_SECONDS = 180
STOP_SECONDS = 30
# A server that takes more is ended, for the sake of whoever else works on this machine.
CEILING = 6 << 30
# Between two looks at a server's memory, and at its log while it starts.
POLL_SECONDS, START_POLL_SECONDS = 0.01, 0.002


class Failed(Exception):
    """The server did not do what a case needs in order to be one."""


class Server:
    """A running server. `limit` is how long it may take to be ready."""

    def __init__(self, program, model, *flags, limit=READY_SECONDS):
        self._home = tempfile.TemporaryDirectory()
        self._log = open(f"{self._home.name}/log", "w+b")
        command = [program, "--model", model, "--host", "127.0.0.1", "--port", "0", "--onnxruntime", LIBRARY, *flags]
        # No setting of the caller's may change what is measured, and nothing may be left in the caller's home.
        environment = {"PATH": os.environ["PATH"], "HOME": self._home.name, "TMPDIR": self._home.name}
        self.highest = 0
        self.was_ended = False
        started = time.monotonic()
        self.process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._watch = threading.Thread(target=self._guard, daemon=True)
        self._watch.start()
        try:
            self.port = int(self._wait_for("listening", limit)["address"].rpartition(":")[2])
            self._wait_for("ready", limit)
        except BaseException:
            self.end()
            raise
        self.seconds_to_ready = time.monotonic() - started

    def _guard(self):
        while self.process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                self.highest = max(self.highest, self.memory("VmRSS"))
                if self.highest > CEILING:
                    self.was_ended = True
                    self.process.kill()
            time.sleep(POLL_SECONDS)

    def log(self):
        lines = pathlib.Path(self._log.name).read_bytes().splitlines()
        return [json.loads(line) if line.startswith(b"{") else {"message": line.decode()} for line in lines]

    def _wait_for(self, message, limit):
        deadline = time.monotonic() + limit
        while True:
            ended = self.process.poll() is not None
            for line in self.log():
                if line.get("message") == message:
                    return line
            if ended:
                raise Failed(f"the server did not start: {self.how_it_ended()}")
            if time.monotonic() > deadline:
                raise Failed(f"not {message} after {limit} s")
            time.sleep(START_POLL_SECONDS)

    def how_it_ended(self):
        code = self.process.poll()
        if code is None:
            return "it runs"
        if self.was_ended:
            return f"ended by this script at {CEILING / MIB:.0f} MiB"
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"exit code {code}, {self.log()[-1:]}"

    def memory(self, figure):
        """A figure of /proc/PID/status in bytes: VmRSS now, VmHWM at its highest."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{figure}:\s+(\d+) kB", text, re.MULTILINE)
        if not found:
            raise ValueError(f"no {figure}")
        return int(found[1]) * 1024

    def cpu_seconds(self, without):
        """The time that its threads have had on CPUs but those whose names begin so; counted in nanoseconds."""
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
        tasks = [task for task in tasks if not (task / "comm").read_text().startswith(without)]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def forget_peak(self):
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        self.highest = 0

    def peak(self):
        """The most that it has held since it was last told to forget, also where it has ended since."""
        try:
            return max(self.memory("VmHWM"), self.highest)
        except (OSError, ValueError):
            return self.highest

    def fall_to(self, most, seconds):
        """How long it takes until it holds no more than `most`, or nothing, and what it held at last."""
        started = time.monotonic()
        while True:
            try:
                held = self.memory("VmRSS")
            except (OSError, ValueError):
                return None, self.highest
            passed = time.monotonic() - started
            if held <= most:
                return passed, held
            if passed > seconds:
                return None, held
            time.sleep(POLL_SECONDS)

    def stop(self):
        """Asks it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._watch.join()
        self._log.close()
        self._home.cleanup()


@contextlib.contextmanager
def serving(program, model, *flags, limit=READY_SECONDS):
    server = Server(program, model, *flags, limit=limit)
    try:
        yield server
    finally:
        server.end()
