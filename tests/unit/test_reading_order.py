"""When the framed relay looks at what comes on several links: downstreams on real sockets, the pump served by hand."""

import contextlib
import select
import socket
from collections import deque

import pytest

from gopher.config import RelayConfig, UpstreamConfig
from gopher.link import ProxyHeader, encode_data, encode_gap, encode_rst
from gopher.relay.channel import Channel
from gopher.relay.framed import Framed
from gopher.relay.tally import Tally
from gopher.relay.tls import Tls
from gopher.upstreams.tcp import Address
from tests.support.relay import CLIENT, SERVER, Link

ANSWER = b"HTTP/1.1 200 OK\r\n%sContent-Length: 0\r\n\r\n"


class Relay:
    """A relay that couples the cookie SID, and its shadow, which the test plays itself.

    Args:
        rules: more of them.
    """

    def __init__(self, *rules):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._shadow = socket.create_server(("127.0.0.1", 0))
        port = self._shadow.getsockname()[1]
        config = RelayConfig(
            ports=(1,),
            upstreams=(UpstreamConfig(scheme="tcp", host="127.0.0.1", port=port, name="shadow"),),
            couple=("cookie:SID", *rules),
            couple_wait_s=1000,
        )
        self.not_accepted = deque()
        addresses = [[Address(socket.AF_INET, "127.0.0.1", port)]]
        tls = Tls(config, addresses[0], None, print, accept=self.accept)
        self.framed = Framed(config, addresses, Tally(), self._adopt, tls=tls)
        self.links = []

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.framed.abort()
        for each in (*self.links, self._listener, self._shadow):
            each.__exit__(*exc_info)

    def connect(self):
        """For `Link`: what it connects to waits to be accepted."""
        ours = socket.create_connection(self._listener.getsockname())
        theirs, peer = self._listener.accept()
        theirs.setblocking(False)
        self.not_accepted.append((theirs, peer))
        return ours

    def accept(self):
        while self.not_accepted:
            sock, peer = self.not_accepted.popleft()
            self.framed.tally.accept()
            self.framed.take(sock, ProxyHeader(client=peer, server=("127.0.0.1", 1)), may_link=True)

    def link(self, number):
        link = Link(self, number)
        self.links.append(link)
        return link

    def serve(self):
        self.framed.pump.serve()

    def received(self, sock):
        """The next bytes for the shadow on this connection."""
        self._serve_until_readable(sock)
        return sock.recv(65_536)

    def upstream(self):
        """The next connection to the shadow."""
        self._serve_until_readable(self._shadow)
        return self._shadow.accept()[0]

    def _serve_until_readable(self, sock):
        for _ in range(1000):
            if select.select([sock], [], [], 0.01)[0]:
                return
            self.serve()
            self.framed.tick()
        raise AssertionError("nothing for the shadow")

    @contextlib.contextmanager
    def called_when_read(self, call):
        """One more connection, which is ready now; what `call` sends comes with the next look."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        channel = Channel(self.framed.pump, ours, lambda: channel.recv() and call(), lambda: None)
        with theirs:
            theirs.send(b"now")
            yield
        channel.close(hard=False)

    @property
    def missed(self):
        return self.framed.coupling()["requests_missed"]

    @staticmethod
    def _adopt(*args, **options):
        raise AssertionError("no tunnel here")


@pytest.fixture
def relay():
    with Relay() as relay:
        yield relay


def log_in(link):
    link.request("/login")
    link.response("Set-Cookie: SID=production-session\r\n")


def test_answer_on_a_link_that_was_not_accepted_yet_counts_before_a_request(relay):
    """The client went from a new connection to one that it had."""
    old = relay.link(1)
    relay.accept()
    relay.serve()
    log_in(relay.link(2))
    old.request("/cart", "SID=production-session")
    relay.serve()
    with relay.upstream() as upstream:
        assert relay.received(upstream).startswith(b"GET /login ")
        upstream.send(ANSWER % b"Set-Cookie: SID=shadow-session\r\n")
        with relay.upstream() as other:
            assert b"Cookie: SID=shadow-session\r\n" in relay.received(other)
    assert relay.missed == 0


def test_request_behind_another_is_not_looked_at_before_answers_that_came_with_it(relay):
    """The shadow's answer to the one lets the other go on at once: not before the rest has been read."""
    first, second = relay.link(1), relay.link(2)
    relay.accept()
    first.request("/")
    relay.serve()
    with relay.upstream() as upstream:
        assert relay.received(upstream).startswith(b"GET / ")
        relay.serve()
        # epoll has nothing left to say: it reports these as they come, in this order.
        first.request("/cart", "SID=production-session")
        upstream.send(ANSWER % b"")
        log_in(second)
        relay.serve()
        with relay.upstream() as other:
            assert relay.received(other).startswith(b"GET /login ")
            other.send(ANSWER % b"Set-Cookie: SID=shadow-session\r\n")
        assert b"Cookie: SID=shadow-session\r\n" in relay.received(upstream)
    assert relay.missed == 0


