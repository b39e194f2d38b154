"""What the benchmarks share: programs built on the spot, pinned servers, CPU clocks, medians, facts about the machine.

Two cores are enough and two are used, whatever the machine has: the production server and the load generator share one,
gopher (or the floor) and the shadow server share the other. Both sides of every ratio run in the same place.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import http.client
import importlib.util
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "results"

LOOPBACK = "127.0.0.1"
REQUEST_BYTES = 500
LARGEST_GET_BYTES = 1000
NOT_RUN = 3
"""Exit status of a benchmark that could not be run here."""

PEERS = {
    "envoy": ["--version"],
    "gor": ["--help"],
    "haproxy": ["-v"],
    "intercept": ["-v"],
    "mitmdump": ["--version"],
    "tcpcopy": ["-v"],
    "tcpdump": ["--version"],
    "tcpflow": ["--version"],
    "tshark": ["--version"],
}
"""Programs that gopher is compared with, and how each says its version."""
# Those that pip installs lie beside this Python.
os.environ["PATH"] += f":{Path(sys.executable).parent}"

_cores = sorted(os.sched_getaffinity(0))
PRODUCTION_CORE = _cores[0]
SHADOW_CORE = _cores[-1]

_CLONE_NEWNET = 0x40000000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class NotRun(Exception):
    """Something this benchmark needs is missing; the message names it."""


def require_program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise NotRun(f"{name} is not installed")
    return path


def c_compiler() -> str:
    """The C compiler, with the build directory ready for its output."""
    BUILD.mkdir(parents=True, exist_ok=True)
    return require_program(os.environ.get("CC", "cc"))


def compile_c(source: Path) -> Path:
    """Compile one C file into the build directory and return the program."""
    program = BUILD / source.stem
    subprocess.run([c_compiler(), "-O2", "-o", program, source], check=True)
    return program


def build_cython(source: Path) -> ModuleType:
    """Compile one .pyx file into the build directory and import it. It may cimport from gopher."""
    if importlib.util.find_spec("Cython") is None:
        raise NotRun("Cython is not installed")
    compiler = c_compiler()
    c_source = BUILD / f"{source.stem}.c"
    library = BUILD / (source.stem + sysconfig.get_config_var("EXT_SUFFIX"))
    directives = "boundscheck=False,wraparound=False,initializedcheck=False"
    cython = [sys.executable, "-m", "cython", "-3", "-X", directives, "-I", ROOT, "-o", c_source, source]
    subprocess.run(cython, check=True, cwd=ROOT)
    include = sysconfig.get_path("include")
    subprocess.run([compiler, "-O3", "-shared", "-fPIC", "-I", include, "-o", library, c_source], check=True)
    spec = importlib.util.spec_from_file_location(source.stem, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pinned(core: int, *command: str | Path) -> list[str]:
    return ["taskset", "-c", str(core), *map(str, command)]


@dataclasses.dataclass(frozen=True)
class Host:
    """Where programs run: this machine, or a network of its own on it."""

    address: str = LOOPBACK
    device: str = "lo"
    """Where comes in what is sent to the address."""
    enter: tuple[str, ...] = ()
    """The words that run the command after them there."""

    def pinned(self, core: int, *command: str | Path) -> list[str]:
        return [*self.enter, *pinned(core, *command)]


HERE = Host()


def process_cpu_s(pid: int) -> tuple[float, float]:
    """User and system seconds of a process so far, threads that ended included.

    The sum is exact, as getrusage(2)'s is, by which the floor is measured; /proc cuts it to 10 ms, which at 20,000
    requests in a second is half a microsecond for each. The split is the kernel's estimate from timer ticks.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    # The process's own clock, as clock_getcpuclockid(3) makes it.
    total_s = time.clock_gettime((~pid << 3) | 2)
    user_s = total_s * user / max(user + system, 1)
    return user_s, total_s - user_s


