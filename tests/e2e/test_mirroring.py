"""What clients send to production reaches every upstream, byte for byte, on a connection of its own."""

import re
from collections import Counter
from contextlib import ExitStack, closing

import pytest

from tests.support.accounts import assert_all_delivered, only_upstream
from tests.support.clients import curl, exchange, get, noise, post
from tests.support.command import GopherProcess
from tests.support.netns import Namespace
from tests.support.servers import Nginx, RecordingSink, assert_mirrored

pytestmark = pytest.mark.e2e

PRODUCTION = ("127.0.0.1", 80)
UPLOAD_BYTES = 20_000_000
# Room for all of it: how long a busy machine keeps a shadow from reading is not the question.
UPLOAD_ROOM = "--connection-memory=32M"


def test_three_upstreams_of_the_readme(network):
    with (
        RecordingSink(("10.77.1.2", 80), namespace=network.production) as production,
        RecordingSink(("10.77.2.2", 3280), namespace=network.shadow) as machine_b,
        RecordingSink(("10.77.2.3", 3280), namespace=network.shadow) as machine_c,
        RecordingSink(("10.77.2.4", 80), namespace=network.shadow) as machine_d,
        GopherProcess(
            *("-c", "-p", "80", "-u", "machineB:3280", "-u", "machineC:3280", "-u", "machineD"),
            namespace=network.production,
        ) as gopher,
    ):
        assert "gopher: capturing on any, tcp port 80, to 3 upstreams" in gopher.stderr.splitlines()
        for client in range(5):
            keep_alive = [f"http://10.77.1.2/{client}/{number}" for number in range(20)]
            curl("--data-binary", "x=" + "y" * 500, *keep_alive, namespace=network.client)
        assert_mirrored(production, machine_b, machine_c, machine_d)
    assert_all_delivered(gopher.report)
    assert [each["name"] for each in gopher.report["upstreams"]] == ["machineB:3280", "machineC:3280", "machineD"]
    assert gopher.report["connections"]["mirrored"] == 5
    assert gopher.report["bytes"]["captured"] == sum(len(stream) for stream in production.streams)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--mode=capture", "--port=80", "--upstream=127.0.0.2:1080"),
        ("--mode", "capture", "--port", "80", "--upstream", "127.0.0.2:1080"),
        ("-c", "-p80", "-u", "tcp://127.0.0.2:1080"),
    ],
)
def test_both_spellings(host, arguments):
    with (
        RecordingSink(PRODUCTION, namespace=host) as production,
        RecordingSink(("127.0.0.2", 1080), namespace=host) as shadow,
        GopherProcess(*arguments, "--interface=lo", namespace=host) as gopher,
    ):
        assert "gopher: capturing on lo, tcp port 80, to 1 upstream" in gopher.stderr.splitlines()
        with host.connect(PRODUCTION) as client:
            exchange(client, get(1))
            exchange(client, get(2))
        assert_mirrored(production, shadow)
    assert_all_delivered(gopher.report)


@pytest.mark.parametrize("framing", [[], ["--header", "Transfer-Encoding: chunked"]], ids=["length", "chunked"])
def test_upload_reaches_nginx_whole(network, tmp_path, framing):
    upload = tmp_path / "upload"
    upload.write_bytes(noise(UPLOAD_BYTES))
    (tmp_path / "production").mkdir()
    (tmp_path / "shadow").mkdir()
    with (
        Nginx(tmp_path / "production", [("10.77.1.2", 80)], namespace=network.production) as production,
        Nginx(tmp_path / "shadow", [("10.77.2.2", 3280)], namespace=network.shadow) as shadow,
        GopherProcess(
            *("-c", "-p", "80", "-i", "net0", UPLOAD_ROOM, "-u", "10.77.2.2:3280"), namespace=network.production
        ) as gopher,
    ):
        curl("--upload-file", str(upload), *framing, "http://10.77.1.2/stored", namespace=network.client)
        shadow.wait_requests(1)
        production.wait_requests(1)
        assert shadow.requests() == production.requests()
        assert (shadow.root() / "stored").read_bytes() == upload.read_bytes()
    assert_all_delivered(gopher.report)


