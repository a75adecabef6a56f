"""The settings of a training: what they refuse."""

from typing import Any

import pytest

from fedpp.config.hyperparameters import Hyperparameters
from fedpp.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("learning_rate", "fast"),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("micro_batch", 0),
        ("positive_weight", -1.0),
        ("positive_weight", float("nan")),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("proximal", -0.1),
        ("proximal", float("inf")),
        ("proximal", True),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: Any):
    """Each is refused with its name and the value received."""
    with pytest.raises(ConfigError, match=f"{name.replace('_', '-')} must be .*{value}"):
        Hyperparameters(**{name: value})


def test_balanced_weights_need_a_federation():
    """A weight of 0 is refused in one line where nobody counts labels together; any other one is not."""
    Hyperparameters(positive_weight=0.01).require_fixed()
    with pytest.raises(ConfigError, match="^positive-weight 0 is of a federation, .* give a number above 0$"):
        Hyperparameters(positive_weight=0.0).require_fixed()


def test_the_settings_come_back():
    """A recipe is what its mapping says."""
    hyperparameters = Hyperparameters(0.1, 256, micro_batch=32, positive_weight=2.0, label_smoothing=0.1, proximal=0.01)
    assert Hyperparameters.from_mapping(hyperparameters.to_mapping()) == hyperparameters
