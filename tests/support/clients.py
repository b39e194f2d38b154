"""Clients of the production server: the real curl, and plain sockets where the exact bytes matter."""

from __future__ import annotations

import random
import socket
import subprocess

from tests.support.netns import Namespace
from tests.support.servers import ANSWER

CURL_S = 60


def curl(*arguments: str, namespace: Namespace | None = None) -> str:
    """Run curl, silent but for errors; output goes to /dev/null unless asked for. Raises: CalledProcessError."""
    argv = ["curl", "--silent", "--show-error", "--fail", "--globoff", *arguments]
    done = subprocess.run(
        namespace.command(*argv) if namespace else argv, check=True, stdout=subprocess.PIPE, text=True, timeout=CURL_S
    )
    return done.stdout


def get(number: int) -> bytes:
    """A request that says which one it is."""
    return f"GET /{number} HTTP/1.1\r\nHost: production\r\nX-Number: {number}\r\n\r\n".encode()


def post(number: int, body: bytes) -> bytes:
    head = f"POST /{number} HTTP/1.1\r\nHost: production\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def noise(length: int, seed: int = 0) -> bytes:
    """Bytes without a pattern, the same for the same arguments."""
    return random.Random(seed).randbytes(length)


def exchange(sock: socket.socket, request: bytes, *, answer: bytes = ANSWER) -> None:
    """Send a request and take in a sink's answer to it."""
    sock.sendall(request)
    receive_exactly(sock, len(answer))


def receive_exactly(sock: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        data = sock.recv(length - len(received))
        assert data, f"the server closed after {bytes(received)!r}"
        received += data
    return bytes(received)
