"""What the fast path may cost, whatever comes: flows, memory, allocations, and no way to make it crash."""

import contextlib
import gc
import random
import struct
import weakref

import pytest

from gopher._fastpath import Batch, FlowClosed, FlowOpened, Reassembler, StreamData, StreamGap, pack_batch
from tests.support.events import feed, story
from tests.support.packets import (
    ACK,
    FIN,
    LINKTYPE_ETHERNET,
    LINKTYPE_NULL,
    LINKTYPE_PPP,
    LINKTYPE_RAW,
    LINKTYPE_SLL,
    LINKTYPE_SLL2,
    RST,
    START_NS,
    SYN,
    Conversation,
    ethernet,
    ipv4,
    ipv4_fragments,
    ipv6,
    ipv6_fragments,
    ipv6_options,
    tcp,
)

SECOND_NS = 1_000_000_000
RECORD = struct.Struct("=IIII")


def talk(**fields):
    return Conversation(**fields).handshake()


def client(number):
    """A four-tuple of its own for each number."""
    return (f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 1024 + number % 50_000)


# ---- the flow table


def test_full_table_lets_the_least_recently_used_flow_go():
    reassembler = Reassembler([80], max_flows=3)
    conversations = [Conversation(client=client(number), step_ns=0).data(b"x") for number in range(4)]
    flows = {}
    for number in (0, 1, 2):
        events = feed(reassembler, conversations[number].packets)
        flows[events[0].flow] = number
    feed(reassembler, conversations[0].data(b"y").packets[-1:])
    closed, opened, _ = feed(reassembler, conversations[3].packets)
    assert (flows[closed.flow], closed.reason) == (1, "evicted")
    assert isinstance(opened, FlowOpened)
    statistics = reassembler.statistics()
    assert (statistics.flows_now, statistics.flows_evicted) == (3, 1)


def test_evicted_flow_brings_out_what_is_held():
    reassembler = Reassembler([80], max_flows=1)
    feed(reassembler, talk().data(b"aa").data(b"cc", offset=4).packets)
    events = feed(reassembler, Conversation(client=client(1)).syn().packets)
    assert story(events) == [("gap", 0, 2, 2), ("data", 0, 4, b"cc"), ("closed", "evicted")]


def test_full_table_lets_closed_flows_go_first():
    reassembler = Reassembler([80], max_flows=2)
    feed(reassembler, Conversation(client=client(0)).data(b"x").packets)
    feed(reassembler, Conversation(client=client(1)).handshake().data(b"x").close().packets)
    assert story(feed(reassembler, Conversation(client=client(2)).data(b"x").packets))[0] == ("opened",)
    assert reassembler.statistics().flows_evicted == 0


def test_table_smaller_than_a_batch_tells_every_flow():
    packets = [
        packet for number in range(500) for packet in Conversation(client=client(number)).data(b"%d" % number).packets
    ]
    for max_flows in (1, 2, 255, 256, 257):
        reassembler = Reassembler([80], max_flows=max_flows)
        events = feed(reassembler, packets) + reassembler.flush()
        assert [event.data for event in events if isinstance(event, StreamData)] == [b"%d" % n for n in range(500)]
        assert len({event.flow for event in events if isinstance(event, FlowOpened)}) == 500
        reasons = [event.reason for event in events if isinstance(event, FlowClosed)]
        assert (reasons.count("evicted"), reasons.count("flushed")) == (500 - max_flows, max_flows)


def flood(count, segment):
    """A batch of `count` packets from different clients, made by changing the address in one packet."""
    frame = bytearray(ethernet(ipv4(segment, "10.0.0.0", "192.0.2.2")))
    data = bytearray()
    for number in range(count):
        frame[26:30] = struct.pack("!I", 0x0A000000 + number)
        data += frame
    index = b"".join(RECORD.pack(1, 0, nth * len(frame), len(frame)) for nth in range(count))
    return Batch(data, index, LINKTYPE_ETHERNET)


def test_hundred_thousand_idle_flows_fit_in_64_mib():
    reassembler = Reassembler([80])
    reassembler.feed(flood(100_000, tcp(40000, 80, seq=0, flags=SYN)))
    statistics = reassembler.statistics()
    assert statistics.flows_now == 100_000
    assert statistics.memory_bytes < 64 << 20


