"""The accounts as JSON for programs and as a table for people.

A face over snapshots: it counts nothing, and judges them only by `law_violations`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
import textwrap
from typing import TYPE_CHECKING, Any, Final

from gopher.errors import ConfigError, GopherError
from gopher.observe.accounts import SHED_REASONS, law_violations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gopher.observe.accounts import AccountsReport, UpstreamAccount, WorkersAccount

__all__ = ["check_writable", "to_fields", "to_json", "to_table", "wrapped", "write_report", "write_text"]

# Of a row: its label, bytes and connections.
_COLUMNS: Final = (22, 18, 13)
_NARROW_COLUMNS: Final = (12, 16, 12)


def to_fields(report: AccountsReport) -> dict[str, Any]:
    """The fields of the report, and `accounts_add_up`: whether it obeys the accounts' law."""
    fields = dataclasses.asdict(report)
    fields["accounts_add_up"] = not law_violations(report)
    return fields


def to_json(report: AccountsReport) -> str:
    """`to_fields` as one JSON object."""
    return json.dumps(to_fields(report), indent=2) + "\n"


def check_writable(path: str) -> None:
    """Find out at the start what would otherwise be said after hours of capturing.

    Raises:
        ConfigError: the directory does not exist, or the file cannot be written.
    """
    directory = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(directory):
        reason = f"there is no directory {directory}"
    elif os.path.isdir(path):
        reason = "it is a directory"
    elif not os.access(path if os.path.exists(path) and not os.path.isfile(path) else directory, os.W_OK):
        reason = "not permitted"
    elif _protected(path, directory):
        reason = "it belongs to another user"
    else:
        return
    raise ConfigError(f"the report cannot be written to {path}: {reason}", hint="name another file with --report")


def _protected(path: str, directory: str) -> bool:
    """Whether the sticky bit of the directory (as of /tmp) keeps this process from replacing the file."""
    if os.geteuid() == 0 or not os.path.isfile(path) or not os.stat(directory).st_mode & stat.S_ISVTX:
        return False
    return os.geteuid() not in (os.stat(os.path.realpath(path)).st_uid, os.stat(directory).st_uid)


def write_report(report: AccountsReport, path: str) -> None:
    """Write `to_json` to a file; see `write_text`."""
    write_text(to_json(report), path)


