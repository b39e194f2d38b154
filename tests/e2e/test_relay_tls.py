"""The real relay before real servers that speak TLS."""

import contextlib
import re
import select
import signal
import socket
import ssl
import threading
import time

import pytest

from gopher.link import LinkInfo, ProxyHeader, decode_header, encode_header
from tests.e2e.test_relay import converse
from tests.e2e.test_reload import ConfiguredRelay, reload
from tests.support.certificates import Authority
from tests.support.clients import curl, exchange, get, noise, receive_exactly
from tests.support.command import run_gopher
from tests.support.conversations import CONVERSATIONS
from tests.support.relay import (
    DEADLINE_S,
    Link,
    RelayProcess,
    ScriptedServer,
    close_notify,
    free_port,
    receive_until_end,
)
from tests.support.servers import ANSWER, Nginx, RecordingSink, reset

pytestmark = pytest.mark.e2e

MODES = {"bytes": (), "messages": ("--couple", "cookie:no-such-cookie")}
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
LOCAL = ("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


def tls_relay(address, authority, *options):
    host, port = address
    return RelayProcess(f"tls://{host}:{port}", options=("--tls-ca", str(authority.ca), *options))


@contextlib.contextmanager
def one_connection(serve):
    """`serve` gets the one connection that comes, in a thread. Yields the address; raises what it raised."""
    failures = []

    def run():
        try:
            sock, _ = listener.accept()
            sock.settimeout(DEADLINE_S)
            with sock:
                serve(sock)
        except BaseException as failure:  # raised again by whoever waits
            failures.append(failure)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            thread.join()
    if failures:
        raise failures[0]


# -- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", MODES)
def test_every_conversation_passes_byte_for_byte(mode, version, authority):
    """Ends of either side among them: the server is strict about close_notify, the client sees a FIN."""
    server = ScriptedServer(authority.server(*LOCAL, version=VERSIONS[version]))
    with server, tls_relay(server.address, authority, *MODES[mode]) as relay:
        chosen = {name: each for name, each in CONVERSATIONS.items() if each.http or mode == "bytes"}
        for name, conversation in chosen.items():
            steps = [step[1:] for step in conversation.steps]
            with server.play(steps, closes=conversation.closes) as received:
                assert converse(("127.0.0.1", relay.port), conversation, "randomly") == conversation.answered, name
            assert received == conversation.sent, name
        assert relay.stop()["connections"]["finished"] == len(chosen)


@pytest.mark.parametrize("mode", MODES)
def test_nginx_behind_the_relay(mode, authority, tmp_path):
    body = noise(20_000_000)
    (tmp_path / "body").write_bytes(body)
    port = free_port()
    certificate = authority.issue(*LOCAL)
    with Nginx(tmp_path / "nginx", [("127.0.0.1", port)], certificate=certificate) as nginx:
        # By name, which has an IPv6 address too that nobody listens on.
        with tls_relay(("localhost", port), authority, *MODES[mode]) as relay:
            url = f"http://127.0.0.1:{relay.port}"
            curl("-T", str(tmp_path / "body"), f"{url}/file")
            assert (nginx.root() / "file").read_bytes() == body
            curl("-o", str(tmp_path / "back"), f"{url}/file")
            assert (tmp_path / "back").read_bytes() == body
            assert curl(f"{url}/short/", f"{url}/short/") == "shortshort"
            assert relay.peak_memory_mib() < 100
        assert relay.report["failed"] == {}
        nginx.wait_requests(4)


@pytest.mark.parametrize("mode", MODES)
def test_slow_server_holds_the_sender_back(mode, authority):
    body = noise(40_000_000)
    data = f"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    released = threading.Event()

    def serve(sock):
        with authority.server(*LOCAL).wrap_socket(sock, server_side=True) as secured:
            assert released.wait(DEADLINE_S)
            assert receive_exactly(secured, len(data)) == data
            secured.sendall(ANSWER)
            assert receive_until_end(secured) == b""

    with (
        one_connection(serve) as address,
        tls_relay(address, authority, *MODES[mode]) as relay,
        relay.connect() as client,
    ):
        client.setblocking(False)
        sent, moved_at = 0, time.monotonic()
        while time.monotonic() - moved_at < 0.5:
            with contextlib.suppress(BlockingIOError):
                sent += client.send(data[sent : sent + 1_000_000])
                moved_at = time.monotonic()
        assert 0 < sent < len(data)
        assert relay.peak_memory_mib() < 100
        released.set()
        client.settimeout(DEADLINE_S)
        client.sendall(data[sent:])
        assert receive_exactly(client, len(ANSWER)) == ANSWER


@pytest.mark.parametrize("mode", MODES)
def test_slow_client_holds_the_server_back(mode, authority):
    body = noise(40_000_000)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    stalled_at = []

    def serve(sock):
        with authority.server(*LOCAL).wrap_socket(sock, server_side=True) as secured:
            receive_exactly(secured, len(get(1)))
            secured.setblocking(False)
            sent = 0
            while sent < len(answer):
                with contextlib.suppress(ssl.SSLWantWriteError):
                    sent += secured.send(answer[sent : sent + 16_384])
                    continue
                # For as long as the relay takes nothing.
                _, writable, _ = select.select([], [secured], [], 0.5 if not stalled_at else DEADLINE_S)
                if not writable:
                    stalled_at.append(sent)
                    stalled.set()
            secured.settimeout(DEADLINE_S)
            assert receive_until_end(secured) == b""

    stalled = threading.Event()
    with (
        one_connection(serve) as address,
        tls_relay(address, authority, *MODES[mode]) as relay,
        relay.connect() as client,
    ):
        client.sendall(get(1))
        assert stalled.wait(DEADLINE_S)
        assert relay.peak_memory_mib() < 100
        assert receive_exactly(client, len(answer)) == answer
    assert stalled_at[0] < len(answer)


def test_end_of_the_client_passes_before_the_answer(authority):
    def serve(sock):
        with authority.server(*LOCAL).wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as secured:
            assert receive_until_end(secured) == b"what is the time?"
            secured.sendall(b"noon")
            close_notify(secured)

    with one_connection(serve) as address, tls_relay(address, authority) as relay, relay.connect() as client:
        client.sendall(b"what is the time?")
        client.shutdown(socket.SHUT_WR)
        assert receive_until_end(client) == b"noon"
        assert relay.stop()["connections"]["finished"] == 1


def test_server_that_speaks_first(authority):
    def serve(sock):
        with authority.server(*LOCAL).wrap_socket(sock, server_side=True) as secured:
            secured.sendall(b"* OK ready\r\n")
            assert receive_until_end(secured) == b""

    with one_connection(serve) as address, tls_relay(address, authority) as relay, relay.connect() as client:
        assert receive_exactly(client, 12) == b"* OK ready\r\n"


# -- ends that are none -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_cut_answer_is_no_whole_one(mode, authority):
    """An answer that lasts until the end of the connection, which ends without a word."""
    answer = b"HTTP/1.1 200 OK\r\n\r\nhalf of it"

    def serve(sock):
        secured = authority.server(*LOCAL).wrap_socket(sock, server_side=True)
        receive_exactly(secured, len(get(1)))
        secured.sendall(answer)
        secured.close()

    with (
        one_connection(serve) as address,
        tls_relay(address, authority, *MODES[mode]) as relay,
        relay.connect() as client,
    ):
        client.sendall(get(1))
        assert receive_exactly(client, len(answer)) == answer
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert relay.stop()["failed"] == {"upstream_reset": 1}


@pytest.mark.parametrize("mode", MODES)
def test_reset_of_the_client_is_no_end(mode, authority):
    def serve(sock):
        with authority.server(*LOCAL).wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as secured:
            receive_exactly(secured, len(get(1)))
            asked.set()
            with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                secured.recv(1)

    asked = threading.Event()
    with one_connection(serve) as address, tls_relay(address, authority, *MODES[mode]) as relay:
        client = relay.connect()
        client.sendall(get(1))
        assert asked.wait(DEADLINE_S)
        reset(client)
    assert relay.report["failed"] == {"client_reset": 1}


def test_drain_has_an_end(authority):
    def serve(sock):
        with authority.server(*LOCAL).wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as secured:
            receive_exactly(secured, len(get(1)))
            secured.sendall(ANSWER)
            with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                secured.recv(1)

    with (
        one_connection(serve) as address,
        tls_relay(address, authority, "--drain", "0.2") as relay,
        relay.connect() as client,
    ):
        client.sendall(get(1))
        receive_exactly(client, len(ANSWER))
        assert relay.stop()["failed"] == {"drain": 1}


def test_sigterm_lets_an_exchange_end(authority):
    def serve(sock):
        with authority.server(*LOCAL).wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as secured:
            receive_exactly(secured, len(get(1)))
            relay.signal(signal.SIGTERM)
            secured.sendall(ANSWER)
            assert receive_until_end(secured) == b""

    with (
        one_connection(serve) as address,
        tls_relay(address, authority, *MODES["messages"]) as relay,
        relay.connect() as client,
    ):
        client.sendall(get(1))
        assert receive_exactly(client, len(ANSWER)) == ANSWER
        client.close()
        assert relay.wait()["failed"] == {}


# -- a server that is not there, or not who it should be --------------------------------------------------------------


def answer_of(relay):
    with relay.connect() as client:
        client.sendall(get(1))
        head, _, body = receive_until_end(client).partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


@contextlib.contextmanager
def handshaking(context):
    """A server that shakes hands, as far as the client lets it. Yields the address."""

    def serve(sock):
        with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as secured:
            secured.recv(1)

    with one_connection(serve) as address:
        yield address


@pytest.mark.parametrize(
    ("mode", "certificate", "reason", "words", "told"),
    [
        ("bytes", "someone else's", "untrusted", "is not trusted", r"unable to get local issuer .* \(--tls-ca .*\)"),
        ("messages", "expired", "expired", "is not valid at this time", "certificate has expired"),
        ("bytes", "name", "name", "is for another name", r"IP address mismatch.* \(--tls-name .*\)"),
    ],
)
def test_wrong_certificate_is_a_502_that_says_why(mode, certificate, reason, words, told, authority, tmp_path):
    signer = Authority(tmp_path) if certificate == "someone else's" else authority
    names = ["elsewhere.example"] if certificate == "name" else LOCAL
    context = signer.server(*names, expired=certificate == "expired")
    with handshaking(context) as address, tls_relay(address, authority, *MODES[mode]) as relay:
        name = "tls://{}:{}".format(*address)
        assert answer_of(relay) == (502, f"gopher: the certificate of the upstream {name} {words}\n")
        relay.wait_stderr(re.compile(rf"gopher: upstream {name}: TLS: {told}$").match)
    assert relay.report["failed"] == {f"certificate_{reason}": 1}


def test_plain_server_is_a_502(authority):
    def serve(sock):
        sock.recv(1 << 16)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with one_connection(serve) as address, tls_relay(address, authority, *MODES["messages"]) as relay:
        status, line = answer_of(relay)
        assert (status, line[:26]) == (502, "gopher: the TLS handshake ")
        relay.wait_stderr(re.compile(r"gopher: upstream .*: TLS: (wrong version number|record layer failure)$").match)
    assert relay.report["failed"] == {"handshake": 1}


def test_server_that_closes_within_the_handshake_is_a_502(authority):
    with one_connection(lambda sock: sock.recv(1)) as address, tls_relay(address, authority) as relay:
        assert answer_of(relay)[0] == 502
        relay.wait_stderr(re.compile(r".* TLS: the server ended the connection within the handshake$").match)
    assert relay.report["failed"] == {"handshake": 1}


@pytest.mark.parametrize("mode", MODES)
def test_refused_connection_is_a_502(mode, authority):
    with tls_relay(("127.0.0.1", free_port()), authority, *MODES[mode]) as relay:
        status, line = answer_of(relay)
        assert status == 502
        assert line.endswith(" refused the connection\n")
    assert relay.report["failed"] == {"refused": 1}


@pytest.mark.parametrize("mode", MODES)
def test_handshake_that_stalls_is_a_504_within_the_connect_timeout(mode, authority):
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        tls_relay(silent.getsockname(), authority, *MODES[mode], "--connect-timeout", "0.4") as relay,
    ):
        began = time.monotonic()
        status, line = answer_of(relay)
        assert status == 504
        assert line.endswith(" did not complete the TLS handshake in time\n")
        assert time.monotonic() - began < 2
    assert relay.report["failed"] == {"handshake_timeout": 1}


