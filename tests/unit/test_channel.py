"""Channels and their pump, on real sockets."""

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


def test_what_came_before_is_read_before_later_calls(pump):
    """A client takes a value from one connection to the next: both have come, and the first was read just before."""
    seen = []

    def on_second(end):
        # Meanwhile there is more on the first one, which this one refers to.
        first.theirs.send(b"the value")
        pump.later(lambda: seen.append(first.received))

    first = End(pump)
    second = End(pump, on_second)
    first.theirs.send(b"hello, ")
    second.theirs.send(b"the request")
    served, _ = pump.serve()
    assert seen == [b"hello, the value"]
    assert served == 3
    for end in (first, second):
        end.close()


def test_traffic_that_does_not_stop_does_not_put_later_calls_off(pump):
    seen = []

    def on_data(end):
        end.theirs.send(b"more")
        pump.later(lambda: seen.append(len(end.received)))

    end = End(pump, on_data)
    end.theirs.send(b"more")
    pump.serve()
    assert seen
    assert len(end.received) < 100
    end.close()