@pytest.mark.parametrize("flags", [SYN, ACK, FIN | ACK, RST], ids=["syn", "ack", "fin", "rst"])
def test_flood_costs_a_bounded_amount_and_no_events(flags):
    reassembler = Reassembler([80], max_flows=1000)
    batch = flood(20_000, tcp(40000, 80, seq=0, flags=flags))
    assert reassembler.feed(batch) == []
    statistics = reassembler.statistics()
    assert statistics.flows_now <= 1000
    assert statistics.memory_bytes < 1 << 20
    assert statistics.flows_evicted == statistics.flows_empty == (19_000 if flags == SYN else 0)


def test_one_packet_flows_cost_a_bounded_amount():
    reassembler = Reassembler([80], max_flows=1000)
    events = reassembler.feed(flood(20_000, tcp(40000, 80, seq=0, payload=b"x")))
    assert sum(isinstance(event, FlowOpened) for event in events) == 20_000
    assert sum(isinstance(event, FlowClosed) for event in events) == 19_000
    assert reassembler.statistics().flows_now == 1000


# ---- what is held


def test_direction_over_its_budget_gives_up_its_hole():
    conversation = talk().data(b"a" * 600, offset=1).data(b"b" * 400, offset=601)
    reassembler = Reassembler([80], flow_memory_bytes=1000)
    assert feed(reassembler, conversation.packets) == []
    assert reassembler.statistics().held_bytes == 1000
    events = feed(reassembler, conversation.data(b"c", offset=1001).packets[-1:])
    assert story(events) == [("opened",), ("gap", 0, 0, 1), ("data", 0, 1, b"a" * 600 + b"b" * 400 + b"c")]


def test_segment_larger_than_the_budget_is_not_held():
    conversation = talk().data(b"a" * 100, offset=7)
    assert story(feed(Reassembler([80], flow_memory_bytes=99), conversation.packets))[1:] == [
        ("gap", 0, 0, 7), ("data", 0, 7, b"a" * 100),
    ]  # fmt: skip
    assert story(feed(Reassembler([80], total_memory_bytes=99), conversation.packets))[1:] == [
        ("gap", 0, 0, 7), ("data", 0, 7, b"a" * 100),
    ]  # fmt: skip


def test_total_over_its_budget_gives_up_the_oldest_hole_of_all_flows():
    reassembler = Reassembler([80], total_memory_bytes=1000)
    for number, size in [(0, 300), (1, 500)]:
        assert feed(reassembler, talk(client=client(number)).data(b"x" * size, offset=1).packets) == []
    _, gap, data = feed(reassembler, talk(client=client(2)).data(b"x" * 250, offset=1).packets)
    assert gap.flow.client == data.flow.client == client(0)
    assert reassembler.statistics().held_bytes == 750


def test_held_segments_of_one_byte_are_bounded_by_number():
    conversation = talk(step_ns=0)
    for nth in range(2000):
        conversation.data(b"x", offset=2 * nth + 1)
    reassembler = Reassembler([80], flow_memory_bytes=64 << 10)
    events = []
    for at in range(0, 2003, 100):
        events += feed(reassembler, conversation.packets[at : at + 100])
        statistics = reassembler.statistics()
        assert statistics.held_bytes <= 64 + (64 << 10) // 256
        assert statistics.memory_bytes < 200_000
    assert sum(isinstance(event, StreamGap) for event in events) == 2000 - 64 - 256


def test_what_overlaps_leave_of_large_segments_costs_what_is_left():
    conversation = talk()
    for k in range(400):
        conversation.data(bytes(8000), offset=20_000 - k)
    reassembler = Reassembler(ports=[80], flow_memory_bytes=100_000, total_memory_bytes=150_000)
    feed(reassembler, conversation.packets)
    statistics = reassembler.statistics()
    assert statistics.held_bytes == 8399
    assert statistics.memory_bytes < 150_000


def test_held_segments_in_the_worst_order_are_sorted():
    offsets = list(range(0, 4000, 2))
    random.Random(1).shuffle(offsets)
    conversation = talk()
    for offset in offsets + [offset + 1 for offset in offsets]:
        conversation.data(bytes([offset % 251]), offset=offset)
    data = b"".join(
        event.data for event in feed(Reassembler([80]), conversation.packets) if isinstance(event, StreamData)
    )
    assert data == bytes((at - at % 2 + at % 2) % 251 for at in range(4000))


# ---- far away


@pytest.mark.parametrize("distance", [2**22 + 1, 2**30, 2**31 - 1, -(2**22) - 1, -(2**31) + 100])
def test_far_segment_does_not_poison_the_flow(distance):
    conversation = talk().data(b"one ").data(b"injected", offset=4 + distance).data(b"two", offset=4)
    reassembler = Reassembler([80])
    assert story(feed(reassembler, conversation.packets)) == [("opened",), ("data", 0, 0, b"one two")]
    statistics = reassembler.statistics()
    assert (statistics.segments_out_of_window, statistics.held_bytes) == (1, 0)


