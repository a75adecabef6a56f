"""Datasets re-encrypted from one key epoch of a domain to the next."""

from pathlib import Path

import numpy as np
import pytest
from conftest import SPLIT, new_dataset, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from members import founded

from fedpp.cipher import algebra
from fedpp.dataset.dataset_manifest import SequenceRecord
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import ConfigError, DatasetError, DomainMismatchError
from fedpp.keys import encryption
from fedpp.keys.frame_cipher import FrameCipher
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.key_rotation import KeySwitch, reencrypt

Plaintext = tuple[np.ndarray, np.ndarray]
EVERYTHING = np.arange(len(SPLIT))


def key_epochs(**choices: object) -> tuple[KeyDomain, KeyDomain]:
    old = founded(**choices)
    return old, old.successor("1" * 64)


@given(st.integers(2, 5), st.integers(0, 2**32))
@settings(max_examples=20)
def test_a_switched_row_decrypts_to_the_same_slots(n: int, seed: int):
    """Law: every slot of a row is what it was, under the new key alone."""
    old, new = key_epochs(n=n)
    slots = np.random.default_rng(seed).normal(size=(7, 3, n))
    rows = algebra.encrypt(slots, old.matrix())
    switched = KeySwitch(old, new).rows(rows)
    np.testing.assert_allclose(algebra.decrypt(switched, new.matrix()), slots, rtol=0, atol=1e-12)
    assert abs(algebra.decrypt(switched, old.matrix()) - slots).max() > 1e-3
    assert KeySwitch(old, new).rows(rows.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("gaps", ["none", "public", "encrypted"])
def test_a_reencrypted_dataset_says_the_same_in_the_new_epoch(
    gaps: str, sealed: bool, tmp_path: Path, plaintext: Plaintext
):
    """Frames, labels, gaps, lengths and splits stay; pseudonyms are the new epoch's; a sealed one is sealed again."""
    old, new = key_epochs()
    times = None if gaps == "none" else np.random.default_rng(1).uniform(size=(11, 2))
    lengths = (2, 1) + (2,) * 9
    source = write_dataset(
        tmp_path / "old",
        old,
        plaintext,
        lengths=lengths,
        gaps=gaps,
        times=None if gaps == "none" else times,
        sealed=sealed,
    )
    reencrypt(source, tmp_path / "new", KeySwitch(old, new))
    target = EncryptedDataset.open(tmp_path / "new", new.at_rest_key())
    target.verify()
    target.require_domain(new.card().fingerprint)
    assert (target.manifest.at_rest is not None) == sealed
    assert (target.manifest.dtype, target.manifest.key_epoch) == ("float64", 2)
    for name, read in {"frames": source.frames, "labels": source.labels}.items():
        ours = encryption.decrypt(new, getattr(target, name)(EVERYTHING))
        np.testing.assert_allclose(ours, encryption.decrypt(old, read(EVERYTHING)), rtol=0, atol=1e-12)
    if gaps == "public":
        np.testing.assert_array_equal(target.gaps(EVERYTHING), source.gaps(EVERYTHING))
    if gaps == "encrypted":
        ours = encryption.decrypt(new, target.gaps(EVERYTHING))
        np.testing.assert_allclose(ours, encryption.decrypt(old, source.gaps(EVERYTHING)), rtol=0, atol=1e-12)
    for name in ("length", "split"):
        np.testing.assert_array_equal(target.sequences[name], source.sequences[name])
    for kind, column in (("sequence", "id"), ("patient", "patient")):
        renewed = [new.renewed(kind, pseudonym.decode(), 1).encode() for pseudonym in source.sequences[column]]
        assert target.sequences[column].tolist() == renewed
        assert not set(renewed) & set(source.sequences[column].tolist())


def test_findings_are_taken_along(tmp_path: Path, plaintext: Plaintext):
    """The pairs of several findings decrypt to the same states."""
    old, new = key_epochs(n=3)
    states = np.random.default_rng(5).integers(-1, 2, size=(11, 3))
    source = write_dataset(tmp_path / "old", old, (plaintext[0], states))
    reencrypt(source, tmp_path / "new", KeySwitch(old, new))
    labels = EncryptedDataset.open(tmp_path / "new").labels(EVERYTHING)
    np.testing.assert_array_equal(encryption.decrypt_findings(new, labels), states)


@pytest.mark.parametrize("patch", [0, 2])
def test_mixed_frames_are_mixed_anew(patch: int, tmp_path: Path):
    """In the frame form the new K mixes what the old one mixed; a short sequence stays padded with zeros."""
    old, new = key_epochs(scheme="more-frame")
    pixels = np.random.default_rng(2).normal(size=(2, 4, 6, 1))
    layout = "patches" if patch else "rows"
    mix = {domain: FrameCipher(domain, "float64", layout, patch) for domain in (old, new)}
    shape = {"frames": 3, "height": 4, "width": 6, "channels": 1, "patch": patch}
    with new_dataset(tmp_path / "old", old.card(), dtype="float64", **shape, classes=()) as writer:
        writer.add(SequenceRecord("0" * 32, "1" * 32, 2, "train"), mix[old].frames("", pixels))
    reencrypt(EncryptedDataset.open(tmp_path / "old"), tmp_path / "new", KeySwitch(old, new))
    frames = EncryptedDataset.open(tmp_path / "new").frames(np.array([0]))[0]
    np.testing.assert_allclose(mix[new].decrypt_frames(frames[:2]), pixels, rtol=0, atol=1e-12)
    assert not frames[2].any()


def test_a_stem_answers_on_new_patches_as_on_old_ones():
    """Law: C' stem(w) == C w, where C are patches under the old key and C' the same under the new one."""
    old, new = key_epochs(scheme="more-frame")
    patches, kernel = np.random.default_rng(3).normal(size=(5, 8)), np.random.default_rng(4).normal(size=(1, 1, 8, 3))
    ours, theirs = (patches @ domain.frame_key("patches", 8) for domain in (old, new))
    turned = KeySwitch(old, new).stem(kernel, 2)
    np.testing.assert_allclose(theirs @ turned[0, 0], ours @ kernel[0, 0], rtol=0, atol=1e-12)


def test_only_a_later_epoch_of_the_same_domain_follows():
    """The same epoch, an earlier one, and another domain are refused; two epochs at once are one step."""
    old, new = key_epochs()
    third = new.successor("2" * 64)
    KeySwitch(old, third)
    for first, second in ((old, old), (new, old), (old, founded().successor("1" * 64))):
        with pytest.raises(DomainMismatchError, match="does not follow key epoch"):
            KeySwitch(first, second)


def test_a_dataset_of_another_epoch_is_refused(tmp_path: Path, plaintext: Plaintext):
    """Nothing is written for a dataset that the old folder is not of, and nothing over one that is there."""
    old, new = key_epochs()
    source = write_dataset(tmp_path / "old", old, plaintext)
    with pytest.raises(DomainMismatchError, match="the dataset belongs to domain"):
        reencrypt(source, tmp_path / "new", KeySwitch(new, new.successor("2" * 64)))
    assert not (tmp_path / "new").exists()
    with pytest.raises(DatasetError, match="exists already"):
        reencrypt(source, tmp_path / "old", KeySwitch(old, new))


def test_a_domain_without_the_old_epochs_keys_renews_nothing(tmp_path: Path, plaintext: Plaintext):
    """Pseudonyms follow from the former epoch's keys; without them the rotation is refused, and leaves nothing."""
    old = KeyDomain.of_secret(bytes(32), n=2)
    source = write_dataset(tmp_path / "old", old, plaintext)
    later = old.successor("1" * 64)
    without = KeyDomain.from_secret_bytes(later.secret_bytes()[:32], later.card())
    with pytest.raises(ConfigError, match="does not follow key epoch 1"):
        reencrypt(source, tmp_path / "new", KeySwitch(old, without))
    assert list(tmp_path.iterdir()) == [tmp_path / "old"]
