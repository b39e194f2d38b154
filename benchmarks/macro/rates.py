"""Loss and latency against the offered rate, with an open-loop generator: a slow server does not hide loss.

The generator sends by the clock, evenly spaced, and never waits for an answer. Lost is what production served and the
shadow did not get, by their own counts; latency is gopher's own histogram, from the kernel's time stamp of a packet to
the moment the upstream's socket has taken it. goreplay does the same where it is on PATH.
"""

from __future__ import annotations

import sys

from benchmarks import harness
from benchmarks.macro import capture, peers
from gopher.observe.accounts import LatencyAccount, LatencyBucket

MODES = {"default": (), "--low-latency": ("--low-latency",)}


def quantile_ms(latency: dict, share: float) -> float:
    """From the report's buckets."""
    # Buckets that are empty were left out of the results, so the lower bound of each is looked up.
    buckets = []
    for each in latency["buckets"]:
        up_to_s = each["up_to_s"]
        if up_to_s is not None:
            exponent = 0
            while 2**exponent * 2**14 < up_to_s * 1e9 * 0.999:
                exponent += 1
            octave_s = 2 ** (exponent - 1) * 2**14 / 1e9
            below_s = octave_s if up_to_s > octave_s * 1.49 and up_to_s < octave_s * 1.51 else octave_s * 1.5
            if exponent and (not buckets or buckets[-1].up_to_s < below_s * 0.999):
                buckets.append(LatencyBucket(below_s, 0))
        buckets.append(LatencyBucket(up_to_s, each["count"]))
    account = LatencyAccount(count=latency["count"], sum_s=latency["sum_s"], buckets=tuple(buckets))
    return 1e3 * (account.quantile_s(share) or 0.0)


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    goreplay = "goreplay" in peers.installed()
    rounds = []
    with capture.set_up() as bench:
        for number in range(options.rounds):
            for rate in options.rates:
                for mode, words in MODES.items():
                    settings = capture.changed(options, rate=rate, option=[*options.option, *words])
                    done = capture.gopher_round(settings, bench)
                    rounds.append({"rate": rate, "program": f"gopher, {mode}", **done})
                    print(
                        f"round {number + 1}, {rate}/s, {mode}: {done['requests_per_s']:.0f}/s came, lost"
                        f" {done['lost']}, {done['cpu_us']:.2f} us a request",
                        file=sys.stderr,
                    )
                if goreplay:
                    with peers.goreplay(bench) as gor:
                        done = peers.mirror_round(capture.changed(options, rate=rate), bench, *gor)
                    rounds.append({"rate": rate, "program": "goreplay", **done})
    lines = figures(options, rounds)
    if not goreplay:
        lines += peers.not_run("goreplay")
    return lines, rounds


def figures(options, rounds: list[dict]) -> list[dict]:
    lines = []
    for rate in options.rates:
        for program in dict.fromkeys(r["program"] for r in rounds):
            here = [r for r in rounds if r["rate"] == rate and r["program"] == program]
            where = f"{program}, {rate}/s offered"
            lost = [100 * r["lost"] / r["served"] if "served" in r else 100 * r["lost"] / r["requests"] for r in here]
            lines += [
                harness.figure(f"{where}: lost", "%", lost),
                harness.figure(f"{where}: CPU per request", "us", [r["cpu_us"] for r in here]),
            ]
            if "latency" in here[0]:
                for name, share in (("p50", 0.5), ("p99", 0.99)):
                    values = [quantile_ms(r["latency"], share) for r in here]
                    lines.append(harness.figure(f"{where}: tap to socket, {name}", "ms", values))
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=2)
    harness.add_gopher_option(parser)
    capture.add_workload_options(parser, rate=1)
    parser.add_argument("--rates", type=int, nargs="+", default=[100, 1_000, 5_000, 20_000, 40_000, 80_000])
    parser.set_defaults(mode="open")
    return harness.run("rates", measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
