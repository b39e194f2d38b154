"""Keeps whoever watches informed while gopher runs: the live view on a terminal, else a line now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopher.observe.log import Log
    from gopher.observe.screen import Screen
    from gopher.observe.terminal import Line

__all__ = ["Status"]

INTERVAL_S: Final = 10.0
"""Of the lines that stand in for a live view."""

ReportT = TypeVar("ReportT")


class Status(Generic[ReportT]):
    """What `--live` and `--stats-interval` ask for.

    Args:
        log: where lines go.
        live: a live view is wanted. It needs a terminal for this mirror alone, and a log for people; else there are
            lines instead.
        interval_s: a line this often; None for none, or with `live` for `INTERVAL_S`.
        snapshot: the report as of now.
        view: the lines of the live view, of an earlier report and the latest one, by width and height.
        line: the text and the fields of the status line, of the report before and the latest one.
    """

    def __init__(
        self,
        log: Log,
        *,
        live: bool,
        interval_s: float | None,
        snapshot: Callable[[], ReportT],
        view: Callable[[ReportT, ReportT, int, int], list[Line]],
        line: Callable[[ReportT, ReportT], tuple[str, dict[str, Any]]],
    ) -> None:
        self._log = log
        self._live = live
        self._interval_s = INTERVAL_S if live and interval_s is None else interval_s
        self._snapshot = snapshot
        self._view = view
        self._line = line
        self._screen: Screen | None = None

    async def run(self) -> None:
        """Show until cancelled, or not at all. Checkpoint: always."""
        if self._live and self._log.format == "text" and not self._log.quiet and not self._log.name:
            # Only here: who does not ask for a live view need not have its library in memory.
            from gopher.observe.screen import Screen, has_terminal, show

            if has_terminal():
                self._screen = Screen(self._log)
                self._screen.start()
                try:
                    await show(self._screen, self._snapshot, self._view)
                finally:
                    self.stop()
        if self._interval_s is not None:
            await self._say_lines(self._interval_s)

    async def _say_lines(self, interval_s: float) -> None:
        previous = self._snapshot()
        while True:
            await trio.sleep(interval_s)
            current = self._snapshot()
            text, fields = self._line(previous, current)
            self._log.info("status", text, **fields)
            previous = current

    def stop(self) -> None:
        """Give the terminal back: what is said from now on stays. `run` is to be cancelled right after."""
        if self._screen is not None:
            self._screen.stop()
