"""Whose turn it is, and how intake waits: it wakes up without Trio's loop, and nobody is kept waiting for it."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import threading
import time

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gopher.capture.intake import Intake, Turn
from gopher.capture.waiting import TrioWait

DEADLINE_S = 10


def in_trio(test):
    """The test is a task of a real loop, with a real clock."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        async def limited():
            with trio.fail_after(DEADLINE_S):
                await test(*args, **kwargs)

        trio.run(limited)

    return run


@in_trio
async def test_turns_are_taken_one_after_the_other():
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


@in_trio
async def test_cancelled_waiter_leaves_the_turn_to_the_next():
    turn = Turn()
    async with turn:
        with trio.move_on_after(0):
            async with turn:
                raise AssertionError
    async with turn:
        pass


# -- waiting in Trio's place -------------------------------------------------------------------------------------------


class Turns(trio.abc.Instrument):
    """Counts the turns of Trio's loop."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@contextlib.contextmanager
def later(seconds, function, *args):
    thread = threading.Timer(seconds, function, args)
    thread.start()
    yield
    thread.join()


async def ready(waiting: TrioWait) -> Turns:
    """Past the turns in which nobody knows who is about to run. The count of turns from here on."""
    for _ in range(3):
        await waiting.wait_until(0)
    turns = Turns()
    trio.lowlevel.add_instrument(turns)
    return turns


@in_trio
async def test_wait_with_nothing_else_to_do_costs_no_turn_of_the_loop(pair):
    ours, theirs = pair
    with TrioWait() as waiting:
        turns = await ready(waiting)
        for _ in range(5):
            with later(0.01, theirs.send, b"x"):
                await waiting.wait_readable(ours.fileno())
            assert ours.recv(10) == b"x"
        until_s = time.monotonic() + 0.02
        await waiting.wait_until(until_s)
        assert time.monotonic() >= until_s
        assert turns.count == 0


@in_trio
async def test_socket_that_another_task_waits_for_is_served_during_a_wait(pair):
    ours, theirs = pair
    async with trio.open_nursery() as nursery:

        async def answer():
            while True:
                await trio.lowlevel.wait_readable(theirs.fileno())
                theirs.send(theirs.recv(10).upper())

        nursery.start_soon(answer)
        with TrioWait() as waiting:
            await ready(waiting)
            for _ in range(5):
                ours.send(b"x")
                await waiting.wait_readable(ours.fileno())
                assert ours.recv(10) == b"X"
        nursery.cancel_scope.cancel()


@in_trio
async def test_deadline_of_another_task_is_kept_during_a_wait():
    times_s = []

    async def sleep():
        await trio.sleep(0.02)
        times_s.append(time.monotonic())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        with TrioWait() as waiting:
            await ready(waiting)
            until_s = time.monotonic() + 0.1
            await waiting.wait_until(until_s)
        assert len(times_s) == 1
        assert times_s[0] < until_s <= time.monotonic()


@in_trio
async def test_task_of_the_same_turn_runs_before_a_wait():
    """The loop empties its queue when a turn begins and takes the tasks in any order: some are in no queue."""
    for _ in range(30):
        ran = []

        async def note(ran=ran):
            await trio.lowlevel.checkpoint()
            ran.append(None)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(note)
            with TrioWait() as waiting:
                await waiting.wait_until(time.monotonic() + 0.002)
                assert len(ran) == 3


@in_trio
async def test_task_that_is_made_runnable_after_a_wait_runs_during_the_next():
    event = trio.Event()
    ran = []

    async def wait():
        await event.wait()
        ran.append(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        with TrioWait() as waiting:
            await ready(waiting)
            event.set()
            await waiting.wait_until(time.monotonic() + 0.01)
            assert ran


@in_trio
async def test_wait_is_cancelled_by_a_deadline_and_by_a_task(pair):
    ours, theirs = pair
    with TrioWait() as waiting, trio.move_on_after(0.02) as scope:
        await waiting.wait_readable(ours.fileno())
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:

        async def cancel():
            await trio.lowlevel.wait_readable(theirs.fileno())
            scope.cancel()

        nursery.start_soon(cancel)
        with TrioWait() as waiting, trio.CancelScope() as scope, later(0.02, ours.send, b"x"):
            await waiting.wait_until(time.monotonic() + DEADLINE_S)
        assert scope.cancelled_caught


@in_trio
async def test_thread_and_signal_get_through_during_a_wait():
    token = trio.lowlevel.current_trio_token()
    received = []
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:

        async def receive():
            received.append(await anext(signals))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with TrioWait() as waiting:
                await ready(waiting)
                with later(0.01, token.run_sync_soon, received.append, "thread"):
                    await waiting.wait_until(time.monotonic() + 0.05)
                assert received == ["thread"]
                with later(0.01, os.kill, os.getpid(), signal.SIGUSR1):
                    await waiting.wait_until(time.monotonic() + 0.05)
                assert received == ["thread", signal.SIGUSR1]
            nursery.cancel_scope.cancel()


def test_loop_with_another_clock_waits_itself(pair):
    ours, theirs = pair

    async def scenario():
        with TrioWait() as waiting:
            turns = await ready(waiting)
            theirs.send(b"x")
            await waiting.wait_readable(ours.fileno())
            await waiting.wait_until(time.monotonic() + 3600)
            assert turns.count > 0

    began_s = time.monotonic()
    trio.run(scenario, clock=MockClock(autojump_threshold=0))
    assert time.monotonic() - began_s < DEADLINE_S


# -- ticks in passing --------------------------------------------------------------------------------------------------


class Packetless:
    """A source that wakes up so often, and the mirror behind it."""

    finished = False
    pump_task = property(lambda self: self)

    def __init__(self, wakeups: int) -> None:
        self.wakeups = wakeups

    async def wait_readable(self):
        await trio.lowlevel.checkpoint()
        self.wakeups -= 1
        self.finished = self.wakeups == 0

    def next_batch(self):
        return self

    index = b""

    def release(self):
        pass

    def serve_in_passing(self):
        pass


@in_trio
async def test_ticks_that_are_due_are_done_in_passing():
    source = Packetless(wakeups=9)
    intake = Intake(source, source, Turn(), 0.008, lambda: None)
    ticked = []

    async def tick():
        ticked.append(source.wakeups)
        intake.tick_at_s = time.monotonic() + (0 if len(ticked) < 3 else DEADLINE_S)

    intake.tick_at_s = time.monotonic()
    await intake.run(tick)
    assert ticked == [8, 7, 6]
