"""The link between a real capturing gopher and a relay: what comes over it is what client and production exchanged."""

import signal
import time
from dataclasses import dataclass
from itertools import pairwise

import pytest

from gopher._fastpath import CLIENT_TO_SERVER, SERVER_TO_CLIENT
from gopher.link import ProxyHeader, Record, RecordDecoder, RecordType, decode_header
from tests.support.accounts import assert_all_delivered, only_upstream
from tests.support.clients import curl, exchange, get, noise, post
from tests.support.command import GopherProcess
from tests.support.packets import Conversation, pcap_file
from tests.support.servers import ANSWER, PRODUCTION, Nginx, RecordingSink, reset

pytestmark = pytest.mark.e2e

RELAY = ("127.0.0.2", 3280)
FRAMED = ("-c", "-p", "80", "-i", "lo", "--responses")


@dataclass
class Link:
    """What a relay got on one connection."""

    header: ProxyHeader
    rest: bytes
    ended: str

    @property
    def records(self) -> list[Record]:
        decoder = RecordDecoder()
        records = decoder.feed(self.rest)
        decoder.end()
        return records

    def stream(self, direction: int) -> bytes:
        return b"".join(record.data for record in self.records if record.direction == direction)

    def kinds(self) -> list[tuple[str, int]]:
        """Type and direction, one entry for each run of the same."""
        kinds = [(record.type.name, record.direction) for record in self.records]
        return [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]


def links(relay: RecordingSink) -> dict[tuple[str, int], Link]:
    """By the client's address."""
    found = {}
    for connection in relay.connections:
        data = bytes(connection.received)
        decoded = decode_header(data)
        assert decoded is not None
        header, length = decoded
        assert header.client not in found
        found[header.client] = Link(header, data[length:], connection.ended)
    return found


@pytest.fixture
def relay(host):
    with RecordingSink(RELAY, "mute", namespace=host) as sink:
        yield sink


@pytest.mark.parametrize(("production_host", "relay_host"), [("127.0.0.1", "127.0.0.2"), ("::1", "::1")])
def test_framed_link_carries_what_client_and_production_exchanged(host, production_host, relay_host):
    started_ns = time.time_ns()
    sent = {}
    with (
        RecordingSink((production_host, 80), namespace=host) as production,
        RecordingSink((relay_host, 3280), "mute", namespace=host) as relay,
        GopherProcess(*FRAMED, "-u", f"relay://{relay.name}", namespace=host) as gopher,
    ):
        for number in range(20):
            with host.connect((production_host, 80)) as client:
                requests = [get(number), post(number, noise(1000 * number, number)), get(number)]
                for request in requests:
                    exchange(client, request)
                sent[client.getsockname()[:2]] = requests
        relay.wait_ended(20)
        found = links(relay)
        assert found.keys() == sent.keys()
        assert production.streams == sorted(link.stream(CLIENT_TO_SERVER) for link in found.values())
    for client_address, link in found.items():
        assert link.header.server == (production_host, 80)
        assert link.header.link.framed
        assert not link.header.link.joined
        assert link.stream(CLIENT_TO_SERVER) == b"".join(sent[client_address])
        assert link.stream(SERVER_TO_CLIENT) == 3 * ANSWER
        talk = [("REQUEST", 0), ("RESPONSE", 1)] * 3
        assert link.kinds() == [*talk, ("FIN", 0), ("FIN", 1)]
        times = [link.header.link.start_ns, *(record.time_ns for record in link.records)]
        assert started_ns <= times[0]
        assert all(before <= after for before, after in pairwise(times))
        assert times[-1] <= time.time_ns()
        assert link.ended == "fin"
    assert len({link.header.unique_id for link in found.values()}) == 20
    assert all(len(link.header.unique_id) == 16 for link in found.values())
    assert_all_delivered(gopher.report)
    account = only_upstream(gopher.report)
    assert account["captured_bytes"] == sum(len(b"".join(requests)) for requests in sent.values())
    assert account["dials"] == 20


def test_link_beside_another_upstream_changes_nothing_there(host, production, relay):
    with (
        RecordingSink(("127.0.0.3", 3280), namespace=host) as shadow,
        GopherProcess(*FRAMED, "-u", f"relay://{relay.name}", "-u", shadow.name, namespace=host) as gopher,
    ):
        for number in range(5):
            with host.connect(PRODUCTION) as client:
                exchange(client, get(number))
        shadow.wait_ended(5)
        relay.wait_ended(5)
        assert shadow.streams == production.streams
    assert_all_delivered(gopher.report)


def test_unframed_link_shows_nginx_the_real_client(host, production, tmp_path):
    with (
        Nginx(tmp_path, [RELAY], namespace=host, proxy_protocol=True) as shadow,
        GopherProcess(*("-c", "-p", "80", "-i", "lo", "-u", "relay://127.0.0.2:3280"), namespace=host) as gopher,
    ):
        expected = []
        for number in range(3):
            source = f"127.0.1.{number}"
            with host.connect(PRODUCTION, source=source) as client:
                exchange(client, get(number))
                exchange(client, get(number))
                port = client.getsockname()[1]
            expected += 2 * [f"GET /{number} HTTP/1.1|{len(get(number))}|production|{number}|{source}:{port}"]
        shadow.wait_requests(6)
        assert shadow.requests() == sorted(expected)
    assert_all_delivered(gopher.report)


