"""One upstream of the mirror: its addresses, its health, its account, and what it gets of each captured stream.

Takes the bytes of captured streams from `gopher.capture.mirror` and hands them to connections of `gopher._pump` (or to
files). Everything here is decided at once, nothing waits: dialling, lingering and time-outs are driven by the pump's
outcomes and by `Upstream.tick`.

What it keeps true:

* Bytes of one captured stream reach the upstream in order and without a hole, on one connection at a time; after a cut
  they go on at the first byte of a later request, on a new connection.
* A connection that gopher cuts short counts none of its bytes as delivered.
* A dead upstream costs one dial per back-off period.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from gopher._pump import FINISHED, OVER_CONNECTION, OVER_TOTAL, OVER_UPSTREAM, PEER_CLOSED, Connection, Ledger
from gopher.errors import ConfigError, UpstreamError
from gopher.observe.accounts import ConnectionAccount, UpstreamAccount

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopher._pump import Budget, Pump
    from gopher.config import MirrorConfig, UpstreamConfig
    from gopher.http.framing import RequestFramer

__all__ = ["Address", "Backoff", "DirectoryUpstream", "StreamCopy", "TcpUpstream", "Upstream", "resolve"]

_OVER_REASONS: Final = {
    OVER_CONNECTION: "connection_memory",
    OVER_UPSTREAM: "upstream_memory",
    OVER_TOTAL: "total_memory",
}
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

    __slots__ = ("family", "host", "port", "sockaddr")

    def __init__(self, family: int, host: str, port: int, scope_id: int = 0) -> None:
        self.family = family
        self.host = host
        self.port = port
        packed = socket.inet_pton(family, host)
        if family == socket.AF_INET:
            self.sockaddr = struct.pack("=H", family) + struct.pack("!H4s8x", port, packed)
        else:
            self.sockaddr = (
                struct.pack("=H", family) + struct.pack("!HI16s", port, 0, packed) + struct.pack("=I", scope_id)
            )


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
        scope_id = sockaddr[3] if len(sockaddr) > 3 else 0
        addresses.append(Address(family, host, sockaddr[1], scope_id))
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


class StreamCopy:
    """What one upstream gets of one captured stream."""

    __slots__ = ("_ended", "_given_up", "_parts", "_reason", "_shed_first", "connection", "name", "upstream")

    def __init__(self, upstream: Upstream, name: str, given_up: str | None = None) -> None:
        self.upstream = upstream
        self.name = name
        self.connection: Outlet | None = None
        self._reason: str | None = given_up
        """Why bytes are being shed until the next request; None before the first connection."""
        self._given_up = given_up is not None
        self._shed_first: str | None = None
        self._parts = 0
        """Connections of this copy that are still open; more than one while an old one waits for its answers."""
        self._ended = False
        upstream.connections_captured += 1
        upstream.connections_pending += 1

    # -- bytes -----------------------------------------------------------------------------------------------------

    def write(self, data: bytes, start: int, base: int, requests: RequestFramer) -> str | None:
        """Pass on the next bytes of the stream.

        Args:
            data: bytes that follow on those of the last call.
            start: offset in `data` of the first request that starts in it, or -1.
            base: index of that request.
            requests: the framer of the stream, `data` included.

        Returns:
            None, or the reason why the connection is now over a memory bound: wait for room, or `give_up`.
        """
        ledger = self.upstream.ledger
        ledger.captured += len(data)
        connection = self.connection
        if connection is None:
            if self._reason is not None:
                if self._given_up or start < 0:
                    self.shed(self._reason, len(data))
                    return None
                if start:
                    self.shed(self._reason, start)
                    data = data[start:]
            connection = self._connect(base, requests)
            if connection is None:
                assert self._reason is not None
                self.shed(self._reason, len(data))
                return None
        outcome = connection.write(data)
        if outcome == 0:
            return None
        if outcome > 0:
            return _OVER_REASONS[outcome]
        self.upstream.outcome(connection, outcome)
        return None

    def shed(self, reason: str, length: int) -> None:
        """Count captured bytes as given up."""
        if length:
            self.upstream.ledger.add_shed(reason, length)
            self.note_shed(reason)

    def note_shed(self, reason: str) -> None:
        """Some of this copy was shed: its connection counts as shed, for the first reason."""
        if self._shed_first is None:
            self._shed_first = reason

    def skip(self, reason: str, length: int) -> None:
        """Bytes that were captured and that no upstream gets."""
        self.upstream.ledger.captured += length
        self.shed(reason, length)

    def _connect(self, base: int, requests: RequestFramer) -> Outlet | None:
        connection = self.upstream.connect(self, base, requests)
        if isinstance(connection, str):
            self._reason = connection
            self.note_shed(connection)
            return None
        self.connection = connection
        self._parts += 1
        return connection

    # -- ends ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The captured stream is over."""
        self._ended = True
        if self.connection is not None:
            connection, self.connection = self.connection, None
            self.upstream.finish(connection)
        self._settle()

    def reset(self) -> None:
        """The client reset its connection: so does the mirror."""
        self._ended = True
        if self.connection is not None:
            self._sever(self.connection, "client_reset")
        self._settle()

    def interrupt(self, reason: str, *, whole: bool) -> None:
        """The stream has a hole: end this connection visibly and go on at a later request.

        Args:
            reason: what to count the bytes up to there as.
            whole: the hole lies between two requests; the ones before it get their answers first.
        """
        self._reason = self._reason if self._given_up else reason
        self.note_shed(reason)
        if self.connection is None:
            return
        if whole:
            connection, self.connection = self.connection, None
            self.upstream.finish(connection, reset=True)
        else:
            self.cut(self.connection, reason)

    def give_up(self, reason: str) -> None:
        """Shed the connection as a whole, and all that may still come of this stream."""
        self._given_up = True
        self._reason = reason
        self.note_shed(reason)
        if self.connection is not None:
            self.cut(self.connection, reason)
        self._settle()

    def cut(self, connection: Outlet, reason: str) -> None:
        """Reset a connection in the middle: none of its bytes count as delivered."""
        connection.hang_up(True)
        self._drop(connection, reason, connection.sent)

    def lost(self, connection: Outlet, reason: str) -> None:
        """The upstream ended a connection; what its TCP had accepted stays delivered."""
        self._reason = self._reason if self._given_up else reason
        self._sever(connection, reason)
        self._settle()

    def done(self, connection: Outlet, *, reset: bool = False) -> None:
        """A finishing connection has got its answers."""
        connection.hang_up(reset)
        self._parts -= 1
        self._settle()

    def expire(self, connection: Outlet, reason: str) -> None:
        """A finishing connection has run out of time."""
        if connection.queued or connection.unaccepted():
            self.cut(connection, reason)
            self._settle()
        else:
            self.done(connection)

    def _sever(self, connection: Outlet, reason: str) -> None:
        unaccepted = connection.unaccepted()
        connection.hang_up(True)
        self._drop(connection, reason, unaccepted)

    def _drop(self, connection: Outlet, reason: str, unaccepted: int) -> None:
        if connection.abandon(reason, unaccepted):
            self.note_shed(reason)
        if connection is self.connection:
            self.connection = None
        self._parts -= 1

    def _settle(self) -> None:
        if self._ended and self._parts == 0:
            self._parts = -1  # settled once
            self.upstream.settle(self._shed_first)


