"""Events of captured flows in, bytes on upstream connections out.

`Mirror` is the deciding part: it turns the reassembler's events into writes, cuts and ends of `StreamCopy`s, one for
each flow and upstream. It waits only in one place: when an upstream cannot keep up and `Patience` allows it, so that a
burst that the kernel's ring can hold is not shed.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

import trio

import gopher
from gopher._fastpath import (
    CLIENT_TO_SERVER,
    SERVER_TO_CLIENT,
    FlowClosed,
    FlowOpened,
    Reassembler,
    StreamData,
    StreamEnded,
    StreamGap,
)
from gopher._pump import Budget
from gopher.capture.governor import CpuGovernor, Places, place_of
from gopher.config import MIB
from gopher.observe.accounts import AccountsReport
from gopher.pump import REST_S, PumpTask
from gopher.upstreams.directory import DirectoryUpstream
from gopher.upstreams.relay import FramedCopy, RelayUpstream
from gopher.upstreams.roster import Roster
from gopher.upstreams.stream import MirroredStream, ShedStreams
from gopher.upstreams.tcp import Address, TcpUpstream
from gopher.upstreams.upstream import StreamCopy, Upstream, decide

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from gopher._fastpath import Event, Flow
    from gopher.capture.source import PacketSource
    from gopher.config import CaptureConfig, UpstreamConfig
    from gopher.upstreams.roster import Change

__all__ = ["Mirror", "Patience"]

# What stands in place of the stream of a flow that is not mirrored.
_IGNORED: Final = object()


class Patience:
    """How long intake may wait for a slow upstream before its connection is shed. Sans-I/O.

    While intake waits, packets wait in the kernel's ring, which serves all upstreams. So an upstream has a credit of
    waiting time that fits the ring and refills slowly, and only a connection that still makes progress may use it.

    Args:
        credit_s: waiting time at the start, and its upper bound; None for a file, which can wait.
        stall_s: a connection that has taken nothing for this long is not waited for. The next ones of the same
            upstream are waited for less, until one of them makes progress.
    """

    REFILL_RATIO: Final = 0.1
    # A process that is off the processor for this long on a busy machine is no stalled upstream.
    SHORT_STALL_S: Final = 0.25

    def __init__(self, credit_s: float | None, stall_s: float) -> None:
        self._limit_s = credit_s
        self._credit_s = credit_s or 0.0
        self._stall_s = self._full_stall_s = stall_s
        self._refilled_at_s: float | None = None

    def permits(self, now_s: float, progress_at_s: float) -> bool:
        """Whether to wait on for a connection that last took bytes at `progress_at_s`."""
        if now_s - progress_at_s >= self._stall_s:
            self._stall_s = min(self._full_stall_s, self.SHORT_STALL_S)
            return False
        if self._limit_s is None:
            return True
        if self._refilled_at_s is not None:
            earned_s = (now_s - self._refilled_at_s) * self.REFILL_RATIO
            self._credit_s = min(self._limit_s, self._credit_s + earned_s)
        self._refilled_at_s = now_s
        return self._credit_s > 0

    def progressed(self) -> None:
        """The upstream takes bytes."""
        self._stall_s = self._full_stall_s

    def spend(self, waited_s: float) -> None:
        """Intake has waited."""
        self._credit_s -= waited_s


class Mirror:
    """All flows of one capture and all upstreams.

    Args:
        config: what was asked for.
        addresses: for each upstream of the config, its resolved addresses; empty for `dir`.
        source: only its name and statistics are used here.
        can_wait: the source is a file: it waits for slow upstreams as long as they make progress.
        own: (address, port) of what gopher itself connects to: never mirrored, even where the kernel's filter cannot
            tell, as in tunnels.

    Raises:
        UpstreamError: a directory cannot be used.
    """

    # At saturation (60,000 small requests a second) the default ring of 64 MiB holds 1.5 s.
    LIVE_CREDIT_S: Final = 1.0
    LIVE_CREDIT_RING_BYTES: Final = 64 * MIB
    LIVE_STALL_S: Final = Patience.SHORT_STALL_S
    FILE_STALL_S: Final = 10.0
    WAIT_SLICE_S: Final = 0.01

    def __init__(
        self,
        config: CaptureConfig,
        addresses: list[list[Address]],
        source: PacketSource,
        *,
        can_wait: bool,
        own: Collection[tuple[str, int]] = (),
    ) -> None:
        self.config = config
        self.hurry = False
        """Set at the end: nothing is waited for any more."""
        # Answers are looked at as often as packets, or less.
        self.pump_task = PumpTask(decide, max(REST_S, config.source.wakeup_ms / 1000))
        self.reassembler = Reassembler(
            config.source.ports,
            both_directions=config.source.responses,
            max_flows=config.reassembly.max_flows,
            flow_memory_bytes=config.reassembly.flow_memory_bytes,
            total_memory_bytes=config.reassembly.total_memory_bytes,
            gap_timeout_s=config.reassembly.gap_timeout_s,
            idle_timeout_s=config.reassembly.idle_timeout_s,
            overlap=config.reassembly.overlap,
            decap=config.source.decap,
            verify_checksums=config.reassembly.verify_checksums,
            share=config.reassembly.share,
            share_seed=config.reassembly.share_seed,
        )
        self._source = source
        self._own: frozenset[tuple[str, int]]
        self._own_ports: frozenset[int]
        self._ignore_own(own)
        self._started = datetime.now(timezone.utc)
        self._started_s = trio.current_time()
        self._pump = self.pump_task.pump
        self._total = Budget(config.mirror.total_memory_bytes)
        self._capture_id = os.urandom(8)
        self._roster = Roster(config.mirror.upstreams, addresses, self._upstream)
        self._relays: list[RelayUpstream]
        self._framed: bool
        self._can_wait = can_wait
        self._patience: dict[Upstream, Patience] = {}
        self._governor = None if config.mirror.cpu_limit is None else CpuGovernor(config.mirror.cpu_limit)
        self._places = Places(config.mirror.sample_ratio)
        self._look_at_upstreams()
        self._open: set[MirroredStream] = set()
        self._received_bytes = 0
        self._streams = 0
        self._not_joined = 0
        self._joined = 0
        self._sampled_out = 0
        self._own_seen = 0

    def _ignore_own(self, own: Collection[tuple[str, int]]) -> None:
        self._own = frozenset(own)
        self._own_ports = frozenset(port for _, port in own)

    def _look_at_upstreams(self) -> None:
        # What is looked at for every connection.
        self._active = self._roster.active
        self._max_connections = self.config.mirror.max_connections
        self._sample_ratio = self.config.mirror.sample_ratio
        self._relays = [upstream for upstream in self._active if isinstance(upstream, RelayUpstream)]
        self._framed = any(relay.framed for relay in self._relays)
        credit_s = None if self._can_wait else self.live_credit_s(self.config.source.ring_room_bytes)
        stall_s = self.FILE_STALL_S if self._can_wait else self.LIVE_STALL_S
        for upstream in self._roster.active:
            self._patience.setdefault(upstream, Patience(credit_s, stall_s))
        # Streams that are being shed go on being counted for the upstreams that were there when they began.
        self._too_many = ShedStreams(self.config.mirror.reason("max_connections"), self._roster.active)
        self._too_busy = ShedStreams("cpu_limit", self._roster.active)

    @classmethod
    def live_credit_s(cls, ring_bytes: int) -> float:
        """How long intake may wait for an upstream with this ring: no longer than the ring has room for."""
        return cls.LIVE_CREDIT_S * min(1.0, ring_bytes / cls.LIVE_CREDIT_RING_BYTES)

    def _upstream(self, config: UpstreamConfig, addresses: list[Address]) -> Upstream:
        limits, total, pump = self.config.mirror, self._total, self.pump_task.pump
        if config.scheme == "dir":
            return DirectoryUpstream(config, limits, total)
        if config.scheme == "relay":
            framed = self.config.source.responses
            return RelayUpstream(config, limits, total, addresses, pump, framed=framed, capture_id=self._capture_id)
        return TcpUpstream(config, limits, total, addresses, pump)

    def reload(
        self, config: CaptureConfig, addresses: list[list[Address]], own: Collection[tuple[str, int]]
    ) -> Change[Upstream]:
        """Take on what a running mirror can. Not while events are handled.

        An upstream that stays is not touched. One that is added gets connections that begin from now on, whole: its
        account begins without a shed byte. One that is removed gets no more bytes; what it has been sent whole
        requests of is delivered, and what stands within a request is cut.

        Args:
            config: as `Mirror` was made with, with other upstreams and time-outs.
            addresses: of each upstream.
            own: as for `Mirror`.

        Raises:
            ConfigError: there were too many upstreams; nothing has changed.
            UpstreamError: a directory cannot be used; nothing has changed.
        """
        now_s = trio.current_time() - self._started_s
        change = self._roster.change(config.mirror.upstreams, addresses, config.mirror, now_s)
        self.config = config
        self._places.sample_ratio = config.mirror.sample_ratio
        for upstream in change.removed:
            for stream in self._open:
                stream.leave(upstream, "removed")
        # Connections to removed upstreams may still be under way.
        leaving = any(upstream.connections_pending for upstream in self._roster.known if upstream.removed_s is not None)
        self._ignore_own({*own, *self._own} if leaving else own)
        self._look_at_upstreams()
        return change

    # -- events ----------------------------------------------------------------------------------------------------

    async def handle(self, events: Iterable[Event]) -> None:
        """Act on events in their order. Waits only for upstreams that cannot keep up; else no checkpoint.

        It is not cancelled in the middle: events in hand are accounts.
        """
        self._pump.holding = True
        for event in events:
            # A live capture's patience is for the client's bytes.
            if self._can_wait and isinstance(event, StreamData) and event.direction == SERVER_TO_CLIENT:
                for copy in self._framed_copies(event.flow):
                    if not copy.takes_answers:
                        await self._make_room(copy)
            full = self._act(event)
            if full is not None:
                for over_copy, over in full:
                    if not await self._make_room(over_copy):
                        over_copy.give_up(over)
        self._pump.holding = False
        self._dial_held()

    def _dial_held(self) -> None:
        decide(self._pump.dial_held())

    def _act(self, event: Event) -> list[tuple[StreamCopy, str]] | None:
        """Act on one event. Returns the copies that are over a memory bound, with the bound's name; None for none."""
        for relay in self._relays:
            relay.time_ns = event.time_ns
        # A name for each kind, which mirror.pxd gives its type.
        if isinstance(event, StreamData):
            data = event
            if data.direction == CLIENT_TO_SERVER:
                return self._pass_on(data)
            for copy in self._framed_copies(data.flow):
                copy.answer(data.data)
        elif isinstance(event, FlowOpened):
            opened = event
            if self._is_ignored(opened.flow):
                # What this batch brought of it comes all the same.
                opened.flow.context = _IGNORED
                self.reassembler.ignore(opened.flow)
        elif isinstance(event, StreamEnded):
            ended = event
            if ended.direction == CLIENT_TO_SERVER:
                self._end_stream(ended.flow)
            for copy in self._framed_copies(ended.flow):
                copy.end(ended.direction)
        elif isinstance(event, FlowClosed):
            closed = event
            self._close_stream(closed.flow, closed.reason)
        elif isinstance(event, StreamGap):
            gap = event
            if gap.direction == CLIENT_TO_SERVER:
                stream = gap.flow.context or self._open_stream(gap.flow)
                if stream is not _IGNORED:
                    stream.gap(gap.length)
            else:
                for copy in self._framed_copies(gap.flow):
                    copy.answer_gap(gap.length)
        return None

    def _pass_on(self, event: StreamData) -> list[tuple[StreamCopy, str]] | None:
        """The client's next bytes."""
        context = event.flow.context or self._open_stream(event.flow)
        if context is _IGNORED:
            return None
        data = event.content()
        self._received_bytes += len(data)
        # How late a file's packets are says nothing.
        if not self._can_wait:
            self._pump.captured_ns = event.since_ns
        if isinstance(context, MirroredStream):
            stream = context
            return stream.write(data)
        context.write(data)
        return None

    def _is_ignored(self, flow: Flow) -> bool:
        # Ports first: the text of an address costs more than all the rest here.
        own = flow.server_port in self._own_ports and flow.server in self._own
        out = not own and not self._sampled(flow)
        self._own_seen += own
        self._sampled_out += out
        return own or out

    def _sampled(self, flow: Flow) -> bool:
        if self._sample_ratio >= 1:
            return True
        # By client address, so that all connections of a client are in or out, on every gopher alike.
        return place_of(flow.client[0]) < self._sample_ratio

    def _open_stream(self, flow: Flow) -> MirroredStream | ShedStreams:
        self._streams += 1
        place = 0.0 if self._governor is None else self._places.place(flow)
        shed = None
        if len(self._open) >= self._max_connections:
            shed = self._too_many
        elif self._governor is not None and place >= self._governor.share:
            shed = self._too_busy
        if shed is not None:
            shed.begin()
            flow.context = shed
            return shed
        copies = [upstream.copy(flow) for upstream in self._active]
        stream = MirroredStream(copies, midway=not flow.began_with_syn, place=place)
        flow.context = stream
        self._open.add(stream)
        return stream

    def _framed_copies(self, flow: Flow) -> Sequence[FramedCopy]:
        """What wants to know of production's direction."""
        stream = flow.context
        return stream.framed if self._framed and isinstance(stream, MirroredStream) else ()

    def _open_stream_of(self, flow: Flow) -> MirroredStream | None:
        context = flow.context
        if isinstance(context, MirroredStream):
            stream = context
            if stream.open:
                return stream
        return None

    def _end_stream(self, flow: Flow) -> None:
        """The client sent FIN. Where production's direction is wanted the stream stays until the flow closes."""
        stream = self._open_stream_of(flow)
        if stream is not None:
            stream.finish()
            if not stream.framed:
                self._retire(stream)

    def _close_stream(self, flow: Flow, reason: str) -> None:
        stream = self._open_stream_of(flow)
        # Not if its client has sent FIN and nothing else is of interest, nor at the end of the capture: see `stop`.
        if stream is None or reason == "flushed":
            return
        self._retire(stream)
        if reason == "rst":
            stream.reset()
        else:
            stream.finish()
        stream.close(reset=reason == "rst")

    def _retire(self, stream: MirroredStream) -> None:
        stream.open = False
        self._open.remove(stream)
        self._joined += stream.midway and stream.joined
        self._not_joined += not stream.joined

    async def _make_room(self, copy: StreamCopy) -> bool:
        """Wait for a connection that is over a bound. Returns False when patience is over."""
        patience = self._patience[copy.upstream]
        self._dial_held()
        connection = copy.connection
        if connection is None:
            return True
        ledger = copy.upstream.ledger
        progress_at_s = now_s = trio.current_time()
        # Down to half, so that the next run does not wait again at once.
        room = ledger.connection_limit // 2

        def waiting() -> int:
            """What has to become less: its own queue, or all those that share the bound; 0 if there is room."""
            if connection.queued > room:
                return connection.queued
            if ledger.queued > ledger.limit or ledger.total.used > ledger.total.limit:
                return min(connection.queued, 1) * ledger.queued
            return 0

        queued = waiting()
        while copy.connection is connection and queued:
            if self.hurry or not patience.permits(now_s, progress_at_s):
                return False
            with trio.CancelScope(shield=True):
                await self.pump_task.wait_served(self.WAIT_SLICE_S)
            before_s, now_s = now_s, trio.current_time()
            patience.spend(now_s - before_s)
            before, queued = queued, waiting()
            if queued != before:
                progress_at_s = now_s
                patience.progressed()
        return True

    # -- time and end ----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Apply the upstreams' time-outs and the CPU limit."""
        now_s = time.monotonic()
        for upstream in self._roster.known:
            upstream.tick(now_s)
        governor = self._governor
        if governor is not None and governor.update(now_s, time.process_time()):
            for stream in self._open:
                if stream.place >= governor.share:
                    stream.shed("cpu_limit")

    def stop(self, *, cut: bool) -> None:
        """Intake is over: end every stream that is still open.

        Args:
            cut: the streams go on, only gopher does not look any more: one that stands within a request is reset.
                Otherwise (end of a file) there are no more bytes to come.
        """
        for stream in list(self._open):
            self._retire(stream)
            if cut and stream.within_request:
                stream.cut("drain")
            else:
                stream.finish()
            stream.close()

    @property
    def idle(self) -> bool:
        """Whether every captured connection is settled."""
        return not self._open and all(upstream.connections_pending == 0 for upstream in self._roster.known)

    def abort(self) -> None:
        """The time to drain is over."""
        for upstream in self._roster.known:
            upstream.abort("drain")

    # -- accounts --------------------------------------------------------------------------------------------------

    @property
    def upstreams(self) -> list[Upstream]:
        """All that have an account, in the order of the report."""
        return self._roster.known

    def snapshot(self) -> AccountsReport:
        """The accounts as they stand now."""
        source = self._source.statistics()
        flows = self.reassembler.statistics()
        held = sum(stream.held_bytes for stream in self._open)
        not_joined = self._not_joined + sum(not stream.joined for stream in self._open)
        joined = self._joined + sum(stream.midway and stream.joined for stream in self._open)
        mirrored = self._streams - not_joined
        ignored = {
            "sampled_out": self._sampled_out,
            "own": self._own_seen,
            "not_joined": not_joined,
            "no_data": flows.flows_seen - self._streams - self._sampled_out - self._own_seen,
        }
        return AccountsReport(
            version=gopher.__version__,
            source=self._source.name,
            started_at=self._started.isoformat(timespec="seconds"),
            duration_s=trio.current_time() - self._started_s,
            packets={
                "received": source.received,
                "dropped_by_kernel": source.dropped_by_kernel,
                "dropped_by_interface": source.dropped_by_interface,
                "processed": flows.packets,
                "not_tcp": flows.packets_not_tcp,
                "other_port": flows.packets_other_port,
                "malformed": flows.packets_malformed,
                "truncated": flows.packets_truncated,
                "bad_checksum": flows.packets_bad_checksum,
                "out_of_order": flows.segments_out_of_order,
                "out_of_window": flows.segments_out_of_window,
                "overlaps_differing": flows.overlaps_differing,
                "retransmitted_bytes": flows.retransmitted_bytes,
            },
            connections={
                "seen": flows.flows_seen,
                "mirrored": mirrored,
                "joined": joined,
                "open": len(self._open),
                "ignored": sum(ignored.values()),
                "ignored_by_reason": ignored,
            },
            bytes={
                "captured": self._received_bytes - held,
                "responses": flows.data_bytes[SERVER_TO_CLIENT],
                "held": flows.held_bytes + held,
            },
            gaps={"count": flows.gaps, "bytes": flows.gap_bytes},
            upstreams=tuple(upstream.account() for upstream in self._roster.known),
        )
