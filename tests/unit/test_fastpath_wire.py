"""From frame to payload: every link, IP and TCP header the fast path reads, and what it does with broken ones."""

import mmap
import struct

import pytest

from gopher._fastpath import Batch, Reassembler, StreamData, pack_batch
from tests.support.events import feed, story
from tests.support.packets import (
    CLIENT,
    CLIENT6,
    DLT_RAW,
    FIN,
    LINKTYPE_ETHERNET,
    LINKTYPE_IPV4,
    LINKTYPE_IPV6,
    LINKTYPE_LOOP,
    LINKTYPE_NULL,
    LINKTYPE_PPP,
    LINKTYPE_RAW,
    LINKTYPE_SLL,
    LINKTYPE_SLL2,
    PROTO_AH,
    PROTO_DESTINATION,
    PROTO_FRAGMENT,
    PROTO_GRE,
    PROTO_HOP_BY_HOP,
    PROTO_IPIP,
    PROTO_IPV6,
    PROTO_ROUTING,
    PROTO_UDP,
    SERVER,
    SERVER6,
    START_NS,
    SYN,
    Conversation,
    bsd_null,
    ethernet,
    ethertype_of,
    ipv4,
    ipv4_fragments,
    ipv6,
    ipv6_authentication,
    ipv6_fragments,
    ipv6_options,
    linux_cooked,
    linux_cooked2,
    openbsd_loop,
    raw,
    tcp,
    udp,
)

LINKTYPE_RAW_OPENBSD = 14
LINKTYPE_PPP_SERIAL = 50
LINKTYPE_PPP_ETHER = 51
LINKTYPE_IEEE802_11 = 105
HELLO = b"hello over the wire"
HELLO_STORY = [("opened",), ("data", 0, 0, HELLO)]


def mpls(packet, *, labels):
    stack = b"".join(struct.pack("!I", 16 << 12 | (nth == labels - 1) << 8 | 64) for nth in range(labels))
    return ethernet(stack + packet, ethertype=0x8847)


def ppp(packet):
    return struct.pack("!H", {4: 0x0021, 6: 0x0057}[packet[0] >> 4]) + packet


def pppoe(packet):
    return struct.pack("!BBHH", 0x11, 0, 7, 2 + len(packet)) + ppp(packet)


def llc_snap(packet):
    return ethernet(b"\xaa\xaa\x03\0\0\0" + struct.pack("!H", ethertype_of(packet)) + packet, ethertype=8 + len(packet))


def cooked_vlan(packet):
    return linux_cooked(packet)[:14] + b"\x81\x00\x00\x07" + struct.pack("!H", ethertype_of(packet)) + packet


LINKS = {
    "ethernet": (LINKTYPE_ETHERNET, ethernet),
    "vlan": (LINKTYPE_ETHERNET, lambda packet: ethernet(packet, vlans=[7])),
    "qinq": (LINKTYPE_ETHERNET, lambda packet: ethernet(packet, vlans=[7, 8])),
    "three tags": (LINKTYPE_ETHERNET, lambda packet: ethernet(packet, vlans=[7, 8, 9])),
    "llc snap": (LINKTYPE_ETHERNET, llc_snap),
    "one mpls label": (LINKTYPE_ETHERNET, lambda packet: mpls(packet, labels=1)),
    "three mpls labels": (LINKTYPE_ETHERNET, lambda packet: mpls(packet, labels=3)),
    "pppoe": (LINKTYPE_ETHERNET, lambda packet: ethernet(pppoe(packet), ethertype=0x8864)),
    "wrong ethertype": (LINKTYPE_ETHERNET, lambda packet: ethernet(packet, ethertype=0x0800)),
    "cooked": (LINKTYPE_SLL, linux_cooked),
    "cooked, vlan": (LINKTYPE_SLL, cooked_vlan),
    "cooked v2": (LINKTYPE_SLL2, linux_cooked2),
    "null, little-endian": (LINKTYPE_NULL, bsd_null),
    "null, big-endian": (LINKTYPE_NULL, lambda packet: bsd_null(packet, byteorder=">")),
    "null, NetBSD": (LINKTYPE_NULL, lambda packet: bsd_null(packet, ipv6_family=24)),
    "null, FreeBSD": (LINKTYPE_NULL, lambda packet: bsd_null(packet, ipv6_family=28)),
    "loop": (LINKTYPE_LOOP, openbsd_loop),
    "raw": (LINKTYPE_RAW, raw),
    "raw, BSD": (DLT_RAW, raw),
    "raw, OpenBSD": (LINKTYPE_RAW_OPENBSD, raw),
    "ppp": (LINKTYPE_PPP, ppp),
    "ppp with address and control": (LINKTYPE_PPP, lambda packet: b"\xff\x03" + ppp(packet)),
    "ppp, compressed protocol field": (LINKTYPE_PPP, lambda packet: ppp(packet)[1:]),
    "ppp serial": (LINKTYPE_PPP_SERIAL, lambda packet: b"\xff\x03" + ppp(packet)),
    "ppp over ethernet without ethernet": (LINKTYPE_PPP_ETHER, pppoe),
}


