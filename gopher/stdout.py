"""What goes to stdout: --help, --version and --check-config. All else is said on stderr, see `gopher.observe.log`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from gopher.errors import GopherError

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["flush_all", "to_stdout"]


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
