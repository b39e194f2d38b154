"""The kernel's filter: which packets are worth copying into the capture ring.

First stage of the source, as a libpcap expression. It may let too much through, for the reassembler looks at ports
again; it must never hold back a packet that carries a wanted byte, SYN, FIN or RST. Packets are chosen by port and
never by the interface's addresses, so virtual addresses, tunnels and load balancers need no settings.

Sans-I/O: a string from settings; libpcap compiles it elsewhere. The language is pcap-filter(7) as of libpcap 1.9.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gopher.config import SourceConfig

__all__ = ["capture_filter"]

# A segment without SYN, FIN or RST whose IP length ends with the TCP header says nothing the reassembler needs.
# A total length of 0 (segmentation offload beyond 64 KiB) never equals the headers' length, so it passes. So does a
# first fragment (More Fragments, 0x20): its payload may be all in the later ones.
_CARRIES_SOMETHING_IPV4 = (
    "(tcp[13] & 7 != 0 or ip[6] & 0x20 != 0 or ip[2:2] != ((ip[0] & 0xf) << 2) + ((tcp[12] & 0xf0) >> 2))"
)
# The TCP header follows the fixed IPv6 header (40 bytes) here; libpcap's tcp[] knows only IPv4.
_CARRIES_SOMETHING_IPV6 = "(ip6[53] & 7 != 0 or ip6[4:2] != (ip6[52] & 0xf0) >> 2)"

# Hop-by-hop (also what jumbograms of IPv6 BIG TCP start with), routing, fragment, authentication, destination options:
# a filter program has no loops to walk to the ports behind them (RFC 8200 section 4.1).
_IPV6_EXTENSION_HEADERS = (0, 43, 44, 51, 60)

# Headers between link and network that hide the ports from a filter program: an inner 802.1Q tag, a second 802.1ad tag,
# MPLS, PPPoE. Few links carry them, and those that do carry all their traffic so.
_HIDDEN_NETWORK = "ether proto 0x8100 or ether proto 0x88a8 or ether proto 0x8847 or ether proto 0x8864"

# What a filter program can tell of encapsulated packets: the outer header. VXLAN: RFC 7348 (4789) and what Linux used
# before there was a number (8472); GRE 47; IPv4 in IP 4; IPv6 in IP 41.
_TUNNELS = (
    "(udp dst port 4789 or udp dst port 8472 or ip proto 47 or ip6 proto 47 or ip proto 4 or ip6 proto 4 or"
    " ip proto 41 or ip6 proto 41)"
)

# Loopback traffic passes the device `any` twice: as it leaves and as it arrives. libpcap would drop the first copy, but
# only after it was counted and has taken its place in the ring.
_OUTGOING_LOOPBACK_COPY = "(outbound and (ip src net 127.0.0.0/8 or ip6 src host ::1))"


def capture_filter(config: SourceConfig, excluded: Sequence[tuple[str, int]], *, interface: str) -> str:
    """Give the libpcap expression for a device.

    Let through: TCP to the configured ports (and from them with `config.responses`) but for pure ACKs; IPv4 fragments
    other than the first, which have no ports; IPv6 packets with extension headers; what has an inner VLAN tag, MPLS or
    PPPoE headers; with `config.decap` all that is in tunnels. All of it only if it also matches `config.filter`, which
    must be a valid expression by itself: it is and-ed in parentheses, and of a tunnel it sees the outer packet.

    A received VLAN tag needs no `vlan` keyword: the kernel has taken it off before the filter runs, and libpcap puts it
    back after. Of two tags (802.1ad) the inner one stays in place: such packets pass whatever their ports.

    Args:
        config: ports, responses, decap and filter are read.
        excluded: (address, port) of every upstream: gopher's own connections to them are left out in both directions,
            or mirroring to the captured port number would feed itself for ever. Numeric addresses.
        interface: on `any`, the outgoing one of the two copies of each packet to 127.0.0.0/8 and ::1 is left out.
    """
    # An upstream on another port number than the captured ones cannot match to begin with.
    looping = [(_on_the_wire(address), port) for address, port in excluded if port in config.ports]
    alternatives = [
        "(ip proto 6 and ip[6:2] & 0x1fff != 0)",
        _wanted("ip", config, [(str(ip), port) for ip, port in looping if ip.version == 4], _CARRIES_SOMETHING_IPV4),
        _wanted("ip6", config, [(str(ip), port) for ip, port in looping if ip.version == 6], _CARRIES_SOMETHING_IPV6),
        _extension_headers(str(ip) for ip, _ in looping if ip.version == 6),
        _HIDDEN_NETWORK,
    ]
    if config.decap:
        alternatives += [_TUNNELS, "(ip proto 17 and ip[6:2] & 0x1fff != 0)"]
    expression = f"({' or '.join(alternatives)})"
    if interface == "any":
        expression += f" and not {_OUTGOING_LOOPBACK_COPY}"
    if config.filter.strip():
        expression += f" and ({config.filter})"
    return expression


def _on_the_wire(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address that packets of a connection to `address` carry."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_unspecified:
        # Linux connects to the loopback address when asked for 0.0.0.0 or ::.
        return ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return ip


def _wanted(family: str, config: SourceConfig, excluded: Iterable[tuple[str, int]], carries_something: str) -> str:
    ends = ("dst", "src") if config.responses else ("dst",)
    ports = " or ".join(f"{end} port {port}" for end in ends for port in config.ports)
    clauses = [f"{family} proto 6 and ({ports})"]
    clauses += [
        f"not ({family} {end} host {address} and {end} port {port})" for address, port in excluded for end in ends
    ]
    clauses.append(carries_something)
    return f"({' and '.join(clauses)})"


def _extension_headers(excluded_hosts: Iterable[str]) -> str:
    first_header = " or ".join(f"ip6[6] = {number}" for number in _IPV6_EXTENSION_HEADERS)
    # Not ICMPv6 (58) behind the first one: multicast listener reports are on every link.
    clauses = [f"ip6 and ({first_header}) and ip6[40] != 58"]
    # The ports are out of reach, so the whole host is left out: BIG TCP gives our own large writes such a header.
    clauses += [f"not ip6 host {host}" for host in excluded_hosts]
    return f"({' and '.join(clauses)})"
