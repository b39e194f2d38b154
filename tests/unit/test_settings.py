"""Options, environment and file together: precedence, mistakes, and the print of what counts."""

import re
from pathlib import Path

import pytest

from gopher.cli import main, read_plan
from gopher.config import CaptureConfig, RelayConfig, TlsConfig
from gopher.errors import ConfigError

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

FILE = """\
# The whole of production.
mode = "capture"
port = [80, 8080]
upstream = [
    "machineB:1080",  # the new release
    "machineC",
]
linger = 2.5
sample = "10%"
ring = 67108864
responses = true
low-latency = true
verbose = 2
"""

SEVERAL = """\
drain = 3
couple = "auto"
interface = "eth0"

[[mirror]]
name = "shop"
mode = "capture"
port = 80
upstream = "machineB"
drain = 4

[[mirror]]
name = "relay"
mode = "relay"
port = 3280
upstream = "localhost:80"
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """What the command makes of a file gopher.toml with that text, of options and of variables."""
    monkeypatch.chdir(tmp_path)

    def read(text, *options, **environ):
        (tmp_path / "gopher.toml").write_text(text)
        variables = {name.replace("_TOML", ""): value for name, value in environ.items()}
        return read_plan(["--config", "gopher.toml", *options], variables)

    return read


@pytest.fixture
def config(plan):
    return lambda *arguments, **environ: plan(*arguments, **environ).mirrors[0].config


@pytest.fixture
def problems(plan):
    def refused(text, *options, **environ):
        with pytest.raises(ConfigError) as caught:
            plan(text, *options, **environ)
        assert caught.value.exit_status == 2
        return str(caught.value) + (f"\nhint: {caught.value.hint}" if caught.value.hint else "")

    return refused


def test_file_says_what_options_say(config):
    options = "-c -p 80,8080 -u machineB:1080 -u machineC --linger 2.5 --sample 10% --ring 64M --responses"
    expected = read_plan([*options.split(), "--low-latency", "-vv"], {}).mirrors[0].config
    assert config(FILE) == expected


def test_option_beats_environment_beats_file_beats_default(config):
    text = 'mode = "capture"\nport = 1\nupstream = "b:1"\n'

    def drain(file="", *options, **environ):
        return config(text + file, *options, **environ).drain_s

    variable = {"GOPHER_DRAIN": "8"}
    assert drain() == 5
    assert drain("drain = 9") == 9
    assert drain("drain = 9", **variable) == 8
    assert drain("drain = 9", "--drain", "7", **variable) == 7
    assert drain("drain = 9", "--drain", "5") == 5


def test_list_of_a_higher_layer_takes_the_place_of_the_lower_one(config):
    assert config(FILE, "-p", "443", "-p", "444").source.ports == (443, 444)
    upstreams = config(FILE, GOPHER_UPSTREAM=" a:1\n[::1]:2 ").mirror.upstreams
    assert [upstream.name for upstream in upstreams] == ["a:1", "[::1]:2"]


@pytest.mark.parametrize("word", ["1", "true", "Yes", "on"])
def test_flag_of_the_environment(config, word):
    assert config(FILE.replace("responses = true", ""), GOPHER_RESPONSES=word).source.responses is True


@pytest.mark.parametrize("word", ["0", "false", "No", "off"])
def test_flag_of_the_file_is_taken_back_by_the_environment(config, word):
    assert config(FILE, GOPHER_RESPONSES=word).source.responses is False
    assert config(FILE, GOPHER_LOW_LATENCY=word).source.wakeup_ms == 8


def test_flag_of_the_file_is_taken_back_by_an_option(config):
    assert config(FILE, "--no-responses").source.responses is False
    assert config(FILE, "--no-low-latency").source.wakeup_ms == 8


RELAY = 'mode = "relay"\nport = 1\nupstream = "tls://a"\n'


def test_tls_of_the_file_and_the_environment(config):
    text = RELAY + 'tls-ca = "ca"\ntls-cert = "cert"\ntls-name = "b"\n'
    made = config(text, GOPHER_TLS_KEY="key", GOPHER_TLS_NAME="c")
    assert made.tls == TlsConfig(ca_path="ca", cert_path="cert", key_path="key", server_name="c")
    assert config(RELAY + "tls-insecure = true\n").tls == TlsConfig(insecure=True)
    assert config(RELAY + "tls-insecure = true\n", "--no-tls-insecure", "-u", "b").tls == TlsConfig()


@pytest.mark.parametrize(
    ("written", "variable", "header"),
    [
        ("true", "", "x-forwarded-for"),
        ('"both"', "", "both"),
        ("false", "", None),
        ('"both"', "forwarded", "forwarded"),
        ('"both"', "1", "x-forwarded-for"),
        ('"both"', "off", None),
    ],
)
def test_flag_that_may_have_a_value(config, written, variable, header):
    assert config(f"{RELAY}forwarded = {written}\n", GOPHER_FORWARDED=variable).forwarded == header


def test_flag_that_may_have_a_value_is_taken_back_by_an_option(config):
    assert config(f"{RELAY}forwarded = 'both'\n", "--no-forwarded").forwarded is None


def test_option_beats_what_it_excludes(config):
    assert config(FILE + 'interface = "eth0"', "--read", "a.pcap").source.read_path == "a.pcap"
    assert config(FILE, "-q").verbosity == -1
    assert config(FILE, GOPHER_QUIET="1").verbosity == -1


def test_empty_variable_says_nothing(config):
    assert config(FILE, GOPHER_LINGER="", GOPHER_UPSTREAM=" ") == config(FILE)


def test_file_is_named_by_the_environment(plan, tmp_path):
    plan(FILE)
    assert read_plan([], {"GOPHER_CONFIG": str(tmp_path / "gopher.toml")}).path == str(tmp_path / "gopher.toml")


def test_several_mirrors_share_what_is_said_above_them(plan):
    shop, relay = plan(SEVERAL).mirrors
    assert isinstance(shop.config, CaptureConfig)
    assert isinstance(relay.config, RelayConfig)
    assert (shop.name, shop.config.name, relay.name) == ("shop", "shop", "relay")
    assert (shop.config.drain_s, relay.config.drain_s) == (4, 3)
    assert relay.config.couple_auto
    assert shop.config.source.interface == "eth0"


def test_option_holds_for_every_mirror_that_has_it(plan):
    shop, relay = plan(SEVERAL, "--drain", "1", "--filter", "ip").mirrors
    assert (shop.config.drain_s, relay.config.drain_s, shop.config.source.filter) == (1, 1, "ip")


def test_mirror_knows_where_the_others_send(plan):
    text = SEVERAL + '[[mirror]]\nname = "x"\nmode = "capture"\nport = [81, 82]\nupstream = ["machineD", "dir:/a"]\n'
    shop, _, other = plan(text).mirrors
    assert [(each.host, each.port) for each in shop.config.beside] == [
        ("localhost", 80),
        ("machineD", 81),
        ("machineD", 82),
    ]
    assert [(each.host, each.port) for each in other.config.beside] == [("machineB", 80), ("localhost", 80)]


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_every_mistake_of_a_file_is_named_with_line_key_and_way_out(problems):
    text = """\
