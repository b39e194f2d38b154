"""For all tests."""

import pytest

# Before any of them is imported: what they assert is to be shown as what tests assert is.
pytest.register_assert_rewrite("tests.support.accounts", "tests.support.command", "tests.support.servers")
