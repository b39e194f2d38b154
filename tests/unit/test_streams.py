"""A capture file in, whole streams out."""

import os
from pathlib import Path

import pytest

from gopher.errors import CaptureError
from gopher.streams import Stream, read_streams
from tests.support.packets import CLIENT, CLIENT6, SERVER, SERVER6, Conversation, pcap_file, pcapng_file

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
RESPONSE = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.fixture
def capture(tmp_path):
    """Write packets to a capture file and say where it is."""

    def write(*conversations, contents_of=pcap_file):
        path = tmp_path / "capture"
        path.write_bytes(contents_of([packet for each in conversations for packet in each.packets]))
        return path

    return write


def exchange(**options):
    return Conversation(**options).handshake().data(REQUEST).data(RESPONSE, direction=1)


@pytest.mark.parametrize(("client", "server"), [(CLIENT, SERVER), (CLIENT6, SERVER6)])
@pytest.mark.parametrize("contents_of", [pcap_file, pcapng_file])
def test_connection_gives_both_ends_bytes(capture, contents_of, client, server):
    path = capture(exchange(client=client, server=server).close(), contents_of=contents_of)
    assert list(read_streams(path)) == [Stream(client, server, REQUEST, RESPONSE, gaps=0, complete=True)]


def test_path_may_be_a_string(capture):
    assert len(list(read_streams(str(capture(exchange()))))) == 1


def test_reset_ends_a_complete_stream(capture):
    [stream] = read_streams(capture(exchange().rst()))
    assert stream.complete


def test_stream_without_end_is_incomplete(capture):
    [stream] = read_streams(capture(exchange()))
    assert (stream.request, stream.response, stream.complete) == (REQUEST, RESPONSE, False)


def test_stream_without_syn_is_incomplete_and_the_lower_port_is_the_server(capture):
    conversation = exchange().close()
    del conversation.packets[:3]
    [stream] = read_streams(capture(conversation))
    assert (stream.client, stream.server, stream.request, stream.complete) == (CLIENT, SERVER, REQUEST, False)


def test_gap_is_counted_and_the_rest_joined(capture):
    conversation = Conversation().handshake().data(b"one").data(b"two").data(b"three").close()
    del conversation.packets[4]
    [stream] = read_streams(capture(conversation))
    assert (stream.request, stream.gaps, stream.complete) == (b"onethree", 1, False)


def test_hole_stays_open_for_as_long_as_a_sender_retransmits(capture):
    conversation = Conversation().handshake().data(b"three", offset=6)
    conversation.now_ns += 600 * 10**9
    conversation.data(b"onetwo", offset=0)
    [stream] = read_streams(capture(conversation))
    assert (stream.request, stream.gaps) == (b"onetwothree", 0)


def test_streams_come_in_the_order_of_closing(capture):
    long, short = exchange(client=("192.0.2.1", 40001)).close(), exchange(client=("192.0.2.1", 40002)).close()
    interleaved = Conversation(packets=[*long.packets[:5], *short.packets, *long.packets[5:]])
    assert [stream.client[1] for stream in read_streams(capture(interleaved))] == [40002, 40001]


def test_reused_four_tuple_gives_two_streams_in_order(capture):
    path = capture(exchange().close(), Conversation(client_isn=10**9).handshake().data(b"second").close())
    assert [stream.request for stream in read_streams(path)] == [REQUEST, b"second"]


def test_ports_select_servers(capture):
    path = capture(exchange(), exchange(server=("192.0.2.2", 8080)))
    assert [stream.server[1] for stream in read_streams(path, ports=[8080])] == [8080]


def test_connection_without_payload_is_left_out(capture):
    assert list(read_streams(capture(Conversation().handshake().close()))) == []


def test_file_that_ends_inside_a_packet_is_read_up_to_it(capture):
    path = capture(exchange())
    path.write_bytes(path.read_bytes()[:-1])
    [stream] = read_streams(path)
    assert (stream.request, stream.response) == (REQUEST, b"")


def test_file_that_is_no_capture_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not packets, but words, and enough of them")
    with pytest.raises(CaptureError):
        next(read_streams(path))


def test_reader_that_stops_early_leaves_no_file_open(capture):
    path = capture(exchange().close(), exchange(client=("192.0.2.1", 40001)))
    streams = read_streams(path)
    next(streams)
    assert str(path) in open_files()
    streams.close()
    assert str(path) not in open_files()


def open_files():
    descriptors = Path("/proc/self/fd")
    return {os.readlink(descriptor) for descriptor in descriptors.iterdir() if descriptor.exists()}
