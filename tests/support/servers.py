"""Servers that gopher's traffic ends at: `RecordingSink` keeps every byte and can misbehave, `Nginx` is a real one."""

from __future__ import annotations

import re
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.support.netns import Namespace

# Where the two servers of a single host are.
PRODUCTION = ("127.0.0.1", 80)
SHADOW = ("127.0.0.2", 3280)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
WAIT_S = 20.0

# http: answers each whole request. mute: reads all, answers nothing. silent: accepts and does not read until `release`.
# closing: answers the first request and closes. resetting: resets each connection at its first byte.
Mode = Literal["http", "mute", "silent", "closing", "resetting"]

_REQUEST_LINE = re.compile(rb"[A-Z]+ \S+ HTTP/1\.[01]")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


class RequestScanner:
    """Finds the ends of HTTP/1.1 requests in a byte stream, Content-Length and chunked.

    Attributes:
        requests: how many ended.
        expects_continue: how many asked for a 100.
        opaque: the stream is not (any more) a sequence of requests; nothing is counted from there on.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.expects_continue = 0
        self.opaque = False
        self._buffer = bytearray()
        self._body_left = 0
        self._chunked = False

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while not self.opaque and self._step():
            pass

    def _step(self) -> bool:
        if self._body_left:
            taken = min(self._body_left, len(self._buffer))
            del self._buffer[:taken]
            self._body_left -= taken
            if self._body_left == 0 and not self._chunked:
                self.requests += 1
            return taken > 0
        if self._chunked:
            return self._chunk()
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        line, *fields = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(b":") for each in fields)}
        self.opaque = _REQUEST_LINE.fullmatch(line) is None
        self._chunked = headers.get(b"transfer-encoding") == b"chunked"
        self._body_left = int(headers.get(b"content-length", b"0"))
        self.expects_continue += b"expect" in headers
        self.requests += not (self.opaque or self._chunked or self._body_left)
        return True

    def _chunk(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        size = int(bytes(self._buffer[:end]), 16)
        if size:
            self._body_left = size + 2
        elif len(self._buffer) < end + 4:
            return False
        else:
            assert self._buffer[end + 2 : end + 4] == b"\r\n", "trailers are not expected here"
            self._chunked = False
            self.requests += 1
            end += 2
        del self._buffer[: end + 2]
        return True


@dataclass(eq=False)
class Connection:
    """What a sink saw of one connection."""

    peer: tuple[str, int]
    received: bytearray = field(default_factory=bytearray)
    sent_bytes: int = 0
    ended: Literal["", "fin", "rst"] = ""
    """How the peer ended it; empty while it has not."""
    scanner: RequestScanner = field(default_factory=RequestScanner)
    answered: int = 0


class RecordingSink:
    """A TCP server in a thread that records the bytes of each connection, exactly and in order. Listens at once.

    Args:
        address: host and port; port 0 takes a free one.
        mode: how it behaves.
        namespace: where it lives.
        hold: keep answers back until `release`.
        answer: to each whole request.
    """

    def __init__(
        self,
        address: tuple[str, int] = ("127.0.0.1", 0),
        mode: Mode = "http",
        *,
        namespace: Namespace | None = None,
        hold: bool = False,
        answer: bytes = ANSWER,
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = namespace.make_socket(family) if namespace else socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(address)
        self._listener.listen(4096)
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()[:2]
        self._mode: Mode = mode
        self._hold = hold
        self._answer_bytes = answer
        self._changed = threading.Condition()
        self._connections: list[Connection] = []
        self._sockets: dict[socket.socket, Connection] = {}
        self._waker, self._woken = socket.socketpair()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> RecordingSink:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """HOST:PORT, as an upstream is written."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def connections(self) -> list[Connection]:
        """Every connection so far, in the order of acceptance."""
        with self._changed:
            return list(self._connections)

    @property
    def streams(self) -> list[bytes]:
        """The bytes of every connection so far, sorted: for comparison with another sink's."""
        with self._changed:
            return sorted(bytes(each.received) for each in self._connections)

    @property
    def requests(self) -> int:
        """Whole requests received."""
        with self._changed:
            return sum(each.scanner.requests for each in self._connections)

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait until `condition`, which is looked at again after each change here. Raises: AssertionError."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not condition():
                remaining = deadline - time.monotonic()
                assert remaining > 0, f"sink {self.name} still waits for {what}; it has {self._describe()}"
                self._changed.wait(remaining)

    def wait_requests(self, count: int, timeout_s: float = WAIT_S) -> None:
        """Wait for `count` whole requests, and assert that there are no more."""
        self.wait(lambda: self.requests >= count, f"{count} requests", timeout_s)
        assert self.requests == count, self._describe()

    def wait_ended(self, count: int, timeout_s: float = WAIT_S) -> None:
        """Wait until `count` connections have come and all connections have been ended by the peer."""
        self.wait(
            lambda: len(self._connections) >= count and all(each.ended for each in self._connections),
            f"{count} ended connections",
            timeout_s,
        )

    def wait_received(self, total_bytes: int, timeout_s: float = WAIT_S) -> None:
        """Wait for that many bytes on all connections together."""
        self.wait(
            lambda: sum(len(each.received) for each in self._connections) >= total_bytes,
            f"{total_bytes} bytes",
            timeout_s,
        )

    def hold(self) -> None:
        """Keep answers back from now on, until `release`."""
        with self._changed:
            self._hold = True

    def release(self) -> None:
        """Send the answers that were held back, read what was not read, and behave from now on."""
        self._hold = False
        self._mode = "http"
        self._waker.send(b"\0")

    def close(self) -> None:
        """Stop listening and reset what is still open."""
        if not self._stopping:
            self._stopping = True
            self._waker.send(b"\0")
            self._thread.join()

    def _describe(self) -> str:
        ended = Counter(each.ended or "open" for each in self._connections)
        received = sum(len(each.received) for each in self._connections)
        return f"{len(self._connections)} connections ({dict(ended)}), {self.requests} requests, {received} bytes"

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener, self._waker, self._woken:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stopping:
                ready = [key.fileobj for key, _ in selector.select()]
                with self._changed:
                    for sock in ready:
                        assert isinstance(sock, socket.socket)
                        if sock is self._listener:
                            self._accept(selector)
                        elif sock is self._woken:
                            self._woken.recv(4096)
                            for held, connection in list(self._sockets.items()):
                                self._register(held, selector)
                                self._answer(held, connection)
                        else:
                            self._read(sock, selector)
                    self._changed.notify_all()
            for sock in self._sockets:
                reset(sock)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            sock, peer = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        sock.setblocking(False)
        connection = Connection(peer[:2])
        self._connections.append(connection)
        self._sockets[sock] = connection
        if self._mode != "silent":
            self._register(sock, selector)

    @staticmethod
    def _register(sock: socket.socket, selector: selectors.BaseSelector) -> None:
        if sock not in selector.get_map():
            selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        connection = self._sockets[sock]
        try:
            data = sock.recv(1 << 20)
        except ConnectionResetError:
            self._forget(sock, selector)
            connection.ended = "rst"
            sock.close()
            return
        if not data:
            self._forget(sock, selector)
            connection.ended = "fin"
            sock.close()
            return
        connection.received += data
        if self._mode == "resetting":
            self._forget(sock, selector)
            reset(sock)
            return
        connection.scanner.feed(data)
        self._answer(sock, connection)
        if self._mode == "closing" and connection.answered:
            self._forget(sock, selector)
            sock.close()

    def _answer(self, sock: socket.socket, connection: Connection) -> None:
        if self._mode not in ("http", "closing") or self._hold:
            return
        answer = CONTINUE * connection.scanner.expects_continue
        connection.scanner.expects_continue = 0
        answer += self._answer_bytes * (connection.scanner.requests - connection.answered)
        connection.answered = connection.scanner.requests
        if answer:
            try:
                connection.sent_bytes += sock.send(answer)
            except (BrokenPipeError, ConnectionResetError):
                return  # the next read says how it ended

    def _forget(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        selector.unregister(sock)
        del self._sockets[sock]


def assert_mirrored(production: RecordingSink, *shadows: RecordingSink) -> None:
    """Once all clients have hung up: each shadow saw the connections that production saw, byte for byte."""
    for sink in (production, *shadows):
        sink.wait_ended(len(production.connections))
        assert sink.streams == production.streams


@contextmanager
def refused_address(namespace: Namespace, host: str = "127.0.0.1") -> Iterator[str]:
    """HOST:PORT where nobody listens, and nobody will while this lasts."""
    with namespace.make_socket() as sock:
        sock.bind((host, 0))
        yield f"{host}:{sock.getsockname()[1]}"


class Nginx:
    """A real nginx, in the foreground, with one server per site. PUT stores a file, so uploads can be compared.

    Args:
        directory: for its configuration, logs and files; made by the caller, one per nginx.
        sites: the addresses it listens on.
        namespace: where it lives.
        proxy_protocol: expect a PROXY header on each connection; what it says ends the lines of `requests`.
        certificate: PEM file with a key and its certificate: speak TLS.
        client_ca: PEM file: clients must show a certificate that is signed by one of these.
    """

    def __init__(
        self,
        directory: Path,
        sites: Sequence[tuple[str, int]],
        *,
        namespace: Namespace | None = None,
        proxy_protocol: bool = False,
        certificate: Path | None = None,
        client_ca: Path | None = None,
    ) -> None:
        self._directory = directory
        self._sites = sites
        servers = []
        for number, (host, port) in enumerate(sites):
            self.root(number).mkdir(parents=True)
            listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            listen += " proxy_protocol" if proxy_protocol else ""
            listen += f" ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate}" if certificate else ""
            listen += f"; ssl_verify_client on; ssl_client_certificate {client_ca}" if client_ca else ""
            servers.append(
                f"server {{ listen {listen}; root {self.root(number)}; access_log {self._log(number)} requests;"
                " location / { dav_methods PUT; }"
                " location /short/ { return 200 short; } }"
            )
        configuration = directory / "nginx.conf"
        configuration.write_text(
            "daemon off; master_process off; user root;"
            f" pid {directory}/pid; error_log {directory}/error.log;"
            " events { worker_connections 4096; }"
            " http { client_max_body_size 0; keepalive_requests 1000000;"
            f" client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;"
            f" fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;"
            f" scgi_temp_path {directory}/scgi;"
            # What arrived: the length counts request line, header fields and body, as they were on the wire.
            " log_format requests '$request|$request_length|$http_host|$http_x_number"
            + ("|$proxy_protocol_addr:$proxy_protocol_port" if proxy_protocol else "")
            + "';"
            + " ".join(servers)
            + " }"
        )
        argv = ["nginx", "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(configuration)]
        self._process = subprocess.Popen(namespace.command(*argv) if namespace else argv)
        self._wait_listening(namespace)

    def _wait_listening(self, namespace: Namespace | None) -> None:
        connect = namespace.connect if namespace else socket.create_connection
        deadline = time.monotonic() + WAIT_S
        for site in self._sites:
            while not _accepts(connect, site):
                assert self._process.poll() is None, (self._directory / "error.log").read_text()
                assert time.monotonic() < deadline, f"nginx does not listen on {site}"
                time.sleep(0.01)

    def root(self, site: int = 0) -> Path:
        """Where the site's files are."""
        return self._directory / f"root-{site}"

    def _log(self, site: int) -> Path:
        return self._directory / f"access-{site}.log"

    def requests(self, site: int = 0) -> list[str]:
        """One line for each request that the site has served, sorted."""
        return sorted(self._log(site).read_text().splitlines())

    def wait_requests(self, count: int, site: int = 0, timeout_s: float = WAIT_S) -> None:
        """Wait until the site has served `count` requests, and assert that there are no more."""
        deadline = time.monotonic() + timeout_s
        while len(self.requests(site)) < count:
            assert time.monotonic() < deadline, f"nginx served {len(self.requests(site))} of {count} requests"
            time.sleep(0.01)
        assert len(self.requests(site)) == count

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def __enter__(self) -> Nginx:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _accepts(connect: Callable[[tuple[str, int]], socket.socket], address: tuple[str, int]) -> bool:
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return False
    return True
