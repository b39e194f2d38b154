# Makes an extension type of Mirror, whose `_act` every event goes through.

cimport cython
from libc.stdint cimport int64_t

from gopher._fastpath cimport Flow, FlowClosed, FlowOpened, Reassembler, StreamData, StreamEnded, StreamGap
from gopher._pump cimport Pump
from gopher.upstreams.stream cimport MirroredStream
from gopher.upstreams.upstream cimport Upstream, decide


cdef class Mirror:
    cdef dict __dict__                  # what is not touched for each event
    cdef readonly Reassembler reassembler
    cdef Pump _pump
    cdef bint _can_wait
    cdef list _active
    cdef int64_t _max_connections
    cdef double _sample_ratio
    cdef list _relays
    cdef bint _framed
    cdef frozenset _own_ports
    cdef object _governor
    cdef set _open
    cdef int64_t _received_bytes
    cdef int64_t _streams
    cdef int64_t _not_joined
    cdef int64_t _joined
    cdef int64_t _sampled_out
    cdef int64_t _own_seen

    cdef _dial_held(self)

    @cython.locals(data=StreamData, opened=FlowOpened, ended=StreamEnded, closed=FlowClosed, gap=StreamGap)
    cdef list _act(self, event)

    @cython.locals(stream=MirroredStream)
    cdef list _pass_on(self, StreamData event)
    cdef bint _is_ignored(self, Flow flow)
    cdef bint _sampled(self, Flow flow)

    @cython.locals(upstream=Upstream)
    cdef _open_stream(self, Flow flow)

    cdef _framed_copies(self, Flow flow)

    @cython.locals(stream=MirroredStream)
    cdef MirroredStream _open_stream_of(self, Flow flow)

    @cython.locals(stream=MirroredStream)
    cdef _end_stream(self, Flow flow)

    @cython.locals(stream=MirroredStream)
    cdef _close_stream(self, Flow flow, str reason)
    cdef _retire(self, MirroredStream stream)
