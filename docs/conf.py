"""The documentation site: `make docs` builds it with Sphinx, offline, into build/docs.

The pages are Markdown that reads as well in the repository. What is put in here is the reference of options, made of
the command's own table.
"""

import re
import sys
from pathlib import Path

from pygments.lexers.special import TextLexer

sys.path.insert(0, str(Path(__file__).parent))

from option_reference import PLACE, option_reference

import gopher

project = "Gopher"
author = "The Gopher authors"
release = gopher.__version__
html_title = f"Gopher {release}"

extensions = ["myst_parser"]
# Anchors as in the repository, so that a link works in both; one that leads nowhere is an error.
myst_heading_anchors = 4
exclude_patterns = ["scripts"]
highlight_language = "text"
# Two dashes are an option.
smartquotes = False

html_theme = "furo"
html_copy_source = False


# A link to a Markdown file that is no page of the site: the file itself.
OUTSIDE = re.compile(r"\]\((\.\./(?:\.\./)*(?:benchmarks|packaging)/[^)#]+\.md)\)")


def _read(app, page, source):
    source[0] = OUTSIDE.sub(r"](path:\1)", source[0].replace(PLACE, option_reference()))


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.add_lexer("hex", TextLexer)
