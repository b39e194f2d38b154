"""Upstreams that fail, clients that break off, packets that the capture misses: contained, counted, never spliced."""

import json
import signal
import time
from contextlib import ExitStack

import pytest

from tests.support.accounts import assert_all_delivered, only_upstream
from tests.support.clients import curl, exchange, get, noise, post, receive_exactly
from tests.support.command import GopherProcess
from tests.support.netns import inject
from tests.support.packets import Conversation, broadcast
from tests.support.servers import ANSWER, PRODUCTION, SHADOW, RecordingSink, assert_mirrored, refused_address, reset

pytestmark = pytest.mark.e2e

CAPTURE = ("-c", "-p", "80", "-i", "lo")
# Interpreter and libraries 50 MiB, ring 64 MiB, and what the test queues.
BASE_MEMORY_MIB = 128


def test_healthy_upstream_gets_everything_beside_a_dead_a_silent_and_a_resetting_one(host, production, shadow):
    host.shrink_buffers()
    with (
        refused_address(host) as dead,
        RecordingSink(("127.0.0.3", 3280), "silent", namespace=host) as silent,
        RecordingSink(("127.0.0.4", 3280), "resetting", namespace=host) as resetting,
        GopherProcess(
            *CAPTURE,
            *("-u", dead, "-u", silent.name, "-u", resetting.name, "-u", shadow.name),
            "--drain=1",
            namespace=host,
        ) as gopher,
    ):
        for number in range(100):
            with host.connect(PRODUCTION) as client:
                exchange(client, get(number))
                exchange(client, post(number, noise(10_000, number)))
        # More than the kernel's buffers and gopher's queue hold for a connection that is not read; the healthy upstream
        # is waited for, so that it never has so much before it, on a machine of any speed.
        for number in range(20):
            with host.connect(PRODUCTION) as client:
                for part in range(3):
                    exchange(client, post(part, noise(600_000, number)))
                    shadow.wait_requests(200 + 3 * number + part + 1)
        assert_mirrored(production, shadow)
        assert gopher.peak_memory_mib() < BASE_MEMORY_MIB + 16
        report = gopher.stop()
    accounts = {each["name"]: each for each in report["upstreams"]}
    assert_all_delivered(report, shadow.name)
    assert set(accounts[dead]["shed"]) == {"refused"}
    assert accounts[dead]["delivered_bytes"] == 0
    assert accounts[dead]["dials"] < 120
    assert "connection_memory" in accounts[silent.name]["shed"]
    assert "reset" in accounts[resetting.name]["shed"]
    assert accounts[resetting.name]["delivered_bytes"] < report["bytes"]["captured"]


def test_upstream_without_a_route_is_unreachable(host, production, shadow):
    with GopherProcess(*CAPTURE, "-u", "192.0.2.1:80", "-u", shadow.name, namespace=host) as gopher:
        with host.connect(PRODUCTION) as client:
            exchange(client, get(1))
        assert_mirrored(production, shadow)
    assert gopher.report["upstreams"][0]["shed"] == {"unreachable": len(get(1))}
    assert_all_delivered(gopher.report, shadow.name)


def test_upstream_that_does_not_answer_the_dial_times_out(network):
    network.shadow.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "3281", "-j", "DROP")
    with (
        RecordingSink(("10.77.1.2", 80), namespace=network.production) as production,
        RecordingSink(("10.77.2.2", 3280), namespace=network.shadow) as shadow,
        GopherProcess(
            *(
                "-c",
                "-p",
                "80",
                "-i",
                "net0",
                "--connect-timeout",
                "0.3",
                "-u",
                "10.77.2.2:3281",
                "-u",
                "10.77.2.2:3280",
            ),
            namespace=network.production,
        ) as gopher,
        network.client.connect(("10.77.1.2", 80)) as client,
    ):
        exchange(client, get(1))
        shadow.wait_requests(1)
        client.close()
        assert_mirrored(production, shadow)
    assert gopher.report["upstreams"][0]["shed"] == {"connect_timeout": len(get(1))}
    assert_all_delivered(gopher.report, "10.77.2.2:3280")


def test_dial_that_was_answered_while_gopher_was_stopped_has_not_timed_out(network):
    """On a machine that stood still for longer than --connect-timeout."""
    network.shadow.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "3280", "-j", "DROP")
    with (
        RecordingSink(("10.77.1.2", 80), namespace=network.production) as production,
        RecordingSink(("10.77.2.2", 3280), namespace=network.shadow) as shadow,
        GopherProcess(
            *("-c", "-p", "80", "-i", "net0", "--connect-timeout", "3", "-u", "10.77.2.2:3280"),
            namespace=network.production,
        ) as gopher,
    ):

        def dials(state):
            return network.production.run("ss", "--no-header", "--tcp", "state", state, "dst", "10.77.2.2:3280")

        with network.client.connect(("10.77.1.2", 80)) as client:
            exchange(client, get(1))
        while not dials("syn-sent"):
            assert not gopher.ended
        began_s = time.monotonic()
        gopher.signal(signal.SIGSTOP)
        # The kernel sends it again after a second.
        network.shadow.run("iptables", "-F", "INPUT")
        while time.monotonic() < began_s + 3 or not dials("established"):
            time.sleep(0.05)
        gopher.signal(signal.SIGCONT)
        assert_mirrored(production, shadow)
    assert_all_delivered(gopher.report)