def test_insecure_takes_any_certificate_and_says_so(authority):
    def serve(sock):
        with authority.server("elsewhere.example", expired=True).wrap_socket(sock, server_side=True) as secured:
            receive_exactly(secured, len(get(1)))
            secured.sendall(ANSWER)
            assert receive_until_end(secured) == b""

    with (
        one_connection(serve) as address,
        RelayProcess("tls://{}:{}".format(*address), options=("--tls-insecure",)) as relay,
        relay.connect() as client,
    ):
        assert "gopher: warning: --tls-insecure: nothing shows that tls://127.0.0.1:" in relay.stderr
        client.sendall(get(1))
        assert receive_exactly(client, len(ANSWER)) == ANSWER


@pytest.mark.parametrize(("options", "asked"), [((), None), (("--tls-name", "elsewhere.example"), "elsewhere.example")])
def test_server_name_and_protocol(options, asked, authority):
    """An address is not asked for (RFC 6066 section 3) and verified all the same."""
    names = []
    context = authority.server(asked or "127.0.0.1")
    context.sni_callback = lambda secured, name, context: names.append(name)

    def serve(sock):
        with context.wrap_socket(sock, server_side=True) as secured:
            names.append(secured.selected_alpn_protocol())
            secured.sendall(b"hello")
            assert receive_until_end(secured) == b""

    with one_connection(serve) as address, tls_relay(address, authority, *options) as relay, relay.connect() as client:
        assert receive_exactly(client, 5) == b"hello"
    assert names == [asked, "http/1.1"]


