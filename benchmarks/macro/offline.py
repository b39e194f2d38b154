"""Reading and reassembling a capture of 1 GB, beside `tcpdump -r FILE -w /dev/null`, which reads it and does nothing.

The capture has both directions of 20,000 connections that are all open at once and take turns at random; of the
answers, which come in two segments, one in a hundred comes the wrong way round. It is made in the build directory, by
this program, and deleted at the end. Gopher's reader makes every event, with its bytes, and drops it. Both sides read
from the page cache; CPU is user and system of the whole process, gopher's interpreter start included.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import harness

CONNECTIONS = 20_000
CAPTURE_BYTES = 1_000_000_000
REQUEST_BYTES = 500
ANSWER_BYTES = 1_400
REORDERED_RATIO = 0.01
PORT = 80

_SYN, _ACK, _PSH, _FIN = 0x02, 0x10, 0x08, 0x01
_FRAME = struct.Struct("!12xHBBHHHBBHIIHHIIBBHHH")

READER = """
import sys
from gopher import Reassembler
from gopher.capture.pcapfile import CaptureFile

reassembler = Reassembler(ports=[80])
with CaptureFile(sys.argv[1]) as capture:
    for batch in capture.batches():
        reassembler.feed(batch)
reassembler.flush()
statistics = reassembler.statistics()
print(sum(statistics.data_bytes), statistics.gaps, statistics.flows_seen)
"""


def make_capture(path: Path, size: int) -> int:
    """Write the capture; returns how many payload bytes it carries."""
    chance = random.Random(1)
    request, first, second = b"q" * REQUEST_BYTES, b"a" * (ANSWER_BYTES // 2), b"b" * (ANSWER_BYTES // 2)
    now_us = 1_700_000_000_000_000
    seqs = [[1, 1] for _ in range(CONNECTIONS)]
    written = carried = 0

    with path.open("wb", buffering=1 << 22) as file:
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))

        def packet(connection: int, direction: int, flags: int, seq: int, payload: bytes = b"") -> None:
            nonlocal now_us, written
            now_us += 1
            client, server = 0x0A000000 | connection >> 8, 0x0A800001
            ends = (client, server, 20_000 + (connection & 0xFF), PORT)
            if direction:
                ends = (server, client, PORT, 20_000 + (connection & 0xFF))
            length = 40 + len(payload)
            head = _FRAME.pack(
                *(0x0800, 0x45, 0, length, 0, 0x4000, 64, 6, 0, ends[0], ends[1], ends[2], ends[3]),
                *(seq, seqs[connection][1 - direction], 5 << 4, flags, 64_000, 0, 0),
            )
            frame = len(head) + len(payload)
            file.write(struct.pack("=IIII", now_us // 1_000_000, now_us % 1_000_000, frame, frame) + head + payload)
            written += 16 + frame

        order = list(range(CONNECTIONS))
        for connection in order:
            packet(connection, 0, _SYN, 0)
            packet(connection, 1, _SYN | _ACK, 0)
        while written < size:
            chance.shuffle(order)
            for connection in order:
                seq = seqs[connection]
                packet(connection, 0, _ACK | _PSH, seq[0], request)
                seq[0] += len(request)
            for connection in order:
                seq = seqs[connection]
                halves = [(seq[1], first), (seq[1] + len(first), second)]
                if chance.random() < REORDERED_RATIO:
                    halves.reverse()
                for half_seq, half in halves:
                    packet(connection, 1, _ACK | _PSH, half_seq, half)
                seq[1] += ANSWER_BYTES
            carried += CONNECTIONS * (REQUEST_BYTES + ANSWER_BYTES)
        for connection in order:
            packet(connection, 0, _ACK | _FIN, seqs[connection][0])
            packet(connection, 1, _ACK | _FIN, seqs[connection][1])
    return carried


def run_timed(command: list[str]) -> tuple[float, float, str]:
    """Returns (CPU seconds, wall seconds, what it printed)."""
    began = time.monotonic()
    process = subprocess.Popen(
        harness.pinned(harness.SHADOW_CORE, *command),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=harness.ROOT,
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode != 0:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - began, output


# What reassembles, too, and how. tcpflow writes each stream into a file; tshark is asked for its list of conversations.
PEERS = {
    "tcpflow": ["tcpflow", "-q", "-o", "{directory}", "-r", "{capture}"],
    "tshark": ["tshark", "-q", "-z", "conv,tcp", "-r", "{capture}"],
}


def measure_peers(capture: Path, gopher_cpu_s: float) -> dict[str, dict]:
    """CPU of each peer that is installed, and how many times gopher's that is."""
    found = {}
    for name, words in PEERS.items():
        if shutil.which(name) is not None:
            with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
                command = [word.format(directory=directory, capture=capture) for word in words]
                cpu_s, wall_s, _ = run_timed(command)
            found[name] = {"cpu_s": cpu_s, "wall_s": wall_s, "ratio": cpu_s / gopher_cpu_s}
    return found


