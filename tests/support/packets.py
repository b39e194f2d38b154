"""Packets and capture files made by hand, layer by layer: each function wraps the bytes of the layer above.

    frame = ethernet(ipv4(tcp(40000, 80, seq=1001, payload=b"GET"), "192.0.2.1", "192.0.2.2"), vlans=[7])

Nothing here is gopher's: the layouts are written from the standards, so that a test compares two readings of them.
A packet on its way to a file or a batch is a pair (time_ns, frame). All checksums are right unless a test breaks them.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

Packet = tuple[int, bytes]

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

# https://www.tcpdump.org/linktypes.html; RAW is what files say, DLT_RAW what libpcap says on Linux.
LINKTYPE_NULL = 0
LINKTYPE_ETHERNET = 1
LINKTYPE_PPP = 9
DLT_RAW = 12
LINKTYPE_RAW = 101
LINKTYPE_LOOP = 108
LINKTYPE_SLL = 113
LINKTYPE_IPV4 = 228
LINKTYPE_IPV6 = 229
LINKTYPE_SLL2 = 276

PROTO_HOP_BY_HOP, PROTO_IPIP, PROTO_TCP, PROTO_UDP, PROTO_IPV6, PROTO_ROUTING = 0, 4, 6, 17, 41, 43
PROTO_FRAGMENT, PROTO_GRE, PROTO_AH, PROTO_DESTINATION = 44, 47, 51, 60

CLIENT = ("192.0.2.1", 40000)
SERVER = ("192.0.2.2", 80)
CLIENT6 = ("2001:db8::1", 40000)
SERVER6 = ("2001:db8::2", 80)

START_NS = 1_700_000_000_000_000_000


def tcp(
    source_port: int,
    destination_port: int,
    *,
    seq: int,
    ack: int = 0,
    flags: int = ACK,
    payload: bytes = b"",
    window: int = 65535,
    options: bytes = b"",
    urgent: int = 0,
) -> bytes:
    """A TCP segment (RFC 9293 section 3.1); seq and ack may be given unwrapped. The IP layer fills in the checksum."""
    options += b"\0" * (-len(options) % 4)
    offset_and_flags = (5 + len(options) // 4) << 12 | flags
    header = struct.pack(
        "!HHIIHHHH", source_port, destination_port, seq % 2**32, ack % 2**32, offset_and_flags, window, 0, urgent
    )
    return header + options + payload


def udp(source_port: int, destination_port: int, payload: bytes) -> bytes:
    """A UDP datagram; the checksum stays 0, which IPv4 allows and gopher has no reason to look at."""
    return struct.pack("!HHHH", source_port, destination_port, 8 + len(payload), 0) + payload


def ipv4(
    payload: bytes,
    source: str = CLIENT[0],
    destination: str = SERVER[0],
    *,
    protocol: int = PROTO_TCP,
    identification: int = 0,
    options: bytes = b"",
    total_length: int | None = None,
    more_fragments: bool = False,
    fragment_offset: int = 0,
) -> bytes:
    """An IPv4 packet (RFC 791).

    Args:
        total_length: what the length field says, when that is not the truth. 0 is what offloaded packets say.
        fragment_offset: in bytes, a multiple of 8.
    """
    addresses = ip_address(source).packed + ip_address(destination).packed
    if protocol == PROTO_TCP and not (more_fragments or fragment_offset):
        payload = _with_tcp_checksum(addresses, payload)
    options += b"\0" * (-len(options) % 4)
    length = 20 + len(options) + len(payload) if total_length is None else total_length
    header = struct.pack(
        "!BBHHHBBH",
        0x40 | (5 + len(options) // 4),
        0,
        length,
        identification,
        more_fragments << 13 | fragment_offset // 8,
        64,
        protocol,
        0,
    )
    header += addresses + options
    return header[:10] + _checksum(header) + header[12:] + payload


def ipv6(
    payload: bytes,
    source: str = CLIENT6[0],
    destination: str = SERVER6[0],
    *,
    next_header: int = PROTO_TCP,
    extensions: Sequence[tuple[int, bytes]] = (),
    payload_length: int | None = None,
) -> bytes:
    """An IPv6 packet (RFC 8200).

    Args:
        extensions: (protocol number, the header without its first byte), in order. The first byte of each is the next
            header's number, filled in here.
        payload_length: what the length field says, when that is not the truth.
    """
    addresses = ip_address(source).packed + ip_address(destination).packed
    if next_header == PROTO_TCP and not any(number == PROTO_FRAGMENT for number, _ in extensions):
        payload = _with_tcp_checksum(addresses, payload)
    numbers = [number for number, _ in extensions] + [next_header]
    chain = b"".join(bytes([number]) + rest for number, (_, rest) in zip(numbers[1:], extensions, strict=True))
    length = len(chain) + len(payload) if payload_length is None else payload_length
    return struct.pack("!IHBB", 6 << 28, length, numbers[0], 64) + addresses + chain + payload


def ipv6_options(option_bytes: bytes = b"") -> bytes:
    """A hop-by-hop or destination options header without its first byte, padded with PadN (RFC 8200 section 4.2)."""
    padding = -(2 + len(option_bytes)) % 8
    if padding == 1:
        option_bytes += b"\0"
    elif padding:
        option_bytes += bytes([1, padding - 2]) + b"\0" * (padding - 2)
    return bytes([(2 + len(option_bytes)) // 8 - 1]) + option_bytes


def ipv6_authentication(icv: bytes = b"\0" * 12) -> bytes:
    """An authentication header without its first byte (RFC 4302): its length counts 4-byte words, less two."""
    return bytes([(12 + len(icv)) // 4 - 2]) + b"\0\0" + struct.pack("!II", 1, 1) + icv


def ipv4_fragments(payload: bytes, source: str, destination: str, *, identification: int, size: int) -> list[bytes]:
    """The fragments of a TCP packet, in order; `size` bytes of payload each, a multiple of 8."""
    payload = _with_tcp_checksum(ip_address(source).packed + ip_address(destination).packed, payload)
    return [
        ipv4(
            payload[at : at + size],
            source,
            destination,
            identification=identification,
            more_fragments=at + size < len(payload),
            fragment_offset=at,
        )
        for at in range(0, len(payload), size)
    ]


def ipv6_fragments(payload: bytes, source: str, destination: str, *, identification: int, size: int) -> list[bytes]:
    """The fragments of a TCP packet, in order; `size` bytes of payload each, a multiple of 8."""
    payload = _with_tcp_checksum(ip_address(source).packed + ip_address(destination).packed, payload)
    return [
        ipv6(
            payload[at : at + size],
            source,
            destination,
            extensions=[
                (PROTO_FRAGMENT, struct.pack("!xHI", at | (at + size < len(payload)), identification)),
            ],
        )
        for at in range(0, len(payload), size)
    ]


def ethernet(packet: bytes, *, vlans: Sequence[int] = (), ethertype: int | None = None, minimum: int = 0) -> bytes:
    """An Ethernet II frame.

    Args:
        vlans: VLAN ids, outermost first; every tag but the last is a service tag (802.1ad), as QinQ asks.
        ethertype: when the packet does not tell (it does for IP).
        minimum: pad the frame to this length with 0xEE, as hardware pads to 60.
    """
    frame = b"\x02\0\0\0\0\2" + b"\x02\0\0\0\0\1"
    for position, vlan in enumerate(vlans):
        frame += struct.pack("!HH", 0x8100 if position == len(vlans) - 1 else 0x88A8, vlan)
    frame += struct.pack("!H", ethertype_of(packet) if ethertype is None else ethertype) + packet
    return frame + b"\xee" * (minimum - len(frame))


def broadcast(packet: bytes) -> bytes:
    """A frame that every host takes in and none answers: it is not for its own address."""
    return b"\xff" * 6 + ethernet(packet)[6:]


def linux_cooked(packet: bytes) -> bytes:
    """Linux cooked capture v1 (LINKTYPE_LINUX_SLL)."""
    return struct.pack("!HHH8sH", 0, 1, 6, b"\x02\0\0\0\0\1", ethertype_of(packet)) + packet


def linux_cooked2(packet: bytes) -> bytes:
    """Linux cooked capture v2 (LINKTYPE_LINUX_SLL2)."""
    return struct.pack("!HHIHBB8s", ethertype_of(packet), 0, 3, 1, 0, 6, b"\x02\0\0\0\0\1") + packet


def bsd_null(packet: bytes, *, byteorder: str = "<", ipv6_family: int = 30) -> bytes:
    """BSD loopback: the address family in the capturing host's byte order. IPv6 is 24, 28 or 30, as the BSD likes."""
    return struct.pack(byteorder + "I", 2 if packet[0] >> 4 == 4 else ipv6_family) + packet


