"""Session coupling: requests that say production's session values are made to say the shadow's.

One `Coupler` for each shadow upstream. The relay shows it every request before it is sent, every answer of the shadow,
and, on a framed link, every answer of production; it learns aliases from them (`gopher.relay.learning`) and rewrites
requests, which is done here. No I/O and no clock: `now_s` comes in with each call and never goes back.

In *exact* mode a request waits that contains a value of production's whose counterpart the shadow has not handed out
yet, whatever connection it is on. *Inferred* mode has no answers of production and binds new values to the shadow
sessions of the same client.

Links of several connections do not come in the order of their bytes: a request may be here a few milliseconds before
the answer of production, on another link, that its value stems from. So an unknown value in a place that a rule names
waits for that answer a short while, once.

Invariants: a value is replaced only by what the shadow handed out in the same structural place; each table is bounded;
no value leaves this module but in a request to the shadow: reprs and statistics carry none.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

from gopher.relay.aliases import SHORT_BYTES
from gopher.relay.holding import HeldRequest
from gopher.relay.learning import NO_COOKIES, NO_KEYS, Learner
from gopher.relay.outcomes import CouplingStatistics, Drop, Rewritten, Unchanged, Wait
from gopher.relay.places import may_hold_values, rewrite_request

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from gopher.http.messages import RequestHead
    from gopher.relay.places import Place
    from gopher.relay.rules import Rule, RuleKind

    # (value key, exchange that may give its counterpart); (value key, None) until production has handed the value out;
    # in inferred mode (None, exchange the shadow is at)
    Blocker = tuple[bytes | None, Hashable]

__all__ = ["Coupler", "CouplingStatistics", "Drop", "Rewritten", "Unchanged", "Wait"]

# What more exchanges than this could give, or more at once of one address, is nobody's session.
_MAX_BLOCKERS: Final = 64

# Where clients use what rules of these kinds hand out, under the rule's name. Elsewhere too, but there it is known by
# its value only.
_USED_IN: Final[dict[RuleKind, Place]] = {
    "cookie": "cookie", "header": "header", "query": "query", "location": "query", "form": "field", "json": "field",
}  # fmt: skip
_INFERRED: Final = frozenset({"cookie", "field"})
_NO_BLOCKERS: Final[frozenset[Blocker]] = frozenset()
_UNCHANGED: Final = Unchanged()


class Coupler(Learner):
    """Learns from responses, and rewrites requests, for one shadow upstream.

    Ids are the caller's: an exchange's is unique over all connections, a connection's over all connections of the
    coupler's life or at least `CLAIM_S`. `client` is the client's address without its port.

    Args:
        rules: where values are handed out.
        auto: couple every cookie that the shadow sets, as well.
        wait_s: how long a request may be held, in seconds.
        overtake_s: how much of that a request may wait for an answer of production that it overtook; 0 for not at all.
        policy: what becomes of a request that was held in vain: `send` it as far as it could be translated, or `drop`.
        max_aliases: bound of the table of aliases; past it the least recently used go.
        ttl_s: an alias not used for this long, in seconds, is forgotten.
        inferred: there are no answers of production.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        auto: bool = False,
        wait_s: float = 2.0,
        overtake_s: float = 0.25,
        policy: Literal["send", "drop"] = "send",
        max_aliases: int = 100_000,
        ttl_s: float = 86_400.0,
        inferred: bool = False,
    ) -> None:
        super().__init__(
            rules,
            auto=auto,
            max_aliases=max_aliases,
            ttl_s=ttl_s,
            inferred=inferred,
            watched=_watched_names(rules, inferred=inferred),
        )
        self._wait_s = wait_s
        self._overtake_s = 0.0 if inferred else min(overtake_s, wait_s)
        self._policy = policy
        self._cookies_only = all(rule.kind == "cookie" for rule in rules)

        self._rewritten = 0
        self._missed = 0
        self._held = 0
        self._held_s_sum = 0.0
        self._held_s_max = 0.0
        self._timed_out = 0
        self._dropped = 0
        self._ambiguous = 0

    def __repr__(self) -> str:
        return f"<Coupler: {len(self._aliases)} aliases, {len(self._waiting)} requests waiting>"

    def needs_request_body(self, head: RequestHead) -> bool:
        """Whether `request` wants the whole body; else the relay may stream it and pass None.

        A body of unknown length that turns out longer than `places.MAX_BODY_BYTES` is not looked at: pass None.
        """
        return not self._cookies_only and may_hold_values(head)

    def request(
        self,
        exchange_id: Hashable,
        client: Hashable,
        connection_id: Hashable,
        head: RequestHead,
        content: bytes | None,
        now_s: float,
    ) -> Rewritten | Unchanged | Wait:
        """The next request of a connection, in order, right before it would be sent.

        Cost: proportional to the values in it; a body is read only if it is passed.
        """
        scan = _Scan(self, client, connection_id, now_s, held=None)
        new_head, new_content = rewrite_request(head, content, self._known, self._watched, scan.translate)
        if scan.blockers:
            held = HeldRequest(
                exchange_id,
                client,
                connection_id,
                head,
                content,
                now_s,
                blockers=scan.blockers,
                awaited=scan.awaited,
            )
            ticket = self._waiting.enter(held)
            return Wait(ticket, now_s + self._wait_s)
        return self._sent(exchange_id, scan, new_head, new_content)

    def proceed(self, ticket: int, now_s: float) -> Rewritten | Unchanged | Drop:
        """What becomes of a request that waited; once for each ticket, when it is released or at its deadline.

        Raises:
            KeyError: no request waits under this ticket.
        """
        held = self._waiting.leave(ticket)
        held_s = max(0.0, now_s - held.since_s)
        self._held += 1
        self._held_s_sum += held_s
        self._held_s_max = max(self._held_s_max, held_s)
        scan = _Scan(self, held.client, held.connection_id, now_s, held=held)
        new_head, new_content = rewrite_request(held.head, held.content, self._known, self._watched, scan.translate)
        if scan.in_vain:
            if held.blockers:
                self._timed_out += 1
            if self._policy == "drop":
                self._dropped += 1
                return Drop()
        return self._sent(held.exchange_id, scan, new_head, new_content)

    def cancel(self, ticket: int) -> None:
        """The connection of a request that waits is gone. A ticket that does not wait is ignored."""
        with suppress(KeyError):
            self._waiting.leave(ticket)

    def statistics(self) -> CouplingStatistics:
        """The counters, frozen."""
        return CouplingStatistics(
            aliases=len(self._aliases),
            aliases_learned=self._learned,
            aliases_evicted=self._aliases.evicted,
            aliases_expired=self._aliases.expired,
            requests_rewritten=self._rewritten,
            requests_missed=self._missed,
            requests_held=self._held,
            requests_waiting=len(self._waiting),
            held_s_sum=self._held_s_sum,
            held_s_max=self._held_s_max,
            requests_timed_out=self._timed_out,
            requests_dropped=self._dropped,
            values_ambiguous=self._ambiguous,
            bodies_unread=self._unread,
            divergences=dict(self._divergences),
        )

    def _sent(
        self, exchange_id: Hashable, scan: _Scan, head: RequestHead | None, content: bytes | None
    ) -> Rewritten | Unchanged:
        record = self._exchange(exchange_id, scan.client, scan.connection_id, scan.now_s)
        record.requested = True
        record.sent = scan.sent
        if self._inference is not None:
            self._in_flight.setdefault(scan.client, {})[exchange_id] = scan.connection_id
        self._missed += scan.missed
        if head is None:
            return _UNCHANGED
        self._rewritten += 1
        return Rewritten(head, content)

    def _claim(self, scan: _Scan, place: Place, name: bytes, value: bytes, key: bytes) -> bytes | None:
        """Inferred mode: the counterpart of a value that was never seen, if there is exactly one it can be."""
        inference = self._inference
        assert inference is not None
        if inference.knows(place, name, value):
            self._learn(name, value, value, scan.now_s, [])  # the client talks to the shadow itself
            return value
        if self._strangers.get(key, scan.now_s) is not None:
            return None
        candidates = inference.on_connection(place, name, scan.connection_id, scan.now_s)
        flying = self._in_flight.get(scan.client)
        # The value may come from an exchange that the shadow is still at.
        if (
            scan.held is None
            and flying is not None
            and len(flying) <= _MAX_BLOCKERS
            and (not candidates or (len(candidates) == 1 and scan.connection_id in flying.values()))
        ):
            scan.wait_for(key, {(None, exchange_id) for exchange_id in flying})
            return None
        candidates = candidates or inference.of_client(place, name, scan.client, scan.now_s)
        if len(candidates) == 1:
            inference.claim(candidates[0])
            self._learn(name, value, candidates[0].value, scan.now_s, [])
            return candidates[0].value
        if candidates:
            self._ambiguous += 1
        if scan.held is None or not scan.held.blockers:
            self._strangers.set(key, b"", scan.now_s)  # from now on it is not new: it claims nothing any more
        return None


