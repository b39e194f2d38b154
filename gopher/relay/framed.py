"""The framed relay: downstream connections whose messages are read, because a setting asks for more than bytes.

Owns what its downstreams share: the pump, the upstream's addresses, time-outs, the couplers and who waits for them, and
the upstreams that get copies.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import trio

from gopher._pump import Budget
from gopher.config import MirrorConfig
from gopher.pump import PumpTask, ServingTask
from gopher.relay.coupling import Coupler
from gopher.relay.downstream import Downstream
from gopher.relay.hooks import Scripts
from gopher.relay.lastword import LINGER_S
from gopher.relay.rules import parse_rule
from gopher.relay.tls import Tls
from gopher.relay.transparent import SWEEPS_PER_IDLE_TIME, announcement, unframed
from gopher.upstreams.relay import IdentifiedCopy, RelayUpstream
from gopher.upstreams.roster import Roster
from gopher.upstreams.stream import MirroredStream
from gopher.upstreams.tcp import TcpUpstream
from gopher.upstreams.upstream import StreamCopy, decide

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from typing import Protocol

    from gopher.config import RelayConfig, UpstreamConfig
    from gopher.link import ProxyHeader
    from gopher.relay.channel import Channel
    from gopher.relay.coupling import Wait
    from gopher.relay.hooks import Script
    from gopher.relay.preparing import Preparation
    from gopher.relay.tally import Tally
    from gopher.relay.upstream import UpstreamConnection
    from gopher.upstreams.roster import Change
    from gopher.upstreams.tcp import Address

    class Adopt(Protocol):
        """See `Transparent.adopt`."""

        def __call__(
            self, downstream: socket.socket, upstream: socket.socket, header: ProxyHeader, *, connecting: bool,
            to_downstream: bytes, to_upstream: bytes,
        ) -> None: ...  # fmt: skip


__all__ = ["Coupling", "Framed"]

_NOT_SUMMED: Final = frozenset({"held_s_max", "divergences"})


class Coupling:
    """A coupler, and who waits for it: each with one request at most.

    Args:
        coupler: what decides.
        later: takes a call to make at the end of this turn.
    """

    def __init__(self, coupler: Coupler, later: Callable[[Callable[[], None]], None]) -> None:
        self.coupler = coupler
        self._later = later
        self._waiting: dict[int, Preparation] = {}
        # All wait equally long, so it is in the order of its deadlines.
        self._deadlines: deque[tuple[float, int]] = deque()

    def wait(self, wait: Wait, preparation: Preparation) -> None:
        """The request that is being prepared waits."""
        self._waiting[wait.ticket] = preparation
        self._deadlines.append((wait.deadline_s, wait.ticket))

    def release(self, tickets: Iterable[int]) -> None:
        """These need wait no longer."""
        for ticket in tickets:
            preparation = self._waiting.pop(ticket, None)
            if preparation is not None:
                self._later(partial(preparation.proceed, ticket))

    def cancel(self, preparation: Preparation) -> None:
        """The request that waits is given up."""
        for ticket in [ticket for ticket, waiting in self._waiting.items() if waiting is preparation]:
            del self._waiting[ticket]
            self.coupler.cancel(ticket)

    def tick(self, now_s: float) -> None:
        """Let those go on that have waited long enough."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            self.release([self._deadlines.popleft()[1]])
        self.release(self.coupler.tick(now_s))


