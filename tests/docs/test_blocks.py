"""Every block of code of the README and the documentation is what it says it is.

The rule: a shell block has valid syntax, each of its commands is gopher or one of the programs named here, and each
gopher command line is accepted by the command's own reader of settings. The tour's are executed as well (test_tour.py).
Blocks of TOML are configuration files, those of Python are executed, YAML and JSON are parsed. Whatever has no language
is shown, not run, and must not hide a command.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from gopher.cli import read_plan
from gopher.config import CaptureConfig, RelayConfig
from tests.support.pages import PAGES, ROOT, blocks

BLOCKS = [block for page in PAGES for block in blocks(page)]

# What stands in blocks beside gopher, and why it is only parsed there.
NOT_RUN = {
    "another host, a cluster or a container engine": ("docker", "kubectl", "nsenter", "tcpdump"),
    "changes the system": ("cp", "ip", "ln", "mkdir", "setcap", "systemctl", "pip", "/opt/gopher/bin/pip"),
    "asks or tells a gopher that runs": ("curl", "grep", "kill", "sed", "wait"),
    "what the tests of make's targets run": ("make", "python3", "echo"),
}
PREFIXES = {"sudo", "nohup"}


def of(*languages):
    found = [block for block in BLOCKS if block.language in languages]
    assert found
    return pytest.mark.parametrize("block", found, ids=str)


def commands(text):
    """The words of each simple command: continuation lines joined, comments and redirections left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        for word in [*lexer, ";"]:
            if word and set(word) <= set("|&;"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def own_part(words):
    """What gopher is given by a command that starts it, or None."""
    if words[0] in ("nsenter", "setpriv") or words[:2] == ["docker", "run"]:
        return words[words.index("gopher") + 1 :]
    while words[0] in PREFIXES:
        words = words[1:]
    return words[1:] if words[0].rpartition("/")[2] == "gopher" else None


def configuration(arguments, tmp_path):
    """The settings that gopher reads from these arguments; the file they name is the first one that the docs show."""
    arguments = arguments[: next((at for at, word in enumerate(arguments) if word.startswith(">")), None)]
    shown = next(block for block in BLOCKS if block.language == "toml")
    (tmp_path / "gopher.toml").write_text(shown.text)
    at = arguments.index("--config") + 1 if "--config" in arguments else 0
    if at:
        arguments[at] = str(tmp_path / "gopher.toml")
    return read_plan(arguments, {})


@of("sh", "console", "bash")
def test_shell_block(block, tmp_path):
    checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    known = {program for programs in NOT_RUN.values() for program in programs}
    for words in commands(block.text):
        arguments = own_part(words)
        if arguments is None:
            program = next(word for word in words if word not in PREFIXES)
            assert program in known or re.fullmatch(r"\w+=\S*", program), f"{program}: no reason why it is not run"
        elif arguments[0] not in ("--version", "--help"):
            [*mirrors] = configuration(arguments, tmp_path).mirrors
            assert all(isinstance(each.config, (CaptureConfig, RelayConfig)) for each in mirrors)


@of("toml")
def test_toml_block_is_a_configuration(block, tmp_path):
    path = tmp_path / "gopher.toml"
    path.write_text(block.text)
    plan = read_plan(["--config", str(path), "--check-config"], {})
    assert plan.mirrors
    assert not plan.warnings


@of("python")
def test_python_block_runs(block, tmp_path):
    shutil.copy(ROOT / "demo/demo.pcap", tmp_path / "today.pcap")
    (tmp_path / "block.py").write_text(block.text)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); exec(open('block.py').read())"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@of("yaml")
def test_yaml_block(block):
    assert isinstance(yaml.safe_load(block.text), dict)


def test_every_block_is_of_a_known_kind():
    for block in BLOCKS:
        if block.language == "json":
            json.loads(block.text)
        assert block.language in ("sh", "toml", "python", "yaml", "json", "hex", "text", "", "{toctree}"), block


def test_what_is_only_shown_hides_no_command():
    for block in BLOCKS:
        if block.language in ("", "text"):
            hidden = re.search(r"^\s*(?:sudo )?gopher (?:-|--)", block.text, re.MULTILINE)
            assert hidden is None, block