@pytest.mark.parametrize("framing", [[], ["--header", "Transfer-Encoding: chunked"]], ids=["length", "chunked"])
def test_upload_on_loopback_is_mirrored_byte_for_byte(host, tmp_path, framing):
    upload = tmp_path / "upload"
    upload.write_bytes(noise(UPLOAD_BYTES))
    with (
        RecordingSink(PRODUCTION, namespace=host) as production,
        RecordingSink(("127.0.0.2", 3280), namespace=host) as shadow,
        GopherProcess("-c", "-p", "80", "-i", "lo", UPLOAD_ROOM, "-u", shadow.name, namespace=host) as gopher,
    ):
        curl("--upload-file", str(upload), *framing, "http://127.0.0.1/stored", namespace=host)
        assert_mirrored(production, shadow)
    assert_all_delivered(gopher.report)
    assert gopher.report["gaps"] == {"count": 0, "bytes": 0}


def test_2000_short_connections_all_arrive(host, tmp_path):
    (tmp_path / "production").mkdir()
    (tmp_path / "shadow").mkdir()
    with (
        Nginx(tmp_path / "production", [PRODUCTION], namespace=host) as production,
        Nginx(tmp_path / "shadow", [("127.0.0.2", 3280)], namespace=host) as shadow,
        GopherProcess("-c", "-p", "80", "-i", "lo", "-u", "127.0.0.2:3280", namespace=host) as gopher,
    ):
        urls = [f"http://127.0.0.1/short/{number}" for number in range(2000)]
        curl("--header", "Connection: close", *urls, namespace=host)
        shadow.wait_requests(2000)
        production.wait_requests(2000)
        assert shadow.requests() == production.requests()
    assert_all_delivered(gopher.report)
    assert gopher.report["connections"]["seen"] == 2000


def test_connection_opened_before_the_start_is_joined_at_the_next_request(host):
    with (
        RecordingSink(PRODUCTION, namespace=host),
        RecordingSink(("127.0.0.2", 3280), namespace=host) as shadow,
        host.connect(PRODUCTION) as idle,
        host.connect(PRODUCTION) as uploading,
    ):
        body = noise(3000)
        exchange(idle, get(1))
        uploading.sendall(post(2, body)[:-2000])
        with GopherProcess("-c", "-p", "80", "-i", "lo", "-u", shadow.name, namespace=host) as gopher:
            exchange(idle, get(3))
            exchange(idle, get(4))
            exchange(uploading, body[-2000:])
            exchange(uploading, get(5))
            shadow.wait_requests(3)
            idle.close()
            uploading.close()
            shadow.wait_ended(2)
    assert shadow.streams == sorted([get(3) + get(4), get(5)])
    assert gopher.report["connections"]["joined"] == 2
    account = only_upstream(gopher.report)
    assert account["shed"] == {"joined": 2000}
    assert account["connections"]["shed_by_reason"] == {"joined": 1}


def test_protocol_that_is_not_http_is_mirrored_from_the_next_connection(host):
    chatter = [b"\x16\x03\x01" + noise(100, seed) + b"\r\n" for seed in range(3)]
    with (
        RecordingSink(PRODUCTION, "mute", namespace=host) as production,
        RecordingSink(("127.0.0.2", 3280), "mute", namespace=host) as shadow,
        host.connect(PRODUCTION) as opened_before,
    ):
        opened_before.sendall(chatter[0])
        production.wait_received(len(chatter[0]))
        with GopherProcess(
            *("-c", "-p", "80", "-i", "lo", "--linger", "0.2", "-u", shadow.name), namespace=host
        ) as gopher:
            opened_before.sendall(chatter[1])
            with host.connect(PRODUCTION) as client:
                client.sendall(chatter[1])
                client.sendall(chatter[2])
                shadow.wait_received(len(chatter[1] + chatter[2]))
            shadow.wait_ended(1)
    assert shadow.streams == [chatter[1] + chatter[2]]
    account = only_upstream(gopher.report)
    assert account["delivered_bytes"] == len(chatter[1] + chatter[2])
    assert account["shed"] == {"joined": len(chatter[1])}


@pytest.mark.parametrize("interface", ["any", "lo"])
def test_upstream_on_the_same_port_does_not_loop(host, interface):
    """Captured again, a request would come back for ever; and each comes over `lo` twice already."""
    with (
        RecordingSink(PRODUCTION, namespace=host) as production,
        RecordingSink(("127.0.0.2", 80), namespace=host) as shadow,
        GopherProcess("-c", "-p", "80", "-i", interface, "-u", "127.0.0.2", namespace=host) as gopher,
    ):
        for number in range(50):
            with host.connect(PRODUCTION) as client:
                exchange(client, get(number))
        with host.connect(PRODUCTION) as client:
            exchange(client, post(50, noise(200_000)))
        assert_mirrored(production, shadow)
    assert gopher.report["connections"]["seen"] == 51
    assert gopher.report["bytes"]["captured"] == sum(len(stream) for stream in production.streams)
    assert_all_delivered(gopher.report)


