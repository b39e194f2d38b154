"""Relay mode: mirrored traffic in, and on to a web server, with production's session values turned into the shadow's.

What decides here does no I/O: coupling (`coupling.py` and the modules it stands on) and the exchange. What acts is the
server, which owns the connections.
"""
