"""SIGHUP: upstreams come and go under traffic, and those that stay do not notice."""

import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.accounts import assert_all_delivered
from tests.support.clients import exchange, get, noise, post
from tests.support.command import GopherProcess
from tests.support.relay import RelayProcess, free_port
from tests.support.servers import ANSWER, RecordingSink

pytestmark = pytest.mark.e2e

PRODUCTION = ("127.0.0.1", 80)
CONNECTIONS_LIMIT = 3000


class ConfiguredRelay(RelayProcess):
    """A relay whose upstreams are in a file, so that no option wins over them."""

    def __init__(self, path, port):
        self.port = port
        GopherProcess.__init__(self, "--config", str(path), ready=False)


def upstream(report, name):
    [account] = [each for each in report["upstreams"] if each["name"] == name]
    return account


def reload(gopher, line, count=1):
    gopher.signal(signal.SIGHUP)
    gopher.wait_stderr(lambda said: line in said, count=count)


@contextmanager
def traffic(host):
    """One short connection after the other, without end."""
    stop = threading.Event()
    failures = []

    def run():
        for number in range(CONNECTIONS_LIMIT):
            if stop.is_set():
                return
            try:
                with host.connect(PRODUCTION) as client:
                    exchange(client, post(number, noise(3000, number)))
                    exchange(client, get(number))
            except (OSError, AssertionError) as error:
                failures.append(error)
                return
            # As many as a mirror has room for on any machine.
            time.sleep(0.005)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures


@pytest.mark.parametrize("workers", [1, 2])
def test_upstreams_come_and_go_under_traffic(host, tmp_path, workers):
    path = tmp_path / "gopher.toml"
    common = f'mode = "capture"\ninterface = "lo"\nworkers = {workers}\n'

    def write(*upstreams, more="port = 80\n"):
        path.write_text(common + more + f"upstream = {list(upstreams)}\n")

    with ExitStack() as stack:
        sinks = [
            stack.enter_context(RecordingSink(address, namespace=host))
            # At the captured port: what is sent there must not be mirrored once more.
            for address in (PRODUCTION, ("127.0.0.2", 80), ("127.0.0.3", 3280), ("127.0.0.4", 80))
        ]
        production, stays, goes, comes = sinks
        write(stays.host, goes.name)
        gopher = stack.enter_context(GopherProcess("--config", str(path), namespace=host))
        between, within = host.connect(PRODUCTION), host.connect(PRODUCTION)
        half = 200_000
        upload = post(2, noise(2 * half))
        with between, within, traffic(host):
            exchange(between, get(1))
            within.sendall(upload[:half])
            for sink in (stays, goes):
                sink.wait(
                    lambda sink=sink: any(bytes(each.received) == upload[:half] for each in sink.connections),
                    "the first half of the upload",
                )

            path.write_text("prot = 80\n")
            reload(gopher, "not reloaded, nothing has changed: ")
            before = len(goes.connections)
            goes.wait(lambda: len(goes.connections) >= before + 3, "connections after the wrong file")

            # Without a port of their own they stay at the captured one, as long as that is captured.
            write(stays.host, comes.host, more="port = 81\n")
            reload(gopher, f"reloaded: to 2 upstreams; added {comes.host}; removed {goes.name}")
            gopher.wait_stderr(lambda line: line == "gopher: needs a restart: port")
            goes.wait(lambda: all(each.ended for each in goes.connections), "the end of all its connections")
            offered = len(goes.connections)
            comes.wait(lambda: len(comes.connections) >= 5, "new connections")

            within.sendall(upload[half:])
            within.recv(len(ANSWER))
            exchange(between, get(3))
        production.wait_ended(1)
        stays.wait_ended(len(production.connections))
        report = gopher.stop()
        comes.wait_ended(upstream(report, comes.host)["connections"]["captured"])

    assert stays.streams == production.streams
    assert_all_delivered(report, stays.host)
    assert_all_delivered(report, comes.host)
    assert len(goes.connections) == offered
    # The one within a request was cut, the others got all that was sent until then, in whole requests.
    removed = upstream(report, goes.name)
    assert removed["connections"]["shed_by_reason"] == {"removed": 1}
    assert removed["shed"] == {"removed": half}
    assert [each.ended for each in goes.connections].count("rst") == 1
    assert removed["removed_s"] > 0
    assert removed["delivered_bytes"] == sum(
        len(each.received) for each in goes.connections if bytes(each.received) != upload[:half]
    )
    # What was open before it came is not for the new one.
    added = upstream(report, comes.host)
    assert added["added_s"] > 0
    assert not {bytes(get(1) + get(3)), upload} & set(comes.streams)
    assert not set(comes.streams) - set(production.streams)
    assert len(comes.connections) == added["connections"]["captured"]
    assert gopher.stderr.count("not reloaded") == 1
    assert f"{path}:1: prot: there is no such setting\n    hint: did you mean port?" in gopher.stderr
    assert report["connections"]["mirrored"] == len(production.connections)


