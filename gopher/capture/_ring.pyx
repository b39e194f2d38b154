"""The kernel's packet ring (TPACKET_V3), read where it is: no copy of a packet, one object for a turn of them.

`gopher.capture.source.DeviceSource` stands on it in place of libpcap, which copies each packet and calls back for it.
With `gopher._runs` it makes an upload cost half as much. Kernel documentation: networking/packet_mmap.rst; packet(7).

Blocks are given out in the order of the ring, and given back in it by `release`, never while somebody holds a buffer on
the ring: what was handed out stays as it is until then. Everything that the kernel writes into a block is believed, as
it is the kernel's; packets are not.
"""

import os

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memmove, memset
from posix.time cimport timespec

from gopher._sockets cimport SOCK_CLOEXEC, SOCK_NONBLOCK, SOL_SOCKET, SO_ERROR, close, getsockopt, setsockopt, \
    sockaddr, socket

cdef extern from "<sys/socket.h>" nogil:
    int bind(int fd, const sockaddr* address, uint32_t length)
    enum: AF_PACKET, SOCK_DGRAM, SOCK_RAW

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t value)

cdef extern from "<net/if.h>" nogil:
    uint32_t if_nametoindex(const char* name)

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, Py_ssize_t offset)
    int munmap(void* address, size_t length)
    void* MAP_FAILED
    enum: MAP_SHARED, PROT_READ, PROT_WRITE

cdef extern from "<linux/filter.h>" nogil:
    struct sock_filter:
        pass
    struct sock_fprog:
        uint16_t len
        sock_filter* filter

cdef extern from "<asm/socket.h>" nogil:
    enum: SO_ATTACH_FILTER, SO_GET_FILTER

cdef extern from "<linux/if_ether.h>" nogil:
    enum: ETH_P_ALL

cdef extern from "<linux/if_packet.h>" nogil:
    struct sockaddr_ll:
        uint16_t sll_family
        uint16_t sll_protocol
        int sll_ifindex
        uint16_t sll_hatype
        uint8_t sll_pkttype
        uint8_t sll_halen
        uint8_t sll_addr[8]
    struct tpacket_req3:
        uint32_t tp_block_size
        uint32_t tp_block_nr
        uint32_t tp_frame_size
        uint32_t tp_frame_nr
        uint32_t tp_retire_blk_tov
        uint32_t tp_sizeof_priv
        uint32_t tp_feature_req_word
    struct tpacket_stats_v3:
        uint32_t tp_packets
        uint32_t tp_drops
    struct tpacket_hdr_v1:
        uint32_t block_status
        uint32_t num_pkts
        uint32_t offset_to_first_pkt
        uint32_t blk_len
    union tpacket_bd_header_u:
        tpacket_hdr_v1 bh1
    struct tpacket_block_desc:
        tpacket_bd_header_u hdr
    struct tpacket_hdr_variant1:
        uint32_t tp_vlan_tci
        uint16_t tp_vlan_tpid
    struct tpacket3_hdr:
        uint32_t tp_next_offset
        uint32_t tp_sec
        uint32_t tp_nsec
        uint32_t tp_snaplen
        uint32_t tp_len
        uint32_t tp_status
        uint16_t tp_mac
        tpacket_hdr_variant1 hv1
    struct packet_mreq:
        int mr_ifindex
        uint16_t mr_type
    enum: SOL_PACKET, PACKET_VERSION, PACKET_RX_RING, PACKET_RESERVE, PACKET_STATISTICS, PACKET_ADD_MEMBERSHIP
    enum: PACKET_MR_PROMISC, PACKET_OUTGOING, TPACKET_V3
    int TPACKET_ALIGN(int size)
    enum: TP_STATUS_USER, TP_STATUS_KERNEL, TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd* descriptors, unsigned long count, const timespec* time_out, const void* signals)
    enum: POLLIN

cdef extern from *:
    """
    /* What the kernel has filled in is seen after its status; and given back after everything was read. */
    #define gopher_load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define gopher_store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
    #ifndef SOL_PACKET
    #define SOL_PACKET 263
    #endif
    #ifndef PACKET_IGNORE_OUTGOING
    #define PACKET_IGNORE_OUTGOING 23
    #endif
    """
    uint32_t gopher_load_acquire(const uint32_t* status) nogil
    void gopher_store_release(uint32_t* status, uint32_t value) nogil
    enum: PACKET_IGNORE_OUTGOING

cdef enum:
    # As libpcap's: the largest packet there is has room, and one for each 8 ms of a quiet link is not much.
    _BLOCK_BYTES = 262144
    # The kernel's room before each packet: for a LINUX_SLL header, or for a VLAN tag that it has taken off.
    SLL_BYTES = 16
    TAG_BYTES = 4
    # Of an Ethernet header, those before its type.
    ADDRESSES_BYTES = 12
    ETHERNET_BYTES = 14
    ETHERTYPE_VLAN = 0x8100
    # Infinity is no number of seconds to the kernel.
    _LONGEST_S = 86400

BLOCK_BYTES = _BLOCK_BYTES


