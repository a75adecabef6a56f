"""Models, Adam and training on ciphertext, compared with the plaintext reference of stock Keras layers."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, write_dataset

from fedpp.cipher import algebra
from fedpp.cipher.components import Algebra
from fedpp.cipher.evaluation_key import EvaluationKey
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.model_spec import ModelSpec
from fedpp.config.task import Gaps
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import DatasetError, DomainMismatchError, ModelError
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.batches import Batches, Reader
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.learning.metrics import softmax
from fedpp.learning.model_file import EncryptedModel
from fedpp.learning.optimizers import Adam


def reference(network: ModelSpec = TINY) -> keras.Model:
    """Return the plaintext reference in float64, which runs eagerly: tracing a small network takes longer."""
    model = models.plaintext(network, "float64")
    model.set_weights(list(initial_weights(network, 1).values()))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, dtype="float64")
    model.compile(optimizer=Adam(Algebra.plaintext()), loss=loss, jit_compile=False, run_eagerly=True)
    return model


FAST = Hyperparameters(learning_rate=1e-2, batch_size=3)


def trainer(key: EvaluationKey, network: ModelSpec = TINY, *, traced: bool = False) -> EncryptedTrainer:
    """Return a trainer in float64 with the initial weights of seed 1."""
    ours = EncryptedTrainer(network, key.algebra(), FAST, "float64")
    ours.model.run_eagerly = not traced
    ours.load(encrypted_initial_weights(network, 1, key))
    return ours


def test_initial_weights_have_keras_s_distributions():
    """Kernels have Glorot's range, recurrent kernels are orthogonal, forget gates start at one; seeds differ."""
    drawn = initial_weights(TINY, 0)
    kernel = drawn["dense/kernel"]
    limit = np.sqrt(6 / sum(kernel.shape))
    assert 0.9 * limit < np.abs(kernel).max() <= limit
    recurrent = drawn["forward/recurrent"]
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(TINY.choices.lstm), atol=1e-6)
    np.testing.assert_array_equal(drawn["forward/bias"].reshape(4, -1).mean(axis=1), [0, 1, 0, 0])
    assert np.abs(initial_weights(TINY, 1)["dense/kernel"] - kernel).max() > 0.1
    np.testing.assert_array_equal(initial_weights(TINY, 0)["dense/kernel"], kernel)


def test_adam_agrees_with_the_plaintext_reference_for_50_steps(dataset: EncryptedDataset, domain: KeyDomain, plaintext):
    """After 50 steps in float64 on the same batches, traced, weights and probabilities agree to 1e-11."""
    frames, labels = plaintext
    one_hot = np.eye(2)
    ours, theirs = trainer(domain.evaluation_key(), traced=True), reference()
    ours.fit(dataset, epochs=25, seed=(4, 1))
    theirs.optimizer.learning_rate = 1e-2
    inputs = [lambda i: frames[i], dataset.valid]
    data = Batches(inputs, lambda i: one_hot[labels[i]], dataset.indices("train"), 3, (4, 1))
    data.fit(theirs, 25)
    assert int(theirs.optimizer.iterations) == int(ours.model.optimizer.iterations) == 50
    for spec, expected in zip(TINY.weights(), theirs.get_weights(), strict=True):
        decrypted = encryption.decrypt(domain, ours.rows()[spec.name])
        np.testing.assert_allclose(decrypted, expected, atol=1e-11)
        drawn = initial_weights(TINY, 1)[spec.name]
        assert np.abs(expected - drawn).max() > 1e-3, "the step must have moved every weight"
    test = dataset.indices("test")
    logits = encryption.decrypt(domain, ours.logits(dataset, test))
    expected = theirs.predict_on_batch([frames[test], dataset.valid(test)])
    np.testing.assert_allclose(softmax(logits), softmax(expected), atol=1e-11)