class Framed:
    """All downstreams of one relay.

    Args:
        config: what was asked for.
        addresses: of each upstream.
        tally: what to count in.
        adopt: takes two sockets that have become a tunnel.
        scripts: to call; may be none.
        tell: prints one line.
        tls: the first upstream, where it is spoken to over TLS; None for never.

    Raises:
        ConfigError: a coupling rule is none.
    """

    def __init__(
        self,
        config: RelayConfig,
        addresses: list[list[Address]],
        tally: Tally,
        adopt: Adopt,
        scripts: Sequence[Script] = (),
        tell: Callable[[str], None] = print,
        tls: Tls | None = None,
    ) -> None:
        self.config = config
        self.tally = tally
        self.addresses = list(addresses[0])
        """Of the first upstream, the one that answered last first."""
        self.adopt = adopt
        self.tls = Tls(config, self.addresses, None, tell) if tls is None else tls
        self.pump = self.tls.pump
        self.task = ServingTask(self.pump, _no_decision)
        self._downstreams: set[Downstream] = set()
        self._ids = count(1)
        self._connecting: deque[tuple[float, UpstreamConnection, Channel]] = deque()
        self._lingering: deque[tuple[float, Downstream]] = deque()
        self._next_sweep_s = 0.0
        rules = [parse_rule(text) for text in config.couple]
        # On a framed link production's answers come along; elsewhere what belongs together is inferred.
        self._couplings = {
            exact: Coupling(
                Coupler(
                    rules,
                    auto=config.couple_auto,
                    wait_s=config.couple_wait_s,
                    policy=config.couple_policy,
                    inferred=not exact,
                ),
                self.pump.later,
            )
            for exact in (True, False)
            if rules or config.couple_auto
        }
        self.scripts = Scripts(scripts, config.script_timeout_s, tell, self.turn) if scripts else None
        self._copy_task = PumpTask(decide)
        limits = _limits(config)
        self._total = Budget(limits.total_memory_bytes)
        self._roster = Roster(config.upstreams[1:], addresses[1:], self._copy_upstream)
        self._started_s = time.monotonic()

    def _copy_upstream(self, upstream: UpstreamConfig, addresses: list[Address]) -> TcpUpstream:
        kind = RelayUpstream if upstream.scheme == "relay" else TcpUpstream
        return kind(upstream, _limits(self.config), self._total, addresses, self._copy_task.pump)

    def reload(self, config: RelayConfig, addresses: list[list[Address]]) -> Change[TcpUpstream]:
        """Take on what a running relay can. Connections that are open keep their first upstream.

        Raises:
            ConfigError: there were too many upstreams; nothing has changed.
        """
        now_s = time.monotonic() - self._started_s
        change = self._roster.change(config.upstreams[1:], addresses[1:], _limits(config), now_s)
        for upstream in change.removed:
            for downstream in self._downstreams:
                downstream.drop_copies(upstream)
        self.config = config
        if {address.sockaddr for address in addresses[0]} != {address.sockaddr for address in self.addresses}:
            self.addresses = list(addresses[0])
        return change

    @property
    def tasks(self) -> list[Callable[[], Awaitable[None]]]:
        """What has to run."""
        # A reload may bring the first upstream that gets copies.
        tasks: list[Callable[[], Awaitable[None]]] = [self.task.run, self._copy_task.run]
        if self.scripts is not None:
            tasks.append(self.scripts.run)
        return tasks

    # -- connections -----------------------------------------------------------------------------------------------

    def take(self, sock: socket.socket, header: ProxyHeader, *, may_link: bool) -> None:
        """A downstream connection begins. `may_link`: it may say who it is by a PROXY protocol header."""
        self._downstreams.add(Downstream(self, sock, header, may_link=may_link))

    def take_link(self, sock: socket.socket, upstream: socket.socket, header: ProxyHeader) -> None:
        """A framed link, whose header has been read, and an upstream connection for it."""
        self._downstreams.add(Downstream(self, sock, header, may_link=False, upstream=upstream))

    def forget(self, downstream: Downstream) -> None:
        """A downstream is over."""
        self._downstreams.discard(downstream)

    # -- what downstreams share ---------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """Monotonic, of this turn."""
        return self.pump.now_s

    def next_id(self) -> int:
        """A number that was not used before."""
        return next(self._ids)

    def coupling_for(self, *, exact: bool) -> Coupling | None:
        """What couples downstreams with, or without, production's answers."""
        return self._couplings.get(exact)

    def announcement(self, header: ProxyHeader) -> bytes:
        """What an upstream connection begins with; often nothing."""
        version = self.config.announced
        return b"" if version is None else announcement(version, header)

    def prefer_another(self) -> None:
        """The first address has failed."""
        self.addresses.append(self.addresses.pop(0))

    def dialled(self, upstream: UpstreamConnection, channel: Channel) -> None:
        """The upstream now has the connect time-out to accept."""
        while self._connecting and not self._connecting[0][2].connecting:
            self._connecting.popleft()
        self._connecting.append((self.now_s + self.config.connect_timeout_s, upstream, channel))

    def linger(self, downstream: Downstream) -> None:
        """The client has a while to take the last word."""
        self._lingering.append((self.now_s + LINGER_S, downstream))

    def copies_of(self, downstream: Downstream) -> MirroredStream | None:
        """What the other upstreams get of a connection that begins."""
        if not self._roster.active:
            return None
        header = unframed(downstream.header)
        name = "{}.{}".format(*(header.client or ("unknown", 0)))
        copies = [
            IdentifiedCopy(upstream, name, header)
            if isinstance(upstream, RelayUpstream)
            else StreamCopy(upstream, name)
            for upstream in self._roster.active
        ]
        return MirroredStream(copies, midway=False)

    def turn(self, call: Callable[[], None]) -> None:
        """A call from outside the pump's batches, that moves connections on."""
        self.pump.look_at_clock()
        call()
        self.pump.run_later()

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Apply the time-outs that are due."""
        self.pump.look_at_clock()
        now_s = self.now_s
        while self._connecting and self._connecting[0][0] <= now_s:
            _, connection, channel = self._connecting.popleft()
            connection.connect_timed_out(channel)
        while self._lingering and self._lingering[0][0] <= now_s:
            self._lingering.popleft()[1].linger_over()
        self.tls.tick(now_s)
        for coupling in self._couplings.values():
            coupling.tick(now_s)
        for upstream in self._roster.known:
            upstream.tick(time.monotonic())
        if now_s >= self._next_sweep_s:
            idle_s = self.config.idle_timeout_s
            self._next_sweep_s = now_s + idle_s / SWEEPS_PER_IDLE_TIME
            for downstream in [each for each in self._downstreams if each.last_active_s <= now_s - idle_s]:
                downstream.idle()
        self.pump.run_later()

    def stop(self) -> None:
        """No more connections come: those between two exchanges may go."""
        for downstream in list(self._downstreams):
            downstream.stop()

    @property
    def busy(self) -> bool:
        """Whether copies of connections, calls of scripts or last bytes for the upstream are still under way."""
        if self.scripts is not None and self.scripts.busy:
            return True
        if self.tls.bridges:
            return True
        return any(upstream.connections_pending for upstream in self._roster.known)

    def abort(self) -> None:
        """Cut what is still open."""
        for downstream in list(self._downstreams):
            downstream.fail("drain")
        for upstream in self._roster.known:
            upstream.abort("drain")
        self.tls.abort()

    async def wait_scripts(self) -> None:
        """Let the calls of scripts return that are due, `closed` of the last connections too. Checkpoint: always."""
        await trio.lowlevel.checkpoint()
        if self.scripts is not None:
            with trio.move_on_after(self.config.script_timeout_s):
                await self.scripts.wait_idle()

    # -- snapshots -------------------------------------------------------------------------------------------------

    def coupling(self) -> dict[str, Any] | None:
        """The couplers' statistics together; None if nothing is coupled."""
        if not self._couplings:
            return None
        parts = [dataclasses.asdict(coupling.coupler.statistics()) for coupling in self._couplings.values()]
        total: dict[str, Any] = {
            name: sum(part[name] for part in parts) for name in parts[0] if name not in _NOT_SUMMED
        }
        total["held_s_max"] = max(part["held_s_max"] for part in parts)
        kinds = {kind for part in parts for kind in part["divergences"]}
        total["divergences"] = {kind: sum(part["divergences"].get(kind, 0) for part in parts) for kind in sorted(kinds)}
        return total

    def scripting(self) -> tuple[dict[str, Any], ...]:
        """What became of the calls of each script."""
        return self.scripts.statistics() if self.scripts is not None else ()

    def copies(self) -> tuple[dict[str, Any], ...]:
        """The accounts of the upstreams that get copies."""
        return tuple(dataclasses.asdict(upstream.account()) for upstream in self._roster.known)


def _limits(config: RelayConfig) -> MirrorConfig:
    return MirrorConfig(
        upstreams=config.upstreams,
        connect_timeout_s=config.connect_timeout_s,
        max_connections=config.max_connections,
    )


def _no_decision(decisions: list[tuple[Channel, int]]) -> None:
    raise AssertionError(f"reported: {decisions}")
