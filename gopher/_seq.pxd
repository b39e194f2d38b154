# Sequence numbers are serial numbers modulo 2^32 (RFC 9293 section 3.4, RFC 1982): only their signed difference means
# anything. All comparisons go through here; streams are then measured in 64-bit offsets, which do not wrap.

from libc.stdint cimport int32_t, uint32_t

cdef inline int32_t seq_diff(uint32_t a, uint32_t b) noexcept nogil:
    """How far `a` is after `b`, negative if before; exact while they are less than 2^31 apart."""
    return <int32_t>(a - b)
