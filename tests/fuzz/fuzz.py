"""Run one target under libFuzzer, guided by the coverage of the extensions: see `make fuzz`.

Usage: python -m tests.fuzz.fuzz TARGET [libFuzzer options and corpus folders]
"""

import importlib
import os
import sys

import atheris

if __name__ == "__main__":
    target = importlib.import_module(f"tests.fuzz.{sys.argv.pop(1)}")
    # The secret of the flow table: an input must do the same each time.
    os.urandom = bytes
    atheris.Setup(sys.argv, target.run)
    atheris.Fuzz()
