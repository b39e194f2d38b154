"""The head of an HTTP/1 message, as the bytes it came in: read when asked, remade where edited.

Heads are made by `gopher.http.messages`, which has checked every line; so lines and names are found here by the next LF
and colon, and nothing is kept but the bytes. What an edit puts in is checked. Sans-I/O.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from gopher.http._grammar cimport TARGET, TOKEN, has_control, is_target, same, span, strip
from gopher.http._octets cimport COLON, LF, find, is_blank

from gopher.errors import LocalProtocolError

__all__ = ["Headers", "RequestHead", "ResponseHead"]


cdef void _locate(const uint8_t* p, Py_ssize_t at, Py_ssize_t name_length, Py_ssize_t end, Field* field) noexcept nogil:
    cdef const uint8_t* value = p + at + name_length + 1
    cdef Py_ssize_t length = end - 2 - (at + name_length + 1)
    strip(&value, &length)
    field.begin = at
    field.value = value - p
    field.value_end = field.value + length
    field.end = end


cdef inline bytes _cut(bytes whole, Py_ssize_t begin, Py_ssize_t end):
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(whole) + begin, end - begin)


cdef bytes _checked_name(bytes name):
    if not name or span(<const uint8_t*>PyBytes_AS_STRING(name), len(name), TOKEN) != len(name):
        raise LocalProtocolError("a header name has bytes that no name may have")
    return name


cdef bytes _checked_value(bytes value):
    cdef Py_ssize_t n = len(value)
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(value)
    if has_control(p, n) or (n and (is_blank(p[0]) or is_blank(p[n - 1]))):
        raise LocalProtocolError("a header value has control bytes, or white space around it")
    return value


cdef inline bint _is_bearer(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    return n > 7 and (p[0] == c"B" or p[0] == c"b") and memcmp(p + 1, b"earer ", 6) == 0


cdef class Headers:
    """The header lines of one head, in order, with their case and spacing."""

    def __cinit__(self):
        self.block = b"\r\n"

    cdef bint seek(self, bytes name, Py_ssize_t at, Field* field) noexcept:
        """The first field called `name` that begins at `at` or later."""
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(self.block)
        cdef const uint8_t* wanted = <const uint8_t*>PyBytes_AS_STRING(name)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(self.block) - 2
        cdef Py_ssize_t length = PyBytes_GET_SIZE(name)
        cdef Py_ssize_t end
        if find(wanted, wanted + length, COLON) != NULL:
            return False  # it could match a name and some of the value
        while at < n:
            end = find(p + at, p + n, LF) + 1 - p
            if at + length < end and p[at + length] == COLON and same(p + at, wanted, length):
                _locate(p, at, length, end, field)
                return True
            at = end
        return False

    def __iter__(self):
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(self.block)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(self.block) - 2
        cdef Py_ssize_t name_length
        cdef Field field
        cdef list pairs = []
        field.end = 0
        while field.end < n:
            name_length = find(p + field.end, p + n, COLON) - p - field.end
            _locate(p, field.end, name_length, find(p + field.end, p + n, LF) + 1 - p, &field)
            pairs.append((p[field.begin:field.begin + name_length], p[field.value:field.value_end]))
        return iter(pairs)

    def __len__(self):
        return self.block.count(b"\n") - 1

    def __contains__(self, bytes name not None):
        cdef Field field
        return self.seek(name, 0, &field)

    cpdef bytes get(self, bytes name):
        cdef Field field
        if name is None:
            raise TypeError("name must be bytes")
        if self.seek(name, 0, &field):
            return _cut(self.block, field.value, field.value_end)
        return None

    cpdef list get_all(self, bytes name):
        cdef Field field
        cdef list values = []
        if name is None:
            raise TypeError("name must be bytes")
        field.end = 0
        while self.seek(name, field.end, &field):
            values.append(_cut(self.block, field.value, field.value_end))
        return values

    cpdef list long_values(self, Py_ssize_t shortest):
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(self.block)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(self.block) - 2
        cdef Field field
        cdef list values = []
        field.end = 0
        while field.end < n:
            _locate(p, field.end, find(p + field.end, p + n, COLON) - p - field.end,
                    find(p + field.end, p + n, LF) + 1 - p, &field)
            if field.value_end - field.value >= shortest:
                values.append(_cut(self.block, field.value, field.value_end))
                if _is_bearer(p + field.value, field.value_end - field.value):
                    values.append(_cut(self.block, field.value + 7, field.value_end))
        return values

    def set_all(self, bytes name not None, values):
        cdef bytes block = self.block
        cdef list wanted = [_checked_value(value) for value in values]
        cdef list pieces = []
        cdef Py_ssize_t kept = 0    # `pieces` say what comes before it
        cdef Py_ssize_t k = 0
        cdef Field field
        _checked_name(name)
        field.end = 0
        while self.seek(name, field.end, &field):
            if k < len(wanted):
                pieces.append(block[kept:field.value])
                pieces.append(wanted[k])
                kept = field.value_end
                k += 1
            else:
                pieces.append(block[kept:field.begin])
                kept = field.end
        pieces.append(block[kept:len(block) - 2])
        for value in wanted[k:]:
            pieces.append(b"%b: %b\r\n" % (name, value))
        pieces.append(b"\r\n")
        self.block = b"".join(pieces)

    def set(self, bytes name not None, bytes value not None):
        self.set_all(name, (value,))

    def add(self, bytes name not None, bytes value not None):
        before = self.block[:len(self.block) - 2]
        self.block = b"%b%b: %b\r\n\r\n" % (before, _checked_name(name), _checked_value(value))

    def remove(self, bytes name not None):
        self.set_all(name, ())


cdef class RequestHead:
    """A request line and its headers."""

    @property
    def method(self):
        return self.line[self.begin:self.method_end]

    @method.setter
    def method(self, bytes method not None):
        self.remake(method, self.target)

    @property
    def target(self):
        return self.line[self.method_end + 1:len(self.line) - 11]

    @target.setter
    def target(self, bytes target not None):
        self.remake(self.method, target)

    @property
    def version(self):
        return self.line[len(self.line) - 5:len(self.line) - 2]

    @property
    def upgrade(self):
        return b"upgrade" in self.headers

    cdef int remake(self, bytes method, bytes target) except -1:
        cdef const uint8_t* m = <const uint8_t*>PyBytes_AS_STRING(method)
        cdef const uint8_t* t = <const uint8_t*>PyBytes_AS_STRING(target)
        if not method or span(m, len(method), TOKEN) != len(method):
            raise LocalProtocolError("not a method")
        if span(t, len(target), TARGET) != len(target) or not is_target(m, len(method), t, len(target)):
            raise LocalProtocolError("not a target for this method")
        self.line = b"%b%b %b HTTP/%b\r\n" % (self.line[:self.begin], method, target, self.version)
        self.method_end = self.begin + len(method)
        return 0

    def copy(self):
        cdef RequestHead other = RequestHead.__new__(RequestHead)
        other.line = self.line
        other.begin = self.begin
        other.method_end = self.method_end
        other.headers = make_headers(self.headers.block)
        return other

    def to_bytes(self):
        return self.line + self.headers.block


cdef class ResponseHead:
    """A status line and its headers."""

    @property
    def version(self):
        return self.line[5:8]

    @property
    def status(self):
        return self.code

    @status.setter
    def status(self, int status):
        if not 100 <= status <= 999:
            raise LocalProtocolError("a status has three digits")
        self.remake(status, self.reason)

    @property
    def reason(self):
        return self.line[13:len(self.line) - 2]

    @reason.setter
    def reason(self, bytes reason not None):
        if has_control(<const uint8_t*>PyBytes_AS_STRING(reason), len(reason)):
            raise LocalProtocolError("a reason has no control bytes")
        self.remake(self.code, reason)

    cdef int remake(self, int status, bytes reason) except -1:
        self.line = b"HTTP/%b %d %b\r\n" % (self.version, status, reason)
        self.code = status
        return 0

    def copy(self):
        cdef ResponseHead other = ResponseHead.__new__(ResponseHead)
        other.line = self.line
        other.code = self.code
        other.headers = make_headers(self.headers.block)
        return other

    def to_bytes(self):
        return self.line + self.headers.block
