"""The settings that count, as a configuration file that says where each came from. Sans-I/O."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from gopher.config import MIB
from gopher.plan import is_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gopher.plan import MirrorPlan
    from gopher.settings import Given, Setting

__all__ = ["effective_toml"]

_COMMENT_COLUMN: Final = 40
_MASK: Final = "********"


def effective_toml(
    mirrors: Sequence[MirrorPlan],
    settings: Mapping[str, Setting],
    default: Callable[[str, str], Any],
    needs: Mapping[str, str],
) -> str:
    """The settings of all mirrors.

    Args:
        mirrors: what is to be done.
        settings: the table.
        default: of a setting, by what it sets and the mode.
        needs: what means nothing, and may not be said, without another one.

    Returns:
        TOML that is a configuration file of the same meaning, but for secrets.
    """
    tables = ["\n".join(_table(mirror, settings, default, needs)) for mirror in mirrors]
    return "\n\n".join(tables) + "\n"


def _table(
    mirror: MirrorPlan, settings: Mapping[str, Setting], default: Callable[[str, str], Any], needs: Mapping[str, str]
) -> Iterator[str]:
    given = mirror.given
    mode = given["mode"].value
    excluded = {rival for each in given.values() for rival in each.raw.setting.rivals}
    if mirror.name:
        yield "[[mirror]]"
        yield f"name = {toml(mirror.name)}"
    for setting in settings.values():
        said = given.get(setting.to)
        if said is not None and said.raw.setting.key == setting.key:
            yield _line(setting.key, _written(said), said.raw.origin)
        elif said is None and setting.key not in excluded and is_for(setting, mode):
            value = False if setting.kind == "flag" else default(setting.to, mode)
            if value in (None, "", ()) or needs.get(setting.to, setting.to) not in {setting.to, *given}:
                yield f"# {setting.key} is not set"
            else:
                excluded |= setting.rivals
                yield _line(setting.key, toml(_shown(setting.to, value)), "default")


def _line(key: str, value: str, origin: str) -> str:
    return f"{f'{key} = {value}':<{_COMMENT_COLUMN}} # {origin}"


def _written(given: Given) -> str:
    setting, written = given.raw.setting, given.raw.written
    if setting.kind == "flag":
        return toml(given.value is not None)
    if setting.kind == "optional":
        return toml(given.value if given.value is not None else False)
    if setting.kind == "count":
        return toml(given.value)
    if setting.secret:
        name, colon, _ = str(written).partition(":")
        return toml(f"{name}: {_MASK}" if colon else _MASK)
    if setting.kind == "list":
        items = written if isinstance(written, list) else [written]
        return toml([_bare(item, setting) for item in items])
    return toml(_bare(written, setting))


def _bare(written: Any, setting: Setting) -> Any:
    """Text that is a number, as a number, where that means the same."""
    if setting.convert is not None and isinstance(written, str):
        for kind in (int, float):
            try:
                number = kind(written)
            except ValueError:
                continue  # not of this kind
            if str(number) == written and math.isfinite(number):
                return number
    return written


def _shown(to: str, value: Any) -> Any:
    """A default as a user would write it."""
    if to.endswith("_bytes") and value % MIB == 0:
        return f"{value // MIB}M"
    if to.endswith("_ratio"):
        return f"{value:.0%}"
    if to.endswith("_s") and value == int(value):
        return int(value)
    return value


def toml(value: Any) -> str:
    """A value of TOML. Text: what JSON escapes, TOML escapes alike, but for U+007F."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)
