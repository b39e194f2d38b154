# Many upstream sockets served in batches from one epoll descriptor. See _pump.pyx.

from libc.stdint cimport int64_t, uint64_t

from gopher.http.framing cimport HttpFramer, RequestFramer

cdef enum:
    # Half octaves from 2**14 ns (16 us) to 2**35 ns (34 s), and what is beyond.
    LATENCY_FIRST_BIT = 14
    LATENCY_BUCKETS = 44


cdef class Budget:
    cdef readonly int64_t limit         # bytes
    cdef readonly int64_t used          # bytes of memory that what is queued takes now

    cpdef void charge(self, int64_t length) noexcept


cdef class Ledger:
    cdef readonly Budget total          # shared by all upstreams
    cdef public int64_t limit           # bytes of memory for this upstream's queues
    cdef readonly int64_t connection_limit  # queued bytes for one connection
    cdef readonly int64_t queued        # bytes of memory that its queues take now
    cdef readonly int open              # connections with a descriptor
    cdef public int64_t captured        # bytes of the client, as are the next three
    cdef public int64_t delivered
    cdef public int64_t pending
    cdef readonly dict shed             # reason -> bytes
    cdef readonly int64_t established   # connections that came up
    cdef readonly int64_t responses     # bytes read from the upstream and thrown away
    cdef uint64_t[LATENCY_BUCKETS] _latencies   # runs of bytes by their time from the tap to the socket
    cdef int64_t _latency_ns            # sum of these times

    cdef void _note_latency(self, int64_t captured_ns) noexcept

    cpdef void add_shed(self, str reason, int64_t length)


cdef class Pump:
    cdef readonly int epoll_fd
    cdef readonly int open              # connections with a descriptor
    cdef readonly int blocked           # connections with bytes that their socket refused
    cdef public int64_t captured_ns     # when the bytes that are being written were captured, since 1970; 0: unknown
    cdef char* _scratch                 # owned; answers are read into it and forgotten
    cdef public bint holding            # connections whose caller writes next are made by `dial_held`
    cdef list _held                     # these connections
    cdef list _new                      # connections that `serve` has not looked at and that are not registered
    cdef int _bell_fd                   # makes the pump readable when there are some

    cdef int _announce(self, Connection connection) except -1


cdef class Queue:
    cdef list _items                    # the oldest is at _first; before it are those that were dropped, as None
    cdef Py_ssize_t _first

    cpdef append(self, item)
    cpdef oldest(self)
    cpdef drop_oldest(self)


cdef class _Waiting:
    cdef bytes data
    cdef Py_ssize_t overhead            # bytes at its beginning that are not the client's
    cdef int64_t captured_ns


cdef class Outlet:
    cdef public int64_t sent            # the client's bytes accepted so far
    cdef public Py_ssize_t queued       # bytes that wait, the client's and others
    cdef public bint closed             # there is no descriptor: not dialled yet, or hung up

    cpdef int write(self, data) except? -1
    cpdef int64_t unaccepted(self) except -1
    cpdef hang_up(self, bint hard)
    cpdef int64_t abandon(self, str reason, int64_t unaccepted=*) except -1


cdef class Connection(Outlet):
    cdef Pump _pump
    cdef readonly Ledger ledger
    cdef readonly object owner          # whose stream this is; the pump's user finds its way back by it
    cdef RequestFramer _requests        # borrowed state: what has been asked on this stream
    cdef HttpFramer _responses          # what has been answered on this connection
    cdef Queue _queue                   # of _Waiting: what the socket has not taken; None while nothing ever waited
    cdef Py_ssize_t _head               # bytes of the oldest that it has taken
    cdef Py_ssize_t _pending            # the client's bytes among `queued`
    cdef Py_ssize_t _memory             # what _queue takes, bytes
    cdef readonly int64_t answered      # bytes read
    cdef uint64_t _base                 # index of the first request on this connection
    cdef int _fd
    cdef readonly bint connecting       # the upstream has not accepted the connection yet
    cdef bytes _address                 # packed sockaddr
    cdef bint _held                     # there is a socket that has not been told to connect
    cdef bint _registered               # with the pump's epoll descriptor
    cdef bint _wants_write              # for EPOLLOUT, too
    cdef bint _lazy                     # reported only when much has been answered
    cdef bint _half_closed
    cdef int _sends                     # 0, 1, or 2 for more
    cdef readonly bint finishing
    cdef public bint reset_at_end       # the caller's: how to close when finished
    cdef public int attempts_left       # the caller's: addresses not tried yet
    cdef public double connect_by_s     # the caller's: its time-outs
    cdef public double linger_until_s

    cdef int _watch(self, bint write)
    cdef int _connect(self)
    cdef int _start(self)
    cdef void _connected(self) noexcept
    cdef int _first_look(self)
    cdef void _before_send(self) noexcept
    cdef void _append(self, bytes data, Py_ssize_t overhead, Py_ssize_t taken)
    cdef void _count_memory(self, Py_ssize_t length) noexcept
    cdef void _wake_at(self, int length)
    cdef int _flush(self)
    cdef int _drain(self)
    cdef int _finish_step(self)
    cdef int _ready(self, unsigned int events)
    cdef int _write(self, data, Py_ssize_t overhead)
    cpdef int dial(self, int family, bytes address, bint write_follows=*)
    cpdef int finish(self)
