"""The reassembler without Python: packets in, records out.

Below `_fastpath`, which owns the table and turns records into events. Nothing here touches a Python object or needs the
GIL. Link, IP and TCP headers are read in `_wire.pxd`, fragments put together in `_fragments.pxd`, out-of-order bytes
kept in `_held.pxd`. It does not look at payloads, does not verify checksums, and does not decide what a gap means.

Invariants: delivered bytes are final; `Direction.next_offset` only grows; every byte acquired is accounted in
`Table.memory`; a `FlowState` slot is not used anew while a record points at it.

RFC 9293 (TCP), RFC 7323 (window scale), RFC 5961 (what a RST and a SYN must prove).
"""

from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
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
    checksum_is_right, is_signed, parse_frame, window_shift,
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

cdef enum:
    GROUP = 16                  # packets parsed ahead of their flows, so that the flows are in the cache in time
    # Bytes of a payload asked for when it is accepted, so that they are there when the call's end copies them: without
    # it a batch that is not in the cache (a mapped file) takes twice as long. The hardware follows longer ones itself.
    PREFETCH_BYTES = 2048
    SLAB_FLOWS = 256
    RECORDS_FIRST = 512         # a batch of the usual size needs no more
    INDEX_FIRST = 1024          # entries; a power of two
    FAR_RESYNC = 3              # far segments in a row, each behind the other, that prove a large loss
    SERVER_SIDE = 1             # SERVER_TO_CLIENT
    TIMESTAMP_HEADER = 0x0101080A  # two NOPs and a timestamp option: what most segments carry (RFC 7323 appendix A)

cdef int64_t NS = 1_000_000_000
cdef int64_t LINGER_NS = 15 * NS            # a closed flow absorbs late packets this long
cdef int64_t CLOCK_STEP_NS = 10 * NS        # time stamps that go back further are a new clock, not reordering
cdef int64_t FRAGMENT_TIMEOUT_NS = 30 * NS  # as Linux's ipfrag_time
cdef int64_t FAR_BYTES = 4 << 20            # further from the stream than this (or the window) is not believed at once
cdef int64_t RST_WINDOW_BYTES = 1 << 20     # what stands in for a window that was not captured
cdef uint64_t NO_OFFSET = UINT64_MAX
cdef uint64_t SHARE_MIX = 0x9E3779B97F4A7C15  # odd, half of its bits set: the golden ratio
cdef uint64_t RUN_BYTES = 256               # held runs shorter than this on average exhaust the run limit first
cdef uint64_t RUN_ALLOWANCE = 64


# ---- records: what the call will return -----------------------------------------------------------------------------


cdef inline bint reserve_records(Table* table, uint32_t count) noexcept nogil:
    """Room for `count` more records."""
    cdef uint32_t capacity = table.records_capacity
    cdef void* records
    if table.records_count + count <= capacity:
        return True
    capacity = max(<uint32_t>RECORDS_FIRST, capacity * 2, table.records_count + count)
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
    capacity = max(<uint32_t>RECORDS_FIRST, capacity * 2, table.pieces_count + count)
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
    record.time_ns = record.since_ns = table.packet_ns
    record.offset = offset
    record.length = length
    record.first_piece = record.last_piece = NO_PIECE
    record.kind = <uint8_t>kind
    record.direction = <uint8_t>direction
    record.reason = 0
    return record


cdef void open_flow(Table* table, FlowState* flow) noexcept nogil:
    cdef int direction
    cdef bint joined = (flow.directions[0].flags | flow.directions[1].flags) & SYN_SEEN == 0
    flow.flags |= OPENED
    table.counters.flows_opened += 1
    table.counters.flows_joined += joined
    # Decided here and not when the record is delivered: a SYN that comes late in the same batch changes nothing.
    add_record(table, flow, OUT_OPENED, 0, 0, joined)
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
    """A new flow for the segment's key, which must not be in the table. May evict another one.

    NULL without memory: then the call will raise MemoryError.
    """
    cdef FlowState* flow
    cdef int direction
    if table.flows_now == table.max_flows:
        evict_flow(table)
    if table.index == NULL or table.flows_now * 2 > table.index_mask:
        if not index_grow(table) and (table.index == NULL or table.flows_now == table.index_mask):
            table.failed = True
            return NULL
    if table.free_slots == NULL and not slab_grow(table):
        if table.flows_now:
            evict_flow(table)  # as if the table were full
        if table.free_slots == NULL:
            table.failed = True
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


cdef void give_up_overdue(Table* table, FlowState* flow, int direction) noexcept nogil:
    """The hole of a direction is too old; so may be those behind it, for as long as what is behind them has waited."""
    cdef Direction* stream = &flow.directions[direction]
    cdef HeldRun* front
    cdef int64_t arrived_ns
    give_up_hole(table, flow, direction)
    while stream.held != NULL:
        front = held_front(stream.held)
        arrived_ns = front.arrived_ns if front != NULL else stream.held.fin_ns
        if table.now_ns - arrived_ns < table.gap_timeout_ns:
            return
        give_up_hole(table, flow, direction)


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


