"""--log-format json of the real command, and that nothing that passes through gopher gets into what it says."""

import base64
import json
import subprocess
import sys
from contextlib import ExitStack
from urllib.parse import quote

import pytest

from tests.support.clients import curl, exchange, get
from tests.support.command import GopherProcess, run_gopher
from tests.support.pages import ROOT
from tests.support.relay import RelayProcess
from tests.support.servers import PRODUCTION, RecordingSink
from tests.support.terminal import Terminal, gopher_argv

pytestmark = pytest.mark.e2e

SHADOW = ("127.0.0.1", 8080)
CAPTURE = ("-c", "-p", "80", "-i", "lo")


def objects(stderr):
    """Every line is one, with the keys that all have."""
    found = [json.loads(line) for line in stderr.splitlines()]
    assert all({"time", "level", "event", "message"} <= set(each) for each in found)
    return found


def test_capture_says_everything_as_json(host, production):
    with (
        RecordingSink(SHADOW, namespace=host) as shadow,
        GopherProcess(
            *CAPTURE,
            *("--log-format", "json", "--stats-interval=0.1", "--metrics=127.0.0.1:9464", "-u", shadow.name),
            namespace=host,
            ready=False,
        ) as gopher,
    ):
        gopher.wait_stderr(lambda line: '"event": "ready"' in line)
        with host.connect(PRODUCTION) as client:
            exchange(client, get(1))
        shadow.wait_ended(1)
        gopher.wait_stderr(lambda line: '"captured_bytes_per_s": 0.0' not in line and '"event": "status"' in line)
        report = gopher.stop()
    said = objects(gopher.stderr)
    assert [each["event"] for each in said if each["event"] != "status"] == ["metrics", "ready", "report"]
    assert said[-1]["report"]["upstreams"] == report["upstreams"]
    status = next(each for each in said if each["event"] == "status" and each["captured_bytes_per_s"] > 0)
    assert status["upstreams"][0]["name"] == shadow.name
    assert status["upstreams"][0]["failing"] is None


def test_relay_says_everything_as_json(host, production, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("def request(exchange):\n    raise ValueError('told once')\n")
    options = ("--log-format=json", "--script", str(script), "--stats-interval=0.1")
    with RelayProcess("127.0.0.1:80", port=3280, options=options, namespace=host) as gopher:
        with host.connect(("127.0.0.1", 3280)) as client:
            exchange(client, get(1))
        gopher.wait_stderr(lambda line: '"event": "script"' in line)
        gopher.wait_stderr(lambda line: '"event": "status"' in line)
        report = gopher.stop()
    said = objects(gopher.stderr)
    assert {each["event"] for each in said} == {"ready", "script", "status", "report"}
    [failed] = [each for each in said if each["event"] == "script"]
    assert failed["level"] == "error"
    assert "told once" in failed["message"]
    assert said[-1]["report"]["scripts"] == report["scripts"]
    assert report["scripts"][0]["failures"] == 1


@pytest.mark.parametrize("option", [("--log-format", "json"), ("--log-format=json",)])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [((*CAPTURE, "-u", "127.0.0.1:9", "--filtr", "x"), 2), ((*CAPTURE, "-u", "dir:/proc/no"), 1)],
    ids=["usage", "running"],
)
def test_error_is_json_too(host, option, arguments, status):
    done = run_gopher(*option, *arguments, namespace=host)
    [error] = objects(done.stderr)
    assert error["exit_status"] == done.returncode == status
    assert (error["level"], error["event"]) == ("error", "error")
    assert error["hint"]


@pytest.mark.parametrize("where", ["environment", "file", "mirror"])
def test_error_is_json_wherever_that_is_said(tmp_path, where):
    prefix, arguments = (), ("-c", "-p", "80", "-u", "b", "--filtr", "x")
    if where == "environment":
        prefix = ("env", "GOPHER_LOG_FORMAT=json")
    else:
        file = tmp_path / "gopher.toml"
        table = '[[mirror]]\nname = "shop"\n' if where == "mirror" else ""
        file.write_text(f'{table}log-format = "json"\nprt = 80\n')
        arguments = ("-c", "-u", "b", f"--config={file}")
    done = run_gopher(*arguments, prefix=prefix)
    [error] = objects(done.stderr)
    assert (error["event"], error["exit_status"], done.returncode) == ("error", 2, 2)


