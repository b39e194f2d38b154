"""Fuzz target: any bytes, cut anywhere, into the HTTP framers and into the search for a request to join at.

The input: a byte of flags, a byte that says how finely to cut, two bytes for the length of the requests, the requests,
the responses. What must hold: how the bytes are cut changes nothing; messages begin before they end, and one by one;
skipping a body is as good as reading it; a request that is found is one, and is found piece by piece, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from gopher.http.framing import REGISTERED_METHODS, RequestFramer, ResponseFramer, find_request, request_may_start


def pieces(data: bytes, seed: int) -> Iterator[bytes]:
    """`data` in pieces: single bytes if `seed` is 0, else of lengths from 0 to 2 * seed that are hard to foresee."""
    at = 0
    mixed = seed
    while at < len(data):
        mixed = (mixed * 1103515245 + 12345) % 2**31
        length = 1 if seed == 0 else (mixed >> 8) % (2 * seed + 1)
        yield data[at : at + length]
        at += length


def state(framer: RequestFramer | ResponseFramer) -> tuple:
    """All that can be seen of it."""
    assert framer.started - framer.completed in (0, 1)
    names = ("started", "completed", "opaque", "in_message", "until_close", "body_left")
    return tuple(getattr(framer, name, None) for name in names)


def check_requests(data: bytes, seed: int) -> RequestFramer:
    whole, cut = RequestFramer(), RequestFramer()
    first = whole.feed(data)
    assert -1 <= first < max(1, len(data))
    assert (first >= 0) == (whole.started > 0)
    at = 0
    first_of_pieces = -1
    for piece in pieces(data, seed):
        before = state(cut)
        found = cut.feed(piece)
        assert -1 <= found < max(1, len(piece))
        assert (found >= 0) == (cut.started > before[0])
        assert cut.completed >= before[1]
        if found >= 0 and first_of_pieces < 0:
            first_of_pieces = at + found
        at += len(piece)
    assert state(cut) == state(whole)
    assert first_of_pieces == first
    return whole


def check_responses(data: bytes, requests: RequestFramer | None, seed: int, *, skipping: bool) -> None:
    whole, cut = ResponseFramer(requests), ResponseFramer(requests)
    first = whole.feed(data)
    assert -1 <= first < max(1, len(data))
    assert (first >= 0) == (whole.started > 0)
    for piece in pieces(data, seed):
        before = state(cut)
        skipped = min(cut.body_left, len(piece)) if skipping else 0
        cut.skip(skipped)
        found = cut.feed(piece[skipped:])
        assert -1 <= found < max(1, len(piece))
        assert (found >= 0) == (cut.started > before[0])
    assert state(cut) == state(whole)


def check_join(data: bytes, seed: int) -> None:
    found = find_request(data)
    kept, dropped = b"", 0
    found_in_pieces = -1
    for piece in pieces(data, seed):
        kept += piece
        found_in_pieces = find_request(kept)
        if found_in_pieces >= 0:
            found_in_pieces += dropped
            break
        start = request_may_start(kept)
        assert 0 <= start <= len(kept)
        kept, dropped = kept[start:], dropped + start
    assert found_in_pieces == found
    if found < 0:
        return
    assert data[found:].split(b" ", 1)[0] in REGISTERED_METHODS
    assert find_request(data, found) == found
    framer = RequestFramer()
    assert framer.feed(data[found:]) == 0


def run(data: bytes) -> None:
    """Raise AssertionError if framing these bytes breaks a promise."""
    flags, seed = data[:1].ljust(1, b"\0")[0], data[1:2].ljust(1, b"\0")[0]
    length = int.from_bytes(data[2:4], "big")
    asked, answered = data[4 : 4 + length], data[4 + length :]
    requests = check_requests(asked, seed)
    check_responses(answered, requests if flags & 1 else None, seed, skipping=bool(flags & 2))
    check_join(asked, seed)
