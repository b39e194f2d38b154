"""Run a command where everybody can reach some directories: python reachable.py DIRECTORY... -- COMMAND...

Interpreters and clones often lie below a directory that only its owner may enter, like /root, and a command that gives
up root's rights finds nothing there any more. This covers such directories by empty ones, in which only what was named
shows, at its place. It refuses to do so but in a mount namespace of its own, as `ip netns exec` makes one.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

STASH = Path("/mnt")


def _blocker(path: Path) -> Path | None:
    """The uppermost directory on the way that others may not enter."""
    return next((each for each in [*reversed(path.parents), path] if not each.stat().st_mode & stat.S_IXOTH), None)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main(arguments: list[str]) -> None:
    separator = arguments.index("--")
    paths = [Path(each) for each in arguments[:separator]]
    hidden = {path: blocker for path in paths if (blocker := _blocker(path)) is not None}
    if hidden:
        # 0: the parent is out of sight, so there are process ids of its own here, and then mounts, too.
        parent = os.getppid()
        if parent and Path("/proc/self/ns/mnt").readlink() == Path(f"/proc/{parent}/ns/mnt").readlink():
            sys.exit("reachable.py would hide directories from everybody: run it by ip netns exec")
        _mount("-t", "tmpfs", "tmpfs", STASH)
    for number, path in enumerate(hidden):
        (STASH / str(number)).mkdir()
        _mount("--bind", path, STASH / str(number))
    for blocker in set(hidden.values()):
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", blocker)
    for number, path in enumerate(hidden):
        path.mkdir(parents=True, exist_ok=True)
        _mount("--bind", STASH / str(number), path)
    command = arguments[separator + 1 :]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
