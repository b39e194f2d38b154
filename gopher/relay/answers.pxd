# Makes an extension type of Answers, which every answer goes through.

from gopher.http.messages cimport HeadReceived
from gopher.relay.pending cimport Pending
from gopher.relay.requests cimport RequestQueue


cdef class Answers:
    cdef object _turns
    cdef RequestQueue _requests
    cdef object _downstream
    cdef object _channel
    cdef readonly object due
    cdef public bint spoken

    cdef _send(self, list out)
    cdef _begin(self, Pending pending, head, HeadReceived event)
    cdef _end(self, Pending pending)
    cpdef done(self, Pending pending)
    cpdef put(self, Pending pending, int status, bytes message, bint keep)
    cpdef serve_first(self)
    cdef _hold(self, Pending pending, head, events)
    cdef _add_to_held(self, held, events)
    cpdef bint lose_held(self, str failure) except -1