def packet_of(payload=HELLO, *, client=CLIENT, server=SERVER, **fields):
    """One IPv4 or IPv6 packet from client to server."""
    network = ipv6 if ":" in client[0] else ipv4
    return network(tcp(client[1], server[1], seq=1, payload=payload), client[0], server[0], **fields)


def story_of(frame, linktype=LINKTYPE_ETHERNET, **settings):
    return story(feed(Reassembler([80], **settings), [(START_NS, frame)], linktype))


@pytest.mark.parametrize("ends", [(CLIENT, SERVER), (CLIENT6, SERVER6)], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("link", LINKS)
def test_link_header_is_stepped_over(link, ends):
    linktype, wrap = LINKS[link]
    assert story_of(wrap(packet_of(client=ends[0], server=ends[1])), linktype) == HELLO_STORY


@pytest.mark.parametrize(
    ("linktype", "ends"), [(LINKTYPE_IPV4, (CLIENT, SERVER)), (LINKTYPE_IPV6, (CLIENT6, SERVER6))], ids=["228", "229"]
)
def test_raw_link_of_one_family_is_read(linktype, ends):
    assert story_of(packet_of(client=ends[0], server=ends[1]), linktype) == HELLO_STORY


@pytest.mark.parametrize("link", LINKS)
def test_cut_frame_is_counted_and_harmless(link):
    linktype, wrap = LINKS[link]
    frame = wrap(packet_of())
    reassembler = Reassembler([80])
    headers = len(frame) - len(HELLO)
    assert feed(reassembler, [(START_NS, frame[:length]) for length in range(headers)], linktype) == []
    statistics = reassembler.statistics()
    assert statistics.packets_not_tcp + statistics.packets_malformed == headers
    assert statistics.packets_malformed >= 20


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(b"\0" * 28, ethertype=0x0806),
        ethernet(pppoe(packet_of())[:1] + b"\x09" + pppoe(packet_of())[2:], ethertype=0x8864),
        ethernet(struct.pack("!BBHH", 0x11, 0, 7, 6) + b"\xc0\x21\1\1\0\4", ethertype=0x8864),
        ethernet(ipv4(udp(40000, 80, b"not tcp"), protocol=PROTO_UDP)),
        ethernet(ipv6(udp(40000, 80, b"not tcp"), next_header=PROTO_UDP)),
    ],
    ids=["arp", "pppoe discovery", "ppp lcp", "udp", "udp over ipv6"],
)
def test_other_protocol_is_counted_as_not_tcp(frame):
    reassembler = Reassembler()
    assert feed(reassembler, [(START_NS, frame)]) == []
    assert reassembler.statistics().packets_not_tcp == 1
    assert reassembler.statistics().packets_malformed == 0


def test_unknown_linktype_is_counted_as_not_tcp():
    reassembler = Reassembler()
    assert feed(reassembler, [(START_NS, ethernet(packet_of()))], LINKTYPE_IEEE802_11) == []
    assert reassembler.statistics().packets_not_tcp == 1


def broken(at, value, *, client=CLIENT, server=SERVER):
    """A good frame with one byte changed; `at` counts from the IP header."""
    frame = bytearray(ethernet(packet_of(client=client, server=server)))
    frame[14 + at] = value
    return bytes(frame)


V6 = {"client": CLIENT6, "server": SERVER6}


