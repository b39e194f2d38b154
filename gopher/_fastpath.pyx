"""Packets in, ordered bytes out: the reassembler as Python sees it.

First stage behind the capture source, before the mirror. Sans-I/O: a batch of packets in, a list of events out; time is
what the packets say. All deciding is done in `_reassembly`, without the GIL and without a Python object per packet;
here its records become events, and flows get their objects.

Invariants: an object is made once per delivered run of bytes; a `Flow` is a handle to the table exactly while the table
may still have events for it.
"""

import ipaddress
import math
import os
import sys
from typing import Any, NamedTuple

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawMalloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gopher._reassembly cimport (
    IGNORED, MAX_FLOWS_LIMIT, NO_PIECE, OUT_CLOSED, OUT_DATA, OUT_ENDED, OUT_GAP, OUT_OPENED, RECORD_BYTES,
    SHARES_LIMIT, Counters, FlowState, OutRecord, Piece, Table, clear_records, expire_table, flush_table, lose_flow,
    next_in_limbo, release_table, take_batch,
)
from gopher._runs cimport ByteRun, Lease, iovec

cdef enum:
    # From here on it costs less to hand the pieces on than to copy them.
    RUN_BYTES = 16384

CLIENT_TO_SERVER = 0
SERVER_TO_CLIENT = 1

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
    size_bytes: int = 0


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
        server_port: the port of `server`, without the price of its address.
        context: the caller's; None at first.
    """

    def __cinit__(self):
        self._state = NULL
        self._table = NULL

    def __dealloc__(self):
        if self._state != NULL:
            self._state.object = NULL

    @property
    def client(self):
        """(address, port); IPv4-mapped addresses in hexadecimal, too."""
        return self._end(self._client_end)

    @property
    def server(self):
        """(address, port); IPv4-mapped addresses in hexadecimal, too."""
        return self._end(1 - self._client_end)

    cdef int _port(self, int end) noexcept:
        return <int>((self._key.words[0] >> (0 if end else 16)) & 0xFFFF)

    cdef tuple _end(self, int end):
        cdef const uint64_t* words = self._key.words
        port = self._port(end)
        if words[0] >> 32 == 4:
            address = <uint32_t>(words[1] >> (0 if end else 32))
            return f"{address >> 24}.{(address >> 16) & 255}.{(address >> 8) & 255}.{address & 255}", port
        wide = (<object>words[2 * end + 1] << 64) | <object>words[2 * end + 2]
        text = str(ipaddress.IPv6Address(wide))
        if "." in text:
            # IPv4-mapped, as CPython 3.13 and newer write it: the same text for all.
            text = f"{text.rpartition(':')[0]}:{(wide >> 16) & 0xFFFF:x}:{wide & 0xFFFF:x}"
        return text, port

    def __repr__(self):
        (client, client_port), (server, server_port) = self.client, self.server
        return f"<Flow {self.id} {client}.{client_port} > {server}.{server_port}>"


@cython.final
@cython.auto_pickle(False)
@cython.freelist(64)
cdef class FlowOpened:
    """The first event of a flow, right before its first data or gap."""

    def __repr__(self):
        return f"<FlowOpened {self.flow!r}>"


@cython.final
@cython.auto_pickle(False)
@cython.freelist(512)
cdef class StreamData:
    """The next bytes of one direction, contiguous with what came before."""

    @property
    def data(self):
        return self._data if self.run is None else self.run.join()

    cpdef content(self):
        """The bytes, or the run."""
        return self._data if self.run is None else self.run

    def __repr__(self):
        return f"<StreamData {self.flow!r} {self.direction} {self.offset}+{len(self.data)}>"


@cython.final
@cython.auto_pickle(False)
@cython.freelist(64)
cdef class StreamGap:
    """`length` bytes from `offset` on were on the wire and not in the capture."""

    def __repr__(self):
        return f"<StreamGap {self.flow!r} {self.direction} {self.offset}+{self.length}>"


@cython.final
@cython.auto_pickle(False)
@cython.freelist(64)
cdef class StreamEnded:
    """FIN, in order: this direction is complete at `offset` bytes."""

    def __repr__(self):
        return f"<StreamEnded {self.flow!r} {self.direction} {self.offset}>"


@cython.final
@cython.auto_pickle(False)
@cython.freelist(64)
cdef class FlowClosed:
    """The last event of a flow; reason: fin, rst, replaced, idle, evicted or flushed."""

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
    packets_bad_checksum: int


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

    def __cinit__(self):
        memset(&self._table, 0, sizeof(Table))
        self._table.memory.fail_after = -1
        self._table.next_flow_id = 1
        self._flows = set()

    def __init__(
        self, ports=None, *, both_directions=True, max_flows=131_072, flow_memory_bytes=4_194_304,
        total_memory_bytes=67_108_864, gap_timeout_s=2.0, idle_timeout_s=7200.0, overlap="linux", decap=False,
        verify_checksums=False, share=(0, 1), share_seed=0,
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
        table.verify_checksums = verify_checksums
        share_index, share_count = share
        if not 0 <= share_index < share_count <= SHARES_LIMIT:
            raise ValueError(f"share must be (index, count), index below count, not {share!r}")
        table.share_index = share_index
        table.share_count = share_count
        table.share_seed = share_seed
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
        cdef FlowState* flow = table.open_oldest
        while flow != NULL:
            if flow.object != NULL:
                (<Flow>flow.object)._state = NULL
                flow.object = NULL
            lose_flow(table, flow)  # nobody is left to hear of its end
            flow = flow.newer
        flush_table(table)
        release_table(table)

    def feed(self, *batches):
        """Take in batches and return their events. They are borrowed for the call only. O(packets + bytes).

        What several batches bring of one stream comes in one event, as what one batch brings.

        Raises:
            ValueError: an index is not made of 16-byte records; nothing was taken in.
            MemoryError: the system has none; the events of this call are lost, and their flows with them.
        """
        cdef Lease lease = Lease()
        cdef Py_buffer* buffers = <Py_buffer*>PyMem_RawMalloc(2 * max(len(batches), 1) * sizeof(Py_buffer))
        cdef Py_buffer* data
        cdef Py_buffer* index
        cdef Py_ssize_t i
        cdef uint32_t at
        cdef uint32_t count
        cdef int linktype
        cdef list events = []
        if buffers == NULL:
            raise MemoryError
        lease._buffers = buffers
        self._enter()
        self._lease = lease
        try:
            for batch_data, batch_index, _linktype, _size_bytes in batches:
                for buffer in (batch_data, batch_index):
                    PyObject_GetBuffer(buffer, &buffers[lease._count], PyBUF_SIMPLE)
                    lease._count += 1
                index = &buffers[lease._count - 1]
                if index.len % RECORD_BYTES or index.len // RECORD_BYTES > 0xFFFFFFFE:
                    raise ValueError(f"a batch index is made of {RECORD_BYTES}-byte records, not {index.len} bytes")
            for i in range(len(batches)):
                data = &buffers[2 * i]
                index = data + 1
                linktype = batches[i][2]
                count = <uint32_t>(index.len // RECORD_BYTES)
                at = 0
                while True:
                    with nogil:
                        at = take_batch(&self._table, <const uint8_t*>data.buf, data.len,
                                        <const uint8_t*>index.buf, count, at, linktype)
                    if at == count:
                        break
                    # Flows that are gone must be delivered before their slots are free.
                    self._deliver(events)
            self._deliver(events)
        finally:
            self._lease = None
            self._busy = False
        return events

    def expire(self, int64_t now_ns):
        """Apply the timeouts as of `now_ns` (capture clock); for links that went quiet. O(what is due)."""
        cdef list events = []
        self._enter()
        try:
            with nogil:
                expire_table(&self._table, now_ns)
            self._deliver(events)
            if self._table.flows_now == 0 and self._table.fragments.count == 0:
                release_table(&self._table)
        finally:
            self._busy = False
        return events

    def flush(self):
        """End of input: whatever is held comes out, holes as gaps, and every open flow closes as "flushed".

        Afterwards the table is empty and owns no memory; feeding may begin anew.
        """
        cdef list events = []
        self._enter()
        try:
            with nogil:
                flush_table(&self._table)
            try:
                self._deliver(events)
            finally:
                release_table(&self._table)
        finally:
            self._busy = False
        return events

    def ignore(self, Flow flow not None):
        """No further events for this flow; it costs no out-of-order memory from now on. Nothing if it has closed."""
        if flow._state == NULL or flow._table != &self._table:
            return
        self._enter()
        try:
            lose_flow(&self._table, flow._state)
            self._drop_object(flow._state)
        finally:
            self._busy = False

    @property
    def packets(self):
        """How many were looked at: one of the counters, without the price of all."""
        return self._table.counters.packets

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
            packets_bad_checksum=counters.packets_bad_checksum,
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
        """Turn the records of this call into events, and let go of what they were the last to need."""
        cdef Table* table = &self._table
        cdef uint32_t i
        cdef FlowState* flow
        cdef bint delivered = False
        try:
            if table.failed:
                raise MemoryError("no memory for reassembly")
            for i in range(table.records_count):
                # A flow that was lost to an earlier failure has no object.
                if table.records[i].kind == OUT_OPENED or table.records[i].flow.object != NULL:
                    events.append(self._event(&table.records[i]))
            delivered = True
        finally:
            for i in range(table.records_count):
                flow = table.records[i].flow
                if not delivered:
                    flow.flags |= IGNORED
                if table.records[i].kind == OUT_CLOSED:
                    self._drop_object(flow)
            clear_records(table)
            flow = next_in_limbo(table)
            while flow != NULL:
                self._drop_object(flow)
                flow = next_in_limbo(table)
            if not delivered:
                self._drop_lost_flows()
        return 0

    cdef int _drop_lost_flows(self) except -1:
        """After a failure: no stream may go on as if nothing were missing."""
        cdef FlowState* flow = self._table.open_oldest
        self._table.failed = False
        while flow != NULL:
            if flow.flags & IGNORED:
                lose_flow(&self._table, flow)
                self._drop_object(flow)
            flow = flow.newer
        return 0

    cdef int _drop_object(self, FlowState* state) except -1:
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
            opened.flow = self._new_flow(record.flow, record.length)
            opened.time_ns = record.time_ns
            return opened
        flow = <Flow>record.flow.object
        if record.kind == OUT_DATA:
            data = StreamData.__new__(StreamData)
            data.flow = flow
            data.direction = record.direction
            data.offset = record.offset
            data.time_ns = record.time_ns
            data.since_ns = record.since_ns
            if record.length >= RUN_BYTES:
                data.run = self._run(record)
            if data.run is None:
                data._data = join_pieces(self._table.pieces, record)
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

    cdef ByteRun _run(self, const OutRecord* record):
        """The record's bytes where they are; None if some of them will not stay there."""
        cdef const Piece* pieces = self._table.pieces
        cdef Lease lease = self._lease
        cdef ByteRun run
        cdef uint32_t i = record.first_piece
        cdef Py_ssize_t count = 0
        while i != NO_PIECE:
            # Held until they were in order, or put together from fragments.
            if pieces[i].owner != NULL or lease is None or not lease.holds(pieces[i].data, pieces[i].length):
                return None
            count += 1
            i = pieces[i].next
        run = ByteRun()
        run.pieces = <iovec*>PyMem_RawMalloc(count * sizeof(iovec))
        if run.pieces == NULL:
            raise MemoryError
        run._lease = lease
        run.length = record.length
        i = record.first_piece
        while i != NO_PIECE:
            run.pieces[run.pieces_count].iov_base = <void*>pieces[i].data
            run.pieces[run.pieces_count].iov_len = pieces[i].length
            run.pieces_count += 1
            i = pieces[i].next
        return run

    cdef Flow _new_flow(self, FlowState* state, bint joined):
        cdef Flow flow = Flow.__new__(Flow)
        flow.id = self._table.next_flow_id
        self._table.next_flow_id += 1
        flow.began_with_syn = not joined
        flow._key = state.key
        flow._client_end = state.client_end
        flow.server_port = flow._port(1 - flow._client_end)
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
