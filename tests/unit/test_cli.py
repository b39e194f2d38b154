import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import gopher
from gopher.cli import main, parse
from gopher.config import MIB, CaptureConfig, UpstreamConfig
from gopher.errors import CapturePermissionError, ConfigError, UpstreamError
from tests.support.packets import pcap_file


def parsed(options: str) -> CaptureConfig:
    return parse(["-c", "-p", "80", "-u", "machineB:1080", *options.split()])


def refused(arguments: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(arguments.split())
    return caught.value


def upstream(text: str, ports: str = "80") -> UpstreamConfig:
    [config] = parse(["-c", "-p", ports, "-u", text]).mirror.upstreams
    assert config.name == text
    return config


@pytest.mark.parametrize(
    "arguments",
    [
        "--mode=capture --port=80 --upstream=machineB:1080",
        "--mode capture --port 80 --upstream machineB:1080",
        "-c -p 80 -u machineB:1080",
        "-cp80 -umachineB:1080",
    ],
)
def test_every_spelling_of_mode_port_and_upstream_means_the_same(arguments):
    config = parse(arguments.split())
    assert config.source.ports == (80,)
    assert config.mirror.upstreams == (UpstreamConfig(name="machineB:1080", host="machineB", port=1080),)


@pytest.mark.parametrize("arguments", ["-p 80,8080 -p 443", "-p 80 -p 8080,443,80", "-p 80 --port=8080,443"])
def test_ports_add_up_in_order_and_once(arguments):
    assert parse(f"-c {arguments} -u b:1".split()).source.ports == (80, 8080, 443)


def test_upstreams_keep_their_order():
    config = parse(["-c", "-p", "80", "-u", "machineB:3280", "-u", "machineC:3280", "-u", "machineD"])
    assert [(each.host, each.port) for each in config.mirror.upstreams] == [
        ("machineB", 3280),
        ("machineC", 3280),
        ("machineD", 80),
    ]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("machineB", "machineB", 80),
        ("machineB.", "machineB.", 80),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("[::1]", "::1", 80),
        ("[fe80::1%eth0]:8080", "fe80::1%eth0", 8080),
        ("tcp://machineB", "machineB", 80),
        ("tcp://[::1]:8080", "::1", 8080),
        ("bücher.example:1", "bücher.example", 1),
    ],
)
def test_tcp_upstream(text, host, port):
    assert upstream(text) == UpstreamConfig(name=text, host=host, port=port)


def test_relay_upstream():
    expected = UpstreamConfig(name="relay://[::1]:3280", scheme="relay", host="::1", port=3280)
    assert upstream("relay://[::1]:3280") == expected
    assert upstream("relay") == UpstreamConfig(name="relay", host="relay", port=80)


def test_dir_upstream_needs_no_port():
    assert upstream("dir:/a/b:c", ports="80,81") == UpstreamConfig(name="dir:/a/b:c", scheme="dir", path="/a/b:c")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not a host name or an IPv4 address"),
        (":80", "'' is not a host name or an IPv4 address"),
        ("machine B:80", "'machine B' is not a host name"),
        ("a..b:80", "'a..b' is not a host name"),
        (f"{'x' * 64}:80", "is not a host name"),
        ("300.0.0.1:80", "'300.0.0.1' is not a host name or an IPv4 address"),
        ("machineB:", "'' is not a port: a number from 1 to 65535"),
        ("machineB:0", "'0' is not a port"),
        ("machineB:65536", "'65536' is not a port"),
        (f"machineB:{'9' * 5000}", "is not a port"),
        ("machineB:http", "'http' is not a port"),
        ("machineB:80:80", "it is not HOST[:PORT]"),
        ("machineB:80/", "'80/' is not a port"),
        ("::1", "an IPv6 address goes into brackets: [::1]:PORT"),
        ("[::1", "it is not HOST[:PORT]"),
        ("[10.0.0.1]:80", "'10.0.0.1' is not an IPv6 address"),
        ("dir:", "the directory is missing: dir:PATH"),
        ("http://machineB", "http:// is not a kind of upstream"),
    ],
)
def test_malformed_upstream_is_named_with_the_reason(text, reason):
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        upstream(text)
    assert str(caught.value).startswith(f"-u/--upstream {text!r}: ")
    assert caught.value.hint == (
        "accepted: HOST[:PORT], [IPv6]:PORT, tcp://HOST:PORT, tls://HOST:PORT, relay://HOST:PORT, dir:PATH"
    )


