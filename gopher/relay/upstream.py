"""The connection of the framed relay to its upstream: made at one of several addresses, answers read as messages."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Final

from gopher.errors import RemoteProtocolError
from gopher.http.messages import MessageLimits, MessageParser
from gopher.relay import lastword
from gopher.relay.channel import Channel
from gopher.relay.tls import TlsChannel

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Protocol

    from gopher.http.messages import MessageEvent, RequestHead
    from gopher.relay.framed import Framed

    class User(Protocol):
        """Who is told what becomes of it."""

        last_active_s: float

        def upstream_drained(self) -> None:
            """Nothing waits to be sent any more, after something did; or it is connected now."""

        def upstream_ended(self, failure: str) -> None:
            """It is over, and was closed: connecting failed, what came is no clear HTTP, or its far side ended it."""


__all__ = ["UpstreamConnection"]

LIMITS: Final = MessageLimits()


class UpstreamConnection:
    """One connection.

    Args:
        relay: the addresses, the pump, the tally.
        user: who is told.
        take: gets the events of the answers.
        sock: a connection that is there already; without one, `dial`.
    """

    def __init__(
        self,
        relay: Framed,
        user: User,
        take: Callable[[list[MessageEvent]], None],
        sock: socket.socket | None = None,
    ) -> None:
        self._relay = relay
        self._user = user
        self._take = take
        self._answers = MessageParser("response", limits=LIMITS)
        self._addresses_left = len(relay.addresses)
        self._out: list[bytes] = []
        """What is sent at the next `flush`."""
        self.deaf = False
        """Answers are no messages any more, and nobody wants them."""
        self.closed = False
        """Whether it is over: nothing is sent or read any more."""
        self._channel: Channel | None = None
        if sock is not None:
            self._channel = Channel(relay.pump, sock, self._readable, user.upstream_drained)

    def dial(self, first: bytes) -> str:
        """Dial addresses in turn until one does not fail at once. Returns: why all have failed; else nothing.

        Args:
            first: what to send first.
        """
        relay = self._relay
        if relay.tls.used:
            return self._dial_tls(first)
        failure = errno.EHOSTUNREACH
        while self._addresses_left:
            self._addresses_left -= 1
            try:
                self._channel = Channel.dial(
                    relay.pump, relay.addresses[0], self._readable, self._user.upstream_drained
                )
            except OSError as error:
                failure = error.errno or failure
                relay.prefer_another()
                continue
            self.closed = False
            relay.dialled(self, self._channel)
            self._channel.send(first)
            return ""
        return lastword.failure_of(failure)

    def _dial_tls(self, first: bytes) -> str:
        # It tries all addresses by itself.
        self._addresses_left = 0
        try:
            channel = TlsChannel(self._relay.tls, self._readable, self._user.upstream_drained)
        except OSError as error:
            return lastword.failure_of(error.errno or errno.EMFILE)
        failure = channel.start(first)
        if not failure:
            self._channel = channel
            self.closed = False
        return failure

    def connect_timed_out(self, channel: Channel) -> None:
        """The far side did not accept in time."""
        if channel is self._channel and channel.connecting:
            self._connect_failed("connect_timeout")

    def _connect_failed(self, failure: str) -> None:
        sock, waiting = self.detach()
        self._relay.pump.close(sock, hard=True)
        if self._addresses_left:
            self._relay.prefer_another()
            failure = self.dial(waiting)
        if failure:
            self._user.upstream_ended(failure)

    # -- what goes out ---------------------------------------------------------------------------------------------

    @property
    def connecting(self) -> bool:
        """Whether the far side has not accepted yet."""
        return self._channel is not None and self._channel.connecting

    @property
    def queued(self) -> int:
        """Bytes that wait for the far side to take them."""
        return self._channel.queued if self._channel is not None else 0

    def request(self, head: RequestHead, data: bytes) -> None:
        """To be sent at the next `flush`: a request with this head, or its beginning. Its answer will come, after those
        to the requests before it.
        """
        self._answers.expect(head.method, upgrade=head.upgrade)
        self._out.append(data)

    def write(self, data: bytes) -> None:
        """To be sent at the next `flush`."""
        self._out.append(data)

    def flush(self) -> None:
        """Send what has been written, in one piece."""
        out = self._out
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            if self._channel is not None:
                self._channel.send(data)

    def finish(self) -> None:
        """Send FIN after what waits."""
        if self._channel is not None:
            self._channel.finish()

    def close(self, *, hard: bool) -> None:
        """Close it; `hard`: by RST. What waits is lost, and nobody is told."""
        if self._channel is not None:
            self._channel.close(hard=hard)
            self._channel = None
            self.closed = True

    def detach(self) -> tuple[socket.socket, bytes]:
        """Give the socket away, and what waits to be sent."""
        assert self._channel is not None
        given = self._channel.detach()
        self._channel = None
        self.closed = True
        return given

    # -- what comes in ---------------------------------------------------------------------------------------------

    def read(self, wanted: bool) -> None:
        """Whether to read what comes."""
        if self._channel is not None:
            self._channel.read(wanted)

    def _readable(self) -> None:
        channel, user, relay = self._channel, self._user, self._relay
        assert channel is not None
        if channel.connecting:
            self._connect_failed(channel.failure)
            return
        try:
            data = channel.recv()
        except OSError:
            self._end("upstream_reset")
            return
        if data is None:
            return
        user.last_active_s = relay.pump.now_s
        relay.tally.from_upstream += len(data)
        if not data:
            events: list[MessageEvent] = []
            if not self.deaf:
                # An answer that is cut short is seen as one that is due, by whoever is told of the end.
                with contextlib.suppress(RemoteProtocolError):
                    events = self._answers.end()
            if events:
                self._take(events)
            self._end("upstream_closed")
            return
        if self.deaf:
            return
        try:
            events = self._answers.feed(data)
        except RemoteProtocolError:
            self._end("bad_response")
            return
        self._take(events)

    def _end(self, failure: str) -> None:
        if self._channel is not None:
            self.close(hard=failure != "upstream_closed")
            self._user.upstream_ended(failure)
