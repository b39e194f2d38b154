"""Segments in, ordered bytes out: what one connection's streams are made of."""

import pytest

from gopher._fastpath import FlowOpened, Reassembler, StreamData, pack_batch
from tests.support.events import feed, story
from tests.support.packets import ACK, CLIENT6, FIN, LINKTYPE_ETHERNET, RST, SERVER6, START_NS, SYN, Conversation

SECOND_NS = 1_000_000_000
WRAPS = [0, 1, 2**31 - 1, 2**31 - 5, 2**32 - 1, 2**32 - 5]
every_isn = pytest.mark.parametrize("isn", WRAPS)


def talk(**fields):
    """A connection that has been opened."""
    return Conversation(**fields).handshake()


def told(conversation, *, then_flush=False, **settings):
    """The story of the whole conversation in one batch, without its FlowOpened."""
    reassembler = Reassembler([80], **settings)
    events = feed(reassembler, conversation.packets)
    if then_flush:
        events += reassembler.flush()
    assert isinstance(events[0], FlowOpened)
    return story(events)[1:]


# ---- in order


@every_isn
def test_segments_in_order_are_one_event(isn):
    conversation = talk(client_isn=isn).data(b"one ").data(b"two ").data(b"three")
    assert told(conversation) == [("data", 0, 0, b"one two three")]


def test_batches_do_not_change_the_bytes():
    conversation = talk().data(b"one ").data(b"two ").data(b"three")
    reassembler = Reassembler([80])
    events = [event for packet in conversation.packets for event in feed(reassembler, [packet])]
    assert story(events)[1:] == [("data", 0, 0, b"one "), ("data", 0, 4, b"two "), ("data", 0, 8, b"three")]


def test_directions_that_alternate_stay_in_order():
    conversation = talk()
    for nth in b"abc":
        conversation.data(b"ask " + bytes([nth])).data(b"answer " + bytes([nth]), direction=1)
    assert told(conversation) == [
        ("data", 0, 0, b"ask a"), ("data", 1, 0, b"answer a"), ("data", 0, 5, b"ask b"), ("data", 1, 8, b"answer b"),
        ("data", 0, 10, b"ask c"), ("data", 1, 16, b"answer c"),
    ]  # fmt: skip


def test_flows_are_told_apart():
    flows = [Conversation(client=("192.0.2.1", 40000 + nth)).handshake() for nth in range(3)]
    for nth in range(30):
        flows[nth % 3].data(b"%d." % nth)
    packets = [packet for packets in zip(*(flow.packets for flow in flows), strict=True) for packet in packets]
    events = feed(Reassembler([80]), packets)
    data = {event.flow.client[1] - 40000: event.data for event in events if isinstance(event, StreamData)}
    assert data == {first: b"".join(b"%d." % nth for nth in range(first, 30, 3)) for first in range(3)}
    assert [event.flow.id for event in events if isinstance(event, FlowOpened)] == [1, 2, 3]


def test_whole_connection_is_told_to_its_end():
    conversation = talk().data(b"ask").data(b"answer", direction=1).close()
    assert told(conversation) == [
        ("data", 0, 0, b"ask"), ("data", 1, 0, b"answer"), ("ended", 0, 3), ("ended", 1, 6), ("closed", "fin"),
    ]  # fmt: skip


# ---- out of order, twice, overlapping


@every_isn
def test_hole_then_the_missing_segment_is_in_order(isn):
    conversation = talk(client_isn=isn).data(b"cc", offset=4).data(b"bb", offset=2).data(b"dd", offset=6)
    conversation.data(b"aa", offset=0)
    assert told(conversation) == [("data", 0, 0, b"aabbccdd")]


def test_held_bytes_are_delivered_by_a_later_batch():
    conversation = talk().data(b"bb", offset=2)
    reassembler = Reassembler([80])
    assert feed(reassembler, conversation.packets) == []
    assert reassembler.statistics().held_bytes == 2
    events = feed(reassembler, conversation.data(b"aa", offset=0).packets[-1:])
    assert story(events) == [("opened",), ("data", 0, 0, b"aabb")]
    assert reassembler.statistics().held_bytes == 0


