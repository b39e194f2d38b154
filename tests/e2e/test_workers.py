"""`--workers`: flows are shared, accounts are one, and a worker that dies takes only its own flows with it."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from gopher import read_streams
from gopher.capture.place import Place
from gopher.capture.run import Resolved
from gopher.capture.shares import worker_config
from gopher.capture.worker import TELL_S, Setup
from gopher.cli import parse
from gopher.link import decode_header
from tests.support.accounts import assert_all_delivered, only_upstream
from tests.support.clients import curl, exchange, get, noise, post
from tests.support.command import GopherProcess, assert_clean, run_gopher
from tests.support.netns import inject
from tests.support.packets import Conversation, broadcast, ethernet, ipv4, ipv4_fragments, pcap_file, tcp, udp
from tests.support.rights import REACHABLE, no_rights, rights
from tests.support.servers import RecordingSink, assert_mirrored

pytestmark = pytest.mark.e2e

PRODUCTION = ("127.0.0.1", 80)
SHADOW = ("127.0.0.2", 3280)
TWO = ("-c", "-p", "80", "--workers", "2")
WAIT_S = 20


@pytest.fixture
def production(host):
    with RecordingSink(PRODUCTION, namespace=host) as sink:
        yield sink


@pytest.fixture
def shadow(host):
    with RecordingSink(SHADOW, namespace=host) as sink:
        yield sink


def is_gone(pid):
    """Whether there is no such process, or nothing but its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except OSError:
        return True


def wait_until(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.02)


def assert_shared(report, connections, least=0.25):
    """Both workers had their part of so many connections. By chance one of 100 has less than 25 once in 10 million."""
    parts = report["workers"]["connections"]
    assert sum(parts) == connections
    assert len(parts) == 2
    assert min(parts) >= least * connections, parts
    assert sum(report["workers"]["captured_bytes"]) == report["bytes"]["captured"]


@pytest.mark.parametrize("interface", ["lo", "any"])
def test_loopback_flows_are_shared_and_every_byte_arrives(host, production, shadow, interface):
    with GopherProcess(*TWO, "-i", interface, "--responses", "-u", shadow.name, namespace=host) as gopher:
        for number in range(100):
            with host.connect(PRODUCTION) as client:
                exchange(client, get(number))
                exchange(client, post(number, noise(5_000, number)))
        assert_mirrored(production, shadow)
    assert_all_delivered(gopher.report)
    assert_shared(gopher.report, 100)
    # Had the directions of a flow come to different workers, each would have seen a flow.
    assert gopher.report["connections"]["seen"] == 100
    assert gopher.report["bytes"]["responses"] == sum(each.sent_bytes for each in production.connections)
    assert gopher.report["bytes"]["captured"] == sum(len(stream) for stream in production.streams)


def test_what_comes_while_workers_start_is_mirrored_once_at_most(host, production, shadow):
    """Until the group is complete, each socket gets every packet."""
    with ExitStack() as clients:
        opened = [clients.enter_context(host.connect(PRODUCTION)) for _ in range(20)]
        over = threading.Event()

        def talk():
            number = 0
            while not over.is_set():
                exchange(opened[number % 20], get(number))
                number += 1

        talking = threading.Thread(target=talk)
        talking.start()
        clients.callback(talking.join)
        clients.callback(over.set)
        with GopherProcess(*TWO, "-i", "lo", "-u", shadow.name, namespace=host) as gopher:
            shadow.wait(lambda: sum(len(each.received) for each in shadow.connections) > 20_000, "some requests")
            over.set()
            talking.join()
            clients.close()
            wait_until(lambda: all(each.ended for each in shadow.connections), "ended connections")
    assert len(shadow.connections) == 20
    requests = [line for stream in shadow.streams for line in re.findall(rb"GET /\d+ ", stream)]
    assert len(requests) == len(set(requests))
    assert gopher.report["connections"]["joined"] == 20
    assert only_upstream(gopher.report)["shed_bytes"] == 0


