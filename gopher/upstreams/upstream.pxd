# Makes extension types of the classes of upstream.py, which are touched for every run of bytes and every connection.

cimport cython
from libc.stdint cimport int64_t, uint64_t

from gopher._fastpath cimport Flow
from gopher._pump cimport Connection, Ledger, Outlet
from gopher.http.framing cimport RequestFramer


cdef class StreamCopy


@cython.locals(connection=Connection, outcome=int, copy=StreamCopy)
cpdef decide(list decisions)


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
    cpdef connect(self, StreamCopy copy, uint64_t base, RequestFramer requests)
    cpdef outcome(self, Outlet connection, int outcome)
    cpdef finish(self, Outlet connection, bint reset=*)
    cpdef settle(self, str shed_reason)


cdef class StreamCopy:
    cdef readonly Upstream upstream
    cdef readonly str name
    cdef readonly int port
    cdef readonly Outlet connection
    cdef str _reason
    cdef bint _given_up
    cdef str _shed_first
    cdef int _parts
    cdef bint _ended

    cpdef write(self, data, Py_ssize_t start, uint64_t base, RequestFramer requests)
    cpdef shed(self, str reason, int64_t length)
    cpdef note_shed(self, str reason)
    cpdef skip(self, str reason, int64_t length)
    cdef Outlet _connect(self, uint64_t base, RequestFramer requests)
    cpdef finish(self)
    cpdef reset(self)
    cpdef give_up(self, str reason)
    cpdef cut(self, Outlet connection, str reason)
    cpdef lost(self, Outlet connection, str reason)
    cpdef done(self, Outlet connection, bint reset=*)
    cpdef expire(self, Outlet connection, str reason)
    cdef _sever(self, Outlet connection, str reason)
    cdef _drop(self, Outlet connection, str reason, int64_t unaccepted)
    cdef _settle(self)
