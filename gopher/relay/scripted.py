"""Scripts at one connection of the framed relay: which function is called when, and what is held meanwhile.

`connected` when the client's first bytes have come; then for each exchange `request`, before it is sent;
`shadow_response`, when the head of the final answer has come and before any of it is passed on; `production_response`,
when production's answer is complete, but not before `request`; at the end `closed`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from gopher.http.messages import BodyReceived, MessageEnded
from gopher.relay.exchange import Body, Connection, Exchange, Request, Response, Timing
from gopher.relay.hooks import Lane, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gopher.http.messages import MessageEvent, RequestHead, ResponseHead
    from gopher.link import ProxyHeader
    from gopher.relay.hooks import Scripts
    from gopher.relay.pending import Pending

__all__ = ["DROPPED", "DROPPED_AT_END", "HeldAnswer", "ScriptedConnection"]

DROPPED: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
"""What a client gets for a request that a script has dropped."""
DROPPED_AT_END: Final = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
KEPT_BYTES: Final = 4 << 20
"""Of production's answers on one link that no function has seen yet."""


class HeldAnswer:
    """An answer of the upstream whose function has not returned. Bounded by what is read meanwhile: nothing, or as
    much of the body as a script may have.

    Args:
        on_wanted: called when a script wants the body.
    """

    def __init__(self, on_wanted: Callable[[], None]) -> None:
        self.events: list[MessageEvent] = []
        """What came after the head."""
        self.failure = ""
        """How the upstream's connection ended meanwhile."""
        self.body = Body(on_wanted)

    def add(self, events: Iterable[MessageEvent]) -> None:
        """The next events, of this answer and perhaps of those after it."""
        for event in events:
            self.events.append(event)
            if isinstance(event, BodyReceived):
                self.body.add(event.content)
            elif isinstance(event, MessageEnded):
                # What comes after it is not added.
                self.body.end()

    def lose(self, failure: str) -> None:
        """The upstream's connection is over. What has come is still passed on."""
        self.failure = self.failure or failure
        self.body.cut()


class ScriptedConnection:
    """The scripts' view of one downstream connection.

    Args:
        scripts: that are called.
        number: unique.
        header: who the client is.
        framed: whether production's answers come along.
    """

    def __init__(self, scripts: Scripts, number: int, header: ProxyHeader, *, framed: bool) -> None:
        link = header.link
        started_s = link.start_ns / 1e9 if link is not None and link.start_ns else time.time()
        self._scripts = scripts
        self._lane = Lane(scripts)
        self._kept = 0
        self.connection = Connection(number, header.client, header.server, started_s, framed=framed)
        if scripts.defines("connected"):
            self._lane.call("connected", self.connection)

    def begin(
        self, pending: Pending, head: RequestHead, body: Body, *, content: bytes | None, then: Callable[[], None]
    ) -> bool:
        """The turn of a request has come.

        Args:
            pending: the request.
            head: as it would be sent.
            body: as it would be sent, but for `content`.
            content: a body that a rule has put in its place.
            then: called when the functions have returned.

        Returns:
            Whether `then` will be called: not if there is no function for requests.
        """
        request = Request(head, body, content=content)
        pending.slot = Slot(Exchange(pending.id, self.connection, Timing(time.time()), request))
        if not self._scripts.defines("request"):
            self.sent(pending)
            return False
        self._lane.call("request", pending.slot, then)
        return True

    def sent(self, pending: Pending) -> None:
        """The request goes to the upstream now, or has been dropped."""
        assert pending.slot is not None
        exchange = pending.slot.exchange
        exchange.request.source.pass_by()
        if not exchange.dropped:
            exchange.timing.sent_s = time.time()
        if pending.produced_body is not None:
            self._produced(pending, pending.produced_body)

    def production_response(self, pending: Pending, content: bytes | None) -> None:
        """Production's answer is complete; `content` is None if its body is too long."""
        body = Body(None)
        if content is None:
            body.refuse()
        elif self._kept + len(content) > KEPT_BYTES:
            body.refuse("too many answers of production wait on this link to keep their bodies")
        else:
            body = Body(None, content)
            self._kept += body.size
        if pending.slot is None:
            pending.produced_body = body
        else:
            self._produced(pending, body)

    def _produced(self, pending: Pending, body: Body) -> None:
        slot, head = pending.slot, pending.produced
        assert slot is not None
        assert head is not None
        pending.produced_body = None
        answered_s = time.time()

        def before() -> None:
            slot.exchange.production_response = Response(head, body)
            slot.exchange.timing.production_response_s = answered_s

        def then() -> None:
            self._kept -= body.size
            body.pass_by()

        self._lane.call("production_response", slot, then, before=before)

    def holds(self, pending: Pending, head: ResponseHead) -> bool:
        """Whether functions look at this answer: not if it begins a tunnel."""
        return self._scripts.defines("shadow_response") and not pending.switched_by(head)

    def shadow_response(
        self, pending: Pending, head: ResponseHead, answer: HeldAnswer, then: Callable[[], None]
    ) -> None:
        """The final answer begins; `then` is called when the functions have returned."""
        slot = pending.slot
        assert slot is not None
        answered_s = time.time()
        bodiless = pending.head.method == b"HEAD" or head.status in (204, 304)

        def before() -> None:
            slot.exchange.shadow_response = Response(head, answer.body, bodiless=bodiless)
            slot.exchange.timing.shadow_response_s = answered_s

        def after() -> None:
            then()
            answer.body.pass_by()

        self._lane.call("shadow_response", slot, after, before=before)

    def cut(self, pending: Pending) -> None:
        """An exchange is given up: nobody need wait for its bodies."""
        if pending.slot is not None:
            pending.slot.exchange.request.source.cut()
        if pending.held is not None:
            pending.held.body.cut()

    def closed(self) -> None:
        """The connection is over."""
        if self._scripts.defines("closed"):
            self._lane.call("closed", self.connection)
