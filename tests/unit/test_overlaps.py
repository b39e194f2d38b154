"""Overlapping, reordered and repeated segments: the layouts of the literature, for every policy, around the wrap.

The expected streams are data (support/overlap_patterns.json) with an origin of their own; the model that the property
tests trust is held to the same data here.
"""

import json
from pathlib import Path

import pytest

from gopher._fastpath import FlowOpened, Reassembler, StreamData, pack_batch
from tests.support.model import Delivered, Ended, Gap, StreamModel, joined, outcome_of
from tests.support.packets import ACK, FIN, LINKTYPE_ETHERNET, RST, SYN, Conversation

DATA = json.loads((Path(__file__).parents[1] / "support" / "overlap_patterns.json").read_text())
POLICIES = ["linux", "first", "last", "bsd", "solaris", "old-linux"]
PATTERNS = {
    f"{pattern['name']}-{kind}": (pattern[kind], {name: streams[nth] for name, streams in pattern["policies"].items()})
    for pattern in DATA["patterns"]
    for nth, kind in enumerate(["segments", "held_segments"])
}

every_isn = pytest.mark.parametrize("isn", DATA["isns"])
one_batch_and_many = pytest.mark.parametrize("batch_packets", [1, 1000])


def feed(reassembler, packets, batch_packets):
    return [
        event
        for at in range(0, len(packets), batch_packets)
        for event in reassembler.feed(pack_batch(packets[at : at + batch_packets], LINKTYPE_ETHERNET))
    ]


def request_of(events):
    return b"".join(event.data for event in events if isinstance(event, StreamData))


@one_batch_and_many
@every_isn
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", PATTERNS)
def test_overlap_is_decided_by_policy(name, policy, isn, batch_packets):
    segments, streams = PATTERNS[name]
    conversation = Conversation(client_isn=isn).syn()
    for offset, text in segments:
        conversation.data(text.encode(), offset=offset - 1)
    events = feed(Reassembler([80], overlap=policy), conversation.packets, batch_packets)
    assert request_of(events).decode() == streams[policy]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", PATTERNS)
def test_model_agrees_with_the_patterns(name, policy):
    segments, streams = PATTERNS[name]
    model = StreamModel(policy)
    for offset, text in segments:
        model.segment(offset - 1, text.encode())
    assert joined(model.out) == [Delivered(0, streams[policy].encode())]


def conversation_of(steps, isn):
    """The packets of one case of DATA["gaps"]; offsets there count from 1."""
    conversation = Conversation(client_isn=isn)
    if steps[0][0] != "syn":
        conversation.handshake()
    for verb, *arguments in steps:
        match verb:
            case "syn":
                conversation.segment(0, offset=-1, flags=SYN)
            case "syndata":
                conversation.segment(0, offset=-1, flags=SYN, payload=arguments[1].encode())
            case "newsyn":
                conversation.client_isn = arguments[0]
                conversation.handshake()
            case "data":
                conversation.data(arguments[1].encode(), offset=arguments[0] - 1)
            case "ack":
                conversation.ack(direction=1, acked=arguments[0] - 1)
            case "fin":
                conversation.segment(0, offset=arguments[0] - 1, flags=FIN | ACK)
            case "rst":
                conversation.segment(0, offset=arguments[0] - 1, flags=RST)
            case _:
                raise ValueError(verb)
    return conversation


def streams_of(expect):
    """What one case of DATA["gaps"] expects: an outcome for each flow."""
    if isinstance(expect, str):
        return [[Delivered(0, expect.encode())]]
    if expect[0][0] == "stream":
        return [[Delivered(0, text.encode())] for _, text in expect]
    outcome, at = [], 0
    for verb, *arguments in expect:
        if verb == "data":
            outcome.append(Delivered(at, arguments[0].encode()))
            at += len(arguments[0])
        elif verb == "gap":
            outcome.append(Gap(at, arguments[1]))
            at += arguments[1]
        else:
            outcome.append(Ended(at))
    return [joined(outcome)]


@one_batch_and_many
@every_isn
@pytest.mark.parametrize("case", DATA["gaps"], ids=lambda case: case["name"])
def test_gap_is_declared_exactly(case, isn, batch_packets):
    reassembler = Reassembler([80])
    packets = conversation_of(case["steps"], case.get("isn", isn)).packets
    events = feed(reassembler, packets, batch_packets) + reassembler.flush()
    expected = streams_of(case["expect"])
    ends = any(isinstance(item, Ended) for outcome in expected for item in outcome)
    flows = [event.flow for event in events if isinstance(event, FlowOpened)]
    outcomes = [outcome_of([event for event in events if event.flow is flow], 0) for flow in flows]
    assert [[item for item in outcome if ends or not isinstance(item, Ended)] for outcome in outcomes] == expected


@pytest.mark.parametrize(
    "case",
    [case for case in DATA["gaps"] if any(verb == "ack" for verb, *_ in case["steps"])],
    ids=lambda case: case["name"],
)
def test_hole_below_an_acknowledgement_is_a_gap_without_waiting(case):
    events = feed(Reassembler([80]), conversation_of(case["steps"], 1000).packets, 1)
    assert outcome_of(events, 0) == streams_of(case["expect"])[0]


@one_batch_and_many
@every_isn
@pytest.mark.parametrize("case", DATA["sequences"], ids=lambda case: case["name"])
def test_sequence_gives_the_bytes_that_gopacket_gives(case, isn, batch_packets):
    first_seq = next((seq for seq, is_syn, _ in case["steps"] if is_syn), case["steps"][0][0] - 1)
    conversation = Conversation(client_isn=isn).syn()
    for seq, is_syn, payload in case["steps"]:
        offset = (seq - first_seq) % 2**32 - 1
        conversation.segment(0, offset=offset, flags=SYN if is_syn else ACK, payload=bytes(payload))
    reassembler = Reassembler([80])
    outcome = outcome_of(feed(reassembler, conversation.packets, batch_packets) + reassembler.flush(), 0)
    delivered = [
        byte for item in outcome for byte in (item.data if isinstance(item, Delivered) else [None] * item.length)
    ]
    assert delivered == case["expect"]


def test_holes_of_the_same_age_are_given_up_together():
    reassembler = Reassembler([80])
    conversation = Conversation(step_ns=0).handshake().data(b"one", offset=5).data(b"two", offset=12)
    feed(reassembler, conversation.packets, 1000)
    assert outcome_of(reassembler.expire(conversation.now_ns + 3 * 10**9), 0) == [
        Gap(0, 5),
        Delivered(5, b"one"),
        Gap(8, 4),
        Delivered(12, b"two"),
    ]
