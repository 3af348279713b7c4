"""Cases of time, all as ratios on the same machine: deadlines under overload, and starts."""

import collections
import contextlib
import itertools
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import time

import client
import memory
import numpy as np
import subjects
from process import MIB, ROOT, Failed, serving

RUN_MS = 10
# Capacity and load take turns, because others may use the machine as well.
SLICES, CAPACITY_SECONDS, LOAD_SECONDS = 4, 1.25, 2.5
OVERLOADS, DEADLINES = (2, 4, 10), (5, 20)
USEFUL, WASTED = 0.95, 0.05
MOST_CONNECTIONS = 1024

# The default bound of a body.
LARGE, REFUSALS = 32 * MIB, 20

# Of a start that takes less than a second, whatever else runs decides the median; the shortest of more is compared.
ROUNDS, ROUNDS_OF_SHORT = 3, 9
# A start that takes so many times as long as another needs no second look.
CLEARLY = 2.5
START_SECONDS = 90


def deadlines(trust):
    """9: more requests than the server can answer in time."""
    flags = ["--instances", "1", "--intra-op-threads", "1"]
    request = np.random.default_rng(1).standard_normal(subjects.MATRIX).astype(np.float32).tobytes()
    length = 16
    for _ in range(3):
        # Its own server measures the model, since another program's sessions may have other settings.
        with serving(trust.program, subjects.slow(trust.folder, length), *flags) as server:
            milliseconds = one_run_ms(server.port, raw(request), 0)
        length = max(round(length * RUN_MS / milliseconds), 1)
    with serving(trust.program, subjects.slow(trust.folder, length), *flags) as server:
        run_ms = one_run_ms(server.port, raw(request), 0.5)
        for times in DEADLINES:
            for overload in OVERLOADS:
                deadline = round(times * run_ms)
                asked = raw(request, deadline)
                capacity, useful, seen, succeeded, executed = [], [], collections.Counter(), 0, 0
                for _ in range(SLICES):
                    capacity.append(closed_loop(server.port, raw(request), 4, CAPACITY_SECONDS))
                    before = counted(server)
                    rate = overload * capacity[-1]
                    came, in_time = open_loop(server.port, asked, rate, LOAD_SECONDS, deadline / 1000)
                    after = counted(server)
                    seen = seen + came
                    useful.append(in_time)
                    succeeded, executed = succeeded + after[0] - before[0], executed + after[1] - before[1]
                capacity.append(closed_loop(server.port, raw(request), 4, CAPACITY_SECONDS))
                # Each slice beside what was possible before and after it.
                ratios = [
                    answers / LOAD_SECONDS / statistics.mean(around)
                    for answers, around in zip(useful, itertools.pairwise(capacity))
                ]
                ratio = statistics.median(ratios)
                what = f"deadline of {times} runs of {run_ms:.0f} ms, {overload} x capacity"
                trust.add(
                    f"{what}: useful / capacity",
                    f">= {USEFUL}",
                    f"{ratio:.2f} ({sum(useful)} useful of {sum(seen.values())}: {client.statuses(seen)};"
                    f" capacity {min(capacity):.0f} to {max(capacity):.0f}/s)",
                    ratio >= USEFUL,
                )
                wasted = max(1 - succeeded / executed, 0) if executed else 1
                trust.add(
                    f"{what}: executed and not answered",
                    f"<= {WASTED:.0%}",
                    f"{wasted:.0%} of {executed:.0f}",
                    wasted <= WASTED,
                )


