"""Tunnels against real sockets on loopback, served without Trio."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from gopher.link import SIGNATURE, LinkInfo, ProxyHeader, encode_header
from gopher.relay._tunnel import DONE, DOWNSTREAM, LINK, PLAIN, UPSTREAM, Tunnel, TunnelPump, begins_request
from gopher.upstreams.tcp import Address

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_S = 10
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEADER = encode_header(
    ProxyHeader(
        client=("192.0.2.1", 1234),
        server=("192.0.2.2", 80),
        unique_id=b"u" * 16,
        link=LinkInfo(framed=False, start_ns=1),
    )
)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.settimeout(DEADLINE_S)
    return near, far


class Stage:
    """A client, a tunnel, and the listener that the tunnel dials."""

    def __init__(self) -> None:
        self.pump = TunnelPump()
        self.client, self._downstream = tcp_pair()
        self._downstream.setblocking(False)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE_S)
        self.server: socket.socket | None = None
        self.tunnel: Tunnel
        self.decisions: list[tuple[Tunnel, int]] = []

    def begin(self, **settings: bool) -> None:
        self.tunnel = Tunnel(self.pump, self._downstream.detach(), "owner", **settings)

    def dial(self) -> int:
        host, port = self.listener.getsockname()
        address = Address(socket.AF_INET, host, port)
        return self.tunnel.dial(address.family, address.sockaddr)

    def accept(self) -> socket.socket:
        self.server, _ = self.listener.accept()
        self.server.settimeout(DEADLINE_S)
        self.serve_until(lambda: not self.tunnel.connecting)
        return self.server

    def serve_until(self, condition) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "nothing happens"
            select.select([self.pump.epoll_fd], [], [], 0.05)
            self.decisions += self.pump.serve()[1]

    def serve_to_client(self, length: int) -> bytes:
        return self._receive(self.client, length)

    def serve_to_server(self, length: int) -> bytes:
        return self._receive(self.server, length)

    def _receive(self, sock: socket.socket, length: int) -> bytes:
        sock.setblocking(False)
        received = bytearray()

        def complete() -> bool:
            try:
                data = sock.recv(1 << 20)
            except BlockingIOError:
                return False
            received.extend(data)
            return len(received) >= length or not data

        self.serve_until(complete)
        sock.settimeout(DEADLINE_S)
        return bytes(received)

    def decision(self) -> int:
        self.serve_until(lambda: self.decisions)
        [(tunnel, outcome)] = self.decisions
        assert tunnel is self.tunnel
        self.decisions.clear()
        return outcome

    def is_quiet(self) -> bool:
        """Whether nothing is reported over and over."""
        for _ in range(5):
            served, decisions = self.pump.serve()
            assert not decisions
            if served == 0:
                return True
        return False

    def close(self) -> None:
        if not self.tunnel.closed:
            self.tunnel.close(False)
        for sock in (self.client, self.listener, self.server, self._downstream):
            if sock is not None:
                sock.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


@pytest.fixture
def joined(stage: Stage) -> Stage:
    stage.begin()
    assert stage.dial() == 0
    stage.accept()
    return stage


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_bytes_pass_both_ways_and_are_counted(joined):
    joined.client.sendall(REQUEST)
    assert joined.serve_to_server(len(REQUEST)) == REQUEST
    joined.server.sendall(b"answer")
    assert joined.serve_to_client(6) == b"answer"
    assert joined.tunnel.received == joined.pump.received == (len(REQUEST), 6)
    assert joined.tunnel.http
    assert joined.tunnel.owner == "owner"
    assert joined.is_quiet()


def test_what_came_while_connecting_passes(stage):
    stage.client.sendall(b"early")
    stage.begin()
    assert stage.dial() == 0
    assert stage.tunnel.connecting
    stage.accept()
    assert stage.serve_to_server(5) == b"early"
    assert not stage.tunnel.http


def test_server_may_speak_first(joined):
    joined.server.sendall(b"220 hello\r\n")
    assert joined.serve_to_client(11) == b"220 hello\r\n"


@pytest.mark.parametrize("first", ["client", "server"])
def test_half_close_passes_and_the_other_way_stays_open(joined, first):
    near, far, to_far, to_near = (
        (joined.client, joined.server, joined.serve_to_server, joined.serve_to_client)
        if first == "client"
        else (joined.server, joined.client, joined.serve_to_client, joined.serve_to_server)
    )
    near.sendall(b"last words")
    near.shutdown(socket.SHUT_WR)
    assert to_far(10) == b"last words"
    assert to_far(1) == b""
    assert joined.is_quiet()
    far.sendall(b"reply")
    assert to_near(5) == b"reply"
    far.shutdown(socket.SHUT_WR)
    assert to_near(1) == b""
    assert joined.decision() == DONE


def test_back_pressure_stops_reading_and_nothing_is_lost(joined):
    data = bytes(range(256)) * 65536  # 16 MiB, more than the kernel's buffers of both connections hold
    joined.client.setblocking(False)
    sent = 0
    idle = 0
    while idle < 20:
        try:
            sent += joined.client.send(data[sent : sent + (1 << 20)])
            idle = 0
        except BlockingIOError:
            idle += 1
        joined.pump.serve()
    assert sent < len(data)
    assert joined.is_quiet()
    received = bytearray()
    joined.server.setblocking(False)

    def complete() -> bool:
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            received.extend(joined.server.recv(1 << 20))
        with contextlib.suppress(BlockingIOError):
            sent += joined.client.send(data[sent : sent + (1 << 20)]) if sent < len(data) else 0
        return len(received) == len(data)

    joined.serve_until(complete)
    assert received == data


def test_fin_waits_for_the_bytes_before_it(joined):
    data = b"x" * (8 << 20)
    joined.server.setblocking(False)
    sent = 0
    while sent < len(data):
        try:
            sent += joined.server.send(data[sent:])
        except BlockingIOError:
            break
        joined.pump.serve()
    joined.server.shutdown(socket.SHUT_WR)
    # Both ways ended, and bytes still on their way to a client that does not read: hung up, and not over.
    joined.client.shutdown(socket.SHUT_WR)
    for _ in range(50):
        joined.pump.serve()
    assert joined.is_quiet()
    received = 0
    while chunk := joined.serve_to_client(1):
        received += len(chunk)
    assert received == sent
    assert joined.decision() == DONE


@pytest.mark.parametrize("side", ["client", "server"])
def test_reset_is_reported_with_its_side(joined, side):
    joined.client.sendall(b"hello")
    assert joined.serve_to_server(5) == b"hello"
    reset(getattr(joined, side))
    assert joined.decision() == -errno.ECONNRESET
    assert joined.tunnel.failed == (DOWNSTREAM if side == "client" else UPSTREAM)


def test_bytes_before_a_reset_pass(joined):
    joined.server.sendall(b"413 too large")
    reset(joined.server)
    assert joined.serve_to_client(13) == b"413 too large"
    assert joined.decision() == -errno.ECONNRESET


def test_answer_of_a_server_that_stops_reading_passes(joined):
    # It answers and closes with the client's bytes unread: a RST. What it said must not be lost with them.
    joined.client.sendall(b"x" * 1000)
    joined.serve_until(lambda: joined.tunnel.received[0] == 1000)
    joined.server.sendall(b"enough")
    joined.server.close()
    joined.client.sendall(b"y" * 1000)
    assert joined.serve_to_client(6) == b"enough"
    assert joined.decision() in (-errno.ECONNRESET, -errno.EPIPE)
    assert joined.tunnel.failed == UPSTREAM


def test_reset_by_a_server_waits_for_a_slow_client(joined):
    data = b"z" * (8 << 20)
    joined.server.setblocking(False)
    sent = 0
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            sent += joined.server.send(data[sent:])
        joined.pump.serve()
    reset(joined.server)
    assert joined.is_quiet()
    assert joined.tunnel.unsent(DOWNSTREAM) > 0
    joined.client.setblocking(False)
    taken = 0

    def reported() -> bool:
        nonlocal taken
        with contextlib.suppress(BlockingIOError):
            taken += len(joined.client.recv(1 << 20))
        return bool(joined.decisions)

    joined.serve_until(reported)
    assert joined.decisions[0][1] == -errno.ECONNRESET
    assert taken + joined.tunnel.unsent(DOWNSTREAM) > 0


def test_refused_attempt_is_reported_and_can_be_repeated(stage):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refused = Address(socket.AF_INET, *bound.getsockname())
        stage.begin()
        assert stage.tunnel.dial(refused.family, refused.sockaddr) == 0
        assert stage.decision() == -errno.ECONNREFUSED
        assert stage.tunnel.connecting
        assert stage.tunnel.failed == UPSTREAM
    stage.client.sendall(REQUEST)
    assert stage.dial() == 0
    stage.accept()
    assert stage.serve_to_server(len(REQUEST)) == REQUEST


def test_client_that_gives_up_while_connecting_is_reported(stage):
    stage.begin()
    # A full accept queue: further attempts stay unanswered.
    stage.listener.listen(0)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(stage.listener.getsockname())
        fillers.append(filler)
    assert stage.dial() == 0
    reset(stage.client)
    assert stage.decision() == -errno.ECONNRESET
    assert stage.tunnel.connecting
    assert stage.tunnel.failed == DOWNSTREAM
    for filler in fillers:
        filler.close()


@pytest.mark.parametrize("hard", [False, True])
def test_close_while_connecting(stage, hard):
    stage.begin()
    assert stage.dial() == 0
    assert stage.pump.open == 1
    stage.tunnel.close(hard)
    assert stage.tunnel.closed
    assert stage.pump.open == 0
    stage.tunnel.close(hard)
    assert stage.is_quiet()


def test_hard_close_resets_both(joined):
    joined.tunnel.close(True)
    for sock in (joined.client, joined.server):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_released_downstream_is_usable_and_unread(stage):
    stage.client.sendall(REQUEST)
    stage.begin()
    with socket.socket(fileno=stage.tunnel.release_downstream()) as released:
        assert stage.tunnel.closed
        assert stage.pump.open == 0
        released.settimeout(DEADLINE_S)
        assert released.recv(100) == REQUEST


def test_rest_moves_nothing(joined):
    joined.tunnel.rest()
    joined.client.sendall(b"x")
    assert joined.is_quiet()
    assert joined.tunnel.received == (0, 0)


def test_join_sends_what_waits_first(stage):
    stage.begin()
    near, far = tcp_pair()
    far.setblocking(False)
    stage.server = near
    assert stage.tunnel.join(far.detach(), False, to_downstream=b"down", to_upstream=b"up") == 0
    stage.client.sendall(b"stairs")
    assert stage.serve_to_server(8) == b"upstairs"
    assert stage.serve_to_client(4) == b"down"


# -- a PROXY protocol header ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [*range(1, 17), len(HEADER) - 1, len(HEADER)])
def test_header_is_found_however_it_is_cut(stage, cut):
    stage.begin(sniff=True)
    stage.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stage.client.sendall(HEADER[:cut])
    assert stage.dial() == 0
    stage.accept()
    if cut < len(HEADER):
        assert stage.is_quiet()
        assert stage.tunnel.received == (0, 0)
        stage.client.sendall(HEADER[cut:])
    stage.client.sendall(REQUEST)
    assert stage.decision() == LINK
    assert stage.tunnel.peek(4096)[: len(HEADER)] == HEADER
    stage.tunnel.skip(len(HEADER))
    assert stage.serve_to_server(len(REQUEST)) == REQUEST
    assert stage.tunnel.http


@pytest.mark.parametrize("length", range(1, 13))
def test_prefix_of_a_signature_that_is_none_passes(stage, length):
    stage.begin(sniff=True)
    assert stage.dial() == 0
    stage.accept()
    sent = SIGNATURE[:length] + b"?"
    stage.client.sendall(sent[:length])
    assert stage.is_quiet()
    stage.client.sendall(sent[length:] + bytes(16))
    if length < 12:
        assert stage.serve_to_server(len(sent) + 16) == sent + bytes(16)
    else:
        # With a whole signature it is a header, if a wrong one: that is for the caller to say.
        assert stage.decision() == LINK


def test_end_within_a_header_passes_as_bytes(stage):
    stage.begin(sniff=True)
    assert stage.dial() == 0
    stage.accept()
    stage.client.sendall(b"\r\n")
    assert stage.is_quiet()
    stage.client.shutdown(socket.SHUT_WR)
    assert stage.serve_to_server(2) == b"\r\n"
    assert stage.serve_to_server(1) == b""


def test_oversized_header_is_reported_at_once(stage):
    stage.begin(sniff=True)
    stage.client.sendall(HEADER[:14] + b"\xff\xff")
    assert stage.dial() == 0
    stage.accept()
    stage.serve_until(lambda: stage.decisions)
    assert stage.decisions[0][1] == LINK


def test_announcement_comes_before_everything(stage):
    stage.begin(sniff=True, ask=True)
    assert stage.dial() == 0
    stage.accept()
    stage.client.sendall(REQUEST)
    assert stage.decision() == PLAIN
    assert stage.tunnel.announce(b"PROXY UNKNOWN\r\n") == 0
    assert stage.serve_to_server(15 + len(REQUEST)) == b"PROXY UNKNOWN\r\n" + REQUEST


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (REQUEST, True),
        (b"OPTIONS * HTTP/1.0\n", True),
        (b"GET / HTTP/1.1\r", False),
        (b"GET /\r\n", False),
        (b"EHLO there\r\n", False),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", False),
        (b"\n", False),
        (b"", False),
        (b"HTTP/1.1\n", False),
    ],
)
def test_begins_request(data, expected):
    assert begins_request(data) is expected
