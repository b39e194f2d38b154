"""`--max-memory`: the bounds of the parts, made from one bound on the whole. Sans-I/O.

What can grow has a bound of its own anyway, and at each it is decided what is shed. So nothing watches the process;
instead its bounds are lowered until they fit together. That keeps the limit at any time, whereas memory that was let go
of does not always go back to the system, and a watchman would shed for ever.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from gopher.config import MIB, MINIMUM_MEMORY_BYTES, RING_BLOCK_BYTES
from gopher.errors import ConfigError

if TYPE_CHECKING:
    from gopher.config import CaptureConfig

__all__ = ["FIXED_BYTES", "SUPERVISOR_BYTES", "least_memory_bytes", "within_memory"]

FIXED_BYTES: Final = 72 * MIB
"""Measured: interpreter and libraries 33 MiB, with metrics and the live view 45. The rest is for the packets of one
turn and the bytes made of them: 16 MiB each, if all packets are as large as they can be."""

SUPERVISOR_BYTES: Final = 48 * MIB
"""What the supervisor of several workers has: measured were 36 MiB with metrics, and the live view takes another 9."""

# Measured with 4,000 connections; an upstream's part is what it has of each.
_CONNECTION_BYTES: Final = 1024
_UPSTREAM_CONNECTION_BYTES: Final = 1536
_FLOW_BYTES: Final = 512

# How the rest is divided; an eighth is left for what allocators lose between what they hand out.
_RING_SHARE: Final = 1 / 4
_QUEUES_SHARE: Final = 1 / 4
_HELD_SHARE: Final = 1 / 8
_FLOWS_SHARE: Final = 1 / 8
_CONNECTIONS_SHARE: Final = 1 / 8


def least_memory_bytes(workers: int, each_bytes: int = MINIMUM_MEMORY_BYTES) -> int:
    """What so many workers need in all, if each needs `each_bytes`."""
    return each_bytes if workers == 1 else SUPERVISOR_BYTES + workers * each_bytes


def within_memory(config: CaptureConfig, workers: int = 1) -> CaptureConfig:
    """The same with bounds that together keep `max_memory_bytes`; `config` itself if there is no such bound.

    A bound that is lower already stays as it is. A ring that was asked for has what it needs before all others.

    Args:
        config: of one process.
        workers: how many of them share the memory; at least `least_memory_bytes` if there are several.

    Raises:
        ConfigError: there is not enough for the ring that was asked for.
    """
    if config.max_memory_bytes is None:
        return config
    source, reassembly, mirror = config.source, config.reassembly, config.mirror
    memory_bytes = config.max_memory_bytes
    if workers > 1:
        memory_bytes = (memory_bytes - SUPERVISOR_BYTES) // workers
    rest = memory_bytes - FIXED_BYTES
    if source.read_path is None:
        if source.ring_bytes is None:
            ring_bytes = int(rest * _RING_SHARE) // RING_BLOCK_BYTES * RING_BLOCK_BYTES
            source = replace(source, ring_bytes=min(source.ring_room_bytes, ring_bytes))
        else:
            rest = int((rest - source.ring_bytes) / (1 - _RING_SHARE))
            least = FIXED_BYTES + source.ring_bytes + int((MINIMUM_MEMORY_BYTES - FIXED_BYTES) * (1 - _RING_SHARE))
            if memory_bytes < least:
                raise ConfigError(
                    f"--max-memory has no room for a --ring of {-(-workers * source.ring_bytes // MIB)}M",
                    hint=f"with that ring it needs at least {-(-least_memory_bytes(workers, least) // MIB)}M",
                )
    upstreams = len(mirror.upstreams)
    total_bytes = int(rest * _QUEUES_SHARE)
    connections = int(rest * _CONNECTIONS_SHARE) // (_CONNECTION_BYTES + upstreams * _UPSTREAM_CONNECTION_BYTES)
    bounds = {
        "total_memory_bytes": total_bytes,
        # So that one upstream that stalls does not take the room of the others.
        "upstream_memory_bytes": total_bytes // upstreams,
        "max_connections": connections,
    }
    lowered: dict[str, Any] = {name: bound for name, bound in bounds.items() if bound < getattr(mirror, name)}
    return replace(
        config,
        source=source,
        reassembly=replace(
            reassembly,
            max_flows=min(reassembly.max_flows, int(rest * _FLOWS_SHARE) // _FLOW_BYTES),
            total_memory_bytes=min(reassembly.total_memory_bytes, int(rest * _HELD_SHARE)),
        ),
        mirror=replace(mirror, **lowered, lowered=frozenset(name.removesuffix("_bytes") for name in lowered)),
    )
