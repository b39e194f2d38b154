"""The image, built from the Dockerfile and run as docs/operations.md and the DaemonSet say.

Not on python:3.13-slim-bookworm, for which a registry would have to be there: on Debian with its own Python, which has
what the Dockerfile uses of it. Podman stands in for Docker, with the capabilities that Docker gives.
"""

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

import gopher
from tests.support.accounts import only_upstream
from tests.support.clients import curl, exchange, get
from tests.support.command import GopherProcess
from tests.support.needs import need, need_namespaces
from tests.support.netns import Namespace
from tests.support.relay import RelayProcess
from tests.support.rights import ROOT, no_rights, rights
from tests.support.servers import RecordingSink

BUILD_S = 600
RUN_S = 60
# With Debian's Python, of which /opt/gopher has copies; on the Dockerfile's base it is half of it.
LARGEST_MB = 70
# To another user than root Podman would give --cap-add as ambient capabilities, which need nothing of the image. Those
# that a container has by default it gives as Docker gives all: in the bounding set. The limits that it would otherwise
# set take CAP_SYS_RESOURCE, which not every machine has.
SETTINGS = """
[containers]
default_capabilities = [{capabilities}]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
"""
NAME = "gopher-under-test"
FORBID = "--security-opt=no-new-privileges"
CAP_NET_RAW = 13


class Podman:
    """Podman with images and containers of its own, in `place`."""

    def __init__(self, place):
        self._place = place
        places = ("--root", f"{place}/storage", "--runroot", f"{place}/run", "--tmpdir", f"{place}/tmp")
        self._argv = ("env", f"TMPDIR={place}", "podman", *places)

    def __call__(self, *arguments):
        done = subprocess.run([*self._argv, *arguments], capture_output=True, text=True, timeout=BUILD_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def run(self, *options, capability="", namespace=None):
        """The command line of `docker run --cap-drop ALL --cap-add CAPABILITY gopher`, up to the image's name."""
        settings = self._place / f"with-{capability}.conf"
        settings.write_text(SETTINGS.format(capabilities=f'"{capability}"' if capability else ""))
        network = f"ns:/run/netns/{namespace.name}" if namespace else "none"
        # For the report.
        files = f"--volume={tempfile.gettempdir()}:{tempfile.gettempdir()}"
        own = ("run", "--rm", f"--name={NAME}", "--network", network, files)
        return ("env", f"CONTAINERS_CONF={settings}", *self._argv, *own, *options, "gopher")

    def pid(self):
        return int(self("inspect", "--format={{.State.Pid}}", NAME))


@pytest.fixture(scope="module")
def podman():
    need("mmdebstrap", "podman", "runc")
    need_namespaces()
    # In memory: a package manager waits for the disk after every file.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        podman = Podman(Path(place))
        base = f"{place}/base.tar"
        # Without what the images of Docker's library do without, too.
        smaller = ("--variant=minbase", '--aptopt=Dir::Cache::pkgcache ""', '--aptopt=Dir::Cache::srcpkgcache ""')
        python = "--include=python-is-python3,python3-dev,python3-venv"
        command = ("env", f"TMPDIR={place}", "mmdebstrap", "--quiet", *smaller, python, "bookworm", base)
        subprocess.run(command, check=True, timeout=BUILD_S)
        podman("import", base, "base")
        Path(base).unlink()
        # Not every machine lets a container be made in it.
        tried = run((*podman.run()[:-1], "base", "true"))
        if tried.returncode:
            pytest.skip(f"podman can run no container: {tried.stderr}")
        # What pip needs on this machine to reach an index, it needs in the build, too.
        files = [file for file in ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt") if Path(file).exists()]
        volumes = [f"--volume={file}:{file}:ro" for file in files]
        # All cores.
        parallel = Path(place) / "parallel.cfg"
        parallel.write_text(f"[build_ext]\nparallel = {os.cpu_count()}\n")
        volumes.append(f"--volume={parallel}:/root/.pydistutils.cfg:ro")
        build = ("build", "--build-arg=BASE=localhost/base", "--pull=never", "--network=host", "--isolation=chroot")
        podman(*build, *volumes, "--tag=gopher", str(ROOT))
        yield podman
        # Of a test that failed; it keeps the directory mounted.
        podman("rm", "--all", "--force")


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


def test_image_is_small(podman):
    size, base = (int(podman("image", "inspect", "--format={{.Size}}", image)) for image in ("gopher", "base"))
    assert (size - base) / 1e6 < LARGEST_MB
    shown = run((*podman.run("--entrypoint=sh"), "-c", "command -v gcc pip; ls /opt/gopher/bin /src"))
    assert not {"gcc", "pip", "setup.py"} & set(shown.stdout.split())


def test_image_tells_its_version_and_its_help(podman):
    assert run((*podman.run(), "--version")).stdout == f"gopher {gopher.__version__}\n"
    assert run(podman.run()).stdout.startswith("usage: gopher")


def test_image_captures_as_nobody_with_one_capability_which_it_gives_up(podman, host):
    with mirroring(host, podman.run(capability="NET_RAW", namespace=host)):
        found = list(rights(podman.pid()))
    # In no other group than the one of its user.
    wanted = {**no_rights(bounding=[f"{1 << CAP_NET_RAW:016x}"]), "Groups": ["65534"]}
    assert all(each == wanted for each in found), found


def test_capability_is_of_no_other_program(podman, host):
    other = podman.run("--entrypoint=/opt/gopher/bin/python3", capability="NET_RAW", namespace=host)
    done = run((*other, "-I", "-m", "gopher", *CAPTURE))
    assert done.returncode == 77
    assert "CAP_NET_RAW is missing" in done.stderr


def test_image_says_which_capability_is_missing(podman, host):
    done = run((*podman.run(namespace=host), *CAPTURE))
    assert done.returncode == 77
    assert "CAP_NET_RAW is missing" in done.stderr
    assert "docker run --cap-add NET_RAW" in done.stderr


def test_where_new_privileges_are_forbidden_root_of_the_container_captures(podman, host):
    settings = {"capability": "NET_RAW", "namespace": host}
    done = run((*podman.run(FORBID, **settings), *CAPTURE))
    assert done.returncode == 77
    assert "no_new_privs is set" in done.stderr
    with mirroring(host, podman.run(FORBID, "--user=0", **settings), owner="root"):
        pass


@pytest.mark.parametrize(("port", "capability"), [(3280, ""), (80, "NET_BIND_SERVICE")])
def test_image_relays(podman, host, port, capability):
    command = podman.run(capability=capability, namespace=host)
    with (
        RecordingSink(("127.0.0.1", 8080), namespace=host) as upstream,
        RelayProcess("localhost:8080", port=port, command=command, owner="nobody"),
        host.connect(("127.0.0.1", port)) as client,
    ):
        exchange(client, get(1))
    assert upstream.streams == [get(1)]


def test_image_captures_as_the_daemonset_starts_it(podman, host):
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
    with mirroring(host, podman.run(*options, capability=capability, namespace=host), (*arguments, *own)):
        assert curl(f"http://{probe['host']}:{probe['port']}{probe['path']}", namespace=host) == "ok\n"
