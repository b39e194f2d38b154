# Makes C functions of what every request is taken apart by.

from gopher.http.heads cimport RequestHead
from gopher.relay.aliases cimport KnownValues


cpdef tuple rewrite_request(RequestHead head, bytes content, KnownValues known, dict watched, translate)
cpdef bytes rewrite_cookies(bytes line, translate)
cpdef bytes rewrite_header(bytes name, bytes value, translate)
cpdef bytes rewrite_target(bytes target, translate)
cpdef bint may_hold_values(RequestHead head) except -1
cdef bint _has_watched_place(RequestHead head, dict watched) except -1
cdef dict _rewritten_headers(RequestHead head, translate)
cdef bint _is_plain(RequestHead head, KnownValues known) except -1
cdef bytes _rewrite_path(bytes path, translate)
cdef bytes _rewrite_pairs(bytes text, str place, translate)
cdef bytes _translated(str place, bytes name, bytes raw, translate, bint plus)
cdef bytes _unquote_plus(bytes raw)
cdef tuple _split_url(bytes url)
cdef bytes _media_type(bytes content_type)
