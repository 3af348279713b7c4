"""The targets, each measured by one function.

A function makes rows for the table and keeps the figures behind them. What is compared is measured in turns, and a
comparison is made within each turn, so that a change of the machine's mood hits both sides; the medians of the turns
count.
"""

import contextlib
import dataclasses
import json
import pathlib
import statistics
import subprocess
import time

import machine
import numpy as np
import oha
import servers

TINY, LARGE = "tiny", ("squeezenet", "resnet50")
FORMS = ("raw", "JSON")
SWEEP_BATCHES = (1, 2, 4, 8, 16, 32)
# Requests of the mixed load, each over a quarter of its connections.
MIXTURE = (("raw", 1), ("JSON", 1), ("JSON", 8), ("raw", 32))
STARTS = 15
MILLION = 1_000_000


@dataclasses.dataclass
class Row:
    """One line of the table of targets."""

    what: str
    target: str
    measured: str
    # Nothing where there is no target.
    met: bool | None
    figures: str = ""


@dataclasses.dataclass
class Bench:
    """What all measurements share."""

    rounds: int
    seconds: float
    quick: bool
    beside: pathlib.Path
    subjects: dict
    progress: callable
    rows: list = dataclasses.field(default_factory=list)
    raw: dict = dataclasses.field(default_factory=dict)

    def add(self, what, target, measured, met, figures=""):
        row = Row(what, target, measured, None if met is None else bool(met), figures)
        self.rows.append(row)
        self.progress(f"    {what}: {measured} (target {target or 'none'})")

    def turns(self, what):
        for turn in range(1, self.rounds + 1):
            self.progress(f"round {turn}/{self.rounds}: {what}")
            yield turn

    def keep(self, section, name, seen):
        """Keeps what a load has shown; returns it."""
        figures = seen.figures() if isinstance(seen, oha.Seen) else seen
        self.raw.setdefault(section, {}).setdefault(name, []).append(figures)
        return seen

    def ceiling(self, name, threads, instances, batches, seconds):
        """What the sessions do without a server."""
        arguments = ["--threads", threads, "--instances", instances, "--seconds", seconds]
        arguments += ["--batch", ",".join(map(str, batches)), "--onnxruntime", servers.LIBRARY]
        return servers.lines(self.beside, "ceiling", self.subjects[name].path, *arguments)


def median(values):
    return statistics.median(values)


def empty_route(bench):
    """T1 to T3: what the server adds to an empty route of the same framework in the same process."""
    subject = bench.subjects[TINY]
    ratios = {(form, connections): [] for form in FORMS for connections in (32, 1)}
    with servers.beside(bench.beside, subject.path) as (server, empty):
        for form in FORMS:
            server.check(subject.request(form))
        for _ in bench.turns("tiny and the empty route, raw and JSON, 32 and 1 connections"):
            (bare,) = bench.ceiling(TINY, 1, 1, [1], bench.seconds / 4)
            bench.keep("empty route", "in-process run, µs", round(bare["seconds_per_run"] * 1e6, 2))
            for (form, connections), found in ratios.items():
                load = oha.Load(server, subject.request(form), connections, bench.seconds)
                bottom = oha.run(dataclasses.replace(load, server=empty))
                top = oha.run(load)
                name = f"{form}, {connections} connections"
                bench.keep("empty route", f"empty, {name}", bottom)
                bench.keep("empty route", f"tiny, {name}", top)
                if connections == 1:
                    floor = bottom.p50 + bare["seconds_per_run"]
                    found.append((top.p50 / floor, top.p50 * 1e6, bottom.p50 * 1e6, bare["seconds_per_run"] * 1e6))
                else:
                    found.append((top.rate / bottom.rate, top.rate, bottom.rate))
    for (form, target), name in zip((("raw", 0.70), ("JSON", 0.50)), ("T1", "T2")):
        ratio, top, bottom = map(median, zip(*ratios[form, 32]))
        what = f"{name}: tiny, one row, {form}, 32 connections: requests/s ÷ the empty route's"
        bench.add(what, f"≥ {target:.2f}", f"{ratio:.2f}", ratio >= target, f"{top:,.0f} and {bottom:,.0f} requests/s")
    for form in FORMS:
        ratio, top, bottom, bare = map(median, zip(*ratios[form, 1]))
        what = f"T3: tiny, one row, {form}, 1 connection: p50 ÷ (the empty route's p50 + the run in process)"
        figures = f"{top:.0f} µs; {bottom:.0f} + {bare:.1f} µs"
        bench.add(what, "≤ 1.35", f"{ratio:.2f}", ratio <= 1.35, figures)


