"""One downstream connection of the framed relay, without sockets: what is read, and when."""

from types import SimpleNamespace

import pytest

from gopher.config import RelayConfig, UpstreamConfig
from gopher.link import ProxyHeader
from gopher.relay import downstream as downstream_module
from gopher.relay import turns as turns_module
from gopher.relay.answers import QUEUE_BYTES
from gopher.relay.downstream import Downstream
from gopher.relay.framed import Framed
from gopher.relay.scripted import DROPPED
from gopher.relay.tally import Tally

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Client:
    """A channel to a client that takes nothing until `drain`."""

    def __init__(self, pump, sock, on_readable, on_drained):
        self._on_readable = on_readable
        self._on_drained = on_drained
        self._data = b""
        self.sent = bytearray()
        self.queued = 0
        self.reading = True

    def sends(self, data: bytes) -> None:
        self._data = data
        self._on_readable()

    def drain(self) -> None:
        self.queued = 0
        self._on_drained()

    def recv(self) -> bytes:
        return self._data

    def send(self, data: bytes) -> None:
        self.sent += data
        self.queued += len(data)

    def read(self, wanted: bool) -> None:
        self.reading = wanted

    def close(self, *, hard: bool) -> None:
        pass


class DropsAll:
    """Stands where scripts are told of a connection's requests: one of them drops each."""

    def __init__(self, *_, **__):
        pass

    def begin(self, pending, *_, **__):
        pending.slot = SimpleNamespace(exchange=SimpleNamespace(dropped=True))
        return False

    def sent(self, pending):
        pass

    def cut(self, pending):
        pass


@pytest.mark.parametrize("pipeline", [False, True])
def test_client_that_takes_no_answers_is_not_read(monkeypatch, pipeline):
    monkeypatch.setattr(turns_module, "ScriptedConnection", DropsAll)
    monkeypatch.setattr(downstream_module, "Channel", Client)
    upstream = UpstreamConfig(name="a", host="a", port=1)
    config = RelayConfig(ports=(1,), upstreams=(upstream,), marker="A: b", pipeline=pipeline)
    relay = Framed(config, [[]], Tally(), adopt=None)
    relay.scripts = object()
    client = Downstream(relay, None, ProxyHeader(client=None, server=None), may_link=False).channel
    sent = 0
    while client.reading:
        assert sent < 100
        client.sends(GET * 1000)
        sent += 1
    assert QUEUE_BYTES < client.queued <= QUEUE_BYTES + len(DROPPED)
    while len(client.sent) < sent * 1000 * len(DROPPED):
        client.drain()
        assert client.queued <= QUEUE_BYTES + len(DROPPED)
    assert client.reading
    assert relay.tally.dropped == relay.tally.answers["204"] == sent * 1000
