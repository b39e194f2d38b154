"""Large runs of bytes that are not copied on their way from the capture to a socket."""

from typing import final

@final
class ByteRun:
    """Contiguous bytes of a stream, in pieces that lie in batches of packets. As immutable as bytes."""

    @property
    def length(self) -> int: ...
    def __len__(self) -> int: ...
    def __bytes__(self) -> bytes: ...
    def join(self) -> bytes: ...  # the bytes in one piece; copied once, then kept
    def join_from(self, offset: int) -> bytes: ...  # those from `offset` on; not kept

@final
class Lease:
    """Buffers that stay as they are while this lives."""
