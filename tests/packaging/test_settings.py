"""Which wheels a release has, and whether the workflows are what GitHub understands. Both offline."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.needs import need_modules

ROOT = Path(__file__).parents[2]
PYTHONS = ("cp310", "cp311", "cp312", "cp313", "cp314")
LINUX = ("manylinux_x86_64", "manylinux_aarch64", "musllinux_x86_64", "musllinux_aarch64")
MACOS = ("macosx_x86_64", "macosx_arm64")


def run(module, *arguments):
    if sys.version_info < (3, 11):
        pytest.skip(f"{module} needs Python 3.11")
    need_modules(module)
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(("platform", "tags"), [("linux", LINUX), ("macos", MACOS)])
def test_settings_give_exactly_these_wheels(platform, tags):
    found = run("cibuildwheel", "--platform", platform, "--print-build-identifiers")
    assert found.returncode == 0, found.stderr
    wanted = {f"{python}-{tag}" for python, tag in itertools.product(PYTHONS, tags)}
    assert sorted(found.stdout.split()) == sorted(wanted)


def test_release_expects_as_many_wheels_as_there_are_identifiers():
    [number] = re.findall(r"-eq (\d+)", (ROOT / ".github/workflows/release.yml").read_text())
    assert int(number) == len(PYTHONS) * len(LINUX + MACOS)


def test_release_builds_with_the_cibuildwheel_that_is_tested():
    pins = [
        set(re.findall(r"cibuildwheel==([\d.]+)", (ROOT / name).read_text()))
        for name in (".github/workflows/release.yml", "pyproject.toml")
    ]
    assert len(pins[0]) == 1
    assert pins[0] == pins[1]


def test_workflows_follow_their_schema():
    workflows = sorted(str(path) for path in (ROOT / ".github/workflows").glob("*.yml"))
    assert len(workflows) >= 2
    checked = run("check_jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_workflow_that_breaks_the_schema_is_found(tmp_path):
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    (tmp_path / "ci.yml").write_text(text.replace("runs-on:", "run-on:", 1))
    checked = run("check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(tmp_path / "ci.yml"))
    assert checked.returncode == 1
