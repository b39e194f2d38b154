"""The real relay before real servers: nothing but bytes."""

import contextlib
import itertools
import random
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from gopher.link import LinkInfo, ProxyHeader, encode_header
from tests.support.clients import curl, exchange, get, noise, receive_exactly
from tests.support.command import run_gopher
from tests.support.conversations import CONVERSATIONS
from tests.support.relay import RelayProcess, ScriptedServer, free_port, receive_until_end
from tests.support.servers import ANSWER, Nginx, RecordingSink, reset

pytestmark = pytest.mark.e2e

HEADER = encode_header(
    ProxyHeader(
        client=("192.0.2.1", 1234),
        server=("192.0.2.2", 80),
        unique_id=b"u" * 16,
        link=LinkInfo(framed=False, start_ns=1),
    )
)
# Before the relay reads messages, and when it does.
MODES = {
    "bytes": (),
    "messages": ("--couple", "cookie:no-such-cookie"),
    "pipeline": ("--couple", "cookie:no-such-cookie", "--pipeline"),
}
# And with scripts that change nothing.
ALL_MODES = {
    **MODES,
    "plain script": ("--script", "tests/support/scripts/look.py"),
    "reading script": ("--script", "tests/support/scripts/read.py", "--pipeline"),
}


def pieces(data: bytes, cut: str):
    if cut == "whole" or len(data) > 100_000:
        return [data]
    if cut == "byte by byte":
        return [data[at : at + 1] for at in range(len(data))]
    chance = random.Random(len(data))
    cuts = sorted({0, len(data), *(chance.randrange(len(data) + 1) for _ in range(8))})
    return [data[begin:end] for begin, end in itertools.pairwise(cuts)]


def converse(address, conversation, cut: str) -> bytes:
    """Returns what the client received, to the end."""
    received = bytearray()
    with socket.create_connection(address, timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for sent, _, answer in conversation.steps:
            # Beside reading: a relay that waits for room, and a server that answers early, must not meet a deaf client.
            sender = threading.Thread(target=lambda data=sent: [client.sendall(piece) for piece in pieces(data, cut)])
            sender.start()
            received += receive_exactly(client, len(answer))
            sender.join()
        if not conversation.closes:
            client.shutdown(socket.SHUT_WR)
        received += receive_until_end(client)
    return bytes(received)


@pytest.mark.parametrize("cut", ["whole", "byte by byte", "randomly"])
@pytest.mark.parametrize("mode", ALL_MODES)
def test_every_conversation_passes_byte_for_byte(mode, cut):
    with ScriptedServer() as server, RelayProcess(server.name, options=ALL_MODES[mode]) as relay:
        chosen = {name: each for name, each in CONVERSATIONS.items() if each.http or mode == "bytes"}
        if mode == "reading script":
            # Who reads the whole request before it is sent cannot have it answered halfway.
            del chosen["early answer"], chosen["early answer to an upgrade"]
        for name, conversation in chosen.items():
            steps = [step[1:] for step in conversation.steps]
            for address in (server.address, ("127.0.0.1", relay.port)):
                with server.play(steps, closes=conversation.closes) as received:
                    assert converse(address, conversation, cut) == conversation.answered, name
                assert received == conversation.sent, name
        assert relay.stop()["connections"]["finished"] == len(chosen)


@pytest.mark.parametrize("mode", ALL_MODES)
def test_nginx_behind_the_relay(mode, tmp_path):
    body = noise(20_000_000)
    (tmp_path / "body").write_bytes(body)
    port = free_port()
    with Nginx(tmp_path / "nginx", [("127.0.0.1", port)]) as nginx:
        with RelayProcess(f"localhost:{port}", options=ALL_MODES[mode]) as relay:
            url = f"http://127.0.0.1:{relay.port}"
            curl("-T", str(tmp_path / "body"), f"{url}/file")
            assert (nginx.root() / "file").read_bytes() == body
            curl("-o", str(tmp_path / "back"), f"{url}/file")
            assert (tmp_path / "back").read_bytes() == body
            assert curl(f"{url}/short/") == "short"
            assert curl(f"http://[::1]:{relay.port}/short/") == "short"
            # Bounded, whatever the size of what passes.
            assert relay.peak_memory_mib() < 100
        assert relay.report["failed"] == {}
        assert relay.report["bytes"]["from_upstream"] > len(body)


@pytest.mark.parametrize("mode", MODES)
def test_many_connections_at_once(mode):
    with RecordingSink() as sink:
        with RelayProcess(sink.name, options=MODES[mode]) as relay, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(relay.connect()) for _ in range(300)]
            for _ in range(3):
                for number, client in enumerate(clients):
                    client.sendall(get(number))
                for client in clients:
                    assert receive_exactly(client, len(ANSWER)) == ANSWER
        assert relay.report["connections"]["accepted"] == 300
        assert sink.streams == sorted(get(number) * 3 for number in range(300))


