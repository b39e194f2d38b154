"""An upstream that is a relay, or any server that speaks the PROXY protocol: says who the client was.

Stands where `gopher.upstreams.tcp` does and dials like it; see docs/link.md for what goes over the connection. When
production's answers are captured too, the link is framed: both directions, gaps and ends in the order of capture, and
the connection stays until the captured one is over in both directions. Answers take no more than half of each memory
bound and are never waited for, so that they cost no byte of the client; what does not fit is told as a gap and counted.

Accounts are about the client's bytes only, as for every upstream.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Final

from gopher._fastpath import CLIENT_TO_SERVER, SERVER_TO_CLIENT
from gopher._pump import Connection
from gopher.http.framing import RequestFramer
from gopher.link import (
    RECORD_HEAD_BYTES,
    RECORD_LIMIT_BYTES,
    LinkInfo,
    ProxyHeader,
    encode_data,
    encode_fin,
    encode_gap,
    encode_header,
    encode_rst,
)
from gopher.upstreams.tcp import TcpUpstream
from gopher.upstreams.upstream import StreamCopy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gopher._fastpath import Flow
    from gopher._pump import Budget, Pump
    from gopher._runs import ByteRun
    from gopher.config import MirrorConfig, UpstreamConfig
    from gopher.upstreams.tcp import Address

__all__ = ["FramedCopy", "IdentifiedCopy", "RelayUpstream"]


def _opaque_framer() -> RequestFramer:
    framer = RequestFramer()
    framer.feed(b"\0")
    return framer


# A framed link gets no answers: for the pump it is not HTTP/1, so that it is half-closed at its end.
_NO_ANSWERS: Final = _opaque_framer()


class RelayUpstream(TcpUpstream):
    """Mirrored streams go to a relay.

    Args:
        framed: production's answers go along.
        capture_id: 8 bytes that tell this capture's connections from those of others; not for `IdentifiedCopy`.

    Others as for `TcpUpstream`.
    """

    def __init__(
        self,
        config: UpstreamConfig,
        limits: MirrorConfig,
        total: Budget,
        addresses: list[Address],
        pump: Pump,
        *,
        framed: bool = False,
        capture_id: bytes = b"",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config, limits, total, addresses, pump, clock)
        self.framed = framed
        self.time_ns = 0
        """Of the captured event that is being handled; set by whoever hands it on."""
        self._capture_id = capture_id

    def copy(self, flow: Flow) -> StreamCopy:
        """See `Upstream.copy`."""
        return (FramedCopy if self.framed else LinkCopy)(self, flow)

    def header(self, flow: Flow, *, rejoining: bool) -> ProxyHeader:
        """Who is behind a captured connection. `rejoining`: some of it was given up."""
        info = LinkInfo(framed=self.framed, joined=rejoining or not flow.began_with_syn, start_ns=self.time_ns)
        unique_id = self._capture_id + flow.id.to_bytes(8, "big")
        return ProxyHeader(client=flow.client, server=flow.server, unique_id=unique_id, link=info)

    def _open(self, copy: StreamCopy, base: int, requests: RequestFramer) -> Connection:
        assert isinstance(copy, (LinkCopy, IdentifiedCopy))
        header = encode_header(copy.header)
        if self.framed:
            return FramedLink(self, self._pump, _NO_ANSWERS, base, copy, header)
        return Link(self, self._pump, requests, base, copy, header)


class IdentifiedCopy(StreamCopy):
    """What a relay gets of a connection to this relay.

    Args:
        upstream: where it goes.
        name: see `StreamCopy`.
        header: who the client is.
    """

    __slots__ = ("_header",)

    def __init__(self, upstream: RelayUpstream, name: str, header: ProxyHeader) -> None:
        super().__init__(upstream, name)
        self._header = header

    @property
    def header(self) -> ProxyHeader:
        """Who is behind it."""
        link = self._header.link
        if link is None or not self.rejoining:
            return self._header
        return dataclasses.replace(self._header, link=dataclasses.replace(link, joined=True))


class LinkCopy(StreamCopy):
    """What a relay gets of one captured connection."""

    __slots__ = ("flow",)

    upstream: RelayUpstream

    def __init__(self, upstream: RelayUpstream, flow: Flow) -> None:
        super().__init__(upstream, "", flow.server_port)
        self.flow = flow

    @property
    def header(self) -> ProxyHeader:
        """Who is behind it."""
        return self.upstream.header(self.flow, rejoining=self.rejoining)


class FramedCopy(LinkCopy):
    """What a relay gets of one captured connection, with production's direction."""

    __slots__ = ()

    connection: FramedLink | None

    # -- the client's direction ------------------------------------------------------------------------------------

    def interrupt(self, reason: str, *, whole: bool, length: int) -> None:
        """The stream has a hole. The relay is told, and ends its own connection as visibly as gopher would."""
        if self.connection is None:
            super().interrupt(reason, whole=whole, length=length)
        else:
            self.note_shed(reason)
            self.tell_gap(length)

    def skip(self, reason: str, length: int) -> None:
        """Bytes that were captured and that no upstream gets."""
        super().skip(reason, length)
        self.tell_gap(length)

    def tell_gap(self, length: int) -> None:
        """Bytes of the client do not follow."""
        self._tell(encode_gap(CLIENT_TO_SERVER, length, self.upstream.time_ns))

    def finish(self) -> None:
        """The client has ended. Production may have not: see `close`."""

    def reset(self) -> None:
        """The connection was reset: see `close`."""

    # -- production's direction ------------------------------------------------------------------------------------

    @property
    def takes_answers(self) -> bool:
        """Whether there is room for production's answers in the queues."""
        ledger = self.upstream.ledger
        return self.connection is not None and (
            self.connection.queued <= ledger.connection_limit // 2
            and ledger.queued <= ledger.limit // 2
            and ledger.total.used <= ledger.total.limit // 2
        )

    def answer(self, data: bytes) -> None:
        """Pass on the next bytes of production."""
        if self.connection is None:
            return
        if not self.takes_answers:
            self.connection.missed_bytes += len(data)
            self.upstream.answers_missed_bytes += len(data)
            return
        self._tell_missed()
        for part in _parts(data):
            self._tell(encode_data(SERVER_TO_CLIENT, part, self.upstream.time_ns))

    def answer_gap(self, length: int) -> None:
        """Bytes of production are missing in the capture."""
        if self.connection is not None:
            self.connection.missed_bytes += length
            if self.takes_answers:
                self._tell_missed()

    # -- ends ------------------------------------------------------------------------------------------------------

    def end(self, direction: int) -> None:
        """A direction is complete."""
        if direction == SERVER_TO_CLIENT:
            self._tell_missed()
        self._tell(encode_fin(direction, self.upstream.time_ns))

    def close(self, *, reset: bool) -> None:
        """The captured connection is over, or not looked at any more; `reset`: by RST."""
        if reset:
            self._tell_missed()
            self._tell(encode_rst(self.upstream.time_ns))
        super().finish()

    def _tell_missed(self) -> None:
        if self.connection is not None and self.connection.missed_bytes:
            length, self.connection.missed_bytes = self.connection.missed_bytes, 0
            self._tell(encode_gap(SERVER_TO_CLIENT, length, self.upstream.time_ns))

    def _tell(self, record: bytes) -> None:
        # There is no link before the client's first byte, nor between a lost one and the next request.
        connection = self.connection
        if connection is not None:
            outcome = connection.tell(record)
            if outcome < 0:
                self.upstream.outcome(connection, outcome)


