# IP fragments -> whole packets (RFC 791 section 3.2, RFC 8200 section 4.5), within fixed bounds.
#
# A packet whose fragments overlap is thrown away whole, as RFC 5722 demands for IPv6 and Linux does for both families;
# a fragment that came twice is harmless. Options and extension headers are not kept: nobody downstream reads them.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from gopher._held cimport (
    HeldQueue, HeldRun, held_covered, held_end, held_free, held_insert, held_new, held_pop, run_bytes, run_free,
)
from gopher._memory cimport Memory, _acquire, _release
from gopher._wire cimport Fragment

cdef enum:
    # 4 MiB is Linux's ipfrag_high_thresh. Packets are found by a walk over their list, so they are few.
    FRAGMENTS_BYTES = 4 << 20
    FRAGMENTED_PACKETS = 256
    PAYLOAD_LIMIT = 65_535 - 20     # with a header of our own in front
    HEADER_IPV4 = 20
    HEADER_IPV6 = 40

cdef struct Datagram:
    uint64_t key[5]             # Fragment.key
    HeldQueue* pieces           # owned; offsets are those in the payload
    Datagram* older             # borrowed: list by time of the first fragment
    Datagram* newer
    int64_t since_ns            # internal clock: when the first fragment came
    uint32_t length             # bytes of the whole payload, 0 until the last fragment came
    uint8_t protocol

cdef struct Assembled:
    Assembled* next             # owned
    size_t size                 # bytes acquired for this struct and the packet right behind it

cdef struct FragmentTable:
    Datagram* oldest            # owned, as is the whole list
    Datagram* newest
    uint32_t count
    uint64_t bytes              # cost of all pieces
    Assembled* assembled        # owned: whole packets that the records of this call point into

cdef inline uint64_t pieces_cost(const HeldQueue* pieces) noexcept nogil:
    return pieces.bytes + pieces.count * (sizeof(HeldRun) + sizeof(HeldRun*))

cdef inline void datagram_drop(Memory* memory, FragmentTable* table, Datagram* datagram) noexcept nogil:
    if datagram.older != NULL:
        datagram.older.newer = datagram.newer
    else:
        table.oldest = datagram.newer
    if datagram.newer != NULL:
        datagram.newer.older = datagram.older
    else:
        table.newest = datagram.older
    table.count -= 1
    table.bytes -= pieces_cost(datagram.pieces)
    held_free(memory, datagram.pieces)
    _release(memory, datagram, sizeof(Datagram))

cdef inline Datagram* datagram_find(FragmentTable* table, const Fragment* fragment) noexcept nogil:
    cdef Datagram* datagram = table.newest
    while datagram != NULL:
        if memcmp(datagram.key, fragment.key, sizeof(fragment.key)) == 0:
            return datagram
        datagram = datagram.older
    return NULL

cdef inline Datagram* datagram_new(Memory* memory, FragmentTable* table, const Fragment* fragment,
                                   int64_t now_ns) noexcept nogil:
    """NULL without memory. Drops the oldest one if there are too many."""
    cdef Datagram* datagram
    if table.count == FRAGMENTED_PACKETS:
        datagram_drop(memory, table, table.oldest)
    datagram = <Datagram*>_acquire(memory, sizeof(Datagram))
    if datagram == NULL:
        return NULL
    datagram.pieces = held_new(memory, NULL, 0)
    if datagram.pieces == NULL:
        _release(memory, datagram, sizeof(Datagram))
        return NULL
    memcpy(datagram.key, fragment.key, sizeof(fragment.key))
    datagram.since_ns = now_ns
    datagram.length = 0
    datagram.protocol = 0
    datagram.older = table.newest
    datagram.newer = NULL
    if table.newest != NULL:
        table.newest.newer = datagram
    else:
        table.oldest = datagram
    table.newest = datagram
    table.count += 1
    return datagram

