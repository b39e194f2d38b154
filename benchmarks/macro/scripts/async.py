"""One async function for each request, that sets a header."""


async def request(exchange):
    exchange.request.headers["X-Mirrored"] = "1"
