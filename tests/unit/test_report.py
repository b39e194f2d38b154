import json
import os
from dataclasses import replace

import pytest

from gopher.errors import ConfigError, GopherError
from gopher.observe.accounts import (
    AccountsReport,
    ConnectionAccount,
    LatencyAccount,
    LatencyBucket,
    UpstreamAccount,
    law_violations,
)
from gopher.observe.report import check_writable, to_json, to_table, write_report
from gopher.observe.terminal import status_line

HEALTHY = UpstreamAccount(
    name="machineB:3280",
    captured_bytes=5_000_000,
    delivered_bytes=4_000_000,
    shed_bytes=0,
    pending_bytes=1_000_000,
    shed={},
    connections=ConnectionAccount(captured=9, delivered=7, shed=0, pending=2),
    dials=9,
    response_bytes=123_456,
    latency=LatencyAccount(
        count=200,
        sum_s=0.75,
        buckets=(
            LatencyBucket(0.002, 0),
            LatencyBucket(0.004, 198),
            LatencyBucket(0.008, 1),
            LatencyBucket(None, 1),
        ),
    ),
)
REFUSING = UpstreamAccount(
    name="machineC:3280",
    captured_bytes=5_000_000,
    delivered_bytes=0,
    shed_bytes=5_000_000,
    pending_bytes=0,
    shed={"reset": 1_000, "refused": 4_999_000},
    connections=ConnectionAccount(
        captured=9, delivered=0, shed=9, pending=0, shed_by_reason={"reset": 1, "refused": 7, "max_connections": 1}
    ),
    dials=3,
    response_bytes=0,
)
REPORT = AccountsReport(
    version="0.1.0",
    source="lo",
    started_at="2026-01-02T03:04:05+00:00",
    duration_s=12.34,
    packets={"received": 54_321, "dropped_by_kernel": 0, "not_tcp": 0, "malformed": 3, "retransmitted_bytes": 1_460},
    connections={
        "seen": 12,
        "mirrored": 9,
        "joined": 1,
        "open": 2,
        "ignored": 3,
        "ignored_by_reason": {"sampled_out": 0, "no_data": 3},
    },
    bytes={"captured": 5_000_000, "responses": 0, "held": 0},
    gaps={"count": 1, "bytes": 2_920},
    upstreams=(HEALTHY, REFUSING),
)


def test_law_holds():
    assert law_violations(REPORT) == []


@pytest.mark.parametrize(
    ("account", "violation"),
    [
        (
            replace(HEALTHY, delivered_bytes=3_999_999),
            "bytes: 5000000 captured, but 3999999 delivered + 0 shed + 1000000 pending",
        ),
        (replace(REFUSING, shed={"refused": 4_999_000}), "bytes: 5000000 shed, but 4999000 by reason"),
        (replace(REFUSING, shed={"refused": 4_999_999, "magic": 1}), "bytes: 'magic' is no known reason"),
        (replace(HEALTHY, delivered_bytes=5_000_001, pending_bytes=-1), "bytes: a figure is negative"),
        (replace(REFUSING, shed={"refused": 5_000_001, "reset": -1}), "bytes: a figure is negative"),
        (
            replace(HEALTHY, connections=replace(HEALTHY.connections, pending=1)),
            "connections: 9 captured, but 7 delivered + 0 shed + 1 pending",
        ),
        (
            replace(REFUSING, connections=replace(REFUSING.connections, shed_by_reason={"reset": 8})),
            "connections: 9 shed, but 8 by reason",
        ),
        (
            replace(REFUSING, connections=replace(REFUSING.connections, shed_by_reason={"magic": 9})),
            "connections: 'magic' is no known reason",
        ),
    ],
)
def test_law_broken_by_one_upstream_names_it(account, violation):
    report = replace(REPORT, upstreams=(replace(HEALTHY, name="other"), account))
    assert law_violations(report) == [f"{account.name}: {violation}"]
    assert json.loads(to_json(report))["accounts_add_up"] is False
    assert f"THE ACCOUNTS DO NOT ADD UP:\n  {account.name}: {violation}" in to_table(report, 100)


