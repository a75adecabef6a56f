"""FedProx: the proximal term on ciphertext, on plaintext, and in a slow loop with an explicit loss term."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY
from small_trainings import CNN, FRAMES, INDICES, SEED, VALID, plain_labels, reading, reference, trained

from fedpp.cipher.components import Algebra
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.batches import Batches
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.learning.learner import Learner
from fedpp.learning.optimizers import SGD, Adam

MU, EPOCHS = 0.5, 4
HYPERPARAMETERS = Hyperparameters(learning_rate=1e-2, batch_size=3, proximal=MU)
PARTS = replace(HYPERPARAMETERS, batch_size=7, micro_batch=2)


def distance(weights: list[np.ndarray]) -> float:
    """Return the distance of weights from the initial ones."""
    drawn = initial_weights(CNN, 1).values()
    return float(np.sqrt(sum(np.sum((w - w0) ** 2) for w, w0 in zip(weights, drawn, strict=True))))


@pytest.mark.parametrize("hyperparameters", [HYPERPARAMETERS, PARTS], ids=["whole", "parts"])
def test_the_proximal_term_is_that_of_an_explicit_loss(hyperparameters: Hyperparameters):
    """Steps are those of stock Keras layers whose loss has `mu / 2 ||w - w_0||^2` added, by a plain loop."""
    model = models.plaintext(CNN, "float64")
    model.set_weights(list(initial_weights(CNN, 1).values()))
    start = [np.array(variable) for variable in model.trainable_variables]
    optimizer = Adam(Algebra.plaintext(), hyperparameters.learning_rate)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, dtype="float64")
    labels = plain_labels(CNN)
    data = Batches(reading(FRAMES, VALID), *reading(labels), INDICES, hyperparameters.batch_size, SEED)
    for some in data.order(EPOCHS):
        values = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            outputs = model([tf.constant(FRAMES[some]), tf.constant(VALID[some])], training=True)
            pulled = sum(tf.reduce_sum((w - w0) ** 2) for w, w0 in zip(values, start, strict=True))
            total = loss(labels[some], outputs) + MU / 2 * pulled
        optimizer.apply(tape.gradient(total, values), model.trainable_variables)
    found, _ = reference(CNN, hyperparameters, epochs=EPOCHS)
    for one, expected in zip(found, model.get_weights(), strict=True):
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-12)
    without, _ = reference(CNN, replace(hyperparameters, proximal=0.0), epochs=EPOCHS)
    assert distance(found) < 0.95 * distance(without), "the term does something"


@pytest.mark.parametrize(
    ("hyperparameters", "n", "traced"),
    [(HYPERPARAMETERS, 2, True), (PARTS, 2, False), (HYPERPARAMETERS, 3, False)],
    ids=["whole traced", "parts", "three slots"],
)
def test_ciphertext_has_the_proximal_term_of_its_reference(hyperparameters: Hyperparameters, n: int, traced: bool):
    """After the same steps the decrypted weights are the plaintext reference's to 1e-12; no unit is dead here."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=n)
    found, _ = trained(CNN, domain, hyperparameters, start=4, epochs=EPOCHS, traced=traced)
    expected, _ = reference(CNN, hyperparameters, start=4, epochs=EPOCHS)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_weights_of_dead_units_do_not_change(n: int):
    """Weights without gradient on plaintext are not moved by rounding on ciphertext."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=n)
    found, _ = trained(CNN, domain, HYPERPARAMETERS, epochs=EPOCHS)
    expected, _ = reference(CNN, HYPERPARAMETERS, epochs=EPOCHS)
    pairs = list(zip(expected, initial_weights(CNN, 1).values(), strict=True))
    unchanged = sum(int((after == before).sum()) for after, before in pairs)
    assert unchanged == 16 + 1 + 3, "a dense unit is dead: its kernel, bias and outgoing weights"
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)


def test_without_a_proximal_term_there_is_no_anchor(domain: KeyDomain):
    """With mu 0 an optimizer has no more variables, and a training no more state, than without the setting."""
    of = domain.evaluation_key().algebra()
    variables = [keras.Variable(np.ones(3)), keras.Variable(np.ones(3))]
    counts = []
    for optimizer in (Adam(of), Adam(of, proximal=0.0), Adam(of, proximal=0.1)):
        optimizer.build(variables)
        counts.append(len(optimizer.variables))
    assert counts[0] == counts[1] == counts[2] - 2
    plain, without = (
        Learner(CNN, of, r, "float64").state() for r in (Hyperparameters(), replace(HYPERPARAMETERS, proximal=0.0))
    )
    assert plain.keys() == without.keys()


def test_the_anchor_is_the_last_loaded_model(domain: KeyDomain, dataset: EncryptedDataset):
    """With a dominant proximal term the weights stay close to those of the last `load`, not of an earlier one."""
    key, network = domain.evaluation_key(), TINY.changed(architecture="cnn")
    hyperparameters = Hyperparameters(learning_rate=1e-3, batch_size=3, proximal=1e6)
    trainer = EncryptedTrainer(network, key.algebra(), hyperparameters, "float64")
    trainer.model.run_eagerly = True
    for seed in (1, 2):
        rows = encrypted_initial_weights(network, seed, key)
        trainer.load(rows)
        trainer.fit(dataset, epochs=8, seed=SEED)
        for name, values in trainer.rows().items():
            moved = encryption.decrypt(domain, values) - encryption.decrypt(domain, rows[name])
            assert 0 < np.abs(moved).max() < 8e-3, "fewer than the 16 steps of 1e-3 that Adam could go"


def test_an_optimizer_built_in_a_step_keeps_the_weights_of_its_start():
    """If it is built while a step is traced, its anchor is the weights at that time, not at each step."""
    weight, optimizer = keras.Variable(np.array([2.0, -1.0])), SGD(Algebra.plaintext(), 0.125, proximal=0.5)

    @tf.function
    def step() -> None:
        if not optimizer.built:
            optimizer.build([weight])
        optimizer.apply([tf.constant([1.0, 1.0], tf.float64)], [weight])

    expected = start = np.array([2.0, -1.0])
    for _ in range(5):
        step()
        expected = expected - 0.125 * (1.0 + 0.5 * (expected - start))
        np.testing.assert_allclose(np.array(weight), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_mu_is_a_number_of_at_least_0(value: float):
    """Other values raise ConfigError, in the optimizer and in the hyperparameters."""
    for make in (lambda: Adam(Algebra.plaintext(), proximal=value), lambda: Hyperparameters(proximal=value)):
        with pytest.raises(ConfigError, match=f"proximal must be .*{value}"):
            make()
