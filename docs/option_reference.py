"""The reference of options, in Markdown: what `gopher --help` says, with each option's key and variable."""

from __future__ import annotations

import argparse

from gopher.options import EPILOG, SECRET, option_parser
from gopher.settings import table

PLACE = "<!-- Here the site shows every option. -->"
"""What `option_reference` replaces in options.md."""


def option_reference() -> str:
    """A heading for each group of `--help`, and one for each option in it."""
    settings = {setting.option: setting for setting in table(option_parser(), secret=SECRET).values()}
    parser = option_parser()
    parts = []
    for group in parser._action_groups:
        actions = [each for each in group._group_actions if each.help != argparse.SUPPRESS and each.dest != "help"]
        if actions:
            parts.append(f"## {(group.title or '').capitalize()}")
        for action in actions:
            names = ", ".join(f"`{name}`" for name in reversed(action.option_strings))
            value = f" `{action.metavar}`" if action.metavar else ""
            parts += [f"### {names}{value}", _sentence(parser, action)]
            setting = settings.get("/".join(action.option_strings))
            if setting is not None:
                parts.append(f"In the file `{setting.key}`, in the environment `{setting.variable}`.")
    parts += ["## Upstreams, sizes, exit status", f"```text\n{EPILOG}```"]
    return "\n\n".join(parts)


def _sentence(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    # As argparse shows it: a doubled % is one.
    text = parser._get_formatter()._expand_help(action)
    for special in "\\`*_{}[]<>":
        text = text.replace(special, f"\\{special}")
    return f"{text[0].upper()}{text[1:]}."
