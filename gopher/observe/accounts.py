"""The accounts: what was captured, and where every byte and connection of it ended.

Frozen snapshots over the counters of the stages; no I/O. One law holds for each upstream at any time, for bytes and for
connections: `captured = delivered + shed + pending`.

* captured: bytes of the clients' streams, in order and once, that the reassembler gave out.
* delivered: accepted by the upstream's TCP on a connection that was not cut short afterwards by gopher.
* shed: given up on purpose, with a reason from `SHED_REASONS`.
* pending: not decided yet: queued, or waiting for a connection.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "SHED_REASONS",
    "AccountsReport",
    "ConnectionAccount",
    "LatencyAccount",
    "LatencyBucket",
    "UpstreamAccount",
    "WorkersAccount",
    "law_violations",
]

SHED_REASONS: dict[str, str] = {
    "gap": "the capture missed bytes: the connection was reset, the rest skipped up to the next request",
    "joined": "bytes of a connection that was open before the capture, up to its first request line",
    "refused": "the upstream refused the connection, or is left alone for a moment after it did",
    "unreachable": "no route to the upstream, or its name or address failed otherwise",
    "connect_timeout": "the upstream did not accept the connection in time",
    "reset": "the upstream reset the connection",
    "closed": "the upstream closed the connection before the client did",
    "connection_memory": "more was queued for one connection than allowed",
    "upstream_memory": "more was queued for one upstream than allowed",
    "total_memory": "more was queued for all upstreams than allowed",
    "max_connections": "more connections were open at once than allowed",
    "max_memory": "more memory would have been needed than --max-memory allows",
    "cpu_limit": "gopher would have used more CPU than --cpu-limit allows",
    "max_rate": "more bytes or connections per second than allowed",
    "linger": "the client had gone and the upstream did not take the rest in time",
    "client_reset": "the client reset its connection while bytes were still queued",
    "drain": "still pending when the drain time at exit was over",
    "no_descriptors": "the process ran out of file descriptors",
    "removed": "the upstream was removed by a reload within a request",
    "write_failed": "a dir: upstream could not be written",
    "worker_died": "still pending when the worker that had it died",
}
"""Every reason a byte or a connection can be shed for, with what it means to an operator."""


@dataclass(frozen=True, slots=True)
class ConnectionAccount:
    """Captured connections of one upstream. captured = delivered + shed + pending."""

    captured: int
    delivered: int
    """Over, and every byte of it was delivered."""
    shed: int
    """At least one byte of it was shed, or it never reached the upstream."""
    pending: int
    """Still open, nothing shed so far."""
    shed_by_reason: dict[str, int] = field(default_factory=dict)
    """By the first reason of each."""


@dataclass(frozen=True, slots=True)
class LatencyBucket:
    """How many times lay above the bound of the bucket before and not above this one's."""

    up_to_s: float | None
    """None: no bound."""
    count: int


@dataclass(frozen=True, slots=True)
class LatencyAccount:
    """How long the bytes of one upstream took from the tap (the packet's time stamp) until its socket took them.

    One time for each run of bytes that a stream brought in one turn, from the oldest packet in it. Empty for a file:
    how late its packets are says nothing.
    """

    count: int = 0
    sum_s: float = 0.0
    buckets: tuple[LatencyBucket, ...] = ()
    """In ascending order; their bounds are the same for every upstream and every run of gopher."""

    def quantile_s(self, share: float) -> float | None:
        """The time that `share` (0 to 1) of all did not exceed, interpolated within its bucket; None without any."""
        wanted = share * self.count
        below_s = 0.0
        for bucket in self.buckets:
            if bucket.count and wanted <= bucket.count:
                return (
                    below_s if bucket.up_to_s is None else below_s + (bucket.up_to_s - below_s) * wanted / bucket.count
                )
            wanted -= bucket.count
            below_s = bucket.up_to_s or below_s
        return None