@pytest.mark.parametrize(("client", "server"), [("10.77.1.1", "10.77.1.2"), ("fd77:1::1", "fd77:1::2")])
def test_flows_of_a_device_are_shared(network, client, server):
    del client
    with (
        RecordingSink((server, 80), namespace=network.production) as production,
        RecordingSink(("10.77.2.2", 3280), namespace=network.shadow) as shadow,
        GopherProcess(
            *TWO, "-i", "net0", "--responses", "-u", "10.77.2.2:3280", namespace=network.production
        ) as gopher,
    ):
        for number in range(100):
            with network.client.connect((server, 80)) as client:
                exchange(client, get(number))
        assert_mirrored(production, shadow)
    assert_all_delivered(gopher.report)
    assert_shared(gopher.report, 100)
    assert gopher.report["connections"]["seen"] == 100
    assert gopher.report["bytes"]["responses"] == sum(each.sent_bytes for each in production.connections)


def fragmented(number):
    """One connection whose second request comes in fragments, and its bytes."""
    talk = Conversation(client=("10.77.1.1", 20_000 + number), server=("10.77.1.2", 80), wrap=broadcast)
    talk.handshake().data(get(number))
    whole = post(number, noise(1_000, number))
    segment = tcp(20_000 + number, 80, seq=1001 + len(get(number)), payload=whole)
    fragments = ipv4_fragments(segment, "10.77.1.1", "10.77.1.2", identification=number, size=400)
    talk.packets += [(talk.now_ns, broadcast(fragment)) for fragment in fragments]
    talk.sent[0] += len(whole)
    return talk.data(get(number + 1000)).close(), get(number) + whole + get(number + 1000)


def test_fragments_come_to_the_worker_of_their_flow(network):
    talks = [fragmented(number) for number in range(40)]
    with (
        RecordingSink(("10.77.2.2", 3280), namespace=network.shadow) as shadow,
        GopherProcess(*TWO, "-i", "net0", "-u", "10.77.2.2:3280", namespace=network.production) as gopher,
    ):
        inject(network.client, "net0", [packet for talk, _ in talks for _, packet in talk.packets])
        shadow.wait_ended(40)
        assert shadow.streams == sorted(stream for _, stream in talks)
    assert_all_delivered(gopher.report)
    assert_shared(gopher.report, 40, least=0.1)
    assert gopher.report["gaps"]["count"] == 0


def vxlan(packet, port):
    """As a cloud's mirror sends it: each direction of a flow from a port of its own."""
    outer = udp(port, 4789, b"\x08\0\0\0\0\0\x2a\0" + ethernet(packet))
    return broadcast(ipv4(outer, "10.77.1.1", "10.77.1.2", protocol=17))


def test_directions_of_a_flow_in_a_tunnel_meet(network):
    packets = []
    for number in range(40):
        talk = Conversation(client=("192.0.2.1", 30_000 + number), wrap=bytes)
        talk.handshake().data(get(number)).data(b"answer", direction=1).close()
        ports = {b"\xc0\0\x02\x01": 40_000 + number, b"\xc0\0\x02\x02": 50_000 + number}
        packets += [(time_ns, vxlan(packet, ports[packet[12:16]])) for time_ns, packet in talk.packets]
    with (
        RecordingSink(("10.77.2.2", 3280), namespace=network.shadow) as shadow,
        GopherProcess(
            *TWO, "-i", "net0", "--decap", "--responses", "-u", "10.77.2.2:3280", namespace=network.production
        ) as gopher,
    ):
        inject(network.client, "net0", [packet for _, packet in packets])
        shadow.wait_ended(40)
        assert shadow.streams == sorted(get(number) for number in range(40))
    assert_all_delivered(gopher.report)
    assert_shared(gopher.report, 40, least=0.1)
    assert gopher.report["connections"]["seen"] == 40
    assert gopher.report["bytes"]["responses"] == 40 * len(b"answer")


