"""What a script gets to see and may change: connections, and exchanges with their messages. Sans-I/O.

The functions of a script work on drafts. A draft that its function has finished with takes the place of what was before
it, and cannot be changed any more; one whose function failed is thrown away, and nothing has happened.

Text is the bytes of the message read as UTF-8, and those that are none are kept (`surrogateescape`): what is not
touched goes as it came, byte for byte. How a message ends is not a script's business: Content-Length follows the body,
and what would change how the other side finds the end is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from gopher.errors import BodyError, LocalProtocolError, RemoteProtocolError
from gopher.http.messages import RequestHead, ResponseHead, parse_request_head, parse_response_head, with_body
from gopher.relay.places import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from typing import Protocol

    from gopher.http.messages import Headers

    class Waiter(Protocol):
        """How a function waits for a body."""

        def wait(self, body: Body) -> None:
            """Block until the body is settled. Raises: BodyError, in an async function."""

        def wait_settled(self, body: Body) -> Awaitable[None]:
            """The same, for async functions."""


__all__ = ["Body", "Connection", "Exchange", "HeaderLines", "Message", "Request", "Response", "Timing"]

_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_FRAMED_BY_METHOD: Final = frozenset({b"HEAD", b"CONNECT"})
_WITHOUT_BODY: Final = frozenset({204, 304})
_ERRORS: Final = "surrogateescape"
_TOO_LONG: Final = f"the body is longer than the {MAX_BODY_BYTES:,} bytes that a script may have"
_PASSED_BY: Final = "the body has passed by: it can be read only in the function of its own message"

HeadT = TypeVar("HeadT", RequestHead, ResponseHead)
MessageT = TypeVar("MessageT", bound="Message[Any]")


def _encode(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", _ERRORS)


def _decode(data: bytes) -> str:
    return data.decode("utf-8", _ERRORS)


class Body:
    """The content of a message, as far as somebody wants it. The relay adds to it, scripts wait for it.

    Args:
        on_wanted: called once, when it is first waited for; None for a body that is whole.
        content: of a body that is whole.
    """

    def __init__(self, on_wanted: Callable[[], None] | None, content: bytes = b"") -> None:
        self._on_wanted = on_wanted
        self._contents: list[bytes] = []
        self.size = len(content)
        """Bytes that have come."""
        self._content = content
        self._failure: BodyError | None = None
        self._callbacks: list[Callable[[], None]] = []
        self.wanted = False
        self.settled = on_wanted is None
        """Whether the content is there, or never will be."""

    def want(self, callback: Callable[[], None]) -> None:
        """Ask for it; `callback` is called when it is settled, perhaps at once."""
        if self.settled:
            callback()
            return
        self._callbacks.append(callback)
        if not self.wanted:
            self.wanted = True
            assert self._on_wanted is not None
            self._on_wanted()

    def add(self, content: bytes) -> None:
        """The next bytes. More than a script may hold settle it: it is too long."""
        if self.settled:
            return
        self._contents.append(content)
        self.size += len(content)
        if self.size > MAX_BODY_BYTES:
            self.refuse()

    def end(self) -> None:
        """That was all of it."""
        if not self.settled:
            self._content = b"".join(self._contents)
            self._settle(None)

    def refuse(self, reason: str = _TOO_LONG) -> None:
        """There is too much of it."""
        self._content = b""
        self._settle(BodyError(reason))

    def pass_by(self) -> None:
        """It is sent on, and not kept any longer."""
        self._content = b""
        self._settle(BodyError(_PASSED_BY))

    def cut(self) -> None:
        """The connection that it came on is over."""
        if not self.settled:
            self._settle(BodyError("the connection ended within the body", cut=True))

    def _settle(self, failure: BodyError | None) -> None:
        self._failure = failure
        self._contents.clear()
        self.settled = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def get(self) -> bytes:
        """The content. Raises: BodyError, there is none to be had."""
        if self._failure is not None:
            # A new one: this one's traceback would grow with each raise.
            raise BodyError(str(self._failure), cut=self._failure.cut)
        return self._content


class HeaderLines:
    """The header lines of a message, in order, with their case; names are found in any case.

    Raises:
        LocalProtocolError: the message cannot be changed, the field is Content-Length or Transfer-Encoding, or name or
            value is not what a header can hold.
    """

    def __init__(self, message: Message[Any]) -> None:
        self._message = message

    @property
    def _lines(self) -> Headers:
        headers: Headers = self._message._head.headers
        return headers

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(name, value) of each line."""
        return iter([(_decode(name), _decode(value)) for name, value in self._lines])

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, name: str) -> bool:
        return _encode(name) in self._lines

    def __getitem__(self, name: str) -> str:
        """The value of the first line of this name. Raises: KeyError."""
        value = self._lines.get(_encode(name))
        if value is None:
            raise KeyError(name)
        return _decode(value)

    def __repr__(self) -> str:
        # Without the values, which may be secrets that end in a log.
        return f"<HeaderLines {', '.join(name for name, _ in self)}>"

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of the first line of this name."""
        value = self._lines.get(_encode(name))
        return default if value is None else _decode(value)

    def get_all(self, name: str) -> list[str]:
        """The values of all lines of this name, in order."""
        return [_decode(value) for value in self._lines.get_all(_encode(name))]

    def __setitem__(self, name: str, value: str) -> None:
        """Replace the value where the line stands, and remove further lines of this name; or append a line."""
        self._edited(name).set(_encode(name), _encode(value))

    def __delitem__(self, name: str) -> None:
        """Remove every line of this name. Raises: KeyError, there is none."""
        if name not in self:
            raise KeyError(name)
        self._edited(name).remove(_encode(name))

    def set_all(self, name: str, values: Iterable[str]) -> None:
        """Give the lines of this name these values, in order; lines are appended or removed as needed."""
        self._edited(name).set_all(_encode(name), [_encode(value) for value in values])

    def add(self, name: str, value: str) -> None:
        """Append a line."""
        self._edited(name).add(_encode(name), _encode(value))

    def remove(self, name: str) -> None:
        """Remove every line of this name, if there is one."""
        self._edited(name).remove(_encode(name))

    def _edited(self, name: str) -> Headers:
        self._message.check_open()
        if _encode(name).lower() in _FRAMING:
            raise LocalProtocolError(f"{name} is set by gopher: it follows the body")
        return self._lines


class Message(Generic[HeadT]):
    """A request or response. Made by the relay.

    Args:
        head: of the message; its own copy.
        body: where its body comes from.
        content: a body that has taken the place of the original one already.
        locked: why it cannot be changed; empty if it can.
    """

    def __init__(self, head: HeadT, body: Body, *, content: bytes | None = None, locked: str = "") -> None:
        self._head: HeadT = head
        self.source = body
        self.content = content
        """The body that takes the place of the original one; None to leave that one as it comes. For the relay."""
        self._locked = locked
        self._edited = False
        self._waiter: Waiter | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    @property
    def headers(self) -> HeaderLines:
        """The header lines, to be read and changed."""
        return HeaderLines(self)

    @property
    def version(self) -> str:
        """Of HTTP: "1.0" or "1.1"."""
        return _decode(self._head.version)

    @property
    def body(self) -> bytes:
        """The body without chunked framing, as it came else: a Content-Encoding is not undone.

        A plain function waits here until it has come. An async function has to `await read()` before.

        Raises:
            BodyError: it is too long, has passed by, or was not read before.
        """
        if self.content is not None:
            return self.content
        if not self.source.settled:
            self._waiting().wait(self.source)
        return self.source.get()

    @body.setter
    def body(self, content: bytes) -> None:
        self.check_open()
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise TypeError(f"a body is bytes, not {type(content).__name__}")
        self._check_body()
        content = bytes(content)
        if self.content is None and self.source.settled:
            try:
                if self.source.get() == content:
                    return
            except BodyError:
                # What cannot be had is replaced, whatever it was.
                pass
        self.content = content

    async def read(self) -> bytes:
        """The body, for async functions: waits until it has come. Raises: BodyError, it cannot be had."""
        if self.content is not None:
            return self.content
        if not self.source.settled:
            await self._waiting().wait_settled(self.source)
        return self.source.get()

    def _waiting(self) -> Waiter:
        if self._waiter is None:
            raise BodyError(_PASSED_BY)
        return self._waiter

    def to_bytes(self) -> bytes:
        """The message with its new body, or only the head if the body stays as it comes."""
        if self.content is None:
            return self._head.to_bytes()
        return with_body(self._head, self.content)

    def check_open(self) -> None:
        """A change begins. Raises: LocalProtocolError, the message cannot be changed."""
        if self._locked:
            raise LocalProtocolError(f"this message cannot be changed: {self._locked}")
        self._edited = True

    def check(self) -> None:
        """Raises: LocalProtocolError, what the changes have made of the head is what the relay itself would refuse."""
        if self._edited:
            try:
                self._parse(self._head.to_bytes())
            except RemoteProtocolError as refused:
                raise LocalProtocolError(
                    f"what it has made of the {type(self).__name__.lower()} is refused: {refused}"
                ) from refused

    @staticmethod
    def _parse(data: bytes) -> object:
        raise NotImplementedError

    def _check_body(self) -> None:
        """Raises: LocalProtocolError, the message cannot have a body."""

    def draft(self: MessageT, waiter: Waiter | None, *, locked: str) -> MessageT:
        """One of its own to be changed, or only looked at. `waiter`: None if the body cannot come any more."""
        # By hand: copy.copy takes three times as long, and one is made for each call of a function.
        draft = type(self).__new__(type(self))
        draft.__dict__.update(self.__dict__)
        if not locked:
            head: Any = self._head
            draft._head = head.copy()
        draft._locked = locked
        draft._edited = False
        draft._waiter = waiter
        return draft

    def close(self, reason: str) -> None:
        """No more changes. A later reader of the body gets what has come, or an error."""
        self._locked = self._locked or reason
        self._waiter = None


class Request(Message[RequestHead]):
    """What the client asks; in the function `request`, as the upstream will get it.

    Raises:
        LocalProtocolError: it cannot be changed, or not to this.
    """

    _parse = staticmethod(parse_request_head)

    @property
    def method(self) -> str:
        """As GET. HEAD and CONNECT stay, and nothing becomes one: they say how the answer ends."""
        return _decode(self._head.method)

    @method.setter
    def method(self, method: str) -> None:
        self.check_open()
        new, old = _encode(method), self._head.method
        if new != old and _FRAMED_BY_METHOD & {new, old}:
            raise LocalProtocolError(f"{self.method} cannot become {method}: its answer ends in another way")
        self._head.method = new

    @property
    def target(self) -> str:
        """Path and query, as they came."""
        return _decode(self._head.target)

    @target.setter
    def target(self, target: str) -> None:
        self.check_open()
        self._head.target = _encode(target)


class Response(Message[ResponseHead]):
    """An answer: production's, or the shadow's.

    Args:
        bodiless: whether there is no body whatever the head says: an answer to HEAD, 204, 304.

    Raises:
        LocalProtocolError: it cannot be changed, or not to this.
    """

    _parse = staticmethod(parse_response_head)

    def __init__(self, head: ResponseHead, body: Body, *, bodiless: bool = False, locked: str = "") -> None:
        super().__init__(head, body, locked=locked)
        self._bodiless = bodiless

    @property
    def status(self) -> int:
        """As 200. It cannot be changed from or to 204, 304 and what is below 200: they say how the answer ends."""
        return self._head.status

    @status.setter
    def status(self, status: int) -> None:
        self.check_open()
        old = self._head.status
        if status != old and (status < 200 or _WITHOUT_BODY & {status, old}):
            raise LocalProtocolError(f"status {old} cannot become {status}: it ends in another way")
        self._head.status = status

    @property
    def reason(self) -> str:
        """What follows the status; often empty."""
        return _decode(self._head.reason)

    @reason.setter
    def reason(self, reason: str) -> None:
        self.check_open()
        self._head.reason = _encode(reason)

    def _check_body(self) -> None:
        if self._bodiless:
            raise LocalProtocolError("an answer to HEAD, 204 and 304 have no body")


@dataclass(slots=True)
class Timing:
    """Seconds since the epoch; None for what has not happened."""

    request_s: float
    """The request's turn came, and its head had been read."""
    sent_s: float | None = None
    """The request was passed to the upstream."""
    production_response_s: float | None = None
    """Production's answer had been read."""
    shadow_response_s: float | None = None
    """The head of the shadow's answer had been read."""


