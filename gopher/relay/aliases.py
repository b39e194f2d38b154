"""The table of aliases: production's value -> the shadow's, bounded in number, bytes and age.

Values are session secrets: they live in memory only, and nothing here prints them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["MAX_VALUE_BYTES", "SHORT_BYTES", "AliasTable", "KnownValues", "alias_key"]

MAX_VALUE_BYTES: Final = 8192
"""A longer value is not coupled: servers refuse header lines of this size (nginx and Apache by default)."""
SHORT_BYTES: Final = 4
"""A shorter value (an order number, a flag) would be found by chance in places it has nothing to do with: it is coupled
only where it stands under the name of the rule that handed it out."""

_TABLE_BYTES: Final = 64 << 20
_ENTRY_BYTES: Final = 300  # what CPython adds to an entry: dictionary node, list, two bytes headers, a float


def alias_key(name: bytes, value: bytes) -> bytes:
    """What a value is looked up by: itself, or with its name before it if it is short (`SHORT_BYTES`)."""
    return value if len(value) >= SHORT_BYTES else name.lower() + b"\0" + value


class AliasTable:
    """`key -> the shadow's value`, least recently used first.

    Past `max_aliases`, or past 64 MiB, the least recently used go; one not used for `ttl_s` is gone.
    """

    def __init__(self, max_aliases: int, ttl_s: float, *, max_bytes: int = _TABLE_BYTES) -> None:
        self.entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        """For the question whether a key may be known, which is asked of every value of every request."""
        self._max = max_aliases
        self._max_bytes = max_bytes
        self._bytes = 0
        self._ttl_s = ttl_s
        self.evicted = 0
        """Aliases that went for want of room."""
        self.expired = 0
        """Aliases that were not used for `ttl_s`."""

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<AliasTable of {len(self.entries)}>"

    def get(self, key: bytes, now_s: float) -> bytes | None:
        """The shadow's value. A use: the entry counts as fresh from now on."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        value, used_s = entry
        if now_s - used_s > self._ttl_s:
            self._remove(key)
            self.expired += 1
            return None
        self.entries[key] = (value, now_s)
        self.entries.move_to_end(key)
        return value

    def set(self, key: bytes, value: bytes, now_s: float) -> None:
        """Learn or replace an alias, and make room for it."""
        if key in self.entries:
            self._remove(key)
        self.entries[key] = (value, now_s)
        self._bytes += _ENTRY_BYTES + len(key) + len(value)
        while len(self.entries) > self._max or self._bytes > self._max_bytes:
            self._remove(next(iter(self.entries)))
            self.evicted += 1
        # The order of use is the order of time stamps: what is too old stands first.
        while self.entries:
            oldest = next(iter(self.entries))
            if now_s - self.entries[oldest][1] <= self._ttl_s:
                break
            self._remove(oldest)
            self.expired += 1

    def _remove(self, key: bytes) -> None:
        value, _ = self.entries.pop(key)
        self._bytes -= _ENTRY_BYTES + len(key) + len(value)


class KnownValues:
    """Production's values as far as they are known: those with a counterpart, and those that wait for it."""

    def __init__(self, max_aliases: int, ttl_s: float) -> None:
        self.aliases = AliasTable(max_aliases, ttl_s)
        self.pending: dict[bytes, set[Hashable]] = {}
        """Key -> exchanges whose answer by the shadow may hold the counterpart."""
        self.shortest = MAX_VALUE_BYTES
        """No value that was ever known is shorter, in bytes."""

    def met(self, value: bytes) -> None:
        """To be called with each value that becomes known."""
        self.shortest = min(self.shortest, len(value))

    def none_of(self, values: list[bytes]) -> bool:
        """Whether surely none of these, as they stand, is known."""
        if self.shortest < SHORT_BYTES:
            return False  # short values are kept under their names, which are not given here
        known, pending = self.aliases.entries, self.pending
        for value in values:  # noqa: SIM110  # a generator costs more than the question
            if value in known or value in pending:
                return False
        return True
