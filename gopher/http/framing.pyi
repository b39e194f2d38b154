"""Where HTTP/1 messages begin and end, without keeping or changing a byte of them (RFC 9112).

Sans-I/O, policy "observe": nothing is refused or corrected, and how the bytes are cut into feeds changes nothing. A
framer that can no longer be sure of the boundaries turns opaque, for good: another protocol, an HTTP/2 preface,
HTTP/0.9, contradictory or invalid Content-Length, what follows a CONNECT or a 101. A message that has started by then
stays uncompleted. Both framers are of fixed size and keep no data.
"""

from typing import Final

from typing_extensions import Buffer, Self, disjoint_base

from gopher._runs import ByteRun

__all__ = ["REGISTERED_METHODS", "RequestFramer", "ResponseFramer", "find_request", "request_may_start"]

REGISTERED_METHODS: Final[frozenset[bytes]]
"""The IANA HTTP Method Registry, without "*" and PRI, which no request can use."""

@disjoint_base
class RequestFramer:
    """Finds the boundaries of a client's HTTP/1 requests."""

    def __init__(self) -> None: ...
    def feed(self, data: Buffer | ByteRun) -> int:
        """Take in the next bytes; they are borrowed for the call only. O(bytes).

        Returns:
            Offset in `data` of the first byte of the first request that starts in it (of its method: empty lines
            before it do not belong to it), -1 if none does or the framer was opaque already.
        """

    @property
    def started(self) -> int: ...  # requests whose first byte was seen
    @property
    def completed(self) -> int: ...  # requests whose last byte was seen
    @property
    def opaque(self) -> bool: ...  # boundaries are unknown from here on; `started` and `completed` no longer change
    @property
    def in_message(self) -> bool: ...  # between the first and the last byte of a request; False if opaque

@disjoint_base
class ResponseFramer:
    """Finds the boundaries of a server's HTTP/1 responses.

    Interim responses (1xx but 101) are passed over and not counted. A response that comes before its request is
    framed like one to a GET.

    Args:
        requests: frames the requests that are answered, response k answers request k: there is no body after a HEAD,
            and a tunnel after CONNECT and 2xx. It remembers its last 64 methods; a response further behind turns this
            framer opaque. None takes every response for one to a GET.
    """

    def __new__(cls, requests: RequestFramer | None = None) -> Self: ...
    def feed(self, data: Buffer) -> int:
        """Take in the next bytes; they are borrowed for the call only. O(bytes).

        Returns:
            Offset in `data` of the first byte of the first response that is counted in it; 0 if that byte came in an
            earlier feed; -1 if none is counted.
        """

    def skip(self, length: int) -> None:
        """As if `length` bytes of body had been fed.

        Raises:
            ValueError: `length` is more than `body_left`; nothing has changed.
        """

    @property
    def started(self) -> int: ...  # responses whose status is known, without interim ones
    @property
    def completed(self) -> int: ...  # responses whose last byte was seen; never one that is `until_close`
    @property
    def opaque(self) -> bool: ...  # boundaries are unknown from here on; `started` and `completed` no longer change
    @property
    def in_message(self) -> bool: ...  # between the first and the last byte of a response, interim ones included
    @property
    def until_close(self) -> bool: ...  # the body of the response that has started ends with the connection
    @property
    def body_left(self) -> int: ...  # bytes of a body, or of its current chunk, that need not be looked at

def find_request(data: bytes, start: int = 0) -> int:
    """Where to join a connection in the middle: the first request head that is complete in `data`, and valid.

    Valid means: a registered method, a plausible target, HTTP/1.0 or 1.1, only well-formed fields up to the empty
    line, CRLF line ends, and with HTTP/1.1 a Host. A head may begin anywhere, since the body before it need not end in
    a line end and segments say nothing about messages. The price: a body that contains a whole request head is taken
    for a request. O(bytes).

    Args:
        data: bytes of the client's stream.
        start: where to begin, an offset of 0 or more.

    Returns:
        Offset of the first byte of the method, -1 if there is none.
    """

def request_may_start(data: bytes) -> int:
    """After `find_request(data)` found nothing: from where on to keep `data` for the next attempt with more bytes.

    A head has no size limit here: give up on an offset that stays when 64 KiB have come after it.

    Returns:
        Offset of the earliest place where a head may have begun that the data ends in, len(data) if there is none.
        O(bytes).
    """
