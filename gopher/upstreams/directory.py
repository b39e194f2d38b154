"""An upstream that is a directory: each stream into a file, to look at what would be sent."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gopher._pump import Outlet
from gopher.errors import UpstreamError
from gopher.upstreams.upstream import StreamCopy, Upstream

if TYPE_CHECKING:
    from gopher._fastpath import Flow
    from gopher._pump import Budget, Ledger
    from gopher._runs import ByteRun
    from gopher.config import MirrorConfig, UpstreamConfig
    from gopher.http.framing import RequestFramer
    from gopher.upstreams.tcp import Address

__all__ = ["DirectoryUpstream"]


class DirectoryUpstream(Upstream):
    """Mirrored streams go into files `CLIENTIP.PORT-SERVERIP.PORT`, to look at what would be sent.

    A stream that has a gap, and one whose name is taken, goes on in a file with `.2`, `.3`, … appended.

    Raises:
        UpstreamError: the directory cannot be made or written to.
    """

    def __init__(self, config: UpstreamConfig, limits: MirrorConfig, total: Budget) -> None:
        super().__init__(config, limits, total)
        self._directory = Path(config.path)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            reason = "that is a file" if isinstance(exc, FileExistsError) else exc.strerror
            raise UpstreamError(
                f"upstream {config.name}: cannot make the directory: {reason}", hint="name one you may write to"
            ) from exc
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise UpstreamError(
                f"upstream {config.name}: the directory is not writable", hint="name one you may write to"
            )

    def copy(self, flow: Flow) -> StreamCopy:
        """See `Upstream.copy`."""
        return StreamCopy(self, "{}.{}-{}.{}".format(*flow.client, *flow.server))

    def connect(self, copy: StreamCopy, base: int, requests: RequestFramer) -> Outlet | str:
        """See `Upstream.connect`."""
        self.dials += 1
        number = 1
        while True:
            name = copy.name if number == 1 else f"{copy.name}.{number}"
            try:
                descriptor = os.open(
                    self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
                )
            except FileExistsError:
                number += 1
            except OSError as exc:
                return "no_descriptors" if exc.errno in (errno.EMFILE, errno.ENFILE) else "write_failed"
            else:
                return FileOutlet(descriptor, self.ledger, copy)

    def outcome(self, connection: Outlet, outcome: int) -> None:
        """See `Upstream.outcome`."""
        assert isinstance(connection, FileOutlet)
        connection.owner.lost(connection, "write_failed")

    def finish(self, connection: Outlet, reset: bool = False) -> None:
        """See `Upstream.finish`."""
        assert isinstance(connection, FileOutlet)
        connection.owner.done(connection, reset=reset)

    def reload(self, limits: MirrorConfig, addresses: list[Address]) -> None:
        """Files have no addresses either."""

    def tick(self, now_s: float) -> None:
        """Files have no time-outs."""

    def abort(self, reason: str) -> None:
        """Files are closed as soon as their stream is over."""


class FileOutlet(Outlet):
    """A file that gets the bytes of one stream. Writes block: a disk is not an upstream that may stall."""

    __slots__ = ("_descriptor", "_ledger", "owner")

    def __init__(self, descriptor: int, ledger: Ledger, owner: StreamCopy) -> None:
        self.owner = owner
        self._descriptor = descriptor
        self._ledger = ledger

    def write(self, data: bytes | ByteRun) -> int:
        """Append. Returns 0 or a negative errno, with what could not be written queued."""
        view = memoryview(bytes(data))
        while view:
            try:
                written = os.write(self._descriptor, view)
            except OSError as exc:
                self.queued += len(view)
                self._ledger.pending += len(view)
                return -(exc.errno or errno.EIO)
            self.sent += written
            self._ledger.delivered += written
            view = view[written:]
        return 0

    def unaccepted(self) -> int:
        """Bytes that were sent and may still be lost: none."""
        return 0

    def hang_up(self, hard: bool) -> None:
        """Close the file."""
        if not self.closed:
            os.close(self._descriptor)
            self.closed = True

    def abandon(self, reason: str, unaccepted: int = 0) -> int:
        """Shed what is queued, and `unaccepted` bytes of what was written."""
        length = self.queued
        self.queued = 0
        self._ledger.pending -= length
        self._ledger.delivered -= unaccepted
        self._ledger.add_shed(reason, length + unaccepted)
        return length + unaccepted
