"""The report as Prometheus metrics: a table of names, and what of the report each one shows.

A face over the report as JSON has it (`report.to_fields`, `relaying.relay_to_fields`): it counts nothing itself, so the
two cannot differ. No I/O.

What may fall is a gauge, even if it mostly grows: Prometheus takes a counter that falls for a restart. `delivered`
bytes fall when a connection ends badly, and ignored connections when one of them is joined after all.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from gopher.observe.accounts import SHED_REASONS
from gopher.observe.relaying import FAILURES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric as Family

__all__ = ["CAPTURE_METRICS", "RELAY_METRICS", "Metric", "families"]

Fields = dict[str, Any]
Sample = tuple[tuple[str, ...], Any]

# What a relay may answer by itself, and what a shadow may answer to what production accepted: from the start at 0, for
# a series that begins at 1 has no increase.
_STATUSES: Final = ("204", "400", "414", "431", "501", "502", "503", "504", "505")
_DIVERGENCES: Final = ("401", "403", "419", "login")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name` is complete, suffix included."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    read: Callable[[Fields], Iterable[Sample]]
    """From the fields of a report: the values of the labels and the value of each sample; none where the report has no
    such part. The value of a histogram is a `LatencyAccount` as a dictionary."""
    labels: tuple[str, ...] = ()


def families(metrics: Iterable[Metric], report: Fields) -> Iterator[Family]:
    """The report in the client library's terms."""
    for metric in metrics:
        samples = list(metric.read(report))
        if not samples:
            continue
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, latency in samples:
                histogram.add_metric(labels, _cumulated(latency["buckets"]), latency["sum_s"])
            yield histogram
            continue
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(metric.name, metric.help, labels=metric.labels)
        for labels, value in samples:
            family.add_metric(labels, value)
        yield family


def _cumulated(buckets: list[Fields]) -> list[tuple[str, float]]:
    """As Prometheus has buckets: how many did not exceed each bound."""
    total = 0
    cumulated = []
    for bucket in buckets:
        total += bucket["count"]
        bound = bucket["up_to_s"]
        cumulated.append(("+Inf" if bound is None else str(bound), float(total)))
    return cumulated or [("+Inf", 0.0)]


# -- reading a report --------------------------------------------------------------------------------------------------


def _at(report: Any, path: str) -> Any:
    for key in path.split("."):
        report = report[key] if report is not None else None
    return report


def _one(path: str) -> Callable[[Fields], Iterator[Sample]]:
    def read(report: Fields) -> Iterator[Sample]:
        value = _at(report, path)
        if value is not None:
            yield (), value

    return read


def _several(**paths: str) -> Callable[[Fields], Iterator[Sample]]:
    """One label, whose values have figures of their own."""

    def read(report: Fields) -> Iterator[Sample]:
        for label, path in paths.items():
            yield (label,), _at(report, path)

    return read


def _each(path: str, known: Iterable[str] = ()) -> Callable[[Fields], Iterator[Sample]]:
    """One label, whose values are the keys of a dictionary; those known are always there."""

    def read(report: Fields) -> Iterator[Sample]:
        counts = _at(report, path)
        if counts is not None:
            yield from _counts((), counts, known)

    return read


def _numbered(path: str) -> Callable[[Fields], Iterator[Sample]]:
    """One label, whose values are the places in a list."""

    def read(report: Fields) -> Iterator[Sample]:
        for number, value in enumerate(_at(report, path) or ()):
            yield (str(number),), value

    return read


def _counts(labels: tuple[str, ...], counts: dict[str, int], known: Iterable[str]) -> Iterator[Sample]:
    for key in dict.fromkeys((*known, *counts)):
        yield (*labels, key), counts.get(key, 0)


def _of_all(part: str, path: str) -> Callable[[Fields], Iterator[Sample]]:
    """One figure of each upstream or script."""

    def read(report: Fields) -> Iterator[Sample]:
        for name, fields in _named(report, part):
            yield (name,), _at(fields, path)

    return read


def _failing(part: str) -> Callable[[Fields], Iterator[Sample]]:
    def read(report: Fields) -> Iterator[Sample]:
        for name, fields in _named(report, part):
            yield (name,), int(fields["failing"] is not None)

    return read


