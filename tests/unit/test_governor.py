"""The CPU limit against simulated processes: it is kept, comes to rest, and lets go again."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import Mock

import pytest

from gopher.capture.governor import CpuGovernor, Places, place_of

STEP_S = 0.25
LIMIT = 0.5


class Short:
    """Connections that are over within a step: what begins is what costs."""

    def __init__(self, base: float, per_share: float) -> None:
        self.base, self.per_share = base, per_share

    def used(self, share: float, cut: bool) -> float:
        return self.base + self.per_share * share


class Lasting:
    """Connections that are all there at the start and never end: only a cut helps, and what is cut is gone."""

    def __init__(self, base: float, per_share: float, count: int = 1000) -> None:
        self.base, self.each = base, per_share / count
        self.places = [number / count for number in range(count)]

    def used(self, share: float, cut: bool) -> float:
        if cut:
            self.places = [place for place in self.places if place < share]
        return self.base + self.each * len(self.places)


class Mixed:
    """A tenth of the connections end in each step, and as many begin."""

    def __init__(self, base: float, per_share: float, count: int = 1000) -> None:
        self.base, self.each = base, per_share / count
        self.count, self.step = count, 0
        self.places = {number: number / count for number in range(count)}

    def used(self, share: float, cut: bool) -> float:
        for number in range(self.step % 10, self.count, 10):
            self.places.pop(number, None)
            # The golden ratio spreads them: the next client of this slot is another one.
            place = (number * 0.6180339887 + self.step * 0.7548776662) % 1
            if place < share:
                self.places[number] = place
        self.step += 1
        if cut:
            self.places = {number: place for number, place in self.places.items() if place < share}
        return self.base + self.each * len(self.places)


class Simulation:
    def __init__(self, process: Short | Lasting | Mixed) -> None:
        self.governor = CpuGovernor(LIMIT)
        self.process = process
        self._now_s, self._cpu_s, self._cut = 1000.0, 7.0, False

    def run(self, seconds: float) -> list[tuple[float, float]]:
        """(share, CPU used) in each step."""
        steps = []
        for _ in range(int(seconds / STEP_S)):
            used = self.process.used(self.governor.share, self._cut)
            steps.append((self.governor.share, used))
            self._now_s += STEP_S
            self._cpu_s += used * STEP_S
            self._cut = self.governor.update(self._now_s, self._cpu_s)
        return steps


def test_below_the_limit_nothing_is_shed() -> None:
    assert {share for share, _ in Simulation(Short(0.1, 0.38)).run(60)} == {1.0}


@pytest.mark.parametrize("process", [Short, Lasting, Mixed])
@pytest.mark.parametrize(("base", "per_share"), [(0.05, 0.6), (0.1, 0.9), (0.3, 0.7), (0.02, 4.0)])
def test_over_the_limit_it_settles_below_and_stays_there(
    process: type[Short | Lasting | Mixed], base: float, per_share: float
) -> None:
    steps = Simulation(process(base, per_share)).run(60)
    settled = steps[len(steps) // 6 :]  # from 10 s on
    assert max(used for _, used in settled) <= LIMIT
    # Not more is shed than has to be.
    assert settled[-1][1] >= 0.75 * LIMIT
    shares = [share for share, _ in settled]
    if process is not Lasting:  # where the share may grow, as there is nobody left to begin
        turns = sum(
            (b - a) * (c - b) < 0 for (a, b), (_, c) in zip(pairwise(shares), pairwise(shares[1:]), strict=False)
        )
        assert turns <= 2


def test_capturing_alone_over_the_limit_sheds_all_and_recovers() -> None:
    simulation = Simulation(Short(0.7, 0.3))
    assert simulation.run(60)[-1] == (0.0, 0.7)
    simulation.process = Short(0.1, 0.2)
    assert simulation.run(30)[-1][0] == 1.0


def test_share_recovers_when_the_load_falls() -> None:
    simulation = Simulation(Short(0.1, 2.0))
    assert simulation.run(30)[-1][0] < 0.25
    simulation.process = Short(0.02, 0.3)
    recovering = [share for share, _ in simulation.run(15)]
    assert recovering == sorted(recovering)
    assert recovering[-1] == 1.0


def test_first_connections_are_turned_away_and_open_ones_are_cut_only_if_that_does_not_help() -> None:
    governor = CpuGovernor(LIMIT)
    cuts = [governor.update(step * 0.5, step * 0.5) for step in range(4)]
    assert cuts == [False, False, True, False]
    helped = CpuGovernor(LIMIT)
    assert [helped.update(at, cpu) for at, cpu in ((0, 0.0), (0.5, 0.5), (1.0, 0.72))] == [False, False, False]
    assert helped.share == pytest.approx(0.45)


def test_asked_more_often_it_looks_at_half_seconds() -> None:
    governor = CpuGovernor(LIMIT)
    for step in range(5):
        governor.update(step / 10, step / 10)
        assert governor.share == 1.0
    governor.update(0.5, 0.5)
    assert governor.share == pytest.approx(0.45)


def test_places_are_even_and_always_the_same() -> None:
    assert place_of("192.0.2.1") == place_of("192.0.2.1")
    places = sorted(place_of(f"10.0.{number >> 8}.{number & 255}") for number in range(10_000))
    assert all(abs(place - number / 10_000) < 0.02 for number, place in enumerate(places))


def flow(address: str, port: int) -> Mock:
    return Mock(client=(address, port))


def test_connections_of_one_client_have_one_place() -> None:
    places = Places(1.0)
    for number in range(16):
        places.place(flow(f"192.0.2.{number}", 1))
    assert len({places.place(flow("198.51.100.1", port)) for port in range(100)}) == 1


def test_connections_behind_a_load_balancer_have_places_of_their_own() -> None:
    places = Places(1.0)
    assert len({places.place(flow("192.0.2.1", port)) for port in range(100)}) == 100


def test_clients_of_a_sample_are_spread_over_all_places() -> None:
    places = Places(0.1)
    sampled = [address for address in (f"10.0.{n >> 8}.{n & 255}" for n in range(10_000)) if place_of(address) < 0.1]
    found = [places.place(flow(address, 1)) for address in sampled]
    assert 0.4 < sum(place < 0.5 for place in found) / len(found) < 0.6
    assert max(found) < 1
