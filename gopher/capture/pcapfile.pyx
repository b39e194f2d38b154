"""Capture files: pcap and pcapng into batches, and batches into pcap.

The file end of the source stage. `CaptureFile` gives the packets of a file in the shape in which libpcap gives a
device's, and `CaptureWriter` keeps such batches. Both work on chunks of a file: no packet is copied by itself, and no
Python object is made for one. Why not libpcap's reader: it refuses pcapng files with several link types or snap
lengths, and copies each packet. Why not mmap: it saves nothing measurable over reading a chunk into the cache, cannot
read pipes, counts as memory in use, and kills the process when the file is cut meanwhile.

Nothing read from a file moves a pointer without a bound check. A file that contradicts itself or stops in the middle
of a packet ends there, as `truncated`; what came before is given. Memory is bounded by `MAX_RECORD_BYTES`.

Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
"""

import gzip
import os
import struct
import zlib

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from gopher._fastpath import Batch
from gopher.errors import CaptureError

cdef enum:
    CHUNK_BYTES = 1 << 20  # read at once: stays in a second-level cache while the reassembler works on it
    MAX_RECORD_BYTES = 1 << 24  # of one packet or block: libpcap's bound for pcapng, 64 times its longest packet
    MAX_INTERFACES = 1 << 16  # of one pcapng section
    SNAPLEN_BYTES = 262_144  # written into file headers: libpcap's longest packet

    PCAP_MICROSECONDS = 0xA1B2C3D4
    PCAP_NANOSECONDS = 0xA1B23C4D
    PCAP_MODIFIED = 0xA1B2CD34  # Kuznetzov's: 8 more bytes in each record's header
    PCAP_HEADER_BYTES = 24
    LINKTYPE_MASK = 0x03FFFFFF  # the upper bits are about frame check sequences

    SECTION_HEADER = 0x0A0D0D0A
    INTERFACE_DESCRIPTION = 1
    OBSOLETE_PACKET = 2
    SIMPLE_PACKET = 3
    ENHANCED_PACKET = 6
    BYTE_ORDER_MAGIC = 0x1A2B3C4D
    BLOCK_OVERHEAD_BYTES = 12  # type, length, and the length again at the end
    PACKET_FIELDS_BYTES = 20  # interface, time stamp, captured length, length on the wire

    OPTION_TIMESTAMP_RESOLUTION = 9
    OPTION_TIMESTAMP_OFFSET = 14

# The index record of a batch.
cdef struct Record:
    uint32_t seconds
    uint32_t microseconds
    uint32_t offset  # of the packet in the batch's data, bytes
    uint32_t captured  # length of the packet, bytes

cdef struct Interface:
    uint32_t linktype
    uint32_t snaplen  # bytes; 0: no limit
    uint64_t units_per_second  # of time stamps
    int64_t offset_s  # added to time stamps

cdef struct Parser:
    bint is_pcapng
    bint swapped  # the file's byte order is not this machine's
    # pcap only
    uint32_t linktype
    uint32_t units_per_microsecond  # of the fraction in time stamps: 1 or 1000
    uint32_t record_header_bytes
    # pcapng only
    Interface* interfaces  # owned
    uint32_t interface_count
    uint32_t interface_capacity
    Record newest  # simple packets have no time stamp of their own: they get the newest one

# What a scan of the buffer has come to.
cdef struct Scan:
    size_t position  # of the first byte not yet taken in; always between two records
    size_t wanted_bytes  # from position on, to get further
    uint32_t packets  # indexed
    uint32_t linktype  # of all of them

cdef enum Stop:
    BATCH_FULL  # or the next packet is of another link type
    NEED_MORE  # the next record needs `wanted_bytes`
    NOT_A_RECORD
    NO_MEMORY


cdef inline uint16_t _u16(const uint8_t* p, bint swapped) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, p, sizeof(value))
    return <uint16_t>((value >> 8) | (value << 8)) if swapped else value


cdef inline uint32_t _swap32(uint32_t value) noexcept nogil:
    return (value >> 24) | ((value >> 8) & 0xFF00) | ((value << 8) & 0xFF0000) | (value << 24)


