"""Small networks without the seconds that TensorFlow takes to trace them."""

import sys

import pytest

from fedpp.cli import load_tensorflow


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Keras run a network's steps one operation after the other; a traced one takes seconds to trace."""
    load_tensorflow()
    monkeypatch.setattr(sys.modules["keras"].Model, "run_eagerly", property(lambda _: True, lambda *_: None))
