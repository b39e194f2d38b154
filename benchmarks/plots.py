"""Draws benchmarks/results/*.svg from the JSON files beside them; needs matplotlib (gopher-mirror[bench]).

It computes nothing but medians: what is drawn is in the tables, with the lowest and the highest round as whiskers.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from benchmarks import harness

GOPHER, OTHER = "#2a7f9e", "#b0b0b0"


def draw_all(results: Path) -> list[str]:
    """Returns the names of the files written.

    Raises:
        NotRun: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as missing:
        raise harness.NotRun("matplotlib is not installed") from missing
    # Text as text and no random names: small files, and the same for the same figures.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "gopher", "font.size": 9})
    matplotlib.use("svg")
    written = []
    for name, (source, draw) in PLOTS.items():
        path = results / f"{source}.json"
        if path.exists():
            axes = _axes()
            draw(axes, json.loads(path.read_text()))
            axes.figure.savefig(results / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
            written.append(f"{name}.svg")
    return written


def _axes():  # matplotlib may be missing where this module is read
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6.4, 2.8)).add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _spread(values: list[float]) -> tuple[float, float, float]:
    middle = statistics.median(values)
    return middle, middle - min(values), max(values) - middle


def _bars(axes, values: dict[str, list[float]], unit: str) -> None:
    spreads = [_spread(each) for each in values.values()]
    colours = [GOPHER if "gopher" in name else OTHER for name in values]
    medians, errors = [s[0] for s in spreads], [[s[1] for s in spreads], [s[2] for s in spreads]]
    axes.barh(list(values), medians, xerr=errors, color=colours, capsize=2)
    for row, (middle, _, above) in enumerate(spreads):
        axes.text(middle + above, row, f"  {middle:.3g}", va="center")
    axes.invert_yaxis()
    axes.set_xlabel(unit)


def cpu(axes, result: dict) -> None:
    rounds = [each["cpu"] for each in result["rounds"]]
    values = {
        side: [r[side]["cpu_us"] for r in rounds] for side in ("floor", "gopher", "goreplay") if side in rounds[0]
    }
    for side in rounds[0]:
        mirroring = f"{side}, mirroring"
        if mirroring in rounds[0]:
            values[f"{side}'s mirroring"] = [r[mirroring]["cpu_us"] - r[side]["cpu_us"] for r in rounds]
    _bars(axes, values, "µs of CPU per mirrored request")
    missing = [f"{each['figure']} ({each['not_run']})" for each in result["figures"] if "not_run" in each]
    rate = result["settings"]["rate"]
    axes.set_title(f"{rate:,} requests/s" + (f"; not run: {', '.join(missing)}" if missing else ""), fontsize=8)


def peers(axes, result: dict) -> None:
    values = {}
    for rate in sorted({each["rate"] for each in result["rounds"]}, key=lambda rate: rate or math.inf):
        here = [each for each in result["rounds"] if each["rate"] == rate]
        for side in (side for side in here[0] if side != "rate"):
            lost = statistics.median(100 * each[side]["lost"] / each[side]["requests"] for each in here)
            note = f" ({lost:.0f} % lost)" if lost >= 1 else ""
            load = f"{rate:,}/s" if rate else "flat out"
            values[f"{side}, {load}{note}"] = [each[side]["cpu_us"] for each in here]
    _bars(axes, values, "µs of CPU for each request that arrived")
    axes.set_xscale("log")
    axes.set_xlim(1, 2 * axes.get_xlim()[1])
    axes.set_title("mirrors that capture, each on the same core under the same load", fontsize=8)


def waiting(axes, result: dict) -> None:
    rounds = [each["latency"] for each in result["rounds"]]
    _bars(axes, {side: [r[side]["p50_ms"] for r in rounds] for side in rounds[0]}, "ms that clients wait, median")
    axes.set_title("production's own clients, while the shadow takes 200 ms to answer", fontsize=8)


def loss(axes, result: dict) -> None:
    for program in dict.fromkeys(each["program"] for each in result["rounds"]):
        here = [each for each in result["rounds"] if each["program"] == program]
        rates = sorted({each["rate"] for each in here})
        lost = [[100 * e["lost"] / e["requests"] for e in here if e["rate"] == rate] for rate in rates]
        axes.plot(rates, [statistics.median(each) for each in lost], marker="o", label=program)
    axes.set_xscale("log")
    axes.set_ylim(-1, max(10, axes.get_ylim()[1]))
    axes.set_xlabel("requests/s offered (open loop)")
    axes.set_ylabel("% lost")
    axes.legend()


def connections(axes, result: dict) -> None:
    counts = sorted({each["connections"] for each in result["rounds"]})
    spreads = [
        _spread([e["gopher"]["cpu_us"] for e in result["rounds"] if e["connections"] == count]) for count in counts
    ]
    errors = [[s[1] for s in spreads], [s[2] for s in spreads]]
    axes.errorbar(counts, [s[0] for s in spreads], yerr=errors, marker="o", capsize=2, color=GOPHER)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"open connections ({result['settings']['rate']:,} requests/s on 1 % of them, 100 at least)")
    axes.set_ylabel("µs of CPU per request")


PLOTS = {
    "cpu": ("inline", cpu),
    "peers": ("peers", peers),
    "waiting": ("inline", waiting),
    "loss": ("rates", loss),
    "connections": ("connections", connections),
}
"""File name: the benchmark it is drawn from, and how."""