def core_busy_s(core: int) -> float:
    """Seconds that a core has worked so far, for whomever (proc(5), /proc/stat; time stolen by the host included)."""
    line = re.search(rf"^cpu{core} (.*)", Path("/proc/stat").read_text(), re.MULTILINE)[1]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def enter_own_network() -> None:
    """Move this process and its future children into a network of their own: a loopback device, with all ports free.

    Linux finds a free local port quickly for half of its range only, which is 14,000 ports by default and 32,000 here.
    """
    if os.geteuid() != 0:
        raise NotRun("no permission for a network namespace")
    ip = require_program("ip")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise NotRun(f"no permission for a network namespace: {os.strerror(ctypes.get_errno())}")
    subprocess.run([ip, "link", "set", "lo", "up"], check=True)
    settings = Path("/proc/sys/net/ipv4")
    (settings / "ip_local_port_range").write_text("1024 65535")
    # A second after its connection a port is free, as it is on loopback: goreplay takes one for each request.
    (settings / "tcp_tw_reuse").write_text("1")


def enter_joined_networks() -> tuple[Host, Host]:
    """As `enter_own_network`, and joined to a second network by a cable; returns the host there and the one here."""
    enter_own_network()
    # Held open, for a network is gone with the last that uses it.
    other = f"/proc/{os.getpid()}/fd/{os.open('/proc/self/ns/net', os.O_RDONLY)}"
    enter_own_network()
    ip, cable = require_program("ip"), "cable"
    there = Host("192.0.2.1", cable, (require_program("nsenter"), f"--net={other}"))
    here = Host("192.0.2.2", cable)
    subprocess.run([ip, "link", "add", cable, "type", "veth", "peer", "name", cable, "netns", other], check=True)
    for host in (there, here):
        subprocess.run([*host.enter, ip, "address", "add", f"{host.address}/24", "dev", cable], check=True)
        subprocess.run([*host.enter, ip, "link", "set", cable, "up"], check=True)
    return there, here


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind((LOOPBACK, 0))
        return [s.getsockname()[1] for s in sockets]


def get_request(port: int, headers: dict[str, str] | None = None, size: int = REQUEST_BYTES) -> bytes:
    """A GET of exactly `size` bytes."""
    head = f"GET / HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return (head + padding_header(len(head), size) + "\r\n\r\n").encode()


def request_of(port: int, size: int, *, close: bool = False) -> bytes:
    """A request of exactly `size` bytes: a GET, or from LARGEST_GET_BYTES on a POST with a body."""
    if size <= LARGEST_GET_BYTES:
        return get_request(port, {"Connection": "close"} if close else None, size)
    head = f"POST / HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\n" + ("Connection: close\r\n" if close else "")
    digits = len(str(size))
    body = size - len(head) - len("Content-Length: \r\n\r\n") - digits
    return f"{head}Content-Length: {body:0{digits}}\r\n\r\n".encode() + bytes(body)


def padding_header(length_so_far: int, size: int = REQUEST_BYTES) -> str:
    """The header that makes a request of `length_so_far` bytes `size` long, with the four bytes that follow."""
    name = "X-Padding: "
    length = size - length_so_far - len(name) - 4
    if length < 0:
        raise ValueError(f"a request takes {size - length} bytes at least, not {size}")
    return name + "x" * length