cdef struct Record:
    uint32_t seconds
    uint32_t microseconds
    uint32_t offset
    uint32_t length


@cython.final
@cython.auto_pickle(False)
cdef class Ring:
    """A TPACKET_V3 ring of one device, or of all. See the stub."""

    cdef int _fd
    cdef uint8_t* _base             # owned: the kernel's memory, mapped
    cdef Py_ssize_t _size
    cdef uint32_t _blocks
    cdef uint32_t _next             # the block that is looked at next
    cdef uint32_t _lent             # so many blocks before it are given out
    cdef Py_ssize_t _holders        # of buffers on the ring
    cdef bint _cooked
    cdef int _loopback              # index of the loopback device, where each packet passes twice

    def __cinit__(self):
        self._fd = -1
        self._base = NULL

    def __init__(self, int ifindex, *, bint cooked, uint32_t blocks, int retire_ms, int filter_of, bint promiscuous,
                 bint ignore_outgoing):
        cdef tpacket_req3 request
        cdef sockaddr_ll address
        cdef sock_fprog filter
        cdef uint32_t instructions = 0
        cdef packet_mreq membership
        cdef int one = 1
        cdef int version = TPACKET_V3
        cdef int room = SLL_BYTES if cooked else TAG_BYTES
        if self._fd >= 0:
            raise RuntimeError("a Ring is initialised once")
        self._cooked = cooked
        self._blocks = blocks
        self._loopback = <int>if_nametoindex("lo")
        # Protocol 0: nothing comes before ring and filter are there.
        self._fd = _check(socket(AF_PACKET, (SOCK_DGRAM if cooked else SOCK_RAW) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0))
        self._set(SOL_PACKET, PACKET_VERSION, &version, sizeof(version))
        self._set(SOL_PACKET, PACKET_RESERVE, &room, sizeof(room))
        if ignore_outgoing:
            # Linux before 4.20 has no such option: they are left out below, after they have cost room.
            setsockopt(self._fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one))
        # This option's length is in instructions, not bytes.
        _check(getsockopt(filter_of, SOL_SOCKET, SO_GET_FILTER, NULL, &instructions))
        program = PyBytes_FromStringAndSize(NULL, instructions * <Py_ssize_t>sizeof(sock_filter))
        _check(getsockopt(filter_of, SOL_SOCKET, SO_GET_FILTER, PyBytes_AS_STRING(program), &instructions))
        filter.len = <uint16_t>instructions
        filter.filter = <sock_filter*>PyBytes_AS_STRING(program)
        self._set(SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter))
        memset(&request, 0, sizeof(request))
        request.tp_block_size = _BLOCK_BYTES
        request.tp_block_nr = blocks
        # Version 3 packs packets of any size; the size of a frame only has to divide that of a block.
        request.tp_frame_size = 2048
        request.tp_frame_nr = blocks * (_BLOCK_BYTES // 2048)
        request.tp_retire_blk_tov = retire_ms
        self._set(SOL_PACKET, PACKET_RX_RING, &request, sizeof(request))
        self._size = <Py_ssize_t>blocks * _BLOCK_BYTES
        base = mmap(NULL, self._size, PROT_READ | PROT_WRITE, MAP_SHARED, self._fd, 0)
        if base == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self._base = <uint8_t*>base
        memset(&address, 0, sizeof(address))
        address.sll_family = AF_PACKET
        address.sll_protocol = htons(ETH_P_ALL)
        address.sll_ifindex = ifindex
        _check(bind(self._fd, <sockaddr*>&address, sizeof(address)))
        if promiscuous:
            memset(&membership, 0, sizeof(membership))
            membership.mr_ifindex = ifindex
            membership.mr_type = PACKET_MR_PROMISC
            self._set(SOL_PACKET, PACKET_ADD_MEMBERSHIP, &membership, sizeof(membership))

    def __dealloc__(self):
        self._release()

    def close(self):
        self._release()

    cdef void _release(self) noexcept:
        if self._base != NULL and self._holders == 0:
            munmap(self._base, self._size)
            self._base = NULL
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1

    cdef int _set(self, int level, int name, const void* value, uint32_t size) except -1:
        return _check(setsockopt(self._fd, level, name, value, size))

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self._base == NULL:
            raise BufferError("the ring is closed")
        PyBuffer_FillInfo(view, self, self._base, self._size, True, flags)
        self._holders += 1

    def __releasebuffer__(self, Py_buffer* view):
        self._holders -= 1

    def fileno(self):
        return self._fd

    def statistics(self):
        cdef tpacket_stats_v3 counted
        cdef uint32_t size = sizeof(counted)
        memset(&counted, 0, sizeof(counted))
        _check(getsockopt(self._fd, SOL_PACKET, PACKET_STATISTICS, &counted, &size))
        return counted.tp_packets, counted.tp_drops

    def next_blocks(self, uint32_t packets, Py_ssize_t size_bytes):
        cdef tpacket_block_desc* block
        cdef Record* first
        cdef Record* last
        cdef bytes index
        cdef uint32_t blocks, count
        cdef Py_ssize_t size, total = 0
        cdef int failure = 0
        cdef uint32_t failure_size = sizeof(failure)
        while True:
            blocks = count = 0
            size = 0
            while self._lent + blocks < self._blocks and count < packets and size < size_bytes:
                block = self._block(self._next + blocks)
                if not gopher_load_acquire(&block.hdr.bh1.block_status) & TP_STATUS_USER:
                    break
                count += block.hdr.bh1.num_pkts
                size += block.hdr.bh1.blk_len
                blocks += 1
            if not blocks:
                break
            index = PyBytes_FromStringAndSize(NULL, count * <Py_ssize_t>sizeof(Record))
            first = last = <Record*>PyBytes_AS_STRING(index)
            for _ in range(blocks):
                last = self._read(self._block(self._next), last, &total)
                self._next = self._next + 1 if self._next + 1 < self._blocks else 0
                self._lent += 1
            if last != first:
                taken = last - first
                return (index if taken == count else index[:taken * sizeof(Record)]), total
        # The device has gone down or away.
        _check(getsockopt(self._fd, SOL_SOCKET, SO_ERROR, &failure, &failure_size))
        if failure:
            raise OSError(failure, os.strerror(failure))
        return b"", 0

    cdef tpacket_block_desc* _block(self, uint32_t at) noexcept:
        return <tpacket_block_desc*>(self._base + <Py_ssize_t>(at % self._blocks) * _BLOCK_BYTES)

    cdef Record* _read(self, tpacket_block_desc* block, Record* record, Py_ssize_t* total) noexcept:
        """Write the records of a block's packets; returns where the next one goes."""
        cdef tpacket3_hdr* packet = <tpacket3_hdr*>(<uint8_t*>block + block.hdr.bh1.offset_to_first_pkt)
        cdef const sockaddr_ll* link
        cdef uint32_t length, offset
        for _ in range(block.hdr.bh1.num_pkts):
            link = <const sockaddr_ll*>(<uint8_t*>packet + TPACKET_ALIGN(sizeof(tpacket3_hdr)))
            if link.sll_pkttype != PACKET_OUTGOING or link.sll_ifindex != self._loopback:
                offset = <uint32_t>(<uint8_t*>packet + packet.tp_mac - self._base)
                length = packet.tp_snaplen
                if self._cooked:
                    offset -= SLL_BYTES
                    length += SLL_BYTES
                    _write_sll(self._base + offset, link)
                elif packet.tp_status & TP_STATUS_VLAN_VALID and length >= ETHERNET_BYTES:
                    offset -= TAG_BYTES
                    length += TAG_BYTES
                    _put_tag_back(self._base + offset, packet)
                record.seconds = packet.tp_sec
                record.microseconds = packet.tp_nsec // 1000
                record.offset = offset
                record.length = length
                record += 1
                total[0] += length
            packet = <tpacket3_hdr*>(<uint8_t*>packet + packet.tp_next_offset)
        return record

    def release(self):
        cdef tpacket_block_desc* block
        if self._holders:
            return
        while self._lent:
            block = self._block(self._next + self._blocks - self._lent)
            gopher_store_release(&block.hdr.bh1.block_status, TP_STATUS_KERNEL)
            self._lent -= 1


def wait_readable(int first, int second, double seconds):
    cdef pollfd descriptors[2]
    cdef timespec time_out
    cdef int ready
    descriptors[0].fd = first
    descriptors[1].fd = second
    descriptors[0].events = descriptors[1].events = POLLIN
    seconds = min(max(seconds, 0), _LONGEST_S)
    time_out.tv_sec = <long>seconds
    time_out.tv_nsec = <long>((seconds - time_out.tv_sec) * 1e9)
    with nogil:
        ready = ppoll(descriptors, 2, &time_out, NULL)
    if ready <= 0 or descriptors[1].revents:
        return -1 if ready else 0
    return 1


cdef int _check(int result) except -1:
    if result < 0:
        raise OSError(errno, os.strerror(errno))
    return result


cdef inline void _write_sll(uint8_t* header, const sockaddr_ll* link) noexcept:
    """What libpcap writes for a cooked capture; pcap-linktype(7), LINKTYPE_LINUX_SLL."""
    cdef uint16_t* words = <uint16_t*>header
    words[0] = htons(link.sll_pkttype)
    words[1] = htons(link.sll_hatype)
    words[2] = htons(link.sll_halen)
    memcpy(header + 6, link.sll_addr, 8)
    memcpy(header + 14, &link.sll_protocol, 2)


cdef inline void _put_tag_back(uint8_t* frame, const tpacket3_hdr* packet) noexcept:
    """Ethernet, with the VLAN tag that the kernel keeps beside it (802.1Q)."""
    cdef uint16_t tag[2]
    memmove(frame, frame + TAG_BYTES, ADDRESSES_BYTES)
    tag[0] = htons(packet.hv1.tp_vlan_tpid if packet.tp_status & TP_STATUS_VLAN_TPID_VALID else ETHERTYPE_VLAN)
    tag[1] = htons(<uint16_t>packet.hv1.tp_vlan_tci)
    memcpy(frame + ADDRESSES_BYTES, tag, TAG_BYTES)
