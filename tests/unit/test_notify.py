"""What a service manager is told; by the real command in tests/e2e/test_service_manager.py."""

import socket
import time
from contextlib import closing

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


def test_without_a_manager_nothing_is_said_or_opened():
    manager = ServiceManager({})
    manager.ready("capturing")
    manager.stopping()
    manager.close()
