"""Coupling over generated requests: nothing but values changes, and what is written is read again."""

import itertools
import json
import re
from urllib.parse import quote_from_bytes

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gopher.relay.coupling import Coupler
from gopher.relay.handed_out import ResponseReader
from gopher.relay.outcomes import Drop, Unchanged, Wait
from gopher.relay.places import rewrite_body, rewrite_cookies, rewrite_header, rewrite_target
from gopher.relay.rules import parse_rule
from tests.support.coupling import request_head, response_head

FORM = b"application/x-www-form-urlencoded"
VALUE = st.binary(min_size=1, max_size=12)
VISIBLE = st.binary(min_size=1, max_size=12).map(lambda raw: bytes(33 + byte % 94 for byte in raw))
COOKIE = VISIBLE.map(lambda raw: re.sub(rb'[;"\\]', b"x", raw))


def encoded(draw, value, literal=b""):
    """A percent-encoding of the value: any byte may be escaped, in either case; unsafe bytes must be."""
    pieces = []
    for byte in value:
        safe = quote_from_bytes(bytes([byte]), safe=literal) == chr(byte)
        if safe and draw(st.booleans()):
            pieces.append(b"%c" % byte)
        else:
            pieces.append(draw(st.sampled_from([b"%%%02X", b"%%%02x"])) % byte)
    return b"".join(pieces)


@st.composite
def targets(draw):
    """(before, raw value, after, which value it is): together a target, with other things around the value."""
    filler = draw(st.sampled_from([b"a", b"%2f", b"a%20b", b"+", b"~."]))
    if draw(st.booleans()):
        raw = encoded(draw, draw(VALUE), literal=b":@=")
        return b"/" + filler + b"/", raw, b"/" + filler + b"?" + filler + b"=" + filler, 1
    raw = encoded(draw, draw(VALUE), literal=b":@/?=")
    return b"/" + filler + b"?" + filler + b"=" + filler + b"&x=", raw, b"&" + filler, 2


def swap_at(place, new):
    """Translates the one value that is asked for as number `place`."""
    asked = itertools.count()
    return lambda *_: new if next(asked) == place else None


def values_of(rewrite, *args):
    values = []
    rewrite(*args, lambda _place, _name, value: values.append(value))
    return values


@given(targets(), VALUE)
def test_in_a_target_only_the_value_changes(case, new):
    before, raw, after, place = case
    changed = rewrite_target(before + raw + after, swap_at(place, new))
    assert values_of(rewrite_target, changed)[place] == new
    assert changed.startswith(before)
    assert changed.endswith(after)


@given(st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=4), st.data())
def test_in_a_form_only_the_value_changes(fields, data):
    raws = [(encoded(data.draw, name), encoded(data.draw, value)) for name, value in fields]
    place = data.draw(st.integers(0, len(fields) - 1))
    new = data.draw(VALUE)
    body = b"&".join(b"%b=%b" % raw for raw in raws)
    changed = rewrite_body(body, FORM, swap_at(place, new))
    before = b"".join(b"%b=%b&" % raw for raw in raws[:place]) + raws[place][0] + b"="
    after = b"".join(b"&%b=%b" % raw for raw in raws[place + 1 :])
    assert changed.startswith(before)
    assert changed.endswith(after)
    assert values_of(rewrite_body, changed, FORM)[place] == new


LEAVES = st.one_of(st.text(max_size=8), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.none())
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=12,
)


def leaves(document):
    """Strings and numbers in the order of the text."""
    if isinstance(document, dict):
        return [leaf for value in document.values() for leaf in leaves(value)]
    if isinstance(document, list):
        return [leaf for value in document for leaf in leaves(value)]
    return [] if document is None or isinstance(document, bool) else [document]


@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]), st.text(max_size=8), st.data())
def test_in_json_only_the_leaf_changes(document, ascii_only, indent, new, data):
    body = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    expected = leaves(document)
    texts = [leaf if isinstance(leaf, str) else json.dumps(leaf) for leaf in expected]
    assert values_of(rewrite_body, body, b"application/json") == [text.encode() for text in texts]
    if expected:
        place = data.draw(st.integers(0, len(expected) - 1))
        expected[place] = "x" + new  # no number
        changed = rewrite_body(body, b"application/json", swap_at(place, expected[place].encode()))
        assert leaves(json.loads(changed)) == expected


@given(st.lists(COOKIE, min_size=1, max_size=4), st.data())
def test_in_cookies_only_the_value_changes(values, data):
    quoted = [data.draw(st.sampled_from([b"%b", b'"%b"'])) for _ in values]
    separator = data.draw(st.sampled_from([b"; ", b";", b" ;  "]))
    place = data.draw(st.integers(0, len(values) - 1))
    new = data.draw(COOKIE)

    def line(values):
        return separator.join(b"c%d=" % n + quoted[n] % value for n, value in enumerate(values))

    assert rewrite_cookies(line(values), swap_at(place, new)) == line([*values[:place], new, *values[place + 1 :]])


