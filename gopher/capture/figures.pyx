"""A few numbers in memory that two processes share: what a worker has done stays known when it is killed.

Written after every turn of packets, so by C: as Python objects on their way through a list they cost 23 us each time,
for a few milliseconds after the last time none of that is in a cache.

The memory is the number of one of two slots, and the slots: how many numbers, and these. What is read is not believed:
who writes looks at packets.
"""

import os

cimport cython
from libc.errno cimport errno
from libc.stdint cimport int64_t

from gopher._pump cimport Ledger
from gopher.upstreams.upstream cimport Upstream

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, Py_ssize_t offset)
    int munmap(void* address, size_t length)
    void* MAP_FAILED
    enum: MAP_SHARED, PROT_READ, PROT_WRITE

cdef extern from *:
    """
    /* The slot is whole before its number is there. */
    #define gopher_store_number(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
    """
    void gopher_store_number(int64_t* place, int64_t number) nogil

cdef enum:
    # Of the run, and of each upstream.
    OWN_NUMBERS = 1
    UPSTREAM_NUMBERS = 4


cdef Py_ssize_t _numbers(Py_ssize_t upstreams) noexcept:
    return OWN_NUMBERS + UPSTREAM_NUMBERS * upstreams


cdef Py_ssize_t _size(Py_ssize_t upstreams) noexcept:
    return <Py_ssize_t>sizeof(int64_t) * (1 + 2 * (1 + _numbers(upstreams)))


@cython.final
@cython.auto_pickle(False)
cdef class SharedFigures:
    """The figures of up to so many upstreams. See the stub."""

    cdef int64_t* _memory           # owned: mapped
    cdef Py_ssize_t _upstreams

    def __cinit__(self):
        self._memory = NULL

    def __init__(self, int descriptor, Py_ssize_t upstreams):
        if self._memory != NULL:
            raise RuntimeError("SharedFigures are initialised once")
        if upstreams < 0:
            raise ValueError("there cannot be fewer than no upstreams")
        memory = mmap(NULL, _size(upstreams), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
        if memory == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self._memory = <int64_t*>memory
        self._upstreams = upstreams

    def __dealloc__(self):
        self._release()

    cdef void _release(self) noexcept:
        if self._memory != NULL:
            munmap(self._memory, _size(self._upstreams))
            self._memory = NULL

    @staticmethod
    def allocate(Py_ssize_t upstreams):
        descriptor = os.memfd_create("gopher", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _size(upstreams))
        return descriptor

    cdef int64_t* _slot(self, int64_t number) except NULL:
        if self._memory == NULL:
            raise ValueError("closed")
        return self._memory + 1 + (number & 1) * (1 + _numbers(self._upstreams))

    def write(self, int64_t packets, list upstreams not None):
        cdef int64_t* slot = self._slot(self._memory[0] + 1 if self._memory != NULL else 0)
        cdef int64_t* number = slot + 1
        cdef Upstream upstream
        cdef Ledger ledger
        if len(upstreams) > self._upstreams:
            raise ValueError(f"there is room for {self._upstreams} upstreams")
        number[0] = packets
        number += OWN_NUMBERS
        for each in upstreams:
            upstream = <Upstream?>each
            ledger = upstream.ledger
            number[0] = ledger.captured
            number[1] = ledger.delivered
            number[2] = upstream.connections_captured
            number[3] = upstream.connections_delivered
            number += UPSTREAM_NUMBERS
        slot[0] = number - slot - 1
        gopher_store_number(self._memory, (self._memory[0] + 1) & 1)

    def read(self):
        cdef int64_t* slot = self._slot(self._memory[0] if self._memory != NULL else 0)
        cdef Py_ssize_t i
        cdef Py_ssize_t count = min(max(slot[0], <int64_t>0), <int64_t>_numbers(self._upstreams))
        return tuple([slot[1 + i] for i in range(count)])

    def close(self):
        self._release()
