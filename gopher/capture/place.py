"""One place among the workers of a capture: the process that has it now, and the account of all that ever had it.

For `gopher.capture.workers`, which decides; this starts a process, talks with it (`gopher.capture.worker` has the
words), and keeps what it last said.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import trio

from gopher.capture.fanout import unread
from gopher.capture.figures import SharedFigures
from gopher.capture.worker import KNOWN_LIMIT, MESSAGE_BYTES
from gopher.errors import GopherError
from gopher.notify import ServiceManager
from gopher.observe.summing import LastFigures, from_wire, left_by_dead, sum_reports, with_packets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gopher.capture.run import Resolved
    from gopher.capture.worker import Setup
    from gopher.observe.accounts import AccountsReport

__all__ = ["Place", "WorkerDied"]

# The path first: with -c or -m Python would look for gopher in the current directory.
_WORKER: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; from gopher.capture.worker import main; sys.exit(main(int(sys.argv[1])))"
)
POLL_S: Final = 0.01


class WorkerDied(Exception):
    """A worker has ended, and not because it had finished."""


@contextlib.contextmanager
def _reset_is_end() -> Iterator[None]:
    """A worker that dies with something unread resets the socket."""
    try:
        yield
    except ConnectionResetError as exc:
        raise WorkerDied from exc


def _error(words: dict[str, Any]) -> GopherError:
    error = GopherError(words["message"], hint=words["hint"])
    error.exit_status = words["exit_status"]
    return error


class Place:
    """Where one worker after another works."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.member: socket.socket | None = None
        """The packet socket that has this place in the fanout group: a worker's, or that of the one that died."""
        self.truncated = False
        """A worker's file ended in the middle of a packet."""
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: trio.socket.SocketType | None = None
        self._figures: SharedFigures | None = None
        self._news = trio.lowlevel.ParkingLot()
        self._told: dict[str, Any] = {}
        """The worker's last report, empty before the first one."""
        self._answer: dict[str, Any] = {}
        """To the last reload, empty before it has come."""
        self._past: list[AccountsReport] = []
        """The sum of those before it, if there were any."""

    def start(self, setup: Setup) -> None:
        """Start a process; the place must be empty."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            # As large as messages may be; the kernel has a bound of its own.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
        with theirs:
            flags = [f"-W{option}" for option in sys.warnoptions]
            self.process = subprocess.Popen(
                [sys.executable, *flags, "-c", _WORKER, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                # The service manager listens to the supervisor alone.
                env={name: text for name, text in os.environ.items() if name not in ServiceManager.VARIABLES},
                pass_fds=[theirs.fileno()],
                # A terminal's Ctrl-C is for the supervisor, from the first moment on.
                start_new_session=True,
            )
        self._told = {}
        memory = SharedFigures.allocate(KNOWN_LIMIT)
        try:
            self._figures = SharedFigures(memory, KNOWN_LIMIT)
            socket.send_fds(ours, [pickle.dumps(setup)], [memory])
        finally:
            os.close(memory)
        ours.setblocking(False)
        self._channel = trio.socket.from_stdlib_socket(ours)

    async def opened(self) -> socket.socket | None:
        """Wait until the worker has opened its source. Returns its packet socket, if it is for a fanout group.

        Raises:
            GopherError: it could not.
            WorkerDied: it has ended.
        """
        assert self._channel is not None
        with _reset_is_end():
            message, ancillary, _, _ = await self._channel.recvmsg(
                MESSAGE_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
            )
        sockets = [
            socket.socket(fileno=int.from_bytes(data, sys.byteorder))
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        ]
        self._understand(message)
        return sockets[0] if sockets else None

    async def begin(self, since_ns: int) -> None:
        """Let the worker begin, and wait until it has.

        Raises:
            GopherError: it could not.
            WorkerDied: it has ended.
        """
        assert self._channel is not None
        await self._say(begin=since_ns)
        with _reset_is_end():
            self._understand(await self._channel.recv(MESSAGE_BYTES))

    async def follow(self) -> None:
        """Take in what the worker says until it ends.

        Raises:
            GopherError: it failed. It has told its last report before.
            WorkerDied: it has ended without one.
        """
        assert self._channel is not None
        while not self._told["final"]:
            with _reset_is_end():
                self._understand(await self._channel.recv(MESSAGE_BYTES))
        with contextlib.suppress(WorkerDied), _reset_is_end():
            # Why it had to end, if it had to.
            self._understand(await self._channel.recv(MESSAGE_BYTES))

    def _understand(self, message: bytes) -> None:
        if not message:
            raise WorkerDied
        said = json.loads(message)
        if "failed" in said:
            raise _error(said["failed"])
        if "report" in said:
            self._told = said
        if "reloaded" in said or "refused" in said:
            self._answer = said
        self._news.unpark_all()

    async def refresh(self) -> None:
        """Ask for a report, and wait until it has come; to be cancelled if it takes too long."""
        if not self.running or self._channel is None:
            return
        before = self._told
        await self._say(tell=True)
        while self._told is before:
            await self._news.park()

    async def take_on(self, resolved: Resolved) -> bool:
        """Have the worker take on other settings, once it has begun, and wait until it has. One call at a time.

        Returns:
            Whether it has: there may be no worker, or it ends before it answers.

        Raises:
            GopherError: it cannot; nothing has changed for it.
        """
        process = self.process
        while not self._told and self._has(process):
            await self._news.park()
        if not self._has(process):
            return False
        self._answer = {}
        await self._say(reload=resolved)
        while not self._answer and self._has(process):
            await self._news.park()
        if "refused" in self._answer:
            raise _error(self._answer["refused"])
        return bool(self._answer)

    def _has(self, process: subprocess.Popen[bytes] | None) -> bool:
        return process is not None and self.process is process

    async def end(self) -> None:
        """Tell the worker to end, if it has begun."""
        if self.running and self._channel is not None:
            await self._say(end=True)

    async def _say(self, **words: Any) -> None:
        assert self._channel is not None
        # Who is gone cannot be told; `follow` and the like notice that.
        with contextlib.suppress(OSError):
            await self._channel.send(pickle.dumps(words))

    async def ended(self) -> int:
        """Wait until the process is gone. Returns its status; negative: the signal it died of."""
        assert self.process is not None
        # It has closed its end of the socket, which the kernel does last, so this takes milliseconds.
        while (status := self.process.poll()) is None:  # noqa: ASYNC110
            await trio.sleep(POLL_S)
        return status

    def settle(self) -> None:
        """The worker has finished: its last report is part of the past."""
        if self._told:
            self.truncated |= self._told["truncated"]
            self._move_into_past(from_wire(self._told["report"]))

    def settle_died(self) -> int:
        """The worker has died: what it had done is part of the past, with what was pending as shed.

        Returns:
            How many packets that came to its socket are in no account.
        """
        if not self._told:
            return self.count_unread()
        assert self._figures is not None
        processed, *numbers = self._figures.read()
        width = len(LastFigures._fields)
        last = [LastFigures(*numbers[at : at + width]) for at in range(0, len(numbers), width)]
        report = left_by_dead(from_wire(self._told["report"]), processed, last)
        self._move_into_past(report)
        if self.member is None:
            return 0
        in_hand = report.packets["received"] - report.packets["dropped_by_kernel"] - processed
        return max(0, in_hand + self.count_unread())

    def _move_into_past(self, report: AccountsReport) -> None:
        self._told = {}
        self._news.unpark_all()
        self._past = [sum_reports([*self._past, report])]

    def count_unread(self) -> int:
        """Count the packets that came to the socket since its worker died, and how many of them were not dropped."""
        if self.member is None:
            return 0
        received, dropped = unread(self.member)
        self._past = [with_packets(report, received, dropped) for report in self._past]
        return received - dropped

    @property
    def reports(self) -> list[AccountsReport]:
        """The accounts of the workers of this place, up to now."""
        return [*self._past, from_wire(self._told["report"])] if self._told else self._past

    @property
    def open_connections(self) -> int:
        """Of the worker, as it last told."""
        return self._told["report"]["connections"]["open"] if self._told else 0

    @property
    def running(self) -> bool:
        """Whether a worker is at work here."""
        return bool(self._told) and not self._told["final"]

    def kill(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()

    def close(self) -> None:
        """End the process and leave the group."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.leave()
        if self.member is not None:
            self.member.close()
            self.member = None

    def leave(self) -> None:
        """Hang up. A worker that still runs then ends."""
        self.process = None
        self._news.unpark_all()
        if self._figures is not None:
            self._figures.close()
            self._figures = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
