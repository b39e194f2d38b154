"""What the reassembler said, as plain tuples that a test can write down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gopher._fastpath import Event, FlowClosed, FlowOpened, Reassembler, StreamData, StreamGap, pack_batch
from tests.support.packets import LINKTYPE_ETHERNET, Packet


def feed(reassembler: Reassembler, packets: Sequence[Packet], linktype: int = LINKTYPE_ETHERNET) -> list[Event]:
    """All packets in one batch."""
    return reassembler.feed(pack_batch(packets, linktype))


def story(events: Iterable[Event]) -> list[tuple]:
    """("opened",), ("data", direction, offset, bytes), ("gap", direction, offset, length), ("ended", direction, offset)
    and ("closed", reason), in order."""
    return [_told(event) for event in events]


def _told(event: Event) -> tuple:
    if isinstance(event, FlowOpened):
        return ("opened",)
    if isinstance(event, StreamData):
        return ("data", event.direction, event.offset, event.data)
    if isinstance(event, StreamGap):
        return ("gap", event.direction, event.offset, event.length)
    if isinstance(event, FlowClosed):
        return ("closed", event.reason)
    return ("ended", event.direction, event.offset)
