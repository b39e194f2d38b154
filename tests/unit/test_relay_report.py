"""What a relay says about itself."""

import dataclasses
import json

import pytest

from gopher.observe.relaying import FAILURES, RelayReport, relay_table, relay_to_json

REPORT = RelayReport(
    version="1.0",
    listening="port 3280",
    upstreams=("localhost:80", "b:80"),
    started_at="2026-01-01T00:00:00+00:00",
    duration_s=12.5,
    connections={"accepted": 1200, "open": 1, "finished": 1196, "failed": 3, "links": 7, "framed": 2},
    failed={"refused": 2, "gap": 1},
    bytes={"from_downstream": 123456, "from_upstream": 7},
    answers={"502": 2},
    exchanges={"requests": 5, "responses": 4, "dropped": 0, "unanswered": 1},
    coupling={"aliases_learned": 3, "held_s_sum": 0.25, "requests_missed": 0, "divergences": {"403": 2}},
    scripts=({"name": "a.py", "calls": 9, "failures": 1, "timed_out": 0, "dropped": 2},),
    copies=({"name": "b:80", "delivered_bytes": 10, "shed_bytes": 0, "pending_bytes": 1},),
)


def test_table_has_every_figure_that_is_not_zero():
    assert relay_table(REPORT, 100).splitlines() == [
        "gopher 1.0: port 3280 to localhost:80, b:80, 12.5 s from 2026-01-01T00:00:00+00:00",
        "connections  1,200 accepted: 1,196 finished, 3 failed, 1 open; 7 links (2 framed)",
        "    refused 2: the upstream refused the connection",
        "    gap 1: a framed link ended, or had a gap, within a request",
        "bytes        123,456 from downstream, 7 from upstream",
        "exchanges    5 requests, 4 responses, 1 unanswered",
        "answers      given by the relay itself: 2 times 502",
        "coupling     3 aliases learned, 0.250 held s sum",
        "divergence   the shadow answered 2 403 where production took it",
        "script       a.py: 9 calls, 1 failures, 2 dropped",
        "copies       b:80: 10 bytes delivered, 0 shed, 1 pending",
    ]


@pytest.mark.parametrize("width", range(40, 80))
def test_table_is_no_wider_than_the_window(width):
    assert max(map(len, relay_table(REPORT, width).splitlines())) <= width


def test_every_failure_has_a_meaning():
    for reason in FAILURES:
        assert reason in relay_table(dataclasses.replace(REPORT, failed={reason: 1}), 80)


def test_json_has_every_field():
    assert json.loads(relay_to_json(REPORT)) == json.loads(json.dumps(dataclasses.asdict(REPORT)))
