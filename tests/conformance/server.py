"""The server under test: one program, one model, ended by whoever started it.

Invariant: only the process that was started here is ever signalled.
"""

import http.client
import json
import os
import queue
import subprocess
import threading
import urllib.parse

# What one start or one answer may take on a busy machine, in seconds.
PATIENCE = 120

# Variables that would configure the server under test.
_OURS = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")


class Refused(Exception):
    """The server did not start; the message is what it said on standard error."""


class Died(Exception):
    """The server ended in a way that nobody asked for."""


class Answer:
    """Status, headers and body of one answer."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def error(self):
        """The code and the sentence of a refusal, as far as there are any."""
        try:
            answer = json.loads(self.body)
            return answer["code"], answer["error"]
        except (ValueError, KeyError, TypeError):
            return "no code", repr(self.body[:80])


class Server:
    """A running server; a context manager that stops it and says how it ended."""

    def __init__(self, binary, library, model, *flags):
        command = [str(binary), "--host", "127.0.0.1", "--port", "0", "--device", "cpu"]
        command += ["--onnxruntime", str(library), "--model", str(model), *flags]
        environment = {name: os.environ[name] for name in _OURS if name in os.environ}
        self.log = []
        self._events = queue.SimpleQueue()
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        # The log is read to its end, so that the server never meets a full pipe.
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._complaints = []
        self._complaint_reader = threading.Thread(target=self._read_complaints, daemon=True)
        self._reader.start()
        self._complaint_reader.start()
        try:
            self.address = self._await_ready()
        except BaseException:
            self._end()
            raise
        self._connection = None

    def _read_log(self):
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"message": line.decode(errors="replace").strip()}
            self.log.append(event)
            self._events.put(event)
        self._events.put(None)

    def _read_complaints(self):
        self._complaints = self._process.stderr.read().decode(errors="replace").strip().splitlines()

    def _await_ready(self):
        address = None
        while True:
            try:
                event = self._events.get(timeout=PATIENCE)
            except queue.Empty:
                raise Died(f"no answer to a start within {PATIENCE} s") from None
            if event is None:
                self._explain_end()
            if event["message"] == "listening":
                address = event["address"]
            if event["message"] == "ready":
                return address

    def _explain_end(self):
        code = self._process.wait(PATIENCE)
        self._complaint_reader.join(PATIENCE)
        complaint = " / ".join(self._complaints)
        if code != 1:
            raise Died(f"the start ended with exit code {code}: {complaint}")
        if len(self._complaints) != 1:
            raise Died(f"a refused start printed {len(self._complaints)} lines instead of one: {complaint}")
        raise Refused(complaint)

    def request(self, method, path, body=None, headers=None, connection=None):
        """One exchange, over the server's own connection here unless another is given."""
        if connection is None:
            if self._connection is None:
                self._connection = self.connect()
            connection = self._connection
        try:
            connection.request(method, path, body=body, headers=headers or {})
            return Answer(connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            # A server that died is told apart from one that merely hung up.
            try:
                code = self._process.wait(0.5)
            except subprocess.TimeoutExpired:
                raise Died(f"no answer: {error!r}") from None
            raise Died(f"the server ended with exit code {code} instead of answering") from None

    def connect(self):
        """A connection for one thread."""
        host, port = self.address.rsplit(":", 1)
        return http.client.HTTPConnection(host, int(port), timeout=PATIENCE)

    def predict(self, body, content_type, raw_output=None, shape=None, connection=None):
        """One prediction; `raw_output` names the one output that is to come raw."""
        headers = {"Content-Type": content_type}
        path = "/predict"
        if raw_output is not None:
            headers["Accept"] = "application/octet-stream"
            path += "?outputs=" + urllib.parse.quote(raw_output, safe="")
        if shape is not None:
            headers["X-Tensor-Shape"] = ",".join(map(str, shape))
        return self.request("POST", path, body, headers, connection)

    def stop(self):
        """Asks the server to stop, and raises `Died` unless it does so cleanly."""
        if self._connection is not None:
            self._connection.close()
        self._process.terminate()
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Died(f"no end within {PATIENCE} s of SIGTERM") from None
        if code != 0:
            raise Died(f"exit code {code} after SIGTERM")

    def _end(self):
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        self._complaint_reader.join()
        self._process.stdout.close()
        self._process.stderr.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, _error, _trace):
        try:
            if kind is None:
                self.stop()
        finally:
            self._end()
