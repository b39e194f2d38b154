"""What the real command tells a service manager: a socket in the place of systemd's."""

import json
import os
import signal
import socket

import pytest

from tests.support.clients import get
from tests.support.command import GopherProcess
from tests.support.relay import RelayProcess
from tests.support.servers import RecordingSink

pytestmark = pytest.mark.e2e

CAPTURE = ("-c", "-p", "80", "-i", "lo", "-u", "127.0.0.2:3280")
READY_S = 15.0


@pytest.fixture
def address(tmp_path):
    return str(tmp_path / "notify")


@pytest.fixture
def told(address):
    """A socket that receives what gopher says, and the variable that tells gopher of it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.settimeout(READY_S)
        yield sock, f"NOTIFY_SOCKET={address}"


def messages(sock, count):
    return [sock.recv(4096).decode() for _ in range(count)]


def rest(sock):
    """What has come by now. Gopher has ended, so there is no more."""
    sock.setblocking(False)
    try:
        while True:
            yield sock.recv(4096).decode()
    except BlockingIOError:
        return


def test_capture_says_ready_and_stopping(host, told):
    sock, variable = told
    with GopherProcess(*CAPTURE, namespace=host, prefix=("env", variable)):
        assert messages(sock, 1) == ["READY=1\nSTATUS=capturing on lo, tcp port 80, to 1 upstream"]
    assert list(rest(sock)) == ["STOPPING=1"]


@pytest.mark.parametrize("address", [f"@gopher-test-{os.getpid()}"])
def test_relay_says_ready_and_stopping(told):
    """Not in a namespace: abstract names are of one network namespace."""
    sock, variable = told
    with RelayProcess("127.0.0.1:81", prefix=("env", variable)) as relay:
        assert messages(sock, 1) == [f"READY=1\nSTATUS=relaying on port {relay.port}, to 1 upstream"]
    assert list(rest(sock)) == ["STOPPING=1"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_reload_without_a_file_is_survived(host, told, workers):
    sock, variable = told
    with GopherProcess(*CAPTURE, "--workers", workers, namespace=host, prefix=("env", variable)) as gopher:
        ready = messages(sock, 1)
        gopher.signal(signal.SIGHUP)
        assert messages(sock, 1)[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert messages(sock, 1) == ready
    assert list(rest(sock)) == ["STOPPING=1"]
    assert "gopher: reloaded: to 1 upstream" in gopher.stderr.splitlines()


def test_stopping_is_said_before_the_drain(host, told):
    sock, variable = told
    with (
        RecordingSink(("127.0.0.1", 80), "silent", namespace=host),
        RelayProcess("127.0.0.1:80", port=3280, namespace=host, prefix=("env", variable)) as relay,
        host.connect(("127.0.0.1", 3280)) as client,
    ):
        client.sendall(get(1))
        messages(sock, 1)
        relay.signal(signal.SIGTERM)
        assert messages(sock, 1) == ["STOPPING=1"]
        assert "finished" not in relay.stderr, "no account yet: the client still waits for its answer"
        client.close()
        relay.wait()


WATCHDOG_S = 1.0
WATCHED = f"WATCHDOG_USEC={int(WATCHDOG_S * 1e6)}"


@pytest.mark.parametrize(
    "command",
    [
        lambda **where: GopherProcess(*CAPTURE, **where),
        lambda **where: RelayProcess("127.0.0.1:81", port=3280, **where),
    ],
    ids=["capture", "relay"],
)
def test_watchdog_is_told_again_and_again(host, told, command):
    """How often: tests/unit/test_notify.py."""
    sock, variable = told
    with command(namespace=host, prefix=("env", variable, WATCHED)):
        while not sock.recv(4096).startswith(b"READY=1"):
            pass
        assert messages(sock, 4) == ["WATCHDOG=1"] * 4


STUCK_S = 2.5 * WATCHDOG_S
STUCK = """
import socket, time

async def request(exchange):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect({address!r})
        manager.send(b"stuck")
        time.sleep({stuck_s})
        manager.send(b"free")
"""


def test_loop_that_is_stuck_tells_the_watchdog_nothing(host, told, address, tmp_path):
    """Async functions of scripts run in the loop; one that blocks stops everything, and the manager has to notice."""
    sock, variable = told
    (tmp_path / "stuck.py").write_text(STUCK.format(address=address, stuck_s=STUCK_S))
    with (
        RecordingSink(("127.0.0.1", 80), namespace=host) as upstream,
        RelayProcess(
            "127.0.0.1:80",
            port=3280,
            options=("--script", str(tmp_path / "stuck.py")),
            namespace=host,
            prefix=("env", variable, WATCHED),
        ),
        host.connect(("127.0.0.1", 3280)) as client,
    ):
        messages(sock, 2)
        client.sendall(get(1))
        while (said := messages(sock, 1)) != ["stuck"]:
            assert said == ["WATCHDOG=1"]
        assert messages(sock, 2) == ["free", "WATCHDOG=1"]
        # It was stuck, and no more than that.
        upstream.wait_requests(1)


def test_watchdog_of_another_process_is_not_told(host, told):
    sock, variable = told
    with GopherProcess(
        *CAPTURE, "--duration", "1", namespace=host, prefix=("env", variable, WATCHED, "WATCHDOG_PID=1")
    ) as gopher:
        gopher.wait()
        assert [each.partition("\n")[0] for each in rest(sock)] == ["READY=1", "STOPPING=1"]


def test_manager_that_is_gone_is_told_of_once(host, tmp_path):
    with GopherProcess(
        *CAPTURE, "--duration", "0.2", namespace=host, prefix=("env", f"NOTIFY_SOCKET={tmp_path}/gone")
    ) as gopher:
        gopher.wait()
    said = "gopher: the service manager cannot be told anything: No such file or directory"
    assert gopher.stderr.splitlines().count(said) == 1


def test_manager_that_is_gone_is_told_of_as_json(tmp_path):
    options = ("--duration", "0.2", "--log-format", "json")
    with RelayProcess("127.0.0.1:9", options=options, prefix=("env", f"NOTIFY_SOCKET={tmp_path}/gone")) as relay:
        relay.wait()
    [said] = [line for line in map(json.loads, relay.stderr.splitlines()) if line["event"] == "service"]
    assert said["message"] == "the service manager cannot be told anything: No such file or directory"
