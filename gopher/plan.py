"""From settings to the mirrors of one command: layers, modes, and what mirrors in one file may not share. Sans-I/O.

A file is one mirror, or several [[mirror]] tables whose common settings stand above them. What is wrong is collected
over all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gopher.config import CaptureConfig, RelayConfig
from gopher.errors import ConfigError
from gopher.settings import UNREADABLE, Problems, from_file, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gopher.settings import Given, Raw, Setting
    from gopher.tomlfile import TomlFile

__all__ = ["EXAMPLE", "SHARED", "MirrorPlan", "Plan", "Scope", "is_for", "make_mirrors"]

T = TypeVar("T")

# Settings that capture and relay mode share: the stage that the option belongs to, and the name.
SHARED: Final = {
    "source.ports",
    "mirror.upstreams",
    "mirror.connect_timeout_s",
    "mirror.max_connections",
    "run.report_path",
    "run.metrics_address",
    "run.user",
    "run.duration_s",
    "run.drain_s",
    "run.verbosity",
    "run.log_format",
    "run.live",
    "run.stats_interval_s",
}
# What two processes cannot have both.
_ONE_EACH: Final = ("run.report_path", "run.write_path", "run.metrics_address")
EXAMPLE: Final = "gopher --mode=capture --port=80 --upstream=machineB:1080"
MODES: Final = "-c or --mode=capture, -r or --mode=relay"
# Beginnings of what relay mode alone has.
_RELAYS: Final = ("relay.", "tls.")
_LISTEN: Final = "relay.listen_host"
_PORTS: Final = "source.ports"


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorPlan:
    """What one process does."""

    name: str
    """Of its table in the file; empty if it has none."""
    config: CaptureConfig | RelayConfig
    given: Mapping[str, Given]
    """What was said about it, by what it sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the command was asked to do."""

    mirrors: tuple[MirrorPlan, ...]
    """At least one; one without a name is the only one."""
    path: str | None = None
    """Of the configuration file."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Of the settings, by the last part of what they set."""
    check: str | None = None
    """What to print instead: the settings that count, as a configuration file."""
    warnings: tuple[str, ...] = ()
    """What is no mistake, but looks like one."""


def is_for(setting: Setting, mode: str) -> bool:
    """Whether a mode has this setting."""
    return setting.to in SHARED or setting.to == "mode" or (setting.to.startswith(_RELAYS) == (mode == "relay"))


