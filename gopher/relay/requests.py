"""A client's requests as they are read: which wait for their turn, and why no more are read. Sans-I/O."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final

from gopher.errors import RemoteProtocolError
from gopher.http.messages import (
    BodyReceived,
    HeadReceived,
    MessageEnded,
    MessageLimits,
    MessageParser,
    RequestHead,
    Switched,
)
from gopher.relay.pending import Pending

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from gopher.http.messages import MessageEvent

    RequestEvent: TypeAlias = Pending | BodyReceived | MessageEnded | Switched

__all__ = ["RequestQueue"]

LIMITS: Final = MessageLimits()
HEAD_BYTES: Final = 1024
"""What a waiting head counts for."""


class RequestQueue:
    """What has been read of a connection's requests and has not had its turn.

    Bytes that are refused, and all bytes after them, never come out.

    Args:
        next_id: numbers exchanges.
        begins: told of each request when its head has been read; None if nobody need be told.
    """

    def __init__(self, next_id: Callable[[], int], begins: Callable[[Pending], None] | None) -> None:
        self._next_id = next_id
        self._begins = begins
        self._parser = MessageParser("request", limits=LIMITS)
        self.events: deque[RequestEvent] = deque()
        """To be looked at; taken by `pop`."""
        self.waiting_bytes = 0
        """Of what is in `events`."""
        self.switched = False
        """Whether the client's bytes are no messages any more, from the last event on."""
        self.refused: RemoteProtocolError | None = None
        """What ends the client's messages; those before it are served first."""
        self.over = False
        """Whether the client has sent its last byte."""
        self.paused = False
        """Whether what follows is not known to be HTTP: the last request asks to switch protocols."""

    def feed(self, data: bytes) -> None:
        """The client's next bytes."""
        if self.over or self.refused is not None:
            return
        if self.switched:
            self._queue([Switched(data)])
            return
        try:
            self._queue(self._parser.feed(data))
        except RemoteProtocolError as refused:
            self.refused = refused
        else:
            self.refused = self._parser.fault
        self.paused = self._parser.paused

    def _queue(self, events: list[MessageEvent]) -> None:
        for event in events:
            if type(event) is HeadReceived:
                assert isinstance(event.head, RequestHead)
                pending = Pending(self._next_id(), event.head, has_body=event.body != "none")
                self.events.append(pending)
                self.waiting_bytes += HEAD_BYTES
                if self._begins is not None:
                    self._begins(pending)
            else:
                self.events.append(event)
                if type(event) is Switched:
                    self.switched = True
                    self.waiting_bytes += len(event.rest)
                elif type(event) is BodyReceived:
                    self.waiting_bytes += len(event.wire)

    def pop(self) -> RequestEvent:
        """The next event."""
        event = self.events.popleft()
        if type(event) is Pending:
            self.waiting_bytes -= HEAD_BYTES
        elif type(event) is BodyReceived:
            self.waiting_bytes -= len(event.wire)
        elif type(event) is Switched:
            self.waiting_bytes -= len(event.rest)
        return event

    def resume(self) -> None:
        """The last request asked to switch protocols, and that does not happen: `paused` ends."""
        with contextlib.suppress(RemoteProtocolError):  # what is refused stays in `fault`
            self._queue(self._parser.resume(False))
        self.refused = self._parser.fault
        self.paused = self._parser.paused

    def switch(self) -> bytes:
        """The last request asked to switch protocols, and that happens. Returns: what has come after it."""
        self.switched = True
        rest = b""
        if self.paused:
            self.paused = False
            for event in self._parser.resume(True):
                assert isinstance(event, Switched)
                rest = event.rest
        return rest

    def end(self) -> bool:
        """The client sends no more, or bytes of it are missing. Returns: whether this is within a message."""
        if self.over or self.switched or self.refused is not None:
            return False
        try:
            self._parser.end()
        except RemoteProtocolError:
            return True
        return False

    def restart(self) -> None:
        """After a gap: the next byte begins a request."""
        self._parser = MessageParser("request", limits=LIMITS)
        self.paused = False

    def take_back(self) -> tuple[bool, Pending | None]:
        """The last request has turned out to be cut.

        Returns:
            Whether it is known what to do about it, namely nothing: it has not had its turn, or there is no more of it
            than a part of its head. And the request, if its whole head had come; it is in the queue no more.
        """
        events = self.events
        while events:
            last = events.pop()
            if isinstance(last, MessageEnded):
                # The requests before it are whole.
                events.append(last)
                return True, None
            if isinstance(last, BodyReceived):
                self.waiting_bytes -= len(last.wire)
            elif isinstance(last, Pending):
                self.waiting_bytes -= HEAD_BYTES
                return True, last
        return False, None

    def close(self) -> list[Pending]:
        """Nothing more is wanted. Returns: the requests that have not had their turn."""
        self.over = True
        pending = [event for event in self.events if isinstance(event, Pending)]
        self.events.clear()
        self.waiting_bytes = 0
        return pending
