"""What goes to stdout: --help, --version and --check-config. All else is said on stderr, see `gopher.observe.log`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from gopher.errors import GopherError

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["flush_all", "keep_standard_descriptors", "to_stdout"]


def keep_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed, on nothing. To be called first.

    Else the next socket would get such a number, and what libraries, or a child's interpreter, write to stderr would go
    to whoever is at its other end.
    """
    while (lowest_free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(lowest_free, True)
    os.close(lowest_free)


def to_stdout(text: str) -> None:
    """To stdout, for whoever asked for it.

    Raises:
        GopherError: it cannot be had there.
    """
    if sys.stdout is None:
        raise GopherError("cannot write to stdout: it is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        return  # `gopher --help | head -1`: whoever reads it has seen enough
    except OSError as error:
        raise GopherError(f"cannot write to stdout: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise GopherError(
            f"cannot write to stdout: {error.object[error.start]!r} is not in its encoding, {error.encoding}",
            hint="set PYTHONIOENCODING=utf-8",
        ) from error


def flush_all() -> None:
    """Write what stdout and stderr still hold. To be called last.

    The interpreter flushes once more at its end. Where that cannot be done it would complain, with an exit status of
    its own, so then there is nothing left for it to do.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not _flushed(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _flushed(stream: TextIO) -> bool:
    try:
        stream.flush()
    except OSError:
        return False  # whoever reads it has gone, or its disk is full
    return True
