"""Plain functions that look at everything but bodies, and change nothing."""


def connected(connection):
    connection.metadata["exchanges"] = 0


def request(exchange):
    assert list(exchange.request.headers) is not None
    assert exchange.request.target
    exchange.connection.metadata["exchanges"] += 1


def production_response(exchange):
    assert exchange.production_response.status >= 200


def shadow_response(exchange):
    assert exchange.shadow_response.status >= 200
    assert not exchange.dropped


def closed(connection):
    assert connection.metadata["exchanges"] >= 0