@every_isn
def test_retransmission_is_trimmed_and_counted(isn):
    conversation = talk(client_isn=isn).data(b"abcdef").data(b"abcdef", offset=0).data(b"defghi", offset=3)
    reassembler = Reassembler([80])
    assert story(feed(reassembler, conversation.packets))[1:] == [("data", 0, 0, b"abcdefghi")]
    assert reassembler.statistics().retransmitted_bytes == 9


def test_packets_seen_twice_are_told_once():
    conversation = talk().data(b"ask").data(b"answer", direction=1).close()
    once = told(conversation)
    conversation.packets = [packet for packet in conversation.packets for _ in range(2)]
    assert told(conversation) == once


@pytest.mark.parametrize("payload", [b"", b"\0"], ids=["empty", "one garbage byte"])
def test_keep_alive_is_harmless(payload):
    conversation = talk().data(b"abc").data(payload, offset=2).data(b"def", offset=3)
    assert told(conversation) == [("data", 0, 0, b"abcdef")]


def test_zero_window_probe_is_harmless():
    conversation = talk().data(b"abc").data(b"d", offset=3).data(b"d", offset=3).data(b"def", offset=3)
    assert told(conversation) == [("data", 0, 0, b"abcdef")]


def test_differing_overlap_is_counted_and_equal_is_not():
    reassembler = Reassembler([80])
    feed(reassembler, talk().data(b"bcd", offset=1).data(b"bcdef", offset=1).packets)
    assert reassembler.statistics().overlaps_differing == 0
    feed(reassembler, Conversation(client_isn=1000).data(b"cXe", offset=2).packets)
    assert reassembler.statistics().overlaps_differing == 1


def test_segment_between_held_ones_fills_only_the_holes():
    conversation = talk().data(b"b", offset=1).data(b"d", offset=3).data(b"f", offset=5)
    conversation.data(b"-c-e-", offset=1).data(b"a", offset=0)
    assert told(conversation, overlap="first") == [("data", 0, 0, b"abcdef")]


def test_segment_inside_a_held_one_splits_it_if_it_wins():
    conversation = talk().data(b"bcdef", offset=1).data(b"XX", offset=2).data(b"a", offset=0)
    assert told(conversation, overlap="last") == [("data", 0, 0, b"abXXef")]


def test_in_order_segment_over_held_ones_obeys_the_policy():
    conversation = talk().data(b"bb", offset=2).data(b"dd", offset=6).data(b"aaXXccXXee", offset=0)
    assert told(conversation, overlap="first") == [("data", 0, 0, b"aabbccddee")]
    assert told(conversation, overlap="linux") == [("data", 0, 0, b"aaXXccXXee")]


# ---- FIN


@every_isn
def test_fin_before_the_last_data_ends_the_stream_when_it_is_filled(isn):
    conversation = talk(client_isn=isn).fin(offset=6).data(b"def", offset=3).data(b"abc", offset=0)
    assert told(conversation) == [("data", 0, 0, b"abcdef"), ("ended", 0, 6)]


def test_data_beyond_the_fin_is_ignored():
    conversation = talk().data(b"abc").fin().data(b"XX", offset=3).data(b"cXX", offset=2)
    assert told(conversation) == [("data", 0, 0, b"abc"), ("ended", 0, 3)]


def test_data_held_beyond_a_fin_in_order_is_dropped():
    conversation = talk().data(b"XX", offset=7).fin(payload=b"abc", offset=0)
    reassembler = Reassembler([80])
    assert story(feed(reassembler, conversation.packets))[1:] == [("data", 0, 0, b"abc"), ("ended", 0, 3)]
    assert reassembler.statistics().held_bytes == 0


def test_half_closed_flow_goes_on():
    conversation = talk().data(b"ask").fin().data(b"ans", direction=1).data(b"wer", direction=1).fin(direction=1)
    assert told(conversation) == [
        ("data", 0, 0, b"ask"), ("ended", 0, 3), ("data", 1, 0, b"answer"), ("ended", 1, 6), ("closed", "fin"),
    ]  # fmt: skip


def test_flow_without_bytes_has_no_events():
    reassembler = Reassembler([80])
    assert feed(reassembler, talk().close().packets) == []
    statistics = reassembler.statistics()
    assert (statistics.flows_seen, statistics.flows_opened, statistics.flows_empty) == (1, 0, 1)


