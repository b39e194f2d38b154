# A run of bytes of one stream that stays where it was captured. See _runs.pyx.

from libc.stdint cimport uint64_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len


cdef class Lease:
    cdef Py_buffer* _buffers    # owned; each holds its exporter
    cdef Py_ssize_t _count

    cdef bint holds(self, const void* data, size_t length) noexcept


cdef class ByteRun:
    cdef Lease _lease           # what the pieces lie in
    cdef iovec* pieces          # owned; what they point to is borrowed from _lease
    cdef Py_ssize_t pieces_count
    cdef readonly uint64_t length
    cdef bytes _joined          # a copy, once somebody has asked for one

    cpdef bytes join(self)
    cpdef bytes join_from(self, uint64_t offset)
