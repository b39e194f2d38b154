# Makes an extension type of Downstream, which every byte of a client goes through.

from gopher.relay.channel cimport ChannelPump
from gopher.relay.turns cimport Turns


cdef class Downstream:
    cdef readonly object header
    cdef readonly object channel
    cdef readonly bint ended
    cdef readonly bint over
    cdef readonly bint closed
    cdef object _relay
    cdef object _tally
    cdef ChannelPump _pump
    cdef bint _may_link
    cdef bytes _sniffed
    cdef object _records
    cdef str _failure
    cdef object _copies
    cdef Turns _turns

    cdef Turns _begin_turns(self, upstream=*)
    cdef bytes _look_for_header(self, bytes data)
    cdef _take_record(self, record)
    cdef _take(self, bytes data)
    cdef _end(self)
    cpdef answer(self, int status, bytes message)
    cpdef finish(self)
    cpdef note(self, str failure)
    cpdef fail(self, str failure)
