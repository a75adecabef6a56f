"""Raw data and the eager execution shared by the tests of simulations."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chexpert_folder import write_hospitals

from fedpp.cli import load_tensorflow


@pytest.fixture(scope="session")
def chexpert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two hospitals, `north` and `south`."""
    root = tmp_path_factory.mktemp("chexpert")
    write_hospitals(root)
    return root


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Run TensorFlow's functions eagerly: one step of a network takes less time than its tracing."""
    load_tensorflow()
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
