"""A relay whose upstream is another relay: what it passes on of who the client was, and of production's answers."""

from contextlib import ExitStack
from functools import partial

import pytest

from gopher.link import LinkInfo, ProxyHeader, decode_header, encode_data, encode_fin, encode_gap, encode_header
from tests.support.accounts import assert_all_delivered
from tests.support.clients import get, receive_exactly
from tests.support.command import GopherProcess
from tests.support.relay import CLIENT, SERVER, Link, RelayProcess, receive_until_end
from tests.support.servers import ANSWER, RecordingSink
from tests.support.shop import (
    NAMELESS_REQUESTS_PER_VISIT,
    REQUESTS_PER_VISIT,
    SESSION,
    TOKEN,
    Browser,
    Shop,
    visit_at_once,
)

pytestmark = pytest.mark.e2e

MODES = {"bytes": (), "messages": ("--marker", "X-Mirrored:1")}
MARKED = get(1)[:-2] + b"X-Mirrored: 1\r\n\r\n"
FRAMED = LinkInfo(framed=True, start_ns=1)
HEADER = ProxyHeader(
    client=("192.0.2.1", 1001), server=("192.0.2.2", 80), unique_id=(1).to_bytes(16, "big"), link=FRAMED
)
UNFRAMED = ProxyHeader(
    client=HEADER.client,
    server=HEADER.server,
    unique_id=HEADER.unique_id,
    link=LinkInfo(framed=False, start_ns=1),
)


def decoded(stream):
    header, length = decode_header(stream)
    return header, stream[length:]


@pytest.mark.parametrize("mode", MODES)
def test_client_without_a_header_is_named(mode):
    with RecordingSink() as sink, RelayProcess(f"relay://{sink.name}", options=MODES[mode]) as relay:
        with relay.connect() as client:
            name = client.getsockname()
            client.sendall(get(1))
            # A sink makes nothing of what follows a header.
            sink.wait(lambda: sink.streams and sink.streams[0].endswith(b"\r\n\r\n"), "the request")
        sink.wait_ended(1)
    header, rest = decoded(sink.streams[0])
    assert header == ProxyHeader(client=name, server=("127.0.0.1", relay.port))
    assert rest == (get(1) if mode == "bytes" else MARKED)


@pytest.mark.parametrize("mode", MODES)
def test_unframed_link_goes_on_as_one(mode):
    with RecordingSink(mode="mute") as sink:
        with RelayProcess(f"relay://{sink.name}", options=MODES[mode]) as relay, relay.connect() as client:
            client.sendall(encode_header(UNFRAMED) + get(1))
            sink.wait(lambda: sink.streams and sink.streams[0].endswith(b"\r\n\r\n"), "the request")
        sink.wait_ended(1)
    assert decoded(sink.streams[0]) == (UNFRAMED, get(1) if mode == "bytes" else MARKED)
    assert relay.report["connections"]["links"] == 1


def test_framed_link_goes_on_byte_for_byte():
    sent = encode_header(HEADER) + b"".join(
        [
            encode_data(CLIENT, get(1), 1),
            encode_data(SERVER, ANSWER, 2),
            encode_gap(SERVER, 7, 3),
            encode_fin(SERVER, 4),
            encode_fin(CLIENT, 5),
        ]
    )
    with RecordingSink(mode="mute") as sink:
        with RelayProcess(f"relay://{sink.name}") as relay:
            with relay.connect() as client:
                for at in range(len(sent)):
                    client.sendall(sent[at : at + 1])
            sink.wait_ended(1)
        assert sink.streams == [sent]
    assert relay.report["connections"]["links"] == 1
    assert relay.report["exchanges"] is None


@pytest.mark.parametrize("upstream", ["relay://{}", "{}"])
def test_relay_that_reads_messages_passes_the_clients_on(upstream):
    """Also as announced by --proxy-protocol: whoever reads this header must not wait for records."""
    with RecordingSink(mode="mute") as sink:
        # No answer comes.
        options = (*MODES["messages"], "--proxy-protocol", "v2", "--drain", "0")
        with RelayProcess(upstream.format(sink.name), options=options) as relay, Link(relay) as link:
            link.request("/1")
            sink.wait(lambda: sink.streams and sink.streams[0].endswith(b"\r\n\r\n"), "the request")
        sink.wait_ended(1)
    header, rest = decoded(sink.streams[0])
    assert header == UNFRAMED
    assert rest == b"GET /1 HTTP/1.1\r\nHost: a\r\nX-Mirrored: 1\r\n\r\n"


