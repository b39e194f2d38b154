"""Text into values: what an option, a key of the configuration file or a variable may hold. Sans-I/O.

The converters are those of argparse: what they refuse raises `ArgumentTypeError`, whose text says what is accepted.
"""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import math
import re
from typing import TYPE_CHECKING, Final, Literal, cast

from gopher.config import MAX_WORKERS, MIB, UpstreamConfig
from gopher.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopher.config import Scheme

__all__ = [
    "plain_size",
    "to_address",
    "to_count",
    "to_endpoint",
    "to_field_value",
    "to_host",
    "to_marker",
    "to_name",
    "to_network",
    "to_one_of",
    "to_percent",
    "to_port",
    "to_ports",
    "to_ratio",
    "to_seconds",
    "to_size",
    "to_speed",
    "to_upstream",
    "to_user",
    "to_workers",
]

_UNITS: Final = {"": 1, "k": 1 << 10, "m": MIB, "g": 1 << 30}
# Thirty years: as nanoseconds still a 64-bit number.
_MAX_SECONDS: Final = 1e9


def to_upstream(text: str, captured_ports: tuple[int, ...]) -> UpstreamConfig:
    """What `-u` takes; see the help of the command. `captured_ports`: for an upstream without a port.

    Raises:
        ConfigError: it is none.
    """
    if text.startswith("dir:"):
        path = text.removeprefix("dir:")
        if not path:
            raise _bad_upstream(text, "the directory is missing: dir:PATH")
        return UpstreamConfig(name=text, scheme="dir", path=path)
    scheme, separator, address = text.partition("://")
    if not separator:
        scheme, address = "tcp", text
    elif scheme not in ("tcp", "tls", "relay"):
        raise _bad_upstream(text, f"{scheme}:// is not a kind of upstream")

    # [v6], or whatever has no colon; then perhaps a port.
    match = re.fullmatch(r"(?:\[(?P<v6>[^\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[^:]*))?", address)
    if match is None:
        if _is_ipv6(address):
            raise _bad_upstream(text, f"an IPv6 address goes into brackets: [{address}]:PORT")
        raise _bad_upstream(text, "it is not HOST[:PORT]")
    host = match["v6"] if match["v6"] is not None else match["host"]
    if match["v6"] is not None and not _is_ipv6(host):
        raise _bad_upstream(text, f"{host!r} is not an IPv6 address")
    if match["v6"] is None and not _is_host(host):
        raise _bad_upstream(text, f"{host!r} is not a host name or an IPv4 address")
    if match["port"] is not None:
        try:
            port = to_port(match["port"])
        except argparse.ArgumentTypeError as error:
            raise _bad_upstream(text, str(error)) from error
    else:
        port = 443 if scheme == "tls" else captured_ports[0] if len(captured_ports) == 1 else 0
    return UpstreamConfig(
        name=text,
        scheme=cast("Scheme", scheme),
        host=host,
        port=port,
        captured_port=match["port"] is None and scheme != "tls",
    )


def _bad_upstream(text: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{text!r}: {reason}",
        hint="accepted: HOST[:PORT], [IPv6]:PORT, tcp://HOST:PORT, tls://HOST:PORT, relay://HOST:PORT, dir:PATH",
    )


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_host(text: str) -> bool:
    if re.fullmatch(r"[0-9.]+", text):
        try:
            ipaddress.IPv4Address(text)
        except ValueError:
            return False
        return True
    # The encoding checks the lengths of the labels: name resolution raises UnicodeError for what it refuses.
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return re.fullmatch(r"[\w.-]+", text) is not None


def to_name(of: str) -> Callable[[str], str]:
    """A converter for the name `of` something, which is not looked for here; a shell makes '' of an unset variable."""

    def convert(text: str) -> str:
        if not text:
            raise argparse.ArgumentTypeError(f"'' is not the name of {of}")
        return text

    return convert


