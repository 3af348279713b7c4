"""Cases of memory: what is held is bounded, is given back, and costs nobody else an answer."""

import time

import client
import numpy as np
import subjects
from process import MIB, serving

# Above the limit that the server was given, while a case lasts.
MARGIN = 64 * MIB
# Above what it held before, once the clients have gone for so long.
REST, REST_SECONDS = 32 * MIB, 10
GIB = 1 << 30
# How long clients do not read.
HOLD_SECONDS = 6
# An answer that refuses must not take long: nothing was computed.
QUICK_SECONDS = 5


class Held:
    """The memory of a server from now on, and another client of it meanwhile."""

    def __init__(self, trust, what, server, limit, request, is_right):
        self.trust, self.what, self.server, self.limit = trust, what, server, limit
        self.request, self.is_right = request, is_right

    def __enter__(self):
        # What a first answer takes is no part of the case.
        for _ in range(20):
            client.ask(self.server.port, self.request)
        self.before = self.server.memory("VmRSS")
        self.server.forget_peak()
        self.bystander = client.Bystander(self.server.port, self.request, self.is_right)
        self.bystander.__enter__()
        return self

    def __exit__(self, kind, *_):
        took, held = self.server.fall_to(self.before + REST, REST_SECONDS)
        self.bystander.__exit__()
        if kind is not None:
            return
        add = self.trust.add
        over = self.server.peak() - self.before
        add(
            f"{self.what}: peak above the start",
            f"<= {mib(self.limit + MARGIN)}",
            mib(over) + ("" if self.server.process.poll() is None else f"; {self.server.how_it_ended()}"),
            over <= self.limit + MARGIN and self.server.process.poll() is None,
        )
        back = f"{mib(held - self.before)} after {took or REST_SECONDS:.1f} s"
        add(
            f"{self.what}: above the start once the clients are gone",
            f"<= {mib(REST)} in {REST_SECONDS} s",
            back,
            took is not None,
        )
        add(f"{self.what}: another client meanwhile", "every answer 200", self.bystander, self.bystander.was_served)

    def statuses(self, seen, allowed="no 5xx"):
        """What those were answered who caused it."""
        wanted = {"no 5xx": lambda: not client.has_5xx(seen) and "lost" not in seen, "4xx": lambda: only_4xx(seen)}
        self.trust.add(f"{self.what}: their statuses", allowed, client.statuses(seen), wanted[allowed]())


def mib(size):
    return f"{size / MIB:.0f} MiB"


def only_4xx(seen):
    return all(isinstance(status, int) and 400 <= status < 500 for status in seen)


def row(length):
    """A row of `length` small whole numbers."""
    return (np.arange(length) % 100).astype(np.float32)


def wide(length):
    """A request whose raw answer is a thousand times as long."""
    values = row(length)
    return client.post(values.tobytes(), form=client.RAW, accept=client.RAW, shape=(1, length))


def is_widened(answer, length):
    expected = np.outer(row(length), subjects.widening()).astype(np.float32)
    return answer.body == expected.tobytes()


def is_small_right(answer):
    return is_widened(answer, 1)


def unread(trust):
    """1: answers that nobody reads, under a small limit."""
    model = subjects.widen(trust.folder)
    limit = 64 * MIB
    with serving(trust.program, model, "--max-inflight-bytes", "64MiB") as server:
        with Held(trust, "400 unread answers of 4 MB, limit 64 MiB", server, limit, wide(1), is_small_right) as held:
            with client.Hogs(server.port, 400, wide(1000)) as hogs:
                time.sleep(HOLD_SECONDS)
                held.statuses(hogs.statuses())


def unread_by_default(trust):
    """2: the same by default, with larger answers."""
    model = subjects.widen(trust.folder)
    with serving(trust.program, model) as server:
        with Held(trust, "60 unread answers of 40 MB, defaults", server, GIB, wide(1), is_small_right) as held:
            with client.Hogs(server.port, 60, wide(10_000)) as hogs:
                time.sleep(HOLD_SECONDS)
                held.statuses(hogs.statuses())


def refused(trust):
    """3: answers that are larger than any may be."""
    model = subjects.widen(trust.folder)
    for what, length in (("400 MB", 100_000), ("2 GB", 500_000)):
        with serving(trust.program, model) as server:
            with Held(trust, f"an answer of {what}, which is too large", server, GIB, wide(1), is_small_right) as held:
                ask_all(held, server, [wide(length)])


