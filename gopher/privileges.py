"""Rights: giving up those that gopher no longer needs, and naming the ones that it lacks.

Opening a packet socket needs a right (CAP_NET_RAW), and so does listening below port 1024 (CAP_NET_BIND_SERVICE);
going on needs none. So both modes call `prepare`, open what needs rights, call `drop_rights`, and do everything else
after it: files are then written, directories made and scripts loaded with the rights that are left.

Capabilities belong to threads, and no call takes them from another thread. So rights are dropped while there is one
thread, which threads made later inherit from; `prepare` keeps name lookups from leaving one behind. Both are to be
called in each process by itself: rights belong to processes, too.

Linux only. See capabilities(7) and PR_SET_NO_NEW_PRIVS in prctl(2).
"""

from __future__ import annotations

import contextlib
import difflib
import grp
import os
import pwd
import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

import gopher
from gopher import _rights
from gopher.errors import ConfigError, GopherError

__all__ = ["User", "drop_rights", "find_user", "prepare", "way_to"]

# <linux/capability.h>
CAPABILITIES: Final = {
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13,
}
# A thread whose function has returned is there for some microseconds more.
ENDING_THREADS_S: Final = 1.0

_NO_CHANGE: Final = (1 << 32) - 1  # what setuid(2) and its kin take for "leave it"


class User(NamedTuple):
    """Whom to become."""

    name: str
    """As it was written."""
    uid: int
    gid: int


# -- whom to become ------------------------------------------------------------------------------------------------


def find_user(text: str | None) -> User | None:
    """The user that `NAME[:GROUP]` means, names or numbers; without GROUP, with the user's own group. None is nobody.

    Raises:
        ConfigError: there is no such user or group, it is root, or this process may not change users.
    """
    if text is None:
        return None
    name, _, group = text.partition(":")
    number = _number(name)
    try:
        entry = pwd.getpwnam(name) if number is None else pwd.getpwuid(number)
    except KeyError as error:
        if number is None:
            raise _unknown(text, "user", name, [each.pw_name for each in pwd.getpwall()]) from error
        # Containers often have users without an entry; then there is no group to go by.
        if not group:
            raise ConfigError(
                f"--user {text}: user {name} has no entry and so no group of its own",
                hint=f"give a group too, like {name}:{name}",
            ) from error
        uid, gid = number, 0
    else:
        uid, gid = entry.pw_uid, entry.pw_gid
    if uid == 0:
        raise ConfigError(
            f"--user {text}: that is root, and nothing would be given up",
            hint="name another user, like nobody, or leave --user out to stay root",
        )
    if group:
        gid = _find_group(text, group)
    held = _read_status("self").effective
    missing = [name for name in ("CAP_SETUID", "CAP_SETGID") if not held & (1 << CAPABILITIES[name])]
    if missing:
        raise ConfigError(
            f"--user {text}: not permitted to change users: {' and '.join(missing)} missing",
            hint="start gopher as root, or leave --user out: capabilities are given up without it too",
        )
    return User(text, uid, gid)


def _number(text: str) -> int | None:
    """Of a user or group; None: it is a name, or a number that nobody can have."""
    number = int(text) if re.fullmatch(r"[0-9]{1,10}", text) else _NO_CHANGE
    return number if number < _NO_CHANGE else None


