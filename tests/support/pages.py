"""The README and the documentation as a reader of Markdown sees them: links, headings and blocks of code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])

_MARKDOWN = MarkdownIt("commonmark").enable("table")
# What an indented block begins with if it is for a shell. All others are shown output, formats and drawings.
COMMANDS = (
    *("cp", "curl", "docker", "echo", "gopher", "grep", "install", "ip", "kill", "kubectl", "ln", "make", "mkdir"),
    *("nsenter", "python3", "setpriv", "tcpdump", "wait", "/opt/gopher/bin/pip"),
)


@dataclass(frozen=True)
class Block:
    """A block of code."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """All of a page, in order. An indented one that begins with a command is a shell's, else it has no language."""
    for token in _MARKDOWN.parse(page.read_text()):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            language = token.info.split(" ")[0]
            if token.type == "code_block":
                first, *rest = token.content.split()
                # "gopher 0.1.0: ..." is what it says, not what it is told.
                told = first != "gopher" or rest[:1] == [] or rest[0].startswith("-")
                language = "sh" if first in COMMANDS and told else ""
            yield Block(page, token.map[0] + 1, language, token.content)


def links(page: Path) -> Iterator[str]:
    """Where links and pictures of a page lead."""
    for token in _MARKDOWN.parse(page.read_text()):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield str(target)


def anchors(page: Path) -> set[str]:
    """What `#…` may name: headings, as GitHub and the site write them."""
    tokens = _MARKDOWN.parse(page.read_text())
    return {
        re.sub(r"[^\w\- ]", "", inline.content.lower()).replace(" ", "-")
        for heading, inline in itertools.pairwise(tokens)
        if heading.type == "heading_open"
    }