@given(st.binary(max_size=60), st.sampled_from([FORM, b"application/json", b"multipart/form-data; boundary=b", b"x"]))
def test_any_bytes_come_back_themselves_when_nothing_is_translated(data, kind):
    def nothing(*_):
        return None

    assert rewrite_body(data, kind, nothing) is data
    assert rewrite_target(data, nothing) is data
    assert rewrite_cookies(data, nothing) is data
    assert rewrite_header(b"x", data, nothing) is data


@given(COOKIE.filter(lambda value: len(value) > 3), st.data())
def test_alias_of_a_value_to_itself_changes_no_byte(value, data):
    coupler = Coupler([parse_rule("cookie:sid"), parse_rule("header:x-token")])
    for answer in (coupler.production_response, coupler.shadow_response):
        answer("first", "client", "c", response_head(200, b"Set-Cookie: sid=" + value, b"X-Token: " + value), b"", 0.0)
    raw = encoded(data.draw, value)
    lines = (b"Cookie: a=b; sid=" + value, b"X-Token: " + value, b"Content-Type: " + FORM)
    head = request_head(b"/" + raw + b"?q=" + raw, *lines, method=b"POST")
    assert coupler.request("second", "client", "c", head, b"f=" + raw, 0.0) == Unchanged()
    assert coupler.statistics().requests_missed == 0


RULES = ["header:x", "json:/a/0", "json:", "form:t", "query:t", "location:t", "location:/{}", "regex:(.)t", "cookie:t"]


@given(st.sampled_from(RULES), st.binary(max_size=80), st.sampled_from([b"gzip", b"deflate", b"identity"]))
def test_any_response_can_be_read(rule, content, coding):
    location = b"Location: " + bytes(33 + byte % 94 for byte in content)
    head = response_head(200, b"Content-Encoding: " + coding, b"Content-Type: text/html; charset=x", location)
    reader = ResponseReader([parse_rule(rule)], auto=True)
    reader.read_head(head)
    reader.read_rest(head, content)


class CouplerMachine(RuleBasedStateMachine):
    """Any order of events of three users: a ticket is released only while it waits, and nothing stays behind."""

    @initialize(inferred=st.booleans(), policy=st.sampled_from(["send", "drop"]))
    def begin(self, inferred, policy):
        self.coupler = Coupler([parse_rule("cookie:sid")], policy=policy, inferred=inferred)
        self.answers = {"shadow"} if inferred else {"shadow", "production"}
        self.now_s = 0.0
        self.count = 0
        self.waiting = {}  # ticket -> exchange
        self.sent = {}  # exchange -> answers to come

    @rule(user=st.integers(0, 2))
    def request(self, user):
        self.now_s += 0.1
        self.count += 1
        exchange = (self.count, user)
        head = request_head(b"/", b"Cookie: sid=production-%d" % user)
        result = self.coupler.request(exchange, user, ("c", user, self.count % 2), head, None, self.now_s)
        if isinstance(result, Wait):
            self.waiting[result.ticket] = exchange
        else:
            self.sent[exchange] = set(self.answers)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def proceed(self, data):
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        exchange = self.waiting.pop(ticket)
        if not isinstance(self.coupler.proceed(ticket, self.now_s), Drop):
            self.sent[exchange] = set(self.answers)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[ticket]
        self.coupler.cancel(ticket)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), number=st.integers(0, 2))
    def answer(self, data, number):
        exchange = data.draw(st.sampled_from(sorted(self.sent)))
        side = data.draw(st.sampled_from(sorted(self.sent[exchange])))
        take = self.coupler.production_response if side == "production" else self.coupler.shadow_response
        head = response_head(200, b"Set-Cookie: sid=%b-%d" % (side.encode(), number))
        released = take(exchange, exchange[1], ("c", exchange[1], exchange[0] % 2), head, None, self.now_s)
        assert set(released) <= set(self.waiting)
        self.sent[exchange].remove(side)
        if not self.sent[exchange]:
            del self.sent[exchange]

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def abandon(self, data):
        exchange = data.draw(st.sampled_from(sorted(self.sent)))
        del self.sent[exchange]
        assert set(self.coupler.abandoned(exchange)) <= set(self.waiting)

    @rule(after_s=st.sampled_from([0.0, 0.1, 0.3]))
    def tick(self, after_s):
        self.now_s += after_s
        assert set(self.coupler.tick(self.now_s)) <= set(self.waiting)

    def teardown(self):
        if not hasattr(self, "coupler"):
            return
        assert self.coupler.statistics().requests_waiting == len(self.waiting)
        for ticket in self.waiting:
            self.coupler.cancel(ticket)
        for exchange in self.sent:
            self.coupler.abandoned(exchange)
        assert self.coupler.tick(self.now_s + 1.0) == []
        assert not self.coupler._waiting._tickets
        left = ("_exchanges", "_pending", "_in_flight", "_unseen")
        assert {name: getattr(self.coupler, name) for name in left} == {name: {} for name in left}


TestCoupler = CouplerMachine.TestCase
