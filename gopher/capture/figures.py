"""A few numbers in memory that two processes share: what a worker has done stays known when it is killed."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SharedFigures"]


def _slot_bytes(most: int) -> int:
    return 8 + 8 * most  # how many, and these


class SharedFigures:
    """Up to `most` integers of 64 bits, written by one process and read by another one when that is dead.

    They are written to one of two slots, and then the number of the slot: a process that is killed while it writes
    leaves the ones before.

    Args:
        descriptor: of memory from `allocate`; it stays the caller's.
        most: how many numbers there is room for. Room that is not used takes no memory.
    """

    def __init__(self, descriptor: int, most: int) -> None:
        self._slot_bytes = _slot_bytes(most)
        self._memory = mmap.mmap(descriptor, 8 + 2 * self._slot_bytes)

    @staticmethod
    def allocate(most: int) -> int:
        """A descriptor of memory for so many numbers, without any; the caller's."""
        descriptor = os.memfd_create("gopher", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, 8 + 2 * _slot_bytes(most))
        return descriptor

    def write(self, numbers: Sequence[int]) -> None:
        """Replace all of them."""
        free = 1 - self._memory[0]
        struct.pack_into(f"={1 + len(numbers)}q", self._memory, 8 + free * self._slot_bytes, len(numbers), *numbers)
        self._memory[0] = free

    def read(self) -> tuple[int, ...]:
        """The numbers last written."""
        at = 8 + self._memory[0] * self._slot_bytes
        (count,) = struct.unpack_from("=q", self._memory, at)
        return struct.unpack_from(f"={count}q", self._memory, at + 8)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
