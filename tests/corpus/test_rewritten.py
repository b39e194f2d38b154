"""The corpus rewritten into what it is thin in: other link types, files, fragments, offloads, sequence numbers.

What the streams carry stays the same, so the answers carry over. Rewritten are captures of plain TCP over IP, small
enough that each is rewritten in every way; those whose streams fill packets of more than 64 KiB are made into BIG TCP.
"""

import struct
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest

from gopher.capture.pcapfile import CaptureFile
from gopher.streams import read_streams
from tests.support.corpus import CORPUS, GOPHER_IS_RIGHT, disagreements, features, needs_corpus, truth
from tests.support.packets import (
    ACK,
    DLT_RAW,
    LINKTYPE_ETHERNET,
    LINKTYPE_IPV4,
    LINKTYPE_LOOP,
    LINKTYPE_NULL,
    LINKTYPE_RAW,
    LINKTYPE_SLL,
    LINKTYPE_SLL2,
    PROTO_HOP_BY_HOP,
    PROTO_TCP,
    PSH,
    bsd_null,
    ethernet,
    gzipped,
    ipv4,
    ipv4_fragments,
    ipv6,
    ipv6_fragments,
    linux_cooked2,
    openbsd_loop,
    pcap_file,
    pcapng_file,
)

pytestmark = needs_corpus

# What `segments_of` cannot take apart.
NOT_PLAIN = {"gre", "ipip", "mpls", "ppp", "pppoe", "sll2", "vxlan"}
NOT_PLAIN |= {"badlen", "ip6ext", "ip6frag", "ip6len0", "ipfrag", "iplen0", "tcpfrag"}
SMALL_BYTES = 50_000
IP_PACKET_BYTES = 65_535


@dataclass(frozen=True)
class Segment:
    """A TCP segment, header and payload as they were, out of its packet."""

    time_ns: int
    source: str
    destination: str
    tcp: bytes

    @property
    def seq(self):
        return int.from_bytes(self.tcp[4:8], "big")

    @property
    def flags(self):
        return self.tcp[13]

    @property
    def payload(self):
        return self.tcp[self.tcp[12] >> 4 << 2 :]

    @property
    def path(self):
        """The four-tuple in the segment's direction."""
        return (self.source, self.tcp[:2], self.destination, self.tcp[2:4])

    @property
    def path_back(self):
        return (self.destination, self.tcp[2:4], self.source, self.tcp[:2])

    def ip(self, **fields):
        """The segment in an IP packet of its family."""
        return (ipv6 if ":" in self.source else ipv4)(self.tcp, self.source, self.destination, **fields)


def segments_of(file):
    """All TCP segments of a capture."""
    segments = []
    capture = CaptureFile(CORPUS / "captures" / file)
    for batch in capture.batches():
        data = bytes(batch.data)
        for seconds, microseconds, at, length in struct.iter_unpack("=IIII", batch.index):
            packet = without_link_layer(data[at : at + length], batch.linktype)
            time_ns = (seconds * 1_000_000 + microseconds) * 1000
            if packet[:1] and packet[0] >> 4 == 4 and packet[9] == PROTO_TCP:
                header, end = (packet[0] & 15) * 4, int.from_bytes(packet[2:4], "big")
                source, destination = packet[12:16], packet[16:20]
            elif packet[:1] and packet[0] >> 4 == 6 and packet[6] == PROTO_TCP:
                header, end = 40, 40 + int.from_bytes(packet[4:6], "big")
                source, destination = packet[8:24], packet[24:40]
            else:
                continue
            addresses = str(ip_address(source)), str(ip_address(destination))
            segments.append(Segment(time_ns, *addresses, packet[header:end]))
    capture.close()
    return segments


def without_link_layer(frame, linktype):
    """The IP packet in a frame; nothing for other protocols."""
    if linktype == LINKTYPE_ETHERNET:
        at = 12
        while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8", b"\x91\x00"):
            at += 4
        return frame[at + 2 :] if frame[at : at + 2] in (b"\x08\x00", b"\x86\xdd") else b""
    return frame[{LINKTYPE_SLL: 16, LINKTYPE_NULL: 4, LINKTYPE_RAW: 0, LINKTYPE_IPV4: 0, DLT_RAW: 0}[linktype] :]


def framed(segments, frame):
    return [(segment.time_ns, frame(segment.ip())) for segment in segments]


def in_fragments(segments):
    """Every packet in IP fragments of 64 bytes, the last one first."""
    packets = []
    for number, segment in enumerate(segments):
        fragments = ipv6_fragments if ":" in segment.source else ipv4_fragments
        pieces = fragments(segment.tcp, segment.source, segment.destination, identification=number % 65536, size=64)
        packets += [(segment.time_ns, ethernet(piece)) for piece in reversed(pieces)]
    return packets


def renumbered(segments, first_seq):
    """The same conversations with other sequence numbers: `first_seq` for the first segment of each direction."""
    shifts = {}
    for segment in segments:
        shifts.setdefault(segment.path, first_seq - segment.seq)
    moved = []
    for segment in segments:
        tcp = bytearray(segment.tcp)
        seq, ack = struct.unpack_from("!II", tcp, 4)
        if segment.flags & ACK:
            ack += shifts.get(segment.path_back, 0)
        struct.pack_into("!II", tcp, 4, (seq + shifts[segment.path]) % 2**32, ack % 2**32)
        moved.append(replace(segment, tcp=bytes(tcp)))
    return moved


def follows(segment, before):
    """Whether offload would join the two. 180 KiB is what Linux's BIG TCP is commonly set to."""
    in_order = (before.seq + len(before.payload)) % 2**32 == segment.seq
    return in_order and len(before.tcp) + len(segment.payload) <= 180 * 1024


