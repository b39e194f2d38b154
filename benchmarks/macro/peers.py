"""gopher beside other capturing mirrors, at 1,000 requests a second and at saturation: CPU per request, and loss.

    wrk ══ cable ══► production nginx ─ ─ ► gopher, goreplay or tcpcopy ══ cable ══► shadow nginx ─► intercept
    ╰────── production's core ──────╯       ╰────────────── the shadow's core, in turns ──────────────╯

Each takes its turn within a round, on the same core, with the same load and the same shadow server, and is measured in
the same way: CPU of the whole process from the start of the load until nothing more arrives, for each request that has
arrived; lost is what production served and the shadow did not get, by the servers' own counts. tcpcopy cannot do
without intercept, so both count.

All of it happens in two networks made for it, joined by a cable: production and the mirrors in one, clients and the
shadow in the other. tcpcopy needs that, for it sends with made-up clients' addresses and nobody may take the shadow's
answers to those; and the mirrors see only what comes in, where a loopback device would show them both directions.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks import harness
from benchmarks.macro import capture

LOW_RATE = 1_000
# goreplay may hold a message back for as long as two seconds (--input-raw-expire).
QUIET_S = 3.0
# gopher's CPU per request at saturation, as a part of each peer's.
BARS = {"goreplay": 1 / 12, "tcpcopy+intercept": 1}
PROGRAMS = {"goreplay": ("gor",), "tcpcopy+intercept": ("tcpcopy", "intercept")}
# What tcpcopy puts in place of the clients' network.
MIRRORED_CLIENTS = "198.51.100"


@contextlib.contextmanager
def goreplay(bench: capture.Bench) -> Iterator[tuple[harness.Process, ...]]:
    """`gor`, pinned where gopher is."""
    production, sink = bench.production, bench.sink
    raw, out = f":{production.port}", f"http://{sink.host.address}:{sink.port}"
    command = ("gor", "--input-raw", raw, "--output-http", out)
    with harness.Process(
        production.host.pinned(harness.SHADOW_CORE, *command), bench.directory / "gor.log", stdout=subprocess.DEVNULL
    ) as gor:
        time.sleep(2)  # it says nothing when it captures
        yield (gor,)


@contextlib.contextmanager
def tcpcopy(bench: capture.Bench) -> Iterator[tuple[harness.Process, ...]]:
    """`tcpcopy` beside production and `intercept` beside the shadow, both pinned where gopher is.

    What the shadow answers leaves by the cable, where intercept sees it and tells tcpcopy, and ends at the other side.
    """
    production, sink, ip = bench.production, bench.sink, harness.require_program("ip")
    there, here = production.host, sink.host
    clients = f"{MIRRORED_CLIENTS}.0/24"
    subprocess.run([*here.enter, ip, "route", "replace", clients, "via", there.address], check=True)
    subprocess.run([*there.enter, ip, "route", "replace", "blackhole", clients], check=True)
    [port] = map(str, harness.free_ports(1))
    log = ("-p", port, "-l", "/dev/stderr")
    from_sink = ("-i", here.device, "-F", f"tcp and src port {sink.port}")
    to_sink = ("-x", f"{production.port}-{here.address}:{sink.port}", "-c", f"{MIRRORED_CLIENTS}.x", "-s", here.address)
    with harness.Process(
        here.pinned(harness.SHADOW_CORE, "intercept", *from_sink, *log), bench.directory / "intercept.log"
    ) as intercept:
        intercept.wait_for("pcap open")
        with harness.Process(
            there.pinned(harness.SHADOW_CORE, "tcpcopy", *to_sink, *log), bench.directory / "tcpcopy.log"
        ) as copier:
            intercept.wait_for("it adds fd")
            time.sleep(0.5)  # it says nothing when it captures
            yield copier, intercept


PEERS = {"goreplay": goreplay, "tcpcopy+intercept": tcpcopy}


def missing(peer: str) -> list[str]:
    return [program for program in PROGRAMS[peer] if shutil.which(program) is None]


def installed() -> list[str]:
    return [peer for peer in PEERS if not missing(peer)]


def not_run(*peers: str) -> list[dict]:
    """The lines of the results table for those of the peers that are not installed."""
    return [
        harness.not_run(peer, f"not on PATH: {', '.join(programs)}") for peer in peers if (programs := missing(peer))
    ]


def mirror_round(options, bench: capture.Bench, *mirror: harness.Process) -> dict:
    """One load, mirrored by the processes of `mirror`, which have started."""
    production, sink = bench.production, bench.sink

    def cpu_s() -> float:
        return sum(sum(process.cpu_s()) for process in mirror)

    served_before, arrived_before, cpu_before = production.requests(), sink.requests(), cpu_s()
    with capture.start_load(options, bench, options.seconds) as load:
        if options.rate:
            load.wait()
        else:
            time.sleep(options.seconds)
            load.freeze()
        served = harness.wait_until_settled(production.requests, 0.1) - served_before
        arrived = harness.wait_until_settled(sink.requests, QUIET_S, expected=arrived_before + served) - arrived_before
        used_s = cpu_s() - cpu_before
    return {
        "requests": served,
        "arrived": arrived,
        "requests_per_s": served / options.seconds,
        "lost": served - arrived,
        "cpu_us": used_s / max(1, arrived) * 1e6,
    }


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    there, here = harness.enter_joined_networks()
    rounds = []
    with capture.set_up(production_host=there, sink_host=here) as bench:
        for number in range(options.rounds):
            for rate in options.rates:
                settings = capture.changed(options, rate=rate)
                one: dict = {"rate": rate}
                with bench.gopher(options) as gopher:
                    one["gopher"] = mirror_round(settings, bench, gopher)
                    gopher.end()
                for peer in installed():
                    with PEERS[peer](bench) as mirror:
                        one[peer] = mirror_round(settings, bench, *mirror)
                rounds.append(one)
                words = [f"{side} {one[side]['cpu_us']:.1f} us, lost {one[side]['lost']}" for side in sides(one)]
                print(f"round {number + 1}, {load_name(rate)}: {'; '.join(words)}", file=sys.stderr)
    return [*figures(options, rounds), *not_run(*PEERS)], rounds


def sides(one: dict) -> list[str]:
    return [side for side in ("gopher", *PEERS) if side in one]


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
        for peer in sides(here[0])[1:]:
            ratios = [r["gopher"]["cpu_us"] / r[peer]["cpu_us"] for r in here]
            bar = None if rate else BARS[peer]
            lines.append(harness.figure(f"CPU per request, gopher / {peer} ({where})", "ratio", ratios, bar))
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=2)
    harness.add_gopher_option(parser)
    capture.add_workload_options(parser)
    parser.add_argument("--rates", type=int, nargs="+", default=[LOW_RATE, 0], help="0: wrk flat out")
    return harness.run("peers", measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
