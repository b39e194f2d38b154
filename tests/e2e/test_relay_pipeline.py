"""The real relay with --pipeline: requests go on before answers come, and every answer finds its request."""

import contextlib
import itertools
import random
import re
import socket
import socketserver
import threading

import pytest

from gopher.link import encode_data, encode_gap
from tests.e2e.test_relay import pieces
from tests.e2e.test_relay_messages import REFUSED, SCRIPTS, Shadow, spoilt
from tests.support.clients import get, noise, post, receive_exactly
from tests.support.conversations import CONVERSATIONS
from tests.support.relay import CLIENT, SERVER, Link, RelayProcess, ScriptedServer, free_port, receive_until_end
from tests.support.servers import ANSWER, Nginx, RecordingSink

pytestmark = pytest.mark.e2e

MESSAGES = ("--couple", "cookie:no-such-cookie")
PIPELINE = (*MESSAGES, "--pipeline")
IN_FLIGHT = 32
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def warm(client: socket.socket, server_answer: bytes = ANSWER) -> None:
    """What is sent before there is an upstream connection goes alone."""
    client.sendall(get(0))
    assert receive_exactly(client, len(server_answer)) == server_answer


# -- how far it goes ahead --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "in_flight"), [(PIPELINE, IN_FLIGHT), (MESSAGES, 1)])
def test_requests_in_flight_have_a_bound(options, in_flight):
    sent = b"".join(get(number) for number in range(1, 51))
    with RecordingSink() as sink, RelayProcess(sink.name, options=options) as relay:
        with relay.connect() as client, relay.connect() as other:
            warm(client)
            warm(other)
            sink.hold()
            client.sendall(sent)
            sink.wait_requests(2 + in_flight)
            # The relay has one thread: it has done with one client what it does when the other is served.
            other.sendall(get(99))
            sink.wait_requests(3 + in_flight)
            sink.release()
            assert receive_exactly(client, 50 * len(ANSWER)) == 50 * ANSWER
            assert receive_exactly(other, len(ANSWER)) == ANSWER
        sink.wait_ended(2)
        assert get(0) + sent in sink.streams
    assert relay.report["failed"] == {}


def test_nothing_follows_before_there_is_a_connection():
    # A full accept queue: the kernel answers no more attempts.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        name = "{}:{}".format(*listener.getsockname())
        options = (*PIPELINE, "--connect-timeout", "0.3")
        with RelayProcess(name, options=options) as relay, relay.connect() as client:
            client.sendall(get(1) + get(2) + get(3))
            assert receive_until_end(client).startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    assert relay.report["exchanges"] == {"requests": 1, "responses": 0, "dropped": 0, "unanswered": 1}


@pytest.mark.parametrize("cut", ["whole", "byte by byte", "randomly"])
@pytest.mark.parametrize("seed", range(2))
def test_answers_are_the_same_as_one_at_a_time(seed, cut):
    # Everything that leaves the connection open, in any order, sent without waiting for any answer.
    talks = [
        each
        for name, each in CONVERSATIONS.items()
        if each.http
        and not each.closes
        and name not in ("websocket", "connect", "http/2 preface")
        and not name.startswith("early answer")
    ]
    random.Random(seed).shuffle(talks)
    sent = b"".join(each.sent for each in talks)
    parts = [part for each in talks for part in pieces(each.sent, cut)]
    answered = b"".join(each.answered for each in talks)
    steps = [step[1:] for each in talks for step in each.steps]
    with ScriptedServer() as server:
        for options in (MESSAGES, PIPELINE):
            with RelayProcess(server.name, options=options) as relay:
                with server.play(steps, closes=False) as received:
                    assert send_all(relay, parts, len(answered)) == answered
                assert received == sent
            assert relay.report["failed"] == {}


def send_all(relay: RelayProcess, parts: list[bytes], length: int) -> bytes:
    """Send everything without waiting for answers, beside reading; returns what came, to the end."""
    with relay.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sender = threading.Thread(target=lambda: [client.sendall(part) for part in parts])
        sender.start()
        received = receive_exactly(client, length)
        sender.join()
        client.shutdown(socket.SHUT_WR)
        return received + receive_until_end(client)