def test_json_has_every_key_of_the_contract():
    written = json.loads(to_json(REPORT))
    assert written["accounts_add_up"] is True
    assert {key: written[key] for key in ("version", "source", "started_at", "duration_s")} == {
        "version": "0.1.0",
        "source": "lo",
        "started_at": "2026-01-02T03:04:05+00:00",
        "duration_s": 12.34,
    }
    for key in ("packets", "connections", "bytes", "gaps"):
        assert written[key] == getattr(REPORT, key)
    assert written["upstreams"][1] == {
        "name": "machineC:3280",
        "captured_bytes": 5_000_000,
        "delivered_bytes": 0,
        "shed_bytes": 5_000_000,
        "pending_bytes": 0,
        "shed": {"reset": 1_000, "refused": 4_999_000},
        "connections": {
            "captured": 9,
            "delivered": 0,
            "shed": 9,
            "pending": 0,
            "shed_by_reason": {"reset": 1, "refused": 7, "max_connections": 1},
        },
        "dials": 3,
        "response_bytes": 0,
        "failing": None,
        "answers_missed_bytes": 0,
        "latency": {"count": 0, "sum_s": 0.0, "buckets": []},
        "added_s": 0.0,
        "removed_s": None,
    }
    assert written["upstreams"][0]["latency"] == {
        "count": 200,
        "sum_s": 0.75,
        "buckets": [
            {"up_to_s": 0.002, "count": 0},
            {"up_to_s": 0.004, "count": 198},
            {"up_to_s": 0.008, "count": 1},
            {"up_to_s": None, "count": 1},
        ],
    }


@pytest.mark.parametrize(
    ("share", "quantile_s"), [(0.0, 0.002), (0.495, 0.003), (0.99, 0.004), (0.9925, 0.006), (1.0, 0.008)]
)
def test_quantile_is_interpolated_within_its_bucket(share, quantile_s):
    """Beyond the last bound only that bound is known."""
    assert HEALTHY.latency.quantile_s(share) == pytest.approx(quantile_s)


def test_quantile_of_nothing():
    assert REFUSING.latency.quantile_s(0.5) is None


def test_report_replaces_an_older_one_through_its_link(tmp_path):
    older = tmp_path / "older.json"
    older.write_text("old")
    link = tmp_path / "report.json"
    link.symlink_to(older)
    write_report(REPORT, str(link))
    assert link.is_symlink()
    assert older.read_text() == to_json(REPORT)
    assert sorted(tmp_path.iterdir()) == [older, link]


def test_report_into_a_pipe_leaves_it_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_report(REPORT, str(pipe))
        assert os.read(reader, 65536).decode() == to_json(REPORT)
        assert pipe.is_fifo()
    finally:
        os.close(reader)


def test_report_that_cannot_be_written_names_its_path(tmp_path):
    path = tmp_path / "missing" / "report.json"
    with pytest.raises(GopherError) as caught:
        write_report(REPORT, str(path))
    assert str(caught.value) == f"the report cannot be written to {path}: No such file or directory"
    assert caught.value.hint == "name another file with --report"