cdef inline uint32_t _u32(const uint8_t* p, bint swapped) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, sizeof(value))
    return _swap32(value) if swapped else value


cdef inline uint64_t _u64(const uint8_t* p, bint swapped) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, p, sizeof(value))
    if swapped:
        return (<uint64_t>_swap32(<uint32_t>value) << 32) | _swap32(<uint32_t>(value >> 32))
    return value


cdef inline uint64_t _u64_high_first(const uint8_t* p, bint swapped) noexcept nogil:
    return (<uint64_t>_u32(p, swapped) << 32) | _u32(p + 4, swapped)


cdef Stop _scan_pcap(
    Parser* parser, const uint8_t* data, size_t end, Record* records, uint32_t max_packets, Scan* scan
) noexcept nogil:
    cdef size_t left
    cdef const uint8_t* p
    cdef Record* record
    cdef uint32_t captured
    scan.linktype = parser.linktype
    while scan.packets < max_packets:
        p = data + scan.position
        left = end - scan.position
        scan.wanted_bytes = parser.record_header_bytes
        if left < scan.wanted_bytes:
            return NEED_MORE
        captured = _u32(p + 8, parser.swapped)
        if captured > MAX_RECORD_BYTES:
            return NOT_A_RECORD
        scan.wanted_bytes += captured
        if left < scan.wanted_bytes:
            return NEED_MORE
        record = &records[scan.packets]
        record.seconds = _u32(p, parser.swapped)
        record.microseconds = _u32(p + 4, parser.swapped) // parser.units_per_microsecond
        record.offset = <uint32_t>(scan.position + parser.record_header_bytes)
        record.captured = captured
        scan.packets += 1
        scan.position += scan.wanted_bytes
    return BATCH_FULL


cdef Stop _scan_pcapng(
    Parser* parser, const uint8_t* data, size_t end, Record* records, uint32_t max_packets, Scan* scan
) noexcept nogil:
    cdef size_t left
    cdef const uint8_t* p
    cdef uint32_t kind, length, magic
    cdef Stop stop
    while True:
        p = data + scan.position
        left = end - scan.position
        scan.wanted_bytes = BLOCK_OVERHEAD_BYTES
        if left < scan.wanted_bytes:
            return NEED_MORE
        kind = _u32(p, parser.swapped)
        if kind == SECTION_HEADER:  # the same in both byte orders; what follows may be in the other one
            magic = _u32(p + 8, False)
            if magic != BYTE_ORDER_MAGIC and _u32(p + 8, True) != BYTE_ORDER_MAGIC:
                return NOT_A_RECORD
            parser.swapped = magic != BYTE_ORDER_MAGIC
            parser.interface_count = 0
        length = _u32(p + 4, parser.swapped)
        if length < BLOCK_OVERHEAD_BYTES or length % 4 or length > MAX_RECORD_BYTES:
            return NOT_A_RECORD
        scan.wanted_bytes = length
        if left < length:
            return NEED_MORE
        if _u32(p + length - 4, parser.swapped) != length:
            return NOT_A_RECORD
        if kind == INTERFACE_DESCRIPTION:
            stop = _add_interface(parser, p + 8, length - BLOCK_OVERHEAD_BYTES)
        elif kind == ENHANCED_PACKET or kind == SIMPLE_PACKET or kind == OBSOLETE_PACKET:
            stop = _index_block(parser, p, kind, length, records, max_packets, scan)
        else:
            stop = NEED_MORE
        if stop != NEED_MORE:
            return stop
        scan.position += length


