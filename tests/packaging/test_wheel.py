"""What `make wheel` made: contents, what it asks of the system, and whether it works where nothing else is."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support import dist
from tests.support.needs import need_modules

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel():
    return dist.wheel()


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """An environment with the wheel, made where there is no compiler and nothing but wheels may be installed."""
    place = tmp_path_factory.mktemp("clean")
    venv.create(place, with_pip=True)
    environment = without_compiler(place)
    subprocess.run(
        [place / "bin/python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:", wheel],
        cwd=place,
        env=environment,
        check=True,
        timeout=120,
    )
    return place


def without_compiler(place):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GOPHER"))}
    environment["PATH"] = str(place / "bin")
    assert not any(shutil.which(name, path=environment["PATH"]) for name in ("cc", "gcc", "clang"))
    return environment


def smoke(place):
    script = place / "smoke.py"
    shutil.copy(ROOT / "packaging/smoke.py", script)
    return subprocess.run(
        [place / "bin/python", "-I", script],
        cwd=place,
        env=without_compiler(place),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_wheel_holds_what_it_should(wheel):
    checked = subprocess.run(
        [sys.executable, ROOT / "packaging/check_wheels.py", wheel], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_wheel_with_something_else_in_it_is_found(wheel, tmp_path):
    spoilt = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(spoilt, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            if "_pump.cpython" not in entry.filename:
                target.writestr(entry, source.read(entry))
        target.writestr("gopher/notes.txt", "")
        target.writestr("gopher/_debug.so", bytes(1_000_001))
    checked = subprocess.run(
        [sys.executable, ROOT / "packaging/check_wheels.py", spoilt], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 1
    for problem in ("extension gopher._pump is missing", "gopher/notes.txt does not belong", "is it stripped?"):
        assert problem in checked.stderr


def test_wheel_suits_glibc_2_28_or_older(wheel):
    # The tags are those that auditwheel found; it refuses to write any that the extensions do not keep.
    versions = [tuple(map(int, found)) for found in re.findall(r"manylinux_(\d+)_(\d+)_", wheel.name)]
    assert versions
    assert all(version <= (2, 28) for version in versions)
    need_modules("auditwheel")
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", wheel], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "manylinux" in shown.stdout


def test_only_linux_only_extensions_need_what_only_linux_has(wheel, tmp_path):
    # auditwheel's.
    need_modules("elftools")
    from elftools.elf.elffile import ELFFile

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    needing = set()
    for path in (tmp_path / "gopher").glob("**/*.so"):
        with path.open("rb") as file:
            wanted = {symbol.name for symbol in ELFFile(file).get_section_by_name(".dynsym").iter_symbols()}
        if wanted & {"epoll_create1", "epoll_ctl", "epoll_wait", "ioctl", "accept4", "getrandom", "memfd_create"}:
            needing.add(path.relative_to(tmp_path).as_posix().partition(".")[0].replace("/", "."))
    sys.path.insert(0, str(ROOT / "packaging"))
    try:
        import check_wheels
    finally:
        sys.path.pop(0)
    everywhere = check_wheels.expected(linux=False)[1]
    # Others are left out with them, because they stand on them.
    assert needing
    assert needing <= check_wheels.expected(linux=True)[1] - everywhere


def test_wheel_works_in_a_clean_environment(clean):
    done = smoke(clean)
    assert done.returncode == 0, done.stderr
    assert str(clean) in done.stdout


def test_without_its_linux_only_extensions_the_rest_works(clean, tmp_path_factory):
    # What a wheel for macOS is like.
    place = tmp_path_factory.mktemp("elsewhere") / "clean"
    shutil.copytree(clean, place, symlinks=True)
    for name in ("_pump", "relay/_tunnel"):
        [extension] = place.glob(f"lib/python*/site-packages/gopher/{name}.*.so")
        extension.unlink()
    done = smoke(place)
    assert done.returncode == 0, done.stderr
    assert str(place) in done.stdout


def test_sdist_holds_the_sources_and_no_build():
    with tarfile.open(dist.sdist()) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files", "gopher", "tests", "packaging", "docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    assert set(tracked) <= names, set(tracked) - names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    assert not [name for name in names if name.startswith("gopher/") and name.endswith(".c")]
