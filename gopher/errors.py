"""Every exception gopher raises on purpose.

The type says who must act: the user (`ConfigError`), the machine's administrator (`CaptureError`,
`CapturePermissionError`), or whoever runs the upstream (`UpstreamError`). Loss of packets, gaps and upstream failures
while mirroring are data, not exceptions: they are counted (see `gopher.observe.accounts`).

A message is one sentence that names the thing and the reason; `hint` says what to do about it.
"""

__all__ = [
    "CaptureError",
    "CapturePermissionError",
    "ConfigError",
    "GopherError",
    "UpstreamError",
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


class UpstreamError(GopherError):
    """An upstream cannot be used at all (for example: a directory that cannot be written)."""