class Connection:
    """A client's connection, or what a link tells of one.

    Attributes:
        id: unique within one run of the relay.
        client: address and port, as far as they are known.
        server: that the client connected to: of a link, production's.
        started_s: seconds since the epoch, when the relay got it.
        framed: whether production's answers come along.
        metadata: for scripts, gopher does not look at it. What a function that fails did to it stays.
    """

    def __init__(
        self,
        number: int,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        started_s: float,
        *,
        framed: bool,
    ) -> None:
        self.id = number
        self.client = client
        self.server = server
        self.started_s = started_s
        self.framed = framed
        self.metadata: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<Connection {self.id} from {self.client}>"


class Exchange:
    """A request with its answers.

    Attributes:
        id: unique within one run of the relay.
        connection: that it belongs to.
        timing: when what happened.
        request: what the client asks.
        production_response: production's answer, on a framed link, once it is complete; else None.
        shadow_response: the upstream's answer, once its head has come; else None.
        metadata: for scripts, gopher does not look at it. A function that fails leaves it as it was.
        dropped: whether the request is not sent.
    """

    def __init__(self, number: int, connection: Connection, timing: Timing, request: Request) -> None:
        self.id = number
        self.connection = connection
        self.timing = timing
        self.request = request
        self.production_response: Response | None = None
        self.shadow_response: Response | None = None
        self.metadata: dict[Any, Any] = {}
        self.dropped = False
        self._locked = "its function has returned"

    def __repr__(self) -> str:
        return f"<Exchange {self.id} of {self.connection!r}>"

    @property
    def client(self) -> tuple[str, int] | None:
        """The client's address and port, as far as they are known."""
        return self.connection.client

    def drop(self) -> None:
        """Do not send the request. Only in the function `request`. A client gets `204 No Content`.

        Raises:
            LocalProtocolError: it is too late.
        """
        if self._locked:
            raise LocalProtocolError(f"the exchange cannot be dropped: {self._locked}")
        self.dropped = True

    def draft(self, stage: str, waiter: Waiter) -> Exchange:
        """What the function of this name gets.

        Args:
            stage: "request", "production_response" or "shadow_response".
            waiter: waits for the body of that message.
        """
        draft = Exchange.__new__(Exchange)
        draft.__dict__.update(self.__dict__)
        draft.metadata = dict(self.metadata)
        draft._locked = "" if stage == "request" else "its request has been sent"
        asked = stage == "request"
        draft.request = self.request.draft(waiter if asked else None, locked="" if asked else "it has been sent")
        if self.production_response is not None:
            draft.production_response = self.production_response.draft(
                None, locked="it is production's, and nobody waits for it"
            )
        if self.shadow_response is not None:
            answered = stage == "shadow_response"
            draft.shadow_response = self.shadow_response.draft(
                waiter if answered else None, locked="" if answered else "it has been passed on"
            )
        return draft

    def check(self) -> None:
        """Raises: LocalProtocolError, a changed message is what the relay itself would refuse."""
        if self.dropped:
            return
        self.request.check()
        if self.shadow_response is not None:
            self.shadow_response.check()

    def close(self) -> None:
        """The function has returned, or its time is over: no more changes."""
        self._locked = reason = "its function has returned, or its time is over"
        for message in (self.request, self.production_response, self.shadow_response):
            if message is not None:
                message.close(reason)
