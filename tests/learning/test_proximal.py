"""FedProx: the proximal term on ciphertext, on plaintext, and in a slow loop with an explicit loss term."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY

from fedpp.cipher.components import Algebra
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError
from fedpp.keys import encryption
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.batches import Batches, Reader
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.learning.learner import Learner
from fedpp.learning.optimizers import SGD, Adam

MU, SEED, EPOCHS = 0.5, (3,), 4
HYPERPARAMETERS = Hyperparameters(learning_rate=1e-2, batch_size=3, proximal=MU)
GENERATOR = np.random.default_rng(4)
FRAMES = GENERATOR.normal(size=(9, 2, 8, 8, 1))
VALID = np.arange(2) < GENERATOR.integers(1, 3, size=9)[:, None]
CLASSES = GENERATOR.integers(2, size=9)
INDICES = np.arange(9)


def reader(values: np.ndarray) -> Reader:
    return lambda indices: values[indices]


INPUTS, LABELS = [reader(FRAMES), reader(VALID)], reader(np.eye(2)[CLASSES])


def reference(hyperparameters: Hyperparameters, start: int = 1) -> list[np.ndarray]:
    """Return the plaintext reference's weights after some epochs."""
    learner = Learner(TINY, Algebra.plaintext(), hyperparameters, "float64")
    learner.model.set_weights(list(initial_weights(TINY, start).values()))
    learner.model.optimizer.restart()
    learner.fit(INPUTS, LABELS, INDICES, epochs=EPOCHS, seed=SEED)
    return list(learner.model.get_weights())


def ciphertext(hyperparameters: Hyperparameters, domain: KeyDomain, start: int = 1) -> list[np.ndarray]:
    """Return the decrypted weights after the same epochs on ciphertext."""
    key, cipher = domain.evaluation_key(), SequenceCipher(domain, "float64")
    of = key.algebra()
    frames = np.stack([cipher.frames(str(i), values) for i, values in enumerate(FRAMES)])
    labels = np.stack([cipher.label(str(i), int(number), 2) for i, number in enumerate(CLASSES)])
    learner = Learner(TINY, of, hyperparameters, "float64")
    models.set_rows(learner.model, TINY, of, encrypted_initial_weights(TINY, start, key))
    learner.model.optimizer.restart()
    learner.fit([reader(frames), reader(VALID)], reader(labels), INDICES, epochs=EPOCHS, seed=SEED)
    rows = models.get_rows(learner.model, TINY, of)
    return [encryption.decrypt(domain, rows[spec.name]) for spec in TINY.weights()]


def distance(weights: list[np.ndarray]) -> float:
    """Return the distance of weights from the initial ones."""
    drawn = initial_weights(TINY, 1).values()
    return float(np.sqrt(sum(np.sum((w - w0) ** 2) for w, w0 in zip(weights, drawn, strict=True))))


WAYS = pytest.mark.parametrize(
    "hyperparameters", [HYPERPARAMETERS, replace(HYPERPARAMETERS, batch_size=7, micro_batch=2)], ids=["whole", "parts"]
)


@WAYS
def test_the_proximal_term_is_that_of_an_explicit_loss(hyperparameters: Hyperparameters):
    """Steps are those of stock Keras layers whose loss has `mu / 2 ||w - w_0||^2` added, by a plain loop."""
    model = models.plaintext(TINY, "float64")
    model.set_weights(list(initial_weights(TINY, 1).values()))
    start = [np.array(variable) for variable in model.trainable_variables]
    optimizer = Adam(Algebra.plaintext(), hyperparameters.learning_rate)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, dtype="float64")
    for some in Batches(INPUTS, LABELS, INDICES, hyperparameters.batch_size, SEED).order(EPOCHS):
        values = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            outputs = model([tf.constant(FRAMES[some]), tf.constant(VALID[some])], training=True)
            pulled = sum(tf.reduce_sum((w - w0) ** 2) for w, w0 in zip(values, start, strict=True))
            total = loss(LABELS(some), outputs) + MU / 2 * pulled
        optimizer.apply(tape.gradient(total, values), model.trainable_variables)
    found = reference(hyperparameters)
    for one, expected in zip(found, model.get_weights(), strict=True):
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-12)
    assert distance(found) < 0.95 * distance(reference(replace(hyperparameters, proximal=0.0))), (
        "the term does something"
    )


@WAYS
@pytest.mark.parametrize("n", [2, 3])
def test_ciphertext_has_the_proximal_term_of_its_reference(hyperparameters: Hyperparameters, n: int):
    """After the same steps the decrypted weights are the plaintext reference's to 1e-12; no unit is dead here."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=n)
    found = ciphertext(hyperparameters, domain, start=4)
    for one, expected in zip(found, reference(hyperparameters, start=4), strict=True):
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3])
def test_weights_of_dead_units_do_not_change(n: int):
    """Weights without gradient on plaintext are not moved by rounding on ciphertext."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=n)
    found, expected = ciphertext(HYPERPARAMETERS, domain), reference(HYPERPARAMETERS)
    pairs = list(zip(expected, initial_weights(TINY, 1).values(), strict=True))
    assert sum(int((after == before).sum()) for after, before in pairs) > 50, "there are dead units"
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
        Learner(TINY, of, r, "float64").state() for r in (Hyperparameters(), replace(HYPERPARAMETERS, proximal=0.0))
    )
    assert plain.keys() == without.keys()


def test_the_anchor_is_the_last_loaded_model(domain: KeyDomain, dataset: EncryptedDataset):
    """With a dominant proximal term the weights stay close to those of the last `load`, not of an earlier one."""
    key = domain.evaluation_key()
    hyperparameters = Hyperparameters(learning_rate=1e-3, batch_size=3, proximal=1e6)
    trainer = EncryptedTrainer(TINY, key.algebra(), hyperparameters, "float64")
    for seed in (1, 2):
        rows = encrypted_initial_weights(TINY, seed, key)
        trainer.load(rows)
        trainer.fit(dataset, epochs=8, seed=SEED)
        for name, values in trainer.rows().items():
            moved = encryption.decrypt(domain, values) - encryption.decrypt(domain, rows[name])
            assert 0 < np.abs(moved).max() < 8e-3, "fewer than the 16 steps of 1e-3 that Adam could go"


def test_a_resumed_training_keeps_its_anchor(domain: KeyDomain, dataset: EncryptedDataset):
    """Another trainer, with other weights loaded, resumes from the state of epoch 2 with the same result to 1e-9."""
    key = domain.evaluation_key()
    whole, first, second = (EncryptedTrainer(TINY, key.algebra(), HYPERPARAMETERS, "float64") for _ in range(3))
    for one in (whole, first):
        one.load(encrypted_initial_weights(TINY, 1, key))
    second.load(encrypted_initial_weights(TINY, 2, key))
    whole.fit(dataset, epochs=4, seed=SEED)
    first.fit(dataset, epochs=2, seed=SEED)
    second.restore(first.state())
    second.fit(dataset, epochs=4, seed=SEED, done=2)
    for name, values in second.rows().items():
        np.testing.assert_allclose(values, whole.rows()[name], rtol=0, atol=1e-9)


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
