"""A request that the relay has read, up to the end of its answers. No I/O."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gopher.http.messages import RequestHead, ResponseHead
    from gopher.relay.exchange import Body
    from gopher.relay.hooks import Slot
    from gopher.relay.scripted import HeldAnswer

__all__ = ["Pending", "Phase", "keeps_alive"]


class Phase(enum.Enum):
    """Of a request whose turn has come."""

    COLLECTING = 1
    """A rule needs the whole body."""
    WAITING = 2
    """For the shadow to hand something out to another exchange."""
    SENDING = 3
    SENT = 4
    """All of it: its turn is over, its answer is due."""
    SKIPPING = 5
    """The rest of it goes nowhere."""
    SCRIPTED = 6
    """Scripts have it."""
    READING = 7
    """Scripts have it, and want its body."""
    CUT = 8
    """The rest of it will not come: what became of it is done when the answers before its own have been passed on."""


class Pending:
    """One request.

    Args:
        number: of the exchange, unique over all connections.
        head: of the request.
        has_body: whether there is a body, perhaps an empty one.
    """

    # Most requests keep most of these: attributes of the class cost nothing to set up.
    phase = Phase.SENDING
    due_looks = 0
    """How many looks at all connections (`ChannelPump.looks`) have to be over before it is looked at."""
    apart = False
    """Whether it goes on a new upstream connection."""
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
    abandoned = False
    """Whether an answer of the shadow cannot come any more: production's teaches nothing."""
    keep = True
    """Whether the connection that the answer comes on outlives it."""
    own: tuple[int, bytes] | None = None
    """The relay's own answer in place of the upstream's: its status, and the whole message."""
    swallows_continue = False
    """Whether the client has been told to send the body: the upstream's telling it comes too late."""
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

    @property
    def wants_tunnel(self) -> bool:
        """Whether it asks for something else than HTTP: until it is answered, what follows is not read."""
        return self.head.upgrade or self.head.method == b"CONNECT"

    def switched_by(self, head: ResponseHead) -> bool:
        """Whether this answer grants it."""
        return head.status == 101 or (head.status < 300 and self.head.method == b"CONNECT")


def keeps_alive(head: RequestHead | ResponseHead) -> bool:
    """RFC 9112 section 9.3: whether more messages may follow this one on its connection."""
    options = head.headers.get_all(b"connection")
    if not options:
        return head.version == b"1.1"
    tokens = {token.strip() for token in b",".join(options).lower().split(b",")}
    return b"close" not in tokens and (head.version == b"1.1" or b"keep-alive" in tokens)
