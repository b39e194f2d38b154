"""Coupling rules from a TOML file (`--couple-file`): one list, `couple`, of what `--couple` takes. Sans-I/O."""

from __future__ import annotations

import difflib
from typing import Any, Final

from gopher.errors import ConfigError
from gopher.relay.rules import AUTO, parse_rule
from gopher.tomlfile import MIRROR, read_toml

__all__ = ["read_rules"]

_KEY: Final = "couple"
_EXAMPLE: Final = "for example: couple = ['cookie:JSESSIONID', 'location:/order/{}']"


def read_rules(text: str, name: str) -> list[str]:
    """The rules of a file, `auto` among them, in their order; each can be parsed.

    Args:
        text: of the file.
        name: of the file, for messages.

    Raises:
        ConfigError: the text is not TOML, or not a list of rules under the one key.
    """
    try:
        file = read_toml(text, name)
    except ConfigError as error:
        raise ConfigError(str(error), hint=f"a file of rules is TOML, {_EXAMPLE}") from error
    for key in (*file.values, *([MIRROR] if file.mirrors else [])):
        if key != _KEY:
            nearest = f"did you mean {_KEY}? " if difflib.get_close_matches(key, [_KEY]) else ""
            raise ConfigError(
                f"{name}:{file.lines.get(key, 1)}: unknown key {key!r}",
                hint=f"{nearest}{_KEY} is the only one, {_EXAMPLE}",
            )
    if _KEY not in file.values:
        raise ConfigError(f"{name}: the key {_KEY} is missing", hint=_EXAMPLE)
    rules = file.values[_KEY]
    place = f"{name}:{file.lines.get(_KEY, 1)}"
    if not isinstance(rules, list):
        raise ConfigError(f"{place}: {_KEY} must be a list of rules, not {_type(rules)}", hint=_EXAMPLE)
    for number, rule in enumerate(rules, 1):
        if not isinstance(rule, str):
            raise ConfigError(
                f"{place}: entry {number}: a rule is a string, not {_type(rule)}", hint=f"put it in quotes, {_EXAMPLE}"
            )
        if rule != AUTO:
            try:
                parse_rule(rule)
            except ConfigError as error:
                raise ConfigError(f"{place}: entry {number}: {error}", hint=error.hint) from error
    return rules


def _type(value: Any) -> str:
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), "a date")
