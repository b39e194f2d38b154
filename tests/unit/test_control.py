"""What a reload takes on, and which upstreams it leaves as they are."""

import dataclasses
import json
import socket

import pytest
import trio

import gopher.capture.run
import gopher.relay.server
from gopher._pump import Budget
from gopher.cli import parse
from gopher.config import CaptureConfig, MirrorConfig, RelayConfig, SourceConfig, TlsConfig, UpstreamConfig
from gopher.control import Control, reloaded
from gopher.errors import ConfigError
from gopher.observe.log import Log
from gopher.pump import PumpTask
from gopher.upstreams import roster
from gopher.upstreams.roster import Roster
from gopher.upstreams.tcp import Address, TcpUpstream


def capture(options=""):
    return parse(["-c", "-p", "80", "-u", "a:1", *options.split()])


def fields(*configs):
    return {each.name for config in configs for each in dataclasses.fields(config)}


def test_what_reloads_is_taken_and_the_rest_is_named():
    old, wanted = capture(), capture("-u b:2 --drain 1 --sample 10% -p 81 --report r --decap")
    config, restart = reloaded(old, wanted, gopher.capture.run.RELOADED)
    assert config == capture("-u b:2 --drain 1 --sample 10%")
    assert restart == ["ports", "decap", "report_path"]


def test_other_mode_changes_nothing():
    old = capture()
    assert reloaded(old, parse(["-r", "-p", "1", "-u", "b"]), gopher.capture.run.RELOADED) == (old, ["mode"])


def test_reload_in_vain_is_an_error_in_the_log(capsys):
    def reread():
        raise ConfigError("gopher.toml:1: this is no TOML", hint="look")

    async def reload():
        control = Control(reread)
        control.log = Log("json", quiet=True)
        async with trio.open_nursery() as nursery:
            control.reload_soon(nursery, None)

    trio.run(reload)
    said = json.loads(capsys.readouterr().err)
    assert (said["level"], said["event"]) == ("error", "reload")
    assert said["message"] == "not reloaded, nothing has changed: gopher.toml:1: this is no TOML\n  hint: look"


def test_names_of_what_reloads_are_fields():
    assert fields(CaptureConfig, SourceConfig, MirrorConfig) >= gopher.capture.run.RELOADED
    assert fields(RelayConfig, TlsConfig) >= gopher.relay.server.RELOADED


@pytest.fixture
def make():
    limits, total, pump = MirrorConfig(upstreams=(config("x"),)), Budget(1), PumpTask(print).pump
    return lambda upstream, addresses: TcpUpstream(upstream, limits, total, addresses, pump)


def config(name):
    return UpstreamConfig(name=name, host="127.0.0.1", port=1)


def addresses(*hosts):
    return [Address(socket.AF_INET, host, 1) for host in hosts]


def change(members, *names, at=1.0, found=("127.0.0.1",)):
    configs = [config(name) for name in names]
    limits = MirrorConfig(upstreams=tuple(configs), linger_s=1)
    done = members.change(configs, [addresses(*found) for _ in names], limits, at)
    return [each.config.name for each in done.added], [each.config.name for each in done.removed]


def test_upstream_that_stays_is_the_same_and_one_that_comes_back_too(make):
    members = Roster([config("a"), config("b")], [addresses("127.0.0.1")] * 2, make)
    a, b = members.active
    assert change(members, "c", "b") == (["c"], ["a"])
    c = members.active[0]
    assert members.active == [c, b]
    assert members.known == [a, b, c]
    assert (a.removed_s, b.removed_s, b.added_s, c.added_s) == (1.0, None, 0.0, 1.0)
    assert change(members, "b", "a", at=2.0) == (["a"], ["c"])
    assert members.active == [b, a]
    assert members.known == [a, b, c]
    assert (a.added_s, a.removed_s, c.removed_s) == (2.0, None, 2.0)


def test_same_upstream_twice_is_two(make):
    members = Roster([config("a"), config("a")], [addresses("127.0.0.1")] * 2, make)
    first, second = members.active
    assert first is not second
    assert change(members, "a") == ([], ["a"])
    assert change(members, "a", "a") == (["a"], [])
    assert members.active == [first, second]


def test_new_address_of_a_name_is_dialled_from_then_on(make):
    members = Roster([config("a")], [addresses("127.0.0.1")], make)
    [upstream] = members.active
    change(members, "a", found=("127.0.0.2", "127.0.0.3"))
    assert [address.host for address in upstream.addresses] == ["127.0.0.2", "127.0.0.3"]


def test_too_many_upstreams_change_nothing(make, monkeypatch):
    monkeypatch.setattr(roster, "KNOWN_LIMIT", 2)
    members = Roster([config("a")], [addresses("127.0.0.1")], make)
    change(members, "b")
    active = members.active
    with pytest.raises(ConfigError, match="there were 2 different upstreams since the start"):
        change(members, "c", at=2.0)
    assert members.active is active
    assert [each.config.name for each in members.known] == ["a", "b"]
    assert active[0].removed_s is None
    change(members, "a")
