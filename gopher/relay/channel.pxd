from libc.stdint cimport uint32_t

from gopher._sockets cimport epoll_event


cdef class ChannelPump:
    cdef readonly int epoll_fd
    cdef readonly int blocked           # always 0: every wait of a channel shows in the epoll descriptor
    cdef readonly long looks
    cdef readonly double now_s
    cdef object _accept
    cdef dict _channels                 # by descriptor
    cdef bint _serving
    cdef list _to_close
    cdef object _later                  # deque of calls
    cdef list _after_look
    cdef list _holding                  # channels with bytes that leave at the end of this look
    cdef int _wake_fd
    cdef epoll_event* _events           # owned
    cdef char* _scratch                 # owned; holds one read until it is as many bytes as came

    cdef Py_ssize_t _look(self) except -1
    cdef _send_held(self)
    cdef int _control(self, int operation, int fd, uint32_t interest) except -1
    cpdef look_at_clock(self)
    cpdef run_later(self)


cdef class Channel:
    cdef readonly object sock
    cdef readonly bint reading
    cdef readonly bint connecting
    cdef readonly Py_ssize_t queued
    cdef public int error
    cdef ChannelPump _pump
    cdef int _fd                        # -1: closed or given away
    cdef uint32_t _interest             # events it is registered for
    cdef object _on_readable
    cdef object _on_drained
    cdef bytearray _queue
    cdef bytes _held                    # leaves at the end of this look
    cdef bint _shut

    cpdef ready(self, uint32_t events)
    cpdef bytes recv(self)
    cpdef send(self, bytes data)
    cdef _send(self, bytes data)
    cdef _send_held(self)
    cpdef read(self, bint wanted)
    cpdef finish(self)
    cdef _flush(self)
    cdef _watch(self)
    cdef _send_fin(self)
