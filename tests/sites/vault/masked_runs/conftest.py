"""Hospitals with real vaults, for the tests of masked runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from run_hospitals import Hospital, opened


@pytest.fixture
def cohort(tmp_path: Path) -> Iterator[list[Hospital]]:
    """Return three hospitals."""
    with opened(tmp_path) as made:
        yield made


@pytest.fixture
def five(tmp_path: Path) -> Iterator[list[Hospital]]:
    """Return five hospitals, of which four can go on without the fifth."""
    with opened(tmp_path, 5) as made:
        yield made
