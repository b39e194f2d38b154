"""Rules: how they are read, and where in responses they find values."""

import gzip
import zlib

import pytest

from gopher.errors import ConfigError
from gopher.relay.handed_out import NOTHING, ResponseReader, parse_set_cookie
from gopher.relay.places import MAX_BODY_BYTES
from gopher.relay.rules import parse_rule
from tests.support.coupling import response_head

HTML = b"Content-Type: text/html; charset=utf-8"
JSON = b"Content-Type: application/json"


def read(rule, *lines, content=b"", status=200):
    rule = parse_rule(rule)
    reader, head = ResponseReader([rule], auto=False), response_head(status, *lines)
    if rule.kind == "cookie":
        return reader.read_head(head).cookies
    found = (reader.read_head(head), reader.read_rest(head, content))
    return [value for part in found for value in part.values.get(rule, [])]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("auto", "is no rule"),
        ("cookie", "is no rule"),
        ("cookies:sid", "is no rule"),
        ("cookie:", "cannot be the name of a cookie"),
        ("cookie:a b", "cannot be the name of a cookie"),
        ("header:X Token", "cannot be the name of a header"),
        ("json:data/token", "begins with /"),
        ("json:/a~2", "~ is written ~0"),
        ("form:", "name is missing"),
        ("query:", "name is missing"),
        ("location:", "name is missing"),
        ("location:/order/", "exactly one segment"),
        ("location:/{}/{}", "exactly one segment"),
        ("location:/order-{}", "exactly one segment"),
        ("regex:(", "unterminated"),
        ("regex:token", "0 groups"),
        ("regex:(a)(b)", "2 groups"),
    ],
)
def test_wrong_rule_is_refused_by_name(text, complaint):
    with pytest.raises(ConfigError, match="couple") as refused:
        parse_rule(text)
    assert complaint in str(refused.value)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ("pointer", "tokens"),
    [("", ()), ("/", ("",)), ("/a/0", ("a", "0")), ("/a~1b/m~0n", ("a/b", "m~n")), ("/~01", ("~1",))],
)
def test_json_pointer_is_unescaped(pointer, tokens):
    assert parse_rule("json:" + pointer).pointer == tokens


def test_cookie_rule_finds_its_cookies_only():
    lines = (b"Set-Cookie: sid=abc; Path=/", b"Set-Cookie: theme=dark", b'set-cookie: sid="xyz"; HttpOnly')
    assert read("cookie:sid", *lines) == {b"sid": b"xyz"}


def test_auto_finds_every_cookie():
    reader = ResponseReader([], auto=True)
    found = reader.read_head(response_head(200, b"Set-Cookie: a=1", b"Set-Cookie: b=2"))
    assert found.cookies == {b"a": b"1", b"b": b"2"}


@pytest.mark.parametrize(
    ("line", "date", "value"),
    [
        (b"sid=abc", None, b"abc"),
        (b"sid=a=b==; Path=/", None, b"a=b=="),
        (b"sid=abc; Max-Age=0", None, b""),
        (b"sid=abc; max-age=-1", None, b""),
        (b"sid=abc; max-age=-0", None, b""),
        (b"sid=abc; Max-Age=" + b"1" * 5000, None, b"abc"),
        (b"sid=abc; Max-Age=" + b"0" * 5000, None, b""),
        (b"sid=abc; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT", None, b"abc"),
        (b"sid=abc; Max-Age=never", None, b"abc"),
        (b"sid=abc; expires=Thu, 01-Jan-1970 00:00:00 GMT", None, b""),
        (b"sid=abc; Expires=nonsense", None, b"abc"),
        (b"sid=abc; Expires=Mon, 05 Jan 2026 00:00:00 GMT", b"Mon, 05 Jan 2026 00:00:01 GMT", b""),
        (b"sid=abc; Expires=Mon, 05 Jan 2026 00:00:00 GMT", b"Sun, 04 Jan 2026 00:00:00 GMT", b"abc"),
        (b"sid=abc; Expires=Mon, 05 Jan 2026 00:00:00 GMT", b"Mon, 05 Jan 2026 00:00:00 GMT", b""),
        (b"sid=abc; Expires=Mon, 05 Jan 2026 00:00:00 GMT", None, b"abc"),
        (b"sid=", None, b""),
    ],
)
def test_deleted_cookie_has_no_value(line, date, value):
    assert parse_set_cookie(line, date) == (b"sid", value)


def test_set_cookie_without_name_is_nothing():
    assert read("cookie:sid", b"Set-Cookie: sid") == {}


def test_header_rule_takes_what_follows_bearer():
    assert read("header:X-Token", b"x-token: abcdef") == [b"abcdef"]
    assert read("header:Authorization", b"Authorization: Bearer abcdef") == [b"abcdef"]


