"""The settings of a run."""

import tomllib

import pytest
from conftest import ROOT

from fedpp.config import NetworkSpec, RunConfig
from fedpp.errors import ConfigError

DEFAULTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def test_the_defaults_are_a_run():
    """The defaults in pyproject.toml are accepted, and describe the network that NetworkSpec has by default."""
    run = RunConfig.from_mapping(DEFAULTS)
    network = NetworkSpec(4, 64, 64, 1, 2)
    ours = (network.filters, network.kernel, network.dense, network.lstm)
    assert (run.filter_sizes(), run.kernel, run.dense, run.lstm) == ours


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("sites", "rounds", "epochs", "batch-size", "kernel", "dense", "lstm")),
        *(
            (name, value)
            for name in ("learning-rate", "wait-seconds", "reply-seconds")
            for value in (0.0, -1.0, float("nan"), float("inf"))
        ),
        ("seed", -1),
        ("dtype", "float16"),
        ("filters", "16,x"),
        ("filters", "0,-3"),
        ("rounds", True),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object):
    """What cannot be run is refused, with its name and the value."""
    with pytest.raises(ConfigError, match=f"run setting {name} .*{value}"):
        RunConfig.from_mapping({**DEFAULTS, name: value})
