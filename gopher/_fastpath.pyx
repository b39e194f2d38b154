"""Packets in, ordered bytes out: the reassembler.

First stage behind the capture source, before the mirror. Sans-I/O: a batch of packets in, a list of events out; time is
what the packets say. Link, IP and TCP headers are read in `_wire.pxd`, out-of-order bytes kept in `_held.pxd`.
It does not look at payloads, does not verify checksums, and does not decide what a gap means.

Invariants: no Python object is touched per packet; delivered bytes are final; `Direction.next_offset` only grows; every
byte acquired is accounted in `Table.memory`; a `FlowState` slot is not used anew while a record points at it.

RFC 9293 (TCP), RFC 7323 (window scale), RFC 5961 (what a RST and a SYN must prove).
"""

import ipaddress
import math
import os
import sys
from typing import Any, NamedTuple

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport INT64_MAX, UINT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from gopher._fragments cimport datagram_drop, fragments_clear, fragments_release_assembled, fragments_take
from gopher._held cimport (
    HeldQueue, HeldRun, held_covered, held_end, held_free, held_front, held_insert, held_new, held_pop,
    new_wins, run_bytes, run_differs, run_free,
)
from gopher._memory cimport Memory, _acquire, _regrow, _release
from gopher._seq cimport seq_diff
from gopher._wire cimport (
    LINK_RAW, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, WIRE_FRAGMENT, WIRE_MALFORMED, WIRE_TCP, FlowKey, Segment, be32,
    is_signed, parse_frame, window_shift,
)

cdef extern from *:
    """
    #define gopher_prefetch(address) __builtin_prefetch(address)

    /* Both halves of a 128-bit product, folded: every output bit depends on every input bit. */
    static inline uint64_t gopher_fold(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    """
    void gopher_prefetch(const void* address) noexcept nogil
    uint64_t gopher_fold(uint64_t a, uint64_t b) noexcept nogil

CLIENT_TO_SERVER = 0
SERVER_TO_CLIENT = 1

cdef enum:
    RECORD_BYTES = 16           # of the batch index: seconds, microseconds, offset, captured length
    GROUP = 16                  # packets parsed ahead of their flows, so that the flows are in the cache in time
    # Bytes of a payload asked for when it is accepted, so that they are there when the call's end copies them: without
    # it a batch that is not in the cache (a mapped file) takes twice as long. The hardware follows longer ones itself.
    PREFETCH_BYTES = 2048
    SLAB_FLOWS = 256
    INDEX_FIRST = 1024          # entries; a power of two
    FAR_RESYNC = 3              # far segments in a row, each behind the other, that prove a large loss
    NO_PIECE = 0xFFFFFFFF
    SERVER_SIDE = 1             # SERVER_TO_CLIENT
    TIMESTAMP_HEADER = 0x0101080A  # two NOPs and a timestamp option: what most segments carry (RFC 7323 appendix A)
    MAX_FLOWS_LIMIT = 1 << 24

cdef int64_t NS = 1_000_000_000
cdef int64_t LINGER_NS = 15 * NS            # a closed flow absorbs late packets this long
cdef int64_t CLOCK_STEP_NS = 10 * NS        # time stamps that go back further are a new clock, not reordering
cdef int64_t FRAGMENT_TIMEOUT_NS = 30 * NS  # as Linux's ipfrag_time
cdef int64_t FAR_BYTES = 4 << 20            # further from the stream than this (or the window) is not believed at once
cdef int64_t RST_WINDOW_BYTES = 1 << 20     # what stands in for a window that was not captured
cdef uint64_t NO_OFFSET = UINT64_MAX
cdef uint64_t RUN_BYTES = 256               # held runs shorter than this on average exhaust the run limit first
cdef uint64_t RUN_ALLOWANCE = 64

# Which bytes survive where a new segment overlaps held ones: pairs (start of the new against the start of the old, end
# against end) for which the new bytes win. From the overlap layouts of Paxson and Shankar and of Novak and Sturges,
# as Suricata tests them.
_OVERLAP_RULES = {
    "first": (),
    "last": tuple((s, e) for s in ("before", "same", "after") for e in ("before", "same", "after")),
    "bsd": (("before", "before"), ("before", "same"), ("before", "after")),
    "linux": (("before", "before"), ("before", "same"), ("before", "after"), ("same", "after")),
    "old-linux": (
        ("before", "before"), ("before", "same"), ("before", "after"), ("same", "after"), ("same", "same"),
    ),
    "solaris": (("before", "same"), ("before", "after"), ("same", "same"), ("same", "after"), ("after", "after")),
}
_RELATIONS = ("before", "same", "after")
_CLOSE_REASONS = ("fin", "rst", "replaced", "idle", "evicted", "flushed")


class Batch(NamedTuple):
    """Packets as pcapy-ng's `next_batch` hands them over; see the stub."""

    data: Any
    index: bytes
    linktype: int


