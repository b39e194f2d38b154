"""Where clients use values: the parsed positions of requests.

Each `rewrite_*` function takes one part of a request apart, shows every value in it, decoded, to `translate`, and puts
back what `translate` returns, encoded as the old value was. All other bytes stay as they are, and a part in which
nothing was translated is returned itself. What cannot be parsed is left alone.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from gopher.http.heads import RequestHead
    from gopher.relay.aliases import KnownValues

    # (place, name, decoded value) -> the new decoded value, or None to leave it
    Translate = Callable[["Place", bytes, bytes], bytes | None]

__all__ = [
    "MAX_BODY_BYTES",
    "Place",
    "bearer_offset",
    "may_hold_values",
    "rewrite_body",
    "rewrite_cookies",
    "rewrite_form",
    "rewrite_header",
    "rewrite_json",
    "rewrite_multipart",
    "rewrite_request",
    "rewrite_target",
    "url_parameters",
    "url_path",
]

MAX_BODY_BYTES: Final = 1 << 20
"""Bodies longer than this are not looked at, requests and responses alike."""


Place = Literal["cookie", "header", "path", "query", "field"]
"""What kind of position a value stands in. `field`: of a form, or a leaf of a JSON document."""

_BEARER: Final = (b"Bearer ", b"bearer ")  # RFC 6750
# Headers that frame or route the message, or say what it is: a number in them is never a session value.
_NO_VALUES: Final = frozenset(
    b"accept accept-encoding accept-language connection content-encoding content-length content-type cookie date "
    b"expect host keep-alive trailer transfer-encoding upgrade user-agent".split()
)
_FORM_TYPES: Final = frozenset({b"application/x-www-form-urlencoded", b"multipart/form-data"})
_UNFIT_FOR_HEADER: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]|^[ \t]|[ \t]$")
_UNFIT_FOR_COOKIE: Final = re.compile(rb"[\x00-\x20\x7f;]")
_NUMBER: Final = rb"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?"
_STRING: Final = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
# A leaf with the key before it, or a key whose value is an object or array (group 2 is then missing), or a leaf alone.
_LEAF: Final = re.compile(
    rb"(?s)(?:(" + _STRING + rb")[ \t\r\n]*:[ \t\r\n]*)(" + _STRING + rb"|" + _NUMBER + rb")?"
    rb"|(" + _STRING + rb"|" + _NUMBER + rb")"
)
_WHOLE_NUMBER: Final = re.compile(_NUMBER)
_BOUNDARY: Final = re.compile(rb'(?i);\s*boundary=(?:"([^"]+)"|([^\s;"]+))')
_FIELD_NAME: Final = re.compile(
    rb'(?i)^content-disposition:\s*form-data\s*;(?![^\r]*filename\*?=)[^\r]*?\bname="([^"]*)"'
)
_LOWER_ESCAPE: Final = re.compile(rb"%(?:[a-f]|.[a-f])")
_ESCAPE: Final = re.compile(rb"%[0-9A-F]{2}")


def bearer_offset(value: bytes) -> int:
    """Where the token of a header value begins: after `Bearer `, or at 0."""
    return 7 if value.startswith(_BEARER) else 0


def may_hold_values(head: RequestHead) -> bool:
    """Whether the request has a body that `rewrite_body` reads: form or JSON, not coded, not too long."""
    headers = head.headers
    kind = _media_type(headers.get(b"content-type") or b"")
    if (kind not in _FORM_TYPES and b"json" not in kind) or headers.get(b"content-encoding") is not None:
        return False
    length = headers.get(b"content-length")
    return length is None or not length.isdigit() or int(length) <= MAX_BODY_BYTES


def rewrite_request(
    head: RequestHead,
    content: bytes | None,
    known: KnownValues,
    watched: Mapping[Place, set[bytes]],
    translate: Translate,
) -> tuple[RequestHead | None, bytes | None]:
    """Rewrite every position of a request.

    Args:
        head: stays as it is.
        content: the body without framing; None if there is none or it is not to be looked at.
        known: values that `translate` may have an answer for.
        watched: names whose values `translate` wants to see, known or not.
        translate: see the module's docstring.

    Returns:
        A changed copy of the head, or None if nothing at all was changed; and the changed body, or None.
    """
    headers: dict[bytes, list[bytes]] = {}
    lines = head.headers.get_all(b"cookie")
    if lines:
        new_lines = [rewrite_cookies(line, translate) for line in lines]
        if new_lines != lines:
            headers[b"cookie"] = new_lines
    target = new_target = head.target
    if _has_watched_place(head, watched) or not _is_plain(head, known):
        headers.update(_rewritten_headers(head, translate))
        new_target = rewrite_target(target, translate)
    new_content = content
    if content and len(content) <= MAX_BODY_BYTES and may_hold_values(head):
        new_content = rewrite_body(content, head.headers.get(b"content-type") or b"", translate)
    if not headers and new_target is target and new_content is content:
        return None, None
    edited = head.copy()
    if new_target is not target:
        edited.target = new_target
    for name, values in headers.items():
        edited.headers.set_all(name, values)
    return edited, None if new_content is content else new_content


def _has_watched_place(head: RequestHead, watched: Mapping[Place, set[bytes]]) -> bool:
    """Whether a value may stand under a watched name, in the target or in a header other than Cookie."""
    for name in watched["header"]:
        if name in head.headers:
            return True
    target = head.target
    if watched["query"] and (b"?" in target or b";" in target):
        return True
    named = watched["path"]
    return bool(named) and not named.isdisjoint(target.split(b"/"))


def _rewritten_headers(head: RequestHead, translate: Translate) -> dict[bytes, list[bytes]]:
    """All values of each header of which one was changed, by name in lower case."""
    values: dict[bytes, list[bytes]] = {}
    changed = set()
    for name, value in head.headers:
        lower = name.lower()
        if lower not in _NO_VALUES:
            new = rewrite_header(lower, value, translate)
            values.setdefault(lower, []).append(new)
            if new is not value:
                changed.add(lower)
    return {name: values[name] for name in changed}


def _is_plain(head: RequestHead, known: KnownValues) -> bool:
    """Whether the head, but for its cookies, surely holds no known value. Of most requests that is so, and asking costs
    a fraction of taking it apart.
    """
    shortest, target = known.shortest, head.target
    values = head.headers.long_values(shortest)
    # Escapes make a value longer, never shorter.
    if len(target) > shortest:
        if b"%" in target or b"+" in target or b";" in target:
            return False
        path, _, query = target.partition(b"?")
        values += path.split(b"/")
        if query:
            values += [pair.split(b"=", 1)[-1] for pair in query.split(b"&")]
    return known.none_of(values)


def rewrite_cookies(line: bytes, translate: Translate) -> bytes:
    """The value of a Cookie header: `a=b; c="d"`. Cookies are compared as they stand; quotes are no part of them."""
    changed = False
    pieces = line.split(b";")
    for index, piece in enumerate(pieces):
        name, equals, raw = piece.partition(b"=")
        if not equals:
            continue
        value = raw.strip()
        if value[:1] == b'"' == value[-1:] and len(value) > 1:
            value = value[1:-1]
        new = translate("cookie", name.strip(), value)
        if new is not None and (new.isalnum() or not _UNFIT_FOR_COOKIE.search(new)):
            # What is around the value is blanks and quotes: the value cannot begin earlier.
            pieces[index] = name + b"=" + (new if raw == value else raw.replace(value, new, 1))
            changed = True
    return b";".join(pieces) if changed else line


def rewrite_header(name: bytes, value: bytes, translate: Translate) -> bytes:
    """The value of any other header, whole or after `Bearer `; `name` in lower case."""
    offset = bearer_offset(value)
    new = translate("header", name, value[offset:])
    return value if new is None or _UNFIT_FOR_HEADER.search(new) else value[:offset] + new


def rewrite_target(target: bytes, translate: Translate) -> bytes:
    """Path segments, their `;name=value` parameters, and the query of a request target, origin or absolute form."""
    prefix, path, mark, query = _split_url(target)
    new_path = _rewrite_path(path, translate)
    new_query = _rewrite_pairs(query, "query", translate) if query else query
    return target if new_path is path and new_query is query else prefix + new_path + mark + new_query


def rewrite_form(content: bytes, translate: Translate) -> bytes:
    """A body of type application/x-www-form-urlencoded."""
    return _rewrite_pairs(content, "field", translate)


def rewrite_body(content: bytes, content_type: bytes, translate: Translate) -> bytes:
    """A body by its Content-Type: urlencoded form, multipart form, JSON; any other comes back as it is."""
    kind = _media_type(content_type)
    if kind == b"application/x-www-form-urlencoded":
        return rewrite_form(content, translate)
    if kind == b"multipart/form-data":
        boundary = _BOUNDARY.search(content_type)
        return rewrite_multipart(content, boundary[1] or boundary[2], translate) if boundary else content
    return rewrite_json(content, translate) if b"json" in kind else content


def rewrite_multipart(content: bytes, boundary: bytes, translate: Translate) -> bytes:
    """A body of type multipart/form-data (RFC 7578): the fields of it, not the files."""
    delimiter = b"--" + boundary
    changed = False
    parts = (b"\r\n" + content).split(b"\r\n" + delimiter)
    for index, part in enumerate(parts[1:], 1):
        head, blank, value = part.partition(b"\r\n\r\n")
        names = [match[1] for line in head.split(b"\r\n") if (match := _FIELD_NAME.match(line))]
        if not blank or not names:
            continue
        new = translate("field", names[0], value)
        if new is not None and delimiter not in new:
            parts[index] = head + blank + new
            changed = True
    return (b"\r\n" + delimiter).join(parts)[2:] if changed else content


def rewrite_json(content: bytes, translate: Translate) -> bytes:
    """The strings and numbers of a JSON document in UTF-8, not its keys. A string stays one; so does a number, unless
    the new value is none.
    """
    try:
        # To be sure that what follows finds leaves, and not what looks like them.
        json.loads(content.decode())
    except (ValueError, RecursionError):
        return content
    pieces = []
    done = 0
    for match in _LEAF.finditer(content):
        group = 2 if match[2] is not None else 3
        raw: bytes | None = match[group]
        if raw is None:
            continue
        is_string = raw[0] == 0x22
        new = translate("field", _json_text(match[1]) if match[1] else b"", _json_text(raw) if is_string else raw)
        encoded = None if new is None else _json_encoded(new, raw if is_string else None)
        if encoded is not None:
            pieces += [content[done : match.start(group)], encoded]
            done = match.end(group)
    return b"".join([*pieces, content[done:]]) if pieces else content


def url_path(url: bytes) -> bytes:
    """The path of a URL, relative or not, without its query."""
    return _split_link(url)[1]


def url_parameters(url: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and values, decoded, of a URL's query and of its path's `;name=value` parameters."""
    _, path, _, query = _split_link(url)
    for pair in query.split(b"&"):
        name, equals, value = pair.partition(b"=")
        if equals:
            yield _unquote_plus(name), _unquote_plus(value)
    if b";" in path:
        for segment in path.split(b"/"):
            for parameter in segment.split(b";")[1:]:
                name, equals, value = parameter.partition(b"=")
                if equals:
                    yield name, unquote_to_bytes(value)


