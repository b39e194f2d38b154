"""Where HTTP/1 messages begin and end, without keeping or changing a byte of them (RFC 9112).

Stands between the reassembler and the upstream connections: a mirror passes the client's bytes on as they are and
needs to know which requests are on their way and which have been answered. Sans-I/O.

Policy "observe": nothing is refused or corrected. Only what decides about boundaries is read (the first line,
Content-Length, Transfer-Encoding), bare LF ends a line, leading empty lines are skipped. As soon as two servers could
disagree about a boundary, or the bytes are not HTTP/1 at all, the framer turns opaque, for good: other protocols, an
HTTP/2 preface, HTTP/0.9, contradictory lengths, whatever follows CONNECT or 101. A message that has started by then
stays uncompleted.

It does not validate heads, decode bodies, or limit sizes: a line of any length passes, at a fixed cost of memory.
"""

import re

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcpy, memset

from gopher._runs cimport ByteRun
from gopher.http._octets cimport (
    COLON, COMMA, CR, LF, SEMICOLON, SPACE,
    begins_with, find, hex_value, is_blank, is_digit,
)

cdef extern from "<string.h>" nogil:
    void* memmem(const void* data, size_t length, const void* wanted, size_t wanted_length)

__all__ = ["REGISTERED_METHODS", "RequestFramer", "ResponseFramer", "find_request", "request_may_start"]

cdef enum:
    START           # between messages
    METHOD
    TARGET
    VERSION
    STATUS          # a status line up to and including the byte after the status
    LINE            # at the beginning of a header or trailer line
    LINE_LF         # at the LF of an empty line, if it is one
    SKIP            # in a line that does not matter
    FIELD           # in a line that may: it is kept in `carry`
    BODY            # body_left bytes, then the message is complete
    CHUNK_SIZE
    CHUNK_EXTENSION
    CHUNK_DATA      # body_left bytes, then CHUNK_END
    CHUNK_END
    UNTIL_CLOSE

cdef enum:
    CODING_NONE
    CODING_CHUNKED
    CODING_OTHER

# What the first byte of a header line says about the line.
cdef enum:
    LINE_PLAIN      # cannot matter
    LINE_FIELD      # could be Content-Length or Transfer-Encoding
    LINE_FOLDED     # continues the previous line (obs-fold, RFC 9112 section 5.2)
    LINE_EMPTY      # LF
    LINE_EMPTY_CR

cdef enum:
    # The methods' bytes, big-endian, as collected in `number`. That keeps the last 8 bytes of a longer method, which
    # are equal to neither: no byte of a token is 0.
    WORD_HEAD = 0x48454144
    WORD_CONNECT = 0x434F4E4E454354

cdef const char* HTTP_1 = b"HTTP/1."
cdef const char* CONTENT_LENGTH = b"content-length"
cdef const char* TRANSFER_ENCODING = b"transfer-encoding"
cdef const char* CHUNKED = b"chunked"

_TOKEN_CHARACTERS = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # RFC 9110, 5.6.2

cdef uint8_t[256] IS_TOKEN
cdef uint8_t[256] LINE_KIND


cdef void _fill_tables():
    cdef int c
    memset(IS_TOKEN, 0, sizeof(IS_TOKEN))
    memset(LINE_KIND, LINE_PLAIN, sizeof(LINE_KIND))
    for c in _TOKEN_CHARACTERS:
        IS_TOKEN[c] = 1
    for c in b"cCtT":
        LINE_KIND[c] = LINE_FIELD
    for c in b" \t":
        LINE_KIND[c] = LINE_FOLDED
    LINE_KIND[LF] = LINE_EMPTY
    LINE_KIND[CR] = LINE_EMPTY_CR


_fill_tables()


cdef void http_framer_init(HttpFramer* framer, int role) noexcept nogil:
    memset(framer, 0, sizeof(HttpFramer))
    framer.role = role
    framer.state = START


cdef inline void _complete(HttpFramer* framer) noexcept nogil:
    framer.completed += 1
    framer.state = START


cdef void http_framer_skip(HttpFramer* framer, uint64_t length) noexcept nogil:
    framer.body_left -= length
    if framer.body_left == 0:
        if framer.state == BODY:
            _complete(framer)
        elif framer.state == CHUNK_DATA:
            framer.state = CHUNK_END
            framer.position = 0


