"""Writing an encrypted dataset: what is refused, what is padded, and that it is all or nothing."""

import fcntl
import os
import shutil
import stat
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import new_dataset

from fedpp.dataset import dataset_writer as format_
from fedpp.dataset.dataset_manifest import SequenceRecord
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import DatasetError
from fedpp.keys.key_domain import KeyDomain

SMALL = {"dtype": "float32", "frames": 3, "height": 2, "width": 2, "channels": 1, "classes": ()}
GENERATOR = np.random.default_rng(0)


def test_a_failed_write_leaves_nothing(tmp_path: Path, domain: KeyDomain):
    """An error while writing, or no sequence at all, leaves no file; an existing folder is not touched."""
    record = SequenceRecord("a", "b", 2, "train")
    with pytest.raises(DatasetError), new_dataset(tmp_path / "new", domain.card(), **SMALL) as writer:
        writer.add(record, np.zeros((2, 2, 2, 1, 2)))
        writer.add(record, np.zeros((3, 2, 2, 1, 2)))
    with pytest.raises(DatasetError, match="no sequence"), new_dataset(tmp_path / "new", domain.card(), **SMALL):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with pytest.raises(DatasetError, match="not overwritten"):
        new_dataset(tmp_path / "old", domain.card(), **SMALL)


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_a_dataset_is_for_its_owner_and_a_group(tmp_path: Path, domain: KeyDomain, mask: int):
    """Whatever the umask, folder and files are closed to others and open to the group, while they are written too."""

    def modes(folder: Path) -> dict[str, int]:
        return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}

    left = tmp_path / ".new.partial"  # by a killed writer, of another mode
    left.mkdir(0o755)
    before = os.umask(mask)
    try:
        with new_dataset(tmp_path / "new", domain.card(), **SMALL) as writer:
            for name in ("a" * 32, "b" * 32):
                writer.add(SequenceRecord(name, name, 3, "train"), np.zeros((3, 2, 2, 1, 2)))
            writer._flush()
            assert modes(left) == {".new.partial": 0o750, "frames-00000.npy": 0o640}
    finally:
        os.umask(before)
    files = dict.fromkeys(("frames-00000.npy", "sequences.npy", "manifest.json"), 0o640)
    assert modes(tmp_path / "new") == {"new": 0o750, **files}


def test_an_unknown_split_is_refused(tmp_path: Path, domain: KeyDomain):
    """A record whose split is none of the three is not written."""
    with (
        pytest.raises(DatasetError, match="a split must be one of train, validation, test, got 'dev'"),
        new_dataset(tmp_path / "new", domain.card(), **SMALL) as writer,
    ):
        writer.add(SequenceRecord("a", "b", 2, "dev"), np.zeros((2, 2, 2, 1, 2)))


def test_labels_are_for_all_or_none(tmp_path: Path, domain: KeyDomain):
    """A sequence without a label is refused where there are classes, and one with a label where there are none."""
    for classes, label in ((("no", "yes"), None), ((), np.zeros((2, 2)))):
        with (
            pytest.raises(DatasetError, match="labels are for all sequences"),
            new_dataset(tmp_path / "new", domain.card(), **{**SMALL, "classes": classes}) as writer,
        ):
            writer.add(SequenceRecord("a", "b", 2, "train"), np.zeros((2, 2, 2, 1, 2)), label)


def test_short_sequences_are_padded(tmp_path: Path, domain: KeyDomain, monkeypatch: pytest.MonkeyPatch):
    """A sequence of 2 of 3 frames has zero rows after its end, and only those are not valid; longer ones have none."""
    monkeypatch.setattr(format_, "SHARD_BYTES", 1)  # one sequence a shard: the buffer holds the rows of the one before
    rows = GENERATOR.normal(size=(3, 2, 2, 1, 2)).astype(np.float32)
    with new_dataset(tmp_path / "new", domain.card(), **SMALL) as writer:
        writer.add(SequenceRecord("b", "p", 66, "train"), rows)
        writer.add(SequenceRecord("a", "p", 2, "train"), rows[:2])
        with pytest.raises(DatasetError, match="does not fit"):
            writer.add(SequenceRecord("c", "p", 2, "train"), rows)
    dataset = EncryptedDataset.open(tmp_path / "new")
    frames, both = dataset.frames(np.array([0, 1])), np.array([0, 1])
    np.testing.assert_array_equal(frames[0], rows)
    np.testing.assert_array_equal(frames[1, :2], rows[:2])
    np.testing.assert_array_equal(frames[1, 2], 0)
    np.testing.assert_array_equal(dataset.valid(both), [[True, True, True], [True, True, False]])


@pytest.mark.parametrize("kind", ["public", "encrypted"])
def test_time_gaps_come_back(tmp_path: Path, domain: KeyDomain, kind: str):
    """Public gaps come back as numbers, encrypted ones as rows; those of padding are zero; all or none have them."""
    frames = np.zeros((2, 2, 2, 1, 2))
    shape = (2,) if kind == "public" else (2, 2)
    gaps = GENERATOR.uniform(size=shape).astype(np.float32)
    with new_dataset(tmp_path / "new", domain.card(), **SMALL, gaps=kind) as writer:
        writer.add(SequenceRecord("a", "p", 2, "train"), frames, gaps=gaps)
        for wrong in (None, gaps[:1], gaps[..., None]):
            with pytest.raises(DatasetError, match=f"of all sequences of a dataset that has them, {kind} here"):
                writer.add(SequenceRecord("b", "p", 2, "train"), frames, gaps=wrong)
    found = EncryptedDataset.open(tmp_path / "new").gaps(np.array([0]))[0]
    np.testing.assert_array_equal(found[:2], gaps)
    np.testing.assert_array_equal(found[2], 0)


