"""Gopher's main job on an embedded stage: `make demo`.

A production server and two shadow servers on loopback, real HTTP clients, and a real `gopher -c` that captures what the
clients send and mirrors it to both shadows. At the end the account of each upstream, and the comparison: every request
that production got must have reached each shadow, byte for byte. Exit status 0 says that all of this holds.

Where capturing is not permitted the same is done from demo.pcap, which holds such traffic (captured by `gopher --write`
over links that lose one packet in twenty).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gopher

CAPTURE_FILE = Path(__file__).with_name("demo.pcap")
CAPTURE_FILE_PORT = 80
NOT_PERMITTED = 77
# For what takes milliseconds: a limit that is reached is a failure.
PATIENCE_S = 20.0
BODY_LIMIT_BYTES = 1 << 26


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One HTTP/1.1 request, exactly as it came; empty at the end of the connection.

    Raises:
        asyncio.IncompleteReadError: the connection ends in the middle of a request.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return b""
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    if fields.get(b"transfer-encoding") != b"chunked":
        return head + await reader.readexactly(int(fields.get(b"content-length", b"0")))
    parts = [head]
    while True:
        size = await reader.readuntil(b"\r\n")
        chunk = await reader.readexactly(int(size, 16) + 2)
        parts += size, chunk
        if chunk == b"\r\n":
            return b"".join(parts)


def digest(request: bytes) -> str:
    return hashlib.sha256(request).hexdigest()


class Server:
    """An HTTP server on loopback that remembers the digest of every request it got whole."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.digests: Counter[str] = Counter()
        self.broken_off = 0
        self.port = 0

    @property
    def upstream(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=BODY_LIMIT_BYTES, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await read_request(reader):
                self.digests[digest(request)] += 1
                body = f"{self.name} says hello\n".encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.broken_off += 1
        finally:
            writer.close()


@contextmanager
def serving(*servers: Server) -> Iterator[None]:
    """Run the servers in a thread of their own."""
    loop = asyncio.new_event_loop()
    listening = [loop.run_until_complete(server.listen()) for server in servers]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for server in listening:
            server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        # Lets the cancelled tasks close their connections.
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


class Gopher:
    """A real gopher in a process of its own; what it says is shown as it says it."""

    def __init__(self, *arguments: str, report: Path) -> None:
        argv = ["-m", "gopher", "-c", *arguments, "--report", str(report)]
        print("  $ gopher", *argv[2:], flush=True)
        self._report = report
        self._process = subprocess.Popen([sys.executable, *argv], stderr=subprocess.PIPE, text=True)
        self._ready = threading.Event()
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._show)
        self._reader.start()

    def _show(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr:
            for line in self._process.stderr:
                self._said.append(line)
                if line.startswith(("gopher: capturing", "gopher: reading")):
                    self._ready.set()
                print(f"  | {line}", end="", flush=True)
        self._ready.set()

    def wait_ready(self) -> bool:
        """True once it captures or reads; False if it is not permitted to."""
        self._ready.wait(PATIENCE_S)
        if self._said and self._said[0].startswith(("gopher: capturing", "gopher: reading")):
            return True
        if self._process.wait(PATIENCE_S) == NOT_PERMITTED:
            return False
        raise SystemExit("gopher did not start")

    def stop(self) -> None:
        """End intake; what is pending is still delivered."""
        self._process.terminate()

    def account(self) -> dict[str, Any]:
        """Wait for the end and return the report."""
        try:
            status = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise SystemExit("gopher did not end") from None
        self._reader.join()
        if status != 0:
            raise SystemExit(f"gopher failed with exit status {status}")
        report: dict[str, Any] = json.loads(self._report.read_text())
        return report


def until(deadline_s: float, pause_s: float) -> Iterator[int]:
    number = 0
    while time.monotonic() < deadline_s:
        yield number
        number += 1
        time.sleep(pause_s)


def keep_alive_client(port: int, deadline_s: float) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for number in until(deadline_s, 0.005):
        connection.request("GET", f"/page/{number}", headers={"Cookie": f"session={number % 10}"})
        connection.getresponse().read()
    connection.close()


def short_client(port: int, deadline_s: float) -> None:
    for number in until(deadline_s, 0.01):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/form", body=f"field={number}".encode())
        connection.getresponse().read()
        connection.close()


def upload_client(port: int, deadline_s: float) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for number in until(deadline_s, 0.2):
        connection.request("PUT", f"/upload/{number}", body=random.Random(number).randbytes(1_000_000))
        connection.getresponse().read()
    connection.close()


def chunked_client(port: int, deadline_s: float) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for number in until(deadline_s, 0.1):
        chunks = (b"line %d of a stream\n" % line * (line % 50 + 1) for line in range(200))
        connection.request("POST", f"/stream/{number}", body=chunks, encode_chunked=True)
        connection.getresponse().read()
    connection.close()


def curl_client(port: int, deadline_s: float) -> None:
    urls = [f"http://127.0.0.1:{port}/curl/{number}" for number in range(10)]
    for _ in until(deadline_s, 0.1):
        subprocess.run(["curl", "--silent", "--fail", *urls], check=True, stdout=subprocess.DEVNULL)


Client = Callable[[int, float], None]
CLIENTS: list[tuple[int, str, Client]] = [
    (4, "with a keep-alive connection each", keep_alive_client),
    (2, "with a new connection for each request", short_client),
    (1, "uploading files of 1 MB", upload_client),
    (1, "uploading in chunks", chunked_client),
]


def run_clients(port: int, seconds: float) -> None:
    """Let all clients work for that long; a client that fails ends the demo."""
    deadline_s = time.monotonic() + seconds
    curl = [(1, "curl", curl_client)] if shutil.which("curl") else []
    clients = CLIENTS + curl
    print(f"  clients for {seconds:g} seconds:", ", ".join(f"{count} {what}" for count, what, _ in clients), flush=True)
    failures: list[str] = []

    def run(client: Client) -> None:
        try:
            client(port, deadline_s)
        except (OSError, http.client.HTTPException, subprocess.CalledProcessError) as error:
            failures.append(f"{client.__name__}: {error}")

    threads = [threading.Thread(target=run, args=(client,)) for count, _, client in clients for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit("a client failed: " + "; ".join(failures))


def live(shadows: list[Server], report: Path, seconds: float) -> tuple[Counter[str], dict[str, Any]] | None:
    """Capture on loopback. Returns production's requests and the report; None if capturing is not permitted."""
    production = Server("production")
    with serving(production, *shadows):
        upstreams = [part for shadow in shadows for part in ("-u", shadow.upstream)]
        process = Gopher("-i", "lo", "-p", str(production.port), *upstreams, "--stats-interval", "1", report=report)
        try:
            if not process.wait_ready():
                return None
            run_clients(production.port, seconds)
            wait_for(shadows, production.digests)
        finally:
            process.stop()
        return production.digests, process.account()


def from_file(shadows: list[Server], report: Path) -> tuple[Counter[str], dict[str, Any]]:
    """Mirror the requests of the capture file that ships. Returns them and the report."""
    expected: Counter[str] = Counter()
    for stream in gopher.read_streams(CAPTURE_FILE, ports=[CAPTURE_FILE_PORT]):
        expected += Counter(map(digest, asyncio.run(split(stream.request))))
    with serving(*shadows):
        upstreams = [part for shadow in shadows for part in ("-u", shadow.upstream)]
        process = Gopher(
            *("--read", str(CAPTURE_FILE), "--speed", "max", "-p", str(CAPTURE_FILE_PORT)), *upstreams, report=report
        )
        account = process.account()
        wait_for(shadows, expected)
    return expected, account


async def split(stream: bytes) -> list[bytes]:
    """The requests of a whole stream."""
    reader = asyncio.StreamReader(limit=BODY_LIMIT_BYTES)
    reader.feed_data(stream)
    reader.feed_eof()
    requests = []
    while request := await read_request(reader):
        requests.append(request)
    return requests


def wait_for(shadows: list[Server], expected: Counter[str]) -> None:
    """Give the shadows time to serve what is on its way; whether all of it came is for `compare` to say."""
    deadline_s = time.monotonic() + PATIENCE_S
    while any(shadow.digests != expected for shadow in shadows) and time.monotonic() < deadline_s:
        time.sleep(0.02)


def compare(expected: Counter[str], shadows: list[Server], report: dict[str, Any]) -> bool:
    """Print the verdict on each shadow; True if all is well."""
    print(f"\n  {'upstream':<20}{'captured':>14}{'delivered':>14}{'shed':>10}{'pending':>10}   (bytes)")
    good = True
    for account in report["upstreams"]:
        captured, delivered, shed, pending = (
            account[key] for key in ("captured_bytes", "delivered_bytes", "shed_bytes", "pending_bytes")
        )
        adds_up = captured == delivered + shed + pending and captured == report["bytes"]["captured"]
        good &= adds_up and shed == 0
        verdict = "adds up" if adds_up else "DOES NOT ADD UP"
        print(f"  {account['name']:<20}{captured:>14,}{delivered:>14,}{shed:>10,}{pending:>10,}   {verdict}")
    print(f"\n  requests to production: {expected.total()}")
    for shadow in shadows:
        missing, other = (expected - shadow.digests).total(), (shadow.digests - expected).total()
        same = not (missing or other or shadow.broken_off)
        good &= same
        details = "the same, byte for byte" if same else f"{missing} MISSING, {other} OTHERS, {shadow.broken_off} CUT"
        print(f"  requests to {shadow.name}:   {shadow.digests.total()}, {details}")
    return good and expected.total() > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long the clients work (default: 6)")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        report = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "report.json"
        shadows = [Server("shadow A"), Server("shadow B")]
        print("A production server, two shadows and gopher, all on loopback.\n", flush=True)
        outcome = live(shadows, report, arguments.seconds)
        if outcome is None:
            print("\nCapturing is not permitted here, so the same from a capture file.\n", flush=True)
            shadows = [Server("shadow A"), Server("shadow B")]
            outcome = from_file(shadows, report)
        good = compare(outcome[0], shadows, outcome[1])
    print("\nGopher mirrored everything." if good else "\nSOMETHING IS WRONG.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
