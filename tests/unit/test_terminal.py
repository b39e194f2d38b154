"""The live view's lines: they fit, figures stay whole, and they say what the reports say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gopher.observe.accounts import AccountsReport, ConnectionAccount, LatencyAccount, LatencyBucket, UpstreamAccount
from gopher.observe.relaying import RelayReport
from gopher.observe.terminal import capture_view, relay_rates, relay_status_line, relay_view

WIDTHS = [40, 41, 60, 78, 79, 80, 120, 200]


def upstream(
    name: str, *, scale: int, failing: str | None = None, shed: dict[str, int] | None = None
) -> UpstreamAccount:
    shed = shed or {}
    return UpstreamAccount(
        name=name,
        captured_bytes=9 * scale,
        delivered_bytes=5 * scale,
        shed_bytes=sum(shed.values()),
        pending_bytes=1_234_567,
        shed=shed,
        connections=ConnectionAccount(captured=9, delivered=5, shed=4, pending=0),
        dials=9,
        response_bytes=1,
        failing=failing,
        latency=LatencyAccount(
            count=scale, sum_s=1.0, buckets=(LatencyBucket(0.001, scale // 2), LatencyBucket(0.004, scale - scale // 2))
        ),
    )


def capture(scale: int, duration_s: float, upstreams: int = 2) -> AccountsReport:
    names = [
        "machineB:3280",
        "[2001:db8:85a3::8a2e:370:7334]:32800",
        *(f"machine{n}.example.net:80" for n in range(30)),
    ]
    return AccountsReport(
        version="0.1.0",
        source="any",
        started_at="2026-01-01T00:00:00+00:00",
        duration_s=duration_s,
        packets={"received": 12_345_678 * scale, "dropped_by_kernel": 1_000 * scale},
        connections={"seen": 1_000 * scale, "mirrored": 1, "joined": 0, "open": 9_999},
        bytes={"captured": 987_654_321 * scale, "responses": 0, "held": 0},
        gaps={"count": 12, "bytes": 3},
        upstreams=tuple(
            upstream(
                name,
                scale=1_000_000 * scale,
                failing="connect_timeout" if number == 1 else None,
                shed={"connect_timeout": 123_456 * scale, "max_rate": 99_999, "gap": 12} if number == 1 else {},
            )
            for number, name in enumerate(names[:upstreams])
        ),
    )


BEFORE, NOW = capture(1, 10.0), capture(3, 12.0)


def text(lines: list[list[tuple[str, str]]]) -> list[str]:
    return ["".join(piece for piece, _ in line) for line in lines]


def relay(scale: int, duration_s: float) -> RelayReport:
    return RelayReport(
        version="0.1.0",
        listening="port 3280",
        upstreams=("localhost:80", "machineC:80"),
        started_at="2026-01-01T00:00:00+00:00",
        duration_s=duration_s,
        connections={"accepted": 100 * scale, "open": 7, "finished": 80 * scale, "failed": 20 * scale - 7},
        failed={"refused": 20 * scale - 8, "client_reset": 1},
        bytes={"from_downstream": 1_000_000 * scale, "from_upstream": 5_000_000 * scale},
        answers={"502": 12},
        exchanges={"requests": 500 * scale, "responses": 1, "dropped": 0, "unanswered": 0},
        coupling={
            "aliases": 123,
            "requests_rewritten": 456,
            "requests_missed": 7,
            "requests_waiting": 8,
            "requests_timed_out": 9,
            "divergences": {"login": 3},
        },
        copies=(
            {
                "name": "machineC:80",
                "failing": "refused",
                "delivered_bytes": 2_000 * scale,
                "pending_bytes": 0,
                "shed_bytes": 5_000,
            },
        ),
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_every_line_fits_and_every_figure_is_whole(width):
    for view in (capture_view(BEFORE, NOW, width, 100), relay_view(relay(1, 10.0), relay(3, 12.0), width, 100)):
        lines = text(view)
        assert max(map(len, lines)) <= width
    lines = text(capture_view(BEFORE, NOW, width, 100))
    shown = " ".join(" ".join(lines).split())
    for figure in ("12,345,678/s", "3,000 dropped by the kernel", "12 gaps", "987.7 MB/s", "1,000 connections/s"):
        assert figure in shown
    for figure in ("9,999 open", "5.0 MB/s", "1.2 MB", "470.4 kB", "connect_timeout 370.4 kB", "max_rate 100.0 kB"):
        assert figure in shown
    assert "machineB:3280" in shown


def test_table_at_80_columns():
    assert text(capture_view(BEFORE, NOW, 80, 24)) == [
        "gopher 0.1.0  any  12 s",
        "packets   12,345,678/s, 3,000 dropped by the kernel, 12 gaps",
        "clients   987.7 MB/s, 1,000 connections/s, 9,999 open",
        "",
        "upstream        state              delivered   pending      shed     p50     p99",
        "machineB:3280   ok                  5.0 MB/s    1.2 MB       0 B    1 ms 3.94 ms",
        "[2001:d…]:32800 connect_timeout     5.0 MB/s    1.2 MB  470.4 kB    1 ms 3.94 ms",
        "  shed    connect_timeout 370.4 kB, max_rate 100.0 kB, gap 12 B",
    ]


def test_states_have_colours():
    styles = {piece.strip(): style for line in capture_view(BEFORE, NOW, 80, 24) for piece, style in line}
    assert styles["ok"] == "green"
    assert styles["connect_timeout"] == "red"
    assert styles["3,000 dropped by the kernel"] == "red"
    calm = {piece.strip(): style for line in capture_view(NOW, NOW, 80, 24) for piece, style in line}
    assert calm["3,000 dropped by the kernel"] == ""
    assert "0 B/s" in {piece.strip() for line in capture_view(NOW, NOW, 80, 24) for piece, _ in line}


def test_latency_is_that_of_the_time_between_the_reports():
    later = replace(
        NOW.upstreams[0].latency,
        count=3_000_010,
        buckets=(LatencyBucket(0.001, 1_500_000), LatencyBucket(0.004, 1_500_010)),
    )
    now = replace(NOW, upstreams=(replace(NOW.upstreams[0], latency=later), NOW.upstreams[1]))
    assert text(capture_view(NOW, now, 80, 24))[5].endswith("2.5 ms 3.97 ms")
    assert text(capture_view(NOW, NOW, 80, 24))[5].endswith("   -       -")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("height", [3, 8, 10, 23, 40])
def test_what_is_too_high_is_left_out_and_said(width, height):
    before, now = capture(1, 10.0, upstreams=20), capture(3, 12.0, upstreams=20)
    lines = text(capture_view(before, now, width, height))
    assert len(lines) <= height
    if height < 23:
        assert re.fullmatch(r"… and \d+ more: make the window higher", lines[-1])


def test_relay_view_says_what_the_report_says():
    assert text(relay_view(relay(1, 10.0), relay(3, 12.0), 80, 24)) == [
        "gopher 0.1.0  port 3280  12 s",
        "clients   100 connections/s, 7 open, 500 requests/s",
        "bytes     1.0 MB/s from downstream, 5.0 MB/s from upstream",
        "failed    refused 52, client_reset 1",
        "answers   502 12 times",
        "coupling  123 aliases, 456 rewritten, 7 missed, 8 waiting, 9 timed out,",
        "          3 diverged: login",
        "",
        "to        localhost:80",
        "copy      machineC:80 refused",
        "          2.0 kB/s delivered, 0 B pending, 5.0 kB shed",
    ]


def test_relay_status_line():
    before, now = relay(1, 10.0), relay(3, 12.0)
    assert relay_status_line(before, now) == (
        "12 s: 100 connections/s, 500 requests/s, 1.0 MB/s from downstream, 5.0 MB/s from upstream, 7 open, 53 failed"
    )
    transparent = replace(now, exchanges=None)
    assert "requests" not in relay_status_line(replace(before, exchanges=None), transparent)
    assert relay_rates(before, transparent)["requests_per_s"] is None