def test_upstream_on_the_same_port_of_another_host_does_not_loop(network):
    with (
        RecordingSink(("10.77.1.2", 80), namespace=network.production) as production,
        RecordingSink(("10.77.2.2", 80), namespace=network.shadow) as shadow,
        GopherProcess("-c", "-p", "80", "-u", "10.77.2.2", namespace=network.production) as gopher,
    ):
        for number in range(20):
            with network.client.connect(("10.77.1.2", 80)) as client:
                exchange(client, get(number))
        assert_mirrored(production, shadow)
    assert gopher.report["connections"]["seen"] == 20
    assert_all_delivered(gopher.report)


def test_packets_seen_on_a_bridge_and_on_its_port_are_mirrored_once(network):
    production_host = network.production
    production_host.run("ip", "link", "add", "bridge0", "type", "bridge")
    production_host.run("ip", "address", "flush", "dev", "net0")
    production_host.run("ip", "link", "set", "net0", "master", "bridge0")
    production_host.run("ip", "address", "add", "10.77.1.2/24", "dev", "bridge0")
    production_host.run("ip", "link", "set", "bridge0", "up")
    with (
        RecordingSink(("10.77.1.2", 80), namespace=production_host) as production,
        RecordingSink(("10.77.2.2", 3280), namespace=network.shadow) as shadow,
        GopherProcess("-c", "-p", "80", "-i", "any", "-u", "10.77.2.2:3280", namespace=production_host) as gopher,
    ):
        for number in range(5):
            with network.client.connect(("10.77.1.2", 80)) as client:
                exchange(client, get(number))
                exchange(client, post(number, noise(300_000)))
        assert_mirrored(production, shadow)
    assert gopher.report["packets"]["retransmitted_bytes"] >= gopher.report["bytes"]["captured"]
    assert gopher.report["connections"]["seen"] == 5
    assert_all_delivered(gopher.report)


@pytest.mark.parametrize("interface", ["any", "net0"])
def test_ipv6_client_and_upstream(network, interface):
    with (
        RecordingSink(("fd77:1::2", 80), namespace=network.production) as production,
        RecordingSink(("fd77:2::2", 3280), namespace=network.shadow) as shadow,
        GopherProcess(
            *("-c", "-p", "80", "-i", interface, "-u", "[fd77:2::2]:3280"), namespace=network.production
        ) as gopher,
    ):
        for client in range(3):
            urls = [f"http://[fd77:1::2]/{client}/{number}" for number in range(5)]
            curl("--data-binary", "z" * 100_000, *urls, namespace=network.client)
        assert_mirrored(production, shadow)
    assert_all_delivered(gopher.report)
    assert only_upstream(gopher.report)["name"] == "[fd77:2::2]:3280"


@pytest.mark.parametrize("ports", [("-p", "80,8080"), ("-p", "80", "-p", "8080")], ids=["list", "repeated"])
def test_several_ports_go_to_one_upstream(host, ports):
    with ExitStack() as stack:
        watched, also_watched, unwatched = (
            stack.enter_context(RecordingSink(("127.0.0.1", port), namespace=host)) for port in (80, 8080, 8081)
        )
        shadow = stack.enter_context(RecordingSink(("127.0.0.2", 3280), namespace=host))
        gopher = stack.enter_context(GopherProcess("-c", *ports, "-i", "lo", "-u", shadow.name, namespace=host))
        for sink in (unwatched, watched, also_watched):
            with host.connect((sink.host, sink.port)) as client:
                exchange(client, get(sink.port))
        shadow.wait_ended(2)
        assert shadow.streams == [get(80), get(8080)]
    assert gopher.report["connections"]["seen"] == 2
    assert_all_delivered(gopher.report)


def test_several_ports_go_to_the_same_ports_of_an_upstream_without_one(host):
    with ExitStack() as stack:
        productions, shadows = (
            [stack.enter_context(RecordingSink((address, port), namespace=host)) for port in (80, 8080)]
            for address in ("127.0.0.1", "127.0.0.2")
        )
        gopher = stack.enter_context(
            GopherProcess("-c", "-p", "80,8080", "-i", "lo", "-u", "127.0.0.2", namespace=host)
        )
        for sink in productions:
            with host.connect((sink.host, sink.port)) as client:
                exchange(client, get(sink.port))
        for shadow in shadows:
            shadow.wait_ended(1)
            assert shadow.streams == [get(shadow.port)]
    # The shadow's connections are on captured ports too, and were not captured.
    assert gopher.report["connections"]["seen"] == 2
    assert_all_delivered(gopher.report)


