"""The real command in a pseudo-terminal, and what a person would see of it, by the terminal emulator pyte."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyte

from tests.support.command import _ROOT
from tests.support.netns import Namespace

WAIT_S = 20.0


class Terminal:
    """A command on a terminal of its own: entering starts it, leaving ends it if it still runs.

    Args:
        argv: the command.
        columns: of the terminal; likewise
        rows: what scrolls out at the top is kept in `history`.
        environment: added to that of the tests.
    """

    def __init__(
        self, argv: Sequence[str], *, columns: int, rows: int = 40, environment: Mapping[str, str] | None = None
    ) -> None:
        self._argv = list(argv)
        self._environment = {**os.environ, "TERM": "xterm-256color", **(environment or {})}
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = bytearray()
        """All that was written to the terminal."""

    def __enter__(self) -> Terminal:
        self._fd, child = pty.openpty()
        self._resize_kernel(self.screen.columns, self.screen.lines)
        self._process = subprocess.Popen(
            self._argv,
            cwd=_ROOT,
            stdin=child,
            stdout=child,
            stderr=child,
            env=self._environment,
            start_new_session=True,
        )
        os.close(child)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._fd)

    @property
    def pid(self) -> int:
        return self._process.pid

    def hang_up(self) -> None:
        """As if somebody closed the window of a program that ignores that: writing to it is an error from now on."""
        os.close(self._fd)
        self._fd = os.open(os.devnull, os.O_RDONLY)

    def resize(self, columns: int, rows: int) -> None:
        """As if somebody dragged the window's corner."""
        self.screen.resize(rows, columns)
        self._resize_kernel(columns, rows)

    def _resize_kernel(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def lines(self) -> list[str]:
        """What the screen shows, without the empty end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    @property
    def history(self) -> list[str]:
        """What has scrolled out, and what the screen shows."""
        columns = range(self.screen.columns)
        above = ["".join(line[column].data for column in columns).rstrip() for line in self.screen.history.top]
        return above + self.lines

    def wait(self, condition: Callable[[list[str]], object], what: str) -> list[str]:
        """Take in output until the screen fulfils `condition`. Raises: AssertionError."""
        deadline = time.monotonic() + WAIT_S
        while not condition(self.lines):
            assert time.monotonic() < deadline, f"waited for {what}:\n" + "\n".join(self.lines)
            assert self._read(0.1), f"ended before {what}:\n" + "\n".join(self.history)
        return self.lines

    def _read(self, timeout_s: float) -> bool:
        """Returns False at the end."""
        readable, _, _ = select.select([self._fd], [], [], timeout_s)
        if readable:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # EIO: the other side is closed
                return False
            if not data:
                return False
            self.raw += data
            self._stream.feed(data)
        return True

    def read_for(self, seconds: float) -> None:
        """Take in output for a time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._read(0.05):
            pass

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Take in output as long as this lasts: who writes to a terminal that nobody reads has to wait."""
        over = threading.Event()

        def drain() -> None:
            while not over.is_set() and self._read(0.05):
                pass

        thread = threading.Thread(target=drain)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """A signal, and everything up to the end. Returns the exit status."""
        self._process.send_signal(number)
        deadline = time.monotonic() + WAIT_S
        while self._read(0.1):
            assert time.monotonic() < deadline, "it did not end"
        return self._process.wait()


def gopher_argv(*arguments: str, namespace: Namespace | None = None) -> list[str]:
    """The command line of the real gopher."""
    argv = [sys.executable, "-m", "gopher", *arguments]
    return argv if namespace is None else namespace.command(*argv)
