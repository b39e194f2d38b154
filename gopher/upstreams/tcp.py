"""An upstream that is a host and port: dialling, back-off, time-outs.

Driven by what `gopher._pump` reports of its connections and by `TcpUpstream.tick`; it never waits. A dead upstream
costs one dial per back-off period.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

import trio

from gopher._pump import FINISHED, PEER_CLOSED, Connection, Queue
from gopher.errors import ConfigError
from gopher.upstreams.upstream import StreamCopy, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopher._pump import Budget, Outlet, Pump
    from gopher.config import MirrorConfig, UpstreamConfig
    from gopher.http.framing import RequestFramer

__all__ = ["Address", "Backoff", "TcpUpstream", "resolve"]

_ERRNO_REASONS: Final = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "connect_timeout",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "closed",
    errno.EMFILE: "no_descriptors",
    errno.ENFILE: "no_descriptors",
}


class Address:
    """Where to connect: what connect(2) wants, and what people and packet filters want."""

    __slots__ = ("_scope_id", "family", "host", "port", "sockaddr")

    def __init__(self, family: int, host: str, port: int, scope_id: int = 0) -> None:
        self.family = family
        self.host = host
        self.port = port
        self._scope_id = scope_id
        packed = socket.inet_pton(family, host)
        if family == socket.AF_INET:
            self.sockaddr = struct.pack("=H", family) + struct.pack("!H4s8x", port, packed)
        else:
            self.sockaddr = (
                struct.pack("=H", family) + struct.pack("!HI16s", port, 0, packed) + struct.pack("=I", scope_id)
            )

    def at(self, port: int) -> Address:
        """The same host, with this port."""
        return self if port == self.port else Address(self.family, self.host, port, self._scope_id)


async def resolve(config: UpstreamConfig) -> list[Address]:
    """All addresses of a TCP upstream, in the resolver's order.

    Raises:
        ConfigError: the name does not resolve.
    """
    try:
        found = await trio.socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ConfigError(
            f"upstream {config.name}: cannot resolve {config.host!r}: {reason}",
            hint="check the spelling, or give an IP address",
        ) from exc
    addresses = []
    for family, _, _, _, sockaddr in found:
        # An IPv6 address may come with its scope, as in fe80::1%eth0.
        host = str(sockaddr[0]).partition("%")[0]
        scope_id = int(sockaddr[3]) if len(sockaddr) > 3 else 0
        addresses.append(Address(family, host, config.port, scope_id))
    return addresses


class Backoff:
    """When a failing upstream may be tried again. Sans-I/O.

    The first failure closes the gate for `FIRST_S`, each further one for twice as long, up to `LIMIT_S`; when the
    time is over one attempt passes and the gate closes again until its outcome is known.
    """

    FIRST_S: Final = 0.1
    LIMIT_S: Final = 2.0

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why the upstream is avoided; None while it is healthy."""
        self._delay_s = self.FIRST_S
        self._retry_at_s = 0.0
        self._probing = False

    def permits(self, now_s: float) -> bool:
        """Whether to dial now; a yes while failing is the one attempt of this period."""
        if self.reason is None:
            return True
        if now_s < self._retry_at_s:
            return False
        self._retry_at_s = now_s + self._delay_s
        self._probing = True
        return True

    def failed(self, now_s: float, reason: str) -> None:
        """An attempt failed. Attempts that were under way together fail together: that is one failure."""
        if self.reason is None:
            self._delay_s = self.FIRST_S
        elif self._probing:
            self._delay_s = min(2 * self._delay_s, self.LIMIT_S)
        else:
            return
        self.reason = reason
        self._probing = False
        self._retry_at_s = now_s + self._delay_s

    def succeeded(self) -> None:
        """The upstream works."""
        self.reason = None


