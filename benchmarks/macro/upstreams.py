"""What each further upstream adds to the CPU per mirrored request, in floors.

As `capture`, at a fixed rate that leaves the core of gopher and the upstreams room: one upstream, two, three, and the
floor, in turns within each round. What the second adds is the CPU with two less that with one.
"""

from __future__ import annotations

import sys

from benchmarks import harness
from benchmarks.macro import capture

MOST = 3
ADDED_BAR = 1.1


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    rounds = []
    with capture.set_up(MOST) as bench:
        for number in range(options.rounds):
            one: dict = {"gopher": []}
            for upstreams in range(1, MOST + 1):
                one["gopher"].append(capture.gopher_round(capture.changed(options, upstreams=upstreams), bench))
            one["floor"], one["floor_us"] = capture.floor_beside_load(options, bench)
            rounds.append(one)
            used = ", ".join(f"{done['cpu_us']:.2f}" for done in one["gopher"])
            print(f"round {number + 1}: {used} us a request, floor {one['floor_us']:.2f} us", file=sys.stderr)
    return figures(options, rounds), rounds


def figures(options, rounds: list[dict]) -> list[dict]:
    where = f"{options.rate}/s, {options.bytes} bytes, {options.connections} connections"
    lines = [harness.figure(f"the floor's CPU per request ({where})", "us", [r["floor_us"] for r in rounds])]
    for upstreams in range(1, MOST + 1):
        here = [r["gopher"][upstreams - 1] for r in rounds]
        lines += [
            harness.figure(f"CPU per request, {upstreams} upstream(s)", "us", [done["cpu_us"] for done in here]),
            harness.figure(
                f"requests lost, {upstreams} upstream(s)",
                "requests",
                [done["lost"] for done in here],
                0,
                every_round=True,
            ),
        ]
    for upstreams, name in ((2, "second"), (3, "third")):
        added = [
            (r["gopher"][upstreams - 1]["cpu_us"] - r["gopher"][upstreams - 2]["cpu_us"]) / r["floor_us"]
            for r in rounds
        ]
        lines.append(harness.figure(f"what the {name} upstream adds / floor", "ratio", added, ADDED_BAR))
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=3)
    harness.add_gopher_option(parser)
    capture.add_workload_options(parser, rate=10_000)
    return harness.run("upstreams", measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
