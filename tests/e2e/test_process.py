"""The command as a process: signals, time limits, descriptors, and one clear sentence for each mistake."""

import os
import re
import resource
import signal
import time
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.accounts import assert_all_delivered, only_upstream
from tests.support.clients import exchange, get, noise, post
from tests.support.command import GopherProcess, assert_clean, run_gopher
from tests.support.servers import PRODUCTION, SHADOW, Nginx, RecordingSink, assert_mirrored

pytestmark = pytest.mark.e2e

CAPTURE = ("-c", "-p", "80", "-i", "lo")
# Fits gopher's queue for one connection, and is more than shrunken buffers take.
STALLED_BYTES = 900_000


@pytest.fixture
def stalled(host):
    host.shrink_buffers()
    with RecordingSink(SHADOW, "silent", namespace=host) as sink:
        yield sink


@contextmanager
def stall(host, stalled):
    """Two connections stay open for as long as this lasts, one of them with bytes in gopher's queue for `stalled`."""
    with host.connect(PRODUCTION) as first, host.connect(PRODUCTION) as second:
        exchange(first, post(1, noise(STALLED_BYTES)))
        # Captured in order: when the second client has come through, gopher has read the first one's bytes.
        exchange(second, get(2))
        stalled.wait(lambda: len(stalled.connections) == 2, "two connections")
        yield


def end_intake(gopher: GopherProcess, number: signal.Signals) -> None:
    """Send a signal and wait until gopher takes in no more: no captured connection is open for it."""
    gopher.signal(number)
    deadline = time.monotonic() + 10
    tables = 0
    while " 0 open now" not in gopher.stderr:
        assert time.monotonic() < deadline
        tables += 1
        gopher.signal(signal.SIGUSR1)
        gopher.wait_stderr(lambda line: line.endswith(" open now"), count=tables)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_what_is_pending(host, production, stalled, number):
    with GopherProcess(*CAPTURE, "--drain", "15", "-u", stalled.name, namespace=host) as gopher:
        with stall(host, stalled):
            end_intake(gopher, number)
            stalled.release()
            report = gopher.wait()
        assert_mirrored(production, stalled)
    assert_all_delivered(report)


def test_drain_time_is_a_limit(host, production, stalled):
    with (
        GopherProcess(*CAPTURE, "--drain", "0.3", "-u", stalled.name, namespace=host) as gopher,
        stall(host, stalled),
    ):
        began = time.monotonic()
        report = gopher.stop()
        assert 0.25 < time.monotonic() - began < 5
    assert "drain" in only_upstream(report)["shed"]


def test_second_signal_exits_at_once(host, production, stalled):
    with (
        GopherProcess(*CAPTURE, "--drain", "60", "-u", stalled.name, namespace=host) as gopher,
        stall(host, stalled),
    ):
        end_intake(gopher, signal.SIGTERM)
        gopher.signal(signal.SIGTERM)
        report = gopher.wait()
    assert "drain" in only_upstream(report)["shed"]


def test_sigusr1_prints_the_accounts_and_goes_on(host, production):
    with (
        RecordingSink(SHADOW, namespace=host) as shadow,
        GopherProcess(*CAPTURE, "-u", shadow.name, namespace=host) as gopher,
        host.connect(PRODUCTION) as client,
    ):
        exchange(client, get(1))
        shadow.wait_requests(1)
        gopher.signal(signal.SIGUSR1)
        gopher.wait_stderr(lambda line: shadow.name in line)
        exchange(client, get(2))
        shadow.wait_requests(2)
    assert only_upstream(gopher.report)["delivered_bytes"] == len(get(1) + get(2))
    assert len([line for line in gopher.stderr.splitlines() if shadow.name in line]) >= 2, "once more at exit"


def test_duration_ends_the_run(host, production):
    with (
        RecordingSink(SHADOW, namespace=host) as shadow,
        GopherProcess(*CAPTURE, "--duration", "1", "-u", shadow.name, namespace=host) as gopher,
    ):
        # Up to its end, whenever that is.
        while not gopher.ended:
            with host.connect(PRODUCTION) as client:
                exchange(client, get(1))
        report = gopher.wait()
        assert set(shadow.streams) == {get(1)}
    assert 0.9 < report["duration_s"] < 5
    assert_all_delivered(report)


