"""In Flask, for a WSGI server."""

import hashlib
from collections.abc import Iterator

from flask import Flask, Response, request

app = Flask(__name__)

LINES = [f"line {number}\n" for number in range(2_000)]


@app.get("/page")
def page() -> Response:
    response = Response("a page\n", mimetype="text/plain")
    response.set_etag("v1")
    return response.make_conditional(request)


@app.get("/stream")
def stream() -> Response:
    def lines() -> Iterator[str]:
        yield from LINES

    return Response(lines(), mimetype="text/plain")


@app.post("/digest")
def digest() -> str:
    found = hashlib.sha256()
    while data := request.stream.read(65_536):
        found.update(data)
    return found.hexdigest() + "\n"


@app.get("/marker")
def marker() -> str:
    return request.headers.get("X-Mirrored", "none") + "\n"
