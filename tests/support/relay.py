"""The real `gopher -r` in a process of its own, a framed link to it, and a server that answers from a script."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gopher.link import LinkInfo, ProxyHeader, encode_data, encode_fin, encode_header
from tests.support.accounts import assert_relay_accounts
from tests.support.clients import receive_exactly
from tests.support.command import GopherProcess, assert_clean
from tests.support.netns import Namespace

# As text, or within a JSON line.
READY = re.compile(r"(gopher: |.*: \")relaying on ports? [\d,]+( of \S+)?, to \d+ upstreams?(\"})?$")
DEADLINE_S = 20.0
CLIENT, SERVER = 0, 1
NOTHING = "00000000:00000000"


def free_port() -> int:
    """A port that nobody listens on now, and that the kernel gives to nobody who asks for any, before it is used."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(1024, max(first, 2048))
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("0.0.0.0", port))
            return port


class RelayProcess(GopherProcess):
    """A running relay. Entering waits for the ready line; leaving stops it and checks status, stderr and accounts.

    Args:
        upstreams: as after -u.
        options: more of the command line.
        port: to listen on; a free one if not given.
        namespace: where it lives.
        settings: more for `GopherProcess`.
    """

    def __init__(
        self,
        *upstreams: str,
        options: Sequence[str] = (),
        port: int | None = None,
        namespace: Namespace | None = None,
        **settings: Any,
    ) -> None:
        self.port = port or free_port()
        arguments = [word for upstream in upstreams for word in ("-u", upstream)]
        super().__init__("-r", "-p", str(self.port), *arguments, *options, namespace=namespace, ready=False, **settings)

    def __enter__(self) -> RelayProcess:
        super().__enter__()
        try:
            self.wait_stderr(READY.match)
        except BaseException:
            self._give_up()
            raise
        return self

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        """A client's connection."""
        return socket.create_connection((host, self.port), timeout=DEADLINE_S)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done meanwhile the relay finds all at once."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def wait(self, *, status: int = 0, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """Wait for the exit; assert the status, a clean stderr and accounts that add up; return the report."""
        self._process.wait(timeout_s)
        self._ended()
        assert self.exit_status == status, f"exit status {self.exit_status}:\n{self.stderr}"
        assert_clean(self.stderr)
        assert_relay_accounts(self.report)
        return self.report


class Link:
    """A framed link, as a capturing gopher sends it."""

    def __init__(self, relay, number=1, *, joined=False):
        header = ProxyHeader(
            client=("192.0.2.1", 1000 + number),
            server=("192.0.2.2", 80),
            unique_id=number.to_bytes(16, "big"),
            link=LinkInfo(framed=True, joined=joined, start_ns=1),
        )
        self._sock = relay.connect()
        self._sock.sendall(encode_header(header))

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._sock.close()

    def send(self, *records):
        self._sock.sendall(b"".join(records))

    def request(self, path, cookie=""):
        line = f"Cookie: {cookie}\r\n" if cookie else ""
        self.send(encode_data(CLIENT, f"GET {path} HTTP/1.1\r\nHost: a\r\n{line}\r\n".encode(), 1))

    def response(self, fields=""):
        self.send(encode_data(SERVER, f"HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n".encode(), 1))

    def wait_read(self):
        """Wait until the relay has read all that was sent: nothing waits in the kernel, on either side."""
        mine, its = self._sock.getsockname()[1], self._sock.getpeername()[1]
        deadline_s = time.monotonic() + DEADLINE_S
        # proc(5): sl local_address rem_address st tx_queue:rx_queue, in hexadecimal.
        while any(
            {int(address.rpartition(":")[2], 16) for address in (local, remote)} == {mine, its} and queues != NOTHING
            for local, remote, queues in _sockets()
        ):
            assert time.monotonic() < deadline_s, "the relay does not read its link"
            time.sleep(0.01)

    def end(self):
        """End both directions, and wait for the relay to close."""
        self.send(encode_fin(CLIENT, 1), encode_fin(SERVER, 1))
        self._sock.shutdown(socket.SHUT_WR)
        assert receive_until_end(self._sock) == b""


def _sockets() -> Iterator[tuple[str, str, str]]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, remote, _, queues, *_ = line.split()
            yield local, remote, queues


def receive_until_end(sock: socket.socket) -> bytes:
    """Everything up to the FIN. Raises: ConnectionResetError."""
    received = bytearray()
    while data := sock.recv(1 << 16):
        received += data
    return bytes(received)


def close_notify(sock: ssl.SSLSocket) -> None:
    """Say that no more comes. What still comes from the other side is left unread."""
    sock.setblocking(False)
    with contextlib.suppress(ssl.SSLError):
        # It goes on to wait for the other side's, and does not like data instead.
        sock.unwrap()


class ScriptedServer:
    """A server that answers from a script, one connection at a time.

    Args:
        tls: its settings, if it speaks TLS. It then holds the client to it: an end without close_notify is an error.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(DEADLINE_S)
        self.address = self._listener.getsockname()
        self.name = "{}:{}".format(*self.address)

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.close()

    @contextmanager
    def play(self, steps: Sequence[tuple[int, bytes]], *, closes: bool) -> Iterator[bytearray]:
        """Serve the next connection while this lasts. Yields what was received: all of it when this is over.

        Args:
            steps: (how many bytes to wait for, what to answer) in order.
            closes: close after the last answer; else read until the client ends.
        """
        received = bytearray()
        failures: list[BaseException] = []

        def serve() -> None:
            try:
                sock, _ = self._listener.accept()
                sock.settimeout(DEADLINE_S)
                if self._tls is not None:
                    sock = self._tls.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
                with sock:
                    for length, answer in steps:
                        received.extend(receive_exactly(sock, length))
                        sock.sendall(answer)
                    if not closes:
                        received.extend(receive_until_end(sock))
                    if isinstance(sock, ssl.SSLSocket):
                        close_notify(sock)
            except BaseException as failure:  # raised again by whoever waits
                failures.append(failure)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield received
        finally:
            thread.join()
        if failures:
            raise failures[0]
