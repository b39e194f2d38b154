"""The accounts of a relay: its connections, their bytes, and what became of sessions.

Frozen snapshots and their faces; no I/O. One law holds at any time: `accepted = open + finished + failed`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final

from gopher.observe.report import wrapped

__all__ = ["FAILURES", "RelayReport", "relay_table", "relay_to_fields", "relay_to_json"]

FAILURES: Final[dict[str, str]] = {
    "refused": "the upstream refused the connection",
    "unreachable": "no route to the upstream",
    "connect_timeout": "the upstream did not accept the connection in time",
    "no_descriptors": "the process ran out of file descriptors",
    "handshake": "the TLS handshake with the upstream failed",
    "handshake_timeout": "the upstream accepted and did not complete the TLS handshake in time",
    "certificate_expired": "the upstream's certificate is not valid at this time",
    "certificate_name": "the upstream's certificate is for another name",
    "certificate_untrusted": "the upstream's certificate is not signed by anyone this relay trusts",
    "no_answer": "the upstream did not begin to answer within the idle time",
    "idle": "nothing moved within the idle time",
    "upstream_reset": "the upstream reset the connection",
    "upstream_closed": "the upstream closed the connection with an answer missing or cut",
    "client_reset": "the client reset the connection, or ended it in the middle of a request",
    "bad_request": "the client sent what could be read in two ways, or too much",
    "bad_response": "the upstream sent what could be read in two ways, or too much",
    "bad_link": "a PROXY protocol header or a record that the link does not allow",
    "gap": "a framed link ended, or had a gap, within a request",
    "drain": "still open when the drain time at exit was over",
}
"""Every reason a connection can fail for, with what it means to an operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayReport:
    """One snapshot of a relay."""

    version: str
    listening: str
    upstreams: tuple[str, ...]
    started_at: str
    """ISO 8601, UTC."""
    duration_s: float
    connections: dict[str, int]
    """accepted = open + finished + failed; links (of accepted: began with a PROXY header), framed (of links)."""
    failed: dict[str, int]
    """Failed connections by reason; see `FAILURES`. Of a framed link, which outlives its upstream connections, the
    first reason."""
    bytes: dict[str, int]
    """from_downstream, from_upstream."""
    answers: dict[str, int]
    """Given by the relay itself, by status."""
    exchanges: dict[str, int] | None
    """Where messages are read: requests, responses, dropped, unanswered; else None."""
    coupling: dict[str, Any] | None
    """The fields of `CouplingStatistics`, summed; None if nothing is coupled."""
    scripts: tuple[dict[str, Any], ...] = ()
    """Of each: name, calls, failures (raised), timed_out, dropped (exchanges)."""
    copies: tuple[dict[str, Any], ...] = ()
    """The accounts of the upstreams that get copies: fields of `UpstreamAccount`."""


def relay_to_fields(report: RelayReport) -> dict[str, Any]:
    """The fields of the report."""
    return dataclasses.asdict(report)


def relay_to_json(report: RelayReport) -> str:
    """`relay_to_fields` as one JSON object."""
    return json.dumps(relay_to_fields(report), indent=2) + "\n"


def relay_table(report: RelayReport, width: int) -> str:
    """The report for a person, wrapped at `width` columns (at least 40), without a newline at the end."""
    route = f"{report.listening} to {', '.join(report.upstreams)}"
    title = f"gopher {report.version}: {route}, {report.duration_s:.1f} s from {report.started_at}"
    lines = wrapped(title, width, 2)
    counts = report.connections
    text = f"connections  {counts['accepted']:,} accepted: {counts['finished']:,} finished, {counts['failed']:,} failed"
    text += f", {counts['open']:,} open"
    if counts["links"]:
        text += f"; {counts['links']:,} links ({counts['framed']:,} framed)"
    lines += wrapped(text, width, 13)
    for reason, count in sorted(report.failed.items(), key=lambda item: (-item[1], item[0])):
        lines += wrapped(f"    {reason} {count:,}: {FAILURES[reason]}", width, 6)
    moved = report.bytes
    lines += wrapped(
        f"bytes        {moved['from_downstream']:,} from downstream, {moved['from_upstream']:,} from upstream",
        width,
        13,
    )
    if report.exchanges is not None:
        lines += wrapped(f"exchanges    {_counts(report.exchanges)}", width, 13)
    if report.answers:
        given = ", ".join(f"{count:,} times {status}" for status, count in sorted(report.answers.items()))
        lines += wrapped(f"answers      given by the relay itself: {given}", width, 13)
    if report.coupling is not None:
        lines += wrapped(f"coupling     {_counts(report.coupling)}", width, 13)
        diverged = report.coupling["divergences"]
        if diverged:
            lines += wrapped(
                f"divergence   the shadow answered {_counts(diverged)} where production took it", width, 13
            )
    for script in report.scripts:
        lines += wrapped(f"script       {script['name']}: {_counts(script)}", width, 13)
    for copy in report.copies:
        lines += wrapped(
            f"copies       {copy['name']}: {copy['delivered_bytes']:,} bytes delivered, {copy['shed_bytes']:,} shed, "
            f"{copy['pending_bytes']:,} pending",
            width,
            13,
        )
    return "\n".join(lines)


def _counts(counts: dict[str, Any]) -> str:
    shown = (
        f"{value:,.3f} {name.replace('_', ' ')}" if isinstance(value, float) else f"{value:,} {name.replace('_', ' ')}"
        for name, value in counts.items()
        if isinstance(value, (int, float)) and value
    )
    return ", ".join(shown) or "none"