cdef Stop _index_block(
    Parser* parser,
    const uint8_t* p,
    uint32_t kind,
    uint32_t length,
    Record* records,
    uint32_t max_packets,
    Scan* scan,
) noexcept nogil:
    """Index the packet in a whole block. NEED_MORE: go on with the next block."""
    cdef uint32_t body_bytes = length - BLOCK_OVERHEAD_BYTES
    cdef const uint8_t* body = p + 8
    cdef uint32_t number, captured, fields_bytes
    cdef Interface* interface
    cdef Record* record
    fields_bytes = 4 if kind == SIMPLE_PACKET else PACKET_FIELDS_BYTES
    if body_bytes < fields_bytes:
        return NOT_A_RECORD
    if kind == SIMPLE_PACKET:
        number = 0
    elif kind == OBSOLETE_PACKET:
        number = _u16(body, parser.swapped)
    else:
        number = _u32(body, parser.swapped)
    if number >= parser.interface_count:
        return NOT_A_RECORD
    interface = &parser.interfaces[number]
    if kind == SIMPLE_PACKET:
        # Only the length on the wire is given, and the snap length that has cut it.
        captured = min(_u32(body, parser.swapped), body_bytes - fields_bytes)
        if interface.snaplen:
            captured = min(captured, interface.snaplen)
    else:
        captured = _u32(body + 12, parser.swapped)
        if captured > body_bytes - fields_bytes:
            return NOT_A_RECORD
    if scan.packets == max_packets or (scan.packets and interface.linktype != scan.linktype):
        return BATCH_FULL
    if kind != SIMPLE_PACKET:
        _set_time(&parser.newest, interface, _u64_high_first(body + 4, parser.swapped))
    scan.linktype = interface.linktype
    record = &records[scan.packets]
    record[0] = parser.newest
    record.offset = <uint32_t>(scan.position + 8 + fields_bytes)
    record.captured = captured
    scan.packets += 1
    return NEED_MORE


