"""--metrics of the real command, scraped over HTTP and read by the official parser."""

import json
import socket
import time
import urllib.request
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gopher.observe.metrics import CAPTURE_METRICS, RELAY_METRICS, families
from tests.support.clients import curl, exchange, get
from tests.support.command import GopherProcess, run_gopher
from tests.support.relay import Link, RelayProcess, ScriptedServer, free_port, receive_until_end
from tests.support.servers import RecordingSink

pytestmark = pytest.mark.e2e

WAIT_S = 20
PORT = 9464
# Sums of other figures, times, and what is compared on its own.
NOT_SHOWN = {
    *("duration_s", "added_s", "removed_s"),
    *("shed_bytes", "connections.shed", "connections.ignored", "connections.failed", "latency"),
}


def parsed(text):
    """(name, labels) to value, without those of the process; all of it has a HELP and a TYPE."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family
        assert family.type in ("counter", "gauge", "histogram"), family
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} twice"
            if not sample.name.startswith("process_"):
                found[key] = sample.value
    return found


def expected(table, report):
    class Collector:
        def collect(self):
            return families(table, report)

    registry = CollectorRegistry()
    registry.register(Collector())
    return parsed(generate_latest(registry).decode())


def scraped(read, quiet):
    """The metrics, and the report of the same state: as it was before and after.

    Args:
        read: a path to its body.
        quiet: whether a report is the one to compare.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        before = json.loads(read("/report.json"))
        metrics = read("/metrics")
        after = json.loads(read("/report.json"))
        same = {**before, "duration_s": 0} == {**after, "duration_s": 0}
        if same and quiet(after):
            return parsed(metrics), after
        assert time.monotonic() < deadline, after


