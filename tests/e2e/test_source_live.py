"""The device source against the real kernel: real loopback traffic, captured by real sockets."""

import contextlib
import fcntl
import os
import socket
import struct
from dataclasses import dataclass

import pytest
import trio

from gopher.capture.source import DeviceSource
from gopher.config import MIB, SourceConfig
from gopher.errors import CaptureError, CapturePermissionError, ConfigError
from tests.support.needs import refuse
from tests.support.packets import FIN, LINKTYPE_ETHERNET, LINKTYPE_SLL, RST, SYN, ethernet, ipv4, tcp

pytestmark = pytest.mark.e2e

LINK_HEADER_BYTES = {LINKTYPE_ETHERNET: 14, LINKTYPE_SLL: 16}
LINKTYPE_RAW_OF_DEVICES = 12
# <linux/if_tun.h>
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LAST_WORDS = b"these are the last words"


@dataclass(frozen=True)
class Segment:
    source: int
    destination: int
    flags: int
    payload: bytes


def segments(batch):
    """The TCP segments of a batch."""
    for _, _, at, length in struct.iter_unpack("=IIII", batch.index):
        packet = bytes(memoryview(batch.data)[at + LINK_HEADER_BYTES[batch.linktype] : at + length])
        segment = packet[40:] if packet[0] >> 4 == 6 else packet[4 * (packet[0] & 0xF) :]
        source, destination = struct.unpack_from("!HH", segment)
        yield Segment(source, destination, segment[13], segment[4 * (segment[12] >> 4) :])


@contextlib.contextmanager
def capture(ports, excluded=(), ring_bytes=MIB, **settings):
    try:
        source = DeviceSource(SourceConfig(ports=ports, wakeup_ms=1, ring_bytes=ring_bytes, **settings), excluded)
    except CapturePermissionError as exc:
        refuse(str(exc))
    try:
        yield source
    finally:
        source.close()


def captured(source):
    """All segments up to the last words, which must not be missing.

    The kernel hands packets over in order, so what has not come by then does not come at all.
    """

    async def collect():
        found = []
        with trio.fail_after(20):
            while not any(segment.payload == LAST_WORDS for segment in found):
                await source.wait_readable()
                found += segments(source.next_batch())
        return found

    return trio.run(collect)


async def next_batch(source):
    with trio.fail_after(20):
        batch = source.next_batch()
        while not batch.index:
            await source.wait_readable()
            batch = source.next_batch()
    return batch


def listen(address="127.0.0.1", port=0):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)


def talk(listener, *requests, answer=b"answer"):
    """One connection: each request is answered before the next; then the client closes, then the server."""
    with socket.create_connection(listener.getsockname()[:2], timeout=20) as client, listener.accept()[0] as server:
        server.settimeout(20)
        for request in requests:
            client.sendall(request)
            assert server.recv(len(request), socket.MSG_WAITALL) == request
            server.sendall(answer)
            assert client.recv(len(answer), socket.MSG_WAITALL) == answer
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(("interface", "linktype"), [("lo", LINKTYPE_ETHERNET), ("any", LINKTYPE_SLL)])
def test_requests_come_once_and_without_pure_acks(interface, linktype, address):
    with listen(address) as listener, listen(address) as other:
        port = listener.getsockname()[1]
        with capture((port,), interface=interface) as source:
            assert source.datalink() == linktype
            talk(other, b"another port")
            talk(listener, b"one", b"two")
            talk(listener, LAST_WORDS)
            found = captured(source)
            received = source.statistics().received
    assert {segment.destination for segment in found} == {port}
    first = [segment for segment in found if segment.source == found[0].source]
    assert [segment.payload for segment in first] == [b"", b"one", b"two", b""]
    assert [segment.flags & (SYN | FIN | RST) for segment in first] == [SYN, 0, 0, FIN]
    # The FIN after the last words may or may not have come by the time of counting.
    assert received - len(found) in (0, 1)


