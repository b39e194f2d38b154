# Makes an extension type of RequestQueue, which every byte of a client goes through.

cdef class RequestQueue:
    cdef readonly object events
    cdef readonly Py_ssize_t waiting_bytes
    cdef readonly bint switched
    cdef readonly object refused
    cdef public bint over
    cdef readonly bint paused
    cdef object _next_id
    cdef object _begins
    cdef object _parser

    cpdef feed(self, bytes data)
    cdef _queue(self, list events)
    cpdef pop(self)
    cpdef resume(self)
    cpdef bytes switch(self)
    cpdef bint end(self) except -1
    cpdef restart(self)
    cpdef tuple take_back(self)
    cpdef list close(self)
