"""The one Trio task that keeps many sockets moving.

Trio waits on the pump's epoll descriptor, not on each socket: ready sockets are then served in batches
(`gopher._pump`, `gopher.relay._tunnel`), and only a connection that cannot go on by itself costs Python anything. After
a batch a mirror's task rests for a moment, so that many answers are drained in one turn instead of one turn each; it
does not rest while a socket has refused bytes that still wait. While intake wakes up regularly it serves the sockets in
passing, and the task rests on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import trio

from gopher._pump import Pump

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopher._pump import Connection

__all__ = ["REST_S", "PumpTask", "ServingTask", "SocketPump"]

# Answers wait in their sockets' receive buffers meanwhile, which hold far more than a connection gets in this time.
REST_S = 0.008


ServedT = TypeVar("ServedT")


class SocketPump(Protocol[ServedT]):
    """Sockets behind one epoll descriptor."""

    @property
    def epoll_fd(self) -> int:
        """Readable when `serve` has something to do."""

    @property
    def open(self) -> int:
        """How many it serves."""

    @property
    def blocked(self) -> int:
        """How many have refused bytes that still wait, and do not show it in the descriptor."""

    def serve(self) -> tuple[int, list[tuple[ServedT, int]]]:
        """Serve what is ready: how many were, and those that need a decision."""


class ServingTask(Generic[ServedT]):
    """Owns a pump and the task that serves it.

    Args:
        pump: what to serve.
        decide: called with the (connection, outcome) pairs that `serve` reports; must close each or send it on. Closing
            one may close another of them.
    """

    def __init__(self, pump: SocketPump[ServedT], decide: Callable[[list[tuple[ServedT, int]]], None]) -> None:
        self.pump = pump
        self._decide = decide
        self._served = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Serve until cancelled. Checkpoint: always."""
        while True:
            await trio.lowlevel.wait_readable(self.pump.epoll_fd)
            self.serve()

    def serve(self) -> None:
        """Serve whatever is ready now, each connection about once."""
        if self._served:
            self._served.unpark_all()
        budget = self.pump.open
        while True:
            served, decisions = self.pump.serve()
            if decisions:
                self._decide(decisions)
            budget -= served
            if served == 0 or budget <= 0:
                return

    async def wait_served(self, timeout_s: float) -> None:
        """Wait until the task has served a batch, at most `timeout_s`. Checkpoint: always."""
        with trio.move_on_after(timeout_s):
            await self._served.park()


class PumpTask(ServingTask["Connection"]):
    """The task of a mirror's upstream connections, and their `Pump`.

    Args:
        decide: as for `ServingTask`.
        rest_s: how long to rest after a batch.
    """

    pump: Pump

    def __init__(self, decide: Callable[[list[tuple[Connection, int]]], None], rest_s: float = REST_S) -> None:
        super().__init__(Pump(), decide)
        self._rest_s = rest_s
        self._resting: trio.CancelScope | None = None

    async def run(self) -> None:
        """See `ServingTask`."""
        while True:
            await trio.lowlevel.wait_readable(self.pump.epoll_fd)
            self.serve()
            if not self.pump.blocked:
                with trio.CancelScope(deadline=trio.current_time() + self._rest_s) as self._resting:
                    await trio.sleep_forever()
                self._resting = None

    def serve_in_passing(self) -> None:
        """For a task that is awake anyway, and will be soon again: if this one rests, serve in its place.

        Waking up costs as much as serving some ten connections.
        """
        if self._resting is None:
            return
        self.serve()
        now_s = trio.current_time()
        if self.pump.blocked:
            self._resting.deadline = now_s
        elif self._resting.deadline < now_s + 2 * self._rest_s:
            # So far ahead that it need not be moved each time.
            self._resting.deadline = now_s + 4 * self._rest_s