def leaves(node, path=()):
    """(path, figure) of every number in a report."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, (*path, index))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, node


def assert_every_figure_is_shown(table, report):
    """With a number of its own in every place of the report, each is found among the metrics."""
    report = json.loads(json.dumps(report))
    numbers = {}
    for number, (path, _) in enumerate(leaves(report), 1_000_000):
        dotted = ".".join(key for key in path if isinstance(key, str))
        if any(dotted.endswith(end) or f".{end}." in f".{dotted}." for end in NOT_SHOWN):
            continue
        place = report
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = number
        numbers[number] = dotted
    shown = set(expected(table, report).values())
    assert not [dotted for number, dotted in numbers.items() if number not in shown]
    assert len(numbers) > 20


def test_capture_shows_what_the_report_says(host):
    with (
        RecordingSink(("127.0.0.1", 80), namespace=host) as production,
        RecordingSink(("127.0.0.2", 3280), namespace=host) as shadow,
        GopherProcess(
            *("-c", "-p", "80", "-i", "lo", "-u", shadow.name, "-u", "127.0.0.3:3280"),
            *("--metrics", f"127.0.0.1:{PORT}"),
            namespace=host,
        ) as gopher,
    ):
        assert f"gopher: metrics on http://127.0.0.1:{PORT}/metrics" in gopher.stderr.splitlines()

        def read(path):
            return curl(f"http://127.0.0.1:{PORT}{path}", namespace=host)

        assert read("/healthz") == "ok\n"
        for number in range(5):
            with host.connect((production.host, production.port)) as client:
                exchange(client, get(number))
        metrics, report = scraped(
            read,
            lambda report: all(
                each["connections"]["pending"] == 0 and each["connections"]["captured"] == 5
                for each in report["upstreams"]
            ),
        )
    assert metrics == expected(CAPTURE_METRICS, report)
    assert_every_figure_is_shown(CAPTURE_METRICS, report)
    sent = sum(len(get(number)) for number in range(5))
    # By hand, so that table and report cannot be wrong together.
    good, bad = (("upstream", shadow.name),), (("upstream", "127.0.0.3:3280"),)
    assert metrics["gopher_captured_bytes_total", ()] == sent
    assert metrics["gopher_upstream_delivered_bytes", good] == sent
    assert metrics["gopher_upstream_delivered_connections_total", good] == 5
    assert metrics["gopher_upstream_latency_seconds_count", good] >= 5
    assert metrics["gopher_upstream_delivered_bytes", bad] == 0
    assert metrics["gopher_upstream_shed_bytes_total", (("reason", "refused"), *bad)] == sent
    assert metrics["gopher_accounts_add_up", ()] == 1
    # Being asked changes nothing: what the last scrape said is what the run ended with.
    assert [each["captured_bytes"] for each in gopher.report["upstreams"]] == [sent, sent]


@pytest.fixture
def relay(tmp_path):
    """A relay with everything that has figures."""
    script = tmp_path / "look.py"
    script.write_text("def request(exchange):\n    pass\n")
    port = free_port()
    options = ("--couple", "cookie:SID", "--script", str(script), "--metrics", f"127.0.0.1:{port}")
    with (
        RecordingSink() as first,
        RecordingSink() as second,
        RelayProcess(first.name, second.name, options=options) as relay,
    ):
        relay.metrics_port = port
        yield relay


def answer(relay, request):
    """The raw answer of the metrics server."""
    with socket.create_connection(("127.0.0.1", relay.metrics_port), timeout=WAIT_S) as sock:
        sock.sendall(request)
        return receive_until_end(sock)


def test_relay_shows_what_the_report_says(relay):
    for number in range(3):
        with relay.connect() as client:
            exchange(client, get(number))
    with relay.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
        receive_until_end(client)

    def read(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{relay.metrics_port}{path}", timeout=WAIT_S) as response:
            return response.read().decode()

    metrics, report = scraped(
        read, lambda report: report["connections"]["open"] == 0 and report["copies"][0]["connections"]["pending"] == 0
    )
    assert metrics == expected(RELAY_METRICS, report)
    assert_every_figure_is_shown(RELAY_METRICS, report)
    assert metrics["gopher_relay_accepted_connections_total", ()] == 4
    assert metrics["gopher_relay_requests_total", ()] == 3
    assert metrics["gopher_relay_failed_connections_total", (("reason", "bad_request"),)] == 1
    assert metrics["gopher_relay_own_answers_total", (("status", "400"),)] == 1
    assert report["copies"][0]["latency"]["count"] == 0, "docs/metrics.md says so"
    [script] = report["scripts"]
    assert metrics["gopher_script_calls_total", (("script", script["name"]),)] == 3


def test_other_requests_get_an_answer_too(relay):
    head, _, body = answer(relay, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n").partition(b"\r\n\r\n")
    assert b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in head
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    only_head = answer(relay, b"HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert only_head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert only_head.endswith(b"\r\n\r\n")
    assert answer(relay, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 404 ")
    assert answer(relay, b"DELETE /metrics HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 405 ")
    assert answer(relay, b"\x16\x03\x01 what\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert answer(relay, b"GET /metrics HTTP/1.1\r\nA: " + b"a" * 20_000).startswith(b"HTTP/1.1 431 ")


def test_clients_that_say_nothing_keep_nobody_out(relay):
    """Neither those who connect and wait, nor those who go away in the middle, stop the next one."""
    silent = [socket.create_connection(("127.0.0.1", relay.metrics_port)) for _ in range(20)]
    for sock in silent[:8]:
        sock.sendall(b"GET /metr")
    assert b"ok\n" in answer(relay, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    for sock in silent:
        sock.close()


@pytest.mark.parametrize("mode", [("-c", "--read", "missing.pcap"), ("-r",)], ids=["capture", "relay"])
def test_port_in_use_is_one_sentence(mode):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        ran = run_gopher(*mode, "-p", str(free_port()), "-u", "127.0.0.1:9", "--metrics", f"127.0.0.1:{port}")
    assert ran.returncode == 1
    assert ran.stderr == (
        f"gopher: error: cannot listen on port {port} of 127.0.0.1: something else listens there already\n"
        "  hint: give another one with --metrics\n"
    )


def test_no_session_value_is_shown():
    """Sessions and tokens that pass are in no page and on no stderr."""
    secrets = ("production-secret-1", "shadow-secret-2", "bearer-secret-3", "query-secret-4")
    port = free_port()
    answered = b"HTTP/1.1 200 OK\r\nSet-Cookie: SID=shadow-secret-2\r\nContent-Length: 0\r\n\r\n"
    with (
        ScriptedServer() as server,
        RelayProcess(server.name, options=("--couple", "cookie:SID", "--metrics", f"127.0.0.1:{port}", "-v")) as relay,
    ):
        relay.metrics_port = port
        with server.play([(1, answered)], closes=False), Link(relay) as link:
            link.request("/?q=query-secret-4&Authorization=bearer-secret-3")
            link.response("Set-Cookie: SID=production-secret-1\r\n")
            link.end()
        pages = [
            answer(relay, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).decode()
            for path in ("/metrics", "/report.json")
        ]
        assert "gopher_coupling_learned_aliases_total 1.0" in pages[0]
        report = relay.stop()
    for secret in secrets:
        for text in (*pages, relay.stderr, json.dumps(report)):
            assert secret not in text
