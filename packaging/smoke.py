"""A wheel, installed: import, read a capture file, run the command. Needs nothing but the wheel.

Run it as `python -I packaging/smoke.py`: isolated, so that nothing is imported from the source tree beside it.
"""

import importlib.metadata
import importlib.util
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import gopher

REQUEST = b"GET /smoke HTTP/1.1\r\nHost: a\r\n\r\n"


def packet(flags: int, sequence: int, data: bytes = b"") -> bytes:
    tcp = struct.pack("!HHIIBBHHH", 40000, 80, sequence, 0, 5 << 4, flags, 8192, 0, 0) + data
    hosts = socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2")
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, socket.IPPROTO_TCP, 0) + hosts
    return ip + tcp


def capture_file(path: Path) -> None:
    packets = [packet(0x02, 100), packet(0x18, 101, REQUEST), packet(0x11, 101 + len(REQUEST))]
    with path.open("wb") as file:
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))  # 101: raw IP
        for number, data in enumerate(packets):
            file.write(struct.pack("=IIII", 1_700_000_000 + number, 0, len(data), len(data)) + data)


def gopher_command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-I", "-m", "gopher", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def main() -> None:
    assert sys.flags.isolated, "run it with python -I"
    place = Path(gopher.__file__).resolve()
    assert "site-packages" in place.parts, f"{place} is not an installed gopher"
    assert gopher.__version__ == importlib.metadata.version("gopher-mirror")

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "smoke.pcap"
        capture_file(path)
        [stream] = gopher.read_streams(str(path), ports=[80])
        assert stream.request == REQUEST, stream

        version = gopher_command("--version")
        assert version.stdout == f"gopher {gopher.__version__}\n", version
        streams = Path(directory) / "streams"
        mirrored = gopher_command("-c", "-p", "80", "--read", str(path), "--speed", "max", "-u", f"dir:{streams}")
        if importlib.util.find_spec("gopher._pump") is not None:
            assert mirrored.returncode == 0, mirrored.stderr
            [copy] = streams.iterdir()
            assert copy.read_bytes() == REQUEST
        else:
            # Elsewhere than on Linux the library works, and the command says why it does not.
            assert mirrored.returncode == 1, mirrored
            assert "gopher._pump" in mirrored.stderr, mirrored.stderr
            assert "Traceback" not in mirrored.stderr, mirrored.stderr
    print(f"gopher {gopher.__version__} works on Python {sys.version.split()[0]}, {sys.platform}: {place.parent}")


if __name__ == "__main__":
    main()