def test_upstream_without_a_port_of_its_own_gets_each_captured_port_at_its_own():
    assert upstream("machineB", ports="80,81").port == 0


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("-i eth0", "source.interface", "eth0"),
        ("--interface=eth0", "source.interface", "eth0"),
        ("--filter=udp", "source.filter", "udp"),
        ("--read a.pcap", "source.read_path", "a.pcap"),
        ("--read a.pcap --speed 2.5", "source.speed", 2.5),
        ("--read a.pcap --speed max", "source.speed", None),
        ("--responses", "source.responses", True),
        ("--ring 8M", "source.ring_bytes", 8 * MIB),
        ("--low-latency", "source.wakeup_ms", 1),
        ("--write b.pcap", "write_path", "b.pcap"),
        ("--sample 10%", "mirror.sample_ratio", 0.1),
        ("--sample 0.1", "mirror.sample_ratio", 0.1),
        ("--linger 0", "mirror.linger_s", 0),
        ("--connect-timeout 0.5", "mirror.connect_timeout_s", 0.5),
        ("--connection-memory 512k", "mirror.connection_memory_bytes", 512 * 1024),
        ("--upstream-memory 1.5MiB", "mirror.upstream_memory_bytes", 3 * MIB // 2),
        ("--total-memory 1gb", "mirror.total_memory_bytes", 1024 * MIB),
        ("--total-memory 1000", "mirror.total_memory_bytes", 1000),
        ("--max-connections 100", "mirror.max_connections", 100),
        ("--max-rate 10M", "mirror.max_bytes_per_s", 10 * MIB),
        ("--max-connection-rate 200", "mirror.max_connections_per_s", 200),
        ("--max-memory 256M", "max_memory_bytes", 256 * MIB),
        ("--cpu-limit 50%", "mirror.cpu_limit", 0.5),
        ("--cpu-limit 50", "mirror.cpu_limit", 0.5),
        ("--gap-timeout 3", "reassembly.gap_timeout_s", 3),
        ("--overlap old-linux", "reassembly.overlap", "old-linux"),
        ("--report r.json", "report_path", "r.json"),
        ("--duration 60", "duration_s", 60),
        ("--drain 0", "drain_s", 0),
        ("--stats-interval 1", "stats_interval_s", 1),
        ("-v", "verbosity", 1),
        ("-vv", "verbosity", 2),
        ("-q", "verbosity", -1),
        ("--quiet", "verbosity", -1),
    ],
)
def test_option_sets_its_field(option, field, value):
    config, default = parsed(option), parsed("")
    for name in field.split("."):
        config, default = getattr(config, name), getattr(default, name)
    assert config == value
    assert default != value


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("-p 0", "-p/--port: '0' is not a port: a number from 1 to 65535"),
        ("-p 70000", "-p/--port: '70000' is not a port: a number from 1 to 65535"),
        ("-p 80,,81", "-p/--port: '' is not a port"),
        ("-p -5", "-p/--port: '-5' is not a port"),
        ("-p \u0668\u0660", "-p/--port: '\u0668\u0660' is not a port"),
        ("-p", "-p/--port: expected one argument"),
        ("--speed 2", "--speed is for capture files only"),
        ("--read a --speed 0", "--speed: '0' is not a speed: a number above 0, like 2.0, or max"),
        ("--read a --speed nan", "--speed: 'nan' is not a speed"),
        ("--read a --interface lo", "-i/--interface: not allowed with argument --read"),
        ("--read a --write a", "--write a would overwrite the file that --read reads"),
        ("--sample 10", "--sample: '10' is not a share: above 0% and at most 100%, like 10% or 0.1"),
        ("--sample 0%", "--sample: '0%' is not a share"),
        ("--sample 101%", "--sample: '101%' is not a share"),
        ("--linger -1", "--linger: '-1' is not a time: seconds, 0 or more, like 2.5"),
        ("--duration 0", "--duration: '0' is not a time: seconds, above 0, like 2.5"),
        ("--drain inf", "--drain: 'inf' is not a time"),
        ("--gap-timeout 1e300", "--gap-timeout: '1e300' is not a time"),
        ("--ring 64Q", "--ring: '64Q' is not a size: bytes, or a number with k, M or G, like 64M"),
        ("--ring 1k", "--ring: '1k' is out of range: at least 512k and at most 2047M"),
        ("--ring 2G", "--ring: '2G' is out of range: at least 512k and at most 2047M"),
        ("--total-memory 0", "--total-memory: '0' is out of range: at least 1 bytes"),
        (f"--total-memory {'9' * 400}", "is not a size"),
        ("--max-connections 0", "--max-connections: '0' is not a number of connections: 1 to 999999999"),
        ("--max-rate 0", "--max-rate: '0' is out of range: at least 1 bytes"),
        ("--max-rate 200c", "--max-rate: '200c' is not a size"),
        ("--max-connection-rate 0.5", "--max-connection-rate: '0.5' is not a number of connections"),
        ("--max-memory 64M", "--max-memory: '64M' is out of range: at least 96M"),
        ("--cpu-limit 0", "--cpu-limit: '0' is not a part of one core: 1% to 100%"),
        ("--cpu-limit 200%", "--cpu-limit: '200%' is not a part of one core"),
        ("--cpu-limit 50% --read a", "--cpu-limit is for devices only"),
        ("--overlap linus", "--overlap: 'linus' is not one of linux, first, last, bsd, solaris, old-linux"),
        ("-v -q", "-q/--quiet: not allowed with argument -v/--verbose"),
        ("--mode=relay", "--mode: not allowed with argument -c"),
        ("stray", "unexpected argument 'stray': every setting is an option"),
        ("-- stray", "unexpected argument 'stray': every setting is an option"),
        *(
            (f"{option}=", f"{option}: '' is not the name of a file")
            for option in ("--read", "--write", "--report", "--config", "--script", "--couple-file", "--tls-ca")
        ),
    ],
)
def test_refused_option_is_named_with_its_value_and_what_is_accepted(option, message):
    error = refused(f"-c -p 80 -u machineB:1080 {option}")
    assert message in str(error)
    assert error.exit_status == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the mode is missing: -c or --mode=capture, -r or --mode=relay"),
        ("-c -u b:1", "the port to capture is missing: -p/--port"),
        ("-c -p 80", "an upstream is missing: -u/--upstream"),
    ],
)
def test_missing_setting_comes_with_an_example(arguments, message):
    error = refused(arguments)
    assert str(error) == message
    assert error.hint.endswith("gopher --mode=capture --port=80 --upstream=machineB:1080")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ("-c --porrt 80", "unknown option --porrt", "did you mean --port?"),
        ("-c --upsteam=b", "unknown option --upsteam", "did you mean --upstream?"),
        ("-c --xyzzy", "unknown option --xyzzy", "gopher --help lists the options"),
        # No abbreviations: a script that uses one breaks when a new option makes it ambiguous.
        ("-c --rep r.json", "unknown option --rep", "did you mean --report?"),
    ],
)
def test_unknown_option_names_the_nearest(arguments, message, hint):
    error = refused(arguments)
    assert (str(error), error.hint) == (message, hint)


