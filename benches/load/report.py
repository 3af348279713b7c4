"""The page and the figures that a run leaves behind."""

import dataclasses
import json
import statistics

import machine as host

NOTES = """\
Server, peers and load generator share this machine's CPUs, so figures of other machines are not comparable, ratios are.
What is compared was measured in turns, {rounds} of them, with loads of {seconds:g} s, longer ones for the larger models;
medians count. Other programs took {others:.1%} of the CPUs meanwhile in the median, and {worst:.1%} at worst.
"""


def write(bench, folder, name, machine, pictures):
    """Writes NAME.md and NAME.json into `folder`."""
    figures = {"machine": machine, "rows": [dataclasses.asdict(row) for row in bench.rows], "raw": bench.raw}
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / f"{name}.md").write_text("\n".join(_page(bench, machine, pictures)))


def _page(bench, machine, pictures):
    yield "# How fast it is here\n"
    yield from (f"- {name}: {value}" for name, value in machine.items())
    yield ""
    busy = [load for load in _loads(bench.raw) if load.get("others_cpus") is not None]
    shares = [load["others_cpus"] / host.CPUS for load in busy] or [0.0]
    yield NOTES.format(rounds=bench.rounds, seconds=bench.seconds, others=statistics.median(shares), worst=max(shares))
    failed = sum(load["failed"] for load in _loads(bench.raw))
    yield f"{failed} requests were not answered with 200.\n"
    yield "## Targets\n"
    yield from _table(
        ("what", "target", "measured", "met", "figures"),
        [(row.what, row.target, row.measured, _met(row), row.figures) for row in bench.rows],
    )
    missed = [row for row in bench.rows if row.met is False]
    yield f"## Missed: {len(missed)}\n"
    yield from (f"- {row.what}: {row.measured} instead of {row.target} ({row.figures})" for row in missed)
    yield ""
    for model, figures in bench.raw.items():
        if isinstance(figures, dict) and "sweep" in figures:
            yield from _sweep(model, figures["sweep"])
    yield from _peers(bench.raw)
    yield from _curves(bench.raw)
    for title, file in pictures:
        yield f"![{title}]({file})\n"


def _met(row):
    return {True: "yes", False: "**no**", None: ""}[row.met]


def _loads(figures):
    """The figures of every load, wherever they are kept."""
    if isinstance(figures, dict):
        if "requests_per_second" in figures and "failed" in figures:
            yield figures
        else:
            for value in figures.values():
                yield from _loads(value)
    elif isinstance(figures, list):
        for value in figures:
            yield from _loads(value)


def _table(head, lines):
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(map(str, line))} |" for line in lines)
    yield ""


def _sweep(model, lines):
    yield f"## {model} in process\n"
    yield "Sessions without a server: every way to share the CPUs, by batch. The best is what T5 holds the server against.\n"
    best = max(lines, key=lambda line: line["rows_per_second"])
    head = ("instances", "threads", "batch", "rows/s", "ms per run", "CPU ms per row")
    cells = []
    for line in lines:
        mark = "**" if line is best else ""
        cells.append(
            (
                line["instances"],
                line["threads"],
                line["batch"],
                f"{mark}{line['rows_per_second']:.1f}{mark}",
                f"{line['seconds_per_run'] * 1e3:.1f}",
                f"{line['cpu_seconds_per_row'] * 1e3:.2f}",
            )
        )
    yield from _table(head, cells)


def _peers(raw):
    lines = []
    for section, figures in raw.items():
        if section.startswith("peers, "):
            for name, loads in figures.items():
                server, _, form = name.partition(", ")
                rate, p50, p99 = (
                    statistics.median(load[key] for load in loads)
                    for key in ("requests_per_second", "p50_ms", "p99_ms")
                )
                model = section.removeprefix("peers, ")
                lines.append((model, form, server, f"{rate:,.1f}", f"{p50:.2f}", f"{p99:.2f}"))
    if lines:
        yield "## Beside other servers\n"
        yield "32 connections, one row each, closed loop. Each peer has one worker and ONNX Runtime's own choice of threads.\n"
        yield from _table(("model", "form", "server", "requests/s", "p50, ms", "p99, ms"), lines)


def _curves(raw):
    for section, first, unit in (
        ("closed loop", "connections", "connections"),
        ("open loop", "offered", "offered requests/s"),
    ):
        if section not in raw:
            continue
        yield f"## tiny, {section}\n"
        lines = [
            (name, point[first], point["requests_per_second"], point["p50_ms"], point["p99_ms"])
            for name, points in raw[section].items()
            for point in points
        ]
        cells = [(name, f"{x:,.10g}", f"{rate:,.0f}", f"{p50:.3f}", f"{p99:.3f}") for name, x, rate, p50, p99 in lines]
        yield from _table(("server", unit, "requests/s", "p50, ms", "p99, ms"), cells)
