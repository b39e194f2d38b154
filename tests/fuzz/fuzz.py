"""Run one target under libFuzzer, guided by the coverage of gopher, C and Python: see `make fuzz`.

Usage: python -m tests.fuzz.fuzz TARGET [libFuzzer options and corpus folders]
"""

import functools
import importlib
import os
import sys

import atheris

from tests.support import packets

if __name__ == "__main__":
    name = sys.argv[1]
    # With this as its own name, libFuzzer can start itself again, which it does for -merge and -fork.
    sys.argv[:2] = [f"{sys.executable} -m tests.fuzz.fuzz {name}"]
    with atheris.instrument_imports(include=["gopher"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    # Half of the time for making a packet went into reading the same few addresses.
    packets.ip_address = functools.cache(packets.ip_address)
    # The secret of the flow table: an input must do the same each time.
    os.urandom = bytes
    atheris.Setup(sys.argv, target.run)
    atheris.Fuzz()