@pytest.mark.parametrize(
    "frame",
    [
        broken(0, 0x44),
        broken(0, 0x35),
        broken(3, 19),
        broken(20 + 12, 0x40),
        broken(20 + 12, 0xF0),
        broken(5, 10, **V6),
        broken(6, PROTO_HOP_BY_HOP, **V6)[: 14 + 40 + 6],
        ethernet(ipv6(b"", CLIENT6[0], SERVER6[0], extensions=[(PROTO_DESTINATION, b"\x09" + b"\0" * 6)])),
    ],
    ids=[
        "ip header shorter than 20 bytes",
        "ip version 3",
        "ip length shorter than its header",
        "tcp header shorter than 20 bytes",
        "tcp header longer than the packet",
        "ipv6 payload shorter than tcp header",
        "extension header cut",
        "extension header longer than the packet",
    ],
)
def test_contradicting_header_is_counted_as_malformed(frame):
    reassembler = Reassembler()
    assert feed(reassembler, [(START_NS, frame)]) == []
    assert reassembler.statistics().packets_malformed == 1


def test_padding_is_no_payload():
    syn = ethernet(ipv4(tcp(40000, 80, seq=0, flags=SYN)), minimum=60)
    assert story_of(syn) == []
    assert story_of(ethernet(packet_of(b"x"), minimum=60)) == [("opened",), ("data", 0, 0, b"x")]
    assert story_of(ethernet(packet_of(b"x", **V6), minimum=90)) == [("opened",), ("data", 0, 0, b"x")]


@pytest.mark.parametrize("size", [5000, 65_549, 180_000])
@pytest.mark.parametrize(
    ("ends", "field"),
    [((CLIENT, SERVER), "total_length"), ((CLIENT6, SERVER6), "payload_length")],
    ids=["ipv4", "ipv6"],
)
def test_length_field_of_zero_means_to_the_end_of_the_frame(ends, field, size):
    payload = bytes(at % 251 for at in range(size))
    frame = ethernet(packet_of(payload, client=ends[0], server=ends[1], **{field: 0}))
    assert story_of(frame) == [("opened",), ("data", 0, 0, payload)]


def test_jumbo_payload_option_gives_the_length():
    payload = bytes(at % 251 for at in range(100_000))
    option = b"\0\xc2\x04" + struct.pack("!I", 8 + 20 + len(payload))
    frame = ethernet(packet_of(payload, **V6, payload_length=0, extensions=[(PROTO_HOP_BY_HOP, option)]))
    assert story_of(frame + b"\xee" * 30) == [("opened",), ("data", 0, 0, payload)]


def test_jumbogram_too_large_to_be_true_is_malformed():
    option = b"\0\xc2\x04" + struct.pack("!I", 0xFFFFFFFF)
    frame = ethernet(packet_of(**V6, payload_length=0, extensions=[(PROTO_HOP_BY_HOP, option)]))
    reassembler = Reassembler()
    assert feed(reassembler, [(START_NS, frame)]) == []
    assert reassembler.statistics().packets_malformed == 1


def test_ipv4_options_are_stepped_over():
    assert story_of(ethernet(packet_of(options=b"\x94\x04\0\0" * 10))) == HELLO_STORY


@pytest.mark.parametrize(
    "extensions",
    [
        [(PROTO_HOP_BY_HOP, ipv6_options())],
        [(PROTO_DESTINATION, ipv6_options(b"\1\x10" + b"\0" * 16))],
        [(PROTO_ROUTING, b"\0\2\0\0\0\0\0")],
        [(PROTO_AH, ipv6_authentication())],
        [(PROTO_FRAGMENT, b"\0\0\0\0\0\0\1")],
        [
            (PROTO_HOP_BY_HOP, ipv6_options()),
            (PROTO_ROUTING, b"\0\2\0\0\0\0\0"),
            (PROTO_DESTINATION, ipv6_options()),
            (PROTO_AH, ipv6_authentication()),
        ],
    ],
    ids=["hop-by-hop", "destination", "routing", "authentication", "atomic fragment", "all"],
)
def test_ipv6_extension_header_is_stepped_over(extensions):
    assert story_of(ethernet(packet_of(**V6, extensions=extensions))) == HELLO_STORY