@pytest.mark.parametrize(
    ("pointer", "content", "values"),
    [
        ("/data/token", b'{"data": {"token": "a\\u0062c"}}', [b"abc"]),
        ("/list/1/id", b'[{"id": 1}]', []),
        ("/1/id", b' [{"id": 1}, {"id": 1234567890123456789012}]', [b"1234567890123456789012"]),
        ("", b'"whole"', [b"whole"]),
        ("/token", b'{"token": null}', []),
        ("/token", b'{"token": {}}', []),
        ("/token", b'{"token": "cut', []),
        ("/token", b"token", []),
        ("/01", b'["a", "b"]', []),
        ("/token", b"[" * 100_000, []),
    ],
)
def test_json_rule_follows_its_pointer(pointer, content, values):
    assert read("json:" + pointer, JSON, content=content) == values


@pytest.mark.parametrize(
    "page",
    [
        b'<form><input type="hidden" name="csrf" value="a&amp;b"></form>',
        b"<input value='a&amp;b' name=csrf type=HIDDEN />",
        b'<meta name="csrf" content="a&amp;b">',
        b'<!-- <input type=hidden name=csrf value=no> --><meta content="a&amp;b" name="csrf">',
        b"<script>'<input type=hidden name=csrf value=no>'</script><meta content='a&amp;b' name=csrf>",
    ],
)
def test_form_rule_finds_hidden_inputs_and_meta_tags(page):
    assert read("form:csrf", HTML, content=page) == [b"a&b"]


@pytest.mark.parametrize("page", [b'<input name="csrf" value="typed">', b"csrf", b"<p>csrf</p>", b""])
def test_form_rule_finds_nothing_else(page):
    assert read("form:csrf", HTML, content=page) == []


def test_form_rule_reads_the_charset_of_the_page():
    page = '<meta name="csrf" content="é">'.encode("latin-1")
    assert read("form:csrf", b"Content-Type: text/html; charset=latin-1", content=page) == ["é".encode()]
    assert read("form:csrf", b"Content-Type: text/html; charset=no-such", content=page) == ["\ufffd".encode()]


# Codecs of Python that raise, make surrogates or are quadratic; none is an encoding of pages.
@pytest.mark.parametrize(
    "charset", [b"undefined", b"idna", b"punycode", b"unicode_escape", b"utf-7", b"hex", b"iso-8859-99"]
)
def test_page_in_no_encoding_of_pages_is_read_as_utf_8(charset):
    page = b'<meta name="csrf" content="\\ud800 +2AA- \xc3\xa9">'
    content_type = b"Content-Type: text/html; charset=" + charset
    assert read("form:csrf", content_type, content=page) == ["\\ud800 +2AA- é".encode()]


def test_number_that_is_too_long_for_python_is_passed_over():
    page = b'<meta name=csrf content="&#%b;"><meta name=csrf content=a>' % (b"1" * 5000)
    assert read("form:csrf", HTML, content=page) == [b"a"]


def test_same_value_twice_is_one_value():
    page = b"<meta name=csrf content=a><input type=hidden name=csrf value=a><input type=hidden name=csrf value=b>"
    assert read("form:csrf", HTML, content=page) == [b"a", b"b"]


def test_query_rule_finds_parameters_of_links_and_of_the_redirect():
    page = b'<a href="/cart?x=1&amp;sid=a%2Fb#top"><form action="/buy;sid=cde"><a title="?sid=no">'
    assert read("query:sid", HTML, content=page) == [b"a/b", b"cde"]
    assert read("query:sid", b"Location: /?sid=fgh", status=302) == [b"fgh"]


@pytest.mark.parametrize(
    ("rule", "location", "values"),
    [
        ("location:sid", b"https://shop/home?a=b&sid=x+y%2B", [b"x y+"]),
        ("location:sid", b"/home;sid=abc?q=1", [b"abc"]),
        ("location:sid", b"/home#sid=abc", []),
        ("location:/order/{}", b"/order/17", [b"17"]),
        ("location:/order/{}", b"http://shop:80/order/a%20b/paid?x=/order/1", [b"a b"]),
        ("location:/order/{}", b"/orders/17", []),
        ("location:/order/{}", b"/order", []),
        ("location:/{}/edit", b"/17/edit", [b"17"]),
        ("location:/{}/edit", b"/17/view", []),
    ],
)
def test_location_rule(rule, location, values):
    assert read(rule, b"Location: " + location, status=302) == values


def test_location_rule_without_a_redirect_finds_nothing():
    assert read("location:sid") == []


def test_links_of_one_page_are_read_up_to_a_bound():
    page = b"<a href='/?sid=same'>" * 256 + b"<a href='/?sid=late'>"
    assert read("query:sid", HTML, content=page) == [b"same"]


