"""The table of metrics: Prometheus conventions, docs/metrics.md, and what a report's figures become."""

import dataclasses
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gopher.observe.accounts import SHED_REASONS
from gopher.observe.metrics import CAPTURE_METRICS, RELAY_METRICS, families
from gopher.observe.relaying import FAILURES
from gopher.relay.outcomes import CouplingStatistics

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
ALL = {metric.name: metric for metric in (*CAPTURE_METRICS, *RELAY_METRICS)}
# What a label may be: chosen by the operator's command line, or from a list in gopher. Never a client, path or session.
CLOSED_LABELS = {"version", "upstream", "reason", "by", "kind", "side", "status", "answer", "script", "worker"}
UPSTREAM = {
    "name": "b:80",
    "captured_bytes": 60,
    "delivered_bytes": 10,
    "shed_bytes": 30,
    "pending_bytes": 20,
    "shed": {"refused": 29, "reset": 1},
    "connections": {"captured": 7, "delivered": 3, "shed": 2, "pending": 2, "shed_by_reason": {"refused": 2}},
    "failing": "refused",
    "dials": 5,
    "response_bytes": 4,
    "answers_missed_bytes": 6,
    "latency": {
        "count": 6,
        "sum_s": 0.75,
        "buckets": [{"up_to_s": 0.25, "count": 3}, {"up_to_s": 0.5, "count": 2}, {"up_to_s": None, "count": 1}],
    },
}
RELAY = {
    "version": "1.0",
    "started_at": "2026-01-01T00:00:00+00:00",
    "connections": {"accepted": 9, "open": 1, "finished": 5, "failed": 3, "links": 2, "framed": 1},
    "failed": {"idle": 3},
    "bytes": {"from_downstream": 11, "from_upstream": 12},
    "answers": {"502": 13},
    "exchanges": None,
    "coupling": None,
    "scripts": [],
    "copies": [UPSTREAM, UPSTREAM],
}
COUPLING = {
    "coupling_aliases": "aliases",
    "coupling_learned_aliases_total": "aliases_learned",
    "coupling_evicted_aliases_total": "aliases_evicted",
    "coupling_expired_aliases_total": "aliases_expired",
    "coupling_rewritten_requests_total": "requests_rewritten",
    "coupling_missed_requests_total": "requests_missed",
    "coupling_held_requests_total": "requests_held",
    "coupling_waiting_requests": "requests_waiting",
    "coupling_held_seconds_total": "held_s_sum",
    "coupling_held_max_seconds": "held_s_max",
    "coupling_timed_out_requests_total": "requests_timed_out",
    "coupling_dropped_requests_total": "requests_dropped",
    "coupling_ambiguous_values_total": "values_ambiguous",
    "coupling_unread_bodies_total": "bodies_unread",
}


class Registered:
    def __init__(self, metrics, report):
        self.metrics, self.report = metrics, report

    def collect(self):
        return families(self.metrics, self.report)


def samples(metrics, report):
    """What Prometheus reads: (name, labels) to value."""
    registry = CollectorRegistry()
    registry.register(Registered(metrics, report))
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


@pytest.fixture(scope="module")
def relay():
    return samples(RELAY_METRICS, RELAY)


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL.keys())
def test_name_follows_the_conventions(metric):
    assert re.fullmatch(r"gopher(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(count|sum|bucket|info_total)$", metric.name)
    # Base units, named last, and nothing named for its type.
    assert not re.search(
        r"_(ms|milliseconds|minutes|kilobytes|megabytes|mib|percent|counter|gauge|histogram)(_|$)", metric.name
    )
    for unit in ("bytes", "seconds"):
        if f"_{unit}" in metric.name:
            assert metric.name.removesuffix("_total").endswith(f"_{unit}")
    assert metric.help.endswith(".")
    assert len(metric.help) < 120
    assert set(metric.labels) <= CLOSED_LABELS


def test_one_name_means_one_thing_in_both_modes():
    for table in (CAPTURE_METRICS, RELAY_METRICS):
        names = [metric.name for metric in table]
        assert len(names) == len(set(names))
    for one in CAPTURE_METRICS:
        for other in RELAY_METRICS:
            if one.name == other.name:
                assert (one.kind, one.help, one.labels) == (other.kind, other.help, other.labels)


