"""Fuzz target: any packets, in any order, at any time, into a Reassembler.

The input is a small program, because random bytes hardly ever are a TCP segment, let alone two that belong together.
Four bytes of settings (overlap policy, options, link layer, initial sequence numbers), then operations, each a byte and
its operands; what is missing at the end reads as zero. Below 0x80 an operation is a TCP segment of one of four flows,
placed relative to the end of what its sender has sent; above, one of `Program.OTHERS`. No program is invalid.

Every payload byte says where in the stream it belongs: its low seven bits count up with the sequence number, its top
bit is the version, of which overlapping segments may have different ones. So misplaced bytes show without a model.

What must hold: see `Listener` and `play`. How the packets are cut into batches must change nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from operator import ge, itemgetter
from typing import TYPE_CHECKING

from gopher._fastpath import (
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
from tests.support import packets
from tests.support.packets import ACK, FIN, PSH, RST, SYN

if TYPE_CHECKING:
    from gopher._fastpath import Event

POLICIES = ("linux", "first", "last", "bsd", "solaris", "old-linux")
# Of little memory, so that short programs reach the limits.
BUDGETS = (
    {"max_flows": 100, "flow_memory_bytes": 100_000, "total_memory_bytes": 150_000},
    {"max_flows": 2, "flow_memory_bytes": 2_000, "total_memory_bytes": 3_000},
)
ENDS = (  # (client, server) of each flow; the last one leaves open who is who
    (("192.0.2.1", 40000), ("192.0.2.2", 80)),
    (("192.0.2.1", 40001), ("192.0.2.2", 80)),
    (("2001:db8::2", 40000), ("2001:db8::1", 80)),
    (("192.0.2.9", 80), ("192.0.2.8", 80)),
)
ISNS = (1000, 0, 1, 2**31 - 100, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 2, 2**32 - 100, 2**32 - 3000)
KINDS = (ACK, PSH | ACK, SYN, SYN | ACK, FIN | ACK, RST, RST | ACK, None)  # None: the flags are an operand
MS, S = 1_000_000, 1_000_000_000
STEPS_NS = (MS, 100 * MS, S, 3 * S, 20 * S, 31 * S, 8000 * S, 10**6 * S, -MS, -S, -9 * S, -11 * S, -8000 * S)
STREAM = bytes(range(128)) * 66
HIGH_BIT = bytes(byte | 0x80 for byte in range(256))
LOW_BITS = bytes(byte & 0x7F for byte in range(256))

FIXED_BYTES = 100_000  # a slab of flows, the index, and the smallest of everything
BYTES_PER_PACKET = 300  # of the largest batch: its records
FRAGMENT_BYTES = 5 << 20


def mpls(packet: bytes) -> bytes:
    return packets.ethernet(struct.pack("!II", 100 << 12, 200 << 12 | 1 << 8) + packet, ethertype=0x8847)


def ppp(packet: bytes) -> bytes:
    return b"\xff\x03" + ppp_protocol(packet) + packet


def pppoe(packet: bytes) -> bytes:
    header = struct.pack("!BBHH", 0x11, 0, 1, 2 + len(packet))
    return packets.ethernet(header + ppp_protocol(packet) + packet, ethertype=0x8864)


def ppp_protocol(packet: bytes) -> bytes:
    return b"\0\x21" if packet[0] >> 4 == 4 else b"\0\x57"


LINKS: tuple[tuple[int, Callable[[bytes], bytes]], ...] = (
    (packets.LINKTYPE_ETHERNET, packets.ethernet),
    (packets.LINKTYPE_RAW, packets.raw),
    (packets.LINKTYPE_ETHERNET, lambda packet: packets.ethernet(packet, minimum=60)),
    (packets.LINKTYPE_ETHERNET, lambda packet: packets.ethernet(packet, vlans=[7])),
    (packets.LINKTYPE_ETHERNET, lambda packet: packets.ethernet(packet, vlans=[7, 8])),
    (packets.LINKTYPE_ETHERNET, mpls),
    (packets.LINKTYPE_ETHERNET, pppoe),
    (packets.LINKTYPE_PPP, ppp),
    (packets.LINKTYPE_SLL, packets.linux_cooked),
    (packets.LINKTYPE_SLL2, packets.linux_cooked2),
    (packets.LINKTYPE_NULL, packets.bsd_null),
    (packets.LINKTYPE_NULL, lambda packet: packets.bsd_null(packet, byteorder=">")),
    (packets.LINKTYPE_LOOP, packets.openbsd_loop),
    (packets.DLT_RAW, packets.raw),
    (packets.LINKTYPE_IPV4, packets.raw),
    (packets.LINKTYPE_IPV6, packets.raw),
)


def in_ip(packet: bytes) -> bytes:
    return packets.ipv4(packet, protocol=packets.PROTO_IPIP if packet[0] >> 4 == 4 else packets.PROTO_IPV6)


def in_gre(packet: bytes) -> bytes:
    return packets.ipv4(struct.pack("!HH", 0, packets.ethertype_of(packet)) + packet, protocol=packets.PROTO_GRE)


def in_erspan(packet: bytes) -> bytes:
    header = struct.pack("!HHI8x", 0x1000, 0x88BE, 1)
    return packets.ipv4(header + packets.ethernet(packet), protocol=packets.PROTO_GRE)


def in_vxlan(packet: bytes) -> bytes:
    return packets.ipv4(
        packets.udp(50000, 4789, struct.pack("!B3xI", 0x08, 5 << 8) + packets.ethernet(packet)),
        protocol=packets.PROTO_UDP,
    )


TUNNELS = (in_ip, in_gre, in_erspan, in_vxlan)


@dataclass
class Feed:
    """Packets of one link type that are captured before anything else happens."""

    linktype: int
    packets: list[packets.Packet] = field(default_factory=list)


@dataclass
class Expire:
    now_ns: int


@dataclass
class Flush:
    pass


@dataclass
class Ignore:
    opened: int  # counts the flows that were opened so far, modulo their number


@dataclass
class FailAfter:
    acquisitions: int


class Program:
    """What the input says.

    Attributes:
        options: of the Reassembler.
        steps: what to do with it.
        is_placed: payload bytes, and no others, are where their content says.
        has_fragments: fragments may be held.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        policy, options, link, isns = self._byte(), self._byte(), self._byte(), self._byte()
        self.budget = BUDGETS[options >> 2 & 1]
        self.options = {
            "ports": None if options & 1 else [80],
            "both_directions": not options & 2,
            "decap": bool(options & 8),
            "verify_checksums": bool(options & 16),
            "overlap": POLICIES[policy % len(POLICIES)],
            **self.budget,
        }
        self.is_placed = True
        self.has_fragments = False
        self._linktype, self._wrap = LINKS[link % len(LINKS)]
        self._isns = [[ISNS[(isns & 15) % len(ISNS)], ISNS[(isns >> 4) % len(ISNS)]] for _ in ENDS]
        self._sent = [[0, 0] for _ in ENDS]
        self._newest = [[0, 0] for _ in ENDS]
        self._now_ns = packets.START_NS
        self._identification = 0
        self.steps: list[Feed | Expire | Flush | Ignore | FailAfter] = [Feed(self._linktype)]
        self._next_segment()
        while self._at < len(data):
            operation = self._byte()
            if operation < 0x80:
                self._segment(operation)
            else:
                number = operation % 32
                if number < len(self.OTHERS):
                    self.OTHERS[number](self)

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def _signed(self) -> int:
        return (self._byte() ^ 0x80) - 0x80

    def _word(self) -> int:
        return self._byte() << 8 | self._byte()

    def _bytes(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def _next_segment(self) -> None:
        """Forget what the operations before a segment said about it."""
        self._from_newest = False
        self._acked: int | None = None
        self._window = 0xFFFF
        self._tcp_options = b""
        self._network_options: dict = {}
        self._fragment = 0
        self._tunnel: Callable[[bytes], bytes] | None = None
        self._cut_bytes = 0
        self._patches: list[tuple[int, int]] = []

    def _segment(self, operation: int) -> None:
        """Bits of the operation: direction, flow (2), kind (3), version."""
        direction, flow, version = operation & 1, operation >> 1 & 3, operation >> 6
        flags = KINDS[operation >> 3 & 7]
        if flags is None:
            flags = self._byte()
        at = (self._newest if self._from_newest else self._sent)[flow][direction] + self._signed()
        length = self._byte()
        if length >= 224:
            length = (length - 223) * 256
        self._send(flow, direction, flags, at, length, version)

    def _send(self, flow: int, direction: int, flags: int, at: int, length: int = 0, version: int = 0) -> None:
        """A segment whose payload begins at stream offset `at`."""
        if flags & SYN and flags & RST:
            self.is_placed = False  # nonsense: does the SYN count?
        isn, peer_isn = self._isns[flow][direction], self._isns[flow][1 - direction]
        acked = self._sent[flow][1 - direction] if self._acked is None else self._acked
        shift = (isn + 1 + at + 16 * (2 * flow + direction)) % 128
        payload = STREAM[shift : shift + length]
        sender, receiver = ENDS[flow] if direction == 0 else ENDS[flow][::-1]
        segment = packets.tcp(
            sender[1],
            receiver[1],
            seq=isn + 1 + at - bool(flags & SYN),
            ack=peer_isn + 1 + acked,
            flags=flags,
            payload=payload.translate(HIGH_BIT) if version else payload,
            window=self._window,
            options=self._tcp_options,
        )
        self._newest[flow][direction] = at
        self._sent[flow][direction] = max(self._sent[flow][direction], at + length + bool(flags & FIN))
        for packet in self._packets(segment, sender[0], receiver[0]):
            frame = bytearray(self._wrap(self._tunnel(packet) if self._tunnel else packet))
            for position, value in self._patches:
                frame[position % len(frame)] ^= value
            self._captured(bytes(frame[: max(0, len(frame) - self._cut_bytes)]))
        self._next_segment()

    def _packets(self, segment: bytes, source: str, destination: str) -> Iterable[bytes]:
        is_ipv6 = ":" in source
        if self._fragment:
            self.has_fragments = True
            self._identification += 1
            fragments = (packets.ipv6_fragments if is_ipv6 else packets.ipv4_fragments)(
                segment, source, destination, identification=self._identification, size=8 * (self._fragment & 0x1F) + 8
            )
            return fragments[:: -1 if self._fragment & 0x80 else 1][: 3 if self._fragment & 0x40 else None]
        options = self._network_options
        if is_ipv6:
            known = {key: options[key] for key in ("extensions", "payload_length") if key in options}
            return [packets.ipv6(segment, source, destination, **known)]
        known = {key: options[key] for key in ("options", "total_length") if key in options}
        return [packets.ipv4(segment, source, destination, **known)]

    def _captured(self, frame: bytes) -> None:
        step = self.steps[-1]
        if not isinstance(step, Feed) or step.linktype != self._linktype:
            step = Feed(self._linktype)
            self.steps.append(step)
        step.packets.append((self._now_ns, frame))
        self._now_ns += 1000

    def _handshake(self) -> None:
        flow = self._byte() & 3
        for direction, flags in (0, SYN), (1, SYN | ACK), (0, ACK):
            self._send(flow, direction, flags, 0)

    def _set_isn(self) -> None:
        """The next connection of a flow's ports begins elsewhere."""
        which = self._byte()
        flow, direction = which & 3, which >> 2 & 1
        self._isns[flow][direction] = ISNS[(which >> 3) % len(ISNS)] + 70_000 * self._byte()
        self._sent[flow][direction] = self._newest[flow][direction] = 0

    def _set_acked(self) -> None:
        flow = self._byte()
        self._acked = self._sent[flow & 3][flow >> 2 & 1] + self._signed()

    def _set_window(self) -> None:
        self._window = self._word()

    def _set_tcp_options(self) -> None:
        self._tcp_options = self._bytes(self._byte() % 41)

    def _set_network_options(self) -> None:
        which = self._byte()
        if which & 7 == 0:
            self.is_placed = False  # padding may be taken for payload
            self._network_options["total_length"] = self._network_options["payload_length"] = self._word()
            return
        contents = self._bytes((which >> 3) + 1)
        self._network_options["options"] = contents[:40]
        extension = (
            (packets.PROTO_HOP_BY_HOP, packets.ipv6_options(contents)),
            (packets.PROTO_DESTINATION, packets.ipv6_options(contents)),
            (packets.PROTO_ROUTING, packets.ipv6_options(contents)),
            (packets.PROTO_AH, packets.ipv6_authentication()),
            (packets.PROTO_FRAGMENT, bytes(7)),
            # Jumbo payload (RFC 2675): goes with a length of 0.
            (packets.PROTO_HOP_BY_HOP, packets.ipv6_options(b"\xc2\x04" + contents[:4].ljust(4, b"\0"))),
        )[which % 6]
        self._network_options.setdefault("extensions", []).append(extension)

    def _set_fragment(self) -> None:
        self._fragment = self._byte()

    def _set_tunnel(self) -> None:
        self._tunnel = TUNNELS[self._byte() % len(TUNNELS)]

    def _set_cut(self) -> None:
        self._cut_bytes = self._byte()

    def _add_patch(self) -> None:
        self.is_placed = False
        self.has_fragments = True
        self._patches.append((self._word(), self._byte()))

    def _add_raw(self) -> None:
        self.is_placed = False
        self.has_fragments = True
        self._captured(self._bytes(self._byte()))

    def _set_link(self) -> None:
        self._linktype, self._wrap = LINKS[self._byte() % len(LINKS)]

    def _step_time(self) -> None:
        self._now_ns += STEPS_NS[self._byte() % len(STEPS_NS)]

    def _feed(self) -> None:
        self.steps.append(Feed(self._linktype))

    def _expire(self) -> None:
        self.steps.append(Expire(self._now_ns + STEPS_NS[self._byte() % len(STEPS_NS)]))

    def _flush(self) -> None:
        self.steps.append(Flush())

    def _ignore(self) -> None:
        self.steps.append(Ignore(self._byte()))

    def _fail_after(self) -> None:
        self.steps.append(FailAfter(self._byte()))

    def _place_from_newest(self) -> None:
        """The next segment is placed relative to the beginning of its sender's newest one."""
        self._from_newest = True

    # The place in the tuple is the operation's number: new ones go to the end, or the corpus would change its meaning.
    OTHERS = (
        _handshake, _set_isn, _set_acked, _set_window, _set_tcp_options, _set_network_options, _set_fragment,
        _set_tunnel, _set_cut, _add_patch, _add_raw, _set_link, _step_time, _feed, _expire, _flush, _ignore,
        _fail_after, _place_from_newest,
    )  # fmt: skip


@dataclass
class Heard:
    """What was said of one flow."""

    offsets: list[int] = field(default_factory=lambda: [0, 0])
    ended: list[bool] = field(default_factory=lambda: [False, False])
    shifts: list[int | None] = field(default_factory=lambda: [None, None])
    closed: bool = False
    ignored: bool = False
    story: list[tuple] = field(default_factory=list)


class Listener:
    """Takes events and insists that they make sense."""

    def __init__(self, *, is_placed: bool) -> None:
        self.flows: dict[Flow, Heard] = {}
        self.data_bytes = [0, 0]
        self.gap_lengths: list[int] = []
        self._is_placed = is_placed

    def take(self, events: list[Event]) -> None:
        for event in events:
            flow = event.flow
            if isinstance(event, FlowOpened):
                assert flow not in self.flows, "opened twice"
                assert flow.id == len(self.flows) + 1
                self.flows[flow] = Heard(story=[(flow.client, flow.server, flow.began_with_syn)])
                continue
            heard = self.flows[flow]
            assert not heard.closed, "an event after the last one"
            assert not heard.ignored, "an event of an ignored flow"
            if isinstance(event, FlowClosed):
                heard.closed = True
                heard.story.append((event.reason,))
                continue
            direction = event.direction
            assert not heard.ended[direction], "more after the end"
            assert event.offset == heard.offsets[direction], "not contiguous"
            if isinstance(event, StreamEnded):
                heard.ended[direction] = True
                heard.story.append((direction, "ended"))
            elif isinstance(event, StreamGap):
                assert event.length > 0
                heard.offsets[direction] += event.length
                self.gap_lengths.append(event.length)
                heard.story.append((direction, event.length))
            else:
                self._take_data(heard, event)

    def _take_data(self, heard: Heard, event: StreamData) -> None:
        direction, data = event.direction, event.data
        assert data
        if self._is_placed:
            shift = (data[0] - event.offset) % 128
            expected = heard.shifts[direction]
            assert expected is None or shift == expected, "bytes at the wrong offset"
            heard.shifts[direction] = shift
            begin = data[0] % 128
            cycle = STREAM[begin : begin + 128] * (len(data) // 128 + 1)
            assert data.translate(LOW_BITS) == cycle[: len(data)], "bytes in the wrong order"
        heard.offsets[direction] += len(data)
        self.data_bytes[direction] += len(data)
        last = heard.story[-1]
        if last[0] == direction and isinstance(last[1], bytes):
            heard.story[-1] = (direction, last[1] + data)
        else:
            heard.story.append((direction, data))


counters = itemgetter(
    *(
        at
        for at, name in enumerate(ReassemblerStatistics._fields)
        if name not in ("flows_now", "held_bytes", "memory_bytes")
    )
)


def check(statistics: ReassemblerStatistics, before: ReassemblerStatistics | None, program: Program, most: int) -> None:
    """The bounds, and that counters only grow. `most`: packets of the largest batch so far."""
    budget = program.budget
    assert statistics.flows_now <= budget["max_flows"]
    assert statistics.held_bytes <= budget["total_memory_bytes"]
    bound = FIXED_BYTES + BYTES_PER_PACKET * most + 3 * budget["total_memory_bytes"]
    assert statistics.memory_bytes <= bound + FRAGMENT_BYTES * program.has_fragments
    if before is not None:
        assert all(map(ge, counters(statistics), counters(before))), f"{before} became {statistics}"


def play(program: Program, *, batch_packets: int) -> tuple[Listener, ReassemblerStatistics]:
    """Do what the program says, packets in batches of at most `batch_packets`; flush at the end."""
    reassembler = Reassembler(**program.options)
    listener = Listener(is_placed=program.is_placed)
    statistics = None
    fed = most = 0
    flushed = failing = failed = False

    def listen(call: Callable[[], list[Event]]) -> bool:
        nonlocal failed
        try:
            events = call()
        except MemoryError:
            assert failing
            failed = True
            return False
        listener.take(events)
        return True

    for step in [*program.steps, FailAfter(-1), Flush()]:
        if isinstance(step, Feed):
            for at in range(0, len(step.packets), batch_packets):
                batch = pack_batch(step.packets[at : at + batch_packets], step.linktype)
                listen(partial(reassembler.feed, batch))
            fed += len(step.packets)
            most = max(most, min(batch_packets, len(step.packets)))
        elif isinstance(step, Expire):
            listen(partial(reassembler.expire, step.now_ns))
        elif isinstance(step, Flush):
            flushed = listen(reassembler.flush)
        elif isinstance(step, Ignore):
            if listener.flows:
                flow = list(listener.flows)[step.opened % len(listener.flows)]
                reassembler.ignore(flow)
                listener.flows[flow].ignored = not listener.flows[flow].closed
        else:
            failing = failing or step.acquisitions >= 0
            reassembler._probe_fail_after(step.acquisitions)
        before, statistics = statistics, reassembler.statistics()
        check(statistics, before, program, most)
        if isinstance(step, Flush) and flushed:
            assert (statistics.flows_now, statistics.held_bytes, statistics.memory_bytes) == (0, 0, 0)
    assert statistics.packets == fed or failed
    assert statistics.flows_seen == statistics.flows_opened + statistics.flows_empty
    if not failed:
        assert all(heard.closed or heard.ignored for heard in listener.flows.values())
        assert statistics.flows_opened == len(listener.flows)
        assert statistics.data_bytes == tuple(listener.data_bytes)
        assert (statistics.gaps, statistics.gap_bytes) == (len(listener.gap_lengths), sum(listener.gap_lengths))
    return listener, statistics


def run(data: bytes) -> None:
    """Raise AssertionError if the reassembler breaks a promise on these packets."""
    program = Program(data)
    listener, statistics = play(program, batch_packets=10_000)
    if any(isinstance(step, FailAfter) for step in program.steps):
        return
    one_by_one, statistics_one_by_one = play(program, batch_packets=1)
    stories = [heard.story for heard in listener.flows.values()]
    # The flows are in the order of opening in both.
    assert [heard.story for heard in one_by_one.flows.values()] == stories
    assert statistics_one_by_one._replace(allocations=0) == statistics._replace(allocations=0)
