"""A run specification, for tests of requests and of what is checked of it."""

from typing import Any

from conftest import TINY

from fedpp.config.server_optimizer import SERVER_NAMES
from fedpp.protocol.run_spec import RunSpec

RUN_SPEC = RunSpec.of(
    **TINY.values(),
    domain="d" * 64,
    dtype="float64",
    learning_rate=0.1,
    batch_size=2,
    server_optimizer="fedyogi",
    server_learning_rate=0.1,
    epochs=1,
    seed=2**63 - 1,
    masked=True,
    examples=20,
    sites=3,
    max_examples=7,
)


def varied(run_spec: RunSpec, **changes: Any) -> RunSpec:
    """Return a run specification with other values, also of a whole network, hyperparameters or server optimizer."""
    values: dict[str, Any] = {}
    for name in ("network", "hyperparameters"):
        if name in changes:
            values |= changes.pop(name).values()
    if "server_optimizer" in changes and not isinstance(changes["server_optimizer"], str):
        optimizer = changes.pop("server_optimizer").values()
        values |= {SERVER_NAMES.outer(name): value for name, value in optimizer.items()}
    return run_spec.changed(**values, **changes)
