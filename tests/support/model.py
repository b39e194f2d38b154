"""Reassembly of one direction, slow and obviously right: a dictionary from offset to byte.

It knows no packets, no sequence numbers and no time: a test says what arrived and when a hole is given up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gopher._fastpath import FlowClosed, FlowOpened, StreamData, StreamGap

if TYPE_CHECKING:
    from gopher._fastpath import Event


@dataclass(frozen=True)
class Delivered:
    """Bytes in order, from `offset` on."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Gap:
    """`length` bytes from `offset` on that never came."""

    offset: int
    length: int


@dataclass(frozen=True)
class Ended:
    """The stream is complete at `offset` bytes."""

    offset: int


Outcome = Delivered | Gap | Ended

# Where the new segment starts and ends against the old one, (start, end), when the new one's bytes win. As measured on
# the systems themselves by Novak and Sturges, "Target-Based TCP Stream Reassembly" (2007); "linux" as its receive queue
# has done it since 4.9: the segment that starts first is read first, and of two that start together the longer replaces
# the shorter.
NEW_WINS = {
    "first": set(),
    "last": {(start, end) for start in (-1, 0, 1) for end in (-1, 0, 1)},
    "linux": {(-1, -1), (-1, 0), (-1, 1), (0, 1)},
    "bsd": {(-1, -1), (-1, 0), (-1, 1)},
    "old-linux": {(-1, -1), (-1, 0), (-1, 1), (0, 0), (0, 1)},
    "solaris": {(-1, 0), (-1, 1), (0, 0), (0, 1), (1, 1)},
}


@dataclass
class StreamModel:
    """One direction. Bytes go out as soon as they are in order, and then are final.

    Attributes:
        policy: who wins where a segment overlaps bytes that are still held.
        end: offset of the FIN, once one came; nothing beyond it is part of the stream.
        out: what came out, in order.
    """

    policy: str = "linux"
    position: int = 0
    end: int | None = None
    held: dict[int, int] = field(default_factory=dict)
    segments: list[tuple[int, int]] = field(default_factory=list)
    out: list[Outcome] = field(default_factory=list)
    done: bool = False

    def segment(self, offset: int, data: bytes, *, fin: bool = False) -> None:
        """`data` arrived at `offset`, in one segment."""
        if fin and self.end is None:
            self.end = offset + len(data)
        if self.end is not None:
            data = data[: max(0, self.end - offset)]
        new = (offset, offset + len(data))
        for at, byte in enumerate(data, offset):
            if at >= self.position and self._new_wins(at, new):
                self.held[at] = byte
        self.segments.append(new)
        self._deliver()

    def give_up(self, up_to: int | None = None) -> None:
        """No hole below `up_to` will be filled any more; None: no hole at all."""
        while not self.done and (up_to is None or self.position < up_to):
            next_known = min([*self.held, *(at for at in (self.end, up_to) if at is not None)], default=self.position)
            if next_known == self.position:
                return
            self.out.append(Gap(self.position, next_known - self.position))
            self.position = next_known
            self._deliver()

    def _new_wins(self, at: int, new: tuple[int, int]) -> bool:
        old_segments = [old for old in self.segments if old[0] <= at < old[1]]
        return all((_sign(new[0] - old[0]), _sign(new[1] - old[1])) in NEW_WINS[self.policy] for old in old_segments)

    def _deliver(self) -> None:
        start = self.position
        run = bytearray()
        while self.position in self.held and self.position != self.end:
            run.append(self.held.pop(self.position))
            self.position += 1
        if run:
            self.out.append(Delivered(start, bytes(run)))
        if self.position == self.end and not self.done:
            self.out.append(Ended(self.position))
            self.held.clear()
            self.done = True


def outcome_of(events: Iterable[Event], direction: int) -> list[Outcome]:
    """What the reassembler said of one direction of the only flow in `events`, in the model's words.

    Neighbouring runs of bytes are made one, here and by `joined`: how many events they come in means nothing.
    """
    outcome: list[Outcome] = []
    for event in events:
        if isinstance(event, FlowOpened | FlowClosed) or event.direction != direction:
            continue
        if isinstance(event, StreamData):
            outcome.append(Delivered(event.offset, event.data))
        elif isinstance(event, StreamGap):
            outcome.append(Gap(event.offset, event.length))
        else:
            outcome.append(Ended(event.offset))
    return joined(outcome)


def joined(outcome: Iterable[Outcome]) -> list[Outcome]:
    """The same outcome with neighbouring runs of bytes made one."""
    merged: list[Outcome] = []
    for item in outcome:
        last = merged[-1] if merged else None
        if isinstance(item, Delivered) and isinstance(last, Delivered) and item.offset == last.offset + len(last.data):
            merged[-1] = Delivered(last.offset, last.data + item.data)
        else:
            merged.append(item)
    return merged


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
