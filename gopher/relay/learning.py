"""What answers teach a coupler: which of the shadow's values stands for which of production's. No I/O and no clock.

The half of session coupling that looks at answers; `gopher.relay.coupling` looks at requests, and is the whole. In
*exact* mode the two answers to one exchange are paired: a value of production's answer is pending until the shadow's
answer is in. In *inferred* mode there are no answers of production, and what the shadow hands out becomes a candidate
(`gopher.relay.inference`).

Invariants: what is learned comes from the same structural place of both answers; each table is bounded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from gopher.relay.aliases import AliasTable, KnownValues, alias_key
from gopher.relay.handed_out import NOTHING, ResponseReader
from gopher.relay.holding import WaitingRoom
from gopher.relay.inference import Candidate, Inference
from gopher.relay.places import url_path

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from gopher.http.messages import ResponseHead
    from gopher.relay.handed_out import HandedOut
    from gopher.relay.places import Place
    from gopher.relay.rules import Rule

__all__ = ["EXCHANGE_TTL_S", "NO_COOKIES", "NO_KEYS", "ExchangeRecord", "Learner"]

EXCHANGE_TTL_S: Final = 600.0
"""An exchange whose second answer is not in after this long is forgotten."""
_MAX_EXCHANGES: Final = 65_536
_SWEEP_S: Final = 5.0
_MAX_AUTO_NAMES: Final = 256  # cookie names that `auto` knows to be the shadow's

NO_COOKIES: Final[dict[bytes, tuple[bytes, bytes | None]]] = {}
"""Shared by most requests; never changed."""
NO_KEYS: Final[frozenset[bytes]] = frozenset()
_LOGIN: Final = re.compile(
    rb"(?i)login|logon|(?<!b)log[-_][io]n|sign-?_?[io]n(?!g)|/auth(?!ors?\b)|/sso|/sessions?/new"
)
_REJECTIONS: Final = frozenset({401, 403, 419})


class Learner:
    """Learns from responses, for one shadow upstream. Made by `Coupler`, whose arguments these are.

    Args:
        rules: where values are handed out.
        auto: couple every cookie that the shadow sets, as well.
        max_aliases: bound of the table of aliases.
        ttl_s: an alias not used for this long, in seconds, is forgotten.
        inferred: there are no answers of production.
        watched: by place, names under which a value without counterpart is a miss; with `auto` the shadow's cookies
            are added.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        auto: bool,
        max_aliases: int,
        ttl_s: float,
        inferred: bool,
        watched: dict[Place, set[bytes]],
    ) -> None:
        self._reader = ResponseReader(rules, auto=auto)
        self._auto = auto
        self._inference = Inference(max_aliases) if inferred else None
        self._watched = watched

        self._known = KnownValues(max_aliases, ttl_s)
        self._aliases = self._known.aliases
        self._exchanges: dict[Hashable, ExchangeRecord] = {}  # oldest first
        self._swept_s = 0.0
        self._pending = self._known.pending
        # Key -> deadline of values that requests wait for and production has not handed out, soonest first. None of
        # them is an alias, pending or a stranger.
        self._unseen: dict[bytes, float] = {}
        self._waiting = WaitingRoom()
        # Values that had their chance: the shadow's answer had no counterpart, production did not hand them out in
        # time, or there was no session to be bound to.
        self._strangers = AliasTable(max_aliases, ttl_s)
        # Inferred mode: client -> exchanges that were sent and are not answered -> their connections.
        self._in_flight: dict[Hashable, dict[Hashable, Hashable]] = {}

        self._learned = 0
        self._unread = 0
        self._divergences: dict[str, int] = {}

    def needs_response_body(self, head: ResponseHead) -> bool:
        """Whether `production_response` and `shadow_response` want the whole body; never if no rule looks at bodies.

        If not, the response may be given when its head is there; if so, `production_head` and `shadow_head` want that.
        """
        return self._reader.needs_body(head)

    def production_head(
        self, exchange_id: Hashable, client: Hashable, connection_id: Hashable, head: ResponseHead, now_s: float
    ) -> list[int]:
        """The head of an answer whose body `production_response` will bring: cookies and redirects count from now on.
        A client uses them while the body is still on its way.

        Returns:
            As `production_response`.
        """
        if head.status < 200:
            return []
        return self._produced_head(exchange_id, self._exchange(exchange_id, client, connection_id, now_s), head, now_s)

    def production_response(
        self,
        exchange_id: Hashable,
        client: Hashable,
        connection_id: Hashable,
        head: ResponseHead,
        content: bytes | None,
        now_s: float,
    ) -> list[int]:
        """Production's final answer to an exchange, as soon as it is seen: before or after the shadow's, and perhaps
        before the request has been sent to the shadow. Interim answers are ignored.

        Returns:
            Tickets that may go on now: where the shadow was faster than production, or need not be waited for.
        """
        if head.status < 200:
            return []
        record = self._exchange(exchange_id, client, connection_id, now_s)
        released: list[int] = []
        if record.production_head is None:
            released = self._produced_head(exchange_id, record, head, now_s)
        record.production = handed = self._reader.read_rest(head, content)
        if handed is not NOTHING:
            self._unread += handed.unread
            keys, more = self._announce(exchange_id, record, handed, now_s)
            record.pending = record.pending | keys
            released += more
        if record.shadow is not None:
            released += self._complete(exchange_id, record, now_s)
        return released

    def shadow_head(
        self, exchange_id: Hashable, client: Hashable, connection_id: Hashable, head: ResponseHead, now_s: float
    ) -> list[int]:
        """As `production_head`, of the shadow."""
        if head.status < 200:
            return []
        return self._shadowed_head(exchange_id, self._exchange(exchange_id, client, connection_id, now_s), head, now_s)

    def shadow_response(
        self,
        exchange_id: Hashable,
        client: Hashable,
        connection_id: Hashable,
        head: ResponseHead,
        content: bytes | None,
        now_s: float,
    ) -> list[int]:
        """The shadow's final answer to an exchange. Interim answers are ignored.

        Returns:
            Tickets that may go on now.
        """
        if head.status < 200:
            return []
        record = self._exchange(exchange_id, client, connection_id, now_s)
        released: list[int] = []
        if record.shadow_head is None:
            released = self._shadowed_head(exchange_id, record, head, now_s)
        handed = self._reader.read_rest(head, content)
        self._unread += handed.unread
        if self._inference is not None:
            if handed is not NOTHING:
                self._infer(record, handed, self._inference, now_s)
            return self._forget(exchange_id, record)
        record.shadow = handed
        record.shadow_verdict = _verdict(head) if head.status >= 300 else ""
        return released if record.production is None else released + self._complete(exchange_id, record, now_s)

    def abandoned(self, exchange_id: Hashable) -> list[int]:
        """An answer to the exchange will never come: a connection failed, or the request was not sent.

        Returns:
            Tickets that may go on now: what they waited for will not come either.
        """
        record = self._exchanges.get(exchange_id)
        return [] if record is None else self._forget(exchange_id, record)

    def tick(self, now_s: float) -> list[int]:
        """To be called every now and then: how punctual `overtake_s` is depends on it.

        Returns:
            Tickets that may go on now: production has not handed out in time what they waited for.
        """
        released: list[int] = []
        while self._unseen:
            key, deadline_s = next(iter(self._unseen.items()))
            if deadline_s > now_s:
                break
            del self._unseen[key]
            # From before the mirror, or the client's own: it is not waited for with every request.
            self._strangers.set(key, b"", now_s)
            released += self._waiting.unblock((key, None))
        return released

    # Exchanges: opened by whatever comes first, closed when nothing more is expected of them.

    def _exchange(
        self, exchange_id: Hashable, client: Hashable, connection_id: Hashable, now_s: float
    ) -> ExchangeRecord:
        record = self._exchanges.get(exchange_id)
        if record is None:
            if len(self._exchanges) >= _MAX_EXCHANGES or now_s - self._swept_s > _SWEEP_S:
                self._sweep(now_s)
            record = self._exchanges[exchange_id] = ExchangeRecord(client, connection_id, now_s)
        return record

    def _sweep(self, now_s: float) -> None:
        """Forget exchanges that are too old or too many. What waits for one has a deadline of its own."""
        self._swept_s = now_s
        while self._exchanges:
            oldest_id, oldest = next(iter(self._exchanges.items()))
            if len(self._exchanges) < _MAX_EXCHANGES and now_s - oldest.since_s <= EXCHANGE_TTL_S:
                break
            self._forget(oldest_id, oldest)

    def _forget(self, exchange_id: Hashable, record: ExchangeRecord) -> list[int]:
        del self._exchanges[exchange_id]
        released: list[int] = []
        for key in record.pending_of_head | record.pending:
            released += self._give_up(exchange_id, key)
        flying = self._in_flight.get(record.client)
        if flying is not None and flying.pop(exchange_id, None) is not None:
            if not flying:
                del self._in_flight[record.client]
            released += self._waiting.unblock((None, exchange_id))
        return released

    # Learning.

    def _seen(self, key: bytes, exchange_id: Hashable, record: ExchangeRecord) -> list[int]:
        """Production handed out a value: requests that came before it wait for the shadow's answer from now on."""
        if self._unseen.pop(key, None) is None:
            return []
        for ticket, held in self._waiting.waiting_for((key, None)):
            if record.can_precede(held.connection_id):
                held.awaited |= {key}
                self._waiting.block(ticket, (key, exchange_id))
        return self._waiting.unblock((key, None))

    def _produced_head(
        self, exchange_id: Hashable, record: ExchangeRecord, head: ResponseHead, now_s: float
    ) -> list[int]:
        record.production_head = handed = self._reader.read_head(head)
        record.production_status = head.status
        released: list[int] = []
        if handed is not NOTHING:
            record.pending_of_head, released = self._announce(exchange_id, record, handed, now_s)
        if record.shadow_head is not None:
            self._pair_heads(exchange_id, record, now_s, released)
        return released

    def _shadowed_head(
        self, exchange_id: Hashable, record: ExchangeRecord, head: ResponseHead, now_s: float
    ) -> list[int]:
        record.shadow_head = handed = self._reader.read_head(head)
        released: list[int] = []
        if handed is not NOTHING:
            if self._auto:
                self._watch(handed.cookies)
            if self._inference is not None:
                self._infer(record, handed, self._inference, now_s)
        if record.production_head is not None:
            self._pair_heads(exchange_id, record, now_s, released)
        return released

    def _announce(
        self, exchange_id: Hashable, record: ExchangeRecord, handed: HandedOut, now_s: float
    ) -> tuple[frozenset[bytes], list[int]]:
        """Production has handed these out: whoever says one that has no counterpart waits for the shadow's answer.

        Returns:
            The keys of those, and tickets that may go on.
        """
        keys = set()
        released: list[int] = []
        for name, value in _named(handed):
            for form, _ in _forms(value, b""):
                key = alias_key(name, form)
                if self._aliases.get(key, now_s) is None and self._strangers.get(key, now_s) is None:
                    self._pending.setdefault(key, set()).add(exchange_id)
                    keys.add(key)
                    self._known.met(form)
                    released += self._seen(key, exchange_id, record)
        return frozenset(keys), released

    def _pair_heads(self, exchange_id: Hashable, record: ExchangeRecord, now_s: float, released: list[int]) -> None:
        """Both heads are in."""
        production, shadow = record.production_head, record.shadow_head
        assert production is not None
        assert shadow is not None
        if production is not NOTHING or shadow is not NOTHING:
            for name in production.cookies.keys() | shadow.cookies.keys():
                produced, shadowed = self._cookie_pair(
                    name, production.cookies.get(name), shadow.cookies.get(name), record.sent.get(name), now_s
                )
                if produced and shadowed:
                    self._learn(name, produced, shadowed, now_s, released)
            self._pair_values(production, shadow, now_s, released)
            released += self._settle(exchange_id, record.pending_of_head, now_s)

    def _pair_values(self, production: HandedOut, shadow: HandedOut, now_s: float, released: list[int]) -> None:
        for rule, values in production.values.items():
            counterparts = shadow.values.get(rule, ())
            # Another number of values means another page: which belongs to which would be a guess.
            if len(values) == len(counterparts):
                for produced, shadowed in zip(values, counterparts, strict=True):
                    self._learn(rule.name, produced, shadowed, now_s, released)

    def _complete(self, exchange_id: Hashable, record: ExchangeRecord, now_s: float) -> list[int]:
        """Both answers are in."""
        production, shadow = record.production, record.shadow
        assert production is not None
        assert shadow is not None
        released: list[int] = []
        if production is not NOTHING:
            self._pair_values(production, shadow, now_s, released)
            released += self._settle(exchange_id, record.pending, now_s)
        if record.shadow_verdict and 200 <= record.production_status < 300:
            self._divergences[record.shadow_verdict] = self._divergences.get(record.shadow_verdict, 0) + 1
        return released + self._forget(exchange_id, record)

    def _settle(self, exchange_id: Hashable, keys: frozenset[bytes], now_s: float) -> list[int]:
        """The exchange has given what counterparts it can give to these."""
        released = []
        for key in keys:
            if key in self._pending:
                # Not waited for again: production may send a value like this with each answer, to every client.
                self._strangers.set(key, b"", now_s)
                released += self._give_up(exchange_id, key)
        return released

    def _give_up(self, exchange_id: Hashable, key: bytes) -> list[int]:
        """The exchange will not give this one a counterpart (any more)."""
        exchanges = self._pending.get(key)
        if exchanges is None or exchange_id not in exchanges:
            return []
        exchanges.remove(exchange_id)
        if not exchanges:
            del self._pending[key]
        return self._waiting.unblock((key, exchange_id))

    def _cookie_pair(
        self,
        name: bytes,
        produced: bytes | None,
        shadowed: bytes | None,
        sent: tuple[bytes, bytes | None] | None,
        now_s: float,
    ) -> tuple[bytes | None, bytes | None]:
        """What a browser of production and a browser of the shadow would now hold under this name.

        None: the answer did not set the cookie. Empty: it deleted it.
        """
        if sent is None or (produced is not None and shadowed is not None):
            return produced, shadowed
        before, counterpart = sent
        current = self._aliases.get(alias_key(name, before), now_s)
        if shadowed is None:
            return produced, current  # only production rotated: the shadow's session goes on under the new name
        # Only the shadow set it: it did not know the session (one from before the mirror, or it was restarted). Of
        # several requests that met this at once, the first answer counts, or the session would change under the user.
        return (before, shadowed) if produced is None and current == counterpart else (None, None)

    def _learn(self, name: bytes, produced: bytes, shadowed: bytes, now_s: float, released: list[int]) -> None:
        if self._aliases.get(alias_key(name, produced), now_s) != shadowed:
            self._learned += 1
        for form, counterpart in _forms(produced, shadowed):
            key = alias_key(name, form)
            self._aliases.set(key, counterpart, now_s)
            self._known.met(form)
            for exchange_id in self._pending.pop(key, ()):
                released += self._waiting.unblock((key, exchange_id))
            if self._unseen.pop(key, None) is not None:
                released += self._waiting.unblock((key, None))

    def _watch(self, cookies: dict[bytes, bytes]) -> None:
        names = self._watched["cookie"]
        if len(names) < _MAX_AUTO_NAMES:
            names.update(cookies)

    def _infer(self, record: ExchangeRecord, handed: HandedOut, inference: Inference, now_s: float) -> None:
        for name, value in handed.cookies.items():
            if not value:
                inference.withdrawn("cookie", name, record.connection_id)
                continue
            carried, counterpart = record.sent.get(name, (None, None))
            if carried is not None:
                if value == counterpart:
                    continue  # set again, as it was
                if self._aliases.get(alias_key(name, carried), now_s) == counterpart:
                    self._learn(name, carried, value, now_s, [])
            inference.handed_out(
                Candidate(
                    "cookie",
                    name,
                    value,
                    record.client,
                    record.connection_id,
                    now_s,
                    carried,
                    # The answer to an unknown session is that session's: another connection's new value is another's.
                    by_address=carried is None or counterpart is not None,
                )
            )
        for rule, values in handed.values.items():
            if rule.kind == "form":
                for value in values:
                    inference.handed_out(
                        Candidate(
                            "field", rule.name, value, record.client, record.connection_id, now_s, None, by_address=True
                        )
                    )


