"""What a reader of the documentation has before him: a machine that he may change, and the network around it.

`Stage` is a file system and process ids of one's own, as `Namespace` is a network. `Site` is the network: production
with its devices, clients, and the machines that the pages name.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from tests.support.netns import Namespace
from tests.support.pages import ROOT
from tests.support.rights import REACHABLE

_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")

# Where commands of the pages change something.
COVERED = ("/etc", "/opt", "/usr/share", "/var/lib", str(ROOT))
_COVER = """
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
for place; do
    mkdir -p "/mnt$place/upper" "/mnt$place/work"
    mount -t overlay -o "lowerdir=$place,upperdir=/mnt$place/upper,workdir=/mnt$place/work" overlay "$place"
done
"""


class Stage:
    """This machine's files, whose changes nobody else sees and nobody keeps, and its own processes only.

    Everybody may reach Python and the checkout, wherever they are. Leaving kills all that was started in it. Needs
    root.
    """

    def __enter__(self) -> Stage:
        # Namespaces of mounts and of process ids belong to a thread: what it starts is in them.
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=self._unshare)
        # The first process is the init of the others: with it they end.
        self._init = self.popen(["sleep", "infinity"])
        self.run("sh", "-ec", _COVER, "sh", *COVERED)
        self.run(*REACHABLE, "true")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._init.kill()
        self._init.wait()
        self._thread.shutdown()

    @staticmethod
    def _unshare() -> None:
        if _libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID) != 0:
            raise OSError(ctypes.get_errno(), "unshare")

    def call(self, function: Callable[..., T], *arguments: Any, **settings: Any) -> T:
        """What `function` starts, starts inside. It cannot start threads."""
        return self._thread.submit(function, *arguments, **settings).result()

    def popen(self, argv: Sequence[str], **settings: Any) -> subprocess.Popen[Any]:
        """Start a program inside. Its process id, as given here, is that outside."""
        return self.call(subprocess.Popen, argv, **settings)

    def run(self, *argv: str, **settings: Any) -> str:
        """Run a program inside and return its output. Raises: CalledProcessError."""
        return self.call(subprocess.run, argv, check=True, stdout=subprocess.PIPE, text=True, **settings).stdout

    def path(self, path: str | Path) -> Path:
        """Where a file of the stage, named from the root or from the checkout, is for the tests."""
        return Path(f"/proc/{self._init.pid}/root{ROOT / path}")


NAMES = {
    "machineB": "10.77.1.3",
    "machineC": "10.77.1.4",
    "machineD": "10.77.1.5",
    "shadow": "10.77.1.6",
    "staging": "10.77.1.7",
    "shadow.example.com": "10.77.1.8",
    "shop": "10.77.1.9",
}


class Site:
    """outside 10.77.1.1 (and .4 to .9) -- bridge -- eth0, 10.77.1.2 production, and eth0, 10.77.1.3 machineB.

    Production has more devices: eth1 to a backend, 10.77.3.1 (outside), a tunnel in VXLAN over eth0, 10.99.0.1
    (outside) to 10.99.0.2, and docker0 to the container 172.17.0.2. Clients have addresses of 10.78.0.0/16.
    """

    PRODUCTION = "10.77.1.2"
    BACKEND = "10.77.3.1"
    TUNNEL = "10.99.0.2"
    CONTAINER = "172.17.0.2"

    def __enter__(self) -> Site:
        with ExitStack() as stack:
            self.outside, self.production, self.machine_b, self.container = (
                stack.enter_context(Namespace(name, hosts=NAMES))
                for name in ("outside", "production", "machineB", "container")
            )
            self._wire()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def namespace_of(self, address: str, own: Namespace) -> Namespace:
        """Who has this address, for somebody in `own`."""
        if address.startswith("127."):
            return own
        if address == NAMES["machineB"]:
            return self.machine_b
        return self.production if address.startswith("172.17.") else self.outside

    def _wire(self) -> None:
        outside, production = self.outside, self.production
        _ip(outside, "link add br0 type bridge")
        _ip(production, "link add docker0 type bridge")
        for near, near_device, far, far_device in (
            (outside, "port1", production, "eth0"),
            (outside, "port2", self.machine_b, "eth0"),
            (outside, "eth1", production, "eth1"),
            (production, "veth1", self.container, "eth0"),
        ):
            pair = ["type", "veth", "peer", "name", far_device, "netns", far.name]
            subprocess.run(["ip", "link", "add", near_device, "netns", near.name, *pair], check=True)
        _ip(outside, "link set port1 master br0", "link set port2 master br0")
        _ip(production, "link set veth1 master docker0")
        tunnel = "link add vxlan0 type vxlan id 7 dstport 4789"
        _ip(outside, f"{tunnel} local 10.77.1.1 remote {self.PRODUCTION} dev br0")
        _ip(production, f"{tunnel} local {self.PRODUCTION} remote 10.77.1.1 dev eth0")
        ours = [address for name, address in NAMES.items() if name != "machineB"]
        for namespace, device, *addresses in (
            (outside, "br0", "10.77.1.1/24", *(f"{address}/24" for address in ours)),
            (outside, "eth1", f"{self.BACKEND}/24"),
            (outside, "vxlan0", "10.99.0.1/24"),
            (production, "eth0", f"{self.PRODUCTION}/24"),
            (production, "eth1", "10.77.3.2/24"),
            (production, "vxlan0", f"{self.TUNNEL}/24"),
            # Another container's is the second one.
            (production, "docker0", "172.17.0.1/16", "172.17.0.5/16"),
            (self.machine_b, "eth0", f"{NAMES['machineB']}/24"),
            (self.container, "eth0", f"{self.CONTAINER}/16"),
        ):
            _ip(namespace, *(f"address add {each} dev {device}" for each in addresses), f"link set {device} up")
        _ip(outside, "link set port1 up", "link set port2 up", "route add local 10.78.0.0/16 dev lo")
        _ip(production, "link set veth1 up", "route add 10.78.0.0/16 via 10.77.1.1")
        # A host of containers passes on what they send.
        production.run("sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1")
        _ip(self.container, "route add default via 172.17.0.1")
        _ip(outside, f"route add 172.17.0.0/16 via {self.PRODUCTION}")


def _ip(namespace: Namespace, *commands: str) -> None:
    argv = namespace.command("ip", "-batch", "-")
    subprocess.run(argv, input="".join(f"{command}\n" for command in commands), text=True, check=True)


def path_with(*directories: str | Path) -> str:
    """PATH with these before all others."""
    return os.pathsep.join([*map(str, directories), os.environ["PATH"]])
