"""Fuzz target: any file as a capture file.

What must hold: `CaptureError` or batches, nothing else; every packet lies within its batch's data; the file ends; how
many packets are asked for at a time changes nothing; what is written and read again is the same.
"""

from __future__ import annotations

import contextlib
import os
import struct

from gopher._fastpath import Batch
from gopher.capture.pcapfile import CaptureFile, CaptureWriter
from gopher.errors import CaptureError

RECORD_BYTES = 16
# What deflate can make of a byte, and a pcap record's smallest size: no file has more packets.
PACKETS_PER_BYTE = 1032 / RECORD_BYTES


def packets_of(batch: Batch) -> list[tuple]:
    """(link type, seconds, microseconds, bytes) of each packet."""
    found = []
    for seconds, microseconds, offset, captured in struct.iter_unpack("=IIII", batch.index):
        assert offset + captured <= len(batch.data)
        found.append((batch.linktype, seconds, microseconds, batch.data[offset : offset + captured]))
    return found


def read(path: str, max_packets: int) -> tuple[list[tuple], bool]:
    """All packets, and whether the file is cut short."""
    found = []
    limit = PACKETS_PER_BYTE * os.stat(path).st_size
    with CaptureFile(path) as capture:
        for batch in capture.batches(max_packets):
            packets = packets_of(batch)
            assert 1 <= len(packets) <= max_packets
            found += packets
            assert len(found) <= limit
        assert capture.next_batch() is None
        return found, capture.truncated


def run(data: bytes) -> None:
    """Raise AssertionError if reading this file breaks a promise."""
    with contextlib.closing(MemoryFile(data)) as file:
        try:
            found, truncated = read(file.path, 512)
        except CaptureError as exc:
            assert file.path in str(exc)  # noqa: PT017  # that it need not be raised is the point
            return
        assert read(file.path, 1 + len(data) % 5) == (found, truncated)
    with contextlib.closing(MemoryFile(b"")) as file:
        of_one_linktype = [packet for packet in found if packet[0] == found[0][0]]
        linktype = found[0][0] if found else 1
        with contextlib.closing(CaptureWriter(file.path, linktype)) as writer:
            for _, seconds, microseconds, packet in of_one_linktype:
                writer.write(Batch(packet, struct.pack("=IIII", seconds, microseconds, 0, len(packet)), linktype))
        again, truncated = read(file.path, 512)
        assert [packet[1:] for packet in again] == [packet[1:] for packet in of_one_linktype]
        assert not truncated


class MemoryFile:
    """A file that never sees a disk."""

    def __init__(self, contents: bytes) -> None:
        self._descriptor = os.memfd_create("capture")
        os.write(self._descriptor, contents)
        self.path = f"/proc/self/fd/{self._descriptor}"

    def close(self) -> None:
        os.close(self._descriptor)