class Link(Connection):
    """A connection whose first write has the header before it."""

    def __init__(
        self,
        upstream: RelayUpstream,
        pump: Pump,
        requests: RequestFramer,
        base: int,
        owner: StreamCopy,
        header: bytes,
    ) -> None:
        super().__init__(pump, upstream.ledger, requests, base, owner)
        self._upstream = upstream
        self._header = header

    def write(self, data: bytes | ByteRun) -> int:
        """See `Connection.write`."""
        return self._wrap(bytes(data), 0) if self._header else super().write(data)

    def _wrap(self, data: bytes, overhead: int) -> int:
        header, self._header = self._header, b""
        return self.write_wrapped(header + data, len(header) + overhead)


class FramedLink(Link):
    """A connection of records."""

    missed_bytes = 0
    """Of production's answers, since the last record of them."""

    def write(self, data: bytes | ByteRun) -> int:
        """See `Connection.write`."""
        time_ns = self._upstream.time_ns
        outcomes = [
            self._wrap(encode_data(CLIENT_TO_SERVER, part, time_ns), RECORD_HEAD_BYTES) for part in _parts(bytes(data))
        ]
        # All are queued whatever the first ones say. A failure is what counts, then a bound that is exceeded.
        failure = min(outcomes)
        return failure if failure < 0 else outcomes[-1]

    def tell(self, record: bytes) -> int:
        """Send what is not the client's. Returns 0 or a negative errno, with `record` queued."""
        return min(0, self._wrap(record, len(record)))


def _parts(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), RECORD_LIMIT_BYTES):
        yield data[begin : begin + RECORD_LIMIT_BYTES]
