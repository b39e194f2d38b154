"""Where servers hand values out: responses in, values by structural place out.

`ResponseReader` turns the rules into one look at each response. It never changes anything, never buffers, and looks at
bodies only if a rule needs it: at most `MAX_BODY_BYTES` of them, gzip and deflate decoded within the same bound.
"""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from html.parser import HTMLParser
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from gopher.relay.aliases import MAX_VALUE_BYTES
from gopher.relay.places import MAX_BODY_BYTES, bearer_offset, url_parameters, url_path
from gopher.relay.rules import BODY_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gopher.http.heads import ResponseHead
    from gopher.relay.rules import Rule

__all__ = ["NOTHING", "HandedOut", "ResponseReader", "parse_set_cookie"]

# No server's clock is before this program was written, so an earlier `Expires` is past even where `Date` is missing.
_EARLIEST_NOW_S: Final = 1_700_000_000

_MAX_VALUES: Final = 64  # of one rule in one response: so that a careless regular expression is no memory leak
_MAX_TAGS: Final = 256  # that are parsed in one page: 2 ms
_SESSIONLESS_TYPES: Final = re.compile(rb"(?i)(?:image|video|audio|font)/")
_URL_ATTRIBUTES: Final = frozenset({"href", "action", "src", "formaction"})
# A comment; an element whose content is no markup; or a start tag and the text up to the next one. The parser of the
# standard library reads 3 MB/s, this 30: so it gets only the tags that a rule's name stands in. A "<" within a tag's
# attributes ends the piece: browsers and frameworks write it &lt; there.
_PIECE: Final = re.compile(rb"(?is)<!--.*?(?:-->|\Z)|<(script|style|textarea|title)\b.*?(?:</\1|\Z)|<[a-z][^<]*")
# Of zlib, by content coding. RFC 9110 section 8.4.1.2 notes servers that send "deflate" without the zlib header.
_WINDOWS: Final = {b"gzip": (31,), b"x-gzip": (31,), b"deflate": (15, -15)}
_MAX_MEMBERS: Final = 1024  # each costs a new decoder
_CONTAINER: Final = re.compile(rb'\s*[{\["]')  # a JSON document in which a pointer can lead somewhere
# The encodings that browsers know and in which markup is ASCII, by their usual names (encoding.spec.whatwg.org); a page
# in another one is read as UTF-8. Python has many more codecs: some raise whatever is asked for (idna, undefined), some
# take minutes (punycode), and the answer is anybody's.
_CHARSET: Final = re.compile(
    rb"(?i)charset=[\"']?(us-ascii|iso-8859-\d+|latin-?1|windows-\d+|koi8-[ru]|ibm866|macintosh|gbk|gb2312|gb18030|big5"
    rb"|euc-jp|iso-2022-jp|shift_jis|euc-kr)(?![\w-])"
)


@dataclass(slots=True)
class HandedOut:
    """The values of one response. Without a repr: they are secrets."""

    cookies: dict[bytes, bytes] = field(default_factory=dict, repr=False)
    """By name, as they stand in Set-Cookie, without quotes; empty if the response deletes the cookie."""
    values: dict[Rule, list[bytes]] = field(default_factory=dict, repr=False)
    """By rule, decoded, each value once, in the order of the response."""
    unread: bool = False
    """A rule needed the body, and its coding or size did not allow it."""


NOTHING: Final = HandedOut()
"""Most responses hand out nothing: they share this one. Never changed."""


