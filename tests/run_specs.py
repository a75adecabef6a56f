"""A run's plan, for tests of what is said about it."""

from conftest import TINY

from fedpp.config.hyperparameters import Hyperparameters, ServerOptimizerConfig
from fedpp.protocol.run_spec import RunSpec

RUN_SPEC = RunSpec(
    domain="d" * 64,
    network=TINY,
    dtype="float64",
    hyperparameters=Hyperparameters(learning_rate=0.1, batch_size=2),
    rule=ServerOptimizerConfig("fedyogi", 0.1),
    epochs=1,
    seed=2**63 - 1,
    masked=True,
    examples=20,
    sites=3,
    max_examples=7,
    bound=8.0,
    max_norm=10.0,
    max_loss_increase=1.0,
)
