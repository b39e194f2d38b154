"""Sockets of the framed relay: non-blocking, served in batches from one epoll descriptor, with a queue for what waits.

A task per connection would cost more than the work: a wake-up of Trio is about as dear as parsing, coupling and sending
a request. So a `Channel` calls back when it is readable or has sent everything; what it calls never waits.
"""

import errno as errors
import os
import socket
import sys
import time
from collections import deque

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport EAGAIN, ECONNRESET, EINTR, errno
from libc.stdint cimport uint32_t
from libc.string cimport memset

from gopher._sockets cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLONESHOT, EPOLLOUT,
    MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, SO_ERROR, SOL_SOCKET, close, epoll_create1, epoll_ctl, epoll_event, epoll_wait,
    getsockopt, recv as socket_recv, send as socket_send, shutdown,
)

from gopher.relay.lastword import failure_of, reset

__all__ = ["READ_BYTES", "Channel", "ChannelPump"]

cdef enum:
    _READ_BYTES = 65536
    EVENTS_PER_CALL = 4096
    # A batch that reads requests looks around once more before they go on; traffic that does not stop must not keep the
    # other tasks waiting for ever.
    LOOKS = 5
    # What is sent during a look leaves at its end, up to so much of one channel.
    HELD_BYTES = 16384

READ_BYTES = _READ_BYTES


cdef class ChannelPump:
    """One epoll descriptor and the channels on it."""

    def __cinit__(self):
        self.epoll_fd = self._wake_fd = -1

    def __init__(self, accept=None):
        self._accept = accept
        self._channels = {}
        self._to_close = []
        self._later = deque()
        self._after_look = []
        self._holding = []
        self._events = <epoll_event*>PyMem_Malloc(EVENTS_PER_CALL * sizeof(epoll_event))
        self._scratch = <char*>PyMem_Malloc(_READ_BYTES)
        if self._events == NULL or self._scratch == NULL:
            raise MemoryError
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno, "epoll_create1 failed")
        # Readable from when it is armed to when that has been seen: a batch is then served although nothing has come.
        self._wake_fd = os.eventfd(1, os.EFD_CLOEXEC)
        self._control(EPOLL_CTL_ADD, self._wake_fd, 0)
        self.look_at_clock()

    def __dealloc__(self):
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
        if self._wake_fd >= 0:
            close(self._wake_fd)
        PyMem_Free(self._events)
        PyMem_Free(self._scratch)

    @property
    def open(self):
        """Channels with a socket."""
        return len(self._channels)

    def serve(self):
        """Let all ready channels call back. Returns: how many were ready; the decisions are never any."""
        cdef Py_ssize_t served = 0
        cdef int _turn
        self._serving = True
        try:
            for _turn in range(LOOKS):
                self.look_at_clock()
                served += self._look()
                # Reading from many takes longer than some of the waits that begin now.
                self.look_at_clock()
                self.run_later()
                self._send_held()
                if not self._after_look:
                    break
            else:
                self._wake()
        finally:
            self._serving = False
            for sock, hard in self._to_close:
                _close(sock, hard)
            self._to_close.clear()
        return served, []

    cdef Py_ssize_t _look(self) except -1:
        """Read what has come, on connections that wait to be accepted too if somebody waits for that."""
        cdef list waiting = self._after_look
        cdef Channel channel
        cdef int i, ready
        self._after_look = []
        if waiting and self._accept is not None:
            self._accept()
        ready = epoll_wait(self.epoll_fd, self._events, EVENTS_PER_CALL, 0)
        if ready < 0:
            if errno != EINTR:
                raise OSError(errno, "epoll_wait failed")
            ready = 0
        for i in range(ready):
            channel = self._channels.get(self._events[i].data.fd)
            # It may have been closed by one that was served before it.
            if channel is not None:
                channel.ready(self._events[i].events)
        self.looks += 1
        self._later.extend(waiting)
        return ready

    cdef _send_held(self):
        """Send what was sent during a look. One after the other, so that the first wakes a peer up and the others find
        it awake: to wake it for each, with the work of a request between two, costs more than that work.
        """
        cdef list holding = self._holding
        cdef Channel channel
        self._holding = []
        for channel in holding:
            channel._send_held()

    cdef int _control(self, int operation, int fd, uint32_t interest) except -1:
        cdef epoll_event event
        memset(&event, 0, sizeof(event))
        event.events = interest
        event.data.fd = fd
        if epoll_ctl(self.epoll_fd, operation, fd, &event):
            raise OSError(errno, "epoll_ctl failed")
        return 0

    def _wake(self):
        self._control(EPOLL_CTL_MOD, self._wake_fd, EPOLLIN | EPOLLONESHOT)

    cpdef look_at_clock(self):
        """A turn begins."""
        self.now_s = time.monotonic()

    def later(self, call):
        """Call back at the end of this batch or tick: what happens to one connection may let another go on."""
        self._later.append(call)

    def after_look(self, call):
        """Call back when whatever has come by now, on any connection, has been read."""
        self._after_look.append(call)
        if not self._serving:
            self._wake()

    cpdef run_later(self):
        """Make the calls that are due."""
        while self._later:
            self._later.popleft()()

    def close(self, sock, *, bint hard):
        """Close a removed socket; while serving after the batch, in which its number may come again."""
        if self._serving:
            self._to_close.append((sock, hard))
        else:
            _close(sock, hard)


def _close(sock, hard):
    if hard:
        reset(sock)
    else:
        sock.close()


