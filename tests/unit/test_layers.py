"""Which packages may import which: capture and relay mode share code only through packages that know neither."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gopher

ROOT = Path(gopher.__file__).parent
FORBIDDEN = {
    "relay": ("gopher.capture", "gopher.cli"),
    "capture": ("gopher.relay", "gopher.cli"),
    "upstreams": ("gopher.capture", "gopher.relay", "gopher.cli"),
    "http": ("gopher.capture", "gopher.relay", "gopher.upstreams", "gopher.cli"),
    "observe": ("gopher.capture", "gopher.relay", "gopher.upstreams", "gopher.cli"),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_nothing_above_or_beside_it(package):
    paths = sorted((ROOT / package).glob("*.py"))
    assert paths
    wrong = [
        f"{path.name} imports {name}"
        for path in paths
        for name in sorted(imports(path))
        if any(name == other or name.startswith(other + ".") for other in FORBIDDEN[package])
    ]
    assert wrong == []
