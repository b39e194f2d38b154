"""Links to a relay: what goes over them, and that their accounts are about the client's bytes alone."""

import select
import socket
from contextlib import ExitStack, closing

import pytest

from gopher._fastpath import CLIENT_TO_SERVER, SERVER_TO_CLIENT, Reassembler, pack_batch
from gopher._pump import Budget, Pump
from gopher.config import MirrorConfig, UpstreamConfig
from gopher.link import LinkInfo, RecordDecoder, RecordType, decode_header
from gopher.upstreams.relay import RelayUpstream
from gopher.upstreams.stream import MirroredStream
from gopher.upstreams.tcp import Address
from tests.support.packets import LINKTYPE_ETHERNET, Conversation

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CAPTURE_ID = b"capture!"
HEADER_BYTES = 62
DEADLINE_S = 10


def opened_flow(*, midway=False):
    conversation = Conversation() if midway else Conversation().handshake()
    opened = Reassembler([80]).feed(pack_batch(conversation.data(b"x").packets, LINKTYPE_ETHERNET))[0]
    return opened.flow


class Relay:
    """The other end of one link."""

    def __init__(self, listener):
        self.socket, _ = listener.accept()
        self.socket.settimeout(DEADLINE_S)
        self.received = b""

    def read(self, length):
        """Until that many bytes are there in all."""
        while len(self.received) < length:
            data = self.socket.recv(1 << 20)
            assert data, self.received
            self.received += data

    def read_end(self):
        """Until the end. Returns whether it was a reset."""
        try:
            while data := self.socket.recv(1 << 20):
                self.received += data
        except ConnectionResetError:
            return True
        return False

    @property
    def header(self):
        return decode_header(self.received)[0]

    @property
    def rest(self):
        return self.received[decode_header(self.received)[1] :]

    @property
    def records(self):
        return RecordDecoder().feed(self.rest)

    def stream(self, direction):
        return b"".join(record.data for record in self.records if record.direction == direction)


class Stage:
    """A relay upstream that dials a listener on loopback, and one stream that was captured for it."""

    def __init__(self, *, framed=True, midway=False, connection_memory_bytes=1 << 20):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE_S)
        port = self.listener.getsockname()[1]
        self.relays = []
        self.pump = Pump()
        self.now_s = 100.0
        self.total = Budget(1 << 30)
        config = UpstreamConfig(name="relay", scheme="relay", host="127.0.0.1", port=port)
        self.upstream = RelayUpstream(
            config,
            MirrorConfig(upstreams=(config,), connection_memory_bytes=connection_memory_bytes),
            self.total,
            [Address(socket.AF_INET, "127.0.0.1", port)],
            self.pump,
            framed=framed,
            capture_id=CAPTURE_ID,
            clock=lambda: self.now_s,
        )
        self.upstream.time_ns = 77
        self.flow = opened_flow(midway=midway)
        self.copy = self.upstream.copy(self.flow)
        self.stream = MirroredStream([self.copy], midway=midway)

    def accept(self):
        relay = Relay(self.listener)
        self.relays.append(relay)
        return relay

    def serve(self):
        """Serve the next batch that becomes ready, decisions included."""
        assert select.select([self.pump.fileno()], [], [], DEADLINE_S)[0], "nothing became ready"
        self.serve_ready()

    def serve_ready(self):
        for connection, outcome in self.pump.serve()[1]:
            self.upstream.outcome(connection, outcome)

    def drain(self, relay):
        """Serve while the relay reads, until nothing is queued."""
        while self.upstream.ledger.queued:
            readable, _, _ = select.select([self.pump.fileno(), relay.socket], [], [], DEADLINE_S)
            assert readable, "nothing became ready"
            if relay.socket in readable:
                relay.received += relay.socket.recv(1 << 20)
            self.serve_ready()
            self.check()

    def fill(self):
        """Write until something is queued. Returns what was written: no HTTP."""
        written = b""
        while self.copy.connection is None or not self.copy.connection.queued:
            assert self.stream.write(b"\0" * 50_000) is None
            written += b"\0" * 50_000
        return written

    def settle(self):
        while self.upstream.connections_pending:
            self.serve()

    def check(self):
        account = self.upstream.account()
        assert account.captured_bytes == account.delivered_bytes + account.shed_bytes + account.pending_bytes
        assert account.shed_bytes == sum(account.shed.values())
        assert min(account.delivered_bytes, account.pending_bytes, *account.shed.values(), 0) == 0
        if not self.upstream.connections_pending:
            assert account.pending_bytes == self.upstream.ledger.queued == self.total.used == 0

    def close(self):
        self.check()
        self.listener.close()
        for relay in self.relays:
            relay.socket.close()


