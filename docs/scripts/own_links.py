"""Let a browser that tries the shadow out stay on it: turn production's absolute links into relative ones."""

import gzip

PRODUCTION = b"https://shop.example"


def shadow_response(exchange):
    answer = exchange.shadow_response
    for name in ("Location", "Content-Location"):
        if name in answer.headers:
            answer.headers[name] = answer.headers[name].removeprefix(PRODUCTION.decode()) or "/"
    if not answer.headers.get("Content-Type", "").startswith("text/html") or exchange.request.method == "HEAD":
        return
    body = answer.body
    if answer.headers.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
        answer.headers.remove("Content-Encoding")
    answer.body = body.replace(PRODUCTION + b"/", b"/")
