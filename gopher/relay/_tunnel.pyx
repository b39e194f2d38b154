"""Bytes between two sockets, both ways, for many pairs from one epoll descriptor.

The transparent part of the relay: what comes in goes out byte for byte, in order. Back-pressure is the sockets' own:
what the far side does not take is kept (at most one read of it), and its source is not read until it has gone. A FIN is
passed on as a FIN once everything before it has been taken, so half-closed connections work. When one side breaks, what
it had sent before is passed on first, as far as the other side takes it.

Acts only on its own non-blocking sockets; never waits, and holds the GIL throughout because no call can block. A tunnel
costs Python something when it begins, when it ends and when it needs a decision; `gopher.pump` runs it.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EAGAIN, ECONNRESET, EINPROGRESS, EINTR, errno
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy, memset

from gopher._sockets cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP,
    IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK, SHUT_WR, SIOCOUTQ, SO_ERROR, SO_LINGER, SO_RCVLOWAT,
    SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, TCP_NODELAY, close, connect, epoll_create1, epoll_ctl,
    epoll_event, epoll_wait, getsockopt, ioctl, linger, recv, send, setsockopt, shutdown, sockaddr, socket,
)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* time)
    enum: CLOCK_MONOTONIC

cdef enum:
    EVENTS_PER_CALL = 256
    # One read: also what may wait for a side that does not take it.
    READ_BYTES = 65536
    # A pair that always has more must not keep the others waiting.
    READS_PER_TURN = 4
    # PROXY protocol version 2, section 2.2: the signature, and everything up to the length.
    SIGNATURE_BYTES = 12
    FIXED_BYTES = 16
    HEADER_LIMIT_BYTES = 4096

cdef const char* PROXY_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

cdef enum:
    _DOWNSTREAM = 0
    _UPSTREAM = 1

DOWNSTREAM = _DOWNSTREAM
UPSTREAM = _UPSTREAM

# What `serve` reports beside negative errno values.
cdef enum:
    _NOTHING = 0
    _DONE = 1
    _LINK = 2
    _PLAIN = 3

DONE = _DONE
LINK = _LINK
PLAIN = _PLAIN


def begins_request(bytes data not None):
    """Whether a stream that begins with `data` begins with the request line of HTTP/1."""
    return _begins_request(data, len(data))


cdef bint _begins_request(const char* data, Py_ssize_t length):
    cdef Py_ssize_t at
    cdef const char* end = <const char*>memchr(data, c"\n", length)
    if end == NULL or not c"A" <= data[0] <= c"Z":
        return False
    length = end - data
    if length and data[length - 1] == c"\r":
        length -= 1
    at = length - 9
    return at > 2 and memcmp(data + at, b" HTTP/1.", 8) == 0


cdef class TunnelPump:
    """One epoll descriptor and the tunnels on it."""

    cdef readonly int epoll_fd
    cdef readonly int open              # tunnels with descriptors
    cdef readonly int blocked           # always 0: every wait of a tunnel shows in the epoll descriptor
    cdef int64_t _received[2]           # bytes read so far, by side
    cdef double _now_s                  # monotonic, of the last call of serve
    cdef char* _scratch                 # owned; holds one read while it is passed on

    def __cinit__(self):
        self.epoll_fd = -1
        self._scratch = NULL
        memset(self._received, 0, sizeof(self._received))

    def __init__(self):
        self._scratch = <char*>PyMem_Malloc(READ_BYTES)
        if self._scratch == NULL:
            raise MemoryError
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno, "epoll_create1 failed")
        self._look_at_clock()

    def __dealloc__(self):
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
        PyMem_Free(self._scratch)

    @property
    def received(self):
        """Bytes read by all tunnels so far: (from downstream, from upstream)."""
        return self._received[_DOWNSTREAM], self._received[_UPSTREAM]

    cdef void _look_at_clock(self):
        cdef timespec now
        clock_gettime(CLOCK_MONOTONIC, &now)
        self._now_s = now.tv_sec + now.tv_nsec * 1e-9

    def serve(self):
        """Move what can be moved on up to 256 ready sockets.

        Returns:
            (served, decisions): how many were ready, and a list of (tunnel, outcome) for those that need a decision:

            * `DONE`: both sides have ended and everything was passed on.
            * `LINK`: what comes from downstream begins with a PROXY protocol header, complete or too long to be one.
            * `PLAIN`: it does not, and this tunnel was to say so; it waits for `announce`.
            * a negative errno: `failed` is the side that broke, or could not be connected.

            A tunnel without a decision is reported again.
        """
        cdef epoll_event events[EVENTS_PER_CALL]
        cdef int ready = epoll_wait(self.epoll_fd, events, EVENTS_PER_CALL, 0)
        cdef int i, outcome
        cdef size_t word
        cdef Tunnel tunnel
        cdef list decisions = []
        self._look_at_clock()
        # Nothing is closed in this loop, so every pointer stays valid: a registered tunnel owns a reference to itself
        # until `close`.
        for i in range(ready):
            word = <size_t>events[i].data.ptr
            tunnel = <Tunnel><PyObject*>(word & ~<size_t>1)
            outcome = tunnel._ready(word & 1, events[i].events)
            if outcome != _NOTHING:
                decisions.append((tunnel, outcome))
        return (ready if ready > 0 else 0), decisions


cdef struct Side:
    int fd
    uint32_t interest           # events it is registered for
    bint registered
    bint parked                 # broken or hung up with bytes still on their way to the other side: not watched
    bint ended                  # nothing more can be read from it
    bint shut                   # our FIN has been sent to it
    int broken                  # errno, or 0: nothing can be sent to it any more
    char* waiting               # owned, or NULL: bytes for it that it has not taken
    Py_ssize_t waiting_length
    Py_ssize_t waiting_offset
    int64_t received            # bytes read from it


cdef class Tunnel:
    """A downstream and an upstream socket, joined; begins with `dial` or `join`.

    Nothing is read from downstream before the upstream is connected.

    Args:
        pump: what serves it.
        downstream: a connected, non-blocking descriptor; it is the tunnel's from now on.
        owner: anything; kept for the caller.
        sniff: whether a PROXY protocol header may come first.
        ask: whether to report `PLAIN`, and wait for `announce`.
    """

    cdef TunnelPump _pump
    cdef Side _sides[2]
    cdef readonly bint connecting
    cdef readonly int failed            # side
    cdef readonly bint http             # the client began with a request line
    cdef readonly object owner
    cdef readonly double last_active_s  # monotonic: when something was last ready
    cdef bint _sniff                    # the first bytes from downstream may be a header
    cdef bint _ask                      # PLAIN has to be reported
    cdef bint _fin_behind               # while sniffing: downstream has sent its FIN
    cdef int _upstream_error            # errno, or 0: what the end of the upstream stands for

    def __cinit__(self):
        memset(self._sides, 0, sizeof(self._sides))
        self._sides[_DOWNSTREAM].fd = self._sides[_UPSTREAM].fd = -1

    def __init__(self, TunnelPump pump not None, int downstream, owner, *, bint sniff=False, bint ask=False):
        self._pump = pump
        self.owner = owner
        self._sniff = sniff
        self._ask = ask
        self._sides[_DOWNSTREAM].fd = downstream
        pump._look_at_clock()
        self.last_active_s = pump._now_s
        Py_INCREF(self)
        pump.open += 1

    def __dealloc__(self):
        cdef int i
        for i in range(2):
            if self._sides[i].fd >= 0:
                close(self._sides[i].fd)
            PyMem_Free(self._sides[i].waiting)

    @property
    def closed(self):
        """Whether the tunnel has given its descriptors up."""
        return self._sides[_DOWNSTREAM].fd < 0

    @property
    def received(self):
        """Bytes read so far, (from downstream, from upstream)."""
        return self._sides[_DOWNSTREAM].received, self._sides[_UPSTREAM].received

    # -- begin ---------------------------------------------------------------------------------------------------------

    def dial(self, int family, bytes address not None):
        """Start to connect the upstream side; again, if an attempt has failed.

        Args:
            family: of the address.
            address: a packed sockaddr.

        Returns:
            0, or a negative errno. The result of the attempt shows in `TunnelPump.serve`.
        """
        cdef int one = 1
        cdef int failure
        cdef int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        if fd < 0:
            return -errno
        # What is written is what the other side wrote; holding its tail back gains nothing.
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        if connect(fd, <sockaddr*><const char*>address, <uint32_t>len(address)) and errno != EINPROGRESS:
            failure = errno
            close(fd)
            return -failure
        self._give_upstream(fd)
        return self._begin(True)

    def join(self, int upstream, bint connecting, *, bytes to_downstream not None=b"", bytes to_upstream not None=b""):
        """Begin with an upstream socket that is there.

        Args:
            upstream: a non-blocking descriptor; it is the tunnel's from now on.
            connecting: whether it is still being connected.
            to_downstream: bytes that go to the downstream before anything else.
            to_upstream: bytes that go to the upstream before anything else.

        Returns:
            0, or a negative errno.
        """
        self._give_upstream(upstream)
        self._keep(_DOWNSTREAM, to_downstream, len(to_downstream))
        self._keep(_UPSTREAM, to_upstream, len(to_upstream))
        return self._begin(connecting)

    cdef void _give_upstream(self, int fd):
        cdef Side* upstream = &self._sides[_UPSTREAM]
        if upstream.fd >= 0:
            close(upstream.fd)
        upstream.fd = fd
        upstream.registered = False

    cdef int _begin(self, bint connecting):
        self.connecting = connecting
        if self._register(_DOWNSTREAM) or self._register(_UPSTREAM):
            self.failed = _UPSTREAM
            return -errno
        return 0

    # -- a header ------------------------------------------------------------------------------------------------------

    def peek(self, int length):
        """What has come from downstream, without taking it; b"" if nothing has or nothing will. `length`: at most."""
        cdef char[HEADER_LIMIT_BYTES] data
        cdef Py_ssize_t got = recv(self._sides[_DOWNSTREAM].fd, data, min(length, <int>HEADER_LIMIT_BYTES),
                                   MSG_DONTWAIT | MSG_PEEK)
        return data[:got] if got > 0 else b""

    def skip(self, int length):
        """Take a header away that `peek` has shown: `length` bytes, or none of it. What follows passes."""
        cdef char[HEADER_LIMIT_BYTES] data
        if length:
            recv(self._sides[_DOWNSTREAM].fd, data, min(length, <int>HEADER_LIMIT_BYTES), MSG_DONTWAIT)
        self._look_no_more()

    def announce(self, bytes header not None):
        """Send this to the upstream before anything of the downstream; go on after `rest`.

        Returns:
            0, or a negative errno.
        """
        self._ask = False
        self._keep(_UPSTREAM, header, len(header))
        return -errno if self._register(_DOWNSTREAM) or self._register(_UPSTREAM) else 0

    # -- end -----------------------------------------------------------------------------------------------------------

    def unsent(self, int side):
        """Bytes that this side's TCP has not acknowledged: what a close by RST may destroy."""
        cdef int length = 0
        if self._sides[side].fd >= 0:
            ioctl(self._sides[side].fd, SIOCOUTQ, &length)
        return length + self._sides[side].waiting_length

    def close(self, bint hard):
        """Close both sockets. `hard`: by RST."""
        cdef linger reset
        cdef int i
        if self._sides[_DOWNSTREAM].fd < 0:
            return
        reset.l_onoff = 1
        reset.l_linger = 0
        for i in range(2):
            if self._sides[i].fd < 0:
                continue
            if hard:
                setsockopt(self._sides[i].fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset))
            close(self._sides[i].fd)
            self._sides[i].fd = -1
            PyMem_Free(self._sides[i].waiting)
            self._sides[i].waiting = NULL
            self._sides[i].waiting_length = 0
        self._pump.open -= 1
        Py_DECREF(self)

    def end_as(self, int error):
        """What the end of the upstream means when it comes: it broke, with this errno. For sockets that cannot say."""
        self._upstream_error = error

    def rest(self):
        """Stop, and wait for `close` or `announce`: nothing moves any more and nothing is reported."""
        self._unregister(_DOWNSTREAM)
        self._unregister(_UPSTREAM)

    def release(self):
        """Give back both descriptors: (downstream, upstream). What waits is lost."""
        cdef int downstream = self._sides[_DOWNSTREAM].fd
        cdef int upstream = self._sides[_UPSTREAM].fd
        self._look_no_more()
        self.rest()
        self._sides[_DOWNSTREAM].fd = self._sides[_UPSTREAM].fd = -1
        self._pump.open -= 1
        Py_DECREF(self)
        return downstream, upstream

    def release_downstream(self):
        """Give back the downstream descriptor, for a last word to the client, and close the upstream's."""
        downstream, upstream = self.release()
        if upstream >= 0:
            close(upstream)
        return downstream

    # -- bytes ---------------------------------------------------------------------------------------------------------

    cdef int _ready(self, int side, uint32_t events) except? -1:
        cdef Side* this = &self._sides[side]
        cdef int outcome
        self.last_active_s = self._pump._now_s
        if self.connecting:
            if events & (EPOLLERR | EPOLLHUP):
                # The client may give up as well while we connect.
                self.failed = side
                return -self._socket_error(side)
            if side != _UPSTREAM:
                return _NOTHING
            self.connecting = False
            outcome = self._forward(_DOWNSTREAM)
            if outcome:
                return outcome
        if this.waiting_length and events & EPOLLOUT:
            self._flush(side)
            # What was held back can go on.
            outcome = self._forward(1 - side)
            if outcome:
                return outcome
        if events & (EPOLLIN | EPOLLHUP | EPOLLERR):
            self._fin_behind = events & EPOLLRDHUP
            outcome = self._forward(side)
            if outcome:
                return outcome
            if events & EPOLLERR and this.ended and not this.broken:
                this.broken = self._socket_error(side)
        return self._settle(side, events)

    cdef int _settle(self, int side, uint32_t events):
        """After bytes have moved: pass on ends, see whether it is over, and say what to wait for."""
        cdef Side* this = &self._sides[side]
        cdef Side* other = &self._sides[1 - side]
        cdef int i
        for i in range(2):
            # A side that nothing can be sent to may have sent something before, which still passes.
            if self._sides[i].broken and not self._sides[i].ended:
                self._forward(i)
        for i in range(2):
            if self._sides[i].broken and (
                    self._sides[1 - i].broken or (self._sides[i].ended and self._sides[1 - i].waiting_length == 0)):
                self.failed = i
                return -self._sides[i].broken
            if self._sides[i].ended and self._sides[1 - i].waiting_length == 0 and not self._sides[1 - i].shut:
                self._sides[1 - i].shut = True
                shutdown(self._sides[1 - i].fd, SHUT_WR)
        if this.shut and other.shut:
            return _DONE
        if events & (EPOLLHUP | EPOLLERR) and other.waiting_length:
            # Level-triggered, it would be reported for ever.
            self._unregister(side)
            this.parked = True
        if self._register(_DOWNSTREAM) or self._register(_UPSTREAM):
            self.failed = side
            return -errno
        return _NOTHING

    cdef int _forward(self, int source) except? -1:
        """Read from `source` and pass it on. Returns `_NOTHING`, `_LINK` or `_PLAIN`."""
        cdef Side* this = &self._sides[source]
        cdef Side* other = &self._sides[1 - source]
        cdef char* scratch = self._pump._scratch
        cdef Py_ssize_t length, taken
        cdef int _turn
        if source == _DOWNSTREAM:
            if self._sniff and self._look_for_header():
                return _LINK
            if self._sniff:
                return _NOTHING
            if self._ask:
                return _PLAIN
        for _turn in range(READS_PER_TURN):
            if this.ended or other.waiting_length or other.broken:
                return _NOTHING
            length = recv(this.fd, scratch, READ_BYTES, MSG_DONTWAIT)
            if length < 0:
                if errno != EAGAIN and errno != EINTR:
                    this.ended = True
                    this.broken = this.broken or errno
                return _NOTHING
            if length == 0:
                this.ended = True
                if source == _UPSTREAM:
                    this.broken = this.broken or self._upstream_error
                return _NOTHING
            if source == _DOWNSTREAM and this.received == 0:
                self.http = _begins_request(scratch, length)
            this.received += length
            self._pump._received[source] += length
            taken = send(other.fd, scratch, length, MSG_DONTWAIT | MSG_NOSIGNAL)
            if taken < 0:
                if errno != EAGAIN and errno != EINTR:
                    other.broken = errno
                    return _NOTHING
                taken = 0
            if taken < length:
                self._keep(1 - source, scratch + taken, length - taken)
                return _NOTHING
            if length < READ_BYTES:
                return _NOTHING
        return _NOTHING

    cdef int _flush(self, int side):
        """Send what waits for `side`."""
        cdef Side* this = &self._sides[side]
        cdef Py_ssize_t taken
        while this.waiting_length:
            taken = send(this.fd, this.waiting + this.waiting_offset, this.waiting_length, MSG_DONTWAIT | MSG_NOSIGNAL)
            if taken < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    return 0
                this.broken = errno
                break
            this.waiting_offset += taken
            this.waiting_length -= taken
        PyMem_Free(this.waiting)
        this.waiting = NULL
        this.waiting_length = 0
        return 0

    cdef int _keep(self, int side, const char* data, Py_ssize_t length) except -1:
        """Keep bytes that `side` has not taken yet; there are none already."""
        cdef Side* this = &self._sides[side]
        if length == 0:
            return 0
        this.waiting = <char*>PyMem_Malloc(length)
        if this.waiting == NULL:
            raise MemoryError
        memcpy(this.waiting, data, length)
        this.waiting_length = length
        this.waiting_offset = 0
        return 0

    cdef bint _look_for_header(self):
        """Whether a header is there; else `_sniff` says whether more bytes must come before that is known."""
        cdef char* head = self._pump._scratch
        cdef Side* downstream = &self._sides[_DOWNSTREAM]
        cdef int wanted = FIXED_BYTES
        cdef Py_ssize_t length = recv(downstream.fd, head, HEADER_LIMIT_BYTES, MSG_DONTWAIT | MSG_PEEK)
        if length < 0 and (errno == EAGAIN or errno == EINTR):
            return False
        if length <= 0 or memcmp(head, PROXY_SIGNATURE, min(length, <Py_ssize_t>SIGNATURE_BYTES)):
            self._look_no_more()
            return False
        if length >= FIXED_BYTES:
            wanted += (<unsigned char>head[14] << 8) + <unsigned char>head[15]
            if length >= wanted or wanted > HEADER_LIMIT_BYTES:
                return True
        if self._fin_behind:
            self._look_no_more()
        else:
            # Or the same few bytes would be reported over and over.
            setsockopt(downstream.fd, SOL_SOCKET, SO_RCVLOWAT, &wanted, sizeof(wanted))
        return False

    cdef void _look_no_more(self):
        cdef int one = 1
        if self._sniff:
            self._sniff = False
            setsockopt(self._sides[_DOWNSTREAM].fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one))

    cdef int _socket_error(self, int side):
        """The errno that the kernel keeps for this socket, which this takes away; never 0."""
        cdef int failure = 0
        cdef uint32_t size = sizeof(failure)
        getsockopt(self._sides[side].fd, SOL_SOCKET, SO_ERROR, &failure, &size)
        return failure or ECONNRESET

    # -- what to wait for ----------------------------------------------------------------------------------------------

    cdef uint32_t _wanted(self, int side):
        """The events this side should be registered for."""
        cdef Side* this = &self._sides[side]
        cdef Side* other = &self._sides[1 - side]
        cdef uint32_t events = 0
        if self.connecting:
            return EPOLLOUT if side == _UPSTREAM else 0
        if this.waiting_length:
            events |= EPOLLOUT
        if not this.ended and not other.broken and other.waiting_length == 0:
            events |= EPOLLIN
            if self._sniff and side == _DOWNSTREAM:
                events |= EPOLLRDHUP
        return events

    cdef int _register(self, int side):
        """Bring the registration up to date. Returns 0 or -1 with errno set."""
        cdef Side* this = &self._sides[side]
        cdef epoll_event event
        cdef uint32_t events = self._wanted(side)
        cdef int operation
        if this.parked and self._sides[1 - side].waiting_length:
            return 0
        this.parked = False
        if this.registered and events == this.interest:
            return 0
        operation = EPOLL_CTL_MOD if this.registered else EPOLL_CTL_ADD
        memset(&event, 0, sizeof(event))
        event.events = events
        # Objects are aligned, so the lowest bit of the pointer is free to say which side it is.
        event.data.ptr = <void*>(<size_t><PyObject*>self | <size_t>side)
        if epoll_ctl(self._pump.epoll_fd, operation, this.fd, &event):
            return -1
        this.registered = True
        this.interest = events
        return 0

    cdef void _unregister(self, int side):
        cdef epoll_event event
        if self._sides[side].registered:
            memset(&event, 0, sizeof(event))
            epoll_ctl(self._pump.epoll_fd, EPOLL_CTL_DEL, self._sides[side].fd, &event)
            self._sides[side].registered = False
