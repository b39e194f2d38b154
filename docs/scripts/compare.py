"""Write down where the shadow answered otherwise than production, and how often on each connection."""

import hashlib
import json
import os

REPORT = os.environ.get("COMPARE_REPORT", "differences.jsonl")


def note(**fields):
    with open(REPORT, "a") as file:
        print(json.dumps(fields), file=file)


async def look_at(exchange, name, response):
    body = await response.read()
    exchange.metadata[name] = {
        "status": response.status,
        "type": response.headers.get("Content-Type"),
        "body": hashlib.sha256(body).hexdigest(),
    }
    compare(exchange)


async def connected(connection):
    connection.metadata["compared"] = connection.metadata["different"] = 0


async def production_response(exchange):
    await look_at(exchange, "production", exchange.production_response)


async def shadow_response(exchange):
    await look_at(exchange, "shadow", exchange.shadow_response)


def compare(exchange):
    seen, counts = exchange.metadata, exchange.connection.metadata
    if "production" not in seen or "shadow" not in seen:
        return  # the slower one is still to come
    counts["compared"] += 1
    if seen["production"] != seen["shadow"]:
        counts["different"] += 1
        note(exchange=exchange.request.target, production=seen["production"], shadow=seen["shadow"])


async def closed(connection):
    client = connection.client[0] if connection.client else None
    note(connection=client, compared=connection.metadata["compared"], different=connection.metadata["different"])