@pytest.fixture
def make_stage():
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(closing(Stage(**options)))


@pytest.fixture
def stage(make_stage):
    return make_stage()


def kinds(relay):
    return [(record.type.name, record.direction) for record in relay.records]


# -- framed ------------------------------------------------------------------------------------------------------------


def test_framed_link_says_who_and_carries_both_directions_in_order(stage):
    stage.upstream.time_ns = 1000
    stage.stream.write(REQUEST)
    relay = stage.accept()
    stage.upstream.time_ns = 2000
    stage.copy.answer(ANSWER)
    stage.upstream.time_ns = 3000
    stage.stream.write(REQUEST)
    stage.stream.finish()
    stage.copy.end(CLIENT_TO_SERVER)
    stage.copy.answer(ANSWER)
    stage.copy.end(SERVER_TO_CLIENT)
    stage.stream.close()
    assert not relay.read_end()
    assert relay.header.client == stage.flow.client
    assert relay.header.server == stage.flow.server
    assert relay.header.unique_id == CAPTURE_ID + stage.flow.id.to_bytes(8, "big")
    assert relay.header.link == LinkInfo(framed=True, joined=False, start_ns=1000)
    assert [tuple(record) for record in relay.records] == [
        (RecordType.REQUEST, CLIENT_TO_SERVER, 1000, REQUEST, len(REQUEST)),
        (RecordType.RESPONSE, SERVER_TO_CLIENT, 2000, ANSWER, len(ANSWER)),
        (RecordType.REQUEST, CLIENT_TO_SERVER, 3000, REQUEST, len(REQUEST)),
        (RecordType.FIN, CLIENT_TO_SERVER, 3000, b"", 0),
        (RecordType.RESPONSE, SERVER_TO_CLIENT, 3000, ANSWER, len(ANSWER)),
        (RecordType.FIN, SERVER_TO_CLIENT, 3000, b"", 0),
    ]
    relay.socket.close()
    stage.settle()
    account = stage.upstream.account()
    assert account.captured_bytes == account.delivered_bytes == 2 * len(REQUEST)
    assert account.connections.delivered == 1
    assert account.dials == 1


def test_framed_link_stays_after_the_client_until_the_connection_is_over(stage):
    stage.stream.write(REQUEST)
    relay = stage.accept()
    stage.stream.finish()
    stage.copy.answer(ANSWER)
    relay.read(HEADER_BYTES + 16 + len(REQUEST) + 16 + len(ANSWER))
    assert stage.upstream.connections_pending == 1
    stage.stream.close()
    assert not relay.read_end()
    assert kinds(relay) == [("REQUEST", 0), ("RESPONSE", 1)]
    stage.now_s += 10
    stage.upstream.tick(stage.now_s)
    assert stage.upstream.account().connections.delivered == 1


def test_accounts_count_the_clients_bytes_while_records_are_sent_in_part(make_stage):
    stage = make_stage(connection_memory_bytes=1 << 30)
    written = stage.fill()
    relay = stage.accept()
    for _ in range(3):
        stage.copy.answer(b"a" * 70_000)
        stage.stream.write(b"\0" * 70_000)
        written += b"\0" * 70_000
    ledger = stage.upstream.ledger
    assert 0 < ledger.pending < ledger.queued - 3 * 70_000
    assert ledger.captured == len(written)
    stage.check()
    stage.stream.close()
    stage.drain(relay)
    assert ledger.delivered == len(written)
    assert not relay.read_end()
    assert relay.stream(CLIENT_TO_SERVER) == written
    assert relay.stream(SERVER_TO_CLIENT) == b"a" * 210_000
    relay.socket.close()
    stage.settle()
    stage.check()
    assert stage.upstream.account().connections.delivered == 1
    stage.listener.close()


def test_answers_without_room_are_a_gap_and_the_clients_bytes_go_through(make_stage):
    stage = make_stage(connection_memory_bytes=200_000)
    written = stage.fill()
    relay = stage.accept()
    while stage.copy.takes_answers:
        stage.copy.answer(b"a" * 60_000)
    stage.copy.answer(b"b" * 60_000)
    stage.copy.answer_gap(5)
    assert stage.upstream.account().answers_missed_bytes == 60_000
    assert stage.stream.write(b"\0" * 10_000) is None
    stage.stream.finish()
    stage.copy.end(SERVER_TO_CLIENT)
    stage.stream.close()
    stage.drain(relay)
    assert not relay.read_end()
    assert relay.stream(CLIENT_TO_SERVER) == written + b"\0" * 10_000
    assert b"b" not in relay.stream(SERVER_TO_CLIENT)
    ends = [(record.type.name, record.direction, record.length) for record in relay.records[-3:]]
    assert ends == [("REQUEST", 0, 10_000), ("GAP", 1, 60_005), ("FIN", 1, 0)]
    relay.socket.close()
    stage.settle()
    assert stage.upstream.account().connections.delivered == 1


