"""Every shell block of the README and the documentation is typed, line by line, on a machine made for it.

Each page has a machine of its own (`tests.support.stage`), where its blocks are typed in order. A gopher that runs
until it is interrupted is: it has to become ready, to mirror what clients then send, to end with status 0 at SIGINT,
and to have accounts that add up. Lines that follow in its block are typed while it runs. The tour is typed by
test_tour.py.

Those for a container engine or a cluster are typed by tests of their own: `docker` is Podman, and kubectl talks with a
stand-in (`tests.support.cluster`).
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from gopher.cli import read_plan
from gopher.config import CaptureConfig, RelayConfig
from tests.support import netns
from tests.support.accounts import assert_accounts, assert_relay_accounts
from tests.support.certificates import Authority
from tests.support.clients import exchange, get
from tests.support.cluster import Cluster
from tests.support.command import assert_clean
from tests.support.needs import need, need_modules, need_namespaces
from tests.support.pages import PAGES, ROOT, blocks
from tests.support.podman import BUILD, BUILD_S
from tests.support.relay import RelayProcess, receive_until_end
from tests.support.servers import Nginx, RecordingSink
from tests.support.stage import NAMES, Site, Stage, path_with
from tests.support.terminal import Terminal

TOUR = ROOT / "docs/tour.md"
DAEMONSET = ROOT / "packaging/kubernetes/daemonset.yaml"
# The same block on several pages is typed on the last one.
BLOCKS = list({block.text: block for page in PAGES for block in blocks(page) if block.language == "sh"}.values())
TYPED = sorted({block.page for block in BLOCKS} - {TOUR})

# What needs more than a machine: where it is typed.
ELSEWHERE = {
    "docker": "test_containers_do_what_they_should",
    "kubectl": "test_cluster_gets_what_it_should",
    "systemctl": "tests/packaging/test_service.py, for it needs a service manager that runs",
}
PROGRAMS = ("curl", "ip", "make", "nginx", "pidof", "setcap", "setpriv", "tcpdump")
# Of these make only says what it would do: whoever runs this test has typed the first, which does the second.
ONLY_SAID = ("make test", "make wheel")
ENDS_BY_ITSELF = {"--version", "--check-config", "--read"}
# What a line says, and what a gopher that runs says to it.
SAYS = {"curl": "gopher_captured_bytes_total", "grep": "CapEff:\t0000000000000000\n"}
TELLS_GOPHER = {"kill -USR1": "it adds up", "kill -HUP": "gopher: reloaded: "}
STANDBY = "gopher --config gopher.toml --user nobody"
# What comes before or after a line that begins like this: another machine has no gopher yet, and whoever has been given
# a right by the file captures.
BEFORE = {"/opt/gopher/bin/pip install dist/": "/opt/gopher/bin/pip uninstall --yes gopher-mirror"}
AFTER = {"setcap": "setpriv --reuid nobody --regid nogroup --clear-groups gopher -c -p 80 -u machineB:3280"}
# `docker run --network container:shop`
SHOP = "shop"
COMPLETIONS = ("bash-completion/completions", "zsh/vendor-completions", "fish/vendor_completions.d")
REQUEST = b"GET /short/ HTTP/1.1\r\nHost: shop\r\n\r\n"
DEADLINE_S = 30.0
# They make an environment to build in, and a wheel: how long that takes says something of the machine only.
BUILDS = (BUILD, "/opt/gopher/bin/pip install .", "make wheel")
# For a share of the clients: as many as leave no doubt that one of a hundred is in.
CLIENTS, MANY_CLIENTS = 3, 600


# -- reading ----------------------------------------------------------------------------------------------------------


def lines_of(text):
    """Commands with their continuation lines."""
    return [line for line in re.split(r"(?<!\\)\n", text) if line.strip()]


def words_of(line):
    """Of a simple command, without its comment."""
    return shlex.split(line, comments=True)


def own_part(words):
    """What gopher is given by a command that starts it, or None."""
    if words[0] in ("nsenter", "setpriv") or words[:2] == ["docker", "run"]:
        return words[words.index("gopher") + 1 :]
    return words[1:] if words[0].rpartition("/")[2] == "gopher" else None


def shown(language, page):
    """The first such block of the page, or of all pages."""
    return next(block.text for each in (page, *PAGES) for block in blocks(each) if block.language == language)


def configuration(arguments, page, place, environment=None):
    """The settings that gopher reads from these arguments."""
    arguments = list(arguments)
    if "--config" in arguments:
        path = place / "gopher.toml"
        path.write_text(shown("toml", page))
        arguments[arguments.index("--config") + 1] = str(path)
    [mirror] = read_plan(arguments, environment or {}).mirrors
    return mirror.config


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_syntax_and_settings(block, tmp_path):
    checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    if block.page != TOUR:
        for words in map(words_of, lines_of(block.text)):
            arguments = own_part(words)
            if arguments is not None and arguments != ["--version"]:
                assert configuration(arguments, block.page, tmp_path)


def pages_with(program):
    """Those that tell to type it."""
    return sorted(
        {block.page for block in BLOCKS if any(words_of(line)[0] == program for line in lines_of(block.text))}
    )


def test_what_is_typed_elsewhere_is_there():
    assert all(map(pages_with, ELSEWHERE))


# -- the machine ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place():
    """A directory that everybody may use, with an authority that the machines trust."""
    need(*PROGRAMS)
    need_namespaces()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


@pytest.fixture(scope="module")
def authority(place):
    return Authority(place)


def with_needs(*names):
    """Installed packages and all that they need; what is not installed is for another Python or system."""
    found = {}
    names = list(names)
    while names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            each = metadata.distribution(names.pop())
            if each.name not in found:
                found[each.name] = each
                names += [re.match(r"[\w.-]+", need)[0] for need in each.requires or () if "extra ==" not in need]
    return found


def repack(package, wheels):
    """The wheel that a package was installed from, but for its scripts, which pip makes."""
    tags = [tag.split("-") for tag in re.findall(r"^Tag: (.+)$", package.read_text("WHEEL"), re.MULTILINE)]
    tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
    with ZipFile(wheels / f"{package.name.replace('-', '_')}-{package.version}-{tag}.whl", "w") as wheel:
        for path in package.files:
            if ".." not in path.parts and "__pycache__" not in path.parts:
                wheel.write(path.locate(), path)


@pytest.fixture(scope="module")
def wheels(place):
    """What pip finds instead of the network: gopher, what it needs, and what builds it."""
    directory = place / "wheels"
    directory.mkdir()
    packages = with_needs("gopher-mirror", "setuptools", "Cython")
    del packages["gopher-mirror"]
    for package in packages.values():
        repack(package, directory)
    with Stage() as stage:
        compiled_already(stage)
        build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
        stage.run(sys.executable, "-c", build, str(directory), cwd=ROOT)
    return directory


def compiled_already(stage):
    """Let builds in the checkout find what `make` has compiled, newer than all else: that takes a minute and a half."""
    library = f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    extensions = [str(path.relative_to(ROOT)) for path in (ROOT / "gopher").glob("**/*.so")]
    stage.run("install", "-D", "--directory", library, cwd=ROOT)
    stage.run("cp", "--parents", *extensions, library, cwd=ROOT)
    stage.run("find", "build/cython", "-name", "*.c", "-exec", "touch", "-d", "1 hour", "{}", "+", cwd=ROOT)
    stage.run("find", library, "-name", "*.so", "-exec", "touch", "-d", "2 hours", "{}", "+", cwd=ROOT)


@pytest.fixture
def reader(place, wheels, authority):
    with Site() as site, Stage() as stage:
        compiled_already(stage)
        stage.run("sh", "-ec", 'rm -rf dist; mkdir dist; cp "$0"/gopher_mirror-* dist', str(wheels), cwd=ROOT)
        # As if all shells were installed.
        stage.run("mkdir", "-p", *(f"/usr/share/{each}" for each in COMPLETIONS))
        with Reader(site, stage, place, authority) as reader:
            yield reader


def of_pages(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


@of_pages(TYPED)
def test_page_does_what_it_says(reader, page):
    reader.read(page, lambda word: word not in ELSEWHERE)


@of_pages(pages_with("docker"))
def test_containers_do_what_they_should(docker, reader, page):
    reader.docker = docker
    reader.read(page, lambda word: word == "docker")


@of_pages(pages_with("kubectl"))
def test_cluster_gets_what_it_should(reader, page, tmp_path):
    need("kubectl")
    need_modules("kubernetes_validate")
    config = tmp_path / "config"
    with Cluster(reader.site.production, config) as cluster:
        reader.environment |= {"KUBECONFIG": str(config), "HOME": str(tmp_path)}
        reader.read(page, lambda word: word == "kubectl")
    namespace = cluster.objects["/api/v1/namespaces/mirror"]
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "privileged"}
    daemonset = cluster.objects["/apis/apps/v1/namespaces/mirror/daemonsets/gopher"]
    assert daemonset["spec"] == yaml.safe_load(DAEMONSET.read_text())["spec"]
    # Another one would not have been taken.
    broken = yaml.safe_load(DAEMONSET.read_text().replace("hostNetwork:", "hostNetworks:"))
    assert cluster.answer("POST", "/apis/apps/v1/namespaces/mirror/daemonsets", broken)[0] == 422


# -- who reads and types ----------------------------------------------------------------------------------------------


class Started:
    """What was typed and runs: entering starts it, leaving kills it if it still runs.

    Args:
        stage: where; None for outside, where Docker's service is.
        argv: the command.
        said: a file for what it says.
        environment: all of it.
    """

    def __init__(self, stage, argv, said, environment):
        self.line = argv[-1]
        self._stage = stage
        self._argv = argv
        self._said = said
        self._environment = environment

    def __enter__(self):
        with self._said.open("w") as output:
            popen = self._stage.popen if self._stage else subprocess.Popen
            self._process = popen(
                self._argv,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self

    def __exit__(self, *exc_info):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def command(self):
        """What runs there now: at first ip, which becomes the shell, which becomes what was typed."""
        return Path(f"/proc/{self._process.pid}/cmdline").read_text().split("\0")

    @property
    def said(self):
        return self._said.read_text()

    def wait_for(self, text):
        wait_until(lambda: text in self.said or self._process.poll() is not None, lambda: f"{text!r} in\n{self.said}")
        assert text in self.said

    def interrupt(self):
        """As Ctrl-C does."""
        os.killpg(self._process.pid, signal.SIGINT)

    def wait(self):
        """Its end, which has to be a good one. Returns what it said."""
        limit_s = BUILD_S if self.line.startswith(BUILDS) else DEADLINE_S
        wait_until(lambda: self._process.poll() is not None, lambda: f"the end of\n{self.said}", limit_s)
        assert self._process.returncode == 0, self.said
        assert_clean(self.said)
        return self.said


class Watched(Started):
    """The same on a terminal, as somebody sees it."""

    def __enter__(self):
        self._terminal = Terminal(self._argv, columns=120, environment=self._environment)
        self._stage.call(self._terminal.__enter__)
        return self

    def __exit__(self, *exc_info):
        self._terminal.__exit__(*exc_info)

    @property
    def said(self):
        return "\n".join(self._terminal.history)

    def wait_for(self, text):
        self._terminal.wait(lambda lines: text in "\n".join(lines), text)

    def interrupt(self):
        self._status = self._terminal.stop(signal.SIGINT)

    def wait(self):
        assert self._status == 0, self.said
        return self.said


def wait_until(condition, what, limit_s=DEADLINE_S):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what()}"
        time.sleep(0.01)


class Files:
    """An upstream dir:PATH."""

    def __init__(self, path):
        self._path = path

    @property
    def streams(self):
        return sorted(path.read_bytes() for path in self._path.glob("*"))


@dataclass
class Gopher:
    """One that runs until it is interrupted, and what listens where it sends to."""

    started: Started
    config: CaptureConfig | RelayConfig
    where: netns.Namespace
    ends: list


class Reader:
    """Types lines. A relay is for machineB, unless it is in a container or listens on loopback only; all else for
    production's machine.

    Attributes:
        site: the network.
        docker: the command, for pages that type it.
        environment: of the shell.
    """

    def __init__(self, site, stage, place, authority):
        self.site = site
        self.docker = None
        self._stage = stage
        self._place = place
        self._authority = authority
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "GOPHER_"))},
            "PATH": path_with("/opt/gopher/bin", Path(sys.executable).parent),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_FIND_LINKS": str(place / "wheels"),
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_COMPILE": "1",
            "PIP_NO_INDEX": "1",
            "SSL_CERT_FILE": str(authority.ca),
            "TERM": "xterm",
        }
        self._serials = itertools.count(1)
        self._running = []
        # What clients have sent, as the last capture saw it.
        self._sent = []

    def __enter__(self):
        # What a gopher of a page needs while it runs.
        self._stack = contextlib.ExitStack()
        return self

    def __exit__(self, *exc_info):
        self._stack.close()

    def read(self, page, types):
        """Type the blocks of a page, but only lines whose first word is one that he types."""
        self._open(page)
        for block in (block for block in BLOCKS if block.page == page):
            self._type([line for line in lines_of(block.text) if types(words_of(line)[0])])

    def _open(self, page):
        """The files that the page shows are there."""
        self._page = page
        files = {
            "gopher.toml": shown("toml", page),
            "/etc/gopher.toml": shown("toml", page),
            "rewrite.py": shown("python", page),
        }
        for name, text in files.items():
            self._stage.path(name).write_text(text)

    def _type(self, lines):
        """Those of a block; a gopher of it runs until the next one, or to the end."""
        given = [own_part(words_of(line)) or () for line in lines]
        # Both sides of a link run at the same time. Containers are shown one by one.
        linked = not any(line.startswith("docker") for line in lines) and all(
            any(mode in each for each in given) for mode in ("-c", "-r")
        )
        for line, arguments in zip(lines, given, strict=True):
            if not arguments:
                self._other(line)
                continue
            if not linked:
                self._end()
            if "--read" in arguments:
                self._replay(line, arguments)
            elif ENDS_BY_ITSELF & set(arguments):
                assert self._finish(line)
            else:
                self._begin(line, arguments, linked=linked)
        self._end()

    # -- lines ---------------------------------------------------------------------------------------------------------

    def _start(self, line, namespace, **environment):
        argv = namespace.command("bash", "-c", line)
        kind = Watched if "--live" in line else Started
        said = self._place / f"said-{next(self._serials)}"
        variables = {**self.environment, **environment}
        stage = self._stage
        if line.startswith("docker"):
            # Its service is no part of the stage, has all of /sys, and builds with a network of its own.
            stage = None
            variables |= self.docker.environment(environment, hosts=namespace.hosts)
            own = [] if line.startswith("docker build") else ["nsenter", f"--net=/run/netns/{namespace.name}"]
            argv = [*own, "bash", "-c", line]
        return self._stack.enter_context(kind(stage, argv, said, variables))

    def _finish(self, line, **environment):
        """Type a line that ends by itself. Returns what it says."""
        return self._start(line, self.site.production, **environment).wait()

    def _other(self, line):
        """Not gopher. Who asks for one that runs gets one."""
        if "pidof -x gopher" in line and not self._running:
            self._begin(STANDBY, own_part(words_of(STANDBY)))
        if line.startswith("tcpdump"):
            tcpdump = self._start(line, self.site.production)
            tcpdump.wait_for("listening on")
            with self._mirrored(self.site.outside, self.site.production, Site.TUNNEL, (80,)):
                tcpdump.wait()
            return
        if line in ONLY_SAID:
            line += " --dry-run"
        for before in of(line, BEFORE):
            self._finish(before)
        said = self._finish(line)
        assert all(expected in said for expected in of(line, SAYS))
        for expected in of(line, TELLS_GOPHER):
            self._running[-1].started.wait_for(expected)
        for after in of(line, AFTER):
            self._begin(after, own_part(words_of(after)))

    def _replay(self, line, arguments):
        """A gopher that mirrors from a file what was captured last."""
        report = self._place / f"report-{next(self._serials)}"
        config = configuration(arguments, self._page, self._place)
        ends = self._ends(config.mirror.upstreams, config.source.ports, self.site.production)
        self._finish(line, GOPHER_REPORT=str(report), PYTHONWARNINGS="default")
        assert_accounts(json.loads(report.read_text()))
        assert_arrived(ends, self._sent, whole=True)
        self._stack.close()

    def _begin(self, line, arguments, *, linked=False):
        """A gopher that runs until it is interrupted."""
        report = str(self._place / f"report-{next(self._serials)}")
        config = configuration(arguments, self._page, self._place, {"GOPHER_REPORT": report})
        site = self.site
        if isinstance(config, RelayConfig):
            elsewhere = config.listen_host == "127.0.0.1" or line.startswith("docker")
            where = site.production if elsewhere else site.machine_b
            ends = self._ends(config.upstreams, (80,), where)
        else:
            where = site.production
            # What it sends to on a link is the relay of the same block.
            ends = [] if linked else self._ends(config.mirror.upstreams, config.source.ports, where)
        if "pidof -s shop" in line:
            shop = self._start("exec -a shop sleep infinity", site.container)
            wait_until(lambda: shop.command[0] == "shop", lambda: "the server in the container")
        if f"--network container:{SHOP}" in line:
            own = ("--detach", f"--name={SHOP}", f"--network=ns:/run/netns/{site.container.name}")
            self.docker("run", *own, self.docker.base, "sleep", "infinity", hosts=site.container.hosts)
            self._stack.callback(self.docker, "rm", "--force", "--time=0", SHOP)
        started = self._start(line, where, GOPHER_REPORT=report, PYTHONWARNINGS="default")
        self._running.append(Gopher(started, config, where, ends))
        started.wait_for("gopher: relaying on" if isinstance(config, RelayConfig) else "gopher: capturing on")

    def _end(self):
        """Send something through the gophers that run, and interrupt them."""
        relays = [each for each in self._running if isinstance(each.config, RelayConfig)]
        captures = [each for each in self._running if each not in relays]
        ends = [end for each in self._running for end in each.ends]
        if captures:
            config = captures[0].config
            inside = any(each in captures[0].started.line for each in ("nsenter", "--network container"))
            route = self._route(config.source, inside)
            whole = config.mirror.sample_ratio == 1
            with self._mirrored(*route, config.source.ports, clients=CLIENTS if whole else MANY_CLIENTS) as self._sent:
                assert_arrived(ends, self._sent, whole=whole)
        elif relays:
            self._relayed(relays[0], ends)
        for each in (*captures, *relays):
            each.started.interrupt()
            each.started.wait()
            report = json.loads(self._stage.path(each.config.report_path).read_text())
            (assert_relay_accounts if each in relays else assert_accounts)(report)
        self._running.clear()
        self._stack.close()

    # -- traffic -------------------------------------------------------------------------------------------------------

    def _ends(self, upstreams, ports, own):
        """What listens where a gopher in `own` sends to."""
        return [
            self._end_of(upstream, port, own)
            for upstream in upstreams
            for port in ([upstream.port] if upstream.port or upstream.scheme == "dir" else ports)
        ]

    def _end_of(self, upstream, port, own):
        if upstream.scheme == "dir":
            return Files(self._stage.path(upstream.path))
        host = "127.0.0.1" if upstream.host == "localhost" else NAMES.get(upstream.host, upstream.host)
        namespace = self.site.namespace_of(host, own)
        if upstream.scheme == "tls":
            certificate = self._authority.issue(upstream.host)
            place = Path(tempfile.mkdtemp(dir=self._place))
            return self._stack.enter_context(Nginx(place, [(host, port)], namespace=namespace, certificate=certificate))
        if upstream.scheme == "relay":
            behind = self._stack.enter_context(RecordingSink(("127.0.0.1", 0), namespace=namespace))
            relay = RelayProcess(behind.name, options=("--listen", host), port=port, namespace=namespace)
            self._stack.enter_context(relay)
            return behind
        return self._stack.enter_context(RecordingSink((host, port), namespace=namespace))

    def _route(self, source, inside):
        """Client, server and the server's address, for a capture there."""
        site = self.site
        if source.decap:
            return site.outside, site.production, Site.TUNNEL
        if inside or source.interface == "docker0":
            return site.production, site.container, Site.CONTAINER
        if source.interface == "eth1":
            return site.production, site.outside, Site.BACKEND
        return site.outside, site.production, Site.PRODUCTION

    @contextlib.contextmanager
    def _mirrored(self, near, far, address, ports, *, clients=CLIENTS):
        """Clients have been served. Yields what they have sent."""
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(RecordingSink((address, port), namespace=far)) for port in ports]
            for number in range(clients):
                source = f"10.78.{number // 200}.{number % 200 + 1}" if address == Site.PRODUCTION else None
                with near.connect((address, ports[number % len(ports)]), source=source) as client:
                    exchange(client, get(number))
            for server in servers:
                server.wait_ended(len(server.connections))
            yield sorted(stream for server in servers for stream in server.streams)

    def _relayed(self, relay, ends):
        """Clients of the relay itself get the upstream's answers."""
        [port] = relay.config.ports
        if relay.where is self.site.machine_b:
            near, address = self.site.outside, NAMES["machineB"]
        elif relay.config.listen_host == "127.0.0.1":
            near, address = relay.where, "127.0.0.1"
        else:
            near, address = self.site.outside, Site.PRODUCTION
        for _ in range(CLIENTS):
            with near.connect((address, port)) as client:
                client.sendall(REQUEST)
                client.shutdown(socket.SHUT_WR)
                assert receive_until_end(client).startswith(b"HTTP/1.1 200 OK\r\n")
        for end in ends:
            end.wait_requests(CLIENTS)


def of(line, table):
    """What a table has for a line."""
    return [each for begin, each in table.items() if line.startswith(begin)]


def assert_arrived(ends, sent, *, whole):
    """All of it, or a part, whole connections."""
    assert sent
    for end in ends:
        if isinstance(end, Nginx):
            end.wait_requests(len(sent))
        else:
            wait_until(partial(has_arrived, end, sent, whole), lambda end=end: f"{sent} in\n{end.streams}")


def has_arrived(end, sent, whole):
    streams = end.streams
    return streams == sent if whole else streams and {*streams} <= {*sent}