def test_fin_of_the_other_side_before_the_first_byte_is_told_after_opening():
    conversation = talk().fin(direction=1).data(b"ask").fin()
    assert told(conversation) == [("ended", 1, 0), ("data", 0, 0, b"ask"), ("ended", 0, 3), ("closed", "fin")]


# ---- SYN


def send_backwards(conversation):
    """Both streams, each with its second half first, and nothing acknowledged: what base each has shows."""
    for offset, halves in [(2, (b"bb", b"dd")), (0, (b"aa", b"cc"))]:
        for direction in (0, 1):
            conversation.segment(direction, offset=offset, payload=halves[direction], acked=0)


def test_data_in_the_syn_is_the_first():
    conversation = Conversation().segment(0, offset=-1, flags=SYN, payload=b"GET /")
    conversation.segment(1, offset=-1, flags=SYN | 0x10, acked=5).data(b" HTTP", offset=5)
    assert told(conversation) == [("data", 0, 0, b"GET / HTTP")]


def test_data_in_the_syn_that_was_not_accepted_comes_again():
    conversation = Conversation().segment(0, offset=-1, flags=SYN, payload=b"GET /")
    conversation.segment(1, offset=-1, flags=SYN | 0x10, acked=0).data(b"GET / HTTP", offset=0)
    assert told(conversation) == [("data", 0, 0, b"GET / HTTP")]


def test_repeated_syn_changes_nothing():
    conversation = Conversation().syn().handshake().data(b"abc").segment(0, offset=-1, flags=SYN).data(b"def", offset=3)
    assert told(conversation) == [("data", 0, 0, b"abcdef")]


def test_simultaneous_open_has_both_streams():
    conversation = Conversation().syn().segment(1, offset=-1, flags=SYN)
    conversation.segment(0, offset=-1, flags=SYN | 0x10).segment(1, offset=-1, flags=SYN | 0x10)
    send_backwards(conversation)
    assert told(conversation) == [("data", 0, 0, b"aabb"), ("data", 1, 0, b"ccdd")]


def test_syn_ack_alone_fixes_both_streams_and_who_is_client():
    conversation = Conversation(client=("192.0.2.1", 79)).handshake()
    send_backwards(conversation)
    events = feed(Reassembler(), conversation.packets[1:])
    assert story(events)[1:] == [("data", 0, 0, b"aabb"), ("data", 1, 0, b"ccdd")]
    assert events[0].flow.client == ("192.0.2.1", 79)
    assert events[0].flow.began_with_syn


def test_of_two_answers_to_one_syn_the_last_before_the_client_speaks_counts():
    conversation = Conversation(server_isn=777).handshake()
    conversation.server_isn = 5000
    conversation.packets.pop()
    conversation.segment(1, offset=-1, flags=SYN | 0x10).segment(0).data(b"ask")
    conversation.server_isn = 777
    conversation.segment(1, offset=-1, flags=SYN | 0x10)
    conversation.server_isn = 5000
    assert told(conversation.data(b"answer", direction=1, offset=0)) == [
        ("data", 0, 0, b"ask"), ("data", 1, 0, b"answer"),
    ]  # fmt: skip


# ---- joined in the middle


@every_isn
def test_joined_flow_starts_with_the_first_bytes_seen(isn):
    conversation = Conversation(client_isn=isn).data(b"middle", offset=1000).data(b"end", offset=1006)
    reassembler = Reassembler([80])
    events = feed(reassembler, conversation.packets)
    assert story(events)[1:] == [("data", 0, 0, b"middleend")]
    assert not events[0].flow.began_with_syn
    assert reassembler.statistics().flows_joined == 1


def test_bytes_from_before_a_joined_flow_are_dropped():
    conversation = Conversation().data(b"middle", offset=100).data(b"before", offset=50).data(b"xxmiddle++", offset=98)
    reassembler = Reassembler([80])
    assert story(feed(reassembler, conversation.packets))[1:] == [("data", 0, 0, b"middle++")]
    assert reassembler.statistics().retransmitted_bytes == 14


@pytest.mark.parametrize("flags", [0x10, FIN | 0x10, RST], ids=["ack", "fin", "rst"])
def test_packet_without_payload_begins_no_flow(flags):
    reassembler = Reassembler([80])
    feed(reassembler, Conversation().segment(0, flags=flags).packets)
    assert reassembler.statistics().flows_seen == 0


# ---- holes that become gaps