def _reasons_of_all(part: str, path: str) -> Callable[[Fields], Iterator[Sample]]:
    def read(report: Fields) -> Iterator[Sample]:
        for name, fields in _named(report, part):
            yield from _counts((name,), _at(fields, path), SHED_REASONS)

    return read


def _named(report: Fields, part: str) -> Iterator[tuple[str, Fields]]:
    """The same name given twice would be the same series twice, which Prometheus refuses as a whole."""
    seen: dict[str, int] = {}
    for fields in report[part]:
        name = fields["name"]
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}#{seen[name]}", fields


def _started(report: Fields) -> Iterator[Sample]:
    yield (), datetime.fromisoformat(report["started_at"]).timestamp()


# -- the tables --------------------------------------------------------------------------------------------------------

_COMMON: Final = (
    Metric(
        "gopher_info",
        "gauge",
        "Always 1; its label is the version.",
        lambda report: [((report["version"],), 1)],
        ("version",),
    ),
    Metric("gopher_start_time_seconds", "gauge", "When this run began, in seconds since 1970.", _started),
)


def _upstream_metrics(part: str) -> tuple[Metric, ...]:
    """Of the upstreams that get copies: all of them in capture mode, all but the first in relay mode."""
    one, reasons = ("upstream",), ("upstream", "reason")
    return (
        Metric(
            "gopher_upstream_captured_bytes_total",
            "counter",
            "Bytes of the clients' streams that this upstream was to get.",
            _of_all(part, "captured_bytes"),
            one,
        ),
        Metric(
            "gopher_upstream_delivered_bytes",
            "gauge",
            "Bytes its TCP accepted. Falls when a connection ends badly and takes back what had not arrived.",
            _of_all(part, "delivered_bytes"),
            one,
        ),
        Metric(
            "gopher_upstream_shed_bytes_total",
            "counter",
            "Bytes given up, by reason.",
            _reasons_of_all(part, "shed"),
            reasons,
        ),
        Metric(
            "gopher_upstream_pending_bytes",
            "gauge",
            "Bytes queued, or waiting for a connection.",
            _of_all(part, "pending_bytes"),
            one,
        ),
        Metric(
            "gopher_upstream_captured_connections_total",
            "counter",
            "Client connections that this upstream was to get.",
            _of_all(part, "connections.captured"),
            one,
        ),
        Metric(
            "gopher_upstream_delivered_connections_total",
            "counter",
            "Connections that are over and whose every byte was delivered.",
            _of_all(part, "connections.delivered"),
            one,
        ),
        Metric(
            "gopher_upstream_shed_connections_total",
            "counter",
            "Connections that are over and lost at least one byte, by the first reason.",
            _reasons_of_all(part, "connections.shed_by_reason"),
            reasons,
        ),
        Metric(
            "gopher_upstream_pending_connections",
            "gauge",
            "Connections that are not over.",
            _of_all(part, "connections.pending"),
            one,
        ),
        Metric(
            "gopher_upstream_failing",
            "gauge",
            "1 while it is left alone because connecting to it failed, else 0.",
            _failing(part),
            one,
        ),
        Metric("gopher_upstream_dials_total", "counter", "Connections attempted.", _of_all(part, "dials"), one),
        Metric(
            "gopher_upstream_response_bytes_total",
            "counter",
            "Bytes of answers, read and thrown away.",
            _of_all(part, "response_bytes"),
            one,
        ),
        Metric(
            "gopher_upstream_missed_answer_bytes_total",
            "counter",
            "Production's answers that a framed link had no room for.",
            _of_all(part, "answers_missed_bytes"),
            one,
        ),
        Metric(
            "gopher_upstream_latency_seconds",
            "histogram",
            "From the oldest packet of a run of bytes until the upstream's socket took the run.",
            _of_all(part, "latency"),
            one,
        ),
    )


