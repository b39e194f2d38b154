"""The status line and the live view of a running gopher: rates between two snapshots of the accounts. No I/O.

The live view is a list of lines, each a list of (text, style) pieces, made to fit a width and a height. A figure is
never cut or broken; only names are shortened. `gopher.observe.screen` puts it on a terminal.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, Literal

from gopher.observe.accounts import LatencyAccount, LatencyBucket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gopher.observe.accounts import AccountsReport, UpstreamAccount
    from gopher.observe.relaying import RelayReport

__all__ = [
    "Line",
    "capture_view",
    "rates",
    "relay_rates",
    "relay_status_line",
    "relay_view",
    "status_line",
]

Style = Literal["", "bold", "dim", "green", "yellow", "red"]
Line = list[tuple[str, Style]]

MINIMUM_COLUMNS: Final = 40
# From here on an upstream is one row of a table.
TABLE_COLUMNS: Final = 79
NAME_COLUMNS: Final = 40
_ROW: Final = (("state", 16), ("delivered", 12), ("pending", 10), ("shed", 10), ("p50", 8), ("p99", 8))


# -- capture -----------------------------------------------------------------------------------------------------------


def rates(previous: AccountsReport, current: AccountsReport) -> dict[str, Any]:
    """What the status line says, as numbers. Both are snapshots of the same run; what was shed is the total."""
    elapsed_s = _elapsed_s(previous, current)
    return {
        "duration_s": round(current.duration_s, 3),
        "packets_per_s": _per_s(previous.packets["received"], current.packets["received"], elapsed_s),
        "dropped_by_kernel": current.packets["dropped_by_kernel"] - previous.packets["dropped_by_kernel"],
        "captured_bytes_per_s": _per_s(previous.bytes["captured"], current.bytes["captured"], elapsed_s),
        "connections_open": current.connections["open"],
        "upstreams": [
            {
                "name": after.name,
                "delivered_bytes_per_s": _per_s(before.delivered_bytes, after.delivered_bytes, elapsed_s),
                "pending_bytes": after.pending_bytes,
                "shed_bytes": after.shed_bytes,
                "failing": after.failing,
            }
            for before, after in _still_there(previous, current)
        ],
    }


def _still_there(previous: AccountsReport, current: AccountsReport) -> list[tuple[UpstreamAccount, UpstreamAccount]]:
    """Accounts of each upstream, then and now. A reload adds some at the end; a removed one stays until it is idle.

    What was not there before is compared with itself.
    """
    pairs = zip_longest(previous.upstreams, current.upstreams)
    return [(before or after, after) for before, after in pairs if after.removed_s is None or after.pending_bytes]


def status_line(previous: AccountsReport, current: AccountsReport) -> str:
    """One line, without its end: rates since `previous`, and what is open, pending and shed as of `current`.

    Both are snapshots of the same run. Packets that the kernel dropped in between are named when there are any; what
    was shed is the total since the start. Bytes are in powers of 1000.
    """
    now = rates(previous, current)
    dropped = now["dropped_by_kernel"]
    parts = [
        f"{current.duration_s:.0f} s: {now['packets_per_s']:,.0f} packets/s"
        + (f" ({dropped:,} dropped by the kernel)" if dropped else "")
        + f", {_bytes(now['captured_bytes_per_s'])}/s captured, {now['connections_open']:,} open"
    ]
    parts += [
        f"{upstream['name']} {_bytes(upstream['delivered_bytes_per_s'])}/s delivered, "
        f"{_bytes(upstream['pending_bytes'])} pending, {_bytes(upstream['shed_bytes'])} shed"
        for upstream in now["upstreams"]
    ]
    return "; ".join(parts)


def capture_view(previous: AccountsReport, current: AccountsReport, width: int, height: int) -> list[Line]:
    """The live view of a capture: at most `height` lines of at most `width` columns (at least 40)."""
    width = max(width, MINIMUM_COLUMNS)
    now = rates(previous, current)
    elapsed_s = _elapsed_s(previous, current)
    connections = current.connections
    begun = _per_s(_count(previous.connections["seen"]), _count(connections["seen"]), elapsed_s)
    dropped = current.packets["dropped_by_kernel"]
    lines = [
        _title(f"gopher {current.version}", current.source, current.duration_s, width),
        *_items(
            "packets",
            [
                (f"{now['packets_per_s']:,.0f}/s", ""),
                (f"{dropped:,} dropped by the kernel", "red" if now["dropped_by_kernel"] else ""),
                (f"{current.gaps['count']:,} gaps", ""),
            ],
            width,
        ),
        *_items(
            "clients",
            [
                (f"{_bytes(now['captured_bytes_per_s'])}/s", ""),
                (f"{begun:,.0f} connections/s", ""),
                (f"{connections['open']:,} open", ""),
            ],
            width,
        ),
        [],
    ]
    blocks = [_upstream(before, after, elapsed_s, width) for before, after in _still_there(previous, current)]
    if width >= TABLE_COLUMNS:
        lines.append(_row("upstream", [name for name, _ in _ROW], "", width, "dim"))
    return _fitted(lines, blocks, height)


def _upstream(before: UpstreamAccount, after: UpstreamAccount, elapsed_s: float, width: int) -> list[Line]:
    shed_now = after.shed_bytes > before.shed_bytes
    state, style = _state(after, shed_now=shed_now)
    delivered = f"{_bytes(_per_s(before.delivered_bytes, after.delivered_bytes, elapsed_s))}/s"
    pending, shed = _bytes(after.pending_bytes), _bytes(after.shed_bytes)
    recent = _since(before.latency, after.latency)
    p50, p99 = _seconds(recent.quantile_s(0.5)), _seconds(recent.quantile_s(0.99))
    if width >= TABLE_COLUMNS:
        lines = [_row(after.name, [state, delivered, pending, shed, p50, p99], style, width, "")]
    else:
        lines = [
            [(_shortened(after.name, width - len(state) - 1), "bold"), (" ", ""), (state, style)],
            *_items("", [(f"{delivered} delivered", ""), (f"{pending} pending", ""), (f"{shed} shed", "")], width),
            *_items("", [(f"p50 {p50}", ""), (f"p99 {p99}", "")], width),
        ]
    reasons = sorted(after.shed.items(), key=lambda item: -item[1])
    if reasons:
        colour: Style = "yellow" if shed_now else "dim"
        lines += _items("  shed", [(f"{reason} {_bytes(length)}", colour) for reason, length in reasons], width)
    return lines


def _state(upstream: UpstreamAccount, *, shed_now: bool) -> tuple[str, Style]:
    if upstream.failing is not None:
        return upstream.failing, "red"
    return ("shedding", "yellow") if shed_now else ("ok", "green")


def _since(before: LatencyAccount, after: LatencyAccount) -> LatencyAccount:
    """The times that came after the first of two snapshots."""
    earlier = [bucket.count for bucket in before.buckets] or [0] * len(after.buckets)
    buckets = tuple(
        LatencyBucket(bucket.up_to_s, bucket.count - count)
        for bucket, count in zip(after.buckets, earlier, strict=True)
    )
    return LatencyAccount(count=after.count - before.count, sum_s=after.sum_s - before.sum_s, buckets=buckets)


# -- relay -------------------------------------------------------------------------------------------------------------


def relay_rates(previous: RelayReport, current: RelayReport) -> dict[str, Any]:
    """As `rates`, for a relay."""
    elapsed_s = _elapsed_s(previous, current)
    requests = None
    if previous.exchanges is not None and current.exchanges is not None:
        requests = _per_s(previous.exchanges["requests"], current.exchanges["requests"], elapsed_s)
    return {
        "duration_s": round(current.duration_s, 3),
        "connections_per_s": _per_s(previous.connections["accepted"], current.connections["accepted"], elapsed_s),
        "connections_open": current.connections["open"],
        "connections_failed": current.connections["failed"],
        "requests_per_s": requests,
        "from_downstream_bytes_per_s": _per_s(
            previous.bytes["from_downstream"], current.bytes["from_downstream"], elapsed_s
        ),
        "from_upstream_bytes_per_s": _per_s(previous.bytes["from_upstream"], current.bytes["from_upstream"], elapsed_s),
    }


def relay_status_line(previous: RelayReport, current: RelayReport) -> str:
    """As `status_line`, for a relay."""
    now = relay_rates(previous, current)
    requests = "" if now["requests_per_s"] is None else f"{now['requests_per_s']:,.0f} requests/s, "
    return (
        f"{current.duration_s:.0f} s: {now['connections_per_s']:,.0f} connections/s, {requests}"
        f"{_bytes(now['from_downstream_bytes_per_s'])}/s from downstream, "
        f"{_bytes(now['from_upstream_bytes_per_s'])}/s from upstream, {now['connections_open']:,} open, "
        f"{now['connections_failed']:,} failed"
    )


def relay_view(previous: RelayReport, current: RelayReport, width: int, height: int) -> list[Line]:
    """The live view of a relay: at most `height` lines of at most `width` columns (at least 40)."""
    width = max(width, MINIMUM_COLUMNS)
    now = relay_rates(previous, current)
    clients: list[tuple[str, Style]] = [
        (f"{now['connections_per_s']:,.0f} connections/s", ""),
        (f"{now['connections_open']:,} open", ""),
    ]
    if now["requests_per_s"] is not None:
        clients.append((f"{now['requests_per_s']:,.0f} requests/s", ""))
    lines = [
        _title(f"gopher {current.version}", current.listening, current.duration_s, width),
        *_items("clients", clients, width),
        *_items(
            "bytes",
            [
                (f"{_bytes(now['from_downstream_bytes_per_s'])}/s from downstream", ""),
                (f"{_bytes(now['from_upstream_bytes_per_s'])}/s from upstream", ""),
            ],
            width,
        ),
    ]
    new = current.connections["failed"] > previous.connections["failed"]
    failed = sorted(current.failed.items(), key=lambda item: -item[1])
    if failed:
        lines += _items("failed", [(f"{reason} {count:,}", "red" if new else "dim") for reason, count in failed], width)
    if current.answers:
        given = sorted(current.answers.items())
        lines += _items("answers", [(f"{status} {count:,} times", "yellow") for status, count in given], width)
    if current.coupling is not None:
        shown = ("aliases", "requests_rewritten", "requests_missed", "requests_waiting", "requests_timed_out")
        items: list[tuple[str, Style]] = [
            (f"{current.coupling[name]:,} {name.removeprefix('requests_').replace('_', ' ')}", "") for name in shown
        ]
        items += [(f"{count:,} diverged: {answer}", "red") for answer, count in current.coupling["divergences"].items()]
        lines += _items("coupling", items, width)
    lines.append([])
    lines += _items("to", [(_shortened(current.upstreams[0], width - 10), "bold")], width)
    elapsed_s = _elapsed_s(previous, current)
    blocks = [
        _copy(before or after, after, elapsed_s, width)
        for before, after in zip_longest(previous.copies, current.copies)
    ]
    return _fitted(lines, blocks, height)


def _copy(before: dict[str, Any], after: dict[str, Any], elapsed_s: float, width: int) -> list[Line]:
    state = after["failing"] or "ok"
    delivered = _per_s(before["delivered_bytes"], after["delivered_bytes"], elapsed_s)
    return [
        [
            ("copy      ", "dim"),
            (_shortened(after["name"], width - 11 - len(state)), "bold"),
            (" ", ""),
            (state, "red" if after["failing"] else "green"),
        ],
        *_items(
            "",
            [
                (f"{_bytes(delivered)}/s delivered", ""),
                (f"{_bytes(after['pending_bytes'])} pending", ""),
                (f"{_bytes(after['shed_bytes'])} shed", ""),
            ],
            width,
        ),
    ]


# -- figures and lines -------------------------------------------------------------------------------------------------


def _elapsed_s(previous: AccountsReport | RelayReport, current: AccountsReport | RelayReport) -> float:
    # Two snapshots of the same moment are equal, and all rates zero.
    return max(current.duration_s - previous.duration_s, 1e-9)


def _count(value: int | dict[str, int]) -> int:
    assert isinstance(value, int)
    return value


def _per_s(before: int, after: int, elapsed_s: float) -> float:
    return round((after - before) / elapsed_s, 3)


def _bytes(number: float) -> str:
    # A thousandth below the next unit, where rounding would say 1000.0.
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.95:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _seconds(value_s: float | None) -> str:
    if value_s is None:
        return "-"
    return f"{value_s * 1e3:.3g} ms" if value_s < 0.9995 else f"{value_s:.3g} s"


def _shortened(name: str, columns: int) -> str:
    if len(name) <= columns:
        return name
    kept = max(columns - 1, 2)
    return f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"


def _title(program: str, where: str, duration_s: float, width: int) -> Line:
    since = f"{duration_s:,.0f} s"
    name = _shortened(where, width - len(program) - len(since) - 4)
    return [(program, "bold"), (f"  {name}  {since}", "")]


def _row(name: str, figures: list[str], state: Style, width: int, style: Style) -> Line:
    columns = [columns for _, columns in _ROW]
    room = min(width - sum(columns) - 1, NAME_COLUMNS)
    line: Line = [(f"{_shortened(name, room):<{room}} ", style or "bold")]
    line.append((f"{figures[0]:<{columns[0]}}", style or state))
    line += [(f"{figure:>{room}}", style) for figure, room in zip(figures[1:], columns[1:], strict=True)]
    return line


def _items(label: str, items: Sequence[tuple[str, Style]], width: int) -> list[Line]:
    """Items with commas between them, never broken within one."""
    lines: list[Line] = [[(f"{label:<10}", "dim")]]
    used = 10
    for number, (text, style) in enumerate(items, 1):
        comma = "," if number < len(items) else ""
        space = " " if used > 10 else ""
        if space and used + len(space + text + comma) > width:
            lines.append([(" " * 10, "")])
            used, space = 10, ""
        lines[-1] += [(space, ""), (text, style), (comma, "")]
        used += len(space + text + comma)
    return lines


def _fitted(lines: list[Line], blocks: list[list[Line]], height: int) -> list[Line]:
    """As many blocks as there is room for, and how many there are beside these."""
    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        if len(lines) + len(block) + (not last) > height:
            left = len(blocks) - number
            lines = [*lines[: height - 1], [(f"… and {left} more: make the window higher", "dim")]]
            break
        lines = lines + block
    return lines[:height]
