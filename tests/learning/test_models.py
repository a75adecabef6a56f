"""Models on ciphertext and plaintext with padded sequences and time gaps: padding does not matter."""

import numpy as np
import pytest
from conftest import TINY
from numpy.typing import NDArray

from fedpp.cipher import algebra
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import ModelError
from fedpp.keys import encryption
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.decoys import DECOY_BOUND, initial_deviation
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights

Values = NDArray[np.floating]
GAPS = pytest.mark.parametrize("gaps", [False, True])
GENERATOR = np.random.default_rng(11)
FRAMES, TIMES = GENERATOR.normal(size=(5, 4, 8, 8, 1)), GENERATOR.random((5, 4))
VALID = GENERATOR.random((5, 4)) < 0.6


def plaintext_logits(network: ModelSpec, frames: Values, valid: NDArray[np.bool_], times: Values) -> Values:
    """Return the logits `[batch, classes]` of the stock model with the weights of seed 3, all of them moved."""
    model = models.plaintext(network, "float64")
    model.set_weights([weight + 0.1 for weight in initial_weights(network, 3).values()])
    return np.asarray(model([frames, valid, times][: 3 if network.task.gaps else 2]))


def encrypted_logits(
    network: ModelSpec, domain: KeyDomain, frames: Values, valid: NDArray[np.bool_], times: Values
) -> Values:
    """Return the same of the encrypted model, decrypted."""
    key = domain.evaluation_key()
    model = models.encrypted(network, key.algebra(), "float64")
    moved = algebra.encrypt(np.full(key.n, 0.1), key.matrix)
    rows = {name: row + moved for name, row in encrypted_initial_weights(network, 3, key).items()}
    models.set_rows(model, network, key.algebra(), rows)
    inputs = [SequenceCipher(domain, "float64").frames("s", frames), valid]
    inputs += [SequenceCipher(domain, "float64").frames("s", times)] if network.task.gaps else []
    return encryption.decrypt(domain, np.asarray(model(inputs)))


def spec(frames: int, *, gaps: bool) -> ModelSpec:
    return TINY.changed(frames=frames, gaps=gaps)


@GAPS
def test_predictions_agree_for_any_padding_mask(gaps: bool, domain: KeyDomain):
    """Logits on ciphertext decrypt to those on plaintext, with time gaps and any frames missing."""
    expected = plaintext_logits(spec(4, gaps=gaps), FRAMES, VALID, TIMES)
    found = encrypted_logits(spec(4, gaps=gaps), domain, FRAMES, VALID, TIMES)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.ptp(expected, axis=0).min() > 1e-3, "the logits must differ from sequence to sequence"


@GAPS
@pytest.mark.parametrize("padding", [0.0, 7.0])
def test_a_padded_sequence_has_the_prediction_of_the_unpadded_one(gaps: bool, padding: float, domain: KeyDomain):
    """Two frames padded to four have the prediction of the network for two frames, whatever the padding."""
    all_valid = np.ones((5, 2), bool)
    short = (FRAMES[:, :2], all_valid, TIMES[:, :2])
    padded = FRAMES.copy(), np.pad(all_valid, ((0, 0), (0, 2))), TIMES.copy()
    for values in (padded[0], padded[2]):
        values[:, 2:] = padding
    small, large = spec(2, gaps=gaps), spec(4, gaps=gaps)
    np.testing.assert_allclose(plaintext_logits(large, *padded), plaintext_logits(small, *short), atol=1e-12)
    on_ciphertext = encrypted_logits(large, domain, *padded)
    np.testing.assert_allclose(on_ciphertext, encrypted_logits(small, domain, *short), atol=1e-12)
    all_four = encrypted_logits(large, domain, padded[0], np.ones((5, 4), bool), padded[2])
    assert abs(all_four - on_ciphertext).min() > 1e-4, "a frame that counts must change the prediction"


def test_gaps_change_the_prediction(domain: KeyDomain):
    """The same frames at other times have another prediction, equal to that on plaintext."""
    network, valid = spec(4, gaps=True), np.ones((5, 4), bool)
    near, far = (encrypted_logits(network, domain, FRAMES, valid, times) for times in (TIMES, TIMES + 1))
    assert abs(near - far).min() > 1e-4
    np.testing.assert_allclose(far, plaintext_logits(network, FRAMES, valid, TIMES + 1), atol=1e-12)


@GAPS
def test_the_specification_lists_the_weights_of_the_stock_model(gaps: bool):
    """Shapes and their order are Keras's own for the plaintext network."""
    network = spec(4, gaps=gaps)
    assert [w.shape for w in models.plaintext(network, "float32").get_weights()] == [s.shape for s in network.weights()]


def test_rows_that_do_not_fit_set_nothing(domain: KeyDomain):
    """A wrong row of any weight leaves all weights unchanged."""
    key, network = domain.evaluation_key(), spec(4, gaps=False)
    model = models.encrypted(network, key.algebra(), "float64")
    rows = encrypted_initial_weights(network, 3, key)
    models.set_rows(model, network, key.algebra(), rows)
    before = model.get_weights()
    for name in rows:
        for other in ({}, {name: rows[name][..., :1]}):
            changed = {**{each: row + 1 for each, row in rows.items() if each != name}, **other}
            with pytest.raises(ModelError, match=f"weight {name} must have shape"):
                models.set_rows(model, network, key.algebra(), changed)
    for found, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, kept)


def test_set_rows_bounds_decoys(domain: KeyDomain):
    """Of rows with decoys a thousand times as large, only the message is unchanged."""
    key, network = domain.evaluation_key(), spec(4, gaps=False)
    algebra_, model = key.algebra(), models.encrypted(network, key.algebra(), "float64")
    rows = encrypted_initial_weights(network, 3, key)
    slots = {name: algebra.decrypt(row, key.matrix) * [1.0, 1000.0] for name, row in rows.items()}
    models.set_rows(model, network, algebra_, {name: algebra.encrypt(s, key.matrix) for name, s in slots.items()})
    for name, row in models.get_rows(model, network, algebra_).items():
        set_ = algebra.decrypt(row, key.matrix)
        np.testing.assert_allclose(set_[..., 0], slots[name][..., 0], atol=1e-10)
        bound = DECOY_BOUND * initial_deviation(set_.shape[:-1])
        assert np.sqrt((set_[..., 1] ** 2).mean()) <= bound * (1 + 1e-9)
