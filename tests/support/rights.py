"""Other rights than root's, as prefixes of a command line, and what /proc tells of the rights of a process."""

from __future__ import annotations

import pwd
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gopher

ROOT = Path(gopher.__file__).parents[1]
NOBODY = pwd.getpwnam("nobody")
REACHABLE = (
    sys.executable,
    str(ROOT / "tests/support/reachable.py"),
    *dict.fromkeys((sys.base_prefix, sys.prefix, str(ROOT), tempfile.gettempdir())),
    "--",
)
AS_NOBODY = (*REACHABLE, "setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
_NONE = ["0000000000000000"]


def with_capability(name: str) -> tuple[str, ...]:
    """As nobody, with this one, like net_raw."""
    return (*AS_NOBODY, "--inh-caps", f"+{name}", "--ambient-caps", f"+{name}")


def rights(pid: int) -> Iterator[dict[str, list[str]]]:
    """The fields of /proc/PID/task/*/status that are about rights, of each thread."""
    fields = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        status = dict(line.split(":", 1) for line in path.read_text().splitlines())
        yield {name: status[name].split() for name in fields}


def no_rights(
    uid: int = NOBODY.pw_uid, gid: int = NOBODY.pw_gid, *, bounding: list[str] = _NONE
) -> dict[str, list[str]]:
    """`rights` of a thread that has none."""
    sets = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), _NONE)
    return {"Uid": [str(uid)] * 4, "Gid": [str(gid)] * 4, "Groups": [], **sets, "CapBnd": bounding, "NoNewPrivs": ["1"]}
