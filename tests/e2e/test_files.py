"""Capture files: read instead of a device, written while capturing, cut, with packets missing."""

import re

import pytest

import gopher as gopher_api
from tests.support.accounts import assert_all_delivered
from tests.support.clients import exchange, get, noise, post
from tests.support.command import GopherProcess
from tests.support.packets import Conversation, pcap_file, pcapng_file
from tests.support.servers import RecordingSink, assert_mirrored

pytestmark = pytest.mark.e2e

MAX_SPEED = ("--speed", "max")


def conversation(client_port: int, *requests: bytes, start_ns: int = 0) -> Conversation:
    """One client with its requests, each in segments of an Ethernet's size."""
    talk = Conversation(client=("192.0.2.1", client_port))
    talk.now_ns += start_ns
    talk.handshake()
    for request in requests:
        for at in range(0, len(request), 1448):
            talk.data(request[at : at + 1448])
        talk.data(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", direction=1)
    return talk


@pytest.fixture
def shadow():
    with RecordingSink() as sink:
        yield sink


def read_argv(path, shadow, *more):
    return ("-c", "-p", "80", "--read", str(path), *more, "-u", shadow.name)


@pytest.mark.parametrize("file_format", [pcap_file, pcapng_file])
def test_file_gives_the_upstream_exactly_the_client_bytes(tmp_path, shadow, file_format):
    talks = [
        conversation(40000 + number, get(number), post(number, noise(20_000, number)), start_ns=number).close()
        for number in range(10)
    ]
    packets = sorted(packet for talk in talks for packet in talk.packets)
    path = tmp_path / "talks.pcap"
    path.write_bytes(file_format(packets))
    with GopherProcess(*read_argv(path, shadow, *MAX_SPEED)) as gopher:
        assert f"gopher: reading {path}, tcp port 80, to 1 upstream" in gopher.stderr.splitlines()
        gopher.wait()
    shadow.wait_ended(10)
    assert shadow.streams == sorted(get(number) + post(number, noise(20_000, number)) for number in range(10))
    assert_all_delivered(gopher.report)
    assert gopher.report["packets"]["received"] >= sum(len(talk.packets) for talk in talks) / 2


def test_speed_keeps_the_time_between_packets(tmp_path, shadow):
    talk = conversation(40000, get(1))
    talk.now_ns += 10_000_000_000
    talk.data(get(2)).close()
    path = tmp_path / "talk.pcap"
    path.write_bytes(pcap_file(talk.packets))
    with GopherProcess(*read_argv(path, shadow, "--speed", "20")) as gopher:
        gopher.wait()
    shadow.wait_ended(1)
    assert shadow.streams == [get(1) + get(2)]
    assert 0.45 < gopher.report["duration_s"] < 5


def test_truncated_file_is_mirrored_up_to_its_last_whole_packet(tmp_path, shadow):
    talk = conversation(40000, get(1), get(2)).data(get(3))
    path = tmp_path / "cut.pcap"
    path.write_bytes(pcap_file(talk.packets)[:-7])
    with GopherProcess(*read_argv(path, shadow, *MAX_SPEED)) as gopher:
        gopher.wait()
    [warning] = [line for line in gopher.stderr.splitlines() if "warning" in line]
    assert str(path) in warning
    assert "truncated" in warning or "cut" in warning or "middle of a packet" in warning
    shadow.wait_ended(1)
    assert shadow.streams == [get(1) + get(2)]


def test_connection_without_its_beginning_is_joined(tmp_path, shadow):
    talk = conversation(40000, get(1), get(2)).close()
    path = tmp_path / "late.pcap"
    path.write_bytes(pcap_file(talk.packets[4:]))
    with GopherProcess(*read_argv(path, shadow, *MAX_SPEED)) as gopher:
        gopher.wait()
    shadow.wait_ended(1)
    assert shadow.streams == [get(2)]
    assert gopher.report["connections"]["joined"] == 1


def test_write_then_read_gives_the_same_streams(host, tmp_path):
    path = tmp_path / "kept.pcap"
    with (
        RecordingSink(("127.0.0.1", 80), namespace=host) as production,
        RecordingSink(("127.0.0.2", 3280), namespace=host) as shadow,
        RecordingSink() as replayed,
    ):
        with GopherProcess(
            *("-c", "-p", "80", "-i", "lo", "--responses", "--write", str(path), "-u", shadow.name), namespace=host
        ) as gopher:
            for number in range(10):
                with host.connect(("127.0.0.1", 80)) as client:
                    exchange(client, get(number))
                    exchange(client, post(number, noise(100_000, number)))
            assert_mirrored(production, shadow)
        assert_all_delivered(gopher.report)
        streams = list(gopher_api.read_streams(path, ports=[80]))
        assert sorted(stream.request for stream in streams) == production.streams
        answered_bytes = sum(each.sent_bytes for each in production.connections)
        assert sum(len(stream.response) for stream in streams) == answered_bytes
        assert all(stream.complete and stream.gaps == 0 for stream in streams)
        with GopherProcess(*read_argv(path, replayed, *MAX_SPEED)) as gopher:
            gopher.wait()
        replayed.wait_ended(10)
        assert replayed.streams == production.streams


@pytest.mark.usefixtures("_stage_possible")
def test_file_needs_no_permission_to_capture(tmp_path, shadow):
    path = tmp_path / "talk.pcap"
    path.write_bytes(pcap_file(conversation(40000, get(1)).close().packets))
    without = ("setpriv", "--bounding-set", "-net_raw,-net_admin", "--inh-caps", "-net_raw,-net_admin")
    with GopherProcess(*read_argv(path, shadow, *MAX_SPEED), prefix=without) as gopher:
        gopher.wait()
    assert_all_delivered(gopher.report)


def test_tcpdump_reads_what_was_written(host, tmp_path):
    path = tmp_path / "kept.pcap"
    with (
        RecordingSink(("127.0.0.1", 80), namespace=host) as production,
        RecordingSink(("127.0.0.2", 3280), namespace=host) as shadow,
        GopherProcess(*("-c", "-p", "80", "-i", "lo", "--write", str(path), "-u", shadow.name), namespace=host),
    ):
        with host.connect(("127.0.0.1", 80)) as client:
            exchange(client, get(1))
        assert_mirrored(production, shadow)
    dumped = host.run("tcpdump", "-n", "-r", str(path))
    assert re.search(rf" > 127\.0\.0\.1\.80: Flags \[P\.\], .* length {len(get(1))}", dumped)
