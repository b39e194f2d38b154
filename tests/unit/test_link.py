"""The link's wire format: PROXY headers against hand-made bytes, and what is refused of records."""

import re
from pathlib import Path

import pytest

from gopher._fastpath import CLIENT_TO_SERVER, SERVER_TO_CLIENT
from gopher.errors import RemoteProtocolError
from gopher.link import (
    HEADER_LIMIT_BYTES,
    RECORD_LIMIT_BYTES,
    SIGNATURE,
    LinkInfo,
    ProxyHeader,
    Record,
    RecordDecoder,
    RecordType,
    begins_with_header,
    decode_header,
    encode_data,
    encode_fin,
    encode_gap,
    encode_header,
    encode_header_v1,
    encode_rst,
)

UNIQUE_ID = bytes(range(16))
START_NS = 1_700_000_000_123_456_789
IPV4 = ProxyHeader(
    client=("192.0.2.7", 51234),
    server=("198.51.100.1", 80),
    unique_id=UNIQUE_ID,
    link=LinkInfo(framed=True, start_ns=START_NS),
)
IPV6 = ProxyHeader(client=("2001:db8::1", 1), server=("::1", 65535))
LOCAL = ProxyHeader(client=None, server=None, unique_id=b"x", link=LinkInfo(framed=False, joined=True, start_ns=0))

TCP4_ADDRESSES = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + (51234).to_bytes(2, "big") + (80).to_bytes(2, "big")


def header(command: int, family: int, rest: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + bytes([command, family]) + (len(rest) if length is None else length).to_bytes(2, "big") + rest


def value(kind: int, content: bytes) -> bytes:
    return bytes([kind]) + len(content).to_bytes(2, "big") + content


# -- header ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", None),
        (SIGNATURE[:1], None),
        (SIGNATURE[:11], None),
        (SIGNATURE, True),
        (SIGNATURE + b"anything", True),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", False),
        (b"G", False),
        (SIGNATURE[:11] + b"\r", False),
    ],
)
def test_signature_is_known_as_soon_as_it_can_be(data, answer):
    assert begins_with_header(data) is answer


def test_header_of_ipv4_is_as_the_specification_says():
    expected = header(
        0x21, 0x11, TCP4_ADDRESSES + value(5, UNIQUE_ID) + value(0xE0, b"\1\1\0\0" + START_NS.to_bytes(8, "big"))
    )
    assert encode_header(IPV4) == expected
    assert decode_header(expected + b"more") == (IPV4, len(expected))


@pytest.mark.parametrize("sent", [IPV4, IPV6, LOCAL], ids=["ipv4", "ipv6", "local"])
@pytest.mark.parametrize("checksum", [False, True])
def test_header_comes_back_and_is_not_believed_before_it_is_whole(sent, checksum):
    data = encode_header(sent, checksum=checksum)
    assert len(data) <= 93
    assert decode_header(data) == (sent, len(data))
    assert all(decode_header(data[:length]) is None for length in range(len(data)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (header(0x20, 0x11, TCP4_ADDRESSES), ProxyHeader(client=None, server=None)),
        (header(0x21, 0x00, b""), ProxyHeader(client=None, server=None)),
        (header(0x21, 0x31, bytes(216)), ProxyHeader(client=None, server=None)),
        (header(0x20, 0x00, value(0x04, bytes(9)) + value(0xEE, b"") + value(5, b"id")),
         ProxyHeader(client=None, server=None, unique_id=b"id")),
        # Google Cloud's connection id has the same private type.
        (header(0x20, 0x00, value(0xE0, bytes(8))), ProxyHeader(client=None, server=None)),
        # What a later version of gopher may add.
        (header(0x20, 0x00, value(0xE0, b"\1\xff\xff\xff" + bytes(8) + b"more")),
         ProxyHeader(client=None, server=None, link=LinkInfo(framed=True, joined=True, start_ns=0))),
    ],
    ids=["local with addresses", "unspecified", "unix", "unknown values", "foreign link value", "longer link value"],
)  # fmt: skip
def test_header_of_others_is_read(data, expected):
    assert decode_header(data) == (expected, len(data))