class ResponseReader:
    """The rules, ready to be applied to responses.

    Args:
        rules: what to look for.
        auto: every cookie counts, not only those of rules.
    """

    def __init__(self, rules: Sequence[Rule], *, auto: bool) -> None:
        self._cookie_names = frozenset(rule.name for rule in rules if rule.kind == "cookie")
        self._every_cookie = auto
        self._reads_cookies = auto or bool(self._cookie_names)
        self._header_rules = [rule for rule in rules if rule.kind == "header"]
        self._location_rules = [rule for rule in rules if rule.kind == "location"]
        # query: Location is one of the URLs of a response; regex: the head is looked at too.
        self._url_rules = [rule for rule in rules if rule.kind == "query"]
        self._patterns = [(rule, rule.pattern) for rule in rules if rule.pattern is not None]
        self._json_rules = [rule for rule in rules if rule.kind == "json"]
        self._page_rules = [(rule, rule.name) for rule in rules if rule.kind in {"form", "query"}]
        self._reads_bodies = any(rule.kind in BODY_KINDS for rule in rules)

    def needs_body(self, head: ResponseHead) -> bool:
        """Whether `read_rest` wants the body of this response."""
        if not self._reads_bodies or head.status < 200:
            return False
        headers = head.headers
        if not self._patterns and _SESSIONLESS_TYPES.match(headers.get(b"content-type") or b""):
            return False
        length = headers.get(b"content-length")
        return length is None or not length.isdigit() or int(length) <= MAX_BODY_BYTES

    def read_head(self, head: ResponseHead) -> HandedOut:
        """What the rules that need nothing but the head find; `NOTHING` if that is nothing."""
        headers = head.headers
        found = NOTHING
        if self._reads_cookies:
            for line in headers.get_all(b"set-cookie"):
                name, _, _ = line.partition(b"=")
                if self._every_cookie or name.strip() in self._cookie_names:
                    name, value = parse_set_cookie(line, headers.get(b"date"))
                    # A cookie that is set, and deleted under another path as well, is there.
                    if name and len(value) <= MAX_VALUE_BYTES and (value or name not in found.cookies):
                        found = HandedOut() if found is NOTHING else found
                        found.cookies[name] = value
        for rule in self._header_rules:
            values = headers.get_all(rule.name)
            if values:
                found = _put(found, rule, [value[bearer_offset(value) :] for value in values])
        location = headers.get(b"location") if self._location_rules else None
        if location is not None:
            for rule in self._location_rules:
                if rule.template:
                    found = _put(found, rule, _template_value(rule.template, location))
                else:
                    found = _put(found, rule, _parameters(location, rule.name))
        return found

    def read_rest(self, head: ResponseHead, content: bytes | None) -> HandedOut:
        """What the other rules find, which look at bodies; `NOTHING` if that is nothing.

        Args:
            head: of the response.
            content: its body, without framing; None if it is too long or not wanted.
        """
        if not self._reads_bodies:
            return NOTHING
        found = NOTHING
        location = head.headers.get(b"location") if self._url_rules else None
        if location is not None:
            for rule in self._url_rules:
                found = _put(found, rule, _parameters(location, rule.name))
        for rule, pattern in self._patterns:
            found = _put_matches(found, rule, pattern, head.to_bytes())
        if content:
            return self._read_body(head, content, found)
        unread = content is None and not self.needs_body(head)
        if unread and not _SESSIONLESS_TYPES.match(head.headers.get(b"content-type") or b""):
            return _unread(found)
        return found

    def _read_body(self, head: ResponseHead, content: bytes, found: HandedOut) -> HandedOut:
        body = _decoded(content, head.headers.get(b"content-encoding"))
        if body is None:
            return _unread(found)
        for rule, pattern in self._patterns:
            found = _put_matches(found, rule, pattern, body)
        if self._json_rules and _CONTAINER.match(body):
            document = _parsed(body)
            for rule in self._json_rules:
                found = _put(found, rule, _leaf(document, rule.pointer))
        page_rules = [rule for rule, name in self._page_rules if name in body]
        if page_rules and b"<" in body:
            found = _read_page(body, head.headers.get(b"content-type") or b"", page_rules, found)
        return found


def parse_set_cookie(line: bytes, date: bytes | None) -> tuple[bytes, bytes]:
    """Name and value of a Set-Cookie header, RFC 6265 section 5.2; the value is empty if the cookie is deleted.

    Args:
        line: the value of the header.
        date: the Date header of the response: what "past" means for `Expires`.
    """
    pair, _, attributes = line.partition(b";")
    name, equals, value = pair.partition(b"=")
    if not equals:
        return b"", b""
    return name.strip(), b"" if attributes and _is_deleted(attributes, date) else unquoted(value.strip())


def unquoted(value: bytes) -> bytes:
    """A cookie's value without the quotes that RFC 6265 allows around it."""
    return value[1:-1] if len(value) >= 2 and value[:1] == value[-1:] == b'"' else value


def _is_deleted(attributes: bytes, date: bytes | None) -> bool:
    attributes = attributes.lower()
    if b"max-age" not in attributes and b"expires" not in attributes:
        return False
    expires = None
    for attribute in attributes.split(b";"):
        name, _, value = attribute.strip().partition(b"=")
        if name == b"max-age" and re.fullmatch(rb"-?\d+", value):
            # RFC 6265 section 5.3: Max-Age has precedence. As a number it may be too long for Python.
            return value.startswith(b"-") or not value.strip(b"0")
        if name == b"expires":
            expires = _seconds(value)
    if expires is None:
        return False
    now = _seconds(date) if date else None
    return expires <= (_EARLIEST_NOW_S if now is None else now)


def _seconds(date: bytes) -> float | None:
    parsed = parsedate_tz(date.decode("latin-1"))
    if parsed is None:
        return None
    try:
        return mktime_tz(parsed)
    except (ValueError, OverflowError):
        return None


