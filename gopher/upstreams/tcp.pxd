# Makes extension types of what tcp.py does for every connection.

cimport cython

from libc.stdint cimport uint64_t

from gopher._pump cimport Connection, Pump, Queue
from gopher.http.framing cimport RequestFramer
from gopher.upstreams.upstream cimport StreamCopy, Upstream


cdef class Address:
    cdef readonly int family
    cdef readonly str host
    cdef readonly int port
    cdef readonly bytes sockaddr
    cdef int _scope_id

    cpdef Address at(self, int port)


cdef class Backoff:
    cdef readonly str reason
    cdef double _delay_s
    cdef double _retry_at_s
    cdef bint _probing

    cpdef bint permits(self, double now_s)
    cpdef succeeded(self)


cdef class TcpUpstream(Upstream):
    cdef readonly list addresses
    cdef readonly Backoff backoff
    cdef readonly Pump _pump
    cdef double _connect_timeout_s
    cdef double _linger_s
    cdef int _port
    cdef int _preferred
    cdef int _unanswered
    cdef tuple _signs_of_life
    cdef Queue _connecting
    cdef Queue _lingering

    cpdef Connection _open(self, StreamCopy copy, uint64_t base, RequestFramer requests)

    @cython.locals(copy=StreamCopy, address=Address, oldest=Connection)
    cpdef int _dial(self, Connection connection, double now_s, bint write_follows=*) except? -1
    cdef str _dial_failed(self, int failure)

    @cython.locals(oldest=Connection)
    cdef _finish(self, Connection connection, bint reset)

    @cython.locals(copy=StreamCopy)
    cdef _outcome(self, Connection connection, int outcome)
    cdef _failed(self, str reason)
    cdef _notice_recovery(self)
    cdef _recovered(self)
    cdef _retry(self, Connection connection, StreamCopy copy, int failure)
