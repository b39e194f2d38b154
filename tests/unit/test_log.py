"""What is said on stderr: lines for people, or one JSON object a line; and what quiet leaves of it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from gopher.observe.log import Log


def said(log: Log) -> list[str]:
    lines: list[str] = []
    log.write = lines.append
    log.info("ready", "capturing on lo")
    log.warning("truncated", "a.pcap ends early", file="a.pcap")
    log.failure("script", "it failed\nin two lines")
    log.error("no such device", "there are: lo", 2)
    return lines


def test_text_is_for_people() -> None:
    assert said(Log()) == [
        "gopher: capturing on lo",
        "gopher: warning: a.pcap ends early",
        "gopher: it failed\nin two lines",
        "gopher: error: no such device\n  hint: there are: lo",
    ]


def test_json_is_one_object_a_line() -> None:
    lines = said(Log("json"))
    assert not [line for line in lines if "\n" in line]
    objects = [json.loads(line) for line in lines]
    for each in objects:
        age = datetime.now(timezone.utc) - datetime.fromisoformat(each.pop("time"))
        assert timedelta() <= age < timedelta(minutes=1)
    assert objects == [
        {"level": "info", "event": "ready", "message": "capturing on lo"},
        {"level": "warning", "event": "truncated", "message": "a.pcap ends early", "file": "a.pcap"},
        {"level": "error", "event": "script", "message": "it failed\nin two lines"},
        {"level": "error", "event": "error", "message": "no such device", "hint": "there are: lo", "exit_status": 2},
    ]


@pytest.mark.parametrize("format", ["text", "json"])
def test_quiet_says_errors_only(format: str) -> None:
    lines = said(Log(format, quiet=True))  # type: ignore[arg-type]  # parametrized
    assert len(lines) == 2
    assert "it failed" in lines[0]
    assert "no such device" in lines[1]


def test_report_is_a_table_or_its_fields() -> None:
    for log, expected in ((Log(), "table of 77"), (Log("json"), {"packets": 3})):
        lines: list[str] = []
        log.write = lines.append
        log.report(lambda width: f"table of {width if width < 20 else 77}", {"packets": 3})
        [line] = lines
        assert (line if log.format == "text" else json.loads(line)["report"]) == expected
