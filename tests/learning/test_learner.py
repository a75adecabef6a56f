"""Learner on ciphertext, compared with its plaintext reference: networks, labels and hyperparameters."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from conftest import TINY
from numpy.typing import NDArray

from fedpp.cipher.components import Algebra
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import ModelError
from fedpp.keys import encryption
from fedpp.keys.encryption import PAIRS, SequenceCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.batches import Reader
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.learning.learner import Learner

GENERATOR = np.random.default_rng(4)
COUNT = 9
FRAMES = GENERATOR.normal(size=(COUNT, 2, 8, 8, 1))
VALID = np.arange(2) < GENERATOR.integers(1, 3, size=COUNT)[:, None]
CLASSES = GENERATOR.integers(3, size=COUNT)
STATES = GENERATOR.integers(3, size=(COUNT, 3))  # absent, present, unknown
INDICES = np.arange(COUNT)


def reading(*arrays: NDArray[Any]) -> list[Reader]:
    return [lambda indices, values=values: values[indices] for values in arrays]


def learner(network: ModelSpec, algebra: Algebra, hyperparameters: Hyperparameters, *, traced: bool) -> Learner:
    """Return a learner in float64; its steps run eagerly unless `traced`, since tracing takes ten times as long."""
    made = Learner(network, algebra, hyperparameters, "float64")
    made.model.run_eagerly = not traced
    return made


def reference(
    network: ModelSpec, hyperparameters: Hyperparameters, *, traced: bool = False
) -> tuple[list[NDArray[np.floating]], NDArray[np.floating]]:
    """Return the weights and logits of the plaintext reference after 5 epochs."""
    made = learner(network, Algebra.plaintext(), hyperparameters, traced=traced)
    made.model.set_weights(list(initial_weights(network, 1).values()))
    labels: NDArray[np.floating] = PAIRS[STATES] if network.task.multi_label else np.eye(3)[CLASSES]
    made.fit(reading(FRAMES, VALID), reading(labels)[0], INDICES, epochs=5, seed=(3,))
    return made.model.get_weights(), made.predict(reading(FRAMES, VALID), INDICES)


def trained(
    network: ModelSpec, domain: KeyDomain, hyperparameters: Hyperparameters, *, traced: bool = False
) -> tuple[list[NDArray[np.floating]], NDArray[np.floating]]:
    """Return the decrypted weights and logits after 5 epochs on ciphertext."""
    key = domain.evaluation_key()
    cipher = SequenceCipher(domain, "float64")
    frames = np.stack([cipher.frames(str(i), values) for i, values in enumerate(FRAMES)])
    if network.task.multi_label:
        labels = np.stack([cipher.findings(str(i), states) for i, states in enumerate(STATES)])
    else:
        labels = np.stack([cipher.label(str(i), int(number), 3) for i, number in enumerate(CLASSES)])
    made = learner(network, key.algebra(), hyperparameters, traced=traced)
    models.set_rows(made.model, network, key.algebra(), encrypted_initial_weights(network, 1, key))
    made.fit(reading(frames, VALID), reading(labels)[0], INDICES, epochs=5, seed=(3,))
    rows = models.get_rows(made.model, network, key.algebra())
    logits = encryption.decrypt(domain, made.predict(reading(frames, VALID), INDICES))
    return [encryption.decrypt(domain, rows[spec.name]) for spec in network.weights()], logits


def compare(
    network: ModelSpec, domain: KeyDomain, hyperparameters: Hyperparameters, *, traced: bool
) -> list[NDArray[np.floating]]:
    """Compare weights and logits on ciphertext with the plaintext reference's; return the reference's weights."""
    expected, expected_logits = reference(network, hyperparameters, traced=traced)
    found, logits = trained(network, domain, hyperparameters, traced=traced)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-10)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)
    return expected


THREE = TINY.changed(classes=("a", "b", "c"))


@pytest.mark.parametrize(
    ("architecture", "voting", "multi_label"),
    [
        ("cnn", False, True),
        ("cnn", True, False),
        ("cnn-lstm", False, False),
        ("cnn-lstm", True, True),
        ("cnn-bi-lstm", False, True),
        ("cnn-bi-lstm", True, False),
    ],
)
def test_every_network_trains_as_its_plaintext_reference(
    architecture: Any, voting: bool, multi_label: bool, domain: KeyDomain
):
    """After 15 steps weights agree to 1e-11, and all have moved: of three classes, or three findings, some unknown."""
    network = THREE.changed(architecture=architecture, voting=voting, multi_label=multi_label)
    traced = architecture == "cnn-bi-lstm" and voting
    expected = compare(network, domain, Hyperparameters(learning_rate=1e-2, batch_size=3), traced=traced)
    drawn = initial_weights(network, 1).values()
    assert all(abs(one - start).max() > 1e-3 for one, start in zip(expected, drawn, strict=True))


@pytest.mark.parametrize(
    ("settings", "multi_label"),
    [
        ({"positive_weight": 3.0}, True),
        ({"positive_weight": 3.0, "label_smoothing": 0.2}, False),
        ({"batch_size": 7, "micro_batch": 2}, False),
    ],
)
def test_every_setting_has_the_same_effect_on_plaintext(settings: dict[str, Any], multi_label: bool, domain: KeyDomain):
    """Weights of positives, smoothing, and large batches in parts: alike, and other than without."""
    network = THREE.changed(multi_label=multi_label)
    usual = Hyperparameters(learning_rate=1e-2, batch_size=3)
    expected = compare(network, domain, replace(usual, **settings), traced="micro_batch" in settings)
    without, _ = reference(network, usual)
    assert max(abs(one - other).max() for one, other in zip(expected, without, strict=True)) > 1e-3


@pytest.mark.parametrize(("batch", "part", "expected"), [(7, 2, 2), (2, 2, None), (2, 7, None)])
def test_a_batch_within_the_micro_batch_is_one_part(batch: int, part: int, expected: int | None, domain: KeyDomain):
    """Only a batch that is larger than a micro-batch goes through the network in parts."""
    algebra = domain.evaluation_key().algebra()
    made = Learner(TINY, algebra, Hyperparameters(batch_size=batch, micro_batch=part), "float32")
    assert made.model.micro_batch == expected


def test_training_resumes_from_its_state(domain: KeyDomain):
    """From the state after 2 epochs, another learner reaches the same weights 3 epochs later."""
    key, hyperparameters = domain.evaluation_key(), Hyperparameters(learning_rate=1e-2, batch_size=4)
    frames = np.stack([SequenceCipher(domain, "float64").frames(str(i), v) for i, v in enumerate(FRAMES)])
    labels = np.stack([SequenceCipher(domain, "float64").label(str(i), int(k), 3) for i, k in enumerate(CLASSES)])
    inputs, wanted = reading(frames, VALID), reading(labels)[0]
    whole, first, second = (learner(THREE, key.algebra(), hyperparameters, traced=False) for _ in range(3))
    for one in (whole, first):
        models.set_rows(one.model, THREE, key.algebra(), encrypted_initial_weights(THREE, 1, key))
    keras.utils.set_random_seed(0)
    whole.fit(inputs, wanted, INDICES, epochs=5, seed=(3,))
    first.fit(inputs, wanted, INDICES, epochs=2, seed=(3,))
    second.restore(first.state())
    second.fit(inputs, wanted, INDICES, epochs=5, seed=(3,), done=2)
    for one, other in zip(second.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)
    assert int(second.model.optimizer.iterations) == int(whole.model.optimizer.iterations) == 15


def test_a_diverging_training_names_the_layer(domain: KeyDomain):
    """With a learning rate far too large, the error names the place, epoch, batch and advice."""
    with pytest.raises(ModelError, match=r"is not finite.*, in epoch 1, batch 2: lower the learning rate"):
        trained(THREE, domain, Hyperparameters(learning_rate=1e200, batch_size=3))


@pytest.mark.parametrize("use", ["fit", "state"])
def test_prediction_makes_no_moments(use: str):
    """The optimizer's variables, twice the network's memory, are made when training or a checkpoint needs them."""
    made = learner(THREE, Algebra.plaintext(), Hyperparameters(), traced=True)
    inputs, labels = reading(FRAMES, VALID), reading(np.eye(3)[CLASSES])[0]
    made.predict(inputs, INDICES)
    assert not made.model.optimizer.built
    if use == "fit":
        began: list[bool] = []
        seen = keras.callbacks.LambdaCallback(on_train_begin=lambda _: began.append(made.model.optimizer.built))
        made.fit(inputs, labels, INDICES, epochs=1, seed=(3,), callbacks=[seen])
        assert began == [True], "a step that is traced before would be traced twice"
    else:
        made.state()
        assert made.model.optimizer.built
