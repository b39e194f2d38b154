"""Sockets of the framed relay: non-blocking, served in batches from one epoll descriptor, with a queue for what waits.

A task per connection would cost more than the work: a wake-up of Trio is about as dear as parsing, coupling and sending
a request. So a `Channel` calls back when it is readable or has sent everything; what it calls never waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from gopher.relay.lastword import failure_of, reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopher.upstreams.tcp import Address

__all__ = ["READ_BYTES", "Channel", "ChannelPump"]

READ_BYTES: Final = 65_536
EVENTS_PER_CALL: Final = 4096
# A batch that reads requests looks around once more before they go on; traffic that does not stop must not keep the
# other tasks waiting for ever.
LOOKS: Final = 5
_BROKEN: Final = select.EPOLLERR | select.EPOLLHUP


class ChannelPump:
    """One epoll descriptor and the channels on it.

    Args:
        accept: takes in the connections that wait to be accepted.
    """

    blocked = 0
    """Every wait of a channel shows in the epoll descriptor."""

    def __init__(self, accept: Callable[[], None] = lambda: None) -> None:
        self._epoll = select.epoll()
        self.epoll_fd = self._epoll.fileno()
        self._accept = accept
        self._channels: dict[int, Channel] = {}
        self._serving = False
        self._to_close: list[tuple[socket.socket, bool]] = []
        self._later: deque[Callable[[], None]] = deque()
        self._after_look: list[Callable[[], None]] = []
        self.looks = 0
        """How often all channels have been looked at, as far as that is over."""
        # Readable from when it is armed to when that has been seen: a batch is then served although nothing has come.
        self._wake_fd = os.eventfd(1, os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, 0)
        self.now_s = time.monotonic()
        """Of what is done now, to the length of a look."""

    @property
    def open(self) -> int:
        """Channels with a socket."""
        return len(self._channels)

    def serve(self) -> tuple[int, list[tuple[Channel, int]]]:
        """Let all ready channels call back. Returns: how many were ready; the decisions are never any."""
        served = 0
        self._serving = True
        try:
            for _ in range(LOOKS):
                self.look_at_clock()
                served += self._look()
                # Reading from many takes longer than some of the waits that begin now.
                self.look_at_clock()
                self.run_later()
                if not self._after_look:
                    break
            else:
                self._wake()
        finally:
            self._serving = False
            for sock, hard in self._to_close:
                _close(sock, hard)
            self._to_close.clear()
        return served, []

    def _look(self) -> int:
        """Read what has come, on connections that wait to be accepted too if somebody waits for that."""
        waiting, self._after_look = self._after_look, []
        if waiting:
            self._accept()
        ready = self._epoll.poll(0, EVENTS_PER_CALL)
        channels = self._channels
        for fd, events in ready:
            channel = channels.get(fd)
            # It may have been closed by one that was served before it.
            if channel is not None:
                channel.ready(events)
        self.looks += 1
        self._later.extend(waiting)
        return len(ready)

    def _wake(self) -> None:
        self._epoll.modify(self._wake_fd, select.EPOLLIN | select.EPOLLONESHOT)

    def look_at_clock(self) -> None:
        """A turn begins."""
        self.now_s = time.monotonic()

    def later(self, call: Callable[[], None]) -> None:
        """Call back at the end of this batch or tick: what happens to one connection may let another go on."""
        self._later.append(call)

    def after_look(self, call: Callable[[], None]) -> None:
        """Call back when whatever has come by now, on any connection, has been read."""
        self._after_look.append(call)
        if not self._serving:
            self._wake()

    def run_later(self) -> None:
        """Make the calls that are due."""
        while self._later:
            self._later.popleft()()

    def add(self, channel: Channel, fd: int, interest: int) -> None:
        """A channel begins."""
        self._channels[fd] = channel
        self._epoll.register(fd, interest)

    def modify(self, fd: int, interest: int) -> None:
        """Change what a channel waits for."""
        self._epoll.modify(fd, interest)

    def remove(self, fd: int) -> None:
        """A channel gives its socket away."""
        del self._channels[fd]
        self._epoll.unregister(fd)

    def close(self, sock: socket.socket, *, hard: bool) -> None:
        """Close a removed socket; while serving after the batch, in which its number may come again."""
        if self._serving:
            self._to_close.append((sock, hard))
        else:
            _close(sock, hard)


def _name(address: Address) -> tuple[str, int] | tuple[str, int, int, int]:
    """As Python's sockets want it."""
    if address.family == socket.AF_INET:
        return address.host, address.port
    return address.host, address.port, 0, int.from_bytes(address.sockaddr[-4:], sys.byteorder)


def _close(sock: socket.socket, hard: bool) -> None:
    if hard:
        reset(sock)
    else:
        sock.close()


