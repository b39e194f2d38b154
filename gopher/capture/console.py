"""What a capturing gopher says: on stderr, in the report, to Prometheus. One for all its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gopher.observe.log import Log
from gopher.observe.report import to_fields, to_table, write_report
from gopher.observe.status import Status
from gopher.observe.terminal import capture_view, rates, status_line

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import trio

    from gopher.config import CaptureConfig
    from gopher.observe.accounts import AccountsReport

__all__ = ["Console"]


class Console:
    """The words of one run.

    Args:
        config: what was asked for.
        name: of the device or file.
        snapshot: the accounts as they stand.

    Attributes:
        log: everything goes through it.
        status: the live view, or the status lines; to be run.
    """

    def __init__(self, config: CaptureConfig, name: str, snapshot: Callable[[], AccountsReport]) -> None:
        self.config = config
        """May be replaced by a reload."""
        self.log = Log(config.log_format, quiet=config.verbosity < 0, name=config.name)
        self._name = name
        self._snapshot = snapshot
        self.status = Status(
            self.log,
            live=config.live,
            interval_s=config.stats_interval_s,
            snapshot=snapshot,
            view=capture_view,
            line=lambda previous, current: (status_line(previous, current), rates(previous, current)),
        )

    def ready_line(self) -> str:
        """The line that scripts wait for."""
        source, upstreams = self.config.source, len(self.config.mirror.upstreams)
        doing = "capturing on" if source.read_path is None else "reading"
        ports = ",".join(map(str, source.ports))
        port = "ports" if len(source.ports) > 1 else "port"
        plural = "" if upstreams == 1 else "s"
        return f"{doing} {self._name}, tcp {port} {ports}, to {upstreams} upstream{plural}"

    def say_ready(self) -> None:
        """Traffic is taken in."""
        self.log.info("ready", self.ready_line())

    def warn_truncated(self) -> None:
        """The file did not end with a whole packet."""
        name = self._name
        self.log.warning(
            "truncated", f"{name} ends in the middle of a packet; mirrored up to the last whole one", file=name
        )

    def serve_metrics(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        """Start a task that serves them until the nursery is cancelled."""
        # Only here: who does not ask for metrics need not have the client library in memory.
        from gopher.observe.metrics import CAPTURE_METRICS
        from gopher.observe.web import MetricsServer

        server = MetricsServer(listener, CAPTURE_METRICS, lambda: to_fields(self._snapshot()))
        nursery.start_soon(server.run)
        self.log.info("metrics", f"metrics on {server.url}", url=server.url)

    def print_table(self) -> None:
        """The accounts for people, as they stand."""
        report = self._snapshot()
        title = f"mirror {self.config.name}:\n" if self.config.name else ""
        self.log.report(lambda width: title + to_table(report, width), to_fields(report))

    def report(self) -> None:
        """The accounts at the end.

        Raises:
            GopherError: the file cannot be written.
        """
        if self.config.verbosity >= 0:
            self.print_table()
        if self.config.report_path is not None:
            write_report(self._snapshot(), self.config.report_path)
