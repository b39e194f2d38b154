"""A last word to a client that cannot be served: a short answer of HTTP/1, then the end of the connection."""

from __future__ import annotations

import contextlib
import errno
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import trio

from gopher.relay._tunnel import begins_request

if TYPE_CHECKING:
    from gopher.relay.tally import Tally

__all__ = ["answer_bytes", "failure_of", "reset", "say"]

REQUEST_LINE_BYTES: Final = 16_384
DISCARD_BYTES: Final = 65_536
# RFC 9112 section 9.6: a server that closes while the client still sends may destroy its own answer, so it reads on for
# a while. nginx's lingering_timeout is 5 s; here nobody's upload is to be rescued, only the answer.
LINGER_S: Final = 2.0
_RESET: Final = b"\x01\0\0\0\0\0\0\0"

_FAILURES: Final = {
    errno.ECONNREFUSED: "refused",
    errno.ETIMEDOUT: "connect_timeout",
    errno.EMFILE: "no_descriptors",
    errno.ENFILE: "no_descriptors",
}
_SENTENCES: Final = {
    "refused": "the upstream {} refused the connection",
    "unreachable": "the upstream {} cannot be reached",
    "connect_timeout": "the upstream {} did not accept the connection in time",
    "no_descriptors": "the relay has run out of file descriptors, so {} cannot be reached",
    "handshake": "the TLS handshake with the upstream {} failed",
    "handshake_timeout": "the upstream {} did not complete the TLS handshake in time",
    "certificate_expired": "the certificate of the upstream {} is not valid at this time",
    "certificate_name": "the certificate of the upstream {} is for another name",
    "certificate_untrusted": "the certificate of the upstream {} is not trusted",
    "no_answer": "the upstream {} did not answer in time",
    "upstream_closed": "the upstream {} closed the connection without an answer",
    "upstream_reset": "the upstream {} reset the connection without an answer",
    "bad_response": "the upstream {} answered with something that is not clear HTTP",
}


def failure_of(error: int) -> str:
    """The reason that stands for an errno of an attempt to connect."""
    return _FAILURES.get(error, "unreachable")


def sentence(failure: str, upstream: str) -> str:
    """Why an upstream gives no answer, in words."""
    return _SENTENCES[failure].format(upstream)


def status_of(failure: str) -> int:
    """What a gateway answers for this reason (RFC 9110 sections 15.6.3 and 15.6.5)."""
    return 504 if failure in ("connect_timeout", "handshake_timeout", "no_answer") else 502


def answer_bytes(status: int, reason: str, *, to_head: bool = False) -> bytes:
    """A whole response with one line of text, which the answer to a HEAD request only announces."""
    body = f"gopher: {reason}\n".encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if to_head else body)


def reset(sock: socket.socket) -> None:
    """Close by RST."""
    # The other side may have been faster.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


async def say(sock: socket.socket, failure: str, upstream: str, tally: Tally, *, wait_s: float) -> None:
    """Say why there is no answer, if the client speaks HTTP/1; else reset. Then `sock` is closed. Checkpoint: always.

    Args:
        sock: the downstream socket, non-blocking, of which nothing has been read.
        failure: of the upstream.
        upstream: its name.
        tally: counts the answer.
        wait_s: how long to wait for the client's first line.
    """
    heard = False
    try:
        with trio.move_on_after(wait_s):
            heard = await _begins_request(sock)
        if heard:
            status = status_of(failure)
            # It fits any send buffer.
            sock.send(answer_bytes(status, sentence(failure, upstream)))
            tally.answer(status)
            sock.shutdown(socket.SHUT_WR)
            with trio.move_on_after(LINGER_S):
                await _discard(sock)
    except OSError:
        heard = False
    finally:
        if heard:
            sock.close()
        else:
            reset(sock)


async def _begins_request(sock: socket.socket) -> bool:
    seen = 0
    while True:
        await trio.lowlevel.wait_readable(sock)
        data = sock.recv(REQUEST_LINE_BYTES, socket.MSG_PEEK)
        if b"\n" in data or len(data) in (seen, REQUEST_LINE_BYTES):
            return begins_request(data)
        seen = len(data)
        # Or the same bytes would be reported at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)


async def _discard(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    while True:
        await trio.lowlevel.wait_readable(sock)
        with contextlib.suppress(BlockingIOError):  # readable no more: it waits again
            if not sock.recv(DISCARD_BYTES):
                return
