"""The strict parser against its oracles (the generator's own messages, h11, httptools) and itself, cut otherwise."""

from contextlib import suppress
from itertools import pairwise

import h11
import httptools
from hypothesis import given
from hypothesis import strategies as st

from gopher.errors import LocalProtocolError
from gopher.http.messages import MessageLimits, parse_request_head, with_body
from tests.support.messages import Transcript, read, requests, responses

LIMITS = MessageLimits(max_head_bytes=2_000, max_target_bytes=200, max_chunk_line_bytes=64, max_trailer_bytes=200)

LOWER = "abcdefghijklmnopqrstuvwxyz"
blanks = st.sampled_from([b"", b" ", b"  ", b"\t", b" \t "])
names = st.one_of(
    st.text(LOWER + "-_!#", min_size=1, max_size=12).map(lambda name: b"X-" + name.encode()),
    st.sampled_from([b"Content-Type", b"cookie", b"COOKIE", b"Connection", b"Transfer-Encodings", b"Hosts"]),
)
values = st.lists(st.text("".join(map(chr, range(33, 127))), min_size=1, max_size=9), max_size=3).map(
    lambda words: " ".join(words).encode()
)
lines = st.builds(lambda *parts: b"%b:%b%b%b\r\n" % parts, names, blanks, values, blanks)
fields = st.lists(lines, max_size=3).map(b"".join)
trailers = st.lists(lines, max_size=2).map(b"".join)
extensions = st.sampled_from([b"", b";a", b";a=b", b';a="b; c";d'])
cased = st.sampled_from([bytes.lower, bytes.upper, bytes.title])


@st.composite
def bodies(draw):
    """(framing field, wire, content)"""
    case, content = draw(cased), draw(st.binary(max_size=60))
    if draw(st.booleans()):
        return (
            case(b"content-length") + b":%b%d \r\n" % (draw(st.sampled_from([b"", b" "])), len(content)),
            content,
            content,
        )
    ends = sorted({0, len(content), *draw(st.lists(st.integers(0, len(content)), max_size=3))})
    size = draw(st.sampled_from([b"%x", b"%X", b"%04x"]))
    wire = b"".join(
        size % (end - begin) + draw(extensions) + b"\r\n" + content[begin:end] + b"\r\n"
        for begin, end in pairwise(ends)
    )
    wire += b"0%b\r\n%b\r\n" % (draw(extensions), draw(trailers))
    return case(b"transfer-encoding") + b": " + case(b"chunked") + b"\r\n", wire, content


no_body = st.just((b"", b"", b""))


@st.composite
def requests_and_contents(draw):
    method = draw(st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"DELETE", b"PROPFIND"]))
    target = b"/" + draw(st.text(LOWER + "/?&=%.", max_size=60)).encode()
    framing, wire, content = draw(st.one_of(no_body, bodies()))
    host = draw(st.sampled_from([b"Host: a\r\n", b"hOST:\ta.example:80 \r\n", b"HOST: [::1]\r\n"]))
    head = b"%b %b HTTP/1.1\r\n" % (method, target) + draw(fields) + host + framing + draw(fields) + b"\r\n"
    return head, wire, content


@st.composite
def responses_and_contents(draw):
    """With the method that each answers; interim responses come before some."""
    method = draw(st.sampled_from([b"GET", b"HEAD", b"POST"]))
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    if draw(st.booleans()):
        status, (framing, wire, content) = draw(st.sampled_from([b"204 No Content", b"304 "])), draw(no_body)
    else:
        status, (framing, wire, content) = draw(st.sampled_from([b"200 OK", b"404 Not Found", b"500 "])), draw(bodies())
    if method == b"HEAD":
        wire = content = b""
    return method, interim, b"HTTP/1.1 " + status + b"\r\n" + draw(fields) + framing + b"\r\n", wire, content