def test_option_wins_over_environment_when_something_is_wrong():
    done = run_gopher("-c", "--log-format=text", "--filtr", "x", prefix=("env", "GOPHER_LOG_FORMAT=json"))
    assert done.stderr.startswith("gopher: error: ")


def test_warnings_of_check_config_are_json_too():
    done = run_gopher(*CAPTURE, "-u", "b", "--check-config", "--log-format=json", prefix=("env", "GOPHER_PROT=80"))
    [warning] = objects(done.stderr)
    assert (warning["level"], warning["event"], done.returncode) == ("warning", "settings", 0)
    assert "GOPHER_PROT" in warning["message"]


# A gopher with a bug where it is about to run; with two mirrors, in a process of its own.
BUG = """
import sys, threading, warnings
import gopher.cli

class Careless:
    def __del__(self):
        raise ValueError("nobody sees this one")

def run(*anything):
    warnings.warn("old", UserWarning)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    Careless()
    raise KeyError("a bug")

gopher.cli._run = run
sys.exit(gopher.cli.main())
"""


@pytest.mark.parametrize("mirrors", [1, 2])
def test_what_python_says_is_json_too(tmp_path, mirrors):
    file = tmp_path / "gopher.toml"
    settings = 'mode = "capture"\nport = 80\nupstream = "127.0.0.1:9"\nlog-format = "json"\n'
    file.write_text(settings + "".join(f'[[mirror]]\nname = "m{each}"\n' for each in range(mirrors) if mirrors > 1))
    argv = [sys.executable, "-c", BUG, "--config", str(file)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=15, check=False)
    assert done.returncode == 1
    said = objects(done.stderr)
    # One of two that fails at the start ends the other one, wherever that is.
    failed = {each.get("mirror") for each in said if each["event"] == "bug" and "KeyError" in each["message"]}
    assert failed
    assert failed <= ({"m0", "m1"} if mirrors > 1 else {None})
    for name in failed:
        warning, thread, careless, bug = (
            each for each in said if each.get("mirror") == name and each["event"] != "mirrors"
        )
        assert (warning["level"], warning["event"]) == ("warning", "python")
        assert "UserWarning: old" in warning["message"]
        assert thread["message"] == "ZeroDivisionError: division by zero"
        assert careless["message"] == "ValueError: nobody sees this one"
        assert (bug["level"], bug["event"], bug["message"]) == ("error", "bug", "KeyError: 'a bug'")
        assert bug["exception"].startswith("Traceback (most recent call last):\n")
        assert ", in run\n" in bug["exception"]


def test_unknown_format_is_one_sentence():
    done = run_gopher(*CAPTURE, "-u", "b", "--log-format", "xml")
    assert done.returncode == 2
    assert "'xml' is not one of text, json" in done.stderr


# -- secrets -----------------------------------------------------------------------------------------------------------

# What a log must never say, of both directions, for every place that people put secrets in.
SECRETS = {
    place: f"s3cr3t-{place}-9f8e7d"
    for place in (
        *("session", "shadowsession", "tracking", "bearer", "apikey", "query", "path", "fragment", "form", "json"),
        *("host", "referer", "answerbody", "answerheader", "othervalue", "user"),
    )
}
BASIC = base64.b64encode(f"user:{SECRETS['user']}".encode()).decode()


