"""The real relay with scripts: the examples of docs/scripting.md, and what a script may do to the others."""

import gzip
import hashlib
import hmac
import json
import re
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gopher.link import encode_data, encode_gap
from tests.support.clients import receive_exactly
from tests.support.command import run_gopher
from tests.support.relay import SERVER, Link, RelayProcess, ScriptedServer, receive_until_end
from tests.support.servers import ANSWER, RecordingSink

pytestmark = pytest.mark.e2e

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = sorted(DOCS.glob("scripts/*.py"))
WAIT_S = 20
DROPPED = b"HTTP/1.1 204 No Content\r\n\r\n"
DROPPED_AT_END = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


class Application(ThreadingHTTPServer):
    """Answers each path as it was told to, else with an empty 200.

    Attributes:
        answers: (status, headers, body) by path.
        seen: (method, path, headers in lower case, body) of each request.
    """

    daemon_threads = True

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.server.note((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status, headers, answer = self.server.answers.get(self.path, (200, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_any

        def log_message(self, *_):
            pass

    def __init__(self, answers=()):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.name = "{}:{}".format(*self.server_address)
        self.answers = dict(answers)
        self.seen = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def note(self, request):
        with self._changed:
            self.seen.append(request)
            self._changed.notify_all()

    def wait_seen(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, WAIT_S), self.seen

    @property
    def asked(self):
        return [f"{method} {path}" for method, path, _, _ in self.seen]

    def __exit__(self, *exc_info):
        self.shutdown()
        self._thread.join()
        super().__exit__(*exc_info)


class Client:
    """A client's connection that reads answers whole."""

    def __init__(self, relay):
        self.sock = relay.connect()
        self._file = self.sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._file.close()
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def answer(self, method="GET"):
        """The next answer: (status, headers in lower case, body)."""
        status = int(self._file.readline().split()[1])
        headers = {}
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        length = 0 if method == "HEAD" or status in (204, 304) else int(headers.get("content-length", "0"))
        return status, headers, self._file.read(length)

    def ask(self, method, path, body=b"", **headers):
        self.send(a_request(method, path, body, **headers))
        return self.answer(method)


def a_request(method, path, body=b"", **headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: shop.example"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def script(tmp_path, text, name="script.py"):
    path = tmp_path / name
    path.write_text(text)
    return "--script", str(path)


def assert_adds_up(report):
    """Nothing is under way any more, and no connection failed: each request was answered, dropped, or unanswered."""
    counts = report["exchanges"]
    assert counts["requests"] == counts["responses"] + counts["dropped"] + counts["unanswered"], report
    assert sum(each["dropped"] for each in report["scripts"]) == counts["dropped"], report
    assert report["failed"] == {}, report


def example(name):
    return "--script", str(DOCS / "scripts" / name)


# -- the examples -----------------------------------------------------------------------------------------------------


def test_the_page_shows_the_examples_as_they_are():
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "scripting.md").read_text(), re.DOTALL)
    assert len(EXAMPLES) == 5
    for path in EXAMPLES:
        assert path.read_text() in blocks, path
        assert f"docs/scripts/{path.name}" in (DOCS / "scripting.md").read_text()


def test_example_hide_personal_data():
    with Application() as shadow, RelayProcess(shadow.name, options=example("hide_personal_data.py")) as relay:
        with Client(relay) as client:
            order = json.dumps({"mail": "ann@mail.example", "card": "4111111111111111", "n": 7}).encode()
            assert client.ask("POST", "/order", order, Content_Type="application/json")[0] == 200
            form = b"mail=ann%40mail.example&n=7"
            client.ask("POST", "/form", form, Content_Type="application/x-www-form-urlencoded")
            client.ask("PUT", "/photo", b"ann@mail.example", Content_Type="image/png")
        report = relay.stop()
    hidden = {"mail": "*" * 16, "card": "*" * 16, "n": 7}
    assert json.loads(shadow.seen[0][3]) == hidden
    assert shadow.seen[1][3] == b"mail=" + b"*" * 16 + b"&n=7"
    assert shadow.seen[2][3] == b"ann@mail.example"
    assert_adds_up(report)


def test_example_drop_side_effects():
    with Application() as shadow, RelayProcess(shadow.name, options=example("drop_side_effects.py")) as relay:
        with Client(relay) as client:
            # Pipelined: the answers come in order all the same.
            client.send(
                a_request("GET", "/cart")
                + a_request("POST", "/payments", b"card=1")
                + a_request("DELETE", "/account")
                + a_request("GET", "/bye")
            )
            assert [client.answer()[0] for _ in range(4)] == [200, 204, 204, 200]
        report = relay.stop()
    assert shadow.asked == ["GET /cart", "GET /bye"]
    assert shadow.seen[0][2]["x-shadow"] == "1"
    assert report["exchanges"] == {"requests": 4, "responses": 2, "dropped": 2, "unanswered": 0}
    assert report["answers"] == {"204": 2}
    assert_adds_up(report)


def test_example_sign_again():
    with Application() as shadow, RelayProcess(shadow.name, options=example("sign_again.py")) as relay:
        with Client(relay) as client:
            assert client.ask("POST", "/api", b"amount=5", X_Signature="production's")[0] == 200
            assert client.ask("GET", "/api?q=1", X_Signature="production's")[0] == 200
            assert client.ask("GET", "/unsigned")[0] == 200
        relay.stop()

    def signature(text):
        return hmac.new(b"the shadow's key", text, hashlib.sha256).hexdigest()

    assert [headers.get("x-signature") for _, _, headers, _ in shadow.seen] == [
        signature(b"POST /api\namount=5"),
        signature(b"GET /api?q=1\n"),
        None,
    ]


def test_example_own_links():
    page = b'<a href="https://shop.example/cart">cart</a>'
    html = {"Content-Type": "text/html; charset=utf-8"}
    answers = {
        "/page": (200, html, page),
        "/packed": (200, {**html, "Content-Encoding": "gzip"}, gzip.compress(page)),
        "/text": (200, {"Content-Type": "text/plain"}, page),
        "/away": (302, {"Location": "https://shop.example/login"}, b""),
    }
    with Application(answers) as shadow, RelayProcess(shadow.name, options=example("own_links.py")) as relay:
        with Client(relay) as client:
            for path in ("/page", "/packed"):
                status, headers, body = client.ask("GET", path)
                assert (status, body) == (200, b'<a href="/cart">cart</a>')
                assert "content-encoding" not in headers
            assert client.ask("HEAD", "/page")[1]["content-length"] == str(len(page))
            assert client.ask("GET", "/text")[2] == page
            status, headers, _ = client.ask("GET", "/away")
            assert (status, headers["location"]) == (302, "/login")
        assert_adds_up(relay.stop())


def test_example_compare(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPARE_REPORT", str(tmp_path / "differences"))
    with (
        Application({"/other": (500, {}, b"")}) as shadow,
        RelayProcess(shadow.name, options=example("compare.py")) as relay,
    ):
        with Link(relay) as link:
            for number, path in enumerate(("/same", "/other", "/same"), 1):
                link.request(path)
                if path == "/other":
                    # The shadow may be the faster one, too.
                    shadow.wait_seen(number)
                link.response()
            link.end()
        report = relay.stop()
    difference, summary = map(json.loads, (tmp_path / "differences").read_text().splitlines())
    assert difference["exchange"] == "/other"
    assert (difference["production"]["status"], difference["shadow"]["status"]) == (200, 500)
    assert summary == {"connection": "192.0.2.1", "compared": 3, "different": 1}
    assert report["scripts"][0]["calls"] == 8
    assert_adds_up(report)


# -- scripts that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("define", ["def", "async def"])
def test_script_that_raises_changes_nothing_and_is_told_once(tmp_path, define):
    text = (
        f"{define} request(exchange):\n"
        "    exchange.request.headers['X-Half'] = 'done'\n"
        "    exchange.request.body = b'half done'\n"
        "    raise RuntimeError('oops')\n"
        f"{define} shadow_response(exchange):\n"
        "    exchange.shadow_response.status = 500\n"
        "    exchange.shadow_response.nonsense()\n"
    )
    sent = a_request("POST", "/1", b"hello") + a_request("GET", "/2")
    with RecordingSink() as sink, RelayProcess(sink.name, options=script(tmp_path, text)) as relay:
        with relay.connect() as client:
            client.sendall(sent)
            assert receive_exactly(client, 2 * len(ANSWER)) == 2 * ANSWER
        sink.wait_ended(1)
        assert sink.streams == [sent]
        report = relay.stop()
    [counts] = report["scripts"]
    assert (counts["calls"], counts["failures"], counts["timed_out"]) == (4, 4, 0)
    told = [line for line in relay.stderr.splitlines() if "script.py:" in line and "failed" in line]
    assert [line.partition("script.py:")[2].split(";")[0] for line in told] == [
        "4: request() failed: RuntimeError: oops",
        "7: shadow_response() failed: AttributeError: 'Response' object has no attribute 'nonsense'",
    ]
    assert_adds_up(report)


@pytest.mark.parametrize(
    "text",
    [
        "import pathlib, time\n"
        "def request(exchange):\n"
        "    while 'slow' in exchange.request.target and not pathlib.Path('{gate}').exists():\n"
        "        time.sleep(0.01)\n",
        "import pathlib, trio\n"
        "async def request(exchange):\n"
        "    while 'slow' in exchange.request.target and not pathlib.Path('{gate}').exists():\n"
        "        await trio.sleep(0.01)\n",
    ],
    ids=["plain", "async"],
)
def test_script_that_takes_long_holds_up_its_own_connection_only(tmp_path, text):
    gate = tmp_path / "gate"
    options = (*script(tmp_path, text.format(gate=gate)), "--script-timeout", str(WAIT_S))
    with Application() as shadow, RelayProcess(shadow.name, options=options) as relay:
        with Client(relay) as slow, Client(relay) as quick:
            slow.send(a_request("GET", "/slow") + a_request("GET", "/behind"))
            for number in range(20):
                assert quick.ask("GET", f"/quick/{number}")[0] == 200
            # The others did not wait for it.
            assert "GET /slow" not in shadow.asked
            gate.touch()
            assert [slow.answer()[0] for _ in range(2)] == [200, 200]
        report = relay.stop()
    assert shadow.asked[-2:] == ["GET /slow", "GET /behind"]
    [counts] = report["scripts"]
    assert (counts["calls"], counts["failures"], counts["timed_out"]) == (22, 0, 0)
    assert_adds_up(report)


@pytest.mark.parametrize(
    "text",
    [
        "import time\ndef request(exchange):\n    time.sleep(3600 if 'slow' in exchange.request.target else 0)\n",
        "import trio\nasync def request(exchange):\n    await trio.sleep(3600 * ('slow' in exchange.request.target))\n",
    ],
    ids=["plain", "async"],
)
def test_script_that_takes_too_long_is_left_behind(tmp_path, text):
    options = (*script(tmp_path, text), "--script-timeout", "1.5")
    with Application() as shadow, RelayProcess(shadow.name, options=options) as relay:
        with Client(relay) as client:
            client.send(a_request("GET", "/slow") + a_request("GET", "/behind"))
            assert [client.answer()[0] for _ in range(2)] == [200, 200]
        report = relay.stop()
    assert shadow.asked == ["GET /slow", "GET /behind"]
    [counts] = report["scripts"]
    assert (counts["calls"], counts["failures"], counts["timed_out"]) == (2, 0, 1)
    assert "script.py:3: request() took more than 1.5 s" in relay.stderr
    assert_adds_up(report)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def request(exchange)\n    pass\n", "script.py:1: expected ':'"),
        ("import os\nimport nowhere\n", "script.py:2: ModuleNotFoundError: No module named 'nowhere'"),
        ("def requests(exchange):\n    pass\n", "script.py: it defines none of the functions"),
    ],
)
def test_script_that_cannot_be_loaded_ends_the_start(tmp_path, text, reason):
    done = run_gopher("-r", "-p", "1", "-u", "localhost", *script(tmp_path, text))
    assert done.returncode == 2
    assert done.stderr.startswith("gopher: error: --script ")
    assert reason in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


# -- bodies -----------------------------------------------------------------------------------------------------------

UPPER = (
    "async def request(exchange):\n"
    "    exchange.request.body = (await exchange.request.read()).upper()\n"
    "async def shadow_response(exchange):\n"
    "    exchange.shadow_response.body = (await exchange.shadow_response.read()).upper()\n"
)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3;e=1\r\ncde\r\n0\r\nX-Sum: 1\r\n\r\n"


@pytest.mark.parametrize("step", [1, 1000])
def test_changed_bodies_are_framed_by_their_length(tmp_path, step):
    sent = b"POST / HTTP/1.1\r\nHost: a\r\n" + CHUNKED
    expected = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nABCDE"
    answers = [
        (b"HTTP/1.1 200 OK\r\n" + CHUNKED, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nABCDE"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the close", b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nUNTIL THE CLOSE"),
    ]
    with ScriptedServer() as server, RelayProcess(server.name, options=script(tmp_path, UPPER)) as relay:
        steps = [(len(expected), answer) for answer, _ in answers]
        with server.play(steps, closes=True) as received, relay.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, 2 * len(sent), step):
                client.sendall((sent * 2)[at : at + step])
            assert receive_until_end(client) == b"".join(answer for _, answer in answers)
        assert received == 2 * expected
        assert_adds_up(relay.stop())


def test_body_that_is_too_long_fails_open_both_ways(tmp_path):
    body = bytes(range(256)) * 12_000
    answers = {"/": (200, {}, body)}
    with Application(answers) as shadow, RelayProcess(shadow.name, options=script(tmp_path, UPPER)) as relay:
        with Client(relay) as client:
            assert client.ask("POST", "/", body)[2] == body
            assert client.ask("POST", "/small", b"small")[0] == 200
        report = relay.stop()
    assert [request[3] for request in shadow.seen] == [body, b"SMALL"]
    [counts] = report["scripts"]
    assert (counts["calls"], counts["failures"]) == (4, 2)
    assert "BodyError: the body is longer than the 1,048,576 bytes that a script may have" in relay.stderr
    assert_adds_up(report)


def test_client_that_expects_100_gets_it_where_a_script_wants_the_body(tmp_path):
    with Application() as shadow, RelayProcess(shadow.name, options=script(tmp_path, UPPER)) as relay:
        with Client(relay) as client:
            client.send(a_request("POST", "/", b"hello", Expect="100-continue")[:-5])
            assert client.answer()[0] == 100
            client.send(b"hello")
            assert client.answer()[0] == 200
        assert_adds_up(relay.stop())
    assert shadow.seen[0][3] == b"HELLO"


def test_body_that_was_not_read_can_be_replaced(tmp_path):
    """What the client goes on sending has no reader, and does not get mixed up with its next request."""
    text = (
        "def request(exchange):\n    exchange.request.body = b'new'\n"
        "def shadow_response(exchange):\n    exchange.shadow_response.body = b'answer'\n"
    )
    with (
        Application({"/1": (200, {}, bytes(500_000))}) as shadow,
        RelayProcess(shadow.name, options=script(tmp_path, text)) as relay,
    ):
        with Client(relay) as client:
            client.send(a_request("POST", "/1", bytes(3_000_000)) + a_request("GET", "/2"))
            assert [client.answer()[2] for _ in range(2)] == [b"answer", b"answer"]
        assert_adds_up(relay.stop())
    assert [(request[1], request[3]) for request in shadow.seen] == [("/1", b"new"), ("/2", b"new")]


@pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}])
def test_dropped_upload(tmp_path, expect):
    text = "def request(exchange):\n    if exchange.request.method == 'POST':\n        exchange.drop()\n"
    body = bytes(3_000_000)
    with Application() as shadow, RelayProcess(shadow.name, options=script(tmp_path, text)) as relay:
        with Client(relay) as client:
            head = a_request("POST", "/1", body, **expect)[: -len(body)]
            client.send(head)
            status, headers, _ = client.answer()
            assert status == 204
            if expect:
                # Whether the body comes now cannot be known.
                assert headers["connection"] == "close"
                assert client.sock.recv(1) == b""
            else:
                client.send(body + a_request("GET", "/2"))
                assert client.answer()[0] == 200
        assert_adds_up(relay.stop())
    assert shadow.asked == ([] if expect else ["GET /2"])


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", DROPPED_AT_END),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", DROPPED_AT_END),
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", DROPPED),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", DROPPED),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", DROPPED),
    ],
    ids=["http/1.0", "connection close", "upgrade", "connect", "head"],
)
def test_dropped_request_leaves_the_connection_in_order(tmp_path, request_, answer):
    text = "def request(exchange):\n    if exchange.request.target != '/next':\n        exchange.drop()\n"
    with RecordingSink() as sink, RelayProcess(sink.name, options=script(tmp_path, text)) as relay:
        with relay.connect() as client:
            # What follows a request for a tunnel is held until it is known that there is none.
            following = a_request("GET", "/next") if answer == DROPPED else b""
            client.sendall(request_ + following)
            client.shutdown(socket.SHUT_WR)
            assert receive_until_end(client) == answer + (ANSWER if following else b"")
        report = relay.stop()
        assert sink.streams == ([following] if following else [])
    assert report["exchanges"]["dropped"] == 1
    assert_adds_up(report)


