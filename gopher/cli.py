"""The `gopher` command: settings -> `CaptureConfig` or `RelayConfig` -> `trio.run`, and the exit status.

`read_plan` is pure but for the files of settings that it reads: no name resolution, no output but that of `--help` and
`--version`. `main` is the only place that prints errors and that unpacks exception groups. The default of every option
is that of the field it sets in `gopher.config`: an option that was not given is not passed on.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gopher import values
from gopher.config import (
    CaptureConfig,
    MirrorConfig,
    ReassemblyConfig,
    RelayConfig,
    SourceConfig,
    TlsConfig,
    UpstreamConfig,
)
from gopher.effective import effective_toml
from gopher.errors import ConfigError, GopherError, leaves_of
from gopher.observe.log import Log
from gopher.options import NEEDS, SECRET, STAGES, Parser, default_of, option_parser, unknown_argument
from gopher.plan import EXAMPLE, SHARED, Plan, is_for, make_mirrors
from gopher.relay.rulefile import read_rules
from gopher.relay.rules import AUTO, parse_rule
from gopher.settings import from_environment, from_options, misspelt, table
from gopher.stdout import flush_all, keep_standard_descriptors, to_stdout
from gopher.supervisor import supervise
from gopher.tomlfile import LIMIT_BYTES, read_toml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gopher.observe.log import LogFormat
    from gopher.plan import MirrorPlan, Scope
    from gopher.tomlfile import TomlFile

__all__ = ["main", "parse", "read_plan"]

RELAY_EXAMPLE: Final = "gopher -r -p 3280 -u localhost:80"

EXIT_INTERRUPTED: Final = 130
"""What a shell reports for a program that SIGINT ended."""

_MODES_HINT: Final = "gopher --help lists the options of each mode"
_PASSES_ON: Final = "a relay passes on all that comes, as fast as its upstream takes it"
_PER_CONNECTION: Final = "a relay's memory is bounded for each connection: allow fewer with --max-connections"
# Limits that only a capture has: the reason, and the way out.
_INSTEAD: Final = {
    "mirror.sample_ratio": f"{_PASSES_ON}: limit the gopher -c that sends to it",
    "mirror.max_bytes_per_s": f"{_PASSES_ON}: limit the gopher -c that sends to it",
    "mirror.max_connections_per_s": f"{_PASSES_ON}: limit the gopher -c that sends to it",
    "mirror.cpu_limit": f"{_PASSES_ON}: limit the gopher -c that sends to it, or its control group (CPUQuota=)",
    "mirror.connection_memory_bytes": _PER_CONNECTION,
    "mirror.upstream_memory_bytes": _PER_CONNECTION,
    "mirror.total_memory_bytes": _PER_CONNECTION,
    "run.max_memory_bytes": f"{_PER_CONNECTION}, or limit its control group (MemoryMax=)",
}
# For what is missing, so that all the rest is looked at, too.
_PLACEHOLDER_PORTS: Final = (80,)
_PLACEHOLDER_UPSTREAMS: Final = (UpstreamConfig(name="missing", host="missing"),)
# What setup.py leaves out elsewhere than on Linux.
_LINUX_ONLY: Final = ("gopher._pump", "gopher.relay._tunnel")


def parse(argv: Sequence[str]) -> CaptureConfig | RelayConfig:
    """Turn command-line arguments, without an environment, into one configuration; see `read_plan`."""
    return read_plan(argv, {}).mirrors[0].config


def read_plan(argv: Sequence[str], environ: Mapping[str, str]) -> Plan:
    """Turn command-line arguments, the environment and the configuration file that they name into configurations.

    Args:
        argv: the arguments, without the program's name.
        environ: variables.

    Raises:
        ConfigError: an argument is unknown, malformed, out of range, missing, or not in this version; of the file and
            the environment, everything that is wrong.
        SystemExit: `--help` or `--version` was given, and has been printed to stdout.
    """
    parser = option_parser()
    settings = table(parser, secret=SECRET)
    namespace, unknown = parser.parse_known_args(argv)
    for argument in unknown:
        if argument != "--":  # by which some say that no option follows
            raise unknown_argument(argument)
    path = getattr(namespace, "config", environ.get("GOPHER_CONFIG") or None)
    file = None if path is None else (path, _read_settings(path))
    mirrors = make_mirrors(
        settings, from_options(settings, namespace), from_environment(settings, environ), file, _make
    )
    check = effective_toml(mirrors, settings, default_of, NEEDS) if hasattr(namespace, "check_config") else None
    keys = {setting.to.rpartition(".")[2]: setting.key for setting in reversed(settings.values())}
    keys["couple_auto"] = "couple"
    warnings = tuple(misspelt(settings, environ))
    return Plan(mirrors=mirrors, path=path, keys=keys, check=check, warnings=warnings)


def _read_settings(path: str) -> TomlFile:
    return read_toml(_read_text(path, "the configuration file "), path)


def _read_text(path: str, what: str = "") -> str:
    try:
        with open(path, "rb") as stream:
            data = stream.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{what}{path} cannot be read: {error.strerror}") from error
    if len(data) > LIMIT_BYTES:
        raise ConfigError(f"{what}{path} is too long: more than {values.plain_size(LIMIT_BYTES)}")
    try:
        # Some editors begin a file with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: this is no UTF-8 text") from error


def _make(scope: Scope) -> CaptureConfig | RelayConfig:
    for to, each in scope.given.items():
        if scope.mode is not None and not is_for(each.raw.setting, scope.mode):
            other = "relay" if scope.mode == "capture" else "capture"
            scope.wrong(to, f" is for {other} mode only", hint=_INSTEAD.get(to, _MODES_HINT))
    given = scope.stages(STAGES)
    return _relay(scope, given) if scope.mode == "relay" else _capture(scope, given)


def _capture(scope: Scope, given: dict[str, dict[str, Any]]) -> CaptureConfig:
    source, mirror = given["source"], given["mirror"]
    if not source.get("ports"):
        scope.missing("source.ports", "the port to capture", "-p/--port", example=EXAMPLE)
    if not mirror.get("upstreams"):
        scope.missing("mirror.upstreams", "an upstream", "-u/--upstream", example=EXAMPLE)
    if "speed" in source and "read_path" not in source:
        scope.wrong("source.speed", " is for capture files only", hint="add --read FILE, or leave --speed out")
    if "cpu_limit" in mirror and "read_path" in source:
        scope.wrong("mirror.cpu_limit", " is for devices only", hint="a file can be read more slowly: --speed")
    if "read_path" in source and source["read_path"] == given["run"].get("write_path"):
        scope.wrong("run.write_path", f" {source['read_path']} would overwrite the file that --read reads")
    source["ports"] = tuple(dict.fromkeys(source.get("ports", ()))) or _PLACEHOLDER_PORTS
    mirror["upstreams"] = _upstreams(scope, source["ports"])
    for upstream in mirror["upstreams"]:
        if upstream.scheme == "tls":
            scope.wrong(
                "mirror.upstreams",
                f" {upstream.name!r}: capture mode does not speak TLS, relay mode does",
                hint=f"start gopher -r -p 3280 --listen 127.0.0.1 -u {upstream.name}, and capture to 127.0.0.1:3280",
            )
    return CaptureConfig(
        source=SourceConfig(**source),
        reassembly=ReassemblyConfig(**given["reassembly"]),
        mirror=MirrorConfig(**mirror),
        **given["run"],
    )


def _relay(scope: Scope, given: dict[str, dict[str, Any]]) -> RelayConfig:
    settings = given["relay"]
    for stage, found in given.items():
        if stage != "relay":
            settings |= {name: found[name] for name in found if f"{stage}.{name}" in SHARED}
    if not settings.get("ports"):
        scope.missing("source.ports", "the port to listen on", "-p/--port", example=RELAY_EXAMPLE)
    if not settings.get("upstreams"):
        scope.missing("mirror.upstreams", "an upstream", "-u/--upstream", example=RELAY_EXAMPLE)
    settings["ports"] = tuple(dict.fromkeys(settings.get("ports", ()))) or _PLACEHOLDER_PORTS
    texts = settings.get("upstreams")
    if texts and not texts[0].startswith("tls://"):
        for name in given["tls"]:
            scope.wrong(f"tls.{name}", " is for a tls:// upstream, the first one", hint="like -u tls://shadow:443")
    settings["upstreams"] = _upstreams(scope, (80,))
    settings["tls"] = TlsConfig(**given["tls"]) if settings["upstreams"][0].scheme == "tls" else TlsConfig()
    for upstream in settings["upstreams"]:
        if upstream.scheme == "dir":
            scope.wrong(
                "mirror.upstreams",
                f" {upstream.name!r}: relay mode sends to servers only",
                hint=f"like {RELAY_EXAMPLE}",
            )
    settings["link_from"] = tuple(settings.get("link_from", ()))
    rules = list(settings.get("couple", ()))
    for rule in rules:
        if rule != AUTO:
            scope.attempt("relay.couple", partial(parse_rule, rule))
    settings["couple_files"] = tuple(settings.get("couple_files", ()))
    for path in settings["couple_files"]:
        rules += scope.attempt("relay.couple_files", partial(_rules_of, path)) or ()
    settings["couple"] = tuple(dict.fromkeys(rule for rule in rules if rule != AUTO))
    settings["couple_auto"] = AUTO in rules
    settings["scripts"] = tuple(settings.get("scripts", ()))
    return RelayConfig(**settings)


def _rules_of(path: str) -> list[str]:
    return read_rules(_read_text(path), path)


def _upstreams(scope: Scope, ports: tuple[int, ...]) -> tuple[UpstreamConfig, ...]:
    to = "mirror.upstreams"
    texts = scope.given[to].value if to in scope.given else ()
    found = [scope.attempt(to, partial(values.to_upstream, text, ports)) for text in texts]
    return tuple(upstream for upstream in found if upstream is not None) or _PLACEHOLDER_UPSTREAMS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` defaults to the process's own arguments.

    Returns:
        The exit status: 0 finished, 1 failed while running, 2 wrong usage or configuration, 77 not permitted to
        capture, 130 interrupted before or after the capture proper.

    Raises:
        SystemExit: after `--help` and `--version`.
        Exception: a bug, with its traceback.
    """
    keep_standard_descriptors()
    words = sys.argv[1:] if argv is None else argv
    log = Log(_log_format(words, os.environ))
    return _guarded(partial(_main, words, log), log)


