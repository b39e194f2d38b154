"""Puts the live view on a terminal, with `rich`. Imported only with `--live`: a service does not pay for it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopher.observe.log import Log
    from gopher.observe.terminal import Line

__all__ = ["Screen", "has_terminal", "show"]

REFRESH_S: Final = 0.5
# A rate over one refresh jumps about too much to be read.
RATE_REFRESHES: Final = 4

# What writing to it raises then.
_MAY_BE_GONE: Final = contextlib.suppress(OSError)


def has_terminal() -> bool:
    """Whether stderr is a terminal that can be drawn on."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class Screen:
    """The lower end of the terminal, drawn over and over; what is said meanwhile scrolls by above it.

    From `start` to `stop` the log goes through it. `stop` leaves nothing behind and may be called twice. A terminal
    that goes away is no error: nobody is there any more to see what is drawn, and gopher goes on.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._write = log.write
        self._console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._size = self._console.size

    def start(self) -> None:
        """Take the terminal."""
        with _MAY_BE_GONE:
            self._live.start()
        self._log.write = self._print

    def stop(self) -> None:
        """Give it back, with the cursor shown and what was drawn erased."""
        self._log.write = self._write
        with _MAY_BE_GONE:
            self._live.stop()

    def draw(self, view: Callable[[int, int], list[Line]]) -> None:
        """Show what `view` makes for a width and a height."""
        size = self._console.size
        if size != self._size:
            # The terminal has broken the old lines anew: how many there are is not known any more.
            self._size = size
            with _MAY_BE_GONE:
                self._live.update(Text(), refresh=True)
                self._console.control(Control.home(), Control.clear())
        # The last column stays free: some terminals wrap when it is filled. One line is for the cursor.
        lines = view(size.width - 1, size.height - 1)
        text = Text("\n").join(Text.assemble(*line, no_wrap=True, overflow="crop") for line in lines)
        text.no_wrap, text.overflow = True, "crop"
        with _MAY_BE_GONE:
            self._live.update(text, refresh=True)

    def _print(self, text: str) -> None:
        with _MAY_BE_GONE:
            self._console.print(text, soft_wrap=True)


ReportT = TypeVar("ReportT")


async def show(
    screen: Screen, snapshot: Callable[[], ReportT], view: Callable[[ReportT, ReportT, int, int], list[Line]]
) -> None:
    """Draw until cancelled: rates are over the last two seconds. Checkpoint: always.

    Args:
        screen: a started one; stopping it is the caller's.
        snapshot: the report as of now.
        view: what to draw of an earlier report and the latest one, by width and height.
    """
    reports = deque([snapshot()], maxlen=RATE_REFRESHES + 1)
    while True:
        screen.draw(lambda width, height: view(reports[0], reports[-1], width, height))
        await trio.sleep(REFRESH_S)
        reports.append(snapshot())