def test_quiet_says_nothing(host, production):
    with (
        RecordingSink(SHADOW, namespace=host) as shadow,
        GopherProcess(
            *CAPTURE, "--quiet", "--duration", "0.5", "-u", shadow.name, namespace=host, ready=False
        ) as gopher,
    ):
        gopher.wait()
    assert gopher.stderr == ""


def test_status_line_comes_regularly(host, production):
    with (
        RecordingSink(SHADOW, namespace=host) as shadow,
        GopherProcess(*CAPTURE, "--stats-interval", "0.1", "-u", shadow.name, namespace=host) as gopher,
        host.connect(PRODUCTION) as client,
    ):
        exchange(client, get(1))
        gopher.wait_stderr(re.compile(r"gopher: .*\b1 open; 127\.0\.0\.2:3280 .* 0 B pending, 0 B shed$").match)


def test_device_that_goes_away_ends_the_run_with_the_accounts(network):
    with (
        RecordingSink(("10.77.1.2", 80), namespace=network.production),
        RecordingSink(("10.77.2.2", 3280), namespace=network.shadow) as shadow,
        GopherProcess("-c", "-p", "80", "-i", "net0", "-u", "10.77.2.2:3280", namespace=network.production) as gopher,
        network.client.connect(("10.77.1.2", 80)) as client,
    ):
        exchange(client, get(1))
        shadow.wait_requests(1)
        network.production.run("ip", "link", "set", "net0", "down")
        report = gopher.wait(status=1)
        [error] = [line for line in gopher.stderr.splitlines() if line.startswith("gopher: error: ")]
        assert "net0" in error
    assert_all_delivered(report)


