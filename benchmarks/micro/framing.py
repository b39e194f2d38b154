"""Nanoseconds to find the end of an HTTP request: a browser's GET of 600 bytes, framed on one connection."""

from __future__ import annotations

import sys
import time

from benchmarks import harness

REQUEST_BYTES = 600
TIMES = 1_000_000
_HEAD = (
    "GET /articles/2024/05/a-mirror-for-live-traffic?page=2&sort=newest HTTP/1.1\r\n"
    "Host: www.example.org\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:126.0) Gecko/20100101 Firefox/126.0\r\n"
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    "Accept-Language: en-GB,en;q=0.5\r\n"
    "Accept-Encoding: gzip, deflate, br\r\n"
    "Connection: keep-alive\r\n"
    "Referer: https://www.example.org/articles/2024/05/\r\n"
)
REQUEST = (_HEAD + "Cookie: session=" + "0" * (REQUEST_BYTES - len(_HEAD) - 20) + "\r\n\r\n").encode()


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    try:
        import gopher.http.framing  # noqa: F401  (the loop links to it)
    except ImportError as error:
        raise harness.NotRun(f"gopher's extension is not built ({error})") from error
    loops = harness.build_cython(harness.ROOT / "benchmarks" / "micro" / "loops.pyx")
    rounds = []
    for _ in range(options.rounds):
        requests, spent = 0, 0.0
        while spent < options.seconds:
            began = time.process_time()
            completed = loops.frame_requests(REQUEST, TIMES)
            spent += time.process_time() - began
            if completed != TIMES:
                raise RuntimeError(f"the framer completed {completed} of {TIMES} requests")
            requests += TIMES
        rounds.append({"ns": spent / requests * 1e9})
    return [harness.figure("framing a request of 600 bytes", "ns", [r["ns"] for r in rounds], digits=1)], rounds


def main(argv: list[str] | None = None) -> int:
    options = harness.arguments(__doc__, seconds=0.5).parse_args(argv)
    return harness.run("framing", measure, options)


if __name__ == "__main__":
    sys.exit(main())
