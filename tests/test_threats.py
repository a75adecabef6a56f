"""What the page on threats says is *not* protected, carried out: if one of these fails, the page is out of date."""

import warnings
import zipfile
from itertools import permutations
from pathlib import Path

import h5py
import numpy as np
from conftest import DATA, TINY
from PIL import Image
from sklearn.decomposition import FastICA
from vaults import serving

from fedpp.cipher import algebra
from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.model_spec import ModelChoices, ModelSpec
from fedpp.config.task import Task
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys import encryption
from fedpp.keys.encryption import SequenceCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.initial_weights import encrypted_initial_weights, initial_weights
from fedpp.protocol.counts import SCORE_EDGES
from fedpp.vault_api.vault_client import VaultClient

NETWORK = ModelSpec(Task(4, 32, 32, 1, ("no", "yes")))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def test_rows_of_weights_fall_to_source_separation(domain: KeyDomain):
    """FastICA, without any key, reads the weights from their rows: r above 0.999."""
    seed = domain.initial_seed(0)
    rows = encrypted_initial_weights(NETWORK, seed, domain.evaluation_key())["dense/kernel"].reshape(-1, 2)
    message = initial_weights(NETWORK, seed)["dense/kernel"].reshape(-1)
    separated = FastICA(random_state=0, whiten="unit-variance").fit_transform(rows)
    assert max(abs(correlation(source, message)) for source in separated.T) > 0.999


def test_rows_of_initial_weights_give_the_key(domain: KeyDomain):
    """Without any key, as the coordinator gets them, in float32: they give R, and with it a frame is read."""
    weights = encrypted_initial_weights(NETWORK, domain.initial_seed(0), domain.evaluation_key())
    rows = {name: values.astype("float32").astype("float64") for name, values in weights.items()}
    one = rows["forward/bias"][NETWORK.choices.lstm]  # the first of the forget gate, the second of four
    r = columns_of_r(rows["forward/recurrent"], one)
    values = np.random.default_rng(0).normal(size=4096)
    slots = SequenceCipher(domain, "float64").frames("s", values) @ r
    assert np.abs(slots - values[:, None]).max(axis=0).min() < 1e-6


