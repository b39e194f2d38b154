"""The `gopher` command: settings -> `CaptureConfig` or `RelayConfig` -> `trio.run`, and the exit status.

`read_plan` is pure but for the files of settings that it reads: no name resolution, no output but that of `--help` and
`--version`. `main` is the only place that prints errors and that unpacks exception groups. The default of every option
is that of the field it sets in `gopher.config`: an option that was not given is not passed on.

`_parser` is the one table of settings: an entry there is also a key of the file and a variable of the environment, see
`gopher.settings`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib.util
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO, get_args

from gopher import __version__, values
from gopher.config import (
    MIB,
    MINIMUM_MEMORY_BYTES,
    CaptureConfig,
    Forwarded,
    MirrorConfig,
    OverlapPolicy,
    ReassemblyConfig,
    RelayConfig,
    SourceConfig,
    TlsConfig,
    UpstreamConfig,
)
from gopher.effective import effective_toml
from gopher.errors import ConfigError, GopherError, leaves_of
from gopher.observe.log import Log, LogFormat
from gopher.plan import EXAMPLE, SHARED, Plan, is_for, make_mirrors
from gopher.relay.rulefile import read_rules
from gopher.relay.rules import AUTO, parse_rule
from gopher.settings import from_environment, from_options, misspelt, table
from gopher.supervisor import supervise
from gopher.tomlfile import LIMIT_BYTES, read_toml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _typeshed import SupportsWrite

    from gopher.plan import MirrorPlan, Scope
    from gopher.tomlfile import TomlFile

__all__ = ["main", "parse", "read_plan"]

RELAY_EXAMPLE: Final = "gopher -r -p 3280 -u localhost:80"

EXIT_INTERRUPTED: Final = 130
"""What a shell reports for a program that SIGINT ended."""

USAGE: Final = "gopher -c|-r -p PORT -u UPSTREAM [-u UPSTREAM ...] [option ...]"

DESCRIPTION: Final = """\
Mirror live TCP traffic. Capture mode: what clients send to a port of this machine
also goes to each upstream, on a connection of its own per client connection.
Gopher only listens; the server on that port notices nothing. Relay mode: accept
mirrored traffic and pass it on to a web server, with production's session values
turned into those of that server.
"""

EPILOG: Final = """\
UPSTREAM is one of
  HOST[:PORT]          host name or IPv4 address; without PORT, the captured port
                       (relay mode: 80)
  [ADDRESS][:PORT]     IPv6 address
  tcp://HOST[:PORT]    the same, as a URL
  tls://HOST[:PORT]    over TLS, by default to port 443; relay mode, first UPSTREAM
  relay://HOST[:PORT]  a relay, or any server that speaks the PROXY protocol: it is
                       told who the client was, and with --responses a relay gets
                       production's answers along
  dir:PATH             each client's stream into a file of this directory

SIZE is bytes, or has a unit: 512k, 64M, 1GiB (powers of 1024).

Every long option can also be said in a TOML file (--config; `drain = 10`) and in the
environment (GOPHER_DRAIN=10). An option wins over the environment, and that over the
file; --no-responses takes back a `responses = true` of the file.

examples:
  gopher --mode=capture --port=80 --upstream=machineB:1080
  gopher -c -p 80 -u machineB:3280 -u machineC:3280 -u machineD
  gopher -c -i eth0 -p 80,8080 -u staging:80 --sample 10% --report accounts.json
  gopher -c -p 80 --read monday.pcap --speed max -u dir:streams
  gopher -r -p 3280 -u localhost:80
  gopher -r -p 3280 -u tls://shadow.example.com --host shadow.example.com

exit status:
  0 finished, 1 failed while running, 2 wrong usage, 77 not permitted to capture

