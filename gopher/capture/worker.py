"""One of the processes that share a capture: takes its part of the flows, and tells the supervisor its accounts.

Runs `CaptureRun` as the only process of a capture does; what is different comes and goes by one socket, whose other end
is the supervisor's (`gopher.capture.workers`). It obeys nobody else: signals that a terminal or an init system sends to
all processes of a program are for the supervisor. When the supervisor is gone, so is the worker, at once.

To the worker, pickled: a `Setup` with the memory for its last figures along, then `{"begin": time_ns}`, then
`{"tell": True}`, `{"reload": Resolved}` or `{"end": True}` now and then. From it: `{"opened": true}` with the packet
socket along, then `{"report": …, "final": …}` now and then, or `{"failed": …}`. To a reload it answers with a report
that has `"reloaded": true`, or with `{"refused": …}`. What it says is JSON because it reads packets from the network,
and the supervisor may have rights that it has not.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import signal
import socket
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import trio

from gopher.capture.figures import SharedFigures
from gopher.capture.run import TICK_S, CaptureRun, Resolved
from gopher.capture.source import DeviceSource, open_source
from gopher.control import Control
from gopher.errors import GopherError, leaves_of
from gopher.notify import ServiceManager
from gopher.observe.log import Log
from gopher.observe.summing import to_wire
from gopher.privileges import drop_rights, find_user, prepare
from gopher.supervisor import die_with_parent

if TYPE_CHECKING:
    from gopher.capture.source import PacketSource

__all__ = ["KNOWN_LIMIT", "LIVE_TELL_S", "MESSAGE_BYTES", "TELL_S", "Setup", "main"]

MESSAGE_BYTES: Final = 1 << 20
"""More than a message may have: the kernel's bound for a datagram is its send buffer, 416 KiB at most by default."""
KNOWN_LIMIT: Final = 128
"""Upstreams of one run, also those that were removed: each takes up to 2.5 KiB of a report, which is one message."""
TELL_S: Final = 1.0
"""How old the accounts may be that the supervisor has without asking; telling them costs up to half a millisecond here,
and as much there."""
LIVE_TELL_S: Final = 0.5
"""The same for a live view, which shows rates of two seconds."""
# Where there are many connections a snapshot takes longer, but never more than this share of a core.
TELL_SHARE: Final = 0.01

# <linux/prctl.h>
_PR_SET_NAME: Final = 15


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told first."""

    resolved: Resolved
    """For this worker."""
    place: int
    kernel_shares: bool
    supervisor: int
    """Its process id."""
    tell_s: float
    """How often to tell the accounts."""


def main(descriptor: int) -> int:
    """Be a worker, by what comes from the socket `descriptor`. Returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as channel:
        message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 1)
        setup: Setup = pickle.loads(message)
        figures = SharedFigures(descriptors[0], KNOWN_LIMIT)
        os.close(descriptors[0])
        _prctl(_PR_SET_NAME, f"gopher worker {setup.place}".encode())
        die_with_parent(setup.supervisor, signal.SIGKILL)
        Log(setup.resolved.config.log_format, name=setup.resolved.config.name).speak_for_process()
        channel.setblocking(False)
        try:
            return trio.run(_work, channel, setup, figures)
        except BaseException as error:
            failures = list(leaves_of(error))
            if not all(isinstance(failure, GopherError) for failure in failures):
                raise
            failure = failures[0]
            assert isinstance(failure, GopherError)
            channel.setblocking(True)
            channel.send(json.dumps({"failed": _words(failure)}).encode())
            return failure.exit_status


def _words(error: GopherError) -> dict[str, Any]:
    return {"message": str(error), "hint": error.hint, "exit_status": error.exit_status}


def _prctl(option: int, argument: Any) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0)


