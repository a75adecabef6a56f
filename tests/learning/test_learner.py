"""Learner on ciphertext, compared with its plaintext reference: networks, labels and hyperparameters."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from small_trainings import (
    CNN,
    FRAMES,
    INDICES,
    SEED,
    THREE,
    VALID,
    encrypted_data,
    learner,
    plain_labels,
    reading,
    reference,
    trained,
)

from fedpp.cipher.components import Algebra
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import ModelError
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.learning.learner import Learner


def compare(
    network: ModelSpec, domain: KeyDomain, hyperparameters: Hyperparameters, *, traced: bool
) -> list[NDArray[np.floating]]:
    """Compare weights and logits on ciphertext with the plaintext reference's; return the reference's weights."""
    expected, expected_logits = reference(network, hyperparameters)
    found, logits = trained(network, domain, hyperparameters, traced=traced)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-10)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)
    return expected


@pytest.mark.parametrize(
    ("architecture", "voting", "multi_label"),
    [
        ("cnn", False, True),
        ("cnn-lstm", False, False),
        ("cnn-bi-lstm", True, False),
        pytest.param("cnn", True, False, marks=pytest.mark.slow),
        pytest.param("cnn-lstm", True, True, marks=pytest.mark.slow),
        pytest.param("cnn-bi-lstm", False, True, marks=pytest.mark.slow),
    ],
)
def test_every_network_trains_as_its_plaintext_reference(
    architecture: Any, voting: bool, multi_label: bool, domain: KeyDomain
):
    """After 9 steps weights agree to 1e-11, and all have moved: of three classes, or three findings, some unknown."""
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
    network = CNN.changed(multi_label=multi_label)
    usual = Hyperparameters(learning_rate=1e-2, batch_size=3)
    expected = compare(network, domain, replace(usual, **settings), traced="micro_batch" in settings)
    without, _ = reference(network, usual)
    assert max(abs(one - other).max() for one, other in zip(expected, without, strict=True)) > 1e-3


@pytest.mark.parametrize(
    ("multi_label", "labels", "weight"), [(False, (6, 2, 2), 3.0), (True, (6, 2, 3, 1, 9, 3), 3.0)]
)
def test_balanced_labels_weigh_the_loss_from_when_they_are_known(
    multi_label: bool, labels: tuple[int, ...], weight: float, domain: KeyDomain
):
    """Without labels as with weight 1, with them as with the weight that they give, to the bit, in any order."""
    network, usual = CNN.changed(multi_label=multi_label), Hyperparameters(learning_rate=1e-2, batch_size=3)
    key, (frames, targets) = domain.evaluation_key(), encrypted_data(network, domain)
    rows, inputs = encrypted_initial_weights(network, 1, key), reading(frames, VALID)

    def weights_of(positive_weight: float, *known: tuple[int, ...] | None) -> list[NDArray[np.floating]]:
        made = learner(network, key.algebra(), replace(usual, positive_weight=positive_weight))
        for of_round in known:
            models.set_rows(made.model, network, key.algebra(), rows)
            made.model.optimizer.restart()
            made.balance(of_round)
            made.fit(inputs, *reading(targets), INDICES, epochs=1, seed=SEED)
        return made.model.get_weights()

    fixed = {weight: weights_of(weight, None), 1.0: weights_of(1.0, labels)}
    for expected, known in ((fixed[1.0], (None,)), (fixed[weight], (None, labels)), (fixed[1.0], (labels, None))):
        for one, other in zip(weights_of(0.0, *known), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert max(abs(one - other).max() for one, other in zip(*fixed.values(), strict=True)) > 1e-3


@pytest.mark.parametrize(("batch", "part", "expected"), [(7, 2, 2), (2, 2, None), (2, 7, None)])
def test_a_batch_within_the_micro_batch_is_one_part(batch: int, part: int, expected: int | None, domain: KeyDomain):
    """Only a batch that is larger than a micro-batch goes through the network in parts."""
    algebra = domain.evaluation_key().algebra()
    made = Learner(CNN, algebra, Hyperparameters(batch_size=batch, micro_batch=part), "float32")
    assert made.model.micro_batch == expected


@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_training_resumes_from_its_state(proximal: float, domain: KeyDomain):
    """From the state after 2 epochs, another learner, with other weights, reaches the same weights 1 epoch later."""
    key, hyperparameters = domain.evaluation_key(), Hyperparameters(1e-2, batch_size=4, proximal=proximal)
    frames, labels = encrypted_data(CNN, domain)
    inputs, (wanted,) = reading(frames, VALID), reading(labels)
    whole, first, second = (learner(CNN, key.algebra(), hyperparameters) for _ in range(3))
    for one, start in ((whole, 1), (first, 1), (second, 2)):
        models.set_rows(one.model, CNN, key.algebra(), encrypted_initial_weights(CNN, start, key))
    whole.fit(inputs, wanted, INDICES, epochs=3, seed=SEED)
    first.fit(inputs, wanted, INDICES, epochs=2, seed=SEED)
    second.restore(first.state())
    second.fit(inputs, wanted, INDICES, epochs=3, seed=SEED, done=2)
    for one, other in zip(second.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)
    assert int(second.model.optimizer.iterations) == int(whole.model.optimizer.iterations) == 9


def test_a_diverging_training_names_the_layer(domain: KeyDomain):
    """With a learning rate far too large, the error names the place, epoch, batch and advice."""
    with pytest.raises(ModelError, match=r"is not finite.*, in epoch 1, batch 2: lower the learning rate"):
        trained(CNN, domain, Hyperparameters(learning_rate=1e200, batch_size=3))


@pytest.mark.parametrize("use", ["fit", "state"])
def test_prediction_makes_no_moments(use: str):
    """The optimizer's variables, twice the network's memory, are made when training or a checkpoint needs them."""
    made = learner(CNN, Algebra.plaintext(), Hyperparameters())
    inputs, (labels,) = reading(FRAMES, VALID), reading(plain_labels(CNN))
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