def test_connections_beyond_the_limit_are_shed_whole(host, production, shadow):
    with (
        GopherProcess(*CAPTURE, "--max-connections", "2", "-u", shadow.name, namespace=host) as gopher,
        ExitStack() as clients,
    ):
        for number in range(4):
            exchange(clients.enter_context(host.connect(PRODUCTION)), get(number))
        shadow.wait_requests(2)
        clients.close()
        shadow.wait_ended(2)
        with host.connect(PRODUCTION) as client:
            exchange(client, get(4))
        shadow.wait_ended(3)
        assert shadow.streams == [get(0), get(1), get(4)]
    account = only_upstream(gopher.report)
    assert account["shed"] == {"max_connections": len(get(2) + get(3))}
    assert account["connections"]["shed_by_reason"] == {"max_connections": 2}


def test_requests_after_the_upstream_closed_come_on_new_connections(host, production):
    """But for those that were already on their way when it closed."""
    with (
        RecordingSink(("127.0.0.3", 3280), "closing", namespace=host) as closing,
        GopherProcess(*CAPTURE, "-u", closing.name, "--metrics", "127.0.0.1:9464", namespace=host) as gopher,
        host.connect(PRODUCTION) as client,
    ):

        def shed():
            return only_upstream(json.loads(curl("http://127.0.0.1:9464/report.json", namespace=host)))["shed_bytes"]

        deadline = time.monotonic() + 15
        sent = 0
        while closing.requests < 3:
            assert time.monotonic() < deadline, "no further connection"
            exchange(client, get(1))
            sent += 1
            # Each one has arrived, or was lost on its way, before the next one is sent.
            while closing.requests + shed() // len(get(1)) < sent:
                assert time.monotonic() < deadline, "a request that did not arrive and is not shed"
        assert closing.streams == [get(1)] * 3
    account = only_upstream(gopher.report)
    assert account["connections"]["captured"] == 1
    assert account["dials"] == 3
    assert set(account["shed"]) <= {"closed", "reset"}


def test_rest_of_a_request_that_the_upstream_reset_is_shed(host, production, shadow):
    with (
        RecordingSink(("127.0.0.3", 3280), "resetting", namespace=host) as resetting,
        GopherProcess(*CAPTURE, "-u", resetting.name, "-u", shadow.name, namespace=host) as gopher,
        host.connect(PRODUCTION) as client,
    ):
        request = post(1, noise(5000))
        client.sendall(request[:-3000])
        resetting.wait_received(len(request) - 3000)
        # Gopher has seen the reset when it has come to the next connection.
        with host.connect(PRODUCTION) as other:
            exchange(other, get(2))
            resetting.wait(lambda: len(resetting.connections) == 2, "the other connection")
        exchange(client, request[-3000:])
        exchange(client, get(3))
        resetting.wait_received(len(request) - 3000 + len(get(2) + get(3)))
        shadow.wait_requests(3)
        assert [bytes(each.received) for each in resetting.connections] == [request[:-3000], get(2), get(3)]
    assert gopher.report["upstreams"][0]["shed"] == {"reset": 3000}
    assert_all_delivered(gopher.report, shadow.name)


def test_restarted_upstream_is_taken_up_again(host, production, shadow):
    with (
        RecordingSink(("127.0.0.3", 3280), namespace=host) as first_life,
        GopherProcess(*CAPTURE, "-u", first_life.name, "-u", shadow.name, namespace=host) as gopher,
        host.connect(PRODUCTION) as keep_alive,
    ):
        exchange(keep_alive, get(1))
        first_life.wait_requests(1)
        first_life.close()
        for number in range(20):
            with host.connect(PRODUCTION) as client:
                exchange(client, get(number))
        exchange(keep_alive, get(2))
        shadow.wait_requests(22)
        with RecordingSink(("127.0.0.3", 3280), namespace=host) as second_life:
            deadline = time.monotonic() + 15
            while not second_life.connections:
                assert time.monotonic() < deadline, "the upstream is back and not taken up again"
                with host.connect(PRODUCTION) as client:
                    exchange(client, get(3))
                time.sleep(0.05)
            with host.connect(PRODUCTION) as client:
                exchange(client, post(4, noise(100_000)))
            keep_alive.close()
            assert_mirrored(production, shadow)
            second_life.wait(lambda: post(4, noise(100_000)) in second_life.streams, "the last request")
        report = gopher.stop()
    assert_all_delivered(report, shadow.name)
    assert report["upstreams"][0]["shed"]["refused"] > 0
    assert report["upstreams"][0]["delivered_bytes"] >= len(get(1) + post(4, noise(100_000)))


