"""A web shop that knows only what it has handed out itself, and people who shop there.

Two shops agree on nothing but their pages: session ids, CSRF tokens and order ids are random, so a request that is
made for one is refused by the other.
"""

from __future__ import annotations

import gzip
import html
import random
import re
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qs, urlencode

from tests.support.netns import Namespace

WAIT_S = 30.0
SESSION = "sid"
TOKEN = "csrf_token"

_TOKEN_INPUT = re.compile(rf'<input type="hidden" name="{TOKEN}" value="([^"]*)">')


class Refused(Exception):
    """A request that names something the shop has not handed out."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class _Session:
    user: str = ""
    token: str = ""
    cart: list[str] = field(default_factory=list)
    orders: set[str] = field(default_factory=set)


@dataclass
class Answer:
    """Of the shop, to one request. Empty: without."""

    status: HTTPStatus = HTTPStatus.OK
    page: str = ""
    location: str = ""
    cookie: str = ""


class Shop:
    """The application. Listens at once.

    Args:
        address: host and port; port 0 takes a free one.
        namespace: where it lives.
        delay_s: each request waits for a random time up to this before it takes effect.
        tokens: whether forms carry a CSRF token, new with each page, and orders an id; otherwise there is nothing but
            the session cookie.
    """

    def __init__(
        self,
        address: tuple[str, int] = ("127.0.0.1", 0),
        *,
        namespace: Namespace | None = None,
        delay_s: float = 0.0,
        tokens: bool = True,
    ) -> None:
        self._delay_s = delay_s
        self._delays = random.Random(0)
        self._tokens = tokens
        self._changed = threading.Condition()
        self._sessions: dict[str, _Session] = {}
        self._accepted: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._sales: list[tuple[str, ...]] = []
        self._server = _Server(self, address, namespace)
        self.address: tuple[str, int] = self._server.server_address[:2]
        self.name = "{}:{}".format(*self.address)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def accepted(self) -> Counter[str]:
        """Requests so far that were served, by method and path (without the order's id)."""
        with self._changed:
            return self._accepted.copy()

    @property
    def refused(self) -> Counter[str]:
        """Requests so far that were not."""
        with self._changed:
            return self._refused.copy()

    @property
    def requests(self) -> int:
        with self._changed:
            return self._accepted.total() + self._refused.total()

    @property
    def sales(self) -> list[tuple[str, ...]]:
        """Who bought what: user, then items. Sorted."""
        with self._changed:
            return sorted(self._sales)

    def wait_requests(self, count: int) -> None:
        """Wait until `count` requests have taken effect, and assert that there are no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._accepted.total() + self._refused.total() >= count, WAIT_S)
        assert self.requests == count, f"{self.requests} requests instead of {count}: {self.accepted}, {self.refused}"

    def answer(self, method: str, path: str, cookies: str, body: str) -> Answer:
        """What the shop does with a request; called by its threads."""
        with self._changed:
            delay_s = self._delays.uniform(0, self._delay_s)
        time.sleep(delay_s)
        morsel = SimpleCookie(cookies).get(SESSION)
        fields = {name: values[0] for name, values in parse_qs(body).items()}
        kind = f"{method} {re.sub('^/order/.+', '/order/{}', path)}"
        with self._changed:
            try:
                answer = self._serve(kind, path, morsel.value if morsel else "", fields)
            except Refused as refused:
                self._refused[kind] += 1
                answer = Answer(refused.status)
            else:
                self._accepted[kind] += 1
            self._changed.notify_all()
        return answer

    def _serve(self, kind: str, path: str, session_id: str, fields: dict[str, str]) -> Answer:
        if kind == "GET /" and not session_id:
            return Answer(page="Welcome", cookie=f"{SESSION}={self._begin(_Session())}; Path=/; HttpOnly")
        if not session_id:
            raise Refused(HTTPStatus.UNAUTHORIZED)
        session = self._sessions.get(session_id)
        if session is None:
            raise Refused(HTTPStatus.FORBIDDEN)
        if kind == "GET /":
            return Answer(page="Welcome back")
        if kind == "GET /login":
            return Answer(page=self._form(session, "/login"))
        if kind.startswith("POST") and self._tokens:
            if not session.token or fields.get(TOKEN) != session.token:
                raise Refused(HTTPStatus.FORBIDDEN)
            session.token = ""
        if kind == "POST /login":
            session.user = fields["user"]
            del self._sessions[session_id]
            cookie = f"{SESSION}={self._begin(session)}; Path=/; HttpOnly"
            return Answer(HTTPStatus.SEE_OTHER, location="/cart", cookie=cookie)
        if not session.user:
            raise Refused(HTTPStatus.UNAUTHORIZED)
        if kind == "GET /cart":
            return Answer(page=self._form(session, "/cart"))
        if kind == "POST /cart":
            session.cart.append(fields["item"])
            return Answer(page=self._form(session, "/checkout"))
        if kind == "POST /checkout":
            self._sales.append((session.user, *session.cart))
            order = secrets.token_hex(8) if self._tokens else "last"
            session.orders.add(order)
            return Answer(HTTPStatus.SEE_OTHER, location=f"/order/{order}")
        if kind == "GET /order/{}" and path.removeprefix("/order/") in session.orders:
            return Answer(page=f"{session.user}: {', '.join(session.cart)}{self._form(session, '/logout')}")
        if kind == "POST /logout":
            del self._sessions[session_id]
            return Answer(HTTPStatus.SEE_OTHER, location="/", cookie=f"{SESSION}=; Path=/; Max-Age=0")
        raise Refused(HTTPStatus.NOT_FOUND)

    def _begin(self, session: _Session) -> str:
        session_id = secrets.token_urlsafe(16)
        self._sessions[session_id] = session
        return session_id

    def _form(self, session: _Session, action: str) -> str:
        hidden = ""
        if self._tokens:
            session.token = secrets.token_urlsafe(16)
            hidden = f'<input type="hidden" name="{TOKEN}" value="{session.token}">'
        return f'<form method="post" action="{action}">{hidden}</form>'


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, shop: Shop, address: tuple[str, int], namespace: Namespace | None) -> None:
        self.shop = shop
        super().__init__(address, _Handler, bind_and_activate=False)
        if namespace is not None:
            self.socket.close()
            self.socket = namespace.make_socket()
        self.server_bind()
        self.server_activate()

    def server_bind(self) -> None:
        # Past HTTPServer, which asks for the host's name, of whatever resolver there is.
        TCPServer.server_bind(self)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    """Head and body in one segment."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self._body().decode()
        answer = self.server.shop.answer(self.command, self.path, self.headers.get("Cookie", ""), body)
        page = f"<!doctype html><title>Shop</title>{answer.page}".encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            page = gzip.compress(page)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(page)))
        for name, value in (("Set-Cookie", answer.cookie), ("Location", answer.location)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(page)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: object) -> None:
        pass


