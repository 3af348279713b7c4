#!/usr/bin/env python3
"""Counts the instructions that a request costs the server, which repeat where times on a busy machine do not.

The release build, with names, runs under valgrind's callgrind on a model that only adds 1, so that what is counted is
the server's own work. One client sends requests one after another on one connection: it warms the server up, has the
counters set to zero, sends the requests that count, and has the counters written. Valgrind runs one thread at a time
and counts what is executed, not what is waited for, and nothing that the kernel does. An empty axum route stands
beside the server for comparison. `make instructions` builds both and runs this; the log goes to a file.

It lies here and not in `benches/`, because cargo has no part in it but to build the programs.
"""

import argparse
import collections
import dataclasses
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BUILT = REPOSITORY / "target/profiling"
TOOLS = ("valgrind", "callgrind_control", "vgdb")
# Valgrind makes everything some fifty times slower, loading included.
READY_WITHIN_SECONDS = 120


def get(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: count\r\n\r\n"


def post(headers: bytes, body: bytes) -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST /predict HTTP/1.1\r\nHost: count\r\n" + headers + length + b"\r\n" + body


@dataclasses.dataclass
class Case:
    """What is counted."""

    title: str
    request: bytes
    # The program and its arguments; `{port}` stands for its port.
    program: Path
    arguments: tuple[str, ...]
    # What is answered with 200 as soon as requests can be counted.
    ready: bytes


def of_server(title: str, request: bytes) -> Case:
    model = REPOSITORY / "tests/fixtures/addone.onnx"
    arguments = ("--host", "127.0.0.1", "--port", "{port}", "--model", str(model))
    arguments += ("--drain-delay", "0s")
    return Case(title, request, BUILT / "model-serving", arguments, get(b"/ready"))


JSON = b"Content-Type: application/json\r\n"
RAW = b"Content-Type: application/octet-stream\r\nAccept: application/octet-stream\r\n"
CASES = {
    "json": of_server("JSON, one row", post(JSON, b'{"inputs": [[0.25, 1.5, -3.75, 4]]}')),
    "raw": of_server("raw in and out, one row", post(RAW, bytes(16))),
    "health": of_server("GET /health", get(b"/health")),
    "empty": Case("an empty axum route", get(b"/"), BUILT / "examples/empty_route", ("{port}",), get(b"/")),
}


class Connection:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(self, request: bytes) -> int:
        """Sends `request`, reads the whole answer and returns its status."""
        self.socket.sendall(request)
        answer = b""
        while True:
            received = self.socket.recv(65536)
            if not received:
                raise ConnectionError("the server closed the connection")
            answer += received
            head, end, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            if end and len(body) >= (int(length[1]) if length else 0):
                return int(answer.split(b" ", 2)[1])


class Program:
    """A program under callgrind."""

    def __init__(self, case: Case, folder: Path, workers: int) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        environment = os.environ | {"TOKIO_WORKER_THREADS": str(workers)}
        command = ["valgrind", "--tool=callgrind", "--separate-threads=yes", "--instr-atstart=no"]
        command += [f"--callgrind-out-file={folder / 'out'}", str(case.program)]
        command += [argument.format(port=self.port) for argument in case.arguments]
        with (folder / "log").open("wb") as log, (folder / "errors").open("wb") as errors:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=errors)
        self.wait_until(case.ready)

    def wait_until(self, ready: bytes) -> None:
        end = time.monotonic() + READY_WITHIN_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if Connection(self.port).exchange(ready) == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        self.stop()
        sys.exit("the program did not become ready:\n" + (self.folder / "errors").read_text(errors="replace"))

    def control(self, *arguments: str) -> None:
        subprocess.run(["callgrind_control", *arguments, str(self.process.pid)], check=True, capture_output=True)

    def threads(self) -> dict[int, str]:
        """The names of the threads by valgrind's numbers."""
        command = ["vgdb", f"--pid={self.process.pid}", "v.info", "scheduler"]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        names = {}
        for number, task in re.findall(r"^Thread (\d+):.*\(lwpid (\d+)\)", told, re.MULTILINE):
            if int(task) == self.process.pid:
                names[int(number)] = "main"
                continue
            try:
                names[int(number)] = Path(f"/proc/{self.process.pid}/task/{task}/comm").read_text().strip()
            except OSError:
                # It has just ended.
                pass
        return names

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()


class Profile:
    """Costs by function and by source file, out of callgrind's files, one for each thread.

    Their format: https://valgrind.org/docs/manual/cl-format.html
    """

    def __init__(self) -> None:
        self.by_thread = collections.Counter()
        self.by_source = collections.Counter()
        self.by_function = collections.Counter()
        self.inclusive = collections.Counter()
        self.calls = collections.Counter()

    def total(self) -> int:
        return sum(self.by_thread.values())

    def by_object(self) -> collections.Counter:
        costs = collections.Counter()
        for (shared, _), cost in self.by_source.items():
            costs[shared] += cost
        return costs

    def by_crate(self, program: str) -> collections.Counter:
        costs = collections.Counter()
        for (shared, source), cost in self.by_source.items():
            costs[crate_of(source) if shared == program else f"[{shared}]"] += cost
        return costs

    def read(self, path: Path, thread: str) -> None:
        # A name stands in full where it comes first, and as its number from there on.
        known: dict[tuple[str, str], str] = {}

        def name(kind: str, text: str) -> str:
            number, _, full = text.partition(" ")
            if not number.startswith("("):
                return text
            if full:
                known[kind, number] = full
            return known.get((kind, number), number)

        shared = source = function = callee = callee_object = ""
        is_call = False
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key == "ob":
                shared = callee_object = Path(name("object", value)).name
            elif key == "cob":
                callee_object = Path(name("object", value)).name
            elif key in ("fl", "fi", "fe"):
                source = name("file", value)
            elif key in ("cfi", "cfl"):
                name("file", value)
            elif key == "fn":
                function = without_hash(name("function", value))
                callee_object = shared
            elif key == "cfn":
                callee = without_hash(name("function", value))
            elif key == "calls":
                self.calls[callee_object, callee] += int(value.split()[0])
                is_call = True
            elif line and line[0] in "0123456789+-*":
                cost = int(line.split()[1])
                if is_call:
                    # What a function that calls itself costs is counted once.
                    if (callee_object, callee) != (shared, function):
                        self.inclusive[shared, function] += cost
                    callee_object, is_call = shared, False
                else:
                    self.by_thread[thread] += cost
                    self.by_source[shared, source] += cost
                    self.by_function[shared, function] += cost
                    self.inclusive[shared, function] += cost