def test_near_segment_is_held():
    conversation = talk().data(b"one ").data(b"far", offset=4 + 2**22)
    reassembler = Reassembler([80])
    feed(reassembler, conversation.packets)
    assert reassembler.statistics().held_bytes == 3


@pytest.mark.parametrize("times", [1, 2], ids=["seen once", "seen twice"])
@pytest.mark.parametrize("distance", [2**22 + 5, 2**31 - 100, 2**31 + 100, 2**32 - 2**23])
def test_three_far_segments_in_a_row_prove_a_large_loss(distance, times):
    conversation = talk().data(b"one ").data(b"held", offset=6)
    for nth in range(4):
        conversation.data(b"far%d" % nth, offset=distance + 4 * nth)
    conversation.packets = [packet for packet in conversation.packets for _ in range(times)]
    assert story(feed(Reassembler([80]), conversation.packets)) == [
        ("opened",), ("data", 0, 0, b"one "), ("gap", 0, 4, 2), ("data", 0, 6, b"held"), ("gap", 0, 10, distance - 2),
        ("data", 0, distance + 8, b"far2far3"),
    ]  # fmt: skip


def test_far_segments_between_segments_of_the_stream_prove_nothing():
    conversation = talk()
    for nth in range(5):
        conversation.data(b"near", offset=4 * nth).data(b"far!", offset=2**30 + 4 * nth)
    assert story(feed(Reassembler([80]), conversation.packets)) == [("opened",), ("data", 0, 0, b"near" * 5)]


def test_far_segments_that_do_not_continue_each_other_prove_nothing():
    conversation = talk()
    for nth in range(5):
        conversation.data(b"far!", offset=2**30 + 5 * nth)
    assert feed(Reassembler([80]), conversation.packets) == []


# ---- memory


def test_flow_in_order_allocates_nothing_after_warm_up():
    reassembler = Reassembler([80])
    conversation = talk()
    feed(reassembler, conversation.data(b"warm up").packets)
    allocations = reassembler.statistics().allocations
    for _ in range(200):
        conversation.packets.clear()
        conversation.data(b"ask").data(b"answer", direction=1)
        assert len(feed(reassembler, conversation.packets)) == 2
    assert reassembler.statistics().allocations == allocations


def test_ended_flows_leave_nothing_held():
    reassembler = Reassembler([80])
    for number in range(100):
        conversation = talk(client=client(number))
        for direction in (0, 1):
            conversation.segment(direction, offset=5, flags=FIN | ACK, payload=b"held", acked=0)
        if number % 2:
            conversation.segment(0, offset=9, flags=RST | ACK, acked=0)
        feed(reassembler, conversation.packets)
    assert reassembler.statistics().held_bytes == 50 * 2 * 4
    reassembler.expire(START_NS + 10 * SECOND_NS)
    assert reassembler.statistics().held_bytes == 0
    reassembler.expire(START_NS + 60 * SECOND_NS)
    assert reassembler.statistics().flows_now == 0
    assert reassembler.statistics().memory_bytes == 0


