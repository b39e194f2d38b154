# Frame -> TCP segment: link, IP and TCP headers.
#
# Every read goes through a Cursor: `has` checks, then `take` advances; nothing read from a packet moves a pointer
# before it was compared with what is left. Lengths come from the IP header, because short frames are padded and
# offloaded ones have lost their length field.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum WireStatus:
    WIRE_TCP
    WIRE_NOT_TCP
    WIRE_FRAGMENT       # an IP fragment, of TCP or not: only `Segment.fragment` is filled in
    WIRE_MALFORMED
    WIRE_TUNNEL         # a packet in a packet (between the functions below only)

cdef enum:
    LENGTH_LIMIT = 1 << 24  # bytes of one segment; Linux stops at 512 KiB (GSO_MAX_SIZE), a jumbogram may claim 4 GiB

cdef enum:
    TCP_FIN = 0x01
    TCP_SYN = 0x02
    TCP_RST = 0x04
    TCP_ACK = 0x10

# Link types, by their number in capture files (https://www.tcpdump.org/linktypes.html).
cdef enum:
    LINK_NULL = 0
    LINK_ETHERNET = 1
    LINK_PPP = 9
    LINK_RAW_BSD = 12
    LINK_RAW_OPENBSD = 14
    LINK_PPP_SERIAL = 50
    LINK_PPP_ETHER = 51
    LINK_RAW = 101
    LINK_LOOP = 108
    LINK_SLL = 113
    LINK_IPV4 = 228
    LINK_IPV6 = 229
    LINK_SLL2 = 276

cdef enum:
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86DD
    ETHERTYPE_VLAN = 0x8100
    ETHERTYPE_QINQ = 0x88A8
    ETHERTYPE_QINQ_OLD = 0x9100
    ETHERTYPE_MPLS = 0x8847
    ETHERTYPE_MPLS_MULTICAST = 0x8848
    ETHERTYPE_PPPOE = 0x8864
    ETHERTYPE_ANY_IP = 0x10000      # ours: the first nibble says which
    ETHERTYPE_NONE = 0x10001        # ours: nothing we read

cdef enum:
    PROTOCOL_HOP_BY_HOP = 0
    PROTOCOL_IPV4 = 4
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    PROTOCOL_IPV6 = 41
    PROTOCOL_ROUTING = 43
    PROTOCOL_FRAGMENT = 44
    PROTOCOL_GRE = 47
    PROTOCOL_AH = 51
    PROTOCOL_DESTINATION = 60
    OPTION_JUMBO = 0xC2
    TCP_OPTION_END = 0
    TCP_OPTION_NOP = 1
    TCP_OPTION_WINDOW_SCALE = 3
    TCP_OPTION_MD5 = 19
    TCP_OPTION_AO = 29

cdef enum:
    PORT_VXLAN = 4789
    PORT_VXLAN_LINUX = 8472     # what Linux used before the number was assigned, and still does by default
    GRE_ETHERNET = 0x6558
    GRE_ERSPAN_2 = 0x88BE
    GRE_ERSPAN_3 = 0x22EB
    TUNNELS_MAX = 4             # packets in packets in packets ...

# A flow's four-tuple without direction: the two ends in ascending order, so that both directions have one key.
cdef struct FlowKey:
    # [0]: family (4 or 6) << 32 | port of end 0 << 16 | port of end 1
    # IPv4: [1]: address of end 0 << 32 | address of end 1. IPv6: [1], [2]: address of end 0; [3], [4]: of end 1.
    uint64_t words[5]

cdef struct Cursor:
    const uint8_t* at       # borrowed until feed() returns
    const uint8_t* end

cdef struct Fragment:
    # [0]: family << 56 | protocol (IPv4 only) << 32 | identification; the rest as in FlowKey, source first
    uint64_t key[5]
    const uint8_t* data         # borrowed until feed() returns
    uint32_t offset             # of data in the whole packet's payload
    uint32_t length             # bytes of data
    uint8_t protocol            # of the payload; IPv6: meaningful in the first fragment only (RFC 8200 section 4.5)
    bint more