def test_mistyped_mode_names_the_nearest():
    assert str(refused("--mode=captur")) == "--mode: 'captur' is not one of capture, relay (did you mean capture?)"


def test_help_shows_options_defaults_and_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "network device to capture on (default: any)" in text
    assert "each as a whole: 10% or 0.1 (default: 100%)" in text
    assert "(default: 64M)" in text
    assert "(default: 10000; relay mode: 16384)" in text
    assert "gopher -c -p 80 -u machineB:3280 -u machineC:3280 -u machineD" in text


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"gopher {gopher.__version__}\n"


def run_main(monkeypatch, raised):
    async def run_capture(config, control):
        async with trio.open_nursery() as nursery:

            async def fail():
                raise raised

            nursery.start_soon(fail)

    monkeypatch.setattr("gopher.capture.run.run_capture", run_capture)
    return main(["-c", "-p", "80", "-u", "machineB:1080"])


def test_main_returns_what_the_capture_returns(monkeypatch):
    async def run_capture(config, control):
        assert config == parsed("")
        return 5

    monkeypatch.setattr("gopher.capture.run.run_capture", run_capture)
    assert main(["-c", "-p", "80", "-u", "machineB:1080"]) == 5


def test_usage_error_is_one_sentence_and_a_hint(capsys):
    assert main(["-c", "--porrt", "80"]) == 2
    assert capsys.readouterr() == ("", "gopher: error: unknown option --porrt\n  hint: did you mean --port?\n")


