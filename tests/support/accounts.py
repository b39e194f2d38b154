"""The accounts' law, asserted on a report that gopher wrote at exit. Every end-to-end test goes through it."""

from __future__ import annotations

import operator
from typing import Any

from gopher.observe.accounts import SHED_REASONS


def assert_accounts(report: dict[str, Any]) -> None:
    """captured = delivered + shed + pending for the bytes and the connections of each upstream, and at exit nothing
    is pending; reasons sum up and are known; nothing is negative; all upstreams were offered the same, but for those
    that a reload added or removed.
    """
    _assert_not_negative(report)
    connections = report["connections"]
    assert connections["seen"] == connections["mirrored"] + connections["ignored"], connections
    assert connections["ignored"] == sum(connections["ignored_by_reason"].values()), connections
    assert connections["joined"] <= connections["mirrored"], connections
    assert report["upstreams"]
    assert report["accounts_add_up"] is True
    for upstream in report["upstreams"]:
        always = upstream["added_s"] == 0 and upstream["removed_s"] is None
        compare = operator.eq if always else operator.le
        assert compare(upstream["captured_bytes"], report["bytes"]["captured"]), upstream
        assert (
            upstream["captured_bytes"]
            == upstream["delivered_bytes"] + upstream["shed_bytes"] + upstream["pending_bytes"]
        ), upstream
        assert upstream["pending_bytes"] == 0, upstream
        assert upstream["shed_bytes"] == sum(upstream["shed"].values()), upstream
        ends = upstream["connections"]
        # The bytes of a connection that was never joined are shed, so they are in the accounts, and it is too.
        offered = connections["mirrored"] + connections["ignored_by_reason"]["not_joined"]
        assert compare(ends["captured"], offered), (ends, connections)
        assert ends["captured"] == ends["delivered"] + ends["shed"] + ends["pending"], upstream
        assert ends["pending"] == 0, upstream
        assert ends["shed"] == sum(ends["shed_by_reason"].values()), upstream
        assert set(upstream["shed"]) | set(ends["shed_by_reason"]) <= set(SHED_REASONS), upstream


def assert_relay_accounts(report: dict[str, Any]) -> None:
    """Of a relay that has ended: each connection and each request has ended in one way."""
    counts = report["connections"]
    assert counts["accepted"] == counts["finished"] + counts["failed"], report
    assert counts["open"] == 0, report
    assert counts["failed"] == sum(report["failed"].values()), report
    if exchanges := report["exchanges"]:
        assert exchanges["requests"] == sum(exchanges.values()) - exchanges["requests"], report


def _assert_not_negative(node: Any, path: str = "report") -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            _assert_not_negative(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _assert_not_negative(value, f"{path}[{index}]")
    elif isinstance(node, int | float):
        assert node >= 0, f"{path} is {node}"


def only_upstream(report: dict[str, Any]) -> dict[str, Any]:
    """The account of the upstream, where there is one."""
    [upstream] = report["upstreams"]
    assert isinstance(upstream, dict)
    return upstream


def assert_all_delivered(report: dict[str, Any], *names: str) -> None:
    """Nothing was shed for the named upstreams (all of them if none is named), and something was delivered."""
    for upstream in report["upstreams"]:
        if not names or upstream["name"] in names:
            assert upstream["shed_bytes"] == 0, upstream
            assert upstream["connections"]["shed"] == 0, upstream
            assert upstream["delivered_bytes"] > 0, upstream