def test_upstream_that_comes_back_goes_on_with_its_account(host, tmp_path):
    path = tmp_path / "gopher.toml"
    common = 'mode = "capture"\ninterface = "lo"\nport = 80\n'
    with (
        RecordingSink(PRODUCTION, namespace=host) as production,
        RecordingSink(("127.0.0.2", 3280), namespace=host) as first,
        RecordingSink(("127.0.0.3", 3280), namespace=host) as second,
    ):
        both = f'upstream = ["{first.name}", "{second.name}"]\n'
        path.write_text(common + both)
        with GopherProcess("--config", str(path), namespace=host) as gopher:
            for number, upstreams, line in (
                (0, both, ""),
                (1, f'upstream = "{second.name}"\ndrain = 4\nquiet = true\n', f"to 1 upstream; removed {first.name}"),
                (2, both, f"to 2 upstreams; added {first.name}"),
            ):
                path.write_text(common + upstreams)
                if line:
                    reload(gopher, f"gopher: reloaded: {line}")
                with host.connect(PRODUCTION) as client:
                    exchange(client, get(number))
                second.wait_ended(number + 1)
            first.wait_ended(2)
            report = gopher.stop()
    assert production.requests == second.requests == 3
    assert first.streams == [get(0), get(2)]
    assert [each["name"] for each in report["upstreams"]] == [first.name, second.name]
    assert upstream(report, first.name)["connections"]["delivered"] == 2
    assert upstream(report, first.name)["removed_s"] is None


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ('upstream = "no-such-machine.invalid:1"', "cannot resolve 'no-such-machine.invalid'"),
        ('upstream = "127.0.0.1:80"', "is the captured server itself"),
        ('upstream = "dir:/proc/nowhere"', "cannot make the directory"),
    ],
)
def test_file_that_is_found_wrong_later_changes_nothing_either(host, tmp_path, wrong, reason, workers):
    path = tmp_path / "gopher.toml"
    common = f'mode = "capture"\ninterface = "lo"\nport = 80\nworkers = {workers}\n'
    with (
        RecordingSink(("0.0.0.0", 80), namespace=host),
        RecordingSink(("127.0.0.2", 3280), namespace=host) as shadow,
    ):
        path.write_text(common + f'upstream = "{shadow.name}"\n')
        with GopherProcess("--config", str(path), namespace=host) as gopher:
            path.write_text(common + wrong)
            reload(gopher, reason)
            with host.connect(PRODUCTION) as client:
                exchange(client, get(1))
            shadow.wait_ended(1)
    assert "not reloaded, nothing has changed: upstream" in gopher.stderr
    assert_all_delivered(gopher.report, shadow.name)
    assert len(gopher.report["upstreams"]) == 1