def _find_group(text: str, group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        number = _number(group)
        if number is not None:
            return number
        raise _unknown(text, "group", group, [each.gr_name for each in grp.getgrall()]) from error


def _unknown(text: str, kind: str, name: str, known: list[str]) -> ConfigError:
    nearest = difflib.get_close_matches(name, known, n=1)
    adding = {"user": f"useradd --system {name}", "group": f"groupadd --system {name}"}[kind]
    hint = f"did you mean {nearest[0]}?" if nearest else f"make it with: {adding}"
    return ConfigError(f"--user {text}: there is no {kind} {name!r} on this machine", hint=hint)


# -- giving up -----------------------------------------------------------------------------------------------------


def drop_rights(user: User | None) -> None:
    """Give up all rights for good, and make sure of it.

    Without a user, a root process stays what it is (its report may lie where only root can write), and any other one
    gives up its capabilities. With one, the process becomes that user, without supplementary groups, without
    capabilities, and with no_new_privs set. The bounding set is cleared if CAP_SETPCAP is there; without new
    privileges nothing could be got from it.

    Raises:
        GopherError: something could not be given up. Do not go on.
    """
    before = _read_status("self")
    if user is None and (before.uids[1] == 0 or not before.capabilities):
        return
    _wait_alone()
    bounded = bool(before.effective & (1 << CAPABILITIES["CAP_SETPCAP"]))
    try:
        if bounded:
            _rights.clear_bounding_set()
        if user is not None:
            os.setgroups([])
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
        _rights.set_capabilities(0, 0, 0)
        _rights.forbid_new_privileges()
    except OSError as error:
        raise _not_given_up(error.strerror or str(error)) from error
    for thread in os.listdir("/proc/self/task"):
        problem = _what_is_left(_read_status(f"self/task/{thread}"), user, bounded=bounded)
        if problem:
            raise _not_given_up(problem)
    if user is not None:
        _check_readable(user)


def _wait_alone() -> None:
    until_s = time.monotonic() + ENDING_THREADS_S
    while (others := len(os.listdir("/proc/self/task")) - 1) > 0:
        if time.monotonic() > until_s:
            raise _not_given_up(f"{others} more threads run, and would keep them")
        time.sleep(0.001)


def _what_is_left(status: _Status, user: User | None, *, bounded: bool) -> str:
    """A thread's rights that should be gone, in words; empty if there are none."""
    if user is not None:
        if set(status.uids) != {user.uid} or set(status.gids) != {user.gid}:
            return f"it still has users {sorted(set(status.uids))} and groups {sorted(set(status.gids))}"
        if status.groups:
            return f"it still is in groups {status.groups}"
    left = status.capabilities | (status.bounding if bounded else 0)
    if left:
        return f"it still has capabilities {left:x}"
    return "" if status.no_new_privs else "it may get new ones"


def _check_readable(user: User) -> None:
    # What is imported later is imported by the new user; it would come as a traceback, at some later time.
    for path in (os.__file__, gopher.__file__):
        if not os.access(path, os.R_OK):
            raise ConfigError(
                f"--user {user.name}: that user may not read {path}, and gopher needs it while it runs",
                hint="install gopher and its Python where everybody may read, like /opt/gopher, or name another user",
            )


def _not_given_up(reason: str) -> GopherError:
    return GopherError(f"rights could not be given up: {reason}", hint="gopher does not go on with them")


class _Status(NamedTuple):
    """What /proc tells of one thread (proc(5), /proc/pid/status). Sets of capabilities are bits."""

    uids: tuple[int, ...]
    """Real, effective, saved, file system; `gids` likewise."""
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: bool

    @property
    def capabilities(self) -> int:
        """All but the bounding set."""
        return self.inheritable | self.permitted | self.effective | self.ambient


def _read_status(thread: str) -> _Status:
    try:
        lines = Path("/proc", thread, "status").read_text().splitlines()
    except OSError as error:
        raise GopherError(f"cannot find out what rights gopher has: {error}", hint="mount /proc") from error
    fields = dict(line.split(":", 1) for line in lines)

    def numbers(field: str) -> tuple[int, ...]:
        return tuple(map(int, fields[field].split()))

    def bits(name: str) -> int:
        return int(fields[name], 16)

    return _Status(
        uids=numbers("Uid"),
        gids=numbers("Gid"),
        groups=numbers("Groups"),
        inheritable=bits("CapInh"),
        permitted=bits("CapPrm"),
        effective=bits("CapEff"),
        bounding=bits("CapBnd"),
        ambient=bits("CapAmb"),
        no_new_privs=numbers("NoNewPrivs") == (1,),
    )


# -- before --------------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Make what follows work with rights, and then without. In a run of Trio, before its first name lookup.

    Permitted capabilities become effective: a file with `cap_net_raw+ep` cannot be executed at all where that is not
    allowed, as in most containers, while with `cap_net_raw+p` gopher starts and says what is missing. And names are
    looked up in threads that end with the lookup: Trio would keep its thread for the next one, for ten seconds, with
    the rights that the process had.
    """
    status = _read_status("self")
    if status.effective != status.permitted:
        # If not even that is allowed, opening says what is missing.
        with contextlib.suppress(OSError):
            _rights.set_capabilities(status.permitted, status.permitted, status.inheritable)
    trio.socket.set_custom_hostname_resolver(_Resolver())


class _Resolver(trio.abc.HostnameResolver):
    async def getaddrinfo(self, *arguments: Any, **named: Any) -> Any:
        # Checkpoint: always. Cancelled, the thread is left alone: it ends by itself.
        answer: list[Any] = []
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def look_up() -> None:
            try:
                answer.append(socket.getaddrinfo(*arguments, **named))
            except Exception as error:  # it belongs to who asked
                answer.append(error)
            try:
                token.run_sync_soon(done.set)
            except trio.RunFinishedError:
                return  # nobody asks any more

        threading.Thread(target=look_up, name="lookup", daemon=True).start()
        await done.wait()
        if isinstance(answer[0], Exception):
            raise answer[0]
        return answer[0]

    async def getnameinfo(self, *arguments: Any) -> Any:
        raise NotImplementedError("gopher asks for addresses only")


# -- what is missing -----------------------------------------------------------------------------------------------


def way_to(capability: str) -> tuple[str, str]:
    """Why a call that needs a capability was refused, and what to do about it: (reason, hint)."""
    status = _read_status("self")
    bit = 1 << CAPABILITIES[capability]
    service = f"as a service with AmbientCapabilities={capability}"
    if status.effective & bit:
        return (
            f"{capability} is there, but something else forbids it",
            "a security module (SELinux, AppArmor) or a system call filter may: look at the kernel's log",
        )
    if not status.bounding & bit:
        short = capability.removeprefix("CAP_")
        return (
            f"{capability} is missing, and neither root nor setcap can give it to this process: "
            "it is not in its bounding set",
            f"allow it from outside: docker run --cap-add {short}, capabilities.add of a Kubernetes container, or "
            "CapabilityBoundingSet= of a service",
        )
    if status.no_new_privs:
        return (
            f"{capability} is missing, and setcap has no effect on this process: no_new_privs is set",
            f"run it as root, or {service}; in Kubernetes, allowPrivilegeEscalation: true lets file capabilities work",
        )
    interpreter = os.path.realpath(sys.executable)
    return (
        f"{capability} is missing",
        f"run it as root, or once: setcap {capability.lower()}+ep {interpreter}, or {service}",
    )