def test_client_whose_expectation_a_script_removes_is_told_to_go_on(tmp_path):
    text = "async def request(exchange):\n    exchange.request.headers.remove('Expect')\n"
    with Application() as shadow, RelayProcess(shadow.name, options=script(tmp_path, text)) as relay:
        with Client(relay) as client:
            client.send(a_request("POST", "/", b"hello", Expect="100-continue")[:-5])
            assert client.answer()[0] == 100
            client.send(b"hello")
            assert client.answer()[0] == 200
        assert_adds_up(relay.stop())
    assert shadow.seen[0][3] == b"hello"
    assert "expect" not in shadow.seen[0][2]


def test_unclear_body_that_a_script_reads_is_refused(tmp_path):
    with Application() as shadow, RelayProcess(shadow.name, options=script(tmp_path, UPPER)) as relay:
        with relay.connect() as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nnonsense\r\n")
            assert receive_until_end(client).startswith(b"HTTP/1.1 400 ")
        report = relay.stop()
    assert shadow.seen == []
    assert report["failed"] == {"bad_request": 1}
    assert report["scripts"][0]["failures"] == 0


def test_upload_and_download_larger_than_memory_stream_past_scripts(tmp_path):
    """To be read at both ends at once: neither is held back until the other is over."""
    text = (
        "def request(exchange):\n    exchange.request.headers['X-Seen'] = '1'\n"
        "def shadow_response(exchange):\n    exchange.shadow_response.headers['X-Seen'] = '1'\n"
    )
    body = bytes(60_000_000)
    application = Application({"/": (200, {}, body)})
    with application as shadow, RelayProcess(shadow.name, options=script(tmp_path, text)) as relay:
        with Client(relay) as client:
            status, headers, answer = client.ask("POST", "/", body)
            assert (status, headers["x-seen"], answer) == (200, "1", body)
        assert relay.peak_memory_mib() < 100
        assert_adds_up(relay.stop())
    assert shadow.seen[0][3] == body