@pytest.mark.parametrize("interface", ["lo", "any"])
def test_responses_come_once_when_asked_for(interface):
    with listen() as listener:
        port = listener.getsockname()[1]
        with capture((port,), interface=interface, responses=True) as source:
            talk(listener, b"one", answer=b"1")
            talk(listener, LAST_WORDS)
            found = captured(source)
    first = [segment for segment in found if found[0].source in (segment.source, segment.destination)]
    assert [(segment.destination == port, segment.payload) for segment in first if segment.payload] == [
        (True, b"one"),
        (False, b"1"),
    ]
    assert sum(bool(segment.flags & SYN) for segment in first) == 2
    assert sum(bool(segment.flags & FIN) for segment in first) == 2


@pytest.mark.parametrize(("address", "upstream"), [("127.0.0.1", "127.0.0.2"), ("::1", "127.0.0.1")])
def test_upstream_on_the_captured_port_is_left_out(address, upstream):
    with listen(address) as production, listen(upstream, production.getsockname()[1]) as shadow:
        port = production.getsockname()[1]
        with capture((port,), [(upstream, port)], interface="lo", responses=True) as source:
            talk(shadow, b"mirrored")
            talk(production, b"real")
            talk(production, LAST_WORDS)
            found = captured(source)
    payloads = [segment.payload for segment in found if segment.payload not in (b"", b"answer")]
    assert payloads == [b"real", LAST_WORDS]


def test_users_filter_narrows():
    with listen() as listener, socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        address = listener.getsockname()
        with capture(
            (address[1],), interface="lo", filter=f"src port {chosen.getsockname()[1]} or src port 1"
        ) as source:
            talk(listener, b"not chosen")
            chosen.connect(address)
            chosen.sendall(LAST_WORDS)
            found = captured(source)
    assert [segment.payload for segment in found] == [b"", LAST_WORDS]


def test_offloaded_segments_come_whole():
    sent = bytes(range(256)) * 16_384
    with listen() as listener, capture((listener.getsockname()[1],), interface="lo", ring_bytes=64 * MIB) as source:
        with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
            rest = memoryview(sent)
            while rest:
                count = client.send(rest[:1_000_000])
                server.recv(count, socket.MSG_WAITALL)
                rest = rest[count:]
        talk(listener, LAST_WORDS)
        found = captured(source)
    assert max(len(segment.payload) for segment in found) > 32_000
    assert b"".join(segment.payload for segment in found if segment.source == found[0].source) == sent


def test_statistics_stay_after_the_close():
    with listen() as listener, capture((listener.getsockname()[1],), interface="lo") as source:
        talk(listener, LAST_WORDS)
        captured(source)
        source.close()
        assert source.statistics().received == 3
        assert source.statistics().dropped_by_kernel == 0
        source.close()


def test_batch_stays_while_somebody_looks_at_it():
    """However much comes meanwhile: its block is not given back to the kernel. Then it is."""
    with (
        listen() as listener,
        capture((listener.getsockname()[1],), interface="lo") as source,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):

        def send(byte, times):
            for _ in range(times):
                client.sendall(byte * 65_536)
                server.recv(65_536, socket.MSG_WAITALL)

        def bytes_taken():
            taken = 0
            while (batch := source.next_batch()).index:
                taken += batch.size_bytes
                source.release()
            return taken

        send(b"a", 8)
        batch = source.next_batch()
        [*_, (_, _, at, length)] = struct.iter_unpack("=IIII", batch.index)
        with memoryview(batch.data) as ring:
            before = bytes(ring[at : at + length])
            source.release()
            send(b"b", 64)
            assert bytes(ring[at : at + length]) == before
            # The ring's four blocks are given out, and none comes back.
            assert bytes_taken() < MIB
            send(b"c", 8)
            assert not source.next_batch().index
        source.release()
        send(b"d", 8)
        assert bytes_taken() > 0
        send(b"e", 64)
        assert bytes_taken() > 0


