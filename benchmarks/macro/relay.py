"""CPU per relayed request: gopher's relay against other reverse proxies, in the same run.

    wrk ──► relay, or nginx, HAProxy, Envoy, mitmproxy ──► nginx
    one core               the other core                  the first core

Each round puts the same load (100 keep-alive connections, requests of 500 bytes) through each of the other proxies, in
one thread, then through each kind of relay, before the same upstream server. CPU is that of the whole process, user and
system, between two moments, divided by the requests that the upstream server counted between them. Nothing else is
pinned to the relay's core, so what others take of it does not count.

Where the relay couples sessions, the upstream server has handed one out before the load begins, and every request of it
names another one, so all of them are rewritten.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from benchmarks import harness
from benchmarks.macro import proxies

WARM_UP_S = 0.5
SCRIPTS = Path(__file__).parent / "scripts"
KINDS = {
    "transparent": (),
    "messages": ("--marker", "X-Mirrored:1"),
    "cookie": ("--couple", "cookie:JSESSIONID"),
    # One of every kind that there is (docs/coupling.md).
    "rules": tuple(
        word
        for rule in (
            "auto",
            "cookie:JSESSIONID",
            "header:X-CSRF-Token",
            "json:/data/token",
            "form:csrf_token",
            "query:sid",
            "location:sid",
            "location:/order/{}",
            r"regex:id=(\w+)",
        )
        for word in ("--couple", rule)
    ),
    "async script": ("--script", str(SCRIPTS / "async.py")),
    "plain script": ("--script", str(SCRIPTS / "plain.py")),
}
# How many times nginx's CPU each may take.
BARS = {"transparent": 1.0, "cookie": 2.0, "rules": 4.0}
PEERS = {
    "nginx": proxies.Nginx,
    "HAProxy": proxies.Haproxy,
    "Envoy": proxies.Envoy,
    "mitmproxy": proxies.Mitmproxy,
}
# How much of mitmproxy's CPU the transparent relay may take: 15 times less.
MITMPROXY_BAR = 1 / 15


class Relay(harness.Process):
    """`gopher -r` on the relay's core."""

    def __init__(self, directory: Path, command: list[str], upstream: int, *options: str) -> None:
        [self.port] = harness.free_ports(1)
        self._report = directory / "relay.json"
        super().__init__(
            harness.pinned(
                harness.SHADOW_CORE,
                *(*command, "-r", "-p", str(self.port), "-u", f"{harness.LOOPBACK}:{upstream}"),
                *("--report", str(self._report), *options),
            ),
            directory / "gopher.log",
            # Not the root: -m would take the gopher that lies there, whichever Python is asked.
            cwd=directory,
        )
        self.wait_for("gopher: relaying on")
        self.couples = "--couple" in options
        if self.couples:
            self._begin_session()

    def _begin_session(self) -> None:
        """As far as the relay is told nothing of production's answers, the next session that it sees is this one."""
        connection = http.client.HTTPConnection(harness.LOOPBACK, self.port)
        connection.request("GET", "/session")
        connection.getresponse().read()
        connection.close()

    def rewritten(self) -> int:
        """Ends the relay. Returns: the requests that it has rewritten."""
        self.stop()
        return json.loads(self._report.read_text())["coupling"]["requests_rewritten"]


def load(options, port: int, directory: Path) -> harness.Process:
    cookie = {"Cookie": "JSESSIONID=0123456789abcdef0123456789abcdef"}
    request = harness.get_request(port, cookie).decode()
    fields = [line for line in request.split("\r\n")[2:] if line]
    words = [word for field in fields for word in ("-H", field)]
    wrk = (harness.require_program("wrk"), "-t1", f"-c{options.connections}", "-d1h", *words)
    with (directory / "wrk.out").open("wb") as output:
        return harness.Process(
            harness.pinned(harness.PRODUCTION_CORE, *wrk, f"http://{harness.LOOPBACK}:{port}/"),
            directory / "wrk.log",
            stdout=output,
        )


