"""The unit files: whether systemd understands them, how much they leave open, and whether gopher runs within that.

No systemd runs here. What it would do to the process is done without it: one capability, no memory that is both
writable and executable, and a trace of every system call, to be compared with what the unit allows.
"""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.clients import curl, exchange, get
from tests.support.command import GopherProcess
from tests.support.needs import need
from tests.support.relay import RelayProcess
from tests.support.rights import ROOT, no_rights, rights, with_capability
from tests.support.servers import RecordingSink

pytestmark = pytest.mark.e2e

UNITS = ROOT / "packaging" / "systemd"
CAPTURE, RELAY = "gopher-capture@.service", "gopher-relay@.service"
# Of 100; services with root's rights and nothing else said have 96, those of Debian mostly above 50.
MOST_EXPOSED = 20
# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN), which MemoryDenyWriteExecute= is where the kernel has it.
DENY_WRITE_EXECUTE = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0) != 0:
    sys.exit(f"PR_SET_MDWE: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[1], sys.argv[1:])
"""


def settings(unit):
    """(name, value) of each setting, in order."""
    lines = (UNITS / unit).read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if re.match(r"[A-Za-z]+=", line)]


def setting(unit, name):
    [value] = [value for each, value in settings(unit) if each == name]
    return value


@pytest.fixture(params=[CAPTURE, RELAY])
def instance(request, tmp_path):
    """The unit as an instance, with a program that is there."""
    need("systemd-analyze")
    path = tmp_path / request.param.replace("@", "@shop")
    path.write_text((UNITS / request.param).read_text().replace("/opt/gopher/bin/gopher", shutil.which("true")))
    return path


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


def test_systemd_understands_the_unit(instance):
    # Its manual is not installed here.
    done = analyze("verify", "--man=no", str(instance))
    assert (done.returncode, done.stderr) == (0, "")


def test_mistake_in_a_unit_is_found(instance):
    instance.write_text(instance.read_text().replace("WatchdogSec=30s", "WatchdogSec=soon"))
    assert "Failed to parse" in analyze("verify", "--man=no", str(instance)).stderr


def test_unit_leaves_little_open(instance):
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", str(instance))
    assert done.returncode == 0, done.stdout + done.stderr


def allowed_calls(unit):
    """The names that the unit's system call filter leaves: lists add up, those with ~ take away, groups nest."""
    groups = {}
    for line in analyze("syscall-filter", "--no-pager").stdout.splitlines():
        if line.startswith("@"):
            members = groups[line.strip()] = []
        elif line.strip() and not line.strip().startswith("#"):
            members.append(line.strip())

    def names(word):
        return {name for each in groups[word] for name in names(each)} if word.startswith("@") else {word}

    allowed = set()
    for value in [value for name, value in settings(unit) if name == "SystemCallFilter"]:
        chosen = {name for word in value.removeprefix("~").split() for name in names(word)}
        allowed = allowed - chosen if value.startswith("~") else allowed | chosen
    return allowed


def traced(capability, directory):
    """Prefix: the unit's capability and memory protection, and a trace in `directory`. The process is gopher's own."""
    strace = ("strace", "-D", "-f", "-qq", "-o", f"{directory}/trace")
    return (*with_capability(capability), *strace, sys.executable, "-c", DENY_WRITE_EXECUTE)


def assert_within(unit, directory):
    trace = (Path(directory) / "trace").read_text()
    called = set(re.findall(r"^\d+ +(\w+)\(", trace, re.MULTILINE))
    assert {"capset", "epoll_wait"} & called, "there is a trace"
    assert called - allowed_calls(unit) == set()
    families = set(re.findall(r"socket\((AF_\w+)", trace))
    assert families <= set(setting(unit, "RestrictAddressFamilies").split())


@pytest.fixture
def place():
    need("strace", "systemd-analyze")
    with tempfile.TemporaryDirectory() as directory:
        shutil.chown(directory, "nobody")
        yield directory


def test_capture_runs_within_its_unit(host, place):
    assert setting(CAPTURE, "AmbientCapabilities") == setting(CAPTURE, "CapabilityBoundingSet") == "CAP_NET_RAW"
    with (
        RecordingSink(("127.0.0.1", 80), namespace=host),
        RecordingSink(("127.0.0.1", 3280), namespace=host) as shadow,
        GopherProcess(
            *("-c", "-p", "80", "-i", "lo", "-u", "localhost:3280", "--metrics", "127.0.0.1:9464"),
            *("--write", f"{place}/kept.pcap", "-u", f"dir:{place}/streams", "--stats-interval", "0.1"),
            namespace=host,
            prefix=traced("net_raw", place),
            owner="nobody",
        ) as gopher,
    ):
        with host.connect(("127.0.0.1", 80)) as client:
            exchange(client, get(1))
            shadow.wait_requests(1)
        assert "gopher_captured_bytes_total" in curl("http://127.0.0.1:9464/metrics", namespace=host)
        gopher.signal(signal.SIGUSR1)
        gopher.stop()
    assert_within(CAPTURE, place)


SCRIPT = """
def request(exchange):
    exchange.request.headers["X-Script"] = "was here"
"""


def test_relay_runs_within_its_unit(host, place):
    assert setting(RELAY, "AmbientCapabilities") == setting(RELAY, "CapabilityBoundingSet") == "CAP_NET_BIND_SERVICE"
    (Path(place) / "script.py").write_text(SCRIPT)
    with (
        RecordingSink(("127.0.0.1", 3280), namespace=host) as upstream,
        RelayProcess(
            *("localhost:3280", "127.0.0.1:9"),
            options=("--script", f"{place}/script.py", "--metrics", "127.0.0.1:9464", "--couple", "auto"),
            port=80,
            namespace=host,
            prefix=traced("net_bind_service", place),
            owner="nobody",
        ) as relay,
    ):
        with host.connect(("127.0.0.1", 80)) as client:
            exchange(client, get(1))
        assert b"X-Script: was here\r\n" in upstream.streams[0]
        assert "gopher_" in curl("http://127.0.0.1:9464/metrics", namespace=host)
        found = list(rights(relay.pid))
    assert all(each == no_rights(bounding=each["CapBnd"]) for each in found), found
    assert_within(RELAY, place)


def test_trace_of_what_is_not_allowed_is_found(place):
    (Path(place) / "trace").write_text("1 capset(0x1, 0x2) = 0\n1 reboot(0x1) = -1 EPERM\n")
    with pytest.raises(AssertionError, match="reboot"):
        assert_within(CAPTURE, place)
