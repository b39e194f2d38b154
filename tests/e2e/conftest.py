"""The stages of the end-to-end tests: hosts in network namespaces of their own, made anew for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.support import netns
from tests.support.needs import need, need_namespaces
from tests.support.servers import PRODUCTION, SHADOW, RecordingSink

MACHINES = {"machineB": "10.77.2.2", "machineC": "10.77.2.3", "machineD": "10.77.2.4"}
PROGRAMS = ("curl", "ip", "iptables", "nginx", "prlimit", "setpriv", "tcpdump")


@pytest.fixture(scope="session")
def _stage_possible() -> None:
    need(*PROGRAMS)
    need_namespaces()


@pytest.fixture
def host(_stage_possible: None) -> Iterator[netns.Namespace]:
    """One host with nothing but a loopback."""
    with netns.Namespace("host") as namespace:
        yield namespace


@pytest.fixture
def production(host: netns.Namespace) -> Iterator[RecordingSink]:
    """The server whose clients are mirrored."""
    with RecordingSink(PRODUCTION, namespace=host) as sink:
        yield sink


@pytest.fixture
def shadow(host: netns.Namespace) -> Iterator[RecordingSink]:
    """A server for the copies."""
    with RecordingSink(SHADOW, namespace=host) as sink:
        yield sink


@dataclass(frozen=True)
class Network:
    """client 10.77.1.1 -- net0, 10.77.1.2 production 10.77.2.1, net1 -- 10.77.2.2 shadow (and .3, .4); IPv6 alike."""

    client: netns.Namespace
    production: netns.Namespace
    shadow: netns.Namespace


@pytest.fixture
def network(_stage_possible: None) -> Iterator[Network]:
    """Three hosts: the client and the shadows reach production and not each other."""
    with ExitStack() as stack:
        client = stack.enter_context(netns.Namespace("client"))
        production = stack.enter_context(netns.Namespace("production", hosts=MACHINES))
        shadow = stack.enter_context(netns.Namespace("shadow"))
        netns.join(client, "net0", production, "net0", subnet=1)
        netns.join(production, "net1", shadow, "net0", subnet=2)
        for address in (MACHINES["machineC"], MACHINES["machineD"]):
            shadow.run("ip", "address", "add", f"{address}/24", "dev", "net0")
        yield Network(client, production, shadow)
