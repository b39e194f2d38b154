"""The inputs that the fuzzer has found worth keeping, through their targets once more."""

from pathlib import Path

import pytest

from tests.fuzz import http_framing, link, pcapfile, reassembler

CORPUS = Path(__file__).parent / "corpus"
TARGETS = {"http_framing": http_framing, "link": link, "pcapfile": pcapfile, "reassembler": reassembler}
INPUTS = [path for target in TARGETS for path in sorted((CORPUS / target).iterdir())]


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_input_breaks_no_promise(path):
    TARGETS[path.parent.name].run(path.read_bytes())
