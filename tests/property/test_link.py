"""The link: what goes in comes out, however it is cut, and any bytes give records or RemoteProtocolError."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gopher.link import (
    SIGNATURE,
    LinkInfo,
    ProxyHeader,
    Record,
    RecordDecoder,
    RecordType,
    decode_header,
    encode_data,
    encode_fin,
    encode_gap,
    encode_header,
    encode_header_v1,
    encode_rst,
)
from tests.fuzz import link as fuzz_link

times = st.integers(0, 2**64 - 1)
ports = st.integers(0, 65535)
directions = st.sampled_from([0, 1])


def addresses(version):
    return st.tuples(st.ip_addresses(v=version).map(str), ports)


ends = st.one_of(
    st.just((None, None)),
    st.tuples(addresses(4), addresses(4)),
    st.tuples(addresses(6), addresses(6)),
)
links = st.builds(LinkInfo, framed=st.booleans(), joined=st.booleans(), start_ns=times)


@st.composite
def headers(draw):
    client, server = draw(ends)
    return ProxyHeader(
        client=client, server=server, unique_id=draw(st.binary(max_size=128)), link=draw(st.none() | links)
    )


@st.composite
def conversations(draw):
    """Records as one connection can have them, and their bytes."""
    records, encoded = [], []
    open_directions = [0, 1]
    for _ in range(draw(st.integers(0, 8))):
        if not open_directions:
            break
        direction, time_ns = draw(st.sampled_from(open_directions)), draw(times)
        kind = draw(st.sampled_from(["data", "data", "gap", "fin"]))
        if kind == "data":
            data = draw(st.binary(min_size=1, max_size=60))
            records.append(Record(RecordType(1 + direction), direction, time_ns, data, len(data)))
            encoded.append(encode_data(direction, data, time_ns))
        elif kind == "gap":
            length = draw(st.integers(1, 2**64 - 1))
            records.append(Record(RecordType.GAP, direction, time_ns, b"", length))
            encoded.append(encode_gap(direction, length, time_ns))
        else:
            records.append(Record(RecordType.FIN, direction, time_ns, b"", 0))
            encoded.append(encode_fin(direction, time_ns))
            open_directions.remove(direction)
    if draw(st.booleans()):
        time_ns = draw(times)
        records.append(Record(RecordType.RST, 0, time_ns, b"", 0))
        encoded.append(encode_rst(time_ns))
    return records, b"".join(encoded)


def cut(data, positions):
    bounds = sorted({0, len(data), *(position % (len(data) + 1) for position in positions)})
    return [data[begin:end] for begin, end in pairwise(bounds)]


@given(headers(), st.booleans(), st.binary(max_size=20))
def test_header_comes_back(header, checksum, rest):
    data = encode_header(header, checksum=checksum)
    assert decode_header(data + rest) == (header, len(data))


@given(headers())
def test_header_of_version_1_is_one_line_of_six_words_or_unknown(header):
    # Section 2.1: "a 108-byte buffer is always enough to store all the line and a trailing zero for string processing."
    data = encode_header_v1(header)
    assert len(data) <= 107
    assert data.endswith(b"\r\n")
    words = data.decode().split()
    if header.client is None or header.server is None:
        assert words == ["PROXY", "UNKNOWN"]
    else:
        assert words[0] == "PROXY"
        assert (words[2], int(words[4])) == header.client
        assert (words[3], int(words[5])) == header.server


@given(conversations(), st.lists(st.integers(0, 1 << 16), max_size=20))
def test_records_come_back_however_they_are_cut(conversation, positions):
    records, data = conversation
    decoder = RecordDecoder()
    decoded = [record for piece in cut(data, positions) for record in decoder.feed(piece)]
    decoder.end()
    assert decoded == records


@st.composite
def damaged(draw):
    """A valid link with some bytes changed."""
    data = bytearray(encode_header(draw(headers())) + draw(conversations())[1])
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(12, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@given(st.one_of(st.binary(max_size=200), damaged()), st.integers(0, 255))
def test_any_bytes_give_records_or_one_error_at_one_place(data, seed):
    fuzz_link.run(bytes([seed]) + data)


@given(st.binary(max_size=120))
def test_any_bytes_behind_a_signature_give_a_header_or_an_error(tail):
    fuzz_link.run(b"\0" + SIGNATURE + tail)
