"""The reassembler against a model that is slow and obviously right, for whatever packets come in whatever order."""

import random

from hypothesis import assume, given, note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gopher._fastpath import FlowClosed, FlowOpened, Reassembler, StreamData, StreamGap, pack_batch
from tests.support.model import Ended, StreamModel, joined, outcome_of
from tests.support.packets import ACK, FIN, LINKTYPE_ETHERNET, RST, START_NS, SYN, Conversation

DIRECTIONS = st.sampled_from([0, 1])
# Around the places where 32-bit arithmetic goes wrong, and anywhere.
ISNS = st.sampled_from([0, 1, 2**31 - 8, 2**31 - 1, 2**32 - 1, 2**32 - 9, 2**32 - 40]) | st.integers(0, 2**32 - 1)
POLICIES = st.sampled_from(["linux", "first", "last", "bsd", "solaris", "old-linux"])
VERSIONS = st.sampled_from([0, 0, 1])
GAP_TIMEOUT_S = 2.0
SECOND_NS = 1_000_000_000


def content(direction, offset, length, version=0):
    """The bytes of a stream; another version differs in every byte."""
    return bytes((at * 7 + (at >> 8) + direction * 101 + version * 57) % 256 for at in range(offset, offset + length))


class ReassemblyMachine(RuleBasedStateMachine):
    """One four-tuple, used by one connection after the other. Packets gather, and are fed in batches of any size.

    The clock stands still but for `expire`, so that the model needs no timers: a hole is given up when its time is
    over, when it is acknowledged, or at the end.
    """

    @initialize(isns=st.tuples(ISNS, ISNS), policy=POLICIES, handshake=st.booleans())
    def start(self, isns, policy, handshake):
        self.policy = policy
        self.reassembler = Reassembler([80], overlap=policy, gap_timeout_s=GAP_TIMEOUT_S)
        self.fed_packets = 0
        self.delivered_bytes = [0, 0]
        self.gap_lengths = []
        self.now_ns = START_NS
        self.connect(isns, handshake)

    def connect(self, isns, handshake):
        self.conversation = Conversation(client_isn=isns[0], server_isn=isns[1], now_ns=self.now_ns, step_ns=0)
        self.models = [StreamModel(self.policy), StreamModel(self.policy)]
        self.highest = [0, 0]
        self.history = []
        self.events = []
        self.closed = False
        self.closed_by_reset = False
        if handshake:
            self.conversation.handshake()
        else:
            # Without one, a stream begins where its first segment does.
            self.send(0, 0, content(0, 0, 3))
            self.send(1, 0, content(1, 0, 3))

    def send(self, direction, offset, data, flags=ACK):
        fin = bool(flags & FIN)
        acked = min(self.models[1 - direction].position, self.highest[1 - direction])
        self.conversation.segment(direction, offset=offset, flags=flags, payload=data, acked=acked)
        self.history.append((direction, offset, data, flags))
        if self.models[direction].end is None and (data or fin):
            self.highest[direction] = max(self.highest[direction], offset + len(data))
        if not self.closed:
            self.models[direction].segment(offset, data, fin=fin)
            self.closed = all(model.done for model in self.models)

    @rule(direction=DIRECTIONS, start=st.integers(-25, 40), length=st.integers(0, 30), version=VERSIONS)
    def segment(self, direction, start, length, version):
        offset = max(-2, self.models[direction].position + start)
        self.send(direction, offset, content(direction, offset, length, version))

    @rule(data=st.data())
    @precondition(lambda self: self.history)
    def repeat(self, data):
        self.send(*data.draw(st.sampled_from(self.history)))

    @rule(direction=DIRECTIONS, beyond=st.integers(0, 10), length=st.integers(0, 10))
    def fin(self, direction, beyond, length):
        if self.models[direction].end is None:
            offset = self.highest[direction] + beyond
            self.send(direction, offset, content(direction, offset, length), FIN | ACK)

    @rule(direction=DIRECTIONS, distance=st.integers(2**30, 2**31 - 1) | st.integers(-(2**31) + 100, -(2**30)))
    def blind_injection(self, direction, distance):
        offset = self.models[direction].position + distance
        self.conversation.segment(direction, offset=offset, payload=b"injected", acked=0)

    @rule(direction=DIRECTIONS, distance=st.integers(2**30, 2**31 - 1) | st.integers(-(2**31) + 100, -(2**30)))
    def reset_out_of_window(self, direction, distance):
        self.conversation.segment(direction, offset=self.models[direction].position + distance, flags=RST, acked=0)

    @rule(direction=DIRECTIONS)
    def acknowledge_everything(self, direction):
        """The other end has it all: what the capture does not hold, it will never get."""
        if not self.closed:
            self.conversation.ack(direction=1 - direction, acked=self.highest[direction])
            self.models[direction].give_up(self.highest[direction])
            self.closed = all(model.done for model in self.models)

    @rule(one_by_one=st.booleans())
    def feed(self, one_by_one):
        packets = self.conversation.packets
        size = 1 if one_by_one else max(1, len(packets))
        for at in range(0, len(packets), size):
            self.take(self.reassembler.feed(pack_batch(packets[at : at + size], LINKTYPE_ETHERNET)))
        self.fed_packets += len(packets)
        packets.clear()
        self.compare()

    @rule()
    def expire_too_early(self):
        self.feed(one_by_one=False)
        self.take(self.reassembler.expire(self.conversation.now_ns + SECOND_NS))
        self.compare()

    @rule()
    @precondition(lambda self: not self.closed)  # for a closed flow is remembered for a while only
    def expire(self):
        self.feed(one_by_one=False)
        self.conversation.now_ns += 3 * SECOND_NS
        self.take(self.reassembler.expire(self.conversation.now_ns))
        for model in self.models:
            model.give_up()
        self.closed = all(model.done for model in self.models)
        self.compare()

    @rule(direction=DIRECTIONS)
    @precondition(lambda self: not self.closed)
    def reset(self, direction):
        """In order. What is held then comes out, for its receiver may have had what the capture misses."""
        self.conversation.segment(direction, offset=self.models[direction].position, flags=RST, acked=0)
        for model in self.models:
            model.give_up()
        if not all(model.done for model in self.models):
            self.closed_by_reset = True
        self.closed = True

    @rule(isns=st.tuples(ISNS, ISNS))
    @precondition(lambda self: self.closed)
    def reuse_ports(self, isns):
        # With the same number it would be the old SYN once more.
        assume(isns[0] != self.conversation.client_isn and isns[1] != self.conversation.server_isn)
        self.feed(one_by_one=False)
        self.now_ns = self.conversation.now_ns
        self.connect(isns, handshake=True)

    def take(self, events):
        for event in events:
            note(f"{event}")
        self.events += events
        for event in events:
            if isinstance(event, StreamData):
                self.delivered_bytes[event.direction] += len(event.data)
            elif isinstance(event, StreamGap):
                self.gap_lengths.append(event.length)

    def compare(self):
        self.compare_outcomes()
        closings = [event.reason for event in self.events if isinstance(event, FlowClosed)]
        is_over = self.closed and not self.is_silent()
        assert closings == ["rst" if self.closed_by_reset else "fin"] * is_over
        statistics = self.reassembler.statistics()
        assert statistics.packets == self.fed_packets
        assert statistics.data_bytes == tuple(self.delivered_bytes)
        assert (statistics.gaps, statistics.gap_bytes) == (len(self.gap_lengths), sum(self.gap_lengths))
        assert statistics.held_bytes == (0 if self.closed else sum(len(model.held) for model in self.models))

    def compare_outcomes(self):
        for direction, model in enumerate(self.models):
            assert outcome_of(self.events, direction) == ([] if self.is_silent() else joined(model.out))

    def is_silent(self):
        """A flow without a byte or a gap has no events."""
        return all(isinstance(item, Ended) for model in self.models for item in model.out)

    def teardown(self):
        if not hasattr(self, "reassembler"):
            return
        self.feed(one_by_one=False)
        self.take(self.reassembler.flush())
        if not self.closed:
            for model in self.models:
                model.give_up()
        self.compare_outcomes()
        statistics = self.reassembler.statistics()
        assert (statistics.flows_now, statistics.held_bytes, statistics.memory_bytes) == (0, 0, 0)
        assert statistics.flows_seen == statistics.flows_opened + statistics.flows_empty