@pytest.mark.parametrize("mode", MODES)
def test_no_descriptors_left_is_a_502_and_passes(mode, authority, tmp_path):
    """A connection has four. Of two limits that differ by two, one at least ends between the first and the last."""
    port = free_port()
    failed = {}
    with Nginx(tmp_path / "nginx", [("127.0.0.1", port)], certificate=authority.issue(*LOCAL)):
        for limit in ("60:60", "62:62"):
            relay = tls_relay(("127.0.0.1", port), authority, *MODES[mode])
            # Root might raise the limit again.
            relay._argv[:0] = ["prlimit", f"--nofile={limit}", "setpriv", "--bounding-set=-sys_resource"]
            with relay:
                with contextlib.ExitStack() as stack:
                    clients = [stack.enter_context(relay.connect()) for _ in range(30)]
                    for client in clients:
                        client.sendall(get(1))
                    for client in clients:
                        assert client.recv(1 << 16)[:12] in (b"HTTP/1.1 404", b"HTTP/1.1 502")
                        client.close()
                assert curl(f"http://127.0.0.1:{relay.port}/short/") == "short"
            assert sum(relay.report["answers"].values()) == sum(relay.report["failed"].values())
            failed |= relay.report["failed"]
    assert failed.keys() == {"no_descriptors"}


