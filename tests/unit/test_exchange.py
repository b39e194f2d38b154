"""What scripts see and may change."""

import pytest

from gopher.errors import BodyError, LocalProtocolError
from gopher.http.messages import parse_request_head, parse_response_head
from gopher.relay.exchange import Body, Connection, Exchange, Request, Response, Timing
from gopher.relay.places import MAX_BODY_BYTES

HEAD = b"POST /a?b=c HTTP/1.1\r\nHost: shop\r\nX-one:  1\r\nx-ONE: 2\r\nContent-Length: 5\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nServer: s\r\nTransfer-Encoding: chunked\r\n\r\n"


class Here:
    """Waits for nothing."""

    def wait(self, body):
        body.want(lambda: None)

    async def wait_settled(self, body):
        body.want(lambda: None)


def an_exchange(head=HEAD, body=b"hello"):
    connection = Connection(1, ("192.0.2.1", 1000), ("192.0.2.2", 80), 5.0, framed=False)
    return Exchange(1, connection, Timing(6.0), Request(parse_request_head(head), Body(None, body)))


def drafted(head=HEAD, body=b"hello"):
    return an_exchange(head, body).draft("request", Here())


def answered(answer=ANSWER, body=b"hello", **settings):
    exchange = an_exchange()
    exchange.shadow_response = Response(parse_response_head(answer), Body(None, body), **settings)
    return exchange.draft("shadow_response", Here())


def test_what_is_not_touched_keeps_its_bytes():
    draft = drafted()
    request = draft.request
    assert (request.method, request.target, request.version, request.body) == ("POST", "/a?b=c", "1.1", b"hello")
    assert list(request.headers) == [("Host", "shop"), ("X-one", "1"), ("x-ONE", "2"), ("Content-Length", "5")]
    assert request.headers.get_all("X-One") == ["1", "2"]
    assert (request.headers["host"], request.headers.get("none"), "X-ONE" in request.headers) == ("shop", None, True)
    assert request.to_bytes() == HEAD
    assert request.content is None
    assert draft.client == ("192.0.2.1", 1000)


def test_edits_change_only_their_lines():
    request = drafted().request
    request.method = "PUT"
    request.target = "/ä"
    request.headers["x-one"] = "3"
    request.headers.add("X-Two", "ü")
    del request.headers["Host"]
    assert request.to_bytes() == ("PUT /ä HTTP/1.1\r\nX-one:  3\r\nContent-Length: 5\r\nX-Two: ü\r\n\r\n".encode())


def test_lines_of_one_name_can_be_set_together_and_removed():
    headers = drafted().request.headers
    headers.set_all("X-One", ["7", "8", "9"])
    assert headers.get_all("x-one") == ["7", "8", "9"]
    headers.remove("x-one")
    headers.remove("x-one")
    assert "x-one" not in headers
    with pytest.raises(KeyError):
        del headers["x-one"]
    with pytest.raises(KeyError):
        headers["x-one"]


def test_bytes_that_are_no_text_survive():
    request = drafted(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xff\xfe\r\n\r\n", b"").request
    request.headers["Y"] = request.headers["X"]
    assert request.to_bytes() == b"GET / HTTP/1.1\r\nHost: a\r\nX: \xff\xfe\r\nY: \xff\xfe\r\n\r\n"


def test_new_body_has_its_length():
    request = drafted().request
    request.body = b"longer than before"
    assert request.body == b"longer than before"
    assert request.to_bytes() == HEAD.replace(b": 5\r", b": 18\r") + b"longer than before"


def test_new_body_of_a_chunked_message_is_framed_by_its_length():
    response = answered().shadow_response
    response.body = b"new"
    assert response.to_bytes() == b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: 3\r\n\r\nnew"


def test_the_same_body_again_changes_nothing():
    request = drafted().request
    request.body = request.body
    assert request.to_bytes() == HEAD


def test_body_is_bytes():
    with pytest.raises(TypeError, match="not str"):
        drafted().request.body = "text"


@pytest.mark.parametrize("name", ["Content-Length", "content-length", "Transfer-Encoding"])
def test_framing_is_gophers(name):
    headers = drafted().request.headers
    for edit in (
        lambda: headers.__setitem__(name, "9"),
        lambda: headers.add(name, "9"),
        lambda: headers.remove(name),
        lambda: headers.set_all(name, []),
    ):
        with pytest.raises(LocalProtocolError, match="follows the body"):
            edit()


@pytest.mark.parametrize(("old", "new"), [("POST", "HEAD"), ("POST", "CONNECT"), ("HEAD", "GET")])
def test_methods_that_say_how_the_answer_ends_stay(old, new):
    request = drafted(HEAD.replace(b"POST", old.encode())).request
    with pytest.raises(LocalProtocolError, match="ends in another way"):
        request.method = new
    request.method = old
    assert request.method == old


@pytest.mark.parametrize(("old", "new"), [(200, 204), (200, 304), (304, 200), (200, 101)])
def test_statuses_that_say_how_the_answer_ends_stay(old, new):
    response = answered(ANSWER.replace(b"200", str(old).encode())).shadow_response
    with pytest.raises(LocalProtocolError, match="ends in another way"):
        response.status = new


def test_status_and_reason():
    response = answered().shadow_response
    response.status, response.reason = 503, "Not now"
    assert response.to_bytes() == ANSWER.replace(b"200 OK", b"503 Not now")
    assert (response.status, response.reason) == (503, "Not now")


def test_answer_without_body_gets_none():
    with pytest.raises(LocalProtocolError, match="no body"):
        answered(body=b"", bodiless=True).shadow_response.body = b"x"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "\0"])
