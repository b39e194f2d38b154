"""A request that the relay has read, up to the end of its answers. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gopher.http.messages import RequestHead, ResponseHead
    from gopher.relay.exchange import Body
    from gopher.relay.hooks import Slot
    from gopher.relay.scripted import HeldAnswer

__all__ = ["Pending", "Phase", "keeps_alive"]


class Phase:
    """Of a request whose turn has come. Numbers: before Python 3.12 a member of an Enum costs a call to look at."""

    COLLECTING: Final = 1
    """A rule needs the whole body."""
    WAITING: Final = 2
    """For the shadow to hand something out to another exchange."""
    SENDING: Final = 3
    SENT: Final = 4
    """All of it: its turn is over, its answer is due."""
    SKIPPING: Final = 5
    """The rest of it goes nowhere."""
    SCRIPTED: Final = 6
    """Scripts have it."""
    READING: Final = 7
    """Scripts have it, and want its body."""
    CUT: Final = 8
    """The rest of it will not come: what became of it is done when the answers before its own have been passed on."""


_KEEP_ALIVE: Final = frozenset({b"keep-alive", b"Keep-Alive"})


class Pending:
    """One request.

    Args:
        number: of the exchange, unique over all connections.
        head: of the request.
        has_body: whether there is a body, perhaps an empty one.
    """

    def __init__(self, number: int, head: RequestHead, *, has_body: bool) -> None:
        self.id = number
        self.head = head
        self.has_body = has_body
        self.phase = Phase.SENDING
        self.due_looks = 0
        """How many looks at all connections (`ChannelPump.looks`) have to be over before it is looked at."""
        self.apart = False
        """Whether it goes on a new upstream connection."""
        self.whole = False
        """Whether its end has been reached."""
        self.pieces: list[bytes] | None = None
        """Of the body, as they came, while it is being collected."""
        self.contents: list[bytes] | None = None
        self.size = 0
        """Of what is kept of the body."""
        self.answer: ResponseHead | None = None
        """The head of the final answer."""
        self.answer_read = False
        """Whether a rule looks at the answer's body."""
        self.answer_contents: list[bytes] | None = None
        """That, unless it is too long."""
        self.answer_bytes = 0
        """Of what is kept of it."""
        self.answered = False
        self.abandoned = False
        """Whether an answer of the shadow cannot come any more: production's teaches nothing."""
        self.keep = True
        """Whether the connection that the answer comes on outlives it."""
        self.own: tuple[int, bytes] | None = None
        """The relay's own answer in place of the upstream's: its status, and the whole message."""
        self.swallows_continue = False
        """Whether the client has been told to send the body: the upstream's telling it comes too late."""
        self.produced: ResponseHead | None = None
        """The head of production's answer."""
        self.produced_contents: list[bytes] | None = None
        """The body of production's answer, if a rule looks at it."""
        self.produced_bytes = 0
        """Of what is kept of it."""
        self.produced_left = 0
        """Bytes of the body of production's answer that have not come, if its length is known."""
        self.slot: Slot | None = None
        """What scripts see, once its turn has come."""
        self.replaced = False
        """Whether the client's body gives way to another one."""
        self.produced_body: Body | None = None
        """Of production's answer, while it waits for the request's turn."""
        self.held: HeldAnswer | None = None
        """The answer, while scripts have it."""
        self.answer_replaced = False
        """Whether the answer's body gives way to another one."""

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
    # Taking a list apart costs more than all else that is asked of most messages.
    if len(options) == 1 and options[0] in _KEEP_ALIVE:
        return True
    tokens = {token.strip() for token in b",".join(options).lower().split(b",")}
    return b"close" not in tokens and (head.version == b"1.1" or b"keep-alive" in tokens)
