"""CPU per relayed request: gopher's relay against nginx's proxy_pass, in the same run.

    wrk ──► relay or nginx ──► nginx
    one core  the other core   the first core

Each round puts the same load (100 keep-alive connections, requests of 500 bytes) through nginx as a proxy, then through
each kind of relay, before the same upstream server. CPU is that of the whole process, user and system, between two
moments, divided by the requests that the upstream server counted between them. Nothing else is pinned to the relay's
core, so what others take of it does not count.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import harness

WARM_UP_S = 0.5
SCRIPTS = Path(__file__).parent / "scripts"
KINDS = {
    "transparent": (),
    "messages": ("--marker", "X-Mirrored:1"),
    "cookie": ("--couple", "cookie:JSESSIONID"),
    "rules": tuple(
        word
        for rule in ("auto", "header:X-CSRF-Token", "json:/data/token", "form:csrf_token", "query:sid", "location:sid")
        for word in ("--couple", rule)
    ),
    "async script": ("--script", str(SCRIPTS / "async.py")),
    "plain script": ("--script", str(SCRIPTS / "plain.py")),
}
# How many times nginx's CPU each may take.
BARS = {"transparent": 1.0, "cookie": 2.0, "rules": 4.0}


class Proxy(harness.Process):
    """One nginx worker that passes everything on to `port`, on connections that it keeps."""

    CONFIG = """
        daemon off; master_process off; worker_rlimit_nofile 65536; pid {directory}/nginx.pid;
        error_log {directory}/error.log;
        events {{ worker_connections 32768; }}
        http {{
            access_log off; client_max_body_size 0; keepalive_timeout 1h; keepalive_requests 1000000000;
            client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
            fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
            upstream shadow {{ server {loopback}:{upstream}; keepalive 1024; keepalive_requests 1000000000; }}
            server {{
                listen {loopback}:{port} backlog=32768;
                location / {{
                    proxy_pass http://shadow; proxy_http_version 1.1;
                    proxy_set_header Connection ""; proxy_set_header Host $http_host;
                }}
            }}
        }}
    """

    def __init__(self, directory: Path, upstream: int) -> None:
        nginx = harness.require_program("nginx")
        directory.mkdir(exist_ok=True)
        [self.port] = harness.free_ports(1)
        config = directory / "nginx.conf"
        config.write_text(
            self.CONFIG.format(directory=directory, loopback=harness.LOOPBACK, port=self.port, upstream=upstream)
        )
        command = harness.pinned(
            harness.SHADOW_CORE, nginx, "-p", directory, "-c", config, "-e", directory / "error.log"
        )
        super().__init__(command, directory / "stderr")


class Relay(harness.Process):
    """`gopher -r` on the relay's core."""

    def __init__(self, directory: Path, command: list[str], upstream: int, *options: str) -> None:
        [self.port] = harness.free_ports(1)
        super().__init__(
            harness.pinned(
                harness.SHADOW_CORE,
                *(*command, "-r", "-p", str(self.port), "-u", f"{harness.LOOPBACK}:{upstream}", *options),
            ),
            directory / "gopher.log",
            cwd=harness.ROOT,
        )
        self.wait_for_line("gopher: relaying on")


def load(options, port: int, directory: Path) -> harness.Process:
    cookie = {"Cookie": "JSESSIONID=0123456789abcdef0123456789abcdef"}
    request = harness.get_request(port, cookie).decode()
    fields = [line for line in request.split("\r\n")[2:] if line]
    words = [word for field in fields for word in ("-H", field)]
    wrk = (harness.require_program("wrk"), "-t1", f"-c{options.connections}", "-d1h", *words)
    return harness.Process(
        harness.pinned(harness.PRODUCTION_CORE, *wrk, f"http://{harness.LOOPBACK}:{port}/"),
        directory / "wrk.log",
        stdout=subprocess.DEVNULL,
    )


def cpu_us(options, relay, upstream: harness.Nginx, directory: Path) -> tuple[float, float]:
    """(CPU in microseconds per request, requests per second)."""
    with load(options, relay.port, directory):
        time.sleep(WARM_UP_S)
        served, used, began = upstream.requests(), sum(relay.cpu_s()), time.monotonic()
        time.sleep(options.seconds)
        served, used = upstream.requests() - served, sum(relay.cpu_s()) - used
        elapsed = time.monotonic() - began
    return used / served * 1e6, served / elapsed


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
            clients.wait_for_line("held", timeout_s=60)
            time.sleep(1)
            status = Path(f"/proc/{relay.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    rounds = []
    with harness.scratch() as name:
        directory = Path(name)
        with harness.Nginx(directory / "shadow", harness.PRODUCTION_CORE) as upstream:
            for number in range(options.rounds):
                with Proxy(directory / "proxy", upstream.port) as proxy:
                    time.sleep(0.3)
                    one = dict(
                        zip(("nginx_us", "nginx_per_s"), cpu_us(options, proxy, upstream, directory), strict=True)
                    )
                for kind in options.kinds:
                    with Relay(directory, options.gopher, upstream.port, *KINDS[kind], *options.option) as relay:
                        one[f"{kind}_us"], one[f"{kind}_per_s"] = cpu_us(options, relay, upstream, directory)
                rounds.append(one)
                print(f"round {number + 1}: " + ", ".join(f"{k} {v:.2f}" for k, v in one.items()), file=sys.stderr)
            idle = [idle_mib(options, directory, upstream)] if options.idle else []
    figures = [harness.figure("nginx's CPU per request (proxy_pass)", "us", [r["nginx_us"] for r in rounds])]
    for kind in options.kinds:
        ratios = [r[f"{kind}_us"] / r["nginx_us"] for r in rounds]
        figures += [
            harness.figure(f"relay ({kind}): CPU per request", "us", [r[f"{kind}_us"] for r in rounds]),
            harness.figure(f"relay ({kind}): CPU / nginx's", "ratio", ratios, BARS.get(kind)),
            harness.figure(f"relay ({kind}): requests", "1/s", [r[f"{kind}_per_s"] for r in rounds], digits=0),
        ]
    figures.append(
        harness.figure("nginx: requests", "1/s", [statistics.median(r["nginx_per_s"] for r in rounds)], digits=0)
    )
    if idle:
        figures.append(
            harness.figure(f"resident memory with {options.idle} idle connections", "MiB", idle, 150, digits=1)
        )
    return figures, rounds


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=3)
    harness.add_gopher_option(parser)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections to hold; 0 for none")
    options = parser.parse_args(argv)
    return harness.run("relay", measure, options)


if __name__ == "__main__":
    sys.exit(main())