def test_large_answers_cost_no_byte_of_the_client_and_are_accounted_for(host, tmp_path, relay):
    size = 20_000_000
    with (
        Nginx(tmp_path, [PRODUCTION], namespace=host) as production,
        # Room for all of it: how long gopher waits for a core is not the question.
        GopherProcess(*FRAMED, "--ring=128M", "-u", f"relay://{relay.name}", namespace=host) as gopher,
    ):
        (production.root() / "large").write_bytes(noise(size))
        curl(*["--output", "/dev/null", "http://127.0.0.1/large"] * 3, namespace=host)
        relay.wait_ended(1)
        [link] = links(relay).values()
    lengths = {
        kind: sum(record.length for record in link.records if record[:2] == (kind, SERVER_TO_CLIENT))
        for kind in (RecordType.RESPONSE, RecordType.GAP)
    }
    assert sum(lengths.values()) == gopher.report["bytes"]["responses"] + gopher.report["gaps"]["bytes"]
    assert sum(lengths.values()) > 3 * size
    assert only_upstream(gopher.report)["answers_missed_bytes"] <= lengths[RecordType.GAP]
    assert_all_delivered(gopher.report)


def test_file_waits_for_a_relay_that_is_slower(tmp_path):
    # More than the link may queue and the kernel's buffers hold.
    answer = noise(12_000_000)
    talk = Conversation().handshake().data(get(1))
    for at in range(0, len(answer), 60_000):
        talk.data(answer[at : at + 60_000], direction=1)
    path = tmp_path / "talk.pcap"
    path.write_bytes(pcap_file(talk.close().packets))
    with RecordingSink(mode="mute") as relay:
        upstream = f"relay://{relay.name}"
        with GopherProcess(
            *("-c", "-p", "80", "--read", str(path), "--speed", "max", "--responses", "--connection-memory", "100k"),
            *("-u", upstream),
        ) as gopher:
            gopher.wait()
        relay.wait_ended(1)
        [link] = links(relay).values()
    assert link.header.client == talk.client
    assert link.stream(SERVER_TO_CLIENT) == answer
    assert only_upstream(gopher.report)["answers_missed_bytes"] == 0
    assert_all_delivered(gopher.report)


def test_missing_packets_are_gaps_on_the_link(tmp_path):
    talk = Conversation().handshake()
    for number in range(4):
        talk.data(get(number)).data(ANSWER, direction=1)
    packets = talk.close().packets
    # The handshake has three packets: the second answer and the third request are missing.
    lost = {3 + 3, 3 + 4}
    path = tmp_path / "talk.pcap"
    path.write_bytes(pcap_file([packet for number, packet in enumerate(packets) if number not in lost]))
    with RecordingSink(mode="mute") as relay:
        with GopherProcess(
            *("-c", "-p", "80", "--read", str(path), "--speed", "max", "--responses", "-u", f"relay://{relay.name}")
        ) as gopher:
            gopher.wait()
        relay.wait_ended(1)
        [link] = links(relay).values()
    directions = {
        direction: [(record.type.name, record.length) for record in link.records if record.direction == direction]
        for direction in (CLIENT_TO_SERVER, SERVER_TO_CLIENT)
    }
    request = len(get(0))
    assert directions[CLIENT_TO_SERVER] == [
        ("REQUEST", request), ("REQUEST", request), ("GAP", request), ("REQUEST", request), ("FIN", 0)
    ]  # fmt: skip
    answer = len(ANSWER)
    assert directions[SERVER_TO_CLIENT] == [
        ("RESPONSE", answer), ("GAP", answer), ("RESPONSE", answer), ("RESPONSE", answer), ("FIN", 0)
    ]  # fmt: skip
    account = only_upstream(gopher.report)
    assert account["shed_bytes"] == 0
    assert account["delivered_bytes"] == 3 * request
    assert account["connections"]["shed_by_reason"] == {"gap": 1}


def test_reset_of_the_client_is_a_record(host, production, relay):
    with GopherProcess(*FRAMED, "-u", f"relay://{relay.name}", namespace=host) as gopher:
        client = host.connect(PRODUCTION)
        exchange(client, get(1))
        reset(client)
        relay.wait_ended(1)
        [link] = links(relay).values()
    assert link.kinds() == [("REQUEST", 0), ("RESPONSE", 1), ("RST", 0)]
    assert link.ended == "fin"
    assert_all_delivered(gopher.report)


def test_capture_that_stops_between_requests_ends_the_link_without_fin(host, production, relay):
    with (
        GopherProcess(*FRAMED, "-u", f"relay://{relay.name}", namespace=host) as gopher,
        host.connect(PRODUCTION) as client,
    ):
        exchange(client, get(1))
        relay.wait_received(62 + 16 + len(get(1)) + 16 + len(ANSWER))
        gopher.signal(signal.SIGTERM)
        relay.wait_ended(1)
        gopher.wait()
    [link] = links(relay).values()
    assert link.kinds() == [("REQUEST", 0), ("RESPONSE", 1)]
    assert link.ended == "fin"
    assert_all_delivered(gopher.report)


def test_capture_that_stops_within_a_request_resets_the_link(host, production, relay):
    part = post(1, b"x" * 100)[:-50]
    with (
        GopherProcess(*FRAMED, "-u", f"relay://{relay.name}", namespace=host) as gopher,
        host.connect(PRODUCTION) as client,
    ):
        client.sendall(part)
        relay.wait_received(62 + 16 + len(part))
        gopher.signal(signal.SIGTERM)
        relay.wait_ended(1)
        gopher.wait()
    assert [connection.ended for connection in relay.connections] == ["rst"]
    assert only_upstream(gopher.report)["shed"] == {"drain": len(part)}