SIGTERM and SIGINT stop taking in and deliver what is pending; a second one exits
at once. SIGUSR1 prints the accounts. SIGHUP reads the --config file again.
"""

_STAGES: Final[dict[str, type]] = {
    "source": SourceConfig,
    "reassembly": ReassemblyConfig,
    "mirror": MirrorConfig,
    "run": CaptureConfig,
    "relay": RelayConfig,
    "tls": TlsConfig,
}
# What `--check-config` does not show.
_SECRET: Final = ("relay.marker",)
# What may not be said without another.
_NEEDS: Final = {"source.speed": "source.read_path"}
# For what is missing, so that all the rest is looked at, too.
_PLACEHOLDER_PORTS: Final = (80,)
_PLACEHOLDER_UPSTREAMS: Final = (UpstreamConfig(name="missing", host="missing"),)
# What setup.py leaves out elsewhere than on Linux.
_LINUX_ONLY: Final = ("gopher._pump", "gopher.relay._tunnel")
_FILE_NAME: Final = values.to_name("a file")
# set_buffer_size() of libpcap takes a C int; the kernel's ring is made of 256 KiB blocks, and one is no ring.
_RING_MIN_BYTES: Final = 512 << 10
_RING_MAX_BYTES: Final = 2047 * MIB


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
    parser = _parser()
    settings = table(parser, secret=_SECRET)
    namespace, unknown = parser.parse_known_args(argv)
    for argument in unknown:
        if argument != "--":  # by which some say that no option follows
            raise _unknown_argument(argument)
    path = getattr(namespace, "config", environ.get("GOPHER_CONFIG") or None)
    file = None if path is None else (path, _read_settings(path))
    mirrors = make_mirrors(
        settings, from_options(settings, namespace), from_environment(settings, environ), file, _make
    )
    check = effective_toml(mirrors, settings, _default, _NEEDS) if hasattr(namespace, "check_config") else None
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
            scope.wrong(to, f" is for {other} mode only", hint="gopher --help lists the options of each mode")
    given = scope.stages(_STAGES)
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
    words = sys.argv[1:] if argv is None else argv
    log = Log(_log_format(words, os.environ))
    return _guarded(partial(_main, words, log), log)


def _main(argv: Sequence[str], log: Log) -> int:
    plan = read_plan(argv, os.environ)
    if plan.check is not None:
        for warning in plan.warnings:
            log.warning("settings", warning)
        _print(plan.check)
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
        # The interpreter flushes once more at its end, and would complain, with an exit status of its own.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not _flushed(stream):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _flushed(stream: TextIO) -> bool:
    try:
        stream.flush()
    except OSError:
        return False  # whoever reads it has gone, or its disk is full
    return True


def _print(text: str) -> None:
    """To stdout, for whoever asked for it.

    Raises:
        GopherError: it cannot be had there.
    """
    if sys.stdout is None:
        raise GopherError("cannot write to stdout: it is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        return  # `gopher --help | head -1`: whoever reads it has seen enough
    except OSError as error:
        raise GopherError(f"cannot write to stdout: {error.strerror}") from error


def _require_linux() -> None:
    missing = [name for name in _LINUX_ONLY if importlib.util.find_spec(name) is None]
    if missing:
        raise GopherError(
            f"this build of gopher cannot mirror: it has no {' and no '.join(missing)}",
            hint="mirroring needs Linux; elsewhere gopher is a library that reads captures, like gopher.read_streams",
        )


def _log_format(argv: Sequence[str], environ: Mapping[str, str]) -> LogFormat:
    """How to say what is wrong. It may be the settings, so they are only looked at."""
    parser = _Parser(argument_default=argparse.SUPPRESS, allow_abbrev=False, add_help=False)
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


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        # Help and the version. Argparse itself would lose what cannot be written without a word.
        _print(message)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "), hint="gopher --help explains the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gopher",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    required = parser.add_argument_group("what to do")
    mode = required.add_mutually_exclusive_group()
    mode.add_argument("-c", dest="mode", action="store_const", const="capture", help="the same as --mode=capture")
    mode.add_argument("-r", dest="mode", action="store_const", const="relay", help="the same as --mode=relay")
    mode.add_argument("--mode", type=values.to_one_of("capture", "relay"), metavar="MODE", help="capture or relay")
    _add(
        required,
        *("-p", "--port"),
        to="source.ports",
        action="append",
        type=values.to_ports,
        metavar="PORT[,PORT...]",
        help="the server's TCP port, or the relay's own; repeat it, or list several with commas",
    )
    _add(
        required,
        *("-u", "--upstream"),
        to="mirror.upstreams",
        action="append",
        metavar="UPSTREAM",
        help="where a copy goes; repeat it for several, see below",
    )

    source = parser.add_argument_group("source")
    device = source.add_mutually_exclusive_group()
    _add(
        device,
        *("-i", "--interface"),
        to="source.interface",
        type=values.to_name("a device"),
        metavar="DEVICE",
        help="network device to capture on",
    )
    _add(
        device,
        "--read",
        to="source.read_path",
        type=_FILE_NAME,
        metavar="FILE",
        help="read a capture file instead of a device",
    )
    _add(
        source,
        "--speed",
        to="source.speed",
        type=values.to_speed,
        metavar="FACTOR",
        help="for --read: 1.0 keeps the timing, 2.0 is twice as fast, max is as fast as the upstreams take it",
    )
    _add(source, "--filter", to="source.filter", metavar="BPF", help="one more condition on packets, like 'src net 10'")
    _add(source, "--responses", to="source.responses", action="store_true", help="capture the server's answers too")
    _add(
        source,
        "--decap",
        to="source.decap",
        action="store_true",
        help="look into VXLAN, GRE and IP-in-IP for TCP packets",
    )
    _add(
        source,
        "--write",
        to="run.write_path",
        type=_FILE_NAME,
        metavar="FILE",
        help="keep what was captured in a pcap file; each of several workers writes one",
    )
    _add(
        source,
        "--sample",
        to="mirror.sample_ratio",
        type=values.to_ratio,
        metavar="SHARE",
        help="mirror only this share of the client addresses, each as a whole: 10%% or 0.1",
    )
    _add(
        source,
        "--ring",
        to="source.ring_bytes",
        type=values.to_size(minimum=_RING_MIN_BYTES, maximum=_RING_MAX_BYTES),
        metavar="SIZE",
        help="the kernel's ring: what it can hold while gopher is busy (default: 0.75 s, at least 64M; with"
        " --low-latency 188M)",
    )
    _add(
        source,
        "--low-latency",
        to="source.wakeup_ms",
        action="store_const",
        const=1,
        help="wake up for packets every 1 ms instead of 8 ms, at the cost of CPU",
    )

    streams = parser.add_argument_group("streams")
    _add(
        streams,
        "--gap-timeout",
        to="reassembly.gap_timeout_s",
        type=values.to_seconds(positive=True),
        metavar="SECONDS",
        help="how long to wait for a packet that the capture may have missed",
    )
    policies = get_args(OverlapPolicy)
    _add(
        streams,
        "--overlap",
        to="reassembly.overlap",
        type=values.to_one_of(*policies),
        metavar="POLICY",
        help=f"whose rules decide when the same bytes come twice and differ: {', '.join(policies)}",
    )

    _add(
        streams,
        "--verify-checksums",
        to="reassembly.verify_checksums",
        action="store_true",
        help="drop segments with a wrong TCP checksum; for captures made elsewhere, not on the sending host",
    )

    upstream = parser.add_argument_group("upstream connections")
    for option, field, help_text, positive in (
        ("--linger", "linger_s", "how long an upstream may take to answer after the client has gone", False),
        ("--connect-timeout", "connect_timeout_s", "how long an upstream may take to accept a connection", True),
    ):
        _add(
            upstream,
            option,
            to=f"mirror.{field}",
            type=values.to_seconds(positive=positive),
            metavar="SECONDS",
            help=help_text,
        )
    _add(
        upstream,
        "--max-connections",
        to="mirror.max_connections",
        type=values.to_count,
        metavar="NUMBER",
        help="connections at once: one more is shed, or waits for the relay",
    )
    for option, field, help_text in (
        ("--connection-memory", "connection_memory_bytes", "for one connection"),
        ("--upstream-memory", "upstream_memory_bytes", "for one upstream"),
        ("--total-memory", "total_memory_bytes", "in all"),
    ):
        _add(
            upstream,
            option,
            to=f"mirror.{field}",
            type=values.to_size(minimum=1),
            metavar="SIZE",
            help=f"bytes that may be queued {help_text}; past it, connections are shed",
        )

    _add(
        upstream,
        "--max-rate",
        to="mirror.max_bytes_per_s",
        type=values.to_size(minimum=1),
        metavar="SIZE",
        help="bytes per second for each upstream, like 10M; past it, connections are shed as a whole",
    )
    _add(
        upstream,
        "--max-connection-rate",
        to="mirror.max_connections_per_s",
        type=values.to_count,
        metavar="NUMBER",
        help="connections per second for each upstream; those beyond are shed",
    )

    relay = parser.add_argument_group("relay mode")
    _add(
        relay,
        "--listen",
        to="relay.listen_host",
        type=values.to_address,
        metavar="ADDRESS",
        help="listen on this one only",
    )
    _add(
        relay,
        "--link-from",
        to="relay.link_from",
        action="append",
        type=values.to_network,
        metavar="NETWORK",
        help="who may send a PROXY protocol header, like 10.0.0.0/8; repeat it for several; without it, everyone",
    )
    _add(
        relay,
        "--idle-timeout",
        to="relay.idle_timeout_s",
        type=values.to_seconds(positive=True),
        metavar="SECONDS",
        help="how long nothing may move on a connection",
    )
    _add(
        relay,
        "--proxy-protocol",
        to="relay.proxy_protocol",
        type=values.to_one_of("v1", "v2"),
        metavar="VERSION",
        help="tell the upstream who the client is by a PROXY protocol header: v1 or v2",
    )
    for option, field, help_text in (
        ("--tls-ca", "ca_path", "for tls://: trust these certificates (PEM) and not the system's"),
        ("--tls-cert", "cert_path", "for tls://: show this certificate (PEM), with its private key"),
        ("--tls-key", "key_path", "the private key, if it is not in that file"),
    ):
        _add(relay, option, to=f"tls.{field}", type=_FILE_NAME, metavar="FILE", help=help_text)
    _add(
        relay,
        "--tls-name",
        to="tls.server_name",
        type=values.to_host,
        metavar="NAME",
        help="for tls://: the server's name, where its certificate is not for the host of the upstream",
    )
    _add(relay, "--tls-insecure", to="tls.insecure", action="store_true", help="for tls://: take any certificate")
    headers = get_args(Forwarded)
    _add(
        relay,
        "--forwarded",
        to="relay.forwarded",
        nargs="?",
        const="x-forwarded-for",
        type=values.to_one_of(*headers),
        metavar="HEADER",
        help=f"append the client to a header: {', '.join(headers)}; without HEADER, the first",
    )
    _add(
        relay, "--host", to="relay.host", type=values.to_field_value, metavar="NAME", help="say this in the Host header"
    )
    _add(
        relay,
        "--marker",
        to="relay.marker",
        type=values.to_marker,
        metavar="NAME:VALUE",
        help="add this header to requests",
    )
    _add(
        relay,
        "--pipeline",
        to="relay.pipeline",
        action="store_true",
        help="where messages are read, pass requests on as they come, not one at a time on each connection",
    )
    _add(
        relay,
        "--couple",
        to="relay.couple",
        action="append",
        metavar="RULE",
        help="where servers hand out session values: auto, cookie:NAME, header:NAME, json:/POINTER, form:NAME, "
        "query:NAME, location:NAME, location:/PATH/{}, regex:...; repeat it for several",
    )
    _add(
        relay,
        "--couple-file",
        to="relay.couple_files",
        action="append",
        type=_FILE_NAME,
        metavar="FILE",
        help="TOML file with a list of such rules, see docs/coupling.md; repeat it for several",
    )
    _add(
        relay,
        "--couple-wait",
        to="relay.couple_wait_s",
        type=values.to_seconds(positive=False),
        metavar="SECONDS",
        help="how long a request may wait for the shadow's counterpart of a value",
    )
    _add(
        relay,
        "--couple-policy",
        to="relay.couple_policy",
        type=values.to_one_of("send", "drop"),
        metavar="POLICY",
        help="what becomes of a request that waited in vain: send or drop",
    )
    _add(
        relay,
        "--script",
        to="relay.scripts",
        action="append",
        type=_FILE_NAME,
        metavar="FILE",
        help="Python file whose functions see and change exchanges, see docs/scripting.md; repeat it for several",
    )
    _add(
        relay,
        "--script-timeout",
        to="relay.script_timeout_s",
        type=values.to_seconds(positive=True),
        metavar="SECONDS",
        help="how long a function of a script may take",
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "--config",
        type=_FILE_NAME,
        metavar="FILE",
        help="read settings, and perhaps several mirrors, from this TOML file",
    )
    run.add_argument(
        "--check-config", action="store_true", help="say what is wrong, or print the settings that count, and exit"
    )
    _add(
        run,
        "--duration",
        to="run.duration_s",
        type=values.to_seconds(positive=True),
        metavar="SECONDS",
        help="stop taking in after this long; without it, at SIGTERM, SIGINT or the end of the file",
    )
    _add(
        run,
        "--drain",
        to="run.drain_s",
        type=values.to_seconds(positive=False),
        metavar="SECONDS",
        help="then go on delivering what is pending for at most this long",
    )
    _add(
        run,
        "--max-memory",
        to="run.max_memory_bytes",
        type=values.to_size(minimum=MINIMUM_MEMORY_BYTES),
        metavar="SIZE",
        help="all that gopher may have resident, the ring included; past it, connections are shed",
    )
    _add(
        run,
        "--cpu-limit",
        to="mirror.cpu_limit",
        type=values.to_percent,
        metavar="PERCENT",
        help="of one core, like 50%%; past it, gopher sheds connections; for devices only",
    )
    _add(
        run,
        "--workers",
        to="run.workers",
        type=values.to_workers,
        metavar="NUMBER",
        help="capture mode: processes that share the connections; auto is one for every two cores",
    )
    _add(
        run,
        "--report",
        to="run.report_path",
        type=_FILE_NAME,
        metavar="FILE",
        help="write the accounts at exit, as JSON",
    )
    _add(
        run,
        "--metrics",
        to="run.metrics_address",
        type=values.to_endpoint,
        metavar="ADDRESS:PORT",
        help="serve /metrics for Prometheus, /healthz and /report.json there, like 127.0.0.1:9464",
    )
    _add(
        run,
        "--user",
        to="run.user",
        type=values.to_user,
        metavar="NAME[:GROUP]",
        help="become this user, without any rights left, when everything that needs rights is open",
    )
    _add(
        run,
        "--stats-interval",
        to="run.stats_interval_s",
        type=values.to_seconds(positive=True),
        metavar="SECONDS",
        help="print a status line this often",
    )
    _add(
        run,
        "--live",
        to="run.live",
        action="store_true",
        help="show rates, upstreams and what is shed on the terminal; where there is none, print status lines",
    )
    _add(
        run,
        "--log-format",
        to="run.log_format",
        type=values.to_one_of(*get_args(LogFormat)),
        metavar="FORMAT",
        help="of what goes to stderr: text, or json for one object a line",
    )
    loudness = run.add_mutually_exclusive_group()
    loudness.add_argument(
        "-v",
        "--verbose",
        dest="run.verbosity",
        action="count",
        help="say which addresses the upstreams have, and what the kernel's filter is",
    )
    loudness.add_argument(
        "-q", "--quiet", dest="run.verbosity", action="store_const", const=-1, help="say nothing but errors"
    )
    run.add_argument("--version", action="version", version=f"gopher {__version__}", help="print the version and exit")
    return parser


def _add(group: argparse._ActionsContainer, *options: str, to: str, help: str, **settings: Any) -> None:
    # `to` names the field of the configuration that the option sets; its default goes into the help.
    name = to.partition(".")[2]
    default = _default(to, "relay" if to.startswith("relay.") else "capture")
    if default not in (dataclasses.MISSING, None, "", False, ()):
        help = f"{help} (default: {_shown(name, default)})"
    group.add_argument(*options, dest=to, help=help, **settings)
    if settings.get("action") in ("store_true", "store_const") or settings.get("nargs") == "?":
        # What a file or a variable turns on.
        key = options[-1].removeprefix("--")
        group.add_argument(f"--no-{key}", dest=to, action="store_const", const=None, help=argparse.SUPPRESS)


def _default(to: str, mode: str = "capture") -> Any:
    stage, _, name = to.partition(".")
    config = RelayConfig if mode == "relay" and stage != "tls" else _STAGES[stage]
    return next(field.default for field in dataclasses.fields(config) if field.name == name)


def _shown(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value // MIB}M"
    if name.endswith("_ratio"):
        return f"{value:.0%}".replace("%", "%%")
    if name.endswith("_s"):
        return f"{value:g}"
    return str(value)


def _unknown_argument(argument: str) -> ConfigError:
    if not argument.startswith("-"):
        return ConfigError(
            f"unexpected argument {argument!r}: every setting is an option", hint=f"for example: {EXAMPLE}"
        )
    option = argument.partition("=")[0]
    options = [name for action in _parser()._actions for name in action.option_strings]
    nearest = difflib.get_close_matches(option, options, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "gopher --help lists the options"
    return ConfigError(f"unknown option {option}", hint=hint)
