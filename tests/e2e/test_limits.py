"""The limits that protect the host: they are kept, and what is over them is shed as a whole and counted."""

import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest

from gopher.limits import raise_descriptor_limit
from tests.support.accounts import only_upstream
from tests.support.clients import exchange, get, noise, post
from tests.support.command import GopherProcess, run_gopher
from tests.support.servers import PRODUCTION, SHADOW, Nginx, RecordingSink

pytestmark = pytest.mark.e2e

CAPTURE = ("-c", "-p", "80", "-i", "lo")


def assert_whole(sink, requests):
    """Each connection is whole requests of these, in order, but for one that was reset in the middle."""
    for connection in sink.connections:
        rest = bytes(connection.received)
        while rest:
            request = next((each for each in requests if rest.startswith(each)), None)
            if request is None:
                assert connection.ended == "rst"
                assert any(each.startswith(rest) for each in requests)
                break
            rest = rest[len(request) :]


# -- rates -------------------------------------------------------------------------------------------------------------


def test_connections_beyond_the_rate_are_shed_whole(host, production, shadow):
    requests = [get(number) for number in range(60)]
    with GopherProcess(*CAPTURE, "--max-connection-rate", "2", "-u", shadow.name, namespace=host) as gopher:
        began = time.monotonic()
        for request in requests:
            with host.connect(PRODUCTION) as client:
                exchange(client, request)
                exchange(client, request)
        took_s = time.monotonic() - began
    account = only_upstream(gopher.report)
    assert 2 <= account["dials"] <= 2 + 2 * (took_s + 1)
    assert set(account["shed"]) == {"max_rate"}
    assert account["connections"]["delivered"] == account["dials"]
    assert account["connections"]["shed_by_reason"] == {"max_rate": 60 - account["dials"]}
    shadow.wait_ended(account["dials"])
    assert all(bytes(each.received) == 2 * requests[int(each.received.split()[1][1:])] for each in shadow.connections)


def test_bytes_beyond_the_rate_are_shed_with_their_connection(host, production, shadow):
    """Of connections that last: what is over is reset as a whole, and the rest goes on."""
    # Twice as much is sent as is let pass in nine seconds, and one connection alone stays below it.
    rate = 100_000
    requests = [post(number, noise(10_000, number)) for number in range(10)]
    with (
        GopherProcess(*CAPTURE, "--max-rate", str(rate), "-u", shadow.name, namespace=host) as gopher,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(host.connect(PRODUCTION)) for _ in requests]
        began = time.monotonic()
        for _ in range(20):
            for client, request in zip(clients, requests, strict=True):
                exchange(client, request)
            time.sleep(0.1)
        received = sum(len(each.received) for each in shadow.connections)
        took_s = time.monotonic() - began
        # Two seconds' worth at once, and one write of up to a turn; here it is one request.
        assert received <= rate * (took_s + 1) + 2 * rate + 20_000
    shadow.wait_ended(10)
    assert_whole(shadow, requests)
    account = only_upstream(gopher.report)
    assert set(account["shed"]) == {"max_rate"}
    # A connection that was not cut has lost nothing.
    assert account["connections"]["delivered"] >= 1
    assert account["connections"]["shed_by_reason"]["max_rate"] >= 1
    whole = [each for each in shadow.connections if bytes(each.received) in [20 * request for request in requests]]
    assert len(whole) == account["connections"]["delivered"]


# -- CPU ---------------------------------------------------------------------------------------------------------------

CPU_LIMIT = 0.05
# A client program of its own, so that it and the servers do not share an interpreter: connections of three requests
# each from 200 addresses, at a pace that costs gopher twice its limit, and that busy machines reach too, for a time.
CLIENT = """
import socket, sys, time
first, seconds, pace = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
request = b"GET /short/ HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"
began = time.monotonic()
number = 0
while (now := time.monotonic()) < began + seconds:
    if number > (now - began) * pace:
        time.sleep(0.001)
        continue
    with socket.socket() as sock:
        sock.bind((f"127.0.{first}.{number % 100 + 1}", 0))
        sock.connect(("127.0.0.1", 80))
        for _ in range(3):
            sock.sendall(request)
            sock.recv(4096)
    number += 1
print(number)
"""