@pytest.mark.parametrize("acquisitions", range(40))
def test_system_without_memory_is_an_error_and_no_half_truth(acquisitions):
    """Whatever acquisition fails: a MemoryError or a gap, and never bytes that do not belong together."""
    conversations = [talk(client=client(number), step_ns=0) for number in range(4)]
    packets = []
    for conversation in conversations:
        for nth in (1, 3, 5, 0, 2, 4):
            conversation.segment(0, offset=10 * nth, payload=b"%09d\n" % nth, acked=0)
        packets += conversation.packets
    packets += [
        (START_NS, ethernet(piece))
        for piece in ipv4_fragments(b"x" * 200, "1.2.3.4", "4.3.2.1", identification=1, size=64)
    ]
    reassembler = Reassembler([80])
    reassembler._probe_fail_after(acquisitions)
    events = []
    failures = []
    for at in range(0, len(packets), 5):
        with contextlib.suppress(MemoryError):
            failures.append(at)
            events += feed(reassembler, packets[at : at + 5])
            failures.pop()
    reassembler._probe_fail_after(-1)
    events += reassembler.flush()
    positions = {}
    for event in events:
        if isinstance(event, StreamData):
            assert event.offset == positions.get(event.flow, 0)
            positions[event.flow] = event.offset + len(event.data)
            for at in range(0, len(event.data), 10):
                assert event.data[at : at + 10] == b"%09d\n" % ((event.offset + at) // 10)
        elif isinstance(event, StreamGap):
            positions[event.flow] = event.offset + event.length
    assert failures or positions
    assert reassembler.statistics().memory_bytes == 0
    assert reassembler.statistics().held_bytes == 0


def test_reassembler_lost_in_a_cycle_is_collected():
    class Context:
        pass

    reassembler = Reassembler([80])
    flow = feed(reassembler, talk().data(b"ask").data(b"held", offset=9).packets)[0].flow
    flow.context = Context()
    flow.context.reassembler = reassembler
    gone = weakref.ref(flow.context)
    del reassembler, flow
    gc.collect()
    assert gone() is None


def test_flow_outlives_its_reassembler():
    reassembler = Reassembler([80])
    flow = feed(reassembler, talk().data(b"ask").packets)[0].flow
    del reassembler
    gc.collect()
    assert flow.client == ("192.0.2.1", 40000)
    Reassembler().ignore(flow)


# ---- arguments


@pytest.mark.parametrize(
    "arguments",
    [
        {"ports": [65536]}, {"ports": [-1]}, {"max_flows": 0}, {"max_flows": 2**24 + 1}, {"flow_memory_bytes": 0},
        {"total_memory_bytes": -1}, {"gap_timeout_s": 0}, {"gap_timeout_s": float("nan")}, {"idle_timeout_s": -1},
        {"idle_timeout_s": float("inf")}, {"overlap": "windows"},
    ],
    ids=str,
)  # fmt: skip
def test_argument_out_of_range_is_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments)).rstrip("s")):
        Reassembler(**arguments)


# ---- anything


def seeds():
    """Frames of every kind that the fuzzing starts from."""
    conversation = (
        talk(window_scale=7).data(b"ask" * 20).data(b"answer" * 20, direction=1).data(b"b", offset=90).close()
    )
    frames = [frame for _, frame in conversation.packets]
    frames += [
        ethernet(ipv6(tcp(40000, 80, seq=nth, payload=b"six"), extensions=[(0, ipv6_options())])) for nth in range(3)
    ]
    frames += map(
        ethernet,
        ipv4_fragments(tcp(40000, 80, seq=9, payload=b"x" * 90), "192.0.2.1", "192.0.2.2", identification=1, size=40),
    )
    frames += map(
        ethernet,
        ipv6_fragments(
            tcp(40000, 80, seq=9, payload=b"x" * 90), "2001:db8::1", "2001:db8::2", identification=1, size=40
        ),
    )
    return frames


@pytest.mark.parametrize(
    "linktype", [LINKTYPE_ETHERNET, LINKTYPE_NULL, LINKTYPE_PPP, LINKTYPE_RAW, LINKTYPE_SLL, LINKTYPE_SLL2]
)
def test_mutated_packets_neither_crash_nor_break_the_bounds(linktype):
    chance = random.Random(linktype)
    frames = seeds()
    reassembler = Reassembler(
        max_flows=50,
        flow_memory_bytes=2000,
        total_memory_bytes=5000,
        decap=True,
        overlap=chance.choice(["linux", "last"]),
    )
    now_ns = START_NS
    fed = 0
    open_flows = set()

    def check(events):
        for event in events:
            if isinstance(event, FlowOpened):
                open_flows.add(event.flow)
            assert event.flow in open_flows
            if isinstance(event, FlowClosed):
                open_flows.remove(event.flow)

    for _ in range(80):
        packets = []
        for _ in range(100):
            frame = bytearray(chance.choice(frames))
            if linktype != LINKTYPE_ETHERNET:
                frame = frame[chance.choice([0, 10, 12, 14, 14, 14]) :]
            for _ in range(chance.choice([0, 0, 1, 1, 3])):
                frame[chance.randrange(len(frame))] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
            if chance.random() < 0.1:
                frame = frame[: chance.randrange(len(frame) + 1)]
            now_ns += chance.choice([0, 1000, 1000, SECOND_NS, -SECOND_NS])
            packets.append((now_ns, bytes(frame)))
        fed += len(packets)
        check(reassembler.feed(pack_batch(packets, linktype)))
        statistics = reassembler.statistics()
        assert statistics.flows_now <= 50
        assert statistics.held_bytes <= 5000
        assert statistics.memory_bytes < 6 << 20
    assert reassembler.statistics().packets == fed
    check(reassembler.flush())
    assert not open_flows
    assert reassembler.statistics().memory_bytes == 0
