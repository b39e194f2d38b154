"""How a capture is divided between workers, and how their accounts become one."""

import json
import os
import struct
from dataclasses import replace

import pytest

from gopher._fastpath import Reassembler, StreamData, pack_batch
from gopher._pump import Budget
from gopher.capture.figures import SharedFigures
from gopher.capture.memory import SUPERVISOR_BYTES
from gopher.capture.shares import kernel_shares, worker_config, worker_count, write_path
from gopher.cli import parse
from gopher.config import MIB, RING_BLOCK_BYTES, MirrorConfig, UpstreamConfig
from gopher.errors import ConfigError
from gopher.observe.accounts import (
    ConnectionAccount,
    LatencyAccount,
    LatencyBucket,
    UpstreamAccount,
    WorkersAccount,
    law_violations,
)
from gopher.observe.report import to_json, to_table
from gopher.observe.summing import (
    LastFigures,
    captured_connections,
    from_wire,
    left_by_dead,
    sum_reports,
    to_wire,
    with_packets,
)
from gopher.upstreams.upstream import Upstream
from tests.support.packets import (
    LINKTYPE_ETHERNET,
    Conversation,
    ethernet,
    ipv4_fragments,
    ipv6_fragments,
    tcp,
)
from tests.unit.test_memory import worst_bytes
from tests.unit.test_report import HEALTHY, REPORT

SEED = 0x0123_4567_89AB_CDEF


def asked(options=""):
    return parse(["-c", "-p", "80", "-u", "a:1080", *options.split()])


def worker(options, index, count):
    return worker_config(asked(options), index, count, SEED)


# ---- settings


@pytest.mark.parametrize(
    ("options", "cores", "count"),
    [
        ("", 64, 1),
        ("--workers 3", 1, 3),
        ("--workers auto", 1, 1),
        ("--workers auto", 3, 1),
        ("--workers auto", 4, 2),
        ("--workers auto", 1000, 64),
        ("--workers auto --max-connections 2", 8, 2),
        ("--workers auto --max-memory 240M", 64, 2),
        ("--workers auto --max-memory 239M", 64, 1),
        ("--workers 1 --max-memory 96M", 64, 1),
    ],
)
def test_number_of_workers(options, cores, count):
    assert worker_count(asked(options), cores) == count


def test_more_workers_than_connections_are_refused():
    with pytest.raises(ConfigError, match="--workers 3 cannot share --max-connections 2"):
        worker_count(asked("--workers 3 --max-connections 2"), 8)


@pytest.mark.parametrize("text", ["0", "65", "-1", "two", "", "1.5"])
def test_number_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="1 to 64, or auto"):
        parse(["-c", "-p", "80", "-u", "a", f"--workers={text}"])


@pytest.mark.parametrize(
    ("options", "index", "number", "path"),
    [
        ("", 0, 0, None),
        ("--write x.pcap", 1, 1, "x.1.pcap"),
        ("--write /a.b/x", 1, 7, "/a.b/x.7"),
        # Each gets all packets: the first one keeps them.
        ("--write x.pcap --decap", 0, 2, "x.2.pcap"),
        ("--write x.pcap --decap", 1, 1, None),
        ("--write x.pcap --read f", 1, 1, None),
    ],
)
def test_workers_keep_packets_in_files_of_their_own(options, index, number, path):
    assert write_path(asked(options), index, number) == path


def test_file_of_a_worker_is_not_the_one_that_is_read():
    with pytest.raises(ConfigError, match=r"would overwrite the file that --read reads: a worker's file is x\.0\.pcap"):
        write_path(asked("--read x.0.pcap --write x.pcap"), 0, 0)


def test_bounds_that_are_promises_to_the_machine_are_divided():
    options = "--max-connections 11 --upstream-memory 10M --total-memory 30M --connection-memory 2M"
    parts = [worker(options, index, 3) for index in range(3)]
    assert [part.mirror.max_connections for part in parts] == [4, 4, 3]
    for part in parts:
        assert part.mirror.upstream_memory_bytes == 10 * MIB // 3
        assert part.mirror.total_memory_bytes == 10 * MIB
        assert part.mirror.connection_memory_bytes == 2 * MIB
        assert part.reassembly.max_flows == 131_072 // 3
        assert part.reassembly.total_memory_bytes == 64 * MIB // 3
        assert part.reassembly.flow_memory_bytes == 4 * MIB


