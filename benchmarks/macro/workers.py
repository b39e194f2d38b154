"""Two workers against one, at the same offered rates in the same run: CPU per request, how flows are shared, loss.

As `capture`: gopher, all processes of it, has one core together with the shadow server. So this shows what sharing
costs, not what it gains: two workers on one core cannot do more than one. The figures of saturation are there to show
that nothing breaks; on a machine with cores to spare they would be the gain.
"""

from __future__ import annotations

import sys

from benchmarks import harness
from benchmarks.macro import capture

WORKERS = 2
# What wakes up has its price, so two workers cost the less the more there is to do; who has little to do needs no two.
CPU_BAR = 1.15
CPU_BAR_FROM_RATE = 20_000
# Of 200 connections each has 100 by chance; fewer than 70 come once in 50,000 runs.
SHARE_BAR = 0.65
SATURATION = 0


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    rounds = []
    with capture.set_up() as bench:
        for number in range(options.rounds):
            for rate in options.rates:
                done = {"rate": rate}
                # In turns, so that neither always comes first.
                for workers in ((1, WORKERS), (WORKERS, 1))[number % 2]:
                    option = [*options.option, f"--workers={workers}"]
                    done[str(workers)] = capture.gopher_round(capture.changed(options, rate=rate, option=option), bench)
                rounds.append(done)
                print(
                    f"round {number + 1}, {rate or 'all'}/s: {done['1']['cpu_us']:.2f} us a request,"
                    f" {done[str(WORKERS)]['cpu_us']:.2f} with {WORKERS} workers,"
                    f" lost {done['1']['lost']} and {done[str(WORKERS)]['lost']}",
                    file=sys.stderr,
                )
    return [line for rate in options.rates for line in figures(options, rate, rounds)], rounds


def figures(options, rate: int, rounds: list[dict]) -> list[dict]:
    here = [each for each in rounds if each["rate"] == rate]
    one, two = ([each[str(workers)] for each in here] for workers in (1, WORKERS))
    ratios = [b["cpu_us"] / a["cpu_us"] for a, b in zip(one, two, strict=True)]
    if rate == SATURATION:
        gain = [b["requests_per_s"] / a["requests_per_s"] for a, b in zip(one, two, strict=True)]
        label = "not meaningful on two cores"
        return [
            harness.figure(f"saturation, {WORKERS} workers / one: CPU per request ({label})", "ratio", ratios),
            harness.figure(f"saturation, {WORKERS} workers / one: requests mirrored ({label})", "ratio", gain),
            harness.figure(
                "saturation: requests lost", "requests", [each["lost"] for each in two], 0, every_round=True
            ),
        ]
    where = f"{rate}/s, {options.bytes} bytes, {options.connections} connections"
    bar = CPU_BAR if rate >= CPU_BAR_FROM_RATE else None
    larger = [max(each["workers"]["connections"]) / sum(each["workers"]["connections"]) for each in two]
    return [
        harness.figure(f"CPU per request, {WORKERS} workers / one ({where})", "ratio", ratios, bar),
        harness.figure(f"one worker: CPU per request, {rate}/s", "us", [each["cpu_us"] for each in one]),
        harness.figure(f"{WORKERS} workers: CPU per request, {rate}/s", "us", [each["cpu_us"] for each in two]),
        harness.figure(
            f"{WORKERS} workers: connections of the busier one, {rate}/s", "of all", larger, SHARE_BAR, every_round=True
        ),
        harness.figure(
            f"{WORKERS} workers: requests lost, {rate}/s", "requests", [r["lost"] for r in two], 0, every_round=True
        ),
        harness.figure(
            f"{WORKERS} workers: packets dropped by the kernel, {rate}/s",
            "packets",
            [each["kernel_drops"] for each in two],
            0,
            every_round=True,
        ),
        harness.figure(
            f"{WORKERS} workers: report's bytes against the servers' counts, {rate}/s",
            "bytes",
            [each["report_differs_bytes"] for each in two],
            0,
            every_round=True,
        ),
        harness.figure(
            f"{WORKERS} workers: resident memory at its peak, rings included, {rate}/s",
            "MiB",
            [each["resident_mib"] for each in two],
            digits=1,
        ),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=3)
    harness.add_gopher_option(parser)
    capture.add_workload_options(parser)
    parser.add_argument(
        "--rates", type=int, nargs="+", default=[5_000, 20_000, SATURATION], help="requests a second; 0: all there are"
    )
    return harness.run("workers", measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
