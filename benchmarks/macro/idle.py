"""What gopher costs while nothing comes: its share of a core, capturing a port that is not used."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks import harness

BAR_PERCENT = 0.5


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    rounds = []
    with harness.scratch() as name:
        port, upstream = harness.free_ports(2)
        with harness.Gopher(Path(name), options.gopher, port, [upstream], *options.option) as gopher:
            time.sleep(0.5)
            for _ in range(options.rounds):
                cpu_s, began = sum(gopher.cpu_s()), time.monotonic()
                time.sleep(options.seconds)
                share = (sum(gopher.cpu_s()) - cpu_s) / (time.monotonic() - began)
                rounds.append({"core_share": share})
            received = gopher.end()["packets"]["processed"]
    for done in rounds:
        done["packets"] = received
    return [
        harness.figure("gopher without traffic", "% of a core", [100 * r["core_share"] for r in rounds], BAR_PERCENT)
    ], rounds


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=5)
    harness.add_gopher_option(parser)
    return harness.run("idle", measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
