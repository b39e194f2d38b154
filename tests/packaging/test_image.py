"""The image, built from the Dockerfile and run as docs/operations.md and the DaemonSet say.

Podman stands in for Docker, with the capabilities that Docker gives.
"""

import subprocess
from contextlib import contextmanager

import pytest
import yaml

import gopher
from tests.support.accounts import only_upstream
from tests.support.clients import curl, exchange, get
from tests.support.command import GopherProcess
from tests.support.netns import Namespace
from tests.support.podman import BUILD
from tests.support.relay import RelayProcess
from tests.support.rights import ROOT, no_rights, rights
from tests.support.servers import RecordingSink

RUN_S = 60
# With Debian's Python, of which /opt/gopher has copies; on the Dockerfile's base it is half of it.
LARGEST_MB = 70
NAME = "gopher-under-test"
FORBID = "--security-opt=no-new-privileges"
CAP_NET_RAW = 13


def starting(docker, *options, capability="", namespace=None):
    """The command line of `docker run --cap-drop ALL --cap-add CAPABILITY gopher`, up to the image's name.

    To another user than root Podman would give --cap-add as ambient capabilities, which need nothing of the image.
    Those that a container has by default it gives as Docker gives all: in the bounding set.
    """
    network = f"ns:/run/netns/{namespace.name}" if namespace else "none"
    own = ("run", "--rm", f"--name={NAME}", "--network", network)
    return docker.command(*own, *options, "gopher", capability=capability)


@pytest.fixture
def host():
    with Namespace("host") as namespace:
        yield namespace


def run(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)


CAPTURE = ("--mode=capture", "--interface=lo", "--port=8080", "--upstream=localhost:3280")


@contextmanager
def mirroring(host, command, arguments=CAPTURE, owner="nobody"):
    """While the image's gopher runs and has mirrored a request."""
    with (
        RecordingSink(("127.0.0.1", 8080), namespace=host) as production,
        RecordingSink(("127.0.0.1", 3280), namespace=host) as shadow,
        GopherProcess(*arguments, command=command, owner=owner) as mirror,
    ):
        with host.connect(("127.0.0.1", 8080)) as client:
            exchange(client, get(1))
            shadow.wait_requests(1)
        yield
        report = mirror.stop()
    assert shadow.streams == production.streams == [get(1)]
    assert only_upstream(report)["delivered_bytes"] == len(get(1))


def test_image_is_built_as_documented():
    assert f"    {BUILD}\n" in (ROOT / "docs/operations.md").read_text()


def test_image_is_small(docker):
    size, base = (int(docker("image", "inspect", "--format={{.Size}}", image)) for image in ("gopher", docker.base))
    assert (size - base) / 1e6 < LARGEST_MB
    shown = run((*starting(docker, "--entrypoint=sh"), "-c", "command -v gcc pip; ls /opt/gopher/bin /src"))
    assert not {"gcc", "pip", "setup.py"} & set(shown.stdout.split())


def test_image_tells_its_version_and_its_help(docker):
    assert run((*starting(docker), "--version")).stdout == f"gopher {gopher.__version__}\n"
    assert run(starting(docker)).stdout.startswith("usage: gopher")


def test_image_captures_as_nobody_with_one_capability_which_it_gives_up(docker, host):
    with mirroring(host, starting(docker, capability="NET_RAW", namespace=host)):
        found = list(rights(int(docker("inspect", "--format={{.State.Pid}}", NAME))))
    # In no other group than the one of its user.
    wanted = {**no_rights(bounding=[f"{1 << CAP_NET_RAW:016x}"]), "Groups": ["65534"]}
    assert all(each == wanted for each in found), found


def test_capability_is_of_no_other_program(docker, host):
    other = starting(docker, "--entrypoint=/opt/gopher/bin/python3", capability="NET_RAW", namespace=host)
    done = run((*other, "-I", "-m", "gopher", *CAPTURE))
    assert done.returncode == 77
    assert "CAP_NET_RAW is missing" in done.stderr


def test_image_says_which_capability_is_missing(docker, host):
    done = run((*starting(docker, namespace=host), *CAPTURE))
    assert done.returncode == 77
    assert "CAP_NET_RAW is missing" in done.stderr
    assert "docker run --cap-add NET_RAW" in done.stderr


def test_where_new_privileges_are_forbidden_root_of_the_container_captures(docker, host):
    settings = {"capability": "NET_RAW", "namespace": host}
    done = run((*starting(docker, FORBID, **settings), *CAPTURE))
    assert done.returncode == 77
    assert "no_new_privs is set" in done.stderr
    with mirroring(host, starting(docker, FORBID, "--user=0", **settings), owner="root"):
        pass


@pytest.mark.parametrize(("port", "capability"), [(3280, ""), (80, "NET_BIND_SERVICE")])
def test_image_relays(docker, host, port, capability):
    command = starting(docker, capability=capability, namespace=host)
    with (
        RecordingSink(("127.0.0.1", 8080), namespace=host) as upstream,
        RelayProcess("localhost:8080", port=port, command=command, owner="nobody"),
        host.connect(("127.0.0.1", port)) as client,
    ):
        exchange(client, get(1))
    assert upstream.streams == [get(1)]


def test_image_captures_as_the_daemonset_starts_it(docker, host):
    pod = yaml.safe_load((ROOT / "packaging/kubernetes/daemonset.yaml").read_text())["spec"]["template"]["spec"]
    [container] = pod["containers"]
    context = {**pod["securityContext"], **container["securityContext"]}
    options = [f"--user={context['runAsUser']}:{context['runAsGroup']}"]
    options += ["--read-only"] * context["readOnlyRootFilesystem"]
    options += [FORBID] * (not context["allowPrivilegeEscalation"])
    [capability] = context["capabilities"]["add"]
    # Its upstream is a name of the cluster's, and a tenth of one client may be none.
    own = ("--upstream=localhost:3280", "--sample=100%")
    arguments = [each for each in container["args"] if not each.startswith(("--upstream=", "--sample="))]
    probe = container["livenessProbe"]["httpGet"]
    with mirroring(host, starting(docker, *options, capability=capability, namespace=host), (*arguments, *own)):
        assert curl(f"http://{probe['host']}:{probe['port']}{probe['path']}", namespace=host) == "ok\n"
