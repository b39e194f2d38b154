"""Coupling rules: where a server hands values out.

A rule is one line of text, `kind:argument`, and names a structural place in responses. Where clients use the value
needs no rule: it is found by its value (see `gopher.relay.places`).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from gopher.errors import ConfigError

__all__ = ["AUTO", "BODY_KINDS", "Rule", "RuleKind", "parse_rule"]

RuleKind = Literal["cookie", "header", "json", "form", "query", "location", "regex"]

AUTO: Final = "auto"
"""Given in place of a rule: every cookie that both servers set. No `Rule` stands for it."""

BODY_KINDS: Final = frozenset({"json", "form", "query", "regex"})
"""Kinds that look at the bodies of responses."""

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_FORMS: Final = (
    "use cookie:NAME, header:NAME, json:/POINTER, form:NAME, query:NAME, location:NAME, location:/PATH/{} or regex:…"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rule:
    """One place where values are handed out. Made by `parse_rule`; compared by identity, for it is a key."""

    text: str
    """As the user wrote it."""
    kind: RuleKind
    name: bytes = b""
    """Of the cookie, header (lower case), field or parameter; of a pointer its last token; of a path template the
    segment before `{}`. Empty for a regular expression. Short values are looked for under this name only."""
    pointer: tuple[str, ...] = ()
    """json: the unescaped reference tokens (RFC 6901 section 4)."""
    template: tuple[bytes, ...] = ()
    """location with a path: its segments, exactly one of them `{}`."""
    pattern: re.Pattern[bytes] | None = None
    """regex: with one group."""


def parse_rule(text: str) -> Rule:
    """Read one rule.

    Raises:
        ConfigError: the kind is unknown or its argument is not one; the message quotes the rule.
    """
    kind, colon, argument = text.partition(":")
    if kind in {"cookie", "header"} and colon:
        if not _TOKEN.fullmatch(argument):
            raise ConfigError(f"couple {text!r}: {argument!r} cannot be the name of a {kind}")
        name = argument if kind == "cookie" else argument.lower()
        return Rule(text=text, kind="cookie" if kind == "cookie" else "header", name=name.encode())
    if kind == "json" and colon:
        return _pointer_rule(text, argument)
    if kind == "location" and argument.startswith("/"):
        return _template_rule(text, argument)
    if kind in {"form", "query", "location"} and colon:
        if not argument:
            raise ConfigError(f"couple {text!r}: the name is missing", hint=_FORMS)
        known: dict[str, RuleKind] = {"form": "form", "query": "query", "location": "location"}
        return Rule(text=text, kind=known[kind], name=argument.encode())
    if kind == "regex" and colon:
        return _regex_rule(text, argument)
    nearest = difflib.get_close_matches(kind, (*get_args(RuleKind), AUTO), n=1)
    question = f" (did you mean {nearest[0]}{colon}{argument}?)" if nearest and nearest[0] != kind else ""
    raise ConfigError(f"couple {text!r} is no rule{question}", hint=_FORMS)


def _pointer_rule(text: str, argument: str) -> Rule:
    if argument and not argument.startswith("/"):
        raise ConfigError(f"couple {text!r}: a JSON pointer begins with /")
    if re.search(r"~(?![01])", argument):
        raise ConfigError(f"couple {text!r}: in a JSON pointer ~ is written ~0, and / within a name ~1")
    # "~1" first, or "~01" would become "/": RFC 6901 section 4.
    tokens = tuple(token.replace("~1", "/").replace("~0", "~") for token in argument.split("/")[1:])
    return Rule(text=text, kind="json", name=tokens[-1].encode() if tokens else b"", pointer=tokens)


def _template_rule(text: str, argument: str) -> Rule:
    template = tuple(argument.encode().split(b"/")[1:])
    if template.count(b"{}") != 1 or argument.count("{}") != 1:
        raise ConfigError(
            f"couple {text!r}: exactly one segment of the path must be {{}}", hint="for example location:/order/{}"
        )
    place = template.index(b"{}")
    return Rule(text=text, kind="location", name=template[place - 1] if place else b"", template=template)


def _regex_rule(text: str, argument: str) -> Rule:
    try:
        pattern = re.compile(argument.encode())
    except re.error as error:
        raise ConfigError(f"couple {text!r}: {error}") from error
    if pattern.groups != 1:
        raise ConfigError(f"couple {text!r}: {pattern.groups} groups where exactly one says what the value is")
    return Rule(text=text, kind="regex", pattern=pattern)