class _Scan:
    """One look at one request: `translate` is asked about every value in it."""

    def __init__(
        self, coupler: Coupler, client: Hashable, connection_id: Hashable, now_s: float, held: HeldRequest | None
    ) -> None:
        self._coupler = coupler
        self.client = client
        self.connection_id = connection_id
        self.now_s = now_s
        self.held = held
        """The request as it was when it began to wait; then it does not wait again."""
        self.sent = NO_COOKIES
        self.missed = False
        self.in_vain = False
        """A value that the request waited for still has no counterpart."""
        self.blockers = _NO_BLOCKERS
        self.awaited = NO_KEYS

    def translate(self, place: Place, name: bytes, value: bytes) -> bytes | None:
        """The shadow's counterpart of a value; None to leave it. Notes what is missed, and what must be waited for."""
        coupler = self._coupler
        key = value if len(value) >= SHORT_BYTES else name.lower() + b"\0" + value
        counterpart: bytes | None = None
        watched = unknown = name in coupler._watched[place]
        if key in coupler._aliases.entries:
            counterpart = coupler._aliases.get(key, self.now_s)
        if counterpart is None:
            exchanges = coupler._pending.get(key)
            if exchanges is not None:
                unknown = True
                if self.held is None and len(exchanges) <= _MAX_BLOCKERS:
                    records = coupler._exchanges
                    self.wait_for(
                        key, {(key, each) for each in exchanges if records[each].can_precede(self.connection_id)}
                    )
            elif unknown and value:
                if coupler._inference is None:
                    self._await_production(key)
                elif place in _INFERRED:
                    counterpart = coupler._claim(self, place, name, value, key)
        if counterpart is None and unknown and value:
            self.missed = True
            if self.held is not None and key in self.held.awaited:
                self.in_vain = True
        if place == "cookie" and (watched or coupler._auto):
            self._note_cookie(name, value, counterpart)
        return None if counterpart == value else counterpart

    def wait_for(self, key: bytes, blockers: set[Blocker]) -> None:
        """The value of this key may get its counterpart from what these stand for."""
        if blockers:
            self.blockers = self.blockers | blockers
            self.awaited = self.awaited | {key}

    def _await_production(self, key: bytes) -> None:
        """Wait for an answer of production that may hand this value out, on a link that is behind this one.

        Nothing tells whether there is one: the link may be so new that nothing of it has come.
        """
        coupler = self._coupler
        if (
            self.held is None
            and coupler._overtake_s > 0
            and coupler._strangers.get(key, self.now_s) is None
            and coupler._unseen.setdefault(key, self.now_s + coupler._overtake_s) > self.now_s
        ):
            self.blockers = self.blockers | {(key, None)}

    def _note_cookie(self, name: bytes, value: bytes, counterpart: bytes | None) -> None:
        if self.sent is NO_COOKIES:
            self.sent = {}
        self.sent[name] = (value, counterpart)
        inference = self._coupler._inference
        if inference is not None and counterpart is not None:
            inference.still_used("cookie", name, self.connection_id, value)


def _watched_names(rules: Sequence[Rule], *, inferred: bool) -> dict[Place, set[bytes]]:
    names: dict[Place, set[bytes]] = {"cookie": set(), "header": set(), "query": set(), "field": set(), "path": set()}
    for rule in rules:
        # Inferred mode learns nothing from these; and a path template without a segment before {} has no name.
        if rule.name and not (inferred and rule.kind in {"json", "location"}):
            names["path" if rule.template else _USED_IN[rule.kind]].add(rule.name)
    return names
