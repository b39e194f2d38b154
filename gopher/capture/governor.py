"""How much of the traffic to mirror so that gopher itself stays under a share of the CPU. Sans-I/O.

The caller says how much CPU time this process has used and what time it is; the answer is a share of the clients. Their
places in that share come from a hash of their address, so that a client is in or out as a whole, and the same ones stay
in for as long as they can.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gopher._fastpath import Flow

__all__ = ["CpuGovernor", "Places", "place_of"]


def place_of(text: str) -> float:
    """Where this comes among all, from 0 up to 1: the same for every gopher."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    # Of 64 bits the last 11 are more than a float holds, and could round up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


class Places:
    """Tells the connections that are in from those that are out.

    By client address; but while there are only a few addresses, as behind a load balancer, by address and port: else
    all the traffic would be in or out at once.

    Args:
        sample_ratio: share of the addresses that are looked at at all: those whose place is below it.
    """

    FEW: Final = 16

    def __init__(self, sample_ratio: float) -> None:
        self.sample_ratio = sample_ratio
        self._addresses: set[str] = set()

    def place(self, flow: Flow) -> float:
        """The place of a connection; it is in while this is below the share."""
        address, port = flow.client
        if len(self._addresses) < self.FEW:
            self._addresses.add(address)
            return place_of(f"{address} {port}")
        return place_of(address) / self.sample_ratio


class CpuGovernor:
    """Finds the share of connections to mirror.

    Over the limit the share of connections that begin is lowered, in proportion. If that does not help within the next
    `PERIOD_S`, as with connections that last, those that are open and outside the share are cut as well; and so on by
    turns. Well below the limit the share grows again, by at most a tenth in each `PERIOD_S`. In between nothing
    changes, so that it comes to rest.

    Args:
        limit: CPU time per time, 1.0 for one core.

    Attributes:
        share: of connections that may begin, 0 to 1.
    """

    PERIOD_S: Final = 0.5
    AIM: Final = 0.9
    """Of the limit: what a lower share is to come to."""
    CALM: Final = 0.8
    """Of the limit: the share grows below this."""
    GROWTH: Final = 1.1
    SEED: Final = 0.005
    """What is added when it grows: zero times anything stays zero."""

    def __init__(self, limit: float) -> None:
        self.share = 1.0
        self._limit = limit
        self._lowered = False
        self._since: tuple[float, float] | None = None

    def update(self, now_s: float, cpu_s: float) -> bool:
        """Look at the CPU time used so far; to be called a few times a second.

        Returns:
            Whether open connections outside the share are to be cut now.
        """
        if self._since is None:
            self._since = now_s, cpu_s
            return False
        elapsed_s = now_s - self._since[0]
        if elapsed_s < self.PERIOD_S:
            return False
        used = (cpu_s - self._since[1]) / elapsed_s
        self._since = now_s, cpu_s
        if used <= self._limit:
            self._lowered = False
            if used < self.CALM * self._limit:
                growth = min(self.GROWTH, self.AIM * self._limit / max(used, 1e-9))
                self.share = min(1.0, self.share * growth + self.SEED)
            return False
        if self._lowered:
            self._lowered = False
            return True
        self.share *= self.AIM * self._limit / used
        if self.share < self.SEED:
            self.share = 0.0
        self._lowered = True
        return False