def test_every_kind_of_answer_finds_its_request():
    exchanges = [
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"),
        (get(1), b"HTTP/1.1 204 No Content\r\n\r\n"),
        (get(2), b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"),
        (get(3), b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + OK),
        (post(4, b"x" * 100), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: 1\r\n\r\n"),
        (
            b"POST /5 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;e\r\nhello\r\n0\r\nX: 1\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        ),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (get(6), OK),
    ]
    sent = b"".join(request for request, _ in exchanges)
    answered = b"".join(answer for _, answer in exchanges)
    with ScriptedServer() as server, RelayProcess(server.name, options=PIPELINE) as relay:
        # The server answers when it has everything; then everything at once, or byte by byte.
        for steps in ([(len(sent), answered)], [(len(sent), b""), *((0, bytes([each])) for each in answered)]):
            with server.play([(len(get(0)), OK), *steps], closes=False) as received, relay.connect() as client:
                warm(client, OK)
                client.sendall(sent)
                assert receive_exactly(client, len(answered)) == answered
                client.shutdown(socket.SHUT_WR)
                assert receive_until_end(client) == b""
            assert received == get(0) + sent


# -- what must not go ahead -------------------------------------------------------------------------------------------


def test_nothing_behind_a_refused_message_reaches_the_upstream():
    good = b"".join(get(number) for number in range(1, 6))
    with RecordingSink() as sink, RelayProcess(sink.name, options=PIPELINE) as relay:
        for name, (request, status) in REFUSED.items():
            with relay.connect() as client:
                warm(client)
                client.sendall(good + request + SMUGGLED)
                answer = receive_until_end(client)
                assert answer.startswith(5 * ANSWER), name
                assert re.match(rb"HTTP/1\.1 %d [^\r]+\r\n" % status, answer[5 * len(ANSWER) :]), (name, answer)
        report = relay.stop()
        assert report["failed"] == {"bad_request": len(REFUSED)}
        for stream in sink.streams:
            assert stream.startswith(get(0) + good)
            assert b"smuggled" not in stream


def test_refused_message_waits_for_the_answers_before_it():
    bad = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX"
    with RecordingSink() as sink, RelayProcess(sink.name, options=PIPELINE) as relay, relay.connect() as client:
        warm(client)
        sink.hold()
        client.sendall(get(1) + get(2) + bad + SMUGGLED)
        sink.wait_requests(3)
        sink.release()
        answer = receive_until_end(client)
        assert answer.startswith(2 * ANSWER + b"HTTP/1.1 400 ")
        assert b"smuggled" not in sink.streams[0]


@pytest.mark.parametrize("options", [MESSAGES, PIPELINE])
@pytest.mark.parametrize("granted", [True, False])
def test_what_follows_an_upgrade_waits_for_its_answer(options, granted):
    upgrade = b"GET /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    # As bytes of a tunnel and as a request these are something; before the answer they must be neither.
    early = SMUGGLED
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    last = switch + b"welcome" if granted else OK
    steps = [(len(get(0)), OK), (len(get(1)), OK), (len(upgrade), last), (len(early), OK)]
    with ScriptedServer() as server, RelayProcess(server.name, options=options) as relay:
        with server.play(steps, closes=False) as received, relay.connect() as client:
            warm(client, OK)
            client.sendall(get(1) + upgrade + early)
            expected = OK + last + OK
            assert receive_exactly(client, len(expected)) == expected
            client.shutdown(socket.SHUT_WR)
            assert receive_until_end(client) == b""
        assert received == get(0) + get(1) + upgrade + early
    assert relay.report["exchanges"]["requests"] == (3 if granted else 4)


def test_body_that_waits_for_leave_is_asked_for_in_its_turn():
    # A rule needs it before anything is sent, so it is the relay that asks.
    head = (
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    )
    leave = b"HTTP/1.1 100 Continue\r\n\r\n"
    with (
        RecordingSink() as sink,
        RelayProcess(sink.name, options=(*PIPELINE, "--couple", "form:t")) as relay,
        relay.connect() as client,
    ):
        warm(client)
        sink.hold()
        client.sendall(get(1) + head)
        sink.wait_requests(2)
        sink.release()
        assert receive_exactly(client, len(ANSWER + leave)) == ANSWER + leave
        client.sendall(b"t=1")
        assert receive_exactly(client, len(ANSWER)) == ANSWER
    assert relay.report["failed"] == {}


def test_nothing_follows_a_request_that_says_close():
    last = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    final = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with ScriptedServer() as server, RelayProcess(server.name, options=PIPELINE) as relay:
        steps = [(len(get(0)), OK), (len(get(1) + last), OK + final)]
        with server.play(steps, closes=False) as received, relay.connect() as client:
            warm(client, OK)
            client.sendall(get(1) + last + SMUGGLED)
            assert receive_until_end(client) == OK + final
        assert received == get(0) + get(1) + last


# -- an upstream that ends --------------------------------------------------------------------------------------------

MIDDLES = {
    "says close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", {}),
    "delimited by close": (b"HTTP/1.1 200 OK\r\n\r\nuntil the close", {}),
    "closes between answers": (OK, {"upstream_closed": 1}),
}


@pytest.mark.parametrize("middle", MIDDLES)
def test_answers_before_the_close_pass_and_nothing_is_repeated(middle):
    # RFC 9112 section 9.3.2: received responses are forwarded, then the client's connection is closed.
    answer, failed = MIDDLES[middle]
    sent = get(1) + post(2, b"once") + post(3, b"once") + get(4)
    with ScriptedServer() as server, RelayProcess(server.name, options=PIPELINE) as relay:
        steps = [(len(get(0)), OK), (len(sent), OK + answer)]
        with server.play(steps, closes=True) as received, relay.connect() as client:
            warm(client, OK)
            client.sendall(sent)
            assert receive_until_end(client) == OK + answer
        assert received == get(0) + sent
        # A second connection would be waiting here.
        server._listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            server._listener.accept()
    assert relay.report["failed"] == failed
    assert relay.report["exchanges"] == {"requests": 5, "responses": 3, "dropped": 0, "unanswered": 2}
    assert relay.report["answers"] == {}


def test_cut_answer_in_the_middle_resets_the_client():
    with ScriptedServer() as server, RelayProcess(server.name, options=PIPELINE) as relay:
        cut = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
        steps = [(len(get(0)), OK), (len(get(1)) * 3, OK + cut)]
        with server.play(steps, closes=True), relay.connect() as client:
            warm(client, OK)
            client.sendall(get(1) + get(2) + get(3))
            with pytest.raises(ConnectionResetError):
                receive_until_end(client)
    assert relay.report["exchanges"]["unanswered"] == 2


def test_link_goes_on_after_an_upstream_that_closed_and_repeats_nothing():
    with ScriptedServer() as server, RelayProcess(server.name, options=PIPELINE) as relay, Link(relay) as link:
        first = [(len(get(0)), OK), (len(get(1)) * 3, OK)]
        with server.play(first, closes=True) as received:
            link.send(encode_data(CLIENT, get(0) + get(1) + get(2) + get(3), 1))
        assert received == get(0) + get(1) + get(2) + get(3)
        with server.play([(len(get(4)), OK)], closes=False) as received:
            link.send(encode_data(CLIENT, get(4), 1))
            link.end()
        assert received == get(4)
    assert relay.report["exchanges"] == {"requests": 5, "responses": 3, "dropped": 0, "unanswered": 2}


def test_gap_within_a_request_waits_for_the_answers_before_it():
    with RecordingSink() as sink, RelayProcess(sink.name, options=PIPELINE) as relay:
        with Link(relay) as link:
            link.send(encode_data(CLIENT, get(0), 1))
            sink.wait_requests(1)
            sink.hold()
            cut = post(2, b"x" * 100)[:-50]
            link.send(encode_data(CLIENT, get(1) + cut, 1))
            sink.wait_received(len(get(0) + get(1) + cut))
            link.send(encode_gap(CLIENT, 50, 1), encode_data(CLIENT, get(3), 1))
            sink.release()
            sink.wait_requests(3)
            link.end()
        sink.wait_ended(2)
        assert [each.ended for each in sink.connections] == ["rst", "fin"]
        assert bytes(sink.connections[1].received) == get(3)
    assert relay.report["exchanges"] == {"requests": 4, "responses": 3, "dropped": 0, "unanswered": 1}


def test_request_after_a_gap_waits_for_the_answers_before_it():
    with RecordingSink() as sink, RelayProcess(sink.name, options=PIPELINE) as relay:
        with Link(relay) as link:
            link.send(encode_data(CLIENT, get(0), 1))
            sink.wait_requests(1)
            sink.hold()
            link.send(encode_data(CLIENT, get(1), 1))
            sink.wait_requests(2)
            link.send(encode_gap(CLIENT, 50, 1), encode_data(CLIENT, get(2), 1))
            with Link(relay, 2) as other:
                # The relay has one thread: what came before this has been looked at when this is sent.
                other.send(encode_data(CLIENT, get(9), 1))
                sink.wait_requests(3)
                sink.release()
                sink.wait_requests(4)
                other.end()
            link.end()
        sink.wait_ended(3)
        assert [bytes(each.received) for each in sink.connections] == [get(0) + get(1), get(9), get(2)]
    assert relay.report["exchanges"] == {"requests": 4, "responses": 4, "dropped": 0, "unanswered": 0}


# -- what holds a request ---------------------------------------------------------------------------------------------


def test_request_that_waits_for_a_session_holds_what_follows_it_and_not_what_is_before_it():
    options = ("--couple", "cookie:SID", "--couple-wait", "10", "--pipeline")
    with Shadow() as shadow, RelayProcess(shadow.name, options=options) as relay:
        shadow.gate.clear()
        with Link(relay, 1) as first, Link(relay, 2) as second:
            first.request("/login")
            first.response("Set-Cookie: SID=production-session\r\n")
            second.request("/before")
            second.request("/held", "SID=production-session")
            second.request("/behind")
            shadow.wait_seen(1)
            assert shadow.seen == [("/before", "")]
            shadow.gate.set()
            shadow.wait_seen(4)
            for link in (first, second):
                link.end()
        report = relay.stop()
    assert shadow.seen[2:] == [("/held", "SID=shadow-session-0"), ("/behind", "")]
    assert report["coupling"]["requests_held"] == 1
    assert report["coupling"]["requests_timed_out"] == 0


SCRIPT = """
import trio

async def request(exchange):
    if exchange.request.target == "/2":
        await trio.sleep(0.05)
    if exchange.request.target in ("/3", "/6"):
        exchange.drop()

async def shadow_response(exchange):
    if exchange.request.target == "/4":
        await trio.sleep(0.05)
    body = await exchange.shadow_response.read()
    exchange.shadow_response.headers["X-Of"] = f"{exchange.request.target} {len(body)}"
"""


def test_scripts_drop_and_hold_in_the_order_of_the_requests(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    dropped = b"HTTP/1.1 204 No Content\r\n\r\n"

    def of(number: int) -> bytes:
        return ANSWER.replace(b"\r\n\r\n", f"\r\nX-Of: /{number} 3\r\n\r\n".encode())

    options = (*PIPELINE, "--script", str(tmp_path / "script.py"))
    with RecordingSink() as sink, RelayProcess(sink.name, options=options) as relay:
        with relay.connect() as client:
            warm(client, of(0))
            sink.hold()
            client.sendall(b"".join(get(number) for number in range(1, 8)))
            sink.wait_requests(6)
            sink.release()
            expected = b"".join(dropped if number in (3, 6) else of(number) for number in range(1, 8))
            assert receive_exactly(client, len(expected)) == expected
        sink.wait_ended(1)
        assert sink.streams == [b"".join(get(number) for number in range(8) if number not in (3, 6))]
    assert relay.report["failed"] == {}
    assert relay.report["exchanges"]["dropped"] == 2


# -- a real server ----------------------------------------------------------------------------------------------------


def test_nginx_gets_pipelined_requests(tmp_path):
    port = free_port()
    bodies = [noise(chance * 1000, chance) for chance in range(60)]
    with Nginx(tmp_path / "nginx", [("127.0.0.1", port)]) as nginx:
        with RelayProcess(f"127.0.0.1:{port}", options=PIPELINE) as relay:
            stores = [
                f"PUT /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                for number, body in enumerate(bodies)
            ]
            asks = [get(number) for number in range(60)]
            with relay.connect() as client:
                sender = threading.Thread(target=client.sendall, args=(b"".join(stores + asks),))
                sender.start()
                stream = client.makefile("rb")
                for _ in bodies:
                    assert read_answer(stream) == (201, b"")
                for body in bodies:
                    assert read_answer(stream) == (200, body)
                sender.join()
        nginx.wait_requests(120)
    assert relay.report["failed"] == {}


def read_answer(stream) -> tuple[int, bytes]:
    status = int(stream.readline().split(b" ")[1])
    length = 0
    while (line := stream.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, stream.read(length)


# -- hostile bytes ----------------------------------------------------------------------------------------------------

SHORT = [each for each in CONVERSATIONS.values() if len(each.sent) + len(each.answered) < 5000]
ANSWERS = [answer for each in SHORT for _, _, answer in each.steps if answer]


class HostileServer(socketserver.ThreadingTCPServer):
    """Answers whatever comes with answers to something else, none or several, spoilt now and then; then ends."""

    request_queue_size = 512
    daemon_threads = True

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            chance = random.Random(next(self.server.seeds))
            with contextlib.suppress(OSError):
                self.request.settimeout(2)
                for _ in range(chance.randrange(1, 8)):
                    if not self.request.recv(chance.choice([10, 100, 1 << 16])):
                        break
                    answer = b"".join(chance.choices(ANSWERS, k=chance.choice([0, 1, 1, 2, 3])))
                    self.request.sendall(spoilt(answer, chance) if chance.random() < 0.3 else answer)
            if chance.random() < 0.4:
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        def finish(self):
            self.request.close()

    def shutdown_request(self, request):
        """No FIN before a RST."""
        request.close()


@pytest.mark.parametrize("more", [(), SCRIPTS])
def test_hostile_answers_do_not_end_the_relay(more):
    chance = random.Random(len(more))
    options = ("--couple", "auto", "--couple", "json:/token", "--couple-wait", "0.05", "--idle-timeout", "0.5")
    with HostileServer(("127.0.0.1", 0), HostileServer.Handler) as server:
        server.seeds = itertools.count(len(more))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        name = "{}:{}".format(*server.server_address)
        with RelayProcess(name, options=(*options, "--drain", "0.2", "--pipeline", *more)) as relay:
            for number in range(150):
                with Link(relay, number) if number % 2 else relay.connect() as client:
                    send = client.send if number % 2 else client.sendall
                    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                        for _ in range(chance.randrange(1, 4)):
                            data = b"".join(each.sent for each in chance.choices(SHORT, k=3))
                            data = spoilt(data, chance) if chance.random() < 0.3 else data
                            if not number % 2:
                                send(data)
                            elif data:
                                gap = encode_gap(CLIENT, 9, 1) if chance.random() < 0.3 else b""
                                said = encode_data(SERVER, chance.choice(ANSWERS), 1)
                                send(encode_data(CLIENT, data, 1) + gap + said)
            report = relay.stop()
        server.shutdown()
        thread.join()
    assert report["connections"]["accepted"] == 150
    assert not any(each["failures"] for each in report["scripts"]), relay.stderr
