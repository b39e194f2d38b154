"""The kernel's filter, run by libpcap over hand-made packets."""

import struct

import pcapy
import pytest

from gopher.capture.bpf import capture_filter
from gopher.config import SourceConfig
from tests.support.packets import (
    ACK,
    CLIENT,
    CLIENT6,
    FIN,
    LINKTYPE_ETHERNET,
    LINKTYPE_SLL,
    PROTO_AH,
    PROTO_DESTINATION,
    PROTO_FRAGMENT,
    PROTO_HOP_BY_HOP,
    PROTO_ROUTING,
    PROTO_UDP,
    PSH,
    RST,
    SERVER,
    SERVER6,
    SYN,
    ethernet,
    ipv4,
    ipv4_fragments,
    ipv6,
    ipv6_authentication,
    ipv6_options,
    linux_cooked,
    tcp,
    udp,
)

TIMESTAMPS = bytes.fromhex("0101080a0000000100000002")
ICMPV6 = 58


def passes(frame, *, ports=(80,), excluded=(), interface="eth0", linktype=LINKTYPE_ETHERNET, **settings):
    config = SourceConfig(ports=ports, interface=interface, **settings)
    expression = capture_filter(config, excluded, interface=interface)
    return pcapy.compile(linktype, 262_144, expression, 1, 0).filter(frame) != 0


def segment(network, *, to_port=80, from_port=40000, flags=ACK, payload=b"", options=b"", **ip):
    """A segment in a frame, from the client to the server unless `ip` says otherwise."""
    return ethernet(network(tcp(from_port, to_port, seq=1, flags=flags, payload=payload, options=options), **ip))


both_families = pytest.mark.parametrize("network", [ipv4, ipv6])


@both_families
@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK])
def test_segment_without_payload_but_a_flag_that_matters_passes(network, flags):
    assert passes(segment(network, flags=flags, options=TIMESTAMPS))


@both_families
@pytest.mark.parametrize("payload", [b"x", b"x" * 1400])
def test_payload_passes(network, payload):
    assert passes(segment(network, flags=PSH | ACK, payload=payload, options=TIMESTAMPS))


@both_families
@pytest.mark.parametrize("options", [b"", TIMESTAMPS])
@pytest.mark.parametrize("responses", [False, True])
def test_pure_ack_is_left_out(network, options, responses):
    assert not passes(segment(network, options=options), responses=responses)
    assert not passes(segment(network, to_port=40000, from_port=80, options=options), responses=responses)


def test_pure_ack_in_a_padded_frame_is_left_out():
    assert not passes(ethernet(ipv4(tcp(40000, 80, seq=1)), minimum=60))


def test_ipv4_options_count_as_header():
    assert not passes(ethernet(ipv4(tcp(40000, 80, seq=1), options=b"\x94\x04\0\0")))
    assert passes(ethernet(ipv4(tcp(40000, 80, seq=1, payload=b"x"), options=b"\x94\x04\0\0")))


def test_length_of_zero_from_offload_passes():
    assert passes(segment(ipv4, payload=b"x" * 70_000, total_length=0))
    assert passes(segment(ipv6, payload=b"x" * 70_000, payload_length=0))


@both_families
def test_any_configured_port_passes_and_no_other(network):
    assert passes(segment(network, to_port=8080, payload=b"x"), ports=(80, 8080))
    assert passes(segment(network, to_port=80, payload=b"x"), ports=(80, 8080))
    assert not passes(segment(network, to_port=443, payload=b"x"), ports=(80, 8080))


@both_families
def test_servers_direction_passes_only_with_responses(network):
    response = segment(network, to_port=40000, from_port=80, payload=b"x")
    assert not passes(response)
    assert passes(response, responses=True)


@both_families
def test_udp_to_the_port_is_left_out(network):
    field = "protocol" if network is ipv4 else "next_header"
    assert not passes(ethernet(network(udp(40000, 80, b"x"), **{field: PROTO_UDP})))


def test_later_ipv4_fragments_pass_whatever_their_ports():
    first, *later = ipv4_fragments(
        tcp(40000, 443, seq=1, payload=b"x" * 64), CLIENT[0], SERVER[0], identification=1, size=32
    )
    assert not passes(ethernet(first))
    assert len(later) == 2
    assert all(passes(ethernet(fragment)) for fragment in later)


def test_first_ipv4_fragment_without_payload_passes():
    # 20 bytes do not divide by 8: with 4 bytes of options the first fragment is exactly the headers.
    first, *_ = ipv4_fragments(
        tcp(40000, 80, seq=1, payload=b"x" * 8, options=b"\1\1\1\1"), CLIENT[0], SERVER[0], identification=1, size=24
    )
    assert passes(ethernet(first))


def test_later_fragments_of_udp_are_left_out():
    assert not passes(ethernet(ipv4(b"x" * 64, protocol=PROTO_UDP, fragment_offset=64)))


@pytest.mark.parametrize(
    "extension",
    [
        (PROTO_HOP_BY_HOP, ipv6_options()),
        (PROTO_ROUTING, b"\0" * 7),
        (PROTO_FRAGMENT, struct.pack("!xHI", 0, 1)),
        (PROTO_AH, ipv6_authentication()),
        (PROTO_DESTINATION, ipv6_options()),
    ],
)
def test_ipv6_extension_headers_pass(extension):
    assert passes(segment(ipv6, payload=b"x", extensions=[extension]))


