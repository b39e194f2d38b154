# The events, whose fields the relay reads for every message.

cimport cython

from gopher.http cimport heads


@cython.final
@cython.no_gc  # refers to nothing that could refer back
cdef class HeadReceived:
    cdef readonly object head           # RequestHead or ResponseHead
    cdef readonly str body
    cdef readonly object length


@cython.final
cdef class BodyReceived:
    cdef readonly bytes wire
    cdef readonly bytes content


@cython.final
@cython.no_gc
cdef class MessageEnded:
    cdef readonly heads.Headers trailers


@cython.final
cdef class Switched:
    cdef readonly bytes rest
