"""Data and folds of the paper's experiment: no patient is in two parts, and both sides get the same sequences."""

import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from paper_data import PATIENTS, write_frames

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, DatasetError, FedppError
from fedpp.imaging.labels import ClassMap
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain
from simulations.paper import hog_baseline
from simulations.paper.paper_settings import Settings
from simulations.paper.study import Study, folds, prepare_study

ROOT = Path(__file__).parents[3]
SETTINGS = Settings.chosen("ours", {"negative": "well", "frames": 3, "size": 8, "filters": (2, 3), "dtype": "float64"})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("paper")
    write_frames(root / "raw")
    return prepare_study(SETTINGS, root / "raw", root / "dataset", print)


KILLED = """
import os, sys
from pathlib import Path
from simulations.paper.paper_settings import Settings
from simulations.paper.study import prepare_study

raw, out = map(Path, sys.argv[1:])
settings = Settings.chosen("ours", {"negative": "well", "frames": 3, "size": 8, "filters": (2, 3)})
prepare_study(settings, raw, out, lambda _: None)
os.kill(os.getpid(), 9)
"""


def test_a_killed_experiment_leaves_no_dataset_that_can_be_read(tmp_path: Path):
    """What SIGKILL leaves is sealed by a key that was in memory alone; the domain's key follows from the seed."""
    write_frames(tmp_path / "raw")
    folder = tmp_path / "dataset"
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "raw", folder], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert {file.suffix for file in folder.iterdir() if file.name.startswith(("frames", "labels"))} == {".sealed"}
    domain = KeyDomain.of_secret(sha256(b"paper's experiment, seed 0").digest(), n=2)
    with pytest.raises(DatasetError, match="sealed at rest"):
        EncryptedDataset.open(folder).labels(np.arange(2))
    with pytest.raises(DatasetError, match="not sealed under this at-rest key"):
        EncryptedDataset.open(folder, domain.at_rest_key())


def test_the_data_have_one_fingerprint_whatever_the_sealing(study: Study, tmp_path: Path):
    """An experiment is resumed on the same data; another contrast of the images is another fingerprint."""
    found = []
    for name, contrast in (("same", 100.0), ("other", 90.0)):
        write_frames(tmp_path / name, contrast)
        found.append(prepare_study(SETTINGS, tmp_path / name, tmp_path / f"{name}-dataset", print).fingerprint)
    assert (found[0] == study.fingerprint, found[1] == study.fingerprint) == (True, False)


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 7])
def test_no_patient_is_in_two_parts_of_a_fold(study: Study, seed: int, parts: int):
    """In each fold training, validation and test share no patient and no sequence, and have all sequences."""
    patients = study.patients
    for fold in folds(study, SETTINGS.changed(folds=parts), seed):
        positions = (fold.train, fold.validation, fold.test)
        assert sorted(np.concatenate(positions)) == list(range(len(study.labels)))
        found = [set(patients[of]) for of in positions]
        assert all(found)
        assert sum(map(len, found)) == len(set.union(*found)) == PATIENTS


@pytest.mark.parametrize("seed", [0, 7])
def test_each_patient_is_tested_once(study: Study, seed: int):
    """Over the folds of a seed every sequence is in test once; another seed gives other folds."""
    cut = folds(study, SETTINGS, seed)
    assert len(cut) == SETTINGS.folds
    assert sorted(np.concatenate([fold.test for fold in cut])) == list(range(len(study.labels)))
    other = folds(study, SETTINGS, seed + 1)
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(cut, other, strict=True))


def test_both_sides_get_the_same_sequences(study: Study):
    """Frames, their validity and labels of the plaintext side are the decrypted dataset's, sequence by sequence."""
    everything = np.arange(len(study.labels))
    decrypted = encryption.decrypt(study.domain, study.dataset.frames(everything))
    np.testing.assert_allclose(study.frames, decrypted, atol=1e-12)
    np.testing.assert_array_equal(study.valid, study.dataset.valid(everything))
    assert {int(count) for count in study.valid.sum(axis=1)} == {2, 3}
    labels = encryption.decrypt_classes(study.domain, study.dataset.labels(everything))
    np.testing.assert_array_equal(study.labels, labels)


