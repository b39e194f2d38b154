"""What gopher tells the service manager that started it: ready, reloading, stopping, and that it still turns.

The protocol is one datagram of `NAME=VALUE` lines to the socket that NOTIFY_SOCKET names (sd_notify(3)). Without it all
of this does nothing. What cannot be said is told once in the log, and is no reason to end: the manager has time-outs of
its own.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final

from gopher.observe.log import Log

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ServiceManager"]

# sd_watchdog_enabled(3): "notifications be sent every half of the time".
_PER_PERIOD: Final = 2


class ServiceManager:
    """The one that started this process, or none. Not for its children: the manager listens to the main process.

    Args:
        environment: has NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, or not.
    """

    VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._socket: socket.socket | None = None
        self._failed = False
        if self._address:
            # Not a blocking one: a manager that does not read must not stop the loop.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        period = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = self._socket is not None and period.isdecimal() and mine
        self.alive_every_s = int(period) / 1e6 / _PER_PERIOD if watched else 0.0
        """How often to say `alive`; 0 if there is no watchdog."""

    def ready(self, status: str) -> None:
        """Everything is open; also after `reloading`. `status` is shown by `systemctl status`."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """No more is taken in."""
        self._send("STOPPING=1")

    async def watch(self) -> None:
        """Say that the loop turns, twice in each period of the manager's watchdog; at once return if it has none.

        To be started in the nursery whose tasks do the work: a loop that hangs in one of them says nothing, and the
        manager starts gopher again. Checkpoint: always.
        """
        # Only here: a supervisor tells its manager the same without Trio.
        import trio

        await trio.lowlevel.checkpoint()
        while self.alive_every_s:
            self.alive()
            await trio.sleep(self.alive_every_s)

    def alive(self) -> None:
        """The process does its work; due every `alive_every_s`. Nothing if there is no watchdog."""
        if self.alive_every_s:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """May be called twice."""
        if self._socket is not None:
            self._socket.close()

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._failed:
                self._failed = True
                reason = error.strerror or error
                Log.of_process.failure("service", f"the service manager cannot be told anything: {reason}")
