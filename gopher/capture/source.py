"""Where packets come from: a network device or a capture file, with one face.

First stage of capture mode: it gives batches to the reassembler, and knows nothing of flows. `DeviceSource` stands on
libpcap through pcapy-ng, `FileSource` on `gopher.capture.pcapfile`. Giving a batch never blocks on the network; the
waiting is done in `wait_readable`, by Trio, or for a device by `gopher.capture.intake`.

How pcapy-ng 2.1 is used, and why: a blocking handle would not return on a quiet link whatever its time-out, so handles
are non-blocking and Trio watches their descriptor. `activate()` returns its error. `setfilter()` leaks the old program,
so it is called when a source is opened and never again. A closed or never activated handle is not touched.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pcapy  # type: ignore[import-not-found]  # a C extension without stubs
import trio

from gopher._fastpath import Batch
from gopher.capture._ring import BLOCK_BYTES, Ring
from gopher.capture.bpf import capture_filter
from gopher.capture.pcapfile import CaptureFile, CaptureWriter
from gopher.errors import CaptureError, CapturePermissionError, ConfigError
from gopher.privileges import way_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gopher.config import SourceConfig

__all__ = [
    "TURN_BYTES",
    "TURN_PACKETS",
    "DeviceSource",
    "FileSource",
    "PacketSource",
    "SourceStatistics",
    "open_source",
]

# What a stream brings in one turn leaves in one send, and sends cost more than all the rest: at saturation turns of
# 2048 packets took 0.6 to 0.9 of the CPU per request of a C loop that sends each request by itself, turns of 256 took
# 1.4. Beyond that latency grows and little is saved.
TURN_PACKETS: Final = 2048
TURN_BYTES: Final = 1 << 20

# Of libpcap and files: of small packets 256 at once cost as little per packet as more do; of 64 KiB packets 4, which
# the core's own cache holds. More would be dangerous: the number is chosen by the last batch, and the next one may hold
# the largest packets there are.
_BATCH_BYTES: Final = 1 << 18
_BATCH_PACKETS: Final = 256
_BATCH_PACKETS_MINIMUM: Final = 4

# Packets of several cores come out of order, by microseconds; by this much they do not.
_ORDER_NS: Final = 100_000_000

# What a compiled filter returns for a packet it takes, and the netmask that only `ip broadcast` asks for.
_COMPILE_SNAPLEN_BYTES: Final = 262_144
_NETMASK_UNKNOWN: Final = 0xFFFF_FFFF

_INDEX_RECORD: Final = struct.Struct("=IIII")

# <pcap/pcap.h>
_PCAP_ERROR_NO_SUCH_DEVICE: Final = -5
_PCAP_ERROR_PERM_DENIED: Final = -8
_PCAP_ERROR_IFACE_NOT_UP: Final = -9

# Those whose packets `Ring` gives as libpcap would.
_RING_LINKTYPES: Final = frozenset({pcapy.DLT_EN10MB, pcapy.DLT_LINUX_SLL})

# For a handle that is not read.
_SMALL_RING_BYTES: Final = 512 << 10

# Link types whose number in files differs from the one libpcap's compiler takes.
_DLT_OF_LINKTYPE: Final = {101: pcapy.DLT_RAW}


@dataclass(frozen=True, slots=True)
class SourceStatistics:
    """Packets since the source was opened."""

    received: int
    """Passed the filter, those dropped since included. On `any`, packets from this host to itself by way of another
    address than the loopback ones count twice, though they come once."""
    dropped_by_kernel: int
    """Came while the ring was full."""
    dropped_by_interface: int
    """Given up by the device or its driver, of any traffic."""


class PacketSource(Protocol):
    """What the mirror needs of a source. Not for use by several tasks at once."""

    @property
    def name(self) -> str:
        """The device or file, as the user wrote it."""

    @property
    def finished(self) -> bool:
        """Nothing will come any more."""

    @property
    def truncated(self) -> bool:
        """The source has ended in the middle of a packet."""

    def datalink(self) -> int:
        """The link type of the packets: of all for a device, of the next one for a file."""

    async def wait_readable(self) -> None:
        """Wait until `next_batch` may have something. Checkpoint: always. Wakes up without reason now and then."""

    def next_batch(self) -> Batch:
        """Give some packets, about a turn's at most; an empty index means nothing now.

        Raises:
            CaptureError: the source broke. Close it.
        """

    def release(self) -> None:
        """All batches given so far have been dealt with: what they lie in may be used anew."""

    def statistics(self) -> SourceStatistics:
        """Give the counters so far; after `close` those at the close."""

    def close(self) -> None:
        """Release the source. Not while a task waits for it. May be called twice."""


def open_source(config: SourceConfig, excluded: Sequence[tuple[str, int]]) -> PacketSource:
    """Open what `config` asks for: its file if it has one, else its device. Arguments and errors are theirs."""
    if config.read_path is not None:
        try:
            return FileSource(config)
        except CaptureError as exc:
            # The wrong file was named: nothing has run yet.
            raise ConfigError(str(exc), hint=exc.hint) from exc
    return DeviceSource(config, excluded)


class DeviceSource:
    """Live packets of a network device, through the kernel's ring and filter.

    A single device is put into promiscuous mode, as packets on a bridge or a mirror port are addressed to others; `any`
    has no such mode.

    libpcap says whether the device is there and may be captured on, and compiles the filter. Of Ethernet, loopback and
    `any` the ring is then read where it is, without libpcap (`gopher.capture._ring` says why); of other links libpcap
    reads it.

    Args:
        config: all but read_path and speed.
        excluded: numeric (address, port) of the upstreams, whose connections are not captured.

    Raises:
        CapturePermissionError: the process may not capture.
        CaptureError: the device does not exist or cannot be captured on.
        ConfigError: `config.filter` does not compile.
    """

    finished: Final = False
    truncated: Final = False

    def __init__(self, config: SourceConfig, excluded: Sequence[tuple[str, int]]) -> None:
        self.name = config.interface
        self._reader = _open_reader(config, excluded)
        self._totals = [0, 0, 0]
        self._since_ns = 0
        self._closed = False

    def datalink(self) -> int:
        """See `PacketSource`."""
        return self._reader.linktype

    async def wait_readable(self) -> None:
        """See `PacketSource`. The kernel wakes us when a block is full or `wakeup_ms` old, and not on a quiet link."""
        await trio.lowlevel.wait_readable(self._reader.fileno())

    def next_batch(self) -> Batch:
        """See `PacketSource`."""
        try:
            batch = self._reader.next_batch()
        except pcapy.PcapError as exc:
            raise CaptureError(f"capturing on {self.name} failed: {exc}") from exc
        except OSError as exc:
            raise CaptureError(f"capturing on {self.name} failed: {exc.strerror}") from exc
        return self._since_begin(batch) if self._since_ns and batch.index else batch

    def begin(self, since_ns: int) -> None:
        """Leave out, and do not count, what came before this time: until a fanout group is complete, a packet may come
        to several members.
        """
        self._since_ns = since_ns

    def _since_begin(self, batch: Batch) -> Batch:
        index = batch.index
        records = [index[at : at + _INDEX_RECORD.size] for at in range(0, len(index), _INDEX_RECORD.size)]
        times_ns = [_time_ns(record) for record in records]
        kept = [record for record, time_ns in zip(records, times_ns, strict=True) if time_ns >= self._since_ns]
        self._totals[0] -= sum(self._reader.counted_since_ns <= time_ns < self._since_ns for time_ns in times_ns)
        if times_ns[0] > self._since_ns + _ORDER_NS:
            self._since_ns = 0
        return batch._replace(index=b"".join(kept))

    def fileno(self) -> int:
        """The packet socket."""
        return self._reader.fileno()

    def release(self) -> None:
        """See `PacketSource`."""
        self._reader.release()

    def statistics(self) -> SourceStatistics:
        """See `PacketSource`. To be asked at least once in 4 billion packets: the kernel's counters have 32 bits."""
        if not self._closed:
            for i, count in enumerate(self._reader.counted()):
                self._totals[i] += count
        return SourceStatistics(*self._totals)

    def close(self) -> None:
        """See `PacketSource`."""
        if not self._closed:
            self.statistics()
            self._closed = True
            self._reader.close()