def test_killed_worker_takes_only_its_own_flows(host, production, shadow):
    """Connections send on for the whole time. Those of the other worker are mirrored whole, on one connection each."""
    with (
        GopherProcess(*TWO, "-i", "lo", "-u", shadow.name, namespace=host) as gopher,
        ExitStack() as clients,
    ):
        opened = [clients.enter_context(host.connect(PRODUCTION)) for _ in range(40)]

        def talk(number):
            for each, client in enumerate(opened):
                exchange(client, get(1000 * number + each))

        for rounds in range(2):  # what a worker does in the turn in which it dies, nobody knows
            talk(rounds)
            shadow.wait_requests(40 * (rounds + 1))
        first, second = gopher.workers()
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + WAIT_S
        # The flows of the dead worker go on, on new connections, once another one has taken its place.
        while not (len(shadow.connections) > 40 and len(gopher.workers()) == 2):
            assert time.monotonic() < deadline, gopher.stderr
            rounds += 1
            talk(rounds)
        reborn = [child for child in gopher.workers() if child != second]
        talk(rounds + 1)
        clients.close()
        production.wait_ended(40)
        wait_until(lambda: all(each.ended for each in shadow.connections), "ended connections")
        report = gopher.stop()
    assert len(reborn) == 1
    assert re.search(r"gopher: warning: worker 0 died \(SIGKILL\), and \d+ open connections with it", gopher.stderr)
    account, workers = only_upstream(report), report["workers"]
    whole = set(production.streams) & set(shadow.streams)
    lost = account["connections"]["shed_by_reason"]["worker_died"]
    assert lost > 0
    assert len(whole) == 40 - lost
    assert workers["connections"][1] == 40 - lost
    assert workers["connections"][0] > lost
    assert account["connections"]["shed"] == lost
    assert workers["died"] == 1
    # Every packet is in an account, those that came to nobody, too.
    packets = report["packets"]
    assert workers["packets_lost"] > 0
    assert packets["received"] == packets["processed"] + packets["dropped_by_kernel"] + workers["packets_lost"]
    # Gopher claims nothing that did not arrive, and may know too little of the turn in which the worker died.
    assert account["delivered_bytes"] <= account["captured_bytes"] <= sum(len(stream) for stream in shadow.streams)
    # No request is there in part.
    assert sum(each.scanner.requests for each in shadow.connections) == sum(
        len(re.findall(rb"GET /\d+ ", stream)) for stream in shadow.streams
    )


def test_what_a_killed_worker_had_pending_is_shed(host, production):
    host.shrink_buffers()
    size = 900_000  # fits gopher's queue for one connection, and is more than shrunken buffers take
    with (
        RecordingSink(SHADOW, "silent", namespace=host) as stalled,
        GopherProcess(*TWO, "-i", "lo", "-u", stalled.name, "--metrics", "127.0.0.1:9464", namespace=host) as gopher,
        host.connect(PRODUCTION) as client,
    ):

        def account():
            return only_upstream(json.loads(curl("http://127.0.0.1:9464/report.json", namespace=host)))

        exchange(client, post(1, noise(size)))
        wait_until(lambda: account()["captured_bytes"] > size, "the upload")
        # Stopped first: nothing is sent any more between what is looked at here and their end.
        for worker in gopher.workers():
            os.kill(worker, signal.SIGSTOP)
        before = account()
        assert before["pending_bytes"] > 0
        for worker in gopher.workers():
            os.kill(worker, signal.SIGKILL)
        gopher.wait_stderr(lambda line: "died (SIGKILL)" in line, count=2)
        wait_until(lambda: account()["pending_bytes"] == 0, "the account of the dead")
        report = gopher.stop()
    account = only_upstream(report)
    assert account["shed"] == {"worker_died": before["pending_bytes"]}
    assert account["delivered_bytes"] == before["delivered_bytes"]
    assert account["connections"]["shed_by_reason"] == {"worker_died": 1}
    assert report["workers"]["died"] == 2
    packets = report["packets"]
    accounted = packets["processed"] + packets["dropped_by_kernel"] + report["workers"]["packets_lost"]
    assert packets["received"] == accounted > 0


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_killed_supervisor_leaves_no_orphan(host, production, shadow, stopped):
    """A worker that is stopped reads no socket: the kernel must end it."""
    with (
        GopherProcess(*TWO, "-i", "lo", "-u", shadow.name, namespace=host) as gopher,
        host.connect(PRODUCTION) as client,
    ):
        exchange(client, get(1))
        shadow.wait_requests(1)
        workers = gopher.workers()
        assert len(workers) == 2
        if stopped:
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
        gopher.kill()
        wait_until(lambda: all(map(is_gone, workers)), "the workers' end")
        shadow.wait_ended(1)