def test_2000_connections_open_at_once(host, production):
    """More than the usual soft limit of descriptors, which gopher raises itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with (
            RecordingSink(SHADOW, namespace=host) as shadow,
            GopherProcess(
                *CAPTURE, "-u", shadow.name, namespace=host, prefix=("prlimit", f"--nofile=1024:{hard}")
            ) as gopher,
            ExitStack() as clients,
        ):
            opened = [clients.enter_context(host.connect(PRODUCTION)) for _ in range(2000)]
            for number, client in enumerate(opened):
                exchange(client, get(number))
            shadow.wait_requests(2000)
            assert not any(each.ended for each in shadow.connections)
            clients.close()
            assert_mirrored(production, shadow)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert gopher.report["connections"]["mirrored"] == 2000
    assert_all_delivered(gopher.report)


STALL_S = 0.5
STALL_CONNECTIONS = 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "packets_per_s"), [((), 20_000), (("--low-latency",), 4_000), (("--workers", "2"), 20_000)]
)
def test_stall_of_half_a_second_loses_nothing(host, tmp_path, options, packets_per_s):
    """With --low-latency the kernel fills a block of the ring each millisecond, at any rate."""
    (tmp_path / "production").mkdir()
    (tmp_path / "shadow").mkdir()
    request = get(1)
    with (
        Nginx(tmp_path / "production", [PRODUCTION], namespace=host) as production,
        Nginx(tmp_path / "shadow", [SHADOW], namespace=host) as shadow,
        ExitStack() as clients,
        GopherProcess(*CAPTURE, *options, "-u", "127.0.0.2:3280", namespace=host) as gopher,
    ):
        opened = [clients.enter_context(host.connect(PRODUCTION)) for _ in range(STALL_CONNECTIONS)]
        for client in opened:
            client.sendall(request)
        shadow.wait_requests(STALL_CONNECTIONS)
        processes = [gopher.pid, *gopher.workers()]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        sent, wanted = 0, round(packets_per_s * STALL_S)
        # By the clock: what a busy machine was late with goes out at once, and then takes up no more blocks.
        while (elapsed := time.monotonic() - began) < STALL_S or sent < wanted:
            while sent < min(elapsed * packets_per_s, wanted):
                opened[sent % STALL_CONNECTIONS].sendall(request)
                sent += 1
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        shadow.wait_requests(STALL_CONNECTIONS + sent)
        assert len(production.requests()) == STALL_CONNECTIONS + sent
    assert gopher.report["packets"]["dropped_by_kernel"] == 0
    assert only_upstream(gopher.report)["captured_bytes"] == len(request) * (STALL_CONNECTIONS + sent)
    assert_all_delivered(gopher.report)
    # Half a second of it is in the report: what was captured at the beginning of the stall was late by all of it.
    latency = only_upstream(gopher.report)["latency"]
    assert sum(each["count"] for each in latency["buckets"]) == latency["count"]
    assert sum(each["count"] for each in latency["buckets"] if each["up_to_s"] is None or each["up_to_s"] > STALL_S)
    assert " ms, p99 " in gopher.stderr


UPSTREAM = ("-u", "127.0.0.2:3280")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("-p", "80", *UPSTREAM), 2, "mode"),
        (("-c", *UPSTREAM), 2, "port"),
        (("-c", "-p", "80"), 2, "upstream"),
        (("-c", "-p", "80", *UPSTREAM, "--no-such-option"), 2, "--no-such-option"),
        (("-c", "-p", "0", *UPSTREAM), 2, "from 1 to 65535"),
        (("-c", "-p", "80,65536", *UPSTREAM), 2, "from 1 to 65535"),
        (("-c", "-p", "http", *UPSTREAM), 2, "http"),
        (("-c", "-p", "80", "-u", "127.0.0.2:65536"), 2, "127.0.0.2:65536"),
        (("-c", "-p", "80", "-u", "[::1"), 2, "[::1"),
        (("-c", "-p", "80", "-u", "gopher://127.0.0.2"), 2, "gopher://127.0.0.2"),
        (("-c", "-p", "80", "-u", "no-such-host.invalid:80"), 2, "no-such-host.invalid"),
        (("-c", "-p", "80", *UPSTREAM, "--sample", "0%"), 2, "sample"),
        (("-c", "-p", "80", *UPSTREAM, "--sample", "101%"), 2, "sample"),
        (("-c", "-p", "80", *UPSTREAM, "--speed", "fast", "--read", "x.pcap"), 2, "speed"),
        (("-c", "-p", "80", *UPSTREAM, "--duration", "soon"), 2, "duration"),
        (("-c", "-p", "80", *UPSTREAM, "-i", "lo", "--filter", "port http or"), 2, "port http or"),
        (("-c", "-p", "80", *UPSTREAM, "-i", "no-such-device"), 2, "no-such-device"),
        (("-c", "-p", "80", *UPSTREAM, "--read", "/no/such/file.pcap"), 2, "/no/such/file.pcap"),
        (("-c", "-p", "80", *UPSTREAM, "--read", "/etc/hostname"), 2, "/etc/hostname"),
        (("-c", "-p", "80", *UPSTREAM, "--read", "/etc"), 2, "/etc"),
        (("-c", "-p", "80", *UPSTREAM, "-i", "lo", "--write", "/no/such/folder/kept.pcap"), 1, "/no/such/folder"),
        (("-c", "-p", "80", *UPSTREAM, "-i", "lo", "--report", "/no/such/folder/report.json"), 2, "/no/such/folder"),
        (("-c", "-p", "80", "-u", "dir:/proc/no/such/folder", "-i", "lo"), 1, "/proc/no/such/folder"),
    ],
)
def test_mistake_is_one_clear_sentence(host, arguments, status, said):
    done = run_gopher(*arguments, namespace=host)
    assert_one_sentence(done, status, said)


def test_upstream_that_is_production_itself_is_refused(host):
    with RecordingSink(("0.0.0.0", 80), namespace=host):
        assert_one_sentence(run_gopher("-c", "-p", "80", "-u", "127.0.0.1", namespace=host), 2, "127.0.0.1:80")


def test_no_permission_to_capture_is_77_and_says_what_to_do(host):
    done = run_gopher(
        *CAPTURE, *UPSTREAM, namespace=host, prefix=("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw")
    )
    assert_one_sentence(done, 77, "--cap-add NET_RAW")


def assert_one_sentence(done, status, said):
    assert done.returncode == status, done
    assert done.stdout == ""
    assert_clean(done.stderr)
    messages = [line for line in done.stderr.splitlines() if line.startswith("gopher: ")]
    assert len(messages) == 1, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 3, done.stderr


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_questions_are_answered_on_stdout(option):
    done = run_gopher(option)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "gopher" in done.stdout
