"""A capture file in, whole TCP streams out: the library's simplest face.

Glue over `gopher.capture.pcapfile` and the reassembler, for programs that want to know what was said and not when.
No network and no clock. For packets as they come, or streams too large for memory, use `gopher.Reassembler`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gopher._fastpath import (
    CLIENT_TO_SERVER,
    SERVER_TO_CLIENT,
    FlowClosed,
    FlowOpened,
    Reassembler,
    StreamData,
    StreamGap,
)
from gopher.capture.pcapfile import CaptureFile

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Iterator

    from gopher._fastpath import Event, Flow

__all__ = ["Stream", "read_streams"]

# Nobody waits for a file, and what a hole or an idle connection costs is bounded by memory. So a hole stays open for as
# long as a sender may go on retransmitting (RFC 9293 section 3.8.3 asks for at least 100 s, Linux's tcp_retries2 makes
# it 924 s), and a silence, however long, ends nothing: clocks that jump are commoner in captures.
_GAP_TIMEOUT_S = 924.6
_IDLE_TIMEOUT_S = 1e9


@dataclass(frozen=True, slots=True)
class Stream:
    """What both ends of one TCP connection said."""

    client: tuple[str, int]
    """Address and port of who sent the SYN, else of who talks to the lower port."""
    server: tuple[str, int]
    request: bytes
    """Client to server, in order; what lies before and after a gap is joined."""
    response: bytes
    """Server to client, likewise."""
    gaps: int
    """How many pieces of either direction the capture misses."""
    complete: bool
    """It began with a SYN, ended by FIN or RST, and has no gap."""


@dataclass(slots=True)
class _OpenStream:
    pieces: tuple[list[bytes], list[bytes]] = field(default_factory=lambda: ([], []))
    gaps: int = 0


def read_streams(
    path: str | os.PathLike[str], ports: Collection[int] | None = None, *, decap: bool = True
) -> Iterator[Stream]:
    """The TCP streams of a capture file (pcap or pcapng), each when its connection closes.

    That order, and not the order in which the connections opened, keeps only those in memory that are open at the same
    time; connections that use the same four-tuple one after the other come out one after the other either way.
    Connections without payload are left out. A file that ends in the middle of a packet is read up to its last whole
    one.

    Args:
        path: the capture file; compressed with gzip or not.
        ports: server ports to follow; None follows every connection.
        decap: look into VXLAN, GRE, ERSPAN and IP-in-IP for the TCP packet inside. A capture file is read for what is
            in it, so this is on, unlike in `Reassembler`.

    Raises:
        CaptureError: the file cannot be read or is not a capture; raised by `next`, not by the call.
        ValueError: a port is out of range; likewise.
    """
    reassembler = Reassembler(ports, gap_timeout_s=_GAP_TIMEOUT_S, idle_timeout_s=_IDLE_TIMEOUT_S, decap=decap)
    open_streams: dict[Flow, _OpenStream] = {}
    with contextlib.closing(CaptureFile(path)) as capture:
        for batch in capture.batches():
            yield from _closed_streams(reassembler.feed(batch), open_streams)
    yield from _closed_streams(reassembler.flush(), open_streams)


def _closed_streams(events: Iterable[Event], open_streams: dict[Flow, _OpenStream]) -> Iterator[Stream]:
    """Sort one call's events into `open_streams`, and take out what they close."""
    for event in events:
        flow = event.flow
        if isinstance(event, StreamData):
            open_streams[flow].pieces[event.direction].append(event.data)
        elif isinstance(event, FlowOpened):
            open_streams[flow] = _OpenStream()
        elif isinstance(event, StreamGap):
            open_streams[flow].gaps += 1
        elif isinstance(event, FlowClosed):
            stream = open_streams.pop(flow)
            yield Stream(
                client=flow.client,
                server=flow.server,
                request=b"".join(stream.pieces[CLIENT_TO_SERVER]),
                response=b"".join(stream.pieces[SERVER_TO_CLIENT]),
                gaps=stream.gaps,
                complete=flow.began_with_syn and event.reason in ("fin", "rst") and stream.gaps == 0,
            )
