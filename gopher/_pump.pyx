"""Many upstream sockets served in batches from one epoll descriptor.

The mirror writes captured bytes to `Connection`s and nobody wants the answers, so a task per connection would pay for
two context switches per request and learn nothing. Here a write is tried at once; only what the socket refuses is
queued; `Pump.serve` then moves whatever became possible, for up to 256 connections a call, and returns the few that
need a decision. `gopher.pump` runs it under one Trio task.

Acts only on its own non-blocking sockets; never waits, and holds the GIL throughout because no call can block.
Invariant, for each `Ledger`: captured = delivered + sum(shed) + pending, as long as the caller adds to `captured`
what it hands to `write`. These count the client's bytes; what a link wraps them in (`Connection.write_wrapped`) counts
only where memory is bounded.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from gopher.http.framing cimport (
    HTTP_RESPONSE,
    HttpFramer,
    RequestFramer,
    http_framer_feed,
    http_framer_init,
    http_framer_skip,
)

from gopher._runs cimport ByteRun
from gopher._sockets cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN,
    EPOLLOUT, EPOLLRDHUP, IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, SHUT_WR, SIOCOUTQ, SO_ERROR, SO_LINGER,
    SO_RCVLOWAT, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY, close, connect, epoll_create1,
    epoll_ctl, epoll_event, epoll_wait, eventfd, eventfd_write, getsockopt, ioctl, linger, msghdr, recv, send, sendmsg,
    setsockopt, shutdown, sockaddr, socket,
)

cdef enum:
    EVENTS_PER_CALL = 256
    SCRATCH_BYTES = 65536
    # UIO_MAXIOV of Linux.
    PIECES_PER_CALL = 1024
    # An answer that is thrown away without being copied may be read in larger steps.
    DISCARD_BYTES = 16777216
    # A connection that keeps answering must not keep the others waiting.
    READS_PER_TURN = 8
    # A connection that carries request after request is not worth a wake-up for each answer: the kernel reports it
    # when this much has come, or its end. 16 KiB saves little more and holds much more kernel memory in small packets.
    LAZY_BYTES = 4096
    # What a queued run costs beside its bytes: two objects and a place in a list. A client that sends byte by byte
    # queues hundreds of them for each KiB.
    RUN_BYTES = 160

# What `serve` reports beside negative errno values.
cdef enum:
    _NOTHING = 0
    _FINISHED = 1
    _PEER_CLOSED = 2

FINISHED = _FINISHED
PEER_CLOSED = _PEER_CLOSED

# What `write` reports beside zero and negative errno values.
cdef enum:
    _OVER_CONNECTION = 1
    _OVER_UPSTREAM = 2
    _OVER_TOTAL = 3

OVER_CONNECTION = _OVER_CONNECTION
OVER_UPSTREAM = _OVER_UPSTREAM
OVER_TOTAL = _OVER_TOTAL


cdef inline Py_ssize_t _behind(Py_ssize_t overhead, Py_ssize_t begin, Py_ssize_t end) noexcept:
    """How many of the bytes [begin, end) of a write are behind its first `overhead` bytes."""
    return max(end, overhead) - max(begin, overhead)


cdef extern from *:
    int gopher_highest_bit "63 - __builtin_clzll" (uint64_t value) nogil


LATENCY_BOUNDS_NS = tuple(
    bound
    for bit in range(LATENCY_FIRST_BIT, LATENCY_FIRST_BIT + LATENCY_BUCKETS // 2)
    for bound in (2**bit, 3 * 2**bit // 2)
)[:LATENCY_BUCKETS - 1]


cdef inline int _latency_bucket(int64_t latency_ns) noexcept:
    """The first bucket whose upper bound is not below `latency_ns`: two for each octave, found by two bits."""
    cdef int bit
    cdef uint64_t last
    if latency_ns <= <int64_t>1 << LATENCY_FIRST_BIT:
        return 0  # a clock that was set back makes negative ones
    last = <uint64_t>latency_ns - 1
    bit = gopher_highest_bit(last)
    return min(2 * (bit - LATENCY_FIRST_BIT) + <int>((last >> (bit - 1)) & 1) + 1, LATENCY_BUCKETS - 1)


cdef class Budget:
    """A bound on queued bytes that several upstreams share."""

    def __init__(self, int64_t limit):
        self.limit = limit

    cpdef void charge(self, int64_t length) noexcept:
        """Count bytes that are held elsewhere; negative when they are let go."""
        self.used += length


cdef class Ledger:
    """The byte account of one upstream and the bounds it lives in."""

    def __init__(self, Budget total not None, int64_t limit, int64_t connection_limit):
        self.total = total
        self.limit = limit
        self.connection_limit = connection_limit
        self.shed = {}

    @property
    def latencies(self):
        """(counts, sum in ns) of the times from the tap to the upstream's socket, one for each run of bytes that it
        took whole; the counts are one for each of `LATENCY_BOUNDS_NS`, and one for what is beyond the last.
        """
        return tuple([self._latencies[i] for i in range(LATENCY_BUCKETS)]), self._latency_ns

    cdef void _note_latency(self, int64_t captured_ns) noexcept:
        cdef timespec now
        cdef int64_t latency_ns
        if captured_ns:
            # Packets' time stamps are of this clock. Reading it costs a hundredth of a send().
            clock_gettime(CLOCK_REALTIME, &now)
            latency_ns = <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec - captured_ns
            self._latencies[_latency_bucket(latency_ns)] += 1
            self._latency_ns += max(latency_ns, 0)

    cpdef void add_shed(self, str reason, int64_t length):
        """Count bytes as given up."""
        if length:
            self.shed[reason] = self.shed.get(reason, 0) + length


cdef Py_ssize_t _send_run(int fd, ByteRun run) noexcept:
    """Send the pieces of a run, as far as the socket takes them. Returns how many bytes, or -1 with errno set."""
    cdef msghdr message
    cdef Py_ssize_t sent = 0
    cdef Py_ssize_t taken, wanted, i
    cdef Py_ssize_t at = 0
    memset(&message, 0, sizeof(message))
    while at < run.pieces_count:
        message.msg_iov = run.pieces + at
        message.msg_iovlen = min(run.pieces_count - at, <Py_ssize_t>PIECES_PER_CALL)
        wanted = 0
        for i in range(<Py_ssize_t>message.msg_iovlen):
            wanted += message.msg_iov[i].iov_len
        taken = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if taken < 0:
            return sent if sent else -1  # a failure comes again
        sent += taken
        if taken < wanted:
            break
        at += message.msg_iovlen
    return sent


cdef class Pump:
    """One epoll descriptor and the connections on it."""

    def __cinit__(self):
        self.epoll_fd = self._bell_fd = -1
        self._scratch = NULL

    def __init__(self):
        cdef epoll_event event
        self._new = []
        self._held = []
        self._scratch = <char*>PyMem_Malloc(SCRATCH_BYTES)
        if self._scratch == NULL:
            raise MemoryError
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno, "epoll_create1 failed")
        self._bell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self._bell_fd < 0:
            raise OSError(errno, "eventfd failed")
        memset(&event, 0, sizeof(event))
        # By edges, so that it need not be read.
        event.events = EPOLLIN | EPOLLET
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, self._bell_fd, &event):
            raise OSError(errno, "epoll_ctl failed")

    def __dealloc__(self):
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
        if self._bell_fd >= 0:
            close(self._bell_fd)
        PyMem_Free(self._scratch)

    def fileno(self):
        """The descriptor that is readable when `serve` has something to do."""
        return self.epoll_fd

    def serve(self):
        """Move what can be moved on up to 256 ready connections.

        Returns:
            (served, decisions): how many were ready, and a list of (connection, outcome) for those that cannot go on
            by themselves: `FINISHED` (asked to finish, and answered), `PEER_CLOSED`, or a negative errno. The caller
            closes each of them, or it is reported again.
        """
        cdef epoll_event events[EVENTS_PER_CALL]
        cdef int i, ready, outcome
        cdef Connection connection
        cdef list decisions = []
        cdef list new
        # Nothing is closed in these loops, so every pointer stays valid: a registered connection owns a reference to
        # itself until `hang_up`.
        if self._new:
            new, self._new = self._new, []
            for connection in new:
                outcome = connection._first_look()
                if outcome != _NOTHING:
                    decisions.append((connection, outcome))
        ready = epoll_wait(self.epoll_fd, events, EVENTS_PER_CALL, 0)
        for i in range(ready):
            if events[i].data.ptr == NULL:
                continue  # the bell
            connection = <Connection><PyObject*>events[i].data.ptr
            outcome = connection._ready(events[i].events)
            if outcome != _NOTHING:
                decisions.append((connection, outcome))
        return (ready if ready > 0 else 0), decisions

    def dial_held(self):
        """Connect those that `dial` has put off while `holding`, and send what they have. Returns decisions as `serve`.

        Each of these calls wakes the upstream. If it is on this machine it takes the core at once, and whoever works
        between the calls begins with cold caches each time.
        """
        cdef int outcome
        cdef Connection connection
        cdef list decisions = []
        held, self._held = self._held, []
        for connection in held:
            outcome = connection._start()
            if outcome != _NOTHING:
                decisions.append((connection, outcome))
        return decisions

    cdef int _announce(self, Connection connection) except -1:
        """Have `serve` look at a connection that has sent all it has, and register it only if it has no answer yet.

        Who sends one request a connection has the answers of one batch when the next one comes.
        """
        if not self._new:
            eventfd_write(self._bell_fd, 1)
        self._new.append(connection)
        return 0


@cython.final
cdef class Queue:
    """First in, first out. `collections.deque` costs a call through Python for each step, and much when empty."""

    def __cinit__(self):
        self._items = []

    cpdef append(self, item):
        """Add the newest."""
        # Each is moved once, for half of them are gone.
        if self._first >= 64 and 2 * self._first >= len(self._items):
            del self._items[:self._first]
            self._first = 0
        self._items.append(item)

    cpdef oldest(self):
        """The oldest, or None."""
        return self._items[self._first] if self._first < len(self._items) else None

    cpdef drop_oldest(self):
        """Remove the oldest; there must be one."""
        self._items[self._first] = None
        self._first += 1
        if self._first == len(self._items):
            self._items = []
            self._first = 0


@cython.final
@cython.freelist(64)
cdef class _Waiting:
    """A run of bytes in a connection's queue."""


