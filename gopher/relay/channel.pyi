"""Sockets of the framed relay: non-blocking, served in batches from one epoll descriptor, with a queue for what waits.

A task per connection would cost more than the work: a wake-up of Trio is about as dear as parsing, coupling and sending
a request. So a `Channel` calls back when it is readable or has sent everything; what it calls never waits.
"""

import socket
from collections.abc import Callable
from typing import Final

from gopher.upstreams.tcp import Address

__all__ = ["READ_BYTES", "Channel", "ChannelPump"]

READ_BYTES: Final[int]
"""What one `Channel.recv` takes at most."""

class ChannelPump:
    """One epoll descriptor and the channels on it.

    Args:
        accept: takes in the connections that wait to be accepted.

    Raises:
        OSError: there are no descriptors left.
    """

    def __init__(self, accept: Callable[[], None] | None = None) -> None: ...
    @property
    def epoll_fd(self) -> int: ...
    @property
    def open(self) -> int:
        """Channels with a socket."""
    @property
    def blocked(self) -> int:
        """Always 0: every wait of a channel shows in the epoll descriptor."""
    @property
    def looks(self) -> int:
        """How often all channels have been looked at, as far as that is over."""
    @property
    def now_s(self) -> float:
        """Monotonic; of what is done now, to the length of a look."""
    def serve(self) -> tuple[int, list[tuple[Channel, int]]]:
        """Let all ready channels call back. Returns: how many were ready; the decisions are never any."""
    def look_at_clock(self) -> None:
        """A turn begins."""
    def later(self, call: Callable[[], None]) -> None:
        """Call back at the end of this batch or tick: what happens to one connection may let another go on."""
    def after_look(self, call: Callable[[], None]) -> None:
        """Call back when whatever has come by now, on any connection, has been read."""
    def run_later(self) -> None:
        """Make the calls that are due."""
    def close(self, sock: socket.socket, *, hard: bool) -> None:
        """Close a detached socket; while serving after the batch, in which its number may come again."""

class Channel:
    """One socket.

    Args:
        pump: what serves it.
        sock: non-blocking.
        on_readable: called when there is something to `recv`: bytes, an end, or an error.
        on_drained: called when nothing waits to be sent any more, after something did; and when connected.
        connecting: whether it is still being connected.
        watched: False: only `ready` says when it is connected.

    Raises:
        OSError: the system's limit of watched descriptors is reached.
    """

    def __init__(
        self,
        pump: ChannelPump,
        sock: socket.socket,
        on_readable: Callable[[], None],
        on_drained: Callable[[], None],
        *,
        connecting: bool = False,
        watched: bool = True,
    ) -> None: ...
    @classmethod
    def dial(
        cls, pump: ChannelPump, address: Address, on_readable: Callable[[], None], on_drained: Callable[[], None]
    ) -> Channel:
        """Start to connect. Raises: OSError, of an attempt that failed at once."""
    error: int
    """errno of what broke it, or 0; what is sent from then on is lost."""
    @property
    def sock(self) -> socket.socket: ...
    @property
    def reading(self) -> bool:
        """Whether it calls back for what comes; see `read`."""
    @property
    def connecting(self) -> bool:
        """Whether the far side has not accepted yet."""
    @property
    def queued(self) -> int:
        """Bytes that wait to be sent."""
    @property
    def closed(self) -> bool:
        """Whether the socket has been closed or given away."""
    @property
    def failure(self) -> str:
        """Why an attempt to connect failed; see `lastword.sentence`."""
    def ready(self, events: int) -> None:
        """What epoll says."""
    def recv(self) -> bytes | None:
        """The next bytes; b"" at the end; None if there is nothing now. Raises: OSError, broken."""
    def send(self, data: bytes) -> None:
        """Send now or later."""
    def read(self, wanted: bool) -> None:
        """Whether to call back for what comes."""
    def finish(self) -> None:
        """Send FIN after what waits."""
    def close(self, *, hard: bool) -> None:
        """Close the socket; `hard`: by RST. What waits is lost."""
    def detach(self) -> tuple[socket.socket, bytes]:
        """Give the socket away, and what waits to be sent."""
