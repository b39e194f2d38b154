"""Settings and where they come from: option, environment, configuration file, default, in this order. Sans-I/O.

`gopher.options` is the one table: a long option `--connect-timeout` is also the key `connect-timeout` of the file and
the variable `GOPHER_CONNECT_TIMEOUT`, and its text is read by the same function. What is wrong is collected, not raised
at the first: an operator wants to see all of it.
"""

from __future__ import annotations

import argparse
import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from gopher.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "UNREADABLE",
    "Given",
    "Problems",
    "Raw",
    "Setting",
    "from_environment",
    "from_options",
    "merge",
    "misspelt",
    "table",
]

PREFIX: Final = "GOPHER_"

_FLAG_TEXTS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One entry of the table."""

    key: str
    """Of the file: the long option without its dashes."""
    to: str
    """`stage.field`: what it sets in the configuration. `mode` for the mode."""
    option: str
    """As messages name it, like -u/--upstream."""
    kind: Literal["value", "list", "flag", "optional", "count"]
    """optional: a flag that may have a value."""
    convert: Callable[[str], Any] | None
    """Text into what the configuration takes; raises `argparse.ArgumentTypeError`. None: the text itself."""
    const: Any
    """flag, optional: what it sets without a value."""
    rivals: frozenset[str]
    """Keys that exclude this one."""
    form: str
    """Of a value, as the help writes it; empty for a flag."""
    secret: bool
    """Not shown, wherever it was said."""

    @property
    def variable(self) -> str:
        """Of the environment."""
        return PREFIX + self.key.upper().replace("-", "_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A setting as it was written, and where."""

    setting: Setting
    written: Any
    """Text, or a value of TOML; a list of them for what may be repeated."""
    where: str
    """As messages name it: -p/--port, GOPHER_PORT, gopher.toml:3: port."""
    origin: str
    """In short: option, environment, gopher.toml:3."""
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A setting that was read."""

    raw: Raw
    value: Any
    """As the configuration takes it; for a list, its items."""


@dataclass(slots=True)
class Problems:
    """What is wrong, all of it."""

    found: list[tuple[int, str, str]] = field(default_factory=list)
    """Line or 0, message, hint."""

    def add(self, message: str, *, hint: str = "", line: int = 0) -> None:
        """One more. The message names the place."""
        if (line, message, hint) not in self.found:
            self.found.append((line, message, hint))

    def check(self) -> None:
        """Go on only if there are none.

        Raises:
            ConfigError: with all of them, in the order of their lines.
        """
        found = sorted(self.found, key=lambda problem: problem[0])
        if len(found) == 1:
            [(_, message, hint)] = found
            raise ConfigError(message, hint=hint)
        if found:
            lines = [f"{len(found)} settings are wrong"]
            for _, message, hint in found:
                lines.append(f"  {message}")
                if hint:
                    lines.append(f"    hint: {hint}")
            raise ConfigError("\n".join(lines))


def table(parser: argparse.ArgumentParser, *, secret: Iterable[str] = ()) -> dict[str, Setting]:
    """The settings of a parser by key, in its order: every option in its help that sets `mode` or `stage.field`.

    Takes the conversions out of the parser: all sources are read by `merge`.

    Args:
        parser: made for this call.
        secret: destinations whose values are not shown.
    """
    actions = {
        action.option_strings[-1].removeprefix("--"): action
        for action in parser._actions
        if (action.dest == "mode" or "." in action.dest)
        and action.option_strings[-1].startswith("--")
        and action.help != argparse.SUPPRESS
    }
    rivals: dict[str, set[str]] = {key: set() for key in actions}
    for group in parser._mutually_exclusive_groups:
        members = {key for key, action in actions.items() if action in group._group_actions}
        for key in members:
            rivals[key] |= members - {key}
    settings = {
        key: Setting(
            key=key,
            to=action.dest,
            option="/".join(action.option_strings),
            kind=_kind(action),
            convert=action.type,  # type: ignore[arg-type]  # a function, in this parser
            const=action.const,
            rivals=frozenset(rivals[key]),
            form=str(action.metavar or ""),
            secret=action.dest in secret,
        )
        for key, action in actions.items()
    }
    for action in actions.values():
        action.type = None
    return settings


def _kind(action: argparse.Action) -> Literal["value", "list", "flag", "optional", "count"]:
    if isinstance(action, argparse._AppendAction):
        return "list"
    if action.nargs == "?":
        return "optional"
    if action.nargs != 0:
        return "value"
    return "count" if isinstance(action, argparse._CountAction) else "flag"


# -- sources -----------------------------------------------------------------------------------------------------------


def from_options(settings: Mapping[str, Setting], namespace: argparse.Namespace) -> list[Raw]:
    """What the command line said."""
    given = []
    for to, written in vars(namespace).items():
        candidates = [setting for setting in settings.values() if setting.to == to]
        # -v and -q set the same.
        setting = next((each for each in candidates if each.kind == "flag" and each.const == written), None)
        if setting is None and candidates:
            setting = candidates[0]
        if setting is not None:
            # A flag that was taken back sets None.
            value = written is not None if setting.kind == "flag" or written is None else written
            given.append(Raw(setting=setting, written=value, where=setting.option, origin="option"))
    return given


def from_environment(settings: Mapping[str, Setting], environ: Mapping[str, str]) -> list[Raw]:
    """What variables say. An empty one says nothing. Several values of one setting are separated by white space."""
    return [
        Raw(
            setting=setting,
            written=environ[setting.variable].split() if setting.kind == "list" else environ[setting.variable],
            where=setting.variable,
            origin="environment",
        )
        for setting in settings.values()
        if environ.get(setting.variable, "").strip()
    ]


def misspelt(settings: Mapping[str, Setting], environ: Mapping[str, str]) -> list[str]:
    """Warnings about variables that look like settings. Others with the same prefix may be somebody else's."""
    known = [setting.variable for setting in settings.values()]
    nearest = {
        name: difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        for name in environ
        if name.startswith(PREFIX) and name not in {*known, PREFIX + "CONFIG"}
    }
    return [f"{name} is no setting; did you mean {found[0]}?" for name, found in nearest.items() if found]


