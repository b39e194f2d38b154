"""How much one upstream may get in a second. Sans-I/O: the caller says what time it is."""

from __future__ import annotations

from typing import Final

__all__ = ["RateLimit", "TokenBucket"]


class TokenBucket:
    """Fills with `per_s` tokens a second, holds what one second brings, and may be in debt.

    Full at first.
    """

    BURST_S: Final = 1.0

    def __init__(self, per_s: float) -> None:
        self.capacity = per_s * self.BURST_S
        self._per_s = per_s
        self._level = self.capacity
        self._filled_at_s: float | None = None

    def level(self, now_s: float) -> float:
        """How many tokens there are; negative for a debt."""
        if self._filled_at_s is not None:
            self._level = min(self.capacity, self._level + (now_s - self._filled_at_s) * self._per_s)
        self._filled_at_s = now_s
        return self._level

    def take(self, tokens: float) -> None:
        """Take tokens, whether they are there or not."""
        self._level -= tokens


class RateLimit:
    """The bounds of `--max-rate` and `--max-connection-rate` for one upstream.

    A connection may begin while bytes are left and there is a token for it. Bytes of open connections make a debt, so
    that those that begin are turned away before an open one has to be cut; but no debt of more than one second.

    Over any time, that lets pass what the rates allow, two seconds' worth of bytes (one of connections), and one write.

    Args:
        bytes_per_s: None for no bound; likewise
        connections_per_s: at least 1.
    """

    def __init__(self, bytes_per_s: int | None, connections_per_s: int | None) -> None:
        self._bytes = None if bytes_per_s is None else TokenBucket(bytes_per_s)
        self._connections = None if connections_per_s is None else TokenBucket(connections_per_s)

    def admits(self, now_s: float) -> bool:
        """Whether one more connection may be opened; tell `opened` when it is."""
        return (self._bytes is None or self._bytes.level(now_s) > 0) and (
            self._connections is None or self._connections.level(now_s) >= 1
        )

    def opened(self) -> None:
        """A connection was opened."""
        if self._connections is not None:
            self._connections.take(1)

    def passes(self, length: int, now_s: float) -> bool:
        """Whether the next bytes of an open connection may be sent; they count if so."""
        bucket = self._bytes
        if bucket is None:
            return True
        if bucket.level(now_s) <= -bucket.capacity:
            return False
        bucket.take(length)
        return True