def cost(options, relay: harness.Process, upstream: harness.Nginx, directory: Path) -> dict:
    """CPU in microseconds per request, and what was counted: `arrived` at the upstream, `answered` to the client."""
    arrived = upstream.requests()
    with load(options, relay.port, directory) as wrk:
        time.sleep(WARM_UP_S)
        served, used, began = upstream.requests(), sum(relay.cpu_s()), time.monotonic()
        time.sleep(options.seconds)
        served, used = upstream.requests() - served, sum(relay.cpu_s()) - used
        elapsed = time.monotonic() - began
        wrk.stop(signal.SIGINT)
        answered = int(re.search(r"(\d+) requests in", (directory / "wrk.out").read_text())[1])
        arrived = harness.wait_until_settled(upstream.requests, 0.1) - arrived
    return {
        "requests": served,
        "cpu_us": used / served * 1e6,
        "requests_per_s": served / elapsed,
        "arrived": arrived,
        "answered": answered,
    }


def idle_mib(options, directory: Path, upstream: harness.Nginx) -> float:
    """Resident memory of a transparent relay with so many idle connections."""
    with Relay(directory, options.gopher, upstream.port) as relay:
        script = (
            "import resource, socket, sys, time\n"
            "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
            f"held = [socket.create_connection(('{harness.LOOPBACK}', {relay.port})) for _ in range({options.idle})]\n"
            "print('held', file=sys.stderr, flush=True)\n"
            "time.sleep(3600)\n"
        )
        with harness.Process([sys.executable, "-c", script], directory / "idle.log") as clients:
            clients.wait_for("held", timeout_s=60)
            time.sleep(1)
            status = Path(f"/proc/{relay.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    harness.require_program("nginx")
    peers = [name for name in options.peers if shutil.which(PEERS[name].program)]
    missing = [
        harness.not_run(f"{name} as a reverse proxy", f"{PEERS[name].program} is not installed")
        for name in options.peers
        if name not in peers
    ]
    rounds = []
    with harness.scratch() as name:
        directory = Path(name)
        with harness.Nginx(directory / "shadow", harness.PRODUCTION_CORE) as upstream:
            for number in range(options.rounds):
                one = {}
                for peer in peers:
                    with PEERS[peer](directory / peer, upstream.port) as proxy:
                        one[peer] = cost(options, proxy, upstream, directory)
                for kind in options.kinds:
                    with Relay(directory, options.gopher, upstream.port, *KINDS[kind], *options.option) as relay:
                        done = one[f"relay ({kind})"] = cost(options, relay, upstream, directory)
                        if relay.couples:
                            done["rewritten"] = relay.rewritten()
                rounds.append(one)
                words = ", ".join(f"{side} {done['cpu_us']:.2f}" for side, done in one.items())
                print(f"round {number + 1}, us a request: {words}", file=sys.stderr)
            idle = [idle_mib(options, directory, upstream)] if options.idle else []
    lines = figures(options, rounds)
    if idle:
        lines.append(
            harness.figure(f"resident memory with {options.idle} idle connections", "MiB", idle, 150, digits=1)
        )
    return [*lines, *missing], rounds


def figures(options, rounds: list[dict]) -> list[dict]:
    def ratios(side: str, peer: str) -> list[float]:
        return [r[side]["cpu_us"] / r[peer]["cpu_us"] for r in rounds]

    lines = []
    for side in rounds[0]:
        lines += [
            harness.figure(f"{side}: CPU per request", "us", [r[side]["cpu_us"] for r in rounds]),
            harness.figure(f"{side}: requests", "1/s", [r[side]["requests_per_s"] for r in rounds], digits=0),
        ]
    for kind in options.kinds:
        side = f"relay ({kind})"
        lines.append(harness.figure(f"{side}: CPU / nginx's", "ratio", ratios(side, "nginx"), BARS.get(kind)))
    if "transparent" in options.kinds:
        bars = {"mitmproxy": MITMPROXY_BAR}
        lines += [
            harness.figure(
                f"relay (transparent): CPU / {peer}'s",
                "ratio",
                ratios("relay (transparent)", peer),
                bars.get(peer),
            )
            for peer in PEERS
            if peer in rounds[0] and peer != "nginx"
        ]
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=3)
    harness.add_gopher_option(parser)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="nginx has to be among them")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections to hold; 0 for none")
    options = parser.parse_args(argv)
    return harness.run("relay", measure, options)


if __name__ == "__main__":
    sys.exit(main())
