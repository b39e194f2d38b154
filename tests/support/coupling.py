"""Heads from their lines, and a coupler with one user's requests and answers in short."""

from gopher.http.messages import MessageLimits, MessageParser
from gopher.relay.coupling import Coupler
from gopher.relay.rules import parse_rule


def request_head(target=b"/", *lines, method=b"GET"):
    return _head("request", method + b" " + target + b" HTTP/1.1", (b"Host: shop", *lines))


def response_head(status=200, *lines):
    return _head("response", b"HTTP/1.1 %d Any" % status, lines)


def _head(role, *lines):
    parser = MessageParser(role, limits=MessageLimits())
    if role == "response":
        parser.expect(b"GET")
    return parser.feed(b"\r\n".join((lines[0], *lines[1], b"", b"")))[0].head


class Traffic:
    """A coupler and the ids of its exchanges: each `request` begins one, on the connection named."""

    def __init__(self, *rules, **options):
        self.coupler = Coupler([parse_rule(rule) for rule in rules], **options)
        self.now_s = 100.0
        self.exchanges = {}

    def request(self, exchange, *lines, target=b"/", connection="c1", client="192.0.2.1", content=None):
        self.exchanges[exchange] = (client, connection)
        head = request_head(target, *lines, method=b"GET" if content is None else b"POST")
        return self.coupler.request(exchange, client, connection, head, content, self.now_s)

    def production(self, exchange, *lines, status=200, content=b""):
        return self.coupler.production_response(
            exchange, *self._who(exchange), response_head(status, *lines), content, self.now_s
        )

    def shadow(self, exchange, *lines, status=200, content=b""):
        return self.coupler.shadow_response(
            exchange, *self._who(exchange), response_head(status, *lines), content, self.now_s
        )

    def production_head(self, exchange, *lines):
        return self.coupler.production_head(exchange, *self._who(exchange), response_head(200, *lines), self.now_s)

    def shadow_head(self, exchange, *lines):
        return self.coupler.shadow_head(exchange, *self._who(exchange), response_head(200, *lines), self.now_s)

    def pair(self, exchange, produced, shadowed, **who):
        """One exchange that gives production's and the shadow's user these header lines."""
        self.request(exchange, **who)
        self.production(exchange, produced)
        return self.shadow(exchange, shadowed)

    def tick(self, after_s=0.0):
        self.now_s += after_s
        return self.coupler.tick(self.now_s)

    def proceed(self, ticket):
        return self.coupler.proceed(ticket, self.now_s)

    @property
    def statistics(self):
        return self.coupler.statistics()

    def _who(self, exchange):
        return self.exchanges.setdefault(exchange, ("192.0.2.1", "c1"))


def cookies_of(result):
    """The Cookie lines of a rewritten request."""
    return result.head.headers.get_all(b"cookie")
