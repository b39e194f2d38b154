cimport cython


cdef struct Field:
    Py_ssize_t begin
    Py_ssize_t value        # without the blanks around it
    Py_ssize_t value_end
    Py_ssize_t end          # after its LF


@cython.final
cdef class Headers:
    # The lines as they came, and the empty line that ends them. An edit makes a new one with other bytes in one place:
    # that is one copy, and nothing else has to be kept in step.
    cdef bytes block

    cdef bint seek(self, bytes name, Py_ssize_t at, Field* field) noexcept
    cpdef bytes get(self, bytes name)
    cpdef list get_all(self, bytes name)
    cpdef list long_values(self, Py_ssize_t shortest)


@cython.final
@cython.no_gc  # refers to nothing that could refer back
cdef class RequestHead:
    cdef bytes line             # the request line with its CRLF, after the empty lines that came before it
    cdef Py_ssize_t begin       # of the method
    cdef Py_ssize_t method_end
    cdef readonly Headers headers

    cdef int remake(self, bytes method, bytes target) except -1


@cython.final
@cython.no_gc  # refers to nothing that could refer back
cdef class ResponseHead:
    cdef bytes line             # the status line with its CRLF
    cdef int code
    cdef readonly Headers headers

    cdef int remake(self, int status, bytes reason) except -1


cdef inline Headers make_headers(bytes block):
    cdef Headers headers = Headers.__new__(Headers)
    headers.block = block
    return headers
