"""Gopher mirrors live TCP traffic to other machines."""

__version__ = "0.1.0"
