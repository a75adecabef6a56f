"""Small trainings on ciphertext and on plaintext, with the same data, initial weights and order of batches."""

from functools import cache
from typing import Any

import numpy as np
from conftest import TINY
from numpy.typing import NDArray

from fedpp.cipher.components import Algebra
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.keys import encryption
from fedpp.keys.encryption import PAIRS, SequenceCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.batches import Reader
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.learning.learner import Learner

Values = NDArray[np.floating]

THREE = TINY.changed(classes=("a", "b", "c"))
CNN = THREE.changed(architecture="cnn")  # where layers do not matter: a recurrent one takes several times as long
GENERATOR = np.random.default_rng(4)
COUNT, SEED = 9, (3,)
FRAMES = GENERATOR.normal(size=(COUNT, 2, 8, 8, 1))
VALID = np.arange(2) < GENERATOR.integers(1, 3, size=COUNT)[:, None]
CLASSES = GENERATOR.integers(3, size=COUNT)
STATES = GENERATOR.integers(3, size=(COUNT, 3))  # absent, present, unknown
INDICES = np.arange(COUNT)


def reading(*arrays: NDArray[Any]) -> list[Reader]:
    return [lambda indices, values=values: values[indices] for values in arrays]


def plain_labels(network: ModelSpec) -> Values:
    return PAIRS[STATES] if network.task.multi_label else np.eye(3)[CLASSES]


def encrypted_data(network: ModelSpec, domain: KeyDomain) -> tuple[Values, Values]:
    """Return frames and labels under a domain, in rows."""
    cipher = SequenceCipher(domain, "float64")
    frames = np.stack([cipher.frames(str(i), values) for i, values in enumerate(FRAMES)])
    if network.task.multi_label:
        return frames, np.stack([cipher.findings(str(i), states) for i, states in enumerate(STATES)])
    return frames, np.stack([cipher.label(str(i), int(number), 3) for i, number in enumerate(CLASSES)])


def learner(network: ModelSpec, algebra: Algebra, hyperparameters: Hyperparameters, *, traced: bool = False) -> Learner:
    """Return a learner in float64; its steps run eagerly unless `traced`, since tracing takes ten times as long."""
    made = Learner(network, algebra, hyperparameters, "float64")
    made.model.run_eagerly = not traced
    return made


@cache
def reference(
    network: ModelSpec, hyperparameters: Hyperparameters, *, start: int = 1, epochs: int = 3
) -> tuple[list[Values], Values]:
    """Return the weights and logits of the plaintext reference after training from initial weights of a seed."""
    made = learner(network, Algebra.plaintext(), hyperparameters)
    made.model.set_weights(list(initial_weights(network, start).values()))
    inputs = reading(FRAMES, VALID)
    made.fit(inputs, *reading(plain_labels(network)), INDICES, epochs=epochs, seed=SEED)
    return made.model.get_weights(), made.predict(inputs, INDICES)


def trained(
    network: ModelSpec,
    domain: KeyDomain,
    hyperparameters: Hyperparameters,
    *,
    start: int = 1,
    epochs: int = 3,
    traced: bool = False,
) -> tuple[list[Values], Values]:
    """Return the decrypted weights and logits after the same training on ciphertext."""
    key = domain.evaluation_key()
    frames, labels = encrypted_data(network, domain)
    made = learner(network, key.algebra(), hyperparameters, traced=traced)
    models.set_rows(made.model, network, key.algebra(), encrypted_initial_weights(network, start, key))
    inputs = reading(frames, VALID)
    made.fit(inputs, *reading(labels), INDICES, epochs=epochs, seed=SEED)
    rows = models.get_rows(made.model, network, key.algebra())
    logits = encryption.decrypt(domain, made.predict(inputs, INDICES))
    return [encryption.decrypt(domain, rows[spec.name]) for spec in network.weights()], logits