def test_drops_are_counted():
    with listen() as listener, capture((listener.getsockname()[1],), interface="lo") as source:
        # 1 MiB of ring is four blocks; nobody reads while eight times that goes by.
        with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
            for _ in range(128):
                client.sendall(bytes(65_536))
                server.recv(65_536, socket.MSG_WAITALL)
        statistics = source.statistics()
    assert 0 < statistics.dropped_by_kernel < statistics.received


def test_unknown_device_names_those_there_are():
    with (
        pytest.raises(ConfigError, match=r"^there is no network device nosuch0$") as caught,
        capture((80,), interface="nosuch0"),
    ):
        pass
    assert set(caught.value.hint.removeprefix("there are: ").split(", ")) >= {"any", "lo"}


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("frob", "^filter 'frob' does not compile: .*syntax error"),
        ("tcp) or (udp", r"^filter 'tcp\) or \(udp' does not compile: .*syntax error"),
        ("arp", "^filter 'arp' leaves nothing of TCP port 80: "),
    ],
)
def test_wrong_filter(expression, message):
    with pytest.raises(ConfigError, match=message), capture((80,), interface="lo", filter=expression):
        pass


def in_namespace(namespace, function, *args):
    """Call a function in the thread that lives in the namespace: sockets stay in the one they were made in."""
    return namespace._thread.submit(function, *args).result()


@pytest.fixture
def near(host):
    """Open a source for TCP port 80 on `near`, one end of a veth pair in a namespace of its own."""
    host.run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
    for end in ("near", "far"):
        host.run("ip", "link", "set", end, "addrgenmode", "none")
    host.run("ip", "link", "set", "far", "up")
    with contextlib.ExitStack() as stack:

        def open_source():
            config = SourceConfig(ports=(80,), interface="near", wakeup_ms=1)
            source = in_namespace(host, DeviceSource, config, [])
            stack.callback(source.close)
            return source

        yield open_source


def test_device_that_is_down(near):
    with pytest.raises(CaptureError, match=r"^the network device near is down$") as caught:
        near()
    assert caught.value.hint == "ip link set near up"


def test_device_that_goes_down(host, near):
    host.run("ip", "link", "set", "near", "up")
    source = near()
    host.run("ip", "link", "set", "near", "down")

    async def collect():
        with trio.fail_after(20):
            while True:
                await source.wait_readable()
                source.next_batch()

    with pytest.raises(CaptureError, match=r"^capturing on near failed: .*down"):
        trio.run(collect)


def test_device_of_another_link_is_read_by_libpcap(host):
    """A tunnel's packets have no Ethernet header."""
    tunnel = in_namespace(host, os.open, "/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(tunnel, TUNSETIFF, struct.pack("16sH", b"tun0", IFF_TUN | IFF_NO_PI))
        host.run("ip", "link", "set", "tun0", "up")
        config = SourceConfig(ports=(80,), interface="tun0", wakeup_ms=1, ring_bytes=MIB)
        with contextlib.closing(in_namespace(host, DeviceSource, config, [])) as source:
            assert source.datalink() == LINKTYPE_RAW_OF_DEVICES
            packets = [ipv4(tcp(40000, port, seq=1, payload=b"x")) for port in (81, 80)]
            for packet in packets:
                os.write(tunnel, packet)
            batch = trio.run(next_batch, source)
            [(_, _, at, length)] = struct.iter_unpack("=IIII", batch.index)
            assert batch.data[at : at + length] == packets[1]
            assert source.statistics().received == 1
    finally:
        os.close(tunnel)


def test_tagged_frames_between_others_are_captured(host, near):
    host.run("ip", "link", "set", "near", "up")
    source = near()
    assert "promiscuity 1" in host.run("ip", "-details", "link", "show", "near")
    frames = [ethernet(ipv4(tcp(40000, port, seq=1, payload=b"x")), vlans=[7]) for port in (81, 80)]
    with in_namespace(host, socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("far", 0))
        for frame in frames:
            wire.send(frame)

    batch = trio.run(next_batch, source)
    [(_, _, at, length)] = struct.iter_unpack("=IIII", batch.index)
    assert bytes(memoryview(batch.data)[at : at + length]) == frames[1]
