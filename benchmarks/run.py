"""Runs every benchmark there is and writes benchmarks/results/: a JSON file each, all figures in results.md, and plots.

What cannot be run here (a program that is not installed, no permission to capture) is named as not run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that `python benchmarks/run.py` works as well as `python -m benchmarks.run`

from benchmarks import harness, plots  # noqa: E402

CAPTURE = "benchmarks.macro.capture"
UPLOADS = [CAPTURE, "--bytes=1048576", "--connections=10", "--cold"]
# So many that wake-ups (some 125 a second at any rate) do not hide the cost of the bytes. Whether the core carries them
# without loss, with the shadow server beside gopher, is a figure of the result.
UPLOADS_PER_S = 600
# One core holds the shadow servers and gopher, so more upstreams than one are measured at a rate that leaves it room.
BENCHMARKS = {
    "framing": ["benchmarks.micro.framing"],
    "feed": ["benchmarks.micro.feed"],
    "capture": [CAPTURE],
    "capture-100-bytes": [CAPTURE, "--bytes=100"],
    "capture-1000-per-s": [CAPTURE, "--rate=1000"],
    "capture-10000-per-s": [CAPTURE, "--rate=10000"],
    "capture-2-upstreams": [CAPTURE, "--rate=10000", "--upstreams=2"],
    "capture-3-upstreams": [CAPTURE, "--rate=10000", "--upstreams=3"],
    "capture-once": [CAPTURE, "--mode=once", "--rate=4000", "--bar=1.5"],
    "capture-16-kib": [CAPTURE, "--bytes=16384", "--rate=5000"],
    # 0.8 of the floor's bytes per CPU second. At the lower rate the wake-ups are a large part of the cost.
    "capture-1-mib": [*UPLOADS, f"--rate={UPLOADS_PER_S}", "--bar=1.25"],
    "capture-1-mib-200-per-s": [*UPLOADS, "--rate=200"],
    "upstreams": ["benchmarks.macro.upstreams"],
    "peers": ["benchmarks.macro.peers"],
    "idle": ["benchmarks.macro.idle"],
    "connections": ["benchmarks.macro.connections"],
    "rates": ["benchmarks.macro.rates"],
    "inline": ["benchmarks.macro.inline"],
    "offline": ["benchmarks.macro.offline"],
    "offline-peers": ["benchmarks.macro.offline", "--bytes=100000000", "--peers"],
    "latency": ["benchmarks.macro.latency"],
    "workers": ["benchmarks.macro.workers"],
    "relay": ["benchmarks.macro.relay"],
}


def run_one(name: str, results: Path, passed_on: list[str]) -> str:
    """Returns the benchmark's section of the table file."""
    print(f"== {name}", flush=True)
    result = results / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", *BENCHMARKS[name], "--json", str(result), *passed_on]
    ran = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    if ran.returncode == harness.NOT_RUN:
        reason = ran.stderr.strip().splitlines()[-1]
        print(f"not run: {reason}", flush=True)
        return f"## {name}\n\nNot run: {reason}.\n"
    if ran.returncode != 0:
        raise SystemExit(f"{name} failed:\n{ran.stderr}")
    return section(name, result)


def section(name: str, result: Path) -> str:
    """What results.md says of a benchmark that was run."""
    done = json.loads(result.read_text())
    load = done["machine"]["load_average_at_start"][0]
    settings = (
        f"{done['machine']['utc']} UTC, load average before {load:.2f}, rounds of {done['settings']['seconds']:g} s"
    )
    return f"## {name}\n\n{settings}\n\n{harness.table(done['figures'])}\n"


def describe(machine: dict) -> str:
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in machine["versions"].items())
    kind = "virtual machine" if machine["virtual"] else "machine"
    load = " ".join(f"{value:.2f}" for value in machine["load_average_at_start"])
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({kind}), {machine['memory_gib']} GiB, Linux {machine['kernel']},"
        f" Python {machine['python']}, {versions}; load average at the start {load}; {machine['utc']} UTC."
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="BENCHMARK", help=f"of {', '.join(BENCHMARKS)}; all of them if none"
    )
    parser.add_argument("--seconds", help="length of a round (default: each benchmark's own)")
    parser.add_argument("--rounds", help="default: each benchmark's own, 5 at least")
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="directory (default %(default)s)")
    parser.add_argument("--collect", action="store_true", help="run nothing: tables and plots of the results there are")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    passed_on = [f"--{key}={value}" for key in ("seconds", "rounds") if (value := getattr(options, key)) is not None]
    options.results.mkdir(parents=True, exist_ok=True)
    sections = ["# Benchmark results\n", describe(harness.machine()) + "\n"]
    if options.collect:
        there = {name: options.results / f"{name}.json" for name in BENCHMARKS}
        sections += [section(name, path) for name, path in there.items() if path.exists()]
        sections += [f"## {name}\n\nNot run.\n" for name, path in there.items() if not path.exists()]
    else:
        sections += [run_one(name, options.results, passed_on) for name in options.names or BENCHMARKS]
    (options.results / "results.md").write_text("\n".join(sections))
    try:
        print(f"drawn: {', '.join(plots.draw_all(options.results))}")
    except harness.NotRun as missing:
        print(f"plots not run: {missing}")
    print(f"written to {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
