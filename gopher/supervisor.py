"""Several mirrors of one file: a process for each, and this one, which passes signals on.

A process each keeps failures apart: a mirror that fails or is short of CPU or memory costs the others nothing, and each
has its own bounds, report and metrics. The price is a Python interpreter's memory for each. All or nothing holds at the
start; afterwards a mirror that ends by a failure is named, the others go on, and a reload starts it again.

The supervisor does no I/O but signals, and never loads Trio: it forks, so a child has what was parsed already.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gopher.errors import ConfigError
from gopher.notify import ServiceManager
from gopher.observe.log import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gopher.plan import MirrorPlan

__all__ = ["die_with_parent", "supervise"]

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_WATCHED: Final = {*_PASSED_ON, signal.SIGCHLD}
_PR_SET_PDEATHSIG: Final = 1
_PID: Final = struct.Struct("=i")


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send this signal when the process `parent`, which started this one, is gone.

    The kernel forgets it when the process changes its user or its capabilities: then it has to be called again.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


@dataclass(slots=True)
class _Child:
    mirror: MirrorPlan
    ready: bool = False
    leaving: bool = False
    stale: bool = False
    """A reload came before it was ready."""


def supervise(
    mirrors: Mapping[str, MirrorPlan],
    run: Callable[[MirrorPlan, Callable[[], None]], int],
    reread: Callable[[], Mapping[str, MirrorPlan]],
) -> int:
    """Run mirrors until all have ended.

    Args:
        mirrors: by their names.
        run: runs one, in a process of its own, and returns its exit status; calls its second argument when it is ready.
        reread: what the file says now; raises `ConfigError`.

    Returns:
        0, or the exit status of the first mirror that failed.
    """
    return _Supervisor(run, reread).supervise(mirrors)


class _Supervisor:
    def __init__(
        self, run: Callable[[MirrorPlan, Callable[[], None]], int], reread: Callable[[], Mapping[str, MirrorPlan]]
    ) -> None:
        self._run = run
        self._reread = reread
        self._children: dict[int, _Child] = {}
        self._status = 0
        self._started = False
        self._stopping = False

    def supervise(self, mirrors: Mapping[str, MirrorPlan]) -> int:
        # Mirrors may differ in this; what is said of all of them takes after the first.
        self._log = Log(next(iter(mirrors.values())).config.log_format)
        self._pid = os.getpid()
        self._manager = ServiceManager()
        self._woken, self._waker = socket.socketpair()
        self._readable, self._writable = os.pipe()
        with self._woken, self._waker, contextlib.closing(self._manager):
            self._waker.setblocking(False)
            signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
            for number in _WATCHED:
                signal.signal(number, _do_nothing)
            for mirror in mirrors.values():
                self._start(mirror)
            while self._children:
                self._wait()
            signal.set_wakeup_fd(-1)
        return self._status

    # -- children --------------------------------------------------------------------------------------------------

    def _start(self, mirror: MirrorPlan) -> None:
        # A signal between the fork and the child's own handlers waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        pid = os.fork()
        if pid == 0:
            self._be(mirror)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        self._children[pid] = _Child(mirror)

    def _be(self, mirror: MirrorPlan) -> None:
        """The child's life."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _WATCHED:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            # Away from the terminal's Ctrl-C: the supervisor passes one on, and two would mean "at once".
            os.setpgid(0, 0)
            os.close(self._readable)
            self._woken.close()
            self._waker.close()
            # The service manager listens to the supervisor alone.
            for name in ServiceManager.VARIABLES:
                os.environ.pop(name, None)
            die_with_parent(self._pid)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            status = self._run(mirror, self._say_ready)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            # Nothing of the supervisor's may run here: no `finally`, no exit handler. `run` has flushed what was said.
            os._exit(status)

    def _say_ready(self) -> None:
        # Rights may have been dropped since.
        die_with_parent(self._pid)
        os.write(self._writable, _PID.pack(os.getpid()))
        os.close(self._writable)

    def _pass_on(self, number: int) -> None:
        for pid in self._children:
            os.kill(pid, number)  # not reaped yet, so it is still the same process

    # -- events ----------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        woken = self._woken.fileno()
        readable, _, _ = select.select([woken, self._readable], [], [], self._manager.alive_every_s or None)
        self._manager.alive()
        if self._readable in readable:
            data = os.read(self._readable, 64 * _PID.size)
            for (pid,) in _PID.iter_unpack(data):
                child = self._children.get(pid)
                if child is not None:
                    child.ready = True
                    if child.stale:
                        os.kill(pid, signal.SIGHUP)
        numbers = self._woken.recv(4096) if woken in readable else b""
        if signal.SIGCHLD in numbers:
            self._reap()
        if not self._started and not self._stopping and all(child.ready for child in self._children.values()):
            self._started = True
            names = ", ".join(child.mirror.name for child in self._children.values())
            if names:
                ready = f"{len(self._children)} mirrors are ready: {names}"
                self._log.reply("mirrors", ready)
                self._manager.ready(ready)
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stopping = True
                self._manager.stopping()
                self._pass_on(signal.SIGTERM)
            elif number == signal.SIGUSR1:
                self._pass_on(number)
            elif number == signal.SIGHUP and not self._stopping:
                self._reload()

    def _reap(self) -> None:
        while self._children:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            child = self._children.pop(pid, None)
            status = os.waitstatus_to_exitcode(wait_status)
            if child is None or status == 0:
                continue
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            self._status = self._status or (status if status > 0 else 1)
            if self._started and not self._stopping:
                self._log.failure(
                    "mirrors",
                    f"mirror {child.mirror.name} ended {how}; the others go on, and a reload (SIGHUP) starts it again",
                )
            else:
                self._log.failure("mirrors", f"mirror {child.mirror.name} ended {how}")
                # All or nothing at the start: who starts gopher looks at its exit status.
                if not self._stopping:
                    self._stopping = True
                    self._pass_on(signal.SIGTERM)

    def _reload(self) -> None:
        try:
            wanted = self._reread()
        except ConfigError as error:
            hint = f"\n  hint: {error.hint}" if error.hint else ""
            self._log.failure("mirrors", f"not reloaded, nothing has changed: {error}{hint}")
            return
        running = {child.mirror.name for child in self._children.values() if not child.leaving}
        for pid, child in self._children.items():
            if child.leaving:
                continue
            if child.mirror.name not in wanted:
                child.leaving = True
                self._log.reply("mirrors", f"mirror {child.mirror.name} is no more in the file: stopping it")
                os.kill(pid, signal.SIGTERM)
            elif child.ready:
                os.kill(pid, signal.SIGHUP)
            else:
                child.stale = True
        for name, mirror in wanted.items():
            if name not in running:
                self._log.reply("mirrors", f"starting mirror {name}")
                self._start(mirror)


def _do_nothing(number: int, frame: object) -> None:
    """The wake-up descriptor has the number."""