@pytest.mark.parametrize("upstreams", [1, 3])
@pytest.mark.parametrize(("mib", "count"), [(240, 2), (400, 3), (2000, 4), (64 * 96 + 48, 64)])
@pytest.mark.parametrize("options", ["", "--ring 1M", "--low-latency", "--total-memory 64M --max-connections 64"])
def test_what_all_have_together_stays_within_the_memory(upstreams, mib, count, options):
    config = asked(options)
    config = replace(
        config, max_memory_bytes=mib * MIB, mirror=replace(config.mirror, upstreams=config.mirror.upstreams * upstreams)
    )
    parts = [worker_config(config, index, count, SEED) for index in range(count)]
    assert SUPERVISOR_BYTES + sum(map(worst_bytes, parts)) <= mib * MIB
    assert all(part.source.ring_room_bytes >= 2 * RING_BLOCK_BYTES for part in parts)


def test_bounds_that_memory_does_not_lower_are_divided_as_ever():
    assert replace(worker("--max-memory 4096M", 1, 2), max_memory_bytes=None) == worker("", 1, 2)


def test_what_memory_lowered_is_shed_for_it():
    mirror = worker("--max-memory 240M", 0, 2).mirror
    assert mirror.reason("total_memory") == mirror.reason("max_connections") == "max_memory"
    assert worker("--max-memory 240M --max-connections 100", 0, 2).mirror.reason("max_connections") == "max_connections"


@pytest.mark.parametrize(
    ("options", "count", "ring_bytes"),
    [
        ("", 2, 32 * MIB),
        # 0.75 s of blocks of 8 ms, and of 1 ms: time cannot be divided.
        ("", 8, 94 * RING_BLOCK_BYTES),
        ("--low-latency", 4, 750 * RING_BLOCK_BYTES),
        ("--ring 64M", 4, 16 * MIB),
        ("--ring 1M", 4, 512 << 10),
        ("--max-memory 240M", 2, 6 * MIB),
        ("--max-memory 300M --ring 64M", 2, 32 * MIB),
    ],
)
def test_ring_is_divided_but_holds_the_same_time(options, count, ring_bytes):
    assert worker(options, 0, count).source.ring_room_bytes == ring_bytes


@pytest.mark.parametrize(("options", "wakeup_ms"), [("", 16), ("--low-latency", 1)])
def test_workers_wake_up_half_as_often_unless_latency_counts(options, wakeup_ms):
    assert worker(options, 0, 2).source.wakeup_ms == wakeup_ms


def test_what_the_supervisor_does_the_workers_do_not():
    part = worker("--report r.json --metrics 127.0.0.1:9 --stats-interval 1 --duration 5 --workers 2", 1, 2)
    assert (part.workers, part.report_path, part.metrics_address, part.stats_interval_s) == (1, None, None, None)
    assert part.verbosity < 0
    assert part.duration_s == 5


@pytest.mark.parametrize(
    ("options", "by_kernel", "share"), [("", True, (0, 1)), ("--decap", False, (1, 2)), ("--read f", False, (1, 2))]
)
def test_flows_are_told_apart_by_the_kernel_only_where_it_can(options, by_kernel, share):
    assert kernel_shares(asked(options)) is by_kernel
    assert worker(options, 1, 2).reassembly.share == share
    assert worker(options, 1, 2).reassembly.share_seed == SEED


# ---- shares of flows


def shared(packets, count, **settings):
    """For each share, the bytes of each (client, direction), and the statistics."""
    found = []
    for index in range(count):
        table = Reassembler([80], share=(index, count), share_seed=SEED, **settings)
        streams = {}
        for event in (*table.feed(pack_batch(packets, LINKTYPE_ETHERNET)), *table.flush()):
            if isinstance(event, StreamData):
                key = event.flow.client, event.direction
                streams[key] = streams.get(key, b"") + event.data
        found.append((streams, table.statistics()))
    return found


