# What the pump and the relay's tunnels ask of the system: sockets and epoll, as the headers of Linux declare them.

from libc.stdint cimport uint32_t, uint64_t

from gopher._runs cimport iovec

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void* ptr
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout)
    enum: EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
    enum: EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET, EPOLLONESHOT

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int count, int flags)
    int eventfd_write(int fd, uint64_t value)
    enum: EFD_CLOEXEC, EFD_NONBLOCK

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    struct linger:
        int l_onoff
        int l_linger
    int socket(int domain, int type, int protocol)
    int connect(int fd, const sockaddr* address, uint32_t length)
    int setsockopt(int fd, int level, int name, const void* value, uint32_t length)
    int getsockopt(int fd, int level, int name, void* value, uint32_t* length)
    int shutdown(int fd, int how)
    Py_ssize_t send(int fd, const void* data, size_t length, int flags)
    Py_ssize_t sendmsg(int fd, const msghdr* message, int flags)
    Py_ssize_t recv(int fd, void* data, size_t length, int flags)
    enum: SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, SOL_SOCKET, SO_LINGER, SO_ERROR, SO_RCVLOWAT, SHUT_WR
    enum: MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC

cdef extern from "<netinet/in.h>" nogil:
    enum: IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_NODELAY

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<linux/sockios.h>" nogil:
    enum: SIOCOUTQ

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