cdef class Channel:
    """One socket; see the stub."""

    def __init__(self, ChannelPump pump not None, sock, on_readable, on_drained, *, bint connecting=False,
                 bint watched=True):
        self._pump = pump
        self.sock = sock
        self._fd = sock.fileno()
        self._on_readable = on_readable
        self._on_drained = on_drained
        self.connecting = connecting
        self._queue = bytearray()
        self._held = b""
        self.reading = True
        if watched:
            self._interest = EPOLLOUT if connecting else EPOLLIN
        pump._channels[self._fd] = self
        try:
            pump._control(EPOLL_CTL_ADD, self._fd, self._interest)
        except OSError:
            del pump._channels[self._fd]
            raise

    @classmethod
    def dial(cls, ChannelPump pump not None, address, on_readable, on_drained):
        """Start to connect. Raises: OSError, of an attempt that failed at once."""
        sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            failure = sock.connect_ex(_name(address))
            if failure not in (0, errors.EINPROGRESS):
                raise OSError(failure, "connect failed")
            return cls(pump, sock, on_readable, on_drained, connecting=True)
        except BaseException:
            sock.close()
            raise

    @property
    def closed(self):
        """Whether the socket has been closed or given away."""
        return self._fd < 0

    @property
    def failure(self):
        """Why an attempt to connect failed; see `lastword.sentence`."""
        return failure_of(self.error)

    cpdef ready(self, uint32_t events):
        """What epoll says."""
        cdef int failure = 0
        cdef uint32_t size = sizeof(failure)
        if self.connecting:
            if events & (EPOLLERR | EPOLLHUP):
                getsockopt(self._fd, SOL_SOCKET, SO_ERROR, &failure, &size)
                self.error = failure or ECONNRESET
                self._on_readable()
                return
            self.connecting = False
            self._flush()
            self._watch()
            self._on_drained()
            return
        if events & EPOLLOUT and self.queued:
            self._flush()
            if not self.queued:
                self._watch()
                self._on_drained()
        # Broken, it is read from in any case: it would be reported for ever, and brings no more than is in its buffer.
        if events & ~<uint32_t>EPOLLOUT and self._fd >= 0:
            self._on_readable()

    cpdef bytes recv(self):
        """The next bytes; b"" at the end; None if there is nothing now. Raises: OSError, broken."""
        cdef Py_ssize_t received = socket_recv(self._fd, self._pump._scratch, _READ_BYTES, MSG_DONTWAIT)
        if received < 0:
            if errno == EAGAIN or errno == EINTR:
                return None
            raise OSError(errno, os.strerror(errno))
        if received == 0 and self.error:
            raise OSError(self.error, "connection broken")
        return PyBytes_FromStringAndSize(self._pump._scratch, received)

    cpdef send(self, bytes data):
        """Send at the end of this look, or later; outside of a look now, or later."""
        if self.queued == 0 and self._pump._serving and not self.connecting:
            if not self._held:
                self._held = data
                self._pump._holding.append(self)
            else:
                self._held += data
            if PyBytes_GET_SIZE(self._held) > HELD_BYTES:
                self._send_held()
        else:
            self._send(data)

    cdef _send_held(self):
        cdef bytes data = self._held
        if data:
            self._held = b""
            self._send(data)

    cdef _send(self, bytes data):
        cdef Py_ssize_t length = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t sent = 0
        if self.error:
            return
        if self.queued == 0 and not self.connecting:
            sent = socket_send(self._fd, PyBytes_AS_STRING(data), length, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent < 0:
                if errno != EAGAIN and errno != EINTR:
                    # It shows when the channel is read, after whatever came before.
                    self.error = errno
                    return
                sent = 0
            if sent == length:
                return
        self._queue += data[sent:] if sent else data
        self.queued += length - sent
        self._watch()

    cdef _flush(self):
        cdef Py_ssize_t sent
        if self.queued == 0:
            return
        sent = socket_send(self._fd, PyByteArray_AS_STRING(self._queue), self.queued, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if errno == EAGAIN or errno == EINTR:
                return
            self.error = errno
            sent = self.queued
        del self._queue[:sent]
        self.queued -= sent
        if self._shut and self.queued == 0:
            self._send_fin()

    cpdef read(self, bint wanted):
        """Whether to call back for what comes."""
        if wanted != self.reading:
            self.reading = wanted
            self._watch()

    cdef _watch(self):
        cdef uint32_t interest
        if self.connecting or self._fd < 0:
            return
        interest = (EPOLLIN if self.reading else 0) | (EPOLLOUT if self.queued else 0)
        if interest != self._interest:
            self._interest = interest
            self._pump._control(EPOLL_CTL_MOD, self._fd, interest)

    cpdef finish(self):
        """Send FIN after what waits."""
        self._send_held()
        self._shut = True
        if self.queued == 0 and not self.connecting:
            self._send_fin()

    cdef _send_fin(self):
        # Not connected any more: it shows when the channel is read.
        shutdown(self._fd, SHUT_WR)

    def close(self, *, bint hard):
        """Close the socket; `hard`: by RST. What waits is lost."""
        if self._fd >= 0:
            self._pump.close(self.detach()[0], hard=hard)

    def detach(self):
        """Give the socket away, and what waits to be sent."""
        cdef bytes waiting
        self._send_held()
        waiting = bytes(self._queue)
        del self._pump._channels[self._fd]
        self._pump._control(EPOLL_CTL_DEL, self._fd, 0)
        self._fd = -1
        self.connecting = False
        self._queue.clear()
        self.queued = 0
        return self.sock, waiting


def _name(address):
    """As Python's sockets want it."""
    if address.family == socket.AF_INET:
        return address.host, address.port
    return address.host, address.port, 0, int.from_bytes(address.sockaddr[-4:], sys.byteorder)
