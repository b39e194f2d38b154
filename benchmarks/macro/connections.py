"""CPU per request, and memory, against the number of open connections.

As `capture`, at a fixed rate. Of the connections one in a hundred, and a hundred at least, carry requests; the others
have carried one each and stay open, on production and on the upstream. The numbers take turns within each round. It all
happens in a network namespace of its own, where there are local ports enough.
"""

from __future__ import annotations

import resource
import sys

from benchmarks import harness
from benchmarks.macro import capture

FEWEST_ACTIVE = 100
ACTIVE_RATIO = 0.01
MOST = 20_000
# Of each program's open files: those that are no connections.
SPARE_FILES = 200
# What the figures of the largest number are compared with.
BASE = 100
RATIO_BAR = 1.3
MEMORY_BAR_KIB = 6


def most() -> int:
    """As many as the bar asks for, or as the limit on open files, which each program here is under, leaves."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if hard == resource.RLIM_INFINITY else min(MOST, hard - SPARE_FILES)


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    harness.enter_own_network()
    rounds = []
    with capture.set_up() as bench:
        for number in range(options.rounds):
            for count in options.counts:
                active = min(count, max(FEWEST_ACTIVE, round(count * ACTIVE_RATIO)))
                option = [*options.option, f"--max-connections={count + 1000}"]
                settings = capture.changed(options, connections=count, active=active, option=option)
                done = capture.gopher_round(settings, bench)
                rounds.append({"connections": count, "active": active, "gopher": done})
                print(
                    f"round {number + 1}, {count} connections: {done['cpu_us']:.2f} us a request,"
                    f" {done['resident_now_mib']:.1f} MiB, lost {done['lost']}",
                    file=sys.stderr,
                )
    return figures(options, rounds), rounds


def figures(options, rounds: list[dict]) -> list[dict]:
    of = {count: [r["gopher"] for r in rounds if r["connections"] == count] for count in options.counts}
    lines = []
    for count, gopher in of.items():
        where = f"{count} connections, {options.rate}/s"
        lines += [
            harness.figure(f"CPU per request, {where}", "us", [r["cpu_us"] for r in gopher]),
            harness.figure(f"requests lost, {where}", "requests", [r["lost"] for r in gopher], 0, every_round=True),
        ]
    least, most = of[min(of)], of[max(of)]
    added = max(of) - min(of)
    ratios = [many["cpu_us"] / few["cpu_us"] for few, many in zip(least, most, strict=True)]
    kib = [
        (many["resident_now_mib"] - few["resident_now_mib"]) * 1024 / added
        for few, many in zip(least, most, strict=True)
    ]
    return [
        *lines,
        harness.figure(f"CPU per request, {max(of)} connections / {min(of)}", "ratio", ratios, RATIO_BAR),
        harness.figure("resident memory per open connection and upstream", "KiB", kib, MEMORY_BAR_KIB),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=2)
    harness.add_gopher_option(parser)
    capture.add_workload_options(parser, rate=10_000)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, BASE, 1_000, 5_000, most()])
    return harness.run("connections", measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
