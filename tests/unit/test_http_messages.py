"""Messages that are accepted, run whole, byte by byte and cut at random; then heads, edits, limits, and the states.

What is refused: `test_request_smuggling.py`.
"""

import pytest

from gopher import CLIENT_TO_SERVER, SERVER_TO_CLIENT
from gopher.errors import LocalProtocolError, RemoteProtocolError
from gopher.http.messages import (
    BodyReceived,
    HeadReceived,
    MessageEnded,
    MessageLimits,
    MessageParser,
    Switched,
    parse_request_head,
    parse_response_head,
    with_body,
)
from tests.support.messages import read, read_in_all_cuts, requests, responses

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST /form HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + body


def response(fields: bytes, body: bytes = b"", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n" + body


# message, how its body is framed, content
REQUESTS = {
    "no_body": (GET, "none", b""),
    "http_1_0": (b"GET / HTTP/1.0\r\n\r\n", "none", b""),
    "http_1_0_with_host_and_length": (
        b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        "length",
        b"hi",
    ),
    "absolute_target": (b"GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n", "none", b""),
    "absolute_target_host_in_capitals": (b"GET HTTP://A.B:8 HTTP/1.1\r\nHost: a.b:8\r\n\r\n", "none", b""),
    "asterisk_target": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "none", b""),
    "target_that_browsers_send": (b'GET /a|b{c}?d[]="e"&f=%\\ HTTP/1.1\r\nHost: a\r\n\r\n', "none", b""),
    "target_in_utf_8": ("GET /\u00fc HTTP/1.1\r\nHost: a\r\n\r\n".encode(), "none", b""),
    "unknown_method": (b"X-!#$%&'*+.^_`|~9 / HTTP/1.1\r\nHost: a\r\n\r\n", "none", b""),
    "lower_case_method": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", "none", b""),
    "host_empty": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "none", b""),
    "host_with_port": (b"GET / HTTP/1.1\r\nHost: a-b_c.example:8080\r\n\r\n", "none", b""),
    "host_with_empty_port": (b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n", "none", b""),
    "host_of_ipv6": (b"GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]:80\r\n\r\n", "none", b""),
    "host_among_blanks": (b"GET / HTTP/1.1\r\nHost: \t a\t \r\n\r\n", "none", b""),
    "spacing_and_case": (b"GET / HTTP/1.1\r\nhOSt:a\r\nX:\r\nY: \t \r\nx:  b  c\t\r\nX: \xff\r\n\r\n", "none", b""),
    "empty_line_before": (b"\r\n" + GET, "none", b""),
    "expect_continue": (post(b"Expect: 100-continue\r\nContent-Length: 2\r\n", b"hi"), "length", b"hi"),
    "length": (post(b"Content-Length: 5\r\n", b"hello"), "length", b"hello"),
    "length_zero": (post(b"Content-Length: 0\r\n"), "length", b""),
    "length_in_capitals": (post(b"CONTENT-LENGTH: 5\r\n", b"hello"), "length", b"hello"),
    "length_without_space": (post(b"Content-Length:5\r\n", b"hello"), "length", b"hello"),
    "length_among_spaces": (post(b"Content-Length:   5  \r\n", b"hello"), "length", b"hello"),
    "length_of_get": (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", "length", b"hello"),
    "body_like_a_request": (post(b"Content-Length: %d\r\n" % len(GET), GET), "length", GET),
    "names_like_framing_fields": (
        post(b"Content-Length-X: 5\r\nContent-Lengt: 5\r\nTransfer-Encodings: chunked\r\n"),
        "none",
        b"",
    ),
    "chunked": (post(b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"), "chunked", b"hello"),
    "chunked_empty": (post(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"), "chunked", b""),
    "chunked_in_capitals": (post(b"TRANSFER-ENCODING: CHUNKED\r\n", b"0\r\n\r\n"), "chunked", b""),
    "chunked_of_several": (
        post(b"Transfer-Encoding: chunked\r\n", b"1F\r\n%31d\r\n00a\r\n%10d\r\n000\r\n\r\n" % (0, 1)),
        "chunked",
        b"%31d%10d" % (0, 1),
    ),
    "chunked_size_of_16_digits": (
        post(b"Transfer-Encoding: chunked\r\n", b"0000000000000005\r\nhello\r\n0\r\n\r\n"),
        "chunked",
        b"hello",
    ),
    "chunked_extensions": (
        post(b"Transfer-Encoding: chunked\r\n", b'5;a;b=c;d="e f;\\"\t\xff"\r\nhello\r\n0;x\r\n\r\n'),
        "chunked",
        b"hello",
    ),
    "chunked_body_like_an_end": (
        post(b"Transfer-Encoding: chunked\r\n", b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"),
        "chunked",
        b"\r\n0\r\n\r\n",
    ),
}


@pytest.mark.parametrize(("data", "body", "content"), REQUESTS.values(), ids=REQUESTS)
def test_request_is_read_and_kept_byte_for_byte(data, body, content):
    transcript = read_in_all_cuts(requests, data + GET, end=True)
    assert transcript.fault is None
    message, following = transcript.messages
    assert message.bytes == data
    assert (message.body, message.content, message.trailers, message.ended) == (body, content, None, True)
    assert message.length == (len(content) if body == "length" else None)
    assert following.bytes == GET


@pytest.mark.parametrize("data", [data for data, _, _ in REQUESTS.values()], ids=REQUESTS)
def test_request_cut_short_is_refused_at_the_end(data):
    transcript = read(requests(), [data[:-1]], end=True)
    assert "the connection ended within a message" in str(transcript.fault)
    assert transcript.fault.status == 400
    assert not any(message.ended for message in transcript.messages)


RESPONSES = {
    "length": (response(b"Content-Length: 5\r\n", b"hello"), "length", b"hello"),
    "length_zero": (response(b"Content-Length: 0\r\n"), "length", b""),
    "http_1_0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "length", b"hello"),
    "no_reason": (response(b"Content-Length: 5\r\n", b"hello", status=b"200"), "length", b"hello"),
    "empty_reason": (response(b"Content-Length: 5\r\n", b"hello", status=b"200 "), "length", b"hello"),
    "odd_reason": (response(b"Content-Length: 5\r\n", b"hello", status=b"200 \t\xe9 - (x)"), "length", b"hello"),
    "status_999": (response(b"Content-Length: 1\r\n", b"x", status=b"999 Odd"), "length", b"x"),
    "204": (response(b"", status=b"204 No Content"), "none", b""),
    "204_with_length": (response(b"Content-Length: 5\r\n", status=b"204 No Content"), "none", b""),
    "304_with_length": (response(b"Content-Length: 5\r\n", status=b"304 Not Modified"), "none", b""),
    "205": (response(b"Content-Length: 0\r\n", status=b"205 Reset Content"), "length", b""),
    "repeated_equal_length": (
        response(b"Content-Length: 5\r\ncontent-length:5\r\n", b"hello"),
        "length",
        b"hello",
    ),
    "chunked": (
        response(b"Transfer-Encoding: chunked\r\n", b"5 ;a=b\r\nhello\r\n0  \r\n\r\n"),
        "chunked",
        b"hello",
    ),
    "chunked_after_another_coding": (
        response(b"Transfer-Encoding: gzip , chunked\r\n", b"1\r\nz\r\n0\r\n\r\n"),
        "chunked",
        b"z",
    ),
    "chunked_in_a_second_line": (
        response(b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        "chunked",
        b"",
    ),
}


@pytest.mark.parametrize(("data", "body", "content"), RESPONSES.values(), ids=RESPONSES)
def test_response_is_read_and_kept_byte_for_byte(data, body, content):
    transcript = read_in_all_cuts(lambda: responses(b"GET", b"GET"), data + OK, end=True)
    assert transcript.fault is None
    message, following = transcript.messages
    assert message.bytes == data
    assert (message.body, message.content, message.trailers, message.ended) == (body, content, None, True)
    assert following.bytes == OK


@pytest.mark.parametrize(
    "head",
    [
        response(b""),
        b"HTTP/1.0 200 OK\r\n\r\n",
        response(b"Transfer-Encoding: gzip\r\n"),
        response(b"Transfer-Encoding: identity\r\n"),
    ],
)
def test_response_without_length_lasts_until_the_close(head):
    data = head + b"hello" + OK
    transcript = read_in_all_cuts(lambda: responses(b"GET", b"GET"), data)
    assert [(m.body, m.content, m.ended) for m in transcript.messages] == [("close", b"hello" + OK, False)]
    ended = read_in_all_cuts(lambda: responses(b"GET", b"GET"), data, end=True)
    assert [(m.body, m.content, m.ended) for m in ended.messages] == [("close", b"hello" + OK, True)]


def test_response_cut_short_is_refused_at_the_end():
    for data in (OK[:-1], response(b"Content-Length: 5\r\n", b"hell"), response(b"Transfer-Encoding: chunked\r\n")):
        transcript = read(responses(b"GET"), [data], end=True)
        assert transcript.fault.status == 502
        assert (transcript.fault.direction, transcript.fault.offset) == (SERVER_TO_CLIENT, len(data))


def test_end_between_messages_is_fine_and_the_parser_is_done():
    for parser, data in ((requests(), b""), (requests(), GET), (requests(), GET + b"\r\n"), (responses(b"GET"), OK)):
        parser.feed(data)
        assert parser.end() == []
        with pytest.raises(LocalProtocolError, match="ended"):
            parser.feed(GET)


def test_answer_to_head_has_no_body_whatever_it_says():
    for fields in (b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b""):
        transcript = read_in_all_cuts(lambda: responses(b"HEAD", b"GET"), response(fields) + OK)
        assert [message.body for message in transcript.messages] == ["none", "length"]


def test_methods_are_told_apart_by_case():
    transcript = read_in_all_cuts(lambda: responses(b"head"), response(b"Content-Length: 2\r\n", b"hi"))
    assert transcript.messages[0].content == b"hi"


def test_interim_responses_answer_nothing():
    hints = response(b"Link: </a>\r\n", status=b"103 Early Hints")
    proceed = response(b"", status=b"100 Continue")
    head = response(b"Content-Length: 5\r\n")
    transcript = read_in_all_cuts(lambda: responses(b"HEAD", b"GET"), proceed + hints + head + hints + OK)
    assert [(m.head.status, m.body, m.ended) for m in transcript.messages] == [
        (100, "none", True),
        (103, "none", True),
        (200, "none", True),
        (103, "none", True),
        (200, "length", True),
    ]


def test_trailers_are_in_the_wire_and_to_be_read():
    trailers = b"X: y\r\nx:z \r\nGrpc-Status: 0\r\n"
    body = b"5\r\nhello\r\n0;last\r\n" + trailers + b"\r\n"
    for parser, head in ((requests, post), (lambda: responses(b"GET"), response)):
        data = head(b"Transfer-Encoding: chunked\r\nTrailer: X\r\n", body)
        (message,) = read_in_all_cuts(parser, data).messages
        assert message.wire == body
        assert message.trailers == [(b"X", b"y"), (b"x", b"z"), (b"Grpc-Status", b"0")]


def test_a_chunk_is_passed_on_before_it_is_whole_and_a_line_is_not():
    parser = requests()
    parser.feed(post(b"Transfer-Encoding: chunked\r\n"))
    assert parser.feed(b"5;a") == []
    (part,) = parser.feed(b"=b\r\nhel")
    assert (part.wire, part.content) == (b"5;a=b\r\nhel", b"hel")
    (part,) = parser.feed(b"lo\r")
    assert (part.wire, part.content) == (b"lo", b"lo")
    (part,) = parser.feed(b"\n0\r\nX: y\r\n")
    assert (part.wire, part.content) == (b"\r\n0\r\n", b"")
    part, end = parser.feed(b"\r\n")
    assert (part.wire, part.content, list(end.trailers)) == (b"X: y\r\n\r\n", b"", [(b"X", b"y")])


def test_head_comes_before_its_body():
    parser = requests()
    (event,) = parser.feed(post(b"Expect: 100-continue\r\nContent-Length: 9\r\n"))
    assert (event.head.method, event.body, event.length) == (b"POST", "length", 9)
    (event,) = parser.feed(b"12345")
    assert isinstance(event, BodyReceived)
    part, end = parser.feed(b"6789")
    assert part.content == b"6789"
    assert isinstance(end, MessageEnded)


def test_body_longer_than_memory_is_passed_on_piece_by_piece():
    parser = requests()
    parser.feed(post(b"Content-Length: 9223372036854775807\r\n"))
    piece = bytes(100_000)
    for _ in range(3):
        (event,) = parser.feed(piece)
        assert event.wire is piece  # not even copied
    parser = requests()
    parser.feed(post(b"Transfer-Encoding: chunked\r\n", b"7fffffffffffffff\r\n"))
    (event,) = parser.feed(piece)
    assert event.content == piece


def test_what_came_before_a_fault_is_returned_first():
    bad = b"GET / HTTP/1.1\r\nX: y\r\n\r\n"
    parser = requests()
    head, end = parser.feed(GET + bad + GET)
    assert (head.head.to_bytes(), type(end)) == (GET, MessageEnded)
    assert (parser.fault.status, parser.fault.offset, parser.fault.direction) == (400, len(GET), CLIENT_TO_SERVER)
    for call in (lambda: parser.feed(GET), parser.end):
        with pytest.raises(RemoteProtocolError) as raised:
            call()
        assert raised.value is parser.fault


def test_fault_is_raised_at_once_if_nothing_came_before():
    parser = requests()
    assert parser.fault is None
    with pytest.raises(RemoteProtocolError, match="request refused: no Host") as raised:
        parser.feed(b"GET / HTTP/1.1\r\n\r\n")
    assert parser.fault is raised.value


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (GET + b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", len(GET) + 25),
        (post(b"Transfer-Encoding: chunked\r\n", b"5\r\nhelloXX"), 68),
        (post(b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\nX\r\n"), 70),
        (post(b"Transfer-Encoding: chunked\r\n", b"0\r\nX: y\r\n z\r\n"), 69),
    ],
)
def test_fault_has_the_offset_of_the_line_or_bytes(data, offset):
    assert read_in_all_cuts(requests, data).fault.offset == offset


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02", b"\0", b"\x81\x85", b"(", b"\xff"])
def test_another_protocol_is_known_by_its_first_byte(data):
    with pytest.raises(RemoteProtocolError):
        requests().feed(data)
    with pytest.raises(RemoteProtocolError):
        responses(b"GET").feed(data)


LIMITS = MessageLimits(max_head_bytes=100, max_target_bytes=64, max_chunk_line_bytes=64, max_trailer_bytes=64)


def sized(before: bytes, after: bytes, size: int) -> bytes:
    return before + b"x" * (size - len(before) - len(after)) + after


@pytest.mark.parametrize(
    ("longest", "too_long", "status", "hint"),
    [
        (
            sized(b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"\r\n\r\n", 100),
            sized(b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"\r\n\r\n", 101),
            431,
            "max_head_bytes",
        ),
        (
            sized(b"GET /", b" HTTP/1.1\r\nHost:\r\n\r\n", 24 + 64),
            sized(b"GET /", b" HTTP/1.1\r\nHost:\r\n\r\n", 25 + 64),
            414,
            "max_target_bytes",
        ),
        (b"GET /" + b"x" * 95, b"GET /" + b"x" * 96, 414, "max_head_bytes"),
        (
            post(b"Transfer-Encoding: chunked\r\n", sized(b"1;", b"\r\n", 64)),
            post(b"Transfer-Encoding: chunked\r\n", sized(b"1;", b"\r\n", 65)),
            400,
            "max_chunk_line_bytes",
        ),
        (
            post(b"Transfer-Encoding: chunked\r\n", b"0\r\n" + sized(b"X: ", b"\r\n\r\n", 64)),
            post(b"Transfer-Encoding: chunked\r\n", b"0\r\n" + sized(b"X: ", b"\r\n\r\n", 65)),
            431,
            "max_trailer_bytes",
        ),
        (b"\r\n" * 50, b"\r\n" * 51, 414, "max_head_bytes"),
    ],
    ids=["head", "target", "target_without_end", "chunk_line", "trailers", "empty_lines"],
)
def test_what_is_longer_than_its_limit_is_refused(longest, too_long, status, hint):
    assert read_in_all_cuts(lambda: requests(LIMITS), longest).fault is None
    fault = read_in_all_cuts(lambda: requests(LIMITS), too_long).fault
    assert fault.status == status
    assert hint in fault.hint


def test_response_head_is_limited():
    before, after = b"HTTP/1.1 200 OK\r\nX: ", b"\r\n\r\n"
    assert read_in_all_cuts(lambda: responses(b"GET", limits=LIMITS), sized(before, after, 100)).fault is None
    assert read_in_all_cuts(lambda: responses(b"GET", limits=LIMITS), sized(before, after, 101)).fault.status == 502
    assert read_in_all_cuts(lambda: responses(b"GET", limits=LIMITS), b"HTTP/1.1 200 " + b"x" * 88).fault.status == 502


def test_limits_hold_again_for_the_next_message():
    parser = requests(LIMITS)
    message = post(b"Transfer-Encoding: chunked\r\n", b"0\r\n" + sized(b"X: ", b"\r\n\r\n", 64))
    assert read(parser, [message] * 5).fault is None


@pytest.mark.parametrize("name", ["max_head_bytes", "max_target_bytes", "max_chunk_line_bytes", "max_trailer_bytes"])
def test_limits_are_checked(name):
    for value in (63, (1 << 30) + 1):
        with pytest.raises(ValueError, match=f"{name} must be 64 to"):
            MessageLimits(**{name: value})


def test_role_is_checked():
    with pytest.raises(ValueError, match="role must be"):
        MessageParser("server", limits=LIMITS)


UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CONNECT = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"


@pytest.mark.parametrize("data", [UPGRADE, CONNECT, UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nhi")])
def test_request_that_asks_to_switch_pauses_until_its_answer_is_known(data):
    parser = requests()
    events = parser.feed(data + GET)
    assert (type(events[0]), type(events[-1])) == (HeadReceived, MessageEnded)
    assert parser.paused
    assert parser.feed(GET[:5]) == []
    assert parser.end() == []
    head, _ = parser.resume(switched=False)
    assert (head.head.to_bytes(), parser.paused) == (GET, False)
    head, _ = parser.feed(GET[5:])
    assert head.head.to_bytes() == GET


def test_switched_request_parser_gives_back_what_it_held():
    parser = requests()
    parser.feed(UPGRADE + b"\x81\x85")
    parser.feed(b"mask")
    (event,) = parser.resume(switched=True)
    assert isinstance(event, Switched)
    assert event.rest == b"\x81\x85mask"
    with pytest.raises(LocalProtocolError, match="switched"):
        parser.feed(b"more")


def test_what_is_held_during_a_pause_is_limited():
    parser = requests(LIMITS)
    parser.feed(UPGRADE + bytes(100))
    assert parser.fault is None
    with pytest.raises(RemoteProtocolError, match="too much sent before the answer"):
        parser.feed(b"\0")


def test_only_a_paused_parser_resumes():
    with pytest.raises(LocalProtocolError):
        requests().resume(switched=False)
    parser = requests()
    parser.feed(UPGRADE)
    parser.resume(switched=False)
    with pytest.raises(LocalProtocolError):
        parser.resume(switched=True)


def test_101_switches_if_it_was_asked_for():
    switching = response(b"Upgrade: websocket\r\n", b"\x81\x02hi", status=b"101 Switching Protocols")
    transcript = read_in_all_cuts(lambda: responses(b"GET", upgrade=True), switching)
    assert [(m.head.status, m.body, m.ended) for m in transcript.messages] == [(101, "none", True)]
    assert transcript.rest == b"\x81\x02hi"
    assert "was not asked to" in str(read(responses(b"GET"), [switching]).fault)


def test_success_of_connect_switches_and_failure_does_not():
    for status in (b"200 OK", b"204 No Content", b"299"):
        transcript = read_in_all_cuts(lambda: responses(b"CONNECT"), response(b"Content-Length: 5\r\n", GET, status))
        assert [(m.body, m.ended) for m in transcript.messages] == [("none", True)]
        assert transcript.rest == GET
    refused = response(b"Content-Length: 5\r\n", b"hello", status=b"407 No")
    transcript = read_in_all_cuts(lambda: responses(b"CONNECT", b"GET"), refused + OK)
    assert ([m.content for m in transcript.messages], transcript.rest) == ([b"hello", b""], None)


def test_http_2_preface_switches_with_everything():
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    transcript = read_in_all_cuts(requests, preface + b"\0\0\0\x04")
    assert (transcript.messages, transcript.rest, transcript.fault) == ([], preface + b"\0\0\0\x04", None)
    assert read(requests(), [preface[:-1]], end=True).fault.status == 400


def test_only_responses_are_expected():
    with pytest.raises(LocalProtocolError):
        requests().expect(b"GET")


HEAD = (
    b"GET /a?b HTTP/1.1\r\nHOST: shop\r\nCookie: a=1\r\nX:\r\ncookie:  b=2 \r\n"
    b"Cookies: no\r\nAccept:\t*/*\r\nCOOKIE: c=3\r\n\r\n"
)


def test_request_head_is_read_from_its_bytes():
    head = parse_request_head(HEAD)
    assert (head.method, head.target, head.version, head.upgrade) == (b"GET", b"/a?b", b"1.1", False)
    assert list(head.headers) == [
        (b"HOST", b"shop"),
        (b"Cookie", b"a=1"),
        (b"X", b""),
        (b"cookie", b"b=2"),
        (b"Cookies", b"no"),
        (b"Accept", b"*/*"),
        (b"COOKIE", b"c=3"),
    ]
    assert len(head.headers) == 7
    assert head.headers.get(b"cookie") == b"a=1"
    assert head.headers.get_all(b"Cookie") == [b"a=1", b"b=2", b"c=3"]
    assert head.headers.get(b"x") == b""
    assert (head.headers.get(b"cook"), head.headers.get_all(b"")) == (None, [])
    assert b"host" in head.headers
    assert b"hos" not in head.headers
    for name in (b"Accept:", b"HOST: shop\r\nCookie", b"a:b", b"x" * 500):
        assert name not in parse_request_head(HEAD.replace(b"X:", b"A:b:c")).headers
    assert parse_request_head(UPGRADE).upgrade
    assert parse_request_head(b"GET / HTTP/1.0\r\n\r\n").version == b"1.0"


@pytest.mark.parametrize(
    ("line", "version", "status", "reason"),
    [
        (b"HTTP/1.1 200 OK", b"1.1", 200, b"OK"),
        (b"HTTP/1.0 404 Not Found", b"1.0", 404, b"Not Found"),
        (b"HTTP/1.1 200 ", b"1.1", 200, b""),
        (b"HTTP/1.1 999", b"1.1", 999, b""),
        (b"HTTP/1.1 101 Switching", b"1.1", 101, b"Switching"),
    ],
)
def test_response_head_is_read_from_its_bytes(line, version, status, reason):
    head = parse_response_head(line + b"\r\nA: b\r\n\r\n")
    assert (head.version, head.status, head.reason, list(head.headers)) == (version, status, reason, [(b"A", b"b")])


@pytest.mark.parametrize("data", [b"", b"\r\n", GET + b"x", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", GET[:-1], b"?"])
def test_what_is_not_one_head_is_no_head(data):
    with pytest.raises((LocalProtocolError, RemoteProtocolError)):
        parse_request_head(data)
    with pytest.raises((LocalProtocolError, RemoteProtocolError)):
        parse_response_head(data.replace(GET, OK))


def test_edits_change_only_the_lines_they_name():
    head = parse_request_head(HEAD)
    head.headers.set(b"cookie", b"z=9")
    assert head.to_bytes() == (
        b"GET /a?b HTTP/1.1\r\nHOST: shop\r\nCookie: z=9\r\nX:\r\nCookies: no\r\nAccept:\t*/*\r\n\r\n"
    )
    head.headers.set_all(b"x", [b"1", b"2"])
    head.headers.add(b"New", b"")
    head.headers.remove(b"accept")
    head.headers.remove(b"absent")
    head.target = b"/c"
    assert head.to_bytes() == (
        b"GET /c HTTP/1.1\r\nHOST: shop\r\nCookie: z=9\r\nX:1\r\nCookies: no\r\nx: 2\r\nNew: \r\n\r\n"
    )
    head.method = b"DELETE"
    assert head.to_bytes().startswith(b"DELETE /c HTTP/1.1\r\nHOST")
    assert (head.method, head.target) == (b"DELETE", b"/c")


def test_values_of_repeated_lines_are_set_one_by_one():
    head = parse_request_head(HEAD)
    head.headers.set_all(b"Cookie", [b"a=1", b"S", b"c=3"])
    assert head.to_bytes() == HEAD.replace(b"  b=2 \r\n", b"  S \r\n")
    head.headers.set_all(b"Cookie", head.headers.get_all(b"cookie"))
    assert head.to_bytes() == HEAD.replace(b"  b=2 \r\n", b"  S \r\n")
    head.headers.set_all(b"Cookie", [])
    assert b"cookie" not in head.headers
    assert b"Cookies" in head.headers


def test_response_line_is_edited():
    head = parse_response_head(b"HTTP/1.0 200\r\nA: b\r\n\r\n")
    head.status = 302
    assert head.to_bytes() == b"HTTP/1.0 302 \r\nA: b\r\n\r\n"
    head.reason = b"Found"
    assert head.to_bytes() == b"HTTP/1.0 302 Found\r\nA: b\r\n\r\n"
    assert (head.status, head.reason) == (302, b"Found")


def test_empty_lines_before_a_request_stay_when_it_is_edited():
    head = parse_request_head(b"\r\n\r\n" + GET)
    head.target = b"/b"
    head.method = b"PUT"
    assert head.to_bytes() == b"\r\n\r\nPUT /b HTTP/1.1\r\nHost: a\r\n\r\n"
    assert (head.method, head.target) == (b"PUT", b"/b")


def test_a_copy_is_edited_on_its_own():
    for head in (parse_request_head(HEAD), parse_response_head(OK)):
        before = head.to_bytes()
        copy = head.copy()
        assert copy.to_bytes() == before
        copy.headers.add(b"X", b"y")
        copy.headers.set(b"Host", b"other")
        assert head.to_bytes() == before
    copy = parse_request_head(HEAD).copy()
    assert (copy.method, copy.target) == (b"GET", b"/a?b")
    assert parse_response_head(OK).copy().status == 200


BAD_EDITS = {
    "value_with_crlf": lambda head: head.headers.set(b"Host", b"a\r\nX: y"),
    "value_with_lf": lambda head: head.headers.add(b"Host", b"a\n"),
    "value_with_nul": lambda head: head.headers.set_all(b"Cookie", [b"a", b"\0"]),
    "value_with_space_before": lambda head: head.headers.set(b"Host", b" a"),
    "value_with_tab_after": lambda head: head.headers.set(b"Host", b"a\t"),
    "name_empty": lambda head: head.headers.add(b"", b"a"),
    "name_with_colon": lambda head: head.headers.set(b"X:", b"a"),
    "name_with_space": lambda head: head.headers.set(b"X ", b"a"),
    "method_empty": lambda head: setattr(head, "method", b""),
    "method_with_space": lambda head: setattr(head, "method", b"GET /"),
    "method_that_target_is_not_for": lambda head: setattr(head, "method", b"CONNECT"),
    "target_empty": lambda head: setattr(head, "target", b""),
    "target_with_space": lambda head: setattr(head, "target", b"/a b"),
    "target_with_crlf": lambda head: setattr(head, "target", b"/ HTTP/1.1\r\nX: y"),
    "target_relative": lambda head: setattr(head, "target", b"a"),
}


@pytest.mark.parametrize("edit", BAD_EDITS.values(), ids=BAD_EDITS)
def test_an_edit_that_would_break_the_head_is_refused_and_changes_nothing(edit):
    head = parse_request_head(HEAD)
    with pytest.raises(LocalProtocolError):
        edit(head)
    assert head.to_bytes() == HEAD


@pytest.mark.parametrize(("name", "value"), [("status", 99), ("status", 1000), ("reason", b"a\r\nb")])
def test_a_bad_status_line_is_refused(name, value):
    head = parse_response_head(OK)
    with pytest.raises(LocalProtocolError):
        setattr(head, name, value)
    assert head.to_bytes() == OK


def test_with_body_fits_the_length_and_keeps_the_rest():
    head = parse_request_head(b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length:5\r\nX:  y \r\n\r\n")
    assert with_body(head, b"hi") == b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length:2\r\nX:  y \r\n\r\nhi"
    assert with_body(head, b"") == b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length:0\r\nX:  y \r\n\r\n"
    assert head.headers.get(b"Content-Length") == b"5"


def test_with_body_replaces_chunked_and_adds_a_length():
    head = parse_response_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n")
    assert with_body(head, b"hi") == b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 2\r\n\r\nhi"
    assert with_body(head, b"") == b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 0\r\n\r\n"
    bare = parse_response_head(b"HTTP/1.1 200 OK\r\n\r\n")
    assert with_body(bare, b"hi") == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    assert with_body(bare, b"") == b"HTTP/1.1 200 OK\r\n\r\n"
