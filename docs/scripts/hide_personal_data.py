"""Keep e-mail addresses and card numbers from the shadow."""

import re

SECRETS = re.compile(rb"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\b\d{13,19}\b")


def star(match: re.Match[bytes]) -> bytes:
    return b"*" * len(match[0])


def request(exchange):
    message = exchange.request
    if message.headers.get("Content-Type", "").startswith(("application/json", "application/x-www-form-urlencoded")):
        message.body = SECRETS.sub(star, message.body.replace(b"%40", b"@"))