def pack_batch(packets, linktype):
    """Make a batch from (time_ns, packet bytes) pairs; times are cut to microseconds."""
    index = bytearray()
    parts = []
    offset = 0
    for time_ns, packet in packets:
        seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
        for value in (seconds, nanoseconds // 1000, offset, len(packet)):
            index += value.to_bytes(4, sys.byteorder)
        parts.append(bytes(packet))
        offset += len(packet)
    return Batch(b"".join(parts), bytes(index), linktype)


# ---- events ---------------------------------------------------------------------------------------------------------


@cython.final
@cython.auto_pickle(False)
cdef class Flow:
    """One TCP connection, both directions. Compared and hashed by identity.

    Attributes:
        id: ascending from 1 in the order of opening.
        began_with_syn: False if it was open before the capture began.
        context: the caller's; None at first.
    """

    cdef readonly uint64_t id
    cdef readonly bint began_with_syn
    cdef public object context
    cdef FlowKey _key
    cdef uint8_t _client_end
    cdef FlowState* _state      # borrowed; NULL once the flow has closed or is ignored
    cdef Table* _table          # borrowed: valid while _state is

    def __cinit__(self):
        self._state = NULL
        self._table = NULL

    def __dealloc__(self):
        if self._state != NULL:
            self._state.object = NULL

    @property
    def client(self):
        """(address, port); the address as ipaddress prints it."""
        return self._end(self._client_end)

    @property
    def server(self):
        """(address, port); the address as ipaddress prints it."""
        return self._end(1 - self._client_end)

    cdef tuple _end(self, int end):
        cdef const uint64_t* words = self._key.words
        port = <int>((words[0] >> (0 if end else 16)) & 0xFFFF)
        if words[0] >> 32 == 4:
            address = <uint32_t>(words[1] >> (0 if end else 32))
            return f"{address >> 24}.{(address >> 16) & 255}.{(address >> 8) & 255}.{address & 255}", port
        wide = (<object>words[2 * end + 1] << 64) | <object>words[2 * end + 2]
        return str(ipaddress.IPv6Address(wide)), port

    def __repr__(self):
        (client, client_port), (server, server_port) = self.client, self.server
        return f"<Flow {self.id} {client}.{client_port} > {server}.{server_port}>"


@cython.final
@cython.auto_pickle(False)
@cython.freelist(64)
cdef class FlowOpened:
    """The first event of a flow, right before its first data or gap."""

    cdef readonly Flow flow
    cdef readonly int64_t time_ns

    def __repr__(self):
        return f"<FlowOpened {self.flow!r}>"


@cython.final
@cython.auto_pickle(False)
@cython.freelist(512)
cdef class StreamData:
    """The next bytes of one direction, contiguous with what came before."""

    cdef readonly Flow flow
    cdef readonly int direction
    cdef readonly uint64_t offset
    cdef readonly bytes data
    cdef readonly int64_t time_ns

    def __repr__(self):
        return f"<StreamData {self.flow!r} {self.direction} {self.offset}+{len(self.data)}>"


@cython.final
@cython.auto_pickle(False)
@cython.freelist(64)
cdef class StreamGap:
    """`length` bytes from `offset` on were on the wire and not in the capture."""

    cdef readonly Flow flow
    cdef readonly int direction
    cdef readonly uint64_t offset
    cdef readonly uint64_t length
    cdef readonly int64_t time_ns

    def __repr__(self):
        return f"<StreamGap {self.flow!r} {self.direction} {self.offset}+{self.length}>"


@cython.final
@cython.auto_pickle(False)
@cython.freelist(64)
cdef class StreamEnded:
    """FIN, in order: this direction is complete at `offset` bytes."""

    cdef readonly Flow flow
    cdef readonly int direction
    cdef readonly uint64_t offset
    cdef readonly int64_t time_ns

    def __repr__(self):
        return f"<StreamEnded {self.flow!r} {self.direction} {self.offset}>"


@cython.final
@cython.auto_pickle(False)
@cython.freelist(64)
cdef class FlowClosed:
    """The last event of a flow; reason: fin, rst, replaced, idle, evicted or flushed."""

    cdef readonly Flow flow
    cdef readonly str reason
    cdef readonly int64_t time_ns

    def __repr__(self):
        return f"<FlowClosed {self.flow!r} {self.reason}>"


Event = FlowOpened | StreamData | StreamGap | StreamEnded | FlowClosed


class ReassemblerStatistics(NamedTuple):
    """Counters since the start; all of them only grow, but those marked "now"; see the stub."""

    packets: int
    packets_not_tcp: int
    packets_other_port: int
    packets_malformed: int
    packets_truncated: int
    flows_seen: int
    flows_opened: int
    flows_joined: int
    flows_empty: int
    flows_evicted: int
    flows_now: int
    data_bytes: tuple[int, int]
    gaps: int
    gap_bytes: int
    retransmitted_bytes: int
    overlaps_differing: int
    segments_out_of_window: int
    segments_out_of_order: int
    held_bytes: int
    memory_bytes: int
    allocations: int
    segments_refused: int


# ---- records: what the call will return -----------------------------------------------------------------------------


cdef inline bint reserve_records(Table* table, uint32_t count) noexcept nogil:
    """Room for `count` more records."""
    cdef uint32_t capacity = table.records_capacity
    cdef void* records
    if table.records_count + count <= capacity:
        return True
    capacity = max(capacity * 2, table.records_count + count)
    records = _regrow(&table.memory, table.records, table.records_count * sizeof(OutRecord),
                      table.records_capacity * sizeof(OutRecord), capacity * sizeof(OutRecord))
    if records == NULL:
        return False
    table.records = <OutRecord*>records
    table.records_capacity = capacity
    return True


cdef inline bint reserve_pieces(Table* table, uint32_t count) noexcept nogil:
    """Room for `count` more pieces."""
    cdef uint32_t capacity = table.pieces_capacity
    cdef void* pieces
    if table.pieces_count + count <= capacity:
        return True
    capacity = max(capacity * 2, table.pieces_count + count)
    pieces = _regrow(&table.memory, table.pieces, table.pieces_count * sizeof(Piece),
                     table.pieces_capacity * sizeof(Piece), capacity * sizeof(Piece))
    if pieces == NULL:
        return False
    table.pieces = <Piece*>pieces
    table.pieces_capacity = capacity
    return True


cdef inline OutRecord* add_record(Table* table, FlowState* flow, int kind, int direction, uint64_t offset,
                                  uint64_t length) noexcept nogil:
    """NULL without memory: then the call will raise MemoryError, and the flow is lost to the caller."""
    cdef OutRecord* record
    if not reserve_records(table, 1):
        table.failed = True
        flow.flags |= IGNORED
        return NULL
    record = &table.records[table.records_count]
    table.records_count += 1
    flow.last_event = table.records_count
    record.flow = flow
    record.time_ns = table.packet_ns
    record.offset = offset
    record.length = length
    record.first_piece = record.last_piece = NO_PIECE
    record.kind = <uint8_t>kind
    record.direction = <uint8_t>direction
    record.reason = 0
    return record


cdef void open_flow(Table* table, FlowState* flow) noexcept nogil:
    cdef int direction
    flow.flags |= OPENED
    table.counters.flows_opened += 1
    if not (flow.directions[0].flags | flow.directions[1].flags) & SYN_SEEN:
        table.counters.flows_joined += 1
    add_record(table, flow, OUT_OPENED, 0, 0, 0)
    for direction in range(2):
        if flow.directions[direction].flags & ENDED:  # a FIN before any byte of either direction waited for this
            add_record(table, flow, OUT_ENDED, direction, flow.directions[direction].next_offset, 0)


cdef inline void emit_data(Table* table, FlowState* flow, int direction, const uint8_t* data, uint32_t length,
                           HeldRun* owner) noexcept nogil:
    """The stream goes on with data[0:length]; takes over `owner`, in which the data is, or NULL if in the batch."""
    cdef Direction* stream = &flow.directions[direction]
    cdef OutRecord* record = NULL
    cdef Piece* piece
    cdef uint32_t index
    cdef uint32_t at
    cdef uint64_t offset = stream.next_offset
    stream.next_offset += length
    if not flow.flags & OPENED:
        open_flow(table, flow)
    if flow.last_event:
        record = &table.records[flow.last_event - 1]
        if record.kind != OUT_DATA or record.direction != direction:
            record = NULL
    if record == NULL:
        record = add_record(table, flow, OUT_DATA, direction, offset, 0)
    if record == NULL or not reserve_pieces(table, 1):
        table.failed = True
        flow.flags |= IGNORED
        if owner != NULL:
            run_free(&table.memory, owner)
        return
    table.counters.data_bytes[direction] += length
    index = table.pieces_count
    table.pieces_count += 1
    piece = &table.pieces[index]
    piece.data = data
    piece.owner = owner
    piece.length = length
    piece.next = NO_PIECE
    for at in range(0, min(length, <uint32_t>PREFETCH_BYTES), 64):
        gopher_prefetch(data + at)
    if record.last_piece == NO_PIECE:
        record.first_piece = index
    else:
        table.pieces[record.last_piece].next = index
    record.last_piece = index
    record.length += length
    record.time_ns = table.packet_ns


cdef void emit_gap(Table* table, FlowState* flow, int direction, uint64_t length) noexcept nogil:
    cdef Direction* stream = &flow.directions[direction]
    if not flow.flags & OPENED:
        open_flow(table, flow)
    table.counters.gaps += 1
    table.counters.gap_bytes += length
    add_record(table, flow, OUT_GAP, direction, stream.next_offset, length)
    stream.next_offset += length


# ---- the flow table -------------------------------------------------------------------------------------------------


cdef inline uint64_t hash_key(const Table* table, const FlowKey* key) noexcept nogil:
    cdef uint64_t value = gopher_fold(key.words[0] ^ table.seeds[0], key.words[1] ^ table.seeds[1])
    if key.words[0] >> 32 == 6:
        value = gopher_fold(value ^ key.words[2], key.words[3] ^ table.seeds[2])
        value ^= key.words[4]
    return gopher_fold(value ^ table.seeds[1], table.seeds[2])


cdef inline bint same_key(const FlowKey* a, const FlowKey* b) noexcept nogil:
    if a.words[0] != b.words[0] or a.words[1] != b.words[1]:
        return False
    return a.words[0] >> 32 == 4 or memcmp(&a.words[2], &b.words[2], 3 * sizeof(uint64_t)) == 0


cdef inline FlowState* flow_at(const Table* table, uint32_t slot) noexcept nogil:
    return table.slabs[slot // SLAB_FLOWS] + slot % SLAB_FLOWS


cdef inline FlowState* find_flow(const Table* table, const Segment* segment) noexcept nogil:
    cdef uint32_t tag = <uint32_t>segment.hash
    cdef uint32_t i = tag & table.index_mask
    cdef FlowState* flow
    if table.index == NULL:
        return NULL
    while table.index[i].slot:
        if table.index[i].tag == tag:
            flow = flow_at(table, table.index[i].slot - 1)
            if same_key(&flow.key, &segment.key):
                return flow
        i = (i + 1) & table.index_mask
    return NULL


cdef inline void index_put(Table* table, uint32_t tag, uint32_t slot) noexcept nogil:
    cdef uint32_t i = tag & table.index_mask
    while table.index[i].slot:
        i = (i + 1) & table.index_mask
    table.index[i].tag = tag
    table.index[i].slot = slot + 1


cdef bint index_grow(Table* table) noexcept nogil:
    """Twice the entries, or the first ones."""
    cdef uint32_t entries = (table.index_mask + 1) * 2 if table.index != NULL else INDEX_FIRST
    cdef IndexEntry* old = table.index
    cdef uint32_t old_entries = table.index_mask + 1
    cdef IndexEntry* index = <IndexEntry*>_acquire(&table.memory, entries * sizeof(IndexEntry))
    cdef uint32_t i
    if index == NULL:
        return False
    memset(index, 0, entries * sizeof(IndexEntry))
    table.index = index
    table.index_mask = entries - 1
    if old != NULL:
        for i in range(old_entries):
            if old[i].slot:
                index_put(table, old[i].tag, old[i].slot - 1)
        _release(&table.memory, old, old_entries * sizeof(IndexEntry))
    return True


cdef void index_drop(Table* table, const FlowState* flow) noexcept nogil:
    """Take the flow's entry out and close the gap, so that no probe sequence is broken (no tombstones)."""
    cdef uint32_t mask = table.index_mask
    cdef uint32_t hole = flow.tag & mask
    cdef uint32_t i
    while table.index[hole].slot != flow.slot + 1:
        hole = (hole + 1) & mask
    i = hole
    while True:
        i = (i + 1) & mask
        if not table.index[i].slot:
            break
        # An entry may move back into the hole if the hole is not before its home.
        if ((i - table.index[i].tag) & mask) >= ((i - hole) & mask):
            table.index[hole] = table.index[i]
            hole = i
    table.index[hole].slot = 0


cdef bint slab_grow(Table* table) noexcept nogil:
    """SLAB_FLOWS more free slots."""
    cdef uint32_t capacity
    cdef void* slabs
    cdef FlowState* slab
    cdef uint32_t i
    if table.slabs_count == table.slabs_capacity:
        capacity = table.slabs_capacity * 2 if table.slabs_capacity else 8
        slabs = _regrow(&table.memory, table.slabs, table.slabs_count * sizeof(FlowState*),
                        table.slabs_capacity * sizeof(FlowState*), capacity * sizeof(FlowState*))
        if slabs == NULL:
            return False
        table.slabs = <FlowState**>slabs
        table.slabs_capacity = capacity
    slab = <FlowState*>_acquire(&table.memory, SLAB_FLOWS * sizeof(FlowState))
    if slab == NULL:
        return False
    table.slabs[table.slabs_count] = slab
    for i in range(<uint32_t>SLAB_FLOWS):
        slab[i].slot = table.slabs_count * SLAB_FLOWS + i
        slab[i].older = table.free_slots
        table.free_slots = &slab[i]
    table.slabs_count += 1
    return True


cdef inline void list_append(FlowState** oldest, FlowState** newest, FlowState* flow) noexcept nogil:
    flow.older = newest[0]
    flow.newer = NULL
    if newest[0] != NULL:
        newest[0].newer = flow
    else:
        oldest[0] = flow
    newest[0] = flow


cdef inline void list_remove(FlowState** oldest, FlowState** newest, FlowState* flow) noexcept nogil:
    if flow.older != NULL:
        flow.older.newer = flow.newer
    else:
        oldest[0] = flow.newer
    if flow.newer != NULL:
        flow.newer.older = flow.older
    else:
        newest[0] = flow.older


cdef inline void touch_flow(Table* table, FlowState* flow) noexcept nogil:
    flow.last_seen_ns = table.now_ns
    if flow.newer != NULL:
        list_remove(&table.open_oldest, &table.open_newest, flow)
        list_append(&table.open_oldest, &table.open_newest, flow)


cdef FlowState* enter_flow(Table* table, const Segment* segment) noexcept nogil:
    """A new flow for the segment's key, which must not be in the table; NULL without memory. May evict another one."""
    cdef FlowState* flow
    cdef int direction
    if table.flows_now == table.max_flows:
        evict_flow(table)
    if table.index == NULL or table.flows_now * 2 > table.index_mask:
        if not index_grow(table) and (table.index == NULL or table.flows_now == table.index_mask):
            return NULL
    if table.free_slots == NULL and not slab_grow(table):
        if table.flows_now == 0:
            return NULL
        evict_flow(table)  # what the system refuses is a smaller table
        if table.free_slots == NULL:
            return NULL
    flow = table.free_slots
    table.free_slots = flow.older
    flow.key = segment.key
    flow.last_seen_ns = table.now_ns
    for direction in range(2):
        memset(&flow.directions[direction], 0, sizeof(Direction))
        flow.directions[direction].fin_offset = NO_OFFSET
    flow.object = NULL
    flow.tag = <uint32_t>segment.hash
    flow.last_event = 0
    flow.flags = 0
    index_put(table, flow.tag, flow.slot)
    list_append(&table.open_oldest, &table.open_newest, flow)
    table.flows_now += 1
    table.counters.flows_seen += 1
    table.deadline_ns = min(table.deadline_ns, table.now_ns + table.idle_timeout_ns)
    return flow


cdef void close_flow(Table* table, FlowState* flow, int reason) noexcept nogil:
    """The flow has its last event, and stays in the table for LINGER_NS. Held bytes are dropped: flush them first."""
    cdef int direction
    cdef OutRecord* record
    if flow.flags & CLOSED:
        return
    for direction in range(2):
        if flow.directions[direction].held != NULL:
            drop_held(table, flow, direction)
    flow.flags = (flow.flags | CLOSED) & ~CANDIDATE
    if not flow.flags & OPENED:
        table.counters.flows_empty += 1
    elif not flow.flags & IGNORED:
        record = add_record(table, flow, OUT_CLOSED, 0, 0, 0)
        if record != NULL:
            record.reason = <uint8_t>reason
    list_remove(&table.open_oldest, &table.open_newest, flow)
    flow.last_seen_ns = table.now_ns
    list_append(&table.closed_oldest, &table.closed_newest, flow)
    table.deadline_ns = min(table.deadline_ns, table.now_ns + LINGER_NS)


cdef void forget_flow(Table* table, FlowState* flow) noexcept nogil:
    """Take a closed flow out of the table."""
    index_drop(table, flow)
    list_remove(&table.closed_oldest, &table.closed_newest, flow)
    table.flows_now -= 1
    if flow.last_event or flow.object != NULL:
        flow.older = table.limbo
        table.limbo = flow
    else:
        flow.older = table.free_slots
        table.free_slots = flow


cdef void evict_flow(Table* table) noexcept nogil:
    """Make room for one flow: the closed one that has lingered longest, else the least recently used one."""
    cdef FlowState* flow = table.closed_oldest
    if flow == NULL:
        flow = table.open_oldest
        table.counters.flows_evicted += 1
        flush_held(table, flow)
        close_flow(table, flow, CLOSE_EVICTED)
    forget_flow(table, flow)


# ---- holes ----------------------------------------------------------------------------------------------------------


cdef inline void hole_link(Table* table, HeldQueue* queue) noexcept nogil:
    """Append to the list of holes; it is in age order because the internal clock never goes back."""
    queue.since_ns = table.now_ns
    queue.older = table.hole_newest
    queue.newer = NULL
    if table.hole_newest != NULL:
        table.hole_newest.newer = queue
    else:
        table.hole_oldest = queue
    table.hole_newest = queue


cdef inline void hole_unlink(Table* table, HeldQueue* queue) noexcept nogil:
    if queue.older != NULL:
        queue.older.newer = queue.newer
    else:
        table.hole_oldest = queue.newer
    if queue.newer != NULL:
        queue.newer.older = queue.older
    else:
        table.hole_newest = queue.older


cdef HeldQueue* need_held(Table* table, FlowState* flow, int direction) noexcept nogil:
    """The direction's queue, made if it has none; NULL without memory."""
    cdef HeldQueue* queue = flow.directions[direction].held
    if queue == NULL:
        queue = held_new(&table.memory, flow, direction)
        if queue != NULL:
            flow.directions[direction].held = queue
            hole_link(table, queue)
            table.deadline_ns = min(table.deadline_ns, table.now_ns + table.gap_timeout_ns)
    return queue


cdef void drop_held(Table* table, FlowState* flow, int direction) noexcept nogil:
    """Forget the hole of a direction and all that is held behind it; there must be one."""
    cdef HeldQueue* queue = flow.directions[direction].held
    flow.directions[direction].held = NULL
    table.held_bytes -= queue.bytes
    table.held_runs -= queue.count
    hole_unlink(table, queue)
    held_free(&table.memory, queue)


cdef void emit_front(Table* table, FlowState* flow, int direction) noexcept nogil:
    """Deliver the first held run, which begins where the stream is."""
    cdef HeldRun* run = held_pop(flow.directions[direction].held)
    cdef uint32_t length = <uint32_t>(run.end - run.start)
    table.held_bytes -= length
    table.held_runs -= 1
    emit_data(table, flow, direction, run_bytes(run), length, run)


cdef void advance(Table* table, FlowState* flow, int direction) noexcept nogil:
    """After the stream went on: deliver what has become contiguous, end the stream at its FIN. May close the flow."""
    cdef Direction* stream = &flow.directions[direction]
    cdef HeldQueue* queue = stream.held
    if queue != NULL:
        while queue.count and held_front(queue).start == stream.next_offset:
            emit_front(table, flow, direction)
        if queue.count == 0 and (stream.fin_offset == NO_OFFSET or stream.fin_offset == stream.next_offset):
            drop_held(table, flow, direction)
        elif queue.since_ns != table.now_ns:
            hole_unlink(table, queue)
            hole_link(table, queue)
    if stream.fin_offset == stream.next_offset:
        end_stream(table, flow, direction)


cdef void end_stream(Table* table, FlowState* flow, int direction) noexcept nogil:
    """The FIN is in order. Closes the flow if nothing more can come."""
    cdef Direction* stream = &flow.directions[direction]
    if stream.flags & ENDED:
        return
    stream.flags |= ENDED
    if stream.held != NULL:
        drop_held(table, flow, direction)
    if flow.flags & (OPENED | IGNORED) == OPENED:
        add_record(table, flow, OUT_ENDED, direction, stream.next_offset, 0)
    if not table.both_directions or flow.directions[1 - direction].flags & ENDED:
        close_flow(table, flow, CLOSE_FIN)


cdef void give_up_hole(Table* table, FlowState* flow, int direction) noexcept nogil:
    """The hole in front of the held bytes, or of the FIN, becomes a gap; what is behind it comes out."""
    cdef Direction* stream = &flow.directions[direction]
    cdef HeldRun* front = held_front(stream.held)
    cdef uint64_t end = front.start if front != NULL else stream.fin_offset
    emit_gap(table, flow, direction, end - stream.next_offset)
    advance(table, flow, direction)


cdef void flush_held(Table* table, FlowState* flow) noexcept nogil:
    """All holes of a flow become gaps; FINs behind them may close it."""
    cdef int direction
    for direction in range(2):
        while flow.directions[direction].held != NULL:
            give_up_hole(table, flow, direction)


cdef inline void settle_acked(Table* table, FlowState* flow, int direction) noexcept nogil:
    """An acknowledgement by the other side proves that it got what the capture did not: such a hole is a gap at once.

    It is believed only within what was seen: one beyond that may be forged, or its data still on the way to us.
    """
    cdef Direction* stream = &flow.directions[direction]
    cdef HeldRun* front
    cdef uint64_t seen
    cdef uint64_t hole_end
    while stream.held != NULL:
        front = held_front(stream.held)
        seen = held_end(stream.held)
        if stream.fin_offset != NO_OFFSET:
            seen = stream.fin_offset + 1
        hole_end = front.start if front != NULL else stream.fin_offset
        if stream.acked_offset < hole_end or stream.acked_offset > seen:
            return
        give_up_hole(table, flow, direction)


cdef bint make_room(Table* table, FlowState* flow, int direction, uint64_t bytes) noexcept nogil:
    """Give up holes until `bytes` more can be held for this direction: its own for its own budget, the oldest of all
    flows for the total. False if they do not fit even then; nothing of this direction is held in that case."""
    cdef Direction* stream = &flow.directions[direction]
    cdef HeldQueue* queue
    while stream.held != NULL and (
        stream.held.bytes + bytes > table.direction_limit
        or stream.held.count >= table.direction_limit // RUN_BYTES + RUN_ALLOWANCE
    ):
        give_up_hole(table, flow, direction)
    if bytes > table.direction_limit or bytes > table.total_limit:
        return False
    while (
        table.held_bytes + bytes > table.total_limit
        or table.held_runs >= table.total_limit // RUN_BYTES + RUN_ALLOWANCE
    ):
        queue = table.hole_oldest
        give_up_hole(table, <FlowState*>queue.flow, queue.direction)
    return True


# ---- one segment ----------------------------------------------------------------------------------------------------


cdef inline int64_t far_limit(const FlowState* flow, int direction) noexcept nogil:
    return max(FAR_BYTES, <int64_t>flow.directions[1 - direction].window)


cdef void merge_in_order(Table* table, FlowState* flow, int direction, const uint8_t* data, uint64_t end) noexcept nogil:
    """Deliver data, which is for [next_offset, end) and reaches into held runs, where the policy decides."""
    cdef Direction* stream = &flow.directions[direction]
    cdef HeldQueue* queue = stream.held
    cdef HeldRun* run
    cdef uint64_t start = stream.next_offset
    cdef bint differing = False
    while queue.count and held_front(queue).start < end:
        run = held_front(queue)
        differing = differing or run_differs(run, start, end, data)
        table.counters.retransmitted_bytes += min(run.end, end) - run.start
        if not new_wins(table.policy, start, end, run):
            if run.start > stream.next_offset:
                emit_data(table, flow, direction, data + (stream.next_offset - start),
                          <uint32_t>(run.start - stream.next_offset), NULL)
            emit_front(table, flow, direction)
        elif run.end <= end:
            table.held_bytes -= run.end - run.start
            table.held_runs -= 1
            run_free(&table.memory, held_pop(queue))
        else:
            table.held_bytes -= end - run.start
            queue.bytes -= end - run.start
            run.start = end
    if stream.next_offset < end:
        emit_data(table, flow, direction, data + (stream.next_offset - start), <uint32_t>(end - stream.next_offset), NULL)
    if differing:
        table.counters.overlaps_differing += 1


cdef void hold(Table* table, FlowState* flow, int direction, const uint8_t* data, uint64_t start,
               uint64_t end) noexcept nogil:
    """Keep data for [start, end), which lies behind a hole. Without room for it the hole becomes a gap."""
    cdef Direction* stream = &flow.directions[direction]
    cdef HeldQueue* queue = stream.held
    cdef uint64_t covered = held_covered(queue, start, end) if queue != NULL else 0
    cdef uint64_t bytes_before
    cdef uint32_t runs_before
    cdef bint differing = False
    cdef bint fits = True
    table.counters.segments_out_of_order += 1
    if covered < end - start:
        fits = make_room(table, flow, direction, end - start - covered)
    if flow.flags & CLOSED or stream.flags & ENDED:
        return  # a FIN behind one of the holes
    if start > stream.next_offset:
        queue = need_held(table, flow, direction) if fits else NULL
        if queue == NULL:
            emit_gap(table, flow, direction, start - stream.next_offset)
    if start <= stream.next_offset:
        take_in_order(table, flow, direction, data, start, end)
        return
    table.counters.retransmitted_bytes += held_covered(queue, start, end)
    bytes_before = queue.bytes
    runs_before = queue.count
    if not held_insert(&table.memory, queue, table.policy, start, end, data, &differing):
        fits = False
    table.held_bytes += queue.bytes - bytes_before
    table.held_runs += <uint64_t>queue.count - runs_before
    table.counters.overlaps_differing += differing
    if not fits and queue.count == 0 and stream.fin_offset == NO_OFFSET:
        drop_held(table, flow, direction)  # the system has no memory: the hole has just become wider
    elif stream.acked_offset > stream.next_offset:
        settle_acked(table, flow, direction)


cdef inline void take_in_order(Table* table, FlowState* flow, int direction, const uint8_t* data, uint64_t start,
                               uint64_t end) noexcept nogil:
    """Deliver the new part of data, which is for [start, end), start <= next_offset."""
    cdef Direction* stream = &flow.directions[direction]
    cdef HeldRun* front
    if end <= stream.next_offset:
        table.counters.retransmitted_bytes += end - start
        return
    table.counters.retransmitted_bytes += stream.next_offset - start
    data += stream.next_offset - start
    if stream.held == NULL:
        emit_data(table, flow, direction, data, <uint32_t>(end - stream.next_offset), NULL)
        return
    front = held_front(stream.held)
    if front == NULL or end <= front.start:
        emit_data(table, flow, direction, data, <uint32_t>(end - stream.next_offset), NULL)
    else:
        merge_in_order(table, flow, direction, data, end)
    advance(table, flow, direction)


cdef bint take_far(Table* table, FlowState* flow, int direction, uint32_t seq, uint32_t length) noexcept nogil:
    """A segment too far from the stream to be believed. True if it is the one that proves a large loss; then the stream
    has been moved to it."""
    cdef Direction* stream = &flow.directions[direction]
    table.counters.segments_out_of_window += 1
    if length == 0 or (stream.far_count and seq + length == stream.far_next_seq):
        return False  # the same one again: links like Linux's `any` show packets twice
    stream.far_count = stream.far_count + 1 if seq == stream.far_next_seq else 1
    stream.far_next_seq = seq + length
    if stream.far_count < FAR_RESYNC:
        return False
    while stream.held != NULL:
        give_up_hole(table, flow, direction)
    if flow.flags & CLOSED or stream.flags & ENDED:
        return False
    stream.far_count = 0
    # The loss may be more than half the sequence space, so the distance is unsigned here.
    emit_gap(table, flow, direction, <uint32_t>(seq - (stream.base_seq + <uint32_t>stream.next_offset)))
    return True


cdef void take_data(Table* table, FlowState* flow, int direction, uint32_t seq, const Segment* segment) noexcept nogil:
    """Payload and FIN of a segment whose payload begins at `seq`."""
    cdef Direction* stream = &flow.directions[direction]
    cdef int64_t distance
    cdef int64_t start
    cdef int64_t length
    cdef int64_t fin
    cdef const uint8_t* data
    cdef bint has_fin = segment.flags & TCP_FIN
    if not stream.flags & SEQ_KNOWN:
        stream.base_seq = seq
        stream.flags |= SEQ_KNOWN
    distance = seq_diff(seq, stream.base_seq + <uint32_t>stream.next_offset)
    if distance == 0 and stream.held == NULL and not has_fin and stream.fin_offset == NO_OFFSET \
            and not flow.flags & IGNORED and segment.captured:
        stream.far_count = 0
        emit_data(table, flow, direction, segment.payload, segment.captured, NULL)
        return
    if stream.flags & ENDED:
        table.counters.retransmitted_bytes += segment.captured
        return
    if distance > far_limit(flow, direction) or distance < -far_limit(flow, direction):
        if flow.flags & IGNORED or not take_far(table, flow, direction, seq, segment.length):
            return
        distance = 0
    elif segment.length:
        stream.far_count = 0
    start = <int64_t>stream.next_offset + distance
    fin = start + segment.length
    if flow.flags & IGNORED:
        stream.next_offset = max(<int64_t>stream.next_offset, fin)
        if has_fin:
            end_stream(table, flow, direction)
        return
    if has_fin and stream.fin_offset == NO_OFFSET and fin >= <int64_t>stream.next_offset:
        # In order a FIN decides, whatever is held beyond it; behind a hole, one that contradicts held data is not
        # believed.
        if start <= <int64_t>stream.next_offset:
            stream.fin_offset = fin
            if stream.held != NULL and held_end(stream.held) > stream.fin_offset:
                drop_held(table, flow, direction)
        elif stream.held == NULL or <uint64_t>fin >= held_end(stream.held):
            stream.fin_offset = fin
    data = segment.payload
    length = segment.captured
    if stream.fin_offset != NO_OFFSET and start + length > <int64_t>stream.fin_offset:
        length = <int64_t>stream.fin_offset - start
    if start < 0 and length > 0:
        # Older than the first byte seen of a stream that was joined in the middle.
        table.counters.retransmitted_bytes += min(length, -start)
        data -= start
        length += start
        start = 0
    if length > 0:
        if start <= <int64_t>stream.next_offset:
            take_in_order(table, flow, direction, data, start, start + length)
        else:
            hold(table, flow, direction, data, start, start + length)
    if stream.fin_offset == NO_OFFSET or flow.flags & CLOSED or stream.flags & ENDED:
        return
    if stream.fin_offset == stream.next_offset:
        end_stream(table, flow, direction)
    elif need_held(table, flow, direction) != NULL and stream.acked_offset > stream.next_offset:
        settle_acked(table, flow, direction)


cdef inline void take_ack(Table* table, FlowState* flow, int direction, const Segment* segment) noexcept nogil:
    """What an acknowledgement sent in `direction` proves about the other one."""
    cdef Direction* stream = &flow.directions[1 - direction]
    cdef int64_t distance
    if (stream.flags & (SEQ_KNOWN | ACKED)) != SEQ_KNOWN | ACKED:
        if not segment.flags & TCP_SYN:
            stream.flags |= ACKED
        if not stream.flags & SEQ_KNOWN:
            return
    distance = seq_diff(segment.ack, stream.base_seq + <uint32_t>stream.next_offset)
    if distance <= 0 or distance > far_limit(flow, 1 - direction):
        return
    stream.acked_offset = max(stream.acked_offset, stream.next_offset + <uint64_t>distance)
    if stream.held != NULL:
        settle_acked(table, flow, 1 - direction)


cdef inline void take_window(FlowState* flow, int direction, const Segment* segment) noexcept nogil:
    cdef Direction* stream = &flow.directions[direction]
    cdef uint32_t window = <uint32_t>segment.window << stream.scale
    if stream.flags & WINDOW_KNOWN and window > stream.window:
        stream.window = window


cdef void take_rst(Table* table, FlowState* flow, int direction, const Segment* segment) noexcept nogil:
    """Close the flow if the RST is acceptable (RFC 5961 section 3: its sequence number must be in the window).

    The exact match that RFC 5961 asks of a receiver is not asked here: what the capture missed is not known. Bytes in
    the RST (RFC 9293 section 3.5.3 allows them) belong to the stream if they are in order.
    """
    cdef Direction* stream = &flow.directions[direction]
    cdef Direction* other = &flow.directions[1 - direction]
    cdef int64_t distance
    cdef int64_t window = RST_WINDOW_BYTES
    if stream.flags & SEQ_KNOWN:
        distance = seq_diff(segment.seq, stream.base_seq + <uint32_t>stream.next_offset)
        if other.flags & WINDOW_KNOWN:
            window = max(other.window, 1)  # the FIN takes a number that the window does not count
        if stream.held != NULL:
            window = max(window, <int64_t>(held_end(stream.held) - stream.next_offset))
    else:
        # Nothing else of this side was captured: it must acknowledge what the other side sent.
        if not segment.flags & TCP_ACK or not other.flags & SEQ_KNOWN:
            table.counters.segments_refused += 1
            return
        distance = seq_diff(segment.ack, other.base_seq)
        window = <int64_t>other.next_offset + RST_WINDOW_BYTES
    if distance < 0 or distance > window:
        table.counters.segments_refused += 1
        return
    if segment.captured and (distance == 0 or not stream.flags & SEQ_KNOWN):
        take_data(table, flow, direction, segment.seq, segment)
    flush_held(table, flow)
    close_flow(table, flow, CLOSE_RST)


cdef void learn_syn(FlowState* flow, int direction, const Segment* segment) noexcept nogil:
    """The segment has SYN: it fixes where the direction begins and how windows are scaled."""
    cdef Direction* stream = &flow.directions[direction]
    cdef Direction* other = &flow.directions[1 - direction]
    cdef int shift = window_shift(segment)
    stream.base_seq = segment.seq + 1
    stream.flags |= SEQ_KNOWN | SYN_SEEN | WINDOW_KNOWN
    if is_signed(segment):
        stream.flags |= SIGNED
    stream.window = segment.window  # of a SYN: never scaled (RFC 7323 section 2.2)
    stream.shift = <uint8_t>shift if shift >= 0 else NO_SHIFT
    stream.scale = <uint8_t>shift if shift >= 0 else 0
    if other.flags & WINDOW_KNOWN and (stream.shift == NO_SHIFT or other.shift == NO_SHIFT):
        stream.scale = other.scale = 0  # in force only if both sides offer it


cdef inline void learn_base(FlowState* flow, int direction, uint32_t seq) noexcept nogil:
    """The direction's first byte is known to have this sequence number, from the other side's SYN/ACK."""
    flow.directions[direction].base_seq = seq
    flow.directions[direction].flags |= SEQ_KNOWN | SYN_SEEN


cdef FlowState* replace_flow(Table* table, FlowState* flow, const Segment* segment) noexcept nogil:
    """The ports are used anew: close and forget `flow`, enter another with the same client."""
    cdef uint8_t client_end = flow.client_end
    flush_held(table, flow)
    close_flow(table, flow, CLOSE_REPLACED)
    forget_flow(table, flow)
    flow = enter_flow(table, segment)
    if flow != NULL:
        flow.client_end = client_end
    return flow


cdef FlowState* take_syn(Table* table, FlowState* flow, int direction, const Segment* segment) noexcept nogil:
    """A SYN or SYN/ACK on a flow that is in the table. Returns the flow that it belongs to, NULL if to none.

    A lone SYN proves nothing about an open flow: it may be a blind forgery (RFC 5961 section 4). It is remembered and
    believed once the other side answers it or data follows it.
    """
    cdef Direction* stream = &flow.directions[direction]
    cdef Direction* other = &flow.directions[1 - direction]
    cdef bint over = flow.flags & CLOSED or stream.fin_offset != NO_OFFSET
    cdef uint32_t isn
    cdef int64_t distance
    if stream.flags & SEQ_KNOWN and stream.base_seq == segment.seq + 1:
        return flow
    if not segment.flags & TCP_ACK:
        if over:
            flow = replace_flow(table, flow, segment)
            if flow != NULL:
                learn_syn(flow, direction, segment)
            return flow
        if not stream.flags & (SEQ_KNOWN | ACKED) and other.flags & SYN_SEEN:
            learn_syn(flow, direction, segment)  # simultaneous open
            return flow
        flow.flags |= CANDIDATE
        flow.candidate_isn = segment.seq
        flow.candidate_direction = <uint8_t>direction
        return NULL
    if flow.flags & CANDIDATE and flow.candidate_direction == 1 - direction and segment.ack == flow.candidate_isn + 1:
        over = True
    elif stream.flags & SEQ_KNOWN and other.flags & SYN_SEEN and segment.ack == other.base_seq:
        # Another answer to the same SYN: of several servers or SYN cookies behind one address, the client picks one.
        if over or stream.flags & ACKED or stream.next_offset or stream.held != NULL:
            return NULL
        learn_syn(flow, direction, segment)
        return flow
    elif not stream.flags & SEQ_KNOWN and not over:
        if other.flags & SEQ_KNOWN:
            distance = seq_diff(segment.ack, other.base_seq)
            if distance < 0 or distance > <int64_t>other.next_offset:
                return NULL
        else:
            learn_base(flow, 1 - direction, segment.ack)
        learn_syn(flow, direction, segment)
        return flow
    if not over:
        flow.flags |= CANDIDATE
        flow.candidate_isn = segment.ack - 1
        flow.candidate_direction = <uint8_t>(1 - direction)
        return NULL
    flow = replace_flow(table, flow, segment)
    if flow != NULL:
        learn_base(flow, 1 - direction, segment.ack)
        learn_syn(flow, direction, segment)
    return flow


cdef inline bint is_port(const Table* table, uint32_t port) noexcept nogil:
    return (table.ports[port >> 6] >> (port & 63)) & 1


cdef inline FlowState* begin_flow(Table* table, const Segment* segment) noexcept nogil:
    """Enter the flow that an unknown segment begins; NULL if there is nothing to follow."""
    cdef FlowState* flow
    cdef int direction
    cdef bint from_server
    cdef bint to_port = table.any_port or is_port(table, segment.destination_port)
    cdef bint from_port = table.any_port or is_port(table, segment.source_port)
    if segment.length == 0 and (not segment.flags & TCP_SYN or segment.flags & TCP_RST):
        return NULL
    if to_port != from_port:
        from_server = from_port
    elif segment.flags & TCP_SYN:
        from_server = segment.flags & TCP_ACK
    else:
        from_server = segment.source_port < segment.destination_port
    if from_server and not table.both_directions:
        table.counters.packets_other_port += 1
        return NULL
    flow = enter_flow(table, segment)
    if flow == NULL:
        return NULL
    flow.client_end = segment.sender if not from_server else 1 - segment.sender
    if segment.flags & TCP_RST:
        learn_base(flow, from_server, segment.seq)
        flow.directions[from_server].flags &= ~SYN_SEEN
    elif segment.flags & TCP_SYN:
        learn_syn(flow, from_server, segment)
        if segment.flags & TCP_ACK:
            learn_base(flow, not from_server, segment.ack)
    return flow


cdef inline bint is_refused(const FlowState* flow, int direction, const Segment* segment) noexcept nogil:
    """Whether the receiver's kernel drops the segment because it is signed and the connection is not (in Linux
    tcp_inbound_hash): a RST or data that only the capture should believe."""
    if segment.options_length == 0 or (
        segment.options_length == 12 and be32(segment.options) == TIMESTAMP_HEADER
    ):
        return False
    return (
        flow.directions[direction].flags & (WINDOW_KNOWN | SIGNED) == WINDOW_KNOWN
        and not segment.flags & TCP_SYN
        and is_signed(segment)
    )


cdef void take_segment(Table* table, const Segment* segment) noexcept nogil:
    cdef FlowState* flow = find_flow(table, segment)
    cdef int direction
    cdef uint32_t seq = segment.seq
    if flow == NULL:
        flow = begin_flow(table, segment)
        if flow == NULL:
            return
        direction = segment.sender != flow.client_end
    else:
        direction = segment.sender != flow.client_end
        if direction == SERVER_SIDE and not table.both_directions:
            table.counters.packets_other_port += 1
            return
        if is_refused(flow, direction, segment):
            table.counters.segments_refused += 1
            return
        if segment.flags & TCP_SYN and not segment.flags & TCP_RST:
            flow = take_syn(table, flow, direction, segment)
            if flow == NULL:
                return
        elif flow.flags & CANDIDATE and flow.candidate_direction == direction and not segment.flags & TCP_RST                 and segment.seq == flow.candidate_isn + 1 and (segment.length or segment.flags & TCP_FIN):
            flow = replace_flow(table, flow, segment)
            if flow == NULL:
                return
            learn_base(flow, direction, segment.seq)
        if flow.flags & CLOSED:
            table.counters.retransmitted_bytes += segment.captured
            return
        touch_flow(table, flow)
    if segment.flags & TCP_RST:
        take_rst(table, flow, direction, segment)
        return
    if segment.flags & TCP_SYN:
        seq += 1
    else:
        take_window(flow, direction, segment)
    if segment.flags & TCP_ACK and table.both_directions:
        take_ack(table, flow, direction, segment)
        if flow.flags & CLOSED:
            return
    if segment.length or segment.flags & TCP_FIN:
        take_data(table, flow, direction, seq, segment)


# ---- time -----------------------------------------------------------------------------------------------------------


cdef inline void set_clock(Table* table, int64_t capture_ns) noexcept nogil:
    """Move to a packet's time. The internal clock stands still while capture time goes back, and a large step back
    (a clock that was set, captures pasted together) counts as no time at all."""
    table.packet_ns = capture_ns
    if capture_ns > table.high_ns:
        table.high_ns = capture_ns
    elif capture_ns < table.high_ns - CLOCK_STEP_NS:
        table.skew_ns += table.high_ns - capture_ns
        table.high_ns = capture_ns
    table.now_ns = table.high_ns + table.skew_ns


cdef void run_timers(Table* table) noexcept nogil:
    """Everything that is due; sets the next deadline. O(what is due)."""
    cdef FlowState* flow
    cdef HeldQueue* queue
    while table.hole_oldest != NULL and table.now_ns - table.hole_oldest.since_ns >= table.gap_timeout_ns:
        queue = table.hole_oldest
        give_up_hole(table, <FlowState*>queue.flow, queue.direction)
    while table.open_oldest != NULL and table.now_ns - table.open_oldest.last_seen_ns >= table.idle_timeout_ns:
        flow = table.open_oldest
        flush_held(table, flow)
        close_flow(table, flow, CLOSE_IDLE)
        forget_flow(table, flow)
    while table.closed_oldest != NULL and table.now_ns - table.closed_oldest.last_seen_ns >= LINGER_NS:
        forget_flow(table, table.closed_oldest)
    while (
        table.fragments.oldest != NULL
        and table.now_ns - table.fragments.oldest.since_ns >= FRAGMENT_TIMEOUT_NS
    ):
        datagram_drop(&table.memory, &table.fragments, table.fragments.oldest)
    table.deadline_ns = INT64_MAX
    if table.fragments.oldest != NULL:
        table.deadline_ns = table.fragments.oldest.since_ns + FRAGMENT_TIMEOUT_NS
    if table.hole_oldest != NULL:
        table.deadline_ns = min(table.deadline_ns, table.hole_oldest.since_ns + table.gap_timeout_ns)
    if table.open_oldest != NULL:
        table.deadline_ns = min(table.deadline_ns, table.open_oldest.last_seen_ns + table.idle_timeout_ns)
    if table.closed_oldest != NULL:
        table.deadline_ns = min(table.deadline_ns, table.closed_oldest.last_seen_ns + LINGER_NS)


# ---- a batch --------------------------------------------------------------------------------------------------------


cdef inline void parse_packet(Table* table, const uint8_t* data, uint64_t size, const uint8_t* record, int linktype,
                              Segment* segment) noexcept nogil:
    """One packet of a batch: headers, time, hash; asks the cache for where its flow will be looked up."""
    cdef uint32_t fields[4]
    memcpy(fields, record, RECORD_BYTES)
    segment.time_ns = <int64_t>fields[0] * NS + <int64_t>fields[1] * 1000
    if <uint64_t>fields[2] + fields[3] > size:
        segment.status = WIRE_MALFORMED
        return
    segment.status = <uint8_t>parse_frame(linktype, table.decap, data + fields[2], fields[3], segment)
    if segment.status == WIRE_TCP:
        segment.hash = hash_key(table, &segment.key)
        if table.index != NULL:
            gopher_prefetch(&table.index[<uint32_t>segment.hash & table.index_mask])


cdef inline void prefetch_flow(const Table* table, const Segment* segment) noexcept nogil:
    cdef uint32_t i = <uint32_t>segment.hash & table.index_mask
    cdef const char* flow
    if table.index != NULL and table.index[i].slot:
        flow = <const char*>flow_at(table, table.index[i].slot - 1)
        gopher_prefetch(flow)
        gopher_prefetch(flow + 64)
        gopher_prefetch(flow + 128)


cdef void take_fragment(Table* table, Segment* segment) noexcept nogil:
    """If the fragment makes its packet whole, `segment` becomes what that packet is; else it stays a fragment."""
    cdef uint32_t length
    cdef const uint8_t* packet = fragments_take(
        &table.memory, &table.fragments, &segment.fragment, table.now_ns, &length
    )
    table.deadline_ns = min(table.deadline_ns, table.now_ns + FRAGMENT_TIMEOUT_NS)
    if packet != NULL:
        segment.status = <uint8_t>parse_frame(LINK_RAW, table.decap, packet, length, segment)
        if segment.status == WIRE_TCP:
            segment.hash = hash_key(table, &segment.key)


cdef inline void take_packet(Table* table, Segment* segment) noexcept nogil:
    cdef Counters* counters = &table.counters
    cdef bint to_port
    cdef bint from_port
    counters.packets += 1
    set_clock(table, segment.time_ns)
    if table.now_ns >= table.deadline_ns:
        run_timers(table)
    if segment.status == WIRE_FRAGMENT:
        take_fragment(table, segment)
    if segment.status != WIRE_TCP:
        if segment.status == WIRE_MALFORMED:
            counters.packets_malformed += 1
        else:
            counters.packets_not_tcp += 1
        return
    if not table.any_port:
        to_port = is_port(table, segment.destination_port)
        from_port = is_port(table, segment.source_port)
        if not to_port and not (from_port and table.both_directions):
            counters.packets_other_port += 1
            return
    if segment.captured < segment.length:
        counters.packets_truncated += 1
    take_segment(table, segment)


cdef uint32_t take_batch(Table* table, const uint8_t* data, uint64_t size, const uint8_t* index, uint32_t count,
                         uint32_t begin, int linktype) noexcept nogil:
    """Take in packets from `begin` on. Returns the first one not taken: fewer than all when forgotten flows have to be
    delivered before their slots can be used anew."""
    cdef Segment group[GROUP]
    cdef uint32_t at = begin
    cdef uint32_t i
    cdef uint32_t in_group
    while at < count:
        in_group = min(<uint32_t>GROUP, count - at)
        for i in range(in_group):
            parse_packet(table, data, size, index + <size_t>(at + i) * RECORD_BYTES, linktype, &group[i])
        for i in range(in_group):
            if group[i].status == WIRE_TCP:
                prefetch_flow(table, &group[i])
        for i in range(in_group):
            if table.free_slots == NULL and table.limbo != NULL:
                return at + i
            take_packet(table, &group[i])
        at += in_group
    return count


cdef void release_flows(Table* table) noexcept nogil:
    """Give back all memory. No flow may be in the table, in limbo or in a record."""
    cdef Memory* memory = &table.memory
    cdef uint32_t i
    for i in range(table.slabs_count):
        _release(memory, table.slabs[i], SLAB_FLOWS * sizeof(FlowState))
    fragments_clear(memory, &table.fragments)
    _release(memory, table.slabs, table.slabs_capacity * sizeof(FlowState*))
    _release(memory, table.index, (<size_t>table.index_mask + 1) * sizeof(IndexEntry))
    _release(memory, table.records, table.records_capacity * sizeof(OutRecord))
    _release(memory, table.pieces, table.pieces_capacity * sizeof(Piece))
    table.slabs = NULL
    table.slabs_count = table.slabs_capacity = 0
    table.index = NULL
    table.index_mask = 0
    table.records = NULL
    table.records_capacity = 0
    table.pieces = NULL
    table.pieces_capacity = 0
    table.free_slots = NULL


# ---- the public class -----------------------------------------------------------------------------------------------


cdef int64_t _timeout_ns(object seconds, str name) except -1:
    if not (0 < seconds <= 1e9):
        raise ValueError(f"{name} must be above 0 and at most 1e9 seconds, not {seconds!r}")
    return <int64_t>math.ceil(seconds * 1e9)


cdef uint64_t _bytes_limit(object value, str name) except? 0:
    if not 0 < value < 1 << 48:
        raise ValueError(f"{name} must be above 0 and below 2**48, not {value!r}")
    return value


cdef uint32_t _overlap_bits(object overlap) except? 0xFFFFFFFF:
    cdef uint32_t bits = 0
    if overlap not in _OVERLAP_RULES:
        raise ValueError(f"overlap must be one of {', '.join(_OVERLAP_RULES)}, not {overlap!r}")
    for start, end in _OVERLAP_RULES[overlap]:
        bits |= <uint32_t>1 << <int>(3 * _RELATIONS.index(start) + _RELATIONS.index(end))
    return bits


@cython.final
@cython.auto_pickle(False)
cdef class Reassembler:
    """Feed batches, get events. Not thread-safe; one per thread. See the stub for the arguments."""

    cdef Table _table
    cdef set _flows             # keeps the Flow of every FlowState.object alive, where the garbage collector sees it
    cdef bint _busy             # a call is at work: another thread, or a finaliser run by it, must not come in

    def __cinit__(self):
        memset(&self._table, 0, sizeof(Table))
        self._table.memory.fail_after = -1
        self._table.deadline_ns = INT64_MAX
        self._table.next_flow_id = 1
        self._flows = set()

    def __init__(
        self, ports=None, *, both_directions=True, max_flows=131_072, flow_memory_bytes=4_194_304,
        total_memory_bytes=67_108_864, gap_timeout_s=2.0, idle_timeout_s=7200.0, overlap="linux", decap=False,
    ):
        cdef Table* table = &self._table
        cdef uint32_t number
        if table.max_flows:
            raise RuntimeError("a Reassembler is initialised once")
        if not 0 < max_flows <= MAX_FLOWS_LIMIT:
            raise ValueError(f"max_flows must be from 1 to {MAX_FLOWS_LIMIT}, not {max_flows!r}")
        table.direction_limit = _bytes_limit(flow_memory_bytes, "flow_memory_bytes")
        table.total_limit = _bytes_limit(total_memory_bytes, "total_memory_bytes")
        table.gap_timeout_ns = _timeout_ns(gap_timeout_s, "gap_timeout_s")
        table.idle_timeout_ns = _timeout_ns(idle_timeout_s, "idle_timeout_s")
        table.policy = _overlap_bits(overlap)
        table.both_directions = both_directions
        table.decap = decap
        table.any_port = ports is None
        for port in ports or ():
            if not 0 <= port <= 65535:
                raise ValueError(f"a port must be from 0 to 65535, not {port!r}")
            number = port
            table.ports[number >> 6] |= <uint64_t>1 << (number & 63)
        seeds = os.urandom(sizeof(table.seeds))
        memcpy(table.seeds, PyBytes_AS_STRING(seeds), sizeof(table.seeds))
        table.max_flows = max_flows

    def __dealloc__(self):
        cdef Table* table = &self._table
        cdef FlowState* flow
        while table.open_oldest != NULL:
            flow = table.open_oldest
            if flow.object != NULL:
                (<Flow>flow.object)._state = NULL
                flow.object = NULL
            flow.flags |= IGNORED  # nobody is left to hear of its end
            close_flow(table, flow, CLOSE_FLUSHED)
        while table.closed_oldest != NULL:
            forget_flow(table, table.closed_oldest)
        release_flows(table)

    def feed(self, batch):
        """Take in one batch and return its events. The batch is borrowed for the call only. O(packets + bytes).

        Raises:
            ValueError: the index is not made of 16-byte records.
            MemoryError: the system has none; the events of this call are lost, and their flows with them.
        """
        cdef Py_buffer data
        cdef Py_buffer index
        cdef uint32_t at = 0
        cdef uint32_t count
        cdef int linktype
        cdef list events = []
        batch_data, batch_index, linktype = batch
        self._enter()
        try:
            PyObject_GetBuffer(batch_data, &data, PyBUF_SIMPLE)
            try:
                PyObject_GetBuffer(batch_index, &index, PyBUF_SIMPLE)
                try:
                    if index.len % RECORD_BYTES or index.len // RECORD_BYTES > 0xFFFFFFFE:
                        raise ValueError(f"a batch index is made of {RECORD_BYTES}-byte records, not {index.len} bytes")
                    count = <uint32_t>(index.len // RECORD_BYTES)
                    while at < count:
                        with nogil:
                            at = take_batch(&self._table, <const uint8_t*>data.buf, data.len,
                                            <const uint8_t*>index.buf, count, at, linktype)
                        self._deliver(events)
                finally:
                    PyBuffer_Release(&index)
            finally:
                PyBuffer_Release(&data)
        finally:
            self._busy = False
        return events

    def expire(self, int64_t now_ns):
        """Apply the timeouts as of `now_ns` (capture clock); for links that went quiet. O(what is due)."""
        cdef list events = []
        self._enter()
        try:
            with nogil:
                set_clock(&self._table, now_ns)
                if self._table.now_ns >= self._table.deadline_ns:
                    run_timers(&self._table)
            self._deliver(events)
            if self._table.flows_now == 0 and self._table.fragments.count == 0:
                release_flows(&self._table)
        finally:
            self._busy = False
        return events

    def flush(self):
        """End of input: whatever is held comes out, holes as gaps, and every open flow closes as "flushed".

        Afterwards the table is empty and owns no memory; feeding may begin anew.
        """
        cdef Table* table = &self._table
        cdef FlowState* flow
        cdef list events = []
        self._enter()
        try:
            with nogil:
                while table.open_oldest != NULL:
                    flow = table.open_oldest
                    flush_held(table, flow)
                    close_flow(table, flow, CLOSE_FLUSHED)
                while table.closed_oldest != NULL:
                    forget_flow(table, table.closed_oldest)
            self._deliver(events)
            release_flows(table)
        finally:
            self._busy = False
        return events

    def ignore(self, Flow flow not None):
        """No further events for this flow; it costs no out-of-order memory from now on. Nothing if it has closed."""
        if flow._state == NULL or flow._table != &self._table:
            return
        self._enter()
        try:
            self._ignore(flow._state)
        finally:
            self._busy = False

    def statistics(self):
        """A snapshot of the counters."""
        cdef const Table* table = &self._table
        cdef const Counters* counters = &table.counters
        return ReassemblerStatistics(
            packets=counters.packets,
            packets_not_tcp=counters.packets_not_tcp,
            packets_other_port=counters.packets_other_port,
            packets_malformed=counters.packets_malformed,
            packets_truncated=counters.packets_truncated,
            flows_seen=counters.flows_seen,
            flows_opened=counters.flows_opened,
            flows_joined=counters.flows_joined,
            flows_empty=counters.flows_empty,
            flows_evicted=counters.flows_evicted,
            flows_now=table.flows_now,
            data_bytes=(counters.data_bytes[0], counters.data_bytes[1]),
            gaps=counters.gaps,
            gap_bytes=counters.gap_bytes,
            retransmitted_bytes=counters.retransmitted_bytes,
            overlaps_differing=counters.overlaps_differing,
            segments_out_of_window=counters.segments_out_of_window,
            segments_out_of_order=counters.segments_out_of_order,
            held_bytes=table.held_bytes,
            memory_bytes=table.memory.bytes,
            allocations=table.memory.allocations,
            segments_refused=counters.segments_refused,
        )

    def _probe_fail_after(self, int64_t acquisitions):
        """For tests: memory runs out after this many more acquisitions; -1 for never."""
        self._table.memory.fail_after = acquisitions

    cdef int _enter(self) except -1:
        if self._busy:
            raise RuntimeError("a Reassembler serves one call at a time")
        self._busy = True
        return 0

    cdef int _deliver(self, list events) except -1:
        """Turn the records of this call into events, then free what they pointed at."""
        cdef Table* table = &self._table
        cdef uint32_t i
        cdef FlowState* flow
        cdef bint delivered = False
        try:
            if table.failed:
                raise MemoryError("no memory for reassembly")
            for i in range(table.records_count):
                if table.records[i].kind == OUT_OPENED or table.records[i].flow.object != NULL:
                    events.append(self._event(&table.records[i]))
            delivered = True
        finally:
            for i in range(table.records_count):
                flow = table.records[i].flow
                flow.last_event = 0
                if not delivered:
                    flow.flags |= IGNORED
                if table.records[i].kind == OUT_CLOSED:
                    self._drop_flow(flow)
            table.records_count = 0
            for i in range(table.pieces_count):
                if table.pieces[i].owner != NULL:
                    run_free(&table.memory, table.pieces[i].owner)
            table.pieces_count = 0
            fragments_release_assembled(&table.memory, &table.fragments)
            while table.limbo != NULL:
                flow = table.limbo
                table.limbo = flow.older
                self._drop_flow(flow)
                flow.older = table.free_slots
                table.free_slots = flow
            if not delivered:
                self._drop_lost_flows()
        return 0

    cdef int _drop_lost_flows(self) except -1:
        """After a failure: no stream may go on as if nothing were missing."""
        cdef FlowState* flow = self._table.open_oldest
        self._table.failed = False
        while flow != NULL:
            if flow.flags & IGNORED:
                self._ignore(flow)
            flow = flow.newer
        return 0

    cdef int _ignore(self, FlowState* flow) except -1:
        cdef int direction
        flow.flags |= IGNORED
        for direction in range(2):
            if flow.directions[direction].held != NULL:
                drop_held(&self._table, flow, direction)
        self._drop_flow(flow)
        return 0

    cdef int _drop_flow(self, FlowState* state) except -1:
        """The caller will hear no more of this flow; its Flow is no handle any more."""
        cdef Flow flow
        if state.object != NULL:
            flow = <Flow>state.object
            flow._state = NULL
            flow._table = NULL
            state.object = NULL
            self._flows.discard(flow)
        return 0

    cdef object _event(self, const OutRecord* record):
        cdef StreamData data
        cdef StreamGap gap
        cdef StreamEnded ended
        cdef FlowOpened opened
        cdef FlowClosed closed
        cdef Flow flow
        if record.kind == OUT_OPENED:
            opened = FlowOpened.__new__(FlowOpened)
            opened.flow = self._new_flow(record.flow)
            opened.time_ns = record.time_ns
            return opened
        flow = <Flow>record.flow.object
        if record.kind == OUT_DATA:
            data = StreamData.__new__(StreamData)
            data.flow = flow
            data.direction = record.direction
            data.offset = record.offset
            data.time_ns = record.time_ns
            data.data = join_pieces(self._table.pieces, record)
            return data
        if record.kind == OUT_GAP:
            gap = StreamGap.__new__(StreamGap)
            gap.flow = flow
            gap.direction = record.direction
            gap.offset = record.offset
            gap.length = record.length
            gap.time_ns = record.time_ns
            return gap
        if record.kind == OUT_ENDED:
            ended = StreamEnded.__new__(StreamEnded)
            ended.flow = flow
            ended.direction = record.direction
            ended.offset = record.offset
            ended.time_ns = record.time_ns
            return ended
        closed = FlowClosed.__new__(FlowClosed)
        closed.flow = flow
        closed.reason = _CLOSE_REASONS[record.reason]
        closed.time_ns = record.time_ns
        return closed

    cdef Flow _new_flow(self, FlowState* state):
        cdef Flow flow = Flow.__new__(Flow)
        flow.id = self._table.next_flow_id
        self._table.next_flow_id += 1
        flow.began_with_syn = (state.directions[0].flags | state.directions[1].flags) & SYN_SEEN != 0
        flow._key = state.key
        flow._client_end = state.client_end
        flow._state = state
        flow._table = &self._table
        self._flows.add(flow)
        state.object = <void*>flow
        return flow


cdef bytes join_pieces(const Piece* pieces, const OutRecord* record):
    cdef bytes joined = PyBytes_FromStringAndSize(NULL, record.length)
    cdef char* target = PyBytes_AS_STRING(joined)
    cdef uint32_t i = record.first_piece
    while i != NO_PIECE:
        memcpy(target, pieces[i].data, pieces[i].length)
        target += pieces[i].length
        i = pieces[i].next
    return joined