def crc32c(data: bytes) -> int:
    """Bit by bit; RFC 3720 appendix B.4 gives the value for 32 zeros."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def test_checksum_is_made_and_verified():
    assert crc32c(bytes(32)) == 0x8A9136AA
    zero = header(0x21, 0x11, TCP4_ADDRESSES + value(3, bytes(4)))
    good = zero[:-4] + crc32c(zero).to_bytes(4, "big")
    assert encode_header(ProxyHeader(client=IPV4.client, server=IPV4.server), checksum=True) == good
    assert decode_header(good) is not None
    for position in (16, len(good) - 1):
        damaged = bytearray(good)
        damaged[position] ^= 1
        with pytest.raises(RemoteProtocolError, match="checksum"):
            decode_header(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "reason", "offset"),
    [
        (b"GET / HTTP/1.1\r\n", "no PROXY protocol header", 0),
        (header(0x11, 0x11, TCP4_ADDRESSES), "unknown version or command 0x11", 12),
        (header(0x22, 0x11, TCP4_ADDRESSES), "unknown version or command 0x22", 12),
        (header(0x21, 0x12, TCP4_ADDRESSES), "unknown address family or transport 0x12", 13),
        (header(0x21, 0x41, TCP4_ADDRESSES), "unknown address family or transport 0x41", 13),
        (header(0x21, 0x11, TCP4_ADDRESSES[:-1]), "too short for its addresses", 14),
        (header(0x21, 0x11, b"", HEADER_LIMIT_BYTES - 15), "of 4097 bytes", 14),
        (header(0x20, 0x00, b"\5\0"), "cut value", 16),
        (header(0x20, 0x00, b"\5\0\3ab"), "beyond its end", 19),
        (header(0x20, 0x00, value(5, bytes(129))), "unique id of 129 bytes", None),
        (header(0x20, 0x00, value(5, b"a") + value(5, b"b")), "two values of type 0x5", 23),
        (header(0x20, 0x00, value(3, b"abc")), "checksum", 19),
        (header(0x20, 0x00, value(0xE0, b"\2" + bytes(11))), "link of version 2", None),
    ],
)
def test_header_that_must_be_refused(data, reason, offset):
    with pytest.raises(RemoteProtocolError, match=re.escape(reason)) as caught:
        decode_header(data)
    assert caught.value.offset == offset


def test_longest_header_is_read():
    data = header(0x20, 0x00, value(0xEE, bytes(HEADER_LIMIT_BYTES - 19)))
    assert decode_header(data) == (ProxyHeader(client=None, server=None), HEADER_LIMIT_BYTES)


# -- version 1 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (IPV4, b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 80\r\n"),
        (IPV6, b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n"),
        (LOCAL, b"PROXY UNKNOWN\r\n"),
    ],
)
def test_header_of_version_1(sent, line):
    assert encode_header_v1(sent) == line


# -- records -----------------------------------------------------------------------------------------------------------


def head(kind: int, length: int, flags: int = 0) -> bytes:
    return bytes([kind, flags, 0, 0]) + length.to_bytes(4, "big") + (77).to_bytes(8, "big")


CONVERSATION = [
    (head(1, 3) + b"ask", Record(RecordType.REQUEST, CLIENT_TO_SERVER, 77, b"ask", 3)),
    (head(2, 6) + b"answer", Record(RecordType.RESPONSE, SERVER_TO_CLIENT, 77, b"answer", 6)),
    (head(3, 8) + (5).to_bytes(8, "big"), Record(RecordType.GAP, CLIENT_TO_SERVER, 77, b"", 5)),
    (head(3, 8, 1) + (2**40).to_bytes(8, "big"), Record(RecordType.GAP, SERVER_TO_CLIENT, 77, b"", 2**40)),
    (head(4, 0), Record(RecordType.FIN, CLIENT_TO_SERVER, 77, b"", 0)),
    (head(2, 1) + b"!", Record(RecordType.RESPONSE, SERVER_TO_CLIENT, 77, b"!", 1)),
    (head(4, 0, 1), Record(RecordType.FIN, SERVER_TO_CLIENT, 77, b"", 0)),
    (head(5, 0), Record(RecordType.RST, CLIENT_TO_SERVER, 77, b"", 0)),
]
WIRE = b"".join(data for data, _ in CONVERSATION)
RECORDS = [record for _, record in CONVERSATION]


def test_records_are_encoded_as_the_specification_says():
    encoded = [
        encode_data(CLIENT_TO_SERVER, b"ask", 77),
        encode_data(SERVER_TO_CLIENT, b"answer", 77),
        encode_gap(CLIENT_TO_SERVER, 5, 77),
        encode_gap(SERVER_TO_CLIENT, 2**40, 77),
        encode_fin(CLIENT_TO_SERVER, 77),
        encode_data(SERVER_TO_CLIENT, b"!", 77),
        encode_fin(SERVER_TO_CLIENT, 77),
        encode_rst(77),
    ]
    assert encoded == [data for data, _ in CONVERSATION]


@pytest.mark.parametrize("size", [1, 7, 16, 19, 1000])
def test_records_come_out_however_the_bytes_are_cut(size):
    decoder = RecordDecoder()
    records = []
    for begin in range(0, len(WIRE), size):
        records += decoder.feed(WIRE[begin : begin + size])
    decoder.end()
    assert records == RECORDS


def test_reserved_bits_are_ignored():
    data = bytes([1, 0xFF, 0xFF, 0xFF]) + head(1, 1)[4:] + b"x" + bytes([4, 0xFE, 1, 2]) + head(4, 0)[4:]
    records = RecordDecoder().feed(data)
    assert [(record.type, record.direction) for record in records] == [(RecordType.REQUEST, 0), (RecordType.FIN, 0)]


@pytest.mark.parametrize(
    ("before", "bad", "reason", "at"),
    [
        (b"", head(0, 0), "unknown type 0", 0),
        (b"", head(6, 1), "unknown type 6", 0),
        (b"", head(1, 0), "REQUEST record of 0 bytes", 4),
        (b"", head(2, RECORD_LIMIT_BYTES + 1), "RESPONSE record of 65537 bytes", 4),
        (b"", head(3, 7), "GAP record of 7 bytes", 4),
        (b"", head(3, 8) + bytes(8), "GAP record of no bytes", 16),
        (b"", head(4, 1), "FIN record of 1 bytes", 4),
        (head(4, 0), head(1, 1) + b"x", "REQUEST record after the end", 0),
        (head(4, 0), head(3, 8) + bytes(8), "GAP record after the end", 0),
        (head(4, 0, 1), head(4, 0, 1), "FIN record after the end", 0),
        (head(5, 0), head(2, 1) + b"x", "RESPONSE record after the end", 0),
        (head(5, 0), head(5, 0), "RST record after the end", 0),
    ],
)
def test_record_that_must_be_refused_is_as_soon_as_its_head_is_there(before, bad, reason, at):
    decoder = RecordDecoder()
    ahead = head(2, 1) + b"x" if before[:1] != b"\5" and before[1:2] != b"\1" else b""
    decoder.feed(ahead + before)
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        decoder.feed(bad)
    assert caught.value.offset == len(ahead) + len(before) + at
    assert caught.value.hint


def test_end_within_a_record_is_an_error():
    for length in range(1, len(WIRE)):
        decoder = RecordDecoder()
        decoder.feed(WIRE[:length])
        if any(length == len(b"".join(data for data, _ in CONVERSATION[:count])) for count in range(9)):
            decoder.end()
        else:
            with pytest.raises(RemoteProtocolError, match="ended within a record") as caught:
                decoder.end()
            assert caught.value.offset == length


def test_longest_record_is_read():
    data = bytes(RECORD_LIMIT_BYTES)
    [record] = RecordDecoder().feed(encode_data(CLIENT_TO_SERVER, data, 0))
    assert record.data == data


# -- the specification -------------------------------------------------------------------------------------------------


def test_example_of_the_specification_is_what_the_code_makes():
    text = (Path(__file__).parents[2] / "docs" / "link.md").read_text()
    [example] = re.findall(r"```hex\n(.*?)```", text, re.DOTALL)
    data = b"".join(bytes.fromhex(line.partition("#")[0]) for line in example.splitlines())
    decoded = decode_header(data)
    assert decoded is not None
    found, length = decoded
    assert found == IPV4
    assert encode_header(found) == data[:length]
    records = RecordDecoder().feed(data[length:])
    request, response = b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nhi"
    assert [(record.type.name, record.direction, record.data) for record in records] == [
        ("REQUEST", CLIENT_TO_SERVER, request),
        ("RESPONSE", SERVER_TO_CLIENT, response),
        ("GAP", SERVER_TO_CLIENT, b""),
        ("FIN", SERVER_TO_CLIENT, b""),
        ("FIN", CLIENT_TO_SERVER, b""),
    ]
    times = [record.time_ns for record in records]
    assert data[length:] == b"".join(
        [
            encode_data(CLIENT_TO_SERVER, request, times[0]),
            encode_data(SERVER_TO_CLIENT, response, times[1]),
            encode_gap(SERVER_TO_CLIENT, 1000, times[2]),
            encode_fin(SERVER_TO_CLIENT, times[3]),
            encode_fin(CLIENT_TO_SERVER, times[4]),
        ]
    )