class _Reader(Protocol):
    linktype: int
    counted_since_ns: int
    """Packets before this time may have come without being counted."""

    def fileno(self) -> int: ...
    def next_batch(self) -> Batch: ...
    def release(self) -> None: ...
    def counted(self) -> Sequence[int]:
        """Since the last time: received, dropped by the kernel, dropped by the interface."""

    def close(self) -> None: ...


def _open_reader(config: SourceConfig, excluded: Sequence[tuple[str, int]]) -> _Reader:
    # Two rings at once would be twice the memory.
    with contextlib.closing(_activate(config, _SMALL_RING_BYTES)) as libpcap:
        if libpcap.datalink() in _RING_LINKTYPES:
            _set_filter(libpcap, config, excluded)
            return _RingReader(libpcap, config)
    libpcap = _activate(config, config.ring_room_bytes)
    try:
        libpcap.setnonblock(1)
        _set_filter(libpcap, config, excluded)
        return _PcapReader(libpcap)
    except BaseException:
        libpcap.close()
        raise


class _RingReader:
    counted_since_ns = 0

    def __init__(self, libpcap: Any, config: SourceConfig) -> None:
        self.linktype: int = libpcap.datalink()
        cooked = self.linktype == pcapy.DLT_LINUX_SLL
        loopback = config.interface == "lo"
        self._ring = Ring(
            socket.if_nametoindex(config.interface) if config.interface != "any" else 0,
            cooked=cooked,
            blocks=config.ring_room_bytes // BLOCK_BYTES,
            retire_ms=config.wakeup_ms,
            filter_of=libpcap.getfd(),
            promiscuous=not (cooked or loopback),
            # Each packet also comes as it arrives.
            ignore_outgoing=loopback,
        )
        self._interface_drops = _interface_drops(config.interface)
        self._device = config.interface

    def fileno(self) -> int:
        return self._ring.fileno()

    def next_batch(self) -> Batch:
        index, size_bytes = self._ring.next_blocks(TURN_PACKETS, TURN_BYTES)
        return Batch(self._ring, index, self.linktype, size_bytes)

    def release(self) -> None:
        self._ring.release()

    def counted(self) -> Sequence[int]:
        before, self._interface_drops = self._interface_drops, _interface_drops(self._device)
        return *self._ring.statistics(), max(0, self._interface_drops - before)

    def close(self) -> None:
        self._ring.close()


