"""The reference of options, which the site's build makes of the command's own table."""

import argparse
import importlib.util

from gopher.options import option_parser
from tests.support.pages import ROOT

_spec = importlib.util.spec_from_file_location("option_reference", ROOT / "docs/option_reference.py")
option_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(option_reference)


def test_every_option_is_in_the_reference():
    text = option_reference.option_reference()
    headings = [line for line in text.splitlines() if line.startswith("### ")]
    shown = [
        action for action in option_parser()._actions if action.help != argparse.SUPPRESS and action.dest != "help"
    ]
    assert len(headings) == len(shown) > 40
    for action in shown:
        assert any(f"`{action.option_strings[-1]}`" in heading for heading in headings), action.option_strings
    assert (
        "### `--sample` `SHARE`\n\nMirror only this share of the client addresses, each as a whole: 10% or 0.1" in text
    )
    assert "In the file `sample`, in the environment `GOPHER_SAMPLE`." in text


def test_the_page_has_the_place_for_it():
    assert (ROOT / "docs/options.md").read_text().count(option_reference.PLACE) == 1