def measure(options) -> tuple[list[dict], list[dict]]:
    """Returns the figures and the rounds they come from."""
    tcpdump = harness.require_program("tcpdump")
    harness.BUILD.mkdir(parents=True, exist_ok=True)
    capture = harness.BUILD / "offline.pcap"
    try:
        carried = make_capture(capture, options.bytes)
        # As root tcpdump gives up its rights, and its user must still be able to read the file.
        idle = [tcpdump, "-r", str(capture), "-w", "/dev/null", *(["-Z", "root"] if os.geteuid() == 0 else [])]
        reader = [sys.executable, "-c", READER, str(capture)]
        rounds = []
        for _ in range(options.rounds):
            gopher_cpu_s, gopher_wall_s, output = run_timed(reader)
            tcpdump_cpu_s, tcpdump_wall_s, _ = run_timed(idle)
            if output.split() != [str(carried), "0", str(CONNECTIONS)]:
                raise RuntimeError(
                    f"of {carried} bytes of {CONNECTIONS} connections gopher delivered, with gaps: {output}"
                )
            rounds.append(
                {
                    "gopher_cpu_s": gopher_cpu_s,
                    "tcpdump_cpu_s": tcpdump_cpu_s,
                    "ratio": gopher_cpu_s / tcpdump_cpu_s,
                    "wall_ratio": gopher_wall_s / tcpdump_wall_s,
                    "carried": carried,
                    "delivered": int(output.split()[0]),
                    "peers": measure_peers(capture, gopher_cpu_s) if options.peers else {},
                }
            )
    finally:
        capture.unlink(missing_ok=True)
    figures = [
        harness.figure("gopher / tcpdump", "ratio of CPU", [r["ratio"] for r in rounds], 1.5, digits=2),
        harness.figure("gopher / tcpdump", "ratio of wall time", [r["wall_ratio"] for r in rounds], 1.5, digits=2),
        harness.figure("gopher", "CPU s", [r["gopher_cpu_s"] for r in rounds], digits=2),
        harness.figure("tcpdump", "CPU s", [r["tcpdump_cpu_s"] for r in rounds], digits=2),
    ]
    for name in PEERS if options.peers else ():
        if name in rounds[0]["peers"]:
            values = [r["peers"][name] for r in rounds]
            figures.append(harness.figure(name, "CPU s", [each["cpu_s"] for each in values], digits=2))
            figures.append(harness.figure(f"{name} / gopher", "ratio of CPU", [each["ratio"] for each in values]))
        else:
            figures.append(harness.not_run(name, f"{name} is not installed"))
    return figures, rounds


def main(argv: list[str] | None = None) -> int:
    parser = harness.arguments(__doc__, seconds=0)
    parser.add_argument("--bytes", type=int, default=CAPTURE_BYTES, help="size of the capture (default %(default)s)")
    parser.add_argument("--peers", action="store_true", help="also measure tcpflow and tshark")
    return harness.run("offline", measure, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
