"""Without production's responses: whose is the shadow session that a new value belongs to?

The shadow set a session for a client, and soon after the same client sends a value that nobody has seen: that value is
production's name for the session, if it is the only one of this client that has no such name yet. With more than one no
guess is made. Best effort by nature; `docs/coupling.md` says where it fails.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gopher.relay.aliases import MAX_VALUE_BYTES

if TYPE_CHECKING:
    from collections.abc import Hashable

    from gopher.relay.places import Place

__all__ = ["CLAIM_S", "Candidate", "Inference"]

CLAIM_S: Final = 600.0
"""A session that no new value claimed for this long is no candidate any more: whoever got it does not come back, and
would only make later ones ambiguous."""


@dataclass(slots=True, eq=False)
class Candidate:
    """A value that the shadow handed out to one client. Without a repr of values: they are secrets."""

    place: Place
    name: bytes
    value: bytes = field(repr=False)
    client: Hashable
    connection_id: Hashable
    since_s: float
    carried: bytes | None = field(repr=False)
    """Production's value in the request that the shadow answered with this one: the client's name for it, unless
    production rotated as well."""
    by_address: bool
    """Whether any connection of the client may claim it, or only the one it was set on."""
    claimed: bool = False


class Inference:
    """The values that the shadow handed out, and which of them are claimed. At most `max_candidates`, oldest out."""

    def __init__(self, max_candidates: int) -> None:
        self._max = max_candidates
        self._all: OrderedDict[tuple[Place, bytes, bytes], Candidate] = OrderedDict()
        # Unclaimed, by (place, name, connection or client).
        self._on_connection: dict[tuple[Place, bytes, Hashable], list[Candidate]] = {}
        self._of_client: dict[tuple[Place, bytes, Hashable], list[Candidate]] = {}

    def __repr__(self) -> str:
        return f"<Inference over {len(self._all)} candidates>"

    def handed_out(self, candidate: Candidate) -> None:
        """The shadow handed a value out. One that it handed out before stays as it is, claimed or not."""
        if not 0 < len(candidate.value) <= MAX_VALUE_BYTES:
            return
        key = (candidate.place, candidate.name, candidate.value)
        if key in self._all:
            self._all.move_to_end(key)
            return
        self._all[key] = candidate
        self._on_connection.setdefault(_at(candidate, candidate.connection_id), []).append(candidate)
        if candidate.by_address:
            self._of_client.setdefault(_at(candidate, candidate.client), []).append(candidate)
        if len(self._all) > self._max:
            _, oldest = self._all.popitem(last=False)
            self._retire(oldest)

    def withdrawn(self, place: Place, name: bytes, connection_id: Hashable) -> None:
        """The shadow deleted the cookie: what it had set on this connection and nobody claimed is void."""
        for candidate in list(self._on_connection.get((place, name, connection_id), ())):
            self._retire(candidate)

    def still_used(self, place: Place, name: bytes, connection_id: Hashable, value: bytes) -> None:
        """After the shadow's answer the connection goes on with the value it had: production did not rotate, so what
        the shadow set in reply to it is this value's, and nobody else's.
        """
        for candidate in list(self._on_connection.get((place, name, connection_id), ())):
            if candidate.carried == value:
                self._retire(candidate)

    def on_connection(self, place: Place, name: bytes, connection_id: Hashable, now_s: float) -> list[Candidate]:
        """What this connection could claim."""
        return self._fresh(self._on_connection.get((place, name, connection_id)), now_s)

    def of_client(self, place: Place, name: bytes, client: Hashable, now_s: float) -> list[Candidate]:
        """What any connection of this client could claim."""
        return self._fresh(self._of_client.get((place, name, client)), now_s)

    def knows(self, place: Place, name: bytes, value: bytes) -> bool:
        """Whether the shadow itself handed this value out: then the client got it from the shadow."""
        return (place, name, value) in self._all

    def claim(self, candidate: Candidate) -> None:
        """The candidate belongs to somebody now."""
        self._retire(candidate)

    def _fresh(self, candidates: list[Candidate] | None, now_s: float) -> list[Candidate]:
        for candidate in [each for each in candidates or () if now_s - each.since_s > CLAIM_S]:
            self._retire(candidate)
        return list(candidates or ())

    def _retire(self, candidate: Candidate) -> None:
        """Out of the running, but not forgotten: the same value handed out again is no new candidate."""
        if candidate.claimed:
            return
        candidate.claimed = True
        for index, key in (
            (self._on_connection, _at(candidate, candidate.connection_id)),
            (self._of_client, _at(candidate, candidate.client)),
        ):
            among = index.get(key, [])
            if candidate in among:
                among.remove(candidate)
                if not among:
                    del index[key]


def _at(candidate: Candidate, who: Hashable) -> tuple[Place, bytes, Hashable]:
    return candidate.place, candidate.name, who