def test_worker_whose_supervisor_has_hung_up_ends(tmp_path):
    """Where the kernel does not tell of the parent's end: after a change of rights, or in another namespace."""
    path = tmp_path / "talk.pcap"
    path.write_bytes(pcap_file(Conversation().handshake().data(get(1)).packets))
    config = parse(["-c", "-p", "80", "--read", str(path), "-u", f"dir:{tmp_path}/streams", "--workers", "2"])

    async def leave_it():
        place = Place(0)
        place.start(
            Setup(
                resolved=Resolved(worker_config(config, 0, 2, 0), addresses=[[]], own=[]),
                place=0,
                kernel_shares=False,
                supervisor=os.getpid(),
                tell_s=TELL_S,
            )
        )
        assert await place.opened() is None
        process = place.process
        place.leave()
        return process

    process = trio.run(leave_it)
    assert process.wait(WAIT_S) == 1
    assert not (tmp_path / "streams").exists()


@pytest.mark.parametrize(("tell_s", "least", "most"), [(0.5, 3, 6), (1.0, 1, 3)])
def test_worker_tells_its_accounts_as_often_as_it_is_asked_to(tmp_path, monkeypatch, tell_s, least, most):
    talk = Conversation().handshake()
    for number in range(21):
        talk.data(get(number))
        talk.now_ns += 100_000_000
    path = tmp_path / "talk.pcap"
    path.write_bytes(pcap_file(talk.packets))
    config = parse(["-c", "-p", "80", "--read", str(path), "-u", f"dir:{tmp_path}/streams", "--workers", "2"])
    share = worker_config(config, 0, 2, 0)
    share = replace(share, reassembly=replace(share.reassembly, share=(0, 1)))  # all flows
    told = []
    understand = Place._understand
    monkeypatch.setattr(Place, "_understand", lambda self, message: (told.append(message), understand(self, message)))

    async def follow():
        place = Place(0)
        place.start(
            Setup(
                resolved=Resolved(share, addresses=[[]], own=[]),
                place=0,
                kernel_shares=False,
                supervisor=os.getpid(),
                tell_s=tell_s,
            )
        )
        try:
            await place.opened()
            await place.begin(time.time_ns())
            del told[:]
            await place.follow()
        finally:
            place.close()

    trio.run(follow)
    # The last ones are the final report and the end.
    assert least <= len(told) - 2 <= most