def with_hole(**fields):
    return talk(**fields).data(b"aa").data(b"cc", offset=4)


GAP_STORY = [("data", 0, 0, b"aa"), ("gap", 0, 2, 2), ("data", 0, 4, b"cc")]


def test_hole_is_a_gap_when_its_time_is_over():
    conversation = with_hole(step_ns=0)
    reassembler = Reassembler([80], gap_timeout_s=2.0)
    events = feed(reassembler, conversation.packets)
    assert reassembler.expire(START_NS + 2 * SECOND_NS - 1) == []
    events += reassembler.expire(START_NS + 2 * SECOND_NS)
    assert story(events)[1:] == GAP_STORY
    assert (reassembler.statistics().gaps, reassembler.statistics().gap_bytes) == (1, 2)


def test_packet_of_another_flow_makes_time_pass():
    conversation = with_hole(step_ns=0)
    other = Conversation(client=("192.0.2.9", 1), now_ns=START_NS + 2 * SECOND_NS).syn()
    assert told(Conversation(packets=conversation.packets + other.packets)) == GAP_STORY


def test_hole_that_shrinks_gets_new_time():
    conversation = with_hole(step_ns=0)
    reassembler = Reassembler([80], gap_timeout_s=2.0)
    feed(reassembler, conversation.packets)
    conversation.now_ns += SECOND_NS
    feed(reassembler, conversation.data(b"b", offset=2).packets[-1:])
    assert reassembler.expire(START_NS + 3 * SECOND_NS - 1) == []
    assert story(reassembler.expire(START_NS + 3 * SECOND_NS)) == [("gap", 0, 3, 1), ("data", 0, 4, b"cc")]


def test_hole_behind_a_gap_has_a_time_of_its_own():
    conversation = with_hole(step_ns=0)
    conversation.now_ns += SECOND_NS
    conversation.data(b"ee", offset=8)
    reassembler = Reassembler([80], gap_timeout_s=2.0)
    feed(reassembler, conversation.packets)
    assert story(reassembler.expire(START_NS + 2 * SECOND_NS)) == [("gap", 0, 2, 2), ("data", 0, 4, b"cc")]
    assert story(reassembler.expire(START_NS + 4 * SECOND_NS)) == [("gap", 0, 6, 2), ("data", 0, 8, b"ee")]


def test_late_bytes_of_a_gap_are_dropped():
    conversation = with_hole().ack(direction=1, acked=6).data(b"bb", offset=2).data(b"dd", offset=6)
    assert told(conversation) == [*GAP_STORY[:-1], ("data", 0, 4, b"ccdd")]


@every_isn
def test_acknowledgement_beyond_a_hole_makes_it_a_gap_at_once(isn):
    assert told(with_hole(client_isn=isn).ack(direction=1, acked=6)) == GAP_STORY


def test_acknowledgement_up_to_the_held_bytes_is_enough():
    assert told(with_hole().ack(direction=1, acked=4)) == GAP_STORY


def test_acknowledgement_of_a_part_of_the_hole_proves_nothing():
    assert told(with_hole().ack(direction=1, acked=3)) == [("data", 0, 0, b"aa")]


@pytest.mark.parametrize("acked", [7, 1000, 2**30])
def test_acknowledgement_of_what_nobody_saw_is_not_believed(acked):
    assert told(with_hole().ack(direction=1, acked=acked)) == [("data", 0, 0, b"aa")]


def test_acknowledgement_before_the_held_bytes_is_remembered():
    conversation = talk().data(b"aa").ack(direction=1, acked=4).data(b"cc", offset=4)
    assert told(conversation) == GAP_STORY


def test_acknowledgement_in_a_data_segment_counts():
    conversation = with_hole().segment(1, payload=b"answer", acked=6)
    assert told(conversation) == [*GAP_STORY, ("data", 1, 0, b"answer")]


def test_acknowledged_fin_behind_a_hole_ends_the_stream():
    conversation = talk().data(b"aa").fin(offset=4).ack(direction=1, acked=5)
    assert told(conversation) == [("data", 0, 0, b"aa"), ("gap", 0, 2, 2), ("ended", 0, 4)]


