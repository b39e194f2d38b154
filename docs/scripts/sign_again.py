"""The shadow has a key of its own: sign for it what was signed for production."""

import hashlib
import hmac
import os

KEY = os.environ.get("SHADOW_KEY", "the shadow's key").encode()


async def request(exchange):
    asked = exchange.request
    if "X-Signature" in asked.headers:
        signed = f"{asked.method} {asked.target}\n".encode() + await asked.read()
        asked.headers["X-Signature"] = hmac.new(KEY, signed, hashlib.sha256).hexdigest()