# -- client certificates ----------------------------------------------------------------------------------------------


def test_nginx_that_wants_a_client_certificate(authority, tmp_path):
    port = free_port()
    certificate, ours = authority.issue(*LOCAL), authority.issue("relay.example")
    key = tmp_path / "key.pem"
    key.write_text(ours.read_text().partition("-----BEGIN CERTIFICATE")[0])
    with Nginx(tmp_path / "nginx", [("127.0.0.1", port)], certificate=certificate, client_ca=authority.ca):
        for options in (("--tls-cert", str(ours)), ("--tls-cert", str(ours), "--tls-key", str(key))):
            with tls_relay(("127.0.0.1", port), authority, *options) as relay:
                assert curl(f"http://127.0.0.1:{relay.port}/short/") == "short"
        with tls_relay(("127.0.0.1", port), authority) as relay:
            status = curl("--no-fail", "-w", "%{http_code}", "-o", "/dev/null", f"http://127.0.0.1:{relay.port}/short/")
            assert status == "400"


def test_server_that_refuses_a_client_without_certificate_is_told(authority):
    context = authority.server(*LOCAL)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca)
    with handshaking(context) as address, tls_relay(address, authority, *MODES["messages"]) as relay:
        # With TLS 1.3 the server says so after the relay has finished its part of the handshake.
        assert answer_of(relay)[0] == 502
        relay.wait_stderr(re.compile(r"gopher: upstream .*: TLS: tlsv13 alert certificate required$").match)


# -- what goes before, and what comes after ---------------------------------------------------------------------------

CLIENT_HEADER = ProxyHeader(
    client=("192.0.2.1", 1234),
    server=("192.0.2.2", 80),
    unique_id=b"u" * 16,
    link=LinkInfo(framed=False, start_ns=1),
)


