# The classes of `_fastpath` for other extensions: their fields without the cost of an attribute.

from libc.stdint cimport int64_t, uint8_t, uint64_t

from gopher._reassembly cimport FlowState, OutRecord, Table
from gopher._runs cimport ByteRun, Lease
from gopher._wire cimport FlowKey

cdef class Flow:
    cdef readonly uint64_t id
    cdef readonly bint began_with_syn
    cdef readonly int server_port
    cdef public object context
    cdef FlowKey _key
    cdef uint8_t _client_end
    cdef FlowState* _state      # borrowed; NULL once the flow has closed or is ignored
    cdef Table* _table          # borrowed: valid while _state is

    cdef int _port(self, int end) noexcept
    cdef tuple _end(self, int end)

cdef class FlowOpened:
    cdef readonly Flow flow
    cdef readonly int64_t time_ns

cdef class StreamData:
    cdef readonly Flow flow
    cdef readonly int direction
    cdef readonly uint64_t offset
    cdef readonly ByteRun run   # large ones, which are not copied; else None
    cdef bytes _data            # None if there is a run
    cdef readonly int64_t time_ns
    cdef readonly int64_t since_ns

    cpdef content(self)

cdef class StreamGap:
    cdef readonly Flow flow
    cdef readonly int direction
    cdef readonly uint64_t offset
    cdef readonly uint64_t length
    cdef readonly int64_t time_ns

cdef class StreamEnded:
    cdef readonly Flow flow
    cdef readonly int direction
    cdef readonly uint64_t offset
    cdef readonly int64_t time_ns

cdef class FlowClosed:
    cdef readonly Flow flow
    cdef readonly str reason
    cdef readonly int64_t time_ns

cdef class Reassembler:
    cdef Table _table
    cdef set _flows             # keeps the Flow of every FlowState.object alive, where the garbage collector sees it
    cdef Lease _lease           # the batches of the call that is at work
    cdef bint _busy             # a call is at work: another thread, or a finaliser run by it, must not come in

    cdef int _enter(self) except -1
    cdef int _deliver(self, list events) except -1
    cdef int _drop_lost_flows(self) except -1
    cdef int _drop_object(self, FlowState* state) except -1
    cdef object _event(self, const OutRecord* record)
    cdef ByteRun _run(self, const OutRecord* record)
    cdef Flow _new_flow(self, FlowState* state, bint joined)
