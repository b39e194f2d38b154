"""The tour is typed as it is written, and the report it leaves has the fields that docs/report.md says."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import netns
from tests.support.command import run_gopher
from tests.support.needs import need_namespaces
from tests.support.pages import ROOT, blocks
from tests.support.relay import RelayProcess

TOUR = ROOT / "docs/tour.md"
REPORT = ROOT / "docs/report.md"
DEADLINE_S = 30.0
# Keys that are data: reasons and statuses.
OPEN = {
    "ignored_by_reason": "REASON",
    "shed": "REASON",
    "shed_by_reason": "REASON",
    "failed": "REASON",
    "answers": "STATUS",
    "divergences": "ANSWER",
}


def wait_for(pattern, times, said, shell):
    deadline = time.monotonic() + DEADLINE_S
    while len(re.findall(pattern, said.read_text())) < times:
        assert shell.poll() is None, said.read_text()
        assert time.monotonic() < deadline, f"{pattern!r}, {times} times, is not in\n{said.read_text()}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The folder after the tour, with what was said in it: each block typed when its reader would."""
    need_namespaces()
    place = tmp_path_factory.mktemp("tour")
    said = place / "said"
    with netns.Namespace("tour") as namespace, said.open("w") as output:
        shell = subprocess.Popen(
            namespace.command("bash", "-e"),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
            cwd=place,
            # What a reader has in his PATH after the installation.
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"},
        )

        # What a reader has seen when he goes on, in order, after each of these commands.
        ready = r"gopher: capturing on lo, tcp port 8000, to 1 upstream"
        waits = [
            ("--directory shadow", "Serving HTTP on", 2),
            ("--metrics", ready, 1),
            ("no-such-file", r'"GET /no-such-file HTTP/1.1" 404', 2),
            ("--stats-interval", ready, 2),
            ("hello.txt", r"[1-9]\d* B shed", 1),
        ]
        try:
            for block in (block for block in blocks(TOUR) if block.language == "sh"):
                shell.stdin.write(block.text)
                shell.stdin.flush()
                if waits and waits[0][0] in block.text:
                    _, text, times = waits.pop(0)
                    wait_for(text, times, said, shell)
            shell.stdin.close()
            status = shell.wait(DEADLINE_S)
        finally:
            shell.kill()
            shell.wait()
            # Those of the namespace are its own: nobody else's could be meant.
            for pid in namespace_pids(namespace):
                os.kill(pid, 9)
    assert status == 0, said.read_text()
    assert not waits
    return place


def namespace_pids(namespace):
    listed = subprocess.run(["ip", "netns", "pids", namespace.name], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listed.stdout.split()]


def test_the_tour_shows_what_it_says(tour):
    said = (tour / "said").read_text()
    shown = [block.text.strip() for block in blocks(TOUR) if block.language == ""]
    assert shown
    for text in shown:
        assert text in said, text
    assert said.count("from production") == 2
    assert "from the shadow" not in said
    # Both servers logged both requests: two of production's, two of the shadow's, and one with the shadow dead.
    assert said.count('"GET /hello.txt HTTP/1.1" 200') == 3
    assert said.count('"GET /no-such-file HTTP/1.1" 404') == 2
    [upstream] = json.loads((tour / "report.json").read_text())["upstreams"]
    assert upstream["connections"] == {
        "captured": 2,
        "delivered": 2,
        "shed": 0,
        "pending": 0,
        "shed_by_reason": {},
    }
    [upstream] = json.loads((tour / "dead.json").read_text())["upstreams"]
    assert upstream["connections"]["shed_by_reason"] == {"refused": 1}


def fields(value, path=""):
    """The paths of all that a report holds, with the names that docs/report.md gives what differs."""
    if isinstance(value, dict):
        stand_in = OPEN.get(path.rpartition(".")[2])
        if stand_in and all(isinstance(each, int) for each in value.values()):
            yield f"{path}.{stand_in}"
            return
        for key, each in value.items():
            yield from fields(each, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        if not value or not isinstance(value[0], dict):
            yield f"{path}[]"
        for each in value:
            if isinstance(each, dict):
                yield from fields(each, f"{path}[]")
    else:
        yield path


def documented(heading):
    section = REPORT.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_capture_report_has_the_documented_fields(tour):
    report = json.loads((tour / "report.json").read_text())
    names = documented("Capture mode")
    assert len(names) == len(set(names))
    assert {name for name in names if not name.startswith("workers.")} == set(fields(report))


def test_report_of_workers_has_the_documented_fields(tmp_path):
    report = tmp_path / "report.json"
    capture = ("-c", "-p", "80", "--read", str(ROOT / "demo/demo.pcap"), "--speed", "max", "--workers", "2")
    done = run_gopher(*capture, "-u", f"dir:{tmp_path / 'streams'}", "--report", str(report))
    assert done.returncode == 0, done.stderr
    names = {name.removeprefix("workers.") for name in documented("Capture mode") if name.startswith("workers.")}
    assert names == set(fields(json.loads(report.read_text())["workers"]))


def test_relay_report_has_the_documented_fields(tmp_path):
    script = ROOT / "docs/scripts/drop_side_effects.py"
    with RelayProcess("127.0.0.1:9", "127.0.0.1:9", options=("--couple", "auto", "--script", str(script))) as relay:
        relay.stop()
    names = documented("Relay mode")
    assert len(names) == len(set(names))
    found = set(fields(relay.report))
    copies = {name for name in found if name.startswith("copies[].")}
    # Rows for what may be null, and one for a list whose items are described in the other mode's table. Nothing is
    # timed for copies, so there are no buckets.
    assert set(names) - {"exchanges", "coupling", "copies[]"} == found - copies
    upstream = {
        name.removeprefix("upstreams[].") for name in documented("Capture mode") if name.startswith("upstreams")
    }
    buckets = {name for name in upstream if name.startswith("latency.buckets[]")}
    assert {name.removeprefix("copies[].") for name in copies} - {"latency.buckets[]"} >= upstream - buckets
