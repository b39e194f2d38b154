"""Who the client is, for a server behind the relay, in the headers that are made for it. Sans-I/O.

X-Forwarded-For is what nearly every server reads, and has no specification; Forwarded is RFC 7239. Both are lists, and
each proxy appends: what is there already was said by those nearer to the client, and is not judged here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gopher.config import Forwarded
    from gopher.http.heads import Headers

__all__ = ["append_forwarded"]


def append_forwarded(headers: Headers, which: Forwarded, client: str) -> None:
    """Append a client.

    Args:
        headers: of a request; changed.
        which: the headers to append to.
        client: its address; empty if it is not known.
    """
    if which in ("x-forwarded-for", "both") and client:
        # One line in the end, for there are readers that look at one only; and "unknown" is no word of theirs.
        values = [*headers.get_all(b"X-Forwarded-For"), client.encode()]
        headers.set(b"X-Forwarded-For", b", ".join(value for value in values if value))
    if which in ("forwarded", "both"):
        # RFC 7239 section 4: "append a new "Forwarded" header field value to the last existing [...] after a comma".
        lines = headers.get_all(b"Forwarded")
        values = [*lines[-1:], b"for=" + _node(client)]
        headers.set_all(b"Forwarded", [*lines[:-1], b", ".join(value for value in values if value)])


def _node(client: str) -> bytes:
    # RFC 7239 section 6: "Note that an IPv6 address is always enclosed in square brackets"; and brackets and colons are
    # no part of a token, so it is quoted. The port is left out: it is optional, and says little.
    if not client:
        return b"unknown"
    return f'"[{client}]"'.encode() if ":" in client else client.encode()
