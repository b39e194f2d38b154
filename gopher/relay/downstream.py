"""One downstream connection of the framed relay: its messages, one at a time, to the upstream and back.

A state machine that two channels call back. One request is in flight on the upstream connection; what comes after it
waits, and the downstream is not read meanwhile. On a framed link it is read, up to a bound, because production's
answers come the same way, and requests on other connections may wait for what they say.

Bytes that no setting changes pass as they came.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from gopher._fastpath import CLIENT_TO_SERVER
from gopher.errors import RemoteProtocolError
from gopher.http.messages import (
    BodyReceived,
    HeadReceived,
    MessageEnded,
    MessageLimits,
    MessageParser,
    RequestHead,
    ResponseHead,
    Switched,
    with_body,
)
from gopher.link import RecordDecoder, RecordType, begins_with_header, decode_header
from gopher.relay import lastword
from gopher.relay.channel import READ_BYTES, Channel
from gopher.relay.coupling import Drop, Rewritten, Unchanged, Wait
from gopher.relay.exchange import Body
from gopher.relay.pending import Pending, Phase
from gopher.relay.places import MAX_BODY_BYTES
from gopher.relay.production import ProductionAnswers
from gopher.relay.scripted import DROPPED, DROPPED_AT_END, HeldAnswer, ScriptedConnection

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from gopher.http.messages import MessageEvent
    from gopher.link import ProxyHeader, Record
    from gopher.relay.framed import Coupling, Framed
    from gopher.upstreams.stream import MirroredStream

__all__ = ["Downstream"]

LIMITS: Final = MessageLimits()
QUEUE_BYTES: Final = 65_536
"""Past this, what feeds a channel is not read; a little more than one read may wait."""
LINK_QUEUE_BYTES: Final = 1 << 20
"""Of requests that wait on a framed link."""
HEAD_BYTES: Final = 1024
"""What a waiting head counts for."""

_HOLDING: Final = frozenset({Phase.WAITING, Phase.SENT, Phase.SCRIPTED})
"""While the current request is there, what follows it waits."""
_UNSENT: Final = frozenset({Phase.COLLECTING, Phase.WAITING, Phase.SCRIPTED, Phase.READING, Phase.SKIPPING})
"""No answer is due."""


class Downstream:
    """One downstream connection.

    Args:
        relay: what it belongs to.
        sock: connected, non-blocking.
        header: who the client is, as far as is known.
        may_link: whether the downstream may send a PROXY protocol header.
        upstream: of a framed link, whose PROXY header has been read: an upstream connection that is there.
    """

    def __init__(
        self,
        relay: Framed,
        sock: socket.socket,
        header: ProxyHeader,
        *,
        may_link: bool,
        upstream: socket.socket | None = None,
    ) -> None:
        self._relay = relay
        self._config = relay.config
        self._tally = relay.tally
        self._pump = relay.pump
        self.header = header
        self.last_active_s = time.monotonic()
        self._downstream = Channel(self._pump, sock, self._downstream_readable, self._downstream_drained)
        self._downstream_ended = False
        self._requests_over = False
        """Whether the client has sent its last byte."""
        self._may_link = may_link
        self._sniffed: bytes | None = b"" if upstream is None else None
        """What may be a PROXY header; None: no more."""
        self._records = RecordDecoder() if upstream is not None else None
        self._requests = MessageParser("request", limits=LIMITS)
        self._switched = False
        """Whether the client's bytes are no messages any more, from the last event on."""
        self._refused: RemoteProtocolError | None = None
        """What ends the client's messages; those before it are served first."""
        self._events: deque[MessageEvent | Pending] = deque()
        self._events_bytes = 0
        self._current: Pending | None = None
        self._out: list[bytes] = []
        """For the upstream, until the end of this turn."""

        self._upstream: Channel | None = None
        self._addresses_left = 0
        self._responses: MessageParser
        self._interim = False
        self._spoken = False
        """Whether anything of the current answer has gone to the client."""
        self._swallow_continue = False
        self._stale = False
        """The next request goes on a new upstream connection."""
        self._raw = False
        """A framed link whose bytes are HTTP/1 no more."""

        self._coupling: Coupling | None
        self._client: str
        self._connection_id: object
        self._production: ProductionAnswers | None = None
        self._scripted: ScriptedConnection | None = None
        """There from the client's first byte on, if there are scripts."""
        self._copies: MirroredStream | None = None
        self._failure = ""
        self._called = False
        """Whether it goes on at the end of this turn."""
        self._closing = False
        self._closed = False
        self._identify()
        if upstream is not None:
            self._upstream = Channel(relay.pump, upstream, self._upstream_readable, self._upstream_drained)
            self._begin_upstream()
            self._upstream.send(relay.announcement(header))

    def _identify(self) -> None:
        header = self.header
        self._client = header.client[0] if header.client else ""
        self._connection_id = header.unique_id or self._relay.next_id()
        self._coupling = self._relay.coupling_for(exact=self._records is not None)
        if self._records is not None:
            self._tally.framed += 1
            scripts = self._relay.scripts
            shown = self._show_production if scripts is not None and scripts.defines("production_response") else None
            if self._coupling is not None or shown is not None:
                self._production = ProductionAnswers(
                    self._coupling.coupler if self._coupling is not None else None,
                    self._client,
                    self._connection_id,
                    aligned=header.link is None or not header.link.joined,
                    show=shown,
                )

    # -- downstream ------------------------------------------------------------------------------------------------

    def _downstream_readable(self) -> None:
        try:
            data = self._downstream.recv()
        except OSError:
            self.fail("client_reset")
            return
        if data is None:
            return
        self.last_active_s = self._pump.now_s
        if not data:
            self._end_of_downstream()
            return
        if self._sniffed is not None:
            data = self._look_for_header(self._sniffed + data)
            if not data:
                return
        if self._records is None:
            self._tally.from_downstream += len(data)
            self._take(data)
            return
        try:
            while data:
                for record in self._records.feed(data):
                    self._take_record(record)
                # What is left would be read after other connections.
                data = b"" if self._closed or len(data) < READ_BYTES else self._downstream.recv() or b""
        except RemoteProtocolError:
            self.fail("bad_link")
        except OSError:
            self.fail("client_reset")

    def _look_for_header(self, data: bytes) -> bytes:
        """Returns what follows a header, or what is none; empty while that is not known."""
        begins = begins_with_header(data)
        if begins is False:
            self._sniffed = None
            return data
        try:
            decoded = decode_header(data)
        except RemoteProtocolError:
            self.fail("bad_link")
            return b""
        if decoded is None:
            self._sniffed = data
            return b""
        if not self._may_link:
            self.fail("bad_link")
            return b""
        self._sniffed = None
        self._tally.links += 1
        header, length = decoded
        if header.client is not None:
            self.header = header
        if header.link is not None and header.link.framed:
            self._records = RecordDecoder()
        self._identify()
        return data[length:]

    def _end_of_downstream(self) -> None:
        if self._sniffed:
            data, self._sniffed = self._sniffed, None
            self._take(data)
        if self._closed:
            return
        if self._downstream_ended or self._closing:
            # The client has taken the last word.
            self._close(hard=False)
            return
        self._downstream_ended = True
        self._downstream.read(False)
        self._end_of_requests()

    def _end_of_requests(self) -> None:
        """The client sends no more; what it has sent is still answered."""
        if not (self._requests_over or self._switched or self._refused is not None):
            try:
                self._requests.end()
            except RemoteProtocolError:
                self._cut_request("client_reset" if self._records is None else "gap")
        self._requests_over = True
        self._go_on_later()

    def _take(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._scripted is None and self._relay.scripts is not None:
            self._scripted = ScriptedConnection(
                self._relay.scripts, self._relay.next_id(), self.header, framed=self._records is not None
            )
        if self._copies is None:
            self._copies = self._relay.copies_of(self)
        if self._copies is not None:
            for copy, over in self._copies.write(data) or ():
                copy.give_up(over)
        if self._raw:
            if self._upstream is not None:
                self._upstream.send(data)
            return
        if self._refused is not None:
            return
        if self._switched:
            self._queue([Switched(data)])
            self._go_on_later()
            return
        try:
            events = self._requests.feed(data)
        except RemoteProtocolError as refused:
            self._refused = refused
            events = []
        else:
            self._refused = self._requests.fault
        self._queue(events)
        if self._records is None:
            self._go_on()
        else:
            self._go_on_later()

    def _queue(self, events: list[MessageEvent]) -> None:
        for event in events:
            if type(event) is HeadReceived:
                assert isinstance(event.head, RequestHead)
                pending = Pending(self._relay.next_id(), event.head, has_body=event.body != "none")
                self._events.append(pending)
                self._events_bytes += HEAD_BYTES
                if self._production is not None:
                    self._production.expect(pending)
            else:
                self._events.append(event)
                if type(event) is Switched:
                    self._switched = True
                    self._events_bytes += len(event.rest)
                elif type(event) is BodyReceived:
                    self._events_bytes += len(event.wire)

    # -- requests --------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Do with what has been read what can be done now."""
        events = self._events
        while events and not self._closed:
            current = self._current
            if current is not None and current.phase in _HOLDING:
                break
            if self._upstream is not None and self._upstream.queued > QUEUE_BYTES:
                break
            event = events.popleft()
            if type(event) is Pending:
                self._events_bytes -= HEAD_BYTES
                self._begin(event)
            elif type(event) is BodyReceived:
                self._events_bytes -= len(event.wire)
                self._pass_body(event)
            elif type(event) is MessageEnded:
                self._end_request()
            else:
                assert isinstance(event, Switched)
                # An HTTP/2 preface: nothing that follows is for us.
                self._events_bytes -= len(event.rest)
                self._become_tunnel(event.rest, b"")
        self._flush()
        if self._closed:
            return
        if self._refused is not None and not (events or self._closing or self._raw or self._is_due(self._current)):
            self._refuse(self._refused)
            return
        if not events and self._current is None and not self._closing:
            if self._downstream_ended:
                self._close(hard=False)
                return
            if self._requests_over and not self._raw:
                self._drop_upstream(hard=False)
        sent_all = not events and self._current is not None and self._current.phase is Phase.SENT
        if self._requests_over and sent_all and self._records is None and self._upstream is not None:
            # The upstream learns that the client has ended, as it would without the relay.
            self._upstream.finish()
        if not self._downstream_ended:
            if self._records is None:
                wanted = not events and not self._requests.paused
                if wanted and self._upstream is not None and self._upstream.queued > QUEUE_BYTES:
                    wanted = False
            else:
                wanted = self._events_bytes <= LINK_QUEUE_BYTES
            self._downstream.read(wanted or self._closing)

    @staticmethod
    def _is_due(pending: Pending | None) -> bool:
        """Whether a request is complete, and its answer is to come."""
        return pending is not None and pending.phase in _HOLDING

    def _begin(self, pending: Pending) -> None:
        self._current = pending
        self._spoken = False
        self._tally.requests += 1
        if self._stale:
            self._stale = False
            self._drop_upstream(hard=False)
        coupling = self._coupling
        if coupling is not None and pending.has_body and coupling.coupler.needs_request_body(pending.head):
            pending.phase = Phase.COLLECTING
            pending.pieces, pending.contents = [], []
            self._invite_body(pending)
        else:
            self._couple(pending, None)

    def _invite_body(self, pending: Pending) -> None:
        if self._records is None and b"expect" in pending.head.headers:
            # The client sends the body when it is told to, and the upstream cannot tell it before it gets the head.
            self._downstream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._swallow_continue = True

    def _pass_body(self, event: BodyReceived) -> None:
        current = self._current
        assert current is not None
        if current.phase is Phase.SENDING:
            if not current.replaced:
                self._out.append(event.wire)
        elif current.phase is Phase.READING:
            assert current.pieces is not None
            assert current.slot is not None
            current.pieces.append(event.wire)
            body = current.slot.exchange.request.source
            body.add(event.content)
            if body.settled:
                current.phase = Phase.SCRIPTED
        elif current.phase is Phase.COLLECTING:
            assert current.pieces is not None
            assert current.contents is not None
            current.pieces.append(event.wire)
            current.contents.append(event.content)
            current.size += len(event.wire)
            if current.size > MAX_BODY_BYTES:
                current.contents = None
                self._couple(current, None)

    def _end_request(self) -> None:
        current = self._current
        assert current is not None
        current.whole = True
        if current.phase is Phase.COLLECTING:
            assert current.contents is not None
            self._couple(current, b"".join(current.contents))
        elif current.phase is Phase.READING:
            current.phase = Phase.SCRIPTED
            assert current.slot is not None
            current.slot.exchange.request.source.end()
        elif current.phase is Phase.SENDING:
            current.phase = Phase.SENT
            if current.answered:
                self._end_exchange(current)
        elif current.phase is Phase.SKIPPING:
            self._current = None

    def _couple(self, pending: Pending, content: bytes | None) -> None:
        coupling = self._coupling
        if coupling is None:
            self._dispatch(pending, None)
            return
        result = coupling.coupler.request(
            pending.id, self._client, self._connection_id, pending.head, content, self._pump.now_s
        )
        if isinstance(result, Wait):
            pending.phase = Phase.WAITING
            coupling.wait(result, self)
        else:
            self._dispatch(pending, result)

    def proceed(self, ticket: int) -> None:
        """The request that waited under this ticket need wait no longer."""
        pending, coupling = self._current, self._coupling
        if pending is None or pending.phase is not Phase.WAITING or coupling is None:
            return
        self._dispatch(pending, coupling.coupler.proceed(ticket, self._pump.now_s))
        self._go_on()

    def _dispatch(self, pending: Pending, result: Rewritten | Unchanged | Drop | None) -> None:
        if isinstance(result, Drop):
            self._tally.dropped += 1
            self._abandon(pending)
            if self._records is None:
                self._answer(503, "the request names a session that this server does not know")
            self._skip(pending)
            return
        head, content = pending.head, None
        if isinstance(result, Rewritten):
            head, content = result.head, result.content
        self._edit(head)
        if self._scripted is None:
            self._send(pending, head.to_bytes() if content is None else with_body(head, content), content is not None)
            return
        pending.phase = Phase.SCRIPTED
        body = self._body_of(pending)
        if not self._scripted.begin(pending, head, body, content=content, then=partial(self._scripts_done, pending)):
            self._scripts_done(pending)

    def _send(self, pending: Pending, data: bytes, replaced: bool) -> None:
        """Send a request: its head, or all of it if its body has been replaced."""
        pieces, pending.pieces, pending.contents = pending.pieces, None, None
        pending.replaced = replaced
        pending.phase = Phase.SENT if pending.whole else Phase.SENDING
        if not self._open_upstream():
            return
        self._responses.expect(pending.head.method, upgrade=pending.head.upgrade)
        self._out.append(data)
        if pieces is not None and not replaced:
            self._out += pieces

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
        assert pending.slot is not None
        if self._current is not pending or pending.phase is not Phase.SCRIPTED:
            pending.slot.exchange.request.source.cut()
            return
        pending.phase = Phase.READING
        pending.pieces = []
        if not self._events:
            self._invite_body(pending)
        self._go_on()

    def _scripts_done(self, pending: Pending) -> None:
        """The functions for a request have returned."""
        scripted, slot = self._scripted, pending.slot
        if self._current is not pending or pending.phase not in (Phase.SCRIPTED, Phase.READING):
            # Given up meanwhile.
            return
        assert scripted is not None
        assert slot is not None
        exchange = slot.exchange
        scripted.sent(pending)
        if exchange.dropped:
            self._drop(pending)
        else:
            request = exchange.request
            if "expect" not in request.headers and not pending.whole and pending.pieces is None:
                # The upstream will not do it.
                self._invite_body(pending)
            self._send(pending, request.to_bytes(), request.content is not None)
        self._go_on()

    def _drop(self, pending: Pending) -> None:
        """A script wants the request not to be sent."""
        self._tally.dropped += 1
        self._abandon(pending)
        self._resume_requests()
        if self._records is None:
            self._tally.answer(204)
            keep = _keeps_alive(pending.head) and (pending.whole or b"expect" not in pending.head.headers)
            self._downstream.send(DROPPED if keep else DROPPED_AT_END)
            if not keep:
                self._current = None
                self._finish_downstream()
                return
        self._skip(pending)

    def _show_production(self, pending: Pending, content: bytes | None) -> None:
        if self._scripted is not None:
            self._scripted.production_response(pending, content)

    def _holds_answer(self, current: Pending, head: ResponseHead) -> bool:
        """Whether scripts look at this answer: not if it begins a tunnel."""
        if self._scripted is None or not self._scripted.holds_answers or head.status == 101:
            return False
        return current.head.method != b"CONNECT" or head.status >= 300

    def _hold_answer(self, current: Pending, head: ResponseHead, events: list[MessageEvent]) -> None:
        """Scripts look at an answer before any of it is passed on."""
        assert self._scripted is not None
        assert self._upstream is not None
        held = current.held = HeldAnswer(partial(self._relay.turn, partial(self._read_answer, current)))
        self._upstream.read(False)
        held.add(events)
        self._scripted.shadow_response(current, head, held, partial(self._answer_scripted, current))

    def _read_answer(self, current: Pending) -> None:
        """A script wants the body of the answer."""
        if current.held is not None and self._upstream is not None and self._current is current:
            self._upstream.read(True)
        elif current.held is not None:
            current.held.body.cut()

    def _add_to_held(self, held: HeldAnswer, events: Iterable[MessageEvent]) -> None:
        held.add(events)
        if held.body.settled and self._upstream is not None:
            self._upstream.read(False)

    def _answer_scripted(self, current: Pending) -> None:
        """The functions for an answer have returned."""
        held, current.held = current.held, None
        if held is None or self._current is not current or self._closed:
            return
        assert current.slot is not None
        response = current.slot.exchange.shadow_response
        assert response is not None
        current.answer_replaced = response.content is not None
        if self._records is None:
            self._spoken = True
            self._downstream.send(response.to_bytes())
        upstream = self._upstream
        if upstream is not None:
            upstream.read(self._downstream.queued <= QUEUE_BYTES)
        self._take_answers(held.events)
        if held.failure and not self._closed and self._upstream is upstream:
            self._upstream_lost(held.failure)

    def _edit(self, head: RequestHead) -> None:
        config = self._config
        if config.host:
            head.headers.set(b"Host", config.host.encode())
        if config.forwarded and self._client:
            before = b", ".join(head.headers.get_all(b"X-Forwarded-For"))
            client = self._client.encode()
            head.headers.set(b"X-Forwarded-For", before + b", " + client if before else client)
        if config.marker:
            name, _, value = config.marker.partition(": ")
            head.headers.set(name.encode(), value.encode())

    def _skip(self, pending: Pending) -> None:
        if pending.whole:
            self._current = None
        else:
            pending.phase = Phase.SKIPPING

    def _cut_request(self, failure: str) -> None:
        """The client's messages end, or have a gap, within a request: it is taken back, or its connection reset."""
        events = self._events
        while events:
            last = events.pop()
            if isinstance(last, MessageEnded):
                events.append(last)
                # Within a head: the requests before it are whole.
                return
            if isinstance(last, BodyReceived):
                self._events_bytes -= len(last.wire)
            if isinstance(last, Pending):
                self._events_bytes -= HEAD_BYTES
                if self._production is not None:
                    self._production.forget(last)
                return
        current = self._current
        if current is None or current.whole:
            return
        if self._records is None:
            self.fail(failure)
            return
        self._note(failure)
        self._cancel_wait(current)
        self._abandon(current)
        self._drop_upstream(hard=True)
        self._current = None

    # -- upstream --------------------------------------------------------------------------------------------------

    def _open_upstream(self) -> bool:
        """Whether there is an upstream connection now, perhaps one that is still being made."""
        if self._upstream is None:
            self._begin_upstream()
            self._addresses_left = len(self._relay.addresses)
            self._dial(self._relay.announcement(self.header))
        return self._upstream is not None

    def _begin_upstream(self) -> None:
        self._responses = MessageParser("response", limits=LIMITS)
        self._interim = False

    def _dial(self, waiting: bytes) -> None:
        """Dial addresses in turn until one does not fail at once. `waiting`: what to send first."""
        relay = self._relay
        failure = errno.EHOSTUNREACH
        while self._addresses_left:
            self._addresses_left -= 1
            try:
                upstream = Channel.dial(relay.pump, relay.addresses[0], self._upstream_readable, self._upstream_drained)
            except OSError as error:
                failure = error.errno or failure
                relay.prefer_another()
                continue
            self._upstream = upstream
            relay.dialled(self, upstream)
            upstream.send(waiting)
            return
        self._lose(lastword.failure_of(failure))

    def connect_timed_out(self, channel: Channel) -> None:
        """The upstream did not accept in time."""
        if channel is self._upstream and channel.connecting:
            self._connect_failed("connect_timeout")

    def _connect_failed(self, failure: str) -> None:
        assert self._upstream is not None
        sock, waiting = self._upstream.detach()
        self._relay.pump.close(sock, hard=True)
        self._upstream = None
        if self._addresses_left:
            self._relay.prefer_another()
            self._dial(waiting)
        else:
            self._lose(failure)

    def _flush(self) -> None:
        if self._out:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            if self._upstream is not None:
                self._upstream.send(data)

    def _upstream_readable(self) -> None:
        upstream = self._upstream
        assert upstream is not None
        if upstream.connecting:
            self._connect_failed(lastword.failure_of(upstream.error))
            return
        try:
            data = upstream.recv()
        except OSError:
            self._upstream_over("upstream_reset")
            return
        if data is None:
            return
        self.last_active_s = self._pump.now_s
        self._tally.from_upstream += len(data)
        if self._raw:
            if not data:
                self._drop_upstream(hard=False)
            return
        if not data:
            self._upstream_over("upstream_closed")
            return
        try:
            events = self._responses.feed(data)
        except RemoteProtocolError:
            self._upstream_broken("bad_response")
            return
        self._take_answers(events)

    def _upstream_broken(self, failure: str) -> None:
        self._drop_upstream(hard=True)
        if self._current is not None and self._current.held is not None:
            self._current.held.lose(failure)
        else:
            self._lose(failure)

    def _upstream_over(self, failure: str) -> None:
        """The upstream has ended its connection."""
        upstream, current = self._upstream, self._current
        if failure == "upstream_closed":
            with contextlib.suppress(RemoteProtocolError):
                self._take_answers(self._responses.end())
        if self._upstream is not upstream or self._closed:
            return
        self._drop_upstream(hard=failure == "upstream_reset")
        if current is not None and current.held is not None:
            current.held.lose(failure)
        else:
            self._upstream_lost(failure)

    def _upstream_lost(self, failure: str) -> None:
        """The upstream's connection is gone, and what it has sent is passed on."""
        current = self._current
        if current is None or current.phase in _UNSENT:
            # Between requests. A client is told at its next turn; a link goes on on a new connection.
            if self._records is None and current is None and not self._events:
                self._finish_downstream()
            return
        self._lose(failure)

    def _take_answers(self, events: list[MessageEvent]) -> None:
        current = self._current
        if current is not None and current.held is not None:
            self._add_to_held(current.held, events)
            return
        out: list[bytes] = []
        ended = False
        switched: bytes | None = None
        for index, event in enumerate(events):
            if type(event) is BodyReceived:
                if current is None or not current.answer_replaced:
                    out.append(event.wire)
                if current is not None and current.answer_contents is not None:
                    self._keep(current, event.content)
            elif type(event) is HeadReceived:
                head = event.head
                assert isinstance(head, ResponseHead)
                assert current is not None
                if head.status < 200 and head.status != 101:
                    self._interim = True
                    if head.status == 100 and self._swallow_continue:
                        continue
                else:
                    self._begin_answer(current, head, event)
                    if self._holds_answer(current, head):
                        self._hold_answer(current, head, events[index + 1 :])
                        break
                out.append(head.to_bytes())
            elif type(event) is MessageEnded:
                if self._interim:
                    self._interim = False
                else:
                    ended = True
            else:
                assert isinstance(event, Switched)
                switched = event.rest
        if out and self._records is None:
            self._spoken = True
            self._downstream.send(b"".join(out) if len(out) > 1 else out[0])
            if self._downstream.queued > QUEUE_BYTES and self._upstream is not None:
                self._upstream.read(False)
        if switched is not None:
            self._switch(switched)
        elif ended and current is not None:
            self._end_answer(current)
            # Most clients wait for the answer before they ask again.
            held_back = self._events or self._requests_over or self._refused or not self._downstream.reading
            if held_back and not self._closed:
                self._go_on()

    def _begin_answer(self, current: Pending, head: ResponseHead, event: HeadReceived) -> None:
        current.answer = head
        current.keep = event.body != "close" and _keeps_alive(head)
        self._swallow_continue = False
        if self._coupling is not None and self._coupling.coupler.needs_response_body(head):
            current.answer_contents = []
        if head.status != 101 and not (current.head.method == b"CONNECT" and head.status < 300):
            self._resume_requests()

    def _resume_requests(self) -> None:
        """The client asked for a tunnel and does not get it."""
        if self._requests.paused:
            try:
                self._queue(self._requests.resume(False))
                self._refused = self._requests.fault
            except RemoteProtocolError as refused:
                self._refused = refused

    @staticmethod
    def _keep(current: Pending, content: bytes) -> None:
        assert current.answer_contents is not None
        current.answer_contents.append(content)
        current.answer_bytes += len(content)
        if current.answer_bytes > MAX_BODY_BYTES:
            current.answer_contents = None

    def _end_answer(self, current: Pending) -> None:
        current.answered = True
        self._tally.responses += 1
        coupling = self._coupling
        if coupling is not None and current.answer is not None:
            contents, current.answer_contents = current.answer_contents, None
            content = None if contents is None else b"".join(contents)
            released = coupling.coupler.shadow_response(
                current.id, self._client, self._connection_id, current.answer, content, self._pump.now_s
            )
            if released:
                coupling.release(released)
            if self._production is not None and self._production.lost:
                self._abandon(current)
        if current.phase is Phase.SENT:
            self._end_exchange(current)

    def _end_exchange(self, current: Pending) -> None:
        """Request and answer are complete."""
        self._current = None
        if not current.keep:
            self._drop_upstream(hard=False)
            if self._records is None:
                self._finish_downstream()

    def _lose(self, failure: str) -> None:
        """The current exchange gets no answer, or no whole one."""
        self._out.clear()
        self._note(failure)
        current = self._current
        if current is None:
            if self._records is None:
                self._close(hard=True)
            return
        if not current.answered:
            self._tally.unanswered += 1
            self._abandon(current)
        if self._records is not None:
            self._skip(current)
            self._go_on_later()
        elif current.answered:
            # An early answer; the rest of the request has no reader.
            self._finish_downstream()
        elif self._spoken:
            self._close(hard=True)
        else:
            self._answer(lastword.status_of(failure), lastword.sentence(failure, self._config.upstreams[0].name))

    def _go_on_later(self) -> None:
        """Go on when everything that has come by now on any connection has been read.

        A client gets a value from production on one connection and says it on the next. Both are here already, and
        epoll does not tell which came first: so all answers of production are read before any request is looked at.
        """
        if not self._called:
            self._called = True
            self._pump.later(self._go_on_now)

    def _go_on_now(self) -> None:
        self._called = False
        if not self._closed:
            self._go_on()

    def _drop_upstream(self, *, hard: bool) -> None:
        if self._upstream is not None:
            self._upstream.close(hard=hard)
            self._upstream = None

    def _upstream_drained(self) -> None:
        self._go_on()

    def _downstream_drained(self) -> None:
        if self._closing and self._downstream_ended:
            self._close(hard=False)
        elif self._upstream is not None and (self._current is None or self._current.held is None):
            self._upstream.read(True)

    # -- tunnels ---------------------------------------------------------------------------------------------------

    def _switch(self, rest: bytes) -> None:
        """The upstream has agreed to speak something else."""
        self._tally.responses += 1
        if self._current is not None:
            self._abandon(self._current)
        from_client = b""
        if self._requests.paused:
            for event in self._requests.resume(True):
                assert isinstance(event, Switched)
                from_client = event.rest
        self._switched = True
        if self._records is not None:
            self._raw = True
            self._current = None
            if self._production is not None:
                self._release(self._production.lose())
            if from_client and self._upstream is not None:
                self._upstream.send(from_client)
        else:
            self._become_tunnel(from_client, rest)

    def _become_tunnel(self, to_upstream: bytes, to_downstream: bytes) -> None:
        self._flush()
        if not self._open_upstream():
            return
        assert self._upstream is not None
        if self._records is not None:
            self._raw = True
            self._upstream.send(to_upstream)
            return
        connecting = self._upstream.connecting
        downstream, downstream_waiting = self._downstream.detach()
        upstream, upstream_waiting = self._upstream.detach()
        self._closed = True
        self._relay.forget(self)
        if self._scripted is not None:
            self._scripted.closed()
        self._end_copies(reset=False)
        self._relay.adopt(
            downstream,
            upstream,
            self.header,
            connecting=connecting,
            to_downstream=downstream_waiting + to_downstream,
            to_upstream=upstream_waiting + to_upstream,
        )

    # -- link ------------------------------------------------------------------------------------------------------

    def _take_record(self, record: Record) -> None:
        if self._closed:
            return
        if record.type is RecordType.REQUEST:
            self._tally.from_downstream += len(record.data)
            self._take(record.data)
        elif record.type is RecordType.RESPONSE:
            if self._production is not None:
                self._release(self._production.feed(record.data, self._pump.now_s))
        elif record.type is RecordType.GAP:
            if record.direction == CLIENT_TO_SERVER:
                self._client_gap(record.length)
            elif self._production is not None:
                self._release(self._production.gap(record.length, self._pump.now_s))
        elif record.type is RecordType.FIN:
            if record.direction == CLIENT_TO_SERVER:
                self._end_of_requests()
            elif self._production is not None:
                self._release(self._production.end(self._pump.now_s))
        else:
            self._drop_upstream(hard=True)
            current, self._current = self._current, None
            if current is not None:
                self._cancel_wait(current)
                self._abandon(current)
            self._events.clear()
            self._requests_over = True

    def _client_gap(self, length: int) -> None:
        if self._copies is not None:
            self._copies.gap(length)
        # The whole requests before the gap belong on the old connection.
        self._go_on()
        if self._closed or self._switched or self._refused is not None:
            return
        try:
            self._requests.end()
        except RemoteProtocolError:
            self._cut_request("gap")
        self._requests = MessageParser("request", limits=LIMITS)
        self._stale = True
        if self._production is not None:
            self._release(self._production.restart())

    # -- end -------------------------------------------------------------------------------------------------------

    def _abandon(self, pending: Pending) -> None:
        if self._coupling is not None:
            self._release(self._coupling.coupler.abandoned(pending.id))
        if self._scripted is not None:
            self._scripted.cut(pending)

    def _release(self, tickets: list[int]) -> None:
        if tickets and self._coupling is not None:
            self._coupling.release(tickets)

    def _cancel_wait(self, pending: Pending) -> None:
        if pending.phase is Phase.WAITING and self._coupling is not None:
            self._coupling.cancel(self)

    def _note(self, failure: str) -> None:
        self._failure = self._failure or failure

    def _refuse(self, refused: RemoteProtocolError) -> None:
        self._note("bad_request")
        current, self._current = self._current, None
        if current is not None:
            # Its head was good.
            self._tally.unanswered += 1
            self._abandon(current)
            self._drop_upstream(hard=True)
        if self._records is not None:
            # Production may have made sense of it; the rest of this link is not read.
            self._drop_upstream(hard=True)
            self._raw = True
            self._go_on_later()
        elif current is not None and self._spoken:
            self._close(hard=True)
        else:
            self._answer(refused.status, str(refused))

    def _answer(self, status: int, reason: str) -> None:
        """The relay's own answer, and the end."""
        self._tally.answer(status)
        self._downstream.send(lastword.answer_bytes(status, reason))
        self._finish_downstream()

    def _finish_downstream(self) -> None:
        """No more answers: FIN, and wait for the client's."""
        if self._closed or self._closing:
            return
        self._closing = True
        self._drop_upstream(hard=False)
        self._events.clear()
        self._refused = self._refused or RemoteProtocolError("after the end")
        self._downstream.finish()
        if self._downstream_ended and not self._downstream.queued:
            self._close(hard=False)
        else:
            self._downstream.read(True)
            self._relay.linger(self)

    def fail(self, failure: str) -> None:
        """End by RST, both ways."""
        self._note(failure)
        self._close(hard=True)

    def idle(self) -> None:
        """Nothing has moved for the idle time."""
        current = self._current
        if current is not None and current.phase is Phase.SENT and not self._spoken and self._records is None:
            self._upstream_broken("no_answer")
        else:
            self.fail("idle")

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self._closed

    @property
    def at_rest(self) -> bool:
        """Whether it stands between exchanges."""
        return self._current is None and not self._events and not self._raw

    def stop(self) -> None:
        """The relay stops: what is under way may end."""
        if self.at_rest and self._records is None:
            self._finish_downstream()

    def linger_over(self) -> None:
        """The client has had time to take the last word."""
        self._close(hard=False)

    def _close(self, *, hard: bool) -> None:
        if self._closed:
            return
        self._closed = True
        current, self._current = self._current, None
        if current is not None:
            self._cancel_wait(current)
            self._abandon(current)
        for event in self._events:
            if isinstance(event, Pending):
                self._abandon(event)
        self._events.clear()
        if self._production is not None:
            self._release(self._production.lose())
        self._drop_upstream(hard=hard)
        self._downstream.close(hard=hard)
        self._end_copies(reset=hard)
        self._relay.forget(self)
        if self._scripted is not None:
            self._scripted.closed()
        self._tally.end(self._failure)

    def _end_copies(self, *, reset: bool) -> None:
        if self._copies is not None:
            if reset:
                self._copies.reset()
            else:
                self._copies.finish()
            self._copies.close(reset=reset)
            self._copies = None


def _keeps_alive(head: RequestHead | ResponseHead) -> bool:
    """RFC 9112 section 9.3."""
    options = head.headers.get_all(b"connection")
    if not options:
        return head.version == b"1.1"
    tokens = {token.strip() for token in b",".join(options).lower().split(b",")}
    return b"close" not in tokens and (head.version == b"1.1" or b"keep-alive" in tokens)
