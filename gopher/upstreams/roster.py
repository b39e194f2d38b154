"""The upstreams of a running mirror, as a reload adds and removes them. Sans-I/O but for what makes an upstream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from gopher.errors import ConfigError
from gopher.upstreams.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gopher.config import MirrorConfig, UpstreamConfig
    from gopher.upstreams.tcp import Address

__all__ = ["KNOWN_LIMIT", "Change", "Roster"]

KNOWN_LIMIT: Final = 1024
"""Upstreams of one run: removed ones stay in the report."""

UpstreamT = TypeVar("UpstreamT", bound=Upstream)


@dataclass(frozen=True, slots=True)
class Change(Generic[UpstreamT]):
    """What a reload did."""

    added: list[UpstreamT]
    removed: list[UpstreamT]

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Of those that were added and of those that were removed."""
        return [each.config.name for each in self.added], [each.config.name for each in self.removed]


class Roster(Generic[UpstreamT]):
    """Who gets new connections, and whoever did.

    An upstream is known by what the user wrote. One that was removed and comes back goes on with its account.

    Args:
        configs: of the first upstreams.
        addresses: of each, empty for `dir`.
        make: an upstream from both.

    Raises:
        UpstreamError: from `make`.
    """

    def __init__(
        self,
        configs: Sequence[UpstreamConfig],
        addresses: Sequence[list[Address]],
        make: Callable[[UpstreamConfig, list[Address]], UpstreamT],
    ) -> None:
        self._make = make
        self.active = [make(config, found) for config, found in zip(configs, addresses, strict=True)]
        """In the order of the configuration."""
        self.known = list(self.active)
        """In the order in which they came, so that the reports of one run agree in it."""

    def change(
        self,
        configs: Sequence[UpstreamConfig],
        addresses: Sequence[list[Address]],
        limits: MirrorConfig,
        now_s: float,
    ) -> Change[UpstreamT]:
        """Take on other upstreams. Those that stay are the same objects as before, with these limits and addresses.

        Args:
            configs: of all from now on.
            addresses: of each.
            limits: time-outs are taken from it.
            now_s: since the start.

        Raises:
            ConfigError: there were too many; nothing has changed.
            UpstreamError: from `make`; nothing has changed.
        """
        unmatched = [*self.active, *(upstream for upstream in self.known if upstream not in self.active)]
        active: list[UpstreamT] = []
        new: list[UpstreamT] = []
        for config, found in zip(configs, addresses, strict=True):
            upstream = next((each for each in unmatched if each.config == config), None)
            if upstream is None:
                upstream = self._make(config, found)
                new.append(upstream)
            else:
                unmatched.remove(upstream)
            active.append(upstream)
        if len(self.known) + len(new) > KNOWN_LIMIT:
            raise ConfigError(
                f"there were {KNOWN_LIMIT} different upstreams since the start, and all stay in the report",
                hint="restart gopher to begin a new one",
            )
        for upstream, found in zip(active, addresses, strict=True):
            upstream.reload(limits, found)
        added = [upstream for upstream in active if upstream not in self.active]
        removed = [upstream for upstream in self.active if upstream not in active]
        for upstream in added:
            upstream.added_s, upstream.removed_s = now_s, None
        for upstream in removed:
            upstream.removed_s = now_s
        self.active = active
        self.known += new
        return Change(added, removed)
