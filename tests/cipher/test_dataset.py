"""The encrypted dataset on disk: what comes back, and damage that is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_dataset

from fedpp.cipher import dataset as format_
from fedpp.cipher.dataset import DatasetWriter, EncryptedDataset, SequenceRecord
from fedpp.errors import DatasetError
from fedpp.keys import encryption
from fedpp.keys.domain import KeyDomain


def test_what_was_written_comes_back(dataset: EncryptedDataset, domain: KeyDomain, plaintext):
    """Frames and labels decrypt to the plaintext, in any order of indices; splits are those of the records."""
    frames, labels = plaintext
    some = np.array([9, 0, 4])
    np.testing.assert_allclose(encryption.decrypt(domain, dataset.frames(some)), frames[some], atol=1e-12)
    np.testing.assert_allclose(encryption.decrypt(domain, dataset.labels(some)), np.eye(2)[labels[some]], atol=1e-12)
    assert dataset.indices("test").tolist() == [8, 9, 10]
    assert len(dataset) == 11
    dataset.verify()


def test_many_shards_are_one_dataset(tmp_path, domain, plaintext, monkeypatch):
    """With a limit of two sequences a shard, the same content comes back from six shards."""
    monkeypatch.setattr(format_, "SHARD_BYTES", 2 * 2 * 8 * 8 * 2 * 8)
    dataset = write_dataset(tmp_path / "sharded", domain, plaintext)
    assert [shard.count for shard in dataset.manifest.frame_shards] == [2, 2, 2, 2, 2, 1]
    everything = encryption.decrypt(domain, dataset.frames(np.arange(11)))
    np.testing.assert_allclose(everything, plaintext[0], atol=1e-12)


@pytest.mark.parametrize("file", ["frames-00000.npy", "labels-00000.npy"])
def test_damage_is_named(dataset: EncryptedDataset, file: str):
    """A flipped bit fails verify, a truncated or missing shard fails open, each with the file's name."""
    path = dataset.path / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{file} is damaged"):
        EncryptedDataset.open(dataset.path).verify()
    path.write_bytes(content[:-1])
    with pytest.raises(DatasetError, match=f"{file} has"):
        EncryptedDataset.open(dataset.path)
    path.unlink()
    with pytest.raises(DatasetError, match=f"{file} is missing"):
        EncryptedDataset.open(dataset.path)


def test_other_formats_are_refused(dataset: EncryptedDataset):
    """A manifest of another format, without a field, or that is no JSON, is a DatasetError."""
    manifest = dataset.path / "manifest.json"
    values = json.loads(manifest.read_text())
    for text, message in (
        (json.dumps({**values, "format": 2}), "has format 2, this program reads 1"),
        (json.dumps({k: v for k, v in values.items() if k != "n"}), "damaged"),
        (json.dumps({**values, "sequences": values["sequences"][1:]}), "was changed"),
        (json.dumps(values).replace(values["frame_shards"][0]["file"], "/etc/hosts"), "outside its folder"),
        ("{", "damaged"),
    ):
        manifest.write_text(text)
        with pytest.raises(DatasetError, match=message):
            EncryptedDataset.open(dataset.path)


def test_a_failed_write_leaves_nothing(tmp_path: Path, domain: KeyDomain):
    """An error while writing, or no sequence at all, leaves no file; an existing folder is not touched."""
    settings = {"dtype": "float32", "frames": 2, "height": 8, "width": 8, "channels": 1, "classes": ()}
    record = SequenceRecord("a", "b", 2, "train")
    with pytest.raises(DatasetError), DatasetWriter(tmp_path / "new", domain.card(), **settings) as writer:
        writer.add(record, np.zeros((2, 8, 8, 1, 2)), None)
        writer.add(record, np.zeros((3, 8, 8, 1, 2)), None)
    with pytest.raises(DatasetError, match="no sequence"), DatasetWriter(tmp_path / "new", domain.card(), **settings):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with pytest.raises(DatasetError, match="not overwritten"):
        DatasetWriter(tmp_path / "old", domain.card(), **settings)


def test_an_unlabelled_dataset_says_so(tmp_path: Path, domain: KeyDomain):
    """Without classes there are no labels to read, and the error says what to do."""
    settings = {"dtype": "float32", "frames": 2, "height": 8, "width": 8, "channels": 1, "classes": ()}
    with DatasetWriter(tmp_path / "new", domain.card(), **settings) as writer:
        writer.add(SequenceRecord("a", "b", 2, "train"), np.zeros((2, 8, 8, 1, 2)), None)
    with pytest.raises(DatasetError, match="no labels"):
        EncryptedDataset.open(tmp_path / "new").labels(np.array([0]))


