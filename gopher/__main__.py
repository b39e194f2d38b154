"""`python -m gopher` is the `gopher` command."""

import sys

from gopher.cli import main

if __name__ == "__main__":
    sys.exit(main())