def decoding(bench):
    """T4: JSON text of an image into a tensor, on one thread."""
    found = {}
    for _ in bench.turns("decoding an image"):
        path = bench.subjects["squeezenet"].path
        seconds = bench.seconds / 4
        for line in servers.lines(bench.beside, "decode", path, "--seconds", seconds, "--onnxruntime", servers.LIBRARY):
            found.setdefault((line["numbers"], line["bytes"]), []).append(line["megabytes_per_second"])
    for (numbers, size), rates in found.items():
        rate = median(rates)
        bench.raw.setdefault("decode", {})[numbers] = [round(rate, 1) for rate in rates]
        # Digits beyond those of a 32-bit float are a client's mistake, which is shown without a target.
        target = 500 if "64" not in numbers else None
        bench.add(
            f"T4: decoding an image in JSON, {numbers}",
            "≥ 500 MB/s" if target else "",
            f"{rate:,.0f} MB/s",
            rate >= target if target else None,
            f"{size / 1e6:.2f} MB of text",
        )


def inference(bench):
    """T5 and T6: what serving a real network costs beyond the network itself."""
    for name in LARGE:
        _inference(bench, name)


def _inference(bench, name):
    subject = bench.subjects[name]
    sweep, best = _sweep(bench, name)
    cost, room, text = [], [], []
    long = bench.seconds * 3
    with servers.ours(subject.path) as server:
        for form in FORMS:
            server.check(subject.request(form))
        # The first load of all is a warm-up.
        oha.run(oha.Load(server, subject.request("raw"), 16, min(2.0, bench.seconds), threads=1))
        for _ in bench.turns(f"{name}, raw and JSON, 16 connections, and the best setting in process"):
            chosen = best["threads"], best["instances"], [best["batch"]]
            (bare,) = bench.ceiling(name, *chosen, bench.seconds)
            bench.keep(name, "best setting again", bare)
            seen = {}
            for form in FORMS:
                load = oha.Load(server, subject.request(form), 16, long, threads=1)
                seen[form] = bench.keep(name, f"served, {form}, 16 connections", oha.run(load))
                per_request = seen[form].server_cpu / max(1, seen[form].answered)
                bench.keep(name, f"CPU s per request, {form}", round(per_request, 6))
            raw, json_form = seen["raw"], seen["JSON"]
            per_row = raw.server_cpu / max(1, raw.answered)
            possible = (machine.CPUS * raw.seconds - raw.own_cpu) / raw.seconds / bare["cpu_seconds_per_row"]
            own, others = raw.own_cpu / raw.seconds, raw.others_cpu / raw.seconds
            left = possible * (1 - others / (machine.CPUS - own))
            cost.append((per_row / bare["cpu_seconds_per_row"], per_row * 1e3, bare["cpu_seconds_per_row"] * 1e3))
            room.append((raw.rate / possible, raw.rate, possible, own, others, raw.rate / left))
            text.append((json_form.server_cpu / max(1, json_form.answered) / per_row, json_form.rate))
    bench.raw[name]["sweep"] = sweep
    ratio, served, bare = map(median, zip(*cost))
    setting = f"{best['instances']} × {best['threads']} threads, batches of {best['batch']}"
    what = f"T5: {name}, raw, 16 connections: server's CPU per inference ÷ the best setting's in process"
    bench.add(what, "≤ 1.04", f"{ratio:.3f}", ratio <= 1.04, f"{served:.2f} and {bare:.2f} ms; {setting}")
    ratio, served, possible, own, others, fair = map(median, zip(*room))
    what = f"T5: {name}, raw, 16 connections: requests/s ÷ what the load generator leaves room for"
    figures = f"{served:.1f} of {possible:.1f} requests/s; the load generator takes {own:.2f} CPUs"
    figures += f", others {others:.2f}, without which it is {fair:.3f}"
    bench.add(what, "≥ 0.95", f"{ratio:.3f}", ratio >= 0.95, figures)
    ratio, rate = map(median, zip(*text))
    what = f"T6: {name}, an image in JSON: server's CPU per request ÷ raw's"
    bench.add(what, "≤ 1.5", f"{ratio:.2f}", ratio <= 1.5, f"{rate:.1f} requests/s")