def test_swapped_shards_are_named(tmp_path: Path, domain: KeyDomain, plaintext, monkeypatch):
    """Two intact shards in one another's place fail verify by name."""
    monkeypatch.setattr(format_, "SHARD_BYTES", 2 * 2 * 8 * 8 * 2 * 8)
    dataset = write_dataset(tmp_path / "sharded", domain, plaintext)
    first, second, aside = (dataset.path / name for name in ("frames-00000.npy", "frames-00001.npy", "aside"))
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    with pytest.raises(DatasetError, match=r"frames-00000\.npy is damaged"):
        EncryptedDataset.open(dataset.path).verify()


def test_every_flipped_bit_of_the_manifest_is_noticed(dataset: EncryptedDataset):
    """Whatever byte of the manifest is changed, the dataset is refused, unless it says the same."""
    manifest = dataset.path / "manifest.json"
    intact = manifest.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for position in generator.permutation(len(intact))[:400]:
        damaged = bytearray(intact)
        damaged[position] ^= 1 << int(generator.integers(8))
        manifest.write_bytes(damaged)
        try:
            assert EncryptedDataset.open(dataset.path).manifest == dataset.manifest
        except DatasetError:
            refused += 1
    assert refused > 300


def test_a_shard_of_another_shape_is_named(dataset: EncryptedDataset):
    """A header that promises another shape in the same number of bytes is not read, even without verify."""
    file = dataset.path / "frames-00000.npy"
    file.write_bytes(file.read_bytes().replace(b"(11, 2, 8, 8, 1, 2)", b"(11, 4, 4, 8, 1, 2)"))
    with pytest.raises(DatasetError, match=r"frames-00000\.npy is damaged: it is float64 of shape"):
        EncryptedDataset.open(dataset.path).frames(np.array([0]))


def test_a_dataset_in_place_of_another_is_read_anew(tmp_path: Path, domain: KeyDomain, plaintext):
    """When a folder is replaced, a dataset that is opened then gives the new content, not the old one's mapping."""
    frames, labels = plaintext
    old = write_dataset(tmp_path / "dataset", domain, plaintext)
    old.frames(np.arange(11))
    shutil.rmtree(old.path)
    new = write_dataset(tmp_path / "dataset", domain, (frames + 1, labels))
    np.testing.assert_allclose(encryption.decrypt(domain, new.frames(np.arange(11))), frames + 1, atol=1e-12)


def test_the_fingerprint_is_the_contents(tmp_path: Path, domain: KeyDomain, plaintext):
    """Opening again gives the same fingerprint, writing again with fresh noise another."""
    dataset = write_dataset(tmp_path / "a", domain, plaintext)
    assert EncryptedDataset.open(dataset.path).manifest.fingerprint == dataset.manifest.fingerprint
    assert write_dataset(tmp_path / "b", domain, plaintext).manifest.fingerprint != dataset.manifest.fingerprint


def test_the_files_are_what_the_format_says(dataset: EncryptedDataset):
    """docs/format.md: the keys of the manifest, names of the shards, little-endian C order, and nothing else."""
    assert {f.name for f in dataset.path.iterdir()} == {"manifest.json", "frames-00000.npy", "labels-00000.npy"}
    text = (ROOT / "docs" / "format.md").read_text()
    for key in json.loads((dataset.path / "manifest.json").read_text()):
        assert f"`{key}`" in text
    for name in ("frames-00000.npy", "labels-00000.npy"):
        head = (dataset.path / name).read_bytes()[:128]
        assert head.startswith(b"\x93NUMPY\x01\x00")
        assert b"'descr': '<f8', 'fortran_order': False" in head


def test_an_unknown_split_is_refused(tmp_path: Path, domain: KeyDomain):
    """A record whose split is none of the three is not written."""
    settings = {"dtype": "float32", "frames": 2, "height": 8, "width": 8, "channels": 1, "classes": ()}
    with (
        pytest.raises(DatasetError, match="a split must be one of train, validation, test, got 'dev'"),
        DatasetWriter(tmp_path / "new", domain.card(), **settings) as writer,
    ):
        writer.add(SequenceRecord("a", "b", 2, "dev"), np.zeros((2, 8, 8, 1, 2)), None)


def test_labels_are_for_all_or_none(tmp_path: Path, domain: KeyDomain):
    """A sequence without a label is refused where there are classes, and one with a label where there are none."""
    settings = {"dtype": "float32", "frames": 2, "height": 8, "width": 8, "channels": 1}
    for classes, label in ((("no", "yes"), None), ((), np.zeros((2, 2)))):
        with (
            pytest.raises(DatasetError, match="labels are for all sequences"),
            DatasetWriter(tmp_path / "new", domain.card(), **settings, classes=classes) as writer,
        ):
            writer.add(SequenceRecord("a", "b", 2, "train"), np.zeros((2, 8, 8, 1, 2)), label)