def from_file(
    settings: Mapping[str, Setting], values: Mapping[str, Any], file: str, lines: Mapping[str, int], problems: Problems
) -> list[Raw]:
    """What one table of a file says.

    Args:
        settings: the table of options.
        values: as TOML has them.
        file: its name, for messages.
        lines: of the keys.
        problems: gets the unknown keys.
    """
    given = []
    for key, written in values.items():
        line = lines.get(key, lines.get("", 0))
        where = f"{file}:{line}: {key}"
        setting = settings.get(key)
        if setting is None:
            nearest = difflib.get_close_matches(key.lower().replace("_", "-"), [*settings, "mirror"], n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "keys are the long options, see gopher --help"
            if isinstance(written, dict) and not nearest:
                hint = "settings stand at the top of the file, or in [[mirror]] tables"
            problems.add(f"{where}: there is no such setting", hint=hint, line=line)
        else:
            given.append(Raw(setting=setting, written=written, where=where, origin=f"{file}:{line}", line=line))
    return given


# -- together ----------------------------------------------------------------------------------------------------------


def merge(layers: Sequence[Sequence[Raw]], problems: Problems) -> dict[str, Given]:
    """The settings that count, by what they set. Every value of every layer is looked at, so that each mistake shows.

    Args:
        layers: what comes first wins, and also over what it excludes: `read` of an option over `interface` of a file.
        problems: gets what cannot be read.
    """
    taken: set[str] = set()
    merged: dict[str, Given] = {}
    for layer in layers:
        here: dict[str, Raw] = {}
        for raw in layer:
            setting = raw.setting
            value = _read(raw, problems)
            clash = next((here[key] for key in here if key in setting.rivals), None)
            if clash is not None:
                problems.add(f"{raw.where}: not together with {clash.where}", line=raw.line)
            here[setting.key] = raw
            if setting.key not in taken:
                merged[setting.to] = Given(raw=raw, value=value)
        for raw in here.values():
            taken |= {raw.setting.key, *raw.setting.rivals}
    return merged


UNREADABLE: Final = object()
"""In place of a value that was said, and is a problem."""


def _read(raw: Raw, problems: Problems) -> Any:
    setting, written = raw.setting, raw.written
    try:
        if setting.kind == "flag":
            return _flag(setting, written)
        if setting.kind == "optional":
            return _flag(setting, written) if _is_flag(written) else _convert(setting, written)
        if setting.kind == "count":
            return _count(written)
        if setting.kind == "value":
            return _convert(setting, written)
        values: list[Any] = []
        for item in written if isinstance(written, list) else [written]:
            value = _convert(setting, item)
            # One item may be several ports.
            values += value if isinstance(value, list) else [value]
        return values
    except argparse.ArgumentTypeError as error:
        reason = str(error)
        if setting.secret and raw.origin != "option":
            reason = f"this is no {setting.form} (not shown)"
        # For every service it tells each container GOPHER_PORT=tcp://10.0.0.1:80 and the like.
        by_kubernetes = raw.origin == "environment" and "tcp://" in str(written) and setting.to == "source.ports"
        hint = "Kubernetes sets it for a service named gopher: enableServiceLinks: false" if by_kubernetes else ""
        problems.add(f"{raw.where}: {reason}", hint=hint, line=raw.line)
        return UNREADABLE


def _is_flag(written: Any) -> bool:
    return isinstance(written, bool) or (isinstance(written, str) and written.strip().lower() in _FLAG_TEXTS)


def _flag(setting: Setting, written: Any) -> Any:
    if isinstance(written, str):
        written = _FLAG_TEXTS.get(written.strip().lower(), written)
    if not isinstance(written, bool):
        raise argparse.ArgumentTypeError(f"{_quoted(written)} is neither true nor false")
    # What false sets is the default: None stands for it.
    return setting.const if written else None


def _count(written: Any) -> int:
    if isinstance(written, str) and written.isascii() and written.isdigit():
        written = int(written[:9])
    if isinstance(written, bool) or not isinstance(written, int):
        raise argparse.ArgumentTypeError(f"{_quoted(written)} is not a whole number")
    if written < 0:
        raise argparse.ArgumentTypeError(f"{written} is out of range: 0 or more")
    return written


def _convert(setting: Setting, written: Any) -> Any:
    # A number may stand without quotes where the option takes one.
    if setting.convert is not None and isinstance(written, (int, float)) and not isinstance(written, bool):
        written = str(written)
    if not isinstance(written, str):
        wanted = "text in quotes" if setting.convert is None else "a number or text in quotes"
        or_array = ", nor an array of such" if setting.kind == "list" else ""
        raise argparse.ArgumentTypeError(f"{_quoted(written)} is not {wanted}{or_array}")
    if "\0" in written:
        # Neither a file name nor anything else that goes to the system or over the network can hold one.
        raise argparse.ArgumentTypeError(f"{_quoted(written)} has a NUL character")
    return written if setting.convert is None else setting.convert(written)


def _quoted(written: Any) -> str:
    """A value of TOML, as it is written there."""
    if isinstance(written, dict):
        return "a table"
    if isinstance(written, list):
        return "an array"
    if isinstance(written, bool):
        return str(written).lower()
    return repr(written) if isinstance(written, (str, int, float)) else str(written)