def to_host(text: str) -> str:
    """A host name or an address."""
    if not (_is_host(text) or _is_ipv6(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a host name or an address")
    return text


def to_port(text: str) -> int:
    """1 to 65535."""
    port = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 1 to 65535")
    return port


def to_ports(text: str) -> list[int]:
    """One or several, with commas."""
    return [to_port(part.strip()) for part in text.split(",")]


def to_one_of(*accepted: str) -> Callable[[str], str]:
    """A converter that takes these words only, and knows the nearest."""

    def convert(text: str) -> str:
        if text not in accepted:
            nearest = difflib.get_close_matches(text, accepted, n=1)
            question = f" (did you mean {nearest[0]}?)" if nearest else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(accepted)}{question}")
        return text

    return convert


def _number(text: str) -> float:
    """NaN for whatever is no finite number, so that every comparison refuses it."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def to_seconds(*, positive: bool) -> Callable[[str], float]:
    """A converter for times, 0 or more, or `positive`."""

    def convert(text: str) -> float:
        seconds = _number(text)
        if not (0 <= seconds <= _MAX_SECONDS) or (positive and seconds == 0):
            least = "above 0" if positive else "0 or more"
            raise argparse.ArgumentTypeError(f"{text!r} is not a time: seconds, {least}, like 2.5")
        return seconds

    return convert


def to_address(text: str) -> str:
    """An IPv4 or IPv6 address; brackets come off."""
    try:
        return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address, like 127.0.0.1 or ::1") from error


def to_endpoint(text: str) -> tuple[str, int]:
    """An address and a port."""
    host, _, port = text.rpartition(":")
    try:
        # Brackets are what tells an IPv6 address from its port.
        if (":" in host) != (host.startswith("[") and host.endswith("]")):
            raise argparse.ArgumentTypeError("brackets")
        return to_address(host), to_port(port)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an address and a port, like 127.0.0.1:9464 or [::1]:9464"
        ) from error


def to_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """An address with or without a prefix length; host bits do not matter."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a network, like 10.0.0.0/8 or ::1") from error


def to_user(text: str) -> str:
    """`NAME[:GROUP]`."""
    if re.fullmatch(r"[^:]+(?::[^:]+)?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME:GROUP")
    return text


def to_field_value(text: str) -> str:
    """The value of a header."""
    if not text or text != text.strip() or not text.isascii() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be the value of a header")
    return text


def to_marker(text: str) -> str:
    """A header line."""
    name, colon, value = text.partition(":")
    if not colon or re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a header, like X-Mirrored:1")
    return f"{name}: {to_field_value(value.strip())}"


def to_speed(text: str) -> float | None:
    """A factor, or None for `max`."""
    if text == "max":
        return None
    speed = _number(text)
    if not speed > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a speed: a number above 0, like 2.0, or max")
    return speed


def to_ratio(text: str) -> float:
    """Above 0 and up to 1, or in percent."""
    ratio = _number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < ratio <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: above 0% and at most 100%, like 10% or 0.1")
    return ratio


def to_percent(text: str) -> float:
    """Of one core, 1 to 100, as a part of 1."""
    percent = _number(text.removesuffix("%"))
    if not 1 <= percent <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part of one core: 1% to 100%")
    return percent / 100


def to_workers(text: str) -> int | Literal["auto"]:
    """1 to `MAX_WORKERS`, or auto."""
    if text == "auto":
        return "auto"
    if re.fullmatch(r"[0-9]{1,3}", text) is None or not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers: 1 to {MAX_WORKERS}, or auto")
    return int(text)


def to_count(text: str) -> int:
    """1 to 999999999."""
    if re.fullmatch(r"0*[1-9][0-9]{0,8}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of connections: 1 to 999999999")
    return int(text)


def to_size(*, minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A converter for bytes, which may have a unit: powers of 1024."""

    def convert(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([kmg]?)(?:i?b)?", text, re.IGNORECASE | re.ASCII)
        if match is None:
            raise argparse.ArgumentTypeError(f"{text!r} is not a size: bytes, or a number with k, M or G, like 64M")
        size = int(float(match[1]) * _UNITS[match[2].lower()])
        if size < minimum or (maximum is not None and size > maximum):
            limits = f"at least {plain_size(minimum)}" + (f" and at most {plain_size(maximum)}" if maximum else "")
            raise argparse.ArgumentTypeError(f"{text!r} is out of range: {limits}")
        return size

    return convert


def plain_size(size: int) -> str:
    """A size as `to_size` takes it, as short as it can be."""
    for unit in ("g", "m", "k"):
        if size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit.replace('m', 'M').replace('g', 'G')}"
    return f"{size} bytes"