def answer(session, body):
    return (
        f"HTTP/1.1 200 OK\r\nSet-Cookie: SID={session}; Path=/\r\nX-Token: {SECRETS['answerheader']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def requests():
    fields = (
        f"Host: {SECRETS['host']}\r\nAuthorization: Bearer {SECRETS['bearer']}\r\nX-Api-Key: {SECRETS['apikey']}\r\n"
        f"Referer: http://a/?t={SECRETS['referer']}\r\nProxy-Authorization: Basic {BASIC}\r\n"
        f"Cookie: SID={SECRETS['session']}; track={SECRETS['tracking']}\r\n"
    )
    target = f"/reset/{SECRETS['path']}?token={SECRETS['query']}"
    form = f"SID={SECRETS['session']}&password={SECRETS['form']}&other={SECRETS['othervalue']}"
    document = json.dumps({"token": SECRETS["json"]})
    return [
        f"GET {target} HTTP/1.1\r\n{fields}\r\n".encode(),
        f"POST /login HTTP/1.1\r\n{fields}Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(form)}\r\n\r\n{form}".encode(),
        f"POST /api HTTP/1.1\r\n{fields}Content-Type: application/json\r\n"
        f"Content-Length: {len(document)}\r\n\r\n{document}".encode(),
    ]


SCRIPT = """
def request(exchange):
    if exchange.request.method == "POST":
        raise RuntimeError("a script of its own words")

def shadow_response(exchange):
    pass
"""


def assert_nothing_told(texts):
    forms = {form for secret in (*SECRETS.values(), BASIC) for form in (secret, quote(secret), secret[::-1])}
    for where, text in texts.items():
        assert text, where
        assert not [form for form in forms if form in text], where


@pytest.mark.parametrize("shown", ["json", "text", "live"])
def test_nobodys_secrets_are_told(host, tmp_path, shown):
    """The whole chain, as talkative as can be, with secrets wherever people put them, and some trouble on the way."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    production_answer = answer(SECRETS["session"], SECRETS["answerbody"])
    capture = (*CAPTURE, "-vv", "--responses", "-u", "relay://127.0.0.1:3280", "-u", "127.0.0.1:9")
    rules = ("--couple", "cookie:SID", "--couple", "json:/token", "--couple", "auto", "--script", str(script))
    relay = ("-r", "-vv", "-p", "3280", "-u", "127.0.0.1:8080", "--forwarded", *rules)
    texts = {}
    with ExitStack() as stack:
        stack.enter_context(RecordingSink(PRODUCTION, namespace=host, answer=production_answer))
        shadow = stack.enter_context(
            RecordingSink(SHADOW, namespace=host, answer=answer(SECRETS["shadowsession"], SECRETS["answerbody"]))
        )
        programs = {}
        for name, argv, port in (("relay", relay, 9465), ("capture", capture, 9464)):
            argv = (*argv, "--stats-interval=0.1", f"--metrics=127.0.0.1:{port}", "--report", str(tmp_path / name))
            if shown == "live":
                terminal = Terminal(gopher_argv(*argv, "--live", namespace=host), columns=160)
                programs[name] = stack.enter_context(terminal)
                terminal.wait(lambda lines: any("clients" in line for line in lines), "the view")
            else:
                terminal = Terminal(gopher_argv(*argv, f"--log-format={shown}", namespace=host), columns=160)
                programs[name] = stack.enter_context(terminal)
                terminal.wait(lambda lines: any("capturing on" in x or "relaying on" in x for x in lines), "ready")
        with programs["relay"].draining(), programs["capture"].draining():
            for _ in range(2):
                with host.connect(PRODUCTION) as client:
                    for request in requests():
                        exchange(client, request, answer=production_answer)
            # Something that cannot be read as HTTP, too: the relay says so to the client, and counts.
            with host.connect(PRODUCTION) as client:
                lengths = "Content-Length: 1\r\nContent-Length: 2\r\n"
                client.sendall(f"GET /{SECRETS['path']} HTTP/1.1\r\n{lengths}X: {SECRETS['query']}\r\n\r\n".encode())
            shadow.wait(lambda: shadow.requests >= 6, "the requests")
            assert SECRETS["shadowsession"].encode() in b"".join(shadow.streams), "coupling was at work"
            for name, port in (("relay", 9465), ("capture", 9464)):
                for path in ("metrics", "report.json", "healthz"):
                    texts[f"{name} /{path}"] = curl(f"http://127.0.0.1:{port}/{path}", namespace=host)
        for name in ("capture", "relay"):
            programs[name].read_for(0.7)
            assert programs[name].stop() == 0
            texts[f"{name} on stderr"] = programs[name].raw.decode()
            texts[f"{name} as drawn"] = "".join(programs[name].history)
            texts[f"{name} report"] = (tmp_path / name).read_text()
    assert "a script of its own words" in texts["relay on stderr"]
    assert_nothing_told(texts)