CAPTURE_METRICS: Final = (
    *_COMMON,
    Metric(
        "gopher_accounts_add_up",
        "gauge",
        "1 if captured = delivered + shed + pending for every upstream, else 0, which is a bug.",
        _one("accounts_add_up"),
    ),
    Metric("gopher_packets_received_total", "counter", "Packets that came to the tap.", _one("packets.received")),
    Metric(
        "gopher_packets_dropped_total",
        "counter",
        "Packets lost before gopher saw them: kernel (the ring was full), interface.",
        _several(kernel="packets.dropped_by_kernel", interface="packets.dropped_by_interface"),
        ("by",),
    ),
    Metric("gopher_packets_processed_total", "counter", "Packets looked at.", _one("packets.processed")),
    Metric(
        "gopher_packets_irregular_total",
        "counter",
        "Packets that are not wanted, or not as they should be, by kind.",
        _several(
            **{
                kind: f"packets.{kind}"
                for kind in (
                    *("not_tcp", "other_port", "malformed", "truncated", "bad_checksum", "out_of_order"),
                    *("out_of_window", "overlaps_differing"),
                )
            }
        ),
        ("kind",),
    ),
    Metric(
        "gopher_retransmitted_bytes_total",
        "counter",
        "Bytes that came again and were dropped.",
        _one("packets.retransmitted_bytes"),
    ),
    Metric("gopher_connections_seen_total", "counter", "Client connections seen.", _one("connections.seen")),
    Metric("gopher_connections_mirrored_total", "counter", "Of these: mirrored.", _one("connections.mirrored")),
    Metric(
        "gopher_connections_joined_total",
        "counter",
        "Of those mirrored: begun before the capture and joined at a later request.",
        _one("connections.joined"),
    ),
    Metric(
        "gopher_connections_ignored",
        "gauge",
        "Of those seen: not mirrored, by reason. Falls when a connection gets its first byte or is joined.",
        _each("connections.ignored_by_reason"),
        ("reason",),
    ),
    Metric("gopher_connections_open", "gauge", "Client connections mirrored and open now.", _one("connections.open")),
    Metric(
        "gopher_captured_bytes_total",
        "counter",
        "Bytes of the clients' streams, in order and once.",
        _one("bytes.captured"),
    ),
    Metric(
        "gopher_captured_response_bytes_total", "counter", "Bytes of production's answers.", _one("bytes.responses")
    ),
    Metric("gopher_held_bytes", "gauge", "Bytes out of order, waiting for a hole to fill.", _one("bytes.held")),
    Metric("gopher_gaps_total", "counter", "Holes in streams that stayed.", _one("gaps.count")),
    Metric("gopher_gap_bytes_total", "counter", "Bytes missing in these holes.", _one("gaps.bytes")),
    Metric("gopher_workers_running", "gauge", "With --workers: processes that capture.", _one("workers.running")),
    Metric(
        "gopher_workers_died_total",
        "counter",
        "Workers that ended without being told to.",
        _one("workers.died"),
    ),
    Metric(
        "gopher_workers_lost_packets_total",
        "counter",
        "Packets that came to a worker that died, and are in no other account.",
        _one("workers.packets_lost"),
    ),
    Metric(
        "gopher_worker_connections_total",
        "counter",
        "Captured connections of each worker: how evenly they are shared.",
        _numbered("workers.connections"),
        ("worker",),
    ),
    Metric(
        "gopher_worker_captured_bytes_total",
        "counter",
        "Captured bytes of each worker.",
        _numbered("workers.captured_bytes"),
        ("worker",),
    ),
    *_upstream_metrics("upstreams"),
)
"""Capture mode."""

