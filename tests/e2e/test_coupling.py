"""The whole chain: users shop at production, a capturing gopher looks on, and a relay makes their requests fit a shadow
with randomness of its own.
"""

import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import pytest

from tests.support.accounts import assert_all_delivered, only_upstream
from tests.support.command import GopherProcess
from tests.support.netns import Namespace
from tests.support.relay import RelayProcess
from tests.support.shop import (
    NAMELESS_REQUESTS_PER_VISIT,
    REQUESTS_PER_VISIT,
    SESSION,
    TOKEN,
    Browser,
    Plan,
    Refused,
    Shop,
    visit,
    visit_at_once,
)

pytestmark = pytest.mark.e2e

PRODUCTION = ("127.0.0.1", 80)
SHADOW = ("127.0.0.1", 8080)
RELAY_PORT = 3280
USERS = 50
REQUESTS = USERS * REQUESTS_PER_VISIT
NAMING_REQUESTS = REQUESTS - USERS * NAMELESS_REQUESTS_PER_VISIT

COOKIE = (f"cookie:{SESSION}",)
RULES = (*COOKIE, f"form:{TOKEN}", "location:/order/{}")

# The shadow, compared with production: up to how many seconds each of them takes for an answer.
SPEEDS = {"faster": (0.1, 0.0), "equally fast": (0.03, 0.03), "slower": (0.0, 1.0), "both at once": (0.0, 0.0)}


# Which connection a user's request of this number takes.


def one_connection(_: int) -> int:
    return 0


def another_after_the_first_page(number: int) -> int:
    return min(number, 1)


def two_connections_in_turn(number: int) -> int:
    return number % 2


def six_connections_in_turn(number: int) -> int:
    return number % 6


def each_its_own(number: int) -> int:
    return number


@dataclass
class Outcome:
    """What both shops and both gophers say when all is over."""

    production: Shop
    shadow: Shop
    captured: dict[str, Any]
    relayed: dict[str, Any]

    @property
    def coupling(self) -> dict[str, Any]:
        coupling = self.relayed["coupling"]
        assert isinstance(coupling, dict)
        return coupling


def mirror_users(
    host: Namespace,
    plans: tuple[Plan, ...],
    *,
    couple: tuple[str, ...],
    responses: bool,
    link: str = "relay",
    speed: str = "equally fast",
    tokens: bool = True,
    addresses: bool = False,
    options: tuple[str, ...] = (),
) -> Outcome:
    """Run the chain until the shadow has seen every request, and hold both gophers to their accounts.

    Args:
        host: where all of it lives.
        plans: the users' use of connections, in turn.
        couple: the relay's rules.
        responses: whether the capture sends production's answers along.
        link: the scheme of the capture's upstream.
        speed: of the shadow, a key of SPEEDS.
        tokens: see `Shop`.
        addresses: whether each user has one of its own.
        options: more of the relay's command line.
    """

    def browser(number: int) -> Browser:
        def connect() -> socket.socket:
            return host.connect(PRODUCTION, source=f"127.0.1.{1 + number}" if addresses else None)

        return Browser(connect, plans[number % len(plans)])

    production_s, shadow_s = SPEEDS[speed]
    # Room for a busy machine: nothing is served late on purpose for as long.
    rules = ["--couple-wait", "20", *(word for rule in couple for word in ("--couple", rule))]
    capturing = ["-c", "-p", "80", "-i", "lo", "-u", f"{link}://127.0.0.1:{RELAY_PORT}"]
    with (
        Shop(PRODUCTION, namespace=host, delay_s=production_s, tokens=tokens) as production,
        Shop(SHADOW, namespace=host, delay_s=shadow_s, tokens=tokens) as shadow,
        RelayProcess(shadow.name, options=[*rules, *options], port=RELAY_PORT, namespace=host) as relay,
        GopherProcess(*capturing, *(["--responses"] if responses else []), namespace=host) as capture,
    ):
        visit_at_once([browser(number) for number in range(USERS)])
        shadow.wait_requests(REQUESTS)
        capture.stop()
        relay.stop()

    assert production.requests == shadow.requests == REQUESTS
    assert not production.refused
    assert_all_delivered(capture.report)
    assert only_upstream(capture.report)["answers_missed_bytes"] == 0
    counts = relay.report["connections"]
    assert counts["failed"] == 0, relay.report["failed"]
    assert counts["accepted"] == capture.report["connections"]["mirrored"]
    assert counts["links"] == (counts["accepted"] if link == "relay" else 0)
    assert counts["framed"] == (counts["accepted"] if responses else 0)
    assert relay.report["answers"] == {}
    return Outcome(production, shadow, capture.report, relay.report)


