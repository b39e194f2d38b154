"""Large runs of bytes that are not copied on their way from the capture to a socket.

Between the reassembler, which makes them, and the pump, which hands their pieces to the system as they are. What needs
bytes in one piece asks for them (`bytes(run)`) and pays for one copy, whoever asks and however often. Sans-I/O.

A run borrows from the batches it came in, and keeps them alive: of a batch in a ring (`gopher.capture._ring`) the
memory is not given back to the kernel meanwhile.
"""

from cpython.buffer cimport PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

cimport cython


@cython.final
@cython.auto_pickle(False)
cdef class Lease:
    """Buffers that stay as they are while this lives."""

    def __cinit__(self):
        self._buffers = NULL

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self._count):
            PyBuffer_Release(&self._buffers[i])
        PyMem_RawFree(self._buffers)

    cdef bint holds(self, const void* data, size_t length) noexcept:
        """Whether these bytes lie in one of the buffers."""
        cdef const char* begin
        cdef Py_ssize_t i
        for i in range(self._count):
            begin = <const char*>self._buffers[i].buf
            if begin <= <const char*>data and <const char*>data + length <= begin + self._buffers[i].len:
                return True
        return False


@cython.final
@cython.auto_pickle(False)
cdef class ByteRun:
    """Contiguous bytes of a stream, in pieces that lie in batches of packets. As immutable as bytes."""

    def __cinit__(self):
        self.pieces = NULL

    def __dealloc__(self):
        PyMem_RawFree(self.pieces)

    def __len__(self):
        return self.length

    def __bytes__(self):
        return self.join()

    cpdef bytes join(self):
        """The bytes in one piece; copied once, then kept."""
        cdef char* target
        cdef Py_ssize_t i
        if self._joined is None:
            joined = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>self.length)
            target = PyBytes_AS_STRING(joined)
            for i in range(self.pieces_count):
                memcpy(target, self.pieces[i].iov_base, self.pieces[i].iov_len)
                target += self.pieces[i].iov_len
            self._joined = joined
        return self._joined

    cpdef bytes join_from(self, uint64_t offset):
        """The bytes from `offset` on, in one piece; not kept."""
        cdef char* target
        cdef Py_ssize_t i
        cdef size_t length
        if self._joined is not None:
            return self._joined[offset:]
        rest = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(self.length - offset))
        target = PyBytes_AS_STRING(rest)
        for i in range(self.pieces_count):
            length = self.pieces[i].iov_len
            if offset < length:
                memcpy(target, <char*>self.pieces[i].iov_base + offset, length - offset)
                target += length - offset
                offset = 0
            else:
                offset -= length
        return rest
