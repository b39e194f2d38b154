"""A simulated link, seeded: what the reassembler delivers and declares missing is exactly what was sent and lost.

The tap sits at the server, as gopher does. On the way to it the link loses, repeats, delays and so reorders packets;
what is lost there the sender sends again, cut anew. The tap itself misses packets too: those reach the server, are
never sent again, and must come out as gaps.
"""

import heapq
import random
from dataclasses import dataclass, field

import pytest

from gopher._fastpath import Reassembler, pack_batch
from tests.support.model import Delivered, Ended, Gap, outcome_of
from tests.support.packets import ACK, FIN, LINKTYPE_ETHERNET, START_NS, Conversation, Packet

MILLISECOND_NS = 1_000_000
SEGMENT_BYTES = 1448


@dataclass
class LossyLink:
    """One upload of `stream_bytes`, and what the tap sees of it."""

    rng: random.Random
    wire_loss: float
    tap_loss: float
    acks_captured: bool
    stream_bytes: int = 150_000
    packets: list[Packet] = field(default_factory=list)

    def run(self):
        self.content = self.rng.randbytes(self.stream_bytes)
        self.seen = bytearray(self.stream_bytes)
        received = bytearray(self.stream_bytes)
        isns = {"client_isn": self.rng.getrandbits(32), "server_isn": self.rng.getrandbits(32)}
        conversation = Conversation(**isns, window_scale=7)
        conversation.handshake()
        received_in_order = 0
        for time_ns, start, end in self.transmissions():
            fin = end == self.stream_bytes
            conversation.now_ns = time_ns
            # A repeated packet is missed each time: whether a copy that comes after its acknowledgement still fills the
            # hole is not what is tested here. The FIN is never missed: what lies behind the last captured byte nobody
            # can know of.
            missed = not fin and (received[start] > self.seen[start] or self.rng.random() < self.tap_loss)
            if not missed:
                self.seen[start:end] = b"\1" * (end - start)
                flags = FIN | ACK if fin else ACK
                conversation.segment(0, offset=start, flags=flags, payload=self.content[start:end])
            received[start:end] = b"\1" * (end - start)
            if self.acks_captured:
                received_in_order = received.find(0, received_in_order)
                received_in_order = self.stream_bytes if received_in_order < 0 else received_in_order
                conversation.ack(direction=1, acked=received_in_order)
        self.packets = conversation.packets

    def transmissions(self):
        """(arrival time, first byte, end) of every packet that gets to the server, in order of arrival."""
        arrivals = []
        pending = []
        start, time_ns = 0, START_NS + MILLISECOND_NS
        while start < self.stream_bytes:
            end = min(start + self.rng.randint(1, SEGMENT_BYTES), self.stream_bytes)
            pending.append((time_ns, 0, start, end))
            start = end
            time_ns += self.rng.randint(0, 40 * MILLISECOND_NS)
        heapq.heapify(pending)
        while pending:
            time_ns, tries, start, end = heapq.heappop(pending)
            # Four losses in a row at most, so that no retransmission comes after the reassembler gave up.
            if tries < 4 and self.rng.random() < self.wire_loss:
                cut = self.rng.randint(start + 1, end)
                # Cut anew and overlapping, unless that would send again what the tap alone missed.
                rest = cut if self.tap_loss else max(0, cut - self.rng.randint(0, 700))
                for piece in [(start, cut), (rest, end)]:
                    if piece[0] < piece[1]:
                        heapq.heappush(pending, (time_ns + 300 * MILLISECOND_NS, tries + 1, *piece))
                continue
            for _ in range(1 + (self.rng.random() < 0.05)):
                delay_ns = self.rng.choice([1, 1, 1, 40]) * self.rng.randint(1, MILLISECOND_NS)
                arrivals.append((time_ns + delay_ns, start, end))
        return sorted(arrivals)

    def expected(self):
        """What must come out: the runs of bytes that the tap saw, the gaps between them, the end."""
        outcome, at = [], 0
        while at < self.stream_bytes:
            end = self.seen.find(0 if self.seen[at] else 1, at)
            end = self.stream_bytes if end < 0 else end
            outcome.append(Delivered(at, self.content[at:end]) if self.seen[at] else Gap(at, end - at))
            at = end
        return [*outcome, Ended(self.stream_bytes)]


def reassembled(link, reassembler):
    events, at = [], 0
    while at < len(link.packets):
        size = link.rng.randint(1, 40)
        events += reassembler.feed(pack_batch(link.packets[at : at + size], LINKTYPE_ETHERNET))
        at += size
    return outcome_of(events + reassembler.flush(), 0)


@pytest.mark.parametrize("acks_captured", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_what_the_wire_lost_is_retransmitted_and_nothing_is_a_gap(seed, acks_captured):
    link = LossyLink(random.Random(seed), wire_loss=0.1, tap_loss=0, acks_captured=acks_captured)
    link.run()
    assert reassembled(link, Reassembler([80])) == [Delivered(0, link.content), Ended(link.stream_bytes)]


@pytest.mark.parametrize("acks_captured", [True, False])
@pytest.mark.parametrize("wire_loss", [0, 0.1])
@pytest.mark.parametrize("seed", range(12))
def test_what_the_tap_missed_is_a_gap_and_nothing_else(seed, wire_loss, acks_captured):
    link = LossyLink(random.Random(seed), wire_loss=wire_loss, tap_loss=0.05, acks_captured=acks_captured)
    link.run()
    reassembler = Reassembler([80])
    expected = link.expected()
    assert reassembled(link, reassembler) == expected
    statistics = reassembler.statistics()
    gaps = [item.length for item in expected if isinstance(item, Gap)]
    assert (statistics.gaps, statistics.gap_bytes) == (len(gaps), sum(gaps))
    assert statistics.data_bytes == (link.stream_bytes - sum(gaps), 0)
    assert statistics.held_bytes == 0
