# Makes an extension type of Preparation, which every request goes through.

from gopher.relay.channel cimport ChannelPump
from gopher.relay.coupling cimport Coupler
from gopher.relay.pending cimport Pending


cdef class Preparation:
    cdef object _relay
    cdef object _turns
    cdef ChannelPump _pump
    cdef object _config
    cdef object _coupling
    cdef Coupler _coupler

    cpdef begin(self, Pending pending)
    cpdef add_body(self, Pending pending, event)
    cpdef end_body(self, Pending pending)
    cpdef cancel(self, Pending pending)
    cdef _couple(self, Pending pending, bytes content)
    cdef _dispatch(self, Pending pending, result)
    cdef _edit(self, head)
