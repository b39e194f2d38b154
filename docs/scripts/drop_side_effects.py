"""Do not pay, mail or delete a second time."""

FOR_PRODUCTION_ONLY = ("/payments", "/mail/")


async def request(exchange):
    asked = exchange.request
    if asked.method == "DELETE" or asked.target.startswith(FOR_PRODUCTION_ONLY):
        exchange.drop()
        return
    asked.headers["X-Shadow"] = "1"