@dataclass(frozen=True, slots=True)
class UpstreamAccount:
    """One upstream's bytes and connections."""

    name: str
    captured_bytes: int
    delivered_bytes: int
    shed_bytes: int
    pending_bytes: int
    shed: dict[str, int]
    """Shed bytes by reason; its values sum to shed_bytes."""
    connections: ConnectionAccount
    dials: int
    """Connections attempted: more than captured connections where streams were rejoined."""
    response_bytes: int
    """Answers read from the upstream and thrown away."""
    failing: str | None = None
    """Why it is left alone at the moment, a reason of those above; None while it works, as far as is known."""
    answers_missed_bytes: int = 0
    """Production's answers that a framed link had no room for; the relay was told."""
    latency: LatencyAccount = field(default_factory=LatencyAccount)
    added_s: float = 0.0
    """When a reload added it, since the start: it was offered only what came after. 0.0: it was there."""
    removed_s: float | None = None
    """When a reload removed it, since the start: nothing was offered after. None: it is there."""


@dataclass(frozen=True, slots=True)
class WorkersAccount:
    """The processes that share one capture; all other figures are their sum.

    Of one that died everything up to its last turn of packets is in the accounts, what was pending as shed
    (`worker_died`); other packets that came to it are in no figure but `packets_lost`.
    """

    running: int
    died: int
    """Ended without being told to."""
    packets_lost: int
    """Came to a worker that died, or to its place while it was empty: received, not dropped, and not processed as far
    as is known."""
    connections: tuple[int, ...]
    """Captured, by place; a worker takes the place of the one that died."""
    captured_bytes: tuple[int, ...]
    """Likewise."""


@dataclass(frozen=True, slots=True)
class AccountsReport:
    """One snapshot of a capturing gopher. `observe.report` turns it into JSON and a table."""

    version: str
    source: str
    """Interface or file."""
    started_at: str
    """ISO 8601, UTC."""
    duration_s: float
    packets: dict[str, int]
    """received (dropped ones too), dropped_by_kernel, dropped_by_interface; processed, of these not_tcp, other_port,
    malformed, truncated, bad_checksum; out_of_order, out_of_window, overlaps_differing; retransmitted_bytes."""
    connections: dict[str, int | dict[str, int]]
    """seen = mirrored + ignored; joined (of mirrored: joined in the middle); ignored_by_reason; open (now)."""
    bytes: dict[str, int]
    """captured (client to server), responses (server to client), held (out of order, waiting for a hole to fill)."""
    gaps: dict[str, int]
    """count, bytes."""
    upstreams: tuple[UpstreamAccount, ...]
    workers: WorkersAccount | None = None
    """None with one process."""


def law_violations(report: AccountsReport) -> list[str]:
    """Where the accounts do not add up, one sentence each; empty when they do.

    For each upstream, in bytes and in connections: captured = delivered + shed + pending, what was shed is the sum of
    what was shed by reason, every reason is one of `SHED_REASONS`, and no figure is negative.
    """
    return [
        f"{upstream.name}: {violation}"
        for upstream in report.upstreams
        for violation in (
            *_violations(
                "bytes",
                upstream.captured_bytes,
                upstream.delivered_bytes,
                upstream.shed_bytes,
                upstream.pending_bytes,
                upstream.shed,
            ),
            *_violations(
                "connections",
                upstream.connections.captured,
                upstream.connections.delivered,
                upstream.connections.shed,
                upstream.connections.pending,
                upstream.connections.shed_by_reason,
            ),
        )
    ]


def _violations(
    unit: str, captured: int, delivered: int, shed: int, pending: int, by_reason: dict[str, int]
) -> list[str]:
    violations = []
    if captured != delivered + shed + pending:
        violations.append(f"{unit}: {captured} captured, but {delivered} delivered + {shed} shed + {pending} pending")
    if shed != sum(by_reason.values()):
        violations.append(f"{unit}: {shed} shed, but {sum(by_reason.values())} by reason")
    # Without this a negative figure could hide behind one that is too large.
    if min(captured, delivered, shed, pending, *by_reason.values()) < 0:
        violations.append(f"{unit}: a figure is negative")
    violations += [f"{unit}: {reason!r} is no known reason" for reason in by_reason if reason not in SHED_REASONS]
    return violations
