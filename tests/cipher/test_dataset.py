"""The encrypted dataset on disk: what comes back, and damage that is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_dataset

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
    for text in (
        json.dumps({**values, "format": 2}),
        json.dumps({k: v for k, v in values.items() if k != "n"}),
        json.dumps({**values, "sequences": values["sequences"][1:]}),
        "{",
    ):
        manifest.write_text(text)
        with pytest.raises(DatasetError):
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
