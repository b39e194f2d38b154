"""What a coupler answers: what becomes of a request, and its counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gopher.http.messages import RequestHead

__all__ = ["CouplingStatistics", "Drop", "Rewritten", "Unchanged", "Wait"]


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The request goes on as it came."""


@dataclass(slots=True)  # not frozen: one is made for most requests, and that would double its price
class Rewritten:
    """The request goes on changed."""

    head: RequestHead = field(repr=False)
    """A new head; the one given stays as it was. Its length is still the old content's: send `with_body`'s bytes."""
    content: bytes | None = field(repr=False)
    """The new body, without framing; None if the body stays as it was."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The request contains a value whose counterpart is on its way, or may be: hold it, and all that follows on its
    connection, until the ticket is released or the deadline has come; then call `Coupler.proceed`.
    """

    ticket: int
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Drop:
    """The request is not sent: it waited in vain, and the policy says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CouplingStatistics:
    """What became of sessions and requests so far. Counts, unless the name says otherwise."""

    aliases: int
    """In the table now."""
    aliases_learned: int
    """Including those whose counterpart was replaced by a newer one."""
    aliases_evicted: int
    """Given up for want of room."""
    aliases_expired: int
    """Not used for the time to live."""
    requests_rewritten: int
    requests_missed: int
    """Sent with a value of production's, in a place of the rules or known from production, that has no counterpart."""
    requests_held: int
    """That waited, and wait no more."""
    requests_waiting: int
    held_s_sum: float
    held_s_max: float
    requests_timed_out: int
    """Held until their deadline for the shadow's answer, and still without a counterpart."""
    requests_dropped: int
    """Held in vain, and not sent: the policy `drop`."""
    values_ambiguous: int
    """New values that more than one shadow session could belong to (inferred mode)."""
    bodies_unread: int
    """Bodies of responses that a rule needed and whose coding or size did not allow it."""
    divergences: dict[str, int]
    """Exchanges that production answered with 2xx, by what the shadow answered: "401", "403", "419", "login" for a
    redirect to a login page."""
