"""TOML text into values and the lines of their keys. Sans-I/O.

The parser of the standard library gives no positions. But every statement of TOML is a document by itself, so the
shortest run of lines that parses is one statement, whatever strings and arrays it has over how many lines.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from typing import Any, Final

from gopher.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["TomlFile", "read_toml"]

MIRROR: Final = "mirror"
LIMIT_BYTES: Final = 1 << 20
"""A page of settings is far below it; a mistaken file name may be far above."""


@dataclass(slots=True)
class TomlFile:
    """A configuration file."""

    values: dict[str, Any]
    """Of the top level, without the mirrors."""
    lines: dict[str, int]
    """Of the top level's keys; 1 is the first line."""
    mirrors: list[dict[str, Any]] = field(default_factory=list)
    """Its [[mirror]] tables."""
    mirror_lines: list[dict[str, int]] = field(default_factory=list)
    """Of their keys; "" is that of the table itself."""


def read_toml(text: str, name: str) -> TomlFile:
    """Read a configuration file, as far as it is TOML.

    Args:
        text: the file's.
        name: the file's, for messages.

    Raises:
        ConfigError: it is no TOML, or `mirror` is not an array of tables.
    """
    text = text.replace("\r\n", "\n")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", reason)
        if place is not None:
            line = int(place[1]) if place[1] else text.count("\n") + 1
            raise ConfigError(f"{name}:{line}: {reason[: place.start()]}", hint=f"this is no TOML{_QUOTES}") from error
        raise ConfigError(f"{name}: {reason}") from error
    except (ValueError, RecursionError) as error:
        # What is TOML, but no setting.
        reason = "a number has too many digits" if isinstance(error, ValueError) else "arrays are nested too deeply"
        raise ConfigError(f"{name}: {reason}", hint="gopher --help says what each setting may be") from error
    mirrors = values.pop(MIRROR, [])
    file = TomlFile(values, {}, mirrors if isinstance(mirrors, list) else [mirrors])
    _find_lines(text, file)
    for lines in file.mirror_lines:
        lines.setdefault("", file.lines[MIRROR])  # an inline array
    if not isinstance(mirrors, list) or not all(isinstance(each, dict) for each in mirrors):
        raise ConfigError(f"{name}:{file.lines.get(MIRROR, 1)}: mirror: each one is a table", hint="write [[mirror]]")
    return file


_QUOTES: Final = ": text is in quotes, a table begins with [[mirror]], a comment with #"


def _find_lines(text: str, file: TomlFile) -> None:
    file.mirror_lines = [{} for _ in file.mirrors]
    # Whose keys come now; None: of a table that is none of ours.
    keys: dict[str, int] | None = file.lines
    begun = 0
    statement: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not statement:
            begun = number
        statement.append(line)
        # No statement ends so. It saves parsing a long array again for each of its lines.
        if line.rstrip().endswith(",") and "#" not in line:
            continue
        try:
            parsed = tomllib.loads("\n".join(statement))
        except tomllib.TOMLDecodeError:
            continue
        is_header = statement[0].lstrip().startswith("[")
        statement = []
        if is_header:
            keys = _enter(parsed, begun, file)
        elif keys is not None:
            for key in parsed:
                keys.setdefault(key, begun)


def _enter(header: dict[str, Any], line: int, file: TomlFile) -> dict[str, int] | None:
    """A table begins. Returns where to note the lines of its keys."""
    [(key, inner)] = header.items()
    file.lines.setdefault(key, line)
    begun = sum("" in lines for lines in file.mirror_lines)
    if key != MIRROR:
        return None
    if isinstance(inner, list) and begun < len(file.mirrors):
        file.mirror_lines[begun][""] = line
        return file.mirror_lines[begun]
    if isinstance(inner, dict) and begun:
        for nested in inner:
            file.mirror_lines[begun - 1].setdefault(nested, line)
    return None