def test_packet_cut_by_snaplen_leaves_a_hole_of_what_was_cut():
    conversation = Conversation().handshake().data(b"0123456789").data(b"abc")
    time_ns, frame = conversation.packets[3]
    conversation.packets[3] = (time_ns, frame[:-4])
    reassembler = Reassembler([80])
    events = feed(reassembler, conversation.packets) + reassembler.flush()
    assert story(events) == [
        ("opened",), ("data", 0, 0, b"012345"), ("gap", 0, 6, 4), ("data", 0, 10, b"abc"), ("closed", "flushed"),
    ]  # fmt: skip
    assert reassembler.statistics().packets_truncated == 1


def test_packet_cut_before_its_payload_has_its_fin_at_the_right_place():
    conversation = Conversation().handshake().data(b"0123456789").fin(payload=b"abc")
    time_ns, frame = conversation.packets[-1]
    conversation.packets[-1] = (time_ns, frame[:-3])
    reassembler = Reassembler([80])
    events = feed(reassembler, conversation.packets) + reassembler.flush()
    assert story(events)[1:] == [
        ("data", 0, 0, b"0123456789"), ("gap", 0, 10, 3), ("ended", 0, 13), ("closed", "flushed"),
    ]  # fmt: skip


# ---- batches


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview], ids=["bytes", "bytearray", "memoryview"])
def test_any_buffer_is_a_batch(make):
    batch = pack_batch(Conversation().data(HELLO).packets, LINKTYPE_ETHERNET)
    assert story(Reassembler([80]).feed(batch._replace(data=make(batch.data)))) == HELLO_STORY


def test_mapped_file_is_a_batch(tmp_path):
    batch = pack_batch(Conversation().data(HELLO).packets, LINKTYPE_ETHERNET)
    (tmp_path / "data").write_bytes(batch.data)
    with (tmp_path / "data").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert story(Reassembler([80]).feed(batch._replace(data=data))) == HELLO_STORY


@pytest.mark.parametrize("offset", [1, 10_000, 2**32 - 1])
@pytest.mark.parametrize("length", [73, 2**32 - 1])
def test_record_outside_the_data_is_malformed(offset, length):
    data = pack_batch(Conversation().data(HELLO).packets, LINKTYPE_ETHERNET).data
    reassembler = Reassembler([80])
    assert reassembler.feed(Batch(data, struct.pack("=IIII", 0, 0, offset, length), LINKTYPE_ETHERNET)) == []
    assert reassembler.statistics().packets_malformed == 1


def test_index_that_is_not_made_of_records_is_refused():
    reassembler = Reassembler([80])
    with pytest.raises(ValueError, match="16-byte records"):
        reassembler.feed(Batch(b"", b"\0" * 15, LINKTYPE_ETHERNET))
    assert reassembler.statistics().packets == 0


def test_event_has_the_time_of_its_newest_packet():
    conversation = Conversation(step_ns=5000).handshake().data(b"a").data(b"b")
    opened, data = feed(Reassembler([80]), conversation.packets)
    assert opened.time_ns == START_NS + 3 * 5000
    assert data.time_ns == START_NS + 4 * 5000
    assert data.since_ns == START_NS + 3 * 5000


# ---- addresses


@pytest.mark.parametrize(
    "address", ["2001:db8::1", "::1", "fe80::1:0:0:1", "1:2:3:4:5:6:7:8", "::ffff:102:304", "ff02::"]
)
@pytest.mark.parametrize("is_client", [True, False])
def test_ipv6_address_is_compressed(address, is_client):
    ends = ((address, 40000), SERVER6) if is_client else (CLIENT6, (address, 80))
    opened, _ = feed(Reassembler([80]), Conversation(*ends).data(HELLO).packets)
    assert (opened.flow.client, opened.flow.server) == ends


@pytest.mark.parametrize("client", [("10.0.0.1", 1), ("255.255.255.255", 65535), ("203.0.113.77", 80)])
def test_ipv4_address_is_dotted(client):
    opened, _ = feed(Reassembler([80]), Conversation(client, SERVER).data(HELLO).packets)
    assert (opened.flow.client, opened.flow.server) == (client, SERVER)


