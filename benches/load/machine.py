"""What the measurements run on: its description, and who uses its CPUs.

Other programs on the machine take time from whatever is measured, so each measurement says how much they took.
"""

import datetime
import os
import pathlib
import platform
import re
import subprocess
import sys
from importlib import metadata

ROOT = pathlib.Path(__file__).resolve().parents[2]
CPUS = len(os.sched_getaffinity(0))
TICKS = os.sysconf("SC_CLK_TCK")
PEERS = ("fastapi", "uvicorn", "pydantic", "onnxruntime", "litserve", "numpy")


def cpu_seconds(group):
    """The CPU time of the processes in a group, and of all threads that they ever had."""
    used = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            # It has ended since it was listed.
            continue
        # The name in parentheses may hold blanks, so that the fields are counted from its end.
        fields = text.rpartition(")")[2].split()
        if int(fields[2]) == group:
            used += int(fields[11]) + int(fields[12])
    return used / TICKS


def resident_bytes(pid):
    """The memory that a process holds."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024


def busy_seconds():
    """The CPU time of everything, interrupts and what a hypervisor withheld included."""
    with open("/proc/stat") as lines:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, next(lines).split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def run(*command):
    """What a program prints, or nothing if there is no such program."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.strip()
    except OSError:
        return ""


def describe(oha, server):
    """What a reader needs to know in order to compare figures."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)
    commit = run("git", "rev-parse", "--short=12", "HEAD")
    changed = run("git", "status", "--porcelain", "--untracked-files=no", "--", "src", "benches/load", "Cargo.lock")
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit + (" with changes" if changed else ""),
        "CPU": f"{name[1] if name else platform.machine()}, {CPUS} CPUs",
        "memory": f"{int(memory[1]) / 1024**2:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "versions": ", ".join(
            [
                run(server, "--version").splitlines()[0],
                run("rustc", "--version").split(" (")[0],
                run(oha, "--version"),
                f"Python {platform.python_version()}",
                *(f"{package} {metadata.version(package)}" for package in PEERS),
            ]
        ),
        "command": "make bench" + "".join(f" {word}" for word in _variables()),
    }


def _variables():
    """The Makefile's variables that lead to the command line of this program."""
    words = sys.argv[1:]
    if "--name" in words:
        position = words.index("--name")
        yield f"NAME={words[position + 1]}"
        del words[position : position + 2]
    if words:
        yield f'BENCH_FLAGS="{" ".join(words)}"'
