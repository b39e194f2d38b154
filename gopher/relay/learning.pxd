# Makes extension types of what every answer goes through.

from gopher.relay.aliases cimport AliasTable, KnownValues


cdef class ExchangeRecord:
    cdef public object client
    cdef public object connection_id
    cdef public double since_s
    cdef public bint requested
    cdef public dict sent
    cdef public object production_head
    cdef public object production
    cdef public int production_status
    cdef public object shadow_head
    cdef public object shadow
    cdef public str shadow_verdict
    cdef public frozenset pending_of_head
    cdef public frozenset pending

    cpdef bint can_precede(self, connection_id) except -1


cdef class Learner:
    cdef readonly object _reader
    cdef bint _auto
    cdef readonly object _inference
    cdef dict _watched
    cdef readonly KnownValues _known
    cdef readonly AliasTable _aliases
    cdef readonly dict _exchanges
    cdef double _swept_s
    cdef readonly dict _pending
    cdef readonly dict _unseen
    cdef readonly object _waiting
    cdef AliasTable _strangers
    cdef readonly dict _in_flight
    cdef long _learned
    cdef long _unread
    cdef dict _divergences

    cpdef bint needs_response_body(self, head) except -1
    cpdef list shadow_head(self, exchange_id, client, connection_id, head, double now_s)
    cpdef list shadow_response(self, exchange_id, client, connection_id, head, bytes content, double now_s)
    cpdef list production_head(self, exchange_id, client, connection_id, head, double now_s)
    cpdef list production_response(self, exchange_id, client, connection_id, head, bytes content, double now_s)
    cdef ExchangeRecord _exchange(self, exchange_id, client, connection_id, double now_s)
    cdef _sweep(self, double now_s)
    cdef list _forget(self, exchange_id, ExchangeRecord record)
    cdef list _seen(self, bytes key, exchange_id, ExchangeRecord record)
    cdef list _produced_head(self, exchange_id, ExchangeRecord record, head, double now_s)
    cdef list _shadowed_head(self, exchange_id, ExchangeRecord record, head, double now_s)
    cdef tuple _announce(self, exchange_id, ExchangeRecord record, handed, double now_s)
    cdef _pair_heads(self, exchange_id, ExchangeRecord record, double now_s, list released)
    cdef _pair_values(self, production, shadow, double now_s, list released)
    cdef list _complete(self, exchange_id, ExchangeRecord record, double now_s)
    cdef list _settle(self, exchange_id, frozenset keys, double now_s)
    cdef list _give_up(self, exchange_id, bytes key)
    cdef tuple _cookie_pair(self, bytes name, bytes produced, bytes shadowed, tuple sent, double now_s)
    cdef _learn(self, bytes name, bytes produced, bytes shadowed, double now_s, list released)
    cdef _watch(self, dict cookies)
    cdef _infer(self, ExchangeRecord record, handed, inference, double now_s)


cdef str _verdict(head)
