"""`--metrics`: a small HTTP server for /metrics, /healthz and /report.json.

It runs in the same thread as what it reports on, so that a report is of one moment and needs no lock. What that may
cost is bounded: few clients at once, little time for each, and a report at most every `REPORT_AGE_S` however often
somebody asks. It only reads; who connects can change nothing.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

import trio
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from gopher.errors import RemoteProtocolError
from gopher.http.messages import HeadReceived, MessageLimits, MessageParser, RequestHead
from gopher.observe.metrics import families

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client.core import Metric as Family

    from gopher.observe.metrics import Metric

__all__ = ["MetricsServer"]

CLIENTS: Final = 16
# On the networks where metrics belong a request takes milliseconds; a liveness check waits seconds.
CLIENT_S: Final = 2.0
REPORT_AGE_S: Final = 0.2
# The pause when there is no descriptor for one more connection.
PAUSE_S: Final = 0.1

_LIMITS: Final = MessageLimits(max_head_bytes=16_384, max_target_bytes=2_048)
_TEXT: Final = "text/plain; charset=utf-8"
# What `generate_latest` writes for names that Prometheus has always allowed.
_EXPOSITION: Final = "text/plain; version=0.0.4; charset=utf-8"
_PHRASES: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    505: "HTTP Version Not Supported",
}


class MetricsServer:
    """Serves until cancelled.

    Args:
        listener: a socket that listens and does not block; it stays the caller's.
        metrics: the table for this mode.
        report: the fields of the report as of now.
    """

    def __init__(
        self, listener: socket.socket, metrics: Sequence[Metric], report: Callable[[], dict[str, Any]]
    ) -> None:
        self._listener = trio.socket.from_stdlib_socket(listener)
        # Trio lets one task at a time wait for a socket.
        self._accepting = trio.Lock()
        self._metrics = metrics
        self._read_report = report
        self._report: dict[str, Any] = {}
        self._report_until_s = 0.0
        self._bodies: dict[str, bytes] = {}
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def collect(self) -> Iterator[Family]:
        """For the client library."""
        return families(self._metrics, self._report)

    @property
    def url(self) -> str:
        """Where to scrape."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"

    async def run(self) -> None:
        """Checkpoint: always."""
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(self._serve)

    async def _serve(self) -> None:
        while True:
            async with self._accepting:
                try:
                    sock, _ = await self._listener.accept()
                except OSError:
                    # The client is gone again, or there is no descriptor; either way the next one may have more luck.
                    await trio.sleep(PAUSE_S)
                    continue
            with trio.move_on_after(CLIENT_S):
                async with trio.SocketStream(sock) as stream:
                    with contextlib.suppress(trio.BrokenResourceError):  # the client did not wait for the answer
                        await self._answer(stream)

    async def _answer(self, stream: trio.SocketStream) -> None:
        parser = MessageParser("request", limits=_LIMITS)
        while data := await stream.receive_some():
            try:
                events = parser.feed(data)
            except RemoteProtocolError as error:
                await stream.send_all(_response(error.status, _TEXT, f"{error}\n".encode()))
                return
            for event in events:
                if isinstance(event, HeadReceived) and isinstance(event.head, RequestHead):
                    await stream.send_all(self._response_to(event.head.method, event.head.target))
                    return

    def _response_to(self, method: bytes, target: bytes) -> bytes:
        if method not in (b"GET", b"HEAD"):
            return _response(405, _TEXT, b"only GET and HEAD\n", "Allow: GET, HEAD\r\n")
        path = target.partition(b"?")[0]
        if path == b"/healthz":
            # Whoever reads this knows that the loop that serves everything else turns.
            response = _response(200, _TEXT, b"ok\n")
        elif path == b"/metrics":
            response = _response(200, _EXPOSITION, self._body("metrics", lambda: generate_latest(self._registry)))
        elif path == b"/report.json":
            body = self._body("report", lambda: (json.dumps(self._report, indent=2) + "\n").encode())
            response = _response(200, "application/json", body)
        else:
            response = _response(404, _TEXT, b"there are /metrics, /healthz and /report.json\n")
        return response if method == b"GET" else response[: response.index(b"\r\n\r\n") + 4]

    def _body(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Made once of each report, so that both pages show the same moment."""
        now_s = trio.current_time()
        if now_s >= self._report_until_s:
            self._report = self._read_report()
            self._report_until_s = now_s + REPORT_AGE_S
            self._bodies.clear()
        if name not in self._bodies:
            self._bodies[name] = make()
        return self._bodies[name]


def _response(status: int, content_type: str, body: bytes, fields: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status} {_PHRASES.get(status, 'Error')}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n{fields}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
