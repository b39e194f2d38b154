"""A few numbers in memory that two processes share: what a worker has done stays known when it is killed."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SharedFigures"]


class SharedFigures:
    """`count` integers of 64 bits, written by one process and read by another one when that is dead.

    They are written to one of two slots, and then the number of the slot: a process that is killed while it writes
    leaves the ones before.

    Args:
        descriptor: of memory from `allocate`; it stays the caller's.
        count: how many numbers.
    """

    def __init__(self, descriptor: int, count: int) -> None:
        self._slot = struct.Struct(f"={count}q")
        self._memory = mmap.mmap(descriptor, 8 + 2 * self._slot.size)

    @staticmethod
    def allocate(count: int) -> int:
        """A descriptor of memory for `count` numbers, all zero; the caller's."""
        descriptor = os.memfd_create("gopher", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, 8 + 2 * 8 * count)
        return descriptor

    def write(self, numbers: Iterable[int]) -> None:
        """Replace all of them."""
        free = 1 - self._memory[0]
        self._slot.pack_into(self._memory, 8 + free * self._slot.size, *numbers)
        self._memory[0] = free

    def read(self) -> tuple[int, ...]:
        """The numbers last written."""
        return self._slot.unpack_from(self._memory, 8 + self._memory[0] * self._slot.size)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
