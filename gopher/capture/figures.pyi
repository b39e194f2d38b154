"""A few numbers in memory that two processes share: what a worker has done stays known when it is killed."""

from typing import final

from gopher.upstreams.upstream import Upstream

@final
class SharedFigures:
    """What a worker has done, written by it and read by its supervisor when it is dead.

    It is written to one of two slots, and then the number of the slot: a process that is killed while it writes leaves
    what was there before.

    Args:
        descriptor: of memory from `allocate` for as many upstreams; it stays the caller's.
        upstreams: how many there is room for. Room that is not used takes no memory.
    """

    def __init__(self, descriptor: int, upstreams: int) -> None: ...
    @staticmethod
    def allocate(upstreams: int) -> int: ...  # a descriptor of memory for so many upstreams, empty; the caller's
    def write(self, packets: int, upstreams: list[Upstream]) -> None:
        """Replace what was there.

        Args:
            packets: how many were handled.
            upstreams: whose accounts to take.
        """

    def read(self) -> tuple[int, ...]:
        """The packets, and the four numbers of `LastFigures` for each upstream; empty if nothing was written."""

    def close(self) -> None: ...  # gives the memory back; may be called twice
