"""Positions in requests: what is found there, and that only the value's bytes change."""

import pytest

from gopher.relay.places import (
    MAX_BODY_BYTES,
    may_hold_values,
    rewrite_body,
    rewrite_cookies,
    rewrite_header,
    rewrite_target,
    url_parameters,
    url_path,
)
from tests.support.coupling import request_head


def swap(old, new):
    return lambda place, name, value: new if value == old else None


def seen(rewrite, *args):
    values = []
    result = rewrite(*args, lambda *value: values.append(value))
    assert result is args[-1] or result is args[0]
    return values


FORM = b"application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        (b"sid=PPPP", b"sid=SSSSS"),
        (b"a=1;  sid=PPPP ;b", b"a=1;  sid=SSSSS ;b"),
        (b'sid="PPPP"; x=PPPPP', b'sid="SSSSS"; x=PPPPP'),
        (b" sid = PPPP", b" sid = SSSSS"),
        (b"PPPP=PPPP; PPPP", b"PPPP=SSSSS; PPPP"),
    ],
)
def test_cookie_is_rewritten_in_place(line, changed):
    assert rewrite_cookies(line, swap(b"PPPP", b"SSSSS")) == changed


def test_cookies_are_shown_by_name_without_quotes():
    assert seen(rewrite_cookies, b'a=1; b="2"; c="; d=') == [
        ("cookie", b"a", b"1"),
        ("cookie", b"b", b"2"),
        ("cookie", b"c", b'"'),
        ("cookie", b"d", b""),
    ]


@pytest.mark.parametrize("new", [b"a;b", b"a b", b"a\r\nX: y", b"a\x00"])
def test_value_that_would_break_out_of_the_cookie_is_not_put_there(new):
    assert rewrite_cookies(b"sid=PPPP", swap(b"PPPP", new)) == b"sid=PPPP"


@pytest.mark.parametrize(
    ("value", "changed"),
    [(b"PPPP", b"SSSSS"), (b"Bearer PPPP", b"Bearer SSSSS"), (b"bearer PPPP", b"bearer SSSSS"), (b"x PPPP", b"x PPPP")],
)
def test_header_is_rewritten_whole_or_after_bearer(value, changed):
    assert rewrite_header(b"authorization", value, swap(b"PPPP", b"SSSSS")) == changed


@pytest.mark.parametrize("new", [b"a\r\nX: y", b" a", b"a\t", b"\x7f"])
def test_value_that_would_break_out_of_the_header_is_not_put_there(new):
    assert rewrite_header(b"x", b"PPPP", swap(b"PPPP", new)) == b"PPPP"


@pytest.mark.parametrize(
    ("target", "old", "new", "changed"),
    [
        (b"/order/1234/pay?x=12345&y=1234", b"1234", b"987", b"/order/987/pay?x=12345&y=987"),
        (b"/cart;jsessionid=abcd;v=1?abcd", b"abcd", b"wxyz", b"/cart;jsessionid=wxyz;v=1?wxyz"),
        (b"http://abcd:80/abcd?q", b"abcd", b"wxyz", b"http://abcd:80/wxyz?q"),
        (b"http://shop?q=abcd", b"abcd", b"wxyz", b"http://shop?q=wxyz"),
        (b"/a?next=http://x/?y&t=abcd", b"abcd", b"wxyz", b"/a?next=http://x/?y&t=wxyz"),
        # Encoded as the old value was.
        (b"/?t=a%2Bb", b"a+b", b"c+d", b"/?t=c%2Bd"),
        (b"/?t=a%2bb", b"a+b", b"c+/", b"/?t=c%2b%2f"),
        (b"/?t=a+b", b"a b", b"c d+", b"/?t=c+d%2B"),
        (b"/?t=a%20b", b"a b", b"c d", b"/?t=c%20d"),
        (b"/?t=a/b=", b"a/b=", b"c/d&=", b"/?t=c/d%26="),
        (b"/?t=a%2Fb", b"a/b", b"c/d", b"/?t=c%2Fd"),
        (b"/a+b/c%20d", b"a+b", b"e+f g", b"/e+f%20g/c%20d"),
        (b"/abcd", b"abcd", b"a/b;c?d", b"/a%2Fb%3Bc%3Fd"),
        (b"/?t=\xc3\xa9a", "éa".encode(), "éb".encode(), b"/?t=%C3%A9b"),
        # Not values.
        (b"/?abcd=1", b"abcd", b"wxyz", b"/?abcd=1"),
        (b"*", b"abcd", b"wxyz", b"*"),
        (b"//abcd", b"abcd", b"wxyz", b"//wxyz"),
    ],
)
def test_target_is_rewritten_in_place(target, old, new, changed):
    assert rewrite_target(target, swap(old, new)) == changed


def test_values_of_a_target_are_shown_decoded_and_by_name():
    assert seen(rewrite_target, b"/order/a%20b;v=1?x%5B%5D=c+d&e") == [
        ("path", b"", b"order"),
        ("path", b"order", b"a b"),
        ("query", b"v", b"1"),
        ("query", b"x[]", b"c d"),
        ("query", b"", b"e"),
    ]


def test_unchanged_parts_come_back_themselves():
    target = b"/a%20b/c;d=e?f=g+h&i"
    assert rewrite_target(target, lambda *_: None) is target