cdef inline void _begin_head(HttpFramer* framer) noexcept nogil:
    framer.in_trailers = 0
    framer.has_length = 0
    framer.coding = CODING_NONE
    framer.foldable = 0
    framer.number = 0
    framer.state = LINE


cdef inline void _begin_body(HttpFramer* framer) noexcept nogil:
    """By Content-Length or chunked; at least one of the two was read."""
    if framer.coding == CODING_CHUNKED:
        framer.state = CHUNK_SIZE
        framer.number = 0
        framer.position = 0
    elif framer.number:
        framer.state = BODY
        framer.body_left = framer.number
    else:
        _complete(framer)


cdef inline void _end_request_head(HttpFramer* framer) noexcept nogil:
    """RFC 9112 section 6.3, as far as it is about requests."""
    if framer.connect_bits >> ((framer.started - 1) & 63) & 1:
        _complete(framer)
        framer.opaque = 1
    elif framer.coding == CODING_OTHER:
        framer.opaque = 1  # "the message body length cannot be determined reliably"
    elif framer.coding == CODING_CHUNKED or framer.has_length:
        _begin_body(framer)
    else:
        _complete(framer)


cdef inline void _end_response_head(HttpFramer* framer, const HttpFramer* requests) noexcept nogil:
    """RFC 9112 section 6.3, as far as it is about responses."""
    cdef uint64_t k = framer.started - 1
    cdef bint to_head = False
    cdef bint to_connect = False
    if framer.status < 200 and framer.status != 101:
        framer.state = START
        return
    if requests != NULL and k < requests.special:
        if requests.started - k > 64:
            framer.opaque = 1
            return
        to_head = requests.head_bits >> (k & 63) & 1
        to_connect = requests.connect_bits >> (k & 63) & 1
    if framer.status == 101 or (to_connect and framer.status < 300):
        _complete(framer)
        framer.opaque = 1
    elif to_head or framer.status == 204 or framer.status == 304:
        _complete(framer)
    elif framer.coding == CODING_CHUNKED or (framer.coding == CODING_NONE and framer.has_length):
        _begin_body(framer)
    else:
        framer.until_close = 1
        framer.state = UNTIL_CLOSE


cdef void _end_head(HttpFramer* framer, const HttpFramer* requests) noexcept nogil:
    if framer.in_trailers:
        _complete(framer)
    elif framer.role == HTTP_REQUEST:
        _end_request_head(framer)
    else:
        _end_response_head(framer, requests)


cdef bint _read_content_length(HttpFramer* framer, const uint8_t* value, Py_ssize_t length) noexcept nogil:
    """False if it is invalid or contradicts an earlier one. A list of equal numbers is fine (RFC 9110 section 8.6)."""
    cdef uint64_t limit = 0x7FFFFFFFFFFFFFFF    # as for chunks: sums with an offset then fit into 64 bits
    cdef Py_ssize_t i = 0
    cdef uint64_t number
    while True:
        while i < length and is_blank(value[i]):
            i += 1
        if i == length or not is_digit(value[i]):
            return False
        number = 0
        while i < length and is_digit(value[i]):
            if number > (limit - (value[i] - 48)) // 10:
                return False
            number = number * 10 + value[i] - 48
            i += 1
        if framer.has_length and number != framer.number:
            return False
        framer.has_length = 1
        framer.number = number
        while i < length and is_blank(value[i]):
            i += 1
        if i == length:
            return True
        if value[i] != COMMA:
            return False
        i += 1


cdef void _read_transfer_encoding(HttpFramer* framer, const uint8_t* value, Py_ssize_t length) noexcept nogil:
    """Only the last coding matters; empty list elements do not (RFC 9110 section 5.6.1)."""
    cdef Py_ssize_t begin
    while length and (is_blank(value[length - 1]) or value[length - 1] == COMMA):
        length -= 1
    begin = length
    while begin and not (is_blank(value[begin - 1]) or value[begin - 1] == COMMA):
        begin -= 1
    framer.coding = CODING_OTHER
    if length - begin == 7 and begins_with(value + begin, 7, CHUNKED, 7):
        framer.coding = CODING_CHUNKED


