"""One plain function for each request, that sets a header."""


def request(exchange):
    exchange.request.headers["X-Mirrored"] = "1"
