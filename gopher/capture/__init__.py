"""Capture mode: from the network tap (or a capture file) to the upstream connections."""
