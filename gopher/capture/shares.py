"""How a capture is divided between workers. Sans-I/O: settings in, settings out.

What is promised to the machine holds for all workers together, so its bounds are divided: memory, connections, queued
bytes, flows, descriptors, rates, CPU. What one connection may use stays the same, and so does the time that gopher may
be stopped for.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from gopher.capture.memory import least_memory_bytes, within_memory
from gopher.config import MAX_WORKERS, MIB, RING_BLOCK_BYTES
from gopher.errors import ConfigError

if TYPE_CHECKING:
    from gopher.config import CaptureConfig

__all__ = ["kernel_shares", "worker_config", "worker_count", "write_path"]


def worker_count(config: CaptureConfig, cores: int) -> int:
    """How many workers were asked for, on a machine with so many cores for gopher.

    Raises:
        ConfigError: there is not enough for so many.
    """
    if config.workers != "auto":
        _require_shares(config, config.workers)
        return config.workers
    count = max(1, min(cores // 2, MAX_WORKERS, config.mirror.max_connections))
    while count > 1 and config.max_memory_bytes is not None and config.max_memory_bytes < least_memory_bytes(count):
        count -= 1
    return count


def _require_shares(config: CaptureConfig, count: int) -> None:
    most = config.mirror.max_connections
    if count > most:
        raise ConfigError(f"--workers {count} cannot share --max-connections {most}", hint="allow one connection each")
    least_bytes = least_memory_bytes(count)
    if config.max_memory_bytes is not None and config.max_memory_bytes < least_bytes:
        raise ConfigError(
            f"--workers {count} cannot share --max-memory {config.max_memory_bytes // MIB}M",
            hint=f"they need at least {least_bytes // MIB}M",
        )


def kernel_shares(config: CaptureConfig) -> bool:
    """Whether the kernel gives each worker its flows. Where it cannot, each worker gets all packets and takes its own:
    of files, and in tunnels, where both directions of a flow may look like two flows to it.
    """
    return config.source.read_path is None and not config.source.decap


def worker_config(config: CaptureConfig, index: int, count: int, seed: int) -> CaptureConfig:
    """What worker `index` of `count` (2 or more) is to do.

    `seed` is of the hash that shares the flows out where the kernel does not; it is the same for all workers.

    Raises:
        ConfigError: there is not enough for so many.
    """
    _require_shares(config, count)
    source, mirror, reassembly = config.source, config.mirror, config.reassembly
    asked_bytes = None if source.ring_bytes is None else max(2 * RING_BLOCK_BYTES, source.ring_bytes // count)
    share = replace(
        config,
        source=replace(source, ring_bytes=asked_bytes, wakeup_ms=_wakeup_ms(source.wakeup_ms)),
        mirror=replace(
            mirror,
            upstream_memory_bytes=max(1, mirror.upstream_memory_bytes // count),
            total_memory_bytes=max(1, mirror.total_memory_bytes // count),
            max_connections=_part(mirror.max_connections, index, count),
            max_bytes_per_s=_rate(mirror.max_bytes_per_s, count),
            max_connections_per_s=_rate(mirror.max_connections_per_s, count),
            cpu_limit=None if mirror.cpu_limit is None else mirror.cpu_limit / count,
        ),
        reassembly=replace(
            reassembly,
            max_flows=max(1, reassembly.max_flows // count),
            total_memory_bytes=max(1, reassembly.total_memory_bytes // count),
            share=(0, 1) if kernel_shares(config) else (index, count),
            share_seed=seed,
        ),
        # What the supervisor does.
        workers=1,
        report_path=None,
        metrics_address=None,
        stats_interval_s=None,
        live=False,
        verbosity=-1,
    )
    share = within_memory(share, count)
    if asked_bytes is None:
        # All flows may be in one share, and blocks close by the clock: a ring is never shorter than that, unless
        # --max-memory wants it.
        ring_bytes = max(source.ring_time_bytes, source.ring_room_bytes // count)
        ring_bytes = min(ring_bytes, share.source.ring_room_bytes)
        share = replace(share, source=replace(share.source, ring_bytes=ring_bytes))
    return share


def write_path(config: CaptureConfig, index: int, number: int) -> str | None:
    """Where worker `index` is to keep its packets, if it is, as the `number`th one that was started, from 0 on.

    Raises:
        ConfigError: that is the file that is read.
    """
    if config.write_path is None or (index > 0 and not kernel_shares(config)):
        # Where all workers get all packets, the first one has them all.
        return None
    stem, extension = os.path.splitext(config.write_path)
    path = f"{stem}.{number}{extension}"
    if path == config.source.read_path:
        raise ConfigError(
            f"--write {config.write_path} would overwrite the file that --read reads: a worker's file is {path}",
            hint="give it another name",
        )
    return path


def _wakeup_ms(alone_ms: int) -> int:
    """How long the kernel may hold a worker's packets back.

    A worker gets less in the same time than the only process would, and a wake-up has its price whatever it brings. Two
    workers that wait twice as long wake up as often as one. Not where low latency was asked for.
    """
    return 1 if alone_ms == 1 else 2 * alone_ms


def _rate(per_s: int | None, count: int) -> int | None:
    return None if per_s is None else max(1, per_s // count)


def _part(whole: int, index: int, count: int) -> int:
    """The parts of all add up to the whole and differ by one at most."""
    return whole // count + (index < whole % count)