def test_client_that_has_gone_is_lingered_for(host, production):
    with (
        RecordingSink(SHADOW, hold=True, namespace=host) as slow,
        GopherProcess(*CAPTURE, "-u", slow.name, namespace=host),
    ):
        with host.connect(PRODUCTION) as client:
            exchange(client, get(1))
        # Captured in order: when the second client has come through, gopher knows that the first has gone.
        with host.connect(PRODUCTION) as client:
            exchange(client, get(2))
            slow.wait_requests(2)
            assert [each.ended for each in slow.connections] == ["", ""]
        slow.release()
        assert_mirrored(production, slow)
        assert [each.ended for each in slow.connections] == ["fin", "fin"]


def test_long_keep_alive_connection_ends_when_all_is_answered(host, production, shadow):
    with GopherProcess(*CAPTURE, "--linger", "60", "-u", shadow.name, namespace=host):
        with host.connect(PRODUCTION) as client:
            for number in range(300):
                exchange(client, get(number))
        assert_mirrored(production, shadow)


def test_linger_ends(host, production):
    with (
        RecordingSink(SHADOW, "mute", namespace=host) as mute,
        GopherProcess(*CAPTURE, "--linger", "0.3", "-u", mute.name, namespace=host) as gopher,
    ):
        with host.connect(PRODUCTION) as client:
            exchange(client, get(1))
        assert_mirrored(production, mute)
    assert_all_delivered(gopher.report)


def test_reset_of_the_client_resets_the_upstream_connection(host, production, shadow):
    with GopherProcess(*CAPTURE, "-u", shadow.name, namespace=host) as gopher:
        client = host.connect(PRODUCTION)
        exchange(client, get(1))
        shadow.wait_requests(1)
        reset(client)
        assert_mirrored(production, shadow)
        assert [each.ended for each in shadow.connections] == ["rst"]
    assert_all_delivered(gopher.report)


def test_gap_resets_the_upstream_connection_and_the_next_request_comes_on_a_new_one(host, production, shadow):
    body = noise(9000)
    head = post(2, body)[: -len(body)]
    with (
        # The capture misses packets of this size; production does not.
        GopherProcess(*CAPTURE, "--filter", "ip[2:2] <= 4000", "-u", shadow.name, namespace=host) as gopher,
        host.connect(PRODUCTION) as client,
    ):
        exchange(client, get(1))
        client.sendall(head)
        shadow.wait_received(len(get(1) + head))
        client.sendall(body[:8000])
        production.wait_received(len(get(1) + head) + 8000)
        exchange(client, body[8000:])
        exchange(client, get(3))
        shadow.wait_requests(2)
        exchange(client, get(4))
        client.close()
        shadow.wait_ended(2)
        assert [(bytes(each.received), each.ended) for each in shadow.connections] == [
            (get(1) + head, "rst"),
            (get(3) + get(4), "fin"),
        ]
    assert gopher.report["gaps"] == {"count": 1, "bytes": 8000}
    account = only_upstream(gopher.report)
    assert set(account["shed"]) == {"gap"}
    assert account["shed"]["gap"] >= 1000
    assert account["connections"]["shed_by_reason"] == {"gap": 1}
    assert account["dials"] == 2


# On the wire, so that a packet can be missing that production's kernel would have sent again. The hole is found only
# after what was before it has arrived: a reset takes along what the upstream has not read.
ON_THE_WIRE = {"client": ("10.77.1.1", 40000), "server": ("10.77.1.2", 80), "wrap": broadcast}
WIRE_CAPTURE = ("-c", "-p", "80", "-i", "net0", "--gap-timeout", "0.2", "-u", "10.77.2.2:3280")


@pytest.fixture
def far_shadow(network):
    with RecordingSink(("10.77.2.2", 3280), namespace=network.shadow) as sink:
        yield sink