def test_copies_to_a_relay_name_the_client():
    with RecordingSink() as first, RecordingSink(mode="mute") as second:
        # The copy gets no answers.
        relay = RelayProcess(first.name, f"relay://{second.name}", options=("--drain", "0"))
        with relay, relay.connect() as client:
            client.sendall(encode_header(UNFRAMED) + get(1))
            assert receive_exactly(client, len(ANSWER)) == ANSWER
            client.sendall(get(2))
            assert receive_exactly(client, len(ANSWER)) == ANSWER
            second.wait(lambda: second.streams and second.streams[0].endswith(get(2)), "the requests")
        first.wait_ended(1)
        second.wait_ended(1)
    assert first.streams == [get(1) + get(2)]
    assert decoded(second.streams[0]) == (UNFRAMED, get(1) + get(2))
    [copy] = relay.report["copies"]
    assert copy["captured_bytes"] == copy["delivered_bytes"] == len(get(1) + get(2))


def test_answers_come_back_through_two_relays():
    with (
        RecordingSink() as sink,
        RelayProcess(sink.name, options=("--proxy-protocol", "v1")) as inner,
        RelayProcess(f"relay://127.0.0.1:{inner.port}") as outer,
        outer.connect() as client,
    ):
        client.sendall(get(1))
        client.shutdown(1)
        # The sink does not understand PROXY headers: that it got one is enough.
        assert receive_until_end(client) == b""
        name = client.getsockname()
        sink.wait_ended(1)
        assert sink.streams[0].startswith(f"PROXY TCP4 127.0.0.1 127.0.0.1 {name[1]} {outer.port}\r\n".encode())


@pytest.mark.parametrize("where", ["inner", "outer"])
def test_capture_relay_relay_server_with_coupling(host, where):
    """Either relay may couple: the outer one passes everything on, or what it has made of it."""
    rules = [f"cookie:{SESSION}", f"form:{TOKEN}", "location:/order/{}"]
    couple = [word for rule in rules for word in ("--couple", rule)]
    users = 5
    with ExitStack() as stack:
        enter = stack.enter_context
        production = enter(Shop(("127.0.0.1", 80), namespace=host))
        shadow = enter(Shop(("127.0.0.1", 8080), namespace=host, delay_s=0.1))
        inner = enter(RelayProcess(shadow.name, options=couple if where == "inner" else (), port=3281, namespace=host))
        outer = enter(
            RelayProcess(
                "relay://127.0.0.1:3281", options=couple if where == "outer" else (), port=3280, namespace=host
            )
        )
        capture = enter(
            GopherProcess(
                *("-c", "-p", "80", "-i", "lo", "--responses", "-u", "relay://127.0.0.1:3280"), namespace=host
            )
        )
        connect = partial(host.connect, ("127.0.0.1", 80))
        visit_at_once([Browser(connect, lambda number: number % 2) for _ in range(users)])
        shadow.wait_requests(users * REQUESTS_PER_VISIT)
        capture.stop()
        outer.stop()
        inner.stop()
    assert not production.refused
    assert not shadow.refused
    assert shadow.sales == production.sales
    assert len(shadow.sales) == users
    assert_all_delivered(capture.report)
    connections = capture.report["connections"]["mirrored"]
    for relay in (outer, inner):
        assert relay.report["connections"]["failed"] == 0, relay.report
        assert relay.report["connections"]["accepted"] == relay.report["connections"]["links"]
    assert outer.report["connections"]["accepted"] == connections
    coupled = inner if where == "inner" else outer
    assert coupled.report["connections"]["framed"] == connections
    rewritten = users * (REQUESTS_PER_VISIT - NAMELESS_REQUESTS_PER_VISIT)
    assert coupled.report["coupling"]["requests_rewritten"] == rewritten
