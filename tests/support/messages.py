"""What a `MessageParser` makes of bytes, as plain values: for tables, and for comparing one way to cut with another."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from gopher.errors import RemoteProtocolError
from gopher.http.messages import (
    BodyReceived,
    HeadReceived,
    MessageEnded,
    MessageLimits,
    MessageParser,
    Switched,
)

if TYPE_CHECKING:
    from gopher.http.messages import MessageEvent


class Message(NamedTuple):
    """One message. The last of a transcript may be incomplete: `ended` is then False."""

    head: Any
    body: str
    length: int | None
    wire: bytes
    content: bytes
    trailers: list[tuple[bytes, bytes]] | None
    ended: bool

    @property
    def bytes(self) -> bytes:
        return self.head.to_bytes() + self.wire


class Transcript(NamedTuple):
    messages: list[Message]
    rest: bytes | None
    """After a switch; None if there was none."""
    fault: RemoteProtocolError | None

    def comparable(self) -> tuple[object, ...]:
        messages = [message._replace(head=message.head.to_bytes()) for message in self.messages]
        fault = self.fault and (str(self.fault), self.fault.status, self.fault.offset, self.fault.direction)
        return messages, self.rest, fault


def requests(limits: MessageLimits | None = None) -> MessageParser:
    return MessageParser("request", limits=limits or MessageLimits())


def responses(*methods: bytes, upgrade: bool = False, limits: MessageLimits | None = None) -> MessageParser:
    parser = MessageParser("response", limits=limits or MessageLimits())
    for method in methods:
        parser.expect(method, upgrade=upgrade)
    return parser


def read(parser: MessageParser, pieces: Iterable[bytes], *, end: bool = False) -> Transcript:
    """Feed until a fault or a switch; requests that ask for a switch are answered by none."""
    messages: list[Message] = []
    rest: bytes | None = None

    def take(events: list[MessageEvent]) -> None:
        nonlocal rest
        for event in events:
            match event:
                case HeadReceived(head, body, length):
                    assert not messages or messages[-1].ended
                    messages.append(Message(head, body, length, b"", b"", None, False))
                case BodyReceived(wire, content):
                    last = messages[-1]
                    assert wire
                    assert not last.ended
                    messages[-1] = last._replace(wire=last.wire + wire, content=last.content + content)
                case MessageEnded(trailers):
                    assert not messages[-1].ended
                    messages[-1] = messages[-1]._replace(
                        trailers=None if trailers is None else list(trailers), ended=True
                    )
                case Switched(rest_now):
                    rest = rest_now

    try:
        for piece in pieces:
            if rest is not None:
                rest += piece
                continue
            take(parser.feed(piece))
            while parser.paused and parser.fault is None:
                take(parser.resume(switched=False))
        if end and rest is None:
            take(parser.end())
    except RemoteProtocolError:
        assert parser.fault is not None
    return Transcript(messages, rest, parser.fault)


def cuts(data: bytes, seed: int) -> list[bytes]:
    chance = random.Random(seed)
    ends = [0, *sorted(chance.randint(0, len(data)) for _ in range(chance.randint(1, 12))), len(data)]
    return [data[begin:end] for begin, end in pairwise(ends)]


def read_in_all_cuts(make_parser: Callable[[], MessageParser], data: bytes, *, end: bool = False) -> Transcript:
    """What feeding `data` whole gives, after checking that it gives the same byte by byte and cut at random."""
    whole = read(make_parser(), [data], end=end)
    for pieces in ([data[i : i + 1] for i in range(len(data))], *(cuts(data, seed) for seed in range(3))):
        assert read(make_parser(), pieces, end=end).comparable() == whole.comparable()
    return whole
