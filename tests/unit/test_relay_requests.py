"""The queue of a client's requests: what comes out of it, and what never does."""

import pytest

from gopher.http.messages import BodyReceived, MessageEnded, Switched
from gopher.relay.pending import Pending
from gopher.relay.requests import RequestQueue
from tests.support.messages import cuts
from tests.unit.test_request_smuggling import REQUESTS, SMUGGLED

GOOD = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = b"GET /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhello"


def queue(begins=None) -> RequestQueue:
    return RequestQueue(iter(range(1, 1000)).__next__, begins)


def feed(requests: RequestQueue, data: bytes, seed: int | None) -> None:
    for piece in [data] if seed is None else cuts(data, seed):
        requests.feed(piece)


def drain(requests: RequestQueue) -> bytes:
    """Everything that comes out, as the upstream would get it."""
    out = b""
    while requests.events:
        event = requests.pop()
        if isinstance(event, Pending):
            out += event.head.to_bytes()
        elif isinstance(event, BodyReceived):
            out += event.wire
        elif isinstance(event, Switched):
            out += event.rest
    assert requests.waiting_bytes == 0
    return out


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("name", [name for name, (_, outcome) in REQUESTS.items() if isinstance(outcome, int)])
def test_nothing_behind_what_is_refused_comes_out(name, seed):
    request, status = REQUESTS[name]
    requests = queue()
    feed(requests, GOOD * 3 + request + SMUGGLED, seed)
    requests.feed(SMUGGLED)
    assert requests.refused is not None
    assert requests.refused.status == status
    out = drain(requests)
    assert out.startswith(GOOD * 3)
    assert (GOOD * 3 + request).startswith(out)


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("switches", [True, False])
def test_what_follows_a_request_to_switch_comes_when_that_is_decided(switches, seed):
    requests = queue()
    feed(requests, GOOD + UPGRADE + GOOD, seed)
    assert requests.paused
    assert drain(requests) == GOOD + UPGRADE
    if switches:
        assert requests.switch() == GOOD
        requests.feed(GOOD)
        [event] = requests.events
        assert isinstance(event, Switched)
    else:
        requests.resume()
        assert drain(requests) == GOOD
    assert not requests.paused


def test_cut_request_is_taken_back_whole_requests_stay():
    begun = []
    requests = queue(begun.append)
    requests.feed(GOOD + POST)
    assert requests.end()
    assert requests.take_back() == (True, begun[1])
    assert requests.waiting_bytes == 1024
    assert drain(requests) == GOOD


def test_cut_head_takes_nothing_back():
    requests = queue()
    requests.feed(GOOD + UPGRADE[:-9])
    assert requests.end()
    assert requests.take_back() == (True, None)
    assert drain(requests) == GOOD


def test_cut_request_whose_turn_has_come_is_the_callers():
    requests = queue()
    requests.feed(POST)
    requests.pop()
    assert requests.end()
    assert requests.take_back() == (False, None)


def test_gap_in_an_undecided_switch_begins_anew():
    requests = queue()
    requests.feed(UPGRADE + GOOD)
    assert not requests.end()
    requests.restart()
    assert not requests.paused
    requests.feed(GOOD)
    assert drain(requests) == UPGRADE + GOOD


def test_closed_queue_gives_up_what_waits_and_takes_no_more():
    begun = []
    requests = queue(begun.append)
    requests.feed(GOOD * 2)
    requests.pop()
    assert isinstance(requests.pop(), MessageEnded)
    assert requests.close() == begun[1:]
    requests.feed(GOOD)
    assert not requests.events
    assert requests.waiting_bytes == 0
