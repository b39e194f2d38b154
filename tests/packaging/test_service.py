"""The units under a real systemd, with the wheel in /opt/gopher as docs/operations.md says.

systemd is the first process of a container whose files are this machine's; what is written stays in memory. Not shown:
the limits of CPU and memory, for whose cgroups a container may have no right.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.support import dist
from tests.support.accounts import assert_accounts, only_upstream
from tests.support.clients import exchange, get
from tests.support.needs import need, need_namespaces
from tests.support.netns import Namespace
from tests.support.pages import blocks
from tests.support.rights import ROOT, no_rights, rights
from tests.support.servers import RecordingSink

START_S = 60.0
CAPTURE, RELAY, WRONG = "gopher-capture@store", "gopher-relay@front", "gopher-capture@wrong"
OPTIONS = {
    "store": "--port 80 --interface lo --upstream localhost:3280 --report report.json",
    "front": "--port 80 --upstream localhost:3280",
    "wrong": "--port 80 --interface lo",
}
# What takes 30 s of watchdog and 5 s of pause takes long enough with these.
SOONER = "[Service]\nWatchdogSec=2s\nRestartSec=100ms\n"
CAP_NET_RAW, CAP_NET_BIND_SERVICE = 13, 10
# There, where systemd puts nothing of its own over it, as over /tmp.
CHECKOUT = "/srv/gopher"
# In a mount namespace of its own, so that nothing remains, also of what systemd-nspawn leaves in /run. /opt/gopher is
# made as docs/operations.md says. Up to sysinit.target: what else this machine would start is not started.
BOOT = """
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount --bind "$1/root/opt" /opt
"$2" -m venv --copies --clear /opt/gopher
/opt/gopher/bin/pip install --quiet --no-warn-script-location "$3"
exec 3<"/run/netns/$4"
mount -t tmpfs tmpfs /run
exec nsenter --net=/proc/self/fd/3 systemd-nspawn --quiet --directory="$1/root" --machine=gopher --boot \\
    --register=no --keep-unit --console=pipe -- --unit=sysinit.target
"""


def interpreter():
    """The Python of the tests, or Debian's of the same version: services see no home directories."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = [Path(sys.base_prefix) / "bin" / f"python{version}", Path("/usr/bin") / f"python{version}"]
    usable = [path for path in found if path.exists() and path.resolve().parts[1] not in ("root", "home")]
    if not usable:
        pytest.skip(f"no Python {version} but in a home directory")
    return usable[0]


class Machine:
    """What systemd is told, by its own commands."""

    def __init__(self, pid, namespace):
        self._pid = pid
        self.namespace = namespace

    def run(self, *command, check=True, directory="/"):
        done = subprocess.run(
            ["nsenter", f"--target={self._pid}", "--all", f"--wdns={directory}", *command],
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.journal()}"
        return done

    def systemctl(self, *arguments, check=True):
        return self.run("systemctl", *arguments, check=check)

    def show(self, unit, name):
        return self.systemctl("show", f"--property={name}", "--value", unit).stdout.strip()

    def journal(self):
        return self.run("journalctl", "--no-pager", "--boot", "--unit=gopher-*", check=False).stdout

    def wait(self, condition, what):
        deadline = time.monotonic() + START_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {START_S} s: {what}\n{self.journal()}"
            time.sleep(0.05)

    def wait_journal(self, text):
        self.wait(lambda: text in self.journal(), text)

    def rights(self, unit):
        """Of the threads of the unit's main process, whose id is another one outside."""
        main = self.show(unit, "MainPID")
        [pid] = [
            pid
            for pid in children(self._pid)
            if f"\nNSpid:\t{pid}\t{main}\n" in Path(f"/proc/{pid}/status").read_text()
        ]
        return list(rights(pid))

    def path(self, path):
        return Path(f"/proc/{self._pid}/root") / path.lstrip("/")


