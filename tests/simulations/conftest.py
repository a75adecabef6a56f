"""Raw data shared by the tests of simulations."""

from pathlib import Path

import pytest
from chexpert_folder import write_hospitals


@pytest.fixture(scope="session")
def chexpert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two hospitals, `north` and `south`."""
    root = tmp_path_factory.mktemp("chexpert")
    write_hospitals(root)
    return root
