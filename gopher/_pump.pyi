"""Many upstream sockets served in batches from one epoll descriptor."""

from typing import Final, Generic, TypeVar, final

from gopher._runs import ByteRun
from gopher.http.framing import RequestFramer

FINISHED: Final[int]
PEER_CLOSED: Final[int]
OVER_CONNECTION: Final[int]
OVER_UPSTREAM: Final[int]
OVER_TOTAL: Final[int]
LATENCY_BOUNDS_NS: Final[tuple[int, ...]]

class Budget:
    """A bound on queued bytes that several upstreams share."""

    def __init__(self, limit: int) -> None: ...
    @property
    def limit(self) -> int: ...
    @property
    def used(self) -> int: ...
    def charge(self, length: int) -> None: ...

class Ledger:
    """The byte account of one upstream and the bounds it lives in."""

    limit: int
    captured: int
    delivered: int
    pending: int
    def __init__(self, total: Budget, limit: int, connection_limit: int) -> None: ...
    @property
    def total(self) -> Budget: ...
    @property
    def connection_limit(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def open(self) -> int: ...
    @property
    def shed(self) -> dict[str, int]: ...
    @property
    def established(self) -> int: ...
    @property
    def responses(self) -> int: ...
    @property
    def latencies(self) -> tuple[tuple[int, ...], int]: ...
    def add_shed(self, reason: str, length: int) -> None: ...

class Pump:
    """One epoll descriptor and the connections on it."""

    captured_ns: int
    def __init__(self) -> None: ...
    @property
    def epoll_fd(self) -> int: ...
    @property
    def open(self) -> int: ...
    @property
    def blocked(self) -> int: ...
    def fileno(self) -> int: ...
    holding: bool
    def serve(self) -> tuple[int, list[tuple[Connection, int]]]: ...
    def dial_held(self) -> list[tuple[Connection, int]]: ...

_ItemT = TypeVar("_ItemT")

@final
class Queue(Generic[_ItemT]):
    """First in, first out."""

    def __init__(self) -> None: ...
    def append(self, item: _ItemT) -> None: ...
    def oldest(self) -> _ItemT | None: ...
    def drop_oldest(self) -> None: ...

class Outlet:
    """What a mirrored stream is written to: a `Connection`, or a file.

    Attributes:
        sent: bytes of the client accepted so far.
        queued: bytes that wait, the client's and others.
        closed: whether it has been hung up, or never was open.
    """

    sent: int
    queued: int
    closed: bool
    def write(self, data: bytes | ByteRun) -> int:
        """Send now or later. Returns 0, a bound that is exceeded (`OVER_…`), or a negative errno; see `Connection`."""

    def unaccepted(self) -> int:
        """Bytes among `sent` that the far side has not acknowledged."""

    def hang_up(self, hard: bool) -> None:
        """Close; `hard` discards what is on its way."""

    def abandon(self, reason: str, unaccepted: int = 0) -> int:
        """Shed what is queued and `unaccepted` of what was sent. Returns how many bytes that were."""

class Connection(Outlet):
    """One connection to an upstream that carries one captured stream, or a part of it from a request on.

    Attributes:
        reset_at_end, attempts_left, connect_by_s, linger_until_s: the caller's.
    """

    reset_at_end: bool
    attempts_left: int
    connect_by_s: float
    linger_until_s: float
    def __init__(self, pump: Pump, ledger: Ledger, requests: RequestFramer, base: int, owner: object) -> None: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def owner(self) -> object: ...
    @property
    def answered(self) -> int: ...
    @property
    def finishing(self) -> bool: ...
    @property
    def connecting(self) -> bool: ...
    def dial(self, family: int, address: bytes, write_follows: bool = False) -> int: ...
    def write_wrapped(self, data: bytes, overhead: int) -> int: ...
    def finish(self) -> int: ...