RELAY_METRICS: Final = (
    *_COMMON,
    Metric("gopher_relay_accepted_connections_total", "counter", "Connections accepted.", _one("connections.accepted")),
    Metric("gopher_relay_open_connections", "gauge", "Connections open now.", _one("connections.open")),
    Metric(
        "gopher_relay_finished_connections_total",
        "counter",
        "Connections that ended in order.",
        _one("connections.finished"),
    ),
    Metric(
        "gopher_relay_failed_connections_total",
        "counter",
        "Connections that failed, by reason.",
        _each("failed", FAILURES),
        ("reason",),
    ),
    Metric(
        "gopher_relay_link_connections_total",
        "counter",
        "Of those accepted: began with a PROXY protocol header.",
        _one("connections.links"),
    ),
    Metric(
        "gopher_relay_framed_link_connections_total",
        "counter",
        "Of these: with production's answers.",
        _one("connections.framed"),
    ),
    Metric(
        "gopher_relay_received_bytes_total",
        "counter",
        "Bytes received, from downstream and from the upstream.",
        _several(downstream="bytes.from_downstream", upstream="bytes.from_upstream"),
        ("side",),
    ),
    Metric(
        "gopher_relay_own_answers_total",
        "counter",
        "Answers given by the relay itself, by HTTP status.",
        _each("answers", _STATUSES),
        ("status",),
    ),
    Metric("gopher_relay_requests_total", "counter", "Requests read.", _one("exchanges.requests")),
    Metric("gopher_relay_responses_total", "counter", "Answers passed back.", _one("exchanges.responses")),
    Metric("gopher_relay_dropped_requests_total", "counter", "Requests not sent.", _one("exchanges.dropped")),
    Metric(
        "gopher_relay_unanswered_requests_total",
        "counter",
        "Requests that got no answer, or no whole one.",
        _one("exchanges.unanswered"),
    ),
    Metric("gopher_coupling_aliases", "gauge", "Pairs of session values known now.", _one("coupling.aliases")),
    Metric("gopher_coupling_learned_aliases_total", "counter", "Pairs learned.", _one("coupling.aliases_learned")),
    Metric(
        "gopher_coupling_evicted_aliases_total",
        "counter",
        "Pairs given up for want of room.",
        _one("coupling.aliases_evicted"),
    ),
    Metric(
        "gopher_coupling_expired_aliases_total",
        "counter",
        "Pairs given up because nobody used them.",
        _one("coupling.aliases_expired"),
    ),
    Metric(
        "gopher_coupling_rewritten_requests_total",
        "counter",
        "Requests in which a value was replaced.",
        _one("coupling.requests_rewritten"),
    ),
    Metric(
        "gopher_coupling_missed_requests_total",
        "counter",
        "Requests sent with a value of production's that has no counterpart.",
        _one("coupling.requests_missed"),
    ),
    Metric(
        "gopher_coupling_held_requests_total",
        "counter",
        "Requests that waited for the shadow, and wait no more.",
        _one("coupling.requests_held"),
    ),
    Metric("gopher_coupling_waiting_requests", "gauge", "Requests that wait now.", _one("coupling.requests_waiting")),
    Metric(
        "gopher_coupling_held_seconds_total",
        "counter",
        "How long requests waited, summed.",
        _one("coupling.held_s_sum"),
    ),
    Metric("gopher_coupling_held_max_seconds", "gauge", "The longest wait so far.", _one("coupling.held_s_max")),
    Metric(
        "gopher_coupling_timed_out_requests_total",
        "counter",
        "Requests that waited in vain.",
        _one("coupling.requests_timed_out"),
    ),
    Metric(
        "gopher_coupling_dropped_requests_total",
        "counter",
        "Of these: not sent, by the policy.",
        _one("coupling.requests_dropped"),
    ),
    Metric(
        "gopher_coupling_ambiguous_values_total",
        "counter",
        "Values that more than one shadow session could belong to.",
        _one("coupling.values_ambiguous"),
    ),
    Metric(
        "gopher_coupling_unread_bodies_total",
        "counter",
        "Answers that a rule needed and whose coding or size did not allow it.",
        _one("coupling.bodies_unread"),
    ),
    Metric(
        "gopher_coupling_divergences_total",
        "counter",
        "Exchanges that production accepted, by what the shadow answered: a status, or login for a login page.",
        _each("coupling.divergences", _DIVERGENCES),
        ("answer",),
    ),
    *(
        Metric(f"gopher_script_{name}_total", "counter", help, _of_all("scripts", field), ("script",))
        for name, field, help in (
            ("calls", "calls", "Calls of the script's functions."),
            ("failures", "failures", "Calls that raised."),
            ("timeouts", "timed_out", "Calls that took too long."),
            ("dropped_exchanges", "dropped", "Exchanges that the script dropped."),
        )
    ),
    *_upstream_metrics("copies"),
)
"""Relay mode."""
