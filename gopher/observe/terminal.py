"""The status line of a running gopher: rates between two snapshots of the accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gopher.observe.accounts import AccountsReport

__all__ = ["status_line"]


def status_line(previous: AccountsReport, current: AccountsReport) -> str:
    """One line, without its end: rates since `previous`, and what is open, pending and shed as of `current`.

    Both are snapshots of the same run. Packets that the kernel dropped in between are named when there are any; what
    was shed is the total since the start. Bytes are in powers of 1000.
    """
    # Two snapshots of the same moment are equal, and all rates zero.
    elapsed_s = max(current.duration_s - previous.duration_s, 1e-9)
    packets = (current.packets["received"] - previous.packets["received"]) / elapsed_s
    captured = (current.bytes["captured"] - previous.bytes["captured"]) / elapsed_s
    dropped = current.packets["dropped_by_kernel"] - previous.packets["dropped_by_kernel"]
    parts = [
        f"{current.duration_s:.0f} s: {packets:,.0f} packets/s"
        + (f" ({dropped:,} dropped by the kernel)" if dropped else "")
        + f", {_bytes(captured)}/s captured, {current.connections['open']:,} open"
    ]
    for index, after in enumerate(current.upstreams):
        if after.removed_s is not None and not after.pending_bytes:
            continue
        # A reload adds upstreams at the end.
        before_bytes = previous.upstreams[index].delivered_bytes if index < len(previous.upstreams) else 0
        delivered = (after.delivered_bytes - before_bytes) / elapsed_s
        parts.append(
            f"{after.name} {_bytes(delivered)}/s delivered, {_bytes(after.pending_bytes)} pending, "
            f"{_bytes(after.shed_bytes)} shed"
        )
    return "; ".join(parts)


def _bytes(number: float) -> str:
    # A thousandth below the next unit, where rounding would say 1000.0.
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.95:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