def test_no_line_is_smuggled_in(value):
    request = drafted().request
    for edit in (
        lambda: request.headers.__setitem__("X", value),
        lambda: setattr(request, "target", "/" + value),
        lambda: request.headers.add(value, "1"),
    ):
        with pytest.raises(LocalProtocolError):
            edit()
    assert request.to_bytes() == HEAD


def test_drafts_are_apart():
    exchange = an_exchange()
    exchange.metadata["a"] = 1
    draft = exchange.draft("request", Here())
    draft.request.headers["Host"] = "other"
    draft.request.body = b"other"
    draft.metadata["a"] = 2
    draft.drop()
    assert exchange.request.to_bytes() == HEAD
    assert exchange.metadata == {"a": 1}
    assert not exchange.dropped
    again = draft.draft("request", Here())
    assert again.request.headers["host"] == "other"
    assert (again.request.body, again.metadata, again.dropped) == (b"other", {"a": 2}, True)


def test_closed_draft_cannot_be_changed():
    draft = drafted()
    headers = draft.request.headers
    draft.close()
    for edit in (
        draft.drop,
        lambda: headers.add("a", "b"),
        lambda: setattr(draft.request, "target", "/"),
        lambda: setattr(draft.request, "body", b""),
    ):
        with pytest.raises(LocalProtocolError, match="its time is over"):
            edit()


def test_request_that_was_sent_cannot_be_changed():
    draft = answered()
    with pytest.raises(LocalProtocolError, match="has been sent"):
        draft.request.target = "/"
    with pytest.raises(LocalProtocolError, match="has been sent"):
        draft.drop()
    draft.shadow_response.status = 500


def test_productions_answer_cannot_be_changed():
    exchange = an_exchange()
    exchange.production_response = Response(parse_response_head(ANSWER), Body(None, b"x"))
    draft = exchange.draft("production_response", Here())
    assert draft.production_response.body == b"x"
    with pytest.raises(LocalProtocolError, match="production"):
        draft.production_response.status = 500


# -- bodies -----------------------------------------------------------------------------------------------------------


def test_body_is_asked_for_once_and_told_to_all():
    told = []
    body = Body(lambda: told.append("wanted"))
    body.add(b"ab")
    body.want(lambda: told.append(1))
    body.want(lambda: told.append(2))
    body.add(b"c")
    assert told == ["wanted"]
    body.end()
    assert told == ["wanted", 1, 2]
    assert body.get() == b"abc"
    body.want(lambda: told.append(3))
    assert told[-1] == 3


def test_body_has_a_bound():
    body = Body(lambda: None)
    body.add(bytes(MAX_BODY_BYTES))
    assert not body.settled
    body.add(b"x")
    assert body.settled
    for _ in range(2):
        with pytest.raises(BodyError, match="longer than the 1,048,576 bytes"):
            body.get()


def test_body_that_fits_the_bound():
    body = Body(lambda: None)
    body.add(bytes(MAX_BODY_BYTES))
    body.end()
    assert len(body.get()) == MAX_BODY_BYTES


@pytest.mark.parametrize(("end", "cut"), [(Body.cut, True), (Body.pass_by, False), (Body.refuse, False)])
def test_body_that_cannot_be_had(end, cut):
    body = Body(lambda: None)
    end(body)
    with pytest.raises(BodyError) as caught:
        body.get()
    assert caught.value.cut is cut


def test_body_whose_time_has_passed():
    exchange = an_exchange()
    exchange.request.source.pass_by()
    with pytest.raises(BodyError, match="passed by"):
        _ = exchange.draft("request", Here()).request.body
    exchange.request.content = b"new"
    assert exchange.draft("request", Here()).request.body == b"new"


def test_secrets_are_not_in_the_repr():
    draft = drafted(HEAD.replace(b"shop", b"secret").replace(b"/a?", b"/secret?"), b"secret")
    assert "secret" not in repr([draft, draft.request, draft.request.headers, draft.connection])