async def _work(channel: socket.socket, setup: Setup, figures: SharedFigures) -> int:
    prepare()
    config = setup.resolved.config
    user = find_user(config.user)
    source = open_source(config.source, setup.resolved.own)
    with contextlib.closing(source):
        member = source if isinstance(source, DeviceSource) and setup.kernel_shares else None
        socket.send_fds(channel, [json.dumps({"opened": True}).encode()], [member.fileno()] if member else [])
        message = await trio.socket.from_stdlib_socket(channel).recv(MESSAGE_BYTES)
        if not message:
            os._exit(1)
        # What is opened and made from here on is opened and made with the rights that are left.
        drop_rights(user)
        # The kernel has forgotten whom to die with.
        die_with_parent(setup.supervisor, signal.SIGKILL)
        if member:
            member.begin(pickle.loads(message)["begin"])
        return await _WorkerRun(setup, source, channel, figures).run()


class _WorkerRun(CaptureRun):
    def __init__(self, setup: Setup, source: PacketSource, channel: socket.socket, figures: SharedFigures) -> None:
        # The supervisor speaks with the service manager: this one finds none in its environment.
        super().__init__(setup.resolved, source, None, Control(), ServiceManager())
        self._setup = setup
        self._channel = channel
        self._figures = figures
        self._told: tuple[int, ...] = ()
        self._tell_from_s = 0.0

    async def _listen(self, nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        self._turned()
        self._tell()
        task_status.started()
        supervisor = trio.socket.from_stdlib_socket(self._channel)
        while message := await supervisor.recv(MESSAGE_BYTES):
            words = pickle.loads(message)
            if "tell" in words:
                self._tell()
            elif "reload" in words:
                # In a task: it waits for the turn, and what it waits for may have to be told to end.
                nursery.start_soon(self._reload_and_answer, words["reload"])
            else:
                self._end()
        os._exit(1)  # nobody is left who could be told the accounts

    async def _reload_and_answer(self, resolved: Resolved) -> None:
        try:
            await self._take_on(resolved)
        except GopherError as error:
            answer = json.dumps({"refused": _words(error)}).encode()
        else:
            # Before anything comes to a new upstream: figures of one that no report knows would be lost.
            self._turned()
            answer = self._message(final=False, reloaded=True)
        await trio.socket.from_stdlib_socket(self._channel).send(answer)

    def _ticked(self) -> None:
        """Tell now and then. Not in a task of its own: each time it wakes up would cost as much as the telling."""
        began_s = time.perf_counter()
        if began_s < self._tell_from_s:
            return
        self._turned()
        signature = self._signature()
        if signature != self._told and self._tell():
            self._told = signature
        took_s = time.perf_counter() - began_s
        # The tick that comes nearest.
        self._tell_from_s = began_s + max(self._setup.tell_s, took_s / TELL_SHARE) - TICK_S / 2

    def _tell(self) -> bool:
        # A supervisor that is behind need not know every report.
        with contextlib.suppress(BlockingIOError):
            self._channel.send(self._message(final=False))
            return True
        return False

    def _turned(self) -> None:
        self._figures.write(self._mirror.reassembler.packets, self._mirror.upstreams)

    def _signature(self) -> tuple[int, ...]:
        """What changes whenever the accounts do, and costs little."""
        signature = [self._mirror.reassembler.packets]
        for upstream in self._mirror.upstreams:
            ledger = upstream.ledger
            signature += [ledger.captured, ledger.delivered, ledger.pending, ledger.responses]
            signature += [upstream.connections_captured, upstream.connections_pending, upstream.dials]
        return tuple(signature)

    def _message(self, **words: bool) -> bytes:
        report = self._mirror.snapshot()
        if not self._setup.kernel_shares and self._setup.place > 0:
            # All workers have read the same packets.
            report = replace(report, packets={**report.packets, "received": 0})
        message = {"report": to_wire(report), "truncated": self._source.truncated, **words}
        return json.dumps(message).encode()

    async def _report(self) -> None:
        await trio.socket.from_stdlib_socket(self._channel).send(self._message(final=True))
