"""Capture mode as a program: opens the source, runs the mirror's tasks, ends in order.

Owns the nursery. The tasks are: intake (source, reassembler, mirror), the pump, time-outs, signals, and the status
line. They share one thread; intake and time-outs take turns through a lock because both produce events of flows.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from gopher.capture.bpf import capture_filter
from gopher.capture.console import Console
from gopher.capture.intake import Intake, Turn
from gopher.capture.memory import within_memory
from gopher.capture.mirror import Mirror
from gopher.capture.pcapfile import CaptureWriter
from gopher.capture.shares import worker_count
from gopher.capture.source import FileSource, open_source
from gopher.config import CaptureConfig
from gopher.control import Control, reloaded, say_addresses, summary
from gopher.errors import CaptureError, ConfigError
from gopher.limits import raise_descriptor_limit
from gopher.listening import listen
from gopher.notify import ServiceManager
from gopher.observe.log import Log
from gopher.observe.report import check_writable
from gopher.privileges import drop_rights, find_user, prepare
from gopher.upstreams.tcp import Address, resolve

if TYPE_CHECKING:
    from gopher.capture.source import PacketSource
    from gopher.config import UpstreamConfig
    from gopher.upstreams.roster import Change
    from gopher.upstreams.upstream import Upstream

__all__ = ["CaptureRun", "Resolved", "reread", "run_capture"]

TICK_S: Final = 0.25
# Under load there is always one more batch.
LAST_LOOK_S: Final = 0.5
# What a reload changes; everything else needs a restart.
RELOADED: Final = frozenset(
    {
        *("upstreams", "linger_s", "connect_timeout_s", "max_connections", "upstream_memory_bytes", "lowered"),
        *("sample_ratio", "drain_s", "verbosity", "beside"),
    }
)
# Beside one descriptor for each mirrored connection and upstream.
SPARE_DESCRIPTORS: Final = 256


@dataclass(frozen=True, slots=True)
class Resolved:
    """What was asked for, with the addresses that its names stand for."""

    config: CaptureConfig
    addresses: list[list[Address]]
    """Of each upstream; none for `dir`."""
    own: list[tuple[str, int]]
    """(address, port) of what must not be mirrored."""


async def run_capture(config: CaptureConfig, control: Control | None = None) -> int:
    """Mirror until the source ends, `duration_s` is over, or SIGTERM or SIGINT comes; then drain and report.

    Prints the ready line, warnings and the final table to stderr.

    Args:
        config: what was asked for.
        control: the command's side.

    Returns:
        The exit status.

    Raises:
        GopherError: something the user or the administrator has to mend.
    """
    count = worker_count(config, len(os.sched_getaffinity(0)))
    if count == 1:
        config = within_memory(config)
    prepare()
    user = find_user(config.user)
    resolved = await _resolve(config)
    if config.verbosity > 0:
        _say_details(Log(config.log_format, name=config.name), resolved)
    _allow_descriptors(config)
    with contextlib.ExitStack() as stack:
        metrics = None
        if config.metrics_address is not None:
            metrics = stack.enter_context(listen(*config.metrics_address, hint="give another one with --metrics"))
        if count > 1:
            from gopher.capture.workers import supervise

            if config.report_path is not None:
                check_writable(config.report_path)
            manager = stack.enter_context(contextlib.closing(ServiceManager()))
            return await supervise(resolved, count, metrics, control or Control(), manager)
        source = stack.enter_context(contextlib.closing(open_source(config.source, resolved.own)))
        # What is opened and made from here on is opened and made with the rights that are left.
        drop_rights(user)
        if config.report_path is not None:
            check_writable(config.report_path)
        manager = stack.enter_context(contextlib.closing(ServiceManager()))
        return await CaptureRun(resolved, source, metrics, control or Control(), manager).run()


def _say_details(log: Log, resolved: Resolved) -> None:
    """What `-v` asks for: what names and options have come to."""
    source = resolved.config.source
    say_addresses(log, resolved.config.mirror.upstreams, resolved.addresses)
    if source.read_path is None:
        expression = capture_filter(source, resolved.own, interface=source.interface)
        log.info("filter", f"the kernel's filter is: {expression}", filter=expression)


async def reread(running: CaptureConfig, wanted: CaptureConfig) -> tuple[Resolved, list[str]]:
    """What a running mirror takes on of other settings, and the names of what needs a restart.

    Raises:
        ConfigError: as at the start.
    """
    wanted = _at_captured_ports(wanted, running.source.ports)
    config, restart = reloaded(running, wanted, RELOADED)
    return await _resolve(config), restart


async def _resolve(config: CaptureConfig) -> Resolved:
    """Look up the addresses of the upstreams. What goes to them and to those beside them must not be mirrored.

    Raises:
        ConfigError: a name does not resolve, or production would be mirrored to itself.
    """
    addresses = [await _addresses(upstream) for upstream in config.mirror.upstreams]
    if config.source.read_path is not None:
        # A file may be sent to where it was captured.
        return Resolved(config, addresses, [])
    # An upstream without a port of its own is dialled at the one its client went to.
    flat = [
        address.at(port)
        for upstream, found in zip(config.mirror.upstreams, addresses, strict=True)
        for address in found
        for port in ([upstream.port] if upstream.port else config.source.ports)
    ]
    flat += [address for upstream in config.beside for address in await _addresses(upstream)]
    _refuse_self(config, flat)
    return Resolved(config, addresses, [(address.host, address.port) for address in flat])


async def _addresses(upstream: UpstreamConfig) -> list[Address]:
    return [] if upstream.scheme == "dir" else await resolve(upstream)


def _at_captured_ports(wanted: CaptureConfig, ports: tuple[int, ...]) -> CaptureConfig:
    """Upstreams without a port of their own stay at the ports that are captured, whatever the file says now."""
    if not isinstance(wanted, CaptureConfig) or wanted.source.ports == ports:
        return wanted
    port = ports[0] if len(ports) == 1 else 0
    upstreams = [replace(each, port=port) if each.captured_port else each for each in wanted.mirror.upstreams]
    return replace(wanted, mirror=replace(wanted.mirror, upstreams=tuple(upstreams)))


def _allow_descriptors(config: CaptureConfig) -> None:
    # What does not fit is shed as `no_descriptors`.
    raise_descriptor_limit(config.mirror.max_connections * len(config.mirror.upstreams) + SPARE_DESCRIPTORS)


def _refuse_self(config: CaptureConfig, addresses: list[Address]) -> None:
    """Refuse an upstream that is the captured server itself: production would get its own traffic again."""
    listeners = _wildcard_listeners()
    for address in addresses:
        if address.port not in config.source.ports or not _is_local(address):
            continue
        # A server that listens on every address of this machine also answers on this one. One that listens on single
        # addresses leaves room for a shadow beside it.
        if address.port in listeners:
            where = f"[{address.host}]" if ":" in address.host else address.host
            raise ConfigError(
                f"upstream {where}:{address.port} is the captured server itself: it would get its own traffic again",
                hint="give the shadow another port or another machine",
            )


def _is_local(address: Address) -> bool:
    with socket.socket(address.family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address.host, 0))
        except OSError:
            return False
        return True


def _wildcard_listeners() -> set[int]:
    """Ports that some server of this machine listens on for all addresses (proc(5), /proc/net/tcp)."""
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path(table).read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                address, _, port = local.partition(":")
                if state == "0A" and not address.strip("0"):
                    ports.add(int(port, 16))
    return ports


class CaptureRun:
    """One process's capture, or one worker's share of it.

    Args:
        resolved: what was asked for.
        source: open; it stays the caller's.
        metrics: where to serve them, if anywhere; it stays the caller's.
        control: the command's side.
        manager: the service manager's.
    """

    def __init__(
        self,
        resolved: Resolved,
        source: PacketSource,
        metrics: socket.socket | None,
        control: Control,
        manager: ServiceManager,
    ) -> None:
        self._config = config = resolved.config
        self._control = control
        self._manager = manager
        self._metrics = metrics
        self._source = source
        self._from_file = isinstance(source, FileSource)
        self._mirror = Mirror(config, resolved.addresses, source, can_wait=self._from_file, own=resolved.own)
        self._console = Console(config, source.name, self._mirror.snapshot)
        control.log = self._console.log
        self._turn = Turn()
        self._intake = Intake(source, self._mirror, self._turn, config.source.wakeup_ms / 1000, self._turned)
        self._next_tick = trio.CancelScope()
        self._intake_scope = trio.CancelScope()
        self._drain_scope = trio.CancelScope()

    async def run(self) -> int:
        """Mirror, drain and report; see `run_capture`."""
        config = self._config
        failure = None
        with contextlib.ExitStack() as closing:
            if config.write_path is not None:
                writer = CaptureWriter(config.write_path, self._source.datalink())
                closing.callback(writer.close)
                self._intake.write = writer.write
            async with trio.open_nursery() as nursery:
                await nursery.start(self._listen, nursery)
                nursery.start_soon(self._mirror.pump_task.run)
                nursery.start_soon(self._ticks)
                nursery.start_soon(self._manager.watch)
                nursery.start_soon(self._console.status.run)
                if self._metrics is not None:
                    self._console.serve_metrics(self._metrics, nursery)
                self._console.say_ready()
                self._control.ready()
                self._manager.ready(self._console.ready_line())
                try:
                    await self._take_in()
                except CaptureError as exc:
                    # The device went away, or the disk is full: what was captured until then is still owed.
                    failure = exc
                self._manager.stopping()
                await self._end_intake()
                await self._drain()
                # While signals are still taken: one more must not cost the report.
                self._console.status.stop()
                await self._report()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return 0

    # -- intake ----------------------------------------------------------------------------------------------------

    async def _take_in(self) -> None:
        if self._config.duration_s is not None:
            self._intake_scope.deadline = trio.current_time() + self._config.duration_s
        with self._intake_scope:
            await self._intake.run(self._tick)
        if not self._from_file:
            # What came before the end may still wait in the kernel, for as long as a block may be held back.
            with trio.move_on_after(LAST_LOOK_S):
                await trio.sleep(2 * self._config.source.wakeup_ms / 1000)
                await self._intake.take()

    def _turned(self) -> None:
        """A turn of packets has been handled."""

    async def _end_intake(self) -> None:
        mirror = self._mirror
        # The end of a file is the end of its streams; a stopped capture only looks away.
        cut = not (self._from_file and self._source.finished)
        async with self._turn:
            await mirror.handle(mirror.reassembler.flush())
            mirror.stop(cut=cut)

    async def _ticks(self) -> None:
        while True:
            with trio.CancelScope(deadline=trio.current_time() + TICK_S) as self._next_tick:
                await trio.sleep_forever()
            await self._tick()

    async def _tick(self) -> None:
        """What time brings. While intake wakes up regularly it does this in passing, and the task for it sleeps on."""
        self._intake.tick_at_s = time.monotonic() + TICK_S
        self._next_tick.deadline = trio.current_time() + 2 * TICK_S
        # First: what came in time while this process was stopped is not given up.
        self._mirror.pump_task.serve()
        self._mirror.tick()
        self._ticked()
        if not self._from_file:
            async with self._turn:
                await self._mirror.handle(self._mirror.reassembler.expire(time.time_ns()))

    def _ticked(self) -> None:
        """A tick of the clock."""

    # -- end -------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        mirror = self._mirror
        # What a file held is delivered however long the upstreams take to answer, up to their linger time; a stopped
        # capture has --drain.
        if not (self._from_file and self._source.finished):
            self._drain_scope.deadline = trio.current_time() + self._config.drain_s
        with self._drain_scope:
            while not mirror.idle:
                await mirror.pump_task.wait_served(TICK_S)
        mirror.abort()

    async def _listen(self, nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        with self._control.signals() as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGUSR1:
                    self._console.print_table()
                elif number == signal.SIGHUP:
                    if not self._mirror.hurry:
                        self._control.reload_soon(nursery, self._reload)
                else:
                    self._end()

    def _end(self) -> None:
        """Stop taking in and drain; when asked again, at once."""
        if self._mirror.hurry:
            self._drain_scope.cancel()
        else:
            self._mirror.hurry = True
            self._intake_scope.cancel()
            self._drain_scope.deadline = trio.current_time() + self._config.drain_s

    async def _report(self) -> None:
        if self._source.truncated:
            self._console.warn_truncated()
        self._console.report()

    # -- reload ----------------------------------------------------------------------------------------------------

    async def _reload(self, wanted: CaptureConfig) -> tuple[str, list[str]]:
        """See `Control.reload_soon`."""
        self._manager.reloading()
        try:
            if isinstance(wanted, CaptureConfig):
                # As what runs was made: else --max-memory would not hold, or its bounds seem to differ.
                wanted = within_memory(wanted)
            resolved, restart = await reread(self._config, wanted)
            change = await self._take_on(resolved)
            if self._config.verbosity > 0:
                say_addresses(self._console.log, self._config.mirror.upstreams, resolved.addresses)
            return summary(len(resolved.addresses), *change.names), restart
        finally:
            self._manager.ready(self._console.ready_line())

    async def _take_on(self, resolved: Resolved) -> Change[Upstream]:
        """See `Mirror.reload`. No packet is handled between the change and the return."""
        config = resolved.config
        async with self._turn:
            change = self._mirror.reload(config, resolved.addresses, resolved.own)
        self._config = self._console.config = config
        self._console.log.quiet = config.verbosity < 0
        _allow_descriptors(config)
        return change
