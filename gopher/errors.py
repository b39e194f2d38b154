"""Every exception gopher raises on purpose.

The type says who must act: the user (`ConfigError`), the machine's administrator (`CaptureError`,
`CapturePermissionError`, `ListenError`), whoever sent us bytes (`RemoteProtocolError`), the caller or the user's script
(`LocalProtocolError`), or whoever runs the upstream (`UpstreamError`). Loss of packets, gaps and upstream failures
while mirroring are data, not exceptions: they are counted (see `gopher.observe.accounts`).

A message is one sentence that names the thing and the reason; `hint` says what to do about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "BodyError",
    "CaptureError",
    "CapturePermissionError",
    "ConfigError",
    "GopherError",
    "ListenError",
    "LocalProtocolError",
    "ProtocolError",
    "RemoteProtocolError",
    "UpstreamError",
    "leaves_of",
]


class GopherError(Exception):
    """Base of all gopher errors; never raised itself.

    Attributes:
        hint: what the reader can do about it; empty when there is nothing to add.
        exit_status: what the command line exits with when this ends the program.
    """

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(GopherError, ValueError):
    """A setting is wrong; the message names it and what is accepted."""

    exit_status = 2


class CaptureError(GopherError):
    """A capture source (device or file) cannot be opened or cannot go on."""


class CapturePermissionError(CaptureError):
    """The process may not capture on this device."""

    exit_status = 77


class ListenError(GopherError):
    """A relay cannot listen on an address or port."""


class ProtocolError(GopherError):
    """Bytes break a protocol; never raised itself.

    Attributes:
        direction: of the bytes at fault, `CLIENT_TO_SERVER` or `SERVER_TO_CLIENT`; None where it makes no difference.
        offset: of the first byte at fault, counted from where the reader began; None if it is not known.
        status: the HTTP status to answer with, if an answer can be given.
    """

    def __init__(
        self,
        message: str,
        *,
        direction: int | None = None,
        offset: int | None = None,
        status: int = 400,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.direction = direction
        self.offset = offset
        self.status = status


class RemoteProtocolError(ProtocolError):
    """A peer broke it. The reader that raised this is of no more use."""


class LocalProtocolError(ProtocolError):
    """We, or a user's script, tried to; nothing has changed."""


class BodyError(GopherError):
    """A script cannot have the body of a message: it is too long, or has passed by.

    Attributes:
        cut: the connection ended within it, which is no fault of the script.
    """

    def __init__(self, message: str, *, cut: bool = False) -> None:
        super().__init__(message)
        self.cut = cut


class UpstreamError(GopherError):
    """An upstream cannot be used at all (for example: a directory that cannot be written)."""


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group and in the groups within it, or the one there is."""
    # By the attribute, not the type: in Python 3.10 exception groups are no builtin.
    nested = getattr(error, "exceptions", None)
    if nested is None:
        yield error
    else:
        for inner in nested:
            yield from leaves_of(inner)
