"""Loading scripts, and calling their functions in order and in time."""

import threading

import pytest
import trio
import trio.testing

from gopher.errors import ConfigError
from gopher.http.messages import parse_request_head
from gopher.relay.exchange import Body, Connection, Exchange, Request, Timing
from gopher.relay.hooks import THREADS, Lane, Scripts, Slot, load_scripts

HEAD = b"GET /a HTTP/1.1\r\nHost: shop\r\n\r\n"
LONG_S = 60
# For tests that set the clock by hand.
LIMIT_S = 5


def write(tmp_path, text, name="script.py"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def load(tmp_path, *texts):
    return load_scripts([write(tmp_path, text, f"script{number}.py") for number, text in enumerate(texts)])


def a_connection():
    return Connection(1, ("192.0.2.1", 1000), ("192.0.2.2", 80), 5.0, framed=False)


def a_slot(body=None):
    return Slot(Exchange(1, a_connection(), Timing(6.0), Request(parse_request_head(HEAD), body or Body(None, b""))))


class Stage:
    """Scripts that run, and what they tell."""

    def __init__(self, scripts, timeout_s=LONG_S):
        self.told = []
        self.scripts = Scripts(scripts, timeout_s, self.told.append, lambda call: call())

    async def play(self, *calls, meanwhile=trio.lowlevel.checkpoint):
        """Make these calls, of one connection each; returns when all have returned, and `meanwhile` before them."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.scripts.run)
            for name, target in calls:
                Lane(self.scripts).call(name, target)
            with trio.fail_after(30):
                await meanwhile()
                await self.scripts.wait_idle()
            nursery.cancel_scope.cancel()

    @property
    def counts(self):
        return [{k: v for k, v in each.items() if v and k != "name"} for each in self.scripts.statistics()]


def play(scripts, *calls, timeout_s=LONG_S):
    stage = Stage(scripts, timeout_s)
    trio.run(stage.play, *calls)
    return stage


def time_is_over(clock, entered):
    """For `Stage.play`: once `entered`, an event of threads, is set, however long that takes."""

    async def meanwhile():
        assert await trio.to_thread.run_sync(entered.wait, 30)
        clock.jump(2 * LIMIT_S)

    return meanwhile


# -- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "{path}: it defines none of the functions connected, request"),
        ("def request(exchange):\n    if\n", "{path}:2: invalid syntax"),
        ("import sys\n\nsys.exit(3)\n", "{path}:3: SystemExit: 3"),
        ("x = 1\nimport no_such_module\n", "{path}:2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f():\n    return 1 / 0\n\nf()\n", "{path}:2: ZeroDivisionError: division by zero"),
        ("request = 5\n", "{path}: request is no function"),
        ("\ndef request():\n    pass\n", "{path}:2: request() must take one argument, not ()"),
        ("def request(exchange):\n    yield\n", "{path}:1: request() is a generator"),
        ("async def request(exchange):\n    yield\n", "{path}:1: request() is a generator"),
    ],
)
def test_what_is_no_script_is_refused(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_scripts([path])
    assert str(caught.value).startswith("--script " + message.format(path=path))
    assert "\n" not in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read it: No such file"):
        load_scripts([str(tmp_path / "none.py")])


def test_script_imports_its_neighbour_and_defines_dataclasses(tmp_path):
    write(tmp_path, "VALUE = 7\n", "neighbour_of_script.py")
    [script] = load(
        tmp_path,
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "import neighbour_of_script\n"
        "@dataclasses.dataclass\n"
        "class Seen:\n"
        "    value: int = neighbour_of_script.VALUE\n"
        "def connected(connection):\n"
        "    connection.metadata['seen'] = Seen().value\n",
    )
    connection = a_connection()
    play([script], ("connected", connection))
    assert connection.metadata == {"seen": 7}


# -- calling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("define", ["def", "async def"])
def test_scripts_see_what_those_before_them_did(tmp_path, define):
    texts = [
        f"{define} request(exchange):\n"
        f"    exchange.request.target += '/{number}'\n"
        f"    exchange.metadata[{number}] = 1\n"
        for number in range(3)
    ]
    slot = a_slot()
    stage = play(load(tmp_path, *texts), ("request", slot))
    assert slot.exchange.request.target == "/a/0/1/2"
    assert slot.exchange.metadata == {0: 1, 1: 1, 2: 1}
    assert stage.counts == [{"calls": 1}] * 3
    assert stage.told == []


@pytest.mark.parametrize("define", ["def", "async def"])
def test_function_that_raises_has_not_happened(tmp_path, define):
    good = f"{define} request(exchange):\n    exchange.request.target += '/good'\n"
    bad = (
        f"{define} request(exchange):\n"
        "    exchange.request.target = '/bad'\n"
        "    exchange.metadata['bad'] = 1\n"
        "    exchange.drop()\n"
        "    helper(exchange)\n"
        "def helper(exchange):\n"
        "    raise ValueError('no\\nuse')\n"
    )
    scripts = load(tmp_path, good, bad, good)
    slot = a_slot()
    stage = play(scripts, ("request", slot))
    assert slot.exchange.request.to_bytes() == HEAD.replace(b"/a", b"/a/good/good")
    assert (slot.exchange.metadata, slot.exchange.dropped) == ({}, False)
    assert stage.counts == [{"calls": 1}, {"calls": 1, "failures": 1}, {"calls": 1}]
    assert stage.told == [
        f"script {scripts[1].path}:7: request() failed: ValueError: no use; the exchange goes on without it (told once)"
    ]


@pytest.mark.parametrize("define", ["def", "async def"])
@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("asyncio.CancelledError", "CancelledError"),
        ("GeneratorExit", "GeneratorExit"),
        ("KeyboardInterrupt", "KeyboardInterrupt"),
        ("Mute", "Mute"),
    ],
)
def test_whatever_a_function_raises_is_its_failure(tmp_path, define, raised, told):
    text = (
        "import asyncio\n"
        "class Mute(Exception):\n"
        "    def __str__(self):\n"
        "        raise self\n"
        f"{define} request(exchange):\n"
        f"    raise {raised}\n"
    )
    [script] = load(tmp_path, text)
    stage = play([script], ("request", a_slot()))
    assert stage.counts == [{"calls": 1, "failures": 1}]
    [line] = stage.told
    assert line.startswith(f"script {script.path}:6: request() failed: {told}; ")


def test_failure_is_told_once_and_counted_each_time(tmp_path):
    [script] = load(
        tmp_path,
        "def request(exchange):\n"
        "    if exchange.request.target == '/a':\n"
        "        raise ValueError(exchange.id)\n"
        "    raise SystemExit\n",
    )
    other = a_slot()
    other.exchange.request.target = "/b"
    stage = play([script], *[("request", a_slot())] * 5, ("request", other))
    assert stage.counts == [{"calls": 6, "failures": 6}]
    # Connections do not wait for one another: the order is not known.
    assert sorted(line.partition(" failed")[0] for line in stage.told) == [
        f"script {script.path}:3: request()",
        f"script {script.path}:4: request()",
    ]


@pytest.mark.parametrize("edit", ["del {}['Host']", "{}.add('Host', 'b')", "{}['Host'] = 'a,b'"])
def test_request_that_the_relay_itself_would_refuse_is_not_sent(tmp_path, edit):
    [script] = load(tmp_path, "def request(exchange):\n    " + edit.format("exchange.request.headers") + "\n")
    slot = a_slot()
    stage = play([script], ("request", slot))
    assert slot.exchange.request.to_bytes() == HEAD
    assert stage.counts == [{"calls": 1, "failures": 1}]
    assert "LocalProtocolError: what it has made of the request is refused: " in stage.told[0]


def test_dropped_exchange_is_not_shown_to_the_next_script(tmp_path):
    slot = a_slot()
    drop = "def request(exchange):\n    exchange.drop()\n"
    stage = play(load(tmp_path, drop, drop), ("request", slot))
    assert slot.exchange.dropped
    assert stage.counts == [{"calls": 1, "dropped": 1}, {}]


def test_async_function_is_cancelled_when_its_time_is_over(tmp_path):
    [script] = load(
        tmp_path,
        "import trio\n"
        "async def request(exchange):\n"
        "    exchange.request.target = '/late'\n"
        "    await trio.sleep_forever()\n",
    )
    slot = a_slot()
    stage = play([script], ("request", slot), timeout_s=0.01)
    assert slot.exchange.request.target == "/a"
    assert stage.counts == [{"calls": 1, "timed_out": 1}]
    assert stage.told == [
        f"script {script.path}:4: request() took more than 0.01 s; the exchange goes on without it (told once)"
    ]


def test_async_function_that_returned_too_late_has_not_happened(tmp_path):
    [script] = load(
        tmp_path,
        "import time\nasync def request(exchange):\n    exchange.request.target = '/late'\n    time.sleep(0.02)\n",
    )
    slot = a_slot()
    stage = play([script], ("request", slot), timeout_s=0.01)
    assert slot.exchange.request.target == "/a"
    assert stage.counts == [{"calls": 1, "timed_out": 1}]


def test_plain_function_is_left_alone_when_its_time_is_over(tmp_path):
    [script] = load(
        tmp_path,
        "import threading\n"
        "entered, go_on, over = threading.Event(), threading.Event(), threading.Event()\n"
        "problems = []\n"
        "def request(exchange):\n"
        "    exchange.request.target = '/late'\n"
        "    entered.set() or go_on.wait()\n"
        "    try:\n"
        "        exchange.request.target = '/later'\n"
        "    except Exception as problem:\n"
        "        problems.append(problem)\n"
        "    over.set()\n"
        "def connected(connection):\n"
        "    pass\n",
    )
    state = script.functions["request"].call.__globals__
    slot = a_slot()
    stage, clock = Stage([script], LIMIT_S), trio.testing.MockClock()

    async def main():
        await stage.play(("request", slot), meanwhile=time_is_over(clock, state["entered"]))

    trio.run(main, clock=clock)
    assert slot.exchange.request.target == "/a"
    assert stage.counts == [{"calls": 1, "timed_out": 1}]
    # Where it was, in or below `wait`.
    assert stage.told == [
        f"script {script.path}:6: request() took more than 5 s; the exchange goes on without it (told once)"
    ]
    state["go_on"].set()
    assert state["over"].wait(30)
    assert "its time is over" in str(state["problems"][0])
    assert slot.exchange.request.target == "/a"


def test_blocked_plain_functions_hold_up_no_other_connection(tmp_path):
    """One that blocks waits here for one of another connection."""
    [script] = load(
        tmp_path,
        "import threading\n"
        "other = threading.Event()\n"
        "def request(exchange):\n"
        "    assert other.wait(30)\n"
        "def connected(connection):\n"
        "    other.set()\n",
    )
    stage = play([script], ("request", a_slot()), ("connected", a_connection()))
    assert stage.counts == [{"calls": 2}]


def test_when_all_threads_are_lost_plain_functions_are_not_called(tmp_path):
    [script] = load(
        tmp_path,
        "import threading\n"
        "all_entered, go_on = threading.Event(), threading.Event()\n"
        "entered = []\n"
        "def request(exchange):\n"
        "    entered.append(1)\n"
        f"    if len(entered) == {THREADS}:\n"
        "        all_entered.set()\n"
        "    go_on.wait()\n"
        "def connected(connection):\n"
        "    entered.append(2)\n",
    )
    state = script.functions["request"].call.__globals__
    clock = trio.testing.MockClock()

    async def when_it_waits():
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(2 * LIMIT_S)

    async def main():
        stage = Stage([script], LIMIT_S)
        await stage.play(*[("request", a_slot())] * THREADS, meanwhile=time_is_over(clock, state["all_entered"]))
        assert stage.counts == [{"calls": THREADS, "timed_out": THREADS}]
        await stage.play(("connected", a_connection()), meanwhile=when_it_waits)
        assert state["entered"] == [1] * THREADS
        assert stage.counts == [{"calls": THREADS + 1, "timed_out": THREADS + 1}]
        state["go_on"].set()
        with trio.fail_after(30):
            while 2 not in state["entered"]:
                await stage.play(("connected", a_connection()))

    trio.run(main, clock=clock)


def test_function_that_forgot_async_is_told(tmp_path):
    [script] = load(
        tmp_path, "async def inner(exchange):\n    pass\ndef request(exchange):\n    return inner(exchange)\n"
    )
    stage = play([script], ("request", a_slot()))
    assert stage.counts == [{"calls": 1, "failures": 1}]
    assert "returned a coroutine: write `async def`" in stage.told[0]


def test_calls_of_one_connection_come_one_after_the_other(tmp_path):
    [script] = load(
        tmp_path,
        "import trio\n"
        "async def connected(connection):\n"
        "    await trio.sleep(0.01)\n"
        "    connection.metadata['seen'] = ['connected']\n"
        "async def request(exchange):\n"
        "    await trio.sleep(0)\n"
        "    exchange.connection.metadata['seen'].append(exchange.id)\n"
        "def closed(connection):\n"
        "    connection.metadata['seen'].append('closed')\n",
    )
    slot, then = a_slot(), []
    connection = slot.exchange.connection

    async def main():
        stage = Stage([script])
        lane = Lane(stage.scripts)
        lane.call("connected", connection, lambda: lane.call("closed", connection, lambda: then.append("all")))
        lane.call("request", slot, lambda: then.append("request"))
        await stage.play()
        assert stage.counts == [{"calls": 3}]

    trio.run(main)
    assert connection.metadata["seen"] == ["connected", 1, "closed"]
    assert then == ["request", "all"]


# -- bodies -----------------------------------------------------------------------------------------------------------

READ = {
    "plain": "def request(exchange):\n    exchange.request.body = exchange.request.body.upper()\n",
    "async": "async def request(exchange):\n"
    "    exchange.request.body = (await exchange.request.read()).upper()\n"
    "    assert exchange.request.body == await exchange.request.read()\n",
}


async def with_body(script, body_is, timeout_s=LONG_S):
    """One request whose body comes when it is asked for, by `body_is`."""
    stage = Stage([script], timeout_s)
    wanted = trio.Event()
    slot = a_slot(Body(wanted.set))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.scripts.run)
        Lane(stage.scripts).call("request", slot)
        with trio.fail_after(30):
            await wanted.wait()
            await body_is(slot.exchange.request.source)
            await stage.scripts.wait_idle()
        nursery.cancel_scope.cancel()
    return stage, slot.exchange.request


@pytest.mark.parametrize("kind", READ)
def test_body_is_read_on_demand_and_not_on_the_functions_time(tmp_path, kind):
    async def comes(body):
        clock.jump(2 * LIMIT_S)
        await trio.lowlevel.checkpoint()
        body.add(b"hel")
        body.add(b"lo")
        body.end()

    [script] = load(tmp_path, READ[kind])
    clock = trio.testing.MockClock()
    stage, request = trio.run(with_body, script, comes, LIMIT_S, clock=clock)
    assert stage.told == []
    assert request.to_bytes() == HEAD[:-2] + b"Content-Length: 5\r\n\r\nHELLO"


@pytest.mark.parametrize("kind", READ)
def test_too_long_a_body_is_a_failure_that_says_so(tmp_path, kind):
    async def comes(body):
        body.add(bytes(2 << 20))

    [script] = load(tmp_path, READ[kind])
    stage, request = trio.run(with_body, script, comes)
    assert stage.counts == [{"calls": 1, "failures": 1}]
    assert f"{script.path}:2: request() failed: BodyError: the body is longer than the 1,048,576 bytes" in stage.told[0]
    assert request.to_bytes() == HEAD


@pytest.mark.parametrize("kind", READ)
def test_connection_that_ends_within_the_body_is_no_failure(tmp_path, kind):
    async def comes(body):
        body.add(b"hel")
        body.cut()

    [script] = load(tmp_path, READ[kind])
    stage, request = trio.run(with_body, script, comes)
    assert stage.counts == [{"calls": 1}]
    assert stage.told == []
    assert request.to_bytes() == HEAD


@pytest.mark.parametrize("kind", READ)
def test_fault_of_the_relay_is_not_taken_for_one_of_the_script(tmp_path, kind):
    def fault():
        raise ZeroDivisionError

    [script] = load(tmp_path, READ[kind])
    # In groups, whose type depends on the version of Python.
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        play([script], ("request", a_slot(Body(fault))))
    error = caught.value
    while hasattr(error, "exceptions"):
        [error] = error.exceptions
    assert isinstance(error, ZeroDivisionError)


def test_async_function_must_await_the_body(tmp_path):
    [script] = load(tmp_path, "async def request(exchange):\n    exchange.request.body\n")
    stage = play([script], ("request", a_slot(Body(lambda: None))))
    assert stage.counts == [{"calls": 1, "failures": 1}]
    assert "has to await read() before" in stage.told[0]


def test_late_reader_in_a_lost_thread_gets_an_error_and_no_body(tmp_path):
    [script] = load(
        tmp_path,
        "import threading\n"
        "go_on, over = threading.Event(), threading.Event()\n"
        "problems = []\n"
        "def request(exchange):\n"
        "    go_on.wait()\n"
        "    try:\n"
        "        exchange.request.body\n"
        "    except Exception as problem:\n"
        "        problems.append(problem)\n"
        "    over.set()\n",
    )
    state = script.functions["request"].call.__globals__
    body = Body(lambda: None)
    play([script], ("request", a_slot(body)), timeout_s=0.05)
    state["go_on"].set()
    assert state["over"].wait(30)
    assert "passed by" in str(state["problems"][0])
    assert not body.wanted


@pytest.fixture(autouse=True)
def _no_threads_left(monkeypatch):
    """Neither events that threads wait for, nor the threads themselves, outlive a test for long."""
    before = set(threading.enumerate())
    yield
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)
