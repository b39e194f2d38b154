"""What --max-memory makes of the bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gopher.capture.memory import FIXED_BYTES, within_memory
from gopher.config import MIB, MINIMUM_MEMORY_BYTES, CaptureConfig, MirrorConfig, SourceConfig, UpstreamConfig
from gopher.errors import ConfigError

UPSTREAM = UpstreamConfig(name="b:80", host="b", port=80)
DEFAULT = CaptureConfig(source=SourceConfig(ports=(80,)), mirror=MirrorConfig(upstreams=(UPSTREAM,)))


def worst_bytes(config: CaptureConfig) -> int:
    """What would be resident with every bound reached."""
    upstreams = len(config.mirror.upstreams)
    return (
        FIXED_BYTES
        + config.source.ring_room_bytes
        + config.mirror.total_memory_bytes
        + config.mirror.max_connections * (1024 + 1536 * upstreams)
        + config.reassembly.max_flows * 512
        + config.reassembly.total_memory_bytes
    )


def test_without_a_bound_nothing_changes() -> None:
    assert within_memory(DEFAULT) is DEFAULT


@pytest.mark.parametrize("mib", [96, 128, 200, 512, 1000])
@pytest.mark.parametrize("upstreams", [1, 3, 16])
@pytest.mark.parametrize("wakeup_ms", [1, 8])
def test_bounds_fit_into_the_memory_and_something_is_left(mib: int, upstreams: int, wakeup_ms: int) -> None:
    config = replace(
        DEFAULT,
        max_memory_bytes=mib * MIB,
        source=replace(DEFAULT.source, wakeup_ms=wakeup_ms),
        mirror=replace(DEFAULT.mirror, upstreams=(UPSTREAM,) * upstreams),
    )
    bounded = within_memory(config)
    assert worst_bytes(bounded) <= mib * MIB - (mib * MIB - FIXED_BYTES) // 8
    assert bounded.source.ring_room_bytes >= 2 * 262_144
    assert bounded.mirror.max_connections > 50
    # No upstream can take another one's room.
    assert bounded.mirror.upstream_memory_bytes * upstreams <= bounded.mirror.total_memory_bytes
    assert bounded.mirror.reason("total_memory") == "max_memory"
    assert bounded.mirror.reason("connection_memory") == "connection_memory"


def test_bounds_that_are_lower_already_stay_and_keep_their_reasons() -> None:
    mirror = replace(DEFAULT.mirror, total_memory_bytes=MIB, upstream_memory_bytes=MIB, max_connections=10)
    bounded = within_memory(replace(DEFAULT, max_memory_bytes=256 * MIB, mirror=mirror)).mirror
    assert bounded == mirror
    assert bounded.reason("max_connections") == "max_connections"


def test_with_much_memory_all_bounds_are_the_defaults() -> None:
    bounded = within_memory(replace(DEFAULT, max_memory_bytes=4096 * MIB))
    assert (bounded.source.ring_room_bytes, bounded.mirror, bounded.reassembly) == (
        DEFAULT.source.ring_room_bytes,
        DEFAULT.mirror,
        DEFAULT.reassembly,
    )


def test_ring_that_was_asked_for_is_kept_and_the_others_get_less() -> None:
    asked = replace(DEFAULT.source, ring_bytes=60 * MIB)
    bounded = within_memory(replace(DEFAULT, max_memory_bytes=160 * MIB, source=asked))
    assert bounded.source.ring_bytes == 60 * MIB
    assert worst_bytes(bounded) <= 160 * MIB


def test_ring_that_leaves_no_room_is_refused_with_what_would_do() -> None:
    asked = replace(DEFAULT.source, ring_bytes=60 * MIB)
    with pytest.raises(ConfigError, match="no room for a --ring of 60M") as caught:
        within_memory(replace(DEFAULT, max_memory_bytes=MINIMUM_MEMORY_BYTES, source=asked))
    assert caught.value.hint == "with that ring it needs at least 150M"
    within_memory(replace(DEFAULT, max_memory_bytes=150 * MIB, source=asked))
