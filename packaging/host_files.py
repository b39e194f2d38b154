"""The manual page and the shell completions, made of the command's own options: python packaging/host_files.py FOLDER.

Each file lies in FOLDER where it belongs below /usr or an environment, so that a wheel brings them along. Made when the
sdist is made, not when a wheel is: this asks the command, and while a wheel is built there is none yet.
"""

from __future__ import annotations

import sys
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

import gopher
from gopher.options import option_parser

MANUAL = "share/man/man1/gopher.1"
COMPLETIONS = {
    "bash": "share/bash-completion/completions/gopher",
    "zsh": "share/zsh/site-functions/_gopher",
    "fish": "share/fish/vendor_completions.d/gopher.fish",
}
SUMMARY = "mirror live TCP traffic to other servers"


def manual() -> str:
    """For man: mandoc finds nothing in it to warn of."""
    page = Manpage(
        option_parser(),
        _data={"description": SUMMARY, "version": gopher.__version__, "manual_title": "User Commands"},
        format="single-commands-section",
    )
    head, rest = str(page).split("\n", 1)
    body, notes = rest.split(".SH COMMENTS\n")
    # The date is no prose, and the text after the options is laid out already.
    return "\n".join([head.replace(r"\-", "-"), body.rstrip(), ".SH NOTES", ".nf", notes.rstrip(), ".fi", ""])


def completions(shell: str) -> str:
    """For bash, zsh or fish."""
    parser = option_parser()
    for action in parser._actions:
        metavar = str(action.metavar)
        if metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks
        if shell == "zsh" and action.metavar is not None:
            # What a colon is followed by would be run.
            action.metavar = metavar.replace(":", r"\:")
    return shtab.complete(parser, shell)


def main(arguments: list[str]) -> int:
    """Write all of them."""
    if len(arguments) != 1:
        print("usage: python packaging/host_files.py FOLDER", file=sys.stderr)
        return 2
    texts = {MANUAL: manual(), **{path: completions(shell) for shell, path in COMPLETIONS.items()}}
    for path, text in texts.items():
        file = Path(arguments[0], path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
