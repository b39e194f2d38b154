"""What a service manager is told; by the real command in tests/e2e/test_service_manager.py."""

import socket
import time
from contextlib import closing, suppress

import pytest
import trio
import trio.testing

from gopher.notify import ServiceManager


def test_reload_says_when_it_began(tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        with closing(ServiceManager({"NOTIFY_SOCKET": address})) as manager:
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            manager.reloading()
            manager.ready("capturing")
        first, second = (sock.recv(4096).decode() for _ in range(2))
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    name, value = first.removeprefix("RELOADING=1\n").split("=")
    # systemd compares it with its own clock, CLOCK_MONOTONIC.
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= after
    assert second == "READY=1\nSTATUS=capturing"


@pytest.mark.parametrize("watchdog_s", [1, 30])
def test_watchdog_is_told_at_once_and_twice_a_period(tmp_path, watchdog_s):
    address = str(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(watchdog_s * 1_000_000)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.setblocking(False)
        with closing(ServiceManager(environment)) as manager:

            async def told_at_s():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(manager.watch)
                    told = []
                    for _ in range(4):
                        while True:
                            await trio.testing.wait_all_tasks_blocked()
                            with suppress(BlockingIOError):
                                assert sock.recv(4096) == b"WATCHDOG=1"
                                break
                            await trio.sleep(watchdog_s / 8)
                        told.append(trio.current_time())
                    nursery.cancel_scope.cancel()
                return told

            clock = trio.testing.MockClock(autojump_threshold=0)
            assert trio.run(told_at_s, clock=clock) == [0, 0.5 * watchdog_s, watchdog_s, 1.5 * watchdog_s]


def test_without_a_manager_nothing_is_said_or_opened():
    manager = ServiceManager({})
    manager.ready("capturing")
    manager.stopping()
    manager.close()
