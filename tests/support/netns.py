"""Network namespaces: a private loopback, or hosts joined by veth pairs. Needs root and iproute2's `ip`.

Ports are free and nobody else's packets pass in a namespace of one's own, so tests use fixed addresses and port 80.
Names carry the process id: test runs at the same time do not meet.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_serials = itertools.count(1)


def unprivileged_reason() -> str:
    """Why namespaces cannot be made here; empty if they can."""
    name = f"gopher-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces cannot be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


class Namespace:
    """One network namespace with its loopback up; deleted on exit.

    Args:
        label: tells the namespaces of one test apart.
        hosts: names that programs started inside resolve, by /etc/netns/NAME/hosts.

    Attributes:
        name: as `ip netns` has it, which keeps it in /run/netns.
        hosts: the file of names.
    """

    def __init__(self, label: str, hosts: Mapping[str, str] | None = None) -> None:
        self.name = f"gopher-{os.getpid()}-{next(_serials)}-{label}"
        self._etc = Path("/etc/netns") / self.name
        self.hosts = self._etc / "hosts" if hosts else Path("/etc/hosts")
        if hosts:
            self._etc.mkdir(parents=True)
            lines = [f"{address} {name}\n" for name, address in hosts.items()]
            self.hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        # A network namespace belongs to a thread; sockets stay in the one they were made in, whoever uses them.
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=self._enter)
        self.run("ip", "link", "set", "lo", "up")

    def _enter(self) -> None:
        descriptor = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)

    def command(self, *argv: str) -> list[str]:
        """The command line that runs `argv` inside. `ip netns exec` replaces itself, so the process id is argv's."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str) -> str:
        """Run a program inside and return its output. Raises: CalledProcessError."""
        return subprocess.run(self.command(*argv), check=True, stdout=subprocess.PIPE, text=True).stdout

    def make_socket(self, family: int = socket.AF_INET) -> socket.socket:
        """A TCP socket that lives inside."""
        return self._thread.submit(socket.socket, family, socket.SOCK_STREAM).result()

    def connect(self, address: tuple[str, int], *, source: str | None = None, timeout_s: float = 20.0) -> socket.socket:
        """A connection made from inside, from the address `source` if given."""
        sock = self.make_socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        sock.settimeout(timeout_s)
        try:
            if source is not None:
                sock.bind((source, 0))
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock

    def shrink_buffers(self) -> None:
        """Let TCP hold little, so that it takes little to overflow somebody who reads slowly."""
        for name in ("tcp_rmem", "tcp_wmem"):
            self.run("sh", "-c", f"echo 4096 16384 65536 > /proc/sys/net/ipv4/{name}")

    def close(self) -> None:
        self._thread.shutdown()
        subprocess.run(["ip", "netns", "delete", self.name], check=True)
        shutil.rmtree(self._etc, ignore_errors=True)

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def inject(namespace: Namespace, device: str, frames: Iterable[bytes]) -> None:
    """Put frames on the wire, as they are."""
    send = (
        "import json, socket, sys; sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW);"
        " sock.bind((sys.argv[1], 0)); [sock.send(bytes.fromhex(frame)) for frame in json.load(sys.stdin)]"
    )
    argv = namespace.command(sys.executable, "-c", send, device)
    subprocess.run(argv, input=json.dumps([frame.hex() for frame in frames]), text=True, check=True)


def join(left: Namespace, left_device: str, right: Namespace, right_device: str, subnet: int) -> None:
    """Join two namespaces by a veth pair: 10.77.SUBNET.1/24 and fd77:SUBNET::1/64 on the left, .2 on the right."""
    peer = ["peer", "name", right_device, "netns", right.name]
    subprocess.run(["ip", "link", "add", left_device, "netns", left.name, "type", "veth", *peer], check=True)
    ends = [(left, left_device), (right, right_device)]
    for host, (namespace, device) in enumerate(ends, start=1):
        namespace.run("ip", "address", "add", f"10.77.{subnet}.{host}/24", "dev", device)
        # Without duplicate address detection, of a link-local address too, the address is usable at once.
        namespace.run("ip", "link", "set", device, "addrgenmode", "none")
        namespace.run("ip", "address", "add", f"fd77:{subnet}::{host}/64", "dev", device, "nodad")
    for namespace, device in ends:
        namespace.run("ip", "link", "set", device, "up")
