"""Every relative link of the README and the documentation leads somewhere, to its anchor, too."""

import pytest

from tests.support.pages import PAGES, ROOT, anchors, links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_navigation():
    index = (ROOT / "docs/index.md").read_text()
    for page in PAGES:
        name = page.relative_to(ROOT / "docs").with_suffix("") if page.is_relative_to(ROOT / "docs") else None
        if name is not None and str(name) != "index":
            assert f"\n{name}\n" in index, name