def openbsd_loop(packet: bytes, *, ipv6_family: int = 24) -> bytes:
    """OpenBSD loopback: the address family in network byte order."""
    return bsd_null(packet, byteorder="!", ipv6_family=ipv6_family)


def raw(packet: bytes) -> bytes:
    """No link layer at all."""
    return packet


def ethertype_of(packet: bytes) -> int:
    """IPv4 or IPv6, by the version field."""
    return {4: 0x0800, 6: 0x86DD}[packet[0] >> 4]


@dataclass
class Conversation:
    """The packets of one TCP connection, in the order they are asked for.

    Each verb appends one packet and advances the sender's sequence number, so `syn(); data(...); fin()` is a whole
    connection. `offset` sends at a place of one's own instead: a retransmission, an overlap or a hole.

    Attributes:
        client_isn, server_isn: initial sequence numbers; offset 0 of a stream is the byte at ISN + 1.
        window_scale: put into both SYNs (RFC 7323); without it no window is larger than 64 KiB.
        wrap: IP packet to frame.
        packets: what was sent so far.
        now_ns: time of the next packet; every packet advances it by `step_ns`.
    """

    client: tuple[str, int] = CLIENT
    server: tuple[str, int] = SERVER
    client_isn: int = 1000
    server_isn: int = 5000
    window_scale: int | None = None
    wrap: Callable[[bytes], bytes] = ethernet
    now_ns: int = START_NS
    step_ns: int = 1000
    packets: list[Packet] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sent = [0, 0]

    def syn(self) -> Conversation:
        """The client's half of the handshake."""
        return self.segment(0, offset=-1, flags=SYN)

    def handshake(self) -> Conversation:
        """SYN, SYN/ACK, ACK."""
        return self.syn().segment(1, offset=-1, flags=SYN | ACK).segment(0)

    def data(self, payload: bytes, *, direction: int = 0, offset: int | None = None) -> Conversation:
        """A segment of payload."""
        return self.segment(direction, offset=offset, flags=PSH | ACK, payload=payload)

    def ack(self, *, direction: int = 0, acked: int | None = None) -> Conversation:
        """A pure acknowledgement of `acked` bytes of the other direction; of all that was sent by default."""
        return self.segment(direction, acked=acked)

    def fin(self, *, direction: int = 0, offset: int | None = None, payload: bytes = b"") -> Conversation:
        """The end of one direction."""
        return self.segment(direction, offset=offset, flags=FIN | ACK, payload=payload)

    def rst(self, *, direction: int = 0, offset: int | None = None) -> Conversation:
        """A reset by one end."""
        return self.segment(direction, offset=offset, flags=RST | ACK)

    def close(self) -> Conversation:
        """FIN and its acknowledgement, both ways."""
        return self.fin().fin(direction=1).segment(0)

    def segment(
        self,
        direction: int,
        *,
        offset: int | None = None,
        flags: int = ACK,
        payload: bytes = b"",
        acked: int | None = None,
        options: bytes = b"",
    ) -> Conversation:
        """Any segment. `offset` and `acked` count stream bytes, so a SYN is at -1; None means what is next."""
        sender, receiver = (self.client, self.server) if direction == 0 else (self.server, self.client)
        isns = (self.client_isn, self.server_isn)
        at = self.sent[direction] if offset is None else offset
        peer_sent = self.sent[1 - direction] if acked is None else acked
        if flags & SYN and self.window_scale is not None:
            options += bytes([3, 3, self.window_scale])
        segment = tcp(
            sender[1],
            receiver[1],
            seq=isns[direction] + 1 + at,
            ack=isns[1 - direction] + 1 + peer_sent if flags & ACK else 0,
            flags=flags,
            payload=payload,
            options=options,
        )
        network = ipv6 if ":" in sender[0] else ipv4
        self.packets.append((self.now_ns, self.wrap(network(segment, sender[0], receiver[0]))))
        self.now_ns += self.step_ns
        end = at + len(payload) + bool(flags & SYN) + bool(flags & FIN)
        self.sent[direction] = max(self.sent[direction], end)
        return self