def talks(number):
    """Connections whose ports are even, as those of one Linux client are, and as many with IPv6."""
    for at in range(number):
        port = 10_000 + 2 * at
        yield Conversation(client=("192.0.2.1", port))
        yield Conversation(client=("2001:db8::1", port), server=("2001:db8::2", 80), wrap=lambda ip: ethernet(ip))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_each_flow_is_in_one_share_with_both_directions(count):
    packets = []
    for at, talk in enumerate(talks(500)):
        talk.handshake().data(b"request %d" % at).data(b"answer %d" % at, direction=1).close()
        packets += talk.packets
    [(whole, all_statistics)] = shared(packets, 1)
    parts = shared(packets, count)
    merged = {}
    for streams, statistics in parts:
        assert not merged.keys() & streams.keys()
        merged.update(streams)
        clients = {client for client, _ in streams}
        assert len(streams) == 2 * len(clients)
        assert 1000 / count * 0.8 < len(clients) < 1000 / count * 1.2
        assert statistics.flows_seen == len(clients)
    assert merged == whole
    assert sum(statistics.packets for _, statistics in parts) == all_statistics.packets


@pytest.mark.parametrize("cut", [ipv4_fragments, ipv6_fragments])
def test_fragments_belong_to_their_flow(cut):
    source, destination = ("192.0.2.1", "192.0.2.2") if cut is ipv4_fragments else ("2001:db8::1", "2001:db8::2")
    packets = []
    for at in range(50):
        segment = tcp(20_000 + at, 80, seq=1, payload=b"%03d" % at * 100)
        packets += [(1, ethernet(part)) for part in cut(segment, source, destination, identification=at, size=104)]
    parts = shared(packets, 2)
    assert sorted(data for streams, _ in parts for data in streams.values()) == [b"%03d" % at * 100 for at in range(50)]
    assert all(streams for streams, _ in parts)
    # Fragments that complete nothing are no TCP, and the first share's.
    assert [statistics.packets_not_tcp for _, statistics in parts] == [len(packets) - 50, 0]
    assert sum(statistics.packets for _, statistics in parts) == len(packets)


def test_time_passes_by_the_packets_of_other_shares():
    by_share = {}
    for port in range(1, 100):
        talk = Conversation(client=("192.0.2.1", port)).handshake().data(b"first")
        mine = bool(Reassembler([80], share=(0, 2)).feed(pack_batch(talk.packets, LINKTYPE_ETHERNET)))
        by_share[mine] = talk
    mine, other = by_share[True], by_share[False]
    table = Reassembler([80], share=(0, 2), gap_timeout_s=1)
    mine.data(b"lost").data(b"behind")
    del mine.packets[-2]
    table.feed(pack_batch(mine.packets, LINKTYPE_ETHERNET))
    other.now_ns += 2_000_000_000
    other.data(b"later")
    assert table.statistics().gaps == 0
    table.feed(pack_batch(other.packets[-1:], LINKTYPE_ETHERNET))
    assert table.statistics().gaps == 1


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0), (0, 1 << 17)])
def test_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="share"):
        Reassembler([80], share=share)


# ---- accounts


def test_report_travels_unchanged():
    assert from_wire(json.loads(json.dumps(to_wire(REPORT)))) == REPORT


def test_upstream_that_fails_for_one_worker_is_failing():
    first, *others = REPORT.upstreams
    failing = replace(REPORT, upstreams=(replace(first, failing="refused"), *others))
    for reports in ([REPORT, failing], [failing, REPORT]):
        assert sum_reports(reports).upstreams[0].failing == "refused"