cdef struct Segment:
    FlowKey key
    uint64_t hash
    int64_t time_ns             # capture clock
    const uint8_t* payload      # borrowed until feed() returns
    const uint8_t* options      # likewise
    Fragment fragment
    uint32_t captured           # payload bytes that are there
    uint32_t length             # payload bytes that were on the wire; more than `captured` if the snap length cut it
    uint32_t seq
    uint32_t ack
    uint16_t window             # as in the header, unscaled
    uint16_t source_port
    uint16_t destination_port
    uint8_t options_length
    uint8_t flags
    uint8_t sender              # which end of the key sent it
    uint8_t status              # WireStatus

cdef inline bint has(const Cursor* cursor, Py_ssize_t count) noexcept nogil:
    return cursor.end - cursor.at >= count

cdef inline uint16_t be16(const uint8_t* at) noexcept nogil:
    return <uint16_t>((at[0] << 8) | at[1])

cdef inline uint32_t be32(const uint8_t* at) noexcept nogil:
    return (<uint32_t>at[0] << 24) | (<uint32_t>at[1] << 16) | (<uint32_t>at[2] << 8) | at[3]

cdef inline uint64_t be64(const uint8_t* at) noexcept nogil:
    return (<uint64_t>be32(at) << 32) | be32(at + 4)

cdef inline uint32_t ppp_type(Cursor* cursor) noexcept nogil:
    """The EtherType that a PPP protocol field (RFC 1661 section 2, one or two bytes) stands for."""
    cdef uint32_t protocol
    if not has(cursor, 1):
        return ETHERTYPE_NONE
    protocol = cursor.at[0]
    cursor.at += 1
    if not protocol & 1:
        if not has(cursor, 1):
            return ETHERTYPE_NONE
        protocol = (protocol << 8) | cursor.at[0]
        cursor.at += 1
    if protocol == 0x0021:
        return ETHERTYPE_IPV4
    if protocol == 0x0057:
        return ETHERTYPE_IPV6
    if protocol == 0x0281:
        return ETHERTYPE_MPLS
    return ETHERTYPE_NONE

cdef inline uint32_t link_type(Cursor* cursor, int linktype) noexcept nogil:
    """Step over the link header. Returns the EtherType of what follows, ETHERTYPE_NONE if it is cut or unknown."""
    cdef uint32_t value
    if linktype == LINK_ETHERNET:
        if not has(cursor, 14):
            return ETHERTYPE_NONE
        value = be16(cursor.at + 12)
        cursor.at += 14
        if value <= 1500 and has(cursor, 8) and be16(cursor.at) == 0xAAAA:
            # IEEE 802.3 with LLC and SNAP (RFC 1042): the field was a length, the type comes later.
            value = be16(cursor.at + 6)
            cursor.at += 8
        return value
    if linktype == LINK_SLL:
        if not has(cursor, 16):
            return ETHERTYPE_NONE
        value = be16(cursor.at + 14)
        cursor.at += 16
        return value
    if linktype == LINK_SLL2:
        if not has(cursor, 20):
            return ETHERTYPE_NONE
        value = be16(cursor.at)
        cursor.at += 20
        return value
    if linktype == LINK_NULL or linktype == LINK_LOOP:
        if not has(cursor, 4):
            return ETHERTYPE_NONE
        value = be32(cursor.at)
        cursor.at += 4
        if value > 0xFFFF:
            value = (value >> 24) | ((value >> 8) & 0xFF00)  # NULL is in the order of the host that captured
        if value == 2:
            return ETHERTYPE_IPV4
        if value == 24 or value == 28 or value == 30 or value == 10:
            return ETHERTYPE_IPV6  # AF_INET6 of NetBSD, FreeBSD, macOS and Linux
        return ETHERTYPE_NONE
    if linktype == LINK_RAW or linktype == LINK_RAW_BSD or linktype == LINK_RAW_OPENBSD:
        return ETHERTYPE_ANY_IP
    if linktype == LINK_IPV4:
        return ETHERTYPE_IPV4
    if linktype == LINK_IPV6:
        return ETHERTYPE_IPV6
    if linktype == LINK_PPP or linktype == LINK_PPP_SERIAL:
        if has(cursor, 2) and be16(cursor.at) == 0xFF03:
            cursor.at += 2
        return ppp_type(cursor)
    if linktype == LINK_PPP_ETHER:
        return ETHERTYPE_PPPOE
    return ETHERTYPE_NONE

