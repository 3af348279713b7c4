"""Clients: one that behaves, and those that the server must bear. They speak to this machine only."""

import collections
import contextlib
import dataclasses
import json
import socket
import threading
import time

JSON, RAW = "application/json", "application/octet-stream"
# The longest that anything is waited for.
PATIENCE = 60
# What a client that does not read lets the system take for it.
SMALL_BUFFER = 4096
# Between two requests of the client that behaves.
PAUSE = 0.01


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def closes(self):
        return self.headers.get("connection", "").lower() == "close"

    def json(self):
        return json.loads(self.body)


def post(body, *, path="/predict", form=JSON, accept=None, shape=None, deadline_ms=None):
    """The bytes of a request."""
    if not isinstance(body, bytes):
        body = json.dumps(body, separators=(",", ":")).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: trust", f"Content-Type: {form}", f"Content-Length: {len(body)}"]
    if accept:
        lines.append(f"Accept: {accept}")
    if shape:
        lines.append("X-Tensor-Shape: " + ",".join(map(str, shape)))
    if deadline_ms:
        lines.append(f"X-Request-Timeout-Ms: {deadline_ms}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: trust\r\n\r\n".encode()


def connect(port, receive_buffer=None, timeout=PATIENCE):
    stream = socket.socket()
    stream.settimeout(timeout)
    if receive_buffer:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    stream.connect(("127.0.0.1", port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


class Connection:
    """A kept-alive connection with one request after the other."""

    def __init__(self, port, receive_buffer=None, timeout=PATIENCE):
        self.stream = connect(port, receive_buffer, timeout)
        self.buffer = bytearray()

    def ask(self, request):
        self.stream.sendall(request)
        return self.read()

    def read(self, bytes_per_second=None):
        """One answer; `bytes_per_second` is how fast it is read, at most."""
        started = time.monotonic()
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            self._more(65536)
        first, *lines = bytes(self.buffer[:end]).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        whole = end + 4 + int(headers.get("content-length", 0))
        while len(self.buffer) < whole:
            self._more(1 << 20 if bytes_per_second is None else bytes_per_second // 100)
            if bytes_per_second:
                ahead = len(self.buffer) / bytes_per_second - (time.monotonic() - started)
                time.sleep(max(ahead, 0))
        answer = Answer(int(first.split(" ")[1]), headers, bytes(self.buffer[end + 4 : whole]))
        del self.buffer[:whole]
        return answer

    def _more(self, size):
        data = self.stream.recv(size)
        if not data:
            raise EOFError(f"the connection ended after {len(self.buffer)} bytes")
        self.buffer += data

    def close(self):
        self.stream.close()


def ask(port, request, timeout=PATIENCE):
    """One request on a connection of its own."""
    connection = Connection(port, timeout=timeout)
    with contextlib.closing(connection):
        return connection.ask(request)


class Bystander:
    """Another client, which asks for something small all the time. Each answer must be a 200, and right."""

    def __init__(self, port, request, is_right):
        self.port, self.request, self.is_right = port, request, is_right
        self.seen = collections.Counter()
        self.slowest = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(PATIENCE)

    def _work(self):
        connection = None
        while not self._stop.is_set():
            asked = time.monotonic()
            try:
                connection = connection or Connection(self.port)
                answer = connection.ask(self.request)
                right = answer.status != 200 or self.is_right(answer)
                self.seen[answer.status if right else "wrong"] += 1
                closes = answer.closes
            except (OSError, EOFError) as error:
                self.seen[type(error).__name__] += 1
                closes = True
            self.slowest = max(self.slowest, time.monotonic() - asked)
            if closes and connection:
                connection.close()
                connection = None
            self._stop.wait(PAUSE)

    @property
    def was_served(self):
        return set(self.seen) == {200}

    def __str__(self):
        return f"{statuses(self.seen)}, slowest {self.slowest:.2f} s"


class Hogs:
    """Clients that ask and do not read. They go away at the end of the block."""

    def __init__(self, port, count, request):
        self.port, self.count, self.request = port, count, request
        self.streams = []
        self.lost = 0

    def __enter__(self):
        for _ in range(self.count):
            try:
                stream = connect(self.port, SMALL_BUFFER)
                self.streams.append(stream)
                stream.sendall(self.request)
            except OSError:
                self.lost += 1
        return self

    def __exit__(self, *_):
        for stream in self.streams:
            stream.close()

    def statuses(self):
        """The statuses that they have been answered with, by the first bytes of what has come."""
        seen = collections.Counter()
        if self.lost:
            seen["lost"] = self.lost
        for stream in self.streams:
            stream.setblocking(False)
            try:
                head = stream.recv(16, socket.MSG_PEEK)
                seen[int(head.split(b" ")[1]) if head else "closed"] += 1
            except BlockingIOError:
                seen["waits"] += 1
            except OSError:
                seen["lost"] += 1
        return seen


def statuses(seen):
    return ", ".join(f"{count} x {status}" for status, count in sorted(seen.items(), key=str)) or "none"


def has_5xx(seen):
    return any(isinstance(status, int) and status >= 500 for status in seen)