def write_text(text: str, path: str) -> None:
    """Write a report to a file, which at any time holds all of one report or all of the one before.

    Raises:
        GopherError: the file cannot be written; what was there before still is.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            # A pipe or a device (/dev/stdout) is written to, not replaced by a file of its name.
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        else:
            _replace(os.path.realpath(path), text)
    except OSError as error:
        raise GopherError(
            f"the report cannot be written to {path}: {error.strerror}", hint="name another file with --report"
        ) from error


def _replace(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    # In a container every gopher may have the same number: one that was killed while it wrote has left this.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    # "x": in a directory that others may write to, a file of this name could be their link to one of ours.
    with open(temporary, "x", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def to_table(report: AccountsReport, width: int) -> str:
    """The report for a person, no wider than `width` columns (at least 40), without a newline at the end.

    Packets and connections take a line each, every upstream a block, with what each reason for shedding means. Only a
    word that is longer than that, like a name, goes over the edge.
    """
    title = f"gopher {report.version}: {report.source}, {report.duration_s:.1f} s from {report.started_at}"
    lines = wrapped(title, width, indent=2)
    lines += wrapped(f"packets      {_packets(report.packets)}", width, indent=13)
    lines += wrapped(f"connections  {_connections(report.connections)}", width, indent=13)
    lines += wrapped(f"streams      {_streams(report)}", width, indent=13)
    if report.workers is not None:
        lines += wrapped(f"workers      {_workers(report.workers)}", width, indent=13)
    for upstream in report.upstreams:
        lines += ["", *_upstream_block(upstream, width)]
    violations = law_violations(report)
    law = "THE ACCOUNTS DO NOT ADD UP:" if violations else "captured = delivered + shed + pending: it adds up"
    lines += ["", *wrapped(law, width, indent=2)]
    for violation in violations:
        lines += wrapped(f"  {violation}", width, indent=4)
    return "\n".join(lines)


def _counts(counts: Mapping[str, int | dict[str, int]]) -> str:
    # Only what happened: a person looks for the figures that are not zero.
    return ", ".join(
        f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items() if isinstance(value, int) and value
    )


def _packets(packets: dict[str, int]) -> str:
    always = {name: packets[name] for name in ("received", "dropped_by_kernel")}
    rest = _counts({name: count for name, count in packets.items() if name not in always})
    text = f"{always['received']:,} received, {always['dropped_by_kernel']:,} dropped by kernel"
    return f"{text}, {rest}" if rest else text


def _connections(connections: dict[str, int | dict[str, int]]) -> str:
    text = f"{connections['seen']:,} seen, {connections['mirrored']:,} mirrored"
    if connections["joined"]:
        text += f" ({connections['joined']:,} joined in the middle)"
    text += f", {connections['ignored']:,} ignored"
    reasons = connections["ignored_by_reason"]
    if isinstance(reasons, dict) and any(reasons.values()):
        text += f" ({_counts(reasons)})"
    return f"{text}, {connections['open']:,} open now"


def _streams(report: AccountsReport) -> str:
    text = f"{report.bytes['captured']:,} bytes captured"
    if report.bytes["responses"]:
        text += f", {report.bytes['responses']:,} bytes of responses"
    if report.bytes["held"]:
        text += f", {report.bytes['held']:,} bytes held"
    return f"{text}; gaps: {report.gaps['count']:,} ({report.gaps['bytes']:,} bytes)"


def _workers(workers: WorkersAccount) -> str:
    connections = " + ".join(f"{count:,}" for count in workers.connections)
    text = f"{workers.running:,} running, {connections} connections"
    if workers.died:
        text += f"; {workers.died:,} died, and {workers.packets_lost:,} packets came to them that are in no account"
    return text


def _upstream_block(upstream: UpstreamAccount, width: int) -> list[str]:
    ends = upstream.connections
    notes = [f"added after {upstream.added_s:.1f} s"] if upstream.added_s else []
    notes += [f"removed after {upstream.removed_s:.1f} s"] if upstream.removed_s is not None else []
    lines = wrapped(f"{upstream.name} ({', '.join(notes)})" if notes else upstream.name, width, indent=2)
    lines += _row("", "bytes", "connections", width)
    lines += _row("  captured", upstream.captured_bytes, ends.captured, width)
    lines += _row("  delivered", upstream.delivered_bytes, ends.delivered, width)
    lines += _row("  shed", upstream.shed_bytes, ends.shed, width)
    reasons = {*upstream.shed, *ends.shed_by_reason}
    for reason in sorted(reasons, key=lambda reason: (-upstream.shed.get(reason, 0), reason)):
        lines += _row(f"    {reason}", upstream.shed.get(reason, 0), ends.shed_by_reason.get(reason, 0), width)
        lines += wrapped(f"{'':6}{SHED_REASONS.get(reason, 'not a known reason')}", width, indent=6)
    lines += _row("  pending", upstream.pending_bytes, ends.pending, width)
    lines += wrapped(f"  dials: {upstream.dials:,}; answers read: {upstream.response_bytes:,} bytes", width, indent=4)
    median_s, tail_s = upstream.latency.quantile_s(0.5), upstream.latency.quantile_s(0.99)
    if median_s is not None and tail_s is not None:
        times = f"p50 {median_s * 1e3:.3g} ms, p99 {tail_s * 1e3:.3g} ms"
        lines += wrapped(f"  from the tap to the socket: {times}", width, indent=4)
    return lines


def _row(label: str, count_bytes: int | str, connections: int | str, width: int) -> list[str]:
    columns = _COLUMNS if width >= sum(_COLUMNS) else _NARROW_COLUMNS
    figures = [f"{each:,}" if isinstance(each, int) else each for each in (count_bytes, connections)]
    # A label without room has a line of its own.
    above, label = ([label], "") if len(label) >= columns[0] else ([], label)
    return [*above, f"{label:<{columns[0]}}{figures[0]:>{columns[1]}}{figures[1]:>{columns[2]}}"]


def wrapped(text: str, width: int, indent: int) -> list[str]:
    """Lines of at most `width` columns (at least 40), all but the first indented. Only a longer word goes over it."""
    return textwrap.wrap(text, max(width, 40), subsequent_indent=" " * indent, break_long_words=False)
