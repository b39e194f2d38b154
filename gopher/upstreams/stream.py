"""The client's direction of one connection, on its way to all upstreams that get a copy of it.

Finds where a stream can be joined, or gone on with after a gap: at the first byte of a request. Decides at once, never
waits; each upstream's share is a `StreamCopy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gopher.http.framing import RequestFramer, find_request, request_may_start
from gopher.upstreams.relay import FramedCopy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gopher._pump import Budget
    from gopher._runs import ByteRun
    from gopher.upstreams.upstream import StreamCopy, Upstream

__all__ = ["HEAD_LIMIT_BYTES", "MirroredStream", "ShedStreams"]

# A request head longer than this is not waited for when a connection is joined; servers refuse such heads (nginx:
# 32 KiB, Apache httpd: 8 KiB a line).
HEAD_LIMIT_BYTES: Final = 65_536


class MirroredStream:
    """The client's direction of one captured flow, on its way to all upstreams."""

    __slots__ = (
        "_held",
        "_joining",
        "_memory",
        "_shed",
        "copies",
        "framed",
        "joined",
        "midway",
        "open",
        "place",
        "requests",
    )

    def __init__(self, copies: list[StreamCopy], *, midway: bool, place: float = 0.0) -> None:
        self.copies = copies
        self.place = place
        """The caller's: where it comes among all, see `gopher.capture.governor`."""
        self._shed = False
        """Nothing more is passed on, for the reason in `_joining`."""
        self.framed = [copy for copy in copies if isinstance(copy, FramedCopy)]
        """Those that last until the connection is over in both directions."""
        self.midway = midway
        """Whether the connection was open before the capture."""
        self.joined = not midway
        """Whether any byte was passed on."""
        self._memory: Budget = self._budget(copies[0])
        """Which what is held counts as: of all upstreams, whoever of them leaves."""
        self.requests = RequestFramer()
        self._joining = "joined" if midway else None
        """Why the next request line is being looked for; None while bytes pass."""
        self._held = b""
        """What may be the beginning of a request head."""
        self.open = True
        """The caller's."""

    def _budget(self, copy: StreamCopy) -> Budget:
        return copy.upstream.ledger.total

    @property
    def held_bytes(self) -> int:
        """Bytes that wait for the decision whether a request begins in them."""
        return len(self._held)

    def write(self, data: bytes | ByteRun) -> list[tuple[StreamCopy, str]] | None:
        """Pass on the next bytes.

        Returns:
            The copies whose connection is over a memory bound, with the bound's name; None if there are none.
        """
        if self._joining is not None:
            if self._shed:
                self._skip(self._joining, len(data))
                return None
            data = self._join(bytes(data), self._joining)
            if not data:
                return None
        requests = self.requests
        base = requests.started
        start = requests.feed(data)
        full = None
        for copy in self.copies:
            over = copy.write(data, start, base, requests)
            if over is not None:
                full = full or []
                full.append((copy, over))
        return full

    def _join(self, data: bytes, reason: str) -> bytes:
        held = self._held + data
        start = find_request(held)
        if start >= 0:
            self._joining = None
            self._hold(b"")
            self.joined = True
            self._skip(reason, start)
            return held[start:]
        keep_from = request_may_start(held)
        if len(held) - keep_from > HEAD_LIMIT_BYTES or self._memory.used > self._memory.limit:
            keep_from = len(held)
        self._skip(reason, keep_from)
        self._hold(held[keep_from:])
        return b""

    def _hold(self, data: bytes) -> None:
        self._memory.charge(len(data) - len(self._held))
        self._held = data

    def _skip(self, reason: str, length: int) -> None:
        if length:
            for copy in self.copies:
                copy.skip(reason, length)

    def gap(self, length: int) -> None:
        """`length` bytes are missing here: nothing is spliced over them."""
        if self._joining is not None:
            self._skip(self._joining, len(self._held))
            self._hold(b"")
            for framed in self.framed:
                framed.tell_gap(length)
            return
        requests = self.requests
        for copy in self.copies:
            if requests.opaque:
                # No request line to go on at: not HTTP, or an upgraded connection.
                copy.give_up("gap")
            else:
                copy.interrupt("gap", whole=not requests.in_message, length=length)
        self.requests = RequestFramer()
        self._joining = "gap"

    @property
    def within_request(self) -> bool:
        """Whether the stream stands in the middle of a request that is passed on."""
        return not self._shed and not self.requests.opaque and self.requests.in_message

    def finish(self) -> None:
        """The client sent FIN, or nothing more is known of it."""
        self._drop_held()
        for copy in self.copies:
            copy.finish()

    def reset(self) -> None:
        """The client's connection was reset."""
        self._drop_held()
        for copy in self.copies:
            copy.reset()

    def cut(self, reason: str) -> None:
        """Gopher stops in the middle of a request."""
        self._drop_held()
        for copy in self.copies:
            copy.give_up(reason)
            copy.finish()

    def leave(self, upstream: Upstream, reason: str) -> None:
        """An upstream gets no more of this stream: its copy ends as all do at the end of a capture."""
        for copy in [copy for copy in self.copies if copy.upstream is upstream]:
            self.copies.remove(copy)
            if self.within_request:
                copy.give_up(reason)
            copy.finish()
            if isinstance(copy, FramedCopy):
                self.framed.remove(copy)
                copy.close(reset=False)

    def shed(self, reason: str) -> None:
        """Give the stream up as a whole, for all upstreams, with what may still come of it."""
        self._drop_held()
        self._joining = reason
        self._shed = True
        for copy in self.copies:
            copy.give_up(reason)

    def close(self, *, reset: bool = False) -> None:
        """The connection is over, in both directions, or not looked at any more. After one of the three above."""
        for copy in self.framed:
            copy.close(reset=reset)

    def _drop_held(self) -> None:
        if self._joining is not None:
            self._skip(self._joining, len(self._held))
            self._hold(b"")


class ShedStreams:
    """Stands for all streams that are shed from their first byte on for one reason: they cost a counter each.

    Args:
        reason: why.
        upstreams: those that do not get them.
    """

    __slots__ = ("_reason", "_upstreams")

    def __init__(self, reason: str, upstreams: Sequence[Upstream]) -> None:
        self._reason = reason
        self._upstreams = upstreams

    def begin(self) -> None:
        """One more stream."""
        for upstream in self._upstreams:
            upstream.turn_away(self._reason)

    def write(self, data: bytes | ByteRun) -> None:
        """The next bytes of one of them."""
        for upstream in self._upstreams:
            if upstream.removed_s is None:
                upstream.ledger.captured += len(data)
                upstream.ledger.add_shed(self._reason, len(data))

    def gap(self, length: int) -> None:
        """Bytes that were not captured are in no account."""
