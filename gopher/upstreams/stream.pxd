# Makes an extension type of MirroredStream, which is touched for every run of bytes and every connection.

cimport cython

from gopher._pump cimport Budget
from gopher.http.framing cimport RequestFramer
from gopher.upstreams.upstream cimport StreamCopy


cdef class MirroredStream:
    cdef readonly list copies
    cdef readonly list framed
    cdef readonly bint midway
    cdef readonly bint joined
    cdef readonly RequestFramer requests
    cdef readonly double place
    cdef public bint open
    cdef str _joining
    cdef bint _shed
    cdef bytes _held
    cdef Budget _memory

    @cython.locals(copy=StreamCopy, requests=RequestFramer)
    cpdef list write(self, data)
    cdef Budget _budget(self, StreamCopy copy)
    cdef _join(self, bytes data, str reason)
    cdef _hold(self, bytes data)
    cdef _skip(self, str reason, Py_ssize_t length)

    @cython.locals(copy=StreamCopy)
    cpdef finish(self)
    cpdef reset(self)
    cdef _drop_held(self)