cdef void merge_in_order(Table* table, FlowState* flow, int direction, const uint8_t* data,
                         uint64_t end) noexcept nogil:
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
        emit_data(table, flow, direction, data + (stream.next_offset - start),
                  <uint32_t>(end - stream.next_offset), NULL)
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
    if not held_insert(&table.memory, queue, table.policy, start, end, data, table.now_ns, &differing):
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
    cdef HeldQueue* queue
    cdef bint has_fin = segment.flags & TCP_FIN != 0
    cdef bint fin_is_new = False
    if not stream.flags & SEQ_KNOWN:
        stream.base_seq = seq
        stream.flags |= SEQ_KNOWN
    distance = seq_diff(seq, stream.base_seq + <uint32_t>stream.next_offset)
    if (
        distance == 0 and stream.held == NULL and not has_fin and stream.fin_offset == NO_OFFSET
        and not flow.flags & IGNORED and segment.captured
    ):
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
        # A flow that is ignored for want of memory may still hold something.
        if stream.held != NULL:
            drop_held(table, flow, direction)
        stream.next_offset = max(<int64_t>stream.next_offset, fin)
        if has_fin:
            end_stream(table, flow, direction)
        return
    if has_fin and stream.fin_offset == NO_OFFSET and fin >= <int64_t>stream.next_offset:
        # In order a FIN decides, whatever is held beyond it; behind a hole, one that contradicts held data is not
        # believed.
        if start <= <int64_t>stream.next_offset:
            stream.fin_offset = fin
            fin_is_new = True
            if stream.held != NULL and held_end(stream.held) > stream.fin_offset:
                drop_held(table, flow, direction)
        elif stream.held == NULL or <uint64_t>fin >= held_end(stream.held):
            stream.fin_offset = fin
            fin_is_new = True
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
        return
    queue = need_held(table, flow, direction)
    if queue == NULL:
        return
    if fin_is_new:
        queue.fin_ns = table.now_ns
    if stream.acked_offset > stream.next_offset:
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
    cdef bint from_server
    cdef bint to_port = table.any_port or is_port(table, segment.destination_port)
    cdef bint from_port = table.any_port or is_port(table, segment.source_port)
    if segment.length == 0 and (not segment.flags & TCP_SYN or segment.flags & TCP_RST):
        return NULL
    if to_port != from_port:
        from_server = from_port
    elif segment.flags & TCP_SYN:
        from_server = segment.flags & TCP_ACK != 0
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
        elif (
            flow.flags & CANDIDATE and flow.candidate_direction == direction and not segment.flags & TCP_RST
            and segment.seq == flow.candidate_isn + 1 and (segment.length or segment.flags & TCP_FIN)
        ):
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
        give_up_overdue(table, <FlowState*>queue.flow, queue.direction)
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
    """One packet of a batch: headers, time, hash. Has the place where its flow will be looked up brought near."""
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


cdef inline uint32_t share_of(const Table* table, const Segment* segment) noexcept nogil:
    """Which of the tables that share the flows takes the packet: the same one for both directions of a flow. What is no
    whole TCP segment goes to the first one."""
    cdef const uint64_t* words = segment.key.words
    cdef uint64_t value
    if segment.status != WIRE_TCP:
        return 0
    value = gopher_fold(words[0] ^ table.share_seed, words[1] ^ SHARE_MIX)
    if words[0] >> 32 == 6:
        value = gopher_fold(value ^ words[2], words[3] ^ SHARE_MIX) ^ words[4]
    # Once more, so that every bit counts in the upper half, which chooses.
    value = gopher_fold(value ^ table.share_seed, SHARE_MIX)
    return <uint32_t>(((value >> 32) * table.share_count) >> 32)


cdef inline void take_packet(Table* table, Segment* segment) noexcept nogil:
    cdef Counters* counters = &table.counters
    cdef bint to_port
    cdef bint from_port
    set_clock(table, segment.time_ns)
    if table.now_ns >= table.deadline_ns:
        run_timers(table)
    if segment.status == WIRE_FRAGMENT:
        take_fragment(table, segment)
    if table.share_count > 1 and share_of(table, segment) != table.share_index:
        return
    counters.packets += 1
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
    elif table.verify_checksums and not checksum_is_right(segment):
        counters.packets_bad_checksum += 1
        return
    take_segment(table, segment)


cdef uint32_t take_batch(Table* table, const uint8_t* data, uint64_t size, const uint8_t* index, uint32_t count,
                         uint32_t begin, int linktype) noexcept nogil:
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


cdef void expire_table(Table* table, int64_t capture_ns) noexcept nogil:
    set_clock(table, capture_ns)
    if table.now_ns >= table.deadline_ns:
        run_timers(table)


cdef void flush_table(Table* table) noexcept nogil:
    cdef FlowState* flow
    while table.open_oldest != NULL:
        flow = table.open_oldest
        flush_held(table, flow)
        close_flow(table, flow, CLOSE_FLUSHED)
    while table.closed_oldest != NULL:
        forget_flow(table, table.closed_oldest)


cdef void lose_flow(Table* table, FlowState* flow) noexcept nogil:
    cdef int direction
    flow.flags |= IGNORED
    for direction in range(2):
        if flow.directions[direction].held != NULL:
            drop_held(table, flow, direction)


cdef void clear_records(Table* table) noexcept nogil:
    cdef uint32_t i
    for i in range(table.records_count):
        table.records[i].flow.last_event = 0
    for i in range(table.pieces_count):
        if table.pieces[i].owner != NULL:
            run_free(&table.memory, table.pieces[i].owner)
    table.records_count = 0
    table.pieces_count = 0
    fragments_release_assembled(&table.memory, &table.fragments)


cdef FlowState* next_in_limbo(Table* table) noexcept nogil:
    cdef FlowState* flow = table.limbo
    if flow != NULL:
        table.limbo = flow.older
        flow.older = table.free_slots
        table.free_slots = flow
    return flow


cdef void release_table(Table* table) noexcept nogil:
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