def test_form_is_rewritten_in_place():
    body = b"csrf=a%2Bb&name=J%C3%BCrgen+X&b=%61%2Bb"
    assert rewrite_body(body, FORM, swap(b"a+b", b"c+d")) == b"csrf=c%2Bd&name=J%C3%BCrgen+X&b=c%2Bd"


MULTIPART = (
    b'preamble\r\n--xX\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n%b\r\n--xX\r\n'
    b'Content-Type: image/png\r\ncontent-disposition: form-data; name="file"; filename="PPPP"\r\n\r\nPPPP\r\n--xX--\r\n'
)


@pytest.mark.parametrize("boundary", [b"boundary=xX", b'charset=x; Boundary="xX"'])
def test_multipart_fields_are_rewritten_and_files_are_not(boundary):
    kind = b"multipart/form-data; " + boundary
    assert rewrite_body(MULTIPART % b"PPPP", kind, swap(b"PPPP", b"S\r\n")) == MULTIPART % b"S\r\n"


def test_multipart_shows_names():
    kind = b"multipart/form-data; boundary=xX"
    values = []
    rewrite_body(MULTIPART % b"PPPP", kind, lambda *value: values.append(value))
    assert values == [("field", b"csrf", b"PPPP")]


@pytest.mark.parametrize("kind", [b"multipart/form-data", b"multipart/form-data; boundary=other", b"text/plain", b""])
def test_body_that_is_not_understood_is_left_alone(kind):
    body = MULTIPART % b"PPPP"
    assert rewrite_body(body, kind, swap(b"PPPP", b"SSSS")) is body


def test_value_with_the_boundary_in_it_is_not_put_into_a_multipart_body():
    body = MULTIPART % b"PPPP"
    assert rewrite_body(body, b"multipart/form-data; boundary=xX", swap(b"PPPP", b"a--xX")) is body


@pytest.mark.parametrize(
    ("body", "new", "changed"),
    [
        (b'{"PPPP": "PPPP", "x": ["PPPP",1]}', b"SSS", b'{"PPPP": "SSS", "x": ["SSS",1]}'),
        (b'{"a" : "P\\u0050PP" }', b'"\\', b'{"a" : "\\"\\\\" }'),
        (b'{"a":"\\u0050PPP"}', "é".encode(), b'{"a":"\\u00e9"}'),
        (b'{"a":"PPPP"}', "é".encode(), '{"a":"é"}'.encode()),
        (b'"PPPP"', b"\r\n", b'"\\r\\n"'),
        (b'{"a":"PPPP"}', b"\xff", b'{"a":"PPPP"}'),
        (b'{"a":"PPPP"', b"SSS", b'{"a":"PPPP"'),
        (b'{"a":"x \\"PPPP\\" y"}', b"SSS", b'{"a":"x \\"PPPP\\" y"}'),
    ],
)
def test_json_strings_are_rewritten_in_place(body, new, changed):
    assert rewrite_body(body, b"application/vnd.api+json", swap(b"PPPP", new)) == changed


@pytest.mark.parametrize(
    ("new", "changed"),
    [
        (b"5678", b'{"id": 5678, "n": 12345}'),
        (b"x-1", b'{"id": "x-1", "n": 12345}'),
        (b"01", b'{"id": "01", "n": 12345}'),
    ],
)
def test_json_number_stays_one_if_it_can(new, changed):
    assert rewrite_body(b'{"id": 1234, "n": 12345}', b"application/json", swap(b"1234", new)) == changed


def test_json_slashes_stay_escaped():
    assert rewrite_body(b'["a\\/b"]', b"application/json", swap(b"a/b", b"c/d")) == b'["c\\/d"]'


def test_json_leaves_are_shown_by_key():
    body = b'{"a": {"b\\n": "x"}, "c": [true, 1.5e3, null], "d": ""}'
    values = []
    rewrite_body(body, b"application/json", lambda *value: values.append(value))
    assert values == [("field", b"b\n", b"x"), ("field", b"", b"1.5e3"), ("field", b"d", b"")]


@pytest.mark.parametrize(
    ("lines", "readable"),
    [
        ((b"Content-Type: " + FORM + b"; charset=utf-8", b"Content-Length: 10"), True),
        ((b"Content-Type: Application/JSON", b"Transfer-Encoding: chunked"), True),
        ((b"Content-Type: multipart/form-data; boundary=x", b"Content-Length: %d" % (MAX_BODY_BYTES + 1)), False),
        ((b"Content-Type: application/json", b"Content-Encoding: gzip", b"Content-Length: 10"), False),
        ((b"Content-Type: image/png", b"Content-Length: 10"), False),
        ((), False),
    ],
)
def test_body_that_may_hold_values_is_told_by_the_head(lines, readable):
    assert may_hold_values(request_head(b"/", *lines, method=b"POST")) is readable


@pytest.mark.parametrize(
    ("url", "path", "parameters"),
    [
        (b"/a/b?c=d+e&f#g=h", b"/a/b", [(b"c", b"d e")]),
        (b"https://h?c=d", b"", [(b"c", b"d")]),
        (b"a;p=q/b?x=%26", b"a;p=q/b", [(b"x", b"&"), (b"p", b"q")]),
        (b"/to://x", b"/to://x", []),
        (b"//host/a#?b=c", b"/a", []),
    ],
)
def test_url_is_taken_apart(url, path, parameters):
    assert url_path(url) == path
    assert list(url_parameters(url)) == parameters