def test_verbose_tells_addresses_and_filter(host, tmp_path):
    path = tmp_path / "gopher.toml"
    capture = 'mode = "capture"\ninterface = "lo"\nport = 80\nverbose = 1\n'
    relay = f'mode = "relay"\nlisten = "127.0.0.1"\nport = {free_port()}\nverbose = 1\n'
    for common, running in (
        (capture, GopherProcess("--config", str(path), namespace=host)),
        (capture, GopherProcess("--config", str(path), "--workers=2", namespace=host)),
        (relay, ConfiguredRelay(path, 0)),
    ):
        path.write_text(f'{common}upstream = "127.0.0.2:3280"\n')
        with running as gopher:
            gopher.wait_stderr(lambda line: line == "gopher: upstream 127.0.0.2:3280 is at 127.0.0.2")
            if common is capture:
                gopher.wait_stderr(
                    lambda line: line.startswith("gopher: the kernel's filter is: (") and "port 80" in line
                )
            path.write_text(f'{common}upstream = "[::1]:3280"\n')
            reload(gopher, "reloaded: to 1 upstream")
            gopher.wait_stderr(lambda line: line == "gopher: upstream [::1]:3280 is at ::1")


def test_without_a_file_sighup_ends_gopher_as_ever(host):
    gopher = GopherProcess("-c", "-p", "80", "-i", "lo", "-u", "127.0.0.2:1", namespace=host, report=False)
    with gopher:
        gopher.signal(signal.SIGHUP)
        gopher.wait(status=-signal.SIGHUP)


def test_relay_takes_on_upstreams_for_new_connections(tmp_path):
    path = tmp_path / "gopher.toml"
    port = free_port()
    with (
        RecordingSink(("127.0.0.1", 0)) as old,
        RecordingSink(("127.0.0.1", 0)) as new,
        RecordingSink(("127.0.0.1", 0)) as copy,
    ):

        def write(*upstreams, more=""):
            path.write_text(
                f'mode = "relay"\nlisten = "127.0.0.1"\nport = {port}\nupstream = {list(upstreams)}\n{more}'
            )

        write(old.name)
        with ConfiguredRelay(path, port) as relay:
            with relay.connect() as open_before:
                exchange(open_before, get(1))
                path.write_text("port = 'x'")
                reload(relay, "not reloaded")
                write(new.name, copy.name, more='couple = "auto"\nmarker = "X-Marker: 1"\n')
                reload(relay, f"reloaded: to 2 upstreams; added {new.name}, {copy.name}; removed {old.name}")
                relay.wait_stderr(lambda line: line == "gopher: needs a restart: couple")
                with relay.connect() as client:
                    exchange(client, get(2))
                    write(new.name)
                    reload(relay, f"reloaded: to 1 upstream; removed {copy.name}")
                    exchange(client, get(3))
                exchange(open_before, get(4))
            old.wait_ended(1)
            new.wait_ended(1)
            copy.wait_ended(1)
            report = relay.stop()
    assert old.streams == [get(1) + get(4)]
    marked = [request.replace(b"\r\n\r\n", b"\r\nX-Marker: 1\r\n\r\n") for request in (get(2), get(3))]
    assert new.streams == [b"".join(marked)]
    assert len(copy.streams) == 1
    [account] = report["copies"]
    assert account["removed_s"] >= account["added_s"] > 0
    assert account["captured_bytes"] == account["delivered_bytes"] == len(copy.streams[0])


def test_relay_cannot_be_told_to_forget_an_open_client(tmp_path):
    # A connection of bytes: the tunnel stays with the upstream that it has.
    path = tmp_path / "gopher.toml"
    port = free_port()
    with RecordingSink(("127.0.0.1", 0)) as old, RecordingSink(("127.0.0.1", 0)) as new:
        text = f'mode = "relay"\nlisten = "127.0.0.1"\nport = {port}\nupstream = '
        path.write_text(text + f'"{old.name}"')
        with ConfiguredRelay(path, port) as relay:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as before:
                exchange(before, get(1))
                path.write_text(text + f'"{new.name}"')
                reload(relay, "reloaded: to 1 upstream")
                exchange(before, get(2))
                with relay.connect() as after:
                    exchange(after, get(3))
            old.wait_ended(1)
            new.wait_ended(1)
    assert old.streams == [get(1) + get(2)]
    assert new.streams == [get(3)]
