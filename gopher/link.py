"""The link from a capturing gopher to a relay: a PROXY protocol header, then bytes or records.

Sans-I/O. The capturing side encodes, the relay decodes; `docs/link.md` is the same as a specification. A header says
who the client was; on a framed link the records after it carry both directions of one captured connection in the order
in which they happened. Nothing here looks into the bytes that are carried.

Also the older text form of the header (version 1), encoded only: some upstreams of a relay want it.

Source: The PROXY protocol, versions 1 and 2 (haproxy.org/download/2.9/doc/proxy-protocol.txt).
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from gopher._fastpath import CLIENT_TO_SERVER, SERVER_TO_CLIENT
from gopher.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "HEADER_LIMIT_BYTES",
    "LINK_VERSION",
    "RECORD_HEAD_BYTES",
    "RECORD_LIMIT_BYTES",
    "SIGNATURE",
    "Address",
    "LinkInfo",
    "ProxyHeader",
    "Record",
    "RecordDecoder",
    "RecordType",
    "begins_with_header",
    "decode_header",
    "encode_data",
    "encode_fin",
    "encode_gap",
    "encode_header",
    "encode_header_v1",
    "encode_rst",
]

Address: TypeAlias = tuple[str, int]
"""IP address as `ipaddress` prints it, without a scope; port."""

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
LINK_VERSION: Final = 1

HEADER_LIMIT_BYTES: Final = 4096
"""A longer header is refused. Those made here have at most 93 bytes; nginx refuses more than about a thousand."""

UNIQUE_ID_LIMIT_BYTES: Final = 128

RECORD_LIMIT_BYTES: Final = 65_536
"""Payload of one record: what a decoder may have to hold."""

_TYPE_CRC32C: Final = 0x03
_TYPE_UNIQUE_ID: Final = 0x05
_TYPE_LINK: Final = 0xE0

_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_UNSPEC: Final = 0x00
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_UNIX_STREAM: Final = 0x31

_START: Final = struct.Struct("!12sBBH")
_TLV: Final = struct.Struct("!BH")
_LINK: Final = struct.Struct("!BBHQ")
_RECORD: Final = struct.Struct("!BBHIQ")
_GAP: Final = struct.Struct("!Q")
_ADDRESSES: Final = {
    _UNSPEC: None,
    _TCP4: struct.Struct("!4s4sHH"),
    _TCP6: struct.Struct("!16s16sHH"),
    _UNIX_STREAM: struct.Struct("!108s108s"),
}

_FRAMED: Final = 1
_JOINED: Final = 2
_FROM_SERVER: Final = 1

RECORD_HEAD_BYTES: Final = _RECORD.size


# -- header ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkInfo:
    """What gopher adds to a PROXY header."""

    framed: bool
    """Records follow; otherwise the client's bytes alone."""
    joined: bool = False
    """The client's bytes begin in the middle of its connection, at a request."""
    start_ns: int
    """When the first of these bytes was captured, Unix time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyHeader:
    """Who is behind a connection."""

    client: Address | None
    """None: not known, or the sender speaks for itself (LOCAL)."""
    server: Address | None
    unique_id: bytes = b""
    """Up to 128 bytes; empty if there is none."""
    link: LinkInfo | None = None
    """None: the sender is no capturing gopher."""


def begins_with_header(data: bytes) -> bool | None:
    """Whether a connection that begins with `data` begins with a header; None: too short to tell."""
    if data.startswith(SIGNATURE):
        return True
    return None if SIGNATURE.startswith(data) else False


def encode_header(header: ProxyHeader, *, checksum: bool = False) -> bytes:
    """Version 2; LOCAL if the client is not known.

    Args:
        header: its addresses are of one family, or neither is known.
        checksum: add a CRC32C; few receivers look at it.
    """
    if header.client is None or header.server is None:
        command, family, addresses = _LOCAL, _UNSPEC, b""
    else:
        client = ipaddress.ip_address(header.client[0])
        server = ipaddress.ip_address(header.server[0])
        command, family = _PROXY, _TCP4 if client.version == 4 else _TCP6
        addresses = client.packed + server.packed + struct.pack("!HH", header.client[1], header.server[1])
    values = b""
    if checksum:
        values += _TLV.pack(_TYPE_CRC32C, 4) + bytes(4)
    if header.unique_id:
        values += _TLV.pack(_TYPE_UNIQUE_ID, len(header.unique_id)) + header.unique_id
    if header.link is not None:
        flags = _FRAMED * header.link.framed | _JOINED * header.link.joined
        values += _TLV.pack(_TYPE_LINK, _LINK.size) + _LINK.pack(LINK_VERSION, flags, 0, header.link.start_ns)
    encoded = _START.pack(SIGNATURE, command, family, len(addresses) + len(values)) + addresses + values
    if checksum:
        at = _START.size + len(addresses) + _TLV.size
        encoded = encoded[:at] + _crc32c(encoded).to_bytes(4, "big") + encoded[at + 4 :]
    return encoded


def decode_header(data: bytes) -> tuple[ProxyHeader, int] | None:
    """Read a version 2 header at the beginning of `data`. TLVs of unknown types are skipped.

    Returns:
        (header, its length), or None: more bytes are needed, at most `HEADER_LIMIT_BYTES` in all.

    Raises:
        RemoteProtocolError: it is not a header, or one that must be refused.
    """
    begins = begins_with_header(data)
    if begins is False:
        raise RemoteProtocolError("no PROXY protocol header", offset=0)
    if begins is None or len(data) < _START.size:
        return None
    _, command, family, length = _START.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise RemoteProtocolError(f"PROXY header of an unknown version or command {command:#x}", offset=12)
    if family not in _ADDRESSES:
        raise RemoteProtocolError(f"PROXY header of an unknown address family or transport {family:#x}", offset=13)
    end = _START.size + length
    if end > HEADER_LIMIT_BYTES:
        raise RemoteProtocolError(f"PROXY header of {end} bytes: more than {HEADER_LIMIT_BYTES}", offset=14)
    layout = _ADDRESSES[family]
    at = _START.size + (layout.size if layout else 0)
    if at > end:
        raise RemoteProtocolError("PROXY header too short for its addresses", offset=14)
    if len(data) < end:
        return None
    client = server = None
    if command == _PROXY and layout is not None and family != _UNIX_STREAM:
        source, destination, source_port, destination_port = layout.unpack_from(data, _START.size)
        client = (str(ipaddress.ip_address(source)), source_port)
        server = (str(ipaddress.ip_address(destination)), destination_port)
    values = {}
    for kind, begin, value in _values(data, at, end):
        if kind in values and kind in (_TYPE_CRC32C, _TYPE_UNIQUE_ID, _TYPE_LINK):
            raise RemoteProtocolError(f"PROXY header with two values of type {kind:#x}", offset=begin)
        values[kind] = value
        if kind == _TYPE_CRC32C:
            _check_crc32c(data[:end], begin, value)
    unique_id = values.get(_TYPE_UNIQUE_ID, b"")
    if len(unique_id) > UNIQUE_ID_LIMIT_BYTES:
        raise RemoteProtocolError(f"PROXY header with a unique id of {len(unique_id)} bytes")
    link = _link_info(values.get(_TYPE_LINK, b""))
    return ProxyHeader(client=client, server=server, unique_id=unique_id, link=link), end


def _values(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """(type, offset of the value, value)."""
    while at < end:
        if end - at < _TLV.size:
            raise RemoteProtocolError("PROXY header with a cut value", offset=at)
        kind, length = _TLV.unpack_from(data, at)
        at += _TLV.size
        if length > end - at:
            raise RemoteProtocolError("PROXY header with a value beyond its end", offset=at)
        yield kind, at, data[at : at + length]
        at += length


def _link_info(value: bytes) -> LinkInfo | None:
    # The type is of the range for private use: a shorter value is someone else's (Google Cloud's has 8 bytes).
    if len(value) < _LINK.size:
        return None
    version, flags, _, start_ns = _LINK.unpack_from(value)
    if version != LINK_VERSION:
        raise RemoteProtocolError(
            f"link of version {version}, expected {LINK_VERSION}", hint="run the same gopher on both ends"
        )
    return LinkInfo(framed=bool(flags & _FRAMED), joined=bool(flags & _JOINED), start_ns=start_ns)


def _check_crc32c(header: bytes, at: int, value: bytes) -> None:
    # Over the whole header, with the checksum's own bytes as zero.
    if len(value) != 4 or _crc32c(header[:at] + bytes(4) + header[at + 4 :]) != int.from_bytes(value, "big"):
        raise RemoteProtocolError("PROXY header with a wrong checksum", offset=at)


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)  # RFC 3720 appendix B.4, bits reflected
        table.append(entry)
    return tuple(table)


_CRC32C: Final = _crc32c_table()


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


# -- version 1 ---------------------------------------------------------------------------------------------------------


def encode_header_v1(header: ProxyHeader) -> bytes:
    """The addresses as one line of text; UNKNOWN if the client is not known."""
    if header.client is None or header.server is None:
        return b"PROXY UNKNOWN\r\n"
    family = "TCP6" if ":" in header.client[0] else "TCP4"
    line = f"PROXY {family} {header.client[0]} {header.server[0]} {header.client[1]} {header.server[1]}\r\n"
    return line.encode("ascii")


# -- records -----------------------------------------------------------------------------------------------------------


class RecordType(enum.IntEnum):
    """What a record says."""

    REQUEST = 1
    """Bytes of the client."""
    RESPONSE = 2
    """Bytes of the production server."""
    GAP = 3
    """Bytes of one direction that are not passed on."""
    FIN = 4
    """One direction is complete."""
    RST = 5
    """The connection was reset."""


class Record(NamedTuple):
    """One decoded record."""

    type: RecordType
    direction: int
    """`CLIENT_TO_SERVER` (0) or `SERVER_TO_CLIENT` (1); 0 for RST."""
    time_ns: int
    """Of capture, Unix time."""
    data: bytes
    """Of REQUEST and RESPONSE, 1 to `RECORD_LIMIT_BYTES`; otherwise empty."""
    length: int
    """Of the gap, or of `data`."""


_PAYLOAD_BYTES: Final[dict[int, tuple[int, int]]] = {
    RecordType.REQUEST: (1, RECORD_LIMIT_BYTES),
    RecordType.RESPONSE: (1, RECORD_LIMIT_BYTES),
    RecordType.GAP: (_GAP.size, _GAP.size),
    RecordType.FIN: (0, 0),
    RecordType.RST: (0, 0),
}


def encode_data(direction: int, data: bytes, time_ns: int) -> bytes:
    """A REQUEST or RESPONSE record. `data`: 1 to `RECORD_LIMIT_BYTES` bytes."""
    return _RECORD.pack(RecordType.RESPONSE if direction else RecordType.REQUEST, 0, 0, len(data), time_ns) + data


def encode_gap(direction: int, length: int, time_ns: int) -> bytes:
    """A GAP record. `length`: bytes, at least 1."""
    return _RECORD.pack(RecordType.GAP, direction, 0, _GAP.size, time_ns) + _GAP.pack(length)


def encode_fin(direction: int, time_ns: int) -> bytes:
    """A FIN record."""
    return _RECORD.pack(RecordType.FIN, direction, 0, 0, time_ns)


def encode_rst(time_ns: int) -> bytes:
    """A RST record."""
    return _RECORD.pack(RecordType.RST, 0, 0, 0, time_ns)


class RecordDecoder:
    """Reads the records of one framed link. How its bytes are cut changes nothing.

    Holds less than one record between calls. After it has raised, it is of no more use.
    """

    __slots__ = ("_buffer", "_ended", "_offset", "_reset")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._offset = 0
        """Of the buffer's first byte."""
        self._ended = [False, False]
        """By direction: whether its FIN has come."""
        self._reset = False

    def feed(self, data: bytes) -> list[Record]:
        """Take in the next bytes. O(bytes).

        Returns:
            The records that they complete.

        Raises:
            RemoteProtocolError: a record breaks the specification; what came before it in `data` is lost.
        """
        self._buffer += data
        records = []
        at = 0
        with memoryview(self._buffer) as buffer:
            while len(buffer) - at >= RECORD_HEAD_BYTES:
                kind, flags, _, length, time_ns = _RECORD.unpack_from(buffer, at)
                direction = self._check(kind, flags, length, at)
                end = at + RECORD_HEAD_BYTES + length
                if end > len(buffer):
                    break
                payload = bytes(buffer[at + RECORD_HEAD_BYTES : end])
                records.append(self._record(kind, direction, time_ns, payload, at))
                at = end
        del self._buffer[:at]
        self._offset += at
        return records

    def end(self) -> None:
        """The link has ended.

        Raises:
            RemoteProtocolError: in the middle of a record.
        """
        if self._buffer:
            raise self._error("the link ended within a record", len(self._buffer))

    def _check(self, kind: int, flags: int, length: int, at: int) -> int:
        """Refuse a bad head before its payload is waited for. Returns the direction."""
        if kind not in _PAYLOAD_BYTES:
            raise self._error(f"record of unknown type {kind}", at)
        shortest, longest = _PAYLOAD_BYTES[kind]
        if not shortest <= length <= longest:
            raise self._error(f"{RecordType(kind).name} record of {length} bytes", at + 4)
        if kind in (RecordType.GAP, RecordType.FIN):
            direction = flags & _FROM_SERVER
        else:
            direction = SERVER_TO_CLIENT if kind == RecordType.RESPONSE else CLIENT_TO_SERVER
        if self._reset or (self._ended[direction] and kind != RecordType.RST):
            raise self._error(f"{RecordType(kind).name} record after the end of its direction", at)
        return direction

    def _record(self, kind: int, direction: int, time_ns: int, payload: bytes, at: int) -> Record:
        length = len(payload)
        if kind == RecordType.GAP:
            [length] = _GAP.unpack(payload)
            payload = b""
            if length == 0:
                raise self._error("GAP record of no bytes", at + RECORD_HEAD_BYTES)
        elif kind == RecordType.FIN:
            self._ended[direction] = True
        elif kind == RecordType.RST:
            self._reset = True
        return Record(RecordType(kind), direction, time_ns, payload, length)

    def _error(self, message: str, at: int) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"link: {message}", offset=self._offset + at, hint="run the same version of gopher on both ends"
        )
