# Makes an extension type of Turns, which every message goes through.

from gopher.relay.answers cimport Answers
from gopher.relay.channel cimport ChannelPump
from gopher.relay.coupling cimport Coupler
from gopher.relay.pending cimport Pending
from gopher.relay.preparing cimport Preparation
from gopher.relay.requests cimport RequestQueue
from gopher.relay.upstream cimport UpstreamConnection


cdef class Turns:
    cdef readonly object tally
    cdef public double last_active_s
    cdef readonly object client
    cdef readonly object connection_id
    cdef readonly object coupling
    cdef readonly object scripted
    cdef readonly Pending turn
    cdef object _relay
    cdef object _downstream
    cdef object _header
    cdef bint _framed
    cdef ChannelPump _pump
    cdef Py_ssize_t _limit
    cdef object _production
    cdef RequestQueue _requests
    cdef Preparation _preparation
    cdef Coupler _coupler
    cdef Answers _answers
    cdef bint _stale
    cdef bint _raw
    cdef bint _called
    cdef UpstreamConnection _upstream

    cdef _pair_production(self)
    cpdef feed(self, bytes data)
    cpdef go_on(self)
    cdef bint _may_follow(self, event) except -1
    cdef bint _wants_more(self) except -1
    cdef _begin(self, Pending pending)
    cpdef invite_body(self, Pending pending)
    cdef _pass_body(self, event)
    cdef _end_request(self)
    cpdef send(self, Pending pending, bytes data, bint replaced)
    cdef _skip(self, Pending pending)
    cdef UpstreamConnection _open_upstream(self)
    cdef _lose(self, str failure)
    cdef list _give_up_sent(self)
    cpdef read_answers(self, bint wanted)
    cpdef learn_from_head(self, Pending pending, head)
    cdef _learn(self, Pending pending, head, bytes content)
    cpdef learn(self, Pending pending)
    cpdef answered(self)
    cpdef last_answer(self)
    cpdef resume(self, Pending pending)
    cpdef switch(self, bytes rest)
    cdef _go_raw(self)
    cdef _become_tunnel(self, bytes to_upstream, bytes to_downstream)
    cdef bint _may_refuse(self) except -1
    cdef _refuse(self, refused)
    cdef _cut_request(self, str failure)
    cpdef cut(self, Pending pending)
    cdef _go_on_later(self)
    cdef _give_up(self, Pending pending)
    cdef _abandon(self, Pending pending)
    cdef _release(self, list tickets)
