"""Channels and their pump, on real sockets."""

import select
import socket

import pytest

from gopher.relay.channel import Channel, ChannelPump


@pytest.fixture
def pump():
    return ChannelPump()


class End:
    """One end of a pair of sockets as a channel, and the other end as it is."""

    def __init__(self, pump, on_data=lambda end: None):
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.received = b""
        self._on_data = on_data
        self.channel = Channel(pump, ours, self._readable, lambda: None)

    def _readable(self):
        self.received += self.channel.recv() or b""
        self._on_data(self)

    def close(self):
        self.channel.close(hard=False)
        self.theirs.close()


def test_what_came_before_is_read_before_calls_after_a_look(pump):
    """A client takes a value from one connection to the next: both have come, and the first was read just before."""
    seen = []

    def on_second(end):
        # Meanwhile there is more on the first one, which this one refers to.
        first.theirs.send(b"the value")
        pump.after_look(lambda: seen.append(first.received))

    first = End(pump)
    second = End(pump, on_second)
    first.theirs.send(b"hello, ")
    second.theirs.send(b"the request")
    served, _ = pump.serve()
    assert seen == [b"hello, the value"]
    assert served == 3
    for end in (first, second):
        end.close()


def test_connections_that_wait_to_be_accepted_are_read_before_calls_after_a_look():
    seen = []
    accepted = []

    def accept():
        accepted.append(End(pump))
        accepted[0].theirs.send(b"the value")

    pump = ChannelPump(accept)
    end = End(pump, lambda end: pump.after_look(lambda: seen.append(accepted[0].received)))
    pump.serve()
    assert not accepted  # nobody waits: the relay accepts in its own time
    end.theirs.send(b"the request")
    pump.serve()
    assert seen == [b"the value"]
    for each in (end, *accepted):
        each.close()


def test_calls_after_a_look_wait_for_one_look_whatever_comes_meanwhile(pump):
    seen = []

    def on_data(end):
        end.theirs.send(b"more")
        looks = pump.looks
        pump.after_look(lambda: seen.append(pump.looks - looks))

    end = End(pump, on_data)
    end.theirs.send(b"more")
    for _ in range(3):
        # Traffic that does not stop does not keep other tasks waiting.
        pump.serve()
    assert seen
    assert set(seen) == {2}  # the one under way, and a whole one
    assert len(end.received) < 100
    end.close()


def test_call_after_a_look_is_made_though_nothing_comes(pump):
    seen = []
    pump.after_look(lambda: seen.append("called"))
    with select.epoll() as epoll:
        epoll.register(pump.epoll_fd, select.EPOLLIN)
        assert epoll.poll(0)
        pump.serve()
        assert seen == ["called"]
        assert not epoll.poll(0)


def test_what_is_sent_while_others_are_read_leaves_when_all_have_been(pump):
    """One peer is awake before the next is sent to, instead of one being woken for each request."""
    left = []

    def on_data(end):
        end.channel.send(b"an ")
        end.channel.send(b"answer")
        left.append(len(_read(first.theirs)))

    first, second = End(pump, on_data), End(pump, on_data)
    for end in (first, second):
        end.theirs.setblocking(False)
        end.theirs.send(b"a request")
    pump.serve()
    assert left == [0, 0]
    for end in (first, second):
        assert _read(end.theirs) == b"an answer"
        end.close()


def _read(sock):
    try:
        return sock.recv(1 << 20)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("how", ["much of it", "finish", "close", "detach", "a reader that is slow"])
def test_what_is_sent_while_others_are_read_leaves_in_order(pump, how):
    sent = b"".join(b"%d " % number for number in range(20_000 if how == "a reader that is slow" else 5_000))
    size = 100_000 if how == "a reader that is slow" else 100

    def on_data(end):
        for at in range(0, len(sent), size):
            end.channel.send(sent[at : at + size])
        if how == "much of it":
            received.extend(_read(end.theirs))
            assert received
        elif how == "finish":
            end.channel.finish()
        elif how == "close":
            end.channel.close(hard=False)
        elif how == "detach":
            sock, waiting = end.channel.detach()
            assert waiting == b""
            received.extend(_read(end.theirs))
            sock.close()

    received = bytearray()
    end = End(pump, on_data)
    end.channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096 if how == "a reader that is slow" else 65536)
    end.theirs.setblocking(False)
    end.theirs.send(b"a request")
    pump.serve()
    while len(received) < len(sent):
        received += _read(end.theirs)
        pump.serve()
    assert received == sent
    end.close()