def _media_type(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


def _split_link(url: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    # In a link, unlike in a request, two slashes begin an authority: RFC 3986 section 4.2.
    return _split_url((b"http:" + url if url.startswith(b"//") else url).partition(b"#")[0])


def _split_url(url: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Scheme with authority, path, "?" or nothing, query."""
    rest, mark, query = url.partition(b"?")
    if rest.startswith(b"/"):
        return b"", rest, mark, query
    scheme, separator, _ = rest.partition(b"://")
    if not separator or b"/" in scheme:
        return b"", rest, mark, query
    begin = rest.find(b"/", len(scheme) + 3)
    begin = len(rest) if begin < 0 else begin
    return rest[:begin], rest[begin:], mark, query


def _rewrite_path(path: bytes, translate: Translate) -> bytes:
    segments = path.split(b"/")
    changed = False
    previous = b""
    for index, segment in enumerate(segments):
        if not segment:
            continue
        value, *parameters = segment.split(b";") if b";" in segment else (segment,)
        new_value = _translated("path", previous, value, translate, False)
        previous = value
        for number, parameter in enumerate(parameters):
            name, equals, raw = parameter.partition(b"=")
            if equals:
                parameters[number] = name + equals + _translated("query", name, raw, translate, False)
        if parameters:
            new_value = b";".join((new_value, *parameters))
        if new_value != segment:
            segments[index] = new_value
            changed = True
    return b"/".join(segments) if changed else path


def _rewrite_pairs(text: bytes, place: Place, translate: Translate) -> bytes:
    pairs = text.split(b"&")
    changed = False
    for index, pair in enumerate(pairs):
        name, equals, raw = pair.partition(b"=")
        if not equals:
            name, raw = b"", pair  # ?token: a value alone
        new = _translated(place, _unquote_plus(name), raw, translate, True)
        if new is not raw:
            pairs[index] = name + equals + new
            changed = True
    return b"&".join(pairs) if changed else text


def _translated(place: Place, name: bytes, raw: bytes, translate: Translate, plus: bool) -> bytes:
    value = raw
    if b"%" in raw or (plus and b"+" in raw):
        value = _unquote_plus(raw) if plus else unquote_to_bytes(raw)
    new = translate(place, name, value)
    return raw if new is None else _percent_encoded(new, raw, plus=plus)


def _unquote_plus(raw: bytes) -> bytes:
    return unquote_to_bytes(raw.replace(b"+", b" ")) if b"%" in raw or b"+" in raw else raw


def _percent_encoded(value: bytes, raw: bytes, plus: bool) -> bytes:
    """A value in the style of `raw`, which stood in its place: what was literal there may be literal here, a space is a
    plus if it was one or could have been, and hexadecimal digits keep their case.
    """
    literal = bytes(byte for byte in _ESCAPED.sub(b"", raw) if byte < 0x80 and byte not in b"%+ ")
    if not plus and b"+" in raw:
        literal += b"+"
    encoded = quote_from_bytes(value, safe=literal).encode()
    if plus and b"%20" not in raw:
        encoded = encoded.replace(b"%20", b"+")
    if _LOWER_ESCAPE.search(raw):
        encoded = _ESCAPE.sub(lambda match: match[0].lower(), encoded)
    return encoded


_ESCAPED: Final = re.compile(rb"%[0-9A-Fa-f]{2}")


def _json_text(raw: bytes) -> bytes:
    if b"\\" not in raw:
        return raw[1:-1]
    text: str = json.loads(raw)
    return text.encode(errors="surrogatepass")


def _json_encoded(value: bytes, raw: bytes | None) -> bytes | None:
    """The value as a string in the style of `raw`; without one, as a number if it is one."""
    if raw is None and _WHOLE_NUMBER.fullmatch(value):
        return value
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    encoded = json.dumps(text, ensure_ascii=raw is not None and b"\\u" in raw).encode()
    return encoded.replace(b"/", b"\\/") if raw is not None and b"\\/" in raw else encoded