cdef inline uint32_t network_type(Cursor* cursor, uint32_t ethertype) noexcept nogil:
    """Step over tags, labels and PPPoE. Returns ETHERTYPE_ANY_IP or ETHERTYPE_NONE.

    Ends because each round consumes at least four bytes.
    """
    cdef bint bottom
    while True:
        if ethertype == ETHERTYPE_IPV4 or ethertype == ETHERTYPE_IPV6 or ethertype == ETHERTYPE_ANY_IP:
            # The version field decides, as in other readers: some capture points write the wrong type.
            return ETHERTYPE_ANY_IP
        if ethertype == ETHERTYPE_VLAN or ethertype == ETHERTYPE_QINQ or ethertype == ETHERTYPE_QINQ_OLD:
            if not has(cursor, 4):
                return ETHERTYPE_NONE
            ethertype = be16(cursor.at + 2)
            cursor.at += 4
        elif ethertype == ETHERTYPE_MPLS or ethertype == ETHERTYPE_MPLS_MULTICAST:
            bottom = False
            while not bottom:
                if not has(cursor, 4):
                    return ETHERTYPE_NONE
                bottom = cursor.at[2] & 1
                cursor.at += 4
            return ETHERTYPE_ANY_IP  # labels do not say what they carry
        elif ethertype == ETHERTYPE_PPPOE:
            if not has(cursor, 6) or cursor.at[0] != 0x11 or cursor.at[1] != 0:
                return ETHERTYPE_NONE  # only session data (RFC 2516 section 4: VER 1, TYPE 1, CODE 0) carries IP
            cursor.at += 6
            ethertype = ppp_type(cursor)
        else:
            return ETHERTYPE_NONE

cdef inline int parse_tcp(Cursor* cursor, int64_t wire_length, Segment* segment) noexcept nogil:
    """Read the TCP header at the cursor. `wire_length`: header and payload as the IP header tells."""
    cdef Py_ssize_t header
    if not has(cursor, 20) or wire_length > LENGTH_LIMIT:
        return WIRE_MALFORMED
    header = (cursor.at[12] >> 4) * 4
    if header < 20 or header > wire_length or not has(cursor, header):
        return WIRE_MALFORMED
    segment.source_port = be16(cursor.at)
    segment.destination_port = be16(cursor.at + 2)
    segment.seq = be32(cursor.at + 4)
    segment.ack = be32(cursor.at + 8)
    segment.flags = cursor.at[13]
    segment.window = be16(cursor.at + 14)
    segment.options = cursor.at + 20
    segment.options_length = <uint8_t>(header - 20)
    segment.payload = cursor.at + header
    segment.captured = <uint32_t>(cursor.end - segment.payload)
    segment.length = <uint32_t>(wire_length - header)
    return WIRE_TCP

cdef inline void key_ipv4(Segment* segment, uint32_t source, uint32_t destination) noexcept nogil:
    cdef uint64_t from_end = (<uint64_t>source << 16) | segment.source_port
    cdef uint64_t to_end = (<uint64_t>destination << 16) | segment.destination_port
    cdef uint64_t low = from_end
    cdef uint64_t high = to_end
    segment.sender = from_end > to_end
    if segment.sender:
        low = to_end
        high = from_end
    segment.key.words[0] = (<uint64_t>4 << 32) | ((low & 0xFFFF) << 16) | (high & 0xFFFF)
    segment.key.words[1] = ((low >> 16) << 32) | (high >> 16)

