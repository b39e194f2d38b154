"""What `make wheel` has made of the sources in dist/, for tests of what users install."""

from __future__ import annotations

from pathlib import Path

import gopher
from tests.support.needs import refuse

_DIST = Path(__file__).parents[2] / "dist"


def wheel() -> Path:
    """The wheel; without one the test is skipped, and in CI it fails."""
    return _only(f"gopher_mirror-{gopher.__version__}-*.whl")


def sdist() -> Path:
    """The sdist; without one the test is skipped, and in CI it fails."""
    return _only(f"gopher_mirror-{gopher.__version__}.tar.gz")


def _only(pattern: str) -> Path:
    found = list(_DIST.glob(pattern))
    if len(found) != 1:
        refuse(f"{len(found)} files in dist/ are {pattern}: make wheel makes the one")
    return found[0]
