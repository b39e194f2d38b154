"""HTTP framing against its oracles (the generator's own boundaries, h11, httptools) and itself, cut otherwise."""

from bisect import bisect_left, bisect_right
from itertools import pairwise

import h11
import httptools
from hypothesis import given
from hypothesis import strategies as st

from gopher.http.framing import RequestFramer, ResponseFramer, find_request, request_may_start

LOWER = "abcdefghijklmnopqrstuvwxyz"
names = st.text(LOWER + "-", min_size=1, max_size=12).map(lambda name: "X-" + name)
# First letters like those of the framing fields, so that their lines are looked at.
other_names = st.one_of(names, st.sampled_from(["Content-Type", "content-language", "Cookie", "Trailer", "Accept"]))
values = st.one_of(st.text("".join(map(chr, range(33, 127))), max_size=20), st.just("long" * 50))
fields = st.lists(st.builds("{}: {}\r\n".format, other_names, values), max_size=3).map("".join).map(str.encode)
cased = st.sampled_from([str.lower, str.upper, str.title])


@st.composite
def bodies(draw):
    """(framing field, body bytes)"""
    kind = draw(st.sampled_from(["length", "chunked"]))
    case = draw(cased)
    if kind == "length":
        body = draw(st.binary(max_size=50))
        return case("content-length").encode() + b": %d\r\n" % len(body), body
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=3))
    extension = draw(st.sampled_from([b"", b";a=b", b';a="b c"']))
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return case("transfer-encoding").encode() + b": chunked\r\n", body + b"0\r\n" + draw(fields) + b"\r\n"


@st.composite
def requests(draw):
    method = draw(st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"DELETE", b"PROPFIND"]))
    target = b"/" + draw(st.text(LOWER + "/?&=%.", max_size=60)).encode()
    framing, body = draw(st.one_of(st.just((b"", b"")), bodies()))
    head = b"%s %s HTTP/1.1\r\nHost: example.com\r\n" % (method, target)
    return head + draw(fields) + framing + draw(fields) + b"\r\n" + body


@st.composite
def responses_to(draw, method):
    """(interim responses, final response)"""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * draw(st.integers(0, 2))
    if draw(st.booleans()):
        status, framing, body = draw(st.sampled_from([(b"204 No Content", b"", b""), (b"304 Not Modified", b"", b"")]))
    else:
        status, (framing, body) = draw(st.sampled_from([b"200 OK", b"404 Not Found", b"500"])), draw(bodies())
    if method == b"HEAD":
        body = b""
    return interim, b"HTTP/1.1 " + status + b"\r\n" + draw(fields) + framing + draw(fields) + b"\r\n" + body


