"""The accounts of several workers as one: how they are added up, what is left of one that died, how they travel.

Sans-I/O. Every counter of the accounts is a sum, and so are the buckets of the latencies, whose bounds are the same in
every process; the law holds for the sum because it holds for each snapshot that is added.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from gopher.observe.accounts import (
    AccountsReport,
    ConnectionAccount,
    LatencyAccount,
    LatencyBucket,
    UpstreamAccount,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["LastFigures", "captured_connections", "from_wire", "left_by_dead", "sum_reports", "to_wire", "with_packets"]

DIED = "worker_died"


def sum_reports(reports: Iterable[AccountsReport], listed: Sequence[UpstreamAccount] = ()) -> AccountsReport:
    """One report with the counters of all (one at least). Version, source and times are the first one's.

    An upstream may be missing in some: after reloads, workers that began at different times know different ones. What
    has the same name is the same; of several of one name the first ones are, and so on.

    Args:
        reports: to be added up.
        listed: empty accounts that give the order of upstreams, and when they were added and removed.
    """
    first, *others = reports
    upstreams = _sum_upstreams([listed, first.upstreams, *(other.upstreams for other in others)])
    for other in others:
        first = replace(
            first,
            packets=_sum(first.packets, other.packets),
            connections=_sum(first.connections, other.connections),
            bytes=_sum(first.bytes, other.bytes),
            gaps=_sum(first.gaps, other.gaps),
        )
    return replace(first, upstreams=upstreams)


def captured_connections(report: AccountsReport) -> int:
    """Those that were for the upstreams there were, also before a reload."""
    mirrored, ignored = report.connections["mirrored"], report.connections["ignored_by_reason"]
    assert isinstance(mirrored, int)
    assert isinstance(ignored, dict)
    return mirrored + ignored.get("not_joined", 0)


def with_packets(report: AccountsReport, received: int, dropped: int) -> AccountsReport:
    """The report, with so many more packets received, and of these dropped."""
    return replace(report, packets=_sum(report.packets, {"received": received, "dropped_by_kernel": dropped}))


class LastFigures(NamedTuple):
    """What a worker had done for one upstream when it died; newer than its last report."""

    captured_bytes: int
    delivered_bytes: int
    captured_connections: int
    delivered_connections: int


def left_by_dead(report: AccountsReport, processed: int, last: Sequence[LastFigures]) -> AccountsReport:
    """The account of a worker that has died: nothing of it is open, held or pending any more.

    Whatever was captured, not delivered, and not shed for another reason that is known, is shed because it died.

    Args:
        report: its last one.
        processed: how many packets it had handled in the end.
        last: for each upstream of it.
    """
    # Since the report. Each captured byte and connection was for all upstreams but those that a reload has removed. If
    # a connection was waiting for its first request, nobody knows.
    upstreams = list(zip(report.upstreams, last, strict=False))
    added = max(its.captured_connections - upstream.connections.captured for upstream, its in upstreams)
    added_bytes = max(its.captured_bytes - upstream.captured_bytes for upstream, its in upstreams)
    return replace(
        report,
        packets={**report.packets, "processed": processed},
        connections={**_sum(report.connections, {"seen": added, "mirrored": added}), "open": 0},
        bytes={**_sum(report.bytes, {"captured": added_bytes}), "held": 0},
        upstreams=tuple(_left_of_upstream(upstream, its) for upstream, its in upstreams),
    )


def _left_of_upstream(upstream: UpstreamAccount, last: LastFigures) -> UpstreamAccount:
    shed = _with_died(upstream.shed, last.captured_bytes - last.delivered_bytes)
    shed_connections = _with_died(
        upstream.connections.shed_by_reason, last.captured_connections - last.delivered_connections
    )
    return replace(
        upstream,
        captured_bytes=last.captured_bytes,
        delivered_bytes=last.delivered_bytes,
        shed_bytes=sum(shed.values()),
        pending_bytes=0,
        shed=shed,
        connections=ConnectionAccount(
            captured=last.captured_connections,
            delivered=last.delivered_connections,
            shed=sum(shed_connections.values()),
            pending=0,
            shed_by_reason=shed_connections,
        ),
    )


def _with_died(by_reason: dict[str, int], not_delivered: int) -> dict[str, int]:
    died = not_delivered - sum(by_reason.values())
    return _sum(by_reason, {DIED: died}) if died else by_reason


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Counters by name, which may be nested."""
    total = dict(one)
    for name, value in other.items():
        if isinstance(value, dict):
            total[name] = _sum(total.get(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
    return total


def _sum_upstreams(reports: Iterable[Sequence[UpstreamAccount]]) -> tuple[UpstreamAccount, ...]:
    total: dict[tuple[str, int], UpstreamAccount] = {}
    for upstreams in reports:
        names: Counter[str] = Counter()
        for upstream in upstreams:
            names[upstream.name] += 1
            key = upstream.name, names[upstream.name]
            total[key] = _sum_upstream(total[key], upstream) if key in total else upstream
    return tuple(total.values())


def _sum_upstream(one: UpstreamAccount, other: UpstreamAccount) -> UpstreamAccount:
    added = _sum(
        {name: value for name, value in _shallow(one).items() if isinstance(value, (int, dict))},
        {name: value for name, value in _shallow(other).items() if isinstance(value, (int, dict))},
    )
    return replace(
        one,
        **added,
        connections=ConnectionAccount(**_sum(_shallow(one.connections), _shallow(other.connections))),
        latency=_sum_latencies(one.latency, other.latency),
        failing=one.failing or other.failing,
    )


def _sum_latencies(one: LatencyAccount, other: LatencyAccount) -> LatencyAccount:
    return LatencyAccount(
        count=one.count + other.count,
        sum_s=one.sum_s + other.sum_s,
        buckets=tuple(
            LatencyBucket(mine.up_to_s, mine.count + its.count)
            for mine, its in zip(one.buckets, other.buckets, strict=True)
        ),
    )


def _shallow(account: Any) -> dict[str, Any]:
    """As `dataclasses.asdict`, of one level and without copies."""
    return {field.name: getattr(account, field.name) for field in fields(account)}


def to_wire(report: AccountsReport) -> dict[str, Any]:
    """What `json` can write, for `from_wire`."""
    return {
        **_shallow(report),
        "upstreams": [
            {
                **_shallow(upstream),
                "connections": _shallow(upstream.connections),
                "latency": {
                    **_shallow(upstream.latency),
                    "buckets": [(bucket.up_to_s, bucket.count) for bucket in upstream.latency.buckets],
                },
            }
            for upstream in report.upstreams
        ],
    }


def from_wire(fields: dict[str, Any]) -> AccountsReport:
    """The report that `to_wire` was given."""
    return AccountsReport(
        **{
            **fields,
            "upstreams": tuple(
                UpstreamAccount(
                    **{
                        **upstream,
                        "connections": ConnectionAccount(**upstream["connections"]),
                        "latency": LatencyAccount(
                            **{
                                **upstream["latency"],
                                "buckets": tuple(LatencyBucket(*bucket) for bucket in upstream["latency"]["buckets"]),
                            }
                        ),
                    }
                )
                for upstream in fields["upstreams"]
            ),
        }
    )
