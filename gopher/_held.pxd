# Out-of-order bytes of one stream, waiting for the hole in front of them to fill.
#
# A queue of disjoint runs of bytes in ascending order, found by binary search. Where a new segment overlaps old ones a
# policy decides byte by byte who wins: it compares the new segment's first and last byte with those of the segment the
# old byte came from, so every run remembers its origin. That is enough: for each policy, what wins against the winner
# wins against the loser.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from gopher._memory cimport Memory, _acquire, _regrow, _release

cdef enum:
    HELD_FIRST_CAPACITY = 8

cdef struct HeldRun:
    uint64_t start          # stream offset of the first byte
    uint64_t end            # one past the last byte; > start
    uint64_t base           # stream offset of the byte right behind this struct
    uint64_t origin_start   # extent of the segment the bytes arrived in
    uint64_t origin_end
    int64_t arrived_ns      # internal clock
    uint64_t size           # bytes acquired for this struct and its bytes

cdef struct HeldQueue:
    HeldRun** runs          # owned, as are the runs; runs[first : first + count] are in use
    uint32_t first
    uint32_t count
    uint32_t capacity
    uint32_t direction
    uint64_t bytes          # sum of end - start
    int64_t fin_ns          # internal clock: when the FIN behind all runs came, if it has
    int64_t since_ns        # internal clock: when the hole in front appeared or last shrank
    void* flow              # borrowed: the flow owns the queue
    HeldQueue* older        # borrowed: list of all queues of a table by since_ns
    HeldQueue* newer

cdef inline const uint8_t* run_bytes(const HeldRun* run) noexcept nogil:
    return <const uint8_t*>(run + 1) + (run.start - run.base)

cdef inline void run_free(Memory* memory, HeldRun* run) noexcept nogil:
    _release(memory, run, run.size)

cdef inline HeldRun* run_new(Memory* memory, uint64_t start, uint64_t end, uint64_t origin_start, uint64_t origin_end,
                             const uint8_t* data, int64_t now_ns) noexcept nogil:
    """A run with a copy of data[0 : end - start]; NULL without memory."""
    cdef size_t size = sizeof(HeldRun) + <size_t>(end - start)
    cdef HeldRun* run = <HeldRun*>_acquire(memory, size)
    if run == NULL:
        return NULL
    run.start = start
    run.end = end
    run.base = start
    run.origin_start = origin_start
    run.origin_end = origin_end
    run.arrived_ns = now_ns
    run.size = size
    memcpy(<uint8_t*>(run + 1), data, <size_t>(end - start))
    return run

cdef inline HeldQueue* held_new(Memory* memory, void* flow, uint32_t direction) noexcept nogil:
    cdef HeldQueue* queue = <HeldQueue*>_acquire(memory, sizeof(HeldQueue))
    if queue == NULL:
        return NULL
    queue.runs = NULL
    queue.first = queue.count = queue.capacity = 0
    queue.direction = direction
    queue.bytes = 0
    queue.since_ns = 0
    queue.flow = flow
    queue.older = queue.newer = NULL
    return queue

cdef inline void held_clear(Memory* memory, HeldQueue* queue) noexcept nogil:
    cdef uint32_t i
    for i in range(queue.first, queue.first + queue.count):
        run_free(memory, queue.runs[i])
    queue.first = queue.count = 0
    queue.bytes = 0

cdef inline void held_free(Memory* memory, HeldQueue* queue) noexcept nogil:
    held_clear(memory, queue)
    _release(memory, queue.runs, queue.capacity * sizeof(HeldRun*))
    _release(memory, queue, sizeof(HeldQueue))

cdef inline HeldRun* held_front(HeldQueue* queue) noexcept nogil:
    """The first run, NULL if there is none."""
    return queue.runs[queue.first] if queue.count else NULL

cdef inline uint64_t held_end(const HeldQueue* queue) noexcept nogil:
    """One past the last held byte, 0 if there is none."""
    return queue.runs[queue.first + queue.count - 1].end if queue.count else 0

cdef inline HeldRun* held_pop(HeldQueue* queue) noexcept nogil:
    """Take the first run out; the caller owns it. There must be one."""
    cdef HeldRun* run = queue.runs[queue.first]
    queue.first += 1
    queue.count -= 1
    if queue.count == 0:
        queue.first = 0
    queue.bytes -= run.end - run.start
    return run

cdef inline uint32_t held_search(const HeldQueue* queue, uint64_t offset) noexcept nogil:
    """Index into `runs` of the first run that ends after `offset`. O(log runs)."""
    cdef uint32_t low = queue.first
    cdef uint32_t high = queue.first + queue.count
    cdef uint32_t middle
    if queue.count == 0 or queue.runs[high - 1].end <= offset:
        return high  # the usual case: the newest segment is the farthest
    while low < high:
        middle = (low + high) >> 1
        if queue.runs[middle].end > offset:
            high = middle
        else:
            low = middle + 1
    return low

cdef inline uint64_t held_covered(const HeldQueue* queue, uint64_t start, uint64_t end) noexcept nogil:
    """How many of the bytes [start, end) are held already."""
    cdef uint64_t covered = 0
    cdef uint32_t i = held_search(queue, start)
    while i < queue.first + queue.count and queue.runs[i].start < end:
        covered += min(end, queue.runs[i].end) - max(start, queue.runs[i].start)
        i += 1
    return covered

