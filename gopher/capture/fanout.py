"""A device's flows, spread over several packet sockets by the kernel: PACKET_FANOUT of packet(7).

Which member of the group gets a packet is decided by a filter program of ours, a hash of both ends that is the same for
both directions. IPv4 fragments are put together before. The kernel's own hash (PACKET_FANOUT_HASH) would do the same,
but it takes the number of members into account, and members are numbered in the order of joining: one socket that is
replaced exchanges the flows of all, if only for the microseconds in which there is one member more or less. A program
that says numbers below `count`, whatever there is, makes replacing safe: the new socket joins as number `count`, which
gets nothing, and when the old one leaves, the last one gets its number.

So a place is never left empty: its socket stays a member, whoever has stopped reading it, until it is replaced.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import TYPE_CHECKING, Final

from gopher.errors import CaptureError

if TYPE_CHECKING:
    import socket

__all__ = ["FanoutGroup", "share_program", "unread"]

# <linux/if_packet.h>; the socket module has none of them.
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_PACKET_FANOUT: Final = 18
_PACKET_FANOUT_DATA: Final = 22
_CBPF: Final = 0x0006
_UNIQUE_ID: Final = 0x2000
_IGNORE_OUTGOING: Final = 0x4000
_DEFRAG: Final = 0x8000

_WORD: Final = struct.Struct("=I")
_STATISTICS: Final = struct.Struct("=III")  # TPACKET_V3: packets, drops, freezes

# <linux/bpf_common.h>, <linux/filter.h>: A is the accumulator, X the index register, M the scratch memory.
_LD_WORD, _LD_HALF, _LD_BYTE, _LD_MEM = 0x20, 0x28, 0x30, 0x60
_LD_HALF_X, _LDX_MEM, _LDX_IP_HEADER = 0x48, 0x61, 0xB1
_ST, _TAX, _RET_A, _RET = 0x02, 0x07, 0x16, 0x06
_XOR_X, _XOR, _ADD_X, _MUL, _RSH = 0xAC, 0xA4, 0x0C, 0x24, 0x74
_JUMP, _JUMP_EQUAL, _JUMP_ANY_BIT = 0x05, 0x15, 0x45
_PROTOCOL: Final = -0x1000  # the packet's ethertype
_NET: Final = -0x100000  # offset 0 of the network header, incoming and outgoing, on every device

# Operation and operand, and where to jump: if so, and if not.
_Instruction = tuple[int, int] | tuple[int, int, str] | tuple[int, int, str, str]
_Line = _Instruction | str


def share_program(count: int, seed: int) -> list[tuple[int, int, int, int]]:
    """A classic BPF program that returns a packet's share, below `count`: (code, jump if, jump if not, operand) each.

    Flows of TCP over IPv4 and IPv6 are told apart by addresses and ports; what has no ports at hand (fragments, other
    protocols, IPv6 extension headers) by addresses; the rest (inner VLAN tags, MPLS, PPPoE) is share 0.

    Args:
        count: 1 to 65,535.
        seed: 64 bits that nobody outside should know, or they could send all to one share.
    """
    addresses: list[_Line] = [(_LD_WORD, _NET + 8), (_ST, 0)]
    for at in range(12, 40, 4):
        addresses += [(_LD_WORD, _NET + at), (_TAX, 0), (_LD_MEM, 0), (_XOR_X, 0), (_ST, 0)]
    return _assemble(
        [
            (_LD_WORD, _PROTOCOL),
            (_JUMP_EQUAL, 0x8100, "tagged", "or 802.1ad"),
            "or 802.1ad",
            (_JUMP_EQUAL, 0x88A8, "tagged", "by version"),
            # A tag in the way of a received packet is where the network header should be; of a sent one before it.
            "tagged",
            (_LD_HALF, _NET + 2),
            (_JUMP_EQUAL, 0x0800, "rest", "or IPv6 in it"),
            "or IPv6 in it",
            (_JUMP_EQUAL, 0x86DD, "rest", "by version"),
            "by version",
            (_LD_BYTE, _NET),
            (_RSH, 4),
            (_JUMP_EQUAL, 4, "IPv4", "or IPv6"),
            "or IPv6",
            (_JUMP_EQUAL, 6, "IPv6", "rest"),
            "IPv4",
            (_LD_WORD, _NET + 12),
            (_TAX, 0),
            (_LD_WORD, _NET + 16),
            (_XOR_X, 0),
            (_ST, 0),
            (_LD_BYTE, _NET + 9),
            (_JUMP_EQUAL, 6, "IPv4 TCP", "no ports"),
            "IPv4 TCP",
            (_LD_HALF, _NET + 6),
            (_JUMP_ANY_BIT, 0x3FFF, "no ports", "IPv4 ports"),
            "IPv4 ports",
            (_LDX_IP_HEADER, _NET),
            (_LD_HALF_X, _NET),
            (_ST, 1),
            (_LD_HALF_X, _NET + 2),
            (_JUMP, 0, "ports"),
            "IPv6",
            *addresses,
            (_LD_BYTE, _NET + 6),
            (_JUMP_EQUAL, 6, "IPv6 ports", "or jumbogram"),
            # Segmentation offload beyond 64 KiB: some packets of a flow have this header, others have not.
            "or jumbogram",
            (_JUMP_EQUAL, 0, "hop by hop", "no ports"),
            "hop by hop",
            (_LD_HALF, _NET + 40),
            (_JUMP_EQUAL, 0x0600, "jumbogram ports", "no ports"),
            "jumbogram ports",
            (_LD_HALF, _NET + 48),
            (_ST, 1),
            (_LD_HALF, _NET + 50),
            (_JUMP, 0, "ports"),
            "IPv6 ports",
            (_LD_HALF, _NET + 40),
            (_ST, 1),
            (_LD_HALF, _NET + 42),
            "ports",
            (_LDX_MEM, 1),
            (_XOR_X, 0),
            (_XOR, seed & 0xFFFF),
            (_MUL, 0x9E3779B1),
            (_TAX, 0),
            (_LD_MEM, 0),
            (_ADD_X, 0),
            (_ST, 0),
            "no ports",
            # Each product carries upwards, so what is below decides only after it has been brought there.
            (_LD_MEM, 0),
            (_XOR, seed >> 16 & 0xFFFF_FFFF),
            (_MUL, 0x85EBCA6B),
            (_ST, 0),
            (_RSH, 15),
            (_TAX, 0),
            (_LD_MEM, 0),
            (_XOR_X, 0),
            (_MUL, 0xC2B2AE35),
            (_RSH, 16),
            (_MUL, count),
            (_RSH, 16),
            (_RET_A, 0),
            "rest",
            (_RET, 0),
        ]
    )


def _assemble(lines: list[_Line]) -> list[tuple[int, int, int, int]]:
    """Labels, which stand before what they name, become distances."""
    labels: dict[str, int] = {}
    code: list[_Instruction] = []
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(code)
        else:
            code.append(line)
    program = []
    for at, (operation, operand, *targets) in enumerate(code):
        distances = [labels[target] - at - 1 for target in targets]
        if operation == _JUMP:
            program.append((operation, 0, 0, distances[0]))
        else:
            taken, not_taken = distances or (0, 0)
            program.append((operation, taken, not_taken, operand & 0xFFFF_FFFF))
    return program


class FanoutGroup:
    """Packet sockets of one device, all of them activated and with their filters.

    Args:
        count: how many share the flows.
        seed: see `share_program`.
        loopback: the device is `lo`, whose outgoing copies are left out. The group decides that, not its members.
    """

    def __init__(self, count: int, seed: int, *, loopback: bool) -> None:
        self._program = share_program(count, seed)
        self._kind = _CBPF | _DEFRAG | (_IGNORE_OUTGOING if loopback else 0)
        self._id: int | None = None

    def join(self, member: socket.socket) -> None:
        """Add a socket, which gets the next number.

        Raises:
            CaptureError: the kernel refuses.
        """
        if self._id is not None:
            self._set(member, self._kind, self._id)
            return
        try:
            self._set(member, self._kind | _UNIQUE_ID, 0)
        except CaptureError:
            if not self._kind & _IGNORE_OUTGOING:
                raise
            # Linux before 5.10: these copies are left out later, and only the ring and the counters differ.
            self._kind &= ~_IGNORE_OUTGOING
            self._set(member, self._kind | _UNIQUE_ID, 0)
        self._id = _WORD.unpack(member.getsockopt(_SOL_PACKET, _PACKET_FANOUT, _WORD.size))[0] & 0xFFFF
        instructions = b"".join(struct.pack("=HBBI", *instruction) for instruction in self._program)
        buffer = ctypes.create_string_buffer(instructions, len(instructions))
        program = struct.pack("@HP", len(self._program), ctypes.addressof(buffer))
        member.setsockopt(_SOL_PACKET, _PACKET_FANOUT_DATA, program)

    def replace(self, old: socket.socket, new: socket.socket) -> None:
        """Give `new` the number of `old`, and close `old`."""
        self.join(new)
        old.close()

    @staticmethod
    def _set(member: socket.socket, kind: int, group: int) -> None:
        try:
            member.setsockopt(_SOL_PACKET, _PACKET_FANOUT, _WORD.pack(kind << 16 | group))
        except OSError as exc:
            reason = "that needs Linux 4.12" if exc.errno == errno.EINVAL else exc.strerror
            raise CaptureError(
                f"the device cannot be shared between workers: {reason}", hint="leave --workers out"
            ) from exc


def unread(member: socket.socket) -> tuple[int, int]:
    """Packets that came to a socket since its reader last asked for them: (received, of these dropped)."""
    received, dropped, _ = _STATISTICS.unpack(member.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size))
    return received, dropped
