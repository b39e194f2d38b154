"""What one upstream gets of each captured stream, and the account of it.

Takes the bytes of captured streams, and of a relay's connections, from `gopher.upstreams.stream` and hands them to
outlets: connections (`gopher.upstreams.tcp`) or files (`gopher.upstreams.directory`). Everything here is decided at
once, nothing waits.

What it keeps true:

* Bytes of one captured stream reach the upstream in order and without a hole, on one connection at a time; after a cut
  they go on at the first byte of a later request, on a new connection.
* A connection that gopher cuts short counts none of its bytes as delivered.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from gopher._pump import LATENCY_BOUNDS_NS, OVER_CONNECTION, OVER_TOTAL, OVER_UPSTREAM, Ledger
from gopher.observe.accounts import ConnectionAccount, LatencyAccount, LatencyBucket, UpstreamAccount
from gopher.upstreams.rate import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopher._fastpath import Flow
    from gopher._pump import Budget, Connection, Outlet
    from gopher._runs import ByteRun
    from gopher.config import MirrorConfig, UpstreamConfig
    from gopher.http.framing import RequestFramer
    from gopher.upstreams.tcp import Address

__all__ = ["StreamCopy", "Upstream", "decide"]

_OVER_REASONS: Final = {
    OVER_CONNECTION: "connection_memory",
    OVER_UPSTREAM: "upstream_memory",
    OVER_TOTAL: "total_memory",
}

_LATENCY_BOUNDS_S: Final = tuple(bound / 1e9 for bound in LATENCY_BOUNDS_NS)


def decide(decisions: list[tuple[Connection, int]]) -> None:
    """Tell upstreams what a pump reports of their connections, which are those of a `StreamCopy`."""
    for connection, outcome in decisions:
        # Closing one connection may have closed another that was reported in the same batch.
        if not connection.closed:
            copy = connection.owner
            assert isinstance(copy, StreamCopy)
            copy.upstream.outcome(connection, outcome)


class StreamCopy:
    """What one upstream gets of one captured stream."""

    __slots__ = ("_ended", "_given_up", "_parts", "_reason", "_shed_first", "connection", "name", "port", "upstream")

    def __init__(self, upstream: Upstream, name: str, port: int = 0) -> None:
        self.upstream = upstream
        self.name = name
        """For people and file names, where anything is named after the stream."""
        self.port = port
        """The server's, where an upstream has no port of its own."""
        self.connection: Outlet | None = None
        self._reason: str | None = None
        """Why bytes are being shed until the next request; None before the first connection."""
        self._given_up = False
        self._shed_first: str | None = None
        self._parts = 0
        """Connections of this copy that are still open; more than one while an old one waits for its answers."""
        self._ended = False
        self.upstream.connections_captured += 1
        self.upstream.connections_pending += 1

    # -- bytes -----------------------------------------------------------------------------------------------------

    def write(self, data: bytes | ByteRun, start: int, base: int, requests: RequestFramer) -> str | None:
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
                    data = bytes(data)[start:]
            connection = self._connect(base, requests)
            if connection is None:
                assert self._reason is not None
                self.shed(self._reason, len(data))
                return None
        rate = self.upstream.rate
        if rate is not None and not rate.passes(len(data), self.upstream.clock()):
            self.give_up("max_rate")
            self.shed("max_rate", len(data))
            return None
        outcome = connection.write(data)
        if outcome == 0:
            return None
        if outcome > 0:
            return self.upstream.over(outcome)
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
        refusal = self.upstream.refusal()
        if refusal is not None and not self.rejoining:
            # A connection that begins: it is not there at all, rather than from some later request on.
            self._given_up = True
        connection = refusal or self.upstream.connect(self, base, requests)
        if isinstance(connection, str):
            self._reason = connection
            self.note_shed(connection)
            return None
        self.connection = connection
        if self.upstream.rate is not None:
            self.upstream.rate.opened()
        self._parts += 1
        return connection

    @property
    def rejoining(self) -> bool:
        """Whether bytes of the stream were given up before those that a new connection begins with."""
        return self._reason is not None

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

    def interrupt(self, reason: str, *, whole: bool, length: int) -> None:
        """The stream has a hole: end this connection visibly and go on at a later request.

        Args:
            reason: what to count the bytes up to there as.
            whole: the hole lies between two requests; the ones before it get their answers first.
            length: of the hole, in bytes.
        """
        self._reason = self._reason if self._given_up else reason
        self.note_shed(reason)
        if self.connection is None:
            return
        if whole:
            connection, self.connection = self.connection, None
            self.upstream.finish(connection, True)
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

    def done(self, connection: Outlet, reset: bool = False) -> None:
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


