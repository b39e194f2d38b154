"""What a running mirror and the command that started it have to tell each other: readiness, and reloads by SIGHUP.

A reload reads all settings again. `reloaded` says which of them a running gopher takes on and which need a restart; the
capture or the relay resolves names and changes its upstreams. Whatever is wrong is said once, and nothing has changed.
"""

from __future__ import annotations

import dataclasses
import signal
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from gopher.errors import GopherError
from gopher.observe.log import Log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager

    from gopher.config import CaptureConfig, RelayConfig, UpstreamConfig
    from gopher.upstreams.tcp import Address

__all__ = ["Control", "reloaded", "say_addresses", "summary"]

ConfigT = TypeVar("ConfigT")


def reloaded(old: ConfigT, new: Any, may_change: Collection[str]) -> tuple[ConfigT, list[str]]:
    """A configuration with what a running gopher can take on.

    Args:
        old: what it runs with.
        new: what is wanted.
        may_change: names of fields, of `old` and of the configurations in it.

    Returns:
        `old` with these fields of `new`, and the names of the others that differ: they need a restart.
    """
    if type(new) is not type(old):
        return old, ["mode"]
    changes = {}
    restart = []
    for each in dataclasses.fields(old):  # type: ignore[arg-type]  # a configuration
        before, after = getattr(old, each.name), getattr(new, each.name)
        if dataclasses.is_dataclass(before):
            changes[each.name], nested = reloaded(before, after, may_change)
            restart += nested
        elif before != after:
            if each.name in may_change:
                changes[each.name] = after
            else:
                restart.append(each.name)
    return dataclasses.replace(old, **changes), restart  # type: ignore[type-var]


def summary(upstreams: int, added: Sequence[str], removed: Sequence[str]) -> str:
    """What a reload did. `upstreams`: how many there are now."""
    parts = [f"reloaded: to {upstreams} upstream{'' if upstreams == 1 else 's'}"]
    parts += [f"added {', '.join(added)}"] if added else []
    parts += [f"removed {', '.join(removed)}"] if removed else []
    return "; ".join(parts)


def say_addresses(log: Log, upstreams: Sequence[UpstreamConfig], addresses: Sequence[Sequence[Address]]) -> None:
    """What `-v` tells of upstreams: which addresses their names stand for, none for `dir`; in the order of dialling."""
    for upstream, found in zip(upstreams, addresses, strict=True):
        if found:
            hosts = [address.host for address in found]
            log.info("upstream", f"upstream {upstream.name} is at {', '.join(hosts)}", name=upstream.name, hosts=hosts)


class Control:
    """The command's side.

    Args:
        reread: what the settings say now; raises `GopherError`. None: nothing can say anything else, and SIGHUP is none
            of gopher's business.
        keys: of the settings, by the last part of what they set.
        ready: called once, when traffic is taken in.
    """

    log: Log
    """Where to say things; set by what runs."""

    def __init__(
        self,
        reread: Callable[[], CaptureConfig | RelayConfig] | None = None,
        keys: Mapping[str, str] | None = None,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._reread = reread
        self._keys = keys or {}
        self.ready = ready
        self.log = Log()
        self._reloading = False
        self._again = False

    def signals(self) -> AbstractContextManager[AsyncIterator[int]]:
        """The signals that a running mirror obeys."""
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
        if self._reread is not None:
            numbers.append(signal.SIGHUP)
        return trio.open_signal_receiver(*numbers)

    def reload_soon(self, nursery: trio.Nursery, apply: Callable[[Any], Awaitable[tuple[str, list[str]]]]) -> None:
        """Reload in a task, for names may resolve slowly. One at a time; what is asked for meanwhile is one more.

        Args:
            nursery: for the task.
            apply: takes on the settings, and returns what to say and the names of what needs a restart. Raises
                `GopherError` when nothing has changed.
        """
        if self._reloading:
            self._again = True
        else:
            self._reloading = True
            nursery.start_soon(self._reload, apply)

    async def _reload(self, apply: Callable[[Any], Awaitable[tuple[str, list[str]]]]) -> None:
        assert self._reread is not None
        while True:
            self._again = False
            try:
                done, restart = await apply(self._reread())
            except GopherError as error:
                hint = f"\n  hint: {error.hint}" if error.hint else ""
                self.log.failure("reload", f"not reloaded, nothing has changed: {error}{hint}")
            else:
                self.log.reply("reload", done)
                if restart:
                    self.log.reply("reload", f"needs a restart: {', '.join(dict.fromkeys(map(self._key, restart)))}")
            if not self._again:
                break
        self._reloading = False

    def _key(self, field: str) -> str:
        return self._keys.get(field, field.replace("_", "-"))
