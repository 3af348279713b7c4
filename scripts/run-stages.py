#!/usr/bin/env python3
"""Runs recipes of the Makefile one after the other, and says what happened: run-stages.py RECIPE...

Each stage has a heading with its name and purpose before it, and its time after it. The first one that fails ends the
run. At the end stands a table of all stages, also of those that did not run, and every line that a stage began with
`SKIPPED:`, so that a check that could not be made is not lost in the log. The exit code is 1 if a stage failed, and
with FAIL_ON_SKIPPED=1 also if a check was skipped: where everything is installed, a skipped check is a broken one.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

# Seconds that an interrupted stage may take to clean up.
PATIENCE = 60
ROOT = pathlib.Path(__file__).resolve().parent.parent
# What is not part of the text: colours, and what programs draw over.
ESCAPES = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]|\r")


def purposes():
    """What each recipe is for, in the Makefile's own words."""
    found = re.findall(r"^([a-z0-9-]+):.*?## (.*)$", (ROOT / "Makefile").read_text(), re.M)
    return dict(found)


def minutes(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def run(recipe, skipped):
    """Runs one recipe, passes its output on, and notes what it skipped; returns its exit code."""
    command = [*os.environ.get("MAKE", "make").split(), "--no-print-directory", recipe]
    # Of `make -j` the stage inherits the pipe by which all parts of one make share their jobs.
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, close_fds=False
    ) as stage:
        try:
            for line in stage.stdout:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
                text = ESCAPES.sub(b"", line).decode(errors="replace").strip()
                if text.startswith("SKIPPED:") and text not in skipped:
                    skipped.append(text)
            return stage.wait()
        except KeyboardInterrupt:
            # Ctrl-C reached the stage as well, which may have something to put away.
            try:
                stage.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                stage.terminate()
            raise
        except SystemExit:
            stage.terminate()
            raise


def table(stages, results, began):
    rows = [("stage", "time", "result")]
    for stage in stages:
        seconds, result = results.get(stage, (None, "did not run"))
        rows.append((stage, "" if seconds is None else minutes(seconds), result))
    rows.append(("all", minutes(time.monotonic() - began), verdict(stages, results)))
    width, times = (max(len(row[column]) for row in rows) for column in (0, 1))
    print()
    for name, spent, result in rows:
        print(f"{name:<{width}}  {spent:>{times}}  {result}")


def verdict(stages, results):
    passed = sum(result == "passed" for _, result in results.values())
    if passed == len(stages):
        return "all checks passed"
    ended = next(stage for stage in stages if results.get(stage, (0, ""))[1] != "passed")
    return f"{results.get(ended, (0, 'did not run'))[1]}: {ended}"


def main(stages):
    described = purposes()
    unknown = [stage for stage in stages if stage not in described]
    if unknown or not stages:
        sys.exit(f"usage: run-stages.py RECIPE... (not described in the Makefile: {' '.join(unknown) or 'none named'})")
    # Colours are lost in a pipe; whoever looks at a terminal gets them all the same.
    if sys.stdout.isatty():
        os.environ.setdefault("CARGO_TERM_COLOR", "always")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began, results, skipped, code = time.monotonic(), {}, [], 0
    try:
        for number, stage in enumerate(stages, 1):
            print(f"\n=== {number}/{len(stages)} {stage}: {described[stage]}", flush=True)
            started = time.monotonic()
            results[stage] = (0, "STOPPED")
            try:
                failed = run(stage, skipped) != 0
                results[stage] = (0, "FAILED" if failed else "passed")
            finally:
                results[stage] = (time.monotonic() - started, results[stage][1])
                print(f"=== {stage} {results[stage][1]} in {minutes(results[stage][0])}", flush=True)
            if failed:
                code = 1
                break
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stopped:
        code = stopped.code
    intolerable = code == 0 and skipped and os.environ.get("FAIL_ON_SKIPPED") == "1"
    table(stages, results, began)
    for line in skipped:
        print(line)
    if code == 1:
        print(f"{verdict(stages, results)}; run it alone with: make {list(results)[-1]}")
    if intolerable:
        print("FAILED: FAIL_ON_SKIPPED is set, and the checks above were skipped")
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