def talks_file(path):
    """A capture with all sorts: whole connections, joined ones, holes, fragments, other ports, IPv6, a torn end."""
    packets = []
    for number in range(60):
        start = {"client": (f"192.0.2.{number}", 1000 + 2 * number)}
        if number % 5 == 0:
            start = {"client": ("2001:db8::1", 1000 + 2 * number), "server": ("2001:db8::2", 80)}
        talk = Conversation(**start)
        talk.now_ns += number
        if number % 3:
            talk.handshake()
        talk.data(get(number)).data(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", direction=1)
        for at in range(0, 3_000, 1_000):
            talk.data(post(number, noise(2_900, number))[at : at + 1_000])
        if number % 7 == 0:
            del talk.packets[-2]
        talk.data(get(number)).close()
        packets += talk.packets
    for number in range(20):
        talk, _ = fragmented(number)
        packets += talk.packets
    packets.append((packets[-1][0] + 1, ethernet(b"\x45", ethertype=0x0806)))
    packets += Conversation(server=("192.0.2.2", 8080)).handshake().data(b"another port").packets
    path.write_bytes(pcap_file(sorted(packets))[:-3])


def test_file_read_by_two_workers_gives_what_one_gives(tmp_path):
    path = tmp_path / "talks.pcap"
    talks_file(path)
    reports, streams = [], []
    for workers in ("1", "2"):
        directory = tmp_path / workers
        with GopherProcess(
            *("-c", "-p", "80", "--responses", "--read", str(path), "--speed", "max", "--workers", workers),
            *("-u", f"dir:{directory}"),
        ) as gopher:
            reports.append(gopher.wait())
        assert gopher.stderr.count(f"gopher: warning: {path} ends in the middle of a packet") == 1
        assert gopher.stderr.count(f"gopher: reading {path}, tcp port 80, to 1 upstream") == 1
        streams.append({each.name: each.read_bytes() for each in directory.iterdir()})
    one, two = reports
    assert streams[0] == streams[1]
    assert len(streams[0]) > 80
    assert one["gaps"]["count"] > 0
    assert_shared(two, one["upstreams"][0]["connections"]["captured"])
    for report in reports:
        for differs in ("started_at", "duration_s", "workers"):
            del report[differs]
        for upstream in report["upstreams"]:
            del upstream["name"]
    assert two == one


def test_worker_that_dies_reading_a_file_is_not_replaced(tmp_path):
    """Another one would send again what was sent."""
    path = tmp_path / "talk.pcap"
    talk = Conversation().handshake().data(get(1))
    talk.now_ns += 60_000_000_000
    path.write_bytes(pcap_file(talk.data(get(2)).close().packets))
    with (
        RecordingSink() as shadow,
        GopherProcess(*TWO, "--read", str(path), "-u", shadow.name) as gopher,
    ):
        shadow.wait_requests(1)
        for worker in gopher.workers():
            os.kill(worker, signal.SIGKILL)
        report = gopher.wait(status=1)
    [error] = [line for line in gopher.stderr.splitlines() if line.startswith("gopher: error: ")]
    assert f"a worker died while it read {path}" in error
    assert report["workers"]["died"] == 2


def kept(place, number):
    """The requests in a file of --write."""
    # Of a connection that began while there was no successor perhaps only the end was kept.
    return sorted(
        stream.request for stream in read_streams(place / f"kept.{number}.pcap", ports=[80]) if stream.request
    )


def test_workers_keep_what_they_captured_and_their_successors_keep_it_too(host, production, shadow, tmp_path):
    with GopherProcess(
        *TWO, "-i", "lo", "--responses", "--write", f"{tmp_path}/kept.pcap", "-u", shadow.name, namespace=host
    ) as gopher:
        for number in range(40):
            client_of(host, number)
        shadow.wait_ended(40)
        first, _ = gopher.workers()
        before = shared(gopher)
        # Packets are kept when the turn that mirrored them is over.
        wait_until(lambda: sum(len(kept(tmp_path, number)) for number in range(2)) == 40, "all that was captured")
        os.kill(first, signal.SIGKILL)
        gopher.wait_stderr(lambda line: "died (SIGKILL)" in line)
        wait_until(lambda: client_of(host, 99) and shared(gopher)[0] > before[0], "connections of its successor")
        wait_until(lambda: all(each.ended for each in shadow.connections), "ended connections")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.0.pcap", "kept.1.pcap", "kept.2.pcap"]
    dead, other, successor = (kept(tmp_path, number) for number in range(3))
    assert min(len(dead), len(other), len(successor)) > 0
    assert len(dead) == before[0]
    # What came while there was no successor is missing from the files and from the shadow.
    assert sorted(dead + other + successor) == shadow.streams


def test_file_is_kept_once_by_all_workers(tmp_path):
    path, kept = tmp_path / "talks.pcap", tmp_path / "kept.pcap"
    talks_file(path)
    with GopherProcess(
        *(*TWO, "--responses", "--read", str(path), "--speed", "max", "--write", str(kept)),
        *("-u", f"dir:{tmp_path}/streams"),
    ) as gopher:
        gopher.wait()
    assert not (tmp_path / "kept.1.pcap").exists()
    streams = [
        sorted((each.client, each.request, each.response) for each in read_streams(each_path, ports=[80]))
        for each_path in (path, tmp_path / "kept.0.pcap")
    ]
    assert streams[0] == streams[1]


def test_signal_drains_all_workers(host, production):
    """Sent to the whole process group, as a terminal or an init system does."""
    with (
        RecordingSink(SHADOW, hold=True, namespace=host) as shadow,
        GopherProcess(*TWO, "-i", "lo", "--drain", "15", "-u", shadow.name, namespace=host) as gopher,
    ):
        for number in range(20):
            with host.connect(PRODUCTION) as client:
                exchange(client, get(number))
        shadow.wait_requests(20)
        workers = gopher.workers()
        for worker in workers:
            os.kill(worker, signal.SIGTERM)
            os.kill(worker, signal.SIGINT)
        gopher.signal(signal.SIGTERM)
        gopher.signal(signal.SIGUSR1)
        gopher.wait_stderr(lambda line: line.endswith(" open now"))
        assert not any(map(is_gone, workers))
        assert not any(each.ended for each in shadow.connections)
        shadow.release()
        report = gopher.wait()
        assert_mirrored(production, shadow)
    assert_all_delivered(report)
    assert_shared(report, 20, least=0.05)


def test_second_signal_ends_workers_that_do_not_answer(host, production, shadow):
    with GopherProcess(*TWO, "-i", "lo", "--drain", "60", "-u", shadow.name, namespace=host) as gopher:
        with host.connect(PRODUCTION) as client:
            exchange(client, get(1))
        shadow.wait_requests(1)
        stuck, other = gopher.workers()
        os.kill(stuck, signal.SIGSTOP)
        gopher.signal(signal.SIGTERM)
        wait_until(lambda: is_gone(other), "the other worker's end")
        gopher.signal(signal.SIGTERM)
        report = gopher.wait(timeout_s=10)
    assert report["workers"]["died"] == 1


def test_connections_beyond_the_bound_are_shed(host, production):
    with (
        RecordingSink(SHADOW, hold=True, namespace=host) as shadow,
        GopherProcess(
            *TWO, "-i", "lo", "--drain", "0.1", "--max-connections", "10", "-u", shadow.name, namespace=host
        ) as gopher,
        ExitStack() as clients,
    ):
        for number in range(60):
            exchange(clients.enter_context(host.connect(PRODUCTION)), get(number))
        shadow.wait(lambda: len(shadow.connections) == 10, "ten connections")
    assert only_upstream(gopher.report)["connections"]["shed_by_reason"]["max_connections"] == 50


def test_links_of_different_workers_have_ids_of_their_own(host, production):
    with (
        RecordingSink(SHADOW, "mute", namespace=host) as relay,
        GopherProcess(*TWO, "-i", "lo", "--linger", "0.2", "-u", f"relay://{relay.name}", namespace=host) as gopher,
    ):
        for number in range(40):
            with host.connect(PRODUCTION) as client:
                exchange(client, get(number))
        relay.wait_ended(40)
        ids = {decode_header(bytes(each.received))[0].unique_id for each in relay.connections}
    assert len(ids) == 40
    assert_shared(gopher.report, 40, least=0.1)


def test_one_worker_is_one_process(host, shadow):
    with GopherProcess("-c", "-p", "80", "--workers", "1", "-i", "lo", "-u", shadow.name, namespace=host) as gopher:
        assert gopher.workers() == []
    assert gopher.report["workers"] is None


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("-i", "no-such-device"), 2, "no-such-device"),
        (("-i", "lo", "--filter", "port http or"), 2, "port http or"),
        (("--read", "/no/such/file.pcap"), 2, "/no/such/file.pcap"),
        (("-i", "lo", "--write", "/no/such/folder/x.pcap"), 1, "cannot write /no/such/folder/x."),
        (("-i", "lo", "--workers", "0"), 2, "1 to 64, or auto"),
        (("-i", "lo", "--max-connections", "1"), 2, "--max-connections 1"),
        (("-i", "lo", "--max-memory", "239M"), 2, "--workers 2 cannot share --max-memory 239M"),
        (("-i", "lo", "-u", "dir:/proc/no/such/folder"), 1, "/proc/no/such/folder"),
    ],
)
def test_mistake_is_one_clear_sentence(host, arguments, status, said):
    done = run_gopher(*TWO, "-u", "127.0.0.2:3280", *arguments, namespace=host)
    assert done.returncode == status, done
    assert_clean(done.stderr)
    [message] = [line for line in done.stderr.splitlines() if line.startswith("gopher: ")]
    assert said in message
    assert len(done.stderr.splitlines()) <= 2


