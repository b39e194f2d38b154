"""Inferred mode: no answers of production, so new values are bound to the client's unclaimed shadow sessions."""

from gopher.relay.inference import CLAIM_S
from gopher.relay.outcomes import Rewritten, Unchanged, Wait
from tests.support.coupling import Traffic, cookies_of

HTML = b"Content-Type: text/html"
FORM = b"Content-Type: application/x-www-form-urlencoded"
ALICE, BOB = "192.0.2.1", "192.0.2.2"


def inferring(*rules, **options):
    return Traffic(*(rules or ("cookie:sid",)), inferred=True, **options)


def visit(traffic, exchange, *lines, shadow=(), **who):
    """A request, and the shadow's answer to it."""
    result = traffic.request(exchange, *lines, **who)
    assert traffic.shadow(exchange, *shadow) == []
    return result


def sets(value):
    return (b"Set-Cookie: sid=" + value,)


def says(value):
    return b"Cookie: sid=" + value


def test_new_value_is_bound_to_the_session_of_its_connection():
    traffic = inferring()
    visit(traffic, 1, shadow=sets(b"shadow-a"), connection="a")
    visit(traffic, 2, shadow=sets(b"shadow-b"), connection="b")
    assert cookies_of(visit(traffic, 3, says(b"prod-b"), connection="b")) == [b"sid=shadow-b"]
    assert cookies_of(visit(traffic, 4, says(b"prod-a"), connection="a")) == [b"sid=shadow-a"]
    assert cookies_of(visit(traffic, 5, says(b"prod-b"), connection="c", client=BOB)) == [b"sid=shadow-b"]


def test_new_value_on_another_connection_is_bound_by_address():
    traffic = inferring()
    visit(traffic, 1, shadow=sets(b"shadow-a"), connection="a", client=ALICE)
    visit(traffic, 2, shadow=sets(b"shadow-b"), connection="b", client=BOB)
    assert cookies_of(visit(traffic, 3, says(b"prod-a"), connection="c", client=ALICE)) == [b"sid=shadow-a"]


def test_two_candidates_are_no_guess():
    traffic = inferring()
    visit(traffic, 1, shadow=sets(b"shadow-a"), connection="a")
    visit(traffic, 2, shadow=sets(b"shadow-b"), connection="b")
    assert visit(traffic, 3, says(b"prod-a"), connection="c") == Unchanged()
    assert visit(traffic, 4, says(b"prod-a"), connection="c") == Unchanged()
    assert (traffic.statistics.values_ambiguous, traffic.statistics.requests_missed) == (1, 2)


def test_value_that_had_its_chance_claims_nothing_later():
    traffic = inferring()
    visit(traffic, 1, says(b"from-before"), connection="a")
    visit(traffic, 2, shadow=sets(b"shadow-b"), connection="b")
    assert visit(traffic, 3, says(b"from-before"), connection="a") == Unchanged()
    assert cookies_of(visit(traffic, 4, says(b"prod-b"), connection="c")) == [b"sid=shadow-b"]


def test_rotation_at_login():
    traffic = inferring()
    visit(traffic, 1, shadow=sets(b"shadow-a"))
    visit(traffic, 2, says(b"prod-a"), shadow=sets(b"shadow-b"))
    assert cookies_of(visit(traffic, 3, says(b"prod-b"), connection="c2")) == [b"sid=shadow-b"]


def test_rotation_by_the_shadow_alone_is_seen_on_the_same_connection():
    traffic = inferring()
    visit(traffic, 1, shadow=sets(b"shadow-a"))
    visit(traffic, 2, says(b"prod-a"), shadow=sets(b"shadow-b"))
    assert cookies_of(visit(traffic, 3, says(b"prod-a"))) == [b"sid=shadow-b"]
    assert visit(traffic, 4, says(b"stranger"), connection="c2") == Unchanged()


def test_session_from_before_the_mirror_belongs_to_the_value_that_was_answered():
    traffic = inferring()
    assert visit(traffic, 1, says(b"old-a"), shadow=sets(b"shadow-a"), connection="a") == Unchanged()
    assert visit(traffic, 2, says(b"old-b"), connection="b") == Unchanged()
    assert cookies_of(visit(traffic, 3, says(b"old-a"), connection="c")) == [b"sid=shadow-a"]


