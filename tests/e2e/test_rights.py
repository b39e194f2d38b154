"""What gopher may do, as the kernel sees it: rights given up, rights that suffice, rights that are missing."""

import grp
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest

from gopher.privileges import way_to
from tests.support.accounts import assert_all_delivered
from tests.support.certificates import Authority
from tests.support.clients import curl, exchange, get, receive_exactly
from tests.support.command import OWN_COMMAND, GopherProcess, assert_clean, run_gopher
from tests.support.relay import RelayProcess
from tests.support.rights import AS_NOBODY, NOBODY, REACHABLE, ROOT, no_rights, rights, with_capability
from tests.support.servers import ANSWER, PRODUCTION, RecordingSink, assert_mirrored

pytestmark = pytest.mark.e2e

SHADOW = ("127.0.0.1", 3280)
# A name, so that it has to be looked up, which takes a thread.
CAPTURE = ("-c", "-p", "80", "-i", "lo", "-u", "localhost:3280")


@pytest.fixture
def shadow(host):
    with RecordingSink(SHADOW, namespace=host) as sink:
        yield sink


def mirror_one_request(host, production, shadow):
    with host.connect(PRODUCTION) as client:
        exchange(client, get(1))
        shadow.wait_requests(1)
    assert_mirrored(production, shadow)


@pytest.mark.parametrize(
    ("user", "uid", "gid"),
    [
        ("nobody", NOBODY.pw_uid, NOBODY.pw_gid),
        ("nobody:daemon", NOBODY.pw_uid, grp.getgrnam("daemon").gr_gid),
        ("4711:4712", 4711, 4712),
    ],
)
def test_capture_gives_up_root(host, production, shadow, user, uid, gid):
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, uid, gid)
        kept = Path(place) / "kept.pcap"
        with GopherProcess(
            *CAPTURE, "--user", user, "--write", str(kept), namespace=host, prefix=REACHABLE, owner=uid
        ) as gopher_process:
            assert list(rights(gopher_process.pid)) == [no_rights(uid, gid)]
            mirror_one_request(host, production, shadow)
            report = gopher_process.stop()
        assert (kept.stat().st_uid, kept.stat().st_gid) == (uid, gid)
        assert get(1) in kept.read_bytes()
    assert_all_delivered(report)


def test_metrics_are_served_from_a_port_that_needs_rights(host, production, shadow):
    with GopherProcess(
        *CAPTURE, "--user", "nobody", "--metrics", "127.0.0.1:81", namespace=host, prefix=REACHABLE, owner="nobody"
    ) as gopher_process:
        mirror_one_request(host, production, shadow)
        scraped = curl("http://127.0.0.1:81/metrics", namespace=host)
        assert list(rights(gopher_process.pid)) == [no_rights()]
    # Of the process itself, which after a change of users is no longer the owner of its files in /proc.
    assert "process_open_fds" in scraped
    assert "gopher_captured_bytes_total" in scraped


SCRIPT = """
import os

LOADED_BY = os.getresuid()

def request(exchange):
    exchange.request.headers["X-Uids"] = f"{LOADED_BY} {os.getresuid()}"
"""


def test_relay_gives_up_root_before_it_loads_scripts(host):
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        script = Path(place) / "script.py"
        script.write_text(SCRIPT)
        with (
            RecordingSink(SHADOW, namespace=host) as upstream,
            RelayProcess(
                "localhost:3280",
                options=("--user", "nobody", "--script", str(script)),
                port=80,
                namespace=host,
                prefix=REACHABLE,
                owner="nobody",
            ) as relay,
        ):
            with host.connect(PRODUCTION) as client:
                client.sendall(get(1))
                receive_exactly(client, len(ANSWER))
            found = list(rights(relay.pid))
            assert b"X-Uids: (65534, 65534, 65534) (65534, 65534, 65534)\r\n" in upstream.streams[0]
    # The script's function runs in a thread, which is kept for the next call.
    assert len(found) == 2
    assert all(each == no_rights() for each in found)


def test_relay_reads_keys_and_certificates_before_it_gives_up_root(host, tmp_path):
    # The directory is for root alone.
    authority = Authority(tmp_path)
    certificates = ("--tls-ca", str(authority.ca), "--tls-cert", str(authority.issue("relay")))
    with RelayProcess(
        "tls://localhost:3280",
        options=("--user", "nobody", *certificates),
        port=80,
        namespace=host,
        prefix=REACHABLE,
        owner="nobody",
    ) as relay:
        assert all(each == no_rights() for each in rights(relay.pid))