Plan = Callable[[int], int]
"""Which of its connections a browser uses for its request of this number; the next unused number is a new one."""


class Browser:
    """Somebody's browser: keep-alive connections, cookies, and the token of the form it looks at. It takes pages
    compressed, and sends some of its forms in chunks.

    Args:
        connect: makes a connection to the shop.
        plan: see `Plan`.
    """

    def __init__(self, connect: Callable[[], socket.socket], plan: Plan = lambda _: 0) -> None:
        self._connect = connect
        self._plan = plan
        self._connections: list[HTTPConnection] = []
        self._requests = 0
        self.cookies: dict[str, str] = {}
        self.token = ""

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for connection in self._connections:
            connection.close()

    def get(self, path: str) -> str:
        """Returns the page. Raises: Refused."""
        return self._request("GET", path)

    def post(self, path: str, **fields: str) -> str:
        """Send the form; returns where the answer leads, or the page. Raises: Refused."""
        return self._request("POST", path, urlencode({TOKEN: self.token, **fields} if self.token else fields))

    def _request(self, method: str, path: str, body: str | None = None) -> str:
        connection = self._connection(self._plan(self._requests))
        self._requests += 1
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        headers = {name: value for name, value in headers.items() if value} | {"Accept-Encoding": "gzip"}
        chunked = body is not None and self._requests % 2 == 0
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
        connection.request(method, path, [body.encode()] if chunked else body, headers, encode_chunked=chunked)
        with connection.getresponse() as response:
            page = gzip.decompress(response.read()).decode()
            self._take_cookies(response)
        if response.status >= 400:
            raise Refused(HTTPStatus(response.status))
        found = _TOKEN_INPUT.search(page)
        self.token = html.unescape(found[1]) if found else ""
        return response.headers.get("Location", page)

    def _connection(self, number: int) -> HTTPConnection:
        if number == len(self._connections):
            connection = HTTPConnection("shop")
            connection.sock = self._connect()
            # As http.client sets it on connections that it makes: a form goes out in two pieces.
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.auto_open = 0
            self._connections.append(connection)
        return self._connections[number]

    def _take_cookies(self, response: HTTPResponse) -> None:
        for line in response.headers.get_all("Set-Cookie", ()):
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value


REQUESTS_PER_VISIT = 9
NAMELESS_REQUESTS_PER_VISIT = 2
"""Of these, they that name nothing: the first, and the one after the logout."""


def visit(browser: Browser, user: str) -> None:
    """Log in, fill the cart, check out, look at the order, log out. Raises: Refused."""
    browser.get("/")
    browser.get("/login")
    browser.get(browser.post("/login", user=user))
    browser.post("/cart", item=f"something for {user}")
    order = browser.get(browser.post("/checkout"))
    assert f"{user}: something for {user}" in order, order
    browser.get(browser.post("/logout"))


def visit_at_once(browsers: Sequence[Browser]) -> None:
    """All of them visit the shop at the same time, each for a user of its own, and are closed. Raises: Refused."""

    def run(browser: Browser, user: str) -> None:
        with browser:
            visit(browser, user)

    with ThreadPoolExecutor(len(browsers)) as pool:
        visits = [pool.submit(run, browser, f"user{number}") for number, browser in enumerate(browsers)]
    for each in visits:
        each.result()
