"""The manual page and the completions: whether they say all, and whether those who read them understand them."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gopher.options import option_parser
from tests.support.needs import need, need_modules

ROOT = Path(__file__).parents[2]
# --no-KEY takes back what the configuration file sets: told once for all, and listed nowhere.
SHOWN = [action for action in option_parser()._actions if action.help is not argparse.SUPPRESS]
OPTIONS = [option for action in SHOWN for option in action.option_strings]


@pytest.fixture(scope="module")
def share(tmp_path_factory):
    need_modules("argparse_manpage", "shtab")
    place = tmp_path_factory.mktemp("host")
    subprocess.run([sys.executable, ROOT / "packaging/host_files.py", place], check=True)
    return place / "share"


@pytest.fixture(scope="module")
def manual(share):
    return share / "man/man1/gopher.1"


@pytest.fixture(scope="module")
def shells(share):
    return {
        "bash": share / "bash-completion/completions/gopher",
        "zsh": share / "zsh/site-functions/_gopher",
        "fish": share / "fish/vendor_completions.d/gopher.fish",
    }


def run(*command, **settings):
    need(command[0])
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **settings)


def test_manual_says_every_option(manual):
    shown = manual.read_text().replace(r"\-", "-")
    # Every page has --help; this one says no more than that.
    wanted = set(OPTIONS) - {"-h", "--help"}
    assert len(wanted) > 40
    assert {option for option in wanted if rf"\fB{option}\fR" not in shown} == set()


def test_manual_is_clean_for_mandoc(manual):
    # Long lines are style: they come from the help, where they are one sentence.
    done = run("mandoc", "-Tlint", "-Wwarning", str(manual))
    assert (done.returncode, done.stdout) == (0, "")


def test_manual_is_shown_as_laid_out(manual):
    done = run("man", "--warnings", "-l", str(manual), env={"MANWIDTH": "100", "PATH": "/usr/bin:/bin", "LC_ALL": "C"})
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^NAME\n +gopher - mirror live TCP traffic", done.stdout, re.MULTILINE)
    # A table of the notes, not filled up to paragraphs.
    assert re.search(r"^ +dir:PATH +each client's stream into a file of this directory$", done.stdout, re.MULTILINE)


def test_completions_say_every_option(shells):
    bash = re.search(r"_option_strings=\((.*)\)", shells["bash"].read_text())[1].split()
    assert set(bash) == set(OPTIONS)
    zsh, fish = shells["zsh"].read_text(), shells["fish"].read_text()
    for option in OPTIONS:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", zsh), option
        short = "-l" if option.startswith("--") else "-s"
        assert re.search(rf"{short} '?{option.lstrip('-')}'?[ \n]", fish), option


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_valid_in_its_shell(shells, shell):
    done = run(shell, "-n", str(shells[shell]))
    assert (done.returncode, done.stderr) == (0, "")


# What bash does at TAB (bash(1), "Programmable Completion"), with the function that `complete` registered.
COMPLETE = """
source "$1"; shift
[[ $(complete -p gopher) =~ -F\\ ([^ ]+) ]]
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
"${BASH_REMATCH[1]}" gopher "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete_in_bash(shells, *words, cwd=None):
    done = run("bash", "-c", COMPLETE, "bash", str(shells["bash"]), *words, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("gopher", "--up"), {"--upstream", "--upstream-memory"}),
        (("gopher", "-c", "-p", "80", "--use"), {"--user"}),
        (("gopher", "--no-such"), set()),
    ],
)
def test_tab_completes_options_in_bash(shells, words, offered):
    assert set(complete_in_bash(shells, *words)) == offered


def test_tab_completes_files_in_bash(shells, tmp_path):
    (tmp_path / "monday.pcap").touch()
    assert complete_in_bash(shells, "gopher", "--read", "mon", cwd=tmp_path) == ["monday.pcap"]


def test_tab_completes_in_fish(shells, tmp_path):
    offer = f"source {shells['fish']}; complete --do-complete 'gopher --up'"
    done = run("fish", "--no-config", "-c", offer, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == {"--upstream", "--upstream-memory"}


# An interactive zsh in a pseudo-terminal, which prints what it would offer instead of a menu.
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; fpath=(${1:h} \\$fpath); autoload -Uz compinit; compinit -u -D"
zpty -w shell "zstyle ':completion:*' list-prompt ''; zstyle ':completion:*:default' list-colors 'no='; echo re''ady"
zpty -r -m shell ready '*ready'
zpty -w -n shell $'gopher --up\\t\\t'
zpty -r -m shell found '*upstream-memory*'
print -r -- $found
zpty -d shell
"""


def test_tab_completes_in_zsh(shells):
    done = run("zsh", "-f", "-c", ZSH, "zsh", str(shells["zsh"]))
    assert "where a copy goes" in done.stdout, done
