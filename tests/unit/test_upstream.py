"""One upstream: back-off, the cuts of the table in docs/ARCHITECTURE.md, and their accounts."""

from __future__ import annotations

import errno
import select
import socket
from typing import TYPE_CHECKING, Any

import pytest

from gopher._pump import Budget, Pump
from gopher.config import MirrorConfig, UpstreamConfig
from gopher.errors import UpstreamError
from gopher.http.framing import RequestFramer
from gopher.upstreams.directory import DirectoryUpstream
from gopher.upstreams.tcp import Address, Backoff, TcpUpstream
from gopher.upstreams.upstream import StreamCopy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
DEADLINE_S = 10


# -- back-off ----------------------------------------------------------------------------------------------------------


def test_backoff_when_healthy_permits_everything() -> None:
    backoff = Backoff()
    assert all(backoff.permits(now) for now in (0.0, 0.0, 1.0))


def test_backoff_after_a_failure_permits_one_attempt_per_period_and_doubles_it() -> None:
    backoff = Backoff()
    backoff.failed(10.0, "refused")
    attempts = []
    for step in range(1000):
        now = 10.0 + step / 100
        if backoff.permits(now):
            attempts.append(round(now - 10, 2))
            backoff.failed(now, "refused")
    # 0.1, 0.2, 0.4, 0.8, 1.6 and from then on 2 s apart.
    assert attempts == pytest.approx([0.1, 0.3, 0.7, 1.5, 3.1, 5.1, 7.1, 9.1], abs=0.05)


def test_backoff_failures_of_one_moment_count_once() -> None:
    backoff = Backoff()
    for _ in range(100):
        backoff.failed(10.0, "refused")
    assert not backoff.permits(10.09)
    assert backoff.permits(10.11)


def test_backoff_while_an_attempt_is_under_way_permits_no_second() -> None:
    backoff = Backoff()
    backoff.failed(10.0, "refused")
    assert backoff.permits(10.15)
    assert not backoff.permits(10.16)


def test_backoff_after_success_forgets() -> None:
    backoff = Backoff()
    backoff.failed(10.0, "refused")
    backoff.succeeded()
    assert backoff.permits(10.0)
    assert backoff.reason is None


# -- a real upstream ---------------------------------------------------------------------------------------------------


class Stage:
    """A TCP upstream that dials a listener on loopback, with a clock set by hand."""

    def __init__(self, *, connection_memory_bytes: int = 1 << 20, **bounds: Any) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE_S)
        self.port = self.listener.getsockname()[1]
        self.pump = Pump()
        self.now_s = 100.0
        self.peers: list[socket.socket] = []
        config = UpstreamConfig(name="shadow", host="127.0.0.1", port=self.port)
        limits = MirrorConfig(upstreams=(config,), connection_memory_bytes=connection_memory_bytes, **bounds)
        self.upstream = TcpUpstream(
            config,
            limits,
            Budget(limits.total_memory_bytes),
            [Address(socket.AF_INET, "127.0.0.1", self.port)],
            self.pump,
            clock=lambda: self.now_s,
        )

    def copy(self) -> tuple[StreamCopy, RequestFramer]:
        return StreamCopy(self.upstream, "name"), RequestFramer()

    def accept(self) -> socket.socket:
        peer, _ = self.listener.accept()
        peer.settimeout(DEADLINE_S)
        self.peers.append(peer)
        return peer

    def serve(self) -> None:
        """Serve the next batch that becomes ready, decisions included."""
        readable, _, _ = select.select([self.pump.fileno()], [], [], DEADLINE_S)
        assert readable, "nothing became ready"
        for connection, outcome in self.pump.serve()[1]:
            self.upstream.outcome(connection, outcome)

    def check_law(self) -> None:
        account = self.upstream.account()
        assert account.captured_bytes == account.delivered_bytes + account.shed_bytes + account.pending_bytes
        assert account.shed_bytes == sum(account.shed.values())
        connections = account.connections
        assert connections.captured == connections.delivered + connections.shed + connections.pending

    def close(self) -> None:
        self.listener.close()
        for peer in self.peers:
            peer.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.check_law()
    stage.close()


def write(copy: StreamCopy, requests: RequestFramer, data: bytes) -> str | None:
    base = requests.started
    start = requests.feed(data)
    return copy.write(data, start, base, requests)