def _main(argv: Sequence[str], log: Log) -> int:
    plan = read_plan(argv, os.environ)
    if plan.check is not None:
        for warning in plan.warnings:
            log.warning("settings", warning)
        to_stdout(plan.check)
        return 0
    _require_linux()
    if not plan.mirrors[0].name:
        return _run(argv, plan, plan.mirrors[0])
    return supervise(
        {mirror.name: mirror for mirror in plan.mirrors},
        lambda mirror, ready: _guarded(
            partial(_run, argv, plan, mirror, ready), Log(mirror.config.log_format, name=mirror.name)
        ),
        lambda: {mirror.name: mirror for mirror in _reread(argv, several=True)},
    )


def _run(argv: Sequence[str], plan: Plan, mirror: MirrorPlan, ready: Callable[[], None] = lambda: None) -> int:
    # Here, so that --help, --version and usage errors do not wait for it.
    import trio

    from gopher.control import Control

    def reread() -> CaptureConfig | RelayConfig:
        for each in _reread(argv, several=bool(mirror.name)):
            if each.name == mirror.name:
                return each.config
        raise ConfigError(f"mirror {mirror.name} is no more in {plan.path}")

    # A terminal that hangs up ends gopher; a service manager means a reload, whatever there is to read.
    reloads = plan.path is not None or bool(os.environ.get("NOTIFY_SOCKET"))
    control = Control(reread if reloads else None, plan.keys, ready)
    if isinstance(mirror.config, RelayConfig):
        from gopher.relay.server import run_relay

        return trio.run(run_relay, mirror.config, control)
    from gopher.capture.run import run_capture

    return trio.run(run_capture, mirror.config, control)