class ExchangeRecord:
    """What is known of an exchange of which something is still to come."""

    def __init__(self, client: Hashable, connection_id: Hashable, since_s: float) -> None:
        self.client = client
        self.connection_id = connection_id
        self.since_s = since_s
        self.requested = False
        """Whether the shadow got the request."""
        self.sent: dict[bytes, tuple[bytes, bytes | None]] = NO_COOKIES
        """Coupled cookies of the request: production's value, and what the shadow got for it, if anything."""
        self.production_head: HandedOut | None = None
        """What the rules that look at heads alone find; with the next one, all."""
        self.production: HandedOut | None = None
        self.production_status = 0
        self.shadow_head: HandedOut | None = None
        self.shadow: HandedOut | None = None
        self.shadow_verdict = ""
        self.pending_of_head = NO_KEYS
        """Keys of the values of production's head whose counterpart the shadow's may hold."""
        self.pending = NO_KEYS
        """Of the other values."""

    def can_precede(self, connection_id: Hashable) -> bool:
        """Whether the shadow's answer to the exchange can come before a request of this connection is sent: not if the
        exchange's own comes after it on the same connection, or is it.
        """
        return self.requested or self.connection_id != connection_id


def _forms(produced: bytes, shadowed: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The forms in which a value may turn up, each with its counterpart: as it stands, and percent-decoded, for a
    script may read a cookie and send what it says in a header or field.
    """
    yield produced, shadowed
    if b"%" in produced:
        decoded = unquote_to_bytes(produced)
        if decoded and decoded != produced:
            yield decoded, unquote_to_bytes(shadowed)


def _named(handed: HandedOut) -> Iterator[tuple[bytes, bytes]]:
    for name, value in handed.cookies.items():
        if value:
            yield name, value
    for rule, values in handed.values.items():
        for value in values:
            yield rule.name, value


def _verdict(head: ResponseHead) -> str:
    """How the shadow says that it does not know the session; empty if it does not."""
    if head.status in _REJECTIONS:
        return str(head.status)
    location = head.headers.get(b"location") if head.status < 400 else None
    return "login" if location and _LOGIN.search(url_path(location)) else ""
