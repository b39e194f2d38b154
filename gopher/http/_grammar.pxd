# The parts of RFC 9112, 9110 and 3986 that a strict reader of HTTP/1 checks: runs of bytes in, yes or no out.

from libc.stdint cimport uint8_t, uint64_t

from gopher.http._octets cimport SPACE, TAB, is_blank

cdef enum:
    TOKEN = 1           # RFC 9110 section 5.6.2
    TARGET = 2
    HOST = 4            # reg-name of RFC 3986 without the comma, which also joins repeated fields
    IP_LITERAL = 8      # between the brackets
    SCHEME = 16

# What Transfer-Encoding has said so far, over all its lines.
cdef enum:
    CODING_NONE
    CODING_CHUNKED      # chunked alone
    CODING_OTHER        # codings without chunked
    CODING_THEN_CHUNKED
    CODING_INVALID      # chunked not last or repeated, an empty element, not a list of tokens

cdef uint8_t[256] CLASSES     # which of the classes each byte is in


cdef inline Py_ssize_t span(const uint8_t* p, Py_ssize_t n, uint8_t kind) noexcept nogil:
    """How many of the n bytes, from the first on, are of `kind`."""
    cdef Py_ssize_t i = 0
    while i < n and CLASSES[p[i]] & kind:
        i += 1
    return i


cdef inline bint has_control(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """No way out of the loop, so that the compiler can look at many bytes at once."""
    cdef uint8_t found = 0
    cdef Py_ssize_t i
    for i in range(n):
        found |= (p[i] < SPACE) & (p[i] != TAB) | (p[i] == 127)
    return found != 0


cdef inline void strip(const uint8_t** p, Py_ssize_t* n) noexcept nogil:
    while n[0] and is_blank(p[0][0]):
        p[0] += 1
        n[0] -= 1
    while n[0] and is_blank(p[0][n[0] - 1]):
        n[0] -= 1


cdef bint same(const uint8_t* a, const uint8_t* b, Py_ssize_t n) noexcept nogil
cdef bint is_authority(const uint8_t* p, Py_ssize_t n, bint with_port) noexcept nogil
cdef bint authority_in_target(const uint8_t* p, Py_ssize_t n, Py_ssize_t* begin, Py_ssize_t* end) noexcept nogil
cdef bint is_target(const uint8_t* method, Py_ssize_t method_length, const uint8_t* p, Py_ssize_t n) noexcept nogil
cdef bint read_decimal(const uint8_t* p, Py_ssize_t n, uint64_t* number) noexcept nogil
cdef int read_codings(int coding, const uint8_t* p, Py_ssize_t n) noexcept nogil
cdef bint are_extensions(const uint8_t* p, Py_ssize_t n) noexcept nogil
