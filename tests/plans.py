"""A run's plan, for tests of what is said about it."""

from conftest import TINY

from fedpp.config.hyperparameters import Recipe, ServerRule
from fedpp.protocol.run_spec import Plan

PLAN = Plan(
    domain="d" * 64,
    network=TINY,
    dtype="float64",
    recipe=Recipe(learning_rate=0.1, batch_size=2),
    rule=ServerRule("fedyogi", 0.1),
    epochs=1,
    seed=2**63 - 1,
    masked=True,
    examples=20,
    sites=3,
    most_examples=7,
    bound=8.0,
    most_norm=10.0,
    most_loss_rise=1.0,
)