@pytest.mark.parametrize("mode", MODES)
def test_proxy_header_goes_before_the_handshake(mode, authority):
    found = []

    def serve(sock):
        data = b""
        while (decoded := decode_header(data) if data else None) is None:
            data += sock.recv(1)
        found.append(decoded[0].client)
        with authority.server(*LOCAL).wrap_socket(sock, server_side=True) as secured:
            assert receive_exactly(secured, len(get(1))) == get(1)
            secured.sendall(ANSWER)
            assert receive_until_end(secured) == b""

    with (
        one_connection(serve) as address,
        tls_relay(address, authority, *MODES[mode], "--proxy-protocol", "v2") as relay,
        relay.connect() as client,
    ):
        client.sendall(encode_header(CLIENT_HEADER) + get(1))
        assert receive_exactly(client, len(ANSWER)) == ANSWER
    assert found == [CLIENT_HEADER.client]


@pytest.mark.parametrize("options", [(), ("--proxy-protocol", "v1"), ("--couple", "cookie:SID")])
def test_framed_link(options, authority, tmp_path):
    port = free_port()
    site = {"certificate": authority.issue(*LOCAL), "proxy_protocol": "--proxy-protocol" in options}
    # nginx must not meet a connection of the relay's that has no header: it is asked by one that has.
    with contextlib.ExitStack() as stack:
        nginx = stack.enter_context(Nginx(tmp_path / "nginx", [("127.0.0.1", port)], **site))
        relay = stack.enter_context(tls_relay(("127.0.0.1", port), authority, *options))
        with Link(relay) as link:
            link.request("/short/")
            link.response()
            link.end()
        nginx.wait_requests(1)
        report = relay.stop()
    assert report["connections"]["framed"] == report["connections"]["links"] == 1
    assert report["exchanges"]["responses"] == 1
    if site["proxy_protocol"]:
        assert nginx.requests()[0].endswith("|192.0.2.1:1001")


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_file_that_is_not_there_is_one_sentence(tmp_path):
    missing = tmp_path / "ca.pem"
    ended = run_gopher("-r", "-p", str(free_port()), "-u", "tls://localhost", "--tls-ca", str(missing))
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"gopher: error: --tls-ca {missing}: No such file or directory",
        "  hint: give a PEM file that gopher's user may read",
    ]


# -- reload -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_reload_brings_tls_and_other_certificates_and_takes_it_away(mode, authority, tmp_path):
    path, ca, port = tmp_path / "gopher.toml", tmp_path / "ca.pem", free_port()
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    more = 'couple = "cookie:no-such-cookie"\n' if mode == "messages" else ""

    def write(upstream, more_tls=""):
        path.write_text(
            f'mode = "relay"\nlisten = "127.0.0.1"\nport = {port}\nupstream = "{upstream}"\n{more}{more_tls}'
        )

    def server(number, authority):
        """For two requests of one connection, with a certificate of this authority."""
        request = get(number)

        def serve(sock):
            with authority.server(*LOCAL).wrap_socket(sock, server_side=True) as secured:
                for _ in range(2):
                    assert receive_exactly(secured, len(request)) == request
                    secured.sendall(ANSWER)
                assert receive_until_end(secured) == b""

        return one_connection(serve)

    def tls(address):
        write(f"tls://127.0.0.1:{address[1]}", f'tls-ca = "{ca}"\n')

    with RecordingSink(("127.0.0.1", 0)) as plain:
        write(plain.name)
        with ConfiguredRelay(path, port) as relay:
            ca.write_bytes(authority.ca.read_bytes())
            with relay.connect() as plainly, server(1, authority) as first, server(2, other) as second:
                exchange(plainly, get(7))
                tls(first)
                reload(relay, "reloaded: to 1 upstream")
                with relay.connect() as before:
                    exchange(before, get(1))
                    # The file has the same name and other contents.
                    ca.write_bytes(other.ca.read_bytes())
                    tls(second)
                    reload(relay, "reloaded: to 1 upstream", count=2)
                    with relay.connect() as after:
                        exchange(after, get(2))
                        ca.write_bytes(b"")
                        reload(relay, "certificates stay as they were: --tls-ca")
                        exchange(after, get(2))
                    path.write_text(path.read_text() + 'tls-name = "elsewhere"\n')
                    reload(relay, "not reloaded, nothing has changed: --tls-ca")
                    write(plain.name)
                    reload(relay, "reloaded: to 1 upstream", count=4)
                    with relay.connect() as again:
                        exchange(again, get(8))
                    exchange(before, get(1))
                exchange(plainly, get(7))
            plain.wait_ended(2)
    assert sorted(plain.streams) == [get(7) + get(7), get(8)]
