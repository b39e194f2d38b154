"""`--couple-file`: rules from TOML, and what is said about those that are none."""

import pytest

from gopher.cli import read_plan
from gopher.errors import ConfigError
from gopher.relay.rulefile import read_rules

RULES = r"""
# The shop.
couple = [
  "cookie:JSESSIONID",  # the session
  "auto",
  'regex:"cart":"(\w+)"',
]
"""


def test_rules_keep_their_order_and_comments_stand_beside_them():
    assert read_rules(RULES, "f") == ["cookie:JSESSIONID", "auto", r'regex:"cart":"(\w+)"']


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("couple = [\n'cookie:a'\n'form:b']", "f:3: Unclosed array", "a file of rules is TOML, for example"),
        ("", "f: the key couple is missing", "for example: couple = ['cookie:JSESSIONID'"),
        ("\ncouples = []", "f:2: unknown key 'couples'", "did you mean couple? couple is the only one"),
        ("couple = []\n[relay]\na=1", "f:2: unknown key 'relay'", "couple is the only one"),
        ("couple = []\n[[mirror]]", "f:2: unknown key 'mirror'", "couple is the only one"),
        ("couple = 'auto'", "f:1: couple must be a list of rules, not a string", "for example"),
        ("couple.a = 'auto'", "f:1: couple must be a list of rules, not a table", "for example"),
        ("[[couple]]\nrule = 'auto'", "f:1: entry 1: a rule is a string, not a table", "put it in quotes"),
        ("couple = ['auto', 17]", "f:1: entry 2: a rule is a string, not a number", "put it in quotes"),
        ("couple = [true]", "f:1: entry 1: a rule is a string, not a boolean", "put it in quotes"),
        (
            "\ncouple = [\n'auto',\n'cokie:a']",
            "f:2: entry 2: couple 'cokie:a' is no rule (did you mean cookie:a?)",
            "use cookie:NAME",
        ),
        ("couple = ['json:a']", "f:1: entry 1: couple 'json:a': a JSON pointer begins with /", ""),
    ],
)
def test_what_is_no_list_of_rules_is_refused_with_the_reason_and_a_way_out(text, message, hint):
    with pytest.raises(ConfigError) as refused:
        read_rules(text, "f")
    assert str(refused.value) == message
    assert refused.value.hint.startswith(hint)
    assert refused.value.exit_status == 2


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The relay's configuration by options, variables and files of rules."""
    monkeypatch.chdir(tmp_path)
    for name, rules in (("a.toml", "['cookie:a', 'cookie:b']"), ("b.toml", "['auto', 'form:c']")):
        (tmp_path / name).write_text(f"couple = {rules}")

    def read(*options, **environ):
        return read_plan(["-r", "-p", "1", "-u", "a", *options], environ).mirrors[0].config

    return read


def test_files_add_to_what_the_command_line_says(config):
    complete = config("--couple", "cookie:b", "--couple-file", "a.toml", "--couple-file", "b.toml")
    assert complete.couple == ("cookie:b", "cookie:a", "form:c")
    assert complete.couple_auto
    assert complete.couple_files == ("a.toml", "b.toml")
    assert complete.reads_messages
    assert config("--couple", "auto", "--couple-file", "a.toml").couple_auto


def test_files_are_named_in_the_environment(config):
    assert config(GOPHER_COUPLE_FILE="b.toml a.toml").couple == ("form:c", "cookie:a", "cookie:b")


def test_files_are_named_in_a_configuration_file(config, tmp_path):
    (tmp_path / "gopher.toml").write_text('couple-file = "a.toml"\ncouple = "form:d"')
    assert config("--config", "gopher.toml").couple == ("form:d", "cookie:a", "cookie:b")
    assert config("--config", "gopher.toml", "--couple-file", "b.toml").couple == ("form:d", "form:c")


def test_mistakes_of_several_files_are_said_together(config, tmp_path):
    (tmp_path / "a.toml").write_text("couple = ['cokie:a']")
    (tmp_path / "b.toml").write_bytes(b"couple = []\n# \xff")
    (tmp_path / "gopher.toml").write_text('\ncouple-file = ["a.toml", "b.toml", "c.toml"]')
    with pytest.raises(ConfigError) as refused:
        config("--config", "gopher.toml")
    where = "gopher.toml:2: couple-file"
    lines = str(refused.value).split("\n")
    assert lines[:2] == [
        "3 settings are wrong",
        f"  {where} a.toml:1: entry 1: couple 'cokie:a' is no rule (did you mean cookie:a?)",
    ]
    assert lines[-2:] == [
        f"  {where} b.toml:2: this is no UTF-8 text",
        f"  {where} c.toml cannot be read: No such file or directory",
    ]
