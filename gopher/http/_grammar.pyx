"""The grammar that `gopher.http.messages` and `gopher.http.heads` check, as C functions. See `_grammar.pxd`."""

from libc.string cimport memcmp

from gopher.http._octets cimport COLON, COMMA, SEMICOLON, begins_with, is_digit, lower


cdef void _fill_classes():
    cdef int c
    letters_and_digits = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for c in range(256):
        # RFC 3986 allows less; browsers and libraries send more. "#" begins a fragment, which some servers cut off.
        CLASSES[c] = TARGET if c > SPACE and c != 127 and c != 35 else 0
    for c in letters_and_digits + b"!#$%&'*+-.^_`|~":
        CLASSES[c] |= TOKEN
    for c in letters_and_digits + b"-._~%!$&'()*+;=":
        CLASSES[c] |= HOST
    for c in letters_and_digits + b"-._~%:":
        CLASSES[c] |= IP_LITERAL
    for c in letters_and_digits + b"+-.":
        CLASSES[c] |= SCHEME


_fill_classes()


cdef bint same(const uint8_t* a, const uint8_t* b, Py_ssize_t n) noexcept nogil:
    """In any case."""
    cdef Py_ssize_t i
    for i in range(n):
        if lower(a[i]) != lower(b[i]):
            return False
    return True


cdef bint is_authority(const uint8_t* p, Py_ssize_t n, bint with_port) noexcept nogil:
    """host [":" port] (RFC 9110 section 7.2); userinfo is an error, as section 4.2.4 recommends."""
    cdef Py_ssize_t i
    if n and p[0] == c"[":
        i = 1 + span(p + 1, n - 1, IP_LITERAL)
        if i == 1 or i == n or p[i] != c"]":
            return False
        i += 1
    else:
        i = span(p, n, HOST)
    if i == n:
        return not with_port
    if i == 0 or p[i] != COLON or (with_port and i + 1 == n):
        return False
    for i in range(i + 1, n):
        if not is_digit(p[i]):
            return False
    return True


cdef bint authority_in_target(const uint8_t* p, Py_ssize_t n, Py_ssize_t* begin, Py_ssize_t* end) noexcept nogil:
    """Where it is in a target of absolute-form. False if it is none."""
    cdef Py_ssize_t i = span(p, n, SCHEME)
    if not 97 <= lower(p[0]) <= 122 or n - i < 3 or memcmp(p + i, b"://", 3) != 0:
        return False
    i += 3
    begin[0] = i
    while i < n and p[i] != c"/" and p[i] != c"?":
        i += 1
    end[0] = i
    return begin[0] < i


cdef bint is_target(const uint8_t* method, Py_ssize_t method_length, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """One of the four forms of RFC 9112 section 3.2, of bytes that are known to be allowed."""
    cdef Py_ssize_t begin, end
    if n == 0:
        return False
    if method_length == 7 and memcmp(method, b"CONNECT", 7) == 0:
        return is_authority(p, n, True)
    if p[0] == c"/":
        return True
    if n == 1 and p[0] == c"*":
        return method_length == 7 and memcmp(method, b"OPTIONS", 7) == 0
    return authority_in_target(p, n, &begin, &end) and is_authority(p + begin, end - begin, False)


cdef bint read_decimal(const uint8_t* p, Py_ssize_t n, uint64_t* number) noexcept nogil:
    """Content-Length. White space is spaces: not every server takes a tab for it, nor leading zeros for decimal."""
    cdef uint64_t value = 0
    cdef Py_ssize_t i
    while n and p[0] == SPACE:
        p += 1
        n -= 1
    while n and p[n - 1] == SPACE:
        n -= 1
    if n == 0 or n > 19 or (p[0] == 48 and n > 1):
        return False
    for i in range(n):
        if not is_digit(p[i]):
            return False
        value = value * 10 + p[i] - 48  # 19 digits fit into 64 bits
    number[0] = value
    return value >> 63 == 0


cdef int read_codings(int coding, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """One line of Transfer-Encoding, after those that said `coding`."""
    cdef Py_ssize_t i
    while True:
        while n and p[0] == SPACE:
            p += 1
            n -= 1
        i = span(p, n, TOKEN)
        if i == 0 or not (coding == CODING_NONE or coding == CODING_OTHER):
            return CODING_INVALID
        if i == 7 and begins_with(p, 7, b"chunked", 7):
            coding = CODING_CHUNKED if coding == CODING_NONE else CODING_THEN_CHUNKED
        else:
            coding = CODING_OTHER
        p += i
        n -= i
        while n and p[0] == SPACE:
            p += 1
            n -= 1
        if n == 0:
            return coding
        if p[0] != COMMA:
            return CODING_INVALID
        p += 1
        n -= 1


cdef bint are_extensions(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """*( ";" name [ "=" ( token / quoted-string ) ] ) (RFC 9112 section 7.1.1), without white space around the signs.

    Checked to the last quote, for a server that reads quoted strings could find the end of an open one lines later.
    """
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t length
    while i < n:
        if p[i] != SEMICOLON:
            return False
        length = span(p + i + 1, n - i - 1, TOKEN)
        if length == 0:
            return False
        i += 1 + length
        if i == n or p[i] != c"=":
            continue
        i += 1
        if i < n and p[i] == c'"':
            i += 1
            while i < n and p[i] != c'"':
                i += 2 if p[i] == c"\\" else 1
            if i >= n:
                return False
            i += 1
        else:
            length = span(p + i, n - i, TOKEN)
            if length == 0:
                return False
            i += length
    return True
