# Makes extension types of what every request goes through.

from gopher.relay.learning cimport ExchangeRecord, Learner


cdef class Coupler(Learner):
    cdef double _wait_s
    cdef double _overtake_s
    cdef str _policy
    cdef bint _cookies_only
    cdef long _rewritten
    cdef long _missed
    cdef long _held
    cdef double _held_s_sum
    cdef double _held_s_max
    cdef long _timed_out
    cdef long _dropped
    cdef long _ambiguous

    cpdef bint needs_request_body(self, head) except -1
    cpdef request(self, exchange_id, client, connection_id, head, bytes content, double now_s)
    cdef _sent(self, exchange_id, _Scan scan, head, bytes content)
    cdef bytes _claim(self, _Scan scan, str place, bytes name, bytes value, bytes key)


cdef class _Scan:
    cdef Coupler _coupler
    cdef public object client
    cdef public object connection_id
    cdef public double now_s
    cdef public object held
    cdef public dict sent
    cdef public bint missed
    cdef public bint in_vain
    cdef public frozenset blockers
    cdef public frozenset awaited

    cpdef wait_for(self, bytes key, set blockers)
    cdef _await_production(self, bytes key)
    cdef _note_cookie(self, bytes name, bytes value, bytes counterpart)
