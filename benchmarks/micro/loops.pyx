"""The loops that the micro-benchmarks time in C: the naive reassembler to compare with, and framing without Python."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy

from gopher.http.framing cimport HTTP_REQUEST, HttpFramer, http_framer_feed, http_framer_init

cdef enum:
    SLOTS = 4096                # a power of two, several times the number of flows of the benchmark
    ETHERNET_BYTES = 14
    LARGEST_PACKET = 65536


cdef struct NaiveFlow:
    uint64_t key                # 0: free
    char* data                  # owned
    size_t length
    size_t room


cdef class NaiveReassembler:
    """What the cheapest loop does that still hands out each flow's bytes: one hash lookup and one copy per packet.

    Ethernet and IPv4 without options only, believes every length, and takes packets in order for granted. Keyed by client
    address and port.
    """

    cdef NaiveFlow* _flows      # owned
    cdef int[SLOTS] _touched

    def __cinit__(self):
        self._flows = <NaiveFlow*>calloc(SLOTS, sizeof(NaiveFlow))
        if self._flows == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int i
        if self._flows != NULL:
            for i in range(SLOTS):
                free(self._flows[i].data)
        free(self._flows)

    def feed(self, batch):
        """Returns (flow, bytes) for each flow that had bytes in the batch."""
        cdef const uint8_t[::1] data = batch.data
        cdef const uint8_t[::1] index = batch.index
        cdef const uint32_t* record = <const uint32_t*>&index[0]
        cdef Py_ssize_t packets = index.shape[0] // 16
        cdef Py_ssize_t i
        cdef int touched = 0, slot
        cdef NaiveFlow* flow
        cdef list out = []
        for i in range(packets):
            slot = self._add(&data[record[4 * i + 2]])
            if slot >= 0:
                self._touched[touched] = slot
                touched += 1
        for i in range(touched):
            flow = &self._flows[self._touched[i]]
            out.append((self._touched[i], PyBytes_FromStringAndSize(flow.data, <Py_ssize_t>flow.length)))
            flow.length = 0
        return out

    cdef int _add(self, const uint8_t* frame) noexcept nogil:
        """Append a packet's payload to its flow; returns the flow's slot if these are its first bytes, else -1."""
        cdef const uint8_t* tcp = frame + ETHERNET_BYTES + 20
        cdef uint32_t address = (<const uint32_t*>(frame + ETHERNET_BYTES + 12))[0]
        cdef uint64_t key = (<uint64_t>address << 16) | (<const uint16_t*>tcp)[0]
        cdef size_t headers = 20 + (tcp[12] >> 4) * 4
        cdef size_t length = ((<size_t>frame[ETHERNET_BYTES + 2] << 8) | frame[ETHERNET_BYTES + 3]) - headers
        cdef uint32_t slot = <uint32_t>((key * 0x9E3779B97F4A7C15ULL) >> 52)
        cdef NaiveFlow* flow = &self._flows[slot]
        cdef bint first
        while flow.key != key:
            if flow.key == 0:
                flow.key = key
                break
            slot = (slot + 1) & (SLOTS - 1)
            flow = &self._flows[slot]
        first = flow.length == 0 and length > 0
        if flow.length + length > flow.room:
            flow.room = 2 * flow.room + LARGEST_PACKET
            flow.data = <char*>realloc(flow.data, flow.room)
        memcpy(flow.data + flow.length, tcp + headers - 20, length)
        flow.length += length
        return <int>slot if first else -1


def frame_requests(bytes request not None, int times):
    """Frame the same request `times` times on one connection; returns how many requests the framer completed."""
    cdef HttpFramer framer
    cdef const uint8_t* data = request
    cdef Py_ssize_t length = len(request)
    cdef int i
    http_framer_init(&framer, HTTP_REQUEST)
    with nogil:
        for i in range(times):
            http_framer_feed(&framer, NULL, data, length)
    return framer.completed
