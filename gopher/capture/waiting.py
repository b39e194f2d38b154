"""Waiting in Trio's place: packets come without a turn of Trio's loop.

A turn of that loop is some hundred lines of Python, and a few milliseconds after the last one neither they nor what
they touch are in a cache. Under load packets wake gopher up over a hundred times a second, and between most of these
times no other task has anything to do. So intake waits by itself: with one poll(2) for its packets and for Trio's own
epoll descriptor, until Trio's next deadline at most. As soon as there is something for anybody else, Trio has its turn.

This knows Trio from the inside (`trio._core`). Where Trio looks otherwise, all waiting is Trio's.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import trio

from gopher.capture._ring import wait_readable

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["TrioWait"]

# Tasks that were runnable when this began have run after so many checkpoints: those of that turn and of the next.
UNKNOWN_TURNS: Final = 2


class TrioWait:
    """Waits for what Trio's loop in this thread waits for, and for something more. To be used in a `with` block.

    Checkpoint: whenever another task has something to do, and only then.
    """

    def __init__(self) -> None:
        self._loop_fd = -1
        self._unknown_turns = UNKNOWN_TURNS
        self._runnable = _Runnable()
        try:
            from trio._core import _run

            runner = _run.GLOBAL_RUN_CONTEXT.runner
            if isinstance(runner.clock, _run.SystemClock) and not runner.is_guest:
                self._next_deadline = runner.deadlines.next_deadline
                self._loop_fd = runner.io_manager._epoll.fileno()
        except (AttributeError, ImportError):
            self._loop_fd = -1

    def __enter__(self) -> TrioWait:
        trio.lowlevel.add_instrument(self._runnable)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        trio.lowlevel.remove_instrument(self._runnable)

    async def wait_readable(self, descriptor: int) -> None:
        """As Trio's."""
        while not self._wait(descriptor, math.inf):
            if self._loop_fd < 0:
                await trio.lowlevel.wait_readable(descriptor)
                return
            await trio.lowlevel.checkpoint()

    async def wait_until(self, at_s: float) -> None:
        """As `trio.sleep_until`, by `time.monotonic`."""
        while not self._wait(-1, at_s):
            if self._loop_fd < 0:
                await trio.sleep(max(0.0, at_s - time.monotonic()))
                return
            await trio.lowlevel.checkpoint()

    def _wait(self, descriptor: int, at_s: float) -> bool:
        """Block the thread. Returns whether what is waited for has come; if not, it is Trio's turn."""
        if self._unknown_turns:
            self._unknown_turns -= 1
            return False
        if self._loop_fd < 0 or self._runnable.tasks:
            return False
        # Trio's clock is another one, at the same pace.
        trio_s = self._next_deadline() - trio.current_time()
        own_s = at_s - time.monotonic()
        if trio_s <= 0:
            return False
        ready = wait_readable(descriptor, self._loop_fd, max(0.0, min(trio_s, own_s)))
        return ready > 0 or (ready == 0 and own_s <= trio_s)


class _Runnable(trio.abc.Instrument):
    """Knows which tasks are about to run. The loop's own queue does not: a turn begins with emptying it."""

    def __init__(self) -> None:
        self.tasks: set[trio.lowlevel.Task] = set()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.tasks.discard(task)
