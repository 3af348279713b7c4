"""The load generator, and what it saw.

`-w` lets the requests that are under way at the end come home, instead of counting them as lost. The number of threads is
given, because its default counts physical cores and so differs from machine to machine.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
import threading

import machine
import numpy as np
import servers

PROGRAM = machine.ROOT / ".tools/bin/oha"
# Beyond what a load was meant to take; a server that hangs must not hang the run.
GRACE_SECONDS = 90


@dataclasses.dataclass(frozen=True)
class Load:
    """A load to be generated. Without `rate` each connection sends its next request when it has its answer."""

    server: servers.Server
    request: object
    connections: int
    seconds: float = 0.0
    requests: int = 0
    rate: float = 0.0
    threads: int = machine.CPUS
    # Every latency, not just their quantiles.
    each: bool = False

    def command(self, out):
        form = self.request.form
        amount = ["-n", self.requests] if self.requests else ["-z", f"{self.seconds * 1000:.0f}ms", "-w"]
        # Latencies count from when a request was due, so that a server cannot hide a pause by delaying the load.
        pace = ["-q", f"{self.rate:.3f}", "--latency-correction"] if self.rate else []
        headers = [f"{name}: {value}" for name, value in self.request.headers().items()]
        return [
            *[PROGRAM, "--no-tui", "--output-format", "csv" if self.each else "json", "--output", out],
            *["-m", "POST", "-D", self.request.path, "-c", self.connections, "--worker-threads", self.threads],
            *["-t", "60s", "--disable-compression", *amount, *pace],
            *[word for header in headers for word in ("-H", header)],
            f"http://127.0.0.1:{self.server.port}{self.server.routes[form]}",
        ]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What came back. Times are in seconds."""

    seconds: float
    answered: int
    failed: int
    p50: float
    p99: float
    # Of the load generator, of the server, and of everything else on the machine.
    own_cpu: float
    server_cpu: float
    others_cpu: float
    latencies: np.ndarray = dataclasses.field(default=None, repr=False)

    @property
    def rate(self):
        return self.answered / self.seconds if self.seconds else 0.0

    def figures(self):
        """What is worth keeping of it."""
        return {
            "requests_per_second": round(self.rate, 2),
            "p50_ms": round(self.p50 * 1e3, 4),
            "p99_ms": round(self.p99 * 1e3, 4),
            "failed": self.failed,
            "others_cpus": round(self.others_cpu / self.seconds, 3) if self.seconds else None,
        }


def run(load):
    return together([load])[0]


def together(loads):
    """Generates several loads at once. What others used of the CPU is the same for all of them."""
    with tempfile.TemporaryDirectory() as folder:
        outs = [pathlib.Path(folder) / str(number) for number in range(len(loads))]
        distinct = {load.server.process.pid: load.server for load in loads}
        before = {pid: server.cpu_seconds() for pid, server in distinct.items()}
        busy = machine.busy_seconds()
        own = _generate([load.command(out) for load, out in zip(loads, outs)], max(load.seconds for load in loads))
        cpu = {pid: server.cpu_seconds() - before[pid] for pid, server in distinct.items()}
        others = max(0.0, machine.busy_seconds() - busy - sum(own) - sum(cpu.values()))
        return [_read(load, out, mine, cpu, others) for load, out, mine in zip(loads, outs, own)]


def _generate(commands, seconds):
    """Runs the load generators to their ends; returns the CPU time of each."""
    processes = []
    try:
        for command in commands:
            command = [str(word) for word in command]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, env=servers.environment()))
        timers = [threading.Timer(seconds + GRACE_SECONDS, process.kill) for process in processes]
        for timer in timers:
            timer.start()
        times = []
        for process, timer in zip(processes, timers):
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            timer.cancel()
            if process.returncode:
                raise servers.Failed(f"the load generator ended with {process.returncode}: {process.args}")
            times.append(usage.ru_utime + usage.ru_stime)
        return times
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                process.wait()


def _read(load, out, own, cpu, others):
    common = {"own_cpu": own, "server_cpu": cpu[load.server.process.pid], "others_cpu": others}
    if load.each:
        starts, latencies, statuses = np.loadtxt(out, delimiter=",", skiprows=1, usecols=(0, 4, 6), ndmin=2).T
        answered = int((statuses == 200).sum())
        return Seen(
            seconds=float((starts + latencies).max() - starts.min()) if len(starts) else load.seconds,
            answered=answered,
            failed=len(statuses) - answered,
            p50=float(np.quantile(latencies, 0.5)),
            p99=float(np.quantile(latencies, 0.99)),
            latencies=latencies,
            **common,
        )
    answer = json.loads(out.read_text())
    statuses, errors = answer["statusCodeDistribution"], answer["errorDistribution"]
    answered = statuses.get("200", 0)
    quantiles = answer["latencyPercentiles"]
    return Seen(
        seconds=answer["summary"]["total"],
        answered=answered,
        failed=sum(statuses.values()) - answered + sum(errors.values()),
        p50=quantiles["p50"] or 0.0,
        p99=quantiles["p99"] or 0.0,
        **common,
    )