def read_all(peer: socket.socket) -> tuple[bytes, bool]:
    """Everything until the end, and whether the end was a reset."""
    data = bytearray()
    try:
        while part := peer.recv(65536):
            data += part
    except ConnectionResetError:
        return bytes(data), True
    return bytes(data), False


def test_stream_that_is_answered_and_finished_is_delivered(stage: Stage) -> None:
    copy, requests = stage.copy()
    assert write(copy, requests, REQUEST) is None
    copy.finish()
    assert stage.upstream.connections_pending == 1
    stage.accept().sendall(ANSWER)
    while stage.upstream.connections_pending:
        stage.serve()
    account = stage.upstream.account()
    assert account.delivered_bytes == len(REQUEST)
    assert account.connections.delivered == 1
    assert read_all(stage.peers[0]) == (REQUEST, False)


def test_gap_within_a_request_resets_and_rejoins_at_the_next_request(stage: Stage) -> None:
    copy, requests = stage.copy()
    write(copy, requests, REQUEST + b"POST / HTTP/1.1\r\nContent-Le")
    cut = len(REQUEST) + 27
    first = stage.accept()
    copy.interrupt("gap", whole=False, length=7)
    assert read_all(first)[1]
    assert stage.upstream.ledger.shed == {"gap": cut}

    requests = RequestFramer()
    write(copy, requests, REQUEST)
    second = stage.accept()
    assert second.recv(1000) == REQUEST
    second.sendall(ANSWER)
    copy.finish()
    while stage.upstream.connections_pending:
        stage.serve()
    account = stage.upstream.account()
    assert account.delivered_bytes == len(REQUEST)
    assert account.connections.shed_by_reason == {"gap": 1}
    assert account.dials == 2


def test_gap_between_requests_resets_after_the_answer_and_keeps_what_was_delivered(stage: Stage) -> None:
    copy, requests = stage.copy()
    write(copy, requests, REQUEST)
    copy.interrupt("gap", whole=True, length=7)
    peer = stage.accept()
    assert peer.recv(1000) == REQUEST
    peer.sendall(ANSWER)
    stage.serve()
    assert read_all(peer) == (b"", True)
    assert stage.upstream.ledger.delivered == len(REQUEST)


