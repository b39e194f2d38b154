"""Everything that gopher says on stderr, in one place: lines for people, or one JSON object a line.

What is said is about gopher and its counts. No payload, header, cookie or token goes into a message or a field.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
import traceback
import warnings
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Log", "LogFormat"]

LogFormat = Literal["text", "json"]


class Log:
    """Says things on stderr.

    A JSON line has `time` (ISO 8601, UTC), `level` (info, warning or error), `event` (what kind of thing it is: a short
    name that stays the same) and `message` (what the text says), and the fields of the event.

    Args:
        format: how.
        quiet: errors only.
        name: of the mirror, where there are several.

    Attributes:
        write: takes one line or several, without the newline at the end; replaced while a live view has the screen.
    """

    of_process: ClassVar[Log]
    """Of this process, for what has none of its own; see `speak_for_process`."""

    def __init__(self, format: LogFormat = "text", *, quiet: bool = False, name: str = "") -> None:
        self.format = format
        self.name = name
        self.quiet = quiet
        self.write: Callable[[str], None] = _to_stderr

    def info(self, event: str, message: str, **fields: Any) -> None:
        """Something to know."""
        if not self.quiet:
            self._line("info", event, message, fields)

    def reply(self, event: str, message: str, **fields: Any) -> None:
        """What somebody has asked for by a signal, and wants to know in any case."""
        self._line("info", event, message, fields)

    def warning(self, event: str, message: str, **fields: Any) -> None:
        """Something is not as it should be; gopher goes on."""
        if not self.quiet:
            self._line("warning", event, f"warning: {message}", fields)

    def failure(self, event: str, message: str, **fields: Any) -> None:
        """Something failed and somebody has to look at it; gopher goes on."""
        self._line("error", event, message, fields)

    def error(self, message: str, hint: str, exit_status: int) -> None:
        """What ends the program."""
        fields = {"hint": hint} if hint else {}
        text = f"error: {message}" + (f"\n  hint: {hint}" if hint and self.format == "text" else "")
        self._line("error", "error", text, {**fields, "exit_status": exit_status})

    def bug(self, error: BaseException | None) -> None:
        """What nobody foresaw, with its traceback."""
        text = "".join(traceback.format_exception(error)).rstrip()
        if self.format == "text":
            self.write(text)
        else:
            self._line("error", "bug", f"{type(error).__name__}: {error}", {"exception": text})

    def speak_for_process(self) -> None:
        """Say what has no log of its own in this process; and if this is a JSON log, what Python itself would say as
        text: of exceptions that nobody catches, and warnings.
        """
        Log.of_process = self
        if self.format == "json":
            sys.excepthook = self._not_caught
            sys.unraisablehook = lambda unraisable: self.bug(unraisable.exc_value)
            threading.excepthook = lambda ended: self.bug(ended.exc_value)
            warnings.showwarning = self._python_warning

    def _not_caught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self.bug(error)

    def _python_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        self._line("warning", "python", f"{filename}:{lineno}: {category.__name__}: {message}", {})

    def report(self, table: Callable[[int], str], fields: dict[str, Any]) -> None:
        """The accounts, asked for: a table as wide as the terminal, or the fields of the report."""
        if self.format == "json":
            self._line("info", "report", "the accounts", {"report": fields})
        else:
            self.write(table(shutil.get_terminal_size((100, 24)).columns))

    def _line(self, level: str, event: str, message: str, fields: dict[str, Any]) -> None:
        if self.format == "text":
            self.write(f"gopher {self.name}: {message}" if self.name else f"gopher: {message}")
            return
        if self.name:
            fields = {"mirror": self.name, **fields}
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        message = message.removeprefix(f"{level}: ")
        self.write(json.dumps({"time": now, "level": level, "event": event, "message": message, **fields}))


def _to_stderr(text: str) -> None:
    if sys.stderr is None:
        return  # it was closed by whoever started gopher
    # Who reads it may have gone, or its disk be full: no reason to end a mirror, and no other place to say so.
    with contextlib.suppress(OSError):
        # In one piece, as `print` would not: several mirrors share this stderr, and their lines must not mix.
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


Log.of_process = Log()
