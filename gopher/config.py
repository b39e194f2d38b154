"""Settings as frozen values: what the command line (or a program) decides and the stages read.

No file access and no name resolution here: a `Config` only says what was asked for. Units are in the names. Every
limit is finite. One sub-config per stage, passed down explicitly; there are no globals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from gopher.errors import ConfigError

__all__ = [
    "MIB",
    "CaptureConfig",
    "MirrorConfig",
    "ReassemblyConfig",
    "SourceConfig",
    "UpstreamConfig",
]

MIB: Final = 1 << 20

Scheme = Literal["tcp", "dir"]
OverlapPolicy = Literal["linux", "first", "last", "bsd", "solaris", "old-linux"]


def _require(condition: bool, key: str, accepted: str) -> None:
    if not condition:
        raise ConfigError(f"{key} must be {accepted}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """Where one copy of the traffic goes."""

    name: str
    """As the user wrote it; the label in reports."""
    scheme: Scheme = "tcp"
    host: str = ""
    """Host name or address, without brackets. Empty for `dir`."""
    port: int = 0
    """1 to 65535. Zero for `dir`."""
    path: str = ""
    """Directory for `dir`; empty otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """What to capture, and from where."""

    ports: tuple[int, ...]
    """TCP ports of the production server, 1 to 65535, at least one."""
    interface: str = "any"
    """Network device; ignored when `read_path` is set."""
    read_path: str | None = None
    """A capture file to read instead of a device."""
    speed: float | None = 1.0
    """For files: 1.0 keeps the original timing, 2.0 is twice as fast, None is as fast as the upstreams take it."""
    filter: str = ""
    """One more BPF expression, and-ed with gopher's own."""
    responses: bool = False
    """Capture the server's direction too."""
    ring_bytes: int = 64 * MIB
    """Kernel ring. 64 MiB held half a second of 20,000 packets/s at 10 ms wake-ups without a loss; 2 MiB did not."""
    snaplen_bytes: int = 262_144
    """Loopback frames reach 65,549 bytes; BIG TCP goes beyond 64 KiB."""
    wakeup_ms: int = 10
    """How long the kernel may hold a block back: 5 ms at the median from packet to wake-up. 1 for low latency."""

    def __post_init__(self) -> None:
        _require(bool(self.ports), "port", "given at least once")
        for port in self.ports:
            _require(1 <= port <= 65535, f"port {port}", "between 1 and 65535")
        _require(self.speed is None or self.speed > 0, "speed", "a positive number or max")
        _require(self.wakeup_ms >= 1, "wakeup_ms", "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReassemblyConfig:
    """Bounds of the reassembler."""

    max_flows: int = 131_072
    """Flows remembered at once; past it the least recently used one goes, closed ones first."""
    flow_memory_bytes: int = 4 * MIB
    """Out-of-order bytes held for one direction of one flow; past it the hole is declared a gap."""
    total_memory_bytes: int = 64 * MIB
    """Out-of-order bytes held in all."""
    gap_timeout_s: float = 2.0
    """A hole this old is a gap: longer than one retransmission timeout (RFC 6298: at least 1 s) after the loss."""
    idle_timeout_s: float = 7200.0
    """A flow without packets for this long is closed: TCP's own keep-alive default."""
    overlap: OverlapPolicy = "linux"
    """Whose rules decide between two versions of the same bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorConfig:
    """Where the traffic goes, and what it may cost."""

    upstreams: tuple[UpstreamConfig, ...]
    linger_s: float = 10.0
    """How long an upstream may take to answer after the client has gone."""
    connect_timeout_s: float = 5.0
    connection_memory_bytes: int = MIB
    """Bytes queued for one upstream connection; past it the connection is shed as a whole."""
    upstream_memory_bytes: int = 64 * MIB
    total_memory_bytes: int = 256 * MIB
    max_connections: int = 10_000
    """Captured connections mirrored at once; one more is shed."""
    sample_ratio: float = 1.0
    """Share of client addresses that are mirrored, above 0 and up to 1."""

    def __post_init__(self) -> None:
        _require(bool(self.upstreams), "upstream", "given at least once")
        _require(0 < self.sample_ratio <= 1, "sample", "above 0% and at most 100%")
        _require(self.linger_s >= 0, "linger", "zero or more seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureConfig:
    """Everything `gopher --mode=capture` was asked to do."""

    source: SourceConfig
    mirror: MirrorConfig
    reassembly: ReassemblyConfig = field(default_factory=ReassemblyConfig)
    write_path: str | None = None
    """Keep what was captured in this pcap file."""
    report_path: str | None = None
    """Write the accounts here as JSON at exit."""
    duration_s: float | None = None
    """Stop taking in after this long."""
    drain_s: float = 5.0
    """After the end of intake: how long to go on delivering what is pending."""
    stats_interval_s: float | None = None
    """Print one status line to stderr this often."""
    verbosity: int = 0
    """-1 quiet, 0 normal, 1 and more verbose."""
