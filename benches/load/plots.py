"""The curves as pictures, in files that change only when the figures do."""

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams |= {
    "svg.hashsalt": "model-serving",
    # Text stays text: smaller files, and searchable.
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: E402

# Colours that people who confuse red and green can tell apart; a peer keeps its colour in every picture.
STYLES = {
    "model-serving, raw": ("#0072b2", "o"),
    "model-serving, JSON": ("#56b4e9", "s"),
    "FastAPI, JSON": ("#d55e00", "^"),
    "LitServe, JSON": ("#999999", "D"),
}
PLAIN = FuncFormatter(lambda value, _: f"{value:,.10g}")


def draw(raw, folder, name):
    """Writes the pictures; returns their titles and files."""
    pictures = []
    for title, kind, write in (
        ("Throughput by connections", "throughput", _throughput),
        ("Latency by offered rate, corrected for coordinated omission", "latency", _latency),
    ):
        file = f"{name}-{kind}.svg"
        write(raw)
        pyplot.suptitle(title, fontsize=11, y=1.01)
        pyplot.savefig(folder / file, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
        pyplot.close()
        pictures.append((title, file))
    return pictures


def _throughput(raw):
    _, axes = pyplot.subplots(figsize=(7, 4))
    for name, points in raw["closed loop"].items():
        colour, marker = STYLES[name]
        counts = [point["connections"] for point in points]
        rates = [point["requests_per_second"] for point in points]
        axes.plot(counts, rates, color=colour, marker=marker, markersize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([point["connections"] for point in points])
    _plain(axes.xaxis, axes.yaxis)
    axes.set_xlabel("connections, closed loop")
    axes.set_ylabel("requests/s")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _latency(raw):
    _, both = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axes, quantile in zip(both, ("p50", "p99")):
        for name, points in raw["open loop"].items():
            colour, marker = STYLES[name]
            rates = [point["offered"] for point in points]
            latencies = [point[f"{quantile}_ms"] for point in points]
            axes.plot(rates, latencies, color=colour, marker=marker, markersize=4, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain(axes.xaxis, axes.yaxis)
        axes.set_xlabel("offered requests/s, open loop")
        axes.set_title(quantile, fontsize=10)
    both[0].set_ylabel("latency, ms")
    both[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _plain(*axes):
    """Numbers as people write them, and none between the powers."""
    for axis in axes:
        axis.set_major_formatter(PLAIN)
        axis.set_minor_formatter(NullFormatter())