cdef void _set_time(Record* record, const Interface* interface, uint64_t units) noexcept nogil:
    cdef uint64_t fraction = units % interface.units_per_second
    record.seconds = <uint32_t>(units // interface.units_per_second + interface.offset_s)
    if interface.units_per_second <= 1_000_000_000:
        record.microseconds = <uint32_t>(fraction * 1_000_000 // interface.units_per_second)
    else:
        # The product would not fit. A double is good for the 20 bits asked for, but may round up to the full second.
        record.microseconds = min(
            <uint32_t>(<double>fraction / <double>interface.units_per_second * 1e6), <uint32_t>999_999
        )


cdef Stop _add_interface(Parser* parser, const uint8_t* body, uint32_t body_bytes) noexcept nogil:
    """Take in an interface description. NEED_MORE: go on with the next block."""
    cdef Interface interface
    cdef Interface* grown
    cdef uint32_t capacity, code, length, at = 8
    if body_bytes < 8 or parser.interface_count == MAX_INTERFACES:
        return NOT_A_RECORD
    interface.linktype = _u16(body, parser.swapped)
    interface.snaplen = _u32(body + 4, parser.swapped)
    interface.units_per_second = 1_000_000
    interface.offset_s = 0
    while at + 4 <= body_bytes:
        code = _u16(body + at, parser.swapped)
        length = _u16(body + at + 2, parser.swapped)
        at += 4
        if code == 0 or length > body_bytes - at:
            break
        if code == OPTION_TIMESTAMP_RESOLUTION and length == 1:
            if not _set_resolution(&interface, body[at]):
                return NOT_A_RECORD
        elif code == OPTION_TIMESTAMP_OFFSET and length == 8:
            interface.offset_s = <int64_t>_u64(body + at, parser.swapped)
        at += (length + 3) & ~<uint32_t>3
    if parser.interface_count == parser.interface_capacity:
        capacity = max(<uint32_t>8, 2 * parser.interface_capacity)
        grown = <Interface*>PyMem_RawRealloc(parser.interfaces, capacity * sizeof(Interface))
        if grown == NULL:
            return NO_MEMORY
        parser.interfaces = grown
        parser.interface_capacity = capacity
    parser.interfaces[parser.interface_count] = interface
    parser.interface_count += 1
    return NEED_MORE


cdef bint _set_resolution(Interface* interface, uint8_t resolution) noexcept nogil:
    """if_tsresol: a negative power of 2 with the top bit set, of 10 without."""
    cdef uint32_t _
    if resolution & 0x80:
        if resolution & 0x7F > 63:
            return False
        interface.units_per_second = <uint64_t>1 << (resolution & 0x7F)
        return True
    if resolution > 19:
        return False
    interface.units_per_second = 1
    for _ in range(resolution):
        interface.units_per_second *= 10
    return True


cdef class CaptureFile:
    """A capture file, read from its beginning to its end. See pcapfile.pyi."""

    cdef readonly bint truncated
    cdef str _path
    cdef object _file
    cdef object _readinto  # one read of the file, or of what it is when decompressed
    cdef Parser _parser
    cdef bytes _buffer  # handed out with batches, so it is replaced and never changed
    cdef size_t _position  # of the first byte in the buffer not yet given
    cdef size_t _end  # of what was read into the buffer
    cdef bint _finished

    def __cinit__(self, path):
        self._parser.interfaces = NULL
        self._path = os.fspath(path)
        self._buffer = b""
        try:
            self._file = open(self._path, "rb")
        except OSError as exc:
            raise CaptureError(f"cannot read {self._path}: {exc.strerror}") from exc
        try:
            self._begin()
        except OSError as exc:
            self.close()
            raise CaptureError(f"cannot read {self._path}: {exc.strerror}") from exc
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        PyMem_RawFree(self._parser.interfaces)
        self._parser.interfaces = NULL

    cdef int _begin(self) except -1:
        head = self._file.peek(2)
        if head[:2] == b"\x1f\x8b":
            # Not readinto(): it would lose what comes right before a damage.
            self._readinto = gzip.GzipFile(fileobj=self._file).readinto1
        else:
            # Past the buffer of the file object, which would wait for a pipe to fill it.
            self._buffer = self._file.read(len(head))
            self._end = len(self._buffer)
            self._readinto = self._file.raw.readinto
        while self._end < PCAP_HEADER_BYTES and self._fill(PCAP_HEADER_BYTES):
            pass
        return self._recognise()

    cdef int _recognise(self) except -1:
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(self._buffer)
        cdef Parser* parser = &self._parser
        cdef uint32_t magic
        cdef bint swapped
        if self._end == 0:
            raise CaptureError(f"{self._path} is empty")
        if self._end >= 4:
            if _u32(p, False) == SECTION_HEADER:
                parser.is_pcapng = True
                return 0
            for swapped in (False, True):
                magic = _u32(p, swapped)
                if magic == PCAP_MICROSECONDS or magic == PCAP_NANOSECONDS or magic == PCAP_MODIFIED:
                    if self._end < PCAP_HEADER_BYTES:
                        raise CaptureError(f"{self._path} ends within its file header")
                    parser.swapped = swapped
                    parser.linktype = _u32(p + 20, swapped) & LINKTYPE_MASK
                    parser.units_per_microsecond = 1000 if magic == PCAP_NANOSECONDS else 1
                    parser.record_header_bytes = 24 if magic == PCAP_MODIFIED else 16
                    self._position = PCAP_HEADER_BYTES
                    return 0
        raise CaptureError(
            f"{self._path} is not a capture file: it starts with {self._buffer[:self._end][:8]!r}",
            hint="accepted are pcap and pcapng, as they are or compressed with gzip",
        )

    cdef bint _fill(self, size_t wanted_bytes) except -1:
        """Put more behind what is left of the buffer. False: the file has nothing more."""
        cdef size_t left = self._end - self._position
        cdef size_t capacity = max(<size_t>CHUNK_BYTES, wanted_bytes)
        cdef bytes buffer = PyBytes_FromStringAndSize(NULL, capacity)
        cdef char* p = PyBytes_AS_STRING(buffer)  # written to only here, before anyone else has seen the object
        cdef size_t count = 0
        memcpy(p, PyBytes_AS_STRING(self._buffer) + self._position, left)
        try:
            count = self._readinto(PyMemoryView_FromMemory(p + left, capacity - left, PyBUF_WRITE))
        except (EOFError, gzip.BadGzipFile, zlib.error):
            self.truncated = True
        except OSError as exc:
            raise CaptureError(f"cannot read {self._path}: {exc.strerror}") from exc
        self._buffer = buffer
        self._position = 0
        self._end = left + count
        return count > 0

    def next_batch(self, uint32_t max_packets=512):
        cdef bytes index
        cdef Record* records
        cdef const uint8_t* data
        cdef Scan scan
        cdef Stop stop
        if max_packets == 0:
            raise ValueError("max_packets must be at least 1")
        while not self._finished:
            index = PyBytes_FromStringAndSize(NULL, max_packets * sizeof(Record))
            records = <Record*>PyBytes_AS_STRING(index)  # written to only here, before anyone else has seen it
            data = <const uint8_t*>PyBytes_AS_STRING(self._buffer)
            scan = Scan(position=self._position, wanted_bytes=0, packets=0, linktype=0)
            with nogil:
                if self._parser.is_pcapng:
                    stop = _scan_pcapng(&self._parser, data, self._end, records, max_packets, &scan)
                else:
                    stop = _scan_pcap(&self._parser, data, self._end, records, max_packets, &scan)
            self._position = scan.position
            if stop == NO_MEMORY:
                raise MemoryError
            if scan.packets:
                # A NEED_MORE or NOT_A_RECORD comes again with the next call, then without packets before it.
                return Batch(self._buffer, index[: scan.packets * sizeof(Record)], scan.linktype, len(self._buffer))
            if stop == NOT_A_RECORD:
                self.truncated = True
                self._finished = True
            elif not self._fill(scan.wanted_bytes):
                self.truncated = self.truncated or self._end > 0
                self._finished = True
        return None

    def batches(self, uint32_t max_packets=512):
        while (batch := self.next_batch(max_packets)) is not None:
            yield batch

    def close(self):
        self._finished = True
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


cdef class CaptureWriter:
    """A pcap file in the making. See pcapfile.pyi."""

    cdef str _path
    cdef object _file
    cdef uint32_t _linktype

    def __cinit__(self, path, uint32_t linktype):
        self._path = os.fspath(path)
        self._linktype = linktype
        try:
            self._file = open(self._path, "wb", buffering=0)
        except OSError as exc:
            raise CaptureError(f"cannot write {self._path}: {exc.strerror}") from exc
        # Raw IP is 12 in libpcap's API on Linux and 101 in files. Version 2.4, then two fields that are always 0.
        file_linktype = 101 if linktype == 12 else linktype
        header = struct.pack("=IHHIIII", <uint32_t>PCAP_MICROSECONDS, 2, 4, 0, 0, SNAPLEN_BYTES, file_linktype)
        try:
            self._write_all(header)
        except BaseException:
            self._file.close()
            raise

    def write(self, batch):
        cdef bytes index = batch.index
        cdef const Record* records = <const Record*>PyBytes_AS_STRING(index)
        cdef size_t packets = len(index) // sizeof(Record)
        cdef size_t i, total = 0
        cdef uint32_t[4] header
        cdef Py_buffer data
        cdef bytes out
        cdef char* p
        if batch.linktype != self._linktype:
            raise CaptureError(
                f"cannot write packets of link type {batch.linktype} into {self._path}, which began with"
                f" {self._linktype}: a pcap file has only one"
            )
        PyObject_GetBuffer(batch.data, &data, PyBUF_SIMPLE)
        try:
            for i in range(packets):
                if <uint64_t>records[i].offset + records[i].captured > <uint64_t>data.len:
                    raise ValueError("a packet of the batch lies outside its data")
                total += sizeof(header) + records[i].captured
            out = PyBytes_FromStringAndSize(NULL, total)
            p = PyBytes_AS_STRING(out)
            with nogil:
                for i in range(packets):
                    header[0] = records[i].seconds
                    header[1] = records[i].microseconds
                    header[2] = header[3] = records[i].captured
                    memcpy(p, header, sizeof(header))
                    memcpy(p + sizeof(header), <const char*>data.buf + records[i].offset, records[i].captured)
                    p += sizeof(header) + records[i].captured
        finally:
            PyBuffer_Release(&data)
        self._write_all(out)

    cdef int _write_all(self, bytes data) except -1:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest):]
        except OSError as exc:
            raise CaptureError(f"cannot write {self._path}: {exc.strerror}") from exc
        return 0

    def close(self):
        self._file.close()
