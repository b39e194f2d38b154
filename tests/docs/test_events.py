"""The events of the JSON log: docs/watching.md lists those that the code has."""

import re

from tests.support.pages import ROOT

# Named with a method of a log, with a function made of one, or by the log itself.
SAID = re.compile(r"""\blog\.(?:info|reply|warning|failure)[(,]\s*"(\w+)"|failure\("(\w+)"|_line\("\w+", "(\w+)\"""")


def test_every_event_is_documented():
    code = "\n".join(path.read_text() for path in sorted((ROOT / "gopher").glob("**/*.py"))).replace("_log", "log")
    said = {next(filter(None, found)) for found in SAID.findall(code)}
    page = (ROOT / "docs/watching.md").read_text()
    table = page.partition("| Event | When |")[2].partition("\n\n")[0]
    assert {"ready", "script", "error", "bug", "worker_died"} <= said
    assert said == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
