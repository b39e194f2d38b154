"""Gopher mirrors live TCP traffic from a production server to other servers.

This is the library's face: packets or a capture file in, ordered bytes of TCP streams out, without sockets, clocks or
Trio (which importing this does not load). The mirror itself is the command `gopher`, in `gopher.cli`.
"""

from gopher._fastpath import (
    CLIENT_TO_SERVER,
    SERVER_TO_CLIENT,
    Batch,
    Event,
    Flow,
    FlowClosed,
    FlowOpened,
    Reassembler,
    ReassemblerStatistics,
    StreamData,
    StreamEnded,
    StreamGap,
    pack_batch,
)
from gopher.errors import (
    BodyError,
    CaptureError,
    CapturePermissionError,
    ConfigError,
    GopherError,
    LocalProtocolError,
    UpstreamError,
)
from gopher.relay.exchange import Connection, Exchange
from gopher.streams import Stream, read_streams

__all__ = [
    "CLIENT_TO_SERVER",
    "SERVER_TO_CLIENT",
    "Batch",
    "BodyError",
    "CaptureError",
    "CapturePermissionError",
    "ConfigError",
    "Connection",
    "Event",
    "Exchange",
    "Flow",
    "FlowClosed",
    "FlowOpened",
    "GopherError",
    "LocalProtocolError",
    "Reassembler",
    "ReassemblerStatistics",
    "Stream",
    "StreamData",
    "StreamEnded",
    "StreamGap",
    "UpstreamError",
    "__version__",
    "pack_batch",
    "read_streams",
]

__version__ = "0.1.0"
