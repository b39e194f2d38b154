"""CPU per mirrored request: gopher against the floor, in the same run.

    wrk ──► production nginx        gopher ──► shadow nginx        floor ──► shadow nginx
    ╰─────── one core ───────╯      ╰───────────── the other core, in turns ───────────╯

Each round runs gopher under wrk for `--seconds`, then the floor for as long, with as many connections and the same
bytes, to the same shadow server, while wrk loads production again so that both have the same neighbours. gopher's
CPU is the whole process, user and system, from the end of a warm-up until the last request has arrived.

Loss is exact: wrk is stopped in the middle of its work (SIGSTOP: no connection closes), both servers finish what is on
the way, and then the two servers' own counts of requests are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import harness

WARM_UP_S = 0.5
# At a given rate the floor, too, may collect requests for as long as the kernel holds packets back for gopher.
FLOOR_INTERVAL_S = 0.010


def add_workload_options(parser: argparse.ArgumentParser, *, rate: int = 0, connections: int = 200) -> None:
    parser.add_argument("--connections", type=int, default=connections, help="default %(default)s")
    parser.add_argument("--active", type=int, default=0, help="how many of them carry requests; default all")
    parser.add_argument("--upstreams", type=int, default=1)
    parser.add_argument(
        "--rate", type=int, default=rate, help="requests a second; 0 is all that wrk can do (default %(default)s)"
    )
    parser.add_argument("--mode", choices=("keep", "once", "open"), default="keep", help="see floor.c")
    parser.add_argument("--bytes", type=int, default=harness.REQUEST_BYTES, help="of a request (default %(default)s)")


def changed(options, **settings: object) -> argparse.Namespace:
    """The same options, but for `settings`."""
    return argparse.Namespace(**{**vars(options), **settings})


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the rounds of a benchmark share: both servers, the floor's program, and a directory for what they write."""

    directory: Path
    floor: Path
    production: harness.Nginx
    sink: harness.Nginx

    def gopher(self, options) -> harness.Gopher:
        """A gopher that mirrors production to as many of the sink's ports as there are upstreams."""
        upstreams = self.sink.ports[: options.upstreams]
        hosts = {"host": self.production.host, "upstream_host": self.sink.host}
        return harness.Gopher(self.directory, options.gopher, self.production.port, upstreams, *options.option, **hosts)


@contextlib.contextmanager
def set_up(
    upstreams: int = 1, *, production_host: harness.Host = harness.HERE, sink_host: harness.Host = harness.HERE
) -> Iterator[Bench]:
    """Production on its core and the shadow, with a port for each upstream, on the other."""
    floor = harness.compile_c(Path(__file__).with_name("floor.c"))
    with harness.scratch() as name:
        directory = Path(name)
        with (
            harness.Nginx(directory / "production", harness.PRODUCTION_CORE, host=production_host) as production,
            harness.Nginx(directory / "shadow", harness.SHADOW_CORE, upstreams, host=sink_host) as sink,
        ):
            yield Bench(directory, floor, production, sink)


def request_for(options, port: int) -> bytes:
    return harness.request_of(port, options.bytes, close=options.mode == "once")


