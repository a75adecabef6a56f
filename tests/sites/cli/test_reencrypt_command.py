"""`fedpp-site reencrypt`: datasets, models and trainings continue under the next key epoch."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SPLIT, TINY, new_dataset, write_dataset
from hospital import error_of, site
from members import DOMAIN_CA, EAST, SECRET_WORDS, founded
from members import membership as member

from fedpp.config.model_spec import ModelChoices, ModelSpec
from fedpp.dataset.dataset_manifest import SequenceRecord
from fedpp.keys import encryption, key_store
from fedpp.keys.frame_cipher import FrameCipher
from fedpp.keys.sealed_secret import Passphrase
from fedpp.learning.checkpoint import MAGIC, Checkpoint
from fedpp.learning.model_file import EncryptedModel
from sites.cli.train_command import CHECKPOINT

pytestmark = pytest.mark.usefixtures("eager")

Plaintext = tuple[np.ndarray, np.ndarray]
CNN = ("--architecture", "cnn")  # the quickest, where any network will do
NETWORK = ModelSpec(TINY.task, ModelChoices("cnn"))


class Epochs:
    """Two epochs of one domain in their folders; of the dataset of the first, see the fixtures."""

    def __init__(self, folder: Path, scheme: str) -> None:
        self.folder, self.passphrase = folder, folder / "passphrase"
        self.passphrase.touch(0o600)
        self.passphrase.write_bytes(SECRET_WORDS)
        self.old = founded(scheme=scheme)
        self.new = self.old.successor(DOMAIN_CA.public_key)
        for name, domain in (("old", self.old), ("new", self.new)):
            key_store.join(folder / name, member(EAST, domain), Passphrase(SECRET_WORDS, log2_cost=10))

    def given(self, what: str, out: str, *more: object) -> tuple[object, ...]:
        """Return the arguments that re-encrypt a file or folder of this one into another."""
        names = ("--domain", self.folder / "old", "--to", self.folder / "new", "--passphrase-file", self.passphrase)
        return "reencrypt", self.folder / what, *names, "--out", self.folder / out, *more

    def run(self, what: str, out: str, *more: object) -> None:
        site(*self.given(what, out, *more))

    def refused(self, what: str, out: str, *more: object) -> str:
        return error_of(*self.given(what, out, *more))

    def train(self, data: str, domain: str, out: str, *more: object) -> None:
        site("train", self.folder / data, "--domain", self.folder / domain, "--out", self.folder / out, *more)

    def predicting(self, model: str, data: str, domain: str) -> tuple[object, ...]:
        secret = ("--domain", self.folder / domain, "--passphrase-file", self.passphrase)
        return "predict", self.folder / model, self.folder / data, *secret, "--json"

    def predictions(self, model: str, data: str, domain: str) -> np.ndarray:
        rows = json.loads(site(*self.predicting(model, data, domain)).stdout)
        return np.array([list(row["probabilities"].values()) for row in rows])


@pytest.fixture
def epochs(tmp_path: Path, plaintext: Plaintext) -> Epochs:
    made = Epochs(tmp_path, "more")
    write_dataset(tmp_path / "data", made.old, plaintext, sealed=True)
    return made


@pytest.mark.parametrize("scheme", ["epochs", "mixed"])
def test_a_model_predicts_what_it_did(scheme: str, request: pytest.FixtureRequest):
    """Dataset and model of the new epoch give the old one's probabilities, and nothing of the old key opens them.

    In the frame form the stem alone saw mixed patches, and is turned to the new key.
    """
    made: Epochs = request.getfixturevalue(scheme)
    made.train("data", "old", "trained", "--epochs", 2, "--dtype", "float64")
    made.run("data", "data-2")
    made.run("trained/model.npz", "model-2.npz")
    before = made.predictions("trained/model.npz", "data", "old")
    after = made.predictions("model-2.npz", "data-2", "new")
    assert np.ptp(before) > 1e-3
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-10)
    assert "belongs to domain" in error_of(*made.predicting("model-2.npz", "data-2", "old"))


def test_a_checkpoint_resumes_under_the_next_key_epoch(epochs: Epochs, monkeypatch: pytest.MonkeyPatch):
    """A training that was interrupted in the old epoch ends in the new one with an uninterrupted one's weights."""
    epochs.train("data", "old", "whole", *CNN, "--epochs", 3, "--dtype", "float64")
    kept = []
    save = Checkpoint.save

    def keeping(self: Checkpoint, path: Path, key: object) -> None:
        save(self, path, key)
        kept.append(path.read_bytes())

    monkeypatch.setattr(Checkpoint, "save", keeping)
    epochs.train("data", "old", "broken", *CNN, "--epochs", 3, "--dtype", "float64")
    (epochs.folder / "checkpoint.sealed").write_bytes(kept[1])  # after one epoch
    monkeypatch.undo()
    epochs.run("data", "data-2")
    (epochs.folder / "resumed").mkdir()
    epochs.run("checkpoint.sealed", f"resumed/{CHECKPOINT}", "--dataset", epochs.folder / "data-2")
    epochs.train("data-2", "new", "resumed", "--resume")
    ours, theirs = (
        {name: encryption.decrypt(domain, rows) for name, rows in EncryptedModel.load(path).rows.items()}
        for domain, path in (
            (epochs.new, epochs.folder / "resumed" / "model.npz"),
            (epochs.old, epochs.folder / "whole" / "model.npz"),
        )
    )
    for name, weights in theirs.items():
        np.testing.assert_allclose(ours[name], weights, rtol=0, atol=1e-9)