TestReassembly = ReassemblyMachine.TestCase


FLOWS = 4
SPAN_BYTES = 3000
FLOW_MEMORY_BYTES, TOTAL_MEMORY_BYTES = 1024, 2048
TRUTH = [random.Random(seed).randbytes(SPAN_BYTES) for seed in range(2 * FLOWS)]

segments = st.tuples(
    st.integers(0, FLOWS - 1),
    DIRECTIONS,
    st.integers(0, SPAN_BYTES - 200),
    st.integers(8, 200),
    st.sampled_from([ACK] * 12 + [SYN, SYN | ACK, FIN | ACK, RST]),
)


@given(sent=st.lists(segments, max_size=150), batch_packets=st.integers(1, 60))
def test_whatever_comes_the_pieces_fit_and_the_bounds_hold(sent, batch_packets):
    """Too little memory, too small a table, FIN, RST and SYN at any place: only the length of the gaps may suffer."""
    conversations = [Conversation(client=("192.0.2.1", 40000 + number), step_ns=0) for number in range(FLOWS)]
    packets = []
    for number, direction, offset, length, flags in sent:
        is_syn = bool(flags & SYN)
        payload = b"" if is_syn else TRUTH[2 * number + direction][offset : offset + length]
        conversations[number].segment(direction, offset=-1 if is_syn else offset, flags=flags, payload=payload, acked=0)
        packets.append(conversations[number].packets.pop())
    reassembler = Reassembler(
        [80], max_flows=3, flow_memory_bytes=FLOW_MEMORY_BYTES, total_memory_bytes=TOTAL_MEMORY_BYTES
    )
    events = []
    for at in range(0, len(packets), batch_packets):
        events += reassembler.feed(pack_batch(packets[at : at + batch_packets], LINKTYPE_ETHERNET))
        statistics = reassembler.statistics()
        assert statistics.held_bytes <= TOTAL_MEMORY_BYTES
        assert statistics.flows_now <= 3
    events += reassembler.flush()

    positions = {}
    starts = {}
    open_flows = set()
    for event in events:
        flow = event.flow
        if isinstance(event, FlowOpened):
            open_flows.add(flow)
            positions[flow] = [0, 0]
            continue
        assert flow in open_flows, "an event before FlowOpened or after FlowClosed"
        if isinstance(event, FlowClosed):
            open_flows.remove(flow)
            continue
        assert event.offset == positions[flow][event.direction]
        if isinstance(event, StreamGap):
            positions[flow][event.direction] += event.length
        elif isinstance(event, StreamData):
            truth = TRUTH[2 * (flow.client[1] - 40000) + event.direction]
            # A stream that was joined in the middle begins where its first bytes are found.
            first = starts.setdefault((flow, event.direction), truth.find(event.data) - event.offset)
            assert truth[first + event.offset :].startswith(event.data)
            positions[flow][event.direction] += len(event.data)
    assert not open_flows
    statistics = reassembler.statistics()
    assert (statistics.flows_now, statistics.held_bytes, statistics.memory_bytes) == (0, 0, 0)
    assert statistics.flows_seen == statistics.flows_opened + statistics.flows_empty
    assert statistics.packets == len(packets)
    assert sum(statistics.data_bytes) == sum(len(event.data) for event in events if isinstance(event, StreamData))
    assert statistics.gap_bytes == sum(event.length for event in events if isinstance(event, StreamGap))