class Process:
    """A child with its standard error in a file, ended by `stop()` or at the end of the `with` block."""

    def __init__(self, command: list[str], log: Path, **popen: object) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self.popen = subprocess.Popen(command, stderr=stderr, **popen)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def cpu_s(self) -> tuple[float, float]:
        """User and system seconds of the whole process so far; see `process_cpu_s`."""
        return process_cpu_s(self.pid)

    def wait_for(self, words: str, timeout_s: float = 10) -> None:
        """Wait until its standard error has the words."""
        deadline = time.monotonic() + timeout_s
        while words not in self.log.read_text():
            if self.popen.poll() is not None:
                if self.popen.returncode == 77:
                    raise NotRun("no permission to capture")
                raise RuntimeError(f"{self.popen.args} ended with {self.popen.returncode}: {self.log.read_text()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.popen.args} did not say {words!r} within {timeout_s} s")
            time.sleep(0.01)

    def freeze(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(timeout_s)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()


class Nginx(Process):
    """One nginx worker on one core, answering every request with three bytes. It counts requests itself."""

    CONFIG = """
        daemon off; worker_processes 1; worker_rlimit_nofile 65536; pid {directory}/nginx.pid;
        error_log {directory}/error.log;
        events {{ worker_connections 32768; }}
        http {{
            access_log off; default_type text/plain; client_max_body_size 0;
            keepalive_timeout 1h; keepalive_requests 1000000000;
            client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
            fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
            server {{
                {listen}
                location / {{ return 200 "ok\\n"; }}
                location = /session {{ add_header Set-Cookie "JSESSIONID={session}"; return 200 "ok\\n"; }}
            }}
            server {{ listen {address}:{status_port}; location / {{ stub_status; }} }}
        }}
    """

    def __init__(self, directory: Path, core: int, ports: int = 1, *, host: Host = HERE) -> None:
        self.host = host
        nginx = require_program("nginx")
        directory.mkdir()
        *self.ports, status_port = free_ports(ports + 1)
        listen = " ".join(f"listen {host.address}:{port} backlog=32768;" for port in self.ports)
        config = directory / "nginx.conf"
        config.write_text(
            self.CONFIG.format(
                directory=directory, listen=listen, address=host.address, status_port=status_port, session="5e55" * 8
            )
        )
        command = host.pinned(core, nginx, "-p", directory, "-c", config, "-e", directory / "error.log")
        super().__init__(command, directory / "stderr")
        self._status = http.client.HTTPConnection(host.address, status_port)
        self._queries = 0
        deadline = time.monotonic() + 10
        while True:
            try:
                self._status.connect()
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline or self.popen.poll() is not None:
                    raise
                time.sleep(0.01)

    @property
    def port(self) -> int:
        return self.ports[0]

    def requests(self) -> int:
        """Requests served so far, without these questions."""
        self._queries += 1
        self._status.request("GET", "/")
        text = self._status.getresponse().read().decode()
        numbers = re.search(r"requests\s+\d+ \d+ (\d+)", text)
        assert numbers is not None, text
        return int(numbers[1]) - self._queries

    def cpu_s(self) -> tuple[float, float]:
        """User and system seconds of the worker so far."""
        worker = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0]
        return process_cpu_s(int(worker))

    def __exit__(self, *error: object) -> None:
        self._status.close()
        if self.popen.poll() is None:
            self.stop()
        super().__exit__(*error)


class Gopher(Process):
    """`gopher -c` beside production, whose port is `port`; pinned beside the shadow server, `upstream_host`."""

    def __init__(
        self,
        directory: Path,
        command: list[str],
        port: int,
        upstream_ports: list[int],
        *options: str,
        host: Host = HERE,
        upstream_host: Host = HERE,
    ) -> None:
        self._report = directory / "report.json"
        upstreams = [word for upstream in upstream_ports for word in ("-u", f"{upstream_host.address}:{upstream}")]
        what = ("-c", "-i", host.device, "-p", str(port), *upstreams, "--report", self._report, *options)
        super().__init__(
            host.pinned(SHADOW_CORE, *command, *what),
            directory / "gopher.log",
            # Not the root: -m would take the gopher that lies there, whichever Python is asked.
            cwd=directory,
        )
        self.wait_for("gopher: capturing on")

    def _pids(self) -> list[int]:
        """Of all its processes: with --workers there are several."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def cpu_s(self) -> tuple[float, float]:
        """User and system seconds of all its processes so far; see `process_cpu_s`."""
        user, system = zip(*map(process_cpu_s, self._pids()), strict=True)
        return sum(user), sum(system)

    def _kib(self, file: str, pattern: str) -> int:
        """The sum of what a pattern finds in a file of /proc, of all its processes."""
        return sum(
            int(kib) for pid in self._pids() for kib in re.findall(pattern, Path(f"/proc/{pid}/{file}").read_text())
        )

    def peak_resident_mib(self) -> float:
        """High-water mark of resident memory. The capture ring is mapped, so it counts in full from the start."""
        return self._kib("status", r"VmHWM:\s+(\d+) kB") / 1024

    def resident_mib(self) -> float:
        """Resident memory now, the ring included."""
        return self._kib("status", r"VmRSS:\s+(\d+) kB") / 1024

    def ring_mib(self) -> float:
        """The part of resident memory that is the kernel's capture ring: the mapping of a packet socket."""
        return self._kib("smaps", r"socket:\[\d+\]\n(?:.*\n)*?Rss:\s+(\d+) kB") / 1024

    def end(self) -> dict:
        """SIGTERM, and the report it wrote."""
        status = self.stop()
        if status != 0:
            raise RuntimeError(f"gopher ended with {status}: {self.log.read_text()}")
        return json.loads(self._report.read_text())