cdef void _read_field(HttpFramer* framer, const uint8_t* line, Py_ssize_t length) noexcept nogil:
    """One line without its LF; only its first HTTP_CARRY bytes are read."""
    cdef Py_ssize_t held = length if length <= HTTP_CARRY else HTTP_CARRY
    cdef Py_ssize_t name
    framer.foldable = 0
    if framer.role == HTTP_RESPONSE and framer.status < 200:
        return  # an interim response has no body whatever it says
    if begins_with(line, held, CONTENT_LENGTH, 14):
        name = 14
    elif begins_with(line, held, TRANSFER_ENCODING, 17):
        name = 17
    else:
        return
    if name < held and IS_TOKEN[line[name]]:
        return  # a longer name
    # RFC 9112 section 5.1: "No whitespace is allowed between the field name and colon": some servers ignore such a
    # line, some do not.
    if name == held or line[name] != COLON or length > HTTP_CARRY:
        framer.opaque = 1
        return
    framer.foldable = 1
    if line[length - 1] == CR:
        length -= 1
    name += 1
    if name == 18:
        _read_transfer_encoding(framer, line + name, length - name)
    elif not _read_content_length(framer, line + name, length - name):
        framer.opaque = 1


cdef void _carry(HttpFramer* framer, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Keep the next n bytes of a line, as far as there is room."""
    cdef Py_ssize_t room = HTTP_CARRY - framer.carry_length
    if n <= room:
        memcpy(framer.carry + framer.carry_length, p, n)
        framer.carry_length += n
    elif room >= 0:
        memcpy(framer.carry + framer.carry_length, p, room)
        framer.carry_length = HTTP_CARRY + 1


cdef const uint8_t* _feed_field(HttpFramer* framer, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """The rest of a line that an earlier feed ended in."""
    cdef const uint8_t* newline = find(p, end, LF)
    if newline == NULL:
        _carry(framer, p, end - p)
        return end
    _carry(framer, p, newline - p)
    framer.state = LINE
    _read_field(framer, framer.carry, framer.carry_length)
    return newline + 1


cdef const uint8_t* _feed_lines(HttpFramer* framer, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """From the beginning of a line to the empty line or the end of data. Returns the next byte to read."""
    cdef const uint8_t* newline
    cdef uint8_t kind
    while p < end:
        kind = LINE_KIND[p[0]]
        if kind == LINE_EMPTY:
            framer.state = LINE_LF
            return p
        if kind == LINE_EMPTY_CR:
            framer.state = LINE_LF
            return p + 1
        newline = find(p, end, LF)
        if kind == LINE_FIELD and not framer.in_trailers:
            if newline == NULL:
                framer.state = FIELD
                framer.carry_length = 0
                _carry(framer, p, end - p)
                return end
            _read_field(framer, p, newline - p)
        elif kind == LINE_FOLDED:
            if framer.foldable:
                framer.opaque = 1
        else:
            framer.foldable = 0
        if newline == NULL:
            framer.state = SKIP
            return end
        p = newline + 1
    return end


cdef inline const uint8_t* _feed_method(HttpFramer* framer, const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef uint64_t word = framer.number
    cdef uint64_t bit
    while p < end and IS_TOKEN[p[0]]:
        word = word << 8 | p[0]
        p += 1
    framer.number = word
    if p == end:
        return end
    if p[0] != SPACE:
        framer.opaque = 1
        return end
    bit = <uint64_t>1 << ((framer.started - 1) & 63)
    if word == WORD_HEAD:
        framer.head_bits |= bit
        framer.special = framer.started
    elif word == WORD_CONNECT:
        framer.connect_bits |= bit
        framer.special = framer.started
    framer.state = TARGET
    framer.position = 0
    return p + 1


cdef inline const uint8_t* _feed_target(HttpFramer* framer, const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef const uint8_t* space = find(p, end, SPACE)
    cdef const uint8_t* stop = space if space != NULL else end
    if find(p, stop, LF) != NULL:
        framer.opaque = 1  # HTTP/0.9, or another protocol of lines
        return end
    if stop > p:
        framer.position = 1
    if space == NULL:
        return end
    if framer.position == 0:
        framer.opaque = 1
        return end
    framer.state = VERSION
    framer.position = 0
    return space + 1


cdef inline const uint8_t* _feed_version(HttpFramer* framer, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """`HTTP/1.` DIGIT [CR] LF"""
    cdef uint8_t position = framer.position
    cdef uint8_t c
    while p < end:
        c = p[0]
        p += 1
        if position < 7:
            if c != <uint8_t>HTTP_1[position]:
                break
        elif position == 7:
            if not is_digit(c):
                break
        elif c == LF:
            _begin_head(framer)
            return p
        elif position == 9 or c != CR:
            break
        position += 1
    else:
        framer.position = position
        return end
    framer.opaque = 1
    return end


cdef inline const uint8_t* _feed_status(HttpFramer* framer, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """`HTTP/1.` DIGIT SP 3DIGIT, then SP, CR or LF. The rest of the line does not matter."""
    cdef uint8_t position = framer.position
    cdef uint8_t c
    while p < end:
        c = p[0]
        p += 1
        if position < 7:
            if c != <uint8_t>HTTP_1[position]:
                break
        elif position == 8:
            if c != SPACE:
                break
        elif position < 12:
            if not is_digit(c):
                break
            if position > 8:
                framer.status = framer.status * 10 + c - 48
        elif framer.status < 100 or not (c == SPACE or c == CR or c == LF):
            break
        else:
            if framer.status >= 200 or framer.status == 101:
                framer.started += 1
            _begin_head(framer)
            if c != LF:
                framer.state = SKIP
            return p
        position += 1
    else:
        framer.position = position
        return end
    framer.opaque = 1
    return end


cdef inline const uint8_t* _feed_chunk_size(HttpFramer* framer, const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef int digit
    while p < end:
        digit = hex_value(p[0])
        if digit < 0:
            break
        if framer.number >> 59:  # one more digit would not fit into 63 bits
            framer.opaque = 1
            return end
        framer.number = framer.number << 4 | <uint64_t>digit
        framer.position = 1
        p += 1
    if p == end:
        return end
    if framer.position and (p[0] == LF or p[0] == CR or p[0] == SEMICOLON or is_blank(p[0])):
        framer.state = CHUNK_EXTENSION
        return p
    framer.opaque = 1
    return end


cdef inline const uint8_t* _feed_chunk_extension(HttpFramer* framer, const uint8_t* p,
                                                 const uint8_t* end) noexcept nogil:
    """The rest of a chunk-size line."""
    p = find(p, end, LF)
    if p == NULL:
        return end
    if framer.number:
        framer.state = CHUNK_DATA
        framer.body_left = framer.number
    else:
        framer.state = LINE
        framer.in_trailers = 1
        framer.foldable = 0
    return p + 1


cdef inline const uint8_t* _feed_chunk_end(HttpFramer* framer, const uint8_t* p) noexcept nogil:
    """[CR] LF"""
    if p[0] == LF:
        framer.state = CHUNK_SIZE
        framer.number = 0
        framer.position = 0
    elif p[0] == CR and framer.position == 0:
        framer.position = 1
    else:
        framer.opaque = 1
    return p + 1


cdef inline void _begin_message(HttpFramer* framer, uint8_t c) noexcept nogil:
    """At the first byte of a request or status line, which is then read again."""
    if framer.role == HTTP_RESPONSE:
        framer.state = STATUS
        framer.status = 0
        framer.position = 0
    elif IS_TOKEN[c]:
        framer.head_bits &= ~(<uint64_t>1 << (framer.started & 63))     # connect_bits: nothing follows a CONNECT
        framer.started += 1
        framer.state = METHOD
        framer.number = 0
    else:
        framer.opaque = 1


cdef Py_ssize_t http_framer_feed(HttpFramer* framer, const HttpFramer* requests,
                                 const uint8_t* data, Py_ssize_t length) noexcept nogil:
    cdef const uint8_t* p = data
    cdef const uint8_t* end = data + length
    cdef const uint8_t* begin = data    # of the first line now being read
    cdef Py_ssize_t first = -1
    cdef uint64_t started = framer.started
    cdef uint64_t take
    while p < end and not framer.opaque:
        if framer.state == START:
            if p[0] == CR or p[0] == LF:
                p += 1
                continue
            begin = p
            _begin_message(framer, p[0])
        elif framer.state == METHOD:
            p = _feed_method(framer, p, end)
        elif framer.state == TARGET:
            p = _feed_target(framer, p, end)
        elif framer.state == VERSION:
            p = _feed_version(framer, p, end)
        elif framer.state == STATUS:
            p = _feed_status(framer, p, end)
        elif framer.state == LINE:
            p = _feed_lines(framer, p, end)
        elif framer.state == LINE_LF:
            if p[0] == LF:
                _end_head(framer, requests)
            else:
                framer.opaque = 1  # a bare CR: some servers end the line here, some do not
            p += 1
        elif framer.state == SKIP:
            p = find(p, end, LF)
            if p == NULL:
                break
            framer.state = LINE
            p += 1
        elif framer.state == FIELD:
            p = _feed_field(framer, p, end)
        elif framer.state == BODY or framer.state == CHUNK_DATA:
            take = <uint64_t>(end - p)
            if take > framer.body_left:
                take = framer.body_left
            http_framer_skip(framer, take)
            p += take
        elif framer.state == CHUNK_SIZE:
            p = _feed_chunk_size(framer, p, end)
        elif framer.state == CHUNK_EXTENSION:
            p = _feed_chunk_extension(framer, p, end)
        elif framer.state == CHUNK_END:
            p = _feed_chunk_end(framer, p)
        else:  # UNTIL_CLOSE
            break
        if first < 0 and framer.started != started:
            first = begin - data
    return first


cdef Py_ssize_t _feed_object(HttpFramer* framer, const HttpFramer* requests, object data) except -2:
    cdef Py_buffer view
    cdef Py_ssize_t offset
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    offset = http_framer_feed(framer, requests, <const uint8_t*>view.buf, view.len)
    PyBuffer_Release(&view)
    return offset


cdef class RequestFramer:
    """Finds the boundaries of a client's HTTP/1 requests. See the module for what makes it opaque."""

    def __cinit__(self):
        http_framer_init(&self.c, HTTP_REQUEST)

    cpdef Py_ssize_t feed(self, data) except -2:
        if isinstance(data, ByteRun):
            return self._feed_run(<ByteRun>data)
        return _feed_object(&self.c, NULL, data)

    cdef Py_ssize_t _feed_run(self, ByteRun run) noexcept:
        cdef Py_ssize_t start = -1
        cdef Py_ssize_t before = 0
        cdef Py_ssize_t offset
        cdef Py_ssize_t i
        for i in range(run.pieces_count):
            offset = http_framer_feed(&self.c, NULL, <const uint8_t*>run.pieces[i].iov_base, run.pieces[i].iov_len)
            if start < 0 <= offset:
                start = before + offset
            before += run.pieces[i].iov_len
        return start

    @property
    def started(self):
        return self.c.started

    @property
    def completed(self):
        return self.c.completed

    @property
    def opaque(self):
        return self.c.opaque != 0

    @property
    def in_message(self):
        return self.c.state != START and not self.c.opaque


cdef class ResponseFramer:
    """Finds the boundaries of a server's HTTP/1 responses.

    Args:
        requests: frames the requests they answer, response k to request k: the answer to a HEAD has no body, and 2xx
            to CONNECT opens a tunnel. None takes every answer for one to a GET.
    """

    def __cinit__(self, RequestFramer requests=None):
        http_framer_init(&self.c, HTTP_RESPONSE)
        self.requests = requests

    def feed(self, data):
        return _feed_object(&self.c, NULL if self.requests is None else &self.requests.c, data)

    def skip(self, uint64_t length):
        if length > self.c.body_left:
            raise ValueError(f"length must be at most body_left, {self.c.body_left}, not {length}")
        http_framer_skip(&self.c, length)

    @property
    def started(self):
        return self.c.started

    @property
    def completed(self):
        return self.c.completed

    @property
    def opaque(self):
        return self.c.opaque != 0

    @property
    def in_message(self):
        return self.c.state != START and not self.c.opaque

    @property
    def until_close(self):
        return self.c.until_close != 0

    @property
    def body_left(self):
        return self.c.body_left


# https://www.iana.org/assignments/http-methods, without "*" and PRI, which no request can use.
REGISTERED_METHODS = frozenset(
    b"ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY "  # codespell:ignore
    b"DELETE GET HEAD LABEL LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE "
    b"MOVE OPTIONS ORDERPATCH PATCH POST PROPFIND PROPPATCH PUT REBIND REPORT SEARCH TRACE UNBIND "
    b"UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL".split()
)

_LONGEST_METHOD = max(map(len, REGISTERED_METHODS))
_METHOD_PREFIXES = frozenset(method[:n] for method in REGISTERED_METHODS for n in range(1, len(method) + 1))

_ORIGIN_OR_ABSOLUTE = re.compile(rb"/[!-~]*|[A-Za-z][A-Za-z0-9+.-]*://[!-~]+")
_AUTHORITY = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]+):[0-9]+")
_VISIBLE = re.compile(rb"[!-~]*")
_VERSIONS = (b" HTTP/1.0\r\n", b" HTTP/1.1\r\n")
_VERSION = re.compile(rb" HTTP/1\.([01])\r\n")

