"""Capture files made by hand, read and written."""

import gzip
import os
import struct
import sys
import threading

import pytest

from gopher._fastpath import Batch
from gopher.capture.pcapfile import CaptureFile, CaptureWriter
from gopher.errors import CaptureError
from tests.support.packets import (
    DLT_RAW,
    LINKTYPE_ETHERNET,
    LINKTYPE_RAW,
    LINKTYPE_SLL,
    START_NS,
    gzipped,
    pcap_file,
    pcapng_file,
)

RECORD = struct.Struct("=IIII")
PACKETS = [(START_NS + 1_001_000 * i, bytes([i]) * (10 + i)) for i in range(10)]

both_byte_orders = pytest.mark.parametrize("byteorder", ["<", ">"])


def unpack(batch):
    """(time_ns, packet, link type) of each packet of a batch."""
    for seconds, microseconds, offset, captured in RECORD.iter_unpack(batch.index):
        yield seconds * 10**9 + microseconds * 1000, batch.data[offset : offset + captured], batch.linktype


def read(path, contents=None, max_packets=512):
    """All packets of a file, and whether it was cut."""
    if contents is not None:
        path.write_bytes(contents)
    with CaptureFile(path) as capture:
        packets = [packet for batch in capture.batches(max_packets) for packet in unpack(batch)]
        return packets, capture.truncated


def ethernet(packets):
    return [(time_ns, frame, LINKTYPE_ETHERNET) for time_ns, frame in packets]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "capture.pcap"


@pytest.mark.parametrize("compress", [bytes, gzipped], ids=["plain", "gzip"])
@pytest.mark.parametrize("nanoseconds", [False, True], ids=["us", "ns"])
@both_byte_orders
@pytest.mark.parametrize("make", [pcap_file, pcapng_file])
def test_formats(path, make, byteorder, nanoseconds, compress):
    contents = make(PACKETS, byteorder=byteorder, nanoseconds=nanoseconds)
    assert read(path, compress(contents)) == (ethernet(PACKETS), False)


def test_nanoseconds_are_cut_to_microseconds(path):
    packets, _ = read(path, pcap_file([(START_NS + 1_999, b"x")], nanoseconds=True))
    assert packets == ethernet([(START_NS + 1_000, b"x")])


@both_byte_orders
def test_modified_pcap_records_have_longer_headers(path, byteorder):
    header = struct.pack(byteorder + "IHHiIII", 0xA1B2CD34, 2, 4, 0, 0, 65535, LINKTYPE_ETHERNET)
    records = [struct.pack(byteorder + "IIIIIHBx", 7, i, 3, 3, 2, 8, 0) + b"abc" for i in range(3)]
    packets, truncated = read(path, header + b"".join(records))
    assert packets == ethernet((7 * 10**9 + i * 1000, b"abc") for i in range(3))
    assert not truncated


def test_link_type_without_the_bits_about_check_sequences(path):
    packets, _ = read(path, pcap_file(PACKETS, linktype=0x94000000 | LINKTYPE_ETHERNET))
    assert packets == ethernet(PACKETS)


@pytest.mark.parametrize("make", [pcap_file, pcapng_file])
def test_file_without_packets(path, make):
    assert read(path, make([])) == ([], False)


