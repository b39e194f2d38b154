"""The command line of relay mode."""

import ipaddress

import pytest

from gopher.cli import parse
from gopher.config import RelayConfig, UpstreamConfig
from gopher.errors import ConfigError


def refused(arguments: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(arguments.split(" "))
    return caught.value


def test_shortest_command_has_the_documented_defaults():
    config = parse(["-r", "-p", "3280", "-u", "localhost:80"])
    upstream = UpstreamConfig(name="localhost:80", host="localhost", port=80)
    assert config == RelayConfig(ports=(3280,), upstreams=(upstream,))
    assert not config.reads_messages
    assert (config.listen_host, config.connect_timeout_s, config.idle_timeout_s, config.drain_s) == (
        "",
        5.0,
        300.0,
        5.0,
    )


def test_missing_upstream_port_means_80():
    assert parse(["--mode=relay", "-p", "1", "-p", "2,1", "-u", "a", "-u", "[::1]"]) == RelayConfig(
        ports=(1, 2),
        upstreams=(
            UpstreamConfig(name="a", host="a", port=80),
            UpstreamConfig(name="[::1]", host="::1", port=80),
        ),
    )


def test_every_option_sets_its_field(tmp_path):
    files = [str(tmp_path / name) for name in ("a.toml", "b.toml")]
    for file in files:
        (tmp_path / file).write_text("couple = ['form:token']")
    config = parse(
        [
            *("-r", "-p", "3280", "-u", "a", "--listen", "[::1]", "--link-from", "10.1.0.0/16", "--link-from", "::1"),
            *("--idle-timeout", "7", "--connect-timeout", "2", "--max-connections", "9", "--proxy-protocol", "v2"),
            *("--forwarded", "--host", "shadow", "--marker", "X-Mirrored:  1", "--pipeline", "--couple", "auto"),
            *("--couple-file", files[0], "--couple-file", files[1]),
            *("--couple", "cookie:SID", "--couple-wait", "0.5", "--couple-policy", "drop"),
            *("--script", "b.py", "--script", "a.py", "--script-timeout", "0.2"),
            *("--report", "r.json", "--duration", "3", "--drain", "0", "-q", "--metrics", "[::1]:9464"),
        ]
    )
    assert config == RelayConfig(
        ports=(3280,),
        upstreams=(UpstreamConfig(name="a", host="a", port=80),),
        listen_host="::1",
        link_from=(ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("::1")),
        idle_timeout_s=7,
        connect_timeout_s=2,
        max_connections=9,
        proxy_protocol="v2",
        forwarded=True,
        host="shadow",
        marker="X-Mirrored: 1",
        pipeline=True,
        couple=("cookie:SID", "form:token"),
        couple_auto=True,
        couple_files=tuple(files),
        couple_wait_s=0.5,
        couple_policy="drop",
        scripts=("b.py", "a.py"),
        script_timeout_s=0.2,
        metrics_address=("::1", 9464),
        report_path="r.json",
        duration_s=3,
        drain_s=0,
        verbosity=-1,
    )


@pytest.mark.parametrize(
    "option",
    ["--couple auto", "--couple cookie:a", "--forwarded", "--host b", "--marker A:b", "--script c.py", "-u second"],
)
def test_what_bytes_do_not_show_makes_the_relay_read_messages(option):
    assert parse(f"-r -p 3280 -u a {option}".split()).reads_messages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-r -u localhost:80", "the port to listen on is missing: -p/--port"),
        ("--mode=relay -p 3280", "an upstream is missing: -u/--upstream"),
        ("-r -p 3280 -u a --filter x", "--filter is for capture mode only"),
        ("-r -p 3280 -u a --read x", "--read is for capture mode only"),
        ("-c -p 80 -u b --couple auto", "--couple is for relay mode only"),
        ("-c -p 80 -u b --pipeline", "--pipeline is for relay mode only"),
        ("-r -p 3280 -u dir:x", "-u/--upstream 'dir:x': relay mode sends to tcp:// only"),
        ("-r -p 3280 -u relay://b", "-u/--upstream 'relay://b': relay mode sends to tcp:// only"),
        ("-r -p 3280 -u a --listen x", "--listen: 'x' is not an address, like 127.0.0.1 or ::1"),
        ("-r -p 3280 -u a --link-from x", "--link-from: 'x' is not a network, like 10.0.0.0/8 or ::1"),
        ("-r -p 3280 -u a --marker x", "--marker: 'x' is not a header, like X-Mirrored:1"),
        ("-r -p 3280 -u a --marker x:a\nb", "--marker: 'a\\nb' cannot be the value of a header"),
        ("-r -p 3280 -u a --host b\n", "--host: 'b\\n' cannot be the value of a header"),
        ("-r -p 3280 -u a --proxy-protocol v3", "--proxy-protocol: 'v3' is not one of v1, v2"),
        ("-r -p 3280 -u a --couple-policy keep", "--couple-policy: 'keep' is not one of send, drop"),
    ],
)
def test_refused_with_one_sentence(arguments, message):
    error = refused(arguments)
    assert str(error) == message
    assert error.exit_status == 2


@pytest.mark.parametrize(
    "text", ["9464", ":9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "::1:9464", "[127.0.0.1]:1", "localhost:9464"]
)
def test_metrics_need_an_address_and_a_port(text):
    error = refused(f"-r -p 1 -u a --metrics {text}")
    assert error.exit_status == 2
    assert str(error) == f"--metrics: {text!r} is not an address and a port, like 127.0.0.1:9464 or [::1]:9464"
