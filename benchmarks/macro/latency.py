"""Time from the client's send to the upstream's receipt, at low load: the default against `--low-latency`.

One event loop plays the client and the shadow server, so both ends read the same clock: each request carries the time
just before its send(), and the shadow reads the clock when it holds the whole request. That includes this program's own
wake-up, some tens of microseconds. Requests leave at random distances, so that they meet gopher's wake-up period at
every phase. Production is nginx; gopher has the other core to itself.
"""

from __future__ import annotations

import random
import re
import selectors
import socket
import statistics
import sys
import time
from pathlib import Path

from benchmarks import harness

CONNECTIONS = 8
MODES = {"default": ((), 6.0, 20.0), "--low-latency": (("--low-latency",), 1.0, 5.0)}
"""Options, bar for the median, bar for the 99th percentile (ms)."""

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_SENT = re.compile(rb"X-Sent: (\d+)")


class Ends:
    """The client's connections to production and the shadow's connections from gopher, in one selector."""

    def __init__(self, production_port: int) -> None:
        self.latencies_ms: list[float] = []
        self._production_port = production_port
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server((harness.LOOPBACK, 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._clients: list[socket.socket] = []

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def connect(self) -> None:
        for _ in range(CONNECTIONS):
            client = socket.create_connection((harness.LOOPBACK, self._production_port))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._clients.append(client)
            self._selector.register(client, selectors.EVENT_READ, self._read_answer)

    def send(self, number: int) -> None:
        client = self._clients[number % CONNECTIONS]
        # time_ns() has 19 digits until the year 2286, so that the length of the request does not change.
        client.sendall(harness.get_request(self._production_port, {"X-Sent": str(time.time_ns())}))

    def run_until(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        shadow, _ = listener.accept()
        self._selector.register(shadow, selectors.EVENT_READ, self._read_request)

    def _read_answer(self, client: socket.socket) -> None:
        if not client.recv(65536):
            raise RuntimeError("production closed a connection")

    def _read_request(self, shadow: socket.socket) -> None:
        data = shadow.recv(65536)
        now = time.time_ns()
        if not data:
            self._selector.unregister(shadow)
            shadow.close()
            return
        if len(data) % harness.REQUEST_BYTES:
            raise RuntimeError(f"the shadow got {len(data)} bytes, not whole requests")
        times = _SENT.findall(data)
        self.latencies_ms += [(now - int(sent)) / 1e6 for sent in times]
        shadow.sendall(_ANSWER * len(times))


def one_round(options, mode: str, production: harness.Nginx, directory: Path, seed: int) -> dict:
    chance = random.Random(seed)
    extra = MODES[mode][0]
    with (
        Ends(production.port) as ends,
        harness.Gopher(directory, options.gopher, production.port, [ends.port], *extra, *options.option) as gopher,
    ):
        ends.connect()
        # One request each, not counted, so that gopher has dialled before the measurement.
        for number in range(CONNECTIONS):
            ends.send(number)
        ends.run_until(time.monotonic() + 0.5)
        ends.latencies_ms.clear()
        cpu_before, began = sum(gopher.cpu_s()), time.monotonic()
        due, sent = began, 0
        while due < began + options.seconds:
            ends.run_until(due)
            ends.send(sent)
            sent += 1
            due += chance.uniform(0.5, 1.5) / options.rate
        ends.run_until(due + 0.5)
        cpu_s, elapsed = sum(gopher.cpu_s()) - cpu_before, time.monotonic() - began
        gopher.end()
    return {
        "mode": mode,
        "sent": sent,
        "lost": sent - len(ends.latencies_ms),
        "core_share": cpu_s / elapsed,
        "latencies_ms": [round(value, 3) for value in ends.latencies_ms],
    }


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from; the modes take turns."""
    rounds = []
    with harness.scratch() as name:
        directory = Path(name)
        with harness.Nginx(directory / "production", harness.PRODUCTION_CORE) as production:
            for number in range(options.rounds):
                for mode in MODES:
                    rounds.append(one_round(options, mode, production, directory, seed=number))
                    print(
                        f"round {number + 1}, {mode}: {statistics.median(rounds[-1]['latencies_ms'])} ms at the median",
                        file=sys.stderr,
                    )
    return [line for mode in MODES for line in figures(options, mode, [r for r in rounds if r["mode"] == mode])], rounds


def figures(options, mode: str, rounds: list[dict]) -> list[dict]:
    _, median_bar, tail_bar = MODES[mode]
    latencies = [r["latencies_ms"] for r in rounds]
    name = f"client's send to upstream's receipt, {mode}, {options.rate}/s"
    return [
        harness.figure(f"{name}: p50", "ms", [percentile(values, 50) for values in latencies], median_bar),
        harness.figure(f"{name}: p99", "ms", [percentile(values, 99) for values in latencies], tail_bar),
        harness.figure(f"{name}: requests lost", "requests", [r["lost"] for r in rounds], 0, every_round=True),
        harness.figure(f"{name}: gopher's share of a core", "%", [100 * r["core_share"] for r in rounds], digits=2),
    ]


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=5)
    harness.add_gopher_option(parser)
    parser.add_argument("--rate", type=int, default=50, help="requests a second (default %(default)s)")
    options = parser.parse_args(argv)
    return harness.run("latency", measure, options)


if __name__ == "__main__":
    sys.exit(main())
