"""Tiny global states, their updates, and what they decrypt to, for the tests of the server's side."""

from collections.abc import Mapping

import numpy as np

from fedpp.aggregation import global_state
from fedpp.aggregation.global_state import GlobalState, in_order
from fedpp.cipher.components import Algebra
from fedpp.config.model_spec import ModelChoices, ModelSpec
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.config.task import Task
from fedpp.keys.key_domain import KeyDomain

Arrays = Mapping[str, np.ndarray]

NETWORK = ModelSpec(Task(1, 2, 2, 1, ("no", "yes")), ModelChoices("cnn", filters=(1,), kernel=1, dense=2, lstm=1))
RULES = {
    "fedavg": ServerOptimizerConfig(),
    "fedavg slowed": ServerOptimizerConfig(learning_rate=0.5),
    "fedavgm": ServerOptimizerConfig("fedavgm", 0.7, momentum=0.9),
    "fedavgm without": ServerOptimizerConfig("fedavgm", 0.7, momentum=0.0),
    "fedadam": ServerOptimizerConfig("fedadam", 0.1),
    "fedadam flat": ServerOptimizerConfig("fedadam", 0.1, momentum=0.0, beta_2=0.0, tau=0.5),
    "fedyogi": ServerOptimizerConfig("fedyogi", 0.1),
}


def domain_of(n: int) -> KeyDomain:
    return KeyDomain.of_secret(bytes(range(32)), n=n)


def algebra_of(n: int) -> Algebra:
    return Algebra.plaintext() if n == 1 else domain_of(n).evaluation_key().algebra()


def drawn(n: int, seed: int, size: float = 1.0) -> dict[str, np.ndarray]:
    """Return float64 rows of drawn slots."""
    generator, of = np.random.default_rng(seed), algebra_of(n)
    slots = {spec.name: generator.normal(size=(n, *spec.shape)) * size for spec in NETWORK.weights()}
    return {name: of.encrypted(tuple(values)) for name, values in slots.items()}


def message(rows: Arrays, n: int) -> dict[str, np.ndarray]:
    """Return rows `[*shape, 1]` of the first slot alone: what plain numbers are."""
    return {name: algebra_of(n).decrypted(values)[0][..., None] for name, values in rows.items()}


def flat(rows: Arrays, network: ModelSpec) -> np.ndarray:
    """Return rows as one float64 vector `[parameters * n]` in the network's order."""
    return np.concatenate(in_order(rows, network)).astype(np.float64)


def begun(rows: Arrays, rule: ServerOptimizerConfig, *, dtype: str = "float64") -> GlobalState:
    n = next(iter(rows.values())).shape[-1]
    return global_state.initial(
        rows,
        network=NETWORK,
        domain=algebra_of(n).domain,
        dtype=dtype,
        classes=("no", "yes"),
        rule=rule,
        salt="5a" * 32,
    )
