# HTTP/1 message boundaries without buffering: what the mirror asks of every byte it passes on.
#
# Policy "observe" (RFC 9112 read leniently): nothing is refused. What does not look like HTTP/1 turns the framer
# opaque, for good: boundaries are then unknown. A framer consumes every byte it is given and keeps at most one partial
# line (of which only the prefix matters), so its size is fixed.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from gopher._runs cimport ByteRun

cdef enum:
    HTTP_REQUEST = 0
    HTTP_RESPONSE = 1
    HTTP_CARRY = 128        # a Content-Length or Transfer-Encoding line longer than this makes the framer opaque

cdef struct HttpFramer:
    # -- read by users ---------------------------------------------------------------------------------------------
    uint64_t started        # messages whose first byte was seen; 1xx answers are not counted (101 is: it is final)
    uint64_t completed      # messages whose last byte was seen
    uint64_t body_left      # bytes of a Content-Length body or chunk that may be skipped without looking at them
    uint64_t head_bits      # requests: bit (k mod 64) is set if request k was HEAD
    uint64_t connect_bits   # requests: bit (k mod 64) is set if request k was CONNECT
    uint64_t special        # requests: 1 + the index of the last HEAD or CONNECT; 0 while there was none
    uint8_t opaque          # not HTTP/1 (any more): another protocol, an upgraded connection, a tunnel, a broken head
    uint8_t until_close     # responses: the body ends with the connection
    # -- private: the state machine of framing.pyx -------------------------------------------------------------------
    uint8_t role            # HTTP_REQUEST or HTTP_RESPONSE
    uint8_t state           # what the next byte is expected to be
    uint8_t position        # bytes matched so far of a version or status line; else 1 if not at its beginning
    uint8_t in_trailers     # the lines are a chunked body's trailers, not a head
    uint8_t has_length      # a Content-Length was read; its value is in `number`
    uint8_t coding          # the last transfer coding read: none, chunked or another
    uint8_t foldable        # the previous line was a framing field: a folded line would change its value
    uint8_t carry_length    # bytes of the line in `carry`; HTTP_CARRY + 1: the line is longer than that
    uint16_t status         # responses: of this head
    uint64_t number         # being read: the method's last 8 bytes, then Content-Length, then the size of a chunk
    uint8_t[HTTP_CARRY] carry   # the beginning of the header line that the data so far ended in

cdef void http_framer_init(HttpFramer* framer, int role) noexcept nogil

# Consume data[0:length]. Returns the offset of the first byte of the first message that starts in it, -1 if none does.
# A request starts with the first byte of its method. A response starts when its status is known not to be 1xx; if its
# first byte came in an earlier feed, that is offset 0. How the bytes are cut into feeds changes nothing else.
# `requests`: for a response framer, the framer of the requests it answers (for HEAD and CONNECT), else NULL. Response
# k answers request k; set started = completed = k at the start for a connection that was joined at request k.
# Of methods only the last 64 are remembered: an answer that is further behind, and not behind the last HEAD or CONNECT,
# turns its framer opaque.
cdef Py_ssize_t http_framer_feed(HttpFramer* framer, const HttpFramer* requests,
                                 const uint8_t* data, Py_ssize_t length) noexcept nogil

# As if `length` <= body_left bytes of body had been fed.
cdef void http_framer_skip(HttpFramer* framer, uint64_t length) noexcept nogil


cdef class RequestFramer:
    cdef HttpFramer c

    cpdef Py_ssize_t feed(self, data) except -2
    cdef Py_ssize_t _feed_run(self, ByteRun run) noexcept


cdef class ResponseFramer:
    cdef HttpFramer c
    cdef RequestFramer requests  # owned; None: every answer is to a GET