def test_answers_go_on_after_a_gap_for_want_of_room(make_stage):
    stage = make_stage(connection_memory_bytes=200_000)
    stage.fill()
    relay = stage.accept()
    while stage.copy.takes_answers:
        stage.copy.answer(b"a" * 60_000)
    stage.copy.answer(b"b" * 7)
    stage.drain(relay)
    stage.copy.answer(b"c")
    stage.stream.finish()
    stage.stream.close()
    assert not relay.read_end()
    ends = [(record.type.name, record.length) for record in relay.records[-2:]]
    assert ends == [("GAP", 7), ("RESPONSE", 1)]
    relay.socket.close()
    stage.settle()


def test_gap_of_the_client_is_told_and_the_link_goes_on_at_the_next_request(stage):
    stage.stream.write(REQUEST + b"POST / HTTP/1.1\r\nContent-Le")
    stage.stream.gap(100)
    stage.stream.write(b"tail of it")
    stage.stream.gap(3)
    stage.stream.write(b"more" + REQUEST)
    stage.stream.finish()
    stage.copy.end(CLIENT_TO_SERVER)
    stage.stream.close()
    relay = stage.accept()
    assert not relay.read_end()
    assert [(record.type.name, record.length) for record in relay.records] == [
        ("REQUEST", len(REQUEST) + 27),
        ("GAP", 100),
        ("GAP", 10),
        ("GAP", 3),
        ("GAP", 4),
        ("REQUEST", len(REQUEST)),
        ("FIN", 0),
    ]
    relay.socket.close()
    stage.settle()
    account = stage.upstream.account()
    assert account.shed == {"gap": 14}
    assert account.delivered_bytes == 2 * len(REQUEST) + 27
    assert account.connections.shed_by_reason == {"gap": 1}
    assert account.dials == 1


def test_gap_in_another_protocol_resets_the_link(stage):
    stage.stream.write(b"\x16\x03\x01")
    stage.stream.gap(1)
    stage.stream.write(REQUEST)
    assert stage.accept().read_end()
    stage.stream.finish()
    stage.stream.close()
    assert stage.upstream.account().shed == {"gap": 3 + len(REQUEST)}


def test_gap_of_the_server_is_told_at_once(stage):
    stage.stream.write(REQUEST)
    stage.copy.answer_gap(12)
    relay = stage.accept()
    relay.read(HEADER_BYTES + 16 + len(REQUEST) + 24)
    assert relay.records[-1][:2] == (RecordType.GAP, SERVER_TO_CLIENT)
    assert relay.records[-1].length == 12


def test_reset_of_the_connection_is_a_record_behind_what_came_before(stage):
    stage.stream.write(REQUEST)
    stage.stream.reset()
    stage.stream.close(reset=True)
    relay = stage.accept()
    assert not relay.read_end()
    assert kinds(relay) == [("REQUEST", 0), ("RST", 0)]
    relay.socket.close()
    stage.settle()
    assert stage.upstream.account().connections.delivered == 1


def test_cut_resets_the_link_and_sheds_the_connection(stage):
    stage.stream.write(REQUEST[:5])
    relay = stage.accept()
    stage.stream.cut("drain")
    stage.stream.close()
    assert relay.read_end()
    account = stage.upstream.account()
    assert account.shed == {"drain": 5}
    assert account.connections.shed_by_reason == {"drain": 1}


