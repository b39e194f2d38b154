"""Async functions that read every body there is, and put the same in its place."""

import contextlib

import gopher


async def again(message):
    # Too long, or it cannot have one.
    with contextlib.suppress(gopher.BodyError, gopher.LocalProtocolError):
        message.body = await message.read()


async def request(exchange):
    await again(exchange.request)


async def shadow_response(exchange):
    await again(exchange.shadow_response)
