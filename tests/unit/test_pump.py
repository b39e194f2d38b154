"""Connections of the pump against real sockets on loopback, served without Trio."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections import deque
from itertools import count, pairwise
from typing import TYPE_CHECKING

import pytest
import trio

from gopher._pump import (
    FINISHED,
    LATENCY_BOUNDS_NS,
    OVER_CONNECTION,
    OVER_TOTAL,
    OVER_UPSTREAM,
    PEER_CLOSED,
    Budget,
    Connection,
    Ledger,
    Pump,
    Queue,
)
from gopher.http.framing import RequestFramer
from gopher.pump import PumpTask
from gopher.upstreams.tcp import Address

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
DEADLINE_S = 10
RUN_BYTES = 160
"""What a queued run costs beside its bytes: RUN_BYTES of _pump.pyx."""


class Stage:
    """A pump, one connection, and the listener it dials."""

    def __init__(self, *, limit: int = 1 << 20, upstream_limit: int = 1 << 20, total: int = 1 << 20) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE_S)
        self.port = self.listener.getsockname()[1]
        self.pump = Pump()
        self.ledger = Ledger(Budget(total), upstream_limit, limit)
        self.requests = RequestFramer()
        self.connection = Connection(self.pump, self.ledger, self.requests, 0, "owner")
        self.peer: socket.socket | None = None

    def dial(self, *, write_follows: bool = False) -> None:
        address = Address(socket.AF_INET, "127.0.0.1", self.port)
        assert self.connection.dial(address.family, address.sockaddr, write_follows) == 0

    def accept(self) -> socket.socket:
        self.peer, _ = self.listener.accept()
        self.peer.settimeout(DEADLINE_S)
        return self.peer

    def write(self, data: bytes) -> int:
        self.ledger.captured += len(data)
        self.requests.feed(data)
        return self.connection.write(data)

    def serve(self) -> list[tuple[Connection, int]]:
        """Serve the next batch that becomes ready."""
        readable, _, _ = select.select([self.pump.fileno()], [], [], DEADLINE_S)
        assert readable, "nothing became ready"
        return self.pump.serve()[1]

    def serve_until_decision(self) -> list[tuple[Connection, int]]:
        while not (decisions := self.serve()):
            pass
        return decisions

    def check_law(self) -> None:
        ledger = self.ledger
        assert ledger.captured == ledger.delivered + sum(ledger.shed.values()) + ledger.pending
        assert ledger.pending == self.connection.queued
        # Memory: whole runs and what keeps them, and nothing when nothing waits.
        assert ledger.total.used == ledger.queued
        assert (ledger.queued > ledger.pending) if ledger.pending else ledger.queued == 0

    def close(self) -> None:
        self.connection.hang_up(True)
        self.listener.close()
        if self.peer is not None:
            self.peer.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.check_law()
    stage.close()


def fill(stage: Stage) -> int:
    """Write until the socket refuses; returns how much was written."""
    block = bytes(65536)
    written = 0
    while not stage.connection.queued:
        assert stage.write(block) == 0
        written += len(block)
    return written


def read_to_end(peer: socket.socket) -> None:
    while peer.recv(1 << 20):
        pass


def test_write_reaches_the_peer(stage: Stage) -> None:
    stage.dial()
    assert stage.write(REQUEST) == 0
    assert stage.accept().recv(1000) == REQUEST
    assert stage.ledger.delivered == len(REQUEST)
    assert stage.ledger.established == 1


def test_answer_that_is_there_at_the_first_look_ends_the_connection(stage: Stage) -> None:
    stage.dial(write_follows=True)
    stage.write(REQUEST)
    assert stage.connection.finish() == 0
    stage.accept().sendall(ANSWER)
    assert stage.serve() == [(stage.connection, FINISHED)]


def test_answer_after_the_first_look_is_waited_for(stage: Stage) -> None:
    stage.dial(write_follows=True)
    stage.write(REQUEST)
    assert stage.connection.finish() == 0
    assert stage.serve() == []
    stage.accept().sendall(ANSWER)
    assert stage.serve_until_decision() == [(stage.connection, FINISHED)]


def test_later_writes_are_not_held_back_by_earlier_ones(stage: Stage) -> None:
    # Acknowledged late, a small segment would hold back the next one for 40 ms.
    stage.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    stage.dial(write_follows=True)
    for _ in range(3):
        stage.write(REQUEST)
    assert stage.accept().recv(1000, socket.MSG_DONTWAIT) == 3 * REQUEST


def test_held_connection_is_made_with_all_that_was_written(stage: Stage) -> None:
    stage.pump.holding = True
    stage.dial(write_follows=True)
    stage.write(REQUEST)
    stage.write(REQUEST)
    assert stage.connection.finish() == 0
    assert select.select([stage.listener], [], [], 0)[0] == []
    assert stage.connection.connecting
    assert stage.ledger.open == 1
    stage.check_law()
    assert stage.pump.dial_held() == []
    assert not stage.connection.connecting
    peer = stage.accept()
    assert peer.recv(1000) == 2 * REQUEST
    peer.sendall(2 * ANSWER)
    assert stage.serve_until_decision() == [(stage.connection, FINISHED)]


def test_held_connection_that_is_refused_is_reported_as_connecting(stage: Stage) -> None:
    stage.listener.close()
    stage.pump.holding = True
    stage.dial(write_follows=True)
    stage.write(REQUEST)
    assert stage.pump.dial_held() == [(stage.connection, -errno.ECONNREFUSED)]
    assert stage.connection.connecting
    assert stage.connection.queued == len(REQUEST)


def test_held_connection_that_is_reset_has_sent_what_came_before(stage: Stage) -> None:
    stage.pump.holding = True
    stage.dial(write_follows=True)
    stage.write(REQUEST)
    stage.connection.unaccepted()
    stage.connection.hang_up(True)
    assert stage.pump.dial_held() == []
    peer, _ = stage.listener.accept()
    with peer:
        assert peer.recv(1000) == REQUEST
        with pytest.raises(ConnectionResetError):
            peer.recv(1000)
    assert stage.ledger.delivered == len(REQUEST)


def test_held_connection_that_is_hung_up_never_was(stage: Stage) -> None:
    stage.pump.holding = True
    stage.dial(write_follows=True)
    stage.write(REQUEST)
    stage.connection.hang_up(True)
    assert stage.connection.abandon("test") == len(REQUEST)
    assert stage.pump.dial_held() == []
    assert select.select([stage.listener], [], [], 0)[0] == []
    assert stage.ledger.open == 0


def test_resting_task_is_served_in_passing_and_rests_on() -> None:
    decided = []

    def decide(decisions: list[tuple[Connection, int]]) -> None:
        for connection, outcome in decisions:
            decided.append(outcome)
            connection.hang_up(False)

    task = PumpTask(decide, rest_s=0.05)

    def answered() -> None:
        requests = RequestFramer()
        connection = Connection(task.pump, Ledger(Budget(1 << 20), 1 << 20, 1 << 20), requests, 0, None)
        address = Address(socket.AF_INET, *listener.getsockname())
        assert connection.dial(address.family, address.sockaddr, write_follows=True) == 0
        requests.feed(REQUEST)
        connection.write(REQUEST)
        connection.finish()
        peer, _ = listener.accept()
        with peer:
            peer.sendall(ANSWER)

    async def scenario() -> None:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(task.run)
                answered()
                await task.wait_served(DEADLINE_S)
                assert len(decided) == 1
                for count in range(2, 6):
                    answered()
                    await trio.sleep(0.03)
                    task.serve_in_passing()
                    assert len(decided) == count
                answered()
                await task.wait_served(DEADLINE_S)
                assert len(decided) == 6
                nursery.cancel_scope.cancel()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        trio.run(scenario)


def test_write_before_dial_is_sent_once_connected(stage: Stage) -> None:
    assert stage.write(REQUEST) == 0
    assert stage.ledger.pending == len(REQUEST)
    stage.dial()
    stage.serve()
    assert stage.accept().recv(1000) == REQUEST


def test_write_that_the_socket_refuses_is_delivered_in_order_later(stage: Stage) -> None:
    stage.dial()
    peer = stage.accept()
    stage.write(REQUEST)
    written = len(REQUEST) + fill(stage)
    assert stage.write(b"the end") == 0
    written += 7
    assert stage.pump.blocked == 1
    stage.check_law()
    received = bytearray()
    while len(received) < written:
        received += peer.recv(1 << 20)
        stage.pump.serve()
    assert received[: len(REQUEST)] == REQUEST
    assert received.endswith(b"\0the end")
    assert stage.connection.queued == 0
    assert stage.pump.blocked == 0


def test_refused_dial_reports_the_reason_with_bytes_still_queued(stage: Stage) -> None:
    stage.listener.close()
    stage.dial()
    outcome = stage.write(REQUEST)
    if outcome == 0:
        [(connection, outcome)] = stage.serve_until_decision()
        assert connection is stage.connection
    assert outcome == -errno.ECONNREFUSED
    assert stage.connection.queued == len(REQUEST)
    stage.connection.hang_up(True)
    assert stage.connection.abandon("refused") == len(REQUEST)
    assert stage.ledger.shed == {"refused": len(REQUEST)}


def test_finish_waits_for_the_answer_that_is_due(stage: Stage) -> None:
    stage.dial()
    stage.write(REQUEST)
    assert stage.connection.finish() == 0
    peer = stage.accept()
    peer.sendall(ANSWER[:10])
    assert stage.serve() == []
    peer.sendall(ANSWER[10:])
    assert stage.serve_until_decision() == [(stage.connection, FINISHED)]
    assert stage.ledger.responses == len(ANSWER)
    assert stage.connection.answered == len(ANSWER)


def test_finish_is_over_at_once_when_all_is_answered(stage: Stage) -> None:
    stage.dial()
    stage.write(REQUEST)
    stage.accept().sendall(ANSWER)
    while stage.ledger.responses < len(ANSWER):
        stage.serve()
    assert stage.connection.finish() == FINISHED


def test_finish_with_an_answer_delimited_by_close_waits_for_the_close(stage: Stage) -> None:
    stage.dial()
    stage.write(REQUEST)
    assert stage.connection.finish() == 0
    peer = stage.accept()
    assert peer.recv(1000) == REQUEST
    peer.sendall(b"HTTP/1.0 200 OK\r\n\r\nbody")
    while stage.ledger.responses < 23:
        assert stage.serve() == []
    peer.close()
    assert stage.serve_until_decision() == [(stage.connection, PEER_CLOSED)]


def test_finish_of_an_unknown_protocol_half_closes(stage: Stage) -> None:
    stage.dial()
    stage.write(b"\x16\x03\x01 hello")
    assert stage.connection.finish() == 0
    peer = stage.accept()
    assert peer.recv(1000) == b"\x16\x03\x01 hello"
    assert peer.recv(1000) == b""
    peer.close()
    assert stage.serve_until_decision() == [(stage.connection, PEER_CLOSED)]


def test_finish_in_the_middle_of_a_request_half_closes(stage: Stage) -> None:
    stage.dial()
    stage.write(REQUEST[:10])
    assert stage.connection.finish() == 0
    peer = stage.accept()
    assert peer.recv(1000) == REQUEST[:10]
    assert peer.recv(1000) == b""


def test_base_counts_answers_from_the_request_that_was_joined() -> None:
    stage = Stage()
    stage.requests.feed(REQUEST * 3)
    stage.connection = Connection(stage.pump, stage.ledger, stage.requests, 3, None)
    stage.dial()
    stage.write(REQUEST)
    assert stage.connection.finish() == 0
    stage.accept().sendall(ANSWER)
    assert stage.serve_until_decision() == [(stage.connection, FINISHED)]
    stage.close()


def test_long_body_is_discarded_and_the_next_answer_still_found(stage: Stage) -> None:
    body = bytes(3_000_000)
    stage.dial()
    stage.write(REQUEST * 2)
    assert stage.connection.finish() == 0
    peer = stage.accept()
    peer.setblocking(False)
    answer = memoryview(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body + ANSWER)
    decisions: list[tuple[Connection, int]] = []
    while not decisions:
        if answer:
            select.select([], [peer], [], DEADLINE_S)
            answer = answer[peer.send(answer) :]
        decisions = stage.serve()
    assert decisions == [(stage.connection, FINISHED)]


def test_peer_that_closes_is_reported(stage: Stage) -> None:
    stage.dial()
    stage.write(REQUEST)
    peer = stage.accept()
    peer.recv(1000)
    peer.close()
    assert stage.serve_until_decision() == [(stage.connection, PEER_CLOSED)]


def test_peer_that_resets_is_reported(stage: Stage) -> None:
    stage.dial()
    stage.write(REQUEST)
    peer = stage.accept()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    assert stage.serve_until_decision() == [(stage.connection, -errno.ECONNRESET)]


def test_hang_up_hard_resets_and_unaccepted_counts_what_the_peer_did_not_take(stage: Stage) -> None:
    stage.dial()
    peer = stage.accept()
    written = fill(stage)
    unaccepted = stage.connection.unaccepted()
    assert 0 < unaccepted <= stage.connection.sent < written
    stage.connection.hang_up(True)
    assert stage.connection.abandon("linger", unaccepted) == written - stage.ledger.delivered
    stage.check_law()
    with pytest.raises(ConnectionResetError):
        read_to_end(peer)


@pytest.mark.parametrize(
    ("limits", "over"),
    [
        ({"limit": 1000}, OVER_CONNECTION),
        ({"upstream_limit": 1000 + RUN_BYTES}, OVER_UPSTREAM),
        ({"total": 1000 + RUN_BYTES}, OVER_TOTAL),
    ],
)
def test_write_past_a_bound_queues_and_says_which(limits: dict[str, int], over: int) -> None:
    stage = Stage(**limits)
    assert stage.write(bytes(1000)) == 0
    assert stage.write(b"x") == over
    assert stage.connection.queued == 1001
    stage.check_law()
    assert stage.connection.abandon("connection_memory") == 1001
    stage.check_law()
    stage.close()


def test_runs_of_a_byte_are_bounded_by_the_memory_they_take() -> None:
    stage = Stage(total=100_000)
    outcomes = [stage.write(b"x") for _ in range(1000)]
    fitting = outcomes.index(OVER_TOTAL)
    assert outcomes == [0] * fitting + [OVER_TOTAL] * (1000 - fitting)
    assert fitting == 100_000 // (1 + RUN_BYTES)
    stage.check_law()
    stage.connection.abandon("total_memory")
    stage.check_law()
    stage.close()


def test_closed_connection_is_not_served_any_more(stage: Stage) -> None:
    stage.dial()
    stage.write(REQUEST)
    peer = stage.accept()
    stage.connection.hang_up(False)
    peer.sendall(ANSWER)
    assert stage.pump.serve() == (0, [])
    assert stage.pump.open == 0


def test_busy_connection_is_not_reported_for_each_answer_until_it_finishes(stage: Stage) -> None:
    stage.dial()
    stage.write(REQUEST)
    peer = stage.accept()
    peer.sendall(ANSWER)
    while not stage.connection.answered:
        stage.serve()
    stage.write(REQUEST)
    peer.sendall(ANSWER)
    stage.write(REQUEST)
    assert stage.pump.serve() == (0, [])
    assert stage.connection.finish() == 0
    assert stage.connection.answered == 2 * len(ANSWER)
    peer.sendall(ANSWER)
    assert stage.serve_until_decision() == [(stage.connection, FINISHED)]


def test_busy_connection_reports_many_answers_at_once(stage: Stage) -> None:
    stage.dial()
    stage.write(REQUEST)
    peer = stage.accept()
    peer.sendall(ANSWER)
    while not stage.connection.answered:
        stage.serve()
    for _ in range(200):
        stage.write(REQUEST)
        peer.sendall(ANSWER)
    served, _ = stage.pump.serve()
    assert served == 1
    assert stage.connection.answered == 201 * len(ANSWER)


def test_busy_connection_reports_the_end_at_once(stage: Stage) -> None:
    stage.dial()
    stage.write(REQUEST)
    peer = stage.accept()
    peer.sendall(ANSWER)
    while not stage.connection.answered:
        stage.serve()
    stage.write(REQUEST)
    assert peer.recv(1000)
    peer.close()
    assert stage.serve_until_decision() == [(stage.connection, PEER_CLOSED)]


@pytest.mark.parametrize("captured_ago_ns", [-(10**9), 10**6, 10**8, 10**12])
def test_latency_counts_in_the_bucket_of_its_time(stage: Stage, captured_ago_ns: int) -> None:
    """A time stamp in the future, from a clock that was set, counts as no time at all."""
    stage.dial()
    stage.accept()
    before_ns = time.time_ns()
    stage.pump.captured_ns = before_ns - captured_ago_ns
    assert stage.write(REQUEST) == 0
    after_ns = time.time_ns()
    counts, sum_ns = stage.ledger.latencies
    assert len(counts) == len(LATENCY_BOUNDS_NS) + 1
    assert sum(counts) == 1
    low_ns, high_ns = max(captured_ago_ns, 0), max(captured_ago_ns + after_ns - before_ns, 0)
    assert low_ns <= sum_ns <= high_ns
    edges = [-1, *LATENCY_BOUNDS_NS, 10**18]
    bucket = counts.index(1)
    assert edges[bucket] < high_ns + 1
    assert low_ns <= edges[bucket + 1]


def test_latency_of_bytes_that_waited_is_that_of_their_own_packets(stage: Stage) -> None:
    hour_ns, second_ns = 3600 * 10**9, 10**9
    now_ns = time.time_ns()
    # Not dialled yet: both wait.
    stage.pump.captured_ns = now_ns - hour_ns
    stage.write(REQUEST)
    stage.pump.captured_ns = now_ns - second_ns
    stage.write(REQUEST)
    stage.pump.captured_ns = now_ns
    assert stage.ledger.latencies[1] == 0
    stage.dial()
    stage.accept()
    while stage.connection.queued:
        stage.serve()
    counts, sum_ns = stage.ledger.latencies
    assert sum(counts) == 2
    assert counts[-1] == 1
    assert hour_ns + second_ns <= sum_ns <= hour_ns + 2 * (time.time_ns() - now_ns) + second_ns


def test_latency_knows_nothing_of_a_files_packets(stage: Stage) -> None:
    stage.dial()
    stage.accept()
    assert stage.write(REQUEST) == 0
    assert sum(stage.ledger.latencies[0]) == 0


def test_latency_leaves_out_what_is_not_the_clients(stage: Stage) -> None:
    stage.dial()
    stage.accept()
    stage.pump.captured_ns = 1
    assert stage.connection.write_wrapped(b"header", 6) == 0
    assert sum(stage.ledger.latencies[0]) == 0
    stage.ledger.captured += 4
    assert stage.connection.write_wrapped(b"headerbody", 6) == 0
    assert sum(stage.ledger.latencies[0]) == 1


def test_latency_bounds_are_half_octaves() -> None:
    assert LATENCY_BOUNDS_NS[:3] == (16_384, 24_576, 32_768)
    assert all(low < high <= 1.5 * low for low, high in pairwise(LATENCY_BOUNDS_NS))


def test_queue_keeps_its_order_while_it_shrinks_and_grows() -> None:
    queue, wanted = Queue(), deque()
    added = count()
    for step in (300, -100, 10, -150, 40, -100, 5, -5, 200, -199, 1, -2):
        for _ in range(step):
            queue.append(number := next(added))
            wanted.append(number)
        for _ in range(-step):
            assert queue.oldest() == wanted.popleft()
            queue.drop_oldest()
        assert queue.oldest() == (wanted[0] if wanted else None)
    assert not wanted
