"""Answers on their way back: each to its request, in the order of the requests.

Most are the upstream's. Some are the relay's own, to requests that were not sent: they wait for the answers before
them. On a framed link nobody reads answers; coupling and scripts learn from them, and they are dropped.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from gopher.http.messages import BodyReceived, HeadReceived, MessageEnded, ResponseHead, Switched
from gopher.relay.pending import Pending, Phase, keeps_alive
from gopher.relay.places import MAX_BODY_BYTES
from gopher.relay.scripted import HeldAnswer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gopher.http.messages import MessageEvent
    from gopher.relay.downstream import Downstream
    from gopher.relay.requests import RequestQueue
    from gopher.relay.turns import Turns

__all__ = ["QUEUE_BYTES", "Answers"]

QUEUE_BYTES: Final = 65_536
"""Past this, what feeds a channel is not read; a little more than one read may wait."""


class Answers:
    """Of one downstream connection.

    Args:
        turns: whose requests they answer.
        requests: what has been read and has not had its turn.
        downstream: where they go; None if nobody reads them.
    """

    def __init__(self, turns: Turns, requests: RequestQueue, downstream: Downstream | None) -> None:
        self._turns = turns
        self._requests = requests
        self._downstream = downstream
        self._channel = downstream.channel if downstream is not None else None
        self.due: deque[Pending] = deque()
        """The requests whose turn has come and that have no whole answer, in order. The last may not have been sent."""
        self.spoken = False
        """Whether any of the final answer to the first of them has been passed on."""

    # -- the upstream's --------------------------------------------------------------------------------------------

    def take(self, events: Sequence[MessageEvent]) -> None:
        """The next events of the upstream's answers."""
        due = self.due
        pending = due[0] if due else None
        if pending is not None and pending.held is not None:
            self._add_to_held(pending.held, events)
            return
        out: list[bytes] = []
        interim = False
        for index, event in enumerate(events):
            if type(event) is BodyReceived:
                if pending is None or not pending.answer_replaced:
                    out.append(event.wire)
                if pending is not None and pending.answer_contents is not None:
                    _keep(pending, event.content)
            elif type(event) is HeadReceived:
                head = event.head
                assert isinstance(head, ResponseHead)
                pending = due[0]
                if head.status < 200 and head.status != 101:
                    interim = True
                    # RFC 9110 section 15.2: "A server MUST NOT send a 1xx response to an HTTP/1.0 client."
                    if pending.head.version == b"1.0" or (head.status == 100 and pending.swallows_continue):
                        continue
                else:
                    self._begin(pending, head, event)
                    scripted = self._turns.scripted
                    if scripted is not None and scripted.holds(pending, head):
                        self._send(out)
                        self._hold(pending, head, events[index + 1 :])
                        return
                    self.spoken = True
                out.append(head.to_bytes())
            elif type(event) is MessageEnded:
                if interim:
                    interim = False
                elif pending is not None and (index + 1 == len(events) or type(events[index + 1]) is not Switched):
                    self._send(out)
                    self._end(pending)
                    if not pending.keep or not due:
                        break
            else:
                assert isinstance(event, Switched)
                self._send(out)
                self._turns.switch(event.rest)
                return
        if out:
            self._send(out)
        if pending is not None and pending.answered:
            self._turns.answered()

    def _send(self, out: list[bytes]) -> None:
        channel = self._channel
        if channel is not None and out:
            channel.send(b"".join(out) if len(out) > 1 else out[0])
            if channel.queued > QUEUE_BYTES:
                self._turns.read_answers(False)
        out.clear()

    def _begin(self, pending: Pending, head: ResponseHead, event: HeadReceived) -> None:
        """The head of the final answer has come."""
        pending.answer = head
        pending.keep = event.body != "close" and keeps_alive(head)
        if self._turns.coupling is not None:
            self._turns.learn_from_head(pending, head)
        if self._requests.paused and not pending.switched_by(head):
            self._turns.resume(pending)

    def _end(self, pending: Pending) -> None:
        """The final answer is complete."""
        pending.answered = True
        self._turns.tally.responses += 1
        if self._turns.coupling is not None:
            self._turns.learn(pending)
        if pending.phase == Phase.SENT:
            self.done(pending)

    def done(self, pending: Pending) -> None:
        """The first request and its answer are complete."""
        self.due.popleft()
        self.spoken = False
        if not pending.keep:
            self._turns.last_answer()
        elif self.due:
            self.serve_first()

    # -- the relay's own -------------------------------------------------------------------------------------------

    def put(self, pending: Pending, status: int, message: bytes, *, keep: bool) -> None:
        """A client's request is not sent, and gets this answer when it is the first.

        Args:
            pending: the request.
            status: of the answer.
            message: all of it.
            keep: whether more may follow it.
        """
        pending.own, pending.keep = (status, message), keep
        self.serve_first()

    def serve_first(self) -> None:
        """Do what can be done for the first requests without the upstream."""
        while self.due:
            first = self.due[0]
            if first.phase == Phase.CUT:
                self._turns.cut(first)
                return
            if first.own is None:
                return
            assert self._downstream is not None
            self.due.popleft()
            self._downstream.answer(*first.own)
            if not first.keep:
                self._downstream.finish()

    # -- in the hands of scripts -----------------------------------------------------------------------------------

    def _hold(self, pending: Pending, head: ResponseHead, events: Iterable[MessageEvent]) -> None:
        """Scripts look at an answer before any of it is passed on."""
        turns = self._turns
        assert turns.scripted is not None
        held = pending.held = HeldAnswer(partial(turns.call, partial(self._read_held, pending)))
        turns.read_answers(False)
        held.add(events)
        turns.scripted.shadow_response(pending, head, held, partial(self._release_held, pending))

    def _read_held(self, pending: Pending) -> None:
        """A script wants the body of the answer."""
        held = pending.held
        if held is None:
            return
        if self.due and self.due[0] is pending and not held.failure:
            self._turns.read_answers(True)
        else:
            held.body.cut()

    def _add_to_held(self, held: HeldAnswer, events: Iterable[MessageEvent]) -> None:
        held.add(events)
        if held.body.settled:
            self._turns.read_answers(False)

    def _release_held(self, pending: Pending) -> None:
        """The functions for an answer have returned."""
        held, pending.held = pending.held, None
        if held is None or not self.due or self.due[0] is not pending:
            return
        assert pending.slot is not None
        response = pending.slot.exchange.shadow_response
        assert response is not None
        pending.answer_replaced = response.content is not None
        self.spoken = True
        channel = self._channel
        if channel is not None:
            channel.send(response.to_bytes())
        self._turns.read_answers(channel is None or channel.queued <= QUEUE_BYTES)
        self._turns.take_held(held)

    def lose_held(self, failure: str) -> bool:
        """The upstream's connection is over. Returns: whether that has to wait for scripts that hold an answer."""
        held = self.due[0].held if self.due else None
        if held is not None:
            held.lose(failure)
        return held is not None


def _keep(pending: Pending, content: bytes) -> None:
    assert pending.answer_contents is not None
    pending.answer_contents.append(content)
    pending.answer_bytes += len(content)
    if pending.answer_bytes > MAX_BODY_BYTES:
        pending.answer_contents = None