cut_positions = st.lists(st.integers(0, 1 << 20), max_size=12)


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    ends = [0, *sorted(position % (len(data) + 1) for position in positions), len(data)]
    return [data[begin:end] for begin, end in pairwise(ends)]


@given(st.lists(requests_and_contents(), max_size=4), cut_positions)
def test_requests_are_read_as_they_were_written(messages, positions):
    data = b"".join(head + wire for head, wire, _ in messages)
    transcript = read(requests(LIMITS), cut(data, positions), end=True)
    assert transcript.fault is None
    read_back = [(message.head.to_bytes(), message.wire, message.content) for message in transcript.messages]
    assert read_back == messages


@given(st.lists(responses_and_contents(), max_size=4), cut_positions)
def test_responses_are_read_as_they_were_written(messages, positions):
    parser = responses(*(method for method, *_ in messages), limits=LIMITS)
    data = b"".join(b"".join(message[1:4]) for message in messages)
    transcript = read(parser, cut(data, positions), end=True)
    assert transcript.fault is None
    final = [message for message in transcript.messages if message.head.status >= 200]
    assert [(message.head.to_bytes(), message.wire, message.content) for message in final] == [
        (head, wire, content) for _, _, head, wire, content in messages
    ]
    assert b"".join(message.bytes for message in transcript.messages) == data


edits = st.lists(
    st.tuples(
        st.integers(0, 1 << 20),
        st.integers(0, 3),
        st.one_of(
            st.binary(max_size=2),
            st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b",", b"0", b"\0", b";", b'"', b"\r\n\r\n"]),
            st.sampled_from([b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"chunked", b"Host: b\r\n"]),
        ),
    ),
    max_size=3,
)


@st.composite
def almost(draw, messages):
    data = draw(messages)
    for position, removed, inserted in draw(edits):
        position %= len(data) + 1
        data = data[:position] + inserted + data[position + removed :]
    return data


almost_requests = almost(
    st.lists(requests_and_contents().map(lambda m: m[0] + m[1]), min_size=1, max_size=2).map(b"".join)
)
almost_responses = almost(responses_and_contents().map(lambda m: b"".join(m[1:4])))


def check_any_bytes(make_parser, data: bytes, positions: list[int]) -> Transcript:
    whole = read(make_parser(), [data], end=True)
    assert read(make_parser(), cut(data, positions), end=True).comparable() == whole.comparable()
    passed = b"".join(message.bytes for message in whole.messages) + (whole.rest or b"")
    assert data.startswith(passed)
    if whole.fault is None:
        assert data.removeprefix(passed).strip(b"\r\n") == b""
        assert all(message.ended for message in whole.messages)
    else:
        assert len(passed) <= whole.fault.offset <= len(data)
    return whole


@given(st.one_of(almost_requests, st.binary(max_size=100)), cut_positions)
def test_any_request_bytes_are_passed_exactly_or_refused_however_they_are_cut(data, positions):
    check_any_bytes(lambda: requests(LIMITS), data, positions)


@given(
    st.one_of(almost_responses, st.binary(max_size=100)),
    cut_positions,
    st.sampled_from([b"GET", b"HEAD", b"CONNECT"]),
    st.booleans(),
)
def test_any_response_bytes_are_passed_exactly_or_refused_however_they_are_cut(data, positions, method, upgrade):
    check_any_bytes(lambda: responses(method, upgrade=upgrade, limits=LIMITS), data, positions)


def read_with_h11(data: bytes) -> list[tuple[bytes, bytes, bytes]] | None:
    """(method, target, content) of each complete request; None if h11 refuses any of it."""
    found = []
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    connection.receive_data(b"")
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                method, target, content = event.method, event.target, b""
            elif isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                found.append((method, target, content))
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return found
                connection.start_next_cycle()
            else:
                return found
    except h11.RemoteProtocolError:
        return None


class HttptoolsRequests:
    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes, bytes]] = []

    def on_message_begin(self) -> None:
        self.target = self.content = b""

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_body(self, part: bytes) -> None:
        self.content += part

    def on_message_complete(self) -> None:
        self.found.append((self.parser.get_method(), self.target, self.content))