def children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def machine():
    need("nsenter", "systemd-nspawn", "unshare")
    need_namespaces()
    python = interpreter()
    wheel = dist.wheel()
    # An overlay cannot write onto another one, which /tmp may be on.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place, Namespace("machine") as namespace:
        upper = Path(place) / "upper"
        etc = upper / "etc"
        for directory in ("root", "work", "upper/etc/gopher", f"upper/etc/systemd/system/{CAPTURE}.service.d"):
            (Path(place) / directory).mkdir(parents=True)
        shutil.copytree(ROOT / "packaging/systemd", Path(f"{upper}{CHECKOUT}/packaging/systemd"))
        for unit in (ROOT / "packaging/systemd").iterdir():
            (etc / "systemd/system" / unit.name).write_text(unit.read_text())
        (etc / f"systemd/system/{CAPTURE}.service.d/sooner.conf").write_text(SOONER)
        for name, options in OPTIONS.items():
            (etc / f"gopher/{name}.env").write_text(f"OPTIONS={options}\n")
        hosts = Path("/etc/hosts").read_text()
        (etc / "hosts").write_text(f"{hosts}\n127.0.0.2 machineB\n")
        # A machine of its own.
        (etc / "machine-id").touch()
        shell = ("unshare", "--mount", "sh", "-euc", BOOT, "sh", place, str(python), str(wheel), namespace.name)
        with (Path(place) / "console").open("w+") as console:
            manager = subprocess.Popen(shell, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
            try:
                yield booted(manager, namespace, console)
            finally:
                # An orderly end; the second time at once.
                manager.terminate()
                try:
                    manager.wait(START_S)
                except subprocess.TimeoutExpired:
                    manager.kill()
                    manager.wait()


def booted(manager, namespace, console):
    """Wait until systemd has come up. Not every machine lets it be the first process of a container."""
    deadline = time.monotonic() + START_S
    prepared = False
    while True:
        console.seek(0)
        if manager.poll() is not None:
            (pytest.skip if prepared else pytest.fail)(f"systemd-nspawn ended: {console.read()}")
        assert time.monotonic() < deadline, console.read()
        prepared = Path(f"/proc/{manager.pid}/comm").read_text() == "systemd-nspawn\n"
        if prepared and (inside := children(manager.pid)):
            machine = Machine(inside[0], namespace)
            if machine.systemctl("is-active", "sysinit.target", check=False).stdout == "active\n":
                return machine
        time.sleep(0.05)


@pytest.fixture
def production(machine):
    with RecordingSink(("127.0.0.1", 80), namespace=machine.namespace) as sink:
        yield sink


@pytest.fixture
def shadow(machine):
    with RecordingSink(("127.0.0.1", 3280), namespace=machine.namespace) as sink:
        yield sink


def request(machine, number, port=80):
    with machine.namespace.connect(("127.0.0.1", port)) as client:
        exchange(client, get(number))


def test_service_captures_reloads_is_watched_and_ends(machine, production, shadow):
    machine.systemctl("start", CAPTURE)
    assert machine.show(CAPTURE, "ActiveState") == "active"
    assert machine.show(CAPTURE, "StatusText") == "capturing on lo, tcp port 80, to 1 upstream"
    request(machine, 1)
    shadow.wait_requests(1)
    found = machine.rights(CAPTURE)
    uid = int(found[0]["Uid"][0])
    # "UID/GID … from the range 61184…65519", systemd.exec(5), DynamicUser=.
    assert 61184 <= uid <= 65519
    wanted = no_rights(uid, uid, bounding=[f"{1 << CAP_NET_RAW:016x}"])
    assert all(each == {**wanted, "Groups": [str(uid)]} for each in found), found

    pid = machine.show(CAPTURE, "MainPID")
    machine.systemctl("reload", CAPTURE)
    machine.wait_journal("gopher: reloaded: to 1 upstream")
    assert (machine.show(CAPTURE, "ActiveState"), machine.show(CAPTURE, "MainPID")) == ("active", pid)

    machine.systemctl("kill", "--signal=STOP", CAPTURE)
    machine.wait(lambda: machine.show(CAPTURE, "NRestarts") == "1", "the watchdog")
    machine.wait(lambda: machine.show(CAPTURE, "ActiveState") == "active", "the new start")
    machine.wait_journal("Watchdog timeout")
    request(machine, 2)
    shadow.wait_requests(2)

    machine.systemctl("stop", CAPTURE)
    assert (machine.show(CAPTURE, "ActiveState"), machine.show(CAPTURE, "Result")) == ("inactive", "success")
    machine.wait_journal("captured = delivered + shed + pending: it adds up")
    report = json.loads(machine.path("/var/lib/private/gopher/store/report.json").read_text())
    assert_accounts(report)
    assert only_upstream(report)["delivered_bytes"] == len(get(2))
    assert machine.run("pgrep", "gopher", check=False).stdout == ""


def test_service_relays_on_a_port_below_1024(machine, shadow):
    machine.systemctl("start", RELAY)
    request(machine, 1)
    found = machine.rights(RELAY)
    uid = int(found[0]["Uid"][0])
    wanted = no_rights(uid, uid, bounding=[f"{1 << CAP_NET_BIND_SERVICE:016x}"])
    assert all(each == {**wanted, "Groups": [str(uid)]} for each in found), found
    machine.systemctl("reload", RELAY)
    machine.systemctl("stop", RELAY)
    assert machine.show(RELAY, "Result") == "success"
    assert shadow.streams == [get(1)]


def test_service_with_wrong_options_is_not_started_again(machine):
    assert machine.systemctl("start", WRONG, check=False).returncode != 0
    shown = {name: machine.show(WRONG, name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")}
    assert shown == {"ActiveState": "failed", "ExecMainStatus": "2", "NRestarts": "0"}


def test_documented_commands_start_a_service(machine, production):
    """Those that tests/docs/test_shell.py cannot type, for want of a service manager."""
    [commands] = [block.text for block in blocks(ROOT / "docs/operations.md") if "systemctl" in block.text]
    with RecordingSink(("127.0.0.2", 3280), namespace=machine.namespace) as shadow:
        machine.run("sh", "-euc", commands, directory=CHECKOUT)
        unit = "gopher-capture@shop"
        shown = machine.systemctl("status", unit).stdout
        assert "enabled" in shown
        assert 'Status: "capturing on any, tcp port 80, to 1 upstream"' in shown
        request(machine, 1)
        shadow.wait_requests(1)
        machine.systemctl("stop", unit)
    assert machine.show(unit, "Result") == "success"
    assert shadow.streams == production.streams == [get(1)]