@contextmanager
def load(host, *, seconds, pace):
    """Yields a list that at the end holds how many connections were made."""
    made = []
    argv = [sys.executable, "-c", CLIENT]
    clients = [
        subprocess.Popen(
            host.command(*argv, str(first), str(seconds), str(pace / 2)), stdout=subprocess.PIPE, text=True
        )
        for first in (1, 2)
    ]
    yield made
    for client in clients:
        made.append(int(client.communicate(timeout=60)[0]))
        assert client.returncode == 0


def numbers(requests):
    """What `get` wrote into X-Number."""
    return {request.split("|")[3] for request in requests}


def test_cpu_limit_is_kept_by_shedding_connections_and_let_go_of_afterwards(host, tmp_path):
    with (
        Nginx(tmp_path, [PRODUCTION, SHADOW], namespace=host) as nginx,
        GopherProcess(*CAPTURE, "--cpu-limit", f"{CPU_LIMIT:.0%}", "-u", "127.0.0.2:3280", namespace=host) as gopher,
    ):
        with load(host, seconds=7, pace=2000) as busy:
            time.sleep(4)
            before_s = gopher.cpu_s()
            time.sleep(2)
            used = (gopher.cpu_s() - before_s) / 2
        # Near the limit: capturing alone is less than half of it, and without the limit it would be twice.
        assert 0.4 * CPU_LIMIT < used < 1.3 * CPU_LIMIT
        # Then it lets go: at last every connection is mirrored again.
        calm = 0
        deadline = time.monotonic() + 30
        while not {str(number) for number in range(calm - 40, calm)} <= numbers(nginx.requests(1)):
            assert time.monotonic() < deadline
            with host.connect(PRODUCTION) as client:
                client.sendall(get(calm))
                assert client.recv(4096)
            calm += 1
            time.sleep(0.05)
        report = gopher.stop()
    account = only_upstream(report)
    assert account["connections"]["captured"] == sum(busy) + calm
    assert set(account["shed"]) == {"cpu_limit"}
    assert account["connections"]["shed"] > sum(busy) // 10
    # Whole connections: all three requests of each, and nothing of the others.
    late = [request for request in nginx.requests(1) if "/short/" not in request]
    assert len(nginx.requests(1)) == 3 * (account["connections"]["delivered"] - len(late)) + len(late)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_memory_stays_under_the_bound_with_a_stalled_upstream_and_many_connections(host, production, shadow):
    """Of both kinds: connections with much in the queue, and more connections than there is room for."""
    raise_descriptor_limit(8192)
    host.shrink_buffers()
    with (
        RecordingSink(("127.0.0.3", 3280), "silent", namespace=host) as stalled,
        GopherProcess(
            *CAPTURE, "--max-memory=96M", "--drain=0.2", "-u", stalled.name, "-u", shadow.name, namespace=host
        ) as gopher,
        ExitStack() as stack,
    ):
        for number in range(300):
            client = stack.enter_context(host.connect(PRODUCTION))
            exchange(client, post(number, noise(200_000, number)))
            shadow.wait_requests(number + 1)
        for number in range(1000):
            exchange(stack.enter_context(host.connect(PRODUCTION)), get(number))
        # Captured in order: with the first one gone there is room for one more, which comes after all others.
        stack.pop_all().close()
        with host.connect(PRODUCTION) as last:
            exchange(last, get(1))
            shadow.wait(lambda: get(1) in shadow.streams, "the last connection")
        assert gopher.peak_memory_mib() < 96
        report = gopher.stop()
    stalled_account, healthy = report["upstreams"]
    assert set(stalled_account["shed"]) == {"max_memory", "drain"}
    assert stalled_account["shed"]["max_memory"] > 40_000_000
    # The stalled one takes nothing of the other: it lost only connections that there was no room for.
    assert set(healthy["shed"]) == {"max_memory"}
    assert healthy["connections"]["shed_by_reason"]["max_memory"] < 1000
    assert healthy["delivered_bytes"] > 300 * 200_000