def test_fin_behind_a_hole_comes_out_when_its_time_is_over():
    reassembler = Reassembler([80], gap_timeout_s=2.0)
    events = feed(reassembler, talk(step_ns=0).data(b"aa").fin(offset=4).packets)
    events += reassembler.expire(START_NS + 2 * SECOND_NS)
    assert story(events)[1:] == [("data", 0, 0, b"aa"), ("gap", 0, 2, 2), ("ended", 0, 4)]


def test_flush_brings_everything_out():
    conversation = with_hole().data(b"ee", offset=8).data(b"yy", direction=1, offset=3)
    assert told(conversation, then_flush=True) == [
        *GAP_STORY, ("gap", 0, 6, 2), ("data", 0, 8, b"ee"), ("gap", 1, 0, 3), ("data", 1, 3, b"yy"),
        ("closed", "flushed"),
    ]  # fmt: skip


def test_flushed_reassembler_begins_anew():
    reassembler = Reassembler([80])
    feed(reassembler, with_hole().packets)
    reassembler.flush()
    assert reassembler.statistics().memory_bytes == 0
    events = feed(reassembler, talk().data(b"again").packets)
    assert story(events) == [("opened",), ("data", 0, 0, b"again")]
    assert events[0].flow.id == 2


# ---- who is who


def flow_of(conversation, **settings):
    return feed(Reassembler(**settings), conversation.packets)[0].flow


def test_configured_port_is_the_server():
    conversation = Conversation(("192.0.2.1", 7), ("192.0.2.2", 8080)).data(b"x", direction=1)
    assert flow_of(conversation, ports=[8080]).server == ("192.0.2.2", 8080)
    assert flow_of(conversation, ports=[7]).server == ("192.0.2.1", 7)


def test_between_two_configured_ports_the_syn_decides():
    conversation = Conversation(("192.0.2.1", 80), ("192.0.2.2", 8080)).handshake().data(b"x", direction=1)
    assert flow_of(conversation, ports=[80, 8080]).client == ("192.0.2.1", 80)
    conversation.packets = conversation.packets[3:]
    assert flow_of(conversation, ports=[80, 8080]).client == ("192.0.2.2", 8080)


def test_without_ports_the_lower_one_is_the_server():
    conversation = Conversation(("192.0.2.1", 40000), ("192.0.2.2", 30000)).data(b"x", direction=1)
    assert flow_of(conversation).client == ("192.0.2.1", 40000)


def test_between_equal_ports_the_first_to_speak_is_the_client():
    conversation = Conversation(("192.0.2.1", 179), ("192.0.2.2", 179)).data(b"x", direction=1)
    assert flow_of(conversation).client == ("192.0.2.2", 179)


def test_without_ports_the_sender_of_the_syn_is_the_client():
    conversation = Conversation(("192.0.2.1", 80), ("192.0.2.2", 40000)).syn().data(b"x")
    assert flow_of(conversation).client == ("192.0.2.1", 80)


def test_other_ports_are_counted():
    reassembler = Reassembler([443, 8443])
    assert feed(reassembler, talk().data(b"x").packets) == []
    assert reassembler.statistics().packets_other_port == 4
    assert reassembler.statistics().flows_seen == 0


# ---- one direction only


def test_one_direction_ignores_the_server_and_closes_with_the_client():
    conversation = talk().data(b"ask").data(b"answer", direction=1).fin().fin(direction=1)
    reassembler = Reassembler([80], both_directions=False)
    assert story(feed(reassembler, conversation.packets)) == [
        ("opened",), ("data", 0, 0, b"ask"), ("ended", 0, 3), ("closed", "fin"),
    ]  # fmt: skip
    assert reassembler.statistics().packets_other_port == 3


def test_one_direction_between_two_configured_ports_ignores_the_server():
    conversation = Conversation(("192.0.2.1", 80), ("192.0.2.2", 8080)).handshake()
    conversation.data(b"answer", direction=1).data(b"ask")
    reassembler = Reassembler([80, 8080], both_directions=False)
    assert story(feed(reassembler, conversation.packets)) == [("opened",), ("data", 0, 0, b"ask")]
    assert reassembler.statistics().packets_other_port == 2


def test_one_direction_is_not_moved_by_acknowledgements():
    conversation = with_hole().ack(direction=1, acked=6)
    assert told(conversation, both_directions=False) == [("data", 0, 0, b"aa")]


# ---- ignored flows


