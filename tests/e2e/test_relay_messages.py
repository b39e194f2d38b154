"""The real relay where it reads messages: what it refuses, what it changes, the framed link, coupling, copies."""

import contextlib
import random
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gopher.link import (
    encode_data,
    encode_gap,
    encode_rst,
)
from tests.support.clients import curl, exchange, get, noise, post, receive_exactly
from tests.support.command import GopherProcess
from tests.support.conversations import CONVERSATIONS
from tests.support.relay import CLIENT, SERVER, Link, RelayProcess, ScriptedServer, free_port, receive_until_end
from tests.support.servers import ANSWER, Nginx, RecordingSink

pytestmark = pytest.mark.e2e

MESSAGES = ("--couple", "cookie:SID")


class Shadow(ThreadingHTTPServer):
    """An application that knows only the sessions that it has handed out itself.

    Attributes:
        gate: answers to /login wait for it.
        seen: (path, cookie, status) of each request.
    """

    # With the default of 5, the kernel drops what a burst of connections sends, and clients wait for its resending.
    request_queue_size = 128

    daemon_threads = True

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            shadow = self.server
            cookie = self.headers.get("Cookie", "")
            known = cookie.removeprefix("SID=") in shadow.sessions
            if self.path == "/login":
                assert shadow.gate.wait(20)
                session = f"shadow-session-{len(shadow.sessions)}"
                shadow.sessions.append(session)
                self.send_response(200)
                self.send_header("Set-Cookie", f"SID={session}; Path=/")
            else:
                self.send_response(200 if known else 403)
            shadow.note(self.path, cookie)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.name = "{}:{}".format(*self.server_address)
        self.sessions = []
        self.seen = []
        self.gate = threading.Event()
        self.gate.set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def handle_error(self, request, client_address):
        """Clients reset their connections here, and send anything."""

    def note(self, path, cookie):
        with self._changed:
            self.seen.append((path, cookie))
            self._changed.notify_all()

    def wait_seen(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, 20), self.seen

    def __exit__(self, *exc_info):
        self.shutdown()
        self._thread.join()
        super().__exit__(*exc_info)


