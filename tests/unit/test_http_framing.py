"""Tables of messages, each run whole and byte by byte: how the bytes are cut must not matter."""

import pytest

from gopher.http.framing import REGISTERED_METHODS, RequestFramer, ResponseFramer, find_request, request_may_start

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST /form HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + body


def response(fields: bytes, body: bytes = b"", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n" + body


def in_both_cuts(make_framer, data: bytes):
    """The framer fed with `data`, after checking that feeding single bytes ends in the same state."""
    whole, bytewise = make_framer(), make_framer()
    whole.feed(data)
    for byte in data:
        bytewise.feed(bytes([byte]))
    for name in ("started", "completed", "opaque", "in_message", "until_close", "body_left"):
        assert getattr(whole, name, None) == getattr(bytewise, name, None), name
    return whole


def feed_requests(data: bytes) -> RequestFramer:
    return in_both_cuts(RequestFramer, data)


def feed_responses(data: bytes, *requests: bytes) -> ResponseFramer:
    def make() -> ResponseFramer:
        framer = RequestFramer()
        framer.feed(b"".join(requests))
        return ResponseFramer(framer)

    return in_both_cuts(make, data)


WHOLE_REQUESTS = {
    "no_body": GET,
    "bare_lf": b"GET / HTTP/1.1\nHost: a\n\n",
    "http_1_0": b"GET / HTTP/1.0\r\n\r\n",
    "asterisk_target": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown_method": b"X-!#$%&'*+.^_`|~9 / HTTP/1.1\r\n\r\n",
    "method_of_64_bytes": b"M" * 64 + b" / HTTP/1.1\r\n\r\n",
    "target_of_100_kb": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "field_of_100_kb": b"GET / HTTP/1.1\r\nCookie: " + b"x" * 100_000 + b"\r\n\r\n",
    "length": post(b"Content-Length: 5\r\n", b"hello"),
    "length_zero": post(b"Content-Length: 0\r\n"),
    "length_in_capitals": post(b"CONTENT-LENGTH: 5\r\n", b"hello"),
    "length_without_blank": post(b"Content-Length:5\r\n", b"hello"),
    "length_among_blanks": post(b"Content-Length: \t 5 \t \r\n", b"hello"),
    "length_bare_lf": post(b"Content-Length: 5\n", b"hello"),
    "length_with_leading_zeros": post(b"Content-Length: 000000005\r\n", b"hello"),
    "length_twice": post(b"Content-Length: 5\r\nX: y\r\nContent-Length: 5\r\n", b"hello"),
    "length_list": post(b"Content-Length: 5, 5 ,5\r\n", b"hello"),
    "body_like_a_request": post(b"Content-Length: %d\r\n" % len(GET), GET),
    "names_like_length": post(b"Content-Length-X: 5\r\nContent-Lengt: 5\r\nXContent-Length: 5\r\n"),
    "names_like_coding": post(b"Transfer-Encodings: chunked\r\nTransfer-Encodin: chunked\r\n"),
    "folded_other_field": post(b"X: a\r\n Content-Length: 5\r\n\tContent-Length: 6\r\n"),
    "folded_after_length_and_plain": post(b"Content-Length: 5\r\nX: y\r\n folded\r\n", b"hello"),
    "folded_after_length_and_cookie": post(b"Content-Length: 5\r\nCookie: d\r\n folded\r\n", b"hello"),
    "chunked": post(b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    "chunked_empty": post(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "chunked_in_capitals": post(b"TRANSFER-ENCODING: CHUNKED\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    "chunked_without_blank": post(b"Transfer-Encoding:chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    "chunked_bare_lf": post(b"Transfer-Encoding: chunked\n", b"5\nhello\n0\n\n"),
    "chunked_hex": post(b"Transfer-Encoding: chunked\r\n", b"1f\r\n%31d\r\n00A\r\n%10d\r\n0\r\n\r\n" % (0, 0)),
    "chunked_extensions": post(b"Transfer-Encoding: chunked\r\n", b'1;a="b\r\nx\r\n1 ; c\r\ny\r\n0;last\r\n\r\n'),
    "chunked_trailers": post(b"Transfer-Encoding: chunked\r\n", b"0\r\nContent-Length: 9\r\n folded\r\nX: y\r\n\r\n"),
    "chunked_folded_first_trailer": post(b"Transfer-Encoding: chunked\r\n", b"0\r\n folded\r\n\r\n"),
    "chunked_body_like_an_end": post(b"Transfer-Encoding: chunked\r\n", b"5\r\n0\r\n\r\n\r\n0\r\n\r\n"),
    "chunked_last": post(b"Transfer-Encoding: gzip;q=1, chunked\r\n", b"0\r\n\r\n"),
    "chunked_last_in_two_lines": post(b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "chunked_with_empty_elements": post(b"Transfer-Encoding: , chunked ,, \r\n", b"0\r\n\r\n"),
    "chunked_wins": post(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "chunked_wins_first": post(b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"0\r\n\r\n"),
    "upgrade": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("message", WHOLE_REQUESTS.values(), ids=WHOLE_REQUESTS)
def test_request_ends_at_its_last_byte(message):
    short = feed_requests(message[:-1])
    assert (short.started, short.completed, short.opaque, short.in_message) == (1, 0, False, True)
    exact = feed_requests(message)
    assert (exact.started, exact.completed, exact.opaque, exact.in_message) == (1, 1, False, False)
    followed = feed_requests(message + b"\r\n" + GET)
    assert (followed.started, followed.completed, followed.opaque) == (2, 2, False)


UNCERTAIN_REQUESTS = {
    "http_0_9": b"GET /\r\n",
    "http_2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version_of_two_digits": b"GET / HTTP/1.11\r\n",
    "version_missing": b"GET / \r\n",
    "version_bare_cr": b"GET / HTTP/1.1\rX",
    "version_two_crs": b"GET / HTTP/1.1\r\r\n",
    "target_empty": b"GET  HTTP/1.1\r\n",
    "two_spaces_before_target": b"GET  / HTTP/1.1\r\n",
    "space_in_target": b"GET /a b HTTP/1.1\r\n",
    "no_target": b"GET\r\n",
    "method_not_a_token": b"G:T / HTTP/1.1\r\n",
    "lines_of_another_protocol": b"EHLO example.com\r\nMAIL FROM:<a@b>\r\n",
    "length_contradictory": post(b"Content-Length: 5\r\nContent-Length: 6\r\n"),
    "length_list_contradictory": post(b"Content-Length: 5, 6\r\n"),
    "length_list_ends_in_comma": post(b"Content-Length: 5,\r\n"),
    "length_empty": post(b"Content-Length:\r\n"),
    "length_signed": post(b"Content-Length: +5\r\n"),
    "length_negative": post(b"Content-Length: -5\r\n"),
    "length_hex": post(b"Content-Length: 0x5\r\n"),
    "length_two_words": post(b"Content-Length: 5 5\r\n"),
    "length_of_64_bits": post(b"Content-Length: 9223372036854775808\r\n"),
    "length_of_many_digits": post(b"Content-Length: 100000000000000000005\r\n"),
    "length_blank_before_colon": post(b"Content-Length : 5\r\n"),
    "length_without_colon": post(b"Content-Length\r\n"),
    "length_in_a_long_line": post(b"Content-Length: " + b" " * 200 + b"5\r\n"),
    "length_folded": post(b"Content-Length: 5\r\n 6\r\n"),
    "coding_folded": post(b"Transfer-Encoding: gzip,\r\n\tchunked\r\n"),
    "coding_not_chunked": post(b"Transfer-Encoding: gzip\r\n"),
    "coding_like_chunked": post(b"Transfer-Encoding: xchunked\r\n"),
    "coding_with_parameter": post(b"Transfer-Encoding: chunked;a=b\r\n"),
    "coding_empty": post(b"Transfer-Encoding:\r\n"),
    "coding_chunked_not_last": post(b"Transfer-Encoding: chunked, gzip\r\n"),
    "coding_chunked_not_last_line": post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n"),
    "coding_not_chunked_and_length": post(b"Content-Length: 5\r\nTransfer-Encoding: gzip\r\n"),
    "line_begins_with_bare_cr": post(b"\rX: y\r\n"),
    "chunk_size_missing": post(b"Transfer-Encoding: chunked\r\n", b"\r\n"),
    "chunk_size_blank": post(b"Transfer-Encoding: chunked\r\n", b" 5\r\n"),
    "chunk_size_not_hex": post(b"Transfer-Encoding: chunked\r\n", b"5g\r\n"),
    "chunk_size_of_64_bits": post(b"Transfer-Encoding: chunked\r\n", b"8000000000000000"),
    "chunk_longer_than_its_size": post(b"Transfer-Encoding: chunked\r\n", b"1\r\nxy"),
    "chunk_end_bare_cr": post(b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\r"),
}


@pytest.mark.parametrize("data", UNCERTAIN_REQUESTS.values(), ids=UNCERTAIN_REQUESTS)
def test_request_with_uncertain_end_turns_opaque_and_never_completes(data):
    framer = feed_requests(GET + data)
    assert (framer.started, framer.completed, framer.opaque, framer.in_message) == (2, 1, True, False)
    assert framer.feed(b"\r\n\r\n" + GET) == -1
    assert (framer.started, framer.completed, framer.opaque) == (2, 1, True)


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00", b"\x81\x85mask", b"\x00", b"(GET / HTTP/1.1\r\n"])
def test_first_byte_of_no_method_is_opaque_and_starts_nothing(data):
    framer = feed_requests(GET + data)
    assert (framer.started, framer.completed, framer.opaque) == (1, 1, True)


def test_largest_lengths_are_taken():
    assert feed_requests(post(b"Content-Length: 9223372036854775807\r\n")).in_message
    assert feed_requests(post(b"Transfer-Encoding: chunked\r\n", b"0007fffffffffffffff\r\n")).in_message


def test_framing_field_of_128_bytes_with_its_cr_is_read_and_one_more_is_not():
    line = b"Content-Length: %111d\r\n" % 5
    assert len(line.removesuffix(b"\n")) == 128
    assert feed_requests(post(line, b"hello")).completed == 1
    assert feed_requests(post(line.replace(b"5", b" 5"), b"hello")).opaque


def test_connect_completes_and_what_follows_is_a_tunnel():
    framer = feed_requests(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n" + GET)
    assert (framer.started, framer.completed, framer.opaque) == (1, 1, True)


@pytest.mark.parametrize("method", [b"XCONNECT", b"XXCONNECT", b"connect", b"CONNECTX"])
def test_methods_like_connect_open_no_tunnel(method):
    assert not feed_requests(method + b" / HTTP/1.1\r\n\r\n").opaque


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"", -1),
        (b"\r\n\n\r\n", -1),
        (b"G", 0),
        (b"\r\n\r\nGET", 4),
        (GET + GET, 0),
        (b"\n" + GET + GET, 1),
        (b"\x16\x03", -1),
    ],
)
def test_feed_returns_offset_of_the_first_method(data, offset):
    assert RequestFramer().feed(data) == offset


def test_feed_in_the_middle_of_a_request_returns_offset_of_the_next():
    message = post(b"Content-Length: 5\r\n", b"hello")
    for cut in range(1, len(message)):
        framer = RequestFramer()
        assert framer.feed(message[:cut]) == 0
        assert framer.feed(message[cut:]) == -1
        framer = RequestFramer()
        framer.feed(message[:cut])
        assert framer.feed(message[cut:] + b"\r\n" + GET + GET) == len(message) - cut + 2


def test_request_is_started_by_its_first_byte():
    framer = RequestFramer()
    framer.feed(GET + b"P")
    assert (framer.started, framer.completed, framer.in_message) == (2, 1, True)


WHOLE_RESPONSES = {
    "length": response(b"Content-Length: 5\r\n", b"hello"),
    "length_zero": response(b"Content-Length: 0\r\n"),
    "no_reason": response(b"Content-Length: 5\r\n", b"hello", status=b"200"),
    "empty_reason": response(b"Content-Length: 5\r\n", b"hello", status=b"200 "),
    "bare_lf": b"HTTP/1.0 200\nContent-Length: 5\n\nhello",
    "chunked": response(b"Transfer-Encoding: chunked\r\n", b"5;x\r\nhello\r\n0\r\nX: y\r\n\r\n"),
    "chunked_wins": response(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "204": response(b"", status=b"204 No Content"),
    "304_with_length": response(b"Content-Length: 5\r\n", status=b"304 Not Modified"),
    "204_chunked": response(b"Transfer-Encoding: chunked\r\n", status=b"204 No Content"),
    "408": response(b"Content-Length: 1\r\n", b"x", status=b"408 Request Timeout"),
    "999": response(b"Content-Length: 1\r\n", b"x", status=b"999 Odd"),
}


@pytest.mark.parametrize("requests", [(), (GET, GET)], ids=["before_its_request", "after_its_request"])
@pytest.mark.parametrize("message", WHOLE_RESPONSES.values(), ids=WHOLE_RESPONSES)
def test_response_ends_at_its_last_byte(message, requests):
    short = feed_responses(message[:-1], *requests)
    assert (short.started, short.completed, short.opaque, short.in_message) == (1, 0, False, True)
    exact = feed_responses(message, *requests)
    assert (exact.started, exact.completed, exact.opaque, exact.in_message) == (1, 1, False, False)
    followed = feed_responses(message + b"\r\n" + OK, *requests)
    assert (followed.started, followed.completed, followed.opaque, followed.until_close) == (2, 2, False, False)


@pytest.mark.parametrize(
    "message",
    [
        response(b"", b"hello"),
        b"HTTP/1.0 200 OK\r\n\r\n",
        response(b"Transfer-Encoding: gzip\r\n"),
        response(b"Content-Length: 5\r\nTransfer-Encoding: gzip\r\n", b"hello"),
    ],
)
def test_response_without_length_lasts_until_close(message):
    framer = feed_responses(OK + message, GET, GET)
    assert (framer.started, framer.completed, framer.opaque) == (2, 1, False)
    assert framer.until_close
    assert framer.in_message
    assert framer.feed(OK) == -1
    assert (framer.started, framer.completed, framer.opaque) == (2, 1, False)


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"HTTP/2 200\r\n",
        b"HTTP/1.10 200 OK\r\n",
        b"HTTP/1.1\t200 OK\r\n",
        b"HTTP/1.1 20 OK\r\n",
        b"HTTP/1.1 2000\r\n",
        b"HTTP/1.1 099 Low\r\n",
        b"\x16\x03\x01",
    ],
)
def test_bad_status_line_is_opaque_and_starts_nothing(data):
    framer = feed_responses(OK + data, GET, GET)
    assert (framer.started, framer.completed, framer.opaque, framer.in_message) == (1, 1, True, False)
    assert framer.feed(OK) == -1


@pytest.mark.parametrize(
    "message",
    [
        response(b"Content-Length: 5\r\nContent-Length: 6\r\n"),
        response(b"Content-Length: five\r\n"),
        response(b"Transfer-Encoding: chunked\r\n", b"x"),
    ],
)
def test_response_with_uncertain_end_turns_opaque(message):
    framer = feed_responses(message, GET)
    assert (framer.started, framer.completed, framer.opaque) == (1, 0, True)


@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints", b"199"])
def test_interim_responses_are_passed_over(interim):
    head = response(b"Link: </a>\r\nContent-Length: x\r\n", status=interim)
    alone = feed_responses(head, GET)
    assert (alone.started, alone.completed, alone.opaque, alone.in_message) == (0, 0, False, False)
    assert feed_responses(head[:-1], GET).in_message
    final = feed_responses(head + head + OK, GET)
    assert (final.started, final.completed, final.opaque) == (1, 1, False)


def test_101_completes_and_what_follows_is_a_tunnel():
    framer = feed_responses(OK + response(b"Upgrade: x\r\n", b"HTTP/", status=b"101 Switching Protocols"), GET, GET)
    assert (framer.started, framer.completed, framer.opaque) == (2, 2, True)


def test_answer_to_head_has_no_body():
    head = b"HEAD / HTTP/1.1\r\n\r\n"
    message = response(b"Content-Length: 5\r\n")
    assert feed_responses(message + message + b"hello", head, GET).completed == 2
    assert feed_responses(message + b"hello" + message, GET, head).completed == 2
    assert feed_responses(response(b""), head).completed == 1
    assert feed_responses(response(b"Transfer-Encoding: chunked\r\n"), head).completed == 1


def test_success_of_connect_opens_a_tunnel_and_failure_does_not():
    connect = b"CONNECT a:1 HTTP/1.1\r\n\r\n"
    for status in (b"200 OK", b"204 No Content", b"299"):
        framer = feed_responses(response(b"Content-Length: 5\r\n", OK, status=status), connect)
        assert (framer.started, framer.completed, framer.opaque) == (1, 1, True)
    refused = feed_responses(response(b"Content-Length: 5\r\n", b"hello", status=b"407 No") + OK, connect)
    assert (refused.started, refused.completed, refused.opaque) == (2, 2, False)
    assert not feed_responses(OK, GET, connect).opaque


def test_methods_of_the_last_64_requests_are_known():
    head = b"HEAD / HTTP/1.1\r\n\r\n"
    message = response(b"Content-Length: 5\r\n")
    for before in (0, 1, 63, 64, 65):
        requests = RequestFramer()
        responses = ResponseFramer(requests)
        for _ in range(before):
            requests.feed(GET)
            responses.feed(OK)
        requests.feed(head + GET * 63)
        responses.feed(message + OK * 63)
        assert (responses.completed, responses.opaque) == (before + 64, False)


def test_method_bit_of_64_requests_ago_is_cleared():
    requests = RequestFramer()
    responses = ResponseFramer(requests)
    requests.feed(b"HEAD / HTTP/1.1\r\n\r\n")
    responses.feed(OK)
    requests.feed(GET * 64)
    responses.feed(OK * 63 + response(b"Content-Length: 5\r\n", b"hello"))
    assert (responses.completed, responses.opaque) == (65, False)


def test_answer_more_than_64_requests_behind_a_head_turns_opaque():
    framer = feed_responses(OK, GET * 64 + b"HEAD / HTTP/1.1\r\n\r\n")
    assert (framer.started, framer.completed, framer.opaque) == (1, 0, True)


def test_answers_are_followed_however_far_behind_while_no_head_is_among_the_requests():
    requests = RequestFramer()
    responses = ResponseFramer(requests)
    requests.feed(b"HEAD / HTTP/1.1\r\n\r\n")
    responses.feed(response(b"Content-Length: 5\r\n"))
    requests.feed(GET * 1000)
    responses.feed(OK * 1000)
    assert (responses.completed, responses.opaque) == (1001, False)


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"", -1),
        (b"HTTP/1.1 200", -1),
        (b"HTTP/1.1 200 ", 0),
        (b"\r\n" + OK + OK, 2),
        (response(b"", status=b"100 Continue") + OK, len(response(b"", status=b"100 Continue"))),
        (response(b"", status=b"100 Continue"), -1),
        (b"nonsense", -1),
    ],
)
def test_feed_returns_offset_of_the_first_counted_response(data, offset):
    assert ResponseFramer().feed(data) == offset


def test_feed_returns_0_for_a_response_that_began_earlier():
    framer = ResponseFramer()
    assert framer.feed(OK + b"HTTP/1.1 20") == 0
    assert framer.feed(b"0 OK\r\nContent-Length: 0\r\n\r\n" + OK) == 0
    assert framer.completed == 3


def test_skip_counts_as_fed():
    framer = ResponseFramer()
    framer.feed(response(b"Content-Length: 100\r\n", b"x" * 10))
    assert framer.body_left == 90
    framer.skip(40)
    assert (framer.body_left, framer.completed) == (50, 0)
    framer.skip(50)
    assert (framer.body_left, framer.completed, framer.in_message) == (0, 1, False)
    framer.feed(response(b"Transfer-Encoding: chunked\r\n", b"10\r\n"))
    assert framer.body_left == 16
    framer.skip(16)
    framer.feed(b"\r\n2\r\nab")
    assert framer.body_left == 0
    framer.feed(b"\r\n0\r\n\r\n" + OK)
    assert (framer.completed, framer.opaque) == (3, False)


def test_skip_of_more_than_is_left_is_refused_and_changes_nothing():
    framer = ResponseFramer()
    framer.feed(response(b"Content-Length: 3\r\n"))
    with pytest.raises(ValueError, match="at most body_left, 3, not 4"):
        framer.skip(4)
    with pytest.raises(OverflowError):
        framer.skip(-1)
    assert (framer.body_left, framer.completed) == (3, 0)


def test_any_contiguous_buffer_is_taken():
    framer = RequestFramer()
    framer.feed(memoryview(GET)[:5])
    framer.feed(bytearray(GET[5:]))
    assert framer.completed == 1
    with pytest.raises(TypeError):
        framer.feed("GET")


def test_framers_are_small():
    assert RequestFramer.__basicsize__ <= 256
    assert ResponseFramer.__basicsize__ <= 256


JOINABLE = {
    "origin": GET,
    "absolute": b"GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
    "authority_v6": b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "http_1_0_without_host": b"GET / HTTP/1.0\r\n\r\n",
    "host_last": b"GET / HTTP/1.1\r\nAccept: */*\r\nhOST:a\r\n\r\n",
    "empty_values": b"GET / HTTP/1.1\r\nX:\r\nHost:\r\n\r\n",
    "value_of_any_bytes": b"GET / HTTP/1.1\r\nHost: a\r\nX: \xff\t: GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize(
    "before",
    [
        *(b"", b"binary\x00\xff", b"a\r\n", b"GET / HTTP/1.1\r\nbroken\r\n\r\n", b" ", b"/ HTTP"),
        *(b" HTTP/1.", b" HTTP/1. HTTP/1.1\r", b"GET / HTTP/1.2\r\n\r\n", b"GET / HTTP/1.1\n"),
    ],
)
@pytest.mark.parametrize("head", JOINABLE.values(), ids=JOINABLE)
def test_find_request_finds_a_complete_head_anywhere(head, before):
    data = before + head
    assert find_request(data) == len(before)
    assert find_request(data + b"\x00 rest " + GET) == len(before)
    for cut in range(len(before), len(data)):
        assert find_request(data[:cut]) == -1
        assert request_may_start(data[:cut]) <= len(before)


@pytest.mark.parametrize("method", sorted(REGISTERED_METHODS - {b"CONNECT"}))
def test_find_request_knows_each_registered_method_from_its_first_byte(method):
    assert find_request(b"\n" + method + b" / HTTP/1.0\r\n\r\n") == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"xyz / HTTP/1.0\r\n\r\n",
        b"get / HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET  HTTP/1.0\r\n\r\n",
        b"GET  / HTTP/1.0\r\n\r\n",
        b"GET a HTTP/1.0\r\n\r\n",
        b"GET * HTTP/1.0\r\n\r\n",
        b"GET /\x00 HTTP/1.0\r\n\r\n",
        b"GET /\r\n/ HTTP/1.0\r\n\r\n",
        b"CONNECT / HTTP/1.0\r\n\r\n",
        b"CONNECT a HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.2\r\n\r\n",
        b"GET / HTTP/1.0\n\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Host: a\r\nX: host:\r\n\r\n",
    ],
)
def test_find_request_refuses_what_is_not_a_head(data):
    assert find_request(data) == -1
    assert request_may_start(data) == len(data)


def test_find_request_begins_at_start():
    data = GET + GET
    assert find_request(data, 0) == 0
    assert find_request(data, 1) == len(GET)
    assert find_request(data, len(GET)) == len(GET)
    assert find_request(data, len(GET) + 1) == -1


def test_candidates_inside_the_fields_of_another_share_their_fate():
    inner = b"X: GET / HTTP/1.%d\r\n"
    no_host = b"GET / HTTP/1.1\r\n" + inner % 1 + inner % 0 + b"\r\n"
    assert find_request(no_host) == no_host.rindex(b"GET")
    assert find_request(b"GET / HTTP/1.1\r\n" + inner % 0 + b"broken\r\n\r\n" + GET) == len(no_host) - len(inner) + 9
    assert request_may_start(b"." + no_host[:-2]) == 1


def test_find_request_reads_fields_once_however_many_candidates_they_hold():
    # Quadratic reading would take minutes here, not a fraction of a second.
    lines = b"GET / HTTP/1.1\r\n" + b"X: GET / HTTP/1.1\r\n" * 50_000
    assert find_request(lines) == -1
    assert request_may_start(lines) == 0
    assert find_request(lines + b"broken\r\n\r\n") == -1


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"", 0),
        (b"\x00\x01", 2),
        (b"..G", 2),
        (b"..GET", 2),
        (b"..GET ", 2),
        (b"..GET /index", 2),
        (b"..GET / ", 2),
        (b"..GET / HTTP/1.1\r", 2),
        (b"..GET / HTTP/1.2", 16),
        (b"..GET / HTTP/1.1\r\n", 2),
        (b"..GET / HTTP/1.1\r\nHo", 2),
        (b"..GET / HTTP/1.1\r\nHost:", 2),
        (b"..GET / HTTP/1.1\r\nHost: GET", 2),
        (b"..GET / HTTP/1.1\r\nHost: a\r", 2),
        (b"..GET / HTTP/1.1\r\nHost: a\r\n", 2),
        (b"..GET / HTTP/1.1\r\nHost: a\r\n\r", 2),
        (b"..GET / HTTP/1.1\r\nHost\r", 23),
        (b"..GET / HTTP/1.1\r\nHost GET", 23),
        (b"..UNLOC", 2),
        (b"..UNLOCK /", 2),
        (b"GET /a\nPU", 7),
    ],
)
def test_request_may_start_keeps_from_the_earliest_unfinished_head(data, offset):
    assert request_may_start(data) == offset
