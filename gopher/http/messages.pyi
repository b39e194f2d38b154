"""HTTP/1 messages for a relay that understands them: strict about what comes in, exact about what goes out (RFC 9112).

Sans-I/O, policy "relay": what two servers could read in two ways is refused, never guessed at or repaired. What is
accepted is kept byte for byte: case, order, repetition and spacing of headers, chunk extensions, trailers.

Stricter than RFC 9112 asks, because the bytes go on to a server whose reading is not known: equal Content-Length lines
in a request, leading zeros, tabs around Content-Length and Transfer-Encoding, empty elements in Transfer-Encoding,
white space in a chunk-size line, "#" in a target, a comma in Host, userinfo, Host that differs from an absolute target,
and framing fields in trailers are refused. Responses may: leave out the reason, repeat equal Content-Length lines, put
spaces after a chunk size, use other transfer codings (without chunked at the end, such a body lasts until the close).
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from gopher.errors import RemoteProtocolError
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

@dataclass(frozen=True, kw_only=True)
class MessageLimits:
    """How much a parser holds of one connection: at most the largest of these, and the last feed.

    Raises:
        ValueError: a limit is not 64 to 2^30.
    """

    max_head_bytes: int = 65_536
    """A request or status line with its headers. Twice what nginx takes (4 times 8 KiB): what production took, passes.
    """
    max_target_bytes: int = 32_768
    """RFC 9112 section 3: "RECOMMENDED ... to support, at a minimum, request-line lengths of 8000 octets"."""
    max_chunk_line_bytes: int = 4_096
    """A chunk size with its extensions."""
    max_trailer_bytes: int = 16_384
    def __post_init__(self) -> None: ...

@final
class HeadReceived:
    """A message begins; it comes as soon as the head is complete.

    Attributes:
        head: a `RequestHead` from a request parser, else a `ResponseHead`.
        body: how the end of the body is told.
        length: bytes of the body if `body` is "length", else None.
    """

    __match_args__ = ("head", "body", "length")
    def __init__(
        self,
        head: RequestHead | ResponseHead,
        body: Literal["none", "length", "chunked", "close"],
        length: int | None,
    ) -> None: ...
    @property
    def head(self) -> RequestHead | ResponseHead: ...
    @property
    def body(self) -> Literal["none", "length", "chunked", "close"]: ...
    @property
    def length(self) -> int | None: ...

@final
class BodyReceived:
    """The next bytes of a body.

    Attributes:
        wire: as they came; of a chunked body with chunk-size lines, the last chunk and the trailers, each whole.
        content: without chunked framing; may be empty.
    """

    __match_args__ = ("wire", "content")
    def __init__(self, wire: bytes, content: bytes) -> None: ...
    @property
    def wire(self) -> bytes: ...
    @property
    def content(self) -> bytes: ...

@final
class MessageEnded:
    """The message is complete.

    Attributes:
        trailers: those of a chunked body, to be read: their bytes were in the last `wire`. None if there are none.
    """

    __match_args__ = ("trailers",)
    def __init__(self, trailers: Headers | None = None) -> None: ...
    @property
    def trailers(self) -> Headers | None: ...

@final
class Switched:
    """From here on the bytes are no HTTP/1; the parser takes no more of them.

    Attributes:
        rest: the bytes after the last message: of an HTTP/2 connection from the preface on, preface included.
    """

    __match_args__ = ("rest",)
    def __init__(self, rest: bytes) -> None: ...
    @property
    def rest(self) -> bytes: ...

MessageEvent: TypeAlias = HeadReceived | BodyReceived | MessageEnded | Switched

@final
class MessageParser:
    """Turns one direction of a connection into messages, or refuses it.

    How the bytes are cut into feeds changes nothing but how bodies are cut into `BodyReceived`. The bytes of the events
    (`head.to_bytes()`, `wire`, `rest`) put together are those that were fed, without an incomplete head or line at
    their end.

    A parser of requests pauses after one that asks to switch protocols (CONNECT, or an Upgrade field): whether what
    follows is HTTP is known when the answer is. Go on with `resume`.

    A parser of responses must be told, before they come, what they answer: `expect`. What comes without is refused.

    Args:
        role: "request" or "response".
        limits: what is longer is refused.
    """

    def __init__(self, role: Literal["request", "response"], *, limits: MessageLimits) -> None: ...
    @property
    def fault(self) -> RemoteProtocolError | None:
        """Why the parser has stopped, as soon as it has: no bytes after those of the last event will be accepted."""

    @property
    def paused(self) -> bool: ...  # what is fed is held, up to `max_head_bytes`: stop reading, then `resume`
    def expect(self, method: bytes, *, upgrade: bool = False) -> None:
        """Queue a request, for the next final response that no earlier one is queued for.

        Args:
            method: of the request: there is no body after HEAD, and a tunnel after CONNECT and 2xx.
            upgrade: it had an Upgrade field. Otherwise a 101 is refused.

        Raises:
            LocalProtocolError: this is a parser of requests.
        """

    def feed(self, data: bytes) -> list[MessageEvent]:
        """Take in the next bytes. O(bytes), plus the bytes held from earlier feeds.

        Returns:
            What is complete now; often empty. If something after the last event is refused, `fault` says so at once,
            and the next call raises it: so that what came before can still be answered.

        Raises:
            RemoteProtocolError: the first thing in `data` is refused, or something was earlier. `status` is what to
                answer the client: 400, 414 (target too long), 431 (head or trailers too long), 501 (unknown transfer
                coding), 505 (version); always 502 for responses. The parser is of no more use.
            LocalProtocolError: after `Switched`, or after `end`.
        """

    def resume(self, switched: bool) -> list[MessageEvent]:
        """After a pause: the answer is known.

        Args:
            switched: it opened a tunnel (101, or 2xx to CONNECT). If not, the next request is read.

        Returns:
            As `feed`; if switched, one `Switched` with what was held.

        Raises:
            RemoteProtocolError: as `feed`.
            LocalProtocolError: the parser is not paused.
        """

    def end(self) -> list[MessageEvent]:
        """The peer has closed its side.

        Returns:
            The `MessageEnded` of a body that lasts until the close; else empty. While paused always empty: call again
            after `resume`.

        Raises:
            RemoteProtocolError: within a message, or as `feed`.
            LocalProtocolError: after `Switched`, or after `end`.
        """

def parse_request_head(data: bytes) -> RequestHead:
    """A head on its own, with the empty line that ends it.

    Raises:
        RemoteProtocolError: a parser would refuse it.
        LocalProtocolError: it is not one head and nothing else.
    """

def parse_response_head(data: bytes) -> ResponseHead:
    """As `parse_request_head`; interim responses too."""

def with_body(head: RequestHead | ResponseHead, body: bytes) -> bytes:
    """A whole message: this head, fitted to a new body that was not there or was framed otherwise.

    Transfer-Encoding gives way to Content-Length, trailers are lost; all other lines keep their bytes. `head` is not
    changed. Not for a message that has no body whatever its head says (an answer to HEAD, 204, 304).
    """