def ask_all(held, server, requests, connections=1):
    """Sends them, some at a time; each must be refused as the client's affair, and soon."""
    seen, slowest = [], 0.0
    for first in range(0, len(requests), connections):
        part = requests[first : first + connections]
        asked = time.monotonic()
        open_ones = []
        try:
            for request in part:
                open_ones.append(client.Connection(server.port))
                open_ones[-1].stream.sendall(request)
        except OSError as error:
            seen.append(type(error).__name__)
        for connection in open_ones:
            try:
                seen.append(connection.read().status)
            except (OSError, EOFError) as error:
                seen.append(type(error).__name__)
            connection.close()
            slowest = max(slowest, time.monotonic() - asked)
    counted = {status: seen.count(status) for status in seen}
    held.statuses(counted, "4xx")
    held.trust.add(
        f"{held.what}: slowest refusal", f"<= {QUICK_SECONDS} s", f"{slowest:.2f} s", slowest <= QUICK_SECONDS
    )


def size_by_value(trust):
    """4: sixty bytes that ask for gigabytes."""
    small = client.post({"inputs": [[3]]})
    cases = (
        ("an output of 2 GiB by its value", subjects.fill, 1 << 31, lambda answer: rows(answer) == [[7, 7, 7]]),
        ("a tensor of 2 GiB inside, by a value", subjects.scratch, 1 << 29, lambda answer: rows(answer) == [[1.0]]),
    )
    for what, make, size, is_right in cases:
        one = client.post({"inputs": [[size]]})
        two = client.post({"inputs": [[size], [size]]})
        with serving(trust.program, make(trust.folder)) as server:
            with Held(trust, what, server, GIB, small, is_right) as held:
                ask_all(held, server, [one, one, two])
            if server.process.poll() is None:
                with Held(trust, f"{what}, four at once", server, GIB, small, is_right) as held:
                    ask_all(held, server, [one] * 4, connections=4)
            if server.process.poll() is None:
                status = client.ask(server.port, client.get("/health")).status
                trust.add(f"{what}: /health afterwards", "200", status, status == 200)


def rows(answer):
    return answer.json()["outputs"]["y"]


def merged(trust):
    """5: of a batch that clients share, one does not read."""
    model = subjects.widen(trust.folder)
    flags = ["--instances", "1", "--max-batch-size", "32", "--max-queue-delay", "500ms"]
    with serving(trust.program, model, *flags) as server:
        for _ in range(20):
            client.ask(server.port, wide(1))
        before = server.memory("VmRSS")
        executions = executed(server)
        connections = [client.Connection(server.port, client.SMALL_BUFFER if n == 0 else None) for n in range(32)]
        for connection in connections:
            connection.stream.sendall(wide(1000))
        right = sum(is_widened(connection.read(), 1000) for connection in connections[1:])
        executions = executed(server) - executions
        most = before + 4_000_000 + REST
        took, held = server.fall_to(most, REST_SECONDS)
        trust.add(
            f"32 raw answers of 4 MB out of {executions:.0f} executions, one unread: above the start",
            f"<= {mib(most - before)} in {REST_SECONDS} s",
            mib(held - before),
            took is not None,
        )
        right += is_widened(connections[0].read(), 1000)
        trust.add("32 raw answers of 4 MB, one read late: right", "32", right, right == 32)
        for connection in connections:
            connection.close()


def executed(server):
    return metric(server, "ml_executed_batch_size_count")


def metric(server, name):
    """The sum of the series of a metric."""
    text = client.ask(server.port, client.get("/metrics")).body.decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines()]
    return sum(float(value) for series, value in lines if series == name or series.startswith(name + "{"))


def empty_strings(trust):
    """6: strings that are smaller on the wire than in memory."""
    model = subjects.texts(trust.folder)
    raw, quoted = 16 << 20, (64 * MIB - 100) // 3
    requests = {
        "raw": client.post(bytes(4 * raw), form=client.RAW, shape=(1, raw)),
        "JSON": client.post(b'{"inputs":[[' + b",".join([b'""'] * quoted) + b"]]}"),
    }
    small = client.post({"inputs": [["a", "b"]]})
    for form, request in requests.items():
        with serving(trust.program, model, "--max-inflight-bytes", "256MiB") as server:
            what = f"64 MiB of empty strings in {form}, limit 256 MiB"
            with Held(trust, what, server, 256 * MIB, small, lambda answer: rows(answer) == [["a", "b"]]) as held:
                connections = []
                for _ in range(2):
                    connections.append(client.Connection(server.port))
                    try:
                        connections[-1].stream.sendall(request)
                    except OSError:
                        # It may have answered before the last byte.
                        continue
                seen = []
                for connection in connections:
                    try:
                        seen.append(connection.read().status)
                    except (OSError, EOFError) as error:
                        seen.append(type(error).__name__)
                    connection.close()
                held.statuses({status: seen.count(status) for status in seen})