def test_answer_that_a_script_holds_is_not_read_on(tmp_path):
    """Neither before the script asks for the body, nor when that has turned out to be too long for it."""
    text = (
        "import gopher, trio\n"
        "async def shadow_response(exchange):\n"
        "    await trio.sleep(0.3)\n"
        "    try:\n"
        "        await exchange.shadow_response.read()\n"
        "    except gopher.BodyError:\n"
        "        await trio.sleep(0.3)\n"
    )
    body = bytes(120_000_000)
    application = Application({"/": (200, {}, body)})
    with application as shadow, RelayProcess(shadow.name, options=script(tmp_path, text)) as relay:
        with Client(relay) as client:
            assert client.ask("GET", "/")[2] == body
        assert relay.peak_memory_mib() < 80
        assert_adds_up(relay.stop())


def test_answer_without_end_streams_past_a_script_that_does_not_read_it(tmp_path):
    text = "async def shadow_response(exchange):\n    exchange.shadow_response.headers['X-Seen'] = '1'\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    get = a_request("GET", "/events")
    with (
        ScriptedServer() as server,
        RelayProcess(server.name, options=script(tmp_path, text)) as relay,
        server.play([(len(get), head + b"\r\ndata: 1\n\n"), (0, b"data: 2\n\n")], closes=False),
        relay.connect() as client,
    ):
        client.sendall(get)
        expected = head + b"X-Seen: 1\r\n\r\ndata: 1\n\ndata: 2\n\n"
        assert receive_exactly(client, len(expected)) == expected