def test_two_writers_of_one_dataset_do_not_meet(tmp_path: Path, domain: KeyDomain):
    """While one writes, another is refused and harms nothing; what a killed one left is no obstacle."""
    left = tmp_path / ".new.partial"
    left.mkdir()
    (left / "labels-00007.npy").write_bytes(b"half")
    record, rows = SequenceRecord("a", "b", 3, "train"), np.zeros((3, 2, 2, 1, 2))
    with new_dataset(tmp_path / "new", domain.card(), **SMALL) as writer:
        writer.add(record, rows)
        other = new_dataset(tmp_path / "new", domain.card(), **SMALL)
        with pytest.raises(DatasetError, match="another process is writing"), other:
            pass
    EncryptedDataset.open(tmp_path / "new").verify()
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == [
        "frames-00000.npy",
        "manifest.json",
        "sequences.npy",
    ]
    assert [f.name for f in tmp_path.iterdir()] == ["new"]


def test_a_writer_does_not_remove_what_another_began(tmp_path: Path, domain: KeyDomain):
    """A writer that ends leaves the folder that a second one has made meanwhile, and one that comes late is refused."""
    record, rows = SequenceRecord("a", "b", 3, "train"), np.zeros((3, 2, 2, 1, 2))
    late = new_dataset(tmp_path / "new", domain.card(), **SMALL)
    with new_dataset(tmp_path / "new", domain.card(), **SMALL) as writer:
        writer.add(record, rows)
    (tmp_path / ".new.partial").mkdir()
    with pytest.raises(DatasetError, match="not overwritten"), late:
        pass
    EncryptedDataset.open(tmp_path / "new").verify()


@pytest.mark.parametrize("sealed", [False, True])
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path, domain: KeyDomain, monkeypatch, *, sealed: bool):
    """Writing and reading 24 MB in shards of 1 MB never holds more than 8 MB."""
    monkeypatch.setattr(format_, "SHARD_BYTES", 2**20)
    settings = {"dtype": "float32", "frames": 1, "height": 64, "width": 48, "channels": 1, "classes": ()}
    rows = np.ones((1, 64, 48, 1, 2), np.float32)
    tracemalloc.start()
    try:
        key = domain.at_rest_key() if sealed else None
        with new_dataset(tmp_path / "new", domain.card(), **settings, at_rest=key) as writer:
            for i in range(1000):
                writer.add(SequenceRecord(f"{i:032x}", f"{i:032x}", 1, "train"), rows)
        dataset = EncryptedDataset.open(tmp_path / "new", key)
        dataset.verify()
        for i in range(0, 1000, 8):
            dataset.frames(np.arange(i, i + 8))
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_padding_holds_nothing_of_an_earlier_sequence(tmp_path: Path, domain: KeyDomain, monkeypatch):
    """A short sequence that takes the place of a long one, in the next shard, is padded with zeros all the same."""
    monkeypatch.setattr(format_, "SHARD_BYTES", 1)
    rows = GENERATOR.normal(size=(3, 2, 2, 1, 2)).astype(np.float32)
    with new_dataset(tmp_path / "new", domain.card(), **SMALL, gaps="public") as writer:
        writer.add(SequenceRecord("a", "p", 3, "train"), rows, gaps=np.ones(3))
        writer.add(SequenceRecord("b", "p", 1, "train"), rows[:1], gaps=np.ones(1))
    dataset = EncryptedDataset.open(tmp_path / "new")
    np.testing.assert_array_equal(dataset.frames(np.array([1]))[0, 1:], 0)
    np.testing.assert_array_equal(dataset.gaps(np.array([1]))[0], [1, 0, 0])


def test_a_folder_that_is_made_anew_while_it_is_locked_is_not_taken(tmp_path: Path, domain: KeyDomain, monkeypatch):
    """Between opening and locking, another writer ends and a third begins: its folder is left as it is."""
    lock = fcntl.flock

    def meanwhile(descriptor: int, operation: int) -> None:
        shutil.rmtree(tmp_path / ".new.partial")
        (tmp_path / ".new.partial").mkdir()
        (tmp_path / ".new.partial" / "of-the-third").touch()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    writer = new_dataset(tmp_path / "new", domain.card(), **SMALL)
    with pytest.raises(DatasetError, match="another process is writing"), writer:
        pass
    assert [file.name for file in (tmp_path / ".new.partial").iterdir()] == ["of-the-third"]


def test_findings_are_pairs(tmp_path: Path, domain: KeyDomain):
    """In a multi-label dataset a label is a pair of rows for each finding, and one-hot classes do not fit."""
    settings = {**SMALL, "classes": ("Edema", "Fracture", "Effusion"), "multi_label": True}
    labels = GENERATOR.normal(size=(3, 2, 2)).astype(np.float32)
    with new_dataset(tmp_path / "new", domain.card(), **settings) as writer:
        record = SequenceRecord("a", "p", 3, "train")
        writer.add(record, np.zeros((3, 2, 2, 1, 2)), labels)
        for wrong in (labels[:, 0], labels[:2], labels[:, :1]):
            with pytest.raises(DatasetError, match=r"do not fit a dataset of \(3, 2, 2\)"):
                writer.add(record, np.zeros((3, 2, 2, 1, 2)), wrong)
    np.testing.assert_array_equal(EncryptedDataset.open(tmp_path / "new").labels(np.array([0]))[0], labels)