def test_no_permission_is_77(host):
    prefix = ("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw")
    done = run_gopher(*TWO, "-i", "lo", "-u", "127.0.0.2:3280", namespace=host, prefix=prefix)
    assert done.returncode == 77
    assert done.stderr.count("gopher: error: ") == 1


def test_workers_give_up_root_and_are_replaced_all_the_same(host, production, shadow):
    with GopherProcess(
        *TWO, "-i", "lo", "--user", "nobody", "-u", shadow.name, namespace=host, prefix=REACHABLE
    ) as gopher:
        first, second = gopher.workers()
        for worker in (first, second):
            assert list(rights(worker)) == [no_rights()]
        os.kill(first, signal.SIGKILL)
        gopher.wait_stderr(lambda line: "died (SIGKILL)" in line)
        clients = 0
        while not all(count > 0 for count in shared(gopher)):
            clients += 1
            assert clients < 2000, gopher.stderr
            with host.connect(PRODUCTION) as client:
                exchange(client, get(clients))
        [replaced] = set(gopher.workers()) - {second}
        assert list(rights(replaced)) == [no_rights()]
        report = gopher.stop()
    assert report["workers"]["died"] == 1


def shared(gopher):
    """How many connections each worker has had, by the table."""
    before = gopher.stderr.count("\nworkers ")
    gopher.signal(signal.SIGUSR1)
    gopher.wait_stderr(lambda line: line.startswith("workers "), count=before + 1)
    line = [line for line in gopher.stderr.splitlines() if line.startswith("workers ")][-1]
    return [
        int(count.replace(",", "")) for count in re.search(r"running, ([\d, +]+) connections", line)[1].split(" + ")
    ]