def test_tunnel_begins_after_the_script(tmp_path):
    text = (
        "def request(exchange):\n    exchange.request.headers['X-Seen'] = '1'\n"
        "def shadow_response(exchange):\n    raise RuntimeError('an upgrade is not for scripts')\n"
        "def closed(connection):\n    pass\n"
    )
    ask = b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    sent = ask[:-2] + b"X-Seen: 1\r\n\r\n"
    agreed = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    with ScriptedServer() as server, RelayProcess(server.name, options=script(tmp_path, text)) as relay:
        with server.play([(len(sent), agreed), (4, b"pong")], closes=True) as received, relay.connect() as client:
            client.sendall(ask + b"ping")
            assert receive_until_end(client) == agreed + b"pong"
        assert received == sent + b"ping"
        report = relay.stop()
    [counts] = report["scripts"]
    assert (counts["calls"], counts["failures"]) == (2, 0)


# -- with the rest of the relay ---------------------------------------------------------------------------------------


def test_scripts_see_the_request_after_the_rules_and_have_the_last_word(tmp_path):
    text = (
        "async def request(exchange):\n"
        "    headers = exchange.request.headers\n"
        "    headers['X-Saw'] = headers.get('Cookie', 'none') + '/' + headers['X-Marker']\n"
        "    del headers['X-Marker']\n"
    )
    login = {"/login": (200, {"Set-Cookie": "SID=shadows-session"}, b"")}
    options = (*script(tmp_path, text), "--couple", "cookie:SID", "--marker", "X-Marker: 1")
    with Application(login) as shadow, RelayProcess(shadow.name, options=options) as relay:
        with Link(relay) as link:
            link.request("/login")
            link.response("Set-Cookie: SID=productions-session\r\n")
            shadow.wait_seen(1)
            link.request("/cart", "SID=productions-session")
            link.response()
            link.end()
        report = relay.stop()
    assert [headers["x-saw"] for _, _, headers, _ in shadow.seen] == ["none/1", "SID=shadows-session/1"]
    assert all("x-marker" not in headers for _, _, headers, _ in shadow.seen)
    assert report["coupling"]["requests_rewritten"] == 1
    assert_adds_up(report)


