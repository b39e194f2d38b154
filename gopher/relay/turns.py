"""Requests on their way up, one after the other: coupling, scripts, and then the upstream.

One request at a time has its turn: a rule may need its body, it may have to wait for a session, scripts may have it,
and what follows it on its connection waits meanwhile. When it has been sent its turn is over, and the next one's comes
when its answer has been passed on; with `--pipeline` at once, where that changes nothing but the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gopher.http.messages import BodyReceived, MessageEnded, Switched
from gopher.relay import lastword
from gopher.relay.answers import QUEUE_BYTES, Answers
from gopher.relay.pending import Pending, Phase, keeps_alive
from gopher.relay.preparing import Preparation
from gopher.relay.production import ProductionAnswers
from gopher.relay.requests import RequestQueue
from gopher.relay.scripted import HeldAnswer, ScriptedConnection
from gopher.relay.upstream import UpstreamConnection

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from gopher.errors import RemoteProtocolError
    from gopher.http.messages import ResponseHead
    from gopher.link import ProxyHeader
    from gopher.relay.downstream import Downstream
    from gopher.relay.framed import Framed

__all__ = ["Turns"]

LINK_QUEUE_BYTES: Final = 1 << 20
"""Of requests that wait on a framed link."""

_HOLDING: Final = frozenset({Phase.WAITING, Phase.SCRIPTED, Phase.CUT})
"""Nothing more of the client is looked at."""
_SENT: Final = frozenset({Phase.SENDING, Phase.SENT, Phase.CUT})
"""The upstream has some of it, and its answer is due."""
_CLOSED: Final = frozenset({"upstream_closed", "upstream_reset"})


class Turns:
    """Of one downstream connection.

    Args:
        relay: what it belongs to.
        downstream: whose requests these are, and who gets the answers.
        header: who the client is.
        framed: whether production's answers come along, and nobody reads the upstream's.
        upstream: a connection that is there already.
    """

    def __init__(
        self,
        relay: Framed,
        downstream: Downstream,
        header: ProxyHeader,
        *,
        framed: bool,
        upstream: socket.socket | None = None,
    ) -> None:
        self._relay = relay
        self._downstream = downstream
        self._header = header
        self._framed = framed
        self.tally = relay.tally
        self._pump = relay.pump
        self._limit = relay.config.max_in_flight
        self.last_active_s = relay.pump.now_s
        self.client = header.client[0] if header.client else ""
        self.connection_id: object = header.unique_id or relay.next_id()
        self.coupling = relay.coupling_for(exact=framed)
        self._coupler = self.coupling.coupler if self.coupling is not None else None
        self.scripted: ScriptedConnection | None = None
        """There from the client's first byte on, if there are scripts."""
        self._production = self._pair_production() if framed else None
        self._requests = RequestQueue(relay.next_id, self._read if framed else None)
        self._preparation = Preparation(relay, self)
        self._answers = Answers(self, self._requests, None if framed else downstream)
        self.turn: Pending | None = None
        """The request whose turn it is; what follows it waits."""
        self._stale = False
        """The next request that is read goes on a new upstream connection."""
        self._raw = False
        """A framed link whose bytes are HTTP/1 no more."""
        self._called = False
        """Whether it goes on after the next look at all connections."""
        self._upstream: UpstreamConnection | None = None
        if upstream is not None:
            self._upstream = UpstreamConnection(relay, self, self._answers.take, upstream)
            self._upstream.write(relay.announcement(header))
            self._upstream.flush()

    def _pair_production(self) -> ProductionAnswers | None:
        scripts, coupling, link = self._relay.scripts, self.coupling, self._header.link
        shown = self._show_production if scripts is not None and scripts.defines("production_response") else None
        if coupling is None and shown is None:
            return None
        return ProductionAnswers(
            coupling.coupler if coupling is not None else None,
            self.client,
            self.connection_id,
            aligned=link is None or not link.joined,
            show=shown,
        )

    # -- what the downstream brings --------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._relay.scripts is not None and self.scripted is None:
            self.scripted = ScriptedConnection(
                self._relay.scripts, self._relay.next_id(), self._header, framed=self._framed
            )
        if self._raw:
            if self._upstream is not None:
                self._upstream.write(data)
                self._upstream.flush()
            return
        self._requests.feed(data)
        if self._framed:
            self._go_on_later()
        else:
            self.go_on()

    def _read(self, pending: Pending) -> None:
        """The head of a request of a framed link has been read."""
        # This look, and a whole one after it.
        pending.due_looks = self._pump.looks + 2
        pending.apart, self._stale = self._stale, False
        if self._production is not None:
            self._production.expect(pending)

    def end(self) -> None:
        """The client sends no more; what it has sent is still answered."""
        if self._requests.end():
            self._cut_request("gap" if self._framed else "client_reset")
        self._requests.over = True
        self._go_on_later()

    def gap(self) -> None:
        """Bytes of the client are missing. What follows begins a request."""
        # The whole requests before the gap belong on the old connection.
        self.go_on()
        requests = self._requests
        if self._downstream.over or requests.over or requests.switched or requests.refused is not None:
            return
        if requests.end():
            self._cut_request("gap")
        requests.restart()
        self._stale = True
        if self._production is not None:
            self._release(self._production.restart(self._pump.now_s))

    def reset(self) -> None:
        """The client of a framed link has reset its connection."""
        self.stop(hard=True)

    def produced(self, data: bytes) -> None:
        """Bytes of production."""
        if self._production is not None:
            self._release(self._production.feed(data, self._pump.now_s))

    def production_gap(self, length: int) -> None:
        """Bytes of production are missing."""
        if self._production is not None:
            self._release(self._production.gap(length, self._pump.now_s))

    def production_end(self) -> None:
        """Production sends no more."""
        if self._production is not None:
            self._release(self._production.end(self._pump.now_s))

    def downstream_drained(self) -> None:
        """The client has taken the answers."""
        due = self._answers.due
        if not due or due[0].held is None:
            self.read_answers(True)
        if self._requests.events:
            self.go_on()

    # -- whose turn it is ------------------------------------------------------------------------------------------

    @property
    def at_rest(self) -> bool:
        """Whether it stands between exchanges."""
        return not (self.turn or self._answers.due or self._requests.events or self._raw)

    def go_on(self) -> None:
        """Do with what has been read what can be done now."""
        requests, downstream, due = self._requests, self._downstream, self._answers.due
        events = requests.events
        while events and not downstream.over:
            turn, event = self.turn, events[0]
            if turn is not None:
                if turn.phase in _HOLDING:
                    break
            elif (due and not self._may_follow(event)) or downstream.channel.queued > QUEUE_BYTES:
                # The relay's own answers, too, wait for a client to take them.
                break
            if type(event) is not MessageEnded and self._upstream is not None and self._upstream.queued > QUEUE_BYTES:
                break
            if type(event) is Pending and event.due_looks > self._pump.looks:
                self._go_on_later()
                break
            requests.pop()
            if type(event) is Pending:
                self._begin(event)
            elif type(event) is BodyReceived:
                self._pass_body(event)
            elif type(event) is MessageEnded:
                self._end_request()
            else:
                assert isinstance(event, Switched)
                # An HTTP/2 preface: nothing that follows is for us.
                self._become_tunnel(event.rest, b"")
        if self._upstream is not None:
            self._upstream.flush()
        if downstream.over:
            return
        if requests.refused is not None and self._may_refuse():
            self._refuse(requests.refused)
            return
        if not events and self.turn is None and requests.over:
            if due:
                if self._upstream is not None and not self._framed:
                    # The upstream learns that the client has ended, as it would without the relay.
                    self._upstream.finish()
            elif downstream.ended:
                downstream.close(hard=False)
                return
            elif not self._raw:
                self._drop_upstream(hard=False)
        if not downstream.ended:
            downstream.channel.read(self._wants_more())

    def _may_follow(self, event: object) -> bool:
        """Whether the turn of the next request may come while answers are due."""
        due = self._answers.due
        if len(due) >= self._limit or not isinstance(event, Pending):
            return False
        last = due[-1]
        # RFC 9112 section 9.6: after "close" no more requests are processed.
        if event.apart or not last.keep or not keeps_alive(last.head):
            return False
        # Whoever gives the client leave to send a body: it must not come between the answers to other requests.
        if b"expect" in event.head.headers:
            return False
        # What is sent before there is a connection would be lost with the attempt.
        return self._upstream is None or not (self._upstream.connecting or self._upstream.closed)

    def _wants_more(self) -> bool:
        requests = self._requests
        if self._framed:
            return requests.waiting_bytes <= LINK_QUEUE_BYTES
        if requests.events or requests.paused:
            return False
        return self._upstream is None or self._upstream.queued <= QUEUE_BYTES

    def _begin(self, pending: Pending) -> None:
        self.turn = pending
        self._answers.due.append(pending)
        self.tally.requests += 1
        if pending.apart:
            self._drop_upstream(hard=False)
        self._preparation.begin(pending)

    def invite_body(self, pending: Pending) -> None:
        """The body of a request is wanted before the upstream has its head, and only that lets it ask for the body."""
        head = pending.head
        # RFC 9110 section 10.1.1: HTTP/1.0 knows no such expectation, and who has begun to send the body has none.
        if self._framed or head.version == b"1.0" or self._requests.events or b"expect" not in head.headers:
            return
        self._downstream.channel.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        pending.swallows_continue = True

    def _pass_body(self, event: BodyReceived) -> None:
        turn = self.turn
        assert turn is not None
        if turn.phase == Phase.SENDING:
            if not turn.replaced and self._upstream is not None:
                self._upstream.write(event.wire)
        else:
            self._preparation.add_body(turn, event)

    def _end_request(self) -> None:
        turn = self.turn
        assert turn is not None
        turn.whole = True
        if turn.phase == Phase.SENDING:
            turn.phase = Phase.SENT
            self.turn = None
            if turn.answered:
                self.resume(turn)
                self._answers.done(turn)
        elif turn.phase == Phase.SKIPPING:
            self.turn = None
        else:
            self._preparation.end_body(turn)

    def send(self, pending: Pending, data: bytes, replaced: bool) -> None:
        """Send a request: its head, or all of it if its body has been replaced."""
        pieces, pending.pieces, pending.contents = pending.pieces, None, None
        pending.replaced = replaced
        pending.phase = Phase.SENDING
        if pending.whole:
            pending.phase = Phase.SENT
            self.turn = None
        upstream = self._open_upstream()
        if upstream is None:
            return
        upstream.request(pending.head, data)
        if pieces is not None and not replaced:
            for piece in pieces:
                upstream.write(piece)

    def drop(self, pending: Pending, status: int, message: bytes, *, keep: bool) -> None:
        """A request is not sent. A client gets this answer, and `keep` says whether more may follow."""
        self.tally.dropped += 1
        self._abandon(pending)
        self.resume(pending)
        self._skip(pending)
        if self._framed:
            self._answers.due.remove(pending)
        else:
            self._answers.put(pending, status, message, keep=keep)

    def _skip(self, pending: Pending) -> None:
        """What has not come of a request goes nowhere."""
        pending.phase = Phase.SKIPPING
        if pending.whole:
            self.turn = None

    def call(self, call: Callable[[], None]) -> None:
        """A call of a script's, between the pump's turns."""
        self._relay.turn(call)

    def _show_production(self, pending: Pending, content: bytes | None) -> None:
        if self.scripted is not None:
            self.scripted.production_response(pending, content)

    # -- upstream --------------------------------------------------------------------------------------------------

    def _open_upstream(self) -> UpstreamConnection | None:
        """The upstream connection, perhaps one that is still being made; None if there cannot be one."""
        upstream = self._upstream
        # One that is over while scripts hold its last answer is of no use to whoever comes after that answer.
        if upstream is None or (upstream.closed and len(self._answers.due) < 2):
            upstream = self._upstream = UpstreamConnection(self._relay, self, self._answers.take)
            failure = upstream.dial(self._relay.announcement(self._header))
            if failure:
                self._upstream = None
                self._lose(failure)
                return None
        return upstream

    def _drop_upstream(self, *, hard: bool) -> None:
        if self._upstream is not None:
            self._upstream.close(hard=hard)
            self._upstream = None

    def upstream_drained(self) -> None:
        """There is room for more."""
        self.go_on()

    def upstream_ended(self, failure: str) -> None:
        """The upstream connection is over."""
        if self._answers.lose_held(failure):
            # See `take_held`; until then nobody sends on another connection.
            return
        self._upstream = None
        due = self._answers.due
        if due and due[0].phase in _SENT:
            self._lose(failure)
            return
        # Nothing was asked of it: what comes next goes on a new connection, or the client is told that there is none.
        if failure not in _CLOSED:
            self._downstream.note(failure)
        if self._framed or due or self.turn is not None or self._requests.events:
            self._go_on_later()
        else:
            self._downstream.finish()

    def _lose(self, failure: str) -> None:
        """The answers that are due do not come, or not whole."""
        downstream, spoken = self._downstream, self._answers.spoken
        downstream.note(failure)
        lost = self._give_up_sent()
        if self._framed:
            self._go_on_later()
        elif lost and lost[0].answered:
            # An early answer; the rest of the request has no reader.
            downstream.finish()
        elif spoken or not lost:
            downstream.close(hard=True)
        elif len(lost) > 1 and failure in _CLOSED:
            # RFC 9112 section 9.3.2: "the pipelining intermediary SHOULD forward any received responses and then close
            # the corresponding outbound connection(s) so that the outbound user agent(s) can recover accordingly." Some
            # of the requests may have been acted on, so the relay repeats none.
            downstream.finish()
        else:
            status, upstream = lastword.status_of(failure), self._relay.config.upstreams[0].name
            to_head = lost[0].head.method == b"HEAD"
            downstream.refuse(status, lastword.sentence(failure, upstream), to_head=to_head)

    def _give_up_sent(self) -> list[Pending]:
        """The upstream connection is gone. Returns: the requests that were sent on it and have no whole answer."""
        due, turn = self._answers.due, self.turn
        lost = [pending for pending in due if pending.phase in _SENT]
        for pending in lost:
            due.remove(pending)
            self._give_up(pending)
        self._answers.spoken = False
        if turn is not None and turn in lost:
            turn.whole = turn.whole or turn.phase == Phase.CUT
            self._skip(turn)
        return lost

    def answer_overdue(self) -> bool:
        """Nothing has moved for the idle time. Returns: whether the upstream is to blame, and the client is told so."""
        due = self._answers.due
        if self._framed or self._answers.spoken or not due or due[0].phase != Phase.SENT:
            return False
        if self._upstream is not None:
            self._upstream.close(hard=True)
        self.upstream_ended("no_answer")
        return True

    # -- what answers bring about ----------------------------------------------------------------------------------

    def read_answers(self, wanted: bool) -> None:
        """Whether to read what the upstream sends."""
        if self._upstream is not None:
            self._upstream.read(wanted)

    def take_held(self, held: HeldAnswer) -> None:
        """What came of an answer, and after it, while scripts had its head."""
        upstream = self._upstream
        self._answers.take(held.events)
        if held.failure and self._upstream is upstream and not self._downstream.over:
            self.upstream_ended(held.failure)

    def learn_from_head(self, pending: Pending, head: ResponseHead) -> None:
        """The head of the final answer has come: what does it hand out? Decides whether the body is kept."""
        assert self._coupler is not None
        pending.answer_read = self._coupler.needs_response_body(head)
        if pending.answer_read:
            pending.answer_contents = []
            released = self._coupler.shadow_head(pending.id, self.client, self.connection_id, head, self._pump.now_s)
            self._release(released)
        else:
            self._learn(pending, head, None)

    def _learn(self, pending: Pending, head: ResponseHead, content: bytes | None) -> None:
        assert self._coupler is not None
        released = self._coupler.shadow_response(
            pending.id, self.client, self.connection_id, head, content, self._pump.now_s
        )
        self._release(released)

    def learn(self, pending: Pending) -> None:
        """The answer to a request is complete: what does its body hand out?"""
        if self._coupler is not None and pending.answer is not None:
            if pending.answer_read:
                contents, pending.answer_contents = pending.answer_contents, None
                self._learn(pending, pending.answer, None if contents is None else b"".join(contents))
            if self._production is not None and self._production.lost:
                self._abandon(pending)

    def answered(self) -> None:
        """An answer, or more than one, has been passed on."""
        # Most clients wait for the answer before they ask again.
        requests = self._requests
        held_back = requests.events or requests.over or requests.refused or not self._downstream.channel.reading
        if held_back and not self._downstream.over:
            self.go_on()

    def last_answer(self) -> None:
        """No more answers come on the upstream's connection."""
        self._drop_upstream(hard=False)
        self._give_up_sent()
        if not self._framed:
            self._downstream.finish()

    def resume(self, pending: Pending) -> None:
        """A request has no tunnel for its answer: if it asked for one, what follows it is HTTP after all."""
        # What follows another request may wait, too, for the answer to the last one.
        if self._requests.paused and pending.wants_tunnel:
            self._requests.resume()

    def switch(self, rest: bytes) -> None:
        """The upstream has agreed to speak something else; `rest` is the beginning of it."""
        self.tally.responses += 1
        self._abandon(self._answers.due.popleft())
        from_client = self._requests.switch()
        if self._upstream is None or self._upstream.closed:
            # It has ended while scripts held the answer before this one.
            self._downstream.fail("upstream_closed")
            return
        if not self._framed:
            self._become_tunnel(from_client, rest)
            return
        self.turn = None
        self._go_raw()
        if self._production is not None:
            self._release(self._production.lose(self._pump.now_s))
        if from_client and self._upstream is not None:
            self._upstream.write(from_client)
            self._upstream.flush()

    def _go_raw(self) -> None:
        """On a framed link the client's bytes go on, and what the upstream says to them is dropped."""
        self._raw = True
        if self._upstream is not None:
            self._upstream.deaf = True

    def _become_tunnel(self, to_upstream: bytes, to_downstream: bytes) -> None:
        upstream = self._open_upstream()
        if upstream is None:
            return
        upstream.flush()
        if self._framed:
            self._go_raw()
            upstream.write(to_upstream)
        else:
            self._upstream = None
            self._downstream.become_tunnel(upstream, to_upstream=to_upstream, to_downstream=to_downstream)

    # -- refusals and ends -----------------------------------------------------------------------------------------

    def _may_refuse(self) -> bool:
        """Whether everything before what is refused has been served."""
        turn, due = self.turn, self._answers.due
        if self._requests.events or self._raw or (turn is not None and turn.phase in _HOLDING):
            return False
        return not due or due[0] is turn

    def _refuse(self, refused: RemoteProtocolError) -> None:
        downstream, spoken = self._downstream, self._answers.spoken
        downstream.note("bad_request")
        turn, self.turn = self.turn, None
        if turn is not None:
            # Its head was good.
            self._answers.due.clear()
            if turn.phase != Phase.SKIPPING:
                self._give_up(turn)
            self._drop_upstream(hard=True)
        if self._framed:
            # Production may have made sense of it; the rest of this link is not read.
            self._drop_upstream(hard=True)
            self._raw = True
            self._go_on_later()
        elif spoken:
            downstream.close(hard=True)
        else:
            downstream.refuse(refused.status, str(refused))

    def _cut_request(self, failure: str) -> None:
        """The client's messages end, or have a gap, within a request: it is taken back, or its connection reset."""
        settled, pending = self._requests.take_back()
        if pending is not None:
            if self._production is not None:
                self._production.forget(pending)
            self._abandon(pending)
        turn, due = self.turn, self._answers.due
        if settled or turn is None or turn.whole:
            return
        self._downstream.note(failure)
        self._preparation.cancel(turn)
        if self._framed and turn.phase != Phase.SENDING:
            # The upstream has nothing of it.
            self.turn = None
            if turn in due:
                due.remove(turn)
                self._give_up(turn)
            return
        turn.phase = Phase.CUT
        if turn not in due:
            due.append(turn)
        self._answers.serve_first()

    def cut(self, pending: Pending) -> None:
        """A request is cut, and the answers before its own have been passed on: the upstream sees a RST within it."""
        if not self._framed:
            self._downstream.close(hard=True)
            return
        self.turn = None
        self._answers.due.clear()
        self._give_up(pending)
        self._drop_upstream(hard=True)
        self._go_on_later()

    def _go_on_later(self) -> None:
        """Go on when everything that has come by now on any connection has been read.

        A client gets a value from production on one connection and says it on the next. Both are here already, and
        epoll does not tell which came first. So a request of a link is looked at after one more look at all of them.
        """
        if not self._called:
            self._called = True
            self._pump.after_look(self._go_on_now)

    def _go_on_now(self) -> None:
        self._called = False
        if not self._downstream.over:
            self.go_on()

    def _give_up(self, pending: Pending) -> None:
        """A request whose turn has come gets no answer, or no whole one."""
        if pending.own is None and not pending.answered:
            self.tally.unanswered += 1
            self._abandon(pending)

    def _abandon(self, pending: Pending) -> None:
        pending.abandoned = True
        if self._coupler is not None:
            self._release(self._coupler.abandoned(pending.id))
        if self.scripted is not None:
            self.scripted.cut(pending)

    def _release(self, tickets: list[int]) -> None:
        if tickets and self.coupling is not None:
            self.coupling.release(tickets)

    def stop(self, *, hard: bool) -> None:
        """Nothing more is sent or answered. `hard`: the upstream's connection ends by RST."""
        turn, self.turn = self.turn, None
        if turn is not None:
            self._preparation.cancel(turn)
        due = self._answers.due
        while due:
            self._give_up(due.popleft())
        for pending in self._requests.close():
            self._abandon(pending)
        self._drop_upstream(hard=hard)

    def close(self, *, hard: bool) -> None:
        """The downstream connection is over."""
        self.stop(hard=hard)
        if self._production is not None:
            self._release(self._production.lose(self._pump.now_s))
        if self.scripted is not None:
            self.scripted.closed()