class Scope:
    """What was said about one mirror, on its way to a configuration.

    Args:
        name: of the mirror; may be empty.
        given: what was said, by what it sets.
        problems: gets what is wrong.
        place: how messages begin that are about the whole of it.
        line: where the file begins to speak of it, or 0.
    """

    def __init__(
        self, name: str, given: dict[str, Given], problems: Problems, *, place: str = "", line: int = 0
    ) -> None:
        self.name = name
        self.given = {to: each for to, each in given.items() if each.value is not UNREADABLE}
        self._unreadable = given.keys() - self.given.keys()
        self._problems = problems
        self._place = place
        self._line = line

    @property
    def mode(self) -> str | None:
        """Capture or relay, if that was said."""
        return self.given["mode"].value if "mode" in self.given else None

    def stages(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The values, by the stages of the configuration."""
        stages: dict[str, dict[str, Any]] = {name: {} for name in names}
        for to, each in self.given.items():
            stage, _, name = to.rpartition(".")
            # None: a flag that is false, which is the default.
            if stage and not (each.value is None and each.raw.setting.kind in ("flag", "optional")):
                stages[stage][name] = each.value
        return stages

    def missing(self, to: str, what: str, option: str, *, example: str) -> None:
        """What sets `to` has to be said."""
        if to in self._unreadable:
            return
        if self._place:
            key = option.rpartition("--")[2].partition("=")[0]
            self._problems.add(f"{self._place}{what} is missing: the key {key}, or {option}", line=self._line)
        else:
            self._problems.add(f"{what} is missing: {option}", hint=f"for example: {example}")

    def wrong(self, to: str, reason: str, *, hint: str = "") -> None:
        """What sets `to` is wrong; `reason` follows on its place and name."""
        raw = self.given[to].raw
        self._problems.add(f"{raw.where}{reason}", hint=hint, line=raw.line)

    def attempt(self, to: str, read: Callable[[], T]) -> T | None:
        """What `read` makes of a value of `to`; what it raises is one more problem."""
        try:
            return read()
        except ConfigError as error:
            self.wrong(to, f" {str(error).removeprefix(f'{self.given[to].raw.setting.key} ')}", hint=error.hint)
            return None

    def build(self, make: Callable[[Scope], CaptureConfig | RelayConfig]) -> CaptureConfig | RelayConfig | None:
        """Call `make`; what it raises or says is wrong is one more problem. Returns None if there is one."""
        if self.mode is None:
            self.missing("mode", "the mode", MODES, example=EXAMPLE)
            return None
        before = len(self._problems.found)
        try:
            config = make(self)
        except ConfigError as error:
            self._problems.add(f"{self._place}{error}", hint=error.hint, line=self._line)
            return None
        return config if len(self._problems.found) == before else None


def make_mirrors(
    settings: Mapping[str, Setting],
    options: Sequence[Raw],
    environment: Sequence[Raw],
    file: tuple[str, TomlFile] | None,
    make: Callable[[Scope], CaptureConfig | RelayConfig],
) -> tuple[MirrorPlan, ...]:
    """Bring together what was said.

    Args:
        settings: the table.
        options: what the command line said, for all mirrors.
        environment: what variables said, for all mirrors.
        file: its name and what is in it.
        make: a configuration of one mirror; see `Scope.build`.

    Raises:
        ConfigError: with everything that is wrong.
    """
    problems = Problems()
    scopes = []
    if file is None:
        scopes.append(Scope("", merge([options, environment], problems), problems))
    else:
        path, content = file
        common = from_file(settings, content.values, path, content.lines, problems)
        layers = [options, environment, common]
        if content.mirrors:
            scopes = _tables(settings, layers, path, content, problems)
            _check_vain([raw for layer in layers for raw in layer], scopes, problems)
        else:
            scopes.append(Scope("", merge(layers, problems), problems, place=f"{path}: "))
    _check_clashes(scopes)
    configs = [scope.build(make) for scope in scopes]
    problems.check()
    built = [config for config in configs if config is not None]
    return tuple(
        MirrorPlan(name=scope.name, config=_beside(replace(config, name=scope.name), built, config), given=scope.given)
        for scope, config in zip(scopes, built, strict=True)
    )


def _tables(
    settings: Mapping[str, Setting], layers: Sequence[Sequence[Raw]], path: str, content: TomlFile, problems: Problems
) -> list[Scope]:
    scopes: list[Scope] = []
    for values, lines in zip(content.mirrors, content.mirror_lines, strict=True):
        name = values.get("name")
        line = lines.get("name", lines[""])
        if name is None:
            problems.add(f"{path}:{line}: name: this mirror has none", hint='like name = "shop"', line=line)
        elif not isinstance(name, str) or re.fullmatch(r"[\w.-]+", name, re.ASCII) is None:
            problems.add(f"{path}:{line}: name: {name!r} is not made of letters, digits, '-', '_' and '.'", line=line)
        elif name in [scope.name for scope in scopes]:
            problems.add(f"{path}:{line}: name: there is a mirror {name} already", line=line)
        own = from_file(settings, {key: values[key] for key in values if key != "name"}, path, lines, problems)
        given = merge([*layers[:2], own, *layers[2:]], problems)
        place = f"{path}:{lines['']}: mirror {name}: "
        scope = Scope(str(name), given, problems, place=place, line=lines[""])
        if scope.mode is not None:
            # What is said for all mirrors is for those that have such a setting.
            vain = [to for to, each in scope.given.items() if not is_for(each.raw.setting, scope.mode)]
            for to in vain:
                if scope.given[to].raw not in own:
                    del scope.given[to]
        scopes.append(scope)
    return scopes


def _check_vain(common: Iterable[Raw], scopes: Sequence[Scope], problems: Problems) -> None:
    """What was said for all mirrors must be for one of them at least."""
    modes = {scope.mode for scope in scopes}
    for raw in common:
        if None not in modes and not any(is_for(raw.setting, str(mode)) for mode in modes):
            problems.add(f"{raw.where}: no mirror has a mode with this setting", line=raw.line)


def _check_clashes(scopes: Sequence[Scope]) -> None:
    for index, scope in enumerate(scopes):
        for other in scopes[:index]:
            for to in _ONE_EACH:
                mine, theirs = scope.given.get(to), other.given.get(to)
                if mine is not None and theirs is not None and mine.value == theirs.value:
                    scope.wrong(to, f": mirror {other.name} has the same", hint="give each mirror its own")
            if scope.mode == other.mode == "relay" and _PORTS in scope.given and _PORTS in other.given:
                hosts = {each.given[_LISTEN].value if _LISTEN in each.given else "" for each in (scope, other)}
                both = set(scope.given[_PORTS].value) & set(other.given[_PORTS].value)
                if both and ("" in hosts or len(hosts) == 1):
                    scope.wrong(_PORTS, f": mirror {other.name} listens on {min(both)} already")


def _beside(
    config: CaptureConfig | RelayConfig,
    built: Sequence[CaptureConfig | RelayConfig],
    itself: CaptureConfig | RelayConfig,
) -> CaptureConfig | RelayConfig:
    """Where the other mirrors of the file send: a capture may see that, and two could feed each other for ever."""
    if isinstance(config, RelayConfig):
        return config
    beside = []
    for other in built:
        if other is not itself:
            sends = other.mirror.upstreams if isinstance(other, CaptureConfig) else other.upstreams
            ports = other.source.ports if isinstance(other, CaptureConfig) else other.ports
            beside += [
                replace(upstream, port=port)
                for upstream in sends
                if upstream.scheme != "dir"
                for port in ([upstream.port] if upstream.port else ports)
            ]
    return replace(config, beside=tuple(beside))
