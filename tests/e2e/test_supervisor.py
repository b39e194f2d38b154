"""Several mirrors of one file: a process each, and nobody left behind."""

import json
import os
import re
import signal
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.accounts import assert_accounts, assert_all_delivered
from tests.support.clients import exchange, get
from tests.support.command import GopherProcess, run_gopher
from tests.support.servers import PRODUCTION, RecordingSink

pytestmark = pytest.mark.e2e

COMMON = 'mode = "capture"\ninterface = "lo"\n'
END_S = 15.0


def table(tmp_path, name, *settings):
    report = tmp_path / f"{name}.json"
    return "\n".join(["[[mirror]]", f'name = "{name}"', f'report = "{report}"', *settings, ""])


@contextmanager
def supervised(path, host, ready):
    with GopherProcess("--config", str(path), namespace=host, ready=False, report=False) as gopher:
        gopher.wait_stderr(lambda line: line == f"gopher: {ready}")
        yield gopher


def children(gopher):
    text = Path(f"/proc/{gopher.pid}/task/{gopher.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def wait_gone(*pids):
    deadline = time.monotonic() + END_S
    while running := [pid for pid in pids if is_running(pid)]:
        if time.monotonic() >= deadline:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"{running} did not end")
        time.sleep(0.01)


def is_running(pid):
    try:
        # After the name in parentheses; an orphan may stay a zombie where nobody reaps.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def report_of(tmp_path, name):
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert_accounts(report)
    return report


@pytest.fixture
def shadows(host):
    # On the captured port, so that each mirror sees what the other one sends.
    with ExitStack() as stack:
        yield [stack.enter_context(RecordingSink((f"127.0.0.{n}", 80), namespace=host)) for n in (2, 3)]


@pytest.fixture
def two(tmp_path, shadows):
    """A file with two mirrors of the same port."""
    tables = [
        table(tmp_path, name, "port = 80", f'upstream = "{shadow.name}"')
        for name, shadow in zip("ab", shadows, strict=True)
    ]
    path = tmp_path / "gopher.toml"
    path.write_text(COMMON + "".join(tables))
    return path


def test_two_mirrors_of_one_port_do_not_feed_each_other(host, production, shadows, two, tmp_path):
    with supervised(two, host, "2 mirrors are ready: a, b") as gopher:
        with host.connect(PRODUCTION) as client:
            exchange(client, get(1))
            exchange(client, get(2))
        for shadow in shadows:
            shadow.wait_ended(1)
        gopher.stop()
    assert [shadow.streams for shadow in shadows] == [production.streams] * 2
    for name in "ab":
        report = report_of(tmp_path, name)
        assert_all_delivered(report)
        assert report["connections"]["mirrored"] == 1
        assert f"gopher {name}: capturing on lo, tcp port 80, to 1 upstream" in gopher.stderr
    assert gopher.stderr.index("gopher b: capturing") < gopher.stderr.index("gopher: 2 mirrors are ready")


def test_killed_supervisor_leaves_no_orphan(host, production, two, tmp_path):
    with supervised(two, host, "2 mirrors are ready: a, b") as gopher:
        pids = children(gopher)
        assert len(pids) == 2
        gopher.signal(signal.SIGKILL)
        wait_gone(*pids)
        gopher.wait(status=-signal.SIGKILL)
    # They ended in order: with their accounts.
    assert report_of(tmp_path, "a")["connections"]["seen"] == 0


def test_mirror_that_fails_costs_the_others_nothing_and_a_reload_starts_it_again(host, production, shadows, two):
    with supervised(two, host, "2 mirrors are ready: a, b") as gopher:
        first, second = children(gopher)
        os.kill(first, signal.SIGKILL)
        gopher.wait_stderr(
            lambda line: (
                line == "gopher: mirror a ended by signal 9; the others go on, and a reload (SIGHUP) starts it again"
            )
        )
        assert children(gopher) == [second]
        with host.connect(PRODUCTION) as client:
            exchange(client, get(1))
        shadows[1].wait_ended(1)
        gopher.signal(signal.SIGHUP)
        gopher.wait_stderr(lambda line: line.startswith("gopher a: capturing"), count=2)
        with host.connect(PRODUCTION) as client:
            exchange(client, get(2))
        shadows[1].wait_ended(2)
        shadows[0].wait_ended(1)
        # What happened is not forgotten.
        gopher.signal(signal.SIGTERM)
        gopher.wait(status=1)
    assert shadows[0].streams == [get(2)]