cdef inline bint new_wins(uint32_t policy, uint64_t start, uint64_t end, const HeldRun* old) noexcept nogil:
    """The overlap rule. `policy`: bit 3 * s + e is set if the new bytes win, where s and e say how the new segment's
    start and end lie to the old one's: 0 before, 1 same, 2 after."""
    cdef int s = (start > old.origin_start) - (start < old.origin_start) + 1
    cdef int e = (end > old.origin_end) - (end < old.origin_end) + 1
    return (policy >> (3 * s + e)) & 1

cdef inline bint run_differs(const HeldRun* run, uint64_t start, uint64_t end, const uint8_t* data) noexcept nogil:
    """Whether data, which is for [start, end), has other bytes than the run where they overlap."""
    cdef uint64_t low = max(start, run.start)
    cdef uint64_t high = min(end, run.end)
    return memcmp(run_bytes(run) + (low - run.start), data + (low - start), <size_t>(high - low)) != 0

cdef inline bint held_place(Memory* memory, HeldQueue* queue, uint32_t at, HeldRun* run) noexcept nogil:
    """Put `run` at index `at`; the queue owns it then. False without memory: it is NULL, or has been released."""
    cdef uint32_t capacity
    cdef HeldRun** runs
    if run == NULL:
        return False
    if queue.first + queue.count == queue.capacity:
        if queue.first > queue.capacity >> 1:
            memmove(queue.runs, queue.runs + queue.first, queue.count * sizeof(HeldRun*))
            at -= queue.first
            queue.first = 0
        else:
            capacity = queue.capacity * 2 if queue.capacity else HELD_FIRST_CAPACITY
            runs = <HeldRun**>_regrow(memory, queue.runs, queue.capacity * sizeof(HeldRun*),
                                      queue.capacity * sizeof(HeldRun*), capacity * sizeof(HeldRun*))
            if runs == NULL:
                run_free(memory, run)
                return False
            queue.runs = runs
            queue.capacity = capacity
    memmove(queue.runs + at + 1, queue.runs + at, (queue.first + queue.count - at) * sizeof(HeldRun*))
    queue.runs[at] = run
    queue.count += 1
    queue.bytes += run.end - run.start
    return True

cdef inline HeldRun* run_fitted(Memory* memory, HeldRun* run) noexcept nogil:
    """`run`, moved to a smaller block if most of its own has been cut away: what overlaps leave of large segments is
    budgeted by its bytes. Without memory it stays."""
    cdef HeldRun* fitted
    if 2 * (run.end - run.start) >= run.size - sizeof(HeldRun):
        return run
    fitted = run_new(memory, run.start, run.end, run.origin_start, run.origin_end, run_bytes(run), run.arrived_ns)
    if fitted == NULL:
        return run
    run_free(memory, run)
    return fitted

cdef inline bint held_cut(Memory* memory, HeldQueue* queue, uint32_t policy, uint64_t start, uint64_t end,
                          const uint8_t* data) noexcept nogil:
    """Make room for a new segment [start, end): whatever loses against it goes. Returns whether any overlapping byte
    differed. Without memory for a split the old bytes stay. O(log runs + overlapped runs)."""
    cdef bint differing = False
    cdef uint32_t i = held_search(queue, start)
    cdef uint32_t kept = i
    cdef uint32_t last
    cdef HeldRun* run
    cdef HeldRun* tail
    while i < queue.first + queue.count and queue.runs[i].start < end:
        run = queue.runs[i]
        differing = differing or run_differs(run, start, end, data)
        if new_wins(policy, start, end, run):
            if run.start < start and run.end > end:
                tail = run_new(memory, end, run.end, run.origin_start, run.origin_end,
                               run_bytes(run) + (end - run.start), run.arrived_ns)
                if held_place(memory, queue, i + 1, tail):
                    queue.bytes -= run.end - start
                    run.end = start
                    queue.runs[kept] = run_fitted(memory, run)
                return differing  # nothing else can overlap
            if run.start >= start and run.end <= end:
                queue.bytes -= run.end - run.start
                run_free(memory, run)
                i += 1
                continue
            if run.start < start:
                queue.bytes -= run.end - start
                run.end = start
            else:
                queue.bytes -= end - run.start
                run.start = end
            run = run_fitted(memory, run)
        queue.runs[kept] = run
        kept += 1
        i += 1
    last = queue.first + queue.count
    if kept < i:
        memmove(queue.runs + kept, queue.runs + i, (last - i) * sizeof(HeldRun*))
        queue.count -= i - kept
        if queue.count == 0:
            queue.first = 0
    return differing

cdef inline bint held_insert(Memory* memory, HeldQueue* queue, uint32_t policy, uint64_t start, uint64_t end,
                             const uint8_t* data, int64_t now_ns, bint* differing) noexcept nogil:
    """Hold a copy of data for [start, end), overlaps decided by `policy`. False if memory ran out: then some bytes of
    it are not held, and the hole they leave is like any other."""
    cdef uint64_t at = start
    cdef uint64_t hole_end
    cdef uint32_t i
    differing[0] = held_cut(memory, queue, policy, start, end, data)
    while at < end:
        i = held_search(queue, at)
        hole_end = end
        if i < queue.first + queue.count and queue.runs[i].start < end:
            if queue.runs[i].start <= at:
                at = queue.runs[i].end
                continue
            hole_end = queue.runs[i].start
        if not held_place(memory, queue, i, run_new(memory, at, hole_end, start, end, data + (at - start), now_ns)):
            return False
        at = hole_end
    return True
