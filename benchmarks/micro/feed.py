"""Packets per second through `Reassembler.feed`, beside a naive loop that only looks up the flow and copies.

One pass is 51,200 frames of 600 bytes (Ethernet, IPv4, TCP with time stamps), in order, of 200 flows in random turns,
in batches of 512. Each round runs both over the same memory, in turns.
"""

from __future__ import annotations

import random
import struct
import sys
import time

from benchmarks import harness

FLOWS = 200
FRAME_BYTES = 600
PACKETS_PER_BATCH = 512
BATCHES = 100
PORT = 80

_HEADERS_BYTES = 14 + 20 + 32
_SYN, _ACK, _PSH = 0x02, 0x10, 0x08


def frame(client: int, seq: int, flags: int, payload: bytes) -> bytes:
    ethernet = bytes(12) + b"\x08\x00"
    length = _HEADERS_BYTES - 14 + len(payload)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 0, 0x4000, 64, 6, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
    tcp = struct.pack("!HHIIBBHHH", 20_000 + client, PORT, seq, 1, 8 << 4, flags, 512, 0, 0)
    return ethernet + ip + tcp + b"\x01\x01\x08\x0a" + bytes(8) + payload


def batches() -> tuple[list, list]:
    """Returns (the batches that open the flows, the batches to time)."""
    from gopher._fastpath import pack_batch

    chance = random.Random(1)
    payload = b"x" * (FRAME_BYTES - _HEADERS_BYTES)
    next_seq = [1] * FLOWS
    time_ns = 1_700_000_000_000_000_000
    opening = [pack_batch([(time_ns, frame(client, 0, _SYN, b"")) for client in range(FLOWS)], 1)]
    timed = []
    for _ in range(BATCHES):
        packets = []
        for _ in range(PACKETS_PER_BATCH):
            client = chance.randrange(FLOWS)
            time_ns += 10_000
            packets.append((time_ns, frame(client, next_seq[client], _ACK | _PSH, payload)))
            next_seq[client] += len(payload)
        timed.append(pack_batch(packets, 1))
    return opening, timed


def packets_per_s(reassembler, opening, timed, seconds: float, payload_bytes) -> float:
    """Feed the pass again and again, each time to a new reassembler."""
    packets, spent = 0, 0.0
    while spent < seconds:
        target = reassembler()
        for batch in opening:
            target.feed(batch)
        delivered = 0
        began = time.process_time()
        for batch in timed:
            delivered += payload_bytes(target.feed(batch))
        spent += time.process_time() - began
        packets += BATCHES * PACKETS_PER_BATCH
        if delivered != BATCHES * PACKETS_PER_BATCH * (FRAME_BYTES - _HEADERS_BYTES):
            raise RuntimeError(f"{target} delivered {delivered} bytes")
    return packets / spent


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    try:
        from gopher._fastpath import Reassembler, StreamData
    except ImportError as error:
        raise harness.NotRun(f"gopher's extension is not built ({error})") from error
    loops = harness.build_cython(harness.ROOT / "benchmarks" / "micro" / "loops.pyx")
    opening, timed = batches()
    rounds = []
    for _ in range(options.rounds):
        gopher = packets_per_s(
            lambda: Reassembler(ports=[PORT], both_directions=False),
            opening,
            timed,
            options.seconds,
            lambda events: sum(len(event.data) for event in events if type(event) is StreamData),
        )
        naive = packets_per_s(
            loops.NaiveReassembler,
            [],
            timed,
            options.seconds,
            lambda runs: sum(len(data) for _, data in runs),
        )
        rounds.append({"gopher_per_s": gopher, "naive_per_s": naive, "ratio": naive / gopher})
    figures = [
        harness.figure("feed()", "packets/s", [r["gopher_per_s"] for r in rounds], digits=0),
        harness.figure("feed()", "ns/packet", [1e9 / r["gopher_per_s"] for r in rounds], digits=1),
        harness.figure("naive loop", "ns/packet", [1e9 / r["naive_per_s"] for r in rounds], digits=1),
        harness.figure("feed() / naive loop", "ratio of time", [r["ratio"] for r in rounds], digits=2),
    ]
    return figures, rounds


def main(argv: list[str] | None = None) -> int:
    options = harness.arguments(__doc__, seconds=0.5).parse_args(argv)
    return harness.run("feed", measure, options)


if __name__ == "__main__":
    sys.exit(main())