def test_multicast_listener_report_is_left_out():
    report = ipv6(b"\x8f" + b"\0" * 27, next_header=ICMPV6, extensions=[(PROTO_HOP_BY_HOP, ipv6_options())])
    assert not passes(ethernet(report))


@pytest.mark.parametrize(
    ("network", "upstream"),
    [
        (ipv4, SERVER),
        (ipv4, (f"::ffff:{SERVER[0]}", 80)),
        (ipv6, SERVER6),
        (ipv6, (f"{SERVER6[0]}%eth0", 80)),
    ],
)
def test_own_upstream_connection_is_left_out_in_both_directions(network, upstream):
    server, client = (SERVER[0], CLIENT[0]) if network is ipv4 else (SERVER6[0], CLIENT6[0])
    others = [("198.51.100.1", 80), ("2001:db8::99", 80)]
    excluded = [others[0], upstream, others[1]]
    to_upstream = segment(network, payload=b"x")
    from_upstream = segment(network, to_port=40000, from_port=80, payload=b"x", source=server, destination=client)
    for frame in (to_upstream, from_upstream):
        assert passes(frame, responses=True, excluded=others)
        assert not passes(frame, responses=True, excluded=excluded)
    assert not passes(to_upstream, excluded=excluded)


@both_families
def test_upstreams_host_as_a_client_passes(network):
    # The machine of an upstream may well use production itself.
    excluded = [(CLIENT[0], 80), (CLIENT6[0], 80)]
    assert passes(segment(network, payload=b"x"), excluded=excluded)
    assert passes(segment(network, payload=b"x"), excluded=excluded, responses=True)


@both_families
def test_upstream_on_another_port_of_productions_address_hides_nothing(network):
    assert passes(segment(network, payload=b"x"), excluded=[(SERVER[0], 8080), (SERVER6[0], 8080)])


@pytest.mark.parametrize(("network", "unspecified", "loopback"), [(ipv4, "0.0.0.0", "127.0.0.1"), (ipv6, "::", "::1")])
def test_upstream_at_the_unspecified_address_means_loopback(network, unspecified, loopback):
    frame = segment(network, payload=b"x", source=loopback, destination=loopback)
    assert passes(frame)
    assert not passes(frame, excluded=[(unspecified, 80)])


def test_own_jumbograms_to_an_upstream_are_left_out():
    jumbogram = segment(ipv6, payload=b"x" * 70_000, payload_length=0, extensions=[(PROTO_HOP_BY_HOP, ipv6_options())])
    assert passes(jumbogram)
    assert passes(jumbogram, excluded=[(SERVER6[0], 8080)])
    assert not passes(jumbogram, excluded=[SERVER6])


def test_users_filter_narrows():
    frame = segment(ipv4, payload=b"x")
    assert passes(frame, filter="src net 192.0.2.0/24")
    assert not passes(frame, filter="src net 198.51.100.0/24")


def test_users_alternatives_stay_within_gophers_own():
    assert not passes(segment(ipv4, to_port=443, payload=b"x"), filter="port 22 or port 443")


def outgoing(packet):
    return struct.pack("!H", 4) + linux_cooked(packet)[2:]


@pytest.mark.parametrize(("network", "address"), [(ipv4, "127.0.0.1"), (ipv4, "127.9.9.9"), (ipv6, "::1")])
def test_any_takes_the_arriving_copy_of_loopback_traffic(network, address):
    packet = network(tcp(40000, 80, seq=1, payload=b"x"), address, address)
    assert passes(linux_cooked(packet), interface="any", linktype=LINKTYPE_SLL)
    assert not passes(outgoing(packet), interface="any", linktype=LINKTYPE_SLL)


@both_families
def test_any_takes_outgoing_packets_to_other_hosts(network):
    packet = network(tcp(40000, 80, seq=1, payload=b"x"))
    assert passes(outgoing(packet), interface="any", linktype=LINKTYPE_SLL)


@pytest.mark.parametrize(
    ("protocol", "payload"),
    [
        (PROTO_UDP, udp(50_000, 4789, b"vxlan")),
        (PROTO_UDP, udp(50_000, 8472, b"vxlan")),
        (47, b"gre"),
        (4, b"ipv4"),
        (41, b"ipv6"),
    ],
    ids=["vxlan", "old-vxlan", "gre", "ipv4", "ipv6"],
)
def test_tunnels_pass_only_with_decap(protocol, payload):
    for frame in (ethernet(ipv4(payload, protocol=protocol)), ethernet(ipv6(payload, next_header=protocol))):
        assert passes(frame, decap=True)
        assert not passes(frame)


def test_headers_that_hide_the_ports_pass():
    packet = ipv4(tcp(40_000, 80, seq=1, payload=b"x"))
    # As the kernel shows a frame of two tags: the outer one is off already.
    assert passes(ethernet(packet, vlans=[7]))
    for ethertype in (0x88A8, 0x8847, 0x8864):
        assert passes(ethernet(b"label" + packet, ethertype=ethertype))