@pytest.mark.parametrize(
    ("raised", "status", "stderr"),
    [
        (UpstreamError("no such machine"), 1, "gopher: error: no such machine\n"),
        (
            CapturePermissionError("may not capture on lo", hint="run it as root"),
            77,
            "gopher: error: may not capture on lo\n  hint: run it as root\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_error_out_of_a_nursery_ends_the_command_without_a_traceback(monkeypatch, capsys, raised, status, stderr):
    assert run_main(monkeypatch, raised) == status
    assert capsys.readouterr() == ("", stderr)


def test_bug_keeps_its_traceback(monkeypatch):
    with pytest.raises(BaseException) as caught:  # noqa: PT011  (a group, which Python 3.10 has no builtin for)
        run_main(monkeypatch, ZeroDivisionError("a bug"))
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]


def run_python(*arguments, **settings):
    return subprocess.run(
        [sys.executable, *arguments], stderr=subprocess.PIPE, text=True, timeout=60, check=False, **settings
    )


GOPHER = f"{sys.executable} -W default -m gopher"


def run_shell(command, **settings):
    # Buffered, as it is for users: what cannot be written shows at the end.
    environment = {**os.environ, "PYTHONUNBUFFERED": "", "PYTHONPATH": str(Path(gopher.__file__).parents[1])}
    return subprocess.run(
        ["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=environment, **settings
    )


def test_reader_of_the_help_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as stdout:
        result = run_python("-m", "gopher", "--help", stdout=stdout)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--help", "--version", "-c -p 80 -u b --check-config"])
@pytest.mark.parametrize(
    ("stdout", "reason"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")], ids=["full", "closed"]
)
def test_what_was_asked_for_and_cannot_be_printed_is_an_error(arguments, stdout, reason):
    result = run_shell(f"{GOPHER} {arguments} {stdout}")
    assert (result.returncode, result.stderr) == (1, f"gopher: error: cannot write to stdout: {reason}\n")


def test_closed_standard_descriptors_are_nobody_elses():
    code = "import os, gopher.stdout as s; s.keep_standard_descriptors(); print(*map(os.readlink, " + (
        "[f'/proc/self/fd/{number}' for number in (0, 2)]), os.open('/', os.O_RDONLY) > 2)"
    )
    result = run_shell(f'{sys.executable} -c "{code}" <&- 2>&-', stdout=subprocess.PIPE)
    assert result.stdout == "/dev/null /dev/null True\n"


def test_character_that_stdout_cannot_say_is_named():
    result = run_shell(f"PYTHONIOENCODING=ascii {GOPHER} -c -p 80 -u bücher --check-config")
    assert result.returncode == 1
    assert result.stderr.startswith("gopher: error: cannot write to stdout: '\\xfc' is not in its encoding, ascii\n")


@pytest.mark.slow
@pytest.mark.parametrize("streams", [">&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize("mirrors", [1, 2])
def test_mirror_whose_words_have_nowhere_to_go_goes_on(tmp_path, streams, mirrors):
    (tmp_path / "none.pcap").write_bytes(pcap_file([]))
    table = 'mode = "capture"\nport = 80\nread = "none.pcap"\nupstream = "dir:streams"\n'
    names = "".join(f'[[mirror]]\nname = "{number}"\nreport = "{number}.json"\n' for number in range(mirrors))
    (tmp_path / "gopher.toml").write_text(table + (names if mirrors > 1 else 'report = "0.json"\n'))
    result = run_shell(f"{GOPHER} --config gopher.toml {streams}", cwd=tmp_path)
    assert result.returncode == 0
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [f"{number}.json" for number in range(mirrors)]


def test_library_and_option_parsing_do_not_load_trio():
    code = "import sys, gopher, gopher.cli; gopher.cli.parse(sys.argv[1:]); sys.exit('trio' in sys.modules)"
    assert run_python("-c", code, "-c", "-p80", "-ub").returncode == 0


def test_all_names_the_whole_public_interface():
    public = {name for name in vars(gopher) if not name.startswith("_")}
    modules = {name for name in public if isinstance(vars(gopher)[name], type(gopher))}
    assert sorted(gopher.__all__) == sorted((public - modules) | {"__version__"})