def _sweep(bench, name):
    """Every way to share the CPUs, and the one with the most rows per second.

    Each is measured twice, some time apart, and the better figure counts: a setting that was disturbed must not lose
    for that.
    """
    batches = (1, 8) if bench.quick else SWEEP_BATCHES
    found = {}
    for turn in (1, 2):
        for instances in range(1, machine.CPUS + 1):
            for threads in range(1, machine.CPUS // instances + 1):
                bench.progress(f"{name} in process, pass {turn}/2: {instances} × {threads} threads")
                for line in bench.ceiling(name, threads, instances, batches, bench.seconds / 3):
                    setting = instances, threads, line["batch"]
                    found[setting] = max(found.get(setting, line), line, key=_rows_per_second)
    return list(found.values()), max(found.values(), key=_rows_per_second)


def _rows_per_second(line):
    return line["rows_per_second"]


def mixed(bench):
    """T7: many connections with unlike requests, at seven tenths of what the server can do."""
    subject = bench.subjects[TINY]
    requests = [subject.request(form, rows) for form, rows in MIXTURE]
    found = {"server": [], "empty": []}
    with servers.beside(bench.beside, subject.path) as (server, empty):
        for request in requests:
            server.check(request)
        for _ in bench.turns("mixed load of 64 connections, at capacity and at 70 %"):
            full = oha.together([oha.Load(server, request, 16, bench.seconds, threads=1) for request in requests])
            capacity = sum(seen.rate for seen in full)
            bench.keep("mixed", "capacity", round(capacity, 1))
            for name, target in (("server", server), ("empty", empty)):
                loads = [
                    oha.Load(target, request, 16, bench.seconds * 2, rate=0.7 * seen.rate, threads=1, each=True)
                    for request, seen in zip(requests, full)
                ]
                seen = oha.together(loads)
                latencies = np.concatenate([one.latencies for one in seen])
                p50, p99 = np.quantile(latencies, [0.5, 0.99])
                failed = sum(one.failed for one in seen)
                seconds = max(one.seconds for one in seen)
                own, used = sum(one.own_cpu for one in seen) / seconds, seen[0].server_cpu / seconds
                found[name].append((p99 / p50, p50 * 1e3, p99 * 1e3, capacity, used, own))
                figures = {"p50_ms": round(p50 * 1e3, 4), "p99_ms": round(p99 * 1e3, 4), "failed": failed}
                figures |= {"server_cpus": round(used, 3), "load_generator_cpus": round(own, 3)}
                figures["others_cpus"] = round(seen[0].others_cpu / seconds, 3)
                figures["requests_per_second"] = round(sum(one.rate for one in seen), 1)
                bench.keep("mixed", name, figures)
    ratio, p50, p99, capacity, used, own = map(median, zip(*found["server"]))
    control, low, high, *_ = map(median, zip(*found["empty"]))
    what = "T7: tiny, 64 connections with 1 to 32 rows in both forms, at 70 % of capacity: p99 ÷ p50"
    figures = f"p50 {p50:.2f}, p99 {p99:.2f} ms at 70 % of {capacity:,.0f} requests/s"
    # A load generator that keeps a pace needs more CPU than one that does not, and leaves that much less.
    figures += f"; the server takes {used:.2f} CPUs, the load generators {own:.2f}"
    bench.add(what, "≤ 3", f"{ratio:.1f}", ratio <= 3, figures)
    what = "T7: the same load on the empty route, which shows what machine and load generator do by themselves"
    bench.add(what, "", f"{control:.1f}", None, f"p50 {low:.2f}, p99 {high:.2f} ms")


def starting(bench):
    """T8: from the start of the process to readiness, beside the least that any program needs."""
    model = machine.ROOT / "models/best.onnx"
    ready, bare = [], []
    starts = 5 if bench.quick else STARTS
    bench.progress(f"{starts} starts of the server, and of a program that only makes a session")
    for _ in range(starts):
        bare.append(_session_seconds(bench, model))
        ready.append(_ready_seconds(model))
    bench.raw["start"] = {
        name: [round(s * 1e3, 2) for s in times] for name, times in (("ready, ms", ready), ("session, ms", bare))
    }
    extra = (median(ready) - median(bare)) * 1e3
    figures = f"{median(ready) * 1e3:.1f} and {median(bare) * 1e3:.1f} ms, medians of {starts}"
    what = "T8: start of the server until /ready is 200, beyond a program that makes one session (bundled model)"
    bench.add(what, "≤ 25 ms", f"{extra:.1f} ms", extra <= 25, figures)


def _session_seconds(bench, model):
    command = [bench.beside, "session", model, "--onnxruntime", servers.LIBRARY, "--threads", machine.CPUS]
    began = time.perf_counter()
    with servers.started(command, stdout=subprocess.PIPE) as process:
        line = process.stdout.readline()
        elapsed = time.perf_counter() - began
        json.loads(line)
        return elapsed


def _ready_seconds(model):
    port = servers.free_port()
    began = time.perf_counter()
    with servers.started(servers.command(model, port)):
        return servers.until_ready(port) - began


def memory(bench):
    """T9: what the server holds after a million requests."""
    subject = bench.subjects[TINY]
    quarter = (40_000 if bench.quick else MILLION) // 4
    with servers.ours(subject.path) as server:
        for form in FORMS:
            server.check(subject.request(form))
        sizes = [machine.resident_bytes(server.process.pid)]
        for half in (1, 2):
            bench.progress(
                f"requests {2 * (half - 1) * quarter:,} to {2 * half * quarter:,}, raw and JSON, 32 connections"
            )
            loads = [oha.Load(server, subject.request(form), 16, 300, requests=quarter, threads=1) for form in FORMS]
            for form, seen in zip(FORMS, oha.together(loads)):
                bench.keep("memory", form, seen)
            sizes.append(machine.resident_bytes(server.process.pid))
    first, middle, last = (size / 1e6 for size in sizes)
    bench.raw["memory"]["resident, MB"] = [round(size / 1e6, 3) for size in sizes]
    what = f"T9: resident memory after {4 * quarter:,} requests"
    bench.add(what, "≤ 50 MB", f"{last:.1f} MB", last <= 50, f"{first:.1f} MB before")
    what = "T9: its growth in the second half"
    bench.add(what, "≤ 1 MB", f"{last - middle:.2f} MB", last - middle <= 1, f"{middle:.1f} to {last:.1f} MB")


def idling(bench):
    """T10: CPU without requests."""
    seconds = 3 if bench.quick else 10
    bench.progress(f"{seconds} s without requests")
    with servers.ours(bench.subjects[TINY].path) as server:
        time.sleep(1)
        before = server.cpu_seconds()
        time.sleep(seconds)
        used = (server.cpu_seconds() - before) / seconds * 100
    bench.raw["idle"] = {"percent of a core": used}
    bench.add("T10: CPU without requests", "≤ 0.5 % of a core", f"{used:.1f} %", used <= 0.5, f"over {seconds} s")


def peers(bench):
    """T11: the same model in the servers that people would otherwise write or take."""
    for name in (TINY, *LARGE):
        _peers(bench, name)


def _peers(bench, name):
    subject = bench.subjects[name]
    seconds = bench.seconds if name == TINY else bench.seconds * 1.5
    with contextlib.ExitStack() as stack:
        bench.progress(f"starting the peers with {name}")
        kinds = [servers.ours, servers.fastapi, servers.litserve]
        # The two ways to write it differ only where the model costs next to nothing.
        kinds += [servers.lean_fastapi] if name == TINY else []
        ours, fastapi, litserve, *others = (stack.enter_context(start(subject.path)) for start in kinds)
        everyone = (ours, fastapi, *others, litserve)
        pairs = [(server, form) for form in FORMS for server in everyone if form in server.routes]
        for server, form in pairs:
            server.check(subject.request(form))
        rates = {pair: [] for pair in ((server.name, form) for server, form in pairs)}
        for _ in bench.turns(f"{name}, the server and its peers, 32 connections"):
            for server, form in pairs:
                load = oha.Load(server, subject.request(form), 32, seconds)
                with servers.asleep(*([] if server is litserve else [litserve.process])):
                    seen = bench.keep(f"peers, {name}", f"{server.name}, {form}", oha.run(load))
                rates[server.name, form].append(seen.rate)
    target = 20 if name == TINY else 1.0
    for (peer, form), theirs in rates.items():
        if peer == ours.name:
            continue
        ratio = median(mine / other if other else float("inf") for mine, other in zip(rates[ours.name, form], theirs))
        what = f"T11: {name}, {form}, 32 connections: requests/s ÷ those of {peer}"
        figures = f"{median(rates[ours.name, form]):,.1f} and {median(theirs):,.1f} requests/s"
        met = ratio >= target if peer == fastapi.name else None
        bench.add(what, f"≥ {target:g}" if met is not None else "", f"{ratio:.{1 if ratio > 10 else 2}f}", met, figures)