@pytest.mark.parametrize("make", [pcap_file, pcapng_file])
def test_batches_hold_at_most_what_is_asked_for(path, make):
    path.write_bytes(make(PACKETS))
    with CaptureFile(path) as capture:
        sizes = [len(batch.index) // 16 for batch in capture.batches(4)]
        assert capture.next_batch() is None
    assert sizes == [4, 4, 2]


def test_no_packets_asked_for_is_an_error(path):
    path.write_bytes(pcap_file(PACKETS))
    with CaptureFile(path) as capture, pytest.raises(ValueError, match="at least 1"):
        capture.next_batch(0)


@pytest.mark.parametrize("compress", [bytes, gzipped], ids=["plain", "gzip"])
@pytest.mark.parametrize("make", [pcap_file, pcapng_file])
def test_packets_across_chunks_and_longer_than_a_chunk(path, make, compress):
    lengths = [700_001, 700_003, 3_000_000, 1, 0, 1_048_576, 99]
    packets = [(START_NS, bytes([i]) * length) for i, length in enumerate(lengths)]
    contents = make(packets, snaplen=1 << 24) if make is pcap_file else make(packets)
    assert read(path, compress(contents)) == (ethernet(packets), False)


def test_batch_outlives_the_file(path):
    path.write_bytes(pcap_file(PACKETS))
    with CaptureFile(path) as capture:
        first = capture.next_batch(3)
        rest = capture.next_batch()
    assert capture.next_batch() is None
    path.unlink()
    assert [*unpack(first), *unpack(rest)] == ethernet(PACKETS)


def test_pipe_gives_packets_as_they_come(path):
    os.mkfifo(path)
    contents = pcap_file(PACKETS)
    first_packet_end = 24 + 16 + len(PACKETS[0][1])
    first_was_read = threading.Event()

    def write():
        with path.open("wb", buffering=0) as pipe:
            for end in (3, 30, first_packet_end):  # within the magic, and within the packet
                pipe.write(contents[pipe_position[0] : end])
                pipe_position[0] = end
            first_was_read.wait(10)
            pipe.write(contents[first_packet_end:])

    pipe_position = [0]
    writer = threading.Thread(target=write)
    writer.start()
    with CaptureFile(path) as capture:
        first = list(unpack(capture.next_batch()))
        first_was_read.set()
        rest = [packet for batch in capture.batches() for packet in unpack(batch)]
    writer.join()
    assert first + rest == ethernet(PACKETS)
    assert first == ethernet(PACKETS[:1])


# pcapng, block by block


def block(kind, body, byteorder="<"):
    body += b"\0" * (-len(body) % 4)
    length = struct.pack(byteorder + "I", 12 + len(body))
    return struct.pack(byteorder + "I", kind) + length + body + length


def section(byteorder="<"):
    return block(0x0A0D0D0A, struct.pack(byteorder + "IHHq", 0x1A2B3C4D, 1, 0, -1), byteorder)


def interface(linktype=LINKTYPE_ETHERNET, snaplen=0, options=b"", byteorder="<"):
    return block(1, struct.pack(byteorder + "HHI", linktype, 0, snaplen) + options, byteorder)


def option(code, value, byteorder="<"):
    return struct.pack(byteorder + "HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def enhanced(frame, *, number=0, units=0, byteorder="<", captured=None):
    captured = len(frame) if captured is None else captured
    fields = struct.pack(byteorder + "IIIII", number, units >> 32, units & 0xFFFFFFFF, captured, len(frame))
    return block(6, fields + frame, byteorder)


@both_byte_orders
def test_interfaces_have_their_own_link_type_and_clock(path, byteorder):
    resolution_ms, resolution_halves = option(9, b"\3", byteorder), option(9, b"\x81", byteorder)
    contents = b"".join(
        [
            section(byteorder),
            interface(byteorder=byteorder),
            interface(LINKTYPE_SLL, options=resolution_ms + option(0, b"", byteorder), byteorder=byteorder),
            enhanced(b"a", units=5_000_001, byteorder=byteorder),
            enhanced(b"b", number=1, units=5_001, byteorder=byteorder),
            interface(LINKTYPE_RAW, options=option(2, b"eth0", byteorder) + resolution_halves, byteorder=byteorder),
            enhanced(b"c", number=2, units=11, byteorder=byteorder),
            enhanced(b"d", units=6_000_001, byteorder=byteorder),
        ]
    )
    path.write_bytes(contents)
    with CaptureFile(path) as capture:
        batches = [list(unpack(batch)) for batch in capture.batches()]
    assert batches == [
        [(5_000_001_000, b"a", LINKTYPE_ETHERNET)],
        [(5_001_000_000, b"b", LINKTYPE_SLL)],
        [(5_500_000_000, b"c", LINKTYPE_RAW)],
        [(6_000_001_000, b"d", LINKTYPE_ETHERNET)],
    ]


@pytest.mark.parametrize(
    ("resolution", "units", "time_ns"),
    [
        (0, 1_700_000_000, 1_700_000_000 * 10**9),
        (9, 1_700_000_000_123_456_789, 1_700_000_000_123_456_000),
        (12, 5_123_456_789_012, 5_123_456_000),
        (19, 12_345_678_900_000_000_000, 1_234_567_000),
        (0x80 | 63, (1 << 63) + (1 << 62), 1_500_000_000),
        (0x80 | 63, (1 << 64) - 1, 1_999_999_000),
    ],
)
def test_time_resolutions(path, resolution, units, time_ns):
    contents = section() + interface(options=option(9, bytes([resolution]))) + enhanced(b"x", units=units)
    assert read(path, contents) == (ethernet([(time_ns, b"x")]), False)


@both_byte_orders
def test_time_offset_in_seconds(path, byteorder):
    offset = option(14, struct.pack(byteorder + "q", -(2**33) - 5), byteorder)
    units = (2**33 + 12) * 1_000_000
    contents = section(byteorder) + interface(options=offset, byteorder=byteorder)
    packets, _ = read(path, contents + enhanced(b"x", units=units, byteorder=byteorder))
    assert packets == ethernet([(7 * 10**9, b"x")])


def test_sections_start_anew_and_may_change_byte_order(path):
    contents = section("<") + interface(LINKTYPE_SLL) + enhanced(b"a")
    contents += section(">") + interface(byteorder=">") + enhanced(b"b", byteorder=">")
    packets, truncated = read(path, contents)
    assert [(frame, linktype) for _, frame, linktype in packets] == [(b"a", LINKTYPE_SLL), (b"b", LINKTYPE_ETHERNET)]
    assert not truncated


def test_interface_of_an_earlier_section_is_unknown(path):
    assert read(path, section() + interface() + section() + enhanced(b"a")) == ([], True)


def test_simple_packets_have_the_newest_time_and_no_padding(path):
    simple = block(3, struct.pack("<I", 5) + b"hello")
    packets, _ = read(path, section() + interface() + simple + enhanced(b"x", units=9_000_000) + simple)
    assert packets == ethernet([(0, b"hello"), (9 * 10**9, b"x"), (9 * 10**9, b"hello")])


def test_simple_packet_is_cut_at_the_snap_length(path):
    packets, _ = read(path, section() + interface(snaplen=3) + block(3, struct.pack("<I", 5000) + b"xyz"))
    assert packets == ethernet([(0, b"xyz")])


def test_simple_packet_is_cut_at_its_block(path):
    packets, _ = read(path, section() + interface() + block(3, struct.pack("<I", 5000) + b"hell"))
    assert packets == ethernet([(0, b"hell")])


@both_byte_orders
def test_obsolete_packets(path, byteorder):
    fields = struct.pack(byteorder + "HHIIII", 1, 0, 0, 2_000_003, 2, 60)
    contents = section(byteorder) + interface(byteorder=byteorder) + interface(LINKTYPE_SLL, byteorder=byteorder)
    assert read(path, contents + block(2, fields + b"ab", byteorder)) == (
        [(2_000_003_000, b"ab", LINKTYPE_SLL)],
        False,
    )


def test_unknown_blocks_are_skipped(path):
    contents = section() + block(5, b"statistics") + interface() + block(0x80000BAD, b"") + enhanced(b"x")
    assert read(path, contents) == (ethernet([(0, b"x")]), False)


def test_options_cut_short_are_ignored(path):
    contents = section() + interface(options=struct.pack("<HH", 9, 200)) + enhanced(b"x", units=1_000_000)
    assert read(path, contents) == (ethernet([(10**9, b"x")]), False)


def test_many_interfaces(path):
    contents = section() + b"".join(interface(LINKTYPE_SLL) for _ in range(999)) + interface()
    assert read(path, contents + enhanced(b"x", number=999)) == (ethernet([(0, b"x")]), False)


# Files that end too early or contradict themselves


@pytest.mark.parametrize("compress", [bytes, gzipped], ids=["plain", "gzip"])
@pytest.mark.parametrize("make", [pcap_file, pcapng_file])
def test_every_cut_gives_the_whole_packets_before_it(path, make, compress):
    given = PACKETS[:2]
    boundaries = [len(make(given[:count])) for count in range(len(given) + 1)]
    whole = make(given)
    for cut in range(boundaries[0], len(whole)):
        packets, truncated = read(path, compress(whole[:cut]))
        assert packets == ethernet(given)[: sum(cut >= end for end in boundaries[1:])]
        assert truncated == (cut not in boundaries)


def test_gzip_stream_cut_short_gives_what_came_out_of_it(path):
    packets = [(START_NS, os.urandom(1000)) for _ in range(50)]
    compressed = gzipped(pcap_file(packets))
    read_packets, truncated = read(path, compressed[: len(compressed) * 3 // 4])
    assert truncated
    assert 30 < len(read_packets) < 40
    assert read_packets == ethernet(packets)[: len(read_packets)]


def test_gzip_checksum_error_is_a_truncation(path):
    compressed = gzipped(pcap_file(PACKETS))
    assert read(path, compressed[:-8] + b"\0" * 8) == (ethernet(PACKETS), True)


def test_absurd_length_in_pcap_ends_the_reading(path):
    absurd = struct.pack("<IIII", 1, 1, (1 << 24) + 1, 60)
    assert read(path, pcap_file(PACKETS[:2]) + absurd + bytes(100)) == (ethernet(PACKETS[:2]), True)


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(struct.pack("<IIII", 6, (1 << 24) + 4, 0, 0), id="block-too-long"),
        pytest.param(struct.pack("<III", 6, 8, 8), id="block-shorter-than-its-frame"),
        pytest.param(struct.pack("<II", 5, 13) + bytes(12), id="block-length-not-a-multiple-of-4"),
        pytest.param(block(5, b"four")[:-4] + struct.pack("<I", 20), id="lengths-differ"),
        pytest.param(enhanced(b"x", number=1), id="unknown-interface"),
        pytest.param(enhanced(b"four", captured=5), id="packet-longer-than-its-block"),
        pytest.param(enhanced(b"four", captured=0xFFFFFFFF), id="packet-far-longer-than-its-block"),
        pytest.param(block(6, bytes(16)), id="enhanced-packet-without-lengths"),
        pytest.param(block(2, bytes(16)), id="obsolete-packet-without-lengths"),
        pytest.param(block(3, b""), id="simple-packet-without-length"),
        pytest.param(block(1, bytes(4)), id="interface-too-short"),
        pytest.param(interface(options=option(9, b"\x14")), id="resolution-beyond-64-bits"),
        pytest.param(interface(options=option(9, b"\xc0")), id="binary-resolution-beyond-64-bits"),
        pytest.param(block(0x0A0D0D0A, bytes(16)), id="section-without-byte-order"),
    ],
)
def test_damage_in_pcapng_ends_the_reading(path, damaged):
    before = section() + interface() + enhanced(b"before")
    packets, truncated = read(path, before + damaged + enhanced(b"after"))
    assert packets == ethernet([(0, b"before")])
    assert truncated


def test_simple_packet_before_any_interface_ends_the_reading(path):
    assert read(path, section() + block(3, struct.pack("<I", 4) + b"four")) == ([], True)


# Files that are no captures


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "is empty"),
        (b"\xd4\xc3", r"is not a capture file: it starts with b'\\xd4\\xc3'"),
        (b"GET / HTTP/1.1\r\n\r\n", "is not a capture file: it starts with b'GET / HT'"),
        (gzip.compress(b"no capture"), "is not a capture file: it starts with b'no captu'"),
        (b"\x1f\x8bnot gzip at all", "is empty"),
        (pcap_file([])[:23], "ends within its file header"),
    ],
)
def test_not_a_capture(path, contents, reason):
    path.write_bytes(contents)
    with pytest.raises(CaptureError, match=f"^{path} {reason}$") as caught:
        CaptureFile(path)
    assert ("pcapng" in caught.value.hint) == ("not a capture" in reason)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CaptureError, match=r"^cannot read .*/missing: No such file or directory$"):
        CaptureFile(tmp_path / "missing")
    with pytest.raises(CaptureError, match=r"^cannot read .*: Is a directory$"):
        CaptureFile(tmp_path)