def _reread(argv: Sequence[str], *, several: bool) -> tuple[MirrorPlan, ...]:
    """The mirrors that the file has now."""
    plan = read_plan(argv, os.environ)
    if bool(plan.mirrors[0].name) != several:
        raise ConfigError(f"{plan.path}: going to or from [[mirror]] tables needs a restart")
    return plan.mirrors


def _guarded(call: Callable[[], int], log: Log) -> int:
    """Say what the user has to mend. What is a bug goes on."""
    log.speak_for_process()
    try:
        return call()
    except BaseException as error:
        leaves = list(leaves_of(error))
        if not all(isinstance(leaf, (GopherError, KeyboardInterrupt)) for leaf in leaves):
            raise
        for leaf in leaves:
            if isinstance(leaf, GopherError):
                log.error(str(leaf), leaf.hint, leaf.exit_status)
                return leaf.exit_status
        return EXIT_INTERRUPTED
    finally:
        flush_all()


def _require_linux() -> None:
    missing = [name for name in _LINUX_ONLY if importlib.util.find_spec(name) is None]
    if missing:
        raise GopherError(
            f"this build of gopher cannot mirror: it has no {' and no '.join(missing)}",
            hint="mirroring needs Linux; elsewhere gopher is a library that reads captures, like gopher.read_streams",
        )


def _log_format(argv: Sequence[str], environ: Mapping[str, str]) -> LogFormat:
    """How to say what is wrong. It may be the settings, so they are only looked at."""
    parser = Parser(argument_default=argparse.SUPPRESS, allow_abbrev=False, add_help=False)
    parser.add_argument("--log-format")
    parser.add_argument("--config")
    said = {"log_format": environ.get("GOPHER_LOG_FORMAT"), "config": environ.get("GOPHER_CONFIG")}
    with contextlib.suppress(ConfigError):  # what is wrong is said by whoever reads all of it
        said |= vars(parser.parse_known_args(argv)[0])
        if not said["log_format"] and said["config"]:
            file = _read_settings(said["config"])
            # Of several mirrors, what is said of all of them takes after the first.
            said["log_format"] = {**file.values, **dict(*file.mirrors[:1])}.get("log-format")
    return "json" if said["log_format"] == "json" else "text"
