"""`--workers N`: the supervisor of the processes that share one capture.

It starts the workers (`gopher.capture.worker`), has the kernel spread the device's flows over their sockets, starts a
worker anew when it dies, and speaks for all of them: signals come to it, and their accounts leave it as one sum. It
touches no packet. With one worker none of this exists.

Workers are fresh interpreters: nothing may be forked while Trio runs, memory that is forked does not stay shared for
long among Python objects, and a worker that is started later must be like the first ones.

A worker that dies takes its own flows with it. Its socket keeps its number in the fanout group (the supervisor holds
it, too) until the next worker's takes its place, so the flows of others stay where they are; what comes meanwhile is
lost, and counted. Of a file a worker is not started anew, for it would send again what was sent.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

import trio

from gopher._pump import Budget
from gopher.capture.console import Console
from gopher.capture.fanout import FanoutGroup
from gopher.capture.place import Place, WorkerDied
from gopher.capture.run import reread
from gopher.capture.shares import kernel_shares, worker_config, write_path
from gopher.capture.worker import KNOWN_LIMIT, LIVE_TELL_S, TELL_S, Setup
from gopher.config import CaptureConfig
from gopher.control import say_addresses, summary
from gopher.errors import ConfigError, GopherError
from gopher.observe.accounts import AccountsReport, WorkersAccount
from gopher.observe.summing import captured_connections, sum_reports
from gopher.upstreams.roster import Roster
from gopher.upstreams.upstream import Upstream

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from gopher.capture.run import Resolved
    from gopher.config import MirrorConfig, UpstreamConfig
    from gopher.control import Control
    from gopher.notify import ServiceManager
    from gopher.upstreams.tcp import Address

__all__ = ["supervise"]

# The second start follows at once, further ones after a pause that doubles.
FIRST_PAUSE_S: Final = 0.5
LAST_PAUSE_S: Final = 30.0
# A worker that lived for this long has not died of how it was started.
LIVED_S: Final = 60.0
# A worker that is busy looks up every few milliseconds.
REFRESH_S: Final = 0.5
# After the time to drain, and after the second signal: a worker that does not end by then is stuck.
END_GRACE_S: Final = 5.0
HURRY_GRACE_S: Final = 1.0


async def supervise(
    resolved: Resolved, count: int, metrics: socket.socket | None, control: Control, manager: ServiceManager
) -> int:
    """Capture by `count` workers, as `gopher.capture.run.run_capture` does by one. Arguments as for `CaptureRun`.

    Returns:
        The exit status.

    Raises:
        GopherError: something the user or the administrator has to mend; or a worker died while it read a file.
    """
    supervisor = _Supervisor(resolved, count, metrics, control, manager)
    try:
        return await supervisor.run()
    finally:
        supervisor.close()


class _Listed(Upstream):
    """An upstream as the supervisor knows it: its name, and when it was added and removed. Its account stays empty."""

    def reload(self, limits: MirrorConfig, addresses: list[Address]) -> None:
        """For the workers."""


class _Supervisor:
    def __init__(
        self,
        resolved: Resolved,
        count: int,
        metrics: socket.socket | None,
        control: Control,
        manager: ServiceManager,
    ) -> None:
        self._resolved = resolved
        """What workers are to do that start from now on."""
        config = resolved.config
        self._control = control
        self._manager = manager
        self._metrics = metrics
        self._from_file = config.source.read_path is not None
        self._roster = Roster(
            config.mirror.upstreams, resolved.addresses, lambda each, _: _Listed(each, config.mirror, Budget(0))
        )
        self._require_known(())
        self._places = [Place(index) for index in range(count)]
        self._seed = int.from_bytes(os.urandom(8), "big")
        self._group = FanoutGroup(count, self._seed, loopback=config.source.interface == "lo")
        self._console = Console(config, config.source.read_path or config.source.interface, self._snapshot)
        control.log = self._console.log
        self._started = 0
        self._ends = 0
        self._ending = trio.Event()
        self._failure: GopherError | None = None
        self._died = 0
        self._packets_lost = 0
        self._began = datetime.now(timezone.utc)
        self._began_s = trio.current_time()

    def close(self) -> None:
        for place in self._places:
            place.close()

    async def run(self) -> int:
        console = self._console
        await self._start_all()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen, nursery)
            nursery.start_soon(self._manager.watch)
            nursery.start_soon(console.status.run)
            if self._metrics is not None:
                console.serve_metrics(self._metrics, nursery)
            console.say_ready()
            self._control.ready()
            self._manager.ready(console.ready_line())
            async with trio.open_nursery() as workers:
                for place in self._places:
                    workers.start_soon(self._keep, place)
            console.status.stop()
            if any(place.truncated for place in self._places):
                console.warn_truncated()
            console.report()
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure
        return 0

    # -- starting --------------------------------------------------------------------------------------------------

    @property
    def _config(self) -> CaptureConfig:
        return self._resolved.config

    def _share(self, place: Place, resolved: Resolved) -> Resolved:
        return replace(resolved, config=worker_config(resolved.config, place.index, len(self._places), self._seed))

    def _setup(self, place: Place) -> Setup:
        resolved = self._share(place, self._resolved)
        # Its own number: what the one before it has kept stays.
        config = replace(resolved.config, write_path=write_path(self._config, place.index, self._started))
        self._started += 1
        if config.duration_s is not None:
            config = replace(config, duration_s=max(0.0, config.duration_s - self._elapsed_s))
        return Setup(
            resolved=replace(resolved, config=config),
            place=place.index,
            kernel_shares=kernel_shares(config),
            supervisor=os.getpid(),
            tell_s=LIVE_TELL_S if self._config.live else TELL_S,
        )

    @property
    def _elapsed_s(self) -> float:
        return trio.current_time() - self._began_s

    async def _start_all(self) -> None:
        for place in self._places:
            place.start(self._setup(place))
        try:
            for place in self._places:
                place.member = await place.opened()
            for place in self._places:
                if place.member is not None:
                    self._group.join(place.member)
            # From now on each packet comes to one of them.
            since_ns = time.time_ns()
            for place in self._places:
                await place.begin(since_ns)
        except WorkerDied as died:
            raise GopherError(
                "a worker ended before it was ready", hint="what it said, if anything, is above"
            ) from died
        self._began = datetime.now(timezone.utc)
        self._began_s = trio.current_time()

    async def _start_anew(self, place: Place) -> None:
        place.start(self._setup(place))
        member = await place.opened()
        if member is not None:
            assert place.member is not None
            self._packets_lost += place.count_unread()
            self._group.replace(place.member, member)
            place.member = member
        await place.begin(time.time_ns())
        if self._ends:
            await place.end()

    # -- while they work -------------------------------------------------------------------------------------------

    async def _keep(self, place: Place) -> None:
        """Follow one worker after another, until the last one has ended as it should."""
        deaths = 0
        while True:
            started_s = trio.current_time()
            died = False
            try:
                if place.process is None:
                    await self._start_anew(place)
                await place.follow()
            except WorkerDied:
                died = True
            except GopherError as failure:
                await self._fail(failure)
            status = await place.ended()
            if died:
                self._bury(place, status)
            else:
                place.settle()
            place.leave()
            if not died:
                return
            if self._from_file:
                path = self._config.source.read_path
                self._failure = GopherError(f"a worker died while it read {path}: its connections are incomplete")
                return
            deaths = 1 if trio.current_time() - started_s > LIVED_S else deaths + 1
            pause_s = 0.0 if deaths == 1 else min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** (deaths - 2))
            if await self._ends_within(pause_s):
                return

    async def _ends_within(self, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            await self._ending.wait()
        return self._ending.is_set()

    def _bury(self, place: Place, status: int) -> None:
        self._died += 1
        before = place.open_connections
        self._packets_lost += place.settle_died()
        reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self._console.log.warning(
            "worker_died",
            f"worker {place.index} died ({reason}), and {before} open connections with it",
            worker=place.index,
            connections=before,
        )

    async def _fail(self, failure: GopherError) -> None:
        if self._failure is None:
            self._failure = failure
        if not self._ends:
            await self._end()

    async def _end(self) -> None:
        """What a signal asks for: the first time that the workers drain, the second time that they end at once."""
        self._ends += 1
        self._ending.set()
        self._manager.stopping()
        for place in self._places:
            await place.end()

    async def _listen(self, nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        with self._control.signals() as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGUSR1:
                    await self._refresh()
                    self._console.print_table()
                elif number == signal.SIGHUP:
                    if not self._ends:
                        self._control.reload_soon(nursery, self._reload)
                else:
                    await self._end()
                    grace_s = HURRY_GRACE_S if self._ends > 1 else self._config.drain_s + END_GRACE_S
                    nursery.start_soon(self._kill_after, grace_s)

    async def _refresh(self) -> None:
        """Have the accounts as they stand, of all workers that tell them within a moment."""
        with trio.move_on_after(REFRESH_S):
            async with trio.open_nursery() as nursery:
                for place in self._places:
                    nursery.start_soon(place.refresh)

    async def _kill_after(self, seconds: float) -> None:
        await trio.sleep(seconds)
        for place in self._places:
            place.kill()

    # -- reload ----------------------------------------------------------------------------------------------------

    async def _reload(self, wanted: CaptureConfig) -> tuple[str, list[str]]:
        """See `Control.reload_soon`. Over when every worker that runs has taken it on."""
        self._manager.reloading()
        try:
            if isinstance(wanted, CaptureConfig):
                # As at the start: can it be shared?
                worker_config(wanted, 0, len(self._places), self._seed)
            resolved, restart = await reread(self._config, wanted)
            self._require_known(resolved.config.mirror.upstreams)
            await self._try(resolved)
            # A worker that starts from here on starts with it.
            change = self._roster.change(
                resolved.config.mirror.upstreams, resolved.addresses, resolved.config.mirror, self._elapsed_s
            )
            self._resolved = resolved
            self._console.config = resolved.config
            self._console.log.quiet = resolved.config.verbosity < 0
            if resolved.config.verbosity > 0:
                say_addresses(self._console.log, resolved.config.mirror.upstreams, resolved.addresses)
            async with trio.open_nursery() as nursery:
                for place in self._places:
                    nursery.start_soon(self._take_on, place)
            return summary(len(resolved.addresses), *change.names), restart
        finally:
            self._manager.ready(self._console.ready_line())

    def _require_known(self, wanted: Sequence[UpstreamConfig]) -> None:
        known = self._roster.known
        new = Counter(wanted) - Counter(upstream.config for upstream in known)
        if len(known) + new.total() > KNOWN_LIMIT:
            raise ConfigError(
                f"workers can tell of {KNOWN_LIMIT} different upstreams, and all since the start stay in the report",
                hint="restart gopher to begin a new one",
            )

    async def _try(self, resolved: Resolved) -> None:
        """Have one worker take it on. What one can take on, all can, for they have the same rights and settings."""
        for place in self._places:
            if await place.take_on(self._share(place, resolved)):
                return
        raise GopherError("no worker is running at the moment", hint="reload again when they do")

    async def _take_on(self, place: Place) -> None:
        # The one that has tried finds nothing to change; if it has died since, its successor may have begun too early.
        try:
            await place.take_on(self._share(place, self._resolved))
        except GopherError as error:
            self._console.log.failure(
                "reload", f"worker {place.index} cannot take on the new settings, and is replaced: {error}"
            )
            place.kill()

    # -- accounts --------------------------------------------------------------------------------------------------

    def _snapshot(self) -> AccountsReport:
        places = self._places
        return replace(
            sum_reports(
                (report for place in places for report in place.reports),
                [upstream.account() for upstream in self._roster.known],
            ),
            started_at=self._began.isoformat(timespec="seconds"),
            duration_s=self._elapsed_s,
            workers=WorkersAccount(
                running=sum(place.running for place in places),
                died=self._died,
                packets_lost=self._packets_lost,
                connections=tuple(sum(map(captured_connections, place.reports)) for place in places),
                captured_bytes=tuple(sum(each.bytes["captured"] for each in place.reports) for place in places),
            ),
        )