def test_equal_addresses_and_different_families_are_different_flows():
    packets = [
        *Conversation(("0.0.0.1", 40000), ("0.0.0.2", 80)).data(b"four").packets,
        *Conversation(("::1", 40000), ("::2", 80)).data(b"six").packets,
        *Conversation(("::1", 40000), ("::3", 80)).data(b"another").packets,
    ]
    events = feed(Reassembler([80]), packets)
    assert {event.data for event in events if isinstance(event, StreamData)} == {b"four", b"six", b"another"}


# ---- fragments

FRAGMENTED = tcp(40000, 80, seq=1, payload=bytes(range(256)) * 2)
FRAGMENTS = {
    "ipv4": ipv4_fragments(FRAGMENTED, CLIENT[0], SERVER[0], identification=7, size=128),
    "ipv6": ipv6_fragments(FRAGMENTED, CLIENT6[0], SERVER6[0], identification=7, size=128),
}
both_families = pytest.mark.parametrize("family", FRAGMENTS)
WHOLE_STORY = [("opened",), ("data", 0, 0, bytes(range(256)) * 2)]


def fragment_packets(family, order):
    return [(START_NS, ethernet(FRAGMENTS[family][nth], minimum=60)) for nth in order]


@both_families
@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1], [0, 0, 1, 4, 4, 2, 1, 3]], ids=str
)
def test_fragments_are_put_together_in_any_order(family, order):
    reassembler = Reassembler([80])
    assert story(feed(reassembler, fragment_packets(family, order))) == WHOLE_STORY
    assert reassembler.statistics().packets_not_tcp == len(order) - 1
    reassembler.flush()
    assert reassembler.statistics().memory_bytes == 0


@both_families
def test_fragments_are_put_together_across_batches(family):
    reassembler = Reassembler([80])
    events = []
    for packet in fragment_packets(family, [3, 2, 4, 1, 0]):
        events += feed(reassembler, [packet])
    assert story(events) == WHOLE_STORY


@both_families
def test_missing_fragment_means_no_packet(family):
    assert feed(Reassembler([80]), fragment_packets(family, [0, 1, 2, 4])) == []


def test_overlapping_fragments_are_thrown_away():
    overlapping = ipv4(b"x" * 64, CLIENT[0], SERVER[0], identification=7, more_fragments=True, fragment_offset=96)
    packets = fragment_packets("ipv4", [0, 1, 2])
    packets.insert(1, (START_NS, ethernet(overlapping)))
    assert feed(Reassembler([80]), packets + fragment_packets("ipv4", [3, 4])) == []


@both_families
def test_fragments_are_forgotten_after_30_seconds(family):
    reassembler = Reassembler([80])
    feed(reassembler, fragment_packets(family, [0, 1, 2, 3]))
    reassembler.expire(START_NS + 29_000_000_000)
    assert reassembler.statistics().memory_bytes > 500
    reassembler.expire(START_NS + 30_000_000_000)
    assert reassembler.statistics().memory_bytes == 0
    assert feed(reassembler, fragment_packets(family, [4])) == []


def test_packet_larger_than_ip_allows_is_not_put_together():
    first = ipv4(b"x" * 64, identification=7, more_fragments=True)
    beyond = ipv4(b"x" * 64, identification=7, fragment_offset=65_528)
    reassembler = Reassembler([80])
    feed(reassembler, [(START_NS, ethernet(first)), (START_NS, ethernet(beyond))])
    assert reassembler.statistics().memory_bytes == 0


def test_fragment_flood_costs_bounded_memory():
    reassembler = Reassembler([80])
    for start in range(0, 60_000, 1000):
        packets = [
            (
                START_NS,
                ethernet(ipv4(b"x" * 1480, identification=number % 65536, more_fragments=True, fragment_offset=at)),
            )
            for number in range(start, start + 100)
            for at in (0, 2960, 5920)
        ]
        feed(reassembler, packets)
        assert reassembler.statistics().memory_bytes < 6 << 20


# ---- tunnels


def vxlan(packet, *, port=4789, flags=0x08):
    return ipv4(udp(50000, port, bytes([flags, 0, 0, 0, 0, 0, 7, 0]) + ethernet(packet)), protocol=PROTO_UDP)


def gre(packet, *, flags=0, options=b"", protocol=None, network=ipv4, **fields):
    header = struct.pack("!HH", flags, ethertype_of(packet) if protocol is None else protocol)
    return network(header + options + packet, **{"protocol" if network is ipv4 else "next_header": PROTO_GRE}, **fields)