ORDER = """
import json, sys

def note(connection, what):
    connection.metadata.setdefault("seen", []).append(what)

async def connected(connection):
    assert connection.framed and connection.client == ("192.0.2.1", 1001) and connection.server == ("192.0.2.2", 80)
    note(connection, "connected")

async def request(exchange):
    note(exchange.connection, "request " + exchange.request.target)
    if exchange.request.target == "/dropped":
        exchange.drop()

async def production_response(exchange):
    note(exchange.connection, f"production {exchange.request.target} {exchange.production_response.status}")
    assert exchange.timing.production_response_s >= exchange.timing.request_s

async def shadow_response(exchange):
    note(exchange.connection, f"shadow {exchange.request.target} {exchange.shadow_response.status}")

def closed(connection):
    print("SEEN " + json.dumps(connection.metadata["seen"]), file=sys.stderr, flush=True)
"""


def seen_by(relay):
    [line] = [line for line in relay.stderr.splitlines() if line.startswith("SEEN ")]
    return json.loads(line.removeprefix("SEEN "))


def test_framed_link_shows_productions_answers_after_their_requests(tmp_path):
    with (
        Application({"/2": (404, {}, b"")}) as shadow,
        RelayProcess(shadow.name, options=script(tmp_path, ORDER)) as relay,
        Link(relay) as link,
    ):
        # All at once: production's answers are there before their requests' turn.
        for path in ("/1", "/dropped", "/2"):
            link.request(path)
            link.response()
        link.end()
        report = relay.stop()
    seen = seen_by(relay)
    for path, status in (("/1", 200), ("/dropped", None), ("/2", 404)):
        mine = [what for what in seen if what.split(" ")[1:2] == [path]]
        assert mine[0] == f"request {path}"
        wanted = {f"request {path}", f"production {path} 200"} | ({f"shadow {path} {status}"} if status else set())
        assert set(mine) == wanted
        assert len(mine) == len(wanted)
    assert [what for what in seen if what.startswith("request")] == ["request /1", "request /dropped", "request /2"]
    assert (seen[0], shadow.asked) == ("connected", ["GET /1", "GET /2"])
    assert report["exchanges"]["dropped"] == 1
    assert report["answers"] == {}
    assert_adds_up(report)