def columns_of_r(kernel: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Return R `[2, 2]`, its columns in any order, from rows `[h, 4h, 2]` that are orthogonal in each slot, and of a 1.

    A column (x, y) of R reads a slot W of the rows, and W W^T = 1 is linear in x^2, x y and y^2. Both columns solve
    that, and so does the line through them, where x^2 y^2 is the square of x y at two points: these are the columns'.
    """
    products = np.einsum("ika,jkb->ijab", kernel, kernel).reshape(-1, 2, 2)
    equations = np.stack([products[:, 0, 0], products[:, 0, 1] + products[:, 1, 0], products[:, 1, 1]], axis=1)
    u, v, w = line = np.linalg.svd(equations, full_matrices=False)[2][-1]
    a, b, c = point = np.linalg.lstsq(equations, np.eye(len(kernel)).reshape(-1), rcond=1e-5)[0]
    roots = np.roots([u * w - v * v, a * w + c * u - 2 * b * v, a * c - b * b]).real
    xx, xy, yy = (point + np.outer(roots, line)).T
    return np.stack([xx * one[0] + xy * one[1], xy * one[0] + yy * one[1]])  # as one @ (x, y) is 1


def test_images_show_in_their_rows():
    """The better column of the rows, shown as it lies, mostly is the image: over 40 keys a median r above 0.8."""
    pixels = np.asarray(Image.open(next((DATA / "chexpert_layout" / "site_b").rglob("*.png"))).convert("L"), float)
    frame = (pixels - pixels.mean()) / pixels.std()
    shown = []
    for number in range(40):
        rows = SequenceCipher(KeyDomain.of_secret(bytes([number] * 32), n=2), "float32").frames("s", frame)
        shown.append(max(abs(correlation(rows[..., k].ravel(), frame.ravel())) for k in (0, 1)))
    assert np.median(shown) > 0.8


def test_moments_in_a_keras_file_give_the_key(domain: KeyDomain, dataset: EncryptedDataset, tmp_path: Path):
    """After a step of Adam m is a tenth of the gradient and v a thousandth of its square, in every slot: R follows."""
    trainer = EncryptedTrainer(TINY, domain.evaluation_key().algebra(), Hyperparameters(batch_size=64), "float64")
    trainer.model.run_eagerly = True  # tracing takes longer
    trainer.load(encrypted_initial_weights(TINY, domain.initial_seed(0), domain.evaluation_key()))
    trainer.fit(dataset, epochs=1, seed=(0,))
    assert int(trainer.model.optimizer.iterations) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # h5py and NumPy 2.4, within Keras
        trainer.model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive, h5py.File(archive.open("model.weights.h5")) as file:
        kept = file["optimizer/vars"]
        m, v = (
            np.concatenate([kept[name][()].sum(axis=0).reshape(-1, 2) for name in sorted(kept) if what in name])
            for what in ("momentum", "velocity")
        )
    r = columns_of_moments(m, v)
    values = np.random.default_rng(0).normal(size=4096)
    slots = SequenceCipher(domain, "float64").frames("s", values) @ r
    assert np.abs(slots - values[:, None]).max(axis=0).min() < 1e-4


def columns_of_moments(m: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return R `[2, 2]`, its columns in any order, from rows whose slots are m and `v = 0.1 m^2`.

    For a column r, `v r = 0.1 (m r)^2` is linear in r and r r^T: both columns' five numbers span the null space, and
    those of its vectors whose last three are of rank one are the columns, up to a factor, which the first two give.
    """
    equations = np.column_stack([v, -0.1 * m[:, 0] ** 2, -0.2 * m[:, 0] * m[:, 1], -0.1 * m[:, 1] ** 2])
    scale = np.linalg.norm(equations, axis=0)
    first, second = np.linalg.svd(equations / scale)[2][-2:] / scale
    (a, b, c), (d, e, f) = first[2:], second[2:]
    roots = np.roots([a * c - b * b, a * f + c * d - 2 * b * e, d * f - e * e]).real
    columns = []
    for number in (root * first + second for root in roots):
        linear, square = number[:2], number[[2, 3, 3, 4]].reshape(2, 2)
        columns.append(square @ linear / (linear @ linear))
    return np.stack(columns, axis=1)


def test_two_known_values_give_the_key(domain: KeyDomain):
    """Whoever knows two values behind rows solves for the column of R that reads every row of the domain."""
    values = np.random.default_rng(0).normal(size=50)
    rows = SequenceCipher(domain, "float64").frames("s", values)
    column = np.linalg.solve(rows[:2], values[:2])
    np.testing.assert_allclose(rows @ column, values, atol=1e-9)


def test_labels_show_in_their_rows(domain: KeyDomain):
    """Without a key, the rows of encrypted labels take four values, and each value belongs to one label."""
    labels = np.random.default_rng(0).integers(2, size=200)
    cipher = SequenceCipher(domain, "float64")
    rows = (
        np.stack([cipher.label(str(i), label, 2) for i, label in enumerate(labels)]).reshape(len(labels), -1).round(9)
    )
    kinds, kind = np.unique(rows, axis=0, return_inverse=True)
    assert len(kinds) == 4
    for number in range(4):
        assert len(set(labels[kind.reshape(-1) == number])) == 1


def test_one_labelled_dataset_gives_the_key_of_its_domain(dataset: EncryptedDataset, plaintext):
    """Without any key: label rows are sums of the rows of SK, and with these every frame of the domain is read."""
    rows = np.unique(dataset.labels(np.arange(len(dataset))).reshape(-1, 2).round(9), axis=0)
    lengths = np.linalg.norm(rows, axis=1)
    first, second, both = rows[np.argsort(lengths)][1:4] if lengths.min() < 1e-6 else rows[:3]
    candidates = [(first, second), (first, both - first), (second, both - second)]
    sk = next(np.stack(pair) for pair in candidates if any(np.allclose(sum(pair), row, atol=1e-6) for row in rows))
    slots = dataset.frames(np.arange(len(dataset))) @ np.linalg.inv(sk)
    assert min(np.abs(slots[..., k] - plaintext[0]).max() for k in (0, 1)) < 1e-6


def test_findings_give_the_key_as_labels_do(domain: KeyDomain):
    """Without any key: rows of findings' pairs are zero, the rows of SK, and their sum; with these a frame is read."""
    states = np.random.default_rng(0).integers(3, size=(200, 5))
    cipher = SequenceCipher(domain, "float64")
    rows = np.unique(
        np.stack([cipher.findings(str(i), s) for i, s in enumerate(states)]).reshape(-1, 2).round(9), axis=0
    )
    assert len(rows) == 4
    values = np.random.default_rng(1).normal(size=20)
    frames = cipher.frames("s", values)
    kinds = rows[np.argsort(np.linalg.norm(rows, axis=1))][1:]
    guesses = [np.stack(pair) for pair in permutations(kinds, 2) if any(np.allclose(sum(pair), row) for row in kinds)]
    assert min(np.abs((frames @ np.linalg.inv(sk))[:, 0] - values).max() for sk in guesses) < 1e-6


def test_score_tells_any_row_of_the_domain(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """Who reaches the vault's socket reads a pixel with two calls, and no key: the loss gives the value away."""
    pixel = dataset.frames(np.array([0]))[0, 0, 3, 3, 0]
    value = float(encryption.decrypt(domain, pixel))
    losses = []
    with serving(domain, dataset, address), VaultClient(address) as client:
        for column in (0, 1):
            logits = np.zeros((3, 2, 2))
            logits[0, column] = pixel  # of the first test sequence: a row put in for a prediction
            losses.append(client.evaluate("test", logits).loss_sum)
    # log(1 + e^m) and log(1 + e^-m), or the other way round, beside the same constant: they differ by m
    assert abs(abs(losses[0] - losses[1]) - abs(value)) < 1e-6


def test_weights_of_the_coordinators_choice_read_an_image(
    domain: KeyDomain, dataset: EncryptedDataset, plaintext: tuple[np.ndarray, np.ndarray], address: str
):
    """What a coordinator is sent back by the protocol tells a positive patient's image, pixel by pooled pixel."""
    network = ModelSpec(TINY.task, ModelChoices("cnn", filters=(1,), kernel=1, dense=1))
    trainer = EncryptedTrainer(network, domain.evaluation_key().algebra(), Hyperparameters(), "float32")
    trainer.model.run_eagerly = True
    chosen = {spec.name: np.zeros(spec.shape) for spec in network.weights()}
    chosen["conv0/kernel"][:], chosen["conv0/bias"][:] = 1, 8  # every ReLU is open
    chosen["logits/kernel"][0, 1], chosen["logits/bias"][1] = 1, -8
    middles = (np.array(SCORE_EDGES[1:]) + SCORE_EDGES[:-1]) / 2
    seen = []
    with serving(domain, dataset, address), VaultClient(address) as client:
        first = client.initial_weights(TINY, 0, "float64")  # the coordinator's first message, and all its knowledge
        sk = np.linalg.inv(columns_of_r(first["forward/recurrent"], first["forward/bias"][TINY.choices.lstm]))
        for pixel in range(16):
            chosen["dense/kernel"][:, 0] = np.eye(16)[pixel]
            trainer.load({name: np.stack([values, values], axis=-1) @ sk for name, values in chosen.items()})
            counts = client.evaluate("validation", trainer.logits(dataset, dataset.indices("validation")))  # `evaluate`
            seen.append(middles[np.argmax(counts.positive_scores)])
    frames = plaintext[0][7]  # of the two in the split, the positive one
    pooled = frames.reshape(2, 4, 2, 4, 2).max(axis=(2, 4)).mean(axis=0).ravel()
    np.testing.assert_allclose(seen, pooled, rtol=0.13)  # half a bin


def test_the_runs_seed_does_not_give_the_key(domain: KeyDomain):
    """Rows of initial weights are no known plaintext for who knows the run's seed: least squares reads nothing."""
    rows = encrypted_initial_weights(NETWORK, domain.initial_seed(7), domain.evaluation_key())
    guessed = initial_weights(NETWORK, 7)["dense/kernel"].reshape(-1)
    flat = rows["dense/kernel"].reshape(-1, 2)
    column = np.linalg.lstsq(flat, guessed, rcond=None)[0]
    true = algebra.decrypt(flat, domain.matrix())[:, 0]
    assert abs(correlation(flat @ column, guessed)) < 0.05
    assert abs(correlation(true, guessed)) < 0.05


def test_the_vault_does_not_draw_by_the_runs_seed(domain: KeyDomain, dataset: EncryptedDataset, address: str):
    """What the vault hands out is not what the run's seed alone would draw."""
    with serving(domain, dataset, address), VaultClient(address) as client:
        for seed in range(3):
            message = encryption.decrypt(domain, client.initial_weights(TINY, seed, "float64")["dense/kernel"])
            drawn = initial_weights(TINY, domain.initial_seed(seed))["dense/kernel"]
            np.testing.assert_allclose(message, drawn, atol=1e-12)
            assert np.abs(message - initial_weights(TINY, seed)["dense/kernel"]).max() > 0.1
