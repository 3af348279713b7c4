#!/usr/bin/env python3
"""Measures how fast the server is, as ratios to what the machine could do at best: `make bench` calls it.

    bench.py [--name NAME] [--rounds 5] [--seconds 2] [--quick] [--only SECTION[,SECTION...]]

It writes benches/results/NAME.md, NAME.json and two pictures. Missed targets are figures like others; the exit code is 1
only if something could not be measured, or answered wrongly.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import curves
import machine
import oha
import plots
import report
import servers
import subjects
import targets

MODELS = machine.ROOT / "target/bench/models"
BODIES = machine.ROOT / "target/bench/bodies"
RESULTS = machine.ROOT / "benches/results"

# Each with the seconds that it takes by rounds and by seconds of a load, as it took them on two CPUs.
SECTIONS = {
    "route": (targets.empty_route, lambda rounds, seconds: rounds * (8.5 * seconds + 2)),
    "decode": (targets.decoding, lambda rounds, seconds: rounds * (0.75 * seconds + 1)),
    "inference": (targets.inference, lambda rounds, seconds: 2 * rounds * (7 * seconds + 3) + 48 * seconds + 60),
    "mixed": (targets.mixed, lambda rounds, seconds: rounds * (5 * seconds + 2)),
    "start": (targets.starting, lambda rounds, seconds: 6),
    "memory": (targets.memory, lambda rounds, seconds: 40),
    "idle": (targets.idling, lambda rounds, seconds: 12),
    "peers": (targets.peers, lambda rounds, seconds: rounds * (22 * seconds + 15) + 30),
    "curves": (curves.measure, lambda rounds, seconds: 64 * seconds + 30),
}


def main():
    arguments = _arguments()
    chosen = arguments.only.split(",") if arguments.only else list(SECTIONS)
    beside = _build()
    expected = sum(SECTIONS[name][1](arguments.rounds, arguments.seconds) for name in chosen)
    started = time.monotonic()

    def progress(text):
        print(f"[{time.monotonic() - started:4.0f} s] {text}", file=sys.stderr, flush=True)

    progress(f"this will take some {expected / 60:.0f} minutes; leave the machine alone meanwhile")
    BODIES.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    bench = targets.Bench(
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        quick=arguments.quick,
        beside=beside,
        subjects={name: subjects.Subject(name, MODELS, BODIES) for name in (targets.TINY, *targets.LARGE)},
        progress=progress,
    )
    for name in chosen:
        SECTIONS[name][0](bench)
    pictures = plots.draw(bench.raw, RESULTS, arguments.name) if "curves" in chosen else []
    report.write(bench, RESULTS, arguments.name, machine.describe(oha.PROGRAM, servers.PROGRAM), pictures)
    for row in bench.rows:
        met = {True: "met", False: "MISSED", None: ""}[row.met]
        print(f"{row.what}: {row.measured} {row.target and f'({row.target})'} {met} [{row.figures}]")
    progress(f"written to benches/results/{arguments.name}.md")


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--name", help="what to call the results (latest; trial where they are quick or partial)")
    parser.add_argument("--rounds", type=int, help="turns of what is compared (5)")
    parser.add_argument("--seconds", type=float, help="the length of a load (2)")
    parser.add_argument("--quick", action="store_true", help="two rounds of short loads, to see that it works")
    parser.add_argument("--only", help=f"some of {','.join(SECTIONS)}")
    arguments = parser.parse_args()
    unknown = set((arguments.only or next(iter(SECTIONS))).split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(sorted(unknown))}")
    # Half a measurement must not take the place of a whole one.
    arguments.name = arguments.name or ("trial" if arguments.quick or arguments.only else "latest")
    arguments.rounds = arguments.rounds or (2 if arguments.quick else 5)
    arguments.seconds = arguments.seconds or (0.5 if arguments.quick else 2.0)
    return arguments


def _build():
    """Builds both programs; returns where Cargo has put the one beside, under a name that only Cargo knows.

    The server is built last: a bench comes with a server of its own, whose dependencies have the features that tests
    want, and which lies where the one that users get is to lie.
    """
    cargo = os.environ.get("CARGO", "cargo")
    command = [cargo, "bench", "--locked", "--bench", "beside", "--no-run", "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, cwd=machine.ROOT, stdout=subprocess.PIPE, check=True)
    messages = map(json.loads, built.stdout.splitlines())
    programs = [
        message["executable"]
        for message in messages
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == "beside"
    ]
    subprocess.run([cargo, "build", "--locked", "--release", "--bin", "model-serving"], cwd=machine.ROOT, check=True)
    return pathlib.Path(programs[-1])


if __name__ == "__main__":
    # Whoever ends this program ends what it has started as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: ended by a signal"))
    try:
        main()
    except servers.Failed as failure:
        sys.exit(f"bench: {failure}")