class Outlet(Protocol):
    """What a `StreamCopy` writes to: a `gopher._pump.Connection`, or a file."""

    @property
    def sent(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def write(self, data: bytes) -> int: ...
    def unaccepted(self) -> int: ...
    def hang_up(self, hard: bool) -> None: ...
    def abandon(self, reason: str, unaccepted: int = 0) -> int: ...


class Upstream:
    """What TCP and directory upstreams share: the account."""

    def __init__(self, config: UpstreamConfig, limits: MirrorConfig, total: Budget) -> None:
        self.config = config
        self.ledger = Ledger(total, limits.upstream_memory_bytes, limits.connection_memory_bytes)
        self.connections_captured = 0
        self.connections_delivered = 0
        self.connections_shed: dict[str, int] = {}
        self.connections_pending = 0
        self.dials = 0

    def connect(self, copy: StreamCopy, base: int, requests: RequestFramer) -> Outlet | str:
        """A new connection for `copy`, or the reason why there is none."""
        raise NotImplementedError

    def outcome(self, connection: Outlet, outcome: int) -> None:
        """A connection reports `FINISHED`, `PEER_CLOSED` or a negative errno."""
        raise NotImplementedError

    def finish(self, connection: Outlet, *, reset: bool = False) -> None:
        """No more bytes for this connection; `reset` it when it has got its answers."""
        raise NotImplementedError

    def tick(self, now_s: float) -> None:
        """Apply what is due at `now_s`."""

    def abort(self, reason: str) -> None:
        """Cut every connection that still waits for something."""

    def settle(self, shed_reason: str | None) -> None:
        """One captured connection is over."""
        self.connections_pending -= 1
        if shed_reason is None:
            self.connections_delivered += 1
        else:
            self.connections_shed[shed_reason] = self.connections_shed.get(shed_reason, 0) + 1

    def account(self) -> UpstreamAccount:
        """A snapshot."""
        ledger = self.ledger
        return UpstreamAccount(
            name=self.config.name,
            captured_bytes=ledger.captured,
            delivered_bytes=ledger.delivered,
            shed_bytes=sum(ledger.shed.values()),
            pending_bytes=ledger.pending,
            shed=dict(ledger.shed),
            connections=ConnectionAccount(
                captured=self.connections_captured,
                delivered=self.connections_delivered,
                shed=sum(self.connections_shed.values()),
                pending=self.connections_pending,
                shed_by_reason=dict(self.connections_shed),
            ),
            dials=self.dials,
            response_bytes=ledger.responses,
        )


class TcpUpstream(Upstream):
    """Mirrored streams go to a host and port.

    Args:
        addresses: tried in turn until one accepts; at least one.
        pump: serves the connections.
        clock: seconds, monotonic.
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
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        super().__init__(config, limits, total)
        self.addresses = addresses
        self.backoff = Backoff()
        self._pump = pump
        self._clock = clock
        self._connect_timeout_s = limits.connect_timeout_s
        self._linger_s = limits.linger_s
        self._preferred = 0
        self._unanswered = 0
        self._signs_of_life: tuple[int, int] = (0, 0)
        # Each has one time-out for all, so it is in the order of its deadlines.
        self._connecting: deque[tuple[float, Connection]] = deque()
        self._lingering: deque[tuple[float, Connection]] = deque()

    def connect(self, copy: StreamCopy, base: int, requests: RequestFramer) -> Outlet | str:
        now_s = self._clock()
        self._notice_recovery()
        if not self.backoff.permits(now_s):
            assert self.backoff.reason is not None
            return self.backoff.reason
        connection = Connection(self._pump, self.ledger, requests, base, copy)
        connection.attempts_left = len(self.addresses)
        failure = self._dial(connection, now_s)
        if failure:
            return self._dial_failed(failure)
        return connection

    def _dial(self, connection: Connection, now_s: float) -> int:
        """Dial addresses in turn until one does not fail at once. Returns 0 or a negative errno."""
        failure = 0
        while connection.attempts_left > 0:
            connection.attempts_left -= 1
            self.dials += 1
            address = self.addresses[self._preferred]
            failure = connection.dial(address.family, address.sockaddr)
            if failure == 0:
                while self._connecting and not self._connecting[0][1].connecting:
                    self._connecting.popleft()
                self._connecting.append((now_s + self._connect_timeout_s, connection))
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
        self.backoff.failed(self._clock(), reason)
        self._signs_of_life = (self.ledger.established, self.ledger.responses)

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
        assert isinstance(connection, Connection)
        copy = connection.owner
        assert isinstance(copy, StreamCopy)
        if outcome == FINISHED or (outcome == PEER_CLOSED and connection.finishing and not connection.queued):
            self._recovered()
            copy.done(connection, reset=connection.reset_at_end)
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
            failure = self._dial(connection, self._clock())
            if failure == 0:
                return
        copy.lost(connection, self._dial_failed(failure))

    def finish(self, connection: Outlet, *, reset: bool = False) -> None:
        assert isinstance(connection, Connection)
        connection.reset_at_end = reset
        outcome = connection.finish()
        if outcome:
            self.outcome(connection, outcome)
        else:
            while self._lingering and self._lingering[0][1].closed:
                self._lingering.popleft()
            self._lingering.append((self._clock() + self._linger_s, connection))

    def tick(self, now_s: float) -> None:
        while self._connecting and self._connecting[0][0] <= now_s:
            _, connection = self._connecting.popleft()
            if connection.connecting:
                self.outcome(connection, -errno.ETIMEDOUT)
        while self._lingering and self._lingering[0][0] <= now_s:
            self._linger_over(self._lingering.popleft()[1], "linger")

    def abort(self, reason: str) -> None:
        while self._lingering:
            self._linger_over(self._lingering.popleft()[1], reason)

    def _linger_over(self, connection: Connection, reason: str) -> None:
        copy = connection.owner
        assert isinstance(copy, StreamCopy)
        if not connection.closed:
            copy.expire(connection, reason)


class DirectoryUpstream(Upstream):
    """Mirrored streams go into files `CLIENTIP.PORT-SERVERIP.PORT`, to look at what would be sent.

    A stream that has a gap, and one whose name is taken, goes on in a file with `.2`, `.3`, … appended.

    Raises:
        UpstreamError: the directory cannot be made or written to.
    """

    def __init__(self, config: UpstreamConfig, limits: MirrorConfig, total: Budget) -> None:
        super().__init__(config, limits, total)
        self._directory = Path(config.path)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise UpstreamError(
                f"upstream {config.name}: cannot make the directory: {exc.strerror}", hint="name one you may write to"
            ) from exc
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise UpstreamError(
                f"upstream {config.name}: the directory is not writable", hint="name one you may write to"
            )

    def connect(self, copy: StreamCopy, base: int, requests: RequestFramer) -> Outlet | str:
        self.dials += 1
        number = 1
        while True:
            name = copy.name if number == 1 else f"{copy.name}.{number}"
            try:
                descriptor = os.open(
                    self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
                )
            except FileExistsError:
                number += 1
            except OSError as exc:
                return "no_descriptors" if exc.errno in (errno.EMFILE, errno.ENFILE) else "write_failed"
            else:
                return FileOutlet(descriptor, self.ledger, copy)

    def outcome(self, connection: Outlet, outcome: int) -> None:
        assert isinstance(connection, FileOutlet)
        connection.owner.lost(connection, "write_failed")

    def finish(self, connection: Outlet, *, reset: bool = False) -> None:
        assert isinstance(connection, FileOutlet)
        connection.owner.done(connection, reset=reset)


class FileOutlet:
    """A file that gets the bytes of one stream. Writes block: a disk is not an upstream that may stall."""

    __slots__ = ("_descriptor", "_ledger", "owner", "queued", "sent")

    def __init__(self, descriptor: int, ledger: Ledger, owner: StreamCopy) -> None:
        self.owner = owner
        self.sent = 0
        self.queued = 0
        self._descriptor = descriptor
        self._ledger = ledger

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._descriptor < 0

    def write(self, data: bytes) -> int:
        """Append. Returns 0 or a negative errno, with what could not be written queued."""
        view = memoryview(data)
        while view:
            try:
                written = os.write(self._descriptor, view)
            except OSError as exc:
                self.queued += len(view)
                self._ledger.pending += len(view)
                return -(exc.errno or errno.EIO)
            self.sent += written
            self._ledger.delivered += written
            view = view[written:]
        return 0

    def unaccepted(self) -> int:
        """Bytes that were sent and may still be lost: none."""
        return 0

    def hang_up(self, hard: bool) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def abandon(self, reason: str, unaccepted: int = 0) -> int:
        """Shed what is queued, and `unaccepted` bytes of what was written."""
        length = self.queued
        self.queued = 0
        self._ledger.pending -= length
        self._ledger.delivered -= unaccepted
        self._ledger.add_shed(reason, length + unaccepted)
        return length + unaccepted