cdef inline void write_be16(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value

cdef inline void write_be64(uint8_t* at, uint64_t value) noexcept nogil:
    cdef int i
    for i in range(8):
        at[i] = <uint8_t>(value >> (56 - 8 * i))

cdef inline const uint8_t* datagram_assemble(Memory* memory, FragmentTable* table, Datagram* datagram,
                                             uint32_t* length) noexcept nogil:
    """The whole packet with a plain header, `length` bytes, alive until `fragments_release_assembled`. NULL without
    memory. The datagram is gone either way."""
    cdef bint is_ipv4 = datagram.key[0] >> 56 == 4
    cdef uint32_t header = HEADER_IPV4 if is_ipv4 else HEADER_IPV6
    cdef size_t size = sizeof(Assembled) + header + datagram.length
    cdef Assembled* assembled = <Assembled*>_acquire(memory, size)
    cdef uint8_t* packet
    cdef uint8_t* at
    cdef HeldRun* run
    cdef int i
    if assembled == NULL:
        datagram_drop(memory, table, datagram)
        return NULL
    assembled.size = size
    assembled.next = table.assembled
    table.assembled = assembled
    packet = <uint8_t*>(assembled + 1)
    memset(packet, 0, header)
    if is_ipv4:
        packet[0] = 0x45
        write_be16(packet + 2, header + datagram.length)
        packet[9] = datagram.protocol
        write_be64(packet + 12, datagram.key[1])
    else:
        packet[0] = 0x60
        write_be16(packet + 4, datagram.length)
        packet[6] = datagram.protocol
        for i in range(4):
            write_be64(packet + 8 + 8 * i, datagram.key[1 + i])
    at = packet + header
    table.bytes -= pieces_cost(datagram.pieces)
    while datagram.pieces.count:
        run = held_pop(datagram.pieces)
        memcpy(at, run_bytes(run), <size_t>(run.end - run.start))
        at += run.end - run.start
        run_free(memory, run)
    length[0] = header + datagram.length
    datagram_drop(memory, table, datagram)
    return packet

cdef inline const uint8_t* fragments_take(Memory* memory, FragmentTable* table, const Fragment* fragment,
                                          int64_t now_ns, uint32_t* length) noexcept nogil:
    """Keep a copy of a fragment. Returns the packet, `length` bytes, if this was the last one missing, else NULL."""
    cdef Datagram* datagram = datagram_find(table, fragment)
    cdef uint32_t end = fragment.offset + fragment.length
    cdef uint64_t covered
    cdef uint64_t cost
    cdef bint differing
    cdef bint complete
    if datagram == NULL:
        datagram = datagram_new(memory, table, fragment, now_ns)
        if datagram == NULL:
            return NULL
    covered = held_covered(datagram.pieces, fragment.offset, end)
    if covered == fragment.length:
        return NULL
    if covered or end > PAYLOAD_LIMIT or (datagram.length and end > datagram.length) or (
        not fragment.more and (datagram.length or held_end(datagram.pieces) > end)
    ):
        datagram_drop(memory, table, datagram)
        return NULL
    while table.bytes + fragment.length + sizeof(HeldRun) + sizeof(HeldRun*) > FRAGMENTS_BYTES:
        if table.oldest == datagram:
            datagram_drop(memory, table, datagram)
            return NULL
        datagram_drop(memory, table, table.oldest)
    if fragment.offset == 0:
        datagram.protocol = fragment.protocol
    if not fragment.more:
        datagram.length = end
    cost = pieces_cost(datagram.pieces)
    complete = held_insert(memory, datagram.pieces, 0, fragment.offset, end, fragment.data, now_ns, &differing)
    table.bytes += pieces_cost(datagram.pieces) - cost
    if complete and datagram.length and datagram.pieces.bytes == datagram.length:
        return datagram_assemble(memory, table, datagram, length)
    return NULL

cdef inline void fragments_release_assembled(Memory* memory, FragmentTable* table) noexcept nogil:
    cdef Assembled* assembled
    while table.assembled != NULL:
        assembled = table.assembled
        table.assembled = assembled.next
        _release(memory, assembled, assembled.size)

cdef inline void fragments_clear(Memory* memory, FragmentTable* table) noexcept nogil:
    while table.oldest != NULL:
        datagram_drop(memory, table, table.oldest)
    fragments_release_assembled(memory, table)