def refusals(trust):
    """12: requests with bodies of 32 MiB, which are refused because the queue is full."""
    flags = ["--instances", "1", "--max-batch-size", "1", "--max-queue-size", "1", "--request-timeout", "10m"]
    model = ROOT / "tests/fixtures/loop.onnx"
    with serving(trust.program, model, *flags) as server, contextlib.ExitStack() as stack:
        # One is executed for longer than this takes, one waits, and the next are refused.
        while not overloaded(server):
            busy = stack.enter_context(contextlib.closing(client.connect(server.port)))
            busy.sendall(client.post({"inputs": [2_000_000_000]}))
        for how, expect in (("sent at once", b""), ("after Expect: 100-continue", b"Expect: 100-continue\r\n")):
            costs = []
            for _ in range(5):
                # What the model takes meanwhile is not the refusals'.
                used = server.cpu_seconds(without="instance-")
                for _ in range(REFUSALS):
                    _refused(server.port, expect)
                costs.append((server.cpu_seconds(without="instance-") - used) / REFUSALS * 1000)
            cost = statistics.median(costs)
            trust.add(
                f"a refused request of 32 MiB, {how}: CPU",
                "< 1 ms",
                f"{cost:.3f} ms (median of {len(costs)} times {REFUSALS})",
                cost < 1,
            )


def _refused(port, expect):
    """Asks with a body of 32 MiB, and takes the refusal, which comes before the body has gone out."""
    with contextlib.closing(client.connect(port)) as stream:
        head = b"POST /predict HTTP/1.1\r\nHost: trust\r\n%sContent-Length: %d\r\n\r\n" % (expect, LARGE)
        stream.sendall(head)
        if not expect:
            with contextlib.suppress(OSError):
                stream.sendall(bytes(LARGE))
        answer = stream.recv(64)
        if not answer.startswith(b"HTTP/1.1 429 "):
            raise Failed(f"the answer was {answer!r}")
        # Gone for good, as a client is that has been refused.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def one_run_ms(port, request, quantile):
    """What a request takes that is alone: quantile 0 where others that use the machine are not to count."""
    connection = client.Connection(port)
    took = []
    with contextlib.closing(connection):
        for _ in range(100):
            asked = time.monotonic()
            connection.ask(request)
            took.append(1000 * (time.monotonic() - asked))
    return sorted(took)[round(quantile * (len(took) - 1))]


def raw(body, deadline_ms=None):
    return client.post(body, form=client.RAW, accept=client.RAW, deadline_ms=deadline_ms)


def counted(server):
    """Answers with a result, and rows that were executed."""
    text = client.ask(server.port, client.get("/metrics")).body.decode().splitlines()
    succeeded = sum(float(line.rsplit(" ", 1)[1]) for line in text if is_success(line))
    return succeeded, memory.metric(server, "ml_executed_batch_size_sum")


def overloaded(server):
    """Whether anybody was refused."""
    text = client.ask(server.port, client.get("/metrics")).body.decode().splitlines()
    refused = [line for line in text if line.startswith("ml_predictions_total{") and 'status="overloaded"' in line]
    return any(float(line.rsplit(" ", 1)[1]) > 0 for line in refused)


def is_success(line):
    return line.startswith("ml_predictions_total{") and 'status="success"' in line


class Exchange:
    """A connection of the load, with at most one request under way."""

    def __init__(self, port, selector):
        self.stream = client.connect(port)
        self.stream.setblocking(False)
        self.selector, self.received, self.sent = selector, b"", 0.0
        selector.register(self.stream, selectors.EVENT_READ, self)

    def send(self, request):
        self.received, self.sent = b"", time.monotonic()
        # A request is smaller than any buffer of the system's.
        self.stream.send(request)

    def receive(self):
        """The status of the answer, once all of it has come; whether the connection goes on."""
        try:
            data = self.stream.recv(65536)
        except OSError:
            data = b""
        if not data:
            return "lost", False
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator:
            return None, True
        head = head.lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return None, True
        return int(head[9:12]), b"connection: close" not in head

    def close(self):
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(self.stream)
        self.stream.close()


def closed_loop(port, request, connections, seconds):
    """Answers a second, where each connection sends a request as soon as it has an answer."""
    selector = selectors.DefaultSelector()
    exchanges = [Exchange(port, selector) for _ in range(connections)]
    answered, started = 0, time.monotonic()
    for exchange in exchanges:
        exchange.send(request)
    while (now := time.monotonic()) < started + seconds:
        for key, _ in selector.select(started + seconds - now):
            status, goes_on = key.data.receive()
            if status is None:
                continue
            if status != 200 or not goes_on:
                raise Failed(f"measuring the capacity, an answer was {status}")
            answered += 1
            key.data.send(request)
    for exchange in exchanges:
        exchange.close()
    return answered / seconds


