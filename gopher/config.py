"""Settings as frozen values: what the command line (or a program) decides and the stages read.

No file access and no name resolution here: a `Config` only says what was asked for. Units are in the names. Every
limit is finite. One sub-config per stage, passed down explicitly; there are no globals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from gopher.errors import ConfigError

if TYPE_CHECKING:
    import ipaddress

__all__ = [
    "MAX_WORKERS",
    "MIB",
    "MINIMUM_MEMORY_BYTES",
    "CaptureConfig",
    "MirrorConfig",
    "ReassemblyConfig",
    "RelayConfig",
    "SourceConfig",
    "TlsConfig",
    "UpstreamConfig",
]

MIB: Final = 1 << 20

MINIMUM_MEMORY_BYTES: Final = 96 * MIB
"""Of `--max-memory`: what gopher needs to be there (see `gopher.capture.memory`), and something to work with."""

RING_BLOCK_BYTES: Final = 256 << 10
"""Of libpcap's ring."""
MAX_WORKERS: Final = 64

RING_S: Final = 0.75
"""How long gopher may be stopped without a loss: half a second, and what a busy machine adds to it."""

PIPELINED_REQUESTS: Final = 32
"""Of one connection that may wait for their answers. Each is lost if the upstream closes, and its head, at most 64 KiB,
is kept meanwhile: 2 MiB in all. A server that takes 1 ms for each is never idle even if it is 30 ms away."""

