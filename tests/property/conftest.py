"""Hypothesis profiles by HYPOTHESIS_PROFILE: `fast` (default, the same cases each time), `deep` (others each time)."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fast", max_examples=150, stateful_step_count=40, derandomize=True, database=None, deadline=None
)
settings.register_profile(
    "deep",
    max_examples=3_000,
    stateful_step_count=100,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))