def test_sample_takes_a_client_as_a_whole(host):
    sources = [f"127.1.0.{last}" for last in range(1, 41)]
    with (
        RecordingSink(PRODUCTION, namespace=host),
        RecordingSink(("127.0.0.2", 3280), namespace=host) as shadow,
        RecordingSink(("127.0.0.3", 3280), namespace=host) as other_shadow,
        GopherProcess(
            *("-c", "-p", "80", "-i", "lo", "--sample", "50%", "-u", shadow.name, "-u", other_shadow.name),
            namespace=host,
        ) as gopher,
    ):
        for source in sources * 2:
            with host.connect(PRODUCTION, source=source) as client:
                exchange(client, f"GET /{source} HTTP/1.1\r\n\r\n".encode())
        # Captured in order: when a later connection has come through, gopher has seen all of these.
        shadow.wait(lambda: bool(shadow.streams and shadow.streams[0]), "a client of the sample")
        in_sample = re.match(rb"GET /(\S+)", shadow.streams[0]).group(1).decode()
        with host.connect(PRODUCTION, source=in_sample) as client:
            exchange(client, get(0))
        for sink in (shadow, other_shadow):
            sink.wait(lambda sink=sink: get(0) in sink.streams, "the last client")
        connections = gopher.stop()["connections"]
        for sink in (shadow, other_shadow):
            sink.wait_ended(connections["mirrored"])
    by_source = Counter(re.match(rb"GET /(\S+)", stream).group(1).decode() for stream in shadow.streams)
    del by_source["0"]
    assert set(by_source.values()) == {2}
    assert 0 < len(by_source) < 40
    assert other_shadow.streams == shadow.streams
    assert connections["seen"] == 81
    assert connections["mirrored"] == 2 * len(by_source) + 1
    assert_all_delivered(gopher.report)


def test_responses_are_counted_and_not_sent(host):
    with (
        RecordingSink(PRODUCTION, namespace=host) as production,
        RecordingSink(("127.0.0.2", 3280), namespace=host) as shadow,
        GopherProcess("-c", "-p", "80", "-i", "lo", "--responses", "-u", shadow.name, namespace=host) as gopher,
    ):
        for number in range(3):
            with host.connect(PRODUCTION) as client:
                exchange(client, get(number))
                exchange(client, post(number, noise(50_000)))
        assert_mirrored(production, shadow)
    assert gopher.report["bytes"]["responses"] == sum(each.sent_bytes for each in production.connections)
    assert_all_delivered(gopher.report)


def test_dir_upstream_has_a_file_for_each_client_stream(host, tmp_path):
    kept = tmp_path / "kept"
    expected = {}
    with ExitStack() as stack:
        for address in ("127.0.0.1", "::1"):
            stack.enter_context(RecordingSink((address, 80), namespace=host))
        shadow = stack.enter_context(RecordingSink(("127.0.0.2", 3280), namespace=host))
        gopher = stack.enter_context(
            GopherProcess("-c", "-p", "80", "-i", "lo", "-u", f"dir:{kept}", "-u", shadow.name, namespace=host)
        )
        for number, address in enumerate(["127.0.0.1", "127.0.0.1", "::1"]):
            with closing(host.connect((address, 80))) as client:
                requests = [get(number), post(number, noise(70_000, number))]
                for request in requests:
                    exchange(client, request)
                expected[f"{address}.{client.getsockname()[1]}-{address}.80"] = b"".join(requests)
        shadow.wait_ended(3)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == expected
    assert_all_delivered(gopher.report)


def test_filter_is_one_more_condition(host: Namespace):
    with (
        RecordingSink(PRODUCTION, namespace=host),
        RecordingSink(("127.0.0.2", 3280), namespace=host) as shadow,
        GopherProcess(
            *("-c", "-p", "80", "-i", "lo", "--filter", "src host 127.1.0.7 or src host 127.1.0.8"),
            *("-u", shadow.name),
            namespace=host,
        ) as gopher,
    ):
        for last in (6, 7, 9, 8):
            with host.connect(PRODUCTION, source=f"127.1.0.{last}") as client:
                exchange(client, get(last))
        shadow.wait_ended(2)
        assert shadow.streams == [get(7), get(8)]
    assert gopher.report["connections"]["seen"] == 2
