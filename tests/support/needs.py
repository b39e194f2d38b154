"""What a test needs of the machine: where it is missing the test is skipped, and in CI it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

from tests.support import netns


def need(*programs: str) -> None:
    """Skip, or in CI fail, unless these are installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        refuse(f"not installed: {', '.join(missing)}")


def need_modules(*names: str) -> None:
    """Skip, or in CI fail, unless Python has these."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        refuse(f"not installed: {', '.join(missing)}")


def need_namespaces() -> None:
    """Skip, or in CI fail, unless network namespaces can be made."""
    need("ip")
    if reason := netns.unprivileged_reason():
        refuse(reason)


def refuse(reason: str) -> None:
    """Skip, or in CI fail, for this reason."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