class Channel:
    """One socket.

    Args:
        pump: what serves it.
        sock: non-blocking.
        on_readable: called when there is something to `recv`: bytes, an end, or an error.
        on_drained: called when nothing waits to be sent any more, after something did; and when connected.
        connecting: whether it is still being connected.
    """

    __slots__ = (
        "_connecting", "_fd", "_interest", "_on_drained", "_on_readable", "_pump", "_queue", "_recv", "_send", "_shut",
        "error", "reading", "sock",
    )  # fmt: skip

    def __init__(
        self,
        pump: ChannelPump,
        sock: socket.socket,
        on_readable: Callable[[], None],
        on_drained: Callable[[], None],
        *,
        connecting: bool = False,
    ) -> None:
        self._pump = pump
        self.sock = sock
        self._fd = sock.fileno()
        self._send = sock.send
        self._recv = sock.recv
        self._on_readable = on_readable
        self._on_drained = on_drained
        self._connecting = connecting
        self._queue = bytearray()
        self.reading = True
        """Whether it calls back for what comes; see `read`."""
        self._shut = False
        self.error = 0
        """errno of what broke it; what is sent from then on is lost."""
        self._interest = select.EPOLLOUT if connecting else select.EPOLLIN
        pump.add(self, self._fd, self._interest)

    @classmethod
    def dial(
        cls, pump: ChannelPump, address: Address, on_readable: Callable[[], None], on_drained: Callable[[], None]
    ) -> Channel:
        """Start to connect. Raises: OSError, of an attempt that failed at once."""
        sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            failure = sock.connect_ex(_name(address))
            if failure not in (0, errno.EINPROGRESS):
                raise OSError(failure, "connect failed")
            return cls(pump, sock, on_readable, on_drained, connecting=True)
        except BaseException:
            sock.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether the socket has been closed or given away."""
        return self._fd < 0

    @property
    def connecting(self) -> bool:
        """Whether the far side has not accepted yet."""
        return self._connecting

    @property
    def failure(self) -> str:
        """Why an attempt to connect failed; see `lastword.sentence`."""
        return failure_of(self.error)

    @property
    def queued(self) -> int:
        """Bytes that wait to be sent."""
        return len(self._queue)

    def ready(self, events: int) -> None:
        """What epoll says."""
        if self._connecting:
            if events & _BROKEN:
                self.error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNRESET
                self._on_readable()
                return
            self._connecting = False
            self._flush()
            self._watch()
            self._on_drained()
            return
        if events & select.EPOLLOUT and self._queue:
            self._flush()
            if not self._queue:
                self._watch()
                self._on_drained()
        # Broken, it is read from in any case: it would be reported for ever, and brings no more than is in its buffer.
        if events & ~select.EPOLLOUT and self._fd >= 0:
            self._on_readable()

    def recv(self) -> bytes | None:
        """The next bytes; b"" at the end; None if there is nothing now. Raises: OSError, broken."""
        try:
            data = self._recv(READ_BYTES)
        except BlockingIOError:
            return None
        if not data and self.error:
            raise OSError(self.error, "connection broken")
        return data

    def send(self, data: bytes) -> None:
        """Send now or later."""
        if not self._queue and not self._connecting and not self.error:
            try:
                sent = self._send(data)
            except BlockingIOError:
                sent = 0
            except OSError as failure:
                # It shows when the channel is read, after whatever came before.
                self.error = failure.errno or errno.ECONNRESET
                return
            if sent == len(data):
                return
            data = data[sent:]
        if not self.error:
            self._queue += data
            self._watch()

    def _flush(self) -> None:
        if not self._queue:
            return
        try:
            sent = self._send(self._queue)
        except BlockingIOError:
            return
        except OSError as failure:
            self.error = failure.errno or errno.ECONNRESET
            self._queue.clear()
            return
        del self._queue[:sent]
        if self._shut and not self._queue:
            self._send_fin()

    def read(self, wanted: bool) -> None:
        """Whether to call back for what comes."""
        if wanted is not self.reading:
            self.reading = wanted
            self._watch()

    def _watch(self) -> None:
        if self._connecting or self._fd < 0:
            return
        interest = (select.EPOLLIN if self.reading else 0) | (select.EPOLLOUT if self._queue else 0)
        if interest != self._interest:
            self._interest = interest
            self._pump.modify(self._fd, interest)

    def finish(self) -> None:
        """Send FIN after what waits."""
        self._shut = True
        if not self._queue and not self._connecting:
            self._send_fin()

    def _send_fin(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self, *, hard: bool) -> None:
        """Close the socket; `hard`: by RST. What waits is lost."""
        if self._fd >= 0:
            self._pump.close(self.detach()[0], hard=hard)

    def detach(self) -> tuple[socket.socket, bytes]:
        """Give the socket away, and what waits to be sent."""
        self._pump.remove(self._fd)
        self._fd = -1
        self._connecting = False
        waiting = bytes(self._queue)
        self._queue.clear()
        return self.sock, waiting