def test_workers_together_stay_under_the_bound_over_a_reload_too(host, production, shadow, tmp_path):
    """Without it they take 300 MiB here."""
    raise_descriptor_limit(8192)
    host.shrink_buffers()
    path = tmp_path / "gopher.toml"

    def write(*upstreams):
        settings = {"mode": "capture", "port": 80, "interface": "lo", "workers": 2, "max-memory": "240M"}
        settings |= {"upstream-memory": "256M", "drain": 0.2, "upstream": list(upstreams)}
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))

    with RecordingSink(("127.0.0.3", 3280), "silent", namespace=host) as stalled:
        write(stalled.name)
        with GopherProcess("--config", str(path), namespace=host) as gopher, ExitStack() as stack:
            # A second upstream takes its share of what there is room for; that is no other setting.
            write(stalled.name, shadow.name)
            gopher.signal(signal.SIGHUP)
            gopher.wait_stderr(lambda line: f"added {shadow.name}" in line)
            for number in range(400):
                client = stack.enter_context(host.connect(PRODUCTION))
                exchange(client, post(number, noise(400_000, number)))
                shadow.wait_requests(number + 1)
            for number in range(1800):
                exchange(stack.enter_context(host.connect(PRODUCTION)), get(number))
            assert gopher.peak_memory_mib() < 240
            report = gopher.stop()
    assert "restart" not in gopher.stderr
    stalled_account, healthy = report["upstreams"]
    assert set(stalled_account["shed"]) == {"max_memory", "drain"}
    assert stalled_account["shed"]["max_memory"] > 100_000_000
    assert set(healthy["shed"]) == {"max_memory"}
    assert healthy["delivered_bytes"] > 400 * 400_000


def test_ring_without_room_is_one_sentence(host):
    done = run_gopher(*CAPTURE, "-u", "127.0.0.1:9", "--max-memory", "100M", "--ring", "64M", namespace=host)
    assert done.returncode == 2
    assert done.stderr == (
        "gopher: error: --max-memory has no room for a --ring of 64M\n  hint: with that ring it needs at least 154M\n"
    )

    done = run_gopher(
        *CAPTURE, "-u", "127.0.0.1:9", "--max-memory", "240M", "--ring", "128M", "--workers", "2", namespace=host
    )
    assert done.returncode == 2
    assert done.stderr == (
        "gopher: error: --max-memory has no room for a --ring of 128M\n  hint: with that ring it needs at least 356M\n"
    )


def test_memory_bound_holds_over_a_reload(host, tmp_path):
    path = tmp_path / "gopher.toml"

    def write(**more):
        settings = {"mode": "capture", "port": 80, "interface": "lo", "max-memory": "96M", **more}
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))

    write(upstream=["127.0.0.2:3280"])
    with (
        RecordingSink(PRODUCTION, namespace=host),
        RecordingSink(SHADOW, "mute", namespace=host),
        GopherProcess("--config", str(path), "--drain=0.2", namespace=host) as gopher,
        ExitStack() as stack,
    ):
        # A second upstream takes its share of what there is room for; that is no other setting.
        write(upstream=["127.0.0.2:3280", "127.0.0.3:9"])
        gopher.signal(signal.SIGHUP)
        gopher.wait_stderr(lambda line: "added 127.0.0.3:9" in line)
        for number in range(1000):
            exchange(stack.enter_context(host.connect(PRODUCTION)), get(number))
        report = gopher.stop()
    assert "restart" not in gopher.stderr
    assert "max_memory" in report["upstreams"][0]["connections"]["shed_by_reason"]
