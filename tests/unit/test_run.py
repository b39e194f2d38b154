"""What capture mode's tasks share."""

from __future__ import annotations

import select
import time

import trio
from trio.testing import wait_all_tasks_blocked

from gopher.capture._ring import Timer
from gopher.capture.run import Turn


def test_turns_are_taken_one_after_the_other() -> None:
    trio.run(_turns_are_taken_one_after_the_other)


async def _turns_are_taken_one_after_the_other() -> None:
    turn = Turn()
    order: list[str] = []

    async def take(name: str) -> None:
        async with turn:
            order.append(f"{name} begins")
            await trio.lowlevel.checkpoint()
            order.append(f"{name} ends")

    async with trio.open_nursery() as nursery, turn:
        nursery.start_soon(take, "a")
        await wait_all_tasks_blocked()
        nursery.start_soon(take, "b")
        await wait_all_tasks_blocked()
        assert order == []
    assert order == ["a begins", "a ends", "b begins", "b ends"]


def test_cancelled_waiter_leaves_the_turn_to_the_next() -> None:
    trio.run(_cancelled_waiter_leaves_the_turn_to_the_next)


async def _cancelled_waiter_leaves_the_turn_to_the_next() -> None:
    turn = Turn()
    async with turn:
        with trio.move_on_after(0):
            async with turn:
                raise AssertionError
    async with turn:
        pass


def test_timer_is_readable_from_its_time_on() -> None:
    timer = Timer()
    timer.set(time.monotonic() + 60)
    assert select.select([timer], [], [], 0)[0] == []
    due_s = time.monotonic() + 0.02
    timer.set(due_s)
    assert select.select([timer], [], [], 10)[0] == [timer]
    assert time.monotonic() >= due_s
    timer.set(time.monotonic() + 60)
    assert select.select([timer], [], [], 0)[0] == []
