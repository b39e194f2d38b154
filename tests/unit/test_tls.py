"""Bridges, on real sockets."""

import contextlib
import select
import socket
import threading

import pytest

from gopher.config import RelayConfig, TlsConfig, UpstreamConfig
from gopher.relay.tls import Bridge, Tls, load_context
from gopher.upstreams.tcp import Address
from tests.support.certificates import Authority
from tests.support.relay import DEADLINE_S, free_port


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


class Side:
    """What holds the far end."""

    def __init__(self):
        self.news = []

    def opened(self):
        self.news.append("opened")

    def failed(self, failure):
        self.news.append(failure)

    def broken(self):
        self.news.append("broken")


def upstream(authority, *ports):
    config = RelayConfig(
        ports=(1,),
        upstreams=(UpstreamConfig(name="tls://localhost", scheme="tls", host="localhost", port=443),),
        tls=TlsConfig(ca_path=str(authority.ca)),
    )
    told = []
    addresses = [Address(socket.AF_INET, "127.0.0.1", port) for port in ports]
    return Tls(config, addresses, load_context(config.tls), told.append), told


def start(tls):
    bridge = Bridge(tls)
    bridge.side = Side()
    bridge.start(b"")
    return bridge


def serve_until(tls, condition):
    while not condition():
        assert select.select([tls.pump.epoll_fd], [], [], DEADLINE_S)[0], "nothing happens any more"
        tls.pump.serve()


@contextlib.contextmanager
def server(talk):
    """`talk` gets each connection in turn. Yields the port."""

    def run():
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.settimeout(DEADLINE_S)
                with sock, contextlib.suppress(OSError):
                    talk(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def good(authority):
    context = authority.server("localhost")

    def talk(sock):
        with context.wrap_socket(sock, server_side=True) as secured:
            while data := secured.recv(1000):
                secured.sendall(data)

    return talk


def plain(sock):
    sock.recv(1000)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_addresses_are_tried_in_turn_whatever_the_failure(authority):
    refused = free_port()
    with server(plain) as bad_port, server(good(authority)) as good_port:
        tls, told = upstream(authority, refused, bad_port, good_port)
        bridge = start(tls)
        serve_until(tls, lambda: bridge.side.news)
        assert bridge.side.news == ["opened"]
        # The next connection does not meet the bad ones again.
        assert [address.port for address in tls.addresses] == [good_port, refused, bad_port]
        [line] = told
        assert line.startswith("upstream tls://localhost: TLS: ")
        bridge.abort()
        bridge.far_end.close()
    assert not tls.bridges


def test_failure_of_the_last_address_is_what_counts(authority):
    with server(plain) as bad_port:
        tls, told = upstream(authority, free_port(), bad_port)
        for failure in ("handshake", "refused", "handshake"):
            bridge = start(tls)
            serve_until(tls, lambda bridge=bridge: bridge.side.news)
            bridge.far_end.close()
            assert bridge.side.news == [failure]
    assert not tls.bridges
    assert len(told) == 1


def test_last_bytes_pass_when_the_far_end_closes(authority):
    received = bytearray()
    gate = threading.Event()
    context = authority.server("localhost")

    def slow(sock):
        with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as secured:
            assert gate.wait(DEADLINE_S)
            while data := secured.recv(1 << 16):
                received.extend(data)
            ended.set()

    ended = threading.Event()
    with server(slow) as port:
        tls, _ = upstream(authority, port)
        bridge = start(tls)
        serve_until(tls, lambda: bridge.side.news)
        sent = 0
        # Until nothing takes any more.
        while select.select([tls.pump.epoll_fd], [bridge.far_end], [], 0.2)[:2] != ([], []):
            with contextlib.suppress(BlockingIOError):
                sent += bridge.far_end.send(bytes(65_536))
            tls.pump.serve()
        bridge.far_end.close()
        gate.set()
        serve_until(tls, lambda: not tls.bridges)
        assert ended.wait(DEADLINE_S)
    assert len(received) == sent


def test_last_bytes_that_nobody_takes_are_given_up(authority):
    gate = threading.Event()
    context = authority.server("localhost")

    def deaf(sock):
        with context.wrap_socket(sock, server_side=True):
            gate.wait(DEADLINE_S)

    with server(deaf) as port:
        tls, _ = upstream(authority, port)
        bridge = start(tls)
        serve_until(tls, lambda: bridge.side.news)
        while select.select([tls.pump.epoll_fd], [bridge.far_end], [], 0.2)[:2] != ([], []):
            with contextlib.suppress(BlockingIOError):
                bridge.far_end.send(bytes(65_536))
            tls.pump.serve()
        bridge.far_end.close()
        while tls.pump.serve()[0]:
            pass
        assert tls.bridges
        tls.tick(tls.pump.now_s + 1)
        assert tls.bridges
        tls.tick(tls.pump.now_s + 10)
        assert not tls.bridges
        gate.set()