def test_session_set_again_is_no_new_candidate():
    traffic = inferring()
    visit(traffic, 1, shadow=sets(b"shadow-a"))
    visit(traffic, 2, says(b"prod-a"), shadow=sets(b"shadow-a"))
    visit(traffic, 3, shadow=sets(b"shadow-a"))
    assert visit(traffic, 4, says(b"stranger")) == Unchanged()
    assert traffic.statistics.values_ambiguous == 0


def test_client_of_the_shadow_itself_is_left_alone():
    traffic = inferring()
    visit(traffic, 1, shadow=sets(b"shadow-a"))
    assert visit(traffic, 2, says(b"shadow-a")) == Unchanged()
    assert traffic.statistics.requests_missed == 0


def test_deleted_session_is_withdrawn():
    traffic = inferring()
    visit(traffic, 1, shadow=sets(b"shadow-a"))
    visit(traffic, 2, shadow=(b"Set-Cookie: sid=; Max-Age=0",))
    assert visit(traffic, 3, says(b"prod-a")) == Unchanged()


def test_session_nobody_claims_is_no_candidate_for_ever():
    traffic = inferring()
    visit(traffic, 1, shadow=sets(b"shadow-a"))
    traffic.now_s += CLAIM_S + 1
    visit(traffic, 2, shadow=sets(b"shadow-b"))
    assert cookies_of(visit(traffic, 3, says(b"prod-b"))) == [b"sid=shadow-b"]


def test_candidates_are_bounded():
    traffic = inferring(max_aliases=1)
    visit(traffic, 1, shadow=sets(b"shadow-a"))
    visit(traffic, 2, shadow=sets(b"shadow-b"))
    assert cookies_of(visit(traffic, 3, says(b"prod-b"))) == [b"sid=shadow-b"]


def test_new_value_waits_for_what_the_shadow_is_still_at():
    traffic = inferring()
    traffic.request(1, connection="a")
    wait = traffic.request(2, says(b"prod-a"), connection="b")
    assert isinstance(wait, Wait)
    assert traffic.request(3, says(b"prod-x"), connection="c", client=BOB) == Unchanged()
    assert traffic.shadow(1, *sets(b"shadow-a")) == [wait.ticket]
    assert cookies_of(traffic.proceed(wait.ticket)) == [b"sid=shadow-a"]


def test_slow_answer_is_still_claimed_after_the_deadline():
    traffic = inferring()
    traffic.request(1, connection="a")
    wait = traffic.request(2, says(b"prod-a"), connection="b")
    traffic.now_s = wait.deadline_s
    assert traffic.proceed(wait.ticket) == Unchanged()
    assert traffic.statistics.requests_timed_out == 1
    traffic.shadow(2)
    traffic.shadow(1, *sets(b"shadow-a"))
    assert cookies_of(traffic.request(3, says(b"prod-a"), connection="b")) == [b"sid=shadow-a"]


def test_address_with_many_requests_in_flight_is_not_waited_for():
    traffic = inferring()
    for number in range(65):
        traffic.request(number, connection=number)
    assert traffic.request("new", says(b"prod-a"), connection="c") == Unchanged()


def test_abandoned_exchange_is_not_waited_for():
    traffic = inferring()
    traffic.request(1, connection="a")
    wait = traffic.request(2, says(b"prod-a"), connection="b")
    assert traffic.coupler.abandoned(1) == [wait.ticket]


def test_auto_binds_cookies_that_the_shadow_sets():
    traffic = Traffic(auto=True, inferred=True)
    visit(traffic, 1, shadow=sets(b"shadow-a"))
    result = visit(traffic, 2, b"Cookie: sid=prod-a; analytics=xyz-123")
    assert cookies_of(result) == [b"sid=shadow-a; analytics=xyz-123"]


def test_csrf_field_is_bound_to_the_token_the_shadow_handed_out():
    traffic = inferring("form:csrf")
    for exchange in (1, 2):  # the token of a session is in each of its pages
        traffic.request(exchange)
        traffic.shadow(exchange, HTML, content=b"<input type=hidden name=csrf value=token-s>")
    result = traffic.request(3, FORM, content=b"csrf=token-p")
    assert isinstance(result, Rewritten)
    assert result.content == b"csrf=token-s"


def test_repr_of_candidates_tells_no_value():
    traffic = inferring()
    visit(traffic, 1, shadow=sets(b"shadow-a"))
    inference = traffic.coupler._inference
    assert "shadow-a" not in repr(inference) + repr(list(inference._all.values()))