Scheme = Literal["tcp", "tls", "relay", "dir"]
Forwarded = Literal["x-forwarded-for", "forwarded", "both"]
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
    """1 to 65535, or 0: the captured port that the client went to. Zero for `dir`."""
    path: str = ""
    """Directory for `dir`; empty otherwise."""
    captured_port: bool = field(default=False, compare=False)
    """Whether the port is that of the capture, for none was given."""


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
    decap: bool = False
    """Look into VXLAN, GRE and IP-in-IP for the TCP packets."""
    ring_bytes: int | None = None
    """Kernel ring; None: room for `RING_S`, see `ring_room_bytes`."""
    snaplen_bytes: int = 262_144
    """Loopback frames reach 65,549 bytes; BIG TCP goes beyond 64 KiB."""
    wakeup_ms: int = 8
    """How long the kernel may hold a block back: half of it at the median from packet to wake-up. 1 for low latency."""

    def __post_init__(self) -> None:
        _require(bool(self.ports), "port", "given at least once")
        for port in self.ports:
            _require(1 <= port <= 65535, f"port {port}", "between 1 and 65535")
        _require(self.speed is None or self.speed > 0, "speed", "a positive number or max")
        _require(self.wakeup_ms >= 1, "wakeup_ms", "at least 1")

    @property
    def ring_room_bytes(self) -> int:
        """How large a ring to ask for.

        The kernel hands over a block when it is full or `wakeup_ms` old, whatever is in it: a ring is so many bytes
        and so many wake-ups, and the one that is used up first counts. A process that is stopped for `RING_S` finds
        no block missing; and 64 MiB are 45 MB/s for `RING_S` and more: 20,000 packets/s of any size on a network of
        1,500 bytes, or a saturated core's small requests.
        """
        return self.ring_bytes if self.ring_bytes is not None else max(64 * MIB, self.ring_time_bytes)

    @property
    def ring_time_bytes(self) -> int:
        """As many blocks as the kernel closes in `RING_S` when little comes."""
        return math.ceil(RING_S * 1000 / self.wakeup_ms) * RING_BLOCK_BYTES


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
    verify_checksums: bool = False
    """Drop segments whose TCP checksum is wrong. Not on the sending host, where the network card computes it later."""
    share: tuple[int, int] = (0, 1)
    """(index, count) of the share of flows to take; see `Reassembler`."""
    share_seed: int = 0


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
    max_bytes_per_s: int | None = None
    """For each upstream, on average over more than a second; past it connections are shed as a whole."""
    max_connections_per_s: int | None = None
    """For each upstream; those beyond are shed."""
    sample_ratio: float = 1.0
    """Share of client addresses that are mirrored, above 0 and up to 1."""

    cpu_limit: float | None = None
    """CPU time per time that gopher may use, 1.0 for one core; past it connections are shed as a whole."""
    lowered: frozenset[str] = frozenset()
    """Bounds that `max_memory_bytes` has lowered: what is over one of these is shed for `max_memory`."""

    def reason(self, bound: str) -> str:
        """What a connection over this bound is shed for."""
        return "max_memory" if bound in self.lowered else bound

    def __post_init__(self) -> None:
        _require(bool(self.upstreams), "upstream", "given at least once")
        _require(0 < self.sample_ratio <= 1, "sample", "above 0% and at most 100%")
        _require(self.linger_s >= 0, "linger", "zero or more seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureConfig:
    """Everything `gopher --mode=capture` was asked to do."""

    name: str = ""
    """Of the mirror, where a file has several."""
    source: SourceConfig
    mirror: MirrorConfig
    reassembly: ReassemblyConfig = field(default_factory=ReassemblyConfig)
    beside: tuple[UpstreamConfig, ...] = ()
    """Where other mirrors on this machine send, each with a port: that traffic is not mirrored."""
    workers: int | Literal["auto"] = 1
    """Processes that share the flows, 1 to `MAX_WORKERS`; auto: half the cores. With 1 there is no other process."""
    write_path: str | None = None
    """Keep what was captured in this pcap file."""
    report_path: str | None = None
    """Write the accounts here as JSON at exit."""
    metrics_address: tuple[str, int] | None = None
    """Address and port for Prometheus to scrape."""
    user: str | None = None
    """`NAME[:GROUP]` to become once everything that needs rights is open."""
    max_memory_bytes: int | None = None
    """All that the process may have resident; lowers the bounds above, see `gopher.capture.memory`."""
    duration_s: float | None = None
    """Stop taking in after this long."""
    drain_s: float = 5.0
    """After the end of intake: how long to go on delivering what is pending."""
    stats_interval_s: float | None = None
    """Print one status line to stderr this often."""
    live: bool = False
    """Show a live view on the terminal."""
    log_format: Literal["text", "json"] = "text"
    """Of what goes to stderr; json is one object a line."""
    verbosity: int = 0
    """-1 quiet; 0 normal; 1 and more: what names and options have come to, too."""

    def __post_init__(self) -> None:
        _require(self.workers == "auto" or 1 <= self.workers <= MAX_WORKERS, "workers", f"1 to {MAX_WORKERS}, or auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """How the upstream of a relay is spoken to over TLS, and whether it is the right one."""

    ca_path: str = ""
    """PEM file of certificates to trust; empty for the system's."""
    cert_path: str = ""
    """PEM file of a certificate that the relay shows, and those between it and a root; empty for none."""
    key_path: str = ""
    """PEM file of its private key; empty if it is in `cert_path`."""
    server_name: str = ""
    """What the certificate must be for, and the server name to ask for; empty: the upstream's host."""
    insecure: bool = False
    """Take any certificate."""

    def __post_init__(self) -> None:
        if self.key_path and not self.cert_path:
            raise ConfigError("--tls-key is of no use without --tls-cert", hint="give the certificate of this key too")
        if self.insecure and self.ca_path:
            raise ConfigError("--tls-insecure trusts any certificate, --tls-ca only some", hint="leave one of them out")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """Everything `gopher --mode=relay` was asked to do."""

    name: str = ""
    """Of the mirror, where a file has several."""
    ports: tuple[int, ...]
    """TCP ports to listen on, 1 to 65535, at least one."""
    upstreams: tuple[UpstreamConfig, ...]
    """The first one's answers go back; the others get copies."""
    listen_host: str = ""
    """Address to listen on; empty for every address of this machine, IPv4 and IPv6."""
    link_from: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    """Networks whose connections may begin with a PROXY protocol header; empty for all."""
    connect_timeout_s: float = 5.0
    """How long an upstream may take to accept a connection."""
    idle_timeout_s: float = 300.0
    """A connection on which nothing moves for this long is closed; nginx waits 60 s for an answer, HAProxy's examples
    50 s. Long polling takes longer than both."""
    max_connections: int = 16_384
    """Connections open at once; more wait in the kernel's queue."""
    proxy_protocol: Literal["v1", "v2"] | None = None
    """Tell the upstream who the client is, by a header of this version at the beginning of each connection."""
    tls: TlsConfig = field(default_factory=TlsConfig)
    """For a `tls` upstream."""
    forwarded: Forwarded | None = None
    """Append the client's address to these headers."""
    host: str = ""
    """Value of the Host header that goes to the upstream; empty to leave it."""
    marker: str = ""
    """A header line `NAME: VALUE` for each request; empty for none."""
    pipeline: bool = False
    """Where messages are read, pass requests on as they come, up to `PIPELINED_REQUESTS` of a connection; else each
    waits for the answer to the one before it. Off, for few clients pipeline, and an upstream that closes loses more."""
    couple: tuple[str, ...] = ()
    """Coupling rules, as `gopher.relay.rules.parse_rule` reads them."""
    couple_auto: bool = False
    """Couple every cookie that the shadow sets."""
    couple_files: tuple[str, ...] = ()
    """TOML files that some of the rules were read from; `couple` has them all."""
    couple_wait_s: float = 2.0
    """How long a request may wait for the shadow to hand out what production has handed out already."""
    couple_policy: Literal["send", "drop"] = "send"
    """What becomes of a request that waited in vain."""
    scripts: tuple[str, ...] = ()
    """Python files whose functions see each exchange, in this order."""
    script_timeout_s: float = 1.0
    """How long a function of a script may take; what it did too late has not happened. Most calls take microseconds, a
    question to a database milliseconds; the client waits meanwhile."""
    report_path: str | None = None
    """Write the accounts here as JSON at exit."""
    metrics_address: tuple[str, int] | None = None
    """Address and port for Prometheus to scrape."""
    user: str | None = None
    """`NAME[:GROUP]` to become once everything that needs rights is open."""
    duration_s: float | None = None
    """Stop accepting after this long."""
    drain_s: float = 5.0
    """After that: how long open connections may go on."""
    stats_interval_s: float | None = None
    """Print one status line to stderr this often."""
    live: bool = False
    """Show a live view on the terminal."""
    log_format: Literal["text", "json"] = "text"
    """Of what goes to stderr; json is one object a line."""
    verbosity: int = 0
    """-1 quiet; 0 normal; 1 and more: what names and options have come to, too."""

    def __post_init__(self) -> None:
        _require(bool(self.ports), "port", "given at least once")
        for port in self.ports:
            _require(1 <= port <= 65535, f"port {port}", "between 1 and 65535")
        _require(bool(self.upstreams), "upstream", "given at least once")
        first, *others = self.upstreams
        if first.scheme == "relay" and self.proxy_protocol == "v1":
            raise ConfigError(
                f"--proxy-protocol v1: {first.name} is told who the client is by version 2", hint="leave it out"
            )
        for other in others:
            if other.scheme == "tls":
                raise ConfigError(
                    f"-u/--upstream {other.name!r}: only the first upstream can be tls://",
                    hint="the copy can go through a relay of its own: gopher -r -p 3281 --listen 127.0.0.1 "
                    f"-u {other.name}, and here -u 127.0.0.1:3281",
                )
        if first.scheme != "tls" and self.tls != TlsConfig():
            raise ConfigError("--tls-... options are for a tls:// upstream", hint="like -u tls://shadow:443")

    @property
    def announced(self) -> Literal["v1", "v2"] | None:
        """The version of the PROXY protocol header that the first upstream gets; None for none."""
        return "v2" if self.upstreams[0].scheme == "relay" else self.proxy_protocol

    @property
    def reads_messages(self) -> bool:
        """Whether something was asked for that bytes alone do not show."""
        return bool(
            self.couple
            or self.couple_auto
            or self.scripts
            or self.forwarded
            or self.host
            or self.marker
            or len(self.upstreams) > 1
        )

    @property
    def max_in_flight(self) -> int:
        """How many requests of a connection may wait for their answers."""
        return PIPELINED_REQUESTS if self.pipeline else 1
