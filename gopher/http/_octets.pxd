# What both readers of HTTP/1 ask of bytes: `framing` (lenient) and `messages` (strict). Header-only; locale-free.

from libc.stdint cimport uint8_t
from libc.string cimport memchr

cdef enum:
    TAB = 9
    LF = 10
    CR = 13
    SPACE = 32
    COMMA = 44
    COLON = 58
    SEMICOLON = 59


cdef inline bint is_blank(uint8_t c) noexcept nogil:
    return c == SPACE or c == TAB


cdef inline bint is_digit(uint8_t c) noexcept nogil:
    return 48 <= c <= 57


cdef inline uint8_t lower(uint8_t c) noexcept nogil:
    return c + 32 if 65 <= c <= 90 else c


cdef inline int hex_value(uint8_t c) noexcept nogil:
    """-1 if it is no hexadecimal digit."""
    if is_digit(c):
        return c - 48
    c = lower(c)
    return c - 87 if 97 <= c <= 102 else -1


cdef inline bint begins_with(const uint8_t* text, Py_ssize_t length, const char* word, Py_ssize_t n) noexcept nogil:
    """`word` is lower case; `text` in any case."""
    cdef Py_ssize_t i
    if length < n:
        return False
    for i in range(n):
        if lower(text[i]) != <uint8_t>word[i]:
            return False
    return True


cdef inline const uint8_t* find(const uint8_t* p, const uint8_t* end, uint8_t c) noexcept nogil:
    """The first `c` in p[:end], or NULL."""
    return <const uint8_t*>memchr(p, c, <size_t>(end - p))
