"""Real captures: gopher's streams are byte for byte what two independent tools say."""

import pytest

from gopher.streams import read_streams
from tests.support.corpus import CORPUS, disagreements, needs_corpus, truth

pytestmark = needs_corpus

# Firm entries where gopher rightly says something else: (capture, stream number, half) and why.
GOPHER_IS_RIGHT: dict[tuple[str, int, str], str] = {}


@pytest.mark.parametrize("file", sorted(truth()))
def test_streams_equal_what_two_tools_say(file):
    differing = {
        (stream, half): difference
        for stream, half, difference in disagreements(file, read_streams(CORPUS / "captures" / file))
        if (file, stream, half) not in GOPHER_IS_RIGHT
    }
    assert not differing
