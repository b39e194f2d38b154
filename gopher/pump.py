"""The one Trio task that keeps many upstream sockets moving.

Trio waits on the pump's epoll descriptor, not on each socket: ready sockets are then served in batches
(`gopher._pump`), and only a connection that cannot go on by itself costs Python anything. After a batch the task rests
for a moment, so that on a busy mirror many answers are drained in one turn instead of one turn each; it does not rest
while a socket has refused bytes that still wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from gopher._pump import Pump

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopher._pump import Connection

__all__ = ["PumpTask"]

# Answers wait in their sockets' receive buffers meanwhile, which hold far more than a connection gets in this time.
REST_S = 0.005


class PumpTask:
    """Owns a `Pump` and the task that serves it.

    Args:
        decide: called with (connection, outcome) for each connection that `Pump.serve` reports; must close it or
            send it on.
    """

    def __init__(self, decide: Callable[[Connection, int], None]) -> None:
        self.pump = Pump()
        self._decide = decide
        self._served = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Serve until cancelled. Checkpoint: always."""
        while True:
            await trio.lowlevel.wait_readable(self.pump.epoll_fd)
            self.serve()
            self._served.unpark_all()
            if not self.pump.blocked:
                await trio.sleep(REST_S)

    def serve(self) -> None:
        """Serve whatever is ready now, each connection about once."""
        budget = self.pump.open
        while True:
            served, decisions = self.pump.serve()
            for connection, outcome in decisions:
                # Closing one connection may have closed another that was reported in the same batch.
                if not connection.closed:
                    self._decide(connection, outcome)
            budget -= served
            if served == 0 or budget <= 0:
                return

    async def wait_served(self, timeout_s: float) -> None:
        """Wait until the task has served a batch, at most `timeout_s`. Checkpoint: always."""
        with trio.move_on_after(timeout_s):
            await self._served.park()