def read_with_httptools(data: bytes) -> list[tuple[bytes, bytes, bytes]] | None:
    protocol = HttptoolsRequests()
    protocol.parser = httptools.HttpRequestParser(protocol)
    try:
        protocol.parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    return protocol.found


def accepted(data: bytes) -> list[tuple[bytes, bytes, bytes]] | None:
    transcript = read(requests(LIMITS), [data], end=True)
    if transcript.fault is not None or transcript.rest is not None:
        return None
    return [(message.head.method, message.head.target, message.content) for message in transcript.messages]


def read_response_with_h11(method: bytes, data: bytes) -> tuple[int, bytes] | None:
    """(status, content) of the final response; None if h11 refuses it."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    connection.receive_data(b"")
    status, content = 0, b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
            elif not isinstance(event, h11.InformationalResponse):
                return (status, content) if isinstance(event, h11.EndOfMessage) else None
    except h11.RemoteProtocolError:
        return None


@given(st.lists(requests_and_contents(), min_size=1, max_size=3))
def test_h11_and_httptools_read_valid_requests_alike(messages):
    data = b"".join(head + wire for head, wire, _ in messages)
    ours = accepted(data)
    assert ours is not None
    assert read_with_h11(data) == ours
    assert read_with_httptools(data) == ours


@given(almost_requests)
def test_requests_that_are_accepted_are_read_alike_by_h11_and_httptools(data):
    ours = accepted(data)
    if ours is None:
        return
    theirs = read_with_h11(data)
    assert theirs is None or theirs == ours
    theirs = read_with_httptools(data)
    assert theirs is None or theirs == ours


@given(responses_and_contents())
def test_h11_reads_valid_responses_alike(message):
    method, interim, head, wire, content = message
    assert read_response_with_h11(method, interim + head + wire) == (int(head.split(b" ")[1]), content)


@given(almost_responses, st.sampled_from([b"GET", b"HEAD"]))
def test_responses_that_are_accepted_are_read_alike_by_h11(data, method):
    transcript = read(responses(method, limits=LIMITS), [data], end=True)
    if transcript.fault is None and transcript.messages and transcript.messages[-1].head.status >= 200:
        theirs = read_response_with_h11(method, data)
        last = transcript.messages[-1]
        assert theirs is None or theirs == (last.head.status, last.content)


@given(requests_and_contents(), names, values, st.binary(max_size=20))
def test_an_edited_message_is_read_back_as_edited(message, name, value, body):
    head = parse_request_head(message[0])
    kept = [pair for pair in head.headers if pair[0].lower() != name.lower()]
    head.headers.set(name, value)
    (read_back,) = read(requests(LIMITS), [with_body(head, body)], end=True).messages
    assert read_back.content == body
    assert read_back.head.headers.get_all(name) == [value]
    framing = (name.lower(), b"content-length", b"transfer-encoding")
    assert [pair for pair in read_back.head.headers if pair[0].lower() not in framing] == [
        pair for pair in kept if pair[0].lower() not in framing
    ]


snippets = st.lists(
    st.sampled_from(
        [b"a", b"X: y", b":", b"/", b" ", b"\r", b"\n", b"\r\n", b"\0", b"\r\n\r\n", b"GET / HTTP/1.1\r\n"]
    ),
    max_size=4,
).map(b"".join)


@given(snippets, snippets)
def test_no_edit_makes_two_messages_of_one_or_a_line_of_two(name, value):
    head = parse_request_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with suppress(LocalProtocolError):
        head.headers.add(name, value)
    with suppress(LocalProtocolError):
        head.method = name
    with suppress(LocalProtocolError):
        head.target = value
    (message,) = read(requests(LIMITS), [head.to_bytes()], end=True).messages
    assert list(message.head.headers) == list(head.headers)
    assert len(head.headers) <= 2