def coalesced(segments):
    """What receive offload makes of it: data that follows in order joined to the segment before it.

    Pure acknowledgements are left out, for they would now come before what they acknowledge.
    """
    joined = []
    waiting = {}
    for segment in segments:
        before = waiting.pop(segment.path, None)
        is_data = segment.payload and not segment.flags & ~(ACK | PSH)
        if before and not (is_data and follows(segment, before)):
            joined.append(before)
            before = None
        if not segment.payload and segment.flags == ACK:
            waiting.update({segment.path: before} if before else {})
            continue
        joined += filter(None, [waiting.pop(segment.path_back, None)])
        if is_data:
            waiting[segment.path] = replace(segment, tcp=before.tcp + segment.payload) if before else segment
        else:
            joined.append(segment)
    return joined + list(waiting.values())


def in_ipv6(segments):
    """The same segments between IPv6 addresses."""
    return [
        replace(segment, source=f"2001:db8::{segment.source}", destination=f"2001:db8::{segment.destination}")
        if ":" not in segment.source
        else segment
        for segment in segments
    ]


def in_ipv4_again(stream):
    """The stream between the addresses that `in_ipv6` hid."""
    client, server = (
        (str(ip_address(ip_address(address).packed[-4:])) if address.startswith("2001:db8::") else address, port)
        for address, port in (stream.client, stream.server)
    )
    return replace(stream, client=client, server=server)


def without_length(segment):
    """The packet with a length field of 0, as offload leaves it."""
    return segment.ip(**{"payload_length" if ":" in segment.source else "total_length": 0})


def with_jumbo_payload_option(segment):
    """The packet with a length field of 0 and the real length, where that is needed, as RFC 2675 says it."""
    if len(segment.tcp) <= IP_PACKET_BYTES:
        return without_length(segment)
    option = b"\0\xc2\x04" + struct.pack("!I", 8 + len(segment.tcp))
    return segment.ip(payload_length=0, extensions=[(PROTO_HOP_BY_HOP, option)])


REWRITINGS = {
    "linux-cooked-v2": lambda segments: pcap_file(framed(segments, linux_cooked2), LINKTYPE_SLL2),
    "loop": lambda segments: pcap_file(framed(segments, openbsd_loop), LINKTYPE_LOOP),
    "null-big-endian": lambda segments: pcap_file(
        framed(segments, lambda packet: bsd_null(packet, byteorder=">")), LINKTYPE_NULL, byteorder=">"
    ),
    "nanoseconds": lambda segments: pcap_file(framed(segments, ethernet), nanoseconds=True),
    "pcapng-big-endian": lambda segments: pcapng_file(framed(segments, ethernet), byteorder=">", nanoseconds=True),
    "gzip": lambda segments: gzipped(pcap_file(framed(segments, ethernet))),
    "padding": lambda segments: pcap_file(framed(segments, lambda packet: ethernet(packet, minimum=200))),
    "fragments": lambda segments: pcap_file(in_fragments(segments)),
    "wrap-at-2**32": lambda segments: pcap_file(framed(renumbered(segments, 2**32 - 8), ethernet)),
    "wrap-at-2**31": lambda segments: pcap_file(framed(renumbered(segments, 2**31 - 8), ethernet)),
}


def plain_captures():
    """Captures with firm answers, all of them gopher's, and nothing in them that would be lost by rewriting."""
    disputed = {file for file, *_ in GOPHER_IS_RIGHT}
    for file, rows in sorted(truth().items()):
        is_firm = any(row["firm_c2s"] or row["firm_s2c"] for row in rows)
        if is_firm and file not in disputed and not features()[file] & NOT_PLAIN:
            yield file


def small_captures():
    return [file for file in plain_captures() if (CORPUS / "captures" / file).stat().st_size < SMALL_BYTES]


def captures_of_long_streams():
    return [
        file
        for file in plain_captures()
        if any(
            row[f"firm_{half}"] and row[f"{half}_bytes"] > IP_PACKET_BYTES
            for row in truth()[file]
            for half in ["c2s", "s2c"]
        )
    ]


@pytest.fixture(scope="module")
def small_captures_segments():
    return {file: segments_of(file) for file in small_captures()}


@pytest.mark.parametrize("rewriting", REWRITINGS)
def test_rewritten_captures_carry_the_same_streams(rewriting, small_captures_segments, tmp_path):
    differing = {}
    for file, segments in small_captures_segments.items():
        path = tmp_path / "rewritten"
        path.write_bytes(REWRITINGS[rewriting](segments))
        if found := list(disagreements(file, read_streams(path))):
            differing[file] = found
    assert len(small_captures_segments) > 100
    assert not differing


@pytest.mark.parametrize(
    ("readdressed", "packet_of"),
    [(list, without_length), (in_ipv6, without_length), (in_ipv6, with_jumbo_payload_option)],
    ids=["ipv4", "ipv6", "ipv6-jumbo-payload-option"],
)
def test_big_tcp_carries_the_same_streams(readdressed, packet_of, tmp_path):
    differing = {}
    longest = 0
    for file in captures_of_long_streams():
        segments = readdressed(coalesced(segments_of(file)))
        longest = max(longest, *(len(segment.tcp) for segment in segments))
        packets = [
            (segment.time_ns, ethernet(packet_of(segment) if len(segment.tcp) > 1500 else segment.ip()))
            for segment in segments
        ]
        path = tmp_path / "rewritten"
        path.write_bytes(pcap_file(packets))
        if found := list(disagreements(file, map(in_ipv4_again, read_streams(path)))):
            differing[file] = found
    assert longest > IP_PACKET_BYTES
    assert not differing