_NAME = rb"[%s]+" % re.escape(_TOKEN_CHARACTERS)
_FIELDS = re.compile(rb"(?:%s:[^\r\n\0]*\r\n)*" % _NAME)
_FIELD_CUT_SHORT = re.compile(rb"(?:%s(?::[^\r\n\0]*\r?)?|\r)?" % _NAME)
_HOST = re.compile(rb"^host:", re.IGNORECASE | re.MULTILINE)


cdef Py_ssize_t _method_before(bytes data, Py_ssize_t start, Py_ssize_t end) except -2:
    """Offset of the longest registered method that ends at `end`, else -1. The longest: LOCK ends UNLOCK."""
    cdef Py_ssize_t begin
    for begin in range(max(start, end - <Py_ssize_t>_LONGEST_METHOD), end):
        if data[begin:end] in REGISTERED_METHODS:
            return begin
    return -1


cdef Py_ssize_t _request_line_before(bytes data, Py_ssize_t start, Py_ssize_t end) except -2:
    """Offset of the METHOD SP target that ends at `end`, else -1. O(target)."""
    cdef Py_ssize_t space = data.rfind(b" ", start, end)
    cdef Py_ssize_t method
    if space < 0:
        return -1
    method = _method_before(data, start, space)
    if method < 0:
        return -1
    name = data[method:space]
    if name == b"CONNECT":
        plausible = _AUTHORITY.fullmatch(data, space + 1, end)
    elif name == b"OPTIONS" and data[space + 1:end] == b"*":
        plausible = True
    else:
        plausible = _ORIGIN_OR_ABSOLUTE.fullmatch(data, space + 1, end)
    return method if plausible else -1


