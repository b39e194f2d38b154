"""The inline alternative: a proxy in front of production that mirrors. What it costs, and what it does to production.

    client ──► front (nginx or Envoy) ──► production        gopher beside a front that does not mirror
                └─ mirrors to ──► shadow                      └─ mirrors to ──► the same shadow

Two questions, each side in turns within a round:

* CPU per mirrored request, at a fixed rate, with a quick shadow: for a proxy that mirrors, the same proxy's CPU without
  mirroring taken off; for gopher the whole process; and the floor.
* How long clients wait on keep-alive connections when the shadow takes 200 ms to answer. gopher must not show.

The front, gopher, the floor and the shadow share one core; production and the load have the other.
"""

from __future__ import annotations

import math
import selectors
import socket
import statistics
import sys
import time
from pathlib import Path

from benchmarks import harness
from benchmarks.macro import capture, peers, proxies

SHADOW_DELAY_S = 0.2
CLIENTS = 8
# gopher's clients against those of the same front without it: noise of a shared machine, and no more.
LATENCY_BAR = 1.2

SLOW_SHADOW = """
import asyncio, sys

ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n"

class Slow(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.rest = b""
    def data_received(self, data):
        *heads, self.rest = (self.rest + data).split(b"\\r\\n\\r\\n")
        for _ in heads:
            asyncio.get_running_loop().call_later(float(sys.argv[2]), self.transport.write, ANSWER)

async def main():
    server = await asyncio.get_running_loop().create_server(Slow, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    print("ready", file=sys.stderr, flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


FRONTS = {"nginx": proxies.Nginx, "Envoy": proxies.Envoy}


# -- CPU ---------------------------------------------------------------------------------------------------------------


def paced(
    options, bench: capture.Bench, process: harness.Process, port: int | None = None, *, mirrors: bool = True
) -> dict:
    """CPU of `process` per request of a paced load on production or on `port`; and what the sink counted meanwhile."""
    sink = bench.sink
    arrived_before = sink.requests()
    with capture.start_load(options, bench, options.seconds, port=port) as load:
        cpu_s = sum(process.cpu_s())
        requests = load.wait()["requests"]
        cpu_s = sum(process.cpu_s()) - cpu_s
    expected = arrived_before + requests if mirrors else math.inf
    arrived = harness.wait_until_settled(sink.requests, 1.0, expected=expected) - arrived_before
    return {"requests": requests, "arrived": arrived, "cpu_us": cpu_s / requests * 1e6}


def cpu_round(options, fronts: list[str], bench: capture.Bench) -> dict:
    production, sink = bench.production, bench.sink
    done: dict = {}
    for name in fronts:
        for mirrors in (False, True):
            front_directory = bench.directory / f"{name}-{mirrors}"
            with FRONTS[name](front_directory, production.port, mirror_to=sink.port if mirrors else None) as front:
                key = f"{name}, mirroring" if mirrors else name
                done[key] = paced(options, bench, front, front.port, mirrors=mirrors)
    with bench.gopher(options) as gopher:
        done["gopher"] = paced(options, bench, gopher)
        done["gopher"]["delivered_bytes"] = gopher.end()["upstreams"][0]["delivered_bytes"]
    if "goreplay" in peers.installed():
        with peers.goreplay(bench) as [gor]:
            done["goreplay"] = paced(options, bench, gor)
    least = capture.floor_round(options, bench)
    done["floor"] = {"requests": least["requests"], "cpu_us": capture.cpu_us(least)}
    return done


# -- latency -----------------------------------------------------------------------------------------------------------


def client_latencies_ms(port: int, requests: int) -> list[float]:
    """Clients that each send a request when they have the answer to the one before; waiting times of all."""
    request, selector = harness.get_request(port), selectors.DefaultSelector()
    times: list[float] = []
    left = requests
    for _ in range(CLIENTS):
        client = socket.create_connection((harness.LOOPBACK, port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(request)
        selector.register(client, selectors.EVENT_READ, time.monotonic())
    while len(times) < requests:
        for key, _ in selector.select(10):
            if not key.fileobj.recv(65536):
                raise RuntimeError("the front closed a connection")
            now = time.monotonic()
            times.append(1e3 * (now - key.data))
            left -= 1
            if left > 0:
                # Some thought between two requests, so that the shadow's slowness and not its load is what counts.
                time.sleep(0.0005)
                selector.modify(key.fileobj, selectors.EVENT_READ, time.monotonic())
                key.fileobj.sendall(request)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
    for key in list(selector.get_map().values()):
        key.fileobj.close()
    selector.close()
    return times


def latency_round(options, fronts: list[str], production: harness.Nginx, directory: Path) -> dict:
    [slow_port] = harness.free_ports(1)
    command = [sys.executable, "-c", SLOW_SHADOW, str(slow_port), str(SHADOW_DELAY_S)]
    done = {}
    with harness.Process(harness.pinned(harness.SHADOW_CORE, *command), directory / "slow.log") as slow:
        slow.wait_for("ready")
        for name in fronts:
            for mirrors in (False, True):
                front_directory = directory / f"{name}-{mirrors}"
                with FRONTS[name](front_directory, production.port, mirror_to=slow_port if mirrors else None) as front:
                    key = f"{name}, mirroring" if mirrors else name
                    done[key] = client_latencies_ms(front.port, options.requests)
        with (
            proxies.Nginx(directory / "nginx-False", production.port) as front,
            harness.Gopher(directory, options.gopher, front.port, [slow_port], *options.option) as gopher,
        ):
            done["nginx, gopher beside it"] = client_latencies_ms(front.port, options.requests)
            gopher.stop()
    return {
        name: {"p50_ms": statistics.median(ms), "p99_ms": statistics.quantiles(ms, n=100)[98]}
        for name, ms in done.items()
    }


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    harness.require_program("nginx")
    fronts, missing = ["nginx"], []
    try:
        harness.require_program("envoy")
        fronts.append("Envoy")
    except harness.NotRun as reason:
        missing.append(harness.not_run("Envoy's request mirroring", str(reason)))
    missing += peers.not_run("goreplay")
    rounds = []
    with capture.set_up() as bench:
        for number in range(options.rounds):
            cpu = cpu_round(options, fronts, bench)
            latency = latency_round(options, fronts, bench.production, bench.directory)
            rounds.append({"cpu": cpu, "latency": latency})
            words = ", ".join(f"{side} {figure['cpu_us']:.1f} us" for side, figure in cpu.items())
            waits = ", ".join(f"{side} {figure['p50_ms']:.2f} ms" for side, figure in latency.items())
            print(f"round {number + 1}: {words}; {waits}", file=sys.stderr)
    return [*figures(options, fronts, rounds), *missing], rounds


def figures(options, fronts: list[str], rounds: list[dict]) -> list[dict]:
    where = f"{options.rate}/s, {options.connections} connections"

    def cpu(side: str) -> list[float]:
        return [r["cpu"][side]["cpu_us"] for r in rounds]

    lines = [
        harness.figure(f"CPU per mirrored request, floor ({where})", "us", cpu("floor")),
        harness.figure(f"CPU per mirrored request, gopher ({where})", "us", cpu("gopher")),
    ]
    if "goreplay" in rounds[0]["cpu"]:
        lines.append(harness.figure(f"CPU per mirrored request, goreplay ({where})", "us", cpu("goreplay")))
    for name in fronts:
        added = [with_it - without for without, with_it in zip(cpu(name), cpu(f"{name}, mirroring"), strict=True)]
        lines.append(harness.figure(f"CPU per mirrored request, {name}'s mirroring ({where})", "us", added))
    for side in rounds[0]["latency"]:
        for name in ("p50", "p99"):
            values = [r["latency"][side][f"{name}_ms"] for r in rounds]
            lines.append(harness.figure(f"client waits, shadow takes 200 ms, {side}: {name}", "ms", values))
    moved = [r["latency"]["nginx, gopher beside it"]["p50_ms"] / r["latency"]["nginx"]["p50_ms"] for r in rounds]
    lines.append(
        harness.figure("client waits at the median, gopher beside nginx / nginx alone", "ratio", moved, LATENCY_BAR)
    )
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=2)
    harness.add_gopher_option(parser)
    capture.add_workload_options(parser, rate=5_000, connections=50)
    parser.add_argument("--requests", type=int, default=160, help="of all clients, for the waiting times")
    return harness.run("inline", measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
