"""The system calls by which a thread uses its capabilities and gives them up; Python has none of them.

For `gopher.privileges`. Of the calling thread only: the C library does not spread these calls to all threads, as it
does those that change users. Through ctypes: they are made once, and an extension of their own would be 30 KB of wheel.
It is loaded where something is to be called, for it takes memory, and a Python may be without it.
"""

from __future__ import annotations

import itertools
import os
import struct
from typing import TYPE_CHECKING, Any, Final

from gopher.errors import GopherError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["clear_bounding_set", "forbid_new_privileges", "set_capabilities"]

# <linux/prctl.h>
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38

# <linux/capability.h>: struct __user_cap_header_struct {version, pid} and two of __user_cap_data_struct {effective,
# permitted, inheritable}, the lower 32 capabilities first.
_HEADER: Final = struct.pack("=Ii", 0x20080522, 0)
_SET_BITS: Final = 32


def clear_bounding_set() -> None:
    """Needs CAP_SETPCAP. Raises: OSError, GopherError."""
    for capability in itertools.count():
        try:
            held = _prctl(_PR_CAPBSET_READ, capability)
        except OSError:
            return  # EINVAL: past the last one that this kernel knows
        if held:
            _prctl(_PR_CAPBSET_DROP, capability)


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """Replace the three sets, as bits; what is no more permitted and inheritable leaves the ambient one.

    Raises: OSError, GopherError.
    """
    sets = [(word >> shift) & 0xFFFF_FFFF for shift in (0, _SET_BITS) for word in (effective, permitted, inheritable)]
    _call("capset", [_HEADER, struct.pack("=6I", *sets)])


def forbid_new_privileges() -> None:
    """No program that is executed from here gets more rights, whatever its file says. Raises: OSError, GopherError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, argument: int) -> int:
    # The kernel looks at all five, and wants zeros.
    return _call("prctl", [option, argument, 0, 0, 0])


def _call(name: str, arguments: Sequence[Any]) -> int:
    try:
        import ctypes
    except ImportError as error:
        raise GopherError(
            "this Python has no ctypes, and gopher gives up rights by it", hint="install libffi, then Python again"
        ) from error
    words = [ctypes.c_ulong(each) if isinstance(each, int) else ctypes.create_string_buffer(each) for each in arguments]
    result = int(getattr(ctypes.CDLL(None, use_errno=True), name)(*words))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