# Writing


def batch_of(packets, linktype=LINKTYPE_ETHERNET):
    data = b"".join(frame for _, frame in packets)
    index = b""
    offset = 0
    for time_ns, frame in packets:
        seconds, rest = divmod(time_ns, 10**9)
        index += RECORD.pack(seconds, rest // 1000, offset, len(frame))
        offset += len(frame)
    return Batch(data, index, linktype)


def test_written_file_is_pcap_in_this_machines_byte_order(path):
    writer = CaptureWriter(path, LINKTYPE_ETHERNET)
    writer.write(batch_of(PACKETS[:4]))
    writer.write(batch_of([]))
    writer.write(batch_of(PACKETS[4:])._replace(data=bytearray(batch_of(PACKETS[4:]).data)))
    on_the_way = path.read_bytes()
    writer.close()
    writer.close()
    byteorder = "<" if sys.byteorder == "little" else ">"
    assert path.read_bytes() == on_the_way == pcap_file(PACKETS, byteorder=byteorder)


def test_only_the_packets_of_the_index_are_written(path):
    batch = batch_of(PACKETS)
    writer = CaptureWriter(path, LINKTYPE_ETHERNET)
    writer.write(batch._replace(index=batch.index[32:64]))
    writer.close()
    assert read(path) == (ethernet(PACKETS[2:4]), False)


def test_raw_ip_of_a_device_gets_the_number_of_files(path):
    writer = CaptureWriter(path, DLT_RAW)
    writer.write(batch_of([(START_NS, b"E")], DLT_RAW))
    writer.close()
    assert read(path) == ([(START_NS, b"E", LINKTYPE_RAW)], False)


def test_batch_of_another_link_type_is_refused_and_leaves_the_file_as_it_was(path):
    writer = CaptureWriter(path, LINKTYPE_ETHERNET)
    writer.write(batch_of(PACKETS[:1]))
    with pytest.raises(CaptureError, match=r"link type 113 into .*/capture\.pcap"):
        writer.write(batch_of(PACKETS, LINKTYPE_SLL))
    writer.close()
    assert read(path) == (ethernet(PACKETS[:1]), False)


@pytest.mark.parametrize("record", [(0, 0, 3, 2), (0, 0, 0, 5), (0, 0, 0xFFFFFFFF, 0xFFFFFFFF)])
def test_index_beyond_the_data_is_refused(path, record):
    writer = CaptureWriter(path, LINKTYPE_ETHERNET)
    with pytest.raises(ValueError, match="outside"):
        writer.write(Batch(b"four", RECORD.pack(*record), LINKTYPE_ETHERNET))
    writer.close()


def test_file_that_cannot_be_written(tmp_path):
    with pytest.raises(CaptureError, match=r"^cannot write .*/missing/x.pcap: No such file or directory$"):
        CaptureWriter(tmp_path / "missing" / "x.pcap", LINKTYPE_ETHERNET)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk():
    with pytest.raises(CaptureError, match=r"^cannot write /dev/full: No space left on device$"):
        CaptureWriter("/dev/full", LINKTYPE_ETHERNET)