@pytest.mark.parametrize("mode", ALL_MODES)
def test_slow_reader_holds_the_sender_back(mode):
    body = noise(60_000_000)
    received = []
    with RecordingSink(mode="silent") as sink, RelayProcess(sink.name, options=ALL_MODES[mode]) as relay:
        with relay.connect() as client:
            client.setblocking(False)
            data = f"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            sent, stalled_at = 0, time.monotonic()
            while time.monotonic() - stalled_at < 0.3:
                with contextlib.suppress(BlockingIOError):
                    sent += client.send(data[sent : sent + 1_000_000])
                    stalled_at = time.monotonic()
            assert sent < len(data)
            assert relay.peak_memory_mib() < 100
            sink.release()
            client.settimeout(20)
            client.sendall(data[sent:])
            received.append(receive_exactly(client, len(ANSWER)))
        sink.wait_ended(1)
        assert received == [ANSWER]
        assert sink.streams == [data]


# -- an upstream that fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_refused_upstream_is_a_502_that_says_why(mode):
    port = free_port()
    with RelayProcess(f"127.0.0.1:{port}", options=MODES[mode]) as relay, relay.connect() as client:
        client.sendall(get(1))
        head, _, body = receive_until_end(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert body == f"gopher: the upstream 127.0.0.1:{port} refused the connection\n".encode()
    assert relay.report["failed"] == {"refused": 1}
    assert relay.report["answers"] == {"502": 1}


def test_refused_upstream_resets_what_is_not_http():
    with RelayProcess(f"127.0.0.1:{free_port()}") as relay, relay.connect() as client:
        client.sendall(b"EHLO there\r\n")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert relay.report["answers"] == {}


@pytest.mark.parametrize("mode", MODES)
def test_upstream_that_does_not_accept_is_a_504(mode):
    with contextlib.ExitStack() as stack:
        # A full accept queue: the kernel answers no more attempts.
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        name = "{}:{}".format(*listener.getsockname())
        options = (*MODES[mode], "--connect-timeout", "0.3")
        with RelayProcess(name, options=options) as relay, relay.connect() as client:
            client.sendall(get(1))
            assert receive_until_end(client).startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    assert relay.report["failed"] == {"connect_timeout": 1}


@pytest.mark.parametrize("mode", MODES)
def test_upstream_that_does_not_answer_is_a_504(mode):
    options = (*MODES[mode], "--idle-timeout", "0.3")
    with RecordingSink(mode="mute") as sink, RelayProcess(sink.name, options=options) as relay:
        # The client has not been idle, however long it took.
        with relay.stopped():
            client = relay.connect()
            client.sendall(get(1))
        with client:
            assert receive_until_end(client).startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    assert relay.report["failed"] == {"no_answer": 1}


@pytest.mark.parametrize("mode", MODES)
def test_idle_connection_is_closed(mode):
    # Time enough for the exchange.
    options = (*MODES[mode], "--idle-timeout", "1")
    with RecordingSink() as sink, RelayProcess(sink.name, options=options) as relay:
        with relay.connect() as client:
            exchange(client, get(1))
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        sink.wait_ended(1)
    assert relay.report["failed"] == {"idle": 1}


@pytest.mark.parametrize("mode", MODES)
def test_client_reset_resets_the_upstream(mode):
    with RecordingSink(hold=True) as sink, RelayProcess(sink.name, options=MODES[mode]) as relay:
        client = relay.connect()
        client.sendall(get(1))
        sink.wait_requests(1)
        reset(client)
        sink.wait_ended(1)
        assert [each.ended for each in sink.connections] == ["rst"]
    assert relay.report["failed"] == {"client_reset": 1}


def test_upstream_reset_resets_the_client():
    with RecordingSink(mode="resetting") as sink, RelayProcess(sink.name) as relay, relay.connect() as client:
        client.sendall(get(1))
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert relay.stop()["failed"] == {"upstream_reset": 1}


# -- the link, unframed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_link_header_is_taken_off(mode):
    with RecordingSink() as sink:
        with RelayProcess(sink.name, options=(*MODES[mode], "--link-from", "127.0.0.0/8")) as relay:
            with relay.connect() as client:
                client.sendall(HEADER[:9])
                client.sendall(HEADER[9:] + get(1))
                assert receive_exactly(client, len(ANSWER)) == ANSWER
            sink.wait_ended(1)
        assert sink.streams == [get(1)]
    assert relay.report["connections"]["links"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_link_header_from_elsewhere_is_refused(mode):
    with RecordingSink() as sink:
        with RelayProcess(sink.name, options=(*MODES[mode], "--link-from", "10.0.0.0/8")) as relay:
            with relay.connect() as client:
                client.sendall(HEADER + get(1))
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            with relay.connect() as client:
                exchange(client, get(2))
        assert sink.requests == 1
    assert relay.report["failed"] == {"bad_link": 1}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("version", "pattern"),
    [("v1", rb"PROXY TCP4 192\.0\.2\.1 192\.0\.2\.2 1234 80\r\n"), ("v2", rb"\r\n\r\n\0\r\nQUIT\n!\x11.*")],
)
def test_proxy_protocol_to_the_upstream_names_the_captured_client(mode, version, pattern):
    options = (*MODES[mode], "--proxy-protocol", version)
    with RecordingSink(mode="mute") as sink, RelayProcess(sink.name, options=options) as relay:
        with relay.connect() as client:
            client.sendall(HEADER + get(1))
            sink.wait(lambda: sink.streams and sink.streams[0].endswith(get(1)), "the request")
        sink.wait_ended(1)
    assert re.fullmatch(pattern + re.escape(get(1)), sink.streams[0], re.DOTALL)


# -- the process ------------------------------------------------------------------------------------------------------


def test_port_in_use_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_gopher("-r", "-p", str(port), "-u", "localhost:80")
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        f"gopher: error: cannot listen on port {port}: something else listens there already\n"
    )


