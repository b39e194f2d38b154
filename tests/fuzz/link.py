"""Fuzz target: any bytes as what arrives on a link.

The input: a byte that says what they are taken for, a byte that says how finely to cut, the bytes. What must hold:
`RemoteProtocolError` or an answer, nothing else, within the stated lengths; how the bytes are cut changes nothing; what
was decoded is the same when it is encoded and decoded again.
"""

from __future__ import annotations

from gopher.errors import RemoteProtocolError
from gopher.link import (
    HEADER_LIMIT_BYTES,
    SIGNATURE,
    Record,
    RecordDecoder,
    RecordType,
    decode_header,
    encode_data,
    encode_fin,
    encode_gap,
    encode_header,
    encode_rst,
)
from tests.fuzz.http_framing import pieces


def check_header(data: bytes, *, checksum: bool) -> None:
    try:
        decoded = decode_header(data)
    except RemoteProtocolError:
        return
    if decoded is None:
        assert len(data) < HEADER_LIMIT_BYTES
        return
    header, length = decoded
    assert 0 < length <= min(HEADER_LIMIT_BYTES, len(data))
    for end in range(length):
        assert decode_header(data[:end]) is None
    encoded = encode_header(header, checksum=checksum)
    assert decode_header(encoded + b"x") == (header, len(encoded))


def records_of(cut: list[bytes]) -> tuple[list[Record], int | None]:
    """The records, and where the first error is."""
    decoder = RecordDecoder()
    records = []
    try:
        for piece in cut:
            records += decoder.feed(piece)
        decoder.end()
    except RemoteProtocolError as exc:
        return records, exc.offset
    return records, None


def encode_record(record: Record) -> bytes:
    if record.type == RecordType.GAP:
        return encode_gap(record.direction, record.length, record.time_ns)
    if record.type == RecordType.FIN:
        return encode_fin(record.direction, record.time_ns)
    if record.type == RecordType.RST:
        return encode_rst(record.time_ns)
    return encode_data(record.direction, record.data, record.time_ns)


def check_records(data: bytes, seed: int) -> None:
    records, error = records_of([data])
    records_in_pieces, error_in_pieces = records_of(list(pieces(data, seed)))
    assert error_in_pieces == error
    # One feed that fails gives nothing; in pieces, what came before has been given.
    assert records_in_pieces[: len(records)] == records
    assert error is not None or records_in_pieces == records
    again, error = records_of([encode_record(record) for record in records_in_pieces])
    assert (again, error) == (records_in_pieces, None)


def run(data: bytes) -> None:
    """Raise AssertionError if decoding these bytes breaks a promise."""
    kind, seed, data = data[:1], data[1:2].ljust(1, b"\0")[0], data[2:]
    match (kind or b"\0")[0] % 4:
        case 0:
            check_header(SIGNATURE + data, checksum=False)
        case 1:
            check_header(data, checksum=True)
        case _:
            check_records(data, seed)