def test_net_raw_alone_suffices_and_is_given_up(host, production, shadow):
    with GopherProcess(*CAPTURE, namespace=host, prefix=with_capability("net_raw"), owner="nobody") as gopher_process:
        [found] = rights(gopher_process.pid)
        mirror_one_request(host, production, shadow)
    # Without CAP_SETPCAP the bounding set stays; with no_new_privs nothing comes from it.
    assert found == no_rights(bounding=found["CapBnd"])
    assert_all_delivered(gopher_process.report)


@pytest.mark.parametrize("sets", ["ep", "p"])
def test_net_raw_of_an_interpreter_file_suffices_and_is_given_up(host, production, shadow, sets):
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        venv.create(place, symlinks=False)
        python = Path(place) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        [packages] = Path(place).glob("lib/python*/site-packages")
        [dependencies] = [each for each in sys.path if each.endswith("site-packages")]
        (packages / "tests.pth").write_text(f"{dependencies}\n")
        # What the error's hint tells to do, with this path.
        subprocess.run(["setcap", f"cap_net_raw+{sets}", python.resolve()], check=True)
        command = (str(python), *OWN_COMMAND[1:])
        with GopherProcess(
            *CAPTURE, namespace=host, prefix=AS_NOBODY, owner="nobody", command=command
        ) as gopher_process:
            [found] = rights(gopher_process.pid)
            mirror_one_request(host, production, shadow)
    assert found == no_rights(bounding=found["CapBnd"])
    assert_all_delivered(gopher_process.report)


def test_root_without_a_user_stays_root(host, production, shadow):
    with GopherProcess(*CAPTURE, namespace=host) as gopher_process:
        [found] = rights(gopher_process.pid)
    assert found["Uid"] == ["0"] * 4
    assert found["CapEff"] != ["0000000000000000"]


INTERPRETER = os.path.realpath(sys.executable)


@pytest.mark.parametrize(
    ("restricted", "said"),
    [
        (
            (),
            f"""\
gopher: error: not permitted to capture on lo: CAP_NET_RAW is missing
  hint: run it as root, or once: setcap cap_net_raw+ep {INTERPRETER}, \
or as a service with AmbientCapabilities=CAP_NET_RAW
""",
        ),
        (
            ("--no-new-privs",),
            """\
gopher: error: not permitted to capture on lo: CAP_NET_RAW is missing, and setcap has no effect on this process: \
no_new_privs is set
  hint: run it as root, or as a service with AmbientCapabilities=CAP_NET_RAW; in Kubernetes, \
allowPrivilegeEscalation: true lets file capabilities work
""",
        ),
        (
            ("--bounding-set", "-net_raw"),
            """\
gopher: error: not permitted to capture on lo: CAP_NET_RAW is missing, and neither root nor setcap can give it to this \
process: it is not in its bounding set
  hint: allow it from outside: docker run --cap-add NET_RAW, capabilities.add of a Kubernetes container, or \
CapabilityBoundingSet= of a service
""",
        ),
    ],
    ids=["no right", "no new rights", "not even for root"],
)
def test_refusal_to_capture_says_what_is_missing(host, restricted, said):
    done = run_gopher(*CAPTURE, namespace=host, prefix=(*AS_NOBODY, *restricted))
    assert (done.returncode, done.stderr) == (77, said)


@pytest.mark.usefixtures("_stage_possible")
def test_refusal_despite_the_right_says_so():
    """As a security module would refuse; root has the right."""
    reason, hint = way_to("CAP_NET_RAW")
    assert reason == "CAP_NET_RAW is there, but something else forbids it"
    assert "SELinux" in hint


def test_refusal_to_listen_says_what_is_missing(host):
    done = run_gopher("-r", "-p", "80", "-u", "127.0.0.1:3280", namespace=host, prefix=AS_NOBODY)
    assert done.returncode == 1
    assert done.stderr == (
        "gopher: error: cannot listen on port 80: not permitted: CAP_NET_BIND_SERVICE is missing\n"
        "  hint: give another one with -p or --listen, from 1024 on; or run it as root, or once: "
        f"setcap cap_net_bind_service+ep {INTERPRETER}, or as a service with AmbientCapabilities=CAP_NET_BIND_SERVICE\n"
    )