@pytest.mark.parametrize("gaps", ["public", "encrypted"])
def test_padded_sequences_train_as_on_plaintext(
    gaps: Gaps, domain: KeyDomain, plaintext: tuple[np.ndarray, np.ndarray], tmp_path: Path
):
    """With sequences of one frame and of two, and time gaps, 10 steps agree with the reference's to 1e-11."""
    frames, labels = plaintext
    lengths = np.array([1, 2] * 5 + [2])
    present = np.arange(2) < lengths[:, None]
    times = np.random.default_rng(2).random((11, 2)) * present
    padded = write_dataset(tmp_path / "padded", domain, plaintext, lengths=lengths, gaps=gaps, times=times)
    network = TINY.changed(gaps=True)
    ours, theirs = trainer(domain.evaluation_key(), network), reference(network)
    ours.fit(padded, epochs=5, seed=(4, 1))
    theirs.optimizer.learning_rate = 1e-2
    given = [frames * present[..., None, None, None], present, times]
    inputs: list[Reader] = [lambda i, values=values: values[i] for values in given]
    Batches(inputs, lambda i: np.eye(2)[labels[i]], padded.indices("train"), 3, (4, 1)).fit(theirs, 5)
    for spec, expected in zip(network.weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(encryption.decrypt(domain, ours.rows()[spec.name]), expected, atol=1e-11)
    test = padded.indices("test")
    expected = theirs.predict_on_batch([values[test] for values in given])
    np.testing.assert_allclose(encryption.decrypt(domain, ours.logits(padded, test)), expected, atol=1e-11)


def test_public_gaps_have_no_decoys(domain: KeyDomain, plaintext: tuple[np.ndarray, np.ndarray], tmp_path: Path):
    """A public time gap is the same number in every slot of the input; an encrypted one has its own row."""
    times, everything = np.linspace(0, 1, 22).reshape(11, 2), np.arange(11)
    ours = trainer(domain.evaluation_key(), TINY.changed(gaps=True))
    for gaps in ("public", "encrypted"):
        dataset = write_dataset(tmp_path / gaps, domain, plaintext, gaps=gaps, times=times)
        slots = algebra.decrypt(ours.inputs(dataset)[2](everything), domain.matrix())
        np.testing.assert_allclose(slots[..., 0], times, atol=1e-12)
        assert (abs(slots[..., 1] - times).max() < 1e-12) == (gaps == "public")


def message_gradient(ours: EncryptedTrainer, algebra: Algebra, dataset: EncryptedDataset) -> np.ndarray:
    """Return the message's gradient over the whole dataset, all weights in one vector."""
    everything = np.arange(len(dataset))
    frames, labels = (read(everything).astype(ours.dtype) for read in (dataset.frames, dataset.labels))
    variables = [v.value for v in ours.model.trainable_variables]
    with tf.GradientTape() as tape:
        loss = ours.model.loss(labels, ours.model([frames, dataset.valid(everything)]))
    parts = [g.numpy().astype(np.float64) for g in tape.gradient(loss, variables)]
    pairs = (algebra.gradient(tuple(parts[i : i + 2])) for i in range(0, len(parts), 2))
    return np.concatenate([algebra.to_slots(pair)[0].reshape(-1) for pair in pairs])


def test_a_small_gradient_keeps_its_bits_in_float32(
    domain: KeyDomain, dataset: EncryptedDataset, plaintext: tuple[np.ndarray, np.ndarray]
):
    """With the message fitted and the decoy not, float32 loses little of the message's small gradient."""
    frames, labels = plaintext
    fitted = reference()
    fitted.optimizer.learning_rate = 3e-2
    for _ in range(60):
        fitted.train_on_batch([frames, np.ones((len(frames), 2), bool)], np.eye(2)[labels])
    decoy = initial_weights(TINY, 9)
    message = dict(zip(decoy, fitted.get_weights(), strict=True))
    key = domain.evaluation_key()
    gradients = {}
    for dtype in ("float32", "float64"):
        ours = EncryptedTrainer(TINY, key.algebra(), FAST, dtype)
        slots = {name: np.stack([message[name], decoy[name]], axis=-1) for name in decoy}
        ours.load({name: algebra.encrypt(value, key.matrix).astype(dtype) for name, value in slots.items()})
        gradients[dtype] = message_gradient(ours, key.algebra(), dataset)
    off = np.linalg.norm(gradients["float32"] - gradients["float64"]) / np.linalg.norm(gradients["float64"])
    assert off < 2e-4  # 8e-5; with the decoys' loss at full weight 4e-4 and more


def test_callbacks_progress_and_history_work(dataset: EncryptedDataset, domain: KeyDomain, capsys):
    """Training uses Keras's fit: a callback gets every epoch, progress is shown, the loss falls."""
    seen: list[int] = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    losses = trainer(domain.evaluation_key()).fit(dataset, epochs=4, seed=(0,), callbacks=[callback], verbose=2)
    assert seen == list(range(4))
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert "Epoch 4/4" in capsys.readouterr().out


def test_load_resets_the_optimizer(dataset: EncryptedDataset, domain: KeyDomain):
    """After loading weights again, a trainer trains as a new one does."""
    settings = {"epochs": 2, "seed": (0,)}
    key = domain.evaluation_key()
    start = encrypted_initial_weights(TINY, 1, key)
    used, new = trainer(key), trainer(key)
    used.fit(dataset, **settings)
    for one in (used, new):
        one.load(start)
        one.fit(dataset, **settings)
    for name, rows in new.rows().items():
        np.testing.assert_allclose(used.rows()[name], rows, atol=1e-12)


def test_other_domains_and_shapes_are_rejected(dataset: EncryptedDataset, domain: KeyDomain):
    """A dataset or model of another domain, and weights that do not fit, are named in the error."""
    other = KeyDomain.of_secret(bytes(32), n=2).evaluation_key()
    with pytest.raises(DomainMismatchError, match="ingest again"):
        trainer(other).fit(dataset, epochs=1, seed=(0,))
    ours = trainer(domain.evaluation_key())
    rows = ours.rows()
    with pytest.raises(ModelError, match="conv0/kernel must have shape"):
        ours.load({**rows, "conv0/kernel": rows["conv0/kernel"][..., :1]})
    with pytest.raises(DomainMismatchError, match="the model belongs"):
        EncryptedModel(TINY, other.domain, ("no", "yes"), rows).require_fitting(ours.domain, ())
    with pytest.raises(ModelError, match="classes are yes, no, the dataset's no, yes: .* --classes yes,no"):
        EncryptedModel(TINY, ours.domain, ("yes", "no"), rows).require_fitting(ours.domain, ("no", "yes"))
    several = TINY.changed(multi_label=True)
    with pytest.raises(ModelError, match="ingest again with --target a,b"):
        EncryptedModel(several, ours.domain, ("a", "b"), rows).require_fitting(ours.domain, ("b", "a"))


def test_a_damaged_shard_is_named_by_fit_and_logits(
    domain: KeyDomain, plaintext: tuple[np.ndarray, np.ndarray], tmp_path: Path
):
    """A record with a broken seal raises a DatasetError that names the shard."""
    sealed = write_dataset(tmp_path / "sealed", domain, plaintext, sealed=True)
    (shard,) = sealed.path.glob("frames-*")
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    content[-5] ^= 1
    shard.write_bytes(content)
    ours = trainer(domain.evaluation_key())
    with pytest.raises(DatasetError, match="frames-00000.sealed is damaged"):
        ours.fit(sealed, epochs=2, seed=(0,))
    with pytest.raises(DatasetError, match="frames-00000.sealed is damaged"):
        ours.logits(sealed, sealed.indices("test"))
    assert len(ours.logits(sealed, sealed.indices("validation"))) == 2


def test_a_dataset_of_another_shape_is_rejected(domain: KeyDomain, dataset: EncryptedDataset):
    """The error for images of another shape names both shapes, before any computation."""
    with pytest.raises(DatasetError, match="is for .* with time gaps.*without.*: ingest again"):
        trainer(domain.evaluation_key(), TINY.changed(gaps=True)).logits(dataset, dataset.indices("test"))
    with pytest.raises(DatasetError, match="is for 2 frames of 16 x 16 x 1.* data are 2 frames of 8 x 8 x 1"):
        trainer(domain.evaluation_key(), TINY.changed(height=16, width=16)).logits(dataset, dataset.indices("test"))


def test_model_file_round_trips_and_finds_damage(tmp_path: Path, domain: KeyDomain):
    """A saved model is read bit for bit; a cut file, another file and a missing one raise ModelError."""
    path = tmp_path / "model.npz"
    rows = encrypted_initial_weights(TINY, 0, domain.evaluation_key())
    model = EncryptedModel(TINY, domain.card().fingerprint, ("no", "yes"), rows)
    model.save(path)
    loaded = EncryptedModel.load(path)
    assert (loaded.network, loaded.domain, loaded.classes, loaded.dtype) == (
        (TINY, model.domain, ("no", "yes"), "float64")
    )
    for name, rows in model.rows.items():
        np.testing.assert_array_equal(loaded.rows[name], rows)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"no model"):
        path.write_bytes(damaged)
        with pytest.raises(ModelError):
            EncryptedModel.load(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(ModelError, match="not a model"):
        EncryptedModel.load(path.with_suffix(".npy"))
    with pytest.raises(ModelError, match="cannot read"):
        EncryptedModel.load(tmp_path / "none.npz")
