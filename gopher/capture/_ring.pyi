"""The kernel's packet ring, read where it is."""

from typing import Final, final

BLOCK_BYTES: Final[int]

@final
class Ring:
    """A TPACKET_V3 ring of one device, or of all. As a buffer it is its whole memory.

    Args:
        ifindex: of the device; 0 for all.
        cooked: packets come with a LINUX_SLL header in place of their own; else as on the wire, which must be Ethernet.
        blocks: of `BLOCK_BYTES` each.
        retire_ms: a block is handed over when it is full or this old.
        filter_of: descriptor of a socket whose filter is taken over.
        promiscuous: take what is addressed to others, too.
        ignore_outgoing: leave out what this machine sends.

    Raises:
        OSError: the system refuses.
    """

    def __init__(
        self,
        ifindex: int,
        *,
        cooked: bool,
        blocks: int,
        retire_ms: int,
        filter_of: int,
        promiscuous: bool,
        ignore_outgoing: bool,
    ) -> None: ...
    def fileno(self) -> int: ...  # readable when there is a block
    def next_blocks(self, packets: int, size_bytes: int) -> tuple[bytes, int]:
        """The packets of the next block, and of those after it that are there already, until they are so many.

        Args:
            packets: no block is added to so many packets,
            size_bytes: or to so many bytes.

        Returns:
            (index as of `Batch` with offsets in this ring, bytes of all packets); an empty index if there is none now.

        Raises:
            OSError: the device has gone down or away.
        """

    def release(self) -> None:
        """Give the blocks back to the kernel; later, if somebody holds a buffer on the ring."""

    def statistics(self) -> tuple[int, int]: ...  # since the last call: packets that came, and those dropped of them
    def close(self) -> None: ...

def wait_readable(first: int, second: int, seconds: float) -> int:
    """Block the thread until one of two descriptors is readable, or a time is over: a day at most. -1 is no descriptor.

    Returns:
        1 if the first one alone is readable, 0 if the time is over, -1 if the second one is or a signal came.
    """