@pytest.mark.parametrize("mode", [("-c", "-i", "lo"), ("-r",)], ids=["capture", "relay"])
@pytest.mark.parametrize(
    ("user", "error", "hint"),
    [
        ("nobdy", "there is no user 'nobdy' on this machine", "did you mean nobody?"),
        ("qqqqqq", "there is no user 'qqqqqq' on this machine", "make it with: useradd --system qqqqqq"),
        ("nobody:nogruop", "there is no group 'nogruop' on this machine", "did you mean nogroup?"),
        ("4711", "user 4711 has no entry and so no group of its own", "give a group too, like 4711:4711"),
        ("4294967295:1", "there is no user '4294967295' on this machine", "make it with: useradd --system 4294967295"),
        ("root", "that is root, and nothing would be given up", "name another user"),
        ("0:0", "that is root, and nothing would be given up", "name another user"),
    ],
)
def test_user_that_cannot_be_is_refused(host, mode, user, error, hint):
    done = run_gopher(*mode, "-p", "80", "-u", "127.0.0.1:3280", "--user", user, namespace=host)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first == f"gopher: error: --user {user}: {error}"
    assert second.startswith(f"  hint: {hint}")


def test_only_root_can_change_users(host):
    done = run_gopher(*CAPTURE, "--user", "daemon", namespace=host, prefix=with_capability("net_raw"))
    assert done.returncode == 2
    assert done.stderr == (
        "gopher: error: --user daemon: not permitted to change users: CAP_SETUID and CAP_SETGID missing\n"
        "  hint: start gopher as root, or leave --user out: capabilities are given up without it too\n"
    )


def test_user_who_may_not_read_gopher_is_refused(host, tmp_path):
    # As if it were installed in root's home.
    shutil.copytree(ROOT / "gopher", tmp_path / "gopher")
    tmp_path.chmod(0o700)
    done = run_gopher(
        *CAPTURE, "--user", "nobody", namespace=host, prefix=(*REACHABLE, "env", "--chdir=/", f"PYTHONPATH={tmp_path}")
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"gopher: error: --user nobody: that user may not read {tmp_path}/gopher/__init__.py, and gopher needs it"
    )


@pytest.mark.parametrize(
    ("option", "status", "said"),
    [
        ("--report", 2, "the report cannot be written to {}: it belongs to another user"),
        ("--write", 1, "cannot write {}: Permission denied"),
    ],
)
def test_files_that_the_new_user_may_not_write_are_refused_at_the_start(host, option, status, said):
    # Root's, in a directory where everybody may write, but nobody may touch what is not theirs.
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o1777)
        path = Path(place) / "accounts"
        path.write_text("older")
        done = run_gopher(*CAPTURE, "--user", "nobody", option, str(path), namespace=host, prefix=REACHABLE)
        assert path.read_text() == "older"
    assert done.returncode == status
    assert_clean(done.stderr)
    assert said.format(path) in done.stderr
    assert "capturing" not in done.stderr


DROP = """
import os, sys, threading
from gopher import _rights
from gopher.errors import GopherError
from gopher.privileges import drop_rights, find_user
{}
try:
    drop_rights(find_user("nobody"))
except GopherError as error:
    sys.exit(f"{{error}} ({{error.exit_status}})")
"""


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "1 more threads run"),
        ("_rights.clear_bounding_set = lambda: None", "it still has capabilities "),
        ("_rights.forbid_new_privileges = lambda: None", "it may get new ones"),
        ("os.setgroups([1]); os.setgroups = lambda groups: None", "it still is in groups (1,)"),
        ("os.setresgid = lambda *gids: None", "it still has users [65534] and groups [0]"),
        ("os.setresuid = lambda *uids: None", "it still has users [0] and groups [65534]"),
        ("os.setgroups = lambda groups: os.chroot('')", "No such file or directory"),
    ],
)
def test_rights_that_stay_are_fatal(broken, said):
    """As the command would end: one sentence, status 1. These things cannot be made to fail but by hand."""
    done = subprocess.run(
        [sys.executable, "-c", DROP.format(broken)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"rights could not be given up: {said}")
    assert done.stderr.endswith(" (1)\n")