cdef inline void key_ipv6(Segment* segment, const uint8_t* source, const uint8_t* destination) noexcept nogil:
    cdef uint64_t source_high = be64(source)
    cdef uint64_t source_low = be64(source + 8)
    cdef uint64_t destination_high = be64(destination)
    cdef uint64_t destination_low = be64(destination + 8)
    cdef bint swap
    if source_high != destination_high:
        swap = source_high > destination_high
    elif source_low != destination_low:
        swap = source_low > destination_low
    else:
        swap = segment.source_port > segment.destination_port
    segment.sender = swap
    if swap:
        segment.key.words[0] = (<uint64_t>6 << 32) | (<uint64_t>segment.destination_port << 16) | segment.source_port
        segment.key.words[1] = destination_high
        segment.key.words[2] = destination_low
        segment.key.words[3] = source_high
        segment.key.words[4] = source_low
    else:
        segment.key.words[0] = (<uint64_t>6 << 32) | (<uint64_t>segment.source_port << 16) | segment.destination_port
        segment.key.words[1] = source_high
        segment.key.words[2] = source_low
        segment.key.words[3] = destination_high
        segment.key.words[4] = destination_low

cdef inline int parse_fragment(Cursor* cursor, int64_t length, uint32_t offset, bint more,
                               Fragment* fragment) noexcept nogil:
    """`length`: payload bytes as the IP header tells. A cut fragment is of no use: the whole would have a hole."""
    if not has(cursor, length) or length <= 0 or (more and length % 8):
        return WIRE_MALFORMED
    fragment.data = cursor.at
    fragment.offset = offset
    fragment.length = <uint32_t>length
    fragment.more = more
    return WIRE_FRAGMENT

cdef inline int parse_gre(Cursor* cursor, uint32_t* ethertype) noexcept nogil:
    """Step over a GRE header (RFC 2784, RFC 2890) and what mirrors put behind it."""
    cdef uint32_t flags
    cdef uint32_t protocol
    cdef Py_ssize_t length = 4
    if not has(cursor, 4):
        return WIRE_MALFORMED
    flags = be16(cursor.at)
    protocol = be16(cursor.at + 2)
    if flags & 0x4007:  # routing, or another version: PPTP
        return WIRE_NOT_TCP
    length += 4 * (((flags >> 15) & 1) + ((flags >> 13) & 1) + ((flags >> 12) & 1))
    if protocol == GRE_ERSPAN_2 and flags & 0x1000:  # type I has neither sequence number nor header
        length += 8
    elif protocol == GRE_ERSPAN_3:
        length += 12
    if not has(cursor, length):
        return WIRE_MALFORMED
    if protocol == GRE_ERSPAN_3 and cursor.at[length - 1] & 1:
        length += 8  # the O bit: a platform specific subheader follows
        if not has(cursor, length):
            return WIRE_MALFORMED
    cursor.at += length
    if protocol == GRE_ETHERNET or protocol == GRE_ERSPAN_2 or protocol == GRE_ERSPAN_3:
        protocol = link_type(cursor, LINK_ETHERNET)
    ethertype[0] = protocol
    return WIRE_TUNNEL

cdef inline int parse_tunnel(Cursor* cursor, uint8_t protocol, uint32_t* ethertype) noexcept nogil:
    """Step into a tunnelled packet: WIRE_TUNNEL, and the cursor at what `ethertype` says; else WIRE_NOT_TCP."""
    cdef uint32_t port
    if protocol == PROTOCOL_IPV4 or protocol == PROTOCOL_IPV6:
        ethertype[0] = ETHERTYPE_ANY_IP
        return WIRE_TUNNEL
    if protocol == PROTOCOL_GRE:
        return parse_gre(cursor, ethertype)
    if protocol == PROTOCOL_UDP and has(cursor, 16):
        port = be16(cursor.at + 2)
        if (port == PORT_VXLAN or port == PORT_VXLAN_LINUX) and cursor.at[8] & 0x08:  # RFC 7348 section 5: the I flag
            cursor.at += 16
            ethertype[0] = link_type(cursor, LINK_ETHERNET)
            return WIRE_TUNNEL
    return WIRE_NOT_TCP

