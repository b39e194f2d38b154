"""For all tests."""

import pytest

# Before any of them is imported: what they assert is to be shown as what tests assert is.
pytest.register_assert_rewrite(*(f"tests.support.{name}" for name in ("accounts", "command", "podman", "servers")))


@pytest.fixture(scope="session")
def docker():
    """Docker's command, with the image of the Dockerfile, which takes minutes to build."""
    from tests.support.podman import with_image

    with with_image() as docker:
        yield docker
