"""The real relay before the servers of Python frameworks, one WSGI and one ASGI, and the real curl before it."""

import contextlib
import hashlib
import re
import socket
import subprocess
import sys
import time

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Message, Request, TextMessage

from tests.support.clients import curl, noise
from tests.support.relay import DEADLINE_S, RelayProcess, free_port

pytestmark = pytest.mark.e2e

MODES = {"bytes": (), "messages": ("--marker", "X-Mirrored:1")}
SERVERS = {
    "waitress": ("waitress", "--listen=127.0.0.1:{}", "tests.support.apps.wsgi:app"),
    "uvicorn": ("uvicorn", "--port={}", "--log-level=warning", "--ws=wsproto", "tests.support.apps.asgi:app"),
}
# More than the relay, and the kernel on its behalf, keeps of a connection.
UPLOAD = noise(30_000_000)


@contextlib.contextmanager
def serving(name):
    """Yields the port."""
    port = free_port()
    module, *arguments = (argument.format(port) for argument in SERVERS[name])
    server = subprocess.Popen([sys.executable, "-m", module, *arguments])
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            assert server.poll() is None, f"{name} has ended"
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert time.monotonic() < deadline, f"{name} does not listen"
            time.sleep(0.02)
        yield port
    finally:
        server.terminate()
        server.wait()


def talk(port, upload):
    """What curl gets for each way to ask, with the heads. `upload`: a file."""
    url = f"http://127.0.0.1:{port}"
    asked = {
        "keep-alive": ["-i", f"{url}/page", f"{url}/page", f"{url}/stream"],
        "HEAD": ["-I", f"{url}/page"],
        "not modified": ["-i", "-H", 'If-None-Match: "v1"', f"{url}/page"],
        "until the close": ["-i", "--http1.0", f"{url}/stream"],
        "upload": ["-H", "Expect:", "--data-binary", f"@{upload}", f"{url}/digest"],
        "chunked upload": ["-H", "Transfer-Encoding: chunked", "-X", "POST", "-T", upload, f"{url}/digest"],
        "asks first": ["-v", "-H", "Expect: 100-continue", "--data-binary", f"@{upload}", f"{url}/digest"],
    }
    return {way: re.sub("(?m)^date: .*\n", "", curl(*arguments), flags=re.I) for way, arguments in asked.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("server", SERVERS)
def test_server_of_a_framework(server, mode, tmp_path, capfd):
    upload = tmp_path / "upload"
    upload.write_bytes(UPLOAD)
    with serving(server) as port:
        direct = talk(port, str(upload))
        assert direct["keep-alive"].count("a page\n") == 2
        assert direct["HEAD"].endswith("\n\n")
        assert "304" in direct["not modified"]
        for way in ("upload", "chunked upload", "asks first"):
            assert direct[way] == hashlib.sha256(UPLOAD).hexdigest() + "\n"
        capfd.readouterr()
        with RelayProcess(f"127.0.0.1:{port}", options=MODES[mode]) as relay:
            assert talk(relay.port, str(upload)) == direct
            # Only the server may invite the body.
            assert "< HTTP/1.1 100 Continue" in capfd.readouterr().err
            assert curl(f"http://127.0.0.1:{relay.port}/marker") == ("none\n" if mode == "bytes" else "1\n")
            assert relay.peak_memory_mib() < 100
        # Each curl has had one connection, whatever it asked for.
        assert relay.report["connections"]["accepted"] == len(direct) + 1
        assert relay.report["failed"] == {}
        assert relay.report["answers"] == {}


@pytest.mark.parametrize("mode", MODES)
def test_websocket(mode):
    with (
        serving("uvicorn") as port,
        RelayProcess(f"127.0.0.1:{port}", options=MODES[mode]) as relay,
        relay.connect() as client,
    ):
        websocket = WSConnection(ConnectionType.CLIENT)

        def send(event):
            client.sendall(websocket.send(event))

        def receive():
            events = []
            while not events:
                websocket.receive_data(client.recv(65_536))
                events = list(websocket.events())
            return events

        send(Request(host="shadow", target="/echo"))
        [accepted] = receive()
        assert isinstance(accepted, AcceptConnection)
        for text in ("hello", "x" * 100_000):
            send(TextMessage(text))
            answer = ""
            while len(answer) < len(text):
                answer += "".join(event.data for event in receive() if isinstance(event, Message))
            assert answer == text.upper()
        send(CloseConnection(code=1000))
        [closed] = receive()
        assert isinstance(closed, CloseConnection)
    assert relay.report["failed"] == {}
