"""Real captures: gopher's streams are byte for byte what two independent tools say."""

import pytest

from gopher.streams import read_streams
from tests.support.corpus import CORPUS, GOPHER_IS_RIGHT, disagreements, needs_corpus, truth

pytestmark = needs_corpus


@pytest.mark.parametrize("file", sorted(truth()) or [f"none in {CORPUS}"])
def test_streams_equal_what_two_tools_say(file):
    differing = {(file, *where): how for *where, how in disagreements(file, read_streams(CORPUS / "captures" / file))}
    known = {entry for entry in GOPHER_IS_RIGHT if entry[0] == file}
    assert {entry: how for entry, how in differing.items() if entry not in known} == {}
    assert known <= differing.keys(), "gopher agrees now: take it off the list"