def test_more_of_production_than_may_be_kept_is_not_kept(tmp_path):
    """Requests that wait for their turn may have been answered by production long ago."""
    text = (
        "import sys, trio\n"
        "async def production_response(exchange):\n"
        "    print('BYTES', len(await exchange.production_response.read()), file=sys.stderr, flush=True)\n"
    )
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
    with RecordingSink(hold=True) as sink, RelayProcess(sink.name, options=script(tmp_path, text)) as relay:
        with Link(relay) as link:
            for number in range(8):
                link.request(f"/{number}")
                for at in range(0, len(page), 50_000):
                    link.send(encode_data(SERVER, page[at : at + 50_000], 1))
            # The first one is with the upstream; the others wait, and production's answers with them.
            sink.wait_requests(1)
            relay.wait_stderr(lambda line: line == "BYTES 1000000")
            link.wait_read()
            sink.release()
            link.end()
        report = relay.stop()
    assert report["exchanges"]["responses"] == 8
    [counts] = report["scripts"]
    assert counts["calls"] == 8
    kept = relay.stderr.count("BYTES 1000000")
    assert 4 <= kept < 8
    assert counts["failures"] == 8 - kept
    assert "BodyError: too many answers of production wait on this link to keep their bodies" in relay.stderr
    assert_adds_up(report)