def without_hash(function: str) -> str:
    return re.sub(r"::h[0-9a-f]{16}", "", function)


def crate_of(source: str) -> str:
    """Whose code `source` is."""
    if found := re.search(r"/registry/src/[^/]+/([^/]+)/", source):
        return found[1]
    if found := re.search(r"/library/(core|alloc|std)/|/deps/(hashbrown)-", source):
        return f"Rust's {found[1] or found[2]}"
    if (found := re.search(r"(?:^|/)((?:src|examples)/.+)", source)) and (REPOSITORY / found[1]).is_file():
        return found[1]
    return source


def count(case: Case, requests: int, warm_up: int, workers: int) -> Profile:
    with tempfile.TemporaryDirectory(prefix="count-instructions-") as name:
        folder = Path(name)
        program = Program(case, folder, workers)
        try:
            connection = Connection(program.port)

            def send(number: int) -> None:
                for _ in range(number):
                    if (status := connection.exchange(case.request)) != 200:
                        sys.exit(f"{case.title}: answered with status {status}")

            send(warm_up)
            program.control("--instr=on")
            send(warm_up)
            program.control("--zero")
            send(requests)
            program.control("--dump")
            names = program.threads()
        finally:
            program.stop()
        profile = Profile()
        for path in folder.glob("out.1-*"):
            number = int(path.name.rpartition("-")[2])
            profile.read(path, names.get(number, f"thread {number}"))
        return profile


def print_table(title: str, costs: collections.Counter, profile: Profile, arguments: argparse.Namespace) -> None:
    print(f"\n{title}:")
    for key, cost in costs.most_common(arguments.top):
        each = cost / arguments.requests
        if each < 0.5:
            break
        calls = f"{profile.calls[key] / arguments.requests:>9.2f} x" if isinstance(key, tuple) else ""
        label = f"{key[1]}  [{key[0]}]" if isinstance(key, tuple) else key
        print(f"{each:>11,.0f} {cost / profile.total():>6.1%}{calls}  {label}")


def print_case(case: Case, profiles: list[Profile], arguments: argparse.Namespace) -> float:
    """Prints everything about the median of `profiles`, and returns its instructions per request."""
    profiles.sort(key=Profile.total)
    totals = [profile.total() / arguments.requests for profile in profiles]
    spread = (totals[-1] - totals[0]) / statistics.median(totals)
    median = profiles[len(profiles) // 2]
    each = median.total() / arguments.requests
    print(f"\n== {case.title}: {each:,.0f} instructions per request ==")
    print(f"{len(totals)} runs of {arguments.requests} requests: {', '.join(f'{total:,.0f}' for total in totals)}")
    print(f"they differ by {spread:.2%}")
    print_table("by thread", median.by_thread, median, arguments)
    print_table("by program and library", median.by_object(), median, arguments)
    crates = median.by_crate(case.program.name)
    print_table("by crate, and by file of ours; inlined code counts where it was written", crates, median, arguments)
    print_table("by function, its own cost", median.by_function, median, arguments)
    print_table("by function, with what it calls", median.inclusive, median, arguments)
    return each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"which requests: {', '.join(CASES)} (default: all)")
    parser.add_argument("--requests", type=int, default=1000, help="requests that count (default: 1000)")
    parser.add_argument("--warm-up", type=int, default=300, help="requests before them (default: 300)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, whose median is told (default: 3)")
    parser.add_argument("--top", type=int, default=40, help="lines of each table (default: 40)")
    parser.add_argument("--workers", type=int, default=2, help="HTTP threads (default: 2)")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"there is no {', '.join(unknown)}")
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        sys.exit(f"{', '.join(missing)} not found; install valgrind (on Debian and Ubuntu: apt-get install valgrind)")
    chosen = {name: CASES[name] for name in arguments.cases or CASES}
    for case in chosen.values():
        if not case.program.is_file():
            sys.exit(f"{case.program.relative_to(REPOSITORY)} was not built; make instructions does it")
    # On one CPU, program and client take turns in the same way each time; on several, whoever is faster decides whether
    # a thread finds its work done or has to wait, and runs differ by two percent instead of a quarter.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    told = {}
    for case in chosen.values():
        profiles = [
            count(case, arguments.requests, arguments.warm_up, arguments.workers) for _ in range(arguments.repeat)
        ]
        told[case.title] = print_case(case, profiles, arguments)
    print("\ninstructions per request:")
    for title, each in told.items():
        print(f"{each:>11,.0f}  {title}")


if __name__ == "__main__":
    main()