@pytest.fixture
def configure(tmp_path):
    """Writes the file that `--config` names, and returns its name."""
    path = tmp_path / "gopher.toml"

    def write(*upstreams, **more):
        settings = {"mode": "capture", "port": 80, "interface": "lo", "workers": 2, "upstream": list(upstreams), **more}
        path.write_text("".join(f"{key.replace('_', '-')} = {json.dumps(each)}\n" for key, each in settings.items()))
        return str(path)

    return write


def test_reload_is_over_when_all_that_run_have_it_and_later_workers_have_it_too(host, production, shadow, configure):
    talked = Counter()

    def talk(number, until):
        def once():
            client_of(host, number)
            talked[number] += 1
            return until()

        wait_until(once, "connections of each worker")

    with (
        RecordingSink(("127.0.0.3", 3280), namespace=host) as added,
        GopherProcess("--config", configure(shadow.name), namespace=host) as gopher,
    ):
        talk(1, lambda: min(shared(gopher)) > 0)
        wait_until(lambda: shadow.streams == production.streams, "what still waits in the kernel")
        first, second = gopher.workers()
        os.kill(second, signal.SIGSTOP)
        configure(shadow.name, added.name)
        gopher.signal(signal.SIGHUP)
        talk(2, lambda: added.connections)
        assert "reloaded" not in gopher.stderr
        os.kill(second, signal.SIGKILL)
        gopher.wait_stderr(lambda line: line == f"gopher: reloaded: to 2 upstreams; added {added.name}")
        wait_until(lambda: len(gopher.workers()) == 2, "the next worker")
        before = shared(gopher)
        talk(3, lambda: shared(gopher)[1] > before[1])
        before = shared(gopher)
        talk(4, lambda: shared(gopher)[1] > before[1])

        configure(added.name)
        gopher.signal(signal.SIGHUP)
        gopher.wait_stderr(lambda line: line == f"gopher: reloaded: to 1 upstream; removed {shadow.name}")
        before = shared(gopher)
        talk(5, lambda: min(map(int.__sub__, shared(gopher), before)) > 0)
        # Which upstream is the first one differs between these two, and the sum goes by names.
        assert first in gopher.workers()
        production.wait_ended(1)
        wait_until(lambda: all(each.ended for each in added.connections), "ended connections")
        report = gopher.stop()
    removed, came = report["upstreams"]
    assert (removed["name"], came["name"]) == (shadow.name, added.name)
    assert (removed["added_s"], came["removed_s"]) == (0, None)
    assert removed["removed_s"] > came["added_s"] > 0
    for account, sink in ((removed, shadow), (came, added)):
        assert set(account["shed"]) <= {"worker_died"}
        assert account["delivered_bytes"] <= sum(len(each.received) for each in sink.connections)
        assert account["connections"]["delivered"] <= len(sink.connections)
    # By whichever worker.
    for number in (4, 5):
        assert added.streams.count(get(number)) == talked[number]
    assert not {get(5)} & set(shadow.streams)
    assert not {get(1)} & set(added.streams)
    assert sum(report["workers"]["connections"]) == report["connections"]["mirrored"]
    assert sum(report["workers"]["captured_bytes"]) == report["bytes"]["captured"]
    assert report["workers"]["died"] == 1