def assert_coupled(outcome: Outcome) -> None:
    """The shadow served whatever production served, to the users that production served it to."""
    assert not outcome.shadow.refused, outcome.relayed
    assert outcome.shadow.accepted == outcome.production.accepted
    assert outcome.shadow.sales == outcome.production.sales
    assert len(outcome.shadow.sales) == USERS
    coupling = outcome.coupling
    assert coupling["requests_rewritten"] == NAMING_REQUESTS
    assert coupling["divergences"] == {}
    for count in ("requests_missed", "requests_timed_out", "requests_dropped", "values_ambiguous", "requests_waiting"):
        assert coupling[count] == 0, coupling
    exchanges = outcome.relayed["exchanges"]
    assert exchanges == {"requests": REQUESTS, "responses": REQUESTS, "dropped": 0, "unanswered": 0}


def test_shop_refuses_what_another_shop_has_handed_out():
    with Shop() as shop, Shop() as other:
        with Browser(lambda: socket.create_connection(shop.address)) as browser:
            visit(browser, "somebody")
            browser.get("/login")
            here = browser.cookies, browser.token
        assert shop.sales == [("somebody", "something for somebody")]
        assert not shop.refused

        with Browser(lambda: socket.create_connection(other.address)) as stranger:
            stranger.cookies = dict(here[0])
            with pytest.raises(Refused) as refused:
                stranger.get("/login")
            assert refused.value.status == HTTPStatus.FORBIDDEN
            stranger.cookies.clear()
            stranger.get("/")
            stranger.get("/login")
            token, stranger.token = stranger.token, here[1]
            with pytest.raises(Refused) as refused:
                stranger.post("/login", user="somebody")
            assert refused.value.status == HTTPStatus.FORBIDDEN
            stranger.token = token
            stranger.post("/login", user="somebody")
            with pytest.raises(Refused) as refused:
                stranger.get("/order/0123456789abcdef")
            assert refused.value.status == HTTPStatus.NOT_FOUND
        assert other.refused == {"GET /login": 1, "POST /login": 1, "GET /order/{}": 1}


@pytest.mark.parametrize("speed", SPEEDS)
def test_every_rule_with_productions_answers(host, speed):
    plans = (one_connection, another_after_the_first_page, two_connections_in_turn)
    if speed != "slower":
        plans = (*plans, six_connections_in_turn, each_its_own)
    outcome = mirror_users(host, plans, couple=RULES, responses=True, speed=speed)
    assert_coupled(outcome)
    if speed == "slower":
        assert outcome.coupling["requests_held"] > 0


def test_requests_on_connections_of_their_own_wait_for_a_shadow_that_falls_behind(host):
    outcome = mirror_users(host, (each_its_own,), couple=RULES, responses=True, speed="slower")
    assert_coupled(outcome)
    # More than one answer's time: the lag of one request is that of the next one, and its own.
    assert outcome.coupling["held_s_max"] > SPEEDS["slower"][1]


@pytest.mark.parametrize("speed", SPEEDS)
def test_cookies_of_clients_with_addresses_of_their_own_without_productions_answers(host, speed):
    plans = (one_connection, another_after_the_first_page)
    outcome = mirror_users(host, plans, couple=COOKIE, responses=False, tokens=False, addresses=True, speed=speed)
    assert_coupled(outcome)


def test_cookies_of_users_that_all_come_from_the_capture_without_productions_answers(host):
    outcome = mirror_users(host, (one_connection,), couple=COOKIE, responses=False, tokens=False, link="tcp")
    assert_coupled(outcome)


@pytest.mark.parametrize("responses", [True, False], ids=["framed", "unframed"])
def test_nothing_coupled_nothing_served(host, responses):
    outcome = mirror_users(
        host, (one_connection,), couple=(), responses=responses, tokens=responses, addresses=not responses
    )
    assert outcome.shadow.refused.total() == NAMING_REQUESTS
    assert outcome.shadow.sales == []


def test_missing_rule_shows_in_the_divergences(host):
    outcome = mirror_users(host, (one_connection,), couple=COOKIE, responses=True)
    # Both shops show their pages until the login, whose token the shadow does not know.
    assert outcome.shadow.refused.total() == NAMING_REQUESTS - USERS
    # Cart, filled cart and order; elsewhere production answered with a redirect.
    assert outcome.coupling["divergences"] == {"401": 2 * USERS, "403": USERS}