@st.composite
def conversations(draw):
    """(requests, [(interim responses, final response)])"""
    asked = draw(st.lists(requests(), min_size=1, max_size=5))
    return asked, [draw(responses_to(message.split(b" ")[0])) for message in asked]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces that end at `cuts`, taken modulo its length; some may be empty."""
    ends = [0, *sorted(position % (len(data) + 1) for position in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(ends)]


cut_positions = st.lists(st.integers(0, 1 << 20), max_size=12)


def boundaries(messages: list[bytes]) -> tuple[list[int], list[int]]:
    """Offsets where the messages begin, and where they end."""
    ends = [sum(map(len, messages[: k + 1])) for k in range(len(messages))]
    return [end - len(message) for end, message in zip(ends, messages, strict=True)], ends


@given(st.lists(requests(), max_size=6), cut_positions)
def test_requests_are_counted_at_their_boundaries(messages, cuts):
    begins, ends = boundaries(messages)
    framer, oracle = RequestFramer(), RequestCounter()
    offset = 0
    for piece in cut(b"".join(messages), cuts):
        first = bisect_left(begins, offset)
        first_in_piece = begins[first] - offset if first < len(begins) and begins[first] < offset + len(piece) else -1
        assert framer.feed(piece) == first_in_piece
        offset += len(piece)
        oracle.feed(piece)
        assert framer.started == bisect_left(begins, offset) == oracle.started
        assert framer.completed == bisect_right(ends, offset) == oracle.completed
        assert framer.in_message == (framer.started > framer.completed)
    assert not framer.opaque


class RequestCounter:
    """What httptools makes of the same pieces."""

    def __init__(self):
        self.started = self.completed = 0
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self):
        self.started += 1

    def on_message_complete(self):
        self.completed += 1

    def feed(self, piece):
        self.parser.feed_data(piece)


@given(st.lists(requests(), min_size=1, max_size=4))
def test_requests_end_where_h11_says(messages):
    data = b"".join(messages)
    framer = RequestFramer()
    while data:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(data)
        while type(connection.next_event()) is not h11.EndOfMessage:
            pass
        rest = connection.trailing_data[0]
        before = framer.completed
        framer.feed(data[: len(data) - len(rest) - 1])
        assert framer.completed == before
        framer.feed(data[len(data) - len(rest) - 1 : len(data) - len(rest)])
        assert framer.completed == before + 1
        data = rest


@given(conversations(), cut_positions, st.booleans())
def test_responses_are_counted_at_their_boundaries(conversation, cuts, skipping):
    asked, answered = conversation
    ends = boundaries([interim + final for interim, final in answered])[1]
    requests_framer = RequestFramer()
    framer = ResponseFramer(requests_framer)
    requests_framer.feed(b"".join(asked))
    offset = 0
    for piece in cut(b"".join(interim + final for interim, final in answered), cuts):
        body = min(framer.body_left, len(piece)) if skipping else 0
        framer.skip(body)
        framer.feed(piece[body:])
        offset += len(piece)
        assert framer.completed == bisect_right(ends, offset)
        assert framer.started - framer.completed in (0, 1)
    assert (framer.started, framer.opaque, framer.until_close) == (len(answered), False, False)


@given(conversations())
def test_responses_end_where_h11_says(conversation):
    asked, answered = conversation
    requests_framer = RequestFramer()
    framer = ResponseFramer(requests_framer)
    requests_framer.feed(b"".join(asked))
    data = b"".join(interim + final for interim, final in answered)
    for completed, message in enumerate(asked, 1):
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method=message.split(b" ")[0], target="/", headers=[("Host", "a")]))
        connection.send(h11.EndOfMessage())
        connection.receive_data(data)
        while type(connection.next_event()) is not h11.EndOfMessage:
            pass
        rest = connection.trailing_data[0]
        framer.feed(data[: len(data) - len(rest)])
        assert (framer.completed, framer.in_message) == (completed, False)
        data = rest


FRAGMENTS = [
    b"GET", b"HEAD", b"CONNECT", b"UN", b"LOCK", b" ", b"/", b"*", b"a:1", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/1.",
    b"\r\n", b"\n", b"\r", b":", b";x", b",", b"\t", b"\x00", b"abc", b"3", b"0", b"chunked", b"x" * 130,
    b"Host: a\r\n", b"Content-Length: 3\r\n", b"Content-Length:", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding:", b"3\r\nabc\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"X: GET / HTTP/1.0\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 \r\n", b"HTTP/1.1 101 \r\n",
    b"HTTP/1.1 204 \r\n", b"HTTP/1.1 20",
]  # fmt: skip
soups = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map(b"".join)
requestlike = st.tuples(st.sampled_from([b"", b"POST / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n"]), soups).map(b"".join)
responselike = st.tuples(st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n"]), soups).map(b"".join)


def state(framer) -> tuple:
    names = ("started", "completed", "opaque", "in_message", "until_close", "body_left")
    return tuple(getattr(framer, name, None) for name in names)


@given(st.one_of(requestlike, st.binary(max_size=100)), cut_positions)
def test_cutting_any_request_bytes_changes_nothing(data, cuts):
    whole, pieces = RequestFramer(), RequestFramer()
    first = whole.feed(data)
    offset = 0
    first_of_pieces = -1
    for piece in cut(data, cuts):
        found = pieces.feed(piece)
        if found >= 0 and first_of_pieces < 0:
            first_of_pieces = offset + found
        offset += len(piece)
    assert state(pieces) == state(whole)
    assert first_of_pieces == first
    assert whole.started - whole.completed in (0, 1)
    assert (first >= 0) == (whole.started > 0)


@given(st.one_of(responselike, st.binary(max_size=100)), cut_positions, st.sampled_from([b"GET", b"HEAD", b"CONNECT"]))
def test_cutting_any_response_bytes_changes_nothing(data, cuts, method):
    asked = RequestFramer()
    asked.feed(method + b" / HTTP/1.1\r\n\r\n")
    whole, pieces = ResponseFramer(asked), ResponseFramer(asked)
    first = whole.feed(data)
    for piece in cut(data, cuts):
        pieces.feed(piece)
    assert state(pieces) == state(whole)
    assert whole.started - whole.completed in (0, 1)
    assert (first >= 0) == (whole.started > 0)


@given(st.one_of(soups, st.tuples(soups, requests(), soups).map(b"".join)), cut_positions)
def test_joining_piece_by_piece_finds_what_joining_the_whole_finds(data, cuts):
    found = -1
    kept, kept_offset = b"", 0
    for piece in cut(data, cuts):
        kept += piece
        found = find_request(kept)
        if found >= 0:
            found += kept_offset
            break
        start = request_may_start(kept)
        kept, kept_offset = kept[start:], kept_offset + start
    assert found == find_request(data)


@given(soups, requests(), st.binary(max_size=20))
def test_a_request_is_found_and_framed_from_where_it_is_found(before, request, after):
    data = before + request + after
    found = find_request(data)
    assert 0 <= found <= len(before)
    framer = RequestFramer()
    assert framer.feed(data[found:]) == 0
    assert find_request(data[:found]) == -1
