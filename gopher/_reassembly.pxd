# The reassembler's structures and what `_fastpath` calls. All functions are C functions on these.
#
# Per packet: parse (_wire.pxd) -> find or enter the flow -> SYN, RST, ACK, data, FIN -> out records. Out records are
# C structs that point into the batch; they become Python events once, at the end of the call.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from gopher._fragments cimport FragmentTable
from gopher._held cimport HeldQueue, HeldRun
from gopher._memory cimport Memory
from gopher._wire cimport FlowKey, Segment

cdef enum:
    RECORD_BYTES = 16           # of the batch index: seconds, microseconds, offset, captured length
    MAX_FLOWS_LIMIT = 1 << 24
    SHARES_LIMIT = 1 << 16
    NO_PIECE = 0xFFFFFFFF
    NO_SHIFT = 0xFF             # a SYN without the window scale option

cdef enum DirectionFlag:
    SEQ_KNOWN = 1               # base_seq means something
    SYN_SEEN = 2                # base_seq comes from a SYN or SYN/ACK, or was acknowledged by a SYN/ACK
    WINDOW_KNOWN = 4            # the SYN itself was captured, so `scale` is right
    ENDED = 8                   # FIN in order
    ACKED = 16                  # the other side has acknowledged in a segment without SYN: the handshake is over
    SIGNED = 32                 # this side's SYN has a signature option

cdef enum FlowFlag:
    OPENED = 1                  # has a FlowOpened event
    CLOSED = 2                  # lingers in the table, only to absorb late packets
    IGNORED = 4                 # by the caller
    CANDIDATE = 8               # candidate_isn holds the ISN of a SYN that may begin the next connection

cdef enum OutKind:
    OUT_OPENED
    OUT_DATA
    OUT_GAP
    OUT_ENDED
    OUT_CLOSED

cdef enum CloseReason:
    CLOSE_FIN
    CLOSE_RST
    CLOSE_REPLACED
    CLOSE_IDLE
    CLOSE_EVICTED
    CLOSE_FLUSHED

cdef struct Direction:
    uint64_t next_offset        # bytes delivered or given up so far: where the stream goes on
    uint64_t fin_offset         # where its FIN is; NO_OFFSET while none was seen
    uint64_t acked_offset       # the farthest plausible acknowledgement by the other side beyond next_offset
    HeldQueue* held             # owned; NULL while there is no hole
    uint32_t base_seq           # sequence number of offset 0
    uint32_t window             # bytes: the largest window this side has advertised; 0 if unknown
    uint32_t far_next_seq       # where the last of far_count segments, each far away and behind the other, ended
    uint8_t far_count
    uint8_t shift               # of the window scale option in this side's SYN; NO_SHIFT without one
    uint8_t scale               # the shift in force
    uint8_t flags               # DirectionFlag

cdef struct FlowState:
    FlowKey key
    int64_t last_seen_ns        # internal clock
    FlowState* older            # borrowed: list of open or of closed flows by last_seen_ns
    FlowState* newer            # likewise; free slots and those in limbo are linked by `older` alone
    Direction directions[2]
    void* object                # borrowed: the Python Flow; NULL before FlowOpened, after FlowClosed, if ignored
    uint32_t tag                # low half of the key's hash
    uint32_t slot               # own index in the slabs
    uint32_t last_event         # 1 + index of its newest out record in this call, 0 without one
    uint32_t candidate_isn
    uint8_t candidate_direction
    uint8_t client_end          # which end of the key is the client
    uint8_t flags               # FlowFlag

cdef struct IndexEntry:
    uint32_t tag                # low half of the hash: compared before the flow is touched
    uint32_t slot               # 1 + FlowState.slot; 0 is empty

cdef struct Piece:
    const uint8_t* data         # borrowed until the end of the call: the batch, or `owner`
    HeldRun* owner              # owned, NULL if data is in the batch
    uint32_t length
    uint32_t next               # index of the next piece of the same record, NO_PIECE at the end

cdef struct OutRecord:
    FlowState* flow             # borrowed: its slot is not used anew before the record is delivered
    int64_t time_ns             # capture clock; of data, the newest packet's
    int64_t since_ns            # the oldest packet's
    uint64_t offset
    uint64_t length             # bytes; OUT_OPENED: 1 if the flow was joined in the middle, else 0
    uint32_t first_piece
    uint32_t last_piece
    uint8_t kind                # OutKind
    uint8_t direction
    uint8_t reason              # CloseReason

