"""The whole chain: users shop at production, a capturing gopher looks on, and a relay makes their requests fit a shadow
with randomness of its own.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.accounts import assert_all_delivered
from tests.support.command import GopherProcess
from tests.support.netns import Namespace
from tests.support.relay import RelayProcess
from tests.support.shop import (
    REQUESTS_PER_VISIT,
    REQUESTS_WITHOUT_SESSION,
    Browser,
    Plan,
    Refused,
    Shop,
    shop_at_once,
    shop_once,
)

pytestmark = pytest.mark.e2e

PRODUCTION = ("127.0.0.1", 80)
SHADOW = ("127.0.0.1", 8080)
RELAY_PORT = 3280
USERS = 50
REQUESTS = USERS * REQUESTS_PER_VISIT

COOKIE = ("cookie:sid",)
RULES = (*COOKIE, "form:csrf_token", "location:/order/{}")

# How users spread their requests over connections.
ONE: Plan = lambda number: 0  # noqa: E731
SECOND_AFTER_FIRST_PAGE: Plan = lambda number: min(number, 1)  # noqa: E731
ALTERNATING: Plan = lambda number: number % 2  # noqa: E731
EACH: Plan = lambda number: number  # noqa: E731

# Up to how many seconds production and the shadow take for an answer.
SPEEDS = {"faster": (0.1, 0.0), "equally fast": (0.03, 0.03), "slower": (0.0, 1.0)}


@dataclass
class Outcome:
    production: Shop
    shadow: Shop
    captured: dict[str, Any]
    relayed: dict[str, Any]


def mirror_users(
    host: Namespace,
    *,
    plans: tuple[Plan, ...],
    link: str,
    couple: tuple[str, ...],
    speed: str = "equally fast",
    responses: bool = False,
    tokens: bool = True,
    addresses: bool = False,
) -> Outcome:
    """Run the chain until the shadow has seen every request.

    Args:
        host: where all of it lives.
        plans: of the users, in turn.
        link: the scheme of capture's upstream.
        couple: the relay's rules.
        speed: of the shadow, compared with production.
        responses: whether the capture sends production's answers along.
        tokens: see `Shop`.
        addresses: whether each user has one of its own.
    """

    def connect(number: int) -> socket.socket:
        return host.connect(PRODUCTION, source=f"127.0.1.{number + 1}" if addresses else None)

    production_s, shadow_s = SPEEDS[speed]
    with (
        Shop(PRODUCTION, namespace=host, delay_s=production_s, tokens=tokens) as production,
        Shop(SHADOW, namespace=host, delay_s=shadow_s, tokens=tokens) as shadow,
        RelayProcess(
            shadow.name,
            options=[word for rule in couple for word in ("--couple", rule)],
            port=RELAY_PORT,
            namespace=host,
        ) as relay,
        GopherProcess(
            *("-c", "-p", "80", "-i", "lo", "-u", f"{link}://127.0.0.1:{RELAY_PORT}"),
            *(["--responses"] if responses else []),
            namespace=host,
        ) as capture,
    ):
        shop_at_once(
            [Browser(lambda number=number: connect(number), plans[number % len(plans)]) for number in range(USERS)]
        )
        shadow.wait_requests(REQUESTS)
        capture.stop()
        relay.stop()
    return Outcome(production, shadow, capture.report, relay.report)


def test_mirror(host):
    outcome = mirror_users(
        host, plans=(ONE, SECOND_AFTER_FIRST_PAGE, ALTERNATING, EACH), link="relay", couple=RULES, responses=True
    )
    import json

    print(json.dumps(outcome.captured, indent=1), json.dumps(outcome.relayed, indent=1))
    print(outcome.shadow.accepted, outcome.shadow.refused)
    assert outcome.shadow.sales == outcome.production.sales
    assert not outcome.shadow.refused
