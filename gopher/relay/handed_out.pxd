# Makes an extension type of ResponseReader, which every answer is shown to.

from gopher.http.heads cimport ResponseHead


cdef class ResponseReader:
    cdef frozenset _cookie_names
    cdef bint _every_cookie
    cdef bint _reads_cookies
    cdef list _header_rules
    cdef list _location_rules
    cdef list _url_rules
    cdef list _patterns
    cdef list _json_rules
    cdef list _page_rules
    cdef bint _reads_bodies

    cpdef bint needs_body(self, ResponseHead head) except -1
    cpdef read_head(self, ResponseHead head)
    cpdef read_rest(self, ResponseHead head, bytes content)
    cdef _read_body(self, ResponseHead head, bytes content, found)


cdef _put(found, rule, values)
cdef _decoded(bytes content, bytes coding)
