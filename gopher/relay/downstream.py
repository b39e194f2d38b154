"""One downstream connection of the framed relay: who is there, what it sends and gets, and how it ends.

What is done with its requests is decided in `gopher.relay.turns`. On a framed link they come in records, with
production's answers between them, and nobody reads the upstream's. Bytes that no setting changes pass as they came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gopher._fastpath import CLIENT_TO_SERVER
from gopher.errors import RemoteProtocolError
from gopher.link import RecordDecoder, RecordType, begins_with_header, decode_header
from gopher.relay import lastword
from gopher.relay.channel import READ_BYTES, Channel
from gopher.relay.turns import Turns

if TYPE_CHECKING:
    import socket

    from gopher.link import ProxyHeader, Record
    from gopher.relay.framed import Framed
    from gopher.relay.upstream import UpstreamConnection
    from gopher.upstreams.stream import MirroredStream
    from gopher.upstreams.upstream import Upstream

__all__ = ["Downstream"]


class Downstream:
    """One downstream connection.

    Args:
        relay: what it belongs to.
        sock: connected, non-blocking.
        header: who the client is, as far as is known.
        may_link: whether the downstream may send a PROXY protocol header.
        upstream: of a framed link, whose PROXY header has been read: an upstream connection that is there.
    """

    def __init__(
        self,
        relay: Framed,
        sock: socket.socket,
        header: ProxyHeader,
        *,
        may_link: bool,
        upstream: socket.socket | None = None,
    ) -> None:
        self._relay = relay
        self._tally = relay.tally
        self._pump = relay.pump
        self.header = header
        self.channel = Channel(relay.pump, sock, self._readable, self._drained)
        self._may_link = may_link
        self._sniffed: bytes | None = b"" if upstream is None else None
        """What may be a PROXY header; None: no more."""
        self._records = RecordDecoder() if upstream is not None else None
        self.ended = False
        """Whether the other side has sent its FIN."""
        self.over = False
        """Whether the last word has been said: no more requests are served."""
        self.closed = False
        self._failure = ""
        self._copies: MirroredStream | None = None
        self._turns = self._begin_turns(upstream)

    def _begin_turns(self, upstream: socket.socket | None = None) -> Turns:
        framed = self._records is not None
        self._tally.framed += framed
        return Turns(self._relay, self, self.header, framed=framed, upstream=upstream)

    @property
    def last_active_s(self) -> float:
        """When something last moved: monotonic."""
        return self._turns.last_active_s

    # -- what comes in ---------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data = self.channel.recv()
        except OSError:
            self.fail("client_reset")
            return
        if data is None:
            return
        self._turns.last_active_s = self._pump.now_s
        if not data:
            self._end()
            return
        if self._sniffed is not None:
            data = self._look_for_header(self._sniffed + data)
            if not data:
                return
        if self._records is None:
            self._take(data)
            return
        try:
            while data:
                for record in self._records.feed(data):
                    self._take_record(record)
                # What is left would be read after other connections.
                data = b"" if self.closed or len(data) < READ_BYTES else self.channel.recv() or b""
        except RemoteProtocolError:
            self.fail("bad_link")
        except OSError:
            self.fail("client_reset")

    def _look_for_header(self, data: bytes) -> bytes:
        """Returns what follows a header, or what is none; empty while that is not known."""
        begins = begins_with_header(data)
        if begins is False:
            self._sniffed = None
            return data
        try:
            decoded = decode_header(data)
        except RemoteProtocolError:
            self.fail("bad_link")
            return b""
        if decoded is None:
            self._sniffed = data
            return b""
        if not self._may_link:
            self.fail("bad_link")
            return b""
        self._sniffed = None
        self._tally.links += 1
        header, length = decoded
        if header.client is not None:
            self.header = header
        if header.link is not None and header.link.framed:
            self._records = RecordDecoder()
        self._turns = self._begin_turns()
        return data[length:]

    def _take_record(self, record: Record) -> None:
        if self.closed:
            return
        if record.type is RecordType.REQUEST:
            self._take(record.data)
        elif record.type is RecordType.RESPONSE:
            self._turns.produced(record.data)
        elif record.type is RecordType.GAP:
            if record.direction == CLIENT_TO_SERVER:
                if self._copies is not None:
                    self._copies.gap(record.length)
                self._turns.gap()
            else:
                self._turns.production_gap(record.length)
        elif record.type is RecordType.FIN:
            if record.direction == CLIENT_TO_SERVER:
                self._turns.end()
            else:
                self._turns.production_end()
        else:
            self._turns.reset()

    def _take(self, data: bytes) -> None:
        """Bytes of the client."""
        self._tally.from_downstream += len(data)
        if self._copies is None:
            self._copies = self._relay.copies_of(self)
        if self._copies is not None:
            for copy, over in self._copies.write(data) or ():
                copy.give_up(over)
        self._turns.feed(data)

    def _end(self) -> None:
        """The other side has sent its FIN."""
        if self._sniffed:
            data, self._sniffed = self._sniffed, None
            self._take(data)
        if self.closed:
            return
        if self.ended or self.over:
            # The client has taken the last word.
            self.close(hard=False)
            return
        self.ended = True
        self.channel.read(False)
        self._turns.end()

    # -- what goes out ---------------------------------------------------------------------------------------------

    def _drained(self) -> None:
        if not self.over:
            self._turns.downstream_drained()
        elif self.ended:
            self.close(hard=False)

    def answer(self, status: int, message: bytes) -> None:
        """The relay's own answer, whole."""
        self._tally.answer(status)
        self.channel.send(message)

    def refuse(self, status: int, reason: str, *, to_head: bool = False) -> None:
        """The relay's own answer, and the end. `to_head`: to a HEAD request."""
        self.answer(status, lastword.answer_bytes(status, reason, to_head=to_head))
        self.finish()

    # -- ends ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """No more answers: FIN, and wait for the client's."""
        if self.over:
            return
        self.over = True
        self._turns.stop(hard=False)
        self.channel.finish()
        if self.ended and not self.channel.queued:
            self.close(hard=False)
        else:
            self.channel.read(True)
            self._relay.linger(self)

    def note(self, failure: str) -> None:
        """Why it ends, or a part of it; the first reason is the one that counts."""
        self._failure = self._failure or failure

    def fail(self, failure: str) -> None:
        """End by RST, both ways."""
        self.note(failure)
        self.close(hard=True)

    def idle(self) -> None:
        """Nothing has moved for the idle time."""
        if self.over or not self._turns.answer_overdue():
            self.fail("idle")

    def stop(self) -> None:
        """The relay stops: what is under way may end."""
        if self._records is None and self._turns.at_rest:
            self.finish()

    def linger_over(self) -> None:
        """The client has had time to take the last word."""
        self.close(hard=False)

    def close(self, *, hard: bool) -> None:
        """Close both ways; `hard`: by RST."""
        if self.closed:
            return
        self.channel.close(hard=hard)
        self._end_life(hard=hard)
        self._tally.end(self._failure)

    def become_tunnel(self, upstream: UpstreamConnection, *, to_upstream: bytes, to_downstream: bytes) -> None:
        """From here on bytes pass both ways, and this is over. The arguments: what goes first each way."""
        connecting = upstream.connecting
        downstream, downstream_waiting = self.channel.detach()
        upstream_sock, upstream_waiting = upstream.detach()
        self._end_life(hard=False)
        self._relay.adopt(
            downstream,
            upstream_sock,
            self.header,
            connecting=connecting,
            to_downstream=downstream_waiting + to_downstream,
            to_upstream=upstream_waiting + to_upstream,
        )

    def drop_copies(self, upstream: Upstream) -> None:
        """A reload has removed an upstream that gets copies."""
        if self._copies is not None:
            self._copies.leave(upstream, "removed")

    def _end_life(self, *, hard: bool) -> None:
        self.over = self.closed = True
        self._turns.close(hard=hard)
        if self._copies is not None:
            if hard:
                self._copies.reset()
            else:
                self._copies.finish()
            self._copies.close(reset=hard)
            self._copies = None
        self._relay.forget(self)
