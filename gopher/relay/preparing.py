"""What is done to a request before it is sent: coupling, headers, scripts.

Its body is collected if a rule needs it; it may have to wait for a session; scripts may have it. In the end it is sent,
or dropped, by `gopher.relay.turns`, and nothing of its connection passes it meanwhile.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gopher.http.messages import with_body
from gopher.relay import lastword
from gopher.relay.coupling import Drop, Rewritten, Unchanged, Wait
from gopher.relay.exchange import Body
from gopher.relay.forwarded import append_forwarded
from gopher.relay.pending import Phase, keeps_alive
from gopher.relay.places import MAX_BODY_BYTES
from gopher.relay.scripted import DROPPED, DROPPED_AT_END

if TYPE_CHECKING:
    from gopher.http.messages import BodyReceived, RequestHead
    from gopher.relay.framed import Framed
    from gopher.relay.pending import Pending
    from gopher.relay.turns import Turns

__all__ = ["Preparation"]


class Preparation:
    """Of the requests of one downstream connection, one at a time.

    Args:
        relay: what it belongs to.
        turns: says whose turn it is, and sends or drops it.
    """

    def __init__(self, relay: Framed, turns: Turns) -> None:
        self._relay = relay
        self._turns = turns
        self._pump = relay.pump
        self._config = relay.config
        self._coupling = turns.coupling
        self._coupler = turns.coupling.coupler if turns.coupling is not None else None

    def begin(self, pending: Pending) -> None:
        """The turn of a request has come."""
        coupler = self._coupler
        if coupler is not None and pending.has_body and coupler.needs_request_body(pending.head):
            pending.phase = Phase.COLLECTING
            pending.pieces, pending.contents = [], []
            self._turns.invite_body(pending)
        else:
            self._couple(pending, None)

    def add_body(self, pending: Pending, event: BodyReceived) -> None:
        """The next bytes of its body."""
        if pending.phase == Phase.READING:
            assert pending.pieces is not None
            assert pending.slot is not None
            pending.pieces.append(event.wire)
            body = pending.slot.exchange.request.source
            body.add(event.content)
            if body.settled:
                pending.phase = Phase.SCRIPTED
        elif pending.phase == Phase.COLLECTING:
            assert pending.pieces is not None
            assert pending.contents is not None
            pending.pieces.append(event.wire)
            pending.contents.append(event.content)
            pending.size += len(event.wire)
            if pending.size > MAX_BODY_BYTES:
                pending.contents = None
                self._couple(pending, None)

    def end_body(self, pending: Pending) -> None:
        """That was all of it."""
        if pending.phase == Phase.COLLECTING:
            assert pending.contents is not None
            self._couple(pending, b"".join(pending.contents))
        elif pending.phase == Phase.READING:
            pending.phase = Phase.SCRIPTED
            assert pending.slot is not None
            pending.slot.exchange.request.source.end()

    # -- coupling --------------------------------------------------------------------------------------------------

    def _couple(self, pending: Pending, content: bytes | None) -> None:
        coupler, turns = self._coupler, self._turns
        if coupler is None:
            self._dispatch(pending, None)
            return
        result = coupler.request(pending.id, turns.client, turns.connection_id, pending.head, content, self._pump.now_s)
        if isinstance(result, Wait):
            assert self._coupling is not None
            pending.phase = Phase.WAITING
            self._coupling.wait(result, self)
        else:
            self._dispatch(pending, result)

    def proceed(self, ticket: int) -> None:
        """The request that waited under this ticket need wait no longer."""
        pending, coupler = self._turns.turn, self._coupler
        if pending is None or pending.phase != Phase.WAITING or coupler is None:
            return
        self._dispatch(pending, coupler.proceed(ticket, self._pump.now_s))
        self._turns.go_on()

    def cancel(self, pending: Pending) -> None:
        """A request is given up."""
        if pending.phase == Phase.WAITING and self._coupling is not None:
            self._coupling.cancel(self)

    def _dispatch(self, pending: Pending, result: Rewritten | Unchanged | Drop | None) -> None:
        turns = self._turns
        if isinstance(result, Drop):
            reason = "the request names a session that this server does not know"
            message = lastword.answer_bytes(503, reason, to_head=pending.head.method == b"HEAD")
            turns.drop(pending, 503, message, keep=False)
            return
        head, content = pending.head, None
        if isinstance(result, Rewritten):
            head, content = result.head, result.content
        self._edit(head)
        scripted = turns.scripted
        if scripted is None:
            turns.send(pending, head.to_bytes() if content is None else with_body(head, content), content is not None)
            return
        pending.phase = Phase.SCRIPTED
        body = self._body_of(pending)
        if not scripted.begin(pending, head, body, content=content, then=partial(self._scripts_done, pending)):
            self._scripts_done(pending)

    def _edit(self, head: RequestHead) -> None:
        config, client = self._config, self._turns.client
        if config.host:
            head.headers.set(b"Host", config.host.encode())
        if config.forwarded is not None:
            append_forwarded(head.headers, config.forwarded, client)
        if config.marker:
            name, _, value = config.marker.partition(": ")
            head.headers.set(name.encode(), value.encode())

    # -- scripts ---------------------------------------------------------------------------------------------------

    def _body_of(self, pending: Pending) -> Body:
        """The body of a request as scripts may read it."""
        if not pending.has_body:
            return Body(None)
        if pending.contents is not None and pending.whole:
            return Body(None, b"".join(pending.contents))
        body = Body(partial(self._relay.turn, partial(self._read_body, pending)))
        if pending.pieces is not None:
            body.refuse()
        return body

    def _read_body(self, pending: Pending) -> None:
        """A script wants the body of the request."""
        turns = self._turns
        assert pending.slot is not None
        if turns.turn is not pending or pending.phase != Phase.SCRIPTED:
            pending.slot.exchange.request.source.cut()
            return
        pending.phase = Phase.READING
        pending.pieces = []
        turns.invite_body(pending)
        turns.go_on()

    def _scripts_done(self, pending: Pending) -> None:
        """The functions for a request have returned."""
        turns, slot = self._turns, pending.slot
        if turns.turn is not pending or pending.phase not in (Phase.SCRIPTED, Phase.READING):
            # Given up meanwhile.
            return
        assert turns.scripted is not None
        assert slot is not None
        exchange = slot.exchange
        turns.scripted.sent(pending)
        if exchange.dropped:
            # Who waits for leave to send the body, and gets another answer, may send it or not.
            keep = keeps_alive(pending.head) and (pending.whole or b"expect" not in pending.head.headers)
            turns.drop(pending, 204, DROPPED if keep else DROPPED_AT_END, keep=keep)
        else:
            request = exchange.request
            if "expect" not in request.headers and not pending.whole and pending.pieces is None:
                # The upstream will not do it.
                turns.invite_body(pending)
            turns.send(pending, request.to_bytes(), request.content is not None)
        turns.go_on()