cdef Py_ssize_t _request_line_cut_short(bytes data) except -2:
    """Offset of the request line that data ends in the middle of, else -1."""
    cdef Py_ssize_t space = data.rfind(b" ")
    cdef Py_ssize_t method = -1
    cdef Py_ssize_t begin
    if space >= 0:
        if any(version.startswith(data[space:]) for version in _VERSIONS):
            method = _request_line_before(data, 0, space)
        if method < 0:
            method = _method_before(data, 0, space)
            # Last: it reads all that is left.
            if method >= 0 and _VISIBLE.fullmatch(data, space + 1) is None:
                method = -1
        if method >= 0:
            return method
    for begin in range(max(0, len(data) - <Py_ssize_t>_LONGEST_METHOD), len(data)):
        if data[begin:] in _METHOD_PREFIXES:
            return begin
    return -1


cdef Py_ssize_t _find_version(bytes data, Py_ssize_t start) noexcept:
    """Where the next " HTTP/1." begins, else -1."""
    # What is looked through for a request is a body mostly, behind a gap: with `re`, or `bytes.find`, a byte cost more
    # than one that is mirrored, and who has fallen behind fell further behind.
    cdef const char* begin = PyBytes_AS_STRING(data)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(data)
    cdef const void* found
    if start >= length:
        return -1
    found = memmem(begin + start, length - start, b" HTTP/1.", 8)
    return -1 if found == NULL else <const char*>found - begin


