"""`make demo` holds what it promises, live and where capturing is not permitted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gopher

pytestmark = pytest.mark.e2e

DEMO = [sys.executable, "-W", "error", str(Path(__file__).parents[2] / "demo" / "demo.py")]


def run_demo(namespace, *argv):
    # The gopher that the tests import, whether it is installed or not.
    environment = os.environ | {"PYTHONPATH": str(Path(gopher.__file__).parents[1])}
    done = subprocess.run(
        namespace.command(*argv), capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    print(done.stdout, done.stderr)
    return done


def test_demo_captures_on_loopback(host):
    done = run_demo(host, *DEMO, "--seconds", "1")
    assert done.returncode == 0
    assert "gopher: capturing on lo" in done.stdout
    assert done.stdout.count("the same, byte for byte") == 2
    assert done.stderr == ""


def test_demo_reads_its_capture_file_where_capturing_is_not_permitted(host):
    done = run_demo(host, "setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw", *DEMO)
    assert done.returncode == 0
    assert "Capturing is not permitted here" in done.stdout
    assert done.stdout.count("the same, byte for byte") == 2
    assert done.stderr == ""