def open_loop(port, request, rate, seconds, deadline):
    """Requests at a steady rate, whatever is answered: what came of them, and how many 200s came in time.

    An answer that comes after the load has ended is not counted as useful: its execution has had that time to itself.
    """
    selector = selectors.DefaultSelector()
    idle, busy = [], set()
    seen, useful = collections.Counter(), 0
    # No answer is waited for longer than its own deadline and a little.
    started = time.monotonic()
    number, last = 0, started + seconds
    while True:
        now = time.monotonic()
        due = started + number / rate
        if due >= last and (not busy or now > last + deadline + 1):
            break
        while due <= now and due < last:
            if not idle and len(busy) >= MOST_CONNECTIONS:
                seen["no connection left"] += 1
            else:
                exchange = idle.pop() if idle else Exchange(port, selector)
                exchange.send(request)
                busy.add(exchange)
            number += 1
            due = started + number / rate
        wait = (due if due < last else last + deadline + 1) - time.monotonic()
        for key, _ in selector.select(max(wait, 0)):
            exchange = key.data
            status, goes_on = exchange.receive()
            if status is None:
                continue
            if exchange in busy:
                busy.remove(exchange)
                seen[status] += 1
                came = time.monotonic()
                useful += status == 200 and came - exchange.sent <= deadline and came <= last
            if goes_on:
                idle.append(exchange)
            else:
                idle = [one for one in idle if one is not exchange]
                exchange.close()
    seen["unanswered"] = len(busy)
    for exchange in [*idle, *busy]:
        exchange.close()
    return +seen, useful


def starts(trust):
    """10: settings that must not make a start longer."""
    folder = ROOT / "target/bench/models"
    names = [name for name in ("resnet50", "squeezenet") if not (folder / f"{name}.onnx").exists()]
    if names:
        subprocess.run([sys.executable, ROOT / "scripts/make-bench-models.py", folder, *names], check=True)
    bundled = ROOT / "models/best.onnx"
    off, high = ["--tuning-time", "off"], ["--max-batch-size", "16384"]
    for model, flags, most in (
        (folder / "resnet50.onnx", off, 1.1),
        (folder / "squeezenet.onnx", off, 1.1),
        (bundled, off, 1.1),
        (bundled, high, 1.2),
        (folder / "squeezenet.onnx", high, 1.2),
    ):
        try:
            compare_starts(trust, model, flags, most)
        except Failed as failure:
            trust.add(f"start with {' '.join(flags)}, {model.stem}", f"<= {most} x the default's", failure, False)


def compare_starts(trust, model, flags, most):
    seconds, peaks = {"default": [], "with": []}, {"default": [], "with": []}
    for number in range(ROUNDS_OF_SHORT):
        if number >= ROUNDS and seconds["default"][0] >= 1:
            break
        for key, added in (("default", []), ("with", flags)):
            with serving(trust.program, model, *added, limit=START_SECONDS) as server:
                seconds[key].append(server.seconds_to_ready)
                peaks[key].append(server.peak())
        if seconds["with"][-1] > CLEARLY * most * seconds["default"][-1]:
            break
    typical = min if len(seconds["with"]) > ROUNDS else statistics.median
    default, changed = (typical(seconds[key]) for key in ("default", "with"))
    what = f"start with {' '.join(flags)}, {model.stem}"
    trust.add(
        f"{what}: time",
        f"<= {most} x the default's",
        f"{changed / default:.2f} ({changed:.2f} s and {default:.2f} s)",
        changed / default <= most,
    )
    default, changed = (statistics.median(peaks[key]) for key in ("default", "with"))
    trust.add(
        f"{what}: peak",
        "<= the default's + 64 MiB",
        f"{(changed - default) / MIB:+.0f} MiB ({changed / MIB:.0f} MiB)",
        changed <= default + memory.MARGIN,
    )
