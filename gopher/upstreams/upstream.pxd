# Makes extension types of the classes of upstream.py, which are touched for every run of bytes and every connection.

from libc.stdint cimport int64_t

from gopher._fastpath cimport Flow
from gopher._pump cimport Ledger


cdef class StreamCopy

cdef class Upstream:
    cdef readonly object config
    cdef readonly object clock
    cdef readonly object rate
    cdef object _limits
    cdef int64_t _max_connections
    cdef readonly Ledger ledger
    cdef readonly int64_t connections_captured
    cdef readonly int64_t connections_delivered
    cdef readonly dict connections_shed
    cdef readonly int64_t connections_pending
    cdef public int64_t dials
    cdef public int64_t answers_missed_bytes
    cdef public double added_s
    cdef public object removed_s

    cpdef copy(self, Flow flow)
    cpdef str refusal(self)
    cpdef connect(self, StreamCopy copy, base, requests)
    cpdef outcome(self, connection, int outcome)
    cpdef finish(self, connection, bint reset=*)
    cpdef settle(self, str shed_reason)


cdef class StreamCopy:
    cdef readonly Upstream upstream
    cdef readonly str name
    cdef readonly int port
    cdef readonly object connection
    cdef str _reason
    cdef bint _given_up
    cdef str _shed_first
    cdef int _parts
    cdef bint _ended

    cpdef write(self, data, Py_ssize_t start, base, requests)
    cpdef shed(self, str reason, int64_t length)
    cpdef note_shed(self, str reason)
    cpdef skip(self, str reason, int64_t length)
    cdef _connect(self, base, requests)
    cpdef finish(self)
    cpdef reset(self)
    cpdef give_up(self, str reason)
    cpdef cut(self, connection, str reason)
    cpdef lost(self, connection, str reason)
    cpdef done(self, connection, bint reset=*)
    cpdef expire(self, connection, str reason)
    cdef _sever(self, connection, str reason)
    cdef _drop(self, connection, str reason, int64_t unaccepted)
    cdef _settle(self)