def test_sum_adds_every_counter():
    total = json.loads(to_json(sum_reports([REPORT, REPORT, REPORT])))
    once = json.loads(to_json(REPORT))
    same = {"version", "source", "started_at", "duration_s", "workers", "name", "up_to_s", "accounts_add_up"}
    same |= {"added_s", "removed_s", "failing"}

    def check(whole, part, path):
        if isinstance(part, dict):
            assert whole.keys() == part.keys(), path
            for key in part:
                if key in same:
                    assert whole[key] == part[key], (path, key)
                else:
                    check(whole[key], part[key], (*path, key))
        elif isinstance(part, list):
            assert len(whole) == len(part), path
            for at, value in enumerate(part):
                check(whole[at], value, (*path, at))
        else:
            assert whole == 3 * part, path

    check(total, once, ())


def test_reasons_of_one_worker_only_are_in_the_sum():
    other = replace(
        REPORT, upstreams=tuple(replace(each, shed={"linger": 1}, shed_bytes=1) for each in REPORT.upstreams)
    )
    first, second = sum_reports([REPORT, other]).upstreams
    assert first.shed == {"linger": 1}
    assert second.shed == {"reset": 1_000, "refused": 4_999_000, "linger": 1}


def test_upstreams_that_only_some_workers_know_are_in_the_sum():
    """One that began after a reload does not know what was removed, and does not say when it all happened."""
    healthy, refusing = REPORT.upstreams
    first = replace(healthy, added_s=0.0)
    reports = [
        replace(REPORT, upstreams=upstreams) for upstreams in ((first, refusing), (refusing,), (refusing, first))
    ]
    came = replace(empty(refusing), added_s=5.0)
    listed = [empty(healthy), came, replace(empty(refusing), name="later:1")]
    total = sum_reports(reports, listed)
    assert law_violations(total) == []
    assert [each.name for each in total.upstreams] == [healthy.name, refusing.name, "later:1"]
    assert [each.captured_bytes for each in total.upstreams] == [
        2 * healthy.captured_bytes,
        3 * refusing.captured_bytes,
        0,
    ]
    assert total.upstreams[1].added_s == 5.0


def empty(upstream):
    buckets = tuple(replace(bucket, count=0) for bucket in upstream.latency.buckets)
    nothing = ConnectionAccount(0, 0, 0, 0)
    return UpstreamAccount(upstream.name, 0, 0, 0, 0, {}, nothing, 0, 0, latency=LatencyAccount(0, 0.0, buckets))


def test_upstreams_of_one_name_stay_apart():
    upstream = REPORT.upstreams[1]
    both = replace(REPORT, upstreams=(upstream, replace(upstream, dials=1000)))
    first, second = sum_reports([both, both, replace(REPORT, upstreams=(upstream,))]).upstreams
    assert (first.dials, second.dials) == (3 * upstream.dials, 2000)


def test_latencies_are_added_bucket_by_bucket():
    mine = LatencyAccount(3, 0.5, (LatencyBucket(0.1, 1), LatencyBucket(None, 2)))
    its = LatencyAccount(4, 0.25, (LatencyBucket(0.1, 4), LatencyBucket(None, 0)))
    reports = [replace(REPORT, upstreams=(replace(HEALTHY, latency=each),)) for each in (mine, its)]
    [upstream] = sum_reports(reports).upstreams
    assert upstream.latency == LatencyAccount(7, 0.75, (LatencyBucket(0.1, 5), LatencyBucket(None, 2)))


def test_what_a_dead_worker_had_pending_is_shed():
    """And what it had done since its last report is in its account: a connection, 600 bytes, 500 of them delivered."""
    report = replace(REPORT, connections={**REPORT.connections, "open": 2}, bytes={**REPORT.bytes, "held": 7})
    healthy, refusing = REPORT.upstreams
    last = [
        LastFigures(healthy.captured_bytes + 600, healthy.delivered_bytes + 500, 10, 8),
        LastFigures(refusing.captured_bytes + 600, 0, 10, 0),
    ]
    left = left_by_dead(report, 77_777, last)
    assert law_violations(left) == []
    healthy, refusing = left.upstreams
    assert (healthy.captured_bytes, healthy.delivered_bytes) == (5_000_600, 4_000_500)
    assert (healthy.shed, healthy.pending_bytes) == ({"worker_died": 1_000_100}, 0)
    assert healthy.connections == ConnectionAccount(10, 8, 2, 0, {"worker_died": 2})
    assert refusing.shed == {"reset": 1_000, "refused": 4_999_000, "worker_died": 600}
    assert refusing.connections.shed_by_reason == {"reset": 1, "refused": 7, "max_connections": 1, "worker_died": 1}
    assert left.bytes["captured"] == 5_000_600
    assert (left.connections["open"], left.bytes["held"]) == (0, 0)
    assert left.connections["seen"] == REPORT.connections["seen"] + 1
    assert left.connections["mirrored"] == REPORT.connections["mirrored"] + 1
    assert left.packets["processed"] == 77_777


