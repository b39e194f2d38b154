"""Large runs of bytes, which go from the packets to the socket as they are."""

from __future__ import annotations

import gc
import random
import socket
from typing import TYPE_CHECKING

import pytest

from gopher._fastpath import Batch, Reassembler, StreamData, pack_batch
from gopher._pump import Budget, Connection, Ledger, Pump
from gopher.http.framing import RequestFramer
from gopher.upstreams.tcp import Address
from tests.support.packets import LINKTYPE_ETHERNET, Conversation, ethernet, ipv4_fragments, tcp

if TYPE_CHECKING:
    from gopher._runs import ByteRun

SEGMENT = 1400


def body(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def conversation(payload: bytes, step: int = SEGMENT) -> Conversation:
    talk = Conversation(window_scale=9).handshake()
    for at in range(0, len(payload), step):
        talk.data(payload[at : at + step])
    return talk


def data_events(reassembler: Reassembler, *batches: Batch) -> list[StreamData]:
    return [event for event in reassembler.feed(*batches) if isinstance(event, StreamData)]


def run_of(payload: bytes, step: int = SEGMENT) -> ByteRun:
    [event] = data_events(Reassembler([80]), pack_batch(conversation(payload, step).packets, LINKTYPE_ETHERNET))
    assert event.run is not None
    return event.run


def test_small_run_is_bytes_and_a_large_one_stays_in_its_packets() -> None:
    [small] = data_events(Reassembler([80]), pack_batch(conversation(body(10_000)).packets, LINKTYPE_ETHERNET))
    assert small.run is None
    assert small.data == body(10_000)
    run = run_of(body(100_000))
    assert len(run) == run.length == 100_000
    assert bytes(run) == body(100_000)
    assert run.join() is run.join()
    assert run.join_from(70_000) == body(100_000)[70_000:]


@pytest.mark.parametrize("offset", [0, 1, SEGMENT, SEGMENT + 1, 49_999, 50_000])
def test_run_joined_from_any_place(offset: int) -> None:
    run = run_of(body(50_000))
    assert run.join_from(offset) == body(50_000)[offset:]


def test_run_spans_batches_and_keeps_them_alive() -> None:
    packets = conversation(body(60_000)).packets
    [event] = data_events(
        Reassembler([80]), pack_batch(packets[:20], LINKTYPE_ETHERNET), pack_batch(packets[20:], LINKTYPE_ETHERNET)
    )
    del packets
    gc.collect()
    assert event.run is not None
    assert event.data == body(60_000)


def test_run_holds_its_buffers_no_longer_than_it_lives() -> None:
    batch = pack_batch(conversation(body(60_000)).packets, LINKTYPE_ETHERNET)
    memory = bytearray(batch.data)
    events = data_events(Reassembler([80]), batch._replace(data=memory))
    with pytest.raises(BufferError):
        memory.append(0)
    events.clear()
    memory.append(0)


def test_run_that_was_held_out_of_order_is_copied() -> None:
    packets = conversation(body(60_000)).packets
    packets[5], packets[30] = packets[30], packets[5]
    reassembler = Reassembler([80])
    first = data_events(reassembler, pack_batch(packets[:20], LINKTYPE_ETHERNET))
    [event] = data_events(reassembler, pack_batch(packets[20:], LINKTYPE_ETHERNET))
    assert event.run is None
    assert b"".join(each.data for each in [*first, event]) == body(60_000)


def test_run_in_fragments_is_copied() -> None:
    talk = Conversation().handshake()
    segment = tcp(talk.client[1], 80, seq=1001, ack=5001, payload=body(30_000))
    pieces = ipv4_fragments(segment, talk.client[0], talk.server[0], identification=1, size=1400)
    packets = [*talk.packets, *((talk.now_ns, ethernet(piece)) for piece in pieces)]
    [event] = data_events(Reassembler([80]), pack_batch(packets, LINKTYPE_ETHERNET))
    assert event.run is None
    assert event.data == body(30_000)


@pytest.mark.parametrize("step", [100, 1400, 65_000])
def test_framing_a_run_is_framing_its_bytes(step: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n"
    stream = b"\r\n" + (head + bytes(30_000)) * 3 + b"GET / HTTP/1.1\r\nHo"
    whole, pieces = RequestFramer(), RequestFramer()
    assert pieces.feed(run_of(stream, step)) == whole.feed(stream) == 2
    assert (pieces.started, pieces.completed, pieces.in_message) == (4, 3, True)
    assert RequestFramer().feed(run_of(bytes(20_000), step)) == -1


@pytest.mark.parametrize("step", [1400, 60_000])
def test_run_that_the_socket_takes_in_part_arrives_whole(step: int) -> None:
    """Of more pieces than one call of the system takes, to a peer that does not read at first."""
    payload = body(8 << 20)
    run = run_of(payload, step)
    pump = Pump()
    ledger = Ledger(Budget(1 << 30), 1 << 30, 1 << 30)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection = Connection(pump, ledger, RequestFramer(), 0, None)
        address = Address(socket.AF_INET, *listener.getsockname())
        assert connection.dial(address.family, address.sockaddr) == 0
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(10)
            ledger.captured = len(run)
            assert connection.write(run) == 0
            assert 0 < connection.queued < len(run)
            assert ledger.captured == ledger.delivered + ledger.pending
            received = bytearray()
            while len(received) < len(payload):
                received += peer.recv(1 << 20)
                pump.serve()
        assert received == payload
        assert (ledger.delivered, ledger.pending, connection.queued) == (len(payload), 0, 0)
        connection.hang_up(True)
