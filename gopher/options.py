"""The table of options: each one's names, what it sets in the configuration, how its text is read, and its help.

An entry here is also a key of the configuration file and a variable of the environment, see `gopher.settings`. The
default of every option is that of the field it sets in `gopher.config`. Nothing is decided here about options together.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from typing import TYPE_CHECKING, Any, Final, NoReturn, get_args

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
)
from gopher.errors import ConfigError
from gopher.observe.log import LogFormat
from gopher.plan import EXAMPLE, SHARED
from gopher.stdout import to_stdout

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["EPILOG", "NEEDS", "SECRET", "STAGES", "Parser", "default_of", "option_parser", "unknown_argument"]

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

STAGES: Final[dict[str, type]] = {
    "source": SourceConfig,
    "reassembly": ReassemblyConfig,
    "mirror": MirrorConfig,
    "run": CaptureConfig,
    "relay": RelayConfig,
    "tls": TlsConfig,
}
"""The configurations that options set fields of, by the first part of what an option sets."""
SECRET: Final = ("relay.marker",)
"""What `--check-config` does not show."""
NEEDS: Final = {"source.speed": "source.read_path"}
"""What may not be said without another."""

_FILE_NAME: Final = values.to_name("a file")
# set_buffer_size() of libpcap takes a C int; the kernel's ring is made of 256 KiB blocks, and one is no ring.
_RING_MIN_BYTES: Final = 512 << 10
_RING_MAX_BYTES: Final = 2047 * MIB


class Parser(argparse.ArgumentParser):
    """Raises `ConfigError` for what argparse would print, with its own way out."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        # Help and the version. Argparse itself would lose what cannot be written without a word.
        to_stdout(message)

    def error(self, message: str) -> NoReturn:
        """A mistake that argparse finds."""
        raise ConfigError(message.removeprefix("argument "), hint="gopher --help explains the options")


def option_parser() -> argparse.ArgumentParser:
    """A new parser of all options. What was not given is not in its namespace: defaults are the configuration's."""
    parser = Parser(
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
    flag = settings.get("action") in ("store_true", "store_const")
    default = "" if flag else _shown_default(to)
    if default:
        help = f"{help} (default: {default})"
    group.add_argument(*options, dest=to, help=help, **settings)
    if flag or settings.get("nargs") == "?":
        # What a file or a variable turns on.
        key = options[-1].removeprefix("--")
        group.add_argument(f"--no-{key}", dest=to, action="store_const", const=None, help=argparse.SUPPRESS)


def default_of(to: str, mode: str = "capture") -> Any:
    """The default of what an option sets, `stage.field`, in a mode; `dataclasses.MISSING` if there is none."""
    stage, _, name = to.partition(".")
    config = RelayConfig if mode == "relay" and stage != "tls" else STAGES[stage]
    return next(field.default for field in dataclasses.fields(config) if field.name == name)


def _shown_default(to: str) -> str:
    if to.startswith("relay."):
        return _shown(to, default_of(to, "relay"))
    default = _shown(to, default_of(to))
    in_relay_mode = _shown(to, default_of(to, "relay")) if to in SHARED else default
    return default if in_relay_mode == default else f"{default}; relay mode: {in_relay_mode}"


def _shown(name: str, value: Any) -> str:
    if value in (dataclasses.MISSING, None, "", False, ()):
        return ""
    if name.endswith("_bytes"):
        return f"{value // MIB}M"
    if name.endswith("_ratio"):
        return f"{value:.0%}".replace("%", "%%")
    if name.endswith("_s"):
        return f"{value:g}"
    return str(value)


def unknown_argument(argument: str) -> ConfigError:
    """What to say of an argument that is no option, or of an option that is none of ours."""
    if not argument.startswith("-"):
        return ConfigError(
            f"unexpected argument {argument!r}: every setting is an option", hint=f"for example: {EXAMPLE}"
        )
    option = argument.partition("=")[0]
    options = [name for action in option_parser()._actions for name in action.option_strings]
    nearest = difflib.get_close_matches(option, options, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "gopher --help lists the options"
    return ConfigError(f"unknown option {option}", hint=hint)
