"""Packets in, ordered bytes out: link, IP and TCP headers, then reassembly by sequence number.

Sans-I/O: no socket, no clock, no thread. Time is what the packets say. Nothing read from a packet moves a pointer
without a bound check; malformed input is counted, never raised.
"""

from collections.abc import Collection, Iterable
from typing import Any, Final, NamedTuple, TypeAlias, final

from gopher._runs import ByteRun

CLIENT_TO_SERVER: Final[int]  # 0
SERVER_TO_CLIENT: Final[int]  # 1

class Batch(NamedTuple):
    """Packets as pcapy-ng's `next_batch` hands them over.

    data: the packets' bytes, any contiguous buffer (bytes, mmap).
    index: native-endian uint32 records (seconds, microseconds, offset into data, captured length), 16 bytes each.
    size_bytes: of the packets, about; 0 if nobody has counted.
    linktype: DLT_/LINKTYPE_ number of every packet in the batch (1 Ethernet, 113 Linux cooked, ...).
    """

    data: Any
    index: bytes  # type: ignore[assignment]  # hides tuple.index, which nobody needs of a batch
    linktype: int
    size_bytes: int = 0

def pack_batch(packets: Iterable[tuple[int, bytes]], linktype: int) -> Batch:
    """Make a batch from (time_ns, packet bytes) pairs."""

@final
class Flow:
    """One TCP connection, both directions. Compared and hashed by identity."""

    @property
    def id(self) -> int: ...  # ascending from 1 in the order of opening
    @property
    def client(self) -> tuple[str, int]: ...  # (address, port); IPv6 in hexadecimal groups, compressed
    @property
    def server(self) -> tuple[str, int]: ...
    @property
    def server_port(self) -> int: ...  # of `server`, without the price of its address
    @property
    def began_with_syn(self) -> bool: ...  # False: it was open before the capture began
    context: Any  # the caller's; None at first

@final
class FlowOpened:
    """Comes once, right before the first other event of its flow. A flow that never carries a byte, a FIN of a flow
    with bytes, or a gap has no events at all (a SYN flood makes no objects): it is only counted.
    """

    @property
    def flow(self) -> Flow: ...
    @property
    def time_ns(self) -> int: ...

@final
class StreamData:
    """The next bytes of one direction: contiguous with what came before (after a gap: offset jumps by its length).

    One event may stand for many packets of a batch. Events of one flow are in the order of capture, so the order of
    the two directions against each other is causal.
    """

    @property
    def flow(self) -> Flow: ...
    @property
    def direction(self) -> int: ...
    @property
    def offset(self) -> int: ...  # of the first byte; 0 = first payload byte (ISN + 1), or the first byte seen
    @property
    def data(self) -> bytes: ...
    @property
    def run(self) -> ByteRun | None: ...  # the same where it was captured: of large ones, which `data` would copy
    def content(self) -> bytes | ByteRun: ...  # the run if there is one, else the bytes
    @property
    def time_ns(self) -> int: ...  # of the newest packet in it
    @property
    def since_ns(self) -> int: ...  # of the oldest packet in it

