"""Conversations that a relay must carry byte for byte: what the client sends, what the server answers, in steps."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.clients import noise

_GET = b"GET / HTTP/1.1\r\nHost: shadow\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True)
class Conversation:
    """Each step: what the client sends, how many bytes the server waits for, what it answers."""

    steps: tuple[tuple[bytes, int, bytes], ...]
    closes: bool = False
    """The server closes after its last answer."""
    http: bool = True
    """It is HTTP/1 to its end, or becomes something else by its rules."""

    @property
    def sent(self) -> bytes:
        return b"".join(step[0] for step in self.steps)

    @property
    def answered(self) -> bytes:
        return b"".join(step[2] for step in self.steps)


def _talk(*steps: tuple[bytes, bytes], closes: bool = False, http: bool = True) -> Conversation:
    return Conversation(tuple((sent, len(sent), answer) for sent, answer in steps), closes, http)


def _chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


CONVERSATIONS: dict[str, Conversation] = {
    "keep-alive": _talk((_GET, _OK), (_GET, _OK), (_GET, _OK)),
    "pipelined": Conversation(((_GET * 3, len(_GET), _OK), (b"", len(_GET), _OK), (b"", len(_GET), _OK))),
    "http/1.0": _talk((b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nuntil the close"), closes=True),
    "http/1.0 keep-alive": _talk(
        *[
            (
                b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
                b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            )
        ]
        * 2
    ),
    "odd but clear": _talk(
        (
            b"\r\nGET /%41?x=%zz;y HTTP/1.1\r\nhOsT:shadow\r\nX-2: 1\r\nx-2:  2 \r\nX-Empty:\r\nX-High: \xe9\r\n\r\n",
            b"HTTP/1.1 200 \r\nserver:x\r\nSet-Cookie: a=1\r\nset-cookie: a=2\r\nContent-Length:  0\r\n\r\n",
        ),
        (_GET, _OK),
    ),
    "post": _talk((b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", _OK), (_GET, _OK)),
    "chunked with extensions and trailers": _talk(
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b'5;name=value\r\nhello\r\n00A;q="a"\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n',
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            + _chunks(b"one", b"two")
            + b"0;e\r\nX-T: 1\r\n\r\n",
        ),
        (_GET, _OK),
    ),
    "head": _talk(
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"),
        (_GET, _OK),
    ),
    "204 and 304": _talk(
        (_GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (_GET, b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 77\r\n\r\n'),
        (_GET, _OK),
    ),
    "expect continue": _talk(
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
        ),
        (b"abc", _OK),
        (_GET, _OK),
    ),
    "early hints": _talk(
        (_GET, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + _OK), (_GET, _OK)
    ),
    "early answer": _talk(
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly",
        ),
        (b"def", b""),
        (_GET, _OK),
    ),
    "early answer to an upgrade": _talk(
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\nContent-Length: 6\r\n\r\nabc",
            b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nearly",
        ),
        (b"def", b""),
        (_GET, _OK),
    ),
    "connection close": _talk(
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        ),
        closes=True,
    ),
    "delimited by close": _talk((_GET, b"HTTP/1.1 200 OK\r\n\r\n" + noise(300_000)), closes=True),
    "large bodies": _talk(
        (
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n" + noise(3_000_000, 1),
            b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + noise(3_000_000, 2),
        ),
        (_GET, _OK),
    ),
    "websocket": _talk(
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
        ),
        (b"\x81\x85\0\0\0\0world", b"\x81\x02\r\n"),
        (b"\x88\0", b"\x88\0"),
    ),
    "upgrade refused": _talk(
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", _OK), (_GET, _OK)
    ),
    "connect": _talk(
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"),
        (b"\x16\x03\x01", b"\x16\x03\x03"),
    ),
    "http/2 preface": _talk(
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", b"\0\0\0\4\0\0\0\0\0"), (b"\0\0\0\4\1\0\0\0\0", b"\0")
    ),
    "plain bytes": _talk((b"EHLO there\r\n", b"250 hello\r\n"), (bytes(range(256)), b"\0\r\n"), http=False),
    "server first": _talk((b"", b"220 ready\r\n"), (b"QUIT\r\n", b"221 bye\r\n"), closes=True, http=False),
}
