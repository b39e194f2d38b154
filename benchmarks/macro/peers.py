"""gopher beside other capturing mirrors, at 1,000 requests a second and at saturation: CPU per request, and loss.

Each takes its turn within a round, on the same core, with the same load and the same shadow server, and is measured in
the same way: CPU of the whole process from the start of the load until nothing more arrives, for each request that has
arrived; lost is what production served and the shadow did not get, by the servers' own counts.
"""

from __future__ import annotations

import shutil
import sys
import time

from benchmarks import harness
from benchmarks.macro import capture

LOW_RATE = 1_000
# goreplay may hold a message back for as long as two seconds (--input-raw-expire).
QUIET_S = 3.0
# gopher's CPU per request at saturation, as a part of goreplay's.
GOREPLAY_BAR = 1 / 12


class Goreplay(harness.Process):
    """`gor`, pinned where gopher is."""

    def __init__(self, bench: capture.Bench) -> None:
        raw, out = f":{bench.production.port}", f"http://{harness.LOOPBACK}:{bench.sink.port}"
        command = ("gor", "--input-raw", raw, "--output-http", out)
        super().__init__(harness.pinned(harness.SHADOW_CORE, *command), bench.directory / "gor.log")
        time.sleep(2)  # it says nothing when it captures


def missing_peers() -> list[dict]:
    """The lines of the results table for the peers that are not run."""
    lines = []
    if shutil.which("gor") is None:
        lines.append(harness.not_run("goreplay", "gor is not installed"))
    if shutil.which("tcpcopy") is None:
        lines.append(harness.not_run("tcpcopy", "tcpcopy is not installed"))
    else:
        lines.append(harness.not_run("tcpcopy", "its intercept needs a machine and a route of its own"))
    return lines


def mirror_round(options, mirror: harness.Process, bench: capture.Bench) -> dict:
    """One load, mirrored by `mirror`, which has started."""
    production, sink = bench.production, bench.sink
    served_before, arrived_before, cpu_before = production.requests(), sink.requests(), sum(mirror.cpu_s())
    with capture.start_load(options, bench, options.seconds) as load:
        if options.rate:
            load.wait()
        else:
            time.sleep(options.seconds)
            load.freeze()
        served = harness.wait_until_settled(production.requests, 0.1) - served_before
        arrived = sink.requests() - arrived_before
        if arrived < served:
            arrived = harness.wait_until_settled(sink.requests, QUIET_S) - arrived_before
        cpu_s = sum(mirror.cpu_s()) - cpu_before
    return {
        "requests": served,
        "arrived": arrived,
        "requests_per_s": served / options.seconds,
        "lost": served - arrived,
        "cpu_us": cpu_s / max(1, arrived) * 1e6,
    }


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    rounds = []
    with capture.set_up() as bench:
        for number in range(options.rounds):
            for rate in options.rates:
                settings = capture.changed(options, rate=rate)
                one: dict = {"rate": rate}
                with bench.gopher(options) as gopher:
                    one["gopher"] = mirror_round(settings, gopher, bench)
                    gopher.end()
                if shutil.which("gor"):
                    with Goreplay(bench) as gor:
                        one["goreplay"] = mirror_round(settings, gor, bench)
                rounds.append(one)
                words = [f"{side} {one[side]['cpu_us']:.1f} us, lost {one[side]['lost']}" for side in sides(one)]
                print(f"round {number + 1}, {load_name(rate)}: {'; '.join(words)}", file=sys.stderr)
    return [*figures(options, rounds), *missing_peers()], rounds


def sides(one: dict) -> list[str]:
    return [side for side in ("gopher", "goreplay") if side in one]


def load_name(rate: int) -> str:
    return f"{rate}/s" if rate else "wrk flat out"


def figures(options, rounds: list[dict]) -> list[dict]:
    lines = []
    for rate in options.rates:
        here = [r for r in rounds if r["rate"] == rate]
        where = f"{load_name(rate)}, {options.connections} connections"
        for side in sides(here[0]):
            lost = [100 * r[side]["lost"] / r[side]["requests"] for r in here]
            offered = [r[side]["requests_per_s"] for r in here]
            bar = 0 if side == "gopher" else None
            lines += [
                harness.figure(f"{side}: CPU per request ({where})", "us", [r[side]["cpu_us"] for r in here]),
                harness.figure(f"{side}: lost ({where})", "%", lost, bar, every_round=True),
                harness.figure(f"{side}: production served ({where})", "1/s", offered, digits=0),
            ]
        if "goreplay" in here[0]:
            ratios = [r["gopher"]["cpu_us"] / r["goreplay"]["cpu_us"] for r in here]
            bar = None if rate else GOREPLAY_BAR
            lines.append(harness.figure(f"CPU per request, gopher / goreplay ({where})", "ratio", ratios, bar))
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=2)
    harness.add_gopher_option(parser)
    capture.add_workload_options(parser)
    parser.add_argument("--rates", type=int, nargs="+", default=[LOW_RATE, 0], help="0: wrk flat out")
    return harness.run("peers", measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