def test_production_is_kept_until_its_function_has_seen_it(tmp_path):
    text = (
        "import sys\n"
        "async def production_response(exchange):\n"
        "    print('BYTES', len(await exchange.production_response.read()), file=sys.stderr, flush=True)\n"
    )
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
    with RecordingSink() as sink, RelayProcess(sink.name, options=script(tmp_path, text)) as relay:
        with Link(relay) as link:
            # More than may be kept at once.
            for count in range(1, 8):
                link.request(f"/{count}")
                for at in range(0, len(page), 50_000):
                    link.send(encode_data(SERVER, page[at : at + 50_000], 1))
                relay.wait_stderr(lambda line: line == "BYTES 1000000", count=count)
            link.end()
        assert_adds_up(relay.stop())


def test_gap_in_productions_answers_ends_what_scripts_see_of_them(tmp_path):
    with Application() as shadow, RelayProcess(shadow.name, options=script(tmp_path, ORDER)) as relay:
        with Link(relay) as link:
            link.request("/1")
            link.send(encode_gap(SERVER, 50, 1))
            link.request("/2")
            link.response()
            link.end()
        assert_adds_up(relay.stop())
    assert seen_by(relay) == ["connected", "request /1", "shadow /1 200", "request /2", "shadow /2 200"]
    assert shadow.asked == ["GET /1", "GET /2"]


