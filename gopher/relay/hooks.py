"""Users' scripts: loading them, and calling their functions in order, within a time limit.

The functions that concern one connection are called one at a time, in the order of what happened (`Lane`); connections
do not wait for one another. A function that raises or takes too long has not happened: its draft is thrown away, it is
counted, and told once.

Async functions run in the relay's own thread and are cancelled when their time is over. Plain functions run in threads
of their own, so that one that blocks holds up no other connection. A thread cannot be stopped from outside: one whose
time is over is left alone until it ends by itself, and what it then does to its draft has no effect. When all threads
are lost in that way, plain functions are not called any more, and count as timed out, until one comes back.
"""

from __future__ import annotations

import functools
import inspect
import os
import queue
import sys
import threading
import traceback
import types
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from gopher.errors import BodyError, ConfigError, leaves_of
from gopher.relay.exchange import Connection, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gopher.relay.exchange import Body

__all__ = ["FUNCTIONS", "Lane", "Script", "Scripts", "Slot", "load_scripts"]

FUNCTIONS: Final = ("connected", "request", "production_response", "shadow_response", "closed")
"""What a script may define."""
THREADS: Final = 32
"""For plain functions, all scripts together."""
MAX_RESTING: Final = 64
"""Tasks that are kept for later."""
MAX_TOLD: Final = 1_000
"""Different failures that are told."""
MAX_MESSAGE: Final = 300
"""Characters of a script's own error message."""


@dataclass(frozen=True, slots=True)
class _Function:
    name: str
    call: Callable[[Any], Any]
    is_async: bool
    line: int


class Script:
    """One file, loaded, and what became of its calls.

    Args:
        path: of the file, as it was given.
        functions: by name.
    """

    def __init__(self, path: str, functions: dict[str, _Function]) -> None:
        self.path = path
        self.functions = functions
        self.calls = 0
        """That began, of all functions."""
        self.failures = 0
        """That raised."""
        self.timed_out = 0
        self.dropped = 0
        """Exchanges."""

    def statistics(self) -> dict[str, Any]:
        """The counters, with the script's name."""
        return {
            "name": self.path,
            "calls": self.calls,
            "failures": self.failures,
            "timed_out": self.timed_out,
            "dropped": self.dropped,
        }


# -- loading ----------------------------------------------------------------------------------------------------------


def load_scripts(paths: Sequence[str]) -> list[Script]:
    """Run each file as a module of its own, in order. Its directory can be imported from.

    Raises:
        ConfigError: one cannot be loaded, or is no script; the message names file, line and reason.
    """
    return [_load(path, number) for number, path in enumerate(paths)]


def _load(path: str, number: int) -> Script:
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        raise ConfigError(f"--script {path}: cannot read it: {error.strerror}") from error
    directory = os.path.dirname(os.path.abspath(path))
    if directory not in sys.path:
        # At the end: a script's neighbour must not take the place of a module that gopher imports.
        sys.path.append(directory)
    module = types.ModuleType(f"gopher_script_{number}")
    module.__file__ = path
    # Dataclasses and pickle look their module up.
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}" if error.filename else path
        raise ConfigError(f"--script {where}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--script {path}:{_line_of(error, path)}: {_describe(error)}") from error
    functions = {name: _function(path, name, getattr(module, name)) for name in FUNCTIONS if hasattr(module, name)}
    if not functions:
        raise ConfigError(
            f"--script {path}: it defines none of the functions {', '.join(FUNCTIONS)}", hint="see docs/scripting.md"
        )
    return Script(path, functions)


def _function(path: str, name: str, value: Any) -> _Function:
    if not callable(value):
        raise ConfigError(f"--script {path}: {name} is no function")
    plain = inspect.unwrap(value)
    while isinstance(plain, functools.partial):
        plain = plain.func
    code = getattr(plain, "__code__", None)
    line = code.co_firstlineno if code is not None else 1
    where = f"--script {path}:{line}: {name}"
    if inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value):
        raise ConfigError(f"{where}() is a generator", hint="it must return, not yield")
    try:
        signature = inspect.signature(value)
    except ValueError:
        pass  # written in C, and it does not tell
    else:
        try:
            signature.bind(None)
        except TypeError as error:
            raise ConfigError(f"{where}() must take one argument, not {signature}") from error
    is_async = inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(getattr(value, "__call__", None))  # noqa: B004
    return _Function(name, value, is_async, line)


