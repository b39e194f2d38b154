"""Where one connection ends and the next one on the same ports begins: RST, SYN, time."""

import pytest

from gopher._fastpath import FlowClosed, FlowOpened, Reassembler
from tests.support.events import feed, story
from tests.support.packets import ACK, FIN, LINKTYPE_ETHERNET, RST, START_NS, SYN, Conversation, ethernet, ipv4, tcp

SECOND_NS = 1_000_000_000
WINDOW = 65535
ISNS = [0, 2**31 - 5, 2**32 - 5]
every_isn = pytest.mark.parametrize("isn", ISNS)
MD5 = b"\1\1\x13\x12" + b"\0" * 16
AO = b"\x1d\x04\0\0"


def talk(**fields):
    return Conversation(**fields).handshake()


def told(*conversations, **settings):
    packets = [packet for conversation in conversations for packet in conversation.packets]
    return story(feed(Reassembler([80], **settings), packets))


# ---- RST


@every_isn
@pytest.mark.parametrize("direction", [0, 1])
def test_rst_in_order_closes(isn, direction):
    conversation = talk(client_isn=isn, server_isn=isn).data(b"ask").rst(direction=direction).data(b"late")
    assert told(conversation) == [("opened",), ("data", 0, 0, b"ask"), ("closed", "rst")]


@every_isn
@pytest.mark.parametrize("beyond", [1, WINDOW])
def test_rst_in_the_window_closes(isn, beyond):
    conversation = talk(client_isn=isn).data(b"ask").rst(offset=3 + beyond)
    assert told(conversation)[-1] == ("closed", "rst")


@every_isn
@pytest.mark.parametrize("beyond", [-1, -1000, WINDOW + 1, 900_000, 2**31 - 10, -(2**31) + 10])
def test_rst_out_of_the_window_is_refused(isn, beyond):
    conversation = talk(client_isn=isn).data(b"ask").rst(offset=3 + beyond).data(b"more", offset=3)
    reassembler = Reassembler([80])
    assert story(feed(reassembler, conversation.packets)) == [("opened",), ("data", 0, 0, b"askmore")]
    assert reassembler.statistics().segments_refused == 1


def test_scaled_window_widens_what_rst_may_say():
    conversation = talk(window_scale=4).data(b"ask").ack(direction=1).rst(offset=3 + WINDOW * 16)
    assert told(conversation)[-1] == ("closed", "rst")


def test_window_scale_of_one_side_only_is_not_in_force():
    conversation = Conversation(window_scale=4).syn()
    conversation.window_scale = None
    conversation.segment(1, offset=-1, flags=SYN | ACK).segment(0).data(b"ask", direction=1)
    conversation.rst(direction=1, offset=3 + WINDOW + 1).data(b"!", direction=1, offset=3)
    assert told(conversation)[1:] == [("data", 1, 0, b"ask!")]


@pytest.mark.parametrize(("beyond", "closes"), [(2**20, True), (2**20 + 1, False)])
def test_unknown_window_is_taken_for_a_mebibyte(beyond, closes):
    conversation = Conversation().data(b"joined").rst(offset=6 + beyond)
    assert (told(conversation)[-1] == ("closed", "rst")) is closes


def test_rst_behind_a_hole_brings_out_what_is_held():
    conversation = talk().data(b"aa").data(b"cc", offset=4).rst(offset=6)
    assert told(conversation) == [
        ("opened",), ("data", 0, 0, b"aa"), ("gap", 0, 2, 2), ("data", 0, 4, b"cc"), ("closed", "rst"),
    ]  # fmt: skip


def test_bytes_in_a_rst_in_order_are_delivered():
    conversation = talk().data(b"ask").segment(0, flags=RST | ACK, payload=b"because")
    assert told(conversation) == [("opened",), ("data", 0, 0, b"askbecause"), ("closed", "rst")]


def test_bytes_in_a_rst_out_of_order_are_not():
    conversation = talk().data(b"ask").segment(0, flags=RST | ACK, payload=b"because", offset=100)
    assert told(conversation) == [("opened",), ("data", 0, 0, b"ask"), ("closed", "rst")]


def test_rst_of_a_side_that_said_nothing_must_acknowledge_the_other():
    refused = talk().data(b"ask")
    refused.packets = [refused.packets[0], refused.packets[3]]
    forged = ethernet(ipv4(tcp(80, 40000, seq=0, flags=RST), *reversed(("192.0.2.1", "192.0.2.2"))))
    reassembler = Reassembler([80])
    assert story(feed(reassembler, [*refused.packets, (START_NS, forged)]))[-1] == ("data", 0, 0, b"ask")
    answer = ethernet(ipv4(tcp(80, 40000, seq=0, ack=1004, flags=RST | ACK), "192.0.2.2", "192.0.2.1"))
    assert story(feed(reassembler, [(START_NS, answer)])) == [("closed", "rst")]


