"""The coupler: what it learns from pairs of answers, what it does to requests, and what it counts."""

import itertools

import pytest

from gopher.relay.learning import EXCHANGE_TTL_S
from gopher.relay.outcomes import Drop, Rewritten, Unchanged, Wait
from tests.support.coupling import Traffic, cookies_of, request_head, response_head

P = b"production-1"
P2 = b"production-2"
S = b"shadow-1"
S2 = b"shadow-2"
SET_P, SET_P2 = b"Set-Cookie: sid=" + P + b"; HttpOnly", b"Set-Cookie: sid=" + P2
SET_S, SET_S2 = b"Set-Cookie: sid=" + S + b"; Path=/", b"Set-Cookie: sid=" + S2
SENT_P, SENT_P2 = b"Cookie: sid=" + P, b"Cookie: sid=" + P2
SIDES = ("production", "shadow")
HTML, JSON = b"Content-Type: text/html", b"Content-Type: application/json"
FORM = b"Content-Type: application/x-www-form-urlencoded"


def coupled(*rules, **options):
    """One user whose cookie is coupled."""
    traffic = Traffic(*(rules or ("cookie:sid",)), **options)
    traffic.pair("login", SET_P, SET_S)
    return traffic


# One case for each rule: what production and the shadow answer, a request, and the same request as the shadow gets it.
RULES = {
    "cookie": ("cookie:sid", SET_P, SET_S, b"", b"", b"/", SENT_P, b"", b"/", b"Cookie: sid=" + S, b""),
    "header": (
        "header:X-Token", b"X-Token: pppp", b"X-Token: ssss", b"", b"",
        b"/", b"X-Token: pppp", b"", b"/", b"X-Token: ssss", b"",
    ),
    "bearer": (
        "json:/token", JSON, JSON, b'{"token":"pppp"}', b'{"token":"ssss"}',
        b"/", b"Authorization: Bearer pppp", b"", b"/", b"Authorization: Bearer ssss", b"",
    ),
    "json": (
        "json:/a/0", JSON, JSON, b'{"a":["pppp"]}', b'{"a":["ssss"]}',
        b"/pppp", JSON, b'{"b": "pppp"}', b"/ssss", JSON, b'{"b": "ssss"}',
    ),
    "form": (
        "form:csrf", HTML, HTML, b"<input type=hidden name=csrf value=pp+/>", b"<meta name=csrf content=ss+/>",
        b"/", FORM, b"x=1&csrf=pp%2B%2F", b"/", FORM, b"x=1&csrf=ss%2B%2F",
    ),
    "query": (
        "query:sid", HTML, HTML, b"<a href='/?sid=pppp'>", b"<a href='/?sid=ssss'>",
        b"/?a=b&sid=pppp", b"X: y", b"", b"/?a=b&sid=ssss", b"X: y", b"",
    ),
    "location": (
        "location:sid", b"Location: /?sid=pppp", b"Location: /?sid=ssss", b"", b"",
        b"/?sid=pppp", b"X: y", b"", b"/?sid=ssss", b"X: y", b"",
    ),
    "location path": (
        "location:/order/{}", b"Location: /order/17", b"Location: /order/4", b"", b"",
        b"/order/17/pay?order=17&count=17", FORM, b"order=17", b"/order/4/pay?order=4&count=17", FORM, b"order=4",
    ),
    "regex": (
        r"regex:id: (\w+)", HTML, HTML, b"id: pppp", b"id: ssss",
        b"/pppp", b"X-Id: pppp", b"", b"/ssss", b"X-Id: ssss", b"",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_value_of_each_rule_is_translated_where_it_is_used(case):
    rule, produced, shadowed, page, shadow_page, target, line, body, new_target, new_line, new_body = case
    traffic = Traffic(rule)
    traffic.request("first")
    traffic.production("first", produced, content=page)
    assert traffic.shadow("first", shadowed, content=shadow_page) == []
    result = traffic.request("second", line, target=target, connection="c2", client="other", content=body)
    assert isinstance(result, Rewritten)
    assert result.head.to_bytes() == b"POST " + new_target + b" HTTP/1.1\r\nHost: shop\r\n" + new_line + b"\r\n\r\n"
    assert result.content == (None if new_body == body else new_body)
    assert traffic.statistics.aliases_learned == 1
    assert traffic.statistics.requests_rewritten == 1
    assert traffic.statistics.requests_missed == 0


def test_auto_couples_every_cookie_that_both_set():
    traffic = Traffic(auto=True)
    traffic.request("r")
    traffic.production("r", SET_P, b"Set-Cookie: lang=english", b"Set-Cookie: only=production")
    traffic.shadow("r", SET_S, b"Set-Cookie: lang=english", b"Set-Cookie: other=shadow")
    result = traffic.request("next", b"Cookie: sid=" + P + b"; lang=english; only=production; foreign=cookie")
    assert cookies_of(result) == [b"sid=" + S + b"; lang=english; only=production; foreign=cookie"]


def test_several_coupled_cookies_in_several_lines():
    traffic = Traffic("cookie:a", "cookie:b")
    traffic.request("r")
    traffic.production("r", b"Set-Cookie: a=pppp", b"Set-Cookie: b=qqqq")
    traffic.shadow("r", b"Set-Cookie: b=tttt", b"Set-Cookie: a=ssss")
    result = traffic.request("next", b"cookie: b=qqqq", b"X: y", b"Cookie:  a=pppp; c=d")
    assert result.head.to_bytes().endswith(b"\r\ncookie: b=tttt\r\nX: y\r\nCookie:  a=ssss; c=d\r\n\r\n")


def test_given_head_stays_as_it_was():
    traffic = coupled(overtake_s=0)
    head = traffic.request("next", SENT_P).head
    again = traffic.coupler.request("again", "c", "c9", head, None, 0.0)
    assert again == Unchanged()  # the shadow's own value is nobody's
    assert cookies_of(traffic.request("third", SENT_P)) == [b"sid=" + S]


def test_double_submitted_cookie_is_translated_in_the_header_too():
    traffic = Traffic("cookie:csrf")
    traffic.pair("page", b"Set-Cookie: csrf=pppp%3D%3D", b"Set-Cookie: csrf=s%3Ds")
    result = traffic.request("post", b"Cookie: csrf=pppp%3D%3D", b"X-CSRF: pppp==")
    assert cookies_of(result) == [b"csrf=s%3Ds"]
    assert result.head.headers.get(b"x-csrf") == b"s=s"


@pytest.mark.parametrize("name", [b"Content-Length", b"User-Agent", b"Accept"])
def test_header_that_frames_or_describes_is_never_rewritten(name):
    traffic = Traffic("location:/order/{}")
    traffic.pair("buy", b"Location: /order/1234", b"Location: /order/5678")
    assert traffic.request("next", name + b": 1234") == Unchanged()


def test_same_value_on_both_sides_is_no_change_and_no_miss():
    traffic = Traffic("cookie:sid")
    traffic.pair("r", SET_P, SET_P)
    assert traffic.request("next", SENT_P) == Unchanged()
    assert traffic.statistics.requests_missed == 0


def test_pages_with_different_numbers_of_values_are_not_paired():
    traffic = Traffic("form:t")
    traffic.request("r")
    traffic.production("r", HTML, content=b"<meta name=t content=pppp>")
    traffic.shadow("r", HTML, content=b"<meta name=t content=ssss><input type=hidden name=t value=tttt>")
    assert traffic.statistics.aliases == 0


# Sessions over time, as two browsers would see them.


def test_rotation_at_login_gives_a_second_alias():
    traffic = coupled()
    traffic.request("login2", SENT_P)
    traffic.production("login2", SET_P2)
    traffic.shadow("login2", SET_S2)
    assert cookies_of(traffic.request("after", SENT_P2)) == [b"sid=" + S2]
    assert cookies_of(traffic.request("late", SENT_P, connection="c2")) == [b"sid=" + S]


def test_rotation_by_production_alone_keeps_the_shadows_session():
    traffic = coupled()
    traffic.request("login2", SENT_P)
    traffic.production("login2", SET_P2)
    traffic.shadow("login2")
    assert cookies_of(traffic.request("after", SENT_P2)) == [b"sid=" + S]


def test_rotation_by_the_shadow_alone_moves_the_alias():
    traffic = coupled()
    traffic.request("restarted", SENT_P)
    traffic.production("restarted")
    traffic.shadow("restarted", SET_S2)
    assert cookies_of(traffic.request("after", SENT_P)) == [b"sid=" + S2]


def test_session_from_before_the_mirror_starts_with_the_shadows_answer():
    traffic = Traffic("cookie:sid", overtake_s=0)
    assert traffic.request("old", SENT_P) == Unchanged()
    assert traffic.statistics.requests_missed == 1
    traffic.production("old")
    traffic.shadow("old", SET_S)
    assert cookies_of(traffic.request("next", SENT_P)) == [b"sid=" + S]
    assert traffic.statistics.requests_missed == 1


def test_of_two_answers_to_an_unknown_session_the_first_counts():
    traffic = Traffic("cookie:sid", overtake_s=0)
    traffic.request("one", SENT_P, connection="c1")
    traffic.request("two", SENT_P, connection="c2", client="other")
    for exchange, line in (("one", SET_S), ("two", SET_S2)):
        traffic.production(exchange)
        traffic.shadow(exchange, line)
    assert cookies_of(traffic.request("next", SENT_P)) == [b"sid=" + S]


@pytest.mark.parametrize("attribute", [b"Max-Age=0", b"Expires=Thu, 01 Jan 1970 00:00:00 GMT"])
def test_deleted_cookie_is_no_alias(attribute):
    traffic = coupled(overtake_s=0)
    traffic.request("logout", SENT_P)
    traffic.production("logout", b"Set-Cookie: sid=gone; " + attribute)
    traffic.shadow("logout", b"Set-Cookie: sid=left; " + attribute)
    assert traffic.request("next", b"Cookie: sid=gone") == Unchanged()
    assert cookies_of(traffic.request("late", SENT_P)) == [b"sid=" + S]


def test_deletion_by_one_side_pairs_nothing():
    traffic = Traffic("cookie:sid")
    traffic.pair("r", SET_P, b"Set-Cookie: sid=; Max-Age=0")
    traffic.pair("q", b"Set-Cookie: sid=; Max-Age=0", SET_S)
    assert traffic.statistics.aliases == 0


# The order of answers.


def test_request_waits_for_the_shadow_and_others_flow():
    traffic = Traffic("cookie:sid")
    traffic.request("login")
    traffic.production("login", SET_P)
    wait = traffic.request("next", SENT_P, connection="c2")
    assert wait == Wait(1, traffic.now_s + 2.0)
    assert traffic.request("other", b"Cookie: other=1", client="other", connection="c3") == Unchanged()
    assert traffic.statistics.requests_waiting == 1
    traffic.now_s += 0.5
    assert traffic.shadow("login", SET_S) == [1]
    traffic.now_s += 0.25
    assert cookies_of(traffic.proceed(1)) == [b"sid=" + S]
    statistics = traffic.statistics
    assert (statistics.requests_held, statistics.held_s_sum, statistics.held_s_max) == (1, 0.75, 0.75)
    assert (statistics.requests_timed_out, statistics.requests_waiting) == (0, 0)


def test_shadow_faster_than_production_holds_nothing():
    traffic = Traffic("cookie:sid")
    traffic.request("login")
    assert traffic.shadow("login", SET_S) == []
    assert traffic.production("login", SET_P) == []
    assert isinstance(traffic.request("next", SENT_P), Rewritten)


def test_request_with_two_values_waits_for_both():
    traffic = Traffic("cookie:sid", "header:x-token")
    traffic.request("a", connection="c1")
    traffic.request("b", connection="c2")
    traffic.production("a", SET_P)
    traffic.production("b", b"X-Token: pppp")
    wait = traffic.request("next", SENT_P, b"X-Token: pppp", connection="c3")
    assert traffic.shadow("a", SET_S) == []
    assert traffic.shadow("b", b"X-Token: ssss") == [wait.ticket]
    result = traffic.proceed(wait.ticket)
    assert cookies_of(result) == [b"sid=" + S]
    assert result.head.headers.get(b"x-token") == b"ssss"


def test_any_of_several_exchanges_that_hand_the_value_out_releases():
    traffic = Traffic("cookie:sid")
    for exchange, connection in (("a", "c1"), ("b", "c2"), ("c", "c3")):
        traffic.request(exchange, connection=connection)
    traffic.production("a", SET_P)
    traffic.production("b", SET_P)
    wait = traffic.request("next", SENT_P, connection="c4")
    assert traffic.shadow("a") == []
    traffic.shadow("c", SET_S)
    assert traffic.production("c", SET_P) == [wait.ticket]
    assert cookies_of(traffic.proceed(wait.ticket)) == [b"sid=" + S]
    assert traffic.shadow("b") == []


@pytest.mark.parametrize(("policy", "outcome"), [("send", Unchanged()), ("drop", Drop())])
def test_policy_decides_at_the_deadline(policy, outcome):
    traffic = Traffic("cookie:sid", policy=policy)
    traffic.request("login")
    traffic.production("login", SET_P)
    wait = traffic.request("next", SENT_P)
    traffic.now_s = wait.deadline_s
    assert traffic.proceed(wait.ticket) == outcome
    statistics = traffic.statistics
    assert statistics.requests_timed_out == 1
    assert statistics.requests_dropped == (policy == "drop")
    assert statistics.requests_missed == (policy == "send")
    assert traffic.shadow("login", SET_S) == []  # nobody waits any more
    assert isinstance(traffic.request("third", SENT_P), Rewritten)


@pytest.mark.parametrize(("policy", "outcome"), [("send", Unchanged()), ("drop", Drop())])
def test_answer_without_the_value_releases_and_the_policy_decides(policy, outcome):
    traffic = Traffic("cookie:sid", policy=policy)
    traffic.request("login")
    traffic.production("login", SET_P)
    wait = traffic.request("next", SENT_P, connection="c2")
    assert traffic.shadow("login", status=500) == [wait.ticket]
    assert traffic.proceed(wait.ticket) == outcome
    assert traffic.statistics.requests_timed_out == 0


def test_what_can_be_translated_is_translated_at_the_deadline():
    traffic = coupled("cookie:sid", "header:x-token")
    traffic.request("page")
    traffic.production("page", b"X-Token: pppp")
    wait = traffic.request("next", SENT_P, b"X-Token: pppp", connection="c2")
    result = traffic.proceed(wait.ticket)
    assert cookies_of(result) == [b"sid=" + S]
    assert result.head.headers.get(b"x-token") == b"pppp"


def test_drop_is_only_for_what_waited():
    traffic = coupled("cookie:sid", "header:x-token", policy="drop")
    traffic.request("page")
    traffic.production("page", b"X-Token: pppp")
    wait = traffic.request("next", b"Cookie: sid=before-the-mirror", b"X-Token: pppp", connection="c2")
    assert traffic.shadow("page", b"X-Token: ssss") == []
    assert traffic.tick(0.25) == [wait.ticket]
    assert isinstance(traffic.proceed(wait.ticket), Rewritten)
    assert traffic.statistics.requests_missed == 1


def test_value_without_counterpart_is_not_waited_for_twice():
    traffic = Traffic(auto=True)
    for exchange in ("a", "b"):
        traffic.request(exchange)
        traffic.production(exchange, b"Set-Cookie: brand=constant")
        if exchange == "a":
            assert isinstance(traffic.request("wait", b"Cookie: brand=constant", connection="c2"), Wait)
            traffic.shadow(exchange)
    assert traffic.request("flow", b"Cookie: brand=constant", connection="c3") == Unchanged()


def test_request_does_not_wait_for_what_comes_after_it_on_its_connection():
    traffic = Traffic("cookie:sid")
    traffic.production("first", SET_P)  # production has answered what the shadow has not been asked yet
    traffic.production("second", SET_P)
    assert traffic.request("first", SENT_P) == Unchanged()
    assert isinstance(traffic.request("elsewhere", SENT_P, connection="c2"), Wait)


def test_abandoned_exchange_releases_what_waits_for_it():
    traffic = Traffic("cookie:sid")
    traffic.request("login")
    traffic.production("login", SET_P)
    wait = traffic.request("next", SENT_P, connection="c2")
    assert traffic.coupler.abandoned("login") == [wait.ticket]
    assert traffic.proceed(wait.ticket) == Unchanged()
    assert traffic.coupler.abandoned("login") == []


def test_cancelled_ticket_is_forgotten():
    traffic = Traffic("cookie:sid")
    traffic.request("login")
    traffic.production("login", SET_P)
    first = traffic.request("next", SENT_P, connection="c2")
    second = traffic.request("other", SENT_P, connection="c3")
    traffic.coupler.cancel(first.ticket)
    traffic.coupler.cancel(first.ticket)
    assert traffic.shadow("login", SET_S) == [second.ticket]
    with pytest.raises(KeyError):
        traffic.proceed(first.ticket)


def test_heads_are_paired_before_the_bodies_are_in():
    traffic = Traffic("cookie:sid", "form:csrf")
    traffic.request("login")
    assert traffic.production_head("login", SET_P) == []
    waiting = traffic.request("next", SENT_P, connection="c2")
    assert traffic.shadow_head("login", SET_S) == [waiting.ticket]
    assert cookies_of(traffic.proceed(waiting.ticket)) == [b"sid=" + S]
    # Meanwhile the shadow rotates: the end of the bodies teaches nothing old.
    traffic.shadow("next", SET_S2)
    traffic.production("next")
    traffic.production("login", SET_P, HTML, content=b"<input type=hidden name=csrf value=pppp>")
    traffic.shadow("login", SET_S, HTML, content=b"<input type=hidden name=csrf value=ssss>")
    result = traffic.request("last", SENT_P, FORM, content=b"csrf=pppp")
    assert (cookies_of(result), result.content) == ([b"sid=" + S2], b"csrf=ssss")


def test_head_without_the_value_releases_what_waits_for_it():
    traffic = Traffic("cookie:sid", "form:csrf")
    traffic.request("login")
    traffic.production_head("login", SET_P)
    waiting = traffic.request("next", SENT_P, connection="c2")
    assert traffic.shadow_head("login") == [waiting.ticket]
    assert isinstance(traffic.proceed(waiting.ticket), Unchanged)
    assert isinstance(traffic.request("another", SENT_P, connection="c3"), Unchanged)
    # What the body may say is still waited for.
    traffic.production("login", SET_P, HTML, content=b"<input type=hidden name=csrf value=pppp>")
    assert isinstance(traffic.request("form", FORM, content=b"csrf=pppp", connection="c4"), Wait)


def test_interim_heads_are_ignored():
    traffic = Traffic("cookie:sid", overtake_s=0)
    head = response_head(103, SET_P)
    for take in (traffic.coupler.production_head, traffic.coupler.shadow_head):
        assert take("login", "192.0.2.1", "c1", head, traffic.now_s) == []
    assert isinstance(traffic.request("next", SENT_P, connection="c2"), Unchanged)


def test_interim_answers_are_ignored():
    traffic = Traffic("cookie:sid")
    traffic.request("login")
    assert traffic.production("login", SET_P2, status=103) == []
    assert traffic.shadow("login", SET_S2, status=103) == []
    traffic.production("login", SET_P)
    traffic.shadow("login", SET_S)
    assert cookies_of(traffic.request("next", SENT_P)) == [b"sid=" + S]


# Requests that overtake, on a link of their own, the answer of production that their value stems from.

# One case for each place a rule names: what the answers hand out, and a request, with P for the value.
OVERTAKING = {
    "cookie": ("cookie:sid", b"Set-Cookie: sid=P", b"", b"/", b"Cookie: sid=P", None),
    "header": ("header:X-Token", b"X-Token: P", b"", b"/", b"X-Token: P", None),
    "query": ("query:sid", HTML, b"<a href='/?sid=P'>", b"/?sid=P", b"X: y", None),
    "redirect": ("location:sid", b"Location: /?sid=P", b"", b"/?sid=P", b"X: y", None),
    "path": ("location:/order/{}", b"Location: /order/P", b"", b"/order/P", b"X: y", None),
    "form": ("form:csrf", HTML, b"<meta name=csrf content=P>", b"/", FORM, b"csrf=P"),
    "json": ("json:/a/token", JSON, b'{"a": {"token": "P"}}', b"/", JSON, b'{"token": "P"}'),
}


@pytest.mark.parametrize("value", [b"17", b"production"])
@pytest.mark.parametrize("case", OVERTAKING.values(), ids=OVERTAKING)
def test_request_that_overtakes_productions_answer_waits_for_both(case, value):
    rule, line, page, target, sent, body = case
    traffic = Traffic(rule)
    traffic.request("login")

    def filled(text, value):
        return text and text.replace(b"P", value)

    wait = traffic.request(
        "next", filled(sent, value), target=filled(target, value), connection="c2", content=filled(body, value)
    )
    assert wait == Wait(1, traffic.now_s + 2.0)
    traffic.now_s += 0.125
    assert traffic.production("login", filled(line, value), content=filled(page, value)) == []
    assert traffic.tick(1.0) == []
    assert traffic.shadow("login", filled(line, b"42"), content=filled(page, b"42")) == [wait.ticket]
    result = traffic.proceed(wait.ticket)
    method = b"GET " if body is None else b"POST "
    expected = method + filled(target, b"42") + b" HTTP/1.1\r\nHost: shop\r\n" + filled(sent, b"42") + b"\r\n\r\n"
    assert (result.head.to_bytes(), result.content) == (expected, filled(body, b"42"))
    assert (traffic.statistics.requests_held, traffic.statistics.held_s_sum) == (1, 1.125)
    assert traffic.statistics.requests_missed == 0


def test_value_in_a_place_no_rule_names_is_not_waited_for():
    traffic = Traffic("cookie:sid", "location:/order/{}", "regex:(x+)")
    traffic.request("login")
    assert traffic.request("next", b"Cookie: a=b", target=b"/orders/17?order=1", connection="c2") == Unchanged()
    assert traffic.statistics.requests_missed == 0


def test_template_that_begins_with_the_value_names_no_place():
    traffic = Traffic("location:/{}/basket")
    traffic.request("login")
    assert traffic.request("next", target=b"/shop/basket", connection="c2") == Unchanged()


@pytest.mark.parametrize("policy", ["send", "drop"])
def test_value_production_does_not_hand_out_in_time_is_sent_and_not_waited_for_again(policy):
    traffic = Traffic("cookie:sid", policy=policy)
    traffic.request("slow")
    first = traffic.request("first", SENT_P, connection="c2")
    assert traffic.tick(0.125) == []
    second = traffic.request("second", SENT_P, connection="c3")
    assert traffic.tick(0.125) == [first.ticket, second.ticket]
    assert [traffic.proceed(wait.ticket) for wait in (first, second)] == [Unchanged(), Unchanged()]
    assert traffic.request("third", SENT_P, connection="c4") == Unchanged()
    statistics = traffic.statistics
    assert (statistics.requests_held, statistics.held_s_sum, statistics.held_s_max) == (2, 0.375, 0.25)
    assert statistics.requests_missed == 3
    assert (statistics.requests_timed_out, statistics.requests_dropped) == (0, 0)


def test_value_never_seen_waits_though_nothing_is_known_to_be_under_way():
    traffic = Traffic("cookie:sid")
    wait = traffic.request("next", SENT_P, connection="c2")
    assert wait == Wait(1, traffic.now_s + 2.0)
    # The link that is behind is a new one.
    traffic.request("login")
    traffic.production("login", SET_P)
    assert traffic.shadow("login", SET_S) == [wait.ticket]
    assert cookies_of(traffic.proceed(wait.ticket)) == [b"sid=" + S]


def test_answer_to_a_request_that_is_queued_behind_another_can_be_overtaken():
    traffic = Traffic("cookie:sid")
    traffic.request("page")
    traffic.production("page")  # the shadow is at it: the login behind it, on the same connection, is not sent
    wait = traffic.request("next", SENT_P, connection="c2")
    assert traffic.production("login", SET_P) == []
    assert traffic.shadow("page") == []
    traffic.request("login")
    assert traffic.shadow("login", SET_S) == [wait.ticket]
    assert cookies_of(traffic.proceed(wait.ticket)) == [b"sid=" + S]


@pytest.mark.parametrize(("policy", "outcome"), [("send", Unchanged()), ("drop", Drop())])
@pytest.mark.parametrize("shadow_first", [False, True])
def test_policy_decides_when_the_overtaken_answer_has_no_counterpart(policy, outcome, shadow_first):
    traffic = Traffic("cookie:sid", policy=policy)
    traffic.request("login")
    wait = traffic.request("next", SENT_P, connection="c2")
    answers = [lambda: traffic.production("login", SET_P), lambda: traffic.shadow("login", status=500)]
    released = [answer() for answer in (answers[::-1] if shadow_first else answers)]
    assert released == [[], [wait.ticket]]
    assert traffic.proceed(wait.ticket) == outcome
    assert traffic.statistics.requests_timed_out == 0


def test_value_that_the_requests_own_answer_sets_again_is_not_waited_for():
    traffic = Traffic("cookie:sid", policy="drop")
    traffic.request("slow")
    wait = traffic.request("next", SENT_P, connection="c2")
    assert traffic.production("next", SET_P) == [wait.ticket]
    assert traffic.proceed(wait.ticket) == Unchanged()
    assert traffic.statistics.requests_missed == 1


def test_session_from_before_the_mirror_waits_once():
    traffic = Traffic("cookie:sid")
    waits = [traffic.request(number, SENT_P, connection=number) for number in range(2)]
    assert traffic.tick(0.25) == [wait.ticket for wait in waits]
    assert [traffic.proceed(wait.ticket) for wait in waits] == [Unchanged(), Unchanged()]
    assert traffic.request("again", SENT_P) == Unchanged()
    traffic.production("again")
    traffic.shadow("again", SET_S)
    assert cookies_of(traffic.request("next", SENT_P)) == [b"sid=" + S]


def test_request_can_wait_for_productions_and_the_shadows_answer_at_once():
    traffic = Traffic("cookie:sid", "header:x-token")
    traffic.request("page")
    traffic.production("page", b"X-Token: pppp")
    traffic.request("login", connection="c2")
    wait = traffic.request("next", SENT_P, b"X-Token: pppp", connection="c3")
    assert traffic.production("login", SET_P) == []
    assert traffic.shadow("page", b"X-Token: ssss") == []
    assert traffic.shadow("login", SET_S) == [wait.ticket]
    result = traffic.proceed(wait.ticket)
    assert (cookies_of(result), result.head.headers.get(b"x-token")) == ([b"sid=" + S], b"ssss")


@pytest.mark.parametrize(("wait_s", "overtake_s", "held_s"), [(2.0, 1.0, 1.0), (0.125, 0.25, 0.125)])
def test_wait_for_production_is_capped_by_the_whole_wait(wait_s, overtake_s, held_s):
    traffic = Traffic("cookie:sid", wait_s=wait_s, overtake_s=overtake_s)
    traffic.request("slow")
    wait = traffic.request("next", SENT_P, connection="c2")
    assert wait.deadline_s == traffic.now_s + wait_s
    assert traffic.tick(held_s - 0.0625) == []
    assert traffic.tick(0.0625) == [wait.ticket]


@pytest.mark.parametrize("options", [{"overtake_s": 0.0}, {"wait_s": 0.0}, {"inferred": True}])
def test_without_productions_answers_or_time_nothing_is_taken_for_overtaken(options):
    traffic = Traffic("json:/token", "header:x-token", "location:sid", **options)
    traffic.request("slow")
    lines = (b"X-Token: pppp", JSON)
    content = b'{"token": "pppp"}'
    assert traffic.request("next", *lines, target=b"/?sid=p", connection="c2", content=content) == Unchanged()


def test_without_time_to_wait_for_production_no_value_loses_its_chance():
    traffic = Traffic("cookie:sid", overtake_s=0.0)
    traffic.request("login")
    assert traffic.request("early", SENT_P, connection="c2") == Unchanged()
    assert traffic.tick() == []
    traffic.production("login", SET_P)
    assert isinstance(traffic.request("next", SENT_P, connection="c3"), Wait)


def test_value_that_was_waited_for_in_vain_keeps_its_chance():
    traffic = Traffic("cookie:sid")
    traffic.request("slow")
    traffic.request("login", connection="c2")
    traffic.production("login", SET_P)
    wait = traffic.request("next", SENT_P, connection="c3")
    traffic.coupler.abandoned("login")
    assert traffic.proceed(wait.ticket) == Unchanged()
    assert traffic.tick(0.25) == []
    traffic.production("slow", SET_P)
    assert isinstance(traffic.request("last", SENT_P, connection="c4"), Wait)


def test_value_whose_time_is_over_is_not_waited_for_though_nobody_looked_at_the_clock():
    traffic = Traffic("cookie:sid")
    traffic.request("slow")
    wait = traffic.request("next", SENT_P, connection="c2")
    traffic.coupler.cancel(wait.ticket)
    traffic.now_s += 0.25
    assert traffic.request("again", SENT_P, connection="c3") == Unchanged()
    assert traffic.tick() == []


def interleavings(users):
    """Every order of the answers to each user's first request, and of the next request, on another connection."""
    return itertools.permutations([(kind, user) for user in range(users) for kind in (*SIDES, "next")])


@pytest.mark.parametrize("users", [1, 2])
def test_in_no_order_does_the_shadow_see_a_value_that_could_be_translated(users):
    for order in interleavings(users):
        traffic = Traffic("cookie:sid")
        for user in range(users):
            traffic.request(("login", user), connection=("c", user))
        outcomes, tickets = {}, {}
        for kind, user in order:
            released = traffic.tick(0.03)
            if kind == "production":
                released += traffic.production(("login", user), b"Set-Cookie: sid=production-%d" % user)
            elif kind == "shadow":
                released += traffic.shadow(("login", user), b"Set-Cookie: sid=shadow-%d" % user)
            else:
                sent = b"Cookie: sid=production-%d" % user
                outcomes[user] = traffic.request(("next", user), sent, connection=("d", user))
                if isinstance(outcomes[user], Wait):
                    tickets[outcomes[user].ticket] = user
                answered = order.index(("next", user)) > max(order.index((side, user)) for side in SIDES)
                assert isinstance(outcomes[user], Rewritten if answered else Wait), order
            for ticket in released:
                outcomes[tickets.pop(ticket)] = traffic.proceed(ticket)
        assert not tickets, order
        assert [cookies_of(outcomes[user]) for user in range(users)] == [
            [b"sid=shadow-%d" % user] for user in range(users)
        ], order
        assert traffic.statistics.requests_missed == 0


# Bounds.


def test_least_recently_used_alias_goes_first():
    traffic = Traffic("cookie:sid", max_aliases=2, overtake_s=0)
    for number in range(2):
        traffic.pair(number, b"Set-Cookie: sid=prod%d" % number, b"Set-Cookie: sid=shad%d" % number)
    traffic.request("use", b"Cookie: sid=prod0")
    traffic.pair(2, b"Set-Cookie: sid=prod2", b"Set-Cookie: sid=shad2")
    assert isinstance(traffic.request("kept", b"Cookie: sid=prod0"), Rewritten)
    assert traffic.request("gone", b"Cookie: sid=prod1") == Unchanged()
    assert (traffic.statistics.aliases, traffic.statistics.aliases_evicted) == (2, 1)


@pytest.mark.parametrize("trigger", ["use", "learn"])
def test_unused_alias_expires(trigger):
    traffic = coupled(ttl_s=10.0, overtake_s=0)
    traffic.now_s += 9
    assert isinstance(traffic.request("use", SENT_P), Rewritten)
    traffic.now_s += 9
    assert isinstance(traffic.request("use again", SENT_P), Rewritten)
    traffic.now_s += 11
    if trigger == "use":
        assert traffic.request("late", SENT_P) == Unchanged()
    else:
        traffic.pair("new", SET_P2, SET_S2)
    assert traffic.statistics.aliases == (trigger == "learn")
    assert traffic.statistics.aliases_expired == 1


def test_exchange_that_is_never_answered_is_forgotten():
    traffic = Traffic("cookie:sid", overtake_s=0)
    traffic.request("login")
    traffic.production("login", SET_P)
    traffic.now_s += EXCHANGE_TTL_S + 1
    traffic.request("later", connection="c2")
    assert traffic.request("next", SENT_P, connection="c2") == Unchanged()


def test_exchanges_are_bounded(monkeypatch):
    monkeypatch.setattr("gopher.relay.learning._MAX_EXCHANGES", 2)
    traffic = Traffic("cookie:sid")
    for exchange in ("a", "b", "c"):
        traffic.request(exchange)
    traffic.production("a", SET_P)  # begins anew: what was known of its request is gone
    assert len(traffic.coupler._exchanges) == 2


def test_value_that_everybody_gets_is_not_waited_for():
    traffic = Traffic(auto=True)
    for number in range(65):
        traffic.request(number, connection=number)
        traffic.production(number, b"Set-Cookie: brand=constant")
    assert traffic.request("next", b"Cookie: brand=constant", connection="c") == Unchanged()


# Statistics and secrecy.


@pytest.mark.parametrize(
    ("status", "lines", "kind"),
    [
        (401, (), "401"),
        (403, (), "403"),
        (419, (), "419"),
        (302, (b"Location: https://shop/Login?next=/",), "login"),
        (303, (b"Location: /users/sign_in",), "login"),
        (302, (b"Location: /oauth2/authorize?client_id=1",), "login"),
        (302, (b"Location: /weblogin",), "login"),
        (302, (b"Location: /authors/17",), ""),
        (302, (b"Location: /blog-in-depth",), ""),
        (302, (b"Location: /designing",), ""),
        (302, (b"Location: /home?next=/login",), None),
        (302, (), None),
        (404, (b"Location: /login",), None),
        (200, (), None),
    ],
)
@pytest.mark.parametrize("shadow_first", [False, True])
def test_divergence_is_counted_by_kind(status, lines, kind, shadow_first):
    traffic = Traffic("cookie:sid")
    traffic.request("r")
    answers = [lambda: traffic.production("r"), lambda: traffic.shadow("r", *lines, status=status)]
    for answer in answers[::-1] if shadow_first else answers:
        answer()
    assert traffic.statistics.divergences == ({kind: 1} if kind else {})


def test_rejection_by_both_is_no_divergence():
    traffic = Traffic("cookie:sid")
    traffic.request("r")
    traffic.production("r", status=403)
    traffic.shadow("r", status=403)
    assert traffic.statistics.divergences == {}


def test_unread_bodies_are_counted_on_both_sides():
    traffic = Traffic("json:/t")
    traffic.request("r")
    traffic.production("r", b"Content-Encoding: br", content=b"?")
    traffic.shadow("r", b"Content-Encoding: br", content=b"?")
    assert traffic.statistics.bodies_unread == 2


@pytest.mark.parametrize(
    ("rules", "options", "needs"),
    [(("cookie:sid",), {}, False), ((), {"auto": True}, False), (("cookie:sid", "header:x"), {}, True)],
)
def test_request_body_is_asked_for_unless_only_cookies_are_coupled(rules, options, needs):
    coupler = Traffic(*rules, **options).coupler
    head = request_head(b"/", FORM, b"Content-Length: 3", method=b"POST")
    assert coupler.needs_request_body(head) is needs
    assert not coupler.needs_response_body(response_head(200, HTML))


def test_no_repr_and_no_statistic_tells_a_value():
    traffic = Traffic("cookie:sid", "json:/t")
    traffic.request("r")
    traffic.production("r", SET_P, JSON, content=b'{"t": "secret-p"}')
    wait = traffic.request("w", SENT_P)
    traffic.shadow("r", SET_S, JSON, content=b'{"t": "secret-s"}')
    traffic.production("w", SET_P2)
    rewritten = traffic.proceed(wait.ticket)
    coupler = traffic.coupler
    exchanges = coupler._exchanges.values()
    inner = [
        coupler._waiting,
        coupler._aliases,
        coupler._known,
        coupler._reader,
        *exchanges,
        *(each.production for each in exchanges),
    ]
    shown = repr([coupler, wait, rewritten, traffic.statistics, *inner])
    for value in (P, P2, S, b"secret-p", b"secret-s"):
        assert value.decode() not in shown
