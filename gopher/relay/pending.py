"""A request that the relay has read, up to the end of its answers. No I/O."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gopher.http.messages import RequestHead, ResponseHead
    from gopher.relay.exchange import Body
    from gopher.relay.hooks import Slot
    from gopher.relay.scripted import HeldAnswer

__all__ = ["Pending", "Phase"]


class Phase(enum.Enum):
    """Of a request whose turn has come."""

    COLLECTING = 1
    """A rule needs the whole body."""
    WAITING = 2
    """For the shadow to hand something out to another exchange."""
    SENDING = 3
    SENT = 4
    SKIPPING = 5
    """The rest of it goes nowhere."""
    SCRIPTED = 6
    """Scripts have it."""
    READING = 7
    """Scripts have it, and want its body."""


class Pending:
    """One request.

    Args:
        number: of the exchange, unique over all connections.
        head: of the request.
        has_body: whether there is a body, perhaps an empty one.
    """

    # Most requests keep most of these: attributes of the class cost nothing to set up.
    phase = Phase.SENDING
    whole = False
    """Whether its end has been reached."""
    pieces: list[bytes] | None = None
    """Of the body, as they came, while it is being collected."""
    contents: list[bytes] | None = None
    size = 0
    """Of what is kept of the body."""
    answer: ResponseHead | None = None
    """The head of the final answer."""
    answer_contents: list[bytes] | None = None
    """The answer's body, if a rule looks at it."""
    answer_bytes = 0
    """Of what is kept of it."""
    answered = False
    keep = True
    """Whether the upstream connection outlives the answer."""
    produced: ResponseHead | None = None
    """The head of production's answer."""
    produced_contents: list[bytes] | None = None
    """The body of production's answer, if a rule looks at it."""
    produced_bytes = 0
    """Of what is kept of it."""
    produced_left = 0
    """Bytes of the body of production's answer that have not come, if its length is known."""

    slot: Slot | None = None
    """What scripts see, once its turn has come."""
    replaced = False
    """Whether the client's body gives way to another one."""
    produced_body: Body | None = None
    """Of production's answer, while it waits for the request's turn."""
    held: HeldAnswer | None = None
    """The answer, while scripts have it."""
    answer_replaced = False
    """Whether the answer's body gives way to another one."""

    def __init__(self, number: int, head: RequestHead, *, has_body: bool) -> None:
        self.id = number
        self.head = head
        self.has_body = has_body
