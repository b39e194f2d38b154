import json, os
import pytest
from tests.e2e import test_coupling as t
from tests.support import netns

pytestmark = pytest.mark.e2e


@pytest.fixture
def host():
    with netns.Namespace("host") as namespace:
        yield namespace


CASES = {
    "exact-one": dict(plans=(t.ONE,), link="relay", couple=t.RULES, responses=True),
    "exact-second": dict(plans=(t.SECOND_AFTER_FIRST_PAGE,), link="relay", couple=t.RULES, responses=True),
    "exact-alt": dict(plans=(t.ALTERNATING,), link="relay", couple=t.RULES, responses=True),
    "exact-each": dict(plans=(t.EACH,), link="relay", couple=t.RULES, responses=True),
    "off": dict(
        plans=(t.ONE, t.SECOND_AFTER_FIRST_PAGE, t.ALTERNATING, t.EACH), link="relay", couple=(), responses=True
    ),
    "inf-off": dict(plans=(t.ONE, t.SECOND_AFTER_FIRST_PAGE), link="relay", couple=(), tokens=False, addresses=True),
    "inf-one": dict(plans=(t.ONE,), link="relay", couple=t.COOKIE, tokens=False, addresses=True),
    "inf-second": dict(plans=(t.SECOND_AFTER_FIRST_PAGE,), link="relay", couple=t.COOKIE, tokens=False, addresses=True),
    "inf-plain": dict(plans=(t.ONE,), link="tcp", couple=t.COOKIE, tokens=False),
    "auto": dict(plans=(t.ONE,), link="relay", couple=("auto",), tokens=False, responses=True),
}


@pytest.mark.parametrize("go", range(int(os.environ.get("N", "3"))))
@pytest.mark.parametrize("speed", os.environ.get("SPEEDS", "faster,equally fast,slower").split(","))
@pytest.mark.parametrize("case", CASES)
def test_mirror(host, case, go, speed):
    outcome = t.mirror_users(host, speed=speed, **CASES[case])
    c = outcome.relayed["coupling"]
    print(
        "RESULT",
        case,
        speed,
        dict(outcome.shadow.refused),
        c and {k: v for k, v in c.items() if v},
        outcome.relayed["failed"],
        outcome.relayed["exchanges"],
    )
    assert not outcome.shadow.refused
    assert outcome.shadow.sales == outcome.production.sales
