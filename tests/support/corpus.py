"""The corpus of real captures with known answers: where it is, what it says, and how to compare with it.

It is not part of the project. Its own README explains the fields of truth.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from gopher.streams import Stream

CORPUS = Path(os.environ.get("GOPHER_CORPUS", Path(__file__).parents[3] / "shared" / "corpus")).resolve()

needs_corpus = pytest.mark.skipif(
    not (CORPUS / "truth.jsonl").exists(),
    reason=f"the corpus of captures is not at {CORPUS}; GOPHER_CORPUS=FOLDER says where else",
)

# Firm entries where gopher rightly says something else: (capture, stream number, half) and why.
GOPHER_IS_RIGHT = {
    ("zeek+zeek/testing_btest_Traces_tcp_rst-inject-rae.pcap", 0, "c2s"): (
        "The server's RST has exactly the sequence number that the client waits for, so it ends the connection. The "
        "client's 150 bytes that come after it are answered with another RST: no application read them."
    ),
}


@cache
def truth() -> dict[str, list[dict]]:
    """The rows of truth.jsonl by capture, in stream order; empty without the corpus."""
    rows = defaultdict(list)
    if (CORPUS / "truth.jsonl").exists():
        for line in (CORPUS / "truth.jsonl").read_text().splitlines():
            row = json.loads(line)
            rows[row["file"]].append(row)
    return dict(rows)


@cache
def features() -> dict[str, set[str]]:
    """What a rough scan saw in each capture."""
    lines = (CORPUS / "files.jsonl").read_text().splitlines()
    return {row["file"]: set(row["features"]) for row in map(json.loads, lines)}


def disagreements(file: str, streams: Iterable[Stream]) -> Iterator[tuple[int, str, str]]:
    """Where the streams and the firm answers differ: (stream number, "c2s" or "s2c", what differs).

    Compared are directions, by four-tuple, not roles: who the client is is a guess where the handshake is missing. The
    streams of one four-tuple are compared in order.
    """
    found = defaultdict(list)
    for stream in streams:
        for ends, data in [
            ((stream.client, stream.server), stream.request),
            ((stream.server, stream.client), stream.response),
        ]:
            found[ends].append((data, stream.gaps))
    expected = defaultdict(list)
    for row in truth()[file]:
        client, server = _endpoint(row["client"]), _endpoint(row["server"])
        # tshark counts connections without payload; read_streams leaves them out.
        if row["c2s_bytes"] or row["s2c_bytes"]:
            expected[client, server].append((row, "c2s"))
            expected[server, client].append((row, "s2c"))
    for ends, answers in expected.items():
        streams_found = found.get(ends, [])
        for position, (row, half) in enumerate(answers):
            if not row[f"firm_{half}"]:
                continue
            data, gaps = streams_found[position] if position < len(streams_found) else (b"", 0)
            if hashlib.sha256(data).hexdigest() != row[f"{half}_sha256"]:
                counts = f"{len(streams_found)} of {len(answers)} streams" if len(streams_found) != len(answers) else ""
                yield row["stream"], half, f"{len(data)} bytes, not {row[f'{half}_bytes']}, {gaps} gaps {counts}"


def _endpoint(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)
