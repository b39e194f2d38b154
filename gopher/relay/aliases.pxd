# Makes extension types of the tables that every value of every request is looked up in.

cdef class AliasTable:
    cdef readonly object entries
    cdef readonly Py_ssize_t evicted
    cdef readonly Py_ssize_t expired
    cdef Py_ssize_t _max
    cdef Py_ssize_t _max_bytes
    cdef Py_ssize_t _bytes
    cdef double _ttl_s

    cpdef bytes get(self, bytes key, double now_s)
    cpdef set(self, bytes key, bytes value, double now_s)
    cdef _remove(self, bytes key)


cdef class KnownValues:
    cdef readonly AliasTable aliases
    cdef readonly dict pending
    cdef readonly Py_ssize_t shortest

    cpdef met(self, bytes value)
    cpdef bint none_of(self, list values) except -1


cpdef bytes alias_key(bytes name, bytes value)