def _describe(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""  # the script's own exception, which cannot say what it is; its type still can
    text = text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line_of(error: BaseException, path: str) -> int:
    """The innermost line of the script that the error came through; 0 if none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return (lines[-1] if lines else 0) or 0


def _line_in(frame: types.FrameType | None, path: str) -> int:
    """The innermost line of the script that a thread is at; 0 if none."""
    while frame is not None:
        if frame.f_code.co_filename == path:
            return frame.f_lineno
        frame = frame.f_back
    return 0


# -- calling ----------------------------------------------------------------------------------------------------------


class Slot:
    """Where the state of an exchange is kept between calls: what the last function that succeeded has left."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange


class _Call:
    """One call of one function, as it waits for bodies."""

    def __init__(self, function: _Function, limit_s: float, nursery: trio.Nursery) -> None:
        self.function = function
        self.limit_s = limit_s
        self._nursery = nursery
        self.began_s = trio.current_time()
        self.waited_s = 0.0
        """For bodies: not the function's own time."""
        self.scope = trio.CancelScope(deadline=self.began_s + limit_s)

    @property
    def is_late(self) -> bool:
        return trio.current_time() - self.began_s - self.waited_s > self.limit_s

    def wait(self, body: Body) -> None:
        raise BodyError("the body has not come yet: an async function has to await read() before")

    async def wait_settled(self, body: Body) -> None:
        """In the relay's thread. Checkpoint: always."""
        settled = trio.Event()
        began_s = trio.current_time()
        self.scope.deadline = float("inf")
        # In a task of its own: were it to raise here, a fault of the relay would be taken for one of the script.
        self._nursery.start_soon(_ask, body, settled.set)
        try:
            await settled.wait()
        finally:
            self.waited_s += trio.current_time() - began_s
            self.scope.deadline = self.began_s + self.waited_s + self.limit_s


async def _ask(body: Body, settled: Callable[[], None]) -> None:
    body.want(settled)


class _PlainCall(_Call):
    """Of a plain function, which runs in a thread."""

    draft: Connection | Exchange

    def __init__(self, function: _Function, limit_s: float, nursery: trio.Nursery) -> None:
        super().__init__(function, limit_s, nursery)
        self._token = trio.lowlevel.current_trio_token()
        self._error: BaseException | None = None
        self.over = trio.Event()
        """It has returned, or raised."""
        self.thread = 0
        """That it runs in; 0 before."""
        self.given_up = False
        self.lost = False
        """Given up, and in its thread."""

    def wait(self, body: Body) -> None:
        """In its thread."""
        trio.from_thread.run(self.wait_settled, body, trio_token=self._token)

    def make(self) -> None:
        """In its thread."""
        # In this order: who gives up looks at them the other way round.
        self.thread = threading.get_ident()
        if self.given_up:
            return
        try:
            result = self.function.call(self.draft)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(f"{self.function.name}() returned a coroutine: write `async def`")
        except BaseException as error:  # raised again by `check`
            self._error = error

    def check(self) -> None:
        """Raises: what the function has raised."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame

    def line_in(self, path: str) -> int:
        """The line of this file that it is at; 0 if none."""
        return 0 if self.over.is_set() else _line_in(sys._current_frames().get(self.thread), path)


class _Threads:
    """Threads for plain functions. Trio's own cost three times as much a call, for they serve a single one."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_PlainCall] = queue.SimpleQueue()
        self._started = 0
        self._busy = 0
        """Calls that have not returned, or wait for a thread."""
        self.lost = 0
        """Threads whose calls were given up, and have not returned."""

    async def run(self, call: _PlainCall) -> None:
        """Make a call. Cancelled, it is left alone. Checkpoint: always."""
        self._busy += 1
        if self._busy > self._started and self._started < THREADS:
            self._started += 1
            token = trio.lowlevel.current_trio_token()
            # Daemon: one that is stuck must not keep the process.
            threading.Thread(
                target=self._serve, args=(token,), name=f"gopher script {self._started}", daemon=True
            ).start()
        self._calls.put(call)
        try:
            await call.over.wait()
        except trio.Cancelled:
            call.given_up = True
            if call.thread:
                call.lost = True
                self.lost += 1
            raise

    def _serve(self, token: trio.lowlevel.TrioToken) -> None:
        """In a thread."""
        while True:
            call = self._calls.get()
            call.make()
            try:
                token.run_sync_soon(self._returned, call)
            except trio.RunFinishedError:
                # The relay has ended, and does not wait for functions that take too long.
                return
            del call

    def _returned(self, call: _PlainCall) -> None:
        self._busy -= 1
        if call.lost:
            self.lost -= 1
        call.over.set()


class Scripts:
    """All scripts of a relay.

    Args:
        scripts: in the order in which they see what happens.
        timeout_s: how long a function may take, without waiting for bodies.
        tell: prints one line.
        turn: makes a call that moves connections on.
    """

    def __init__(
        self,
        scripts: Sequence[Script],
        timeout_s: float,
        tell: Callable[[str], None],
        turn: Callable[[Callable[[], None]], None],
    ) -> None:
        self._scripts = scripts
        self._timeout_s = timeout_s
        self._tell = tell
        self.turn = turn
        self._defined = {name for script in scripts for name in script.functions}
        self._told: set[tuple[str, str, int, str]] = set()
        self._threads = _Threads()
        self._idle = trio.Event()
        self._idle.set()
        self._busy = 0
        self._due: deque[Lane] = deque()
        self._nursery: trio.Nursery | None = None
        self._resting: list[trio.lowlevel.Task] = []
        """Tasks without a lane. To wake one is cheaper than to make one."""

    @property
    def busy(self) -> bool:
        """Whether calls are under way or due."""
        return self._busy > 0

    def defines(self, name: str) -> bool:
        """Whether any script has this function."""
        return name in self._defined

    def statistics(self) -> tuple[dict[str, Any], ...]:
        """Of each script, in order."""
        return tuple(script.statistics() for script in self._scripts)

    async def run(self) -> None:
        """Make the calls, until cancelled. Checkpoint: always."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for _ in self._due:
                nursery.start_soon(self._work)
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _work(self) -> None:
        while True:
            while self._due:
                await self._serve(self._due.popleft())
            if len(self._resting) >= MAX_RESTING:
                return
            task = trio.lowlevel.current_task()
            self._resting.append(task)

            def abort(_: Any, task: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._resting.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)

    async def wait_idle(self) -> None:
        """Wait until no call is under way or due. Checkpoint: always."""
        await trio.lowlevel.checkpoint()
        await self._idle.wait()

    def start(self, lane: Lane) -> None:
        """A lane has calls to make."""
        if not self._busy:
            self._idle = trio.Event()
        self._busy += 1
        self._due.append(lane)
        if self._resting:
            trio.lowlevel.reschedule(self._resting.pop())
        elif self._nursery is not None:
            self._nursery.start_soon(self._work)

    async def _serve(self, lane: Lane) -> None:
        try:
            while lane.jobs:
                name, target, before, then = lane.jobs.popleft()
                if before is not None:
                    before()
                await self._call_all(name, target)
                if then is not None:
                    self.turn(then)
        finally:
            lane.running = False
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    async def _call_all(self, name: str, target: Connection | Slot) -> None:
        for script in self._scripts:
            function = script.functions.get(name)
            if function is None:
                continue
            if isinstance(target, Connection):
                await self._call(script, function, target)
            else:
                if not await self._call(script, function, target):
                    continue
                if target.exchange.dropped and name == "request":
                    script.dropped += 1
                    return

    async def _call(self, script: Script, function: _Function, target: Connection | Slot) -> bool:
        """Returns whether it succeeded."""
        script.calls += 1
        nursery = self._nursery
        assert nursery is not None
        call: _Call = (_Call if function.is_async else _PlainCall)(function, self._timeout_s, nursery)
        draft = target if isinstance(target, Connection) else target.exchange.draft(function.name, call)
        line = 0
        try:
            with call.scope:
                try:
                    if isinstance(call, _PlainCall):
                        if self._threads.lost >= THREADS:
                            call.scope.cancel()
                        call.draft = draft
                        await self._threads.run(call)
                        call.check()
                    else:
                        await function.call(draft)
                    if isinstance(draft, Exchange):
                        draft.check()
                except BaseException as error:
                    line = _line_of(error, script.path)
                    raise
        except BodyError as error:
            if not error.cut:
                self._failed(script, function, line or function.line, error)
            return False
        except BaseException as error:
            # All but the relay's own end is the script's, asyncio.CancelledError and GeneratorExit too: signals come
            # another way, so a KeyboardInterrupt is none.
            if any(isinstance(leaf, trio.Cancelled) for leaf in leaves_of(error)):
                raise
            self._failed(script, function, line or function.line, error)
            return False
        finally:
            if isinstance(draft, Exchange):
                draft.close()
        if call.scope.cancelled_caught or call.is_late:
            if isinstance(call, _PlainCall):
                line = call.line_in(script.path)
            self._timed_out(script, function, line or function.line)
            return False
        if isinstance(target, Slot):
            assert isinstance(draft, Exchange)
            target.exchange = draft
        return True

    def _failed(self, script: Script, function: _Function, line: int, error: BaseException) -> None:
        script.failures += 1
        key = (script.path, function.name, line, type(error).__name__)
        self._tell_once(key, f"{function.name}() failed: {_describe(error)}")

    def _timed_out(self, script: Script, function: _Function, line: int) -> None:
        script.timed_out += 1
        # It may be stopped at any line.
        self._tell_once(
            (script.path, function.name, line, ""), f"{function.name}() took more than {self._timeout_s:g} s"
        )

    def _tell_once(self, key: tuple[str, str, int, str], text: str) -> None:
        if key in self._told or len(self._told) >= MAX_TOLD:
            return
        self._told.add(key)
        path, _, line, _ = key
        self._tell(f"script {path}:{line}: {text}; the exchange goes on without it (told once)")


class Lane:
    """The calls that concern one connection, one at a time. What can be due is bounded by the relay: a request and its
    answers, and the answers of production to what waits on the link.
    """

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self.jobs: deque[tuple[str, Connection | Slot, Callable[[], None] | None, Callable[[], None] | None]] = deque()
        """(function, its argument, what to call before, and what then)."""
        self.running = False

    def call(
        self,
        name: str,
        target: Connection | Slot,
        then: Callable[[], None] | None = None,
        *,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Call this function of all scripts, after what is due already. `before` is called when its turn comes, `then`
        when all have returned.
        """
        self.jobs.append((name, target, before, then))
        if not self.running:
            self.running = True
            self._scripts.start(self)