def test_bad_rule_is_one_sentence(tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text("couple = ['auto', 'cokie:SID']")
    for options, where in (
        (["--couple", "cokie:SID"], "--couple"),
        (["--couple-file", str(rules)], f"--couple-file {rules}:1: entry 2: couple"),
    ):
        ended = run_gopher("-r", "-p", str(free_port()), "-u", "localhost:80", *options)
        assert ended.returncode == 2
        assert ended.stderr.startswith(
            f"gopher: error: {where} 'cokie:SID' is no rule (did you mean cookie:SID?)\n  hint: use cookie:NAME"
        )


def test_listen_address():
    port = free_port()
    with RecordingSink() as sink, RelayProcess(sink.name, options=("--listen", "127.0.0.2"), port=port) as relay:
        with relay.connect("127.0.0.2") as client:
            exchange(client, get(1))
        with pytest.raises(ConnectionRefusedError):
            relay.connect("127.0.0.1")


def test_sigterm_lets_open_connections_end():
    with RecordingSink(hold=True) as sink, RelayProcess(sink.name) as relay:
        with relay.connect() as client:
            client.sendall(get(1))
            sink.wait_requests(1)
            relay.signal(signal.SIGTERM)
            deadline = time.monotonic() + 10
            while True:
                assert time.monotonic() < deadline
                try:
                    relay.connect().close()
                except (ConnectionRefusedError, ConnectionResetError):
                    break
            sink.release()
            assert receive_exactly(client, len(ANSWER)) == ANSWER
        assert relay.wait()["failed"].get("drain", 0) == 0


def test_drain_has_an_end():
    options = ("--drain", "0.2")
    with RecordingSink() as sink, RelayProcess(sink.name, options=options) as relay, relay.connect() as client:
        exchange(client, get(1))
        assert relay.stop()["failed"] == {"drain": 1}


def test_sigusr1_prints_the_accounts():
    with RecordingSink() as sink, RelayProcess(sink.name) as relay, relay.connect() as client:
        exchange(client, get(1))
        relay.signal(signal.SIGUSR1)
        relay.wait_stderr(lambda line: line.startswith("connections  1 accepted: 0 finished, 0 failed, 1 open"))


def test_no_descriptors_left_pauses_and_recovers():
    # 60 descriptors do not go round for 80 clients. Root could raise the limit, but for the capability that it needs.
    prefix = ("prlimit", "--nofile=60:60", "setpriv", "--bounding-set=-sys_resource")
    with RecordingSink() as sink, RelayProcess(sink.name, prefix=prefix) as relay, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(relay.connect()) for _ in range(80)]
        clients[-1].sendall(get(1))
        deadline = time.monotonic() + 10
        while len(list(Path(f"/proc/{relay.pid}/fd").iterdir())) < 60:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # It could do nothing but ask for the next client over and over.
        used_s = relay.cpu_s()
        time.sleep(1)
        assert relay.cpu_s() - used_s < 0.5
        for client in clients[:70]:
            client.close()
        assert receive_exactly(clients[-1], len(ANSWER)) == ANSWER
    assert relay.report["connections"]["accepted"] == 80
