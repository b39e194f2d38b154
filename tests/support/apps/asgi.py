"""In Starlette, for an ASGI server."""

import hashlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

LINES = [f"line {number}\n" for number in range(2_000)]


async def page(request: Request) -> Response:
    if request.headers.get("If-None-Match") == '"v1"':
        return Response(status_code=304, headers={"ETag": '"v1"'})
    return PlainTextResponse("a page\n", headers={"ETag": '"v1"'})


async def stream(request: Request) -> Response:
    async def lines() -> AsyncIterator[str]:
        for line in LINES:
            yield line

    return StreamingResponse(lines(), media_type="text/plain")


async def digest(request: Request) -> Response:
    found = hashlib.sha256()
    async for data in request.stream():
        found.update(data)
    return PlainTextResponse(found.hexdigest() + "\n")


async def marker(request: Request) -> Response:
    return PlainTextResponse(request.headers.get("X-Mirrored", "none") + "\n")


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text.upper())


app = Starlette(
    routes=[
        Route("/page", page),
        Route("/stream", stream),
        Route("/digest", digest, methods=["POST"]),
        Route("/marker", marker),
        WebSocketRoute("/echo", echo),
    ]
)