# -- what could be read in two ways -----------------------------------------------------------------------------------

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
REFUSED = {
    "length and chunked": (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400),
    "length list": (HEAD + b"Content-Length: 5, 6\r\n\r\nhello!", 400),
    "signed length": (HEAD + b"Content-Length: +5\r\n\r\nhello", 400),
    "negative length": (HEAD + b"Content-Length: -1\r\n\r\n", 400),
    "bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare CR in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
    "space before the colon": (HEAD + b"Content-Length : 5\r\n\r\nhello", 400),
    "folded line": (HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "chunk size with sign": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk size with 0x": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk without its end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", 400),
    "no chunked at the end": (HEAD + b"Transfer-Encoding: x\r\n\r\n", 400),
    "unknown coding": (HEAD + b"Transfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n", 501),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "NUL": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
    "long target": (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "long head": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
    "another version": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "no HTTP": (b"EHLO there\r\n\r\n", 400),
}


def test_what_could_be_read_in_two_ways_is_refused():
    with RecordingSink() as sink, RelayProcess(sink.name, options=MESSAGES) as relay:
        for name, (request, status) in REFUSED.items():
            with relay.connect() as client:
                client.sendall(get(1) + request)
                answer = receive_until_end(client)
                assert answer.startswith(ANSWER), name
                assert re.match(rb"HTTP/1\.1 %d [^\r]+\r\n" % status, answer[len(ANSWER) :]), (name, answer)
        report = relay.stop()
        assert report["failed"] == {"bad_request": len(REFUSED)}
        assert sum(report["answers"].values()) == len(REFUSED)
        for stream in sink.streams:
            # Where the head was good and the body was not, the head went on, and never a whole body.
            assert stream.startswith(get(1))
            assert not stream[len(get(1)) :].endswith(b"0\r\n\r\n")


def test_unclear_answer_is_a_502():
    with ScriptedServer() as server, RelayProcess(server.name, options=MESSAGES) as relay:
        bad = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!"
        with server.play([(len(get(1)), bad)], closes=True), relay.connect() as client:
            client.sendall(get(1))
            assert receive_until_end(client).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert relay.report["failed"] == {"bad_response": 1}


def test_own_answer_to_head_has_no_content():
    with RelayProcess(f"127.0.0.1:{free_port()}", options=MESSAGES) as relay, relay.connect() as client:
        client.sendall(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        head, _, content = receive_until_end(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert content == b""


def test_upstream_that_closes_without_an_answer_is_a_502():
    with (
        ScriptedServer() as server,
        RelayProcess(server.name, options=MESSAGES) as relay,
        server.play([(len(get(1)), b"")], closes=True),
        relay.connect() as client,
    ):
        client.sendall(get(1))
        assert receive_until_end(client).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert relay.report["failed"] == {"upstream_closed": 1}


def test_cut_answer_resets_the_client():
    with ScriptedServer() as server, RelayProcess(server.name, options=MESSAGES) as relay:
        cut = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
        with server.play([(len(get(1)), cut)], closes=True), relay.connect() as client:
            client.sendall(get(1))
            with pytest.raises(ConnectionResetError):
                receive_until_end(client)
    assert relay.report["failed"] == {"upstream_closed": 1}


def test_failure_after_an_interim_answer_is_a_502():
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    with (
        ScriptedServer() as server,
        RelayProcess(server.name, options=MESSAGES) as relay,
        server.play([(len(get(1)), early)], closes=True),
        relay.connect() as client,
    ):
        client.sendall(get(1))
        assert receive_until_end(client).startswith(early + b"HTTP/1.1 502 Bad Gateway\r\n")
    assert relay.report["failed"] == {"upstream_closed": 1}


def test_early_answer_arrives_though_the_upstream_has_closed():
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc"
    early = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nearly"
    with (
        ScriptedServer() as server,
        RelayProcess(server.name, options=MESSAGES) as relay,
        server.play([(len(request), early)], closes=True),
        relay.connect() as client,
    ):
        client.sendall(request)
        assert receive_until_end(client) == early


@pytest.mark.parametrize("interim", [b"100 Continue", b"103 Early Hints"])
def test_interim_answers_are_not_for_http_1_0(interim):
    # RFC 9110 section 15.2; and section 10.1.1, for what the relay would say by itself.
    request = (
        b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nContent-Length: 3\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    )
    final = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"
    steps = [(len(request) + 3, b"HTTP/1.1 " + interim + b"\r\n\r\n" + final)]
    with ScriptedServer() as server, RelayProcess(server.name, options=(*MESSAGES, "--couple", "form:t")) as relay:
        with server.play(steps, closes=False) as received, relay.connect() as client:
            client.sendall(request)
            # Time for the relay to read the head alone; if it takes longer, this shows less.
            client.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(20)
            client.sendall(b"t=1")
            assert receive_exactly(client, len(final)) == final
            client.shutdown(socket.SHUT_WR)
            assert receive_until_end(client) == b""
        assert received == request + b"t=1"


# -- what it adds -----------------------------------------------------------------------------------------------------


def test_added_headers():
    options = ("--forwarded", "--host", "shadow.example", "--marker", "X-Mirrored:yes")
    with RecordingSink() as sink, RelayProcess(sink.name, options=options) as relay:
        with relay.connect() as client:
            exchange(client, b"GET / HTTP/1.1\r\nhost: production\r\nX-Forwarded-For: 192.0.2.9\r\nA: 1\r\n\r\n")
        sink.wait_ended(1)
        assert sink.streams == [
            b"GET / HTTP/1.1\r\nhost: shadow.example\r\nX-Forwarded-For: 192.0.2.9, 127.0.0.1\r\nA: 1\r\n"
            b"X-Mirrored: yes\r\n\r\n"
        ]


def test_other_upstreams_get_copies_and_harm_nobody():
    body = noise(500_000)
    with RecordingSink() as first, RecordingSink() as second, RecordingSink(mode="resetting") as third:
        refused = f"127.0.0.1:{free_port()}"
        with RelayProcess(first.name, second.name, third.name, refused) as relay:
            with relay.connect() as client:
                for number in range(5):
                    exchange(client, post(number, body))
                    # More than may wait for it, if it had read nothing by now.
                    second.wait_requests(number + 1)
            first.wait_ended(1)
            second.wait_ended(1)
            assert first.streams == second.streams == [b"".join(post(number, body) for number in range(5))]
        copies = {copy["name"]: copy for copy in relay.report["copies"]}
        assert copies[second.name]["shed_bytes"] == 0
        assert set(copies[refused]["shed"]) == {"refused"}
        for copy in copies.values():
            assert copy["captured_bytes"] == copy["delivered_bytes"] + copy["shed_bytes"] + copy["pending_bytes"]


# -- the framed link --------------------------------------------------------------------------------------------------


def test_framed_link_without_coupling_is_served_too():
    with RecordingSink() as sink, RelayProcess(sink.name) as relay:
        with Link(relay) as link:
            link.send(encode_data(CLIENT, get(1) + get(2)[:9], 1), encode_data(SERVER, ANSWER, 1))
            link.send(encode_data(CLIENT, get(2)[9:], 1))
            link.end()
        sink.wait_ended(1)
        assert sink.streams == [get(1) + get(2)]
        assert relay.stop()["connections"]["framed"] == 1


def test_gap_within_a_request_resets_and_the_next_request_goes_on():
    with RecordingSink() as sink, RelayProcess(sink.name, options=MESSAGES) as relay:
        with Link(relay) as link:
            link.send(encode_data(CLIENT, post(1, b"x" * 100)[:-50], 1))
            sink.wait_received(len(post(1, b"x" * 100)) - 50)
            link.send(encode_gap(CLIENT, 50, 1), encode_data(CLIENT, get(2), 1))
            sink.wait_requests(1)
            link.end()
        sink.wait_ended(2)
        assert [each.ended for each in sink.connections] == ["rst", "fin"]
        assert bytes(sink.connections[1].received) == get(2)
    assert relay.report["failed"] == {"gap": 1}


def test_client_reset_on_a_link_resets_the_upstream():
    with RecordingSink(hold=True) as sink, RelayProcess(sink.name) as relay:
        with Link(relay) as link:
            link.send(encode_data(CLIENT, get(1), 1))
            sink.wait_requests(1)
            link.send(encode_rst(1))
            sink.wait_ended(1)
        assert [each.ended for each in sink.connections] == ["rst"]


def test_bad_record_is_refused():
    with RecordingSink() as sink, RelayProcess(sink.name) as relay, Link(relay) as link:
        link.send(b"\x09" + bytes(15))
        with pytest.raises(ConnectionResetError):
            receive_until_end(link._sock)
        assert relay.stop()["failed"] == {"bad_link": 1}


# -- coupling ---------------------------------------------------------------------------------------------------------


def test_production_session_becomes_the_shadows_on_every_connection():
    with Shadow() as shadow, RelayProcess(shadow.name, options=MESSAGES) as relay:
        with Link(relay, 1) as first, Link(relay, 2) as second:
            first.request("/login")
            first.response("Set-Cookie: SID=production-session\r\n")
            shadow.wait_seen(1)
            first.request("/a", "SID=production-session")
            second.request("/b", "SID=production-session")
            shadow.wait_seen(3)
            first.end()
            second.end()
        report = relay.stop()
    assert sorted(shadow.seen[1:]) == [("/a", "SID=shadow-session-0"), ("/b", "SID=shadow-session-0")]
    assert report["coupling"]["aliases_learned"] == 1
    assert report["coupling"]["requests_rewritten"] == 2
    assert report["coupling"]["requests_missed"] == 0


def test_request_waits_for_a_slower_shadow_and_others_flow():
    with Shadow() as shadow, RelayProcess(shadow.name, options=(*MESSAGES, "--couple-wait", "10")) as relay:
        shadow.gate.clear()
        with Link(relay, 1) as first, Link(relay, 2) as second, Link(relay, 3) as third:
            first.request("/login")
            first.response("Set-Cookie: SID=production-session\r\n")
            # Production has answered, so the next says what the shadow has not handed out yet.
            second.request("/held", "SID=production-session")
            second.request("/behind")
            third.request("/free")
            shadow.wait_seen(1)
            assert shadow.seen == [("/free", "")]
            shadow.gate.set()
            shadow.wait_seen(4)
            for link in (first, second, third):
                link.end()
        report = relay.stop()
    assert shadow.seen[2:] == [("/held", "SID=shadow-session-0"), ("/behind", "")]
    assert report["coupling"]["requests_held"] == 1
    assert report["coupling"]["requests_timed_out"] == 0


def test_what_production_said_counts_before_what_clients_ask():
    # A client takes its session from one connection to the next at once: both come in one turn of the relay.
    with Shadow() as shadow, RelayProcess(shadow.name, options=MESSAGES) as relay:
        with contextlib.ExitStack() as links:
            with relay.stopped():
                second, first = (links.enter_context(Link(relay, number)) for number in (2, 1))
                first.request("/login")
                first.response("Set-Cookie: SID=production-session\r\n")
                second.request("/a", "SID=production-session")
            shadow.wait_seen(2)
            first.end()
            second.end()
        assert relay.stop()["coupling"]["requests_missed"] == 0
    assert shadow.seen[1] == ("/a", "SID=shadow-session-0")


@pytest.mark.parametrize("policy", ["send", "drop"])
def test_wait_has_an_end_and_a_policy(policy):
    options = (*MESSAGES, "--couple-wait", "0.3", "--couple-policy", policy)
    with Shadow() as shadow, RelayProcess(shadow.name, options=options) as relay:
        shadow.gate.clear()
        with Link(relay, 1) as first, Link(relay, 2) as second:
            first.request("/login")
            first.response("Set-Cookie: SID=production-session\r\n")
            second.request("/held", "SID=production-session")
            second.request("/behind")
            shadow.wait_seen(2 if policy == "send" else 1)
            shadow.gate.set()
            shadow.wait_seen(3 if policy == "send" else 2)
            for link in (first, second):
                link.end()
        report = relay.stop()
    paths = [path for path, _ in shadow.seen]
    assert paths == (["/held", "/behind", "/login"] if policy == "send" else ["/behind", "/login"])
    assert report["coupling"]["requests_timed_out"] == 1
    assert report["exchanges"]["dropped"] == (policy == "drop")


def test_cookies_are_coupled_without_productions_answers():
    with Shadow() as shadow, RelayProcess(shadow.name, options=MESSAGES) as relay, relay.connect() as client:
        client.sendall(b"GET /login HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"SID=shadow-session-0" in receive_answer(client)
        client.sendall(b"GET /a HTTP/1.1\r\nHost: a\r\nCookie: SID=production-session\r\n\r\n")
        assert receive_answer(client).startswith(b"HTTP/1.1 200")
    assert shadow.seen[1:] == [("/a", "SID=shadow-session-0")]


def receive_answer(client: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        data = client.recv(1 << 16)
        assert data, received
        received += data
    return received


# -- the whole chain --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("responses", [False, True])
def test_capture_to_relay_to_nginx(host, tmp_path, responses):
    body = noise(300_000)
    (tmp_path / "body").write_bytes(body)
    sites = [("127.0.0.1", 80), ("127.0.0.2", 8080)]
    with (
        Nginx(tmp_path / "nginx", sites, namespace=host) as nginx,
        RelayProcess("127.0.0.2:8080", options=MESSAGES if responses else (), port=3280, namespace=host) as relay,
        GopherProcess(
            *("-c", "-p", "80", "-i", "lo", "-u", "relay://127.0.0.1:3280"),
            *(["--responses"] if responses else []),
            namespace=host,
        ),
    ):
        for number in range(20):
            curl("-T", str(tmp_path / "body"), f"http://127.0.0.1/file-{number}", namespace=host)
        nginx.wait_requests(20, site=0)
        nginx.wait_requests(20, site=1)
        assert nginx.requests(1) == nginx.requests(0)
        for number in range(20):
            assert (nginx.root(1) / f"file-{number}").read_bytes() == body
        report = relay.stop()
    assert report["connections"]["links"] == 20
    assert report["connections"]["framed"] == (20 if responses else 0)
    assert report["failed"] == {}


# -- hostile bytes ----------------------------------------------------------------------------------------------------


def spoilt(data: bytes, chance: random.Random) -> bytes:
    """Mostly as it was; else with a byte changed, or some taken away or repeated."""
    at = chance.randrange(len(data) + 1)
    length = chance.randrange(1, 40)
    what = chance.randrange(8)
    if what == 0:
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    if what == 1:
        return data[:at] + data[at + length :]
    if what == 2:
        return data[: at + length] + data[at:]
    return data


SCRIPTS = ("--script", "tests/support/scripts/look.py", "--script", "tests/support/scripts/read.py")


@pytest.mark.parametrize(("seed", "more"), [(0, ()), (1, ("--pipeline",)), (2, SCRIPTS), (3, ("--pipeline", *SCRIPTS))])
def test_hostile_bytes_do_not_end_the_relay(seed, more):
    chance = random.Random(seed)
    short = [each for each in CONVERSATIONS.values() if len(each.sent) + len(each.answered) < 5000]
    options = (*MESSAGES, "--couple", "auto", "--couple", "json:/token", "--couple-wait", "0.05", "--drain", "0.2")
    options += more
    with Shadow() as shadow, RelayProcess(shadow.name, options=options) as relay:
        for number in range(300):
            with Link(relay, number, joined=chance.random() < 0.2) if number % 2 else relay.connect() as client:
                send = client.send if number % 2 else client.sendall
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    for sent, _, answer in chance.choice(short).steps:
                        records = [
                            encode_data(side, data, 1) for side, data in ((CLIENT, sent), (SERVER, answer)) if data
                        ]
                        if chance.random() < 0.2:
                            records.append(encode_gap(chance.randrange(2), chance.choice([1, 9, 1000]), 1))
                        send(spoilt(b"".join(records) if number % 2 else sent, chance))
        with relay.connect() as client:
            client.sendall(b"GET /login HTTP/1.1\r\nHost: a\r\n\r\n")
            assert receive_answer(client).startswith(b"HTTP/1.1 200 ")
        report = relay.stop()
    assert report["connections"]["accepted"] == 301
    assert not any(each["failures"] for each in report["scripts"]), relay.stderr