@final
class StreamGap:
    """`length` bytes from `offset` on were on the wire and not in the capture."""

    @property
    def flow(self) -> Flow: ...
    @property
    def direction(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def time_ns(self) -> int: ...

@final
class StreamEnded:
    """FIN, in order: this direction is complete at `offset` bytes."""

    @property
    def flow(self) -> Flow: ...
    @property
    def direction(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def time_ns(self) -> int: ...

@final
class FlowClosed:
    """The last event of a flow.

    reason: "fin" (every captured direction ended), "rst", "replaced" (its ports were used anew), "idle", "evicted"
    (the flow table was full), "flushed" (end of input, or `flush()`).
    """

    @property
    def flow(self) -> Flow: ...
    @property
    def reason(self) -> str: ...
    @property
    def time_ns(self) -> int: ...

Event: TypeAlias = FlowOpened | StreamData | StreamGap | StreamEnded | FlowClosed

class ReassemblerStatistics(NamedTuple):
    """Counters since the start; all of them only grow, but those marked "now"."""

    packets: int  # fed
    packets_not_tcp: int  # well-formed, not TCP (or an IP fragment that is still being put together)
    packets_other_port: int  # TCP, but neither end is a configured port, or the direction is not wanted
    packets_malformed: int  # headers that contradict themselves or are cut
    packets_truncated: int  # payload cut by the snap length; the cut part becomes a gap
    flows_seen: int  # flows entered into the table
    flows_opened: int  # flows with a FlowOpened event
    flows_joined: int  # of flows_opened: began without SYN
    flows_empty: int  # flows forgotten or closed without ever having had an event
    flows_evicted: int
    flows_now: int  # in the table (now)
    data_bytes: tuple[int, int]  # delivered in StreamData, by direction
    gaps: int
    gap_bytes: int
    retransmitted_bytes: int  # received again and dropped
    overlaps_differing: int  # segments whose overlap had other bytes than what was held
    segments_out_of_window: int  # ignored: too far from where the stream is
    segments_out_of_order: int
    held_bytes: int  # out-of-order bytes waiting for a hole to fill (now)
    memory_bytes: int  # all that the fast path has allocated (now)
    allocations: int  # how often the fast path asked the system for memory
    segments_refused: int  # what a kernel drops: RST out of the window, signed segments where the SYN was not signed
    packets_bad_checksum: int  # dropped because of verify_checksums

@final
class Reassembler:
    """Feed batches, get events. Not thread-safe; one per thread.

    Args:
        ports: server ports to follow; None follows every TCP connection and calls the sender of the SYN the client,
            else whoever talks to the lower port.
        both_directions: False follows the client's direction only; a flow then closes at the client's FIN.
        max_flows: bound of the flow table; past it the least recently used flow goes, closed ones first.
        flow_memory_bytes: out-of-order bytes held per direction; past it the hole becomes a gap.
        total_memory_bytes: out-of-order bytes held in all.
        gap_timeout_s: age at which a hole becomes a gap, by packet time or by `expire`.
        idle_timeout_s: a flow without packets for this long is closed.
        overlap: whose rules decide between two versions of bytes that are still held: "linux" (default), "first",
            "last", "bsd", "solaris", "old-linux". Bytes already delivered are never revised.
        decap: look into VXLAN, GRE, ERSPAN and IP-in-IP for the innermost TCP packet. The tunnel's number is no part of
            a flow: tunnels that use the same addresses must not be fed to one reassembler.
        verify_checksums: drop TCP segments whose checksum is wrong. Not for captures made on a sending host: there the
            network card computes it after the capture. A segment cut by the snap length cannot be verified and passes.
        share: (index, count): take one share of the flows, chosen by a hash of both ends. The same packets fed to
            `count` reassemblers, one for each index, give each flow to exactly one of them; other packets go to index
            0. Packets of other shares are not counted, and do no more than let time pass.
        share_seed: of that hash, 64 bits; the same for all that share.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        ports: Collection[int] | None = None,
        *,
        both_directions: bool = True,
        max_flows: int = 131_072,
        flow_memory_bytes: int = 4_194_304,
        total_memory_bytes: int = 67_108_864,
        gap_timeout_s: float = 2.0,
        idle_timeout_s: float = 7200.0,
        overlap: str = "linux",
        decap: bool = False,
        verify_checksums: bool = False,
        share: tuple[int, int] = (0, 1),
        share_seed: int = 0,
    ) -> None: ...
    def feed(self, *batches: Batch) -> list[Event]:
        """Take in batches. They are borrowed for the call only. O(packets + bytes).

        What several batches bring of one stream comes in one event, as what one batch brings.
        """

    def expire(self, now_ns: int) -> list[Event]:
        """Apply the timeouts as of `now_ns` (capture clock); for links that went quiet. O(what is due)."""

    def flush(self) -> list[Event]:
        """End of input: whatever is held comes out, holes as gaps, and every open flow closes as "flushed"."""

    def ignore(self, flow: Flow) -> None:
        """No further events for this flow; it costs no out-of-order memory from now on."""

    @property
    def packets(self) -> int: ...  # one of the counters, without the price of all
    def statistics(self) -> ReassemblerStatistics: ...