def test_page_documents_every_metric_and_no_other():
    rows = re.findall(r"^\| `(gopher_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), help) for name, kind, labels, help in rows}
    assert len(rows) == len(documented)
    assert documented == {name: (metric.kind, metric.labels, metric.help) for name, metric in ALL.items()}


def test_every_reason_is_there_from_the_start(relay):
    failed = {dict(labels)["reason"]: value for (name, labels), value in relay.items() if "failed_conn" in name}
    assert failed == dict.fromkeys(FAILURES, 0) | {"idle": 3}
    shed = {
        dict(labels)["reason"]: value
        for (name, labels), value in relay.items()
        if name == "gopher_upstream_shed_bytes_total" and ("upstream", "b:80") in labels
    }
    assert shed == dict.fromkeys(SHED_REASONS, 0) | {"refused": 29, "reset": 1}


def test_histogram_is_cumulated(relay):
    name = "gopher_upstream_latency_seconds"
    buckets = {
        dict(labels)["le"]: value
        for (found, labels), value in relay.items()
        if found == f"{name}_bucket" and ("upstream", "b:80") in labels
    }
    assert buckets == {"0.25": 3, "0.5": 5, "+Inf": 6}
    assert relay[f"{name}_count", (("upstream", "b:80"),)] == 6
    assert relay[f"{name}_sum", (("upstream", "b:80"),)] == 0.75


def test_upstream_given_twice_is_two_series(relay):
    for name in ("b:80", "b:80#2"):
        assert relay["gopher_upstream_dials_total", (("upstream", name),)] == 5


def test_what_the_report_has_not_is_left_out(relay):
    names = {name for name, _ in relay}
    assert not [name for name in names if name.startswith(("gopher_coupling_", "gopher_script_"))]
    assert "gopher_relay_requests_total" not in names


def test_each_name_shows_its_own_figure(relay):
    """By hand, so that a wrong line of the table shows."""
    upstream = {
        name.removeprefix("gopher_upstream_"): value
        for (name, labels), value in relay.items()
        if labels == (("upstream", "b:80"),) and "latency" not in name
    }
    assert upstream == {
        "captured_bytes_total": 60,
        "delivered_bytes": 10,
        "pending_bytes": 20,
        "captured_connections_total": 7,
        "delivered_connections_total": 3,
        "pending_connections": 2,
        "failing": 1,
        "dials_total": 5,
        "response_bytes_total": 4,
        "missed_answer_bytes_total": 6,
    }
    exchanges = {"requests": 21, "responses": 22, "dropped": 23, "unanswered": 24}
    coupling = dict(zip(COUPLING.values(), range(31, 99), strict=False)) | {"divergences": {"403": 99}}
    script = {"name": "a.py", "calls": 51, "failures": 52, "timed_out": 53, "dropped": 54}
    full = samples(RELAY_METRICS, RELAY | {"exchanges": exchanges, "coupling": coupling, "scripts": [script]})
    shown = {name.removeprefix("gopher_"): value for (name, labels), value in full.items() if not labels}
    del shown["start_time_seconds"]
    assert shown == {
        "relay_accepted_connections_total": 9,
        "relay_open_connections": 1,
        "relay_finished_connections_total": 5,
        "relay_link_connections_total": 2,
        "relay_framed_link_connections_total": 1,
        "relay_requests_total": 21,
        "relay_responses_total": 22,
        "relay_dropped_requests_total": 23,
        "relay_unanswered_requests_total": 24,
        **{name: coupling[field] for name, field in COUPLING.items()},
    }
    assert full["gopher_relay_received_bytes_total", (("side", "downstream"),)] == 11
    assert full["gopher_relay_received_bytes_total", (("side", "upstream"),)] == 12
    assert full["gopher_relay_own_answers_total", (("status", "502"),)] == 13
    assert full["gopher_coupling_divergences_total", (("answer", "403"),)] == 99
    scripts = {name: value for (name, labels), value in full.items() if ("script", "a.py") in labels}
    assert scripts == {
        "gopher_script_calls_total": 51,
        "gopher_script_failures_total": 52,
        "gopher_script_timeouts_total": 53,
        "gopher_script_dropped_exchanges_total": 54,
    }


def test_every_statistic_of_coupling_has_a_name():
    fields = {field.name for field in dataclasses.fields(CouplingStatistics)}
    assert fields == {*COUPLING.values(), "divergences"}
