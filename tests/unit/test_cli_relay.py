"""The command line of relay mode."""

import ipaddress

import pytest

from gopher.cli import parse
from gopher.config import RelayConfig, TlsConfig, UpstreamConfig
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
        forwarded="x-forwarded-for",
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
    ("given", "scheme", "host", "port"),
    [
        ("tls://shadow", "tls", "shadow", 443),
        ("tls://[::1]:8443", "tls", "::1", 8443),
        ("relay://shadow", "relay", "shadow", 80),
        ("relay://shadow:3280", "relay", "shadow", 3280),
    ],
)
def test_kinds_of_upstream(given, scheme, host, port):
    [upstream] = parse(["-r", "-p", "1", "-u", given]).upstreams
    assert upstream == UpstreamConfig(name=given, scheme=scheme, host=host, port=port)


def test_tls_options():
    config = parse(
        [
            *("-r", "-p", "1", "-u", "tls://a", "--tls-ca", "ca", "--tls-cert", "cert", "--tls-key", "key"),
            *("--tls-name", "b"),
        ]
    )
    assert config.tls == TlsConfig(ca_path="ca", cert_path="cert", key_path="key", server_name="b")
    assert parse(["-r", "-p", "1", "-u", "tls://a", "--tls-insecure"]).tls == TlsConfig(insecure=True)


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ("", None),
        ("--forwarded", "x-forwarded-for"),
        ("--forwarded -q", "x-forwarded-for"),
        ("--forwarded forwarded", "forwarded"),
        ("--forwarded=both", "both"),
        ("--forwarded --no-forwarded", None),
    ],
)
def test_forwarded(options, header):
    assert parse(f"-r -p 1 -u a {options}".split()).forwarded == header


@pytest.mark.parametrize(
    ("limit", "way_out"),
    [
        ("--max-rate 1M", "limit the gopher -c that sends to it"),
        ("--max-connection-rate 5", "limit the gopher -c that sends to it"),
        ("--sample 10%", "limit the gopher -c that sends to it"),
        ("--cpu-limit 50%", "(CPUQuota=)"),
        ("--max-memory 256M", "(MemoryMax=)"),
        ("--total-memory 256M", "allow fewer with --max-connections"),
        ("--upstream-memory 256M", "allow fewer with --max-connections"),
        ("--connection-memory 256M", "allow fewer with --max-connections"),
    ],
)
def test_hints_name_the_way_out_of_limits_that_a_relay_does_not_have(limit, way_out):
    error = refused(f"-r -p 3280 -u a {limit}")
    assert str(error) == f"{limit.split()[0]} is for capture mode only"
    assert way_out in error.hint


def test_hints_name_the_way_out_of_tls_where_there_is_none():
    assert refused("-c -p 80 -u tls://shadow").hint == (
        "start gopher -r -p 3280 --listen 127.0.0.1 -u tls://shadow, and capture to 127.0.0.1:3280"
    )
    assert "gopher -r -p 3281 --listen 127.0.0.1 -u tls://b, and here -u 127.0.0.1:3281" in (
        refused("-r -p 3280 -u a -u tls://b").hint
    )


@pytest.mark.parametrize(
    "option",
    [
        *("--couple auto", "--couple cookie:a", "--forwarded", "--host b", "--marker A:b", "--script c.py"),
        *("-u second", "-u relay://second"),
    ],
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
        ("-r -p 3280 -u dir:x", "-u/--upstream 'dir:x': relay mode sends to servers only"),
        (
            "-r -p 3280 -u relay://b --proxy-protocol v1",
            "--proxy-protocol v1: relay://b is told who the client is by version 2",
        ),
        ("-r -p 3280 -u a -u tls://b", "-u/--upstream 'tls://b': only the first upstream can be tls://"),
        ("-r -p 3280 -u a --tls-insecure", "--tls-insecure is for a tls:// upstream, the first one"),
        ("-r -p 3280 -u tls://a --tls-key k", "--tls-key is of no use without --tls-cert"),
        (
            "-r -p 3280 -u tls://a --tls-ca c --tls-insecure",
            "--tls-insecure trusts any certificate, --tls-ca only some",
        ),
        ("-r -p 3280 -u tls://a --tls-name a..b", "--tls-name: 'a..b' is not a host name or an address"),
        ("-c -p 80 -u b --tls-ca c", "--tls-ca is for relay mode only"),
        ("-c -p 80 -u tls://b:1", "-u/--upstream 'tls://b:1': capture mode does not speak TLS, relay mode does"),
        ("-r -p 3280 -u a --forwarded via", "--forwarded: 'via' is not one of x-forwarded-for, forwarded, both"),
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