def test_link_that_the_relay_closes_is_joined_by_another_at_the_next_request(stage):
    stage.stream.write(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n1")
    first = stage.accept()
    first.read(HEADER_BYTES + 16 + 38)
    first.socket.close()
    while stage.copy.connection is not None:
        stage.serve()
    stage.copy.answer(ANSWER)
    stage.upstream.time_ns = 99
    stage.stream.write(b"23" + REQUEST)
    second = stage.accept()
    second.read(HEADER_BYTES + 16 + len(REQUEST))
    assert first.header.link == LinkInfo(framed=True, joined=False, start_ns=77)
    assert second.header.link == LinkInfo(framed=True, joined=True, start_ns=99)
    assert second.header.unique_id == first.header.unique_id
    assert second.stream(CLIENT_TO_SERVER) == REQUEST
    assert kinds(second) == [("REQUEST", 0)]
    assert stage.upstream.account().shed == {"closed": 2}


def test_connection_that_was_open_before_is_marked(make_stage):
    stage = make_stage(midway=True)
    stage.stream.write(b"rest of a body" + REQUEST)
    relay = stage.accept()
    relay.read(HEADER_BYTES + 16 + len(REQUEST))
    assert relay.header.link.joined
    assert relay.stream(CLIENT_TO_SERVER) == REQUEST


def test_stream_without_a_byte_of_the_client_makes_no_link(stage):
    stage.copy.answer(b"220 hello\r\n")
    stage.copy.answer_gap(3)
    stage.copy.end(SERVER_TO_CLIENT)
    stage.stream.finish()
    stage.stream.close()
    assert stage.upstream.dials == 0
    assert stage.upstream.account().connections.delivered == 1


def test_long_run_is_split_into_records_of_the_permitted_size(stage):
    data = bytes(range(256)) * 800
    stage.stream.write(data)
    stage.stream.finish()
    stage.stream.close()
    relay = stage.accept()
    stage.drain(relay)
    assert not relay.read_end()
    assert relay.stream(CLIENT_TO_SERVER) == data
    assert [len(record.data) for record in relay.records] == [65536, 65536, 65536, 204800 - 3 * 65536]
    relay.socket.close()
    stage.settle()


def test_relay_that_resets_takes_back_at_most_what_the_client_sent(stage):
    stage.stream.write(REQUEST)
    relay = stage.accept()
    for _ in range(100):
        stage.copy.answer(b"a" * 60_000)
    relay.socket.close()  # with bytes unread: a reset
    while stage.copy.connection is not None:
        stage.serve()
    stage.stream.close()
    account = stage.upstream.account()
    assert account.captured_bytes == len(REQUEST)
    assert account.delivered_bytes + account.shed_bytes == len(REQUEST)


def test_refused_address_is_skipped_and_the_header_comes_once(stage):
    stage.upstream.addresses.insert(0, Address(socket.AF_INET6, "::1", stage.upstream.config.port))
    stage.stream.write(REQUEST)
    while stage.upstream.ledger.queued:
        stage.serve()
    relay = stage.accept()
    stage.stream.finish()
    stage.stream.close()
    assert not relay.read_end()
    assert relay.header.client == stage.flow.client
    assert relay.stream(CLIENT_TO_SERVER) == REQUEST
    relay.socket.close()
    stage.settle()
    assert stage.upstream.account().shed == {}


def test_refused_link_sheds_the_clients_bytes(stage):
    stage.listener.close()
    stage.stream.write(REQUEST)
    stage.copy.answer(ANSWER)
    if stage.pump.open:
        stage.serve()
    stage.stream.finish()
    stage.stream.close()
    account = stage.upstream.account()
    assert account.shed == {"refused": len(REQUEST)}
    assert account.connections.shed_by_reason == {"refused": 1}


# -- unframed ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def unframed(make_stage):
    return make_stage(framed=False)


def test_unframed_link_is_the_clients_bytes_behind_the_header(unframed):
    unframed.stream.write(REQUEST)
    unframed.stream.write(REQUEST)
    relay = unframed.accept()
    unframed.stream.finish()
    unframed.stream.close()
    relay.read(HEADER_BYTES + 2 * len(REQUEST))
    assert relay.header.client == unframed.flow.client
    assert relay.header.link == LinkInfo(framed=False, joined=False, start_ns=77)
    assert relay.rest == 2 * REQUEST
    # It ends when it is answered, as with any other upstream.
    assert unframed.upstream.connections_pending == 1
    relay.socket.sendall(2 * ANSWER)
    unframed.settle()
    assert not relay.read_end()
    account = unframed.upstream.account()
    assert account.captured_bytes == account.delivered_bytes == 2 * len(REQUEST)
    assert account.response_bytes == 2 * len(ANSWER)


def test_unframed_link_is_reset_by_a_gap_and_joined(unframed):
    unframed.stream.write(REQUEST[:-5])
    first = unframed.accept()
    unframed.stream.gap(5)
    assert first.read_end()
    unframed.stream.write(REQUEST)
    second = unframed.accept()
    second.read(HEADER_BYTES + len(REQUEST))
    assert second.header.link.joined
    assert second.rest == REQUEST
    assert unframed.upstream.account().shed == {"gap": len(REQUEST) - 5}


def test_unframed_link_is_reset_with_the_client(unframed):
    unframed.stream.write(REQUEST)
    relay = unframed.accept()
    relay.read(HEADER_BYTES + len(REQUEST))
    unframed.stream.reset()
    unframed.stream.close(reset=True)
    assert relay.read_end()
    assert unframed.upstream.account().connections.delivered == 1