class TcpUpstream(Upstream):
    """Mirrored streams go to a host and port.

    Args:
        addresses: tried in turn until one accepts; at least one.
        pump: serves the connections.
        clock: seconds, monotonic; the one that `tick` is called by.
    """

    # One connection that dies unanswered may be the fault of its own request; this many in a row are the upstream's.
    UNANSWERED_LIMIT: Final = 8

    def __init__(
        self,
        config: UpstreamConfig,
        limits: MirrorConfig,
        total: Budget,
        addresses: list[Address],
        pump: Pump,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config, limits, total, clock)
        self.addresses = addresses
        self.backoff = Backoff()
        self._pump = pump
        self._port = config.port
        self._connect_timeout_s = limits.connect_timeout_s
        self._linger_s = limits.linger_s
        self._preferred = 0
        self._unanswered = 0
        self._signs_of_life: tuple[int, int] = (0, 0)
        # Each has one time-out for all, so it is in the order of its deadlines.
        self._connecting: Queue[Connection] = Queue()
        self._lingering: Queue[Connection] = Queue()

    def connect(self, copy: StreamCopy, base: int, requests: RequestFramer) -> Outlet | str:
        """See `Upstream.connect`."""
        now_s = self.clock()
        self._notice_recovery()
        if not self.backoff.permits(now_s):
            assert self.backoff.reason is not None
            return self.backoff.reason
        connection = self._open(copy, base, requests)
        connection.attempts_left = len(self.addresses)
        failure = self._dial(connection, now_s, write_follows=True)
        if failure:
            return self._dial_failed(failure)
        return connection

    def _open(self, copy: StreamCopy, base: int, requests: RequestFramer) -> Connection:
        return Connection(self._pump, self.ledger, requests, base, copy)

    def _dial(self, connection: Connection, now_s: float, *, write_follows: bool = False) -> int:
        """Dial addresses in turn until one does not fail at once. Returns 0 or a negative errno."""
        copy = connection.owner
        assert isinstance(copy, StreamCopy)
        failure = 0
        while connection.attempts_left > 0:
            connection.attempts_left -= 1
            self.dials += 1
            address = self.addresses[self._preferred]
            address = address.at(self._port or copy.port)
            failure = connection.dial(address.family, address.sockaddr, write_follows)
            if failure == 0:
                connection.connect_by_s = now_s + self._connect_timeout_s
                while (oldest := self._connecting.oldest()) is not None and not oldest.connecting:
                    self._connecting.drop_oldest()
                self._connecting.append(connection)
                return 0
            self._preferred = (self._preferred + 1) % len(self.addresses)
        return failure

    def _dial_failed(self, failure: int) -> str:
        reason = _ERRNO_REASONS.get(-failure, "unreachable")
        # Our own lack of descriptors says nothing about the upstream.
        if reason != "no_descriptors":
            self._failed(reason)
        return reason

    def _failed(self, reason: str) -> None:
        self.backoff.failed(self.clock(), reason)
        self._signs_of_life = (self.ledger.established, self.ledger.responses)

    def failing(self) -> str | None:
        """See `Upstream.failing`."""
        self._notice_recovery()
        return self.backoff.reason

    def _notice_recovery(self) -> None:
        if self.backoff.reason is None:
            return
        established, responses = self._signs_of_life
        # An upstream that accepts and resets is not well again because it accepts.
        accepts_counts = self._unanswered < self.UNANSWERED_LIMIT
        if self.ledger.responses != responses or (accepts_counts and self.ledger.established != established):
            self._recovered()

    def _recovered(self) -> None:
        self._unanswered = 0
        self.backoff.succeeded()

    def outcome(self, connection: Outlet, outcome: int) -> None:
        """See `Upstream.outcome`."""
        assert isinstance(connection, Connection)
        self._outcome(connection, outcome)

    def _outcome(self, connection: Connection, outcome: int) -> None:
        copy = connection.owner
        assert isinstance(copy, StreamCopy)
        if outcome == FINISHED or (outcome == PEER_CLOSED and connection.finishing and not connection.queued):
            self._recovered()
            copy.done(connection, connection.reset_at_end)
            return
        if connection.connecting:
            self._retry(connection, copy, outcome)
            return
        reason = "closed" if outcome == PEER_CLOSED else _ERRNO_REASONS.get(-outcome, "reset")
        if connection.answered == 0:
            self._unanswered += 1
            if self._unanswered >= self.UNANSWERED_LIMIT:
                self._failed(reason)
        else:
            self._unanswered = 0
        copy.lost(connection, reason)

    def _retry(self, connection: Connection, copy: StreamCopy, failure: int) -> None:
        """An attempt to connect failed: go to the next address, or shed what is queued."""
        connection.hang_up(True)
        if connection.attempts_left:
            self._preferred = (self._preferred + 1) % len(self.addresses)
            failure = self._dial(connection, self.clock())
            if failure == 0:
                return
        copy.lost(connection, self._dial_failed(failure))

    def finish(self, connection: Outlet, reset: bool = False) -> None:
        """See `Upstream.finish`."""
        assert isinstance(connection, Connection)
        self._finish(connection, reset)

    def _finish(self, connection: Connection, reset: bool) -> None:
        connection.reset_at_end = reset
        outcome = connection.finish()
        if outcome:
            self.outcome(connection, outcome)
        else:
            connection.linger_until_s = self.clock() + self._linger_s
            while (oldest := self._lingering.oldest()) is not None and oldest.closed:
                self._lingering.drop_oldest()
            self._lingering.append(connection)

    def reload(self, limits: MirrorConfig, addresses: list[Address]) -> None:
        """See `Upstream.reload`. Behind a connection with a longer time-out, one with a shorter waits for it."""
        self.bound(limits)
        self._connect_timeout_s = limits.connect_timeout_s
        self._linger_s = limits.linger_s
        if [address.sockaddr for address in addresses] != [address.sockaddr for address in self.addresses]:
            self.addresses = addresses
            self._preferred = 0

    def tick(self, now_s: float) -> None:
        """See `Upstream.tick`."""
        while (connection := self._connecting.oldest()) is not None and connection.connect_by_s <= now_s:
            self._connecting.drop_oldest()
            if connection.connecting:
                self.outcome(connection, -errno.ETIMEDOUT)
        while (connection := self._lingering.oldest()) is not None and connection.linger_until_s <= now_s:
            self._lingering.drop_oldest()
            self._linger_over(connection, "linger")

    def abort(self, reason: str) -> None:
        """See `Upstream.abort`."""
        while (connection := self._lingering.oldest()) is not None:
            self._lingering.drop_oldest()
            self._linger_over(connection, reason)

    def _linger_over(self, connection: Connection, reason: str) -> None:
        copy = connection.owner
        assert isinstance(copy, StreamCopy)
        if not connection.closed:
            copy.expire(connection, reason)
