"""Limits that the kernel sets for this process."""

from __future__ import annotations

import resource

__all__ = ["raise_descriptor_limit"]


def raise_descriptor_limit(needed: int) -> None:
    """Allow this process that many descriptors, or as many as it may allow itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        try:
            # Root may raise the hard limit too.
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, needed))
        except (OSError, ValueError):
            needed = hard
        else:
            return
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