mode = "capture"
conect-timeout = 3
responses = "maybe"

upstream = ["a:1", "b:99999",
            "http://c"]
linger = -1
interface = "eth0"
read = "a.pcap"
couple = "auto"
interval = { a = 1 }
drain = true
filter = 5
"""
    accepted = (
        "    hint: accepted: HOST[:PORT], [IPv6]:PORT, tcp://HOST:PORT, tls://HOST:PORT, relay://HOST:PORT, dir:PATH"
    )
    assert problems(text) == "\n".join(
        [
            "11 settings are wrong",
            "  gopher.toml: the port to capture is missing: the key port, or -p/--port",
            "  gopher.toml:2: conect-timeout: there is no such setting",
            "    hint: did you mean connect-timeout?",
            "  gopher.toml:3: responses: 'maybe' is neither true nor false",
            "  gopher.toml:5: upstream 'b:99999': '99999' is not a port: a number from 1 to 65535",
            accepted,
            "  gopher.toml:5: upstream 'http://c': http:// is not a kind of upstream",
            accepted,
            "  gopher.toml:7: linger: '-1' is not a time: seconds, 0 or more, like 2.5",
            "  gopher.toml:9: read: not together with gopher.toml:8: interface",
            "  gopher.toml:10: couple is for relay mode only",
            "    hint: gopher --help lists the options of each mode",
            "  gopher.toml:11: interval: there is no such setting",
            "    hint: did you mean stats-interval?",
            "  gopher.toml:12: drain: true is not a number or text in quotes",
            "  gopher.toml:13: filter: 5 is not text in quotes",
        ]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mode = capture\n", "gopher.toml:1: Invalid value"),
        ('mode = "capture"\nport 80\n', "gopher.toml:2: Expected '=' after a key"),
        ('mode = "capture\n', "gopher.toml:1: "),
        ("port = [80,\n81", "gopher.toml:2: Unclosed array"),
        ("port = 80\nport = 81\n", "gopher.toml:2: Cannot overwrite a value"),
    ],
)
def test_what_is_no_toml_is_named_with_its_line(problems, text, message):
    assert problems(text).startswith(message)
    assert "hint: this is no TOML" in problems(text)


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("[mirror]\nname = 'a'\n", "gopher.toml:14: mirror: each one is a table\nhint: write [[mirror]]"),
        (
            "[gopher]\nport = 1\n",
            "14: gopher: there is no such setting\nhint: settings stand at the top of the file, or",
        ),
        ("mirror = 3\n", "gopher.toml:14: mirror: each one is a table"),
        ("[mirrors]\nname = 'a'\n", "gopher.toml:14: mirrors: there is no such setting\nhint: did you mean mirror?"),
        ("couple = 'nonsense'\nmode.a = 1", "gopher.toml:15: Cannot"),
        ("overlap = 'linus'", "gopher.toml:14: overlap: 'linus' is not one of linux, first"),
        ("max-connections = 1.5", "gopher.toml:14: max-connections: '1.5' is not a number of connections"),
        (
            "max_connections = 5",
            "gopher.toml:14: max_connections: there is no such setting\nhint: did you mean max-con",
        ),
        ("speed = 2", "gopher.toml:14: speed is for capture files only"),
        ("quiet = true", "gopher.toml:14: quiet: not together with gopher.toml:13: verbose"),
        ("duration = 2024-01-01", "gopher.toml:14: duration: 2024-01-01 is not a number or text in quotes"),
        ("total-memory = [1]", "gopher.toml:14: total-memory: an array is not a number or text in quotes"),
        ("report = ''", "gopher.toml:14: report: '' is not the name of a file"),
        ("interface = ''", "gopher.toml:14: interface: '' is not the name of a device"),
        (r'write = "a\u0000b"', r"gopher.toml:14: write: 'a\x00b' has a NUL character"),
        (f"duration = {'1' * 5000}", "gopher.toml: a number has too many digits"),
        (f"duration = {'[' * 20_000}", "gopher.toml: arrays are nested too deeply"),
    ],
)
def test_mistake_in_a_file(problems, addition, message):
    assert message in problems(FILE + addition)


def test_coupling_rule_that_is_none_is_named_with_its_line(problems):
    text = 'mode = "relay"\nport = 1\nupstream = "a"\ncouple = ["auto", "cokie:a"]\n'
    assert problems(text).startswith(
        "gopher.toml:4: couple 'cokie:a' is no rule (did you mean cookie:a?)\nhint: use cookie:NAME"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "shop"\n', "", "gopher.toml:5: name: this mirror has none"),
        ('name = "shop"', 'name = "relay"', "gopher.toml:13: name: there is a mirror relay already"),
        ('name = "shop"', 'name = "a b"', "gopher.toml:6: name: 'a b' is not made of letters"),
        ('mode = "relay"\n', "", "gopher.toml:12: mirror relay: the mode is missing: the key mode, or"),
        ('upstream = "machineB"\n', "", "gopher.toml:5: mirror shop: an upstream is missing: the key upstream, or"),
        ("drain = 4", "forwarded = true", "gopher.toml:10: forwarded is for relay mode only"),
        ("drain = 4", 'tls-ca = "a"', "gopher.toml:10: tls-ca is for relay mode only"),
        ("drain = 3", 'tls-ca = "a"', "gopher.toml:1: tls-ca is for a tls:// upstream, the first one"),
        ("drain = 4", 'metrics = "[::1]:80:80"', "gopher.toml:10: metrics: '[::1]:80:80' is not an address and a port"),
        ('mode = "capture"', 'mode = "relay"', "gopher.toml:3: interface: no mirror has a mode with this setting"),
        ("drain = 3", 'report = "r.json"', "gopher.toml:1: report: mirror shop has the same"),
        ("drain = 3", 'metrics = "127.0.0.1:9464"', "gopher.toml:1: metrics: mirror shop has the same"),
    ],
)
def test_mistake_among_several_mirrors(problems, old, new, message):
    assert SEVERAL.count(old) == 1
    assert message in problems(SEVERAL.replace(old, new))


@pytest.mark.parametrize(("first", "second", "clash"), [("", "", True), ("::1", "", True), ("::1", "127.0.0.1", False)])
def test_two_relays_cannot_listen_on_the_same_port(plan, first, second, clash):
    text = "mode = 'relay'\nupstream = 'a'\n" + "".join(
        f"[[mirror]]\nname = '{name}'\nport = [{port}, 3280]\n" + (f"listen = '{host}'\n" if host else "")
        for name, port, host in (("x", 1, first), ("y", 2, second))
    )
    if clash:
        with pytest.raises(ConfigError, match=r"gopher.toml:\d+: port: mirror x listens on 3280 already"):
            plan(text)
    else:
        assert len(plan(text).mirrors) == 2


def test_wrong_variable_is_named(problems):
    text = problems(FILE, GOPHER_LINGER="soon", GOPHER_VERBOSE="-1", GOPHER_DECAP="2")
    assert "GOPHER_LINGER: 'soon' is not a time: seconds, 0 or more" in text
    assert "GOPHER_VERBOSE: '-1' is not a whole number" in text
    assert "GOPHER_DECAP: '2' is neither true nor false" in text
    assert "enableServiceLinks: false" in problems(FILE, GOPHER_PORT="tcp://10.0.0.1:80")


def test_value_of_a_secret_is_not_quoted(problems):
    text = 'mode = "relay"\nport = 1\nupstream = "a"\nmarker = "hunter2"\n'
    assert problems(text) == "gopher.toml:4: marker: this is no NAME:VALUE (not shown)"


def test_file_that_cannot_be_read(tmp_path):
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigError, match=re.escape(f"{missing} cannot be read: No such file or directory")):
        read_plan(["--config", str(missing)], {})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"mode = 'relay'\n# \xff")
    with pytest.raises(ConfigError, match=re.escape(f"{binary}:2: this is no UTF-8 text")):
        read_plan(["--config", str(binary)], {})
    with pytest.raises(ConfigError, match="the configuration file /dev/zero is too long: more than 1M"):
        read_plan(["--config", "/dev/zero"], {})


def test_byte_order_mark_of_a_file_is_not_its_text(tmp_path):
    file = tmp_path / "gopher.toml"
    file.write_bytes(b"\xef\xbb\xbf" + FILE.encode())
    assert read_plan(["--config", str(file)], {}).mirrors[0].config.source.ports


# -- lines -------------------------------------------------------------------------------------------------------------

TRICKY = '''\
text = """
port = 1
[[mirror]]
"""
"quoted key" = ["]", # ",
  '#', [ [], ], { x = "=" },
]
dotted.key = 1 # , comment,
literal = \'\'\'
"""\'\'\'
[other]
port = 2
[[mirror]] # one
port = 3
[mirror.inner]
port = 4
[[mirror]]
last = 5'''


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_of_keys_whatever_is_in_strings_and_arrays(newline):
    from gopher.tomlfile import read_toml

    file = read_toml(TRICKY.replace("\n", newline), "gopher.toml")
    assert file.lines == {"text": 1, "quoted key": 5, "dotted": 8, "literal": 9, "other": 11, "mirror": 13}
    assert file.mirror_lines == [{"": 13, "port": 14, "inner": 15}, {"": 17, "last": 18}]


# -- the print ---------------------------------------------------------------------------------------------------------


def printed(capsys, *arguments):
    assert main([*arguments, "--check-config"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def test_print_says_where_each_value_comes_from(plan, capsys, monkeypatch):
    plan(FILE)
    monkeypatch.setenv("GOPHER_DRAIN", "8")
    text = printed(capsys, "--config", "gopher.toml", "--linger", "7", "-p", "443")
    said = dict(re.findall(r"^([\w-]+) = (.*?) +# (?:.*)$", text, re.MULTILINE))
    origin = dict(re.findall(r"^([\w-]+) = .*# (.*)$", text, re.MULTILINE))
    assert (said["drain"], origin["drain"]) == ("8", "environment")
    assert (said["linger"], origin["linger"]) == ("7", "option")
    assert (said["port"], origin["port"]) == ("[443]", "option")
    assert (said["upstream"], origin["upstream"]) == ('["machineB:1080", "machineC"]', "gopher.toml:4")
    assert (said["overlap"], origin["overlap"]) == ('"linux"', "default")
    assert "# duration is not set" in text
    assert tomllib.loads(text)["total-memory"] == "256M"


@pytest.mark.parametrize(
    "arguments",
    [
        "-c -p 80 -u machineB",
        "-r -p 3280 -u localhost",
        "-c -p 80,81 -u [::1]:1 --read a.pcap --speed max -q --sample 12.50% --no-responses --filter 'a\"\\b\t\x7f'",
        "-c -p 1 -u a -vv --low-latency --ring 2047M --linger 0.10 --metrics [::1]:9464 --responses",
        "-r -p 1 -u a --listen ::1 --link-from 10.0.0.0/8 --couple auto --couple cookie:a --host 1.10 --script a.py",
        "-r -p 1 -u tls://a --tls-cert a.pem --tls-key b --tls-ca c --tls-name b --forwarded --proxy-protocol v2",
        "-r -p 1 -u tls://a --tls-insecure --forwarded both",
    ],
)
def test_print_is_a_file_that_means_the_same(arguments, capsys, tmp_path):
    argv = [part.strip("'") for part in re.findall(r"'[^']*'|[^ ]+", arguments)]
    text = printed(capsys, *argv)
    (tmp_path / "again.toml").write_text(text)
    again = read_plan(["--config", str(tmp_path / "again.toml")], {}).mirrors[0].config
    assert again == read_plan(argv, {}).mirrors[0].config
    assert re.sub(" +# .*", "", printed(capsys, "--config", str(tmp_path / "again.toml"))) == re.sub(" +# .*", "", text)


def test_print_of_several_mirrors_means_the_same(plan, capsys):
    before = plan(SEVERAL)
    text = printed(capsys, "--config", "gopher.toml")
    assert [mirror.config for mirror in plan(text).mirrors] == [mirror.config for mirror in before.mirrors]


def test_print_masks_secrets(capsys):
    text = printed(capsys, "-r", "-p", "1", "-u", "a", "--marker", "X-Token:hunter2")
    assert 'marker = "X-Token: ********"' in text
    assert "hunter2" not in text


def test_print_warns_of_a_variable_that_looks_like_a_setting(capsys, monkeypatch):
    monkeypatch.setenv("GOPHER_UPSTRAEM", "b")
    monkeypatch.setenv("GOPHER_SERVICE_HOST", "10.0.0.1")
    assert main(["-c", "-p", "1", "-u", "a", "--check-config"]) == 0
    error = capsys.readouterr().err
    assert error == "gopher: warning: GOPHER_UPSTRAEM is no setting; did you mean GOPHER_UPSTREAM?\n"


def test_mistakes_end_the_command_with_status_2(tmp_path, capsys):
    (tmp_path / "gopher.toml").write_text('prot = 80\nmode = "captur"\n')
    assert main(["--config", str(tmp_path / "gopher.toml")]) == 2
    error = capsys.readouterr().err
    assert error == (
        "gopher: error: 2 settings are wrong\n"
        f"  {tmp_path}/gopher.toml:1: prot: there is no such setting\n    hint: did you mean port?\n"
        f"  {tmp_path}/gopher.toml:2: mode: 'captur' is not one of capture, relay (did you mean capture?)\n"
    )


def examples():
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    return re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", [0, 1])
def test_examples_of_the_documentation(number, tmp_path, capsys):
    assert len(examples()) == 2
    (tmp_path / "gopher.toml").write_text(examples()[number])
    text = printed(capsys, "--config", str(tmp_path / "gopher.toml"))
    assert text.count("[[mirror]]") == 2 * number