cdef inline int parse_ipv4(Cursor* cursor, Segment* segment, uint32_t* ethertype) noexcept nogil:
    cdef const uint8_t* header = cursor.at
    cdef Fragment* fragment
    cdef Py_ssize_t header_length
    cdef int64_t total
    cdef int status
    if not has(cursor, 20) or header[0] >> 4 != 4:
        return WIRE_MALFORMED
    header_length = (header[0] & 0x0F) * 4
    total = be16(header + 2)
    if header_length < 20 or not has(cursor, header_length):
        return WIRE_MALFORMED
    if total == 0:
        total = cursor.end - header  # segmentation offload and IPv4 BIG TCP leave the field empty
    if total < header_length:
        return WIRE_MALFORMED
    if cursor.end - header > total:
        cursor.end = header + total
    cursor.at += header_length
    if be16(header + 6) & 0x3FFF:
        fragment = &segment.fragment
        fragment.key[0] = (<uint64_t>4 << 56) | (<uint64_t>header[9] << 32) | be16(header + 4)
        fragment.key[1] = be64(header + 12)
        fragment.key[2] = fragment.key[3] = fragment.key[4] = 0
        fragment.protocol = header[9]
        return parse_fragment(cursor, total - header_length, (be16(header + 6) & 0x1FFF) * 8,
                              header[6] & 0x20 != 0, fragment)
    if header[9] != PROTOCOL_TCP:
        return parse_tunnel(cursor, header[9], ethertype) if ethertype != NULL else WIRE_NOT_TCP
    status = parse_tcp(cursor, total - header_length, segment)
    if status == WIRE_TCP:
        key_ipv4(segment, be32(header + 12), be32(header + 16))
    return status

cdef inline int64_t jumbo_length(const uint8_t* options, Py_ssize_t length) noexcept nogil:
    """The Jumbo Payload option's value (RFC 2675 section 2) among hop-by-hop options, 0 without one."""
    cdef Py_ssize_t at = 0
    while at < length:
        if options[at] == 0:  # Pad1 has no length
            at += 1
            continue
        if at + 2 > length or at + 2 + options[at + 1] > length:
            return 0
        if options[at] == OPTION_JUMBO and options[at + 1] == 4:
            return be32(options + at + 2)
        at += 2 + options[at + 1]
    return 0

cdef inline int parse_ipv6(Cursor* cursor, Segment* segment, uint32_t* ethertype) noexcept nogil:
    cdef const uint8_t* header = cursor.at
    cdef Fragment* fragment
    cdef const uint8_t* body
    cdef int64_t payload
    cdef int64_t jumbo
    cdef uint8_t protocol
    cdef uint32_t offset
    cdef Py_ssize_t extension
    cdef int status
    if not has(cursor, 40) or header[0] >> 4 != 6:
        return WIRE_MALFORMED
    body = header + 40
    payload = be16(header + 4)
    protocol = header[6]
    cursor.at = body
    if payload == 0:
        payload = cursor.end - body  # segmentation offload; a jumbogram says more below
        if protocol == PROTOCOL_HOP_BY_HOP and has(cursor, 8) and has(cursor, (body[1] + 1) * 8):
            jumbo = jumbo_length(body + 2, (body[1] + 1) * 8 - 2)
            if jumbo > 0:
                payload = jumbo
    if cursor.end - body > payload:
        cursor.end = body + payload
    while protocol != PROTOCOL_TCP:
        if protocol == PROTOCOL_FRAGMENT:
            if not has(cursor, 8):
                return WIRE_MALFORMED
            if be16(cursor.at + 2) & 0xFFF9:
                fragment = &segment.fragment
                fragment.key[0] = (<uint64_t>6 << 56) | be32(cursor.at + 4)
                fragment.key[1] = be64(header + 8)
                fragment.key[2] = be64(header + 16)
                fragment.key[3] = be64(header + 24)
                fragment.key[4] = be64(header + 32)
                fragment.protocol = cursor.at[0]
                offset = be16(cursor.at + 2)
                cursor.at += 8
                return parse_fragment(cursor, payload - (cursor.at - body), offset & 0xFFF8, offset & 1, fragment)
            extension = 8  # an atomic fragment (RFC 6946) is a whole packet
        elif protocol == PROTOCOL_HOP_BY_HOP or protocol == PROTOCOL_ROUTING or protocol == PROTOCOL_DESTINATION:
            if not has(cursor, 8):
                return WIRE_MALFORMED
            extension = (cursor.at[1] + 1) * 8
        elif protocol == PROTOCOL_AH:
            if not has(cursor, 8):
                return WIRE_MALFORMED
            extension = (cursor.at[1] + 2) * 4
        else:
            return parse_tunnel(cursor, protocol, ethertype) if ethertype != NULL else WIRE_NOT_TCP
        if not has(cursor, extension):
            return WIRE_MALFORMED
        protocol = cursor.at[0]
        cursor.at += extension
    status = parse_tcp(cursor, payload - (cursor.at - body), segment)
    if status == WIRE_TCP:
        key_ipv6(segment, header + 8, header + 24)
    return status