def _interface_drops(device: str) -> int:
    """What the device or its driver gave up, of any traffic, since it is there; 0 if nobody counts (`any`)."""
    try:
        return int(Path(f"/sys/class/net/{device}/statistics/rx_missed_errors").read_text())
    except OSError:
        return 0


class _PcapReader:
    def __init__(self, libpcap: Any) -> None:
        self.linktype: int = libpcap.datalink()
        self._reader = libpcap
        # Before the filter was in place everything was counted, and dropped if need be.
        self._last_counters = libpcap.stats()
        self.counted_since_ns = time.time_ns()
        self._batch_packets = _BATCH_PACKETS_MINIMUM

    def fileno(self) -> int:
        descriptor: int = self._reader.getfd()
        return descriptor

    def next_batch(self) -> Batch:
        data, index = self._reader.next_batch(self._batch_packets)
        if index:
            mean_bytes = 1 + len(data) * _INDEX_RECORD.size // len(index)
            self._batch_packets = max(_BATCH_PACKETS_MINIMUM, min(_BATCH_BYTES // mean_bytes, _BATCH_PACKETS))
        return Batch(data, index, self.linktype, len(data))

    def release(self) -> None:
        """Batches are copies."""

    def counted(self) -> Sequence[int]:
        counters = self._reader.stats()
        counts = [(now - last) & 0xFFFF_FFFF for now, last in zip(counters, self._last_counters, strict=True)]
        self._last_counters = counters
        return counts

    def close(self) -> None:
        self._reader.close()


def _time_ns(record: bytes) -> int:
    seconds, microseconds = struct.unpack_from("=II", record)
    time_ns: int = 1_000_000_000 * seconds + 1000 * microseconds
    return time_ns


def _activate(config: SourceConfig, ring_bytes: int) -> Any:
    reader = pcapy.create(config.interface)
    reader.set_snaplen(config.snaplen_bytes)
    reader.set_timeout(config.wakeup_ms)
    reader.set_buffer_size(ring_bytes)
    reader.set_promisc(config.interface != "any")
    status = reader.activate()
    if status >= 0:  # above 0: warnings
        return reader
    if status == _PCAP_ERROR_NO_SUCH_DEVICE:
        devices = ", ".join(["any", *(name for _, name in socket.if_nameindex())])
        raise ConfigError(f"there is no network device {config.interface}", hint=f"there are: {devices}")
    if status == _PCAP_ERROR_PERM_DENIED:
        reason, hint = way_to("CAP_NET_RAW")
        raise CapturePermissionError(f"not permitted to capture on {config.interface}: {reason}", hint=hint)
    if status == _PCAP_ERROR_IFACE_NOT_UP:
        raise CaptureError(f"the network device {config.interface} is down", hint=f"ip link set {config.interface} up")
    raise CaptureError(f"libpcap cannot capture on {config.interface} (error {status})")


def _set_filter(reader: Any, config: SourceConfig, excluded: Sequence[tuple[str, int]]) -> None:
    if config.filter.strip():
        # By itself first: errors then speak of what the user wrote, and "tcp) or (udp" cannot get out of its
        # parentheses.
        try:
            reader.setfilter(config.filter)
        except pcapy.PcapError as exc:
            raise _filter_error(config.filter, exc) from exc
    try:
        reader.setfilter(capture_filter(config, excluded, interface=config.interface))
    except pcapy.PcapError as exc:
        if config.filter.strip():
            ports = ", ".join(map(str, config.ports))
            raise ConfigError(f"filter {config.filter!r} leaves nothing of TCP port {ports}: {exc}") from exc
        raise CaptureError(f"TCP cannot be captured on {config.interface}: {exc}") from exc


def _filter_error(expression: str, reason: Exception) -> ConfigError:
    return ConfigError(f"filter {expression!r} does not compile: {reason}", hint="man 7 pcap-filter has the language")


class FileSource:
    """The packets of a capture file, as fast as asked or at a multiple of their original pace.

    Only `config.filter` is applied; the reassembler looks at the ports. Reading blocks for as long as the disk takes
    for 1 MiB. The first packets are read at once, so that a file that is no capture is found out here.

    Args:
        config: read_path (which must be set), speed, filter.

    Raises:
        CaptureError: the file cannot be read or is not a capture.
        ConfigError: `config.filter` does not compile for a link type of the file; `next_batch` may raise it too.
    """

    def __init__(self, config: SourceConfig) -> None:
        if config.read_path is None:
            raise ValueError("config.read_path is not set")
        self.name = config.read_path
        self._speed = config.speed
        self._filter = config.filter.strip()
        self._programs: dict[int, Any] = {}
        self._received = 0
        self._start: tuple[float, float] | None = None  # Trio's clock and the packets', at the first packet
        self._file = CaptureFile(self.name)
        try:
            first = self._file.next_batch(_BATCH_PACKETS)
            self.finished = first is None
            self._rest = self._matching(first or Batch(b"", b"", pcapy.DLT_EN10MB))
        except BaseException:
            self._file.close()
            raise

    @property
    def truncated(self) -> bool:
        """See `PacketSource`. Final once the source has finished."""
        return self._file.truncated

    def datalink(self) -> int:
        """See `PacketSource`. Ethernet for a file without packets."""
        return self._rest.linktype

    async def wait_readable(self) -> None:
        """See `PacketSource`."""
        if self._speed is None or not self._rest.index:
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep_until(self._due(*_INDEX_RECORD.unpack_from(self._rest.index)[:2]))

    def next_batch(self) -> Batch:
        """See `PacketSource`."""
        if not self._rest.index and not self.finished:
            batch = self._file.next_batch(_BATCH_PACKETS)
            self.finished = batch is None
            if batch is not None:
                self._rest = self._matching(batch)
        index = self._rest.index
        ready_bytes = len(index) if self._speed is None else self._due_records() * _INDEX_RECORD.size
        self._rest = self._rest._replace(index=index[ready_bytes:])
        self._received += ready_bytes // _INDEX_RECORD.size
        return self._rest._replace(index=index[:ready_bytes])

    def release(self) -> None:
        """See `PacketSource`. Batches own what they lie in."""

    def statistics(self) -> SourceStatistics:
        """See `PacketSource`."""
        return SourceStatistics(self._received, 0, 0)

    def close(self) -> None:
        """See `PacketSource`."""
        self._file.close()

    def _due(self, seconds: int, microseconds: int) -> float:
        """When a packet's turn comes, by Trio's clock."""
        assert self._speed is not None
        captured_at = seconds + microseconds / 1e6
        if self._start is None:
            self._start = (trio.current_time(), captured_at)
        started_at, first_captured_at = self._start
        return started_at + (captured_at - first_captured_at) / self._speed

    def _due_records(self) -> int:
        """How many packets' turn has come. A time stamp that goes back does not wait."""
        now = trio.current_time()
        count = 0
        for seconds, microseconds, _, _ in _INDEX_RECORD.iter_unpack(self._rest.index):
            if self._due(seconds, microseconds) > now:
                break
            count += 1
        return count

    def _matching(self, batch: Batch) -> Batch:
        if not self._filter:
            return batch
        program = self._programs.get(batch.linktype)
        if program is None:
            program = self._programs[batch.linktype] = _compile(self._filter, batch.linktype)
        data, index = batch.data, batch.index
        kept = [
            index[at : at + _INDEX_RECORD.size]
            for at in range(0, len(index), _INDEX_RECORD.size)
            if program.filter(_packet(data, index, at))
        ]
        return batch._replace(index=b"".join(kept))


def _packet(data: bytes, index: bytes, at: int) -> bytes:
    _, _, offset, captured = _INDEX_RECORD.unpack_from(index, at)
    return data[offset : offset + captured]


def _compile(expression: str, linktype: int) -> Any:
    # pcapy.compile() takes the reason of an error from memory it has freed. A reader gets it right, but needs a file.
    with tempfile.NamedTemporaryFile() as empty:
        CaptureWriter(empty.name, linktype).close()
        reader = pcapy.open_offline(empty.name)
    try:
        reader.setfilter(expression)
    except pcapy.PcapError as exc:
        raise _filter_error(expression, exc) from exc
    finally:
        reader.close()
    dlt = _DLT_OF_LINKTYPE.get(linktype, linktype)
    return pcapy.compile(dlt, _COMPILE_SNAPLEN_BYTES, expression, 1, _NETMASK_UNKNOWN)