def _put(found: HandedOut, rule: Rule, values: Iterable[bytes]) -> HandedOut:
    """Returns: `found` with these values, if they are any."""
    kept = found.values.get(rule)  # the head's values come before the body's of the same rule
    for value in values:
        if kept is not None and len(kept) >= _MAX_VALUES:
            break
        if 0 < len(value) <= MAX_VALUE_BYTES and (kept is None or value not in kept):
            if kept is None:
                found = HandedOut() if found is NOTHING else found
                kept = found.values[rule] = []
            kept.append(value)
    return found


def _put_matches(found: HandedOut, rule: Rule, pattern: re.Pattern[bytes], text: bytes) -> HandedOut:
    # Most texts have none, and an iterator costs more than to see that.
    if pattern.search(text) is None:
        return found
    return _put(found, rule, (match[1] or b"" for match in pattern.finditer(text)))


def _unread(found: HandedOut) -> HandedOut:
    found = HandedOut() if found is NOTHING else found
    found.unread = True
    return found


def _parameters(url: bytes, wanted: bytes) -> list[bytes]:
    return [value for name, value in url_parameters(url) if name == wanted]


def _template_value(template: tuple[bytes, ...], location: bytes) -> list[bytes]:
    segments = [segment.partition(b";")[0] for segment in url_path(location).split(b"/")[1:]]
    if len(segments) < len(template):
        return []
    value = b""
    for wanted, segment in zip(template, segments, strict=False):
        if wanted == b"{}":
            value = unquote_to_bytes(segment)
        elif wanted != segment:
            return []
    return [value]


def _decoded(content: bytes, coding: bytes | None) -> bytes | None:
    """The body without its Content-Encoding; None if it cannot be read, or is longer than `MAX_BODY_BYTES`."""
    name = (coding or b"identity").strip().lower()
    if name == b"identity":
        return content
    if name not in _WINDOWS:
        return None
    for window in _WINDOWS[name]:
        with contextlib.suppress(zlib.error):  # not this one, then
            return _inflated(content, window)
    return None


def _inflated(content: bytes, window: int) -> bytes | None:
    """Raises: zlib.error."""
    pieces: list[bytes] = []
    room = MAX_BODY_BYTES
    while content:  # RFC 1952 section 2.2: a gzip file is a series of members
        inflater = zlib.decompressobj(window)
        pieces.append(inflater.decompress(content, room + 1))
        room -= len(pieces[-1])
        if room < 0 or len(pieces) > _MAX_MEMBERS:
            return None
        content = inflater.unused_data
    return b"".join(pieces)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return False


def _leaf(document: Any, pointer: tuple[str, ...]) -> list[bytes]:
    """The string or number a pointer leads to, RFC 6901 section 4; numbers as they are written."""
    node = document
    for token in pointer:
        if isinstance(node, dict) and token in node:
            node = node[token]
        elif isinstance(node, list) and re.fullmatch(r"0|[1-9]\d{0,8}", token) and int(token) < len(node):
            node = node[int(token)]
        else:
            return []
    return [node.encode(errors="surrogatepass")] if isinstance(node, str) else []


def _read_page(body: bytes, content_type: bytes, rules: list[Rule], found: HandedOut) -> HandedOut:
    page = _Page()
    charset = _CHARSET.search(content_type)
    pieces = (match[0] for match in _PIECE.finditer(body) if match[1] is None and not match[0].startswith(b"<!"))
    relevant = (piece for piece in pieces if any(rule.name in piece for rule in rules))
    for piece in islice(relevant, _MAX_TAGS):
        with contextlib.suppress(ValueError):  # a character by a number of thousands of digits is nobody's value
            page.feed(_text(piece, charset[1].decode() if charset else "utf-8"))
        page.reset()
    for rule in rules:
        if rule.kind == "form":
            found = _put(found, rule, page.fields.get(rule.name, ()))
        else:
            values = (value for url in page.urls for name, value in url_parameters(url) if name == rule.name)
            found = _put(found, rule, values)
    return found


def _text(piece: bytes, charset: str) -> str:
    try:
        return piece.decode(charset, errors="replace")
    except LookupError:
        return piece.decode("utf-8", errors="replace")


class _Page(HTMLParser):
    """Collects inputs and meta tags by name, and URLs, from start tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.fields: dict[bytes, list[bytes]] = {}
        self.urls: list[bytes] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        name, value = None, None
        if tag == "input" and (attributes.get("type") or "").lower() == "hidden":
            name, value = attributes.get("name"), attributes.get("value")
        elif tag == "meta":
            name, value = attributes.get("name"), attributes.get("content")
        if name and value:
            self.fields.setdefault(name.encode(), []).append(value.encode())
        for attribute, url in attrs:
            if attribute in _URL_ATTRIBUTES and url:
                self.urls.append(url.encode())
