"""The transparent relay: each downstream connection is a tunnel to the upstream, and nobody looks at the bytes.

Decides what `gopher.relay._tunnel` reports; one pump serves all tunnels, so a connection costs no task.
"""

from __future__ import annotations

import contextlib
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

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from gopher.config import RelayConfig
    from gopher.relay.tally import Tally
    from gopher.upstreams.tcp import Address

__all__ = ["Transparent", "announcement"]

# How long the last bytes of a side that broke may take to get to the other.
LAST_BYTES_S: Final = 5.0
# A tunnel is seen to be idle at most this share of the time late.
SWEEPS_PER_IDLE_TIME: Final = 8


def announcement(version: str, header: ProxyHeader) -> bytes:
    """A PROXY protocol header for an upstream. `version`: "v1" or "v2"."""
    return encode_header_v1(header) if version == "v1" else encode_header(header)


class Client:
    """Who is behind a tunnel, and how far dialling has come."""

    __slots__ = ("addresses_left", "dialled", "header", "may_link")

    def __init__(self, header: ProxyHeader, addresses: list[Address], *, may_link: bool) -> None:
        self.header = header
        self.may_link = may_link
        self.addresses_left = addresses
        self.dialled: Address | None = None


class Transparent:
    """All tunnels of one relay.

    Args:
        config: what was asked for.
        addresses: of the first upstream, tried in turn.
        tally: what to count in.
        nursery: for the few connections that end with words.
        take_link: called with (downstream, upstream, header) for a framed link, which is not for a tunnel; its PROXY
            header has been read.
    """

    def __init__(
        self,
        config: RelayConfig,
        addresses: list[Address],
        tally: Tally,
        nursery: trio.Nursery,
        take_link: Callable[[socket.socket, socket.socket, ProxyHeader], None],
    ) -> None:
        self._config = config
        self._upstream = config.upstreams[0]
        self._addresses = addresses
        self._tally = tally
        self._nursery = nursery
        self._take_link = take_link
        self.pump = TunnelPump()
        self.task = ServingTask(self.pump, self._decide)
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
        version = self._config.proxy_protocol
        tunnel = Tunnel(
            self.pump,
            sock.detach(),
            Client(header, list(self._addresses), may_link=may_link),
            sniff=True,
            ask=version is not None,
        )
        self._tunnels.add(tunnel)
        self._dial(tunnel)

    def adopt(
        self, downstream: socket.socket, upstream: socket.socket, header: ProxyHeader, *, connecting: bool,
        to_downstream: bytes, to_upstream: bytes,
    ) -> None:  # fmt: skip
        """Two sockets become a tunnel. Bytes may wait for either side."""
        tunnel = Tunnel(self.pump, downstream.detach(), Client(header, [], may_link=False))
        self._tunnels.add(tunnel)
        failure = tunnel.join(upstream.detach(), connecting, to_downstream=to_downstream, to_upstream=to_upstream)
        if failure:
            self._decide(tunnel, failure)
        elif connecting:
            self._connecting.append((time.monotonic() + self._config.connect_timeout_s, tunnel))

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
        self._refuse(tunnel, lastword.failure_of(-failure))

    def _prefer_others(self, address: Address | None) -> None:
        if address is self._addresses[0]:
            self._addresses.append(self._addresses.pop(0))

    # -- decisions -------------------------------------------------------------------------------------------------

    def _decide(self, tunnel: Tunnel, outcome: int) -> None:
        client = tunnel.owner
        assert isinstance(client, Client)
        if outcome == DONE:
            self._end(tunnel, "")
        elif outcome == LINK:
            self._read_header(tunnel, client)
        elif outcome == PLAIN:
            assert self._config.proxy_protocol is not None
            if tunnel.announce(announcement(self._config.proxy_protocol, client.header)):
                self._end(tunnel, "upstream_reset")
        elif not tunnel.connecting:
            self._broken(tunnel)
        elif tunnel.failed == DOWNSTREAM:
            self._end(tunnel, "client_reset")
        elif client.addresses_left:
            self._dial(tunnel)
        else:
            self._refuse(tunnel, lastword.failure_of(-outcome))

    def _read_header(self, tunnel: Tunnel, client: Client) -> None:
        try:
            decoded = decode_header(tunnel.peek(HEADER_LIMIT_BYTES))
        except RemoteProtocolError:
            decoded = None
        if decoded is None or not client.may_link:
            self._end(tunnel, "bad_link")
            return
        header, length = decoded
        self._tally.links += 1
        tunnel.skip(length)
        if header.link is not None and header.link.framed:
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
        tunnel.close(bool(failure))
        self._tunnels.discard(tunnel)
        self._tally.end(failure)

    def _release(self, tunnel: Tunnel) -> socket.socket:
        self._tunnels.discard(tunnel)
        return socket.socket(fileno=tunnel.release_downstream())

    def _refuse(self, tunnel: Tunnel, failure: str) -> None:
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
                if not tunnel.connecting:
                    self._idle(tunnel)

    def _timed_out(self, tunnel: Tunnel) -> None:
        client = tunnel.owner
        assert isinstance(client, Client)
        if client.addresses_left:
            self._dial(tunnel)
        else:
            self._refuse(tunnel, "connect_timeout")

    def _idle(self, tunnel: Tunnel) -> None:
        _, answered = tunnel.received
        if answered or not tunnel.http:
            self._end(tunnel, "idle")
            return
        # The first request has had no answer, so an answer is what the client waits for.
        with contextlib.closing(self._release(tunnel)) as sock, contextlib.suppress(OSError):
            sock.send(lastword.answer_bytes(504, lastword.sentence("no_answer", self._upstream.name)))
            self._tally.answer(504)
        self._tally.end("no_answer")

    def abort(self) -> None:
        """Cut what is still open."""
        for tunnel in list(self._tunnels):
            self._end(tunnel, "drain")