def _heads(bytes data, Py_ssize_t start):
    """Offset and completeness of every valid head, or valid beginning of one that data ends in, in order."""
    cdef Py_ssize_t offset
    cdef Py_ssize_t fields_end = -1
    cdef bint complete = False
    cdef bint has_host = False
    cdef Py_ssize_t at = start - 1
    while True:
        at = _find_version(data, at + 1)
        if at < 0:
            return
        version = _VERSION.match(data, at)
        if version is None:
            continue
        offset = _request_line_before(data, start, version.start())
        if offset < 0:
            continue
        # A candidate inside the fields of the last one shares their end, and their lack of a Host: reading them once
        # keeps the search linear.
        if version.end() > fields_end:
            fields_end = _FIELDS.match(data, version.end()).end()
            complete = data.startswith(b"\r\n", fields_end)
            has_host = _HOST.search(data, version.end(), fields_end) is not None
            cut_short = not complete and _FIELD_CUT_SHORT.fullmatch(data, fields_end) is not None
        if cut_short or (complete and (has_host or version[1] == b"0")):
            yield offset, complete


def find_request(bytes data, Py_ssize_t start=0):
    for offset, complete in _heads(data, start):
        if complete:
            return offset
    return -1


def request_may_start(bytes data):
    for offset, complete in _heads(data, 0):
        if not complete:
            return offset
    offset = _request_line_cut_short(data)
    return offset if offset >= 0 else len(data)