def floor_round(options, bench: Bench, *, cold: bool = False) -> dict:
    burst, interval_ns = options.connections, 0
    if options.rate:
        burst = min(options.active or options.connections, max(1, round(options.rate * FLOOR_INTERVAL_S)))
        interval_ns = round(burst / options.rate * 1e9)
    command = harness.pinned(
        harness.SHADOW_CORE,
        *floor_command(options, bench.floor, bench.sink.host, bench.sink.port, burst, interval_ns, options.seconds),
        *(["cold"] if cold else []),
    )
    request = request_for(options, bench.sink.port)
    ran = subprocess.run(command, input=request, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(ran.stdout)


def floor_command(
    options, floor: Path, host: harness.Host, port: int, burst: int, interval_ns: int, seconds: float
) -> list[str]:
    # The floor itself always waits for its answers.
    mode = options.mode if burst == 1 or options.mode != "open" else "keep"
    values = (port, options.connections, burst, interval_ns, seconds, mode, options.active or options.connections)
    return [str(floor), host.address, *map(str, values)]


class Load(harness.Process):
    """What sends requests to production."""

    def __init__(self, command: list[str], directory: Path, name: str, stdin: bytes | None = None) -> None:
        self._output = directory / f"{name}.out"
        request = directory / f"{name}.request"
        request.write_bytes(stdin or b"")
        with request.open("rb") as source, self._output.open("wb") as output:
            super().__init__(
                harness.pinned(harness.PRODUCTION_CORE, *command),
                directory / f"{name}.log",
                stdin=source,
                stdout=output,
            )
        if stdin is not None:
            self.wait_for("ready", 60)

    def wait_warm(self) -> None:
        """Wait until a paced load has stopped itself after its warm-up."""
        # WNOWAIT: if it ended instead, whoever asks for its exit status is to find it.
        if os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT).si_code != os.CLD_STOPPED:
            raise RuntimeError(f"the load generator failed: {self.log.read_text()}")

    def go_on(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def wait(self) -> dict:
        """Wait for the end of a paced load; returns what it says. Its connections stay open."""
        while not (said := self._output.read_text()).endswith("\n"):
            if self.popen.poll() is not None:
                raise RuntimeError(f"the load generator failed: {self.log.read_text()}")
            time.sleep(0.01)
        return json.loads(said)


def start_load(
    options, bench: Bench, seconds: float, *, port: int | None = None, warm_up_s: float | None = None
) -> Load:
    """wrk flat out until it is stopped; or, at a given rate, evenly spaced requests for `seconds`.

    They go to production, or to `port`. With `warm_up_s` a paced load does so for that long before, and then waits for
    `Load.go_on`.
    """
    host, port = bench.production.host, port or bench.production.port
    if options.rate:
        command = [*floor_command(options, bench.floor, host, port, 1, round(1e9 / options.rate), seconds), "hold"]
        if warm_up_s is not None:
            command.append(str(warm_up_s))
        return Load(command, bench.directory, "generator", request_for(options, port))
    head = f"GET / HTTP/1.1\r\nHost: {host.address}:{port}\r\n"
    wrk = (harness.require_program("wrk"), "-t1", f"-c{options.connections}", "-d1h")
    command = (*wrk, "-H", harness.padding_header(len(head), options.bytes), f"http://{host.address}:{port}/")
    return Load([str(word) for word in command], bench.directory, "wrk")


def gopher_round(options, bench: Bench) -> dict:
    production, sink = bench.production, bench.sink
    served_before, arrived_before = production.requests(), sink.requests()
    with bench.gopher(options) as gopher:
        with start_load(options, bench, options.seconds, warm_up_s=WARM_UP_S) as load:
            if options.rate:
                load.wait_warm()
                # Its last requests are not to be part of what comes now.
                harness.wait_until_settled(sink.requests, 0.1)
            else:
                time.sleep(WARM_UP_S)
            served_warm, began = production.requests(), time.monotonic()
            gopher_warm, sink_warm, core_warm = gopher.cpu_s(), sink.cpu_s(), harness.core_busy_s(harness.SHADOW_CORE)
            if options.rate:
                load.go_on()
                said = load.wait()
                generated = said["requests"]
            else:
                time.sleep(options.seconds)
                load.freeze()
                generated = None
            elapsed = time.monotonic() - began if generated is None else said["elapsed_s"]
            core_s = harness.core_busy_s(harness.SHADOW_CORE) - core_warm
            ours_s = sum(gopher.cpu_s()) - sum(gopher_warm) + sum(sink.cpu_s()) - sum(sink_warm)
            served = harness.wait_until_settled(production.requests, 0.1)
            expected = len(sink.ports[: options.upstreams]) * (served - served_before)
            counted = harness.wait_until_settled(sink.requests, 1.0, expected=arrived_before + expected)
            arrived = counted - arrived_before
            user_s, system_s = (now - warm for now, warm in zip(gopher.cpu_s(), gopher_warm, strict=True))
            resident, ring = gopher.peak_resident_mib(), gopher.ring_mib()
            resident_now = gopher.resident_mib()
        report = gopher.end()
    requests = served - served_warm
    latency = report["upstreams"][0]["latency"]
    captured = [upstream["captured_bytes"] for upstream in report["upstreams"]]
    return {
        "requests": requests,
        "generated": generated,
        "served": served - served_before,
        "arrived": arrived,
        "delivered_bytes": [upstream["delivered_bytes"] for upstream in report["upstreams"]],
        "latency": {**latency, "buckets": [each for each in latency["buckets"] if each["count"]]},
        "requests_per_s": requests / elapsed,
        "core_share": (user_s + system_s) / elapsed,
        "user_us": user_s / requests * 1e6,
        "system_us": system_s / requests * 1e6,
        "cpu_us": (user_s + system_s) / requests * 1e6,
        "others_percent": max(0.0, core_s - ours_s) / elapsed * 100,
        "lost": expected - arrived,
        "kernel_drops": report["packets"]["dropped_by_kernel"],
        "shed_bytes": sum(upstream["shed_bytes"] for upstream in report["upstreams"]),
        "report_differs_bytes": max(abs(options.bytes * (served - served_before) - had) for had in captured),
        "resident_mib": resident,
        "ring_mib": ring,
        "resident_now_mib": resident_now,
        "workers": report["workers"],
    }


def cpu_us(least: dict) -> float:
    """The floor's CPU in microseconds per request."""
    return (least["user_s"] + least["system_s"]) / least["requests"] * 1e6


def floor_beside_load(options, bench: Bench, *, cold: bool = False) -> tuple[dict, float]:
    """What the floor said, and its CPU in microseconds per request, while production is under the same load."""
    with start_load(options, bench, WARM_UP_S + options.seconds):
        time.sleep(WARM_UP_S)
        least = floor_round(options, bench, cold=cold)
    return least, cpu_us(least)


def one_round(options, bench: Bench) -> dict:
    gopher = gopher_round(options, bench)
    least, floor_us = floor_beside_load(options, bench)
    done = {
        "gopher": gopher,
        "floor": least,
        "floor_us": floor_us,
        "ratio": gopher["cpu_us"] / floor_us / options.upstreams,
    }
    if options.cold:
        done["cold_floor"], done["cold_floor_us"] = floor_beside_load(options, bench, cold=True)
        done["cold_ratio"] = gopher["cpu_us"] / done["cold_floor_us"] / options.upstreams
    return done


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    rounds = []
    with set_up(options.upstreams) as bench:
        for number in range(options.rounds):
            rounds.append(one_round(options, bench))
            mirrored, ratio = rounds[-1]["gopher"], rounds[-1]["ratio"]
            print(
                f"round {number + 1}: {mirrored['cpu_us']:.2f} us a request (user {mirrored['user_us']:.2f}),"
                f" floor {rounds[-1]['floor_us']:.2f} us, ratio {ratio:.2f},"
                f" {mirrored['requests_per_s']:.0f} requests/s, lost {mirrored['lost']}",
                file=sys.stderr,
            )
    return figures(options, rounds), rounds


def figures(options, rounds: list[dict]) -> list[dict]:
    load = f"{options.rate}/s" if options.rate else "wrk flat out"
    kind = "one request each, " if options.mode == "once" else ""
    connections = f"{kind}{options.connections} connections"
    where = f"{load}, {options.bytes} bytes, {connections}, {options.upstreams} upstream(s)"
    of = {key: [r["gopher"][key] for r in rounds] for key in rounds[0]["gopher"]}
    bar = options.bar if options.bar or options.rate or options.upstreams > 1 else 1.2
    name = f"CPU per request and upstream / floor ({where})"
    lines = [harness.figure(name, "ratio", [r["ratio"] for r in rounds], bar)]
    if options.cold:
        lines += [
            harness.figure(
                f"{name}, which also reads its bytes from memory", "ratio", [r["cold_ratio"] for r in rounds]
            ),
            harness.figure("this floor's CPU per request", "us", [r["cold_floor_us"] for r in rounds]),
        ]
    return [
        *lines,
        harness.figure("gopher's CPU per request", "us", of["cpu_us"]),
        harness.figure("of it in user space", "us", of["user_us"]),
        harness.figure("the floor's CPU per request", "us", [r["floor_us"] for r in rounds]),
        harness.figure("requests mirrored", "1/s", of["requests_per_s"], digits=0),
        harness.figure("requests lost", "requests", of["lost"], 0, every_round=True),
        harness.figure(
            "report's bytes against the servers' counts", "bytes", of["report_differs_bytes"], 0, every_round=True
        ),
        harness.figure("packets dropped by the kernel", "packets", of["kernel_drops"], 0, every_round=True),
        harness.figure("the core's time taken by other programs", "%", of["others_percent"], digits=1),
        harness.figure(
            "resident memory at its peak, ring included", "MiB", of["resident_mib"], 128, every_round=True, digits=1
        ),
        harness.figure("of it the capture ring", "MiB", of["ring_mib"], digits=1),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=3)
    harness.add_gopher_option(parser)
    add_workload_options(parser)
    parser.add_argument(
        "--cold",
        action="store_true",
        help="a second floor too, whose bytes are not in the processor's cache either; the bar is then for it",
    )
    parser.add_argument("--bar", type=float, help="what the ratio may be at most")
    options = parser.parse_args(argv)
    return harness.run("capture", measure, options)


if __name__ == "__main__":
    sys.exit(main())