def test_client_that_goes_while_a_script_has_its_request(tmp_path):
    text = (
        "import sys, trio\n"
        "async def request(exchange):\n"
        "    print('ENTERED', file=sys.stderr, flush=True)\n"
        "    await exchange.request.read()\n"
        "async def closed(connection):\n"
        "    print('CLOSED', file=sys.stderr, flush=True)\n"
    )
    with Application() as shadow, RelayProcess(shadow.name, options=script(tmp_path, text)) as relay:
        with relay.connect() as client:
            client.sendall(a_request("POST", "/", b"hello")[:-1])
            relay.wait_stderr(lambda line: line == "ENTERED")
        relay.wait_stderr(lambda line: line == "CLOSED")
        report = relay.stop()
    assert shadow.seen == []
    assert report["failed"] == {"client_reset": 1}
    [counts] = report["scripts"]
    assert (counts["calls"], counts["failures"], counts["timed_out"]) == (2, 0, 0)
    assert "failed:" not in relay.stderr


def test_upstream_that_breaks_within_an_answer_that_a_script_reads(tmp_path):
    get = a_request("GET", "/")
    with ScriptedServer() as server, RelayProcess(server.name, options=script(tmp_path, UPPER)) as relay:
        with (
            server.play([(len(get), b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")], closes=True),
            relay.connect() as client,
        ):
            client.sendall(get)
            with pytest.raises(ConnectionResetError):
                receive_until_end(client)
        report = relay.stop()
    assert report["failed"] == {"upstream_closed": 1}
    assert report["exchanges"] == {"requests": 1, "responses": 0, "dropped": 0, "unanswered": 1}
    assert report["scripts"][0]["failures"] == 0


def test_end_calls_closed_of_connections_that_are_open(tmp_path):
    text = "import sys\ndef closed(connection):\n    print('CLOSED', file=sys.stderr, flush=True)\n"
    options = (*script(tmp_path, text), "--drain", "0.2")
    with (
        Application(),
        RecordingSink(mode="mute") as sink,
        RelayProcess(sink.name, options=options) as relay,
        relay.connect() as client,
    ):
        client.sendall(a_request("GET", "/"))
        sink.wait_requests(1)
        relay.signal(signal.SIGTERM)
        report = relay.wait()
    assert report["failed"] == {"drain": 1}
    assert relay.stderr.count("CLOSED") == 1


def test_scripts_before_and_after_each_other(tmp_path):
    texts = [
        f"def request(exchange):\n    exchange.request.target += '{name}'\n"
        f"async def shadow_response(exchange):\n    exchange.shadow_response.headers.add('X-By', '{name}')\n"
        for name in "abc"
    ]
    options = [word for name, text in zip("abc", texts, strict=True) for word in script(tmp_path, text, f"{name}.py")]
    with Application() as shadow, RelayProcess(shadow.name, options=options) as relay:
        with relay.connect() as client:
            client.sendall(a_request("GET", "/", Connection="close"))
            answer = receive_until_end(client)
        report = relay.stop()
    assert shadow.asked == ["GET /abc"]
    assert re.findall(rb"X-By: (\w)", answer) == [b"a", b"b", b"c"]
    assert [Path(each["name"]).name for each in report["scripts"]] == ["a.py", "b.py", "c.py"]