cdef class Outlet:
    """What a mirrored stream is written to: a `Connection`, or a file."""

    cpdef int write(self, data) except? -1:
        raise NotImplementedError

    cpdef int64_t unaccepted(self) except -1:
        raise NotImplementedError

    cpdef hang_up(self, bint hard):
        raise NotImplementedError

    cpdef int64_t abandon(self, str reason, int64_t unaccepted=0) except -1:
        raise NotImplementedError


cdef class Connection(Outlet):
    """One connection to an upstream that carries one captured stream, or a part of it from a request on.

    Args:
        pump: what serves it.
        ledger: the account of its upstream.
        requests: the framer of the captured stream; says which answers are due.
        base: index of the first request that goes out on this connection.
        owner: anything; kept for the caller.
    """

    def __cinit__(self):
        self._fd = -1
        self.closed = True

    def __init__(self, Pump pump not None, Ledger ledger not None, RequestFramer requests not None, base, owner):
        self._pump = pump
        self.ledger = ledger
        self._requests = requests
        self.owner = owner
        self._base = base
        http_framer_init(&self._responses, HTTP_RESPONSE)
        self._responses.started = self._responses.completed = self._base

    def __dealloc__(self):
        if self._fd >= 0:
            close(self._fd)

    cpdef int dial(self, int family, bytes address, bint write_follows=False):
        """Start to connect. `address`: a packed sockaddr.

        `write_follows`: the caller writes right after this, and the pump need not know of the connection before: on a
        short path that write finds it up, and it is registered once instead of twice, or not at all. While the pump
        is `holding`, the attempt is put off until `Pump.dial_held`; meanwhile the connection is `connecting`.

        Returns:
            0, or a negative errno with nothing left open. The result of the attempt shows in `write` or in
            `Pump.serve`. A connection whose attempt failed may dial again; what is queued is kept.
        """
        cdef int failure
        cdef int fd
        if address is None:
            raise TypeError("address must be bytes")
        fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        if fd < 0:
            return -errno
        self._fd = fd
        self._sends = 0
        self._address = address
        self.connecting = True
        self.closed = False
        failure = 0
        if write_follows and self._pump.holding:
            self._held = True
            self._pump._held.append(self)
        else:
            failure = self._connect()
            if failure == 0 and not write_follows:
                failure = self._watch(True)
        if failure:
            close(fd)
            self._fd = -1
            self.connecting = False
            self.closed = True
            return failure
        Py_INCREF(self)
        self._pump.open += 1
        self.ledger.open += 1
        return 0

    cdef int _connect(self):
        """Returns 0 or a negative errno."""
        if connect(self._fd, <sockaddr*>PyBytes_AS_STRING(self._address), <uint32_t>PyBytes_GET_SIZE(self._address)) \
                and errno != EINPROGRESS:
            return -errno
        return 0

    cdef int _start(self):
        """Connect what was held. Returns what `Pump.serve` reports, or _NOTHING."""
        cdef int failure
        if not self._held:
            return _NOTHING
        self._held = False
        failure = self._connect()
        if failure == 0:
            failure = self._flush() if self.queued else self._watch(True)
        if failure:
            return failure
        return self._finish_step() if self.finishing else _NOTHING

    cpdef int64_t unaccepted(self) except -1:
        """The client's bytes sent on this connection that the upstream's TCP may not have acknowledged yet.

        Where others were sent after them this is too many, by as many at most.
        """
        cdef int length = 0
        # This is asked before a reset: what was captured before it is to be there before it.
        self._start()
        if self._fd >= 0 and not self.connecting:
            ioctl(self._fd, SIOCOUTQ, &length)
            # The kernel computes write_seq - snd_una, in which our own FIN is one more byte.
            if self._half_closed and length:
                length -= 1
        return min(<int64_t>length, self.sent)

    cpdef hang_up(self, bint hard):
        """Close the descriptor; what is queued stays queued. `hard`: by RST, whatever the kernel still holds."""
        cdef linger reset
        if self._fd < 0:
            return
        if hard:
            reset.l_onoff = 1
            reset.l_linger = 0
            setsockopt(self._fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset))
        if self._wants_write and not self.connecting:
            self._pump.blocked -= 1
        close(self._fd)
        self._fd = -1
        self._wants_write = self.connecting = self._registered = self._held = False
        self.closed = True
        self._pump.open -= 1
        self.ledger.open -= 1
        Py_DECREF(self)

    cpdef int64_t abandon(self, str reason, int64_t unaccepted=0) except -1:
        """Give up what is queued, and `unaccepted` bytes of what was sent: shed for `reason`.

        Returns:
            How many bytes were shed.
        """
        cdef int64_t length = self._pending
        self.ledger.pending -= length
        self._count_memory(-self._memory)
        self._queue = None
        self._head = 0
        self.queued = self._pending = 0
        self.ledger.delivered -= unaccepted
        self.sent -= unaccepted
        self.ledger.add_shed(reason, length + unaccepted)
        return length + unaccepted

    cpdef int write(self, data) except? -1:
        """Send `data`, bytes or a `ByteRun`, now if the socket takes it, else later. The caller has added its length
        to `captured`.

        Returns:
            0; or, with everything queued all the same, one of `OVER_CONNECTION`, `OVER_UPSTREAM`, `OVER_TOTAL`: the
            caller now waits for room or gives the connection up; or a negative errno with `data` queued and the
            connection useless.
        """
        return self._write(data, 0)

    def write_wrapped(self, bytes data not None, Py_ssize_t overhead):
        """As `write`, for bytes of which the first `overhead` are not the client's: no account counts those."""
        return self._write(data, overhead)

    cdef int _write(self, data, Py_ssize_t overhead):
        cdef Py_ssize_t taken = 0
        cdef ByteRun run = <ByteRun>data if isinstance(data, ByteRun) else None
        cdef bytes whole = None if run is not None else data
        cdef Py_ssize_t length = run.length if run is not None else PyBytes_GET_SIZE(whole)
        cdef int failure
        if self._held and run is not None:
            # Its bytes are where they are only as long as the batch is.
            self._held = False
            failure = self._connect()
            if failure:
                self._append(run.join(), 0, 0)
                return failure
        if self.queued == 0 and self._fd >= 0 and not self._held:
            # While connecting too: on a short path the handshake is over when connect() returns, and the attempt
            # saves a round through epoll; otherwise the kernel says EAGAIN.
            if not self._lazy and self.answered:
                self._lazy = True
                self._wake_at(LAZY_BYTES)
            self._before_send()
            if run is not None:
                taken = _send_run(self._fd, run)
            else:
                taken = send(self._fd, PyBytes_AS_STRING(whole), length, MSG_DONTWAIT | MSG_NOSIGNAL)
            if taken < 0:
                failure = errno
                taken = 0
                if failure != EAGAIN and failure != EINTR:
                    self._append(whole if run is None else run.join(), overhead, 0)
                    return -failure
            else:
                self.sent += _behind(overhead, 0, taken)
                self.ledger.delivered += _behind(overhead, 0, taken)
                if self.connecting:
                    self._connected()
                if taken == length:
                    if overhead < length:
                        self.ledger._note_latency(self._pump.captured_ns)
                    if not self._registered:
                        self._pump._announce(self)
                    return self._watch(False) if self._wants_write else 0
        if run is not None:
            # What the socket did not take has to leave the batch. Of a whole run upstreams share one copy.
            self._append(run.join_from(taken) if taken else run.join(), 0, 0)
        else:
            self._append(whole, overhead, taken)
        if not self._wants_write and self._fd >= 0 and not self._held:
            failure = self._watch(True)
            if failure:
                return failure
        if self.queued > self.ledger.connection_limit:
            return _OVER_CONNECTION
        if self.ledger.queued > self.ledger.limit:
            return _OVER_UPSTREAM
        if self.ledger.total.used > self.ledger.total.limit:
            return _OVER_TOTAL
        return 0

    cpdef int finish(self):
        """No more bytes will come: deliver what is queued, wait for the answers that are due, then report.

        A stream that ends between two requests gets its answers first, because many servers take an early FIN for a
        client that has lost interest. Any other stream is half-closed as the client's was.

        Returns:
            0 if there is something to wait for, and `Pump.serve` reports it; else what it would report.
        """
        cdef int outcome
        self.finishing = True
        if self._lazy:
            # Every answer counts from now on. What has come already is not reported again.
            self._lazy = False
            self._wake_at(1)
            outcome = self._drain()
            if outcome != _NOTHING:
                return outcome
        return self._finish_step()

    cdef void _append(self, bytes data, Py_ssize_t overhead, Py_ssize_t taken):
        cdef Py_ssize_t length = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t pending = _behind(overhead, taken, length)
        cdef _Waiting waiting = _Waiting.__new__(_Waiting)
        waiting.data = data
        waiting.overhead = overhead
        waiting.captured_ns = self._pump.captured_ns
        if self._queue is None:
            self._queue = Queue.__new__(Queue)
        # Bytes are written at once only when nothing waits, so only the oldest is ever sent in part.
        if not self.queued:
            self._head = taken
        self._queue.append(waiting)
        self.queued += length - taken
        self._pending += pending
        self.ledger.pending += pending
        self._count_memory(length + RUN_BYTES)

    cdef void _count_memory(self, Py_ssize_t length) noexcept:
        """Runs count whole until their last byte is sent, for until then they are there."""
        self._memory += length
        self.ledger.queued += length
        self.ledger.total.used += length

    cdef int _watch(self, bint write):
        cdef epoll_event event
        cdef int operation = EPOLL_CTL_MOD if self._registered else EPOLL_CTL_ADD
        memset(&event, 0, sizeof(event))
        event.events = EPOLLIN | EPOLLRDHUP | (EPOLLOUT if write else 0)
        event.data.ptr = <void*><PyObject*>self
        if epoll_ctl(self._pump.epoll_fd, operation, self._fd, &event):
            return -errno
        self._registered = True
        if not self.connecting and write != self._wants_write:
            self._pump.blocked += 1 if write else -1
        self._wants_write = write
        return 0

    cdef int _first_look(self):
        """The pump may know of this connection from now on. Returns what `Pump.serve` reports, or _NOTHING."""
        cdef int outcome
        if self._fd < 0 or self._registered:
            return _NOTHING
        if self.finishing:
            outcome = self._drain()
            if outcome == _NOTHING:
                outcome = self._finish_step()
            if outcome != _NOTHING:
                return outcome
        return self._watch(False)

    cdef void _before_send(self) noexcept:
        cdef int one = 1
        # A captured run is written as one piece when it was captured; holding its tail back gains nothing. The first
        # one goes out whole in any case: only a small segment that is not acknowledged yet holds others back.
        if self._sends < 2:
            self._sends += 1
            if self._sends == 2:
                setsockopt(self._fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))

    cdef void _wake_at(self, int length):
        """Be reported as readable once this much can be read, or the peer has closed."""
        setsockopt(self._fd, SOL_SOCKET, SO_RCVLOWAT, &length, sizeof(length))

    cdef int _flush(self):
        """Send from the queue. Returns 0 or a negative errno."""
        cdef _Waiting oldest
        cdef Py_ssize_t taken, counted, length
        while self.queued:
            oldest = self._queue.oldest()
            length = PyBytes_GET_SIZE(oldest.data) - self._head
            self._before_send()
            taken = send(self._fd, PyBytes_AS_STRING(oldest.data) + self._head, length, MSG_DONTWAIT | MSG_NOSIGNAL)
            if taken < 0:
                if errno == EINTR:
                    continue
                if errno != EAGAIN:
                    return -errno
                return 0 if self._wants_write else self._watch(True)
            if self.connecting:
                self._connected()
            counted = _behind(oldest.overhead, self._head, self._head + taken)
            self.sent += counted
            self.queued -= taken
            self._pending -= counted
            self.ledger.delivered += counted
            self.ledger.pending -= counted
            if taken < length:
                self._head += taken
            else:
                self._queue.drop_oldest()
                self._head = 0
                self._count_memory(-(PyBytes_GET_SIZE(oldest.data) + RUN_BYTES))
                if oldest.overhead < PyBytes_GET_SIZE(oldest.data):
                    self.ledger._note_latency(oldest.captured_ns)
        if not self._registered:
            return self._pump._announce(self)
        return self._watch(False)

    cdef void _connected(self) noexcept:
        self.connecting = False
        self.ledger.established += 1
        if self._wants_write:
            self._pump.blocked += 1

    cdef int _drain(self):
        """Read answers and forget them. Returns 0, _PEER_CLOSED or a negative errno."""
        cdef int _turn
        cdef Py_ssize_t received
        cdef size_t wanted
        cdef bint look
        cdef char* scratch = self._pump._scratch
        for _turn in range(READS_PER_TURN):
            look = not (self._requests.c.opaque or self._responses.opaque or self._responses.until_close)
            if look and self._responses.body_left <= SCRATCH_BYTES:
                wanted = SCRATCH_BYTES
                received = recv(self._fd, scratch, wanted, MSG_DONTWAIT)
                if received > 0:
                    http_framer_feed(&self._responses, &self._requests.c, <const uint8_t*>scratch, received)
            else:
                # MSG_TRUNC drops the bytes in the kernel: tcp(7).
                wanted = min(<size_t>self._responses.body_left, <size_t>DISCARD_BYTES) if look else DISCARD_BYTES
                received = recv(self._fd, NULL, wanted, MSG_DONTWAIT | MSG_TRUNC)
                if received > 0 and look:
                    http_framer_skip(&self._responses, received)
            if received == 0:
                return _PEER_CLOSED
            if received < 0:
                return 0 if errno == EAGAIN or errno == EINTR else -errno
            self.answered += received
            self.ledger.responses += received
            if <size_t>received < wanted:
                return 0
        return 0

    cdef int _finish_step(self):
        if self.queued or self.connecting or self._fd < 0:
            return _NOTHING
        cdef const HttpFramer* asked = &self._requests.c
        if not asked.opaque and asked.started > self._base and asked.completed == asked.started:
            if not self._responses.opaque and self._responses.completed >= asked.started:
                return _FINISHED
        elif not self._half_closed:
            self._half_closed = True
            shutdown(self._fd, SHUT_WR)
        return _NOTHING

    cdef int _ready(self, unsigned int events):
        cdef int outcome, failure = 0
        cdef uint32_t size = sizeof(failure)
        if self.connecting:
            if events & (EPOLLERR | EPOLLHUP):
                getsockopt(self._fd, SOL_SOCKET, SO_ERROR, &failure, &size)
                return -failure
            if not events & EPOLLOUT:
                return _NOTHING
            self._connected()
        if events & EPOLLOUT:
            outcome = self._flush()
            if outcome:
                return outcome
        if events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP):
            outcome = self._drain()
            if outcome:
                return outcome
        return self._finish_step() if self.finishing else _NOTHING
