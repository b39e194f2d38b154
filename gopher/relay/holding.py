"""Requests on hold: who waits for what, and who may go on when something has come.

A request waits for *blockers*, any hashable things; its ticket is released when the last of them is gone. The caller
keeps the deadlines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from gopher.http.messages import RequestHead

__all__ = ["HeldRequest", "WaitingRoom"]


class HeldRequest:
    """A request as it was when it began to wait. Without a repr: it is full of secrets."""

    __slots__ = ("awaited", "blockers", "client", "connection_id", "content", "exchange_id", "head", "since_s")

    def __init__(
        self,
        exchange_id: Hashable,
        client: Hashable,
        connection_id: Hashable,
        head: RequestHead,
        content: bytes | None,
        since_s: float,
        *,
        blockers: Iterable[Hashable],
        awaited: frozenset[bytes],
    ) -> None:
        self.exchange_id = exchange_id
        self.client = client
        self.connection_id = connection_id
        self.head = head
        self.content = content
        self.since_s = since_s
        self.blockers = set(blockers)
        """What it still waits for."""
        self.awaited = awaited
        """Keys of the values whose counterparts it waits for."""


class WaitingRoom:
    """The requests on hold, by ticket and by blocker. Its size is the caller's business: one for each connection."""

    def __init__(self) -> None:
        self._held: dict[int, HeldRequest] = {}
        self._tickets: dict[Hashable, list[int]] = {}  # by blocker
        self._next = 1

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        return f"<WaitingRoom of {len(self._held)}>"

    def enter(self, held: HeldRequest) -> int:
        """Returns the ticket."""
        ticket = self._next
        self._next += 1
        self._held[ticket] = held
        for blocker in held.blockers:
            self._tickets.setdefault(blocker, []).append(ticket)
        return ticket

    def leave(self, ticket: int) -> HeldRequest:
        """The request goes on, or is given up; `blockers` is what it had not got.

        Raises:
            KeyError: nobody waits under this ticket.
        """
        held = self._held.pop(ticket)
        for blocker in held.blockers:
            tickets = self._tickets[blocker]
            tickets.remove(ticket)
            if not tickets:
                del self._tickets[blocker]
        return held

    def waiting_for(self, blocker: Hashable) -> list[tuple[int, HeldRequest]]:
        """Tickets and requests that wait for this, among other things or for nothing else."""
        return [(ticket, self._held[ticket]) for ticket in self._tickets.get(blocker, ())]

    def block(self, ticket: int, blocker: Hashable) -> None:
        """A request that waits has to wait for this, too."""
        self._held[ticket].blockers.add(blocker)
        self._tickets.setdefault(blocker, []).append(ticket)

    def unblock(self, blocker: Hashable) -> list[int]:
        """Nobody need wait for this any more. Returns the tickets of those that now wait for nothing."""
        released = []
        for ticket in self._tickets.pop(blocker, ()):
            held = self._held[ticket]
            held.blockers.remove(blocker)
            if not held.blockers:
                released.append(ticket)
        return released
