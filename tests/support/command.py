"""The real `gopher` command in a process of its own, started, watched and held to its accounts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gopher
from tests.support.accounts import assert_accounts
from tests.support.netns import Namespace

READY = re.compile(r"gopher: (capturing on|reading) .+, tcp ports? [\d, ]+, to \d+ upstreams?$")
START_S = 15.0
STOP_S = 20.0

# Where the tests' own gopher is imported from, so that the child runs the same one.
_ROOT = Path(gopher.__file__).parents[1]
# -W default: a warning (a socket left open, a coroutine never awaited) shows on stderr, where it is looked for.
OWN_COMMAND = (sys.executable, "-W", "default", "-m", "gopher")


def _argv(
    arguments: Sequence[str], namespace: Namespace | None, prefix: Sequence[str], command: Sequence[str] = OWN_COMMAND
) -> list[str]:
    argv = [*prefix, *command, *arguments]
    return argv if namespace is None else namespace.command(*argv)


def run_gopher(
    *arguments: str, namespace: Namespace | None = None, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run gopher until it exits by itself: for mistakes that it must refuse."""
    return subprocess.run(
        _argv(arguments, namespace, prefix), cwd=_ROOT, capture_output=True, text=True, timeout=START_S, check=False
    )


class GopherProcess:
    """A running gopher. Entering waits for the ready line; leaving stops it and checks status, stderr and accounts.

    Args:
        arguments: the command line, without --report.
        namespace: where it captures.
        prefix: a command that starts it under other limits.
        ready: whether entering waits for the ready line.
        report: whether to ask for one; of several mirrors each has its own.
        owner: the user who writes the report, if not the one who runs the tests.
        command: what gopher is started with.

    Attributes:
        report: what --report held; there once gopher has ended.
        exit_status: of the process; there once gopher has ended.
    """

    def __init__(
        self,
        *arguments: str,
        namespace: Namespace | None = None,
        prefix: Sequence[str] = (),
        ready: bool = True,
        report: bool = True,
        owner: str | None = None,
        command: Sequence[str] = OWN_COMMAND,
    ) -> None:
        self._ready = ready
        self._with_report = report
        self._directory = tempfile.TemporaryDirectory()
        if owner is not None:
            shutil.chown(self._directory.name, owner)
        self._report_path = Path(self._directory.name) / "report.json"
        report_options = ["--report", str(self._report_path)] if report else []
        self._argv = _argv([*arguments, *report_options], namespace, prefix, command)
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._eof = False
        self.report: dict[str, Any] = {}
        self.exit_status: int | None = None

    def __enter__(self) -> GopherProcess:
        self._process = subprocess.Popen(self._argv, cwd=_ROOT, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read_stderr)
        self._reader.start()
        try:
            if self._ready:
                self.wait_stderr(READY.match)
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._give_up()
            print(f"stderr of gopher:\n{self.stderr}")
        elif self.exit_status is None:
            self.stop()

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr:
            for line in self._process.stderr:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._eof = True
            self._changed.notify_all()

    def _give_up(self) -> None:
        """The test has failed; what gopher says at its end may tell why."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._ended()

    def _ended(self) -> None:
        self.exit_status = self._process.wait()
        self._reader.join()
        if self._report_path.exists():
            self.report = json.loads(self._report_path.read_text())
        self._directory.cleanup()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stderr(self) -> str:
        with self._changed:
            return "\n".join(self._lines)

    def wait_stderr(self, matches: Callable[[str], object], *, count: int = 1, timeout_s: float = START_S) -> None:
        """Wait for `count` such lines on stderr. Raises: AssertionError when time is up or gopher has ended."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while sum(bool(matches(line)) for line in self._lines) < count:
                remaining = deadline - time.monotonic()
                assert not self._eof, "gopher ended early:\n" + "\n".join(self._lines)
                assert remaining > 0, "gopher did not print the awaited line:\n" + "\n".join(self._lines)
                self._changed.wait(remaining)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    @property
    def ended(self) -> bool:
        """Whether the process has."""
        return self._process.poll() is not None

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def peak_memory_mib(self) -> float:
        """VmHWM, of it and its workers: the most that was ever resident, the kernel's packet rings included."""
        kib = 0
        for pid in (self.pid, *self.workers()):
            status = Path(f"/proc/{pid}/status").read_text()
            kib += int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0])
        return kib / 1024

    def cpu_s(self) -> float:
        """CPU time used so far (proc_pid_stat(5), utime and stime)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> dict[str, Any]:
        """SIGTERM, then `wait`."""
        self._process.terminate()
        return self.wait()

    def kill(self) -> None:
        """SIGKILL: there is no report."""
        self._process.kill()
        self._process.wait()
        self._ended()
        assert_clean(self.stderr)

    def wait(self, *, status: int = 0, timeout_s: float = STOP_S) -> dict[str, Any]:
        """Wait for the exit; assert the status, a clean stderr and accounts that add up; return the report."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._ended()
            raise AssertionError(f"gopher did not end within {timeout_s} s:\n{self.stderr}") from None
        self._ended()
        assert self.exit_status == status, f"exit status {self.exit_status}:\n{self.stderr}"
        assert_clean(self.stderr)
        if self._with_report:
            assert_accounts(self.report)
        return self.report


def assert_clean(stderr: str) -> None:
    """No traceback, no Python warning, nothing that was swallowed in a destructor."""
    assert "Traceback" not in stderr, stderr
    assert "Exception ignored" not in stderr, stderr
    assert re.search(r"\w+Warning: ", stderr) is None, stderr