def test_bytes_before_the_next_request_are_shed_when_rejoining(stage: Stage) -> None:
    copy, requests = stage.copy()
    write(copy, requests, b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n12345")
    peer = stage.accept()
    peer.recv(1000)
    peer.close()
    stage.serve()
    assert copy.connection is None
    write(copy, requests, b"678")
    write(copy, requests, b"90" + REQUEST)
    assert stage.accept().recv(1000) == REQUEST
    assert stage.upstream.ledger.shed == {"closed": 5}


def test_upstream_that_resets_keeps_what_it_accepted_and_sheds_the_rest(stage: Stage) -> None:
    copy, requests = stage.copy()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n"
    write(copy, requests, head)
    peer = stage.accept()
    peer.close()  # with the request unread: a reset
    stage.serve()
    write(copy, requests, b"half a reque")
    copy.finish()
    account = stage.upstream.account()
    assert account.delivered_bytes == len(head)
    assert account.shed == {"reset": 12}


def test_refused_upstream_sheds_and_is_not_dialled_for_every_connection(stage: Stage) -> None:
    stage.listener.close()
    for _ in range(50):
        copy, requests = stage.copy()
        write(copy, requests, REQUEST)
        copy.finish()
        if stage.pump.open:
            stage.serve()
    account = stage.upstream.account()
    assert account.shed == {"refused": 50 * len(REQUEST)}
    assert account.connections.shed_by_reason == {"refused": 50}
    assert account.dials == 1


def test_restarted_upstream_is_taken_up_again_at_the_next_request(stage: Stage) -> None:
    stage.listener.close()
    copy, requests = stage.copy()
    write(copy, requests, REQUEST)
    if stage.pump.open:
        stage.serve()
    stage.listener = socket.create_server(("127.0.0.1", stage.port))
    stage.listener.settimeout(DEADLINE_S)
    write(copy, requests, REQUEST)
    assert stage.upstream.account().dials == 1
    stage.now_s += 0.11
    write(copy, requests, REQUEST)
    assert stage.accept().recv(1000) == REQUEST
    assert stage.upstream.account().shed == {"refused": 2 * len(REQUEST)}


def test_second_address_is_dialled_when_the_first_refuses(stage: Stage) -> None:
    stage.upstream.addresses.insert(0, Address(socket.AF_INET6, "::1", stage.port))
    copy, requests = stage.copy()
    write(copy, requests, REQUEST)
    while stage.upstream.ledger.pending:
        stage.serve()
    assert stage.accept().recv(1000) == REQUEST
    assert stage.upstream.ledger.shed == {}


def test_upstream_that_always_dies_unanswered_is_left_alone(stage: Stage) -> None:
    for _ in range(30):
        copy, requests = stage.copy()
        write(copy, requests, REQUEST)
        if copy.connection is not None:
            stage.accept().close()
            stage.serve()
        copy.finish()
    assert stage.upstream.account().dials == TcpUpstream.UNANSWERED_LIMIT


def test_connection_timeout_sheds_what_is_queued() -> None:
    stage = Stage()
    # A listener whose queue is full does not answer the next SYN.
    stage.listener.listen(0)
    crowd = []
    for _ in range(4):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", stage.port))
        crowd.append(client)
    copy, requests = stage.copy()
    write(copy, requests, REQUEST)
    assert stage.upstream.ledger.pending == len(REQUEST)
    stage.now_s += 4.9
    stage.upstream.tick(stage.now_s)
    assert stage.upstream.ledger.pending == len(REQUEST)
    stage.now_s += 0.2
    stage.upstream.tick(stage.now_s)
    assert stage.upstream.ledger.shed == {"connect_timeout": len(REQUEST)}
    stage.check_law()
    stage.close()
    for client in crowd:
        client.close()


def test_linger_over_without_an_answer_counts_what_was_accepted_as_delivered(stage: Stage) -> None:
    copy, requests = stage.copy()
    write(copy, requests, REQUEST)
    copy.finish()
    peer = stage.accept()
    assert peer.recv(1000) == REQUEST
    stage.now_s += 10
    stage.upstream.tick(stage.now_s)
    account = stage.upstream.account()
    assert account.connections.delivered == 1
    assert read_all(peer) == (b"", False)


def test_linger_over_with_bytes_left_sheds_the_connection(stage: Stage) -> None:
    copy, requests = stage.copy()
    total = 0
    while copy.connection is None or not copy.connection.queued:
        assert write(copy, requests, b"\0" * 65536) is None
        total += 65536
    copy.finish()
    stage.now_s += 10
    stage.upstream.tick(stage.now_s)
    account = stage.upstream.account()
    assert account.shed == {"linger": total}
    assert account.connections.shed_by_reason == {"linger": 1}


def test_client_reset_resets_the_upstream(stage: Stage) -> None:
    copy, requests = stage.copy()
    write(copy, requests, REQUEST)
    peer = stage.accept()
    assert peer.recv(1000) == REQUEST
    copy.reset()
    assert read_all(peer) == (b"", True)
    assert stage.upstream.account().connections.delivered == 1


def test_memory_bound_is_reported_and_giving_up_sheds_the_connection_as_a_whole() -> None:
    stage = Stage(connection_memory_bytes=1000)
    copy, requests = stage.copy()
    total = 0
    over = None
    while over is None:
        over = write(copy, requests, b"\0" * 65536)
        total += 65536
    assert over == "connection_memory"
    peer = stage.accept()
    copy.give_up(over)
    assert read_all(peer)[1]
    write(copy, requests, REQUEST)
    copy.finish()
    account = stage.upstream.account()
    assert account.shed == {"connection_memory": total + len(REQUEST)}
    assert account.delivered_bytes == 0
    stage.check_law()
    stage.close()


# -- rates and numbers -------------------------------------------------------------------------------------------------


def test_connection_beyond_the_rate_is_not_there_at_all() -> None:
    stage = Stage(max_connections_per_s=1)
    first, requests = stage.copy()
    write(first, requests, REQUEST)
    second, its_requests = stage.copy()
    write(second, its_requests, REQUEST)
    # Not from a later request on either, when there would be room.
    stage.now_s += 60
    write(second, its_requests, REQUEST)
    second.finish()
    account = stage.upstream.account()
    assert account.dials == 1
    assert account.shed == {"max_rate": 2 * len(REQUEST)}
    assert account.connections.shed_by_reason == {"max_rate": 1}
    stage.check_law()
    stage.close()


def test_connection_that_has_to_be_made_anew_waits_for_its_turn_and_begins_with_a_request() -> None:
    stage = Stage(max_connections_per_s=1)
    copy, requests = stage.copy()
    write(copy, requests, REQUEST)
    copy.interrupt("gap", whole=False, length=7)
    requests = RequestFramer()
    write(copy, requests, REQUEST + b"GET /half")
    stage.now_s += 60
    write(copy, requests, b" HTTP/1.1\r\n\r\n")
    write(copy, requests, REQUEST)
    assert stage.accept().recv(1000) in (b"", REQUEST)
    second = stage.accept()
    assert second.recv(1000) == REQUEST
    account = stage.upstream.account()
    assert account.shed == {"gap": len(REQUEST), "max_rate": len(REQUEST) + len(b"GET /half HTTP/1.1\r\n\r\n")}
    stage.check_law()
    stage.close()


def test_long_connection_over_the_byte_rate_is_reset_and_counts_nothing_as_delivered() -> None:
    stage = Stage(max_bytes_per_s=4 * len(REQUEST))
    copy, requests = stage.copy()
    sent = 0
    while copy.connection is not None or sent == 0:
        write(copy, requests, REQUEST)
        sent += 1
    # A full bucket, and a second's worth of debt.
    assert sent == 4 + 4 + 1
    peer = stage.accept()
    assert read_all(peer)[1]
    write(copy, requests, REQUEST)
    copy.finish()
    account = stage.upstream.account()
    assert account.shed == {"max_rate": 10 * len(REQUEST)}
    assert account.delivered_bytes == 0
    stage.check_law()
    stage.close()


def test_connections_that_linger_count_against_the_bound() -> None:
    stage = Stage(max_connections=1)
    first, requests = stage.copy()
    write(first, requests, REQUEST)
    first.finish()
    assert stage.upstream.ledger.open == 1
    second, its_requests = stage.copy()
    write(second, its_requests, REQUEST)
    second.finish()
    assert stage.upstream.account().connections.shed_by_reason == {"max_connections": 1}
    stage.accept().sendall(ANSWER)
    while stage.upstream.ledger.open:
        stage.serve()
    third, its_requests = stage.copy()
    write(third, its_requests, REQUEST)
    assert stage.upstream.dials == 2
    stage.check_law()
    stage.close()


# -- directories -------------------------------------------------------------------------------------------------------


def directory_upstream(path: Path) -> DirectoryUpstream:
    config = UpstreamConfig(name=f"dir:{path}", scheme="dir", path=str(path))
    return DirectoryUpstream(config, MirrorConfig(upstreams=(config,)), Budget(1 << 20))


def test_directory_gets_each_stream_in_a_file(tmp_path: Path) -> None:
    upstream = directory_upstream(tmp_path / "new" / "streams")
    copy, requests = StreamCopy(upstream, "10.0.0.1.4000-10.0.0.2.80"), RequestFramer()
    write(copy, requests, REQUEST)
    write(copy, requests, REQUEST)
    copy.finish()
    assert (tmp_path / "new/streams/10.0.0.1.4000-10.0.0.2.80").read_bytes() == 2 * REQUEST
    account = upstream.account()
    assert account.delivered_bytes == 2 * len(REQUEST)
    assert account.connections.delivered == 1


def test_directory_stream_after_a_gap_goes_into_a_second_file(tmp_path: Path) -> None:
    upstream = directory_upstream(tmp_path)
    copy, requests = StreamCopy(upstream, "a"), RequestFramer()
    write(copy, requests, REQUEST)
    copy.interrupt("gap", whole=True, length=7)
    write(copy, RequestFramer(), REQUEST)
    copy.finish()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "a.2").read_bytes() == REQUEST


def test_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UpstreamError, match=r"upstream dir:.*file/x: cannot make the directory: Not a directory"):
        directory_upstream(tmp_path / "file" / "x")
    with pytest.raises(UpstreamError, match=r"upstream dir:.*file: cannot make the directory: that is a file"):
        directory_upstream(tmp_path / "file")


def test_directory_write_error_is_shed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = directory_upstream(tmp_path)
    copy, requests = StreamCopy(upstream, "a"), RequestFramer()

    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", full)
    write(copy, requests, REQUEST)
    copy.finish()
    account = upstream.account()
    assert account.shed == {"write_failed": len(REQUEST)}
    assert account.pending_bytes == 0
