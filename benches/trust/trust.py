#!/usr/bin/env python3
"""Measures what the server promises to clients that must be able to trust it: `make trust` calls it.

    trust.py [--server PROGRAM] [--only 1,4] [--list]

Each case starts servers of its own on free ports of this machine and stops them. It prints a table, one row for each
promise, and ends with 1 if one was not kept. Times are ratios to the same machine's own.
"""

import argparse
import os
import pathlib
import signal
import sys
import tempfile
import time
import traceback

import answers
import memory
import process
import speed

# By number, so that a part can be chosen.
CASES = {
    1: memory.unread,
    2: memory.unread_by_default,
    3: memory.refused,
    4: memory.size_by_value,
    5: memory.merged,
    6: memory.empty_strings,
    7: answers.aliased,
    8: answers.sent_slowly,
    9: speed.deadlines,
    10: speed.starts,
    11: answers.many_rows,
    12: speed.refusals,
}


class Trust:
    """The rows of the table, and what every case needs."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        self.number, self.rows = 0, []

    def add(self, what, target, measured, ok):
        self.rows.append((str(self.number), what, target, str(measured), "yes" if ok else "NO"))
        print(
            f"{'  ok  ' if ok else 'MISSED'} {self.number}: {what}: {measured} ({target})", file=sys.stderr, flush=True
        )

    def missed(self):
        return [row for row in self.rows if row[-1] != "yes"]

    def table(self):
        head = ("", "what", "target", "measured", "ok")
        rule = tuple("---" for _ in head)
        return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *self.rows))


def main():
    arguments = _arguments()
    if arguments.list:
        for number, case in CASES.items():
            print(f"{number:2} {case.__doc__.partition(': ')[2]}")
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trust = Trust(arguments.server, pathlib.Path(folder))
        for number in arguments.only:
            trust.number = number
            try:
                CASES[number](trust)
            except Exception as error:
                # What could not be measured was not kept; the other cases still tell something.
                traceback.print_exc()
                trust.add(
                    CASES[number].__doc__.partition(": ")[2], "measured", f"{type(error).__name__}: {error}", False
                )
    missed = trust.missed()
    print(trust.table())
    print(f"\n{len(trust.rows)} promises, {len(missed)} not kept; {time.monotonic() - started:.0f} s", flush=True)
    sys.exit(1 if missed else 0)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = process.ROOT / "target/release/model-serving"
    parser.add_argument(
        "--server", type=pathlib.Path, default=default, help="the program (target/release/model-serving)"
    )
    parser.add_argument("--only", default=",".join(map(str, CASES)), help="the numbers of cases, with commas between")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    arguments = parser.parse_args()
    try:
        arguments.only = [int(number) for number in arguments.only.split(",")]
    except ValueError:
        parser.error("--only takes numbers, such as 1,4")
    if unknown := set(arguments.only) - set(CASES):
        parser.error(f"there is no case {', '.join(map(str, sorted(unknown)))}")
    if not arguments.list and not os.access(arguments.server, os.X_OK):
        parser.error(
            f"{arguments.server} is no program; build it with cargo build --release, or name one with --server"
        )
    arguments.server = arguments.server.resolve()
    return arguments


if __name__ == "__main__":
    # Whoever ends this program ends what it has started as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("trust: ended by a signal"))
    main()
