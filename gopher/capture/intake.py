"""Packets on their way in: waits for the source, and takes its batches through the reassembler to the mirror.

`gopher.capture.run` owns the task that this runs in. What happens for each wake-up happens here: after a few
milliseconds of quiet nothing of it is in a cache, so it pays to do little. To have it compiled does not.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import trio

from gopher.capture.source import TURN_BYTES, TURN_PACKETS, DeviceSource
from gopher.capture.waiting import TrioWait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gopher._fastpath import Batch
    from gopher.capture.mirror import Mirror
    from gopher.capture.source import PacketSource

__all__ = ["Intake", "Turn"]

# A turn of the scheduler costs as much as some ten requests, so it comes after several turns of packets.
TURNS_S: Final = 0.002
# A wake-up that brings less was the kernel's clock; one that brings more was a block that is full, and the next ones
# will be too. Then the source is looked at once in a wake-up period, as if blocks had no end.
BUSY_BYTES: Final = 1 << 16
INDEX_RECORD_BYTES: Final = 16


class Turn:
    """A lock: whose turn it is to make and handle events. `trio.Lock` costs as much as a small turn does.

    Checkpoint: only while somebody else has it.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._taken:
            await self._waiting.park()
        self._taken = True

    async def __aexit__(self, *_: object) -> None:
        self._taken = False
        if self._waiting:
            self._waiting.unpark()


class Intake:
    """What takes packets in.

    Args:
        source: where they come from; it stays the caller's.
        mirror: where they go.
        turn: whose turn it is to make and handle events.
        wakeup_s: the wake-up period of a device.
        turned: called when a turn of packets has been handled.
    """

    def __init__(
        self, source: PacketSource, mirror: Mirror, turn: Turn, wakeup_s: float, turned: Callable[[], None]
    ) -> None:
        self._source = source
        self._device = source if isinstance(source, DeviceSource) else None
        self._mirror = mirror
        self._pump_task = mirror.pump_task
        self._turn = turn
        self._wakeup_s = wakeup_s
        self._turned = turned
        self.write: Callable[[Batch], None] | None = None
        """Gets each batch that has been handled."""
        self.tick_at_s = math.inf
        """When `run` is to call its `tick`, by `time.monotonic`."""

    async def run(self, tick: Callable[[], Awaitable[None]]) -> None:
        """Take in until the source has ended. Checkpoint: when another task has something to do.

        Args:
            tick: what is to be done now and then. For a task that is awake anyway it is a tenth of a wake-up.
        """
        source, device = self._source, self._device
        taken, woken_at_s = 0, 0.0
        with TrioWait() as waiting:
            while not source.finished:
                if device is None:
                    await source.wait_readable()
                elif taken >= BUSY_BYTES:
                    await waiting.wait_until(woken_at_s + self._wakeup_s)
                else:
                    await waiting.wait_readable(device.fileno())
                woken_at_s = time.monotonic()
                # First, as what was sent last time is answered by now.
                self._pump_task.serve_in_passing()
                taken = await self.take()
                if woken_at_s >= self.tick_at_s:
                    await tick()

    async def take(self) -> int:
        """Handle what the source has now, up to a cancellation. Returns how many bytes of packets that were."""
        taken = 0
        while True:
            async with self._turn:
                some, more = await self._take_turns()
            taken += some
            if not more:
                return taken
            # Also lets the pump drain answers while there is no end of batches.
            await trio.lowlevel.checkpoint()

    async def _take_turns(self) -> tuple[int, bool]:
        """Handle turn after turn for `TURNS_S`. Returns how many bytes of packets, and if more may wait."""
        taken = 0
        until_s = time.monotonic() + TURNS_S
        while True:
            batches, size, full = self._batches()
            if batches:
                await self._mirror.handle(self._mirror.reassembler.feed(*batches))
                self._turned()
                if self.write is not None:
                    for batch in batches:
                        self.write(batch)
                taken += size
            # A block of which nothing was wanted has been given out, too.
            self._source.release()
            if not full or time.monotonic() >= until_s:
                return taken, full

    def _batches(self) -> tuple[list[Batch], int, bool]:
        """What the source has now, as far as one turn goes, its bytes, and whether there may be more."""
        batches: list[Batch] = []
        packets = size = 0
        while packets < TURN_PACKETS and size < TURN_BYTES:
            batch = self._source.next_batch()
            if not batch.index:
                return batches, size, False
            batches.append(batch)
            packets += len(batch.index) // INDEX_RECORD_BYTES
            size += batch.size_bytes
        return batches, size, True