class Upstream:
    """What TCP and directory upstreams share: the account, and what they may get.

    What raises `NotImplementedError` is theirs to define.

    Args:
        config: where it is.
        limits: what it may cost.
        total: the bound on what all upstreams queue.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        config: UpstreamConfig,
        limits: MirrorConfig,
        total: Budget,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.clock = clock
        self._limits = limits
        self._max_connections = limits.max_connections
        self.rate: RateLimit | None = None
        if limits.max_bytes_per_s is not None or limits.max_connections_per_s is not None:
            self.rate = RateLimit(limits.max_bytes_per_s, limits.max_connections_per_s)
        self.ledger = Ledger(total, limits.upstream_memory_bytes, limits.connection_memory_bytes)
        self.connections_captured = 0
        self.connections_delivered = 0
        self.connections_shed: dict[str, int] = {}
        self.connections_pending = 0
        self.dials = 0
        self.answers_missed_bytes = 0
        self.added_s = 0.0
        """Since the start; see `UpstreamAccount`."""
        self.removed_s: float | None = None

    def copy(self, flow: Flow) -> StreamCopy:
        """What this upstream gets of a flow that begins; see `StreamCopy`."""
        return StreamCopy(self, "", flow.server_port)

    def bound(self, limits: MirrorConfig) -> None:
        """Keep these bounds from now on. What its open connections have queued stays."""
        self._limits = limits
        self._max_connections = limits.max_connections
        self.ledger.limit = limits.upstream_memory_bytes

    def refusal(self) -> str | None:
        """Why no connection may be opened now; None if one may."""
        if self.ledger.open >= self._max_connections:
            return self._limits.reason("max_connections")
        return None if self.rate is None or self.rate.admits(self.clock()) else "max_rate"

    def failing(self) -> str | None:
        """Why this upstream is left alone at the moment; None if it is not."""
        return None

    def over(self, outcome: int) -> str:
        """The reason to shed a connection for that is over a memory bound."""
        return self._limits.reason(_OVER_REASONS[outcome])

    def connect(self, copy: StreamCopy, base: int, requests: RequestFramer) -> Outlet | str:
        """A new connection for `copy`, or the reason why there is none."""
        raise NotImplementedError

    def outcome(self, connection: Outlet, outcome: int) -> None:
        """A connection reports `FINISHED`, `PEER_CLOSED` or a negative errno."""
        raise NotImplementedError

    def finish(self, connection: Outlet, reset: bool = False) -> None:
        """No more bytes for this connection; `reset` it when it has got its answers."""
        raise NotImplementedError

    def reload(self, limits: MirrorConfig, addresses: list[Address]) -> None:
        """New time-outs and addresses, for new connections."""
        raise NotImplementedError

    def tick(self, now_s: float) -> None:
        """Apply what is due at `now_s`."""
        raise NotImplementedError

    def abort(self, reason: str) -> None:
        """Cut every connection that still waits for something."""
        raise NotImplementedError

    def settle(self, shed_reason: str | None) -> None:
        """One captured connection is over."""
        self.connections_pending -= 1
        if shed_reason is None:
            self.connections_delivered += 1
        else:
            self.connections_shed[shed_reason] = self.connections_shed.get(shed_reason, 0) + 1

    def turn_away(self, reason: str) -> None:
        """One captured connection is shed from its first byte on."""
        self.connections_captured += 1
        self.connections_shed[reason] = self.connections_shed.get(reason, 0) + 1

    def account(self) -> UpstreamAccount:
        """A snapshot."""
        ledger = self.ledger
        counts, sum_ns = ledger.latencies
        bounds = (*_LATENCY_BOUNDS_S, None)
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
            failing=self.failing(),
            answers_missed_bytes=self.answers_missed_bytes,
            latency=LatencyAccount(
                count=sum(counts),
                sum_s=sum_ns / 1e9,
                buckets=tuple(map(LatencyBucket, bounds, counts)),
            ),
            added_s=round(self.added_s, 3),
            removed_s=None if self.removed_s is None else round(self.removed_s, 3),
        )