def client_of(host, number):
    with host.connect(PRODUCTION) as client:
        exchange(client, get(number))
    return True


def test_reload_says_what_workers_cannot_take_on(host, production, shadow, configure):
    with GopherProcess("--config", configure(shadow.name), namespace=host) as gopher:
        workers = gopher.workers()
        for wrong, said in (
            ({"max_connections": 1}, "not reloaded, nothing has changed: --workers 2 cannot share --max-connections 1"),
            ({"workers": 3}, "needs a restart: workers"),
        ):
            configure(shadow.name, **wrong)
            gopher.signal(signal.SIGHUP)
            gopher.wait_stderr(lambda line, said=said: line == f"gopher: {said}")
        configure(*(f"127.0.0.2:{port}" for port in range(1, 129)))
        gopher.signal(signal.SIGHUP)
        gopher.wait_stderr(lambda line: "workers can tell of 128 different upstreams" in line)
        client_of(host, 1)
        assert_mirrored(production, shadow)
        assert gopher.workers() == workers


def test_accounts_of_as_many_upstreams_as_there_may_be_are_told(host, production):
    upstreams = [word for port in range(1, 129) for word in ("-u", f"127.0.0.2:{port}")]
    with GopherProcess(*TWO, "-i", "lo", *upstreams, namespace=host) as gopher:
        client_of(host, 1)
        production.wait_ended(1)
    assert [each["shed"] for each in gopher.report["upstreams"]] == [{"refused": len(get(1))}] * 128
    done = run_gopher(*TWO, "-i", "lo", *upstreams, "-u", "127.0.0.2:3280", namespace=host)
    assert done.returncode == 2
    assert "workers can tell of 128 different upstreams" in done.stderr


def test_service_manager_hears_the_supervisor_alone(host, shadow, tmp_path):
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_S)
        prefix = ("env", f"NOTIFY_SOCKET={tmp_path}/notify", "WATCHDOG_USEC=60000000")
        with GopherProcess(*TWO, "-i", "lo", "-u", shadow.name, namespace=host, prefix=prefix) as gopher:
            said = b""
            while b"READY=1" not in said:
                said = manager.recv(4096)
            for worker in gopher.workers():
                assert b"NOTIFY_SOCKET" not in Path(f"/proc/{worker}/environ").read_bytes()
            gopher.stop()
            while said != b"STOPPING=1":
                said = manager.recv(4096)
