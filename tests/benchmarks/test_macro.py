"""The suite's own numbers: each macro benchmark, for a moment, against what the servers and the generator counted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.macro import peers
from tests.support import netns

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
REQUEST_BYTES = 500


@pytest.fixture
def host():
    missing = [name for name in ("ip", "nginx", "taskset", "wrk", "cc") if shutil.which(name) is None]
    reason = f"not installed: {', '.join(missing)}" if missing else netns.unprivileged_reason()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    with netns.Namespace("bench") as namespace:
        yield namespace


def rounds_of(host, tmp_path, name, *options):
    result = tmp_path / "result.json"
    command = [sys.executable, "-m", f"benchmarks.macro.{name}", "--rounds=1", "--json", str(result), *options]
    ran = subprocess.run(host.command(*command), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(result.read_text())["rounds"]


def check(done, *, upstreams=1, size=REQUEST_BYTES, greetings=0):
    """What the generator sent, production served, the upstreams counted, and gopher says to have delivered."""
    assert done["generated"] > 0
    assert done["served"] == done["generated"] + greetings
    assert done["arrived"] == upstreams * done["served"]
    assert done["delivered_bytes"] == [size * done["served"]] * upstreams
    assert done["lost"] == done["kernel_drops"] == done["shed_bytes"] == done["report_differs_bytes"] == 0
    assert 0 < sum(each["count"] for each in done["latency"]["buckets"]) == done["latency"]["count"]


@pytest.mark.parametrize(
    ("options", "upstreams", "size"),
    [
        (("--rate=2000", "--upstreams=2"), 2, REQUEST_BYTES),
        (("--rate=500", "--mode=once"), 1, REQUEST_BYTES),
        (("--rate=2000", "--bytes=100"), 1, 100),
        (("--rate=20", "--bytes=1048576", "--connections=4", "--cold"), 1, 1 << 20),
    ],
    ids=["two-upstreams", "once", "small", "upload"],
)
def test_capture(host, tmp_path, options, upstreams, size):
    [done] = rounds_of(host, tmp_path, "capture", "--seconds=0.2", *options)
    check(done["gopher"], upstreams=upstreams, size=size)
    assert done["floor"]["requests"] > 0
    if "--cold" in options:
        assert done["cold_floor"]["requests"] > 0


def test_connections(host, tmp_path):
    options = ("--seconds=0.3", "--rate=1000", "--counts", "100", "300")
    few, many = rounds_of(host, tmp_path, "connections", *options)
    check(few["gopher"])
    check(many["gopher"], greetings=300)


def test_upstreams(host, tmp_path):
    [done] = rounds_of(host, tmp_path, "upstreams", "--seconds=0.3", "--rate=1000", "--connections=20")
    assert done["floor"]["requests"] > 0
    for upstreams, counted in enumerate(done["gopher"], start=1):
        check(counted, upstreams=upstreams)
    assert len(done["gopher"]) == 3


def test_peers(host, tmp_path):
    options = ("--seconds=0.3", "--connections=20", "--rates", "1000")
    [done] = rounds_of(host, tmp_path, "peers", *options)
    assert set(done) == {"rate", "gopher", *peers.installed()}
    assert done["gopher"]["arrived"] == done["gopher"]["requests"] > 0
    for peer in peers.installed():
        # They may lose some.
        assert 0 < done[peer]["arrived"] <= done[peer]["requests"], peer
        assert done[peer]["lost"] == done[peer]["requests"] - done[peer]["arrived"], peer


def test_peers_that_are_missing_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert peers.installed() == []
    assert peers.not_run("goreplay", "tcpcopy+intercept") == [
        {"figure": "goreplay", "not_run": "not on PATH: gor"},
        {"figure": "tcpcopy+intercept", "not_run": "not on PATH: tcpcopy, intercept"},
    ]


def test_relay(host, tmp_path):
    options = ("--seconds=0.3", "--connections=20", "--idle=20", "--peers", "nginx", "--kinds", "transparent", "rules")
    [done] = rounds_of(host, tmp_path, "relay", *options)
    assert set(done) == {"nginx", "relay (transparent)", "relay (rules)"}
    for side, counted in done.items():
        assert counted["requests"] > 0, side
        # Each connection may have had one request on its way when wrk was stopped.
        assert 0 <= counted["arrived"] - counted["answered"] <= 20, side
    assert done["relay (rules)"]["rewritten"] == done["relay (rules)"]["arrived"]


def test_rates(host, tmp_path):
    for done in rounds_of(host, tmp_path, "rates", "--seconds=0.3", "--rates", "1000"):
        if done["program"] != "goreplay":
            check(done)


def test_workers(host, tmp_path):
    [paced, saturated] = rounds_of(host, tmp_path, "workers", "--seconds=0.3", "--rates", "2000", "0")
    for workers in ("1", "2"):
        check(paced[workers])
        done = saturated[workers]
        assert done["arrived"] == done["served"] > 0
        assert done["lost"] == done["report_differs_bytes"] == 0
    assert sum(paced["2"]["workers"]["connections"]) == 200
    assert min(paced["2"]["workers"]["connections"]) > 0
    assert paced["1"]["workers"] is None


def test_inline(host, tmp_path):
    [done] = rounds_of(host, tmp_path, "inline", "--seconds=0.3", "--rate=500", "--requests=16")
    for side, counted in done["cpu"].items():
        mirrors = side == "gopher" or side.endswith(", mirroring")
        # goreplay may lose some.
        if side not in {"floor", "goreplay"}:
            assert counted["arrived"] == (counted["requests"] if mirrors else 0), side
    assert done["cpu"]["gopher"]["delivered_bytes"] == REQUEST_BYTES * done["cpu"]["gopher"]["requests"]
    # nginx waits for its shadow before it takes the next request of a connection.
    assert done["latency"]["nginx, mirroring"]["p50_ms"] > 100


def test_offline(host, tmp_path):
    [done] = rounds_of(host, tmp_path, "offline", "--bytes=40000000")
    assert done["delivered"] == done["carried"]


def test_idle(host, tmp_path):
    [done] = rounds_of(host, tmp_path, "idle", "--seconds=0.3")
    assert done["packets"] == 0
