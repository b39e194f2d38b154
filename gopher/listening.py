"""Listening sockets, and one sentence for each reason why there is none."""

from __future__ import annotations

import errno
import socket
from typing import Final

from gopher.errors import ListenError
from gopher.privileges import way_to

__all__ = ["listen"]

BACKLOG: Final = 4096

_FAILURES: Final = {
    errno.EADDRINUSE: "something else listens there already",
    errno.EACCES: "not permitted",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
}


def listen(host: str, port: int, *, hint: str) -> socket.socket:
    """A listening socket that does not block. An empty `host` is every address, IPv4 and IPv6 as far as the machine
    has them.

    Raises:
        ListenError: there is none; `hint` is its hint.
    """
    family = socket.AF_INET6 if ":" in host or (not host and socket.has_dualstack_ipv6()) else socket.AF_INET
    try:
        sock = socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=not host and family == socket.AF_INET6
        )
    except OSError as error:
        where = f"port {port}" + (f" of {host}" if host else "")
        reason = _FAILURES.get(error.errno or 0, error.strerror)
        if error.errno == errno.EACCES:
            missing, way = way_to("CAP_NET_BIND_SERVICE")
            reason, hint = f"{reason}: {missing}", f"{hint}, from 1024 on; or {way}"
        raise ListenError(f"cannot listen on {where}: {reason}", hint=hint) from error
    sock.setblocking(False)
    # What is accepted inherits it.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
