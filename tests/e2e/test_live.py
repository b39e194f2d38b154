"""--live of the real command, in a pseudo-terminal: what a person sees while it runs, and what is left afterwards."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.clients import exchange, get
from tests.support.servers import PRODUCTION
from tests.support.terminal import Terminal, gopher_argv

pytestmark = pytest.mark.e2e

CAPTURE = ("-c", "-p", "80", "-i", "lo", "--live")
DEAD = "127.0.0.3:3280"
FIGURE = r"[\d,]+(\.\d+)?( [kMGT]?B(/s)?| m?s|/s)?"


def requests(host, count):
    for number in range(count):
        with host.connect(PRODUCTION) as client:
            exchange(client, get(number))


def shows(*texts):
    """Whether all of these are on the screen, wherever lines break."""
    return lambda lines: all(text in " ".join(" ".join(lines).split()) for text in texts)


def has(pattern):
    """Whether the screen has this, wherever lines break; {f} is a figure."""
    compiled = re.compile(pattern.replace("{f}", FIGURE))
    return lambda lines: compiled.search(" ".join(" ".join(lines).split()))


def all_of(*conditions):
    return lambda lines: all(condition(lines) for condition in conditions)


def assert_left_clean(terminal):
    """The cursor is there, no colour is left on, and nothing of the view: only what was said, to its last line."""
    assert not terminal.screen.cursor.hidden
    assert terminal.raw.rstrip().endswith(b"it adds up")
    assert not [line for line in terminal.history if re.search(r"^(packets|clients)\s.*/s", line)]
    assert terminal.screen.cursor.attrs.fg == "default"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_live_view_shows_rates_and_upstreams_and_leaves_the_terminal_clean(host, production, shadow, columns):
    argv = gopher_argv(*CAPTURE, "-u", shadow.name, "-u", DEAD, namespace=host)
    with Terminal(argv, columns=columns, rows=60) as terminal:
        terminal.wait(
            shows("capturing on lo, tcp port 80" if columns > 40 else "capturing on lo", "packets"), "the view"
        )
        requests(host, 50)
        sent = sum(len(get(number)) for number in range(50))
        # When the last of them is in it, and the view is drawn to its end.
        lines = terminal.wait(
            all_of(
                shows(f"refused {sent / 1000:.1f} kB"),
                has(r"packets {f}, 0 dropped by the kernel"),
                has(r"clients {f}, {f} connections/s, 0 open"),
                has(rf"{re.escape(shadow.name)}\S* +ok\b"),
            ),
            "the requests",
        )
        # Nothing wraps, and no figure stands at an edge cut in two: the last column stays free.
        assert max(map(len, lines)) < columns or columns == 40
        if columns >= 80:
            terminal.wait(
                lambda lines: any(
                    re.fullmatch(rf"{re.escape(shadow.name)} +ok +{FIGURE} +0 B +0 B +{FIGURE} +{FIGURE}", line)
                    for line in lines
                ),
                "the upstream's row",
            )
        assert terminal.screen.cursor.hidden
        assert terminal.stop() == 0
        assert_left_clean(terminal)
        table = terminal.raw.decode().rpartition("gopher 0.")[2].splitlines()
        assert any(line.startswith("captured = delivered") for line in table)
        assert max(map(len, table)) <= columns


def test_live_view_of_a_relay(host, production):
    with Terminal(
        gopher_argv("-r", "-p", "3280", "-u", "127.0.0.1:80", "--live", namespace=host), columns=80
    ) as terminal:
        terminal.wait(shows("relaying on port 3280", "clients"), "the view")
        for number in range(30):
            with host.connect(("127.0.0.1", 3280)) as client:
                exchange(client, get(number))
        terminal.wait(
            all_of(
                has(r"clients [1-9]"),
                has(r"bytes {f} from downstream, {f} from upstream"),
                has(r"to 127\.0\.0\.1:80"),
            ),
            "the connections",
        )
        assert terminal.stop() == 0
        assert not terminal.screen.cursor.hidden
        assert any("30 accepted: 30 finished" in line for line in terminal.history)


def test_window_that_is_made_narrower_shows_one_view_that_fits(host, production, shadow):
    with Terminal(gopher_argv(*CAPTURE, "-u", shadow.name, namespace=host), columns=120) as terminal:
        terminal.wait(shows("packets"), "the view")
        terminal.resize(50, 20)
        # One upstream is three lines now.
        terminal.wait(
            lambda lines: (
                has(r"\d+ B/s delivered")(lines)
                and "\n".join(lines).count("packets") == 1
                and max(map(len, lines)) < 50
            ),
            "one view that fits",
        )
        assert terminal.stop() == 0
        assert_left_clean(terminal)


def test_what_is_said_meanwhile_stays_above(host, production, shadow):
    with Terminal(gopher_argv(*CAPTURE, "-u", shadow.name, namespace=host), columns=80) as terminal:
        terminal.wait(shows("packets"), "the view")
        host.run("kill", "-USR1", str(terminal.pid))
        lines = terminal.wait(shows("it adds up", "clients"), "the table and the view below it")
        told = next(number for number, line in enumerate(lines) if "it adds up" in line)
        drawn = next(number for number, line in enumerate(lines) if line.startswith("clients"))
        assert told < drawn
        assert terminal.stop() == 0


@pytest.mark.parametrize(
    ("environment", "options"),
    [({"TERM": "dumb"}, ()), ({}, ("--log-format=json",))],
    ids=["dumb terminal", "JSON"],
)
def test_without_a_terminal_to_draw_on_there_are_lines(host, production, shadow, environment, options):
    argv = gopher_argv(*CAPTURE, "--stats-interval=0.2", *options, "-u", shadow.name, namespace=host)
    with Terminal(argv, columns=80, environment=environment) as terminal:
        terminal.wait(shows("packets/s", "captured, 0 open"), "a status line")
        assert b"\x1b" not in terminal.raw
        assert terminal.stop() == 0


def test_no_color_is_obeyed(host, production, shadow):
    argv = gopher_argv(*CAPTURE, "-u", shadow.name, namespace=host)
    with Terminal(argv, columns=80, environment={"NO_COLOR": "1"}) as terminal:
        terminal.wait(shows("packets", "ok"), "the view")
        assert terminal.stop() == 0
        # Colours are parameters 30 to 37 and 90 to 97 of the sequence that ends with m.
        assert not re.search(rb"\x1b\[(\d+;)*[39][0-7][;m]", terminal.raw)
    with Terminal(argv, columns=80) as terminal:
        terminal.wait(shows("packets", "ok"), "the view")
        terminal.stop()
        assert re.search(rb"\x1b\[(\d+;)*[39][0-7][;m]", terminal.raw)


def test_quiet_wins(host, production, shadow):
    with Terminal(gopher_argv(*CAPTURE, "-q", "-u", shadow.name, namespace=host), columns=80) as terminal:
        while production.requests == 0:
            requests(host, 1)
        shadow_seen_by = time.monotonic() + 15
        while shadow.requests == 0:
            assert time.monotonic() < shadow_seen_by
            requests(host, 1)
        assert terminal.stop() == 0
        assert terminal.raw == b""


def test_terminal_that_goes_away_does_not_end_gopher(host, production, shadow, tmp_path):
    argv = gopher_argv(*CAPTURE, "-u", shadow.name, "--report", str(tmp_path / "report.json"), namespace=host)
    with Terminal(argv, columns=80) as terminal:
        terminal.wait(shows("packets"), "the view")
        terminal.hang_up()
        requests(host, 3)
        shadow.wait_ended(3)
        assert terminal.stop() == 0
    assert json.loads((tmp_path / "report.json").read_text())["upstreams"][0]["connections"]["delivered"] == 3


def test_view_costs_little(host, production, shadow):
    with Terminal(gopher_argv(*CAPTURE, "-u", shadow.name, namespace=host), columns=80) as terminal:
        terminal.wait(shows("packets"), "the view")
        terminal.read_for(1)
        drawn, used_s, began_s = terminal.raw.count(b"clients"), cpu_s(terminal.pid), time.monotonic()
        terminal.wait(lambda _: terminal.raw.count(b"clients") >= drawn + 6, "six more views")
        assert time.monotonic() - began_s > 6 / 4
        assert cpu_s(terminal.pid) - used_s < 6 * 0.05
        terminal.stop()


def test_who_does_not_ask_for_it_does_not_load_it():
    program = "import sys, gopher.capture.run, gopher.relay.server; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
