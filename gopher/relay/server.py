"""Relay mode as a program: listens, hands each connection on, ends in order.

Owns the nursery. The tasks are: accepting, the pumps, time-outs, signals, and one for each client that gets a last
word. What is done with a connection is decided in `gopher.relay.transparent` (bytes) and `gopher.relay.framed`
(messages).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import signal
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

import gopher
from gopher.control import Control, reloaded, say_addresses, summary
from gopher.errors import ConfigError
from gopher.limits import raise_descriptor_limit
from gopher.link import ProxyHeader
from gopher.listening import listen
from gopher.notify import ServiceManager
from gopher.observe.log import Log
from gopher.observe.relaying import RelayReport, relay_table, relay_to_fields, relay_to_json
from gopher.observe.report import check_writable, write_text
from gopher.observe.status import Status
from gopher.observe.terminal import relay_rates, relay_status_line, relay_view
from gopher.privileges import drop_rights, find_user, prepare
from gopher.relay import lastword
from gopher.relay.framed import Framed
from gopher.relay.hooks import load_scripts
from gopher.relay.tally import Tally
from gopher.relay.tls import Tls, load_context
from gopher.relay.transparent import Transparent
from gopher.upstreams.tcp import Address, resolve

if TYPE_CHECKING:
    import socket
    import ssl

    from gopher.config import RelayConfig
    from gopher.relay.hooks import Script

__all__ = ["run_relay"]

# Also how late a time-out may be.
TICK_S: Final = 0.05
# The pause when there is no descriptor for one more connection: some will be closed meanwhile.
PAUSE_S: Final = 0.1
SPARE_DESCRIPTORS: Final = 256
ACCEPTS_PER_TURN: Final = 256
# What a reload changes; everything else needs a restart.
RELOADED: Final = frozenset(
    {
        *("upstreams", "link_from", "connect_timeout_s", "idle_timeout_s", "max_connections", "proxy_protocol"),
        *("forwarded", "host", "marker", "drain_s", "verbosity"),
        *("ca_path", "cert_path", "key_path", "server_name", "insecure"),
    }
)

_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


async def run_relay(config: RelayConfig, control: Control | None = None) -> int:
    """Relay until `duration_s` is over, or SIGTERM or SIGINT comes; then drain and report.

    Prints the ready line and the final table to stderr.

    Args:
        config: what was asked for.
        control: the command's side.

    Returns:
        The exit status.

    Raises:
        GopherError: something the user or the administrator has to mend.
    """
    prepare()
    user = find_user(config.user)
    addresses = [await resolve(upstream) for upstream in config.upstreams]
    # Read with the rights of the start: a private key may be for root alone.
    context = _tls_context(config)
    _allow_descriptors(config)
    with contextlib.ExitStack() as stack:
        hint = "give another one with -p or --listen"
        listeners = [stack.enter_context(listen(config.listen_host, port, hint=hint)) for port in config.ports]
        metrics = None
        if config.metrics_address is not None:
            metrics = stack.enter_context(listen(*config.metrics_address, hint="give another one with --metrics"))
        # What is opened and loaded from here on is opened and loaded with the rights that are left.
        drop_rights(user)
        if config.report_path is not None:
            check_writable(config.report_path)
        scripts = load_scripts(config.scripts)
        manager = stack.enter_context(contextlib.closing(ServiceManager()))
        return await _Run(config, addresses, context, listeners, scripts, metrics, control or Control(), manager).run()


def _tls_context(config: RelayConfig) -> ssl.SSLContext | None:
    return load_context(config.tls) if config.upstreams[0].scheme == "tls" else None


def _allow_descriptors(config: RelayConfig) -> None:
    # A bridge has two more beside the upstream's socket.
    ends = 1 + len(config.upstreams) + (2 if config.upstreams[0].scheme == "tls" else 0)
    raise_descriptor_limit(config.max_connections * ends + SPARE_DESCRIPTORS)


class _Run:
    def __init__(
        self,
        config: RelayConfig,
        addresses: list[list[Address]],
        context: ssl.SSLContext | None,
        listeners: list[socket.socket],
        scripts: list[Script],
        metrics: socket.socket | None,
        control: Control,
        manager: ServiceManager,
    ) -> None:
        self._config = config
        self._control = control
        self._manager = manager
        self._log = control.log = Log(config.log_format, quiet=config.verbosity < 0, name=config.name)
        self._addresses = addresses
        self._listeners = listeners
        self._scripts = scripts
        self._metrics = metrics
        tell = partial(self._log.failure, "tls")
        self._tls = Tls(config, addresses[0], context, tell, accept=self._accept_waiting)
        self._tally = Tally()
        self._ticked = trio.lowlevel.ParkingLot()
        self._accept_scope = trio.CancelScope()
        self._drain_scope = trio.CancelScope()
        self._hurry = False
        self._started = datetime.now(timezone.utc)
        self._started_s = trio.current_time()
        self._status = Status(
            self._log,
            live=config.live,
            interval_s=config.stats_interval_s,
            snapshot=self._snapshot,
            view=relay_view,
            line=lambda previous, current: (relay_status_line(previous, current), relay_rates(previous, current)),
        )
        self._transparent: Transparent
        self._framed: Framed

    async def run(self) -> int:
        config = self._config
        async with trio.open_nursery() as nursery:
            addresses, tally, tls = self._addresses, self._tally, self._tls
            self._transparent = Transparent(config, addresses[0], tally, nursery, self._take_link, tls)
            self._framed = Framed(config, addresses, tally, self._transparent.adopt, self._scripts, self._tell, tls)
            await nursery.start(self._signals, nursery)
            for task in (self._transparent.task.run, *self._framed.tasks):
                nursery.start_soon(task)
            nursery.start_soon(self._ticks)
            nursery.start_soon(self._manager.watch)
            nursery.start_soon(self._status.run)
            if self._metrics is not None:
                self._serve_metrics(self._metrics, nursery)
            self._warn()
            if config.verbosity > 0:
                say_addresses(self._log, config.upstreams, addresses)
            self._log.info("ready", self._ready_line())
            self._control.ready()
            self._manager.ready(self._ready_line())
            await self._accept()
            self._manager.stopping()
            await self._drain()
            # While signals are still taken: one more must not cost the report.
            self._status.stop()
            self._report()
            nursery.cancel_scope.cancel()
        return 0

    # -- accepting -------------------------------------------------------------------------------------------------

    async def _accept(self) -> None:
        if self._config.duration_s is not None:
            self._accept_scope.deadline = trio.current_time() + self._config.duration_s
        with self._accept_scope:
            async with trio.open_nursery() as nursery:
                for listener in self._listeners:
                    nursery.start_soon(self._accept_from, listener)
        for listener in self._listeners:
            # A close would reset those that the kernel has accepted already.
            while self._accept_one(listener) == 0:
                pass
            listener.close()

    async def _accept_from(self, listener: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(ACCEPTS_PER_TURN):
                if self._tally.open >= self._config.max_connections:
                    await trio.sleep(PAUSE_S)
                    break
                failure = self._accept_one(listener)
                if failure == errno.EAGAIN:
                    break
                # Anything else is about one connection, which is gone already (accept(2), "Error handling").
                if failure in _NO_DESCRIPTOR:
                    await trio.sleep(PAUSE_S)
                    break

    def _accept_waiting(self) -> None:
        """Accept at once what waits for it; what there is no room or descriptor for waits on."""
        for listener in self._listeners:
            for _ in range(ACCEPTS_PER_TURN):
                if self._tally.open >= self._config.max_connections or self._accept_one(listener):
                    break

    def _accept_one(self, listener: socket.socket) -> int:
        """Returns 0 or an errno."""
        try:
            sock, peer = listener.accept()
        except OSError as error:
            return error.errno or errno.EAGAIN
        sock.setblocking(False)
        self._take(sock, peer)
        return 0

    def _take(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        self._tally.accept()
        try:
            server = sock.getsockname()
        except OSError:
            lastword.reset(sock)
            self._tally.end("client_reset")
            return
        header = ProxyHeader(client=_plain(peer), server=_plain(server))
        may_link = self._may_link(header)
        if self._config.reads_messages:
            self._framed.take(sock, header, may_link=may_link)
        else:
            self._transparent.take(sock, header, may_link=may_link)

    def _take_link(self, downstream: socket.socket, upstream: socket.socket | None, header: ProxyHeader) -> None:
        if upstream is None:
            self._framed.take(downstream, header, may_link=True)
        else:
            self._framed.take_link(downstream, upstream, header)

    def _may_link(self, header: ProxyHeader) -> bool:
        networks = self._config.link_from
        if not networks:
            return True
        assert header.client is not None
        address = ipaddress.ip_address(header.client[0])
        return any(address in network for network in networks)

    # -- end -------------------------------------------------------------------------------------------------------

    async def _ticks(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            self._transparent.tick()
            self._framed.tick()
            self._ticked.unpark_all()

    async def _drain(self) -> None:
        self._hurry = True
        self._drain_scope.deadline = trio.current_time() + self._config.drain_s
        self._framed.stop()
        with self._drain_scope:
            while self._tally.open or self._framed.busy:
                await self._ticked.park()
        self._transparent.abort()
        self._framed.abort()
        await self._framed.wait_scripts()

    async def _signals(self, nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        with self._control.signals() as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGUSR1:
                    self._print_table()
                elif number == signal.SIGHUP:
                    if not self._hurry:
                        self._control.reload_soon(nursery, self._reload)
                elif self._hurry:
                    self._drain_scope.cancel()
                else:
                    self._hurry = True
                    self._accept_scope.cancel()

    def _serve_metrics(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        # Only here: who does not ask for metrics need not have the client library in memory.
        from gopher.observe.metrics import RELAY_METRICS
        from gopher.observe.web import MetricsServer

        server = MetricsServer(listener, RELAY_METRICS, lambda: relay_to_fields(self._snapshot()))
        nursery.start_soon(server.run)
        self._log.info("metrics", f"metrics on {server.url}", url=server.url)

    async def _reload(self, wanted: RelayConfig) -> tuple[str, list[str]]:
        """See `Control.reload_soon`."""
        self._manager.reloading()
        try:
            config, restart = reloaded(self._config, wanted, RELOADED)
            addresses = [await resolve(upstream) for upstream in config.upstreams]
            context = self._load_context(config)
            added, removed = self._framed.reload(config, addresses).names
            self._transparent.reload(config, addresses[0])
            self._tls.reload(config, addresses[0], context)
            first, before = config.upstreams[0], self._config.upstreams[0]
            if first != before:
                added, removed = [first.name, *added], [before.name, *removed]
            self._config = config
            self._log.quiet = config.verbosity < 0
            _allow_descriptors(config)
            self._warn()
            if config.verbosity > 0:
                say_addresses(self._log, config.upstreams, addresses)
            return summary(len(config.upstreams), added, removed), restart
        finally:
            self._manager.ready(self._ready_line())

    def _load_context(self, config: RelayConfig) -> ssl.SSLContext | None:
        """For a reload: certificates may have been renewed."""
        try:
            return _tls_context(config)
        except ConfigError as error:
            if not self._tls.used or config.tls != self._config.tls:
                raise
            # The rights to read them may be gone since the start, which is no reason not to take on the rest.
            self._log.failure("tls", f"certificates stay as they were: {error}")
            return self._tls.context

    # -- words -----------------------------------------------------------------------------------------------------

    def _warn(self) -> None:
        if self._config.tls.insecure:
            name = self._config.upstreams[0].name
            self._log.warning("tls", f"--tls-insecure: nothing shows that {name} is who it should be", upstream=name)

    def _tell(self, line: str) -> None:
        """Of a script that failed: said even when nothing else is."""
        self._log.failure("script", line)

    def _where(self) -> str:
        ports = self._config.ports
        where = f"port{'s' if len(ports) > 1 else ''} {','.join(map(str, ports))}"
        return f"{where} of {self._config.listen_host}" if self._config.listen_host else where

    def _ready_line(self) -> str:
        upstreams = len(self._config.upstreams)
        return f"relaying on {self._where()}, to {upstreams} upstream{'' if upstreams == 1 else 's'}"

    def _snapshot(self) -> RelayReport:
        tally, (from_downstream, from_upstream) = self._tally, self._transparent.pump.received
        reads_messages = self._config.reads_messages or tally.framed > 0
        return RelayReport(
            version=gopher.__version__,
            listening=self._where(),
            upstreams=tuple(upstream.name for upstream in self._config.upstreams),
            started_at=self._started.isoformat(timespec="seconds"),
            duration_s=round(trio.current_time() - self._started_s, 3),
            connections={
                "accepted": tally.accepted,
                "open": tally.open,
                "finished": tally.finished,
                "failed": sum(tally.failed.values()),
                "links": tally.links,
                "framed": tally.framed,
            },
            failed=dict(tally.failed),
            bytes={
                "from_downstream": from_downstream + tally.from_downstream,
                "from_upstream": from_upstream + tally.from_upstream,
            },
            answers=dict(tally.answers),
            exchanges={
                "requests": tally.requests,
                "responses": tally.responses,
                "dropped": tally.dropped,
                "unanswered": tally.unanswered,
            }
            if reads_messages
            else None,
            coupling=self._framed.coupling(),
            scripts=self._framed.scripting(),
            copies=self._framed.copies(),
        )

    def _print_table(self) -> None:
        report = self._snapshot()
        title = f"mirror {self._config.name}:\n" if self._config.name else ""
        self._log.report(lambda width: title + relay_table(report, width), relay_to_fields(report))

    def _report(self) -> None:
        if self._config.verbosity >= 0:
            self._print_table()
        if self._config.report_path is not None:
            write_text(relay_to_json(self._snapshot()), self._config.report_path)


def _plain(address: tuple[str, int]) -> tuple[str, int]:
    """An IPv4 client of a socket that listens for both comes as ::ffff:192.0.2.1."""
    host = address[0].partition("%")[0]
    return host.removeprefix("::ffff:") if host.startswith("::ffff:") and "." in host else host, address[1]
