"""Joining in the middle, gaps, and the patience with slow upstreams. `dir:` upstreams show what would be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
import trio

from gopher._fastpath import pack_batch
from gopher._pump import Budget
from gopher.capture.mirror import Mirror, Patience
from gopher.capture.source import SourceStatistics
from gopher.config import MIB, CaptureConfig, MirrorConfig, SourceConfig, UpstreamConfig
from gopher.upstreams.directory import DirectoryUpstream
from gopher.upstreams.stream import HEAD_LIMIT_BYTES, MirroredStream, ShedStreams
from gopher.upstreams.upstream import StreamCopy
from tests.support.packets import LINKTYPE_ETHERNET, Conversation

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


class Stage:
    def __init__(self, path: Path, *, midway: bool = False) -> None:
        config = UpstreamConfig(name="dir", scheme="dir", path=str(path))
        self.path = path
        self.upstream = DirectoryUpstream(config, MirrorConfig(upstreams=(config,)), Budget(1 << 20))
        self.stream = MirroredStream([StreamCopy(self.upstream, "stream")], midway=midway)

    def parts(self) -> list[bytes]:
        """What went out, one entry for each connection."""
        names = sorted(self.path.iterdir(), key=lambda path: (len(path.name), path.name))
        return [name.read_bytes() for name in names]


def test_stream_from_its_beginning_passes_unchanged(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    for part in (b"\x16\x03", b"anything", REQUEST):
        stage.stream.write(part)
    stage.stream.finish()
    assert stage.parts() == [b"\x16\x03anything" + REQUEST]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_stream_joined_midway_begins_at_the_next_request(tmp_path: Path, size: int) -> None:
    stage = Stage(tmp_path, midway=True)
    data = b"rest of a body" + REQUEST + REQUEST
    for start in range(0, len(data), size):
        stage.stream.write(data[start : start + size])
    assert stage.stream.joined
    stage.stream.finish()
    assert stage.parts() == [REQUEST + REQUEST]
    assert stage.upstream.ledger.shed == {"joined": 14}
    assert stage.upstream.ledger.captured == len(data)


def test_stream_joined_midway_that_is_not_http_sends_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, midway=True)
    stage.stream.write(b"\x17\x03\x03 not http GET ")
    stage.stream.finish()
    assert not stage.stream.joined
    assert stage.parts() == []
    assert stage.upstream.ledger.shed == {"joined": 17}
    assert stage.upstream.account().connections.shed_by_reason == {"joined": 1}


def test_stream_joined_midway_holds_a_bounded_head(tmp_path: Path) -> None:
    stage = Stage(tmp_path, midway=True)
    stage.stream.write(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
    for _ in range(HEAD_LIMIT_BYTES // 1000 + 1):
        stage.stream.write(b"x" * 1000)
        assert stage.stream.held_bytes <= HEAD_LIMIT_BYTES
    assert stage.stream.held_bytes == 0


def test_held_heads_count_as_memory_and_are_not_held_when_there_is_none(tmp_path: Path) -> None:
    stage = Stage(tmp_path, midway=True)
    total = stage.upstream.ledger.total
    head = b"GET / HTTP/1.1\r\nX: "
    stage.stream.write(head)
    assert total.used == stage.stream.held_bytes == len(head)
    stage.stream.write(b"a\r\n\r\n")
    assert total.used == 0
    full = Stage(tmp_path / "full", midway=True)
    full.stream.copies[0].upstream.ledger.total.charge((1 << 20) + 1)
    full.stream.write(head)
    assert full.stream.held_bytes == 0
    assert full.upstream.ledger.shed == {"joined": len(head)}


def test_stream_that_is_shed_is_shed_as_a_whole_with_all_that_comes(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.stream.write(REQUEST + b"GET /half")
    stage.stream.shed("cpu_limit")
    assert not stage.stream.within_request
    stage.stream.write(b" HTTP/1.1\r\n\r\n" + REQUEST)
    stage.stream.gap(7)
    stage.stream.write(REQUEST)
    stage.stream.finish()
    account = stage.upstream.account()
    assert account.shed == {"cpu_limit": account.captured_bytes}
    assert account.captured_bytes == 3 * len(REQUEST) + len(b"GET /half HTTP/1.1\r\n\r\n")
    assert account.connections.shed_by_reason == {"cpu_limit": 1}
    assert account.connections.pending == 0


def test_stream_that_all_upstreams_have_left_is_read_on(tmp_path: Path) -> None:
    stage = Stage(tmp_path, midway=True)
    stage.stream.write(b"GET / HT")
    stage.stream.leave(stage.upstream, "removed")
    stage.stream.write(b"TP/1.1\r\n\r\n" + REQUEST)
    stage.stream.finish()
    assert stage.parts() == []
    assert stage.upstream.ledger.total.used == 0


def test_upstream_that_was_removed_is_not_told_of_what_is_shed_any_more(tmp_path: Path) -> None:
    upstream = Stage(tmp_path).upstream
    streams = ShedStreams("cpu_limit", [upstream])
    streams.begin()
    streams.write(REQUEST)
    upstream.removed_s = 1.0
    streams.write(REQUEST)
    assert upstream.account().captured_bytes == len(REQUEST)


def test_stream_that_is_joined_midway_is_shed_with_what_it_held(tmp_path: Path) -> None:
    stage = Stage(tmp_path, midway=True)
    stage.stream.write(b"GET / HT")
    stage.stream.shed("cpu_limit")
    stage.stream.finish()
    assert stage.upstream.ledger.shed == {"joined": 8}
    assert stage.upstream.ledger.total.used == 0


def test_streams_that_are_shed_from_the_start_are_in_every_account(tmp_path: Path) -> None:
    first, second = Stage(tmp_path / "1").upstream, Stage(tmp_path / "2").upstream
    captured = [upstream.account().connections.captured for upstream in (first, second)]
    streams = ShedStreams("max_memory", [first, second])
    for _ in range(2):
        streams.begin()
        streams.write(REQUEST)
        streams.gap(7)
    for upstream, before in zip((first, second), captured, strict=True):
        account = upstream.account()
        assert account.shed == {"max_memory": 2 * len(REQUEST)}
        assert account.captured_bytes == 2 * len(REQUEST)
        assert account.connections.captured == before + 2
        assert account.connections.shed_by_reason == {"max_memory": 2}


def test_gap_between_requests_starts_a_new_connection_at_the_next_request(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.stream.write(REQUEST)
    stage.stream.gap(7)
    stage.stream.write(b"tail of what was missed" + REQUEST)
    stage.stream.finish()
    assert stage.parts() == [REQUEST, REQUEST]
    assert stage.upstream.ledger.shed == {"gap": 23}
    assert stage.upstream.ledger.delivered == 2 * len(REQUEST)


def test_gap_within_a_request_takes_it_back_whole(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    stage.stream.write(head)
    assert stage.stream.within_request
    stage.stream.gap(7)
    stage.stream.write(REQUEST)
    stage.stream.finish()
    assert stage.upstream.ledger.shed == {"gap": len(head)}
    assert stage.upstream.ledger.delivered == len(REQUEST)


def test_gap_in_another_protocol_ends_the_stream(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.stream.write(b"\x16\x03\x01")
    stage.stream.gap(7)
    stage.stream.write(REQUEST)
    stage.stream.finish()
    assert stage.upstream.ledger.delivered == 0
    assert stage.upstream.ledger.shed == {"gap": 3 + len(REQUEST)}


def test_gap_at_the_beginning_joins_at_the_first_request(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.stream.gap(7)
    stage.stream.write(b"ost: a\r\n\r\n" + REQUEST)
    stage.stream.finish()
    assert stage.parts() == [REQUEST]


def test_cut_within_a_request_counts_nothing_as_delivered(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.stream.write(REQUEST[:5])
    stage.stream.cut("drain")
    assert stage.upstream.ledger.shed == {"drain": 5}
    assert stage.upstream.account().connections.shed_by_reason == {"drain": 1}


def test_own_connections_are_never_mirrored(tmp_path: Path) -> None:
    config = CaptureConfig(
        source=SourceConfig(ports=(80,)),
        mirror=MirrorConfig(upstreams=(UpstreamConfig(name="dir", scheme="dir", path=str(tmp_path)),)),
    )
    own = ("192.0.2.9", 80)
    packets = Conversation(server=own).handshake().data(b"own").packets
    packets += Conversation().handshake().data(b"client's").packets

    async def mirror() -> dict[str, int]:
        source = Mock(statistics=lambda: SourceStatistics(0, 0, 0))
        mirror = Mirror(config, [[]], source, can_wait=False, own=[own])
        await mirror.handle(mirror.reassembler.feed(pack_batch(packets, LINKTYPE_ETHERNET)))
        return mirror.snapshot().connections

    connections = trio.run(mirror)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"client's"]
    assert connections["mirrored"] == 1
    assert connections["ignored_by_reason"] == {"sampled_out": 0, "own": 1, "not_joined": 0, "no_data": 0}


# -- patience ----------------------------------------------------------------------------------------------------------


def wait_out(patience: Patience, *, until_s: float, progress: bool) -> float:
    """Wait in steps of 10 ms as long as permitted; returns for how long."""
    now = started = 100.0
    while now < started + until_s and patience.permits(now, now if progress else started):
        now += 0.01
        patience.spend(0.01)
    return now - started


def test_patience_with_progress_lasts_for_its_credit() -> None:
    # The credit, and what it earns meanwhile.
    assert wait_out(Patience(0.5, 0.05), until_s=10, progress=True) == pytest.approx(0.5 / 0.9, abs=0.02)


def test_patience_without_progress_ends_at_the_stall() -> None:
    assert wait_out(Patience(0.5, 0.05), until_s=10, progress=False) == pytest.approx(0.05, abs=0.011)


def test_patience_when_spent_earns_a_tenth_of_the_time_up_to_its_credit() -> None:
    patience = Patience(0.5, 0.05)
    wait_out(patience, until_s=10, progress=True)
    assert not patience.permits(100.6, 100.6)
    assert patience.permits(101.0, 101.0)
    patience.spend(0.04)
    assert not patience.permits(101.0, 101.0)
    assert patience.permits(1000.0, 1000.0)
    patience.spend(0.5)
    assert not patience.permits(1000.0, 1000.0)


def test_patience_is_no_longer_than_the_ring_has_room_for() -> None:
    assert Mirror.live_credit_s(64 * MIB) == Mirror.live_credit_s(188 * MIB) == 1.0
    assert Mirror.live_credit_s(6 * MIB) == pytest.approx(6 / 64)


def test_patience_after_a_stall_is_short_until_there_is_progress() -> None:
    patience = Patience(None, 10.0)
    assert wait_out(patience, until_s=60, progress=False) == pytest.approx(10, abs=0.02)
    assert wait_out(patience, until_s=60, progress=False) == pytest.approx(0.25, abs=0.02)
    patience.progressed()
    assert wait_out(patience, until_s=60, progress=False) == pytest.approx(10, abs=0.02)


def test_patience_of_a_file_lasts_as_long_as_there_is_progress() -> None:
    assert wait_out(Patience(None, 10.0), until_s=60, progress=True) >= 60
    assert wait_out(Patience(None, 10.0), until_s=60, progress=False) == pytest.approx(10, abs=0.02)