def test_request_waits_for_a_whole_look_whatever_comes_first_in_it(relay):
    """The shadow's answer to the one before it comes first in the look that would have found what it refers to."""
    first, second = relay.link(1), relay.link(2)
    relay.accept()
    first.request("/")
    with relay.upstream() as upstream:
        assert relay.received(upstream).startswith(b"GET / ")
        relay.serve()
        first.request("/cart", "SID=production-session")
        with relay.called_when_read(lambda: (upstream.send(ANSWER % b""), log_in(second))):
            relay.serve()
        with relay.upstream() as other:
            assert relay.received(other).startswith(b"GET /login ")
            other.send(ANSWER % b"Set-Cookie: SID=shadow-session\r\n")
        assert b"Cookie: SID=shadow-session\r\n" in relay.received(upstream)
    assert relay.missed == 0


@pytest.mark.parametrize("rules", [(), ("form:csrf",)], ids=["heads", "bodies"])
def test_cookies_count_from_the_heads_on(rules):
    """A client asks for what a page needs while the page is still on its way, to it and from the shadow."""
    with Relay(*rules) as relay:
        first, second = relay.link(1), relay.link(2)
        relay.accept()
        first.request("/login")
        with relay.upstream() as upstream:
            assert relay.received(upstream).startswith(b"GET /login ")
            head = b"HTTP/1.1 200 OK\r\nSet-Cookie: SID=%s-session\r\nContent-Length: 1000\r\n\r\n<p>"
            first.send(encode_data(SERVER, head % b"production", 1))
            relay.serve()
            second.request("/style", "SID=production-session")
            relay.serve()
            upstream.send(head % b"shadow")
            with relay.upstream() as other:
                assert b"Cookie: SID=shadow-session\r\n" in relay.received(other)
        assert relay.missed == 0


def test_nobody_waits_for_an_exchange_that_the_shadow_cannot_answer_any_more(relay):
    first, second = relay.link(1), relay.link(2)
    relay.accept()
    first.request("/login")
    with relay.upstream() as upstream:
        assert relay.received(upstream).startswith(b"GET /login ")
    relay.serve()
    first.response("Set-Cookie: SID=production-session\r\n")
    relay.serve()
    second.request("/cart", "SID=production-session")
    with relay.upstream() as upstream:
        assert b"Cookie: SID=production-session\r\n" in relay.received(upstream)
    assert relay.missed == 1


def test_nobody_waits_for_requests_that_a_reset_client_had_in_line(relay):
    first, second = relay.link(1), relay.link(2)
    relay.accept()
    first.request("/")
    first.response()
    with relay.upstream() as upstream:
        assert relay.received(upstream).startswith(b"GET / ")
        log_in(first)
        first.send(encode_rst(1))
        relay.serve()
    second.request("/cart", "SID=production-session")
    with relay.upstream() as upstream:
        assert b"Cookie: SID=production-session\r\n" in relay.received(upstream)
    assert relay.missed == 1


def test_nobody_waits_for_a_request_that_a_gap_cut(relay):
    first, second = relay.link(1), relay.link(2)
    relay.accept()
    first.send(encode_data(CLIENT, b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nname=", 1))
    first.response("Set-Cookie: SID=production-session\r\n")
    first.send(encode_gap(CLIENT, 95, 1))
    relay.serve()
    second.request("/cart", "SID=production-session")
    with relay.upstream() as upstream:
        assert b"Cookie: SID=production-session\r\n" in relay.received(upstream)
    assert relay.missed == 1


def test_request_before_a_gap_and_the_one_after_it_share_no_upstream_connection(relay):
    link = relay.link(1)
    relay.accept()
    link.request("/before")
    link.send(encode_gap(CLIENT, 10, 1))
    link.request("/after")
    with relay.upstream() as upstream:
        assert relay.received(upstream).startswith(b"GET /before ")
        upstream.send(ANSWER % b"")
        with relay.upstream() as other:
            assert relay.received(other).startswith(b"GET /after ")
        assert relay.received(upstream) == b""