def test_regex_rule_looks_at_head_and_body():
    assert read(r"regex:id=(\w+)", b"X-Info: id=abc", content=b"id=def id=abc") == [b"abc", b"def"]
    assert read(r"regex:id=(\w)?", content=b"id=") == []


def test_values_of_one_response_are_bounded():
    assert len(read(r"regex:(\d{4})", content=b" ".join(b"%04d" % n for n in range(1000)))) == 64
    assert read("header:X-Token", b"X-Token: " + b"a" * 8193) == []


COMPRESSED = zlib.compressobj(wbits=-15)


@pytest.mark.parametrize(
    ("coding", "content"),
    [
        (b"gzip", gzip.compress(b'{"t": "abcd"}')),
        (b"X-GZip", gzip.compress(b'{"t": "abcd"}')),
        (b"deflate", zlib.compress(b'{"t": "abcd"}')),
        (b"deflate", COMPRESSED.compress(b'{"t": "abcd"}') + COMPRESSED.flush()),
        (b"identity", b'{"t": "abcd"}'),
    ],
)
def test_coded_body_is_looked_at(coding, content):
    assert read("json:/t", JSON, b"Content-Encoding: " + coding, content=content) == [b"abcd"]


def test_gzip_in_several_members_is_one_body():
    content = gzip.compress(b'{"t": ') + gzip.compress(b'"abcd"}')
    assert read("json:/t", JSON, b"Content-Encoding: gzip", content=content) == [b"abcd"]


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"id=abcd" + b" " * MAX_BODY_BYTES),
        gzip.compress(b"id=abcd" + b" " * (MAX_BODY_BYTES - 8)) + gzip.compress(b"  "),
        gzip.compress(b"id=abcd") + gzip.compress(b"") * 2000,
    ],
)
def test_body_that_is_too_long_decoded_is_unread(content):
    reader = ResponseReader([parse_rule(r"regex:id=(\w+)")], auto=False)
    found = reader.read_rest(response_head(200, b"Content-Encoding: gzip"), content)
    assert found.unread
    assert not found.values


def test_cookie_that_is_deleted_under_another_path_is_there():
    lines = (b"Set-Cookie: sid=abc; Path=/", b"Set-Cookie: sid=; Path=/app; Max-Age=0")
    assert read("cookie:sid", *lines) == read("cookie:sid", *reversed(lines)) == {b"sid": b"abc"}
    assert read("cookie:sid", *lines[1:]) == {b"sid": b""}


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"gzip"])
def test_body_of_another_or_a_broken_coding_is_unread(coding):
    reader = ResponseReader([parse_rule("json:/t")], auto=False)
    assert reader.read_rest(response_head(200, b"Content-Encoding: " + coding), b"\x00\x01").unread


def test_decoding_is_bounded():
    bomb = gzip.compress(b" " * MAX_BODY_BYTES + b"id=abcd")
    assert read(r"regex:id=(\w+)", b"Content-Encoding: gzip", content=bomb) == []


def test_long_body_is_unread_unless_it_can_hold_no_value():
    reader = ResponseReader([parse_rule("json:/t")], auto=False)
    long = b"Content-Length: %d" % (MAX_BODY_BYTES + 1)
    assert reader.read_rest(response_head(200, long, JSON), None).unread
    assert reader.read_rest(response_head(200, long, b"Content-Type: video/mp4"), None) is NOTHING


@pytest.mark.parametrize(
    ("rules", "lines", "needed"),
    [
        (["cookie:sid", "header:x", "location:sid", "location:/a/{}"], (), False),
        (["cookie:sid", "json:/t"], (), True),
        (["form:csrf"], (b"Content-Type: image/png",), False),
        (["regex:(a)"], (b"Content-Type: image/png",), True),
        (["form:csrf"], (b"Content-Length: %d" % MAX_BODY_BYTES,), True),
        (["form:csrf"], (b"Content-Length: %d" % (MAX_BODY_BYTES + 1),), False),
    ],
)
def test_body_is_asked_for_only_if_a_rule_looks_at_it(rules, lines, needed):
    reader = ResponseReader([parse_rule(rule) for rule in rules], auto=False)
    assert reader.needs_body(response_head(200, *lines)) is needed


def test_interim_response_has_no_body_to_ask_for():
    assert not ResponseReader([parse_rule("form:csrf")], auto=False).needs_body(response_head(103))


def test_response_without_values_is_nothing():
    reader = ResponseReader([parse_rule("cookie:sid"), parse_rule("form:csrf")], auto=False)
    head = response_head(200, b"Set-Cookie: other=1")
    assert reader.read_head(head) is NOTHING
    assert reader.read_rest(head, b"<p>") is NOTHING