def test_dead_worker_whose_first_upstream_was_removed_has_its_last_connections_in_the_account():
    removed, stays = REPORT.upstreams
    last = [
        LastFigures(removed.captured_bytes, removed.captured_bytes, removed.connections.captured, 9),
        LastFigures(stays.captured_bytes + 600, 0, stays.connections.captured + 1, 0),
    ]
    left = left_by_dead(REPORT, 77_777, last)
    assert law_violations(left) == []
    assert left.bytes["captured"] == REPORT.bytes["captured"] + 600
    assert captured_connections(left) == captured_connections(REPORT) + 1


def test_dead_worker_without_anything_pending_leaves_its_account_as_it_was():
    refusing = REPORT.upstreams[1]
    report = replace(REPORT, upstreams=(refusing,), connections={**REPORT.connections, "open": 0})
    last = [LastFigures(refusing.captured_bytes, 0, refusing.connections.captured, 0)]
    assert left_by_dead(report, 1, last).upstreams == (refusing,)


def test_figures_outlive_a_writer_that_dies_while_it_writes():
    limits = MirrorConfig(upstreams=(UpstreamConfig(name="x"),))
    first, second = (Upstream(limits.upstreams[0], limits, Budget(1)) for _ in range(2))
    first.ledger.captured, first.ledger.delivered = 1 << 62, -2
    memory = SharedFigures.allocate(2)
    writer, reader = SharedFigures(memory, 2), SharedFigures(memory, 2)
    os.close(memory)
    assert reader.read() == ()
    writer.write(1, [first])
    assert reader.read() == (1, 1 << 62, -2, 0, 0)

    with pytest.raises(TypeError):
        writer.write(9, [second, "the first one is in the memory"])
    assert reader.read() == (1, 1 << 62, -2, 0, 0)
    writer.write(4, [])
    assert reader.read() == (4,)
    writer.write(5, [second, first])
    assert reader.read() == (5, 0, 0, 0, 0, 1 << 62, -2, 0, 0)
    with pytest.raises(ValueError, match="room for 2"):
        writer.write(6, [first, second, first])
    writer.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read()


@pytest.mark.parametrize(("slot", "count", "read"), [(0, -1, 0), (2**63 - 1, 2**63 - 1, 5), (-2, 3, 3)])
def test_figures_of_a_hostile_writer_are_read_within_their_memory(slot, count, read):
    memory = SharedFigures.allocate(1)
    os.pwrite(memory, struct.pack("=13q", slot, count, *range(5), count, *range(5)), 0)
    reader = SharedFigures(memory, 1)
    os.close(memory)
    assert reader.read() == tuple(range(read))
    reader.close()


def test_packets_that_nobody_read_are_received():
    packets = with_packets(REPORT, 10, 4).packets
    assert packets["received"] == REPORT.packets["received"] + 10
    assert packets["dropped_by_kernel"] == REPORT.packets["dropped_by_kernel"] + 4


def test_table_says_how_the_workers_fare():
    workers = WorkersAccount(running=2, died=1, packets_lost=1_234, connections=(40, 41), captured_bytes=(1, 2))
    lines = to_table(replace(REPORT, workers=workers), 200).splitlines()
    [line] = [line for line in lines if line.startswith("workers")]
    assert line == (
        "workers      2 running, 40 + 41 connections; 1 died, and 1,234 packets came to them that are in no account"
    )
    assert "workers" not in to_table(REPORT, 200)
