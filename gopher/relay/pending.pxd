# Makes an extension type of Pending, of which there is one for every request.


cdef class Pending:
    cdef readonly object id
    cdef readonly object head
    cdef readonly bint has_body
    cdef public int phase
    cdef public long due_looks
    cdef public bint apart
    cdef public bint whole
    cdef public list pieces
    cdef public list contents
    cdef public Py_ssize_t size
    cdef public object answer
    cdef public bint answer_read
    cdef public list answer_contents
    cdef public Py_ssize_t answer_bytes
    cdef public bint answered
    cdef public bint abandoned
    cdef public bint keep
    cdef public tuple own
    cdef public bint swallows_continue
    cdef public object produced
    cdef public list produced_contents
    cdef public Py_ssize_t produced_bytes
    cdef public object produced_left
    cdef public object slot
    cdef public bint replaced
    cdef public object produced_body
    cdef public object held
    cdef public bint answer_replaced
