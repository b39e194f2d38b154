"""HTTP/1 messages for a relay that understands them: strict about what comes in, exact about what goes out (RFC 9112).

Stands between a connection's bytes and what decides about them (coupling, scripts). One parser per direction turns
bytes into events; the bytes of the events, put together, are the bytes that came in. Sans-I/O.

Policy "relay": what two servers could read in two ways is refused, never guessed at or repaired, for the bytes go on to
a server whose reading we do not know. That is stricter than RFC 9112, which lets a recipient repair some of it. The
lenient reader, for traffic that is only watched, is `gopher.http.framing`.

Answers of real servers are refused less readily: the reason and the space before it may be missing, equal
Content-Length lines repeated, chunk sizes followed by spaces, and transfer codings other than chunked may be used.
Both Content-Length and Transfer-Encoding is refused in answers too: a smuggled answer goes to the wrong client.

It does not decode content codings, know about keep-alive, or answer: the caller does.

Invariants: how the bytes are cut into feeds changes neither the events (but for where bodies are cut) nor the error;
a head's bytes hold no CR or LF but those that end its lines, so lines can be found again without checks.
"""

from collections import deque
from dataclasses import dataclass, fields

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcmp

from gopher.http cimport heads
from gopher.http._grammar cimport (
    CLASSES, CODING_CHUNKED, CODING_INVALID, CODING_NONE, CODING_OTHER, CODING_THEN_CHUNKED, TARGET, TOKEN,
    are_extensions, authority_in_target, has_control, is_authority, is_target, read_codings, read_decimal, same, span,
    strip,
)
from gopher.http._octets cimport COLON, CR, LF, SEMICOLON, SPACE, begins_with, find, hex_value, is_blank, is_digit
from gopher.http.heads cimport make_headers

from gopher._fastpath import CLIENT_TO_SERVER, SERVER_TO_CLIENT
from gopher.errors import LocalProtocolError, RemoteProtocolError
from gopher.http.heads import Headers, RequestHead, ResponseHead

__all__ = [
    "BodyReceived",
    "HeadReceived",
    "Headers",
    "MessageEnded",
    "MessageEvent",
    "MessageLimits",
    "MessageParser",
    "RequestHead",
    "ResponseHead",
    "Switched",
    "parse_request_head",
    "parse_response_head",
    "with_body",
]

cdef enum:
    HEAD                # in a head, or between messages
    LENGTH_BODY         # `left` bytes, then the message is complete
    CHUNK_LINE
    CHUNK_DATA          # `left` bytes, then CHUNK_END
    CHUNK_END
    TRAILERS
    UNTIL_CLOSE
    PAUSED              # after a request to switch protocols: what follows is not known to be HTTP
    SWITCHED
    ENDED               # by end() or by a fault

# What the next final response answers.
cdef enum:
    TO_HEAD = 1
    TO_CONNECT = 2
    TO_UPGRADE = 4

cdef enum:
    NO_FAULT
    BARE_LF
    BARE_CR
    CONTROL_BYTE
    BAD_METHOD
    BAD_TARGET
    BAD_VERSION
    UNKNOWN_VERSION
    BAD_STATUS_LINE
    FOLDED_LINE
    BLANK_BEFORE_COLON
    BAD_NAME
    BAD_LENGTH
    REPEATED_LENGTH
    LENGTH_AND_CODING
    CODING_IN_HTTP_1_0
    BAD_CODING
    UNKNOWN_CODING
    NO_HOST
    REPEATED_HOST
    BAD_HOST
    HOST_AND_TARGET
    CONNECT_WITH_CONTENT
    BAD_CHUNK_SIZE
    BAD_CHUNK_EXTENSION
    BAD_CHUNK_END
    BAD_TRAILER
    LONG_TARGET
    LONG_HEAD
    LONG_CHUNK_LINE
    LONG_TRAILERS
    EARLY_BYTES
    UNASKED_RESPONSE
    UNASKED_SWITCH
    CUT_SHORT

