"""Capture files: pcap and pcapng into batches, and batches into pcap."""

import os
from collections.abc import Iterator
from types import TracebackType

from typing_extensions import Self

from gopher._fastpath import Batch

class CaptureFile:
    """A capture file, read from its beginning to its end, a chunk at a time.

    Read are pcap (both byte orders; microseconds, nanoseconds, and Kuznetzov's modified records) and pcapng (both byte
    orders, several sections, several interfaces with link types and time resolutions of their own), as they are or
    compressed with gzip. Reading blocks: on a disk for about as long as a chunk of 1 MiB takes, on a pipe until the
    writer has written.

    Args:
        path: a regular file or a pipe.

    Raises:
        CaptureError: the file cannot be read or is not a capture. Reading on may raise it too, where the disk fails.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None: ...
    @property
    def truncated(self) -> bool:
        """The reading has come to an end in the middle of a packet, or at something that is no packet."""

    def next_batch(self, max_packets: int = 512) -> Batch | None:
        """Give the next packets, at least one and at most `max_packets`, or None at the end.

        All packets of a batch are of one link type. Its data is a chunk of the file, shared with the neighbouring
        batches and never changed; time stamps are cut to microseconds.
        """

    def batches(self, max_packets: int = 512) -> Iterator[Batch]:
        """Give everything that is left, in batches as of `next_batch`."""

    def close(self) -> None:
        """Close the file; no more batches come. May be called twice. Leaving a `with` block does it too."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

class CaptureWriter:
    """A pcap file (microseconds, this machine's byte order), replaced if it exists.

    Args:
        path: the file.
        linktype: of all packets, as `Batch.linktype` has it.

    Raises:
        CaptureError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], linktype: int) -> None: ...
    def write(self, batch: Batch) -> None:
        """Append all packets of a batch and hand them to the system.

        A batch does not say how long a packet was on the wire, so the file says it was as long as what was captured.

        Raises:
            CaptureError: the file cannot be written, or the batch is of another link type. What was written before
                remains readable.
        """

    def close(self) -> None:
        """Close the file. May be called twice."""