@pytest.mark.parametrize("lost_segment", [0, 3, 6], ids=["head", "middle", "end"])
def test_missing_packet_resets_and_rejoins_at_the_next_request(network, far_shadow, lost_segment):
    damaged = post(2, noise(10_000))
    talk = Conversation(**ON_THE_WIRE).handshake().data(get(1))
    first = len(talk.packets)
    for at in range(0, len(damaged), 1448):
        talk.data(damaged[at : at + 1448])
    assert len(talk.packets) == first + 7
    frames = [frame for _, frame in talk.data(get(3)).data(get(4)).close().packets]
    arrives = get(1) + damaged[: lost_segment * 1448]
    with GopherProcess(*WIRE_CAPTURE, namespace=network.production) as gopher:
        inject(network.client, "net0", frames[: first + lost_segment])
        far_shadow.wait_received(len(arrives))
        inject(network.client, "net0", frames[first + lost_segment + 1 :])
        far_shadow.wait_ended(2)
    assert [(bytes(each.received), each.ended) for each in far_shadow.connections] == [
        (arrives, "rst"),
        (get(3) + get(4), "fin"),
    ]
    assert gopher.report["gaps"]["count"] == 1
    assert set(only_upstream(gopher.report)["shed"]) <= {"gap"}


def test_gap_in_a_protocol_without_requests_ends_its_mirroring(network, far_shadow):
    hello = b"\x16\x03\x01 first "
    talk = Conversation(**ON_THE_WIRE).handshake().data(hello)
    before = [frame for _, frame in talk.packets]
    talk.data(b"lost").data(b"GET / is no request here").data(get(1)).close()
    after = [frame for _, frame in talk.packets[len(before) + 1 :]]
    with GopherProcess(*WIRE_CAPTURE, namespace=network.production) as gopher:
        inject(network.client, "net0", before)
        far_shadow.wait_received(len(hello))
        inject(network.client, "net0", after)
        far_shadow.wait_ended(1)
    assert [(bytes(each.received), each.ended) for each in far_shadow.connections] == [(hello, "rst")]
    assert set(only_upstream(gopher.report)["shed"]) == {"gap"}


def test_memory_of_one_upstream_is_bounded_over_many_connections(host, production):
    host.shrink_buffers()
    with (
        RecordingSink(SHADOW, "silent", namespace=host) as silent,
        GopherProcess(*CAPTURE, *("-u", silent.name, "--upstream-memory=4M", "--drain=0.2"), namespace=host) as gopher,
        ExitStack() as clients,
    ):
        for number in range(20):
            exchange(clients.enter_context(host.connect(PRODUCTION)), post(number, noise(800_000)))
        # Captured in order: when this one has come through, gopher has read all of the others.
        with host.connect(PRODUCTION) as last:
            exchange(last, get(1))
            silent.wait(lambda: len(silent.connections) == 21, "the last connection")
        assert gopher.peak_memory_mib() < BASE_MEMORY_MIB + 4
    shed = only_upstream(gopher.report)["shed"]
    assert shed["upstream_memory"] > 20 * 800_000 - 8_000_000
    assert set(shed) == {"upstream_memory", "drain"}


@pytest.mark.parametrize("before_the_tap", [True, False])
def test_packets_lost_on_the_wire_are_retransmitted_and_mirrored_once(network, before_the_tap):
    """Lost before production's tap: the hole fills late. Lost after it: the tap sees the bytes twice."""
    client_host, router, production_host = network.client, network.production, network.shadow
    router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    client_host.run("ip", "route", "add", "10.77.2.0/24", "via", "10.77.1.2")
    production_host.run("ip", "route", "add", "10.77.1.0/24", "via", "10.77.2.1")
    # One segment a packet, so that single segments get lost.
    client_host.run("ip", "link", "set", "net0", "gso_max_segs", "1")
    loser, chain = (router, "FORWARD") if before_the_tap else (production_host, "INPUT")
    rule = ["-p", "tcp", "--dport", "80", "-m", "statistic", "--mode", "nth", "--every", "9", "--packet", "4"]
    loser.run("iptables", "-A", chain, *rule, "-j", "DROP")
    with (
        RecordingSink(("10.77.2.2", 80), namespace=production_host) as production,
        RecordingSink(("127.0.0.1", 3280), namespace=production_host) as shadow,
        GopherProcess("-c", "-p", "80", "-i", "net0", "-u", shadow.name, namespace=production_host) as gopher,
        ExitStack() as clients,
    ):
        opened = [clients.enter_context(client_host.connect(("10.77.2.2", 80))) for _ in range(8)]
        for number, client in enumerate(opened):
            client.sendall(post(number, noise(100_000, number)))
        production.wait_requests(8)
        for client in opened:
            receive_exactly(client, len(ANSWER))
            client.close()
        assert_mirrored(production, shadow)
    [dropped] = [int(line.split()[0]) for line in loser.run("iptables", "-nvxL", chain).splitlines() if "DROP" in line]
    assert dropped > 20
    packets = gopher.report["packets"]
    assert packets["out_of_order" if before_the_tap else "retransmitted_bytes"] > 0
    assert gopher.report["gaps"]["count"] == 0
    assert_all_delivered(gopher.report)