# The status is for requests; a response that is refused is a 502 to the client (RFC 9112 section 6.3).
_FAULTS = {
    BARE_LF: (400, "a line ends in LF without CR", ""),
    BARE_CR: (400, "a CR without LF", ""),
    CONTROL_BYTE: (400, "a control byte in a line", ""),
    BAD_METHOD: (400, "no valid method", ""),
    BAD_TARGET: (400, "no valid target", ""),
    BAD_VERSION: (400, "the request line does not end in an HTTP version", ""),
    UNKNOWN_VERSION: (505, "neither HTTP/1.0 nor HTTP/1.1", ""),
    BAD_STATUS_LINE: (502, "no valid status line of HTTP/1.0 or HTTP/1.1", ""),
    FOLDED_LINE: (400, "a header line begins with white space", ""),
    BLANK_BEFORE_COLON: (400, "white space before the colon of a header", ""),
    BAD_NAME: (400, "a header line without a valid name and colon", ""),
    BAD_LENGTH: (400, "Content-Length is not a plain decimal number below 2^63", ""),
    REPEATED_LENGTH: (400, "more than one Content-Length", ""),
    LENGTH_AND_CODING: (400, "both Content-Length and Transfer-Encoding", ""),
    CODING_IN_HTTP_1_0: (400, "Transfer-Encoding in HTTP/1.0", ""),
    BAD_CODING: (400, "Transfer-Encoding does not end in chunked, once", ""),
    UNKNOWN_CODING: (501, "a transfer coding other than chunked", ""),
    NO_HOST: (400, "no Host", ""),
    REPEATED_HOST: (400, "more than one Host", ""),
    BAD_HOST: (400, "no valid Host", ""),
    HOST_AND_TARGET: (400, "Host differs from the host in the target", ""),
    CONNECT_WITH_CONTENT: (400, "CONNECT with content", ""),
    BAD_CHUNK_SIZE: (400, "no valid chunk size", ""),
    BAD_CHUNK_EXTENSION: (400, "no valid chunk extension", ""),
    BAD_CHUNK_END: (400, "a chunk does not end where its size says", ""),
    BAD_TRAILER: (400, "a trailer that would change framing or routing", ""),
    LONG_TARGET: (414, "the target is too long", "max_target_bytes or max_head_bytes can be raised"),
    LONG_HEAD: (431, "the head is too long", "max_head_bytes can be raised"),
    LONG_CHUNK_LINE: (400, "a chunk-size line is too long", "max_chunk_line_bytes can be raised"),
    LONG_TRAILERS: (431, "the trailers are too long", "max_trailer_bytes can be raised"),
    EARLY_BYTES: (400, "too much sent before the answer to a request to switch protocols", ""),
    UNASKED_RESPONSE: (502, "nothing was asked", ""),
    UNASKED_SWITCH: (502, "it switches protocols and was not asked to", ""),
    CUT_SHORT: (400, "the connection ended within a message", ""),
}

cdef const char* PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"    # RFC 9113 section 3.4

cdef enum:
    PREFACE_LENGTH = 24


@dataclass(frozen=True, kw_only=True)
class MessageLimits:
    """How much a parser holds of one connection."""

    max_head_bytes: int = 65_536
    max_target_bytes: int = 32_768
    max_chunk_line_bytes: int = 4_096
    max_trailer_bytes: int = 16_384

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not 64 <= value <= 1 << 30:
                raise ValueError(f"{field.name} must be 64 to {1 << 30}, not {value}")