TUNNELS = {
    "vxlan": vxlan(packet_of()),
    "vxlan on Linux's port": vxlan(packet_of(), port=8472),
    "gre": gre(packet_of()),
    "gre over ipv6": gre(packet_of(), network=ipv6),
    "gre with checksum, key and sequence number": gre(packet_of(), flags=0xB000, options=b"\0" * 12),
    "ethernet in gre": gre(ethernet(packet_of()), protocol=0x6558),
    "erspan I": gre(ethernet(packet_of()), protocol=0x88BE),
    "erspan II": gre(b"\x10\0\0\0\0\0\0\0" + ethernet(packet_of()), flags=0x1000, options=b"\0" * 4, protocol=0x88BE),
    "erspan III": gre(b"\x20" + b"\0" * 11 + ethernet(packet_of()), flags=0x1000, options=b"\0" * 4, protocol=0x22EB),
    "erspan III with subheader": gre(
        b"\x20" + b"\0" * 10 + b"\1" + b"\0" * 8 + ethernet(packet_of()),
        flags=0x1000,
        options=b"\0" * 4,
        protocol=0x22EB,
    ),
    "ip in ip": ipv4(packet_of(), protocol=PROTO_IPIP),
    "ipv6 in ipv4": ipv4(packet_of(**V6), protocol=PROTO_IPV6),
    "ipv4 in ipv6": ipv6(packet_of(), next_header=PROTO_IPIP),
    "four in each other": ipv4(gre(vxlan(ipv4(packet_of(), protocol=PROTO_IPIP))), protocol=PROTO_IPIP),
}


@pytest.mark.parametrize("tunnel", TUNNELS)
def test_tunnel_is_opened_only_with_decap(tunnel):
    frame = ethernet(TUNNELS[tunnel])
    assert story_of(frame, decap=True) == HELLO_STORY
    reassembler = Reassembler([80])
    assert feed(reassembler, [(START_NS, frame)]) == []
    assert reassembler.statistics().packets_not_tcp == 1


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(ipv4(TUNNELS["four in each other"], protocol=PROTO_IPIP)),
        ethernet(vxlan(packet_of(), flags=0)),
        ethernet(gre(packet_of(), flags=0x0001)),
        ethernet(ipv4(udp(50000, 53, b"\x08" + b"\0" * 60), protocol=PROTO_UDP)),
    ],
    ids=["five in each other", "vxlan without I", "gre version 1", "udp to another port"],
)
def test_what_is_no_known_tunnel_is_not_opened(frame):
    reassembler = Reassembler(decap=True)
    assert feed(reassembler, [(START_NS, frame)]) == []
    assert reassembler.statistics().packets_not_tcp == 1


def test_tunnel_cut_to_the_mtu_leaves_a_hole():
    conversation = (
        Conversation(wrap=lambda packet: ethernet(vxlan(packet))).handshake().data(b"0123456789").data(b"abc")
    )
    time_ns, frame = conversation.packets[3]
    conversation.packets[3] = (time_ns, frame[:-4])
    reassembler = Reassembler([80], decap=True)
    events = feed(reassembler, conversation.packets) + reassembler.flush()
    assert story(events)[1:-1] == [("data", 0, 0, b"012345"), ("gap", 0, 6, 4), ("data", 0, 10, b"abc")]


def test_fragmented_tunnel_is_opened():
    packet = vxlan(packet_of())
    pieces = [
        ipv4(
            packet[20:][at : at + 48],
            protocol=PROTO_UDP,
            identification=9,
            more_fragments=at + 48 < len(packet) - 20,
            fragment_offset=at,
        )
        for at in range(0, len(packet) - 20, 48)
    ]
    assert len(pieces) > 1
    assert story(feed(Reassembler([80], decap=True), [(START_NS, ethernet(piece)) for piece in pieces])) == HELLO_STORY


def test_fin_of_a_padded_frame_is_at_the_end_of_the_payload():
    fin = ethernet(ipv4(tcp(40000, 80, seq=1, flags=FIN, payload=b"x")), minimum=60)
    assert story_of(fin) == [("opened",), ("data", 0, 0, b"x"), ("ended", 0, 1)]