cdef inline int parse_frame(int linktype, bint decap, const uint8_t* frame, Py_ssize_t captured,
                            Segment* segment) noexcept nogil:
    """Fill in `segment` (all but `hash` and `time_ns`) from one captured frame. Returns a WireStatus.

    Args:
        decap: look into VXLAN, GRE, ERSPAN and IP-in-IP for the innermost packet.
    """
    cdef Cursor cursor
    cdef uint32_t ethertype
    cdef uint32_t* inner = &ethertype if decap else NULL
    cdef int status
    cdef int _depth
    cursor.at = frame
    cursor.end = frame + captured
    ethertype = link_type(&cursor, linktype)
    for _depth in range(TUNNELS_MAX + 1):
        if network_type(&cursor, ethertype) == ETHERTYPE_NONE:
            return WIRE_NOT_TCP
        if has(&cursor, 1) and cursor.at[0] >> 4 == 6:
            status = parse_ipv6(&cursor, segment, inner)
        else:
            status = parse_ipv4(&cursor, segment, inner)
        if status != WIRE_TUNNEL:
            return status
    return WIRE_NOT_TCP

cdef inline int window_shift(const Segment* segment) noexcept nogil:
    """The window scale option of a SYN (RFC 7323 section 2.2), -1 without one."""
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t length = segment.options_length
    cdef const uint8_t* options = segment.options
    while at < length and options[at] != TCP_OPTION_END:
        if options[at] == TCP_OPTION_NOP:
            at += 1
            continue
        if at + 2 > length or options[at + 1] < 2 or at + options[at + 1] > length:
            return -1
        if options[at] == TCP_OPTION_WINDOW_SCALE and options[at + 1] == 3:
            return options[at + 2] if options[at + 2] <= 14 else 14
        at += options[at + 1]
    return -1

cdef inline bint is_signed(const Segment* segment) noexcept nogil:
    """Whether the segment carries an MD5 signature (RFC 2385) or TCP-AO option (RFC 5925)."""
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t length = segment.options_length
    cdef const uint8_t* options = segment.options
    while at < length and options[at] != TCP_OPTION_END:
        if options[at] == TCP_OPTION_NOP:
            at += 1
            continue
        if options[at] == TCP_OPTION_MD5 or options[at] == TCP_OPTION_AO:
            return True
        if at + 2 > length or options[at + 1] < 2:
            return False
        at += options[at + 1]
    return False

cdef inline bint checksum_is_right(const Segment* segment) noexcept nogil:
    """Whether the TCP checksum of a segment that is there as a whole is right (RFC 9293 section 3.1, RFC 8200 section
    8.1). The addresses may be summed in any order."""
    cdef const uint8_t* at = segment.options - 20
    cdef uint32_t length = 20 + segment.options_length + segment.length
    cdef const uint8_t* end = at + (length & ~<uint32_t>1)
    cdef uint64_t total = 6 + length
    cdef int words = 5 if segment.key.words[0] >> 32 == 6 else 2
    cdef int i
    for i in range(1, words):
        total += (segment.key.words[i] >> 32) + <uint32_t>segment.key.words[i]
    while at < end:
        total += be16(at)
        at += 2
    if length & 1:
        total += <uint32_t>at[0] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF
