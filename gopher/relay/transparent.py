"""The transparent relay: each downstream connection is a tunnel to the upstream, and nobody looks at the bytes.

Decides what `gopher.relay._tunnel` reports; one pump serves all tunnels, so a connection costs no task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from gopher.errors import RemoteProtocolError
from gopher.link import HEADER_LIMIT_BYTES, ProxyHeader, decode_header, encode_header, encode_header_v1
from gopher.pump import ServingTask
from gopher.relay import lastword
from gopher.relay._tunnel import DONE, DOWNSTREAM, LINK, PLAIN, UPSTREAM, Tunnel, TunnelPump
from gopher.relay.tls import Bridge, FarEnd

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from gopher.config import RelayConfig
    from gopher.relay.tally import Tally
    from gopher.relay.tls import Tls
    from gopher.upstreams.tcp import Address

__all__ = ["Transparent", "announcement", "unframed"]

# How long the last bytes of a side that broke may take to get to the other.
LAST_BYTES_S: Final = 5.0
# A tunnel is seen to be idle at most this share of the time late.
SWEEPS_PER_IDLE_TIME: Final = 8


def unframed(header: ProxyHeader) -> ProxyHeader:
    """The header for a connection that carries the client's bytes alone, whatever the one that it stems from did."""
    if header.link is None:
        return header
    return dataclasses.replace(header, link=dataclasses.replace(header.link, framed=False))


def announcement(version: str, header: ProxyHeader) -> bytes:
    """A PROXY protocol header for an upstream that gets the client's bytes alone. `version`: "v1" or "v2"."""
    return encode_header_v1(header) if version == "v1" else encode_header(unframed(header))


class Client:
    """Who is behind a tunnel, the settings when it began, and how far dialling has come."""

    __slots__ = ("addresses_left", "announced", "bridge", "config", "dialled", "header", "may_link")

    def __init__(self, config: RelayConfig, header: ProxyHeader, addresses: list[Address], *, may_link: bool) -> None:
        self.config = config
        self.header = header
        self.may_link = may_link
        self.addresses_left = addresses
        self.dialled: Address | None = None
        self.announced = False
        """The header that it sent itself passes on."""
        self.bridge: Bridge | None = None
        """To an upstream over TLS."""


class TunnelEnd:
    """A tunnel holds the far end of a bridge; see `gopher.relay.tls.Side`."""

    def __init__(self, transparent: Transparent, tunnel: Tunnel) -> None:
        self._transparent = transparent
        self._tunnel = tunnel

    def opened(self) -> None:
        """See `Side`."""
        if not self._tunnel.closed:
            self._transparent.go_on(self._tunnel)

    def failed(self, failure: str) -> None:
        """See `Side`."""
        if not self._tunnel.closed:
            self._transparent.refuse(self._tunnel, failure)

    def broken(self) -> None:
        """See `Side`."""
        self._tunnel.end_as(errno.ECONNRESET)


class Transparent:
    """All tunnels of one relay.

    Args:
        config: what was asked for.
        addresses: of the first upstream, tried in turn.
        tally: what to count in.
        nursery: for the few connections that end with words.
        take_link: called with (downstream, upstream, header) for a framed link, which is not for a tunnel; its PROXY
            header has been read. Without an upstream it has not.
        tls: the first upstream, where it is spoken to over TLS.
    """

    def __init__(
        self,
        config: RelayConfig,
        addresses: list[Address],
        tally: Tally,
        nursery: trio.Nursery,
        take_link: Callable[[socket.socket, socket.socket | None, ProxyHeader], None],
        tls: Tls,
    ) -> None:
        self._config = config
        self._upstream = config.upstreams[0]
        self._addresses = addresses
        self._tally = tally
        self._nursery = nursery
        self._take_link = take_link
        self._tls = tls
        self.pump = TunnelPump()
        self.task = ServingTask(self.pump, self._decide_each)
        self._tunnels: set[Tunnel] = set()
        # Each has one time-out for all, so it is in the order of its deadlines.
        self._connecting: deque[tuple[float, Tunnel]] = deque()
        self._resting: deque[tuple[float, Tunnel]] = deque()
        self._next_sweep_s = 0.0

    def reload(self, config: RelayConfig, addresses: list[Address]) -> None:
        """Connections that begin from now on go there. Those that are open keep what they have."""
        self._config = config
        self._upstream = config.upstreams[0]
        if {address.sockaddr for address in addresses} != {address.sockaddr for address in self._addresses}:
            self._addresses = addresses

    # -- begin -----------------------------------------------------------------------------------------------------

    def take(self, sock: socket.socket, header: ProxyHeader, *, may_link: bool) -> None:
        """A downstream connection begins. `may_link`: it may say who it is by a PROXY protocol header."""
        client = Client(self._config, header, [] if self._tls.used else list(self._addresses), may_link=may_link)
        ask = self._config.announced is not None
        tunnel = Tunnel(self.pump, sock.detach(), client, sniff=True, ask=ask)
        self._tunnels.add(tunnel)
        if not self._tls.used:
            self._dial(tunnel)
            return
        try:
            bridge = Bridge(self._tls)
        except OSError as error:
            self.refuse(tunnel, lastword.failure_of(error.errno or errno.EMFILE))
            return
        failure = self._cross(tunnel, bridge.far_end)
        if failure:
            self.refuse(tunnel, lastword.failure_of(-failure))
        elif not ask:
            tunnel.rest()
            bridge.start(b"")
        # Else it is dialled when it is known who the client is, which is told before the handshake.

    def adopt(
        self, downstream: socket.socket, upstream: socket.socket, header: ProxyHeader, *, connecting: bool,
        to_downstream: bytes, to_upstream: bytes,
    ) -> None:  # fmt: skip
        """Two sockets become a tunnel. Bytes may wait for either side."""
        tunnel = Tunnel(self.pump, downstream.detach(), Client(self._config, header, [], may_link=False))
        self._tunnels.add(tunnel)
        if isinstance(upstream, FarEnd):
            failure = self._cross(tunnel, upstream, to_downstream=to_downstream, to_upstream=to_upstream)
            if connecting:
                tunnel.rest()
                connecting = False
        else:
            failure = tunnel.join(upstream.detach(), connecting, to_downstream=to_downstream, to_upstream=to_upstream)
        if failure:
            self._decide(tunnel, failure)
        elif connecting:
            self._connecting.append((time.monotonic() + self._config.connect_timeout_s, tunnel))

    def _cross(self, tunnel: Tunnel, far_end: FarEnd, *, to_downstream: bytes = b"", to_upstream: bytes = b"") -> int:
        """Join a tunnel to a bridge. Returns 0 or a negative errno."""
        client = tunnel.owner
        assert isinstance(client, Client)
        client.bridge = far_end.bridge
        client.bridge.side = TunnelEnd(self, tunnel)
        return tunnel.join(far_end.detach(), False, to_downstream=to_downstream, to_upstream=to_upstream)

    def go_on(self, tunnel: Tunnel, header: bytes = b"") -> None:
        """The upstream is there, or is to be told `header` first."""
        if tunnel.announce(header):
            self._end(tunnel, "upstream_reset")

    def _dial(self, tunnel: Tunnel) -> None:
        client = tunnel.owner
        assert isinstance(client, Client)
        failure = -errno.EHOSTUNREACH
        while client.addresses_left:
            self._prefer_others(client.dialled)
            address = client.dialled = client.addresses_left.pop(0)
            failure = tunnel.dial(address.family, address.sockaddr)
            if failure == 0:
                while self._connecting and not self._connecting[0][1].connecting:
                    self._connecting.popleft()
                self._connecting.append((time.monotonic() + self._config.connect_timeout_s, tunnel))
                return
        self.refuse(tunnel, lastword.failure_of(-failure))

    def _prefer_others(self, address: Address | None) -> None:
        if address is self._addresses[0]:
            self._addresses.append(self._addresses.pop(0))

    # -- decisions -------------------------------------------------------------------------------------------------

    def _decide_each(self, decisions: list[tuple[Tunnel, int]]) -> None:
        for tunnel, outcome in decisions:
            # The end of one tunnel may have closed another that was reported with it.
            if not tunnel.closed:
                self._decide(tunnel, outcome)

    def _decide(self, tunnel: Tunnel, outcome: int) -> None:
        client = tunnel.owner
        assert isinstance(client, Client)
        if outcome == DONE:
            self._end(tunnel, "")
        elif outcome == LINK:
            self._read_header(tunnel, client)
        elif outcome == PLAIN:
            assert client.config.announced is not None
            header = b"" if client.announced else announcement(client.config.announced, client.header)
            if client.bridge is None:
                self.go_on(tunnel, header)
            else:
                tunnel.rest()
                client.bridge.start(header)
        elif not tunnel.connecting:
            self._broken(tunnel)
        elif tunnel.failed == DOWNSTREAM:
            self._end(tunnel, "client_reset")
        elif client.addresses_left:
            self._dial(tunnel)
        else:
            self.refuse(tunnel, lastword.failure_of(-outcome))

    def _read_header(self, tunnel: Tunnel, client: Client) -> None:
        try:
            decoded = decode_header(tunnel.peek(HEADER_LIMIT_BYTES))
        except RemoteProtocolError:
            decoded = None
        if decoded is None or not client.may_link:
            self._end(tunnel, "bad_link")
            return
        header, length = decoded
        framed = header.link is not None and header.link.framed
        if framed and client.bridge is not None:
            self._take_link(self._release(tunnel), None, client.header)
            return
        self._tally.links += 1
        if client.config.upstreams[0].scheme == "relay":
            # Nothing here looks at what follows, so the next relay may have it as it is, production's answers too.
            tunnel.skip(0)
            client.announced = True
            return
        tunnel.skip(length)
        if framed:
            self._tunnels.discard(tunnel)
            downstream, upstream = tunnel.release()
            self._take_link(socket.socket(fileno=downstream), socket.socket(fileno=upstream), header)
        elif header.client is not None:
            client.header = header

    def _broken(self, tunnel: Tunnel) -> None:
        if tunnel.failed == UPSTREAM and tunnel.unsent(DOWNSTREAM):
            # The answer may be on its way still, and a RST would overtake it.
            tunnel.rest()
            self._resting.append((time.monotonic() + LAST_BYTES_S, tunnel))
        else:
            self._end(tunnel, "upstream_reset" if tunnel.failed == UPSTREAM else "client_reset")

    def _end(self, tunnel: Tunnel, failure: str) -> None:
        client = tunnel.owner
        assert isinstance(client, Client)
        if failure and client.bridge is not None:
            client.bridge.abort()
        tunnel.close(bool(failure))
        self._tunnels.discard(tunnel)
        self._tally.end(failure)

    def _release(self, tunnel: Tunnel) -> socket.socket:
        client = tunnel.owner
        assert isinstance(client, Client)
        if client.bridge is not None:
            client.bridge.abort()
        self._tunnels.discard(tunnel)
        return socket.socket(fileno=tunnel.release_downstream())

    def refuse(self, tunnel: Tunnel, failure: str) -> None:
        """The upstream is not there: end with words. See `lastword.sentence`."""
        sock = self._release(tunnel)
        self._tally.end(failure)
        self._nursery.start_soon(self._say, sock, failure)

    async def _say(self, sock: socket.socket, failure: str) -> None:
        wait_s = self._config.connect_timeout_s
        await lastword.say(sock, failure, self._upstream.name, self._tally, wait_s=wait_s)

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Apply the time-outs that are due."""
        now_s = time.monotonic()
        while self._connecting and self._connecting[0][0] <= now_s:
            tunnel = self._connecting.popleft()[1]
            if tunnel.connecting and not tunnel.closed:
                self._timed_out(tunnel)
        for _ in range(len(self._resting)):
            deadline_s, tunnel = self._resting.popleft()
            if tunnel.closed:
                continue
            if now_s < deadline_s and tunnel.unsent(DOWNSTREAM):
                self._resting.append((deadline_s, tunnel))
            else:
                self._end(tunnel, "upstream_reset")
        if now_s >= self._next_sweep_s:
            idle_s = self._config.idle_timeout_s
            self._next_sweep_s = now_s + idle_s / SWEEPS_PER_IDLE_TIME
            for tunnel in [each for each in self._tunnels if each.last_active_s <= now_s - idle_s]:
                if not (tunnel.connecting or self._is_dialling(tunnel)):
                    self._idle(tunnel)

    @staticmethod
    def _is_dialling(tunnel: Tunnel) -> bool:
        client = tunnel.owner
        assert isinstance(client, Client)
        return client.bridge is not None and client.bridge.dialling

    def _timed_out(self, tunnel: Tunnel) -> None:
        client = tunnel.owner
        assert isinstance(client, Client)
        if client.addresses_left:
            self._dial(tunnel)
        else:
            self.refuse(tunnel, "connect_timeout")

    def _idle(self, tunnel: Tunnel) -> None:
        _, answered = tunnel.received
        if answered or not tunnel.http:
            self._end(tunnel, "idle")
            return
        # The first request has had no answer, so an answer is what the client waits for; if it is there at all: if not,
        # sending fails, and there is nobody to be told.
        with contextlib.closing(self._release(tunnel)) as sock, contextlib.suppress(OSError):
            sock.send(lastword.answer_bytes(504, lastword.sentence("no_answer", self._upstream.name)))
            self._tally.answer(504)
        self._tally.end("no_answer")

    def abort(self) -> None:
        """Cut what is still open."""
        for tunnel in list(self._tunnels):
            self._end(tunnel, "drain")
