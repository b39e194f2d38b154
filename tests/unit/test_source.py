"""The two sources behind their one face. What needs a real device is in tests/e2e/test_source_live.py."""

import contextlib
import os
import re
import struct

import pytest
import trio
import trio.testing

from gopher.capture.source import DeviceSource, FileSource, SourceStatistics, open_source
from gopher.config import SourceConfig
from gopher.errors import CaptureError, CapturePermissionError, ConfigError
from tests.support.packets import (
    LINKTYPE_ETHERNET,
    LINKTYPE_RAW,
    LINKTYPE_SLL,
    START_NS,
    ethernet,
    ipv4,
    linux_cooked,
    pcap_file,
    tcp,
)

SECOND = 10**9


def frame(to_port=80, link=ethernet):
    return link(ipv4(tcp(40000, to_port, seq=1, payload=b"x")))


def packets_at(*seconds):
    return [(START_NS + int(after * SECOND), frame()) for after in seconds]


def batch_frames(batch):
    return [batch.data[at : at + length] for _, _, at, length in struct.iter_unpack("=IIII", batch.index)]


@pytest.fixture
def source_of(tmp_path):
    """Make a source of a file with the given contents; closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(contents, **settings):
            path = tmp_path / "capture.pcap"
            path.write_bytes(contents)
            source = open_source(SourceConfig(ports=(80,), read_path=str(path), **settings), [])
            stack.callback(source.close)
            return source

        yield make


async def arrivals(source):
    """(seconds since the start, packets) of each batch that is not empty."""
    start = trio.current_time()
    found = []
    while not source.finished:
        await source.wait_readable()
        batch = source.next_batch()
        if batch.index:
            found.append((trio.current_time() - start, len(batch.index) // 16))
    return found


def run(function, *args):
    return trio.run(function, *args, clock=trio.testing.MockClock(autojump_threshold=0))


def test_file_as_fast_as_asked(source_of):
    source = source_of(pcap_file(packets_at(*range(600))), speed=None)
    found = run(arrivals, source)
    assert {when for when, _ in found} == {0}
    assert sum(count for _, count in found) == 600
    assert source.statistics() == SourceStatistics(600, 0, 0)
    assert not source.truncated


@pytest.mark.parametrize(("speed", "seconds"), [(1.0, [0, 0.5, 90]), (2.0, [0, 0.25, 45]), (0.1, [0, 5, 900])])
def test_file_keeps_its_pace(source_of, speed, seconds):
    source = source_of(pcap_file(packets_at(0, 0.5, 0.5, 90)), speed=speed)
    found = run(arrivals, source)
    assert [count for _, count in found] == [1, 2, 1]
    assert [when for when, _ in found] == pytest.approx(seconds, abs=1e-5)


def test_pace_goes_on_from_batch_to_batch(source_of):
    source = source_of(pcap_file(packets_at(*range(300))))
    found = run(arrivals, source)
    assert [count for _, count in found] == [1] * 300
    assert [when for when, _ in found] == pytest.approx(range(300), abs=1e-5)


def test_time_stamp_that_goes_back_does_not_wait(source_of):
    source = source_of(pcap_file(packets_at(0, 10, 3, 20)))
    assert run(arrivals, source) == [(0, 1), (pytest.approx(10), 2), (pytest.approx(20), 1)]


def test_packets_whose_time_has_not_come_are_not_given(source_of):
    source = source_of(pcap_file(packets_at(0, 10)))

    async def main():
        first, second = source.next_batch(), source.next_batch()
        assert len(first.index) == 16
        assert second.index == b""
        assert not source.finished

    run(main)
    assert source.statistics().received == 1


def test_file_without_packets_is_finished_at_once(source_of):
    source = source_of(pcap_file([]))
    assert source.finished
    assert source.datalink() == LINKTYPE_ETHERNET
    assert run(arrivals, source) == []


def test_finished_file_does_not_wait(source_of):
    source = source_of(pcap_file(packets_at(0)))

    async def main():
        await arrivals(source)
        await source.wait_readable()
        assert source.next_batch().index == b""

    run(main)
    assert source.finished


def test_name_and_link_type_are_the_files(source_of, tmp_path):
    source = source_of(pcap_file([(START_NS, frame(link=linux_cooked))], LINKTYPE_SLL))
    assert source.name == str(tmp_path / "capture.pcap")
    assert source.datalink() == LINKTYPE_SLL


def test_truncated_file_gives_its_whole_packets(source_of):
    source = source_of(pcap_file(packets_at(0, 0, 0))[:-1], speed=None)
    assert run(arrivals, source) == [(0, 2)]
    assert source.truncated


@pytest.mark.parametrize(
    ("linktype", "link"), [(LINKTYPE_ETHERNET, ethernet), (LINKTYPE_SLL, linux_cooked), (LINKTYPE_RAW, bytes)]
)
def test_filter_chooses_packets_of_any_link_type(source_of, linktype, link):
    frames = [frame(port, link) for port in (80, 81, 82, 80)]
    contents = pcap_file([(START_NS, each) for each in frames], linktype)
    source = source_of(contents, filter="tcp dst port 80 or tcp dst port 82", speed=None)
    assert batch_frames(source.next_batch()) == [frames[0], frames[2], frames[3]]
    assert source.statistics().received == 3


def test_filter_that_takes_nothing_ends_with_the_file(source_of):
    source = source_of(pcap_file(packets_at(*range(600))), filter="udp")
    assert run(arrivals, source) == []
    assert source.statistics().received == 0


@pytest.mark.parametrize("packets", [[], packets_at(0)], ids=["empty", "not-empty"])
def test_filter_that_does_not_compile(source_of, packets):
    with pytest.raises(ConfigError, match=r"^filter 'frob nicate' does not compile: .*syntax error$"):
        source_of(pcap_file(packets), filter="frob nicate")


def test_missing_file():
    with pytest.raises(CaptureError, match=r"^cannot read /missing.pcap: No such file"):
        FileSource(SourceConfig(ports=(80,), read_path="/missing.pcap"))


@contextlib.contextmanager
def nobody():
    """Without the right to capture, even as root: leaving user 0 drops the effective capabilities."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_capturing_without_permission():
    with (
        nobody(),
        pytest.raises(CapturePermissionError, match=r"^not permitted to capture on lo: .* missing$") as caught,
    ):
        DeviceSource(SourceConfig(ports=(80,), interface="lo"), [])
    assert re.search(r"root.*setcap cap_net_raw\+ep /\S*python", caught.value.hint)
    assert caught.value.exit_status == 77


@pytest.mark.parametrize(("wakeup_ms", "least_blocks"), [(8, 256), (1, 750), (2, 375)])
def test_ring_holds_three_quarters_of_a_second_whatever_comes_in_a_block(wakeup_ms, least_blocks):
    """The kernel closes a block after `wakeup_ms`, even with one packet in it."""
    config = SourceConfig(ports=(80,), wakeup_ms=wakeup_ms)
    assert config.ring_room_bytes == least_blocks * 256 * 1024


def test_ring_of_the_users_size():
    assert SourceConfig(ports=(80,), wakeup_ms=1, ring_bytes=1 << 20).ring_room_bytes == 1 << 20