def test_refused_connection_has_no_events_and_its_ports_work_at_once():
    refused = Conversation().syn().rst(direction=1, offset=-1)
    again = talk(client_isn=99_999).data(b"ask")
    assert told(refused, again) == [("opened",), ("data", 0, 0, b"ask")]


@pytest.mark.parametrize("options", [MD5, AO], ids=["md5", "ao"])
@pytest.mark.parametrize("flags", [RST | ACK, ACK], ids=["rst", "data"])
def test_signed_segment_is_refused_where_the_syn_was_not_signed(options, flags):
    conversation = talk().segment(0, flags=flags, payload=b"forged", options=options).data(b"ask", offset=0)
    reassembler = Reassembler([80])
    assert story(feed(reassembler, conversation.packets)) == [("opened",), ("data", 0, 0, b"ask")]
    assert reassembler.statistics().segments_refused == 1


def test_signed_connection_is_followed():
    conversation = Conversation().segment(0, offset=-1, flags=SYN, options=MD5)
    conversation.segment(1, offset=-1, flags=SYN | ACK, options=MD5).segment(0, payload=b"ask", options=MD5)
    assert told(conversation) == [("opened",), ("data", 0, 0, b"ask")]


# ---- the same ports again


def second(**fields):
    return Conversation(client_isn=777_777, server_isn=888_888, **fields)


SECOND_STORY = [("opened",), ("data", 0, 0, b"second")]


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_ports_used_anew_after_the_end_are_a_new_flow(end):
    first = talk().data(b"first")
    first = first.close() if end == "fin" else first.rst()
    assert told(first, second().handshake().data(b"second"))[-3:] == [("closed", end), *SECOND_STORY]


def test_ports_used_anew_after_the_clients_fin_replace_the_flow():
    first = talk().data(b"first").fin()
    assert told(first, second().syn().data(b"second")) == [
        ("opened",), ("data", 0, 0, b"first"), ("ended", 0, 5), ("closed", "replaced"), *SECOND_STORY,
    ]  # fmt: skip


def test_syn_answered_by_the_server_replaces_an_open_flow():
    first = talk().data(b"first").data(b"held", offset=7)
    again = second().syn().segment(1, offset=-1, flags=SYN | ACK).data(b"second")
    assert told(first, again) == [
        ("opened",), ("data", 0, 0, b"first"), ("gap", 0, 5, 2), ("data", 0, 7, b"held"), ("closed", "replaced"),
        *SECOND_STORY,
    ]  # fmt: skip


@pytest.mark.parametrize("payload", [b"second", b""], ids=["data", "fin"])
@pytest.mark.parametrize("both_directions", [True, False])
def test_syn_followed_by_the_client_replaces_an_open_flow(payload, both_directions):
    first = talk().data(b"first")
    again = second().syn().segment(0, flags=ACK | FIN, payload=payload)
    ending = told(first, again, both_directions=both_directions)[2:]
    assert ending[0] == ("closed", "replaced")
    assert ending[1:3] == (SECOND_STORY if payload else [])


def test_new_flow_has_a_new_identity_and_began_with_syn():
    events = feed(
        Reassembler([80]), [*Conversation().data(b"first").packets, *second().handshake().data(b"second").packets]
    )
    flows = [event.flow for event in events if isinstance(event, FlowOpened)]
    assert [flow.id for flow in flows] == [1, 2]
    assert [flow.began_with_syn for flow in flows] == [False, True]
    assert [event.flow for event in events if isinstance(event, FlowClosed)] == [flows[0]]


@pytest.mark.parametrize("isn", [777_777, 999, 1001, 2**31 + 1000])
def test_forged_syn_changes_nothing(isn):
    conversation = talk().data(b"one ")
    conversation.packets += Conversation(client_isn=isn).syn().packets
    conversation.packets += Conversation(server_isn=isn).segment(1, offset=-1, flags=SYN).packets
    conversation.packets += Conversation(server_isn=isn, client_isn=4).segment(1, offset=-1, flags=SYN | ACK).packets
    conversation.data(b"two", offset=4).data(b"answer", direction=1)
    assert told(conversation) == [("opened",), ("data", 0, 0, b"one two"), ("data", 1, 0, b"answer")]


