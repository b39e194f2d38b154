"""What a script makes of a message is one message, and what it does not touch stays as it was."""

from hypothesis import given
from hypothesis import strategies as st

from gopher.errors import LocalProtocolError
from gopher.http.messages import BodyReceived, HeadReceived, MessageEnded, MessageLimits, MessageParser
from gopher.relay.exchange import Body, Connection, Exchange, Request, Response, Timing

NAMES = st.sampled_from(["Host", "X-A", "x-a", "Cookie", "Content-Length", "Transfer-Encoding", "Connection", "Té", ""])
VALUES = st.one_of(st.text(max_size=8), st.sampled_from(["close", "chunked", "5", "a\r\nX-Evil: 1", "\udcff"]))
BODIES = st.binary(max_size=40)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), NAMES, VALUES),
        st.tuples(st.just("add"), NAMES, VALUES),
        st.tuples(st.just("remove"), NAMES.filter(lambda name: name.lower() != "host"), st.just("")),
        st.tuples(st.just("body"), BODIES, st.just("")),
        st.tuples(st.just("line"), st.sampled_from(["method", "target", "status", "reason"]), VALUES),
    ),
    max_size=6,
)


class Nobody:
    """Nobody waits: bodies are whole."""

    def wait(self, body):
        raise AssertionError

    wait_settled = wait


def framed(start: bytes, body: bytes, chunked: bool) -> bytes:
    head = start + b"\r\nHost: a\r\nX-a:  1\r\nX-A: 2\r\n"
    if not chunked:
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunks = [body[at : at + 7] for at in range(0, len(body), 7)]
    encoded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + encoded


def read(role, data):
    """The head and the body of the one message that this is."""
    parser = MessageParser(role, limits=MessageLimits())
    if role == "response":
        parser.expect(b"GET")
    first, *events = parser.feed(data)
    assert isinstance(first, HeadReceived)
    assert isinstance(events[-1], MessageEnded)
    assert all(isinstance(event, BodyReceived) for event in events[:-1])
    assert parser.fault is None
    return first.head, b"".join(event.wire for event in events[:-1]), b"".join(event.content for event in events[:-1])


def edited(message, edits):
    """Apply the edits that are not refused. Returns whether there were any."""
    changed = False
    for kind, name, value in edits:
        try:
            if kind == "set":
                message.headers[name] = value
            elif kind == "add":
                message.headers.add(name, value)
            elif kind == "remove":
                message.headers.remove(name)
            elif kind == "body":
                message.body = name
            elif name == "status":
                message.status = 200 + len(value)
            else:
                if not hasattr(type(message), name):
                    continue
                setattr(message, name, value)
        except (LocalProtocolError, UnicodeEncodeError):
            continue
        changed = True
    return changed


@given(body=BODIES, chunked=st.booleans(), edits=EDITS, is_request=st.booleans())
def test_edited_message_is_one_message_with_its_body(body, chunked, edits, is_request):
    start = b"POST /a HTTP/1.1" if is_request else b"HTTP/1.1 200 OK"
    role = "request" if is_request else "response"
    data = framed(start, body, chunked)
    head, wire, content = read(role, data)
    assert content == body
    exchange = Exchange(1, Connection(1, None, None, 0.0, framed=False), Timing(0.0), None)
    source = Body(None, body)
    if is_request:
        exchange.request = Request(head, source)
        message = exchange.draft("request", Nobody()).request
    else:
        exchange.request = Request(read("request", framed(b"GET / HTTP/1.1", b"", False))[0], Body(None))
        exchange.shadow_response = Response(head, source)
        message = exchange.draft("shadow_response", Nobody()).shadow_response
    changed = edited(message, edits)
    try:
        message.check()
    except LocalProtocolError:
        # A Host that is none, for example.
        assert changed
        return
    sent = message.to_bytes() + (wire if message.content is None else b"")
    if not changed:
        assert sent == data
    new_head, _, new_content = read(role, sent)
    assert new_content == message.body
    assert [
        (name.encode("utf-8", "surrogateescape"), value) for name, value in message.headers if name == "X-Evil"
    ] == []
    fields = [each for each in new_head.headers if each[0].lower() not in (b"content-length", b"transfer-encoding")]
    wanted = [
        (name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape"))
        for name, value in message.headers
        if name.lower() not in ("content-length", "transfer-encoding")
    ]
    assert fields == wanted
    # The one the draft was made of is as it was.
    assert read(role, data)[0].to_bytes() == head.to_bytes()
