# Accounted allocation: every byte the fast path owns is acquired and released here. Legal without the GIL.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

cdef struct Memory:
    uint64_t bytes          # acquired and not yet released
    uint64_t allocations    # how often the system was asked; only grows
    int64_t fail_after      # for tests: acquisitions that still succeed; -1 for ever

cdef inline void* _acquire(Memory* memory, size_t size) noexcept nogil:
    """`size` bytes, uninitialised; NULL if the system has none. The caller checks its own budget first."""
    cdef void* block
    if memory.fail_after >= 0:
        if memory.fail_after == 0:
            return NULL
        memory.fail_after -= 1
    block = PyMem_RawMalloc(size)
    if block != NULL:
        memory.bytes += size
        memory.allocations += 1
    return block

cdef inline void _release(Memory* memory, void* block, size_t size) noexcept nogil:
    """Give back a block of exactly `size` bytes; NULL is allowed."""
    if block != NULL:
        PyMem_RawFree(block)
        memory.bytes -= size

cdef inline void* _regrow(Memory* memory, void* block, size_t used, size_t size, size_t new_size) noexcept nogil:
    """A block of `new_size` that starts with the `used` bytes of `block`, which is released; NULL (and `block` kept) on
    failure."""
    cdef void* larger = _acquire(memory, new_size)
    if larger != NULL and block != NULL:
        memcpy(larger, block, used)
        _release(memory, block, size)
    return larger
