"""Podman under Docker's name, with images and containers of its own, and the image of the Dockerfile.

Not on what Docker's library has under the name that the Dockerfile asks for, for which a registry would have to be
there: on Debian with its own Python, under the same name. It has what the Dockerfile uses of it.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.needs import need, need_namespaces, refuse
from tests.support.pages import ROOT
from tests.support.stage import path_with

BUILD = "docker build --tag gopher ."
"""As the documentation says; the rest is settings of this machine."""
BUILD_S = 600.0
_RUN_S = 60.0
# What publishes ports, where Debian has it.
_NETAVARK = Path("/usr/lib/podman/netavark")
# What the images of Docker's library do without, too.
_SMALLER = ("--variant=minbase", '--aptopt=Dir::Cache::pkgcache ""', '--aptopt=Dir::Cache::srcpkgcache ""')
_PYTHON = "--include=python-is-python3,python3-dev,python3-venv"
# What pip needs on this machine to reach an index, it needs in a build, too.
_FOR_PIP = ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
# The limits that Podman would otherwise set take CAP_SYS_RESOURCE, which not every machine has.
_SETTINGS = """
[containers]
{capabilities}
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
env = [{environment}]
volumes = ["{temporary}:{temporary}"]
base_hosts_file = "{hosts}"
[network]
network_backend = "netavark"
network_config_dir = "{place}/networks"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
"""
_IN_CONTAINERS = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHIM = """#!/bin/sh
export TMPDIR='{place}' BUILDAH_ISOLATION=chroot
case "$1" in build) shift; set -- build --network=host --pull=never {volumes} "$@" ;; esac
exec podman --root '{place}/storage' --runroot '{place}/run' --tmpdir '{place}/tmp' "$@"
"""


class Docker:
    """The command `docker`.

    Args:
        place: a directory for all that it keeps.
    """

    def __init__(self, place: Path) -> None:
        [self.base] = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        self._place = place
        self._serials = itertools.count(1)
        self._bin = place / "bin"
        self._bin.mkdir()
        volumes = [f"--volume={file}:{file}:ro" for file in _FOR_PIP if Path(file).exists()]
        shim = self._bin / "docker"
        shim.write_text(_SHIM.format(place=place, volumes=" ".join(volumes)))
        shim.chmod(0o755)

    def environment(
        self,
        inside: Mapping[str, str] | None = None,
        *,
        hosts: Path = Path("/etc/hosts"),
        capability: str | None = None,
    ) -> dict[str, str]:
        """What a shell needs, beside its own variables, to find this `docker`.

        Args:
            inside: variables of the containers that it starts.
            hosts: the names that they know.
            capability: the one that they have by default, or "" for none; else Podman's.
        """
        variables = [_IN_CONTAINERS, *(f"{name}={value}" for name, value in (inside or {}).items())]
        text = _SETTINGS.format(
            place=self._place,
            temporary=tempfile.gettempdir(),
            hosts=hosts,
            environment=", ".join(f'"{each}"' for each in variables),
            capabilities="" if capability is None else f"default_capabilities = {[capability] * bool(capability)}",
        )
        path = self._place / f"{next(self._serials)}.conf"
        path.write_text(text)
        return {"CONTAINERS_CONF": str(path), "PATH": path_with(self._bin)}

    def command(self, *arguments: str, **settings: Any) -> tuple[str, ...]:
        """The command line `docker ARGUMENTS`; `settings` are those of `environment`."""
        variables = (f"{name}={value}" for name, value in self.environment(**settings).items())
        return ("env", *variables, "docker", *arguments)

    def __call__(self, *arguments: str, timeout_s: float = _RUN_S, **settings: Any) -> str:
        """Run `docker ARGUMENTS` and return its output."""
        argv = self.command(*arguments, **settings)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def make_base(self) -> None:
        """An image with the name that the Dockerfile asks for."""
        archive = self._place / "base.tar"
        environment = {**os.environ, "TMPDIR": str(self._place)}
        make = ("mmdebstrap", "--quiet", *_SMALLER, _PYTHON, "bookworm", str(archive))
        subprocess.run(make, check=True, timeout=BUILD_S, env=environment)
        self("import", str(archive), f"docker.io/library/{self.base}", timeout_s=BUILD_S)
        archive.unlink()


@contextmanager
def with_image() -> Iterator[Docker]:
    """`docker`, with the image `gopher`; where no container can be run the test is skipped."""
    need("mmdebstrap", "nsenter", "podman", "runc")
    if not _NETAVARK.exists():
        refuse("not installed: netavark")
    need_namespaces()
    # In memory: a package manager waits for the disk after every file.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        docker = Docker(Path(place))
        docker.make_base()
        # Not every machine lets a container be made in it.
        tried = docker.command("run", "--rm", "--network=none", docker.base, "true")
        done = subprocess.run(tried, capture_output=True, text=True, timeout=_RUN_S, check=False)
        if done.returncode:
            pytest.skip(f"podman can run no container: {done.stderr}")
        docker(*BUILD.split()[1:], timeout_s=BUILD_S)
        yield docker
        # Of a test that failed; it keeps the directory mounted.
        docker("rm", "--all", "--force", "--time=0")