def pcap_file(
    packets: Iterable[Packet],
    linktype: int = LINKTYPE_ETHERNET,
    *,
    byteorder: str = "<",
    nanoseconds: bool = False,
    snaplen: int = 262_144,
) -> bytes:
    """A pcap file (draft-ietf-opsawg-pcap); frames longer than `snaplen` are cut."""
    magic, unit_ns = (0xA1B23C4D, 1) if nanoseconds else (0xA1B2C3D4, 1000)
    parts = [struct.pack(byteorder + "IHHiIII", magic, 2, 4, 0, 0, snaplen, linktype)]
    for time_ns, frame in packets:
        seconds, rest = divmod(time_ns, 10**9)
        captured = frame[:snaplen]
        parts += struct.pack(byteorder + "IIII", seconds, rest // unit_ns, len(captured), len(frame)), captured
    return b"".join(parts)


def pcapng_file(
    packets: Iterable[Packet], linktype: int = LINKTYPE_ETHERNET, *, byteorder: str = "<", nanoseconds: bool = False
) -> bytes:
    """A pcapng file with one section and one interface (draft-ietf-opsawg-pcapng)."""

    def block(kind: int, body: bytes) -> bytes:
        length = struct.pack(byteorder + "I", 12 + len(body))
        return struct.pack(byteorder + "I", kind) + length + body + length

    resolution = struct.pack(byteorder + "HHB3xHH", 9, 1, 9, 0, 0) if nanoseconds else b""
    parts = [
        block(0x0A0D0D0A, struct.pack(byteorder + "IHHq", 0x1A2B3C4D, 1, 0, -1)),
        block(1, struct.pack(byteorder + "HHI", linktype, 0, 0) + resolution),
    ]
    for time_ns, frame in packets:
        stamp = time_ns if nanoseconds else time_ns // 1000
        header = struct.pack(byteorder + "IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, len(frame), len(frame))
        parts.append(block(6, header + frame + b"\0" * (-len(frame) % 4)))
    return b"".join(parts)


def gzipped(contents: bytes) -> bytes:
    """The same file compressed, without a time stamp: equal input gives equal output."""
    return gzip.compress(contents, mtime=0)


def _with_tcp_checksum(addresses: bytes, segment: bytes) -> bytes:
    pseudo_header = addresses + struct.pack("!II", len(segment), PROTO_TCP)
    return segment[:16] + _checksum(pseudo_header + segment[:16] + b"\0\0" + segment[18:]) + segment[18:]


def _checksum(covered: bytes) -> bytes:
    """RFC 1071: the complement of the one's complement sum, which is the sum modulo 65535."""
    covered += b"\0" * (len(covered) % 2)
    total = sum(struct.unpack(f"!{len(covered) // 2}H", covered)) % 65535
    return struct.pack("!H", 65535 - total)