def test_a_part_without_positives_is_refused(study: Study):
    """A fold whose test sequences are all negative is refused by name."""
    alike = replace(study, labels=np.where(np.arange(len(study.labels)) == 0, 1, 0))
    with pytest.raises(ConfigError, match=r"has no negative or no positive sequence in"):
        folds(alike, SETTINGS, 0)


def test_a_class_that_is_only_tested_is_refused(study: Study):
    """A fold whose training sequences lack one of three classes is refused, by the class's name."""
    patients = study.patients
    rare = patients == patients[study.labels > 0][0]
    three = replace(study, labels=np.where(rare, 2, study.labels), class_map=ClassMap(("well", "ill", "rare")))
    with pytest.raises(ConfigError, match=r"has no sequence of 'rare' in train"):
        folds(three, SETTINGS, 0)


def test_too_many_folds_are_refused(study: Study):
    """There are no more folds than patients."""
    with pytest.raises(FedppError, match="use fewer folds"):
        folds(study, SETTINGS.changed(folds=PATIENTS + 1), 0)


def test_the_positive_class_is_reported_before_encryption(tmp_path: Path):
    """Without a chosen negative label or classes, a line says which label is negative and which positive."""
    write_frames(tmp_path / "raw")
    noted: dict[str, list[tuple[str, bool]]] = {}
    for name, settings in {"chosen": SETTINGS, "sorted": SETTINGS.changed(negative=None)}.items():
        lines, folder = noted.setdefault(name, []), tmp_path / name

        def note(text: str, lines: list[tuple[str, bool]] = lines, folder: Path = folder) -> None:
            lines.append((text, folder.exists()))

        prepare_study(settings, tmp_path / "raw", folder, note)
    (described,), (again, positive) = noted["chosen"], noted["sorted"]
    assert described == again
    assert positive[0] == "negative is 'ill', positive 'well': --negative chooses another"
    assert not any(encrypted for _, encrypted in noted["sorted"])


def test_the_key_follows_from_the_seed(study: Study, tmp_path: Path):
    """The same seed gives the same rows, bit for bit, so that an experiment can be resumed; their seal is another."""
    write_frames(tmp_path / "raw")
    again = prepare_study(SETTINGS, tmp_path / "raw", tmp_path / "dataset", print)
    everything = np.arange(len(study.dataset))
    assert again.dataset.ids(everything) == study.dataset.ids(everything)
    np.testing.assert_array_equal(again.dataset.frames(everything), study.dataset.frames(everything))
    np.testing.assert_array_equal(again.dataset.labels(everything), study.dataset.labels(everything))
    assert again.dataset.manifest.at_rest != study.dataset.manifest.at_rest


def test_hog_is_deterministic_and_ignores_padding(study: Study):
    """The same frames give the same features; padded frames change none of them."""
    described = hog_baseline.features(study.frames, study.valid)
    noise = np.random.default_rng(0).normal(size=study.frames.shape)
    padding = study.frames + noise * ~study.valid[..., None, None, None]
    np.testing.assert_array_equal(described, hog_baseline.features(padding, study.valid))
    assert described.shape[0] == len(study.labels)
    assert described.std(axis=0).max() > 0


def test_hog_learns_from_training_sequences_alone(study: Study):
    """Labels of the training part change the regression, other labels do not; its rows sum to one."""
    described = hog_baseline.features(study.frames, study.valid)
    fold = folds(study, SETTINGS, 0)[0]
    found = hog_baseline.probabilities(study, fold, described)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    hidden = study.labels.copy()
    hidden[np.concatenate([fold.validation, fold.test])] ^= 1
    np.testing.assert_array_equal(hog_baseline.probabilities(replace(study, labels=hidden), fold, described), found)
    assert (
        np.abs(hog_baseline.probabilities(replace(study, labels=1 - study.labels), fold, described) - found).max() > 0.1
    )
