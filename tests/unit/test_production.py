"""Production's answers on a framed link, shown to a recording stand-in of the coupler."""

from __future__ import annotations

import pytest

from gopher.http.messages import parse_request_head
from gopher.relay.pending import Pending
from gopher.relay.production import ProductionAnswers

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Recorder:
    """Notes what a coupler would be told; needs the bodies of responses with the header X-Read."""

    def __init__(self) -> None:
        self.heads: list[tuple[int, int]] = []
        self.answers: list[tuple[int, int, bytes | None]] = []
        self.abandoned_ids: list[int] = []

    def needs_response_body(self, head) -> bool:
        return b"x-read" in head.headers

    def production_head(self, exchange_id, client, connection_id, head, now_s):
        assert (client, connection_id, now_s) == ("192.0.2.1", "c", 5.0)
        self.heads.append((exchange_id, head.status))
        return [exchange_id]

    def production_response(self, exchange_id, client, connection_id, head, content, now_s):
        assert (client, connection_id, now_s) == ("192.0.2.1", "c", 5.0)
        self.answers.append((exchange_id, head.status, content))
        return [exchange_id * 10]

    def abandoned(self, exchange_id):
        self.abandoned_ids.append(exchange_id)
        return [exchange_id * 100]


class Stage:
    def __init__(self, *, aligned: bool = True) -> None:
        self.coupler = Recorder()
        self.answers = ProductionAnswers(self.coupler, "192.0.2.1", "c", aligned=aligned)

    def expect(self, number: int, method: bytes = b"GET") -> Pending:
        head = parse_request_head(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
        pending = Pending(number, head, has_body=False)
        self.answers.expect(pending)
        return pending

    def feed(self, data: bytes) -> list[int]:
        return self.answers.feed(data, 5.0)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_answer_k_belongs_to_request_k(step):
    stage = Stage()
    for number, method in ((1, b"GET"), (2, b"HEAD"), (3, b"GET")):
        stage.expect(number, method)
    data = b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n"
    data += b"HTTP/1.1 200 OK\r\nX-Read: 1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    released = [ticket for at in range(0, len(data), step) for ticket in stage.feed(data[at : at + step])]
    assert stage.coupler.answers == [(1, 200, None), (2, 404, None), (3, 200, b"abc")]
    assert stage.coupler.heads == [(3, 200)]
    assert released == [10, 20, 3, 30]
    assert stage.coupler.abandoned_ids == []


def test_joined_link_waits_for_the_beginning_of_an_answer():
    stage = Stage(aligned=False)
    stage.expect(1)
    assert stage.feed(b"the end of another answer") == []
    assert stage.feed(OK) == [10]


def test_unclear_answer_ends_the_pairing():
    stage = Stage()
    stage.expect(1)
    stage.expect(2)
    assert stage.feed(OK + b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n") == [10]
    assert stage.feed(b"more") == [200]
    assert stage.answers.lost
    stage.expect(3)
    assert stage.feed(OK) == []
    assert stage.coupler.abandoned_ids == [2]


def test_gap_in_a_body_that_nobody_reads_is_no_loss():
    stage = Stage()
    stage.expect(1)
    stage.expect(2)
    assert stage.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nabc") == [10]
    assert stage.answers.gap(99_990, 5.0) == []
    assert stage.feed(b"1234567" + OK) == [20]
    assert not stage.answers.lost


@pytest.mark.parametrize(
    ("before", "length", "at_head", "at_gap"),
    [
        (b"", 10, [], [100]),
        (b"HTTP/1.1 200 OK\r\n", 10, [], [100]),
        # What the head said stays.
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 6, [10], []),
        (b"HTTP/1.1 200 OK\r\nX-Read: 1\r\nContent-Length: 50\r\n\r\n", 6, [1], [10]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", 3, [10], []),
    ],
)
def test_any_other_gap_ends_the_pairing(before, length, at_head, at_gap):
    stage = Stage()
    stage.expect(1)
    stage.expect(2)
    assert stage.feed(before) == at_head
    assert stage.answers.gap(length, 5.0) == [*at_gap, 200]
    assert stage.answers.lost


def test_exchange_that_was_given_up_teaches_nothing():
    stage = Stage()
    stage.expect(1).abandoned = True
    stage.expect(2)
    assert stage.feed(b"HTTP/1.1 200 OK\r\nX-Read: 1\r\nContent-Length: 2\r\n\r\nok" + OK) == [20]
    assert stage.coupler.answers == [(2, 200, None)]
    assert stage.coupler.heads == []


def test_body_past_the_bound_is_not_kept():
    stage = Stage()
    pending = stage.expect(1)
    stage.feed(b"HTTP/1.1 200 OK\r\nX-Read: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(17):
        stage.feed(b"10000\r\n" + bytes(65_536) + b"\r\n")
    assert pending.produced_contents is None
    assert stage.feed(b"0\r\n\r\n") == [10]
    assert stage.coupler.answers == [(1, 200, None)]


def test_end_completes_a_body_that_lasts_until_it():
    stage = Stage()
    stage.expect(1)
    stage.expect(2)
    stage.feed(b"HTTP/1.1 200 OK\r\nX-Read: 1\r\n\r\nabc")
    assert stage.answers.end(5.0) == [10, 200]
    assert stage.coupler.answers == [(1, 200, b"abc")]


def test_restart_pairs_from_the_next_request_on():
    stage = Stage()
    stage.expect(1)
    stage.feed(OK[:20])
    assert stage.answers.restart(5.0) == [100]
    stage.expect(2)
    assert stage.feed(OK[20:]) == []
    assert stage.feed(OK) == [20]


def test_upgrade_ends_the_pairing():
    stage = Stage()
    head = parse_request_head(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
    stage.answers.expect(Pending(1, head, has_body=False))
    assert stage.feed(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\0\0") == [100]
    assert stage.answers.lost