cdef int _control_fault(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    return BARE_CR if memchr(p, CR, n) != NULL else CONTROL_BYTE


@cython.freelist(16)
cdef class HeadReceived:
    """A message begins: its head, and how the end of its body is told."""

    __match_args__ = ("head", "body", "length")

    def __init__(self, head, str body not None, length):
        self.head = head
        self.body = body
        self.length = length


@cython.freelist(16)
cdef class BodyReceived:
    """The next bytes of a body, as they came and without chunked framing."""

    __match_args__ = ("wire", "content")

    def __init__(self, bytes wire not None, bytes content not None):
        self.wire = wire
        self.content = content


@cython.freelist(4)
cdef class MessageEnded:
    """The message is complete; with the trailers of a chunked body."""

    __match_args__ = ("trailers",)

    def __init__(self, heads.Headers trailers=None):
        self.trailers = trailers


cdef class Switched:
    """From here on the bytes are no HTTP/1."""

    __match_args__ = ("rest",)

    def __init__(self, bytes rest not None):
        self.rest = rest


MessageEvent = HeadReceived | BodyReceived | MessageEnded | Switched

cdef MessageEnded ENDED_WITHOUT_TRAILERS = MessageEnded()


cdef inline bytes _cut(const uint8_t* p, Py_ssize_t begin, Py_ssize_t end):
    return PyBytes_FromStringAndSize(<const char*>p + begin, end - begin)


@cython.final
cdef class MessageParser:
    """Turns one direction of a connection into messages, or refuses it. See the module for what is refused."""

    cdef bint responses
    cdef int state
    cdef readonly object fault
    cdef uint64_t offset            # in the stream, of the first byte that is in no event yet
    cdef bytearray held             # the bytes from there on: the beginning of a line, a head, or the trailers
    cdef Py_ssize_t max_head
    cdef Py_ssize_t max_target
    cdef Py_ssize_t max_chunk_line
    cdef Py_ssize_t max_trailers
    # Lines being read. Places are relative to `offset`.
    cdef Py_ssize_t line            # the beginning of the line that is not complete
    cdef Py_ssize_t searched        # there is no LF between it and here
    cdef Py_ssize_t fields          # where the header lines begin; 0: the first line is not complete
    # What the lines of this head say.
    cdef Py_ssize_t begin           # of the first line, after empty ones
    cdef Py_ssize_t method_end
    cdef Py_ssize_t target_end
    cdef Py_ssize_t host            # the value of Host; -1: there is none
    cdef Py_ssize_t host_length
    cdef bint http_1_0
    cdef bint upgrade
    cdef int status
    cdef int coding
    cdef bint has_length
    cdef uint64_t length
    cdef uint64_t left              # bytes of this body or chunk that have not come
    cdef object expected            # TO_ flags of the requests that have no final response yet

    def __init__(self, str role, *, limits):
        if role not in ("request", "response"):
            raise ValueError(f'role must be "request" or "response", not {role!r}')
        self.responses = role == "response"
        self.max_head = limits.max_head_bytes
        self.max_target = limits.max_target_bytes
        self.max_chunk_line = limits.max_chunk_line_bytes
        self.max_trailers = limits.max_trailer_bytes
        self.held = bytearray()
        self.expected = deque() if self.responses else None
        self.begin_message()

    @property
    def paused(self):
        return self.state == PAUSED

    def expect(self, bytes method not None, *, bint upgrade=False):
        if not self.responses:
            raise LocalProtocolError("a parser of requests expects no methods")
        cdef int flags = TO_UPGRADE if upgrade else 0
        if method == b"HEAD":
            flags |= TO_HEAD
        elif method == b"CONNECT":
            flags |= TO_CONNECT
        self.expected.append(flags)

    def feed(self, bytes data not None):
        cdef list events = []
        cdef Py_ssize_t used
        self.check_alive()
        if self.held:
            self.held += data
            used = self.read(events, None, <const uint8_t*>PyByteArray_AS_STRING(self.held), len(self.held))
            del self.held[:used]
        else:
            used = self.read(events, data, <const uint8_t*>PyBytes_AS_STRING(data), len(data))
            if used < len(data):
                self.held += data if used == 0 else data[used:]
        if self.state == PAUSED and len(self.held) > self.max_head:
            self.refuse(EARLY_BYTES, 0)
        elif self.state == SWITCHED:
            events.append(self.switched())
        if self.fault is not None and not events:
            raise self.fault
        return events

    def resume(self, bint switched):
        if self.state != PAUSED:
            raise LocalProtocolError("resume() of a parser that is not paused")
        if not switched:
            self.begin_message()
            return self.feed(b"")
        self.state = SWITCHED
        return [self.switched()]

    def end(self):
        self.check_alive()
        if self.state == PAUSED:
            return []
        if self.state == UNTIL_CLOSE:
            self.state = ENDED
            return [ENDED_WITHOUT_TRAILERS]
        # Empty lines before a request that never came are no message.
        if self.state != HEAD or self.fields or self.line < len(self.held):
            self.refuse(CUT_SHORT, len(self.held))
            raise self.fault
        self.state = ENDED
        return []

    cdef int check_alive(self) except -1:
        if self.fault is not None:
            raise self.fault
        if self.state == SWITCHED:
            raise LocalProtocolError("the protocol has been switched: there are no messages here any more")
        if self.state == ENDED:
            raise LocalProtocolError("the stream has ended")
        return 0

    cdef Switched switched(self):
        event = Switched(bytes(self.held))
        self.held.clear()
        return event

    cdef int refuse(self, int fault, Py_ssize_t at) except -1:
        """The fault is at `at` bytes after `offset`. Returns 0, "no bytes used"."""
        status, reason, hint = _FAULTS[fault]
        self.fault = RemoteProtocolError(
            f"{'response' if self.responses else 'request'} refused: {reason}",
            direction=SERVER_TO_CLIENT if self.responses else CLIENT_TO_SERVER,
            offset=self.offset + at,
            status=502 if self.responses else status,
            hint=hint,
        )
        self.state = ENDED
        return 0

    cdef void begin_message(self) noexcept:
        self.state = HEAD
        self.line = 0
        self.searched = 0
        self.fields = 0
        self.begin = 0
        self.host = -1
        self.upgrade = False
        self.status = 0
        self.coding = CODING_NONE
        self.has_length = False

    cdef inline void use(self, Py_ssize_t n) noexcept:
        """The next n bytes are in an event now."""
        self.offset += <uint64_t>n
        self.line = 0
        self.searched = 0

    cdef Py_ssize_t read(self, list events, bytes data, const uint8_t* p, Py_ssize_t n) except -1:
        """Append the events of p[:n] and return how many bytes they are. `data` is the same bytes, if there is one."""
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t used
        while at < n:
            if self.state == HEAD:
                used = self.read_head(events, p + at, n - at)
            elif self.state == LENGTH_BODY or self.state == UNTIL_CLOSE:
                used = self.read_plain(events, data, p, at, n)
            elif self.state <= TRAILERS:
                used = self.read_chunked(events, p + at, n - at)
            else:
                break
            if used == 0:
                break
            at += used
        return at

    cdef int check_line(self, const uint8_t* p, Py_ssize_t n) noexcept:
        """One line of a head or of trailers that is not empty, without its CRLF."""
        if self.fields:
            return self.read_field(p, n)
        if self.responses:
            return self.read_status_line(p, n)
        return self.read_request_line(p, n)

    cdef Py_ssize_t read_lines(self, const uint8_t* p, Py_ssize_t n, Py_ssize_t limit, int too_long) except -1:
        """Up to and including the empty line that ends a head or trailers. Returns their length, 0 if it has not come.
        """
        cdef const uint8_t* newline
        cdef Py_ssize_t end
        cdef int fault
        while True:
            if not self.fields and self.line < n:
                # Other protocols are known by their first byte; they may never send an LF.
                fault = self.check_first_byte(p[self.line])
                if fault:
                    return self.refuse(fault, self.line)
            newline = find(p + self.searched, p + n, LF)
            end = n if newline == NULL else newline + 1 - p
            if end > limit:
                return self.refuse(LONG_TARGET if not self.fields and not self.responses else too_long, self.line)
            if newline == NULL:
                self.searched = n
                return 0
            if end - self.line < 2 or p[end - 2] != CR:
                return self.refuse(BARE_LF, self.line)
            if end - self.line > 2:
                fault = self.check_line(p + self.line, end - 2 - self.line)
                if fault:
                    return self.refuse(fault, self.line)
                if not self.fields:
                    self.fields = end
            elif self.fields:
                return end
            else:
                # RFC 9112 section 2.2: "SHOULD ignore at least one empty line (CRLF) received prior to the
                # request-line"; they become part of its bytes.
                self.begin = end
            self.line = self.searched = end

    cdef int check_first_byte(self, uint8_t c) noexcept:
        if self.responses:
            return NO_FAULT if c == c"H" else BAD_STATUS_LINE
        if CLASSES[c] & TOKEN or c == CR:
            return NO_FAULT
        return BARE_LF if c == LF else BAD_METHOD

    cdef int read_request_line(self, const uint8_t* p, Py_ssize_t n) noexcept:
        """method SP target SP "HTTP/1." ( "0" / "1" ) (RFC 9112 section 3), nothing else between them."""
        cdef Py_ssize_t method_length = span(p, n, TOKEN)
        cdef Py_ssize_t target = method_length + 1
        cdef Py_ssize_t end
        if method_length == 0 or method_length == n or p[method_length] != SPACE:
            return BAD_METHOD
        end = target + span(p + target, n - target, TARGET)
        if end < n and p[end] != SPACE:
            return BARE_CR if p[end] == CR else BAD_TARGET
        if n - end != 9 or memcmp(p + end, b" HTTP/", 6) or not is_digit(p[n - 3]) or p[n - 2] != c"." \
                or not is_digit(p[n - 1]):
            return BAD_VERSION
        if p[n - 3] != c"1" or p[n - 1] > c"1":
            return UNKNOWN_VERSION
        if end - target > self.max_target:
            return LONG_TARGET
        if not is_target(p, method_length, p + target, end - target):
            return BAD_TARGET
        self.http_1_0 = p[n - 1] == c"0"
        self.method_end = self.begin + method_length
        self.target_end = self.begin + end
        return NO_FAULT

    cdef int read_status_line(self, const uint8_t* p, Py_ssize_t n) noexcept:
        """"HTTP/1." ( "0" / "1" ) SP 3DIGIT [ SP reason ] (RFC 9112 section 4)."""
        if n < 12 or memcmp(p, b"HTTP/1.", 7) or not (p[7] == c"0" or p[7] == c"1") or p[8] != SPACE:
            return BAD_STATUS_LINE
        if not (is_digit(p[9]) and is_digit(p[10]) and is_digit(p[11])) or p[9] == c"0" or (n > 12 and p[12] != SPACE):
            return BAD_STATUS_LINE
        if has_control(p + 12, n - 12):
            return _control_fault(p + 12, n - 12)
        self.http_1_0 = p[7] == c"0"
        self.status = (p[9] - 48) * 100 + (p[10] - 48) * 10 + p[11] - 48
        return NO_FAULT

    cdef int read_field(self, const uint8_t* p, Py_ssize_t n) noexcept:
        """name ":" value (RFC 9112 section 5), of which the names are looked at that decide about framing."""
        cdef Py_ssize_t i = span(p, n, TOKEN)
        if i == 0 or i == n or p[i] != COLON:
            if is_blank(p[0]):
                return FOLDED_LINE
            if i and i < n and is_blank(p[i]):
                return BLANK_BEFORE_COLON
            return BARE_CR if i < n and p[i] == CR else BAD_NAME
        if has_control(p + i + 1, n - i - 1):
            return _control_fault(p + i + 1, n - i - 1)
        if i == 4 and begins_with(p, 4, b"host", 4):
            return self.read_host(p + 5, n - 5)
        if i == 7 and begins_with(p, 7, b"upgrade", 7):
            self.upgrade = True
            return BAD_TRAILER if self.state == TRAILERS else NO_FAULT
        if i == 14 and begins_with(p, 14, b"content-length", 14):
            return self.read_length(p + 15, n - 15)
        if i == 17 and begins_with(p, 17, b"transfer-encoding", 17):
            self.coding = read_codings(self.coding, p + 18, n - 18)
            return BAD_TRAILER if self.state == TRAILERS else NO_FAULT
        return NO_FAULT

    cdef int read_host(self, const uint8_t* p, Py_ssize_t n) noexcept:
        cdef const uint8_t* value = p
        if self.responses and self.state == HEAD:
            return NO_FAULT
        if self.state == TRAILERS:
            return BAD_TRAILER
        if self.host >= 0:
            return REPEATED_HOST
        strip(&value, &n)
        if not is_authority(value, n, False):
            return BAD_HOST
        self.host = self.line + 5 + (value - p)
        self.host_length = n
        return NO_FAULT

    cdef int read_length(self, const uint8_t* p, Py_ssize_t n) noexcept:
        cdef uint64_t length = 0
        if self.state == TRAILERS:
            return BAD_TRAILER
        if not read_decimal(p, n, &length):
            return BAD_LENGTH
        if self.has_length and not (self.responses and length == self.length):
            return REPEATED_LENGTH
        self.has_length = True
        self.length = length
        return NO_FAULT

    cdef Py_ssize_t read_head(self, list events, const uint8_t* p, Py_ssize_t n) except -1:
        cdef Py_ssize_t end
        cdef int fault
        if self.responses:
            if not self.expected:
                return self.refuse(UNASKED_RESPONSE, 0)
        elif self.offset == 0 and memcmp(p, PREFACE, min(n, <Py_ssize_t>PREFACE_LENGTH)) == 0:
            if n >= PREFACE_LENGTH:
                self.state = SWITCHED
            return 0
        end = self.read_lines(p, n, self.max_head, LONG_HEAD)
        if end == 0:
            return 0
        fault = self.check_head(p)
        if fault:
            return self.refuse(fault, self.begin)
        if self.responses:
            self.begin_response(events, p, end)
        else:
            self.begin_request(events, p, end)
        return end

    cdef int check_head(self, const uint8_t* p) noexcept:
        """What no single line tells (RFC 9112 sections 3.2, 6.1 and 6.3)."""
        if self.coding != CODING_NONE:
            if self.has_length:
                return LENGTH_AND_CODING
            if self.http_1_0:
                return CODING_IN_HTTP_1_0
            if self.coding == CODING_INVALID:
                return BAD_CODING
        if self.responses:
            return NO_FAULT
        if self.coding == CODING_OTHER:
            return BAD_CODING
        if self.coding == CODING_THEN_CHUNKED:
            return UNKNOWN_CODING
        if self.host < 0:
            return NO_FAULT if self.http_1_0 else NO_HOST
        return self.check_target(p)

    cdef int check_target(self, const uint8_t* p) noexcept:
        """Against the other header lines."""
        cdef const uint8_t* target = p + self.method_end + 1
        cdef Py_ssize_t begin = 0
        cdef Py_ssize_t end = 0
        if self.is_connect(p):
            return CONNECT_WITH_CONTENT if self.coding or (self.has_length and self.length) else NO_FAULT
        if target[0] == c"/" or target[0] == c"*":
            return NO_FAULT
        authority_in_target(target, self.target_end - self.method_end - 1, &begin, &end)
        # RFC 9112 section 3.2.2 lets the target win; not every server does.
        if end - begin != self.host_length or not same(target + begin, p + self.host, self.host_length):
            return HOST_AND_TARGET
        return NO_FAULT

    cdef bint is_connect(self, const uint8_t* p) noexcept:
        return self.method_end - self.begin == 7 and memcmp(p + self.begin, b"CONNECT", 7) == 0

    cdef int begin_request(self, list events, const uint8_t* p, Py_ssize_t end) except -1:
        cdef heads.RequestHead head = heads.RequestHead.__new__(heads.RequestHead)
        head.line = _cut(p, 0, self.fields)
        head.begin = self.begin
        head.method_end = self.method_end
        head.headers = make_headers(_cut(p, self.fields, end))
        self.upgrade = self.upgrade or self.is_connect(p)
        self.use(end)
        if self.coding == CODING_CHUNKED:
            return self.begin_body(events, head, CHUNK_LINE)
        if self.has_length:
            return self.begin_body(events, head, LENGTH_BODY)
        return self.begin_body(events, head, HEAD)

    cdef int begin_response(self, list events, const uint8_t* p, Py_ssize_t end) except -1:
        cdef int asked = self.expected[0]
        cdef heads.ResponseHead head
        if self.status == 101 and not asked & TO_UPGRADE:
            return self.refuse(UNASKED_SWITCH, 0)
        head = heads.ResponseHead.__new__(heads.ResponseHead)
        head.line = _cut(p, 0, self.fields)
        head.code = self.status
        head.headers = make_headers(_cut(p, self.fields, end))
        self.use(end)
        if self.status >= 200 or self.status == 101:
            self.expected.popleft()
        if self.status == 101 or (asked & TO_CONNECT and 200 <= self.status < 300):
            self.begin_body(events, head, HEAD)
            self.state = SWITCHED
            return 0
        if self.status < 200 or self.status == 204 or self.status == 304 or asked & TO_HEAD:
            return self.begin_body(events, head, HEAD)
        if self.coding == CODING_CHUNKED or self.coding == CODING_THEN_CHUNKED:
            return self.begin_body(events, head, CHUNK_LINE)
        if self.has_length:
            return self.begin_body(events, head, LENGTH_BODY)
        return self.begin_body(events, head, UNTIL_CLOSE)

    cdef int begin_body(self, list events, object head, int state) except -1:
        """`state` is that of the body; HEAD says that there is none."""
        cdef HeadReceived event = HeadReceived.__new__(HeadReceived)
        event.head = head
        self.state = state
        if state == HEAD:
            event.body = "none"
        elif state == LENGTH_BODY:
            event.body = "length"
            event.length = self.length
            self.left = self.length
        else:
            event.body = "chunked" if state == CHUNK_LINE else "close"
        events.append(event)
        if state == HEAD or (state == LENGTH_BODY and self.left == 0):
            self.end_message(events, ENDED_WITHOUT_TRAILERS)
        return 0

    cdef int end_message(self, list events, MessageEnded event) except -1:
        cdef bint paused = self.upgrade and not self.responses
        events.append(event)
        self.begin_message()
        if paused:
            self.state = PAUSED
        return 0

    cdef Py_ssize_t read_plain(self, list events, bytes data, const uint8_t* p, Py_ssize_t at, Py_ssize_t n) except -1:
        """A body that is all content. Returns the bytes of it in p[at:n]."""
        cdef Py_ssize_t length = n - at
        cdef BodyReceived event = BodyReceived.__new__(BodyReceived)
        if self.state == LENGTH_BODY and <uint64_t>length > self.left:
            length = <Py_ssize_t>self.left
        event.wire = data if data is not None and length == len(data) else _cut(p, at, at + length)
        event.content = event.wire
        events.append(event)
        self.use(length)
        if self.state == LENGTH_BODY:
            self.left -= <uint64_t>length
            if self.left == 0:
                self.end_message(events, ENDED_WITHOUT_TRAILERS)
        return length

    cdef Py_ssize_t read_chunked(self, list events, const uint8_t* p, Py_ssize_t n) except -1:
        """A chunked body, as far as its lines are complete: one event, and one more at its end. Returns its bytes."""
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t used = 0
        cdef list contents = []
        cdef MessageEnded end = None
        cdef BodyReceived event
        while at < n and end is None:
            if self.state == CHUNK_DATA:
                used = n - at if self.left > <uint64_t>(n - at) else <Py_ssize_t>self.left
                contents.append(_cut(p, at, at + used))
                self.left -= <uint64_t>used
                if self.left == 0:
                    self.state = CHUNK_END
            elif self.state == CHUNK_LINE:
                used = self.read_chunk_line(p + at, n - at)
            elif self.state == CHUNK_END:
                used = self.read_chunk_end(p + at, n - at)
            else:
                self.fields = 1  # no first line
                used = self.read_lines(p + at, n - at, self.max_trailers, LONG_TRAILERS)
                if used:
                    end = ENDED_WITHOUT_TRAILERS if used == 2 else MessageEnded(make_headers(_cut(p, at, at + used)))
            if used == 0:
                break
            at += used
            self.use(used)
        if at:
            event = BodyReceived.__new__(BodyReceived)
            event.wire = _cut(p, 0, at)
            event.content = <bytes>contents[0] if len(contents) == 1 else b"".join(contents)
            events.append(event)
        if end is not None:
            self.end_message(events, end)
        return at

    cdef Py_ssize_t read_chunk_line(self, const uint8_t* p, Py_ssize_t n) except -1:
        """Returns its length, 0 if it is not complete."""
        cdef const uint8_t* newline = find(p + self.searched, p + n, LF)
        cdef Py_ssize_t end = n if newline == NULL else newline + 1 - p
        cdef int fault
        if end > self.max_chunk_line:
            return self.refuse(LONG_CHUNK_LINE, 0)
        if newline == NULL:
            self.searched = n
            return 0
        if end < 2 or p[end - 2] != CR:
            return self.refuse(BARE_LF, 0)
        fault = self.read_chunk_size(p, end - 2)
        if fault:
            return self.refuse(fault, 0)
        self.state = CHUNK_DATA if self.left else TRAILERS
        return end

    cdef int read_chunk_size(self, const uint8_t* p, Py_ssize_t n) noexcept:
        """1*HEXDIG [ extensions ]. Not more than 16 digits: what servers cut off differs."""
        cdef Py_ssize_t i = 0
        self.left = 0
        while i < n and i < 17 and hex_value(p[i]) >= 0:
            self.left = self.left << 4 | <uint64_t>hex_value(p[i])
            i += 1
        if i == 0 or i > 16 or self.left >> 63:
            return BAD_CHUNK_SIZE
        if self.responses:
            while i < n and p[i] == SPACE:  # servers that reserve room for the size fill it up with spaces
                i += 1
        if i == n:
            return NO_FAULT
        if has_control(p + i, n - i):
            return _control_fault(p + i, n - i)
        if p[i] != SEMICOLON:
            return BAD_CHUNK_SIZE
        return NO_FAULT if are_extensions(p + i, n - i) else BAD_CHUNK_EXTENSION

    cdef Py_ssize_t read_chunk_end(self, const uint8_t* p, Py_ssize_t n) except -1:
        if p[0] != CR or (n > 1 and p[1] != LF):
            return self.refuse(BAD_CHUNK_END, 0)
        if n == 1:
            return 0
        self.state = CHUNK_LINE
        return 2


cdef object _parse_head(str role, bytes data):
    parser = MessageParser(role, limits=MessageLimits(max_head_bytes=1 << 30, max_target_bytes=1 << 30))
    if role == "response":
        parser.expect(b"GET", upgrade=True)
    events = parser.feed(data)
    if not events:
        parser.end()
    elif parser.fault is not None:
        raise parser.fault
    elif isinstance(events[0], HeadReceived) and events[0].head.to_bytes() == data:
        return events[0].head
    raise LocalProtocolError("not one head and nothing else")


def parse_request_head(bytes data not None):
    """A head on its own, with the empty line that ends it."""
    return _parse_head("request", data)


def parse_response_head(bytes data not None):
    """A head on its own, with the empty line that ends it."""
    return _parse_head("response", data)


def with_body(head, bytes body not None):
    """A whole message: this head, fitted to a new body."""
    head = head.copy()
    headers = head.headers
    if body or b"content-length" in headers or b"transfer-encoding" in headers:
        headers.remove(b"Transfer-Encoding")
        headers.set(b"Content-Length", b"%d" % len(body))
    return head.to_bytes() + body