def test_reload_starts_stops_and_changes_mirrors(host, production, shadows, two, tmp_path):
    def write(*names):
        upstreams = dict(zip("abc", [shadows[0], shadows[0], shadows[1]], strict=True))
        tables = [table(tmp_path, name, "port = 80", f'upstream = "{upstreams[name].name}"') for name in names]
        two.write_text(COMMON + "".join(tables))

    with supervised(two, host, "2 mirrors are ready: a, b") as gopher:
        leaving = children(gopher)[0]
        two.write_text(COMMON + "[[mirror]]\n")
        gopher.signal(signal.SIGHUP)
        gopher.wait_stderr(lambda line: line.startswith("gopher: not reloaded, nothing has changed: 3 settings"))
        write("b", "c")
        gopher.signal(signal.SIGHUP)
        gopher.wait_stderr(lambda line: line == "gopher: mirror a is no more in the file: stopping it")
        gopher.wait_stderr(lambda line: line.startswith("gopher c: capturing"))
        reloaded = f"gopher b: reloaded: to 1 upstream; added {shadows[0].name}; removed {shadows[1].name}"
        gopher.wait_stderr(lambda line: line == reloaded)
        wait_gone(leaving)
        with host.connect(PRODUCTION) as client:
            exchange(client, get(1))
        for shadow in shadows:
            shadow.wait_ended(1)
        gopher.stop()
    assert [shadow.streams for shadow in shadows] == [[get(1)]] * 2
    assert report_of(tmp_path, "a")["connections"]["mirrored"] == 0
    assert report_of(tmp_path, "b")["connections"]["mirrored"] == 1
    assert gopher.stderr.count("not reloaded") == 1


def test_at_the_start_it_is_all_or_nothing(host, production, tmp_path):
    path = tmp_path / "gopher.toml"
    path.write_text(
        table(tmp_path, "a", COMMON, "port = 80", 'upstream = "127.0.0.2:1"')
        + table(tmp_path, "b", 'mode = "relay"', 'listen = "127.0.0.1"', "port = 80", 'upstream = "127.0.0.2:1"')
    )
    done = run_gopher("--config", str(path), namespace=host)
    assert done.returncode == 1
    assert re.search(r"^gopher b: error: .*80", done.stderr, re.MULTILINE)
    assert "gopher: mirror b ended with status 1" in done.stderr
    assert "are ready" not in done.stderr


def test_relay_that_feeds_what_another_mirror_captures_is_refused(host, tmp_path):
    # Production would get its own traffic again, and the capture could not tell it from that of clients.
    path = tmp_path / "gopher.toml"
    path.write_text(
        table(tmp_path, "a", COMMON, "port = 80", 'upstream = "127.0.0.1:3280"')
        + table(tmp_path, "b", 'mode = "relay"', 'listen = "127.0.0.1"', "port = 3280", 'upstream = "127.0.0.1:80"')
    )
    with RecordingSink(("0.0.0.0", 80), namespace=host):
        done = run_gopher("--config", str(path), namespace=host)
    assert done.returncode == 2
    assert "gopher a: error: upstream 127.0.0.1:80 is the captured server itself" in done.stderr


def test_interrupt_of_the_terminal_counts_once(host, production, two):
    # A shell's Ctrl-C goes to the whole process group: a second SIGINT would cut the drain short.
    with supervised(two, host, "2 mirrors are ready: a, b") as gopher:
        groups = {os.getpgid(pid) for pid in children(gopher)}
        assert os.getpgid(gopher.pid) not in groups
        assert len(groups) == 2
        gopher.signal(signal.SIGINT)
        gopher.wait()
    assert gopher.exit_status == 0


def test_check_of_a_file_with_five_kinds_of_mistakes(tmp_path):
    path = tmp_path / "gopher.toml"
    path.write_text(
        "\n".join(
            [
                'mode = "capture"',
                'metrics = "127.0.0.1:9464"',
                "[[mirror]]",
                'name = "shop"',
                "port = 80",
                'upstraem = "machineB"',  # unknown, and so one is missing
                "responses = 1",  # wrong type
                "drain = -1",  # out of range
                "[[mirror]]",
                'name = "api"',  # the same metrics
                "port = 8080",
                'upstream = ["machineB", "machineC:port"]',  # no upstream
            ]
        )
    )
    done = run_gopher("--config", str(path), "--check-config")
    assert (done.returncode, done.stdout) == (2, "")
    named = re.findall(rf"^  {re.escape(str(path))}:(\d+): ([\w-]+)", done.stderr, re.MULTILINE)
    assert named == [
        ("2", "metrics"),
        ("3", "mirror"),
        ("6", "upstraem"),
        ("7", "responses"),
        ("8", "drain"),
        ("12", "upstream"),
    ]
    assert "did you mean upstream?" in done.stderr