def test_the_best_weights_so_far_are_taken_along(epochs: Epochs, monkeypatch: pytest.MonkeyPatch):
    """What early stopping remembers of the best epoch changes keys as the weights do, and its losses stay."""
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # the last checkpoint stays beside the model
    epochs.train("data", "old", "trained", *CNN, "--epochs", 1)
    monkeypatch.undo()
    kept = Checkpoint.load(epochs.folder / "trained" / CHECKPOINT, epochs.old.at_rest_key())
    weights = {name: values for name, values in kept.arrays.items() if int(name) < 2 * len(NETWORK.weights())}
    best = {f"stopping/best/{name}": values for name, values in weights.items()}
    stopping = {"stopping/losses": np.array([0.5]), "stopping/best_epoch": np.array(1), **best}
    replace(kept, arrays=kept.arrays | stopping).save(epochs.folder / "kept", epochs.old.at_rest_key())
    epochs.run("data", "data-2")
    epochs.run("kept", "kept-2", "--dataset", epochs.folder / "data-2")
    moved = Checkpoint.load(epochs.folder / "kept-2", epochs.new.at_rest_key())
    assert set(moved.arrays) == set(kept.arrays) | set(stopping)
    for name in weights:
        np.testing.assert_array_equal(moved.arrays[f"stopping/best/{name}"], moved.arrays[name])
    assert any(np.abs(moved.arrays[name] - kept.arrays[name]).max() > 1e-3 for name in weights)
    for name in set(kept.arrays) - set(weights):
        np.testing.assert_array_equal(moved.arrays[name], kept.arrays[name])
    np.testing.assert_array_equal(moved.arrays["stopping/losses"], [0.5])


@pytest.fixture
def mixed(tmp_path: Path, plaintext: Plaintext) -> Epochs:
    """Return two epochs of the frame form, with a dataset in patches and one in rows."""
    made = Epochs(tmp_path, "more-frame")
    for name, layout, patch in (("data", "patches", 2), ("rows", "rows", 0)):
        cipher = FrameCipher(made.old, "float64", layout, patch)
        shape = {"frames": 2, "height": 8, "width": 8, "channels": 1, "patch": patch}
        with new_dataset(tmp_path / name, made.old.card(), dtype="float64", **shape, classes=("no", "yes")) as writer:
            for i, (split, pixels, label) in enumerate(zip(SPLIT, *plaintext, strict=True)):
                record = SequenceRecord(f"{i:032x}", f"{i:032x}", 2, split)
                writer.add(record, cipher.frames("", pixels), cipher.label("", label, 2))
    return made


def test_what_cannot_change_keys_is_refused(mixed: Epochs):
    """A network over mixed rows, and the moments of a checkpoint of the frame form, are trained again."""
    mixed.train("rows", "old", "trained", *CNN, "--epochs", 1)
    mixed.run("rows", "rows-2")
    assert "a model over mixed rows cannot be re-encrypted" in mixed.refused("trained/model.npz", "model-2.npz")
    (mixed.folder / "started.sealed").write_bytes(MAGIC)
    assert "a checkpoint of the frame form holds moments that cannot be re-encrypted" in mixed.refused(
        "started.sealed", "x", "--dataset", mixed.folder / "rows-2"
    )


@pytest.mark.parametrize(
    ("what", "out", "line"),
    [
        ("data", "data", "is there already: choose another --out"),
        ("passphrase", "x", "passphrase is no dataset, model or checkpoint: name one of the old key epoch"),
        ("started.sealed", "x", "a checkpoint resumes on its dataset: name the re-encrypted one with --dataset"),
        ("nothing.npz", "x", "nothing.npz: name a dataset"),
    ],
)
def test_mistakes_are_one_line(what: str, out: str, line: str, epochs: Epochs):
    """What cannot be re-encrypted is named, and nothing is written."""
    (epochs.folder / "started.sealed").write_bytes(MAGIC)
    before = sorted(epochs.folder.iterdir())
    assert line in epochs.refused(what, out)
    assert sorted(epochs.folder.iterdir()) == before


def test_another_epoch_s_files_are_refused(epochs: Epochs):
    """A model of the new epoch is not taken there again, nor one of another domain."""
    epochs.run("data", "data-2")
    assert "belongs to domain" in epochs.refused("data-2", "data-3")
    assert not (epochs.folder / "data-3").exists()