def test_unwritable_report_is_refused_at_the_start(tmp_path):
    for path, reason in (
        (tmp_path / "missing" / "report.json", f"there is no directory {tmp_path / 'missing'}"),
        (tmp_path, "it is a directory"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_writable(str(path))
        assert str(caught.value) == f"the report cannot be written to {path}: {reason}"


def test_check_at_the_start_writes_nothing(tmp_path):
    check_writable(str(tmp_path / "report.json"))
    check_writable("/dev/null")
    assert list(tmp_path.iterdir()) == []


def test_failure_in_the_middle_keeps_the_older_report(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(GopherError, match="No space left on device"):
        write_report(REPORT, str(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_of_the_same_number_has_left_is_no_obstacle(tmp_path):
    path, left = tmp_path / "report.json", tmp_path / f"report.json.{os.getpid()}.tmp"
    left.symlink_to(tmp_path / "elsewhere")
    write_report(REPORT, str(path))
    assert path.read_text() == to_json(REPORT)
    assert list(tmp_path.iterdir()) == [path]


TABLE = """\
gopher 0.1.0: lo, 12.3 s from 2026-01-02T03:04:05+00:00
packets      54,321 received, 0 dropped by kernel, 3 malformed, 1,460
             retransmitted bytes
connections  12 seen, 9 mirrored (1 joined in the middle), 3 ignored
             (3 no data), 2 open now
streams      5,000,000 bytes captured; gaps: 1 (2,920 bytes)

machineB:3280
                                   bytes  connections
  captured                     5,000,000            9
  delivered                    4,000,000            7
  shed                                 0            0
  pending                      1,000,000            2
  dials: 9; answers read: 123,456 bytes
  from the tap to the socket: p50 3.01 ms, p99 4 ms

machineC:3280
                                   bytes  connections
  captured                     5,000,000            9
  delivered                            0            0
  shed                         5,000,000            9
    refused                    4,999,000            7
      the upstream refused the connection, or is left alone for a
      moment after it did
    reset                          1,000            1
      the upstream reset the connection
    max_connections                    0            1
      more connections were open at once than allowed
  pending                              0            0
  dials: 3; answers read: 0 bytes

captured = delivered + shed + pending: it adds up"""


def test_table():
    assert to_table(REPORT, 70) == TABLE


@pytest.mark.parametrize("width", range(40, 80))
def test_table_is_no_wider_than_the_window(width):
    lines = to_table(REPORT, width).splitlines()
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if line.startswith("  captured"))
    assert row.split() == ["captured", "5,000,000", "9"]


def test_narrow_table_puts_a_long_reason_above_its_figures():
    lines = to_table(REPORT, 40).splitlines()
    assert lines[lines.index("    max_connections") + 1].split() == ["0", "1"]
    assert lines[-2:] == ["captured = delivered + shed + pending:", "  it adds up"]


def test_table_names_responses_and_held_bytes_when_there_are_any():
    report = replace(REPORT, bytes={"captured": 1, "responses": 2_000, "held": 3})
    assert "1 bytes captured, 2,000 bytes of responses, 3 bytes held; gaps" in to_table(report, 100)


def test_status_line_has_rates_since_the_previous_snapshot():
    later = replace(
        REPORT,
        duration_s=14.34,
        packets=REPORT.packets | {"received": 154_321, "dropped_by_kernel": 7},
        bytes=REPORT.bytes | {"captured": 56_000_000},
        upstreams=(
            replace(HEALTHY, delivered_bytes=54_000_000),
            replace(REFUSING, shed_bytes=56_000_000, pending_bytes=1_999_940),
        ),
    )
    assert status_line(REPORT, later) == (
        "14 s: 50,000 packets/s (7 dropped by the kernel), 25.5 MB/s captured, 2 open; "
        "machineB:3280 25.0 MB/s delivered, 1.0 MB pending, 0 B shed; "
        "machineC:3280 0 B/s delivered, 2.0 MB pending, 56.0 MB shed"
    )


def test_status_line_of_the_same_moment_has_zero_rates():
    assert status_line(REPORT, REPORT).startswith("12 s: 0 packets/s, 0 B/s captured, 2 open; ")


@pytest.mark.parametrize(
    ("pending", "shown"),
    [(999, "999 B"), (999_940, "999.9 kB"), (999_950, "1.0 MB"), (10**12, "1.0 TB"), (10**16, "10000.0 TB")],
)
def test_status_line_changes_the_unit_before_rounding_fills_it(pending, shown):
    report = replace(REPORT, upstreams=(replace(HEALTHY, pending_bytes=pending),))
    assert f"delivered, {shown} pending" in status_line(report, report)
