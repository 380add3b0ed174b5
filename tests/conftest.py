"""What every test's environment has in common."""

import os

import pytest

LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PYCLS_DATA")


@pytest.fixture(autouse=True)
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test is not a worker of whatever started the tests, and does not see the user's data."""
    for name in LAUNCH_VARIABLES:
        if name in os.environ:
            monkeypatch.delenv(name)
