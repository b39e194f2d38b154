"""The token bucket and the two rates of an upstream, by a clock set by hand."""

from __future__ import annotations

import pytest

from gopher.upstreams.rate import RateLimit, TokenBucket


def test_bucket_is_full_at_first_fills_at_its_rate_and_holds_one_second() -> None:
    bucket = TokenBucket(10)
    assert bucket.level(50.0) == 10
    bucket.take(4)
    assert bucket.level(50.0) == 6
    assert bucket.level(50.3) == pytest.approx(9)
    assert bucket.level(60.0) == 10


def test_bucket_in_debt_pays_it_back_first() -> None:
    bucket = TokenBucket(10)
    bucket.level(0.0)
    bucket.take(35)
    assert bucket.level(2.0) == pytest.approx(-5)
    assert bucket.level(3.0) == pytest.approx(5)


def test_connections_per_second_hold_over_any_time() -> None:
    limit = RateLimit(None, 5)
    opened = []
    for step in range(1000):
        now_s = step / 100
        if limit.admits(now_s):
            limit.opened()
            opened.append(now_s)
    assert opened[:5] == [0.0, 0.01, 0.02, 0.03, 0.04]
    assert len(opened) == pytest.approx(5 + 50, abs=1)


def test_asking_takes_nothing() -> None:
    limit = RateLimit(None, 1)
    assert all(limit.admits(0.0) for _ in range(10))
    limit.opened()
    assert not limit.admits(0.0)


def test_bytes_of_open_connections_keep_new_ones_out_before_they_are_cut_themselves() -> None:
    limit = RateLimit(1000, None)
    assert limit.passes(1000, 0.0)
    assert not limit.admits(0.0)
    assert limit.passes(999, 0.0)
    assert limit.passes(1, 0.0)
    assert not limit.passes(1, 0.0)
    # Half of the debt is paid: what is open goes on, nothing begins.
    assert limit.passes(1, 0.5)
    assert not limit.admits(0.5)
    assert limit.admits(1.1)


@pytest.mark.parametrize("write", [1, 700, 5000])
def test_bytes_per_second_hold_over_any_time(write: int) -> None:
    limit = RateLimit(1000, None)
    passed = sum(write for step in range(10_000) if limit.passes(write, step / 1000))
    assert 10_000 <= passed <= 12_000 + write
