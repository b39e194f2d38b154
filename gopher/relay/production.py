"""Production's answers on a framed link: which request each belongs to, and what it hands out. Sans-I/O.

Answer k belongs to request k. Where that cannot be known any more (bytes are missing, or are not clear HTTP), no answer
is paired, and the coupler is told that none will come.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from gopher.errors import RemoteProtocolError
from gopher.http.messages import BodyReceived, HeadReceived, MessageEnded, MessageLimits, MessageParser, ResponseHead
from gopher.relay.places import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gopher.http.messages import MessageEvent
    from gopher.relay.coupling import Coupler
    from gopher.relay.pending import Pending

__all__ = ["ProductionAnswers"]

LIMITS: Final = MessageLimits()
FILL_BYTES: Final = 65_536


class ProductionAnswers:
    """Of one captured connection. Methods return the coupler's tickets that may go on now.

    Args:
        coupler: learns from the answers; None if nothing is coupled.
        client: address of the client.
        connection_id: of the captured connection.
        aligned: whether the first byte of production on the link begins the answer to the first request on it.
        show: called with each request whose answer is complete, and the body; None for one that is too long.
    """

    def __init__(
        self,
        coupler: Coupler | None,
        client: str,
        connection_id: object,
        *,
        aligned: bool,
        show: Callable[[Pending, bytes | None], None] | None = None,
    ) -> None:
        self._coupler = coupler
        self._show = show
        self._client = client
        self._connection_id = connection_id
        self._aligned = aligned
        self._parser = MessageParser("response", limits=LIMITS)
        self._unanswered: deque[Pending] = deque()
        self.lost = False
        """Whether answers cannot be told apart any more."""

    def expect(self, pending: Pending) -> None:
        """A request has been read from the link."""
        if not self.lost:
            self._parser.expect(pending.head.method, upgrade=pending.head.upgrade)
            self._unanswered.append(pending)

    def forget(self, pending: Pending) -> None:
        """A request has turned out to be cut."""
        if pending in self._unanswered:
            self._unanswered.remove(pending)

    def feed(self, data: bytes, now_s: float) -> list[int]:
        """The next bytes of production."""
        if self.lost:
            return []
        if not self._aligned:
            # An answer to a request that is not on the link may come first, or its end.
            if not data.startswith(b"HTTP/1."):
                return []
            self._aligned = True
        try:
            return self._read(self._parser.feed(data), now_s)
        except RemoteProtocolError:
            return self.lose(now_s)

    def gap(self, length: int, now_s: float) -> list[int]:
        """So many bytes of production are missing. In a body of known length, that no rule reads, this is no loss."""
        if self.lost or not self._aligned:
            return []
        pending = self._unanswered[0] if self._unanswered else None
        if pending is None or pending.produced_contents is not None or pending.produced_left < length:
            return self.lose(now_s)
        released = []
        for begin in range(0, length, FILL_BYTES):
            released += self.feed(bytes(min(FILL_BYTES, length - begin)), now_s)
        return released

    def end(self, now_s: float) -> list[int]:
        """Production has ended the connection."""
        if self.lost or not self._aligned:
            return self.lose(now_s)
        try:
            return self._read(self._parser.end(), now_s) + self.lose(now_s)
        except RemoteProtocolError:
            return self.lose(now_s)

    def restart(self, now_s: float) -> list[int]:
        """The client's direction had a gap: the next request is the first again."""
        released = self.lose(now_s)
        self._parser = MessageParser("response", limits=LIMITS)
        self._aligned = self.lost = False
        return released

    def lose(self, now_s: float) -> list[int]:
        """No more answers are to be paired."""
        self.lost = True
        released: list[int] = []
        while self._unanswered:
            pending = self._unanswered.popleft()
            if self._coupler is None or pending.abandoned:
                continue
            if pending.produced is None:
                released += self._coupler.abandoned(pending.id)
            elif self._learns_from_body(pending.produced):
                # What its head said stays.
                released += self._tell(pending, pending.produced, None, now_s)
        return released

    def _read(self, events: Iterable[MessageEvent], now_s: float) -> list[int]:
        released: list[int] = []
        for event in events:
            if isinstance(event, HeadReceived):
                head = event.head
                assert isinstance(head, ResponseHead)
                if head.status >= 200:
                    pending = self._unanswered[0]
                    pending.produced = head
                    pending.produced_left = event.length or 0
                    learns_from_body = self._learns_from_body(head)
                    if self._show is not None or learns_from_body:
                        pending.produced_contents = []
                    if self._coupler is not None and not pending.abandoned:
                        # Now, and not when the body is in: the client has the cookie already.
                        if learns_from_body:
                            released += self._coupler.production_head(
                                pending.id, self._client, self._connection_id, head, now_s
                            )
                        else:
                            released += self._tell(pending, head, None, now_s)
            elif isinstance(event, BodyReceived):
                pending = self._unanswered[0]
                pending.produced_left -= len(event.content)
                if pending.produced_contents is not None:
                    pending.produced_contents.append(event.content)
                    pending.produced_bytes += len(event.content)
                    if pending.produced_bytes > MAX_BODY_BYTES:
                        pending.produced_contents = None
            elif isinstance(event, MessageEnded):
                if self._unanswered and self._unanswered[0].produced is not None:
                    released += self._complete(self._unanswered.popleft(), now_s)
            else:
                # Another protocol.
                return released + self.lose(now_s)
        return released

    def _complete(self, pending: Pending, now_s: float) -> list[int]:
        assert pending.produced is not None
        contents, pending.produced_contents = pending.produced_contents, None
        content = None if contents is None else b"".join(contents)
        if self._show is not None:
            self._show(pending, content)
        if self._coupler is None or pending.abandoned or not self._learns_from_body(pending.produced):
            return []
        return self._tell(pending, pending.produced, content, now_s)

    def _tell(self, pending: Pending, head: ResponseHead, content: bytes | None, now_s: float) -> list[int]:
        assert self._coupler is not None
        return self._coupler.production_response(pending.id, self._client, self._connection_id, head, content, now_s)

    def _learns_from_body(self, head: ResponseHead) -> bool:
        return self._coupler is not None and self._coupler.needs_response_body(head)