def test_syn_ack_that_acknowledges_something_else_changes_nothing():
    conversation = Conversation().syn()
    conversation.packets += Conversation(client_isn=5, server_isn=9).segment(1, offset=-1, flags=SYN | ACK).packets
    conversation.segment(1, offset=-1, flags=SYN | ACK).segment(0)
    conversation.segment(1, offset=2, payload=b"bb", acked=0).segment(1, offset=0, payload=b"aa", acked=0)
    assert told(conversation) == [("opened",), ("data", 1, 0, b"aabb")]


def test_syn_ack_of_a_new_connection_replaces_a_closed_flow():
    first = talk().data(b"first").close()
    again = second().handshake().data(b"second")
    again.packets = again.packets[1:]
    assert told(first, again)[-2:] == SECOND_STORY


def test_late_packets_of_a_closed_flow_are_absorbed():
    conversation = (
        talk().data(b"ask").close().data(b"ask", offset=0).fin(offset=3).segment(1, offset=-1, flags=SYN | ACK)
    )
    reassembler = Reassembler([80])
    assert story(feed(reassembler, conversation.packets))[-1] == ("closed", "fin")
    statistics = reassembler.statistics()
    assert (statistics.flows_seen, statistics.retransmitted_bytes) == (1, 3)


# ---- time


def test_closed_flow_is_forgotten_after_15_seconds():
    reassembler = Reassembler([80])
    feed(reassembler, talk(step_ns=0).data(b"ask").close().packets)
    reassembler.expire(START_NS + 15 * SECOND_NS - 1)
    assert reassembler.statistics().flows_now == 1
    reassembler.expire(START_NS + 15 * SECOND_NS)
    assert reassembler.statistics().flows_now == 0
    assert reassembler.statistics().memory_bytes == 0


def test_flow_without_packets_is_idle_after_its_time():
    conversation = talk(step_ns=0).data(b"ask").data(b"held", offset=5)
    reassembler = Reassembler([80], idle_timeout_s=60, gap_timeout_s=100)
    feed(reassembler, conversation.packets)
    assert reassembler.expire(START_NS + 60 * SECOND_NS - 1) == []
    assert story(reassembler.expire(START_NS + 60 * SECOND_NS)) == [
        ("gap", 0, 3, 2), ("data", 0, 5, b"held"), ("closed", "idle"),
    ]  # fmt: skip
    assert reassembler.statistics().flows_now == 0


def test_any_packet_of_a_flow_keeps_it():
    reassembler = Reassembler([80], idle_timeout_s=60)
    conversation = talk(step_ns=0).data(b"ask")
    feed(reassembler, conversation.packets)
    conversation.now_ns += 59 * SECOND_NS
    feed(reassembler, conversation.ack(direction=1).packets[-1:])
    assert reassembler.expire(START_NS + 118 * SECOND_NS) == []
    assert story(reassembler.expire(START_NS + 119 * SECOND_NS)) == [("closed", "idle")]


def test_flow_idle_within_one_batch_is_told_apart():
    conversation = talk(step_ns=0).data(b"ask")
    conversation.now_ns += 7200 * SECOND_NS
    conversation.data(b"more")
    assert told(conversation) == [
        ("opened",), ("data", 0, 0, b"ask"), ("closed", "idle"), ("opened",), ("data", 0, 0, b"more"),
    ]  # fmt: skip


def test_clock_that_steps_back_stops_no_timer():
    conversation = talk(step_ns=0).data(b"aa")
    conversation.now_ns -= 3600 * SECOND_NS
    conversation.data(b"cc", offset=4)
    reassembler = Reassembler([80], gap_timeout_s=2.0)
    feed(reassembler, conversation.packets)
    assert reassembler.expire(conversation.now_ns + SECOND_NS) == []
    assert story(reassembler.expire(conversation.now_ns + 2 * SECOND_NS))[0] == ("gap", 0, 2, 2)


def test_reordered_time_stamps_are_no_step():
    conversation = talk(step_ns=0).data(b"aa").data(b"cc", offset=4)
    reassembler = Reassembler([80], gap_timeout_s=2.0)
    feed(reassembler, conversation.packets)
    for nth in range(10):
        conversation.now_ns = START_NS + (SECOND_NS if nth % 2 else 0)
        assert feed(reassembler, conversation.ack(acked=0).packets[-1:], LINKTYPE_ETHERNET) == []
    assert reassembler.expire(START_NS + 2 * SECOND_NS - 1) == []
    assert reassembler.expire(START_NS + 2 * SECOND_NS) != []