def wait_until_settled(
    count: Callable[[], int], quiet_s: float, interval_s: float = 0.02, *, expected: float = math.inf
) -> int:
    """Poll `count()` until it has not changed for `quiet_s`, or is what it should come to; returns it."""
    value, since = count(), time.monotonic()
    while value < expected and time.monotonic() - since < quiet_s:
        time.sleep(interval_s)
        if (now := count()) != value:
            value, since = now, time.monotonic()
    return value


def summary(values: list[float], digits: int = 3) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
    }


def figure(
    name: str, unit: str, values: list[float], bar: float | None = None, *, every_round: bool = False, digits: int = 3
) -> dict:
    """One line of the results table. `bar`: what the median, or with `every_round` each value, may be at most."""
    line = {"figure": name, "unit": unit, "rounds": len(values), **summary(values, digits)}
    met = bar is None or line["high" if every_round else "median"] <= bar
    return {**line, "bar": bar, "met": met}


def not_run(name: str, reason: str) -> dict:
    """A line of the results table for what is missing here. Never an estimate."""
    return {"figure": name, "not_run": reason}


def _version(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", ran.stdout + ran.stderr)
    return found[0] if found else "unknown"


def machine() -> dict:
    """What a reader needs to judge the numbers: hardware, kernel, versions, and what else was running."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    libraries = {}
    for name in ("gopher-mirror", "pcapy-ng", "trio", "Cython"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            libraries[name] = metadata.version(name)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(_cores),
        "virtual": "hypervisor" in cpuinfo,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_at_start": os.getloadavg(),
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "versions": {
            "nginx": _version("nginx", "-v"),
            "wrk": _version("wrk", "-v"),
            **{name: _version(name, *option) for name, option in PEERS.items()},
            "cc": _version(os.environ.get("CC", "cc"), "-dumpfullversion"),
            **libraries,
        },
    }


def arguments(description: str, seconds: float, rounds: int = 5) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=seconds, help="length of a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="default %(default)s")
    parser.add_argument("--json", type=Path, help="write the result into this file too")
    return parser


def add_gopher_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gopher",
        type=shlex.split,
        default=[sys.executable, "-m", "gopher"],
        metavar="COMMAND",
        help="the gopher to measure (default: this Python's)",
    )
    parser.add_argument("--option", action="append", default=[], help="one more option for gopher, as --option=--NAME")


def run(name: str, measure: Callable, settings: argparse.Namespace) -> int:
    """Measure, print the figures as a Markdown table, and write everything as JSON where `--json` says.

    Returns the exit status: 0, or 3 if something is not installed or not permitted.
    """
    facts = machine()
    try:
        figures, rounds = measure(settings)
    except NotRun as missing:
        print(missing, file=sys.stderr)
        return NOT_RUN
    print(table(figures))
    if settings.json is not None:
        given = {key: value for key, value in vars(settings).items() if key != "json"}
        result = {"benchmark": name, "machine": facts, "settings": given, "figures": figures, "rounds": rounds}
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        settings.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def table(figures: list[dict]) -> str:
    lines = [
        "| figure | unit | median | lowest to highest | rounds | bar |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for f in figures:
        if "not_run" in f:
            lines.append(f"| {f['figure']} | not run: {f['not_run']} | | | | |")
            continue
        bar = "" if f["bar"] is None else f"≤ {f['bar']:g}{'' if f['met'] else ' (missed)'}"
        spread = f"{f['low']:g} to {f['high']:g}"
        lines.append(f"| {f['figure']} | {f['unit']} | {f['median']:g} | {spread} | {f['rounds']} | {bar} |")
    return "\n".join(lines)


def scratch() -> tempfile.TemporaryDirectory:
    directory = tempfile.TemporaryDirectory(prefix="gopher-bench-")
    # nginx's worker gives up root and must still reach its files.
    Path(directory.name).chmod(0o755)
    return directory