def test_ignored_flow_is_silent_and_holds_nothing():
    reassembler = Reassembler([80])
    conversation = with_hole()
    flow = feed(reassembler, conversation.packets)[0].flow
    assert reassembler.statistics().held_bytes == 2
    reassembler.ignore(flow)
    assert reassembler.statistics().held_bytes == 0
    conversation.packets.clear()
    conversation.data(b"more", offset=6).data(b"far", offset=1000).close()
    assert feed(reassembler, conversation.packets) == []
    assert reassembler.expire(START_NS + 60 * SECOND_NS) == []
    assert reassembler.statistics().flows_now == 0
    assert reassembler.flush() == []


def test_ignoring_a_closed_or_foreign_flow_does_nothing():
    reassembler, other = Reassembler([80]), Reassembler([80])
    conversation = talk().data(b"ask").close()
    closed = feed(reassembler, conversation.packets)[0].flow
    reassembler.ignore(closed)
    flow = feed(other, talk().data(b"ask").packets)[0].flow
    reassembler.ignore(flow)
    assert story(other.flush()) == [("closed", "flushed")]


def test_ignored_ports_used_anew_are_followed():
    reassembler = Reassembler([80])
    conversation = talk().data(b"first")
    reassembler.ignore(feed(reassembler, conversation.packets)[0].flow)
    again = Conversation(client_isn=777_777).handshake().data(b"second")
    assert story(feed(reassembler, again.packets)) == [("opened",), ("data", 0, 0, b"second")]


def test_context_is_the_callers():
    flow = feed(Reassembler([80]), talk().data(b"x").packets)[0].flow
    assert flow.context is None
    flow.context = "anything"
    assert flow.context == "anything"


def test_several_batches_of_a_call_are_told_like_one():
    packets = talk().data(b"abc").data(b"def").data(b"ghi").packets
    batches = [pack_batch([packet], LINKTYPE_ETHERNET) for packet in packets]
    events = Reassembler(ports=[80]).feed(*batches)
    assert [event.data for event in events if isinstance(event, StreamData)] == [b"abcdefghi"]
    assert Reassembler(ports=[80]).feed() == []


def test_batch_with_a_broken_index_is_refused_with_all_that_came_along():
    good = pack_batch(talk().data(b"abc").packets, LINKTYPE_ETHERNET)
    reassembler = Reassembler(ports=[80])
    with pytest.raises(ValueError, match="16-byte records"):
        reassembler.feed(good, good._replace(index=good.index[:-1]))
    assert reassembler.statistics().packets == 0


def test_hole_in_front_of_a_fin_ages_from_when_the_fin_came():
    conversation = talk().data(b"x", offset=1).fin(offset=3)
    reassembler = Reassembler(ports=[80])
    feed(reassembler, conversation.packets)
    assert story(reassembler.expire(conversation.now_ns + 3 * 10**9)) == [
        ("opened",),
        ("gap", 0, 0, 1),
        ("data", 0, 1, b"x"),
        ("gap", 0, 2, 1),
        ("ended", 0, 3),
    ]


def test_late_syn_in_the_same_batch_does_not_make_a_joined_flow_whole():
    conversation = Conversation().data(b"x")
    conversation.segment(1, offset=-1, flags=SYN | ACK)
    reassembler = Reassembler(ports=[80])
    events = feed(reassembler, conversation.packets)
    assert not events[0].flow.began_with_syn
    assert reassembler.statistics().flows_joined == 1


@pytest.mark.parametrize("payload", [b"even", b"odd", b""])
@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_wrong_checksum_is_dropped_only_if_asked(payload, ipv6):
    ends = {"client": CLIENT6, "server": SERVER6} if ipv6 else {}
    packets = talk(**ends).data(payload or b"x").packets
    time_ns, frame = packets[-1]
    broken = (time_ns, frame[:-1] + bytes([frame[-1] ^ 1]))
    verifying = Reassembler(ports=[80], verify_checksums=True)
    assert [event for event in feed(verifying, [*packets[:-1], broken]) if isinstance(event, StreamData)] == []
    assert verifying.statistics().packets_bad_checksum == 1
    assert story(feed(verifying, packets[-1:])) == [("opened",), ("data", 0, 0, payload or b"x")]
    assert verifying.statistics().packets_bad_checksum == 1
    assert feed(Reassembler(ports=[80]), [*packets[:-1], broken])