cdef struct Counters:
    uint64_t packets
    uint64_t packets_not_tcp
    uint64_t packets_other_port
    uint64_t packets_malformed
    uint64_t packets_truncated
    uint64_t flows_seen
    uint64_t flows_opened
    uint64_t flows_joined
    uint64_t flows_empty
    uint64_t flows_evicted
    uint64_t data_bytes[2]
    uint64_t gaps
    uint64_t gap_bytes
    uint64_t retransmitted_bytes
    uint64_t overlaps_differing
    uint64_t segments_out_of_window
    uint64_t segments_out_of_order
    uint64_t segments_refused
    uint64_t packets_bad_checksum

cdef struct Table:
    # -- settings --------------------------------------------------------------------------------------------------
    uint32_t max_flows
    uint32_t policy             # bits for _held.new_wins
    uint64_t direction_limit    # bytes held per direction
    uint64_t total_limit        # bytes held in all
    int64_t gap_timeout_ns
    int64_t idle_timeout_ns
    bint both_directions
    bint any_port
    bint decap
    bint verify_checksums
    uint64_t ports[1024]        # bit set of the 65,536 ports
    uint64_t seeds[3]           # secret: keeps an attacker from choosing keys that collide
    uint64_t share_seed         # the same in all tables that share the flows
    uint32_t share_index        # below share_count: packets of other shares are passed over
    uint32_t share_count        # 1: all packets are this table's
    # -- the clock: capture time made monotonic ----------------------------------------------------------------------
    int64_t packet_ns           # capture time of the packet, or of expire(), at work
    int64_t high_ns             # the newest capture time since the clock last stepped back
    int64_t skew_ns             # internal clock - capture clock
    int64_t now_ns              # internal clock
    int64_t deadline_ns         # internal clock: no timer is due before
    # -- the flows ---------------------------------------------------------------------------------------------------
    Memory memory
    IndexEntry* index           # owned; open addressing, linear probing
    uint32_t index_mask         # entries - 1
    uint32_t flows_now
    FlowState** slabs           # owned, as are the slabs
    uint32_t slabs_count
    uint32_t slabs_capacity
    FlowState* free_slots
    FlowState* limbo            # forgotten, but records of this call still point at them
    FlowState* open_oldest
    FlowState* open_newest
    FlowState* closed_oldest
    FlowState* closed_newest
    # -- what is held out of order -----------------------------------------------------------------------------------
    HeldQueue* hole_oldest
    HeldQueue* hole_newest
    uint64_t held_bytes
    uint64_t held_runs
    FragmentTable fragments
    # -- what comes out of this call ---------------------------------------------------------------------------------
    OutRecord* records          # owned
    uint32_t records_count
    uint32_t records_capacity
    Piece* pieces               # owned
    uint32_t pieces_count
    uint32_t pieces_capacity
    bint failed                 # memory ran out for records: the call raises MemoryError
    uint64_t next_flow_id
    Counters counters

# Take in packets from `begin` on. Returns the first one not taken: less than `count` when the records must be delivered
# before forgotten flows' slots can be used anew. The batch is borrowed until clear_records().
cdef uint32_t take_batch(Table* table, const uint8_t* data, uint64_t size, const uint8_t* index, uint32_t count,
                         uint32_t begin, int linktype) noexcept nogil

# Apply the timeouts as of `capture_ns`.
cdef void expire_table(Table* table, int64_t capture_ns) noexcept nogil

# Bring out all that is held, close and forget every flow.
cdef void flush_table(Table* table) noexcept nogil

# No more records for this flow, and nothing held.
cdef void lose_flow(Table* table, FlowState* flow) noexcept nogil

# The records have been delivered: free what they pointed at. Not the slots in limbo: see next_in_limbo().
cdef void clear_records(Table* table) noexcept nogil

# Move one slot out of limbo; NULL if there is none. It is free then, its fields still readable.
cdef FlowState* next_in_limbo(Table* table) noexcept nogil

# Give back all memory. No flow may be in the table or in limbo, no record undelivered.
cdef void release_table(Table* table) noexcept nogil
