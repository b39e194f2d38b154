# Makes an extension type of UpstreamConnection, which every message goes through.

from gopher.relay.channel cimport Channel


cdef class UpstreamConnection:
    cdef object _relay
    cdef object _user
    cdef object _take
    cdef object _answers
    cdef Py_ssize_t _addresses_left
    cdef list _out
    cdef public bint deaf
    cdef readonly bint closed
    cdef Channel _channel

    cpdef str dial(self, bytes first)
    cdef str _dial_tls(self, bytes first)
    cpdef connect_timed_out(self, Channel channel)
    cdef _connect_failed(self, str failure)
    cpdef request(self, head, bytes data)
    cpdef write(self, bytes data)
    cpdef flush(self)
    cpdef finish(self)
    cpdef close(self, bint hard)
    cpdef tuple detach(self)
    cpdef read(self, bint wanted)
    cdef _end(self, str failure)
