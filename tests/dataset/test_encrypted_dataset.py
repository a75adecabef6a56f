"""The encrypted dataset on disk: what comes back, and damage that is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, new_dataset, write_dataset

from fedpp.dataset import dataset_writer as format_
from fedpp.dataset.at_rest import AtRestKey
from fedpp.dataset.dataset_manifest import DatasetManifest, SequenceRecord
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import DatasetError, DomainMismatchError
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain
from fedpp.protocol.counts import UNKNOWN


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
    for kind in ("frames", "labels"):
        shards = [shard for shard in dataset.manifest.shards if shard.kind == kind]
        assert [shard.count for shard in shards] == [2, 2, 2, 2, 2, 1]
    everything = encryption.decrypt(domain, dataset.frames(np.arange(11)))
    np.testing.assert_allclose(everything, plaintext[0], atol=1e-12)


@pytest.mark.parametrize("file", ["frames-00000.npy", "labels-00000.npy", "sequences.npy"])
def test_damage_is_named(dataset: EncryptedDataset, file: str):
    """A flipped bit fails verify, a truncated or missing file fails open, each with the file's name."""
    path = dataset.path / file
    content = bytearray(path.read_bytes())
    for position in (3, len(content) // 2, -1):
        content[position] ^= 1
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=f"{file} is damaged"):
            EncryptedDataset.open(dataset.path).verify()
        content[position] ^= 1
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
        (json.dumps({**values, "format": 1}), "has format 1, this program reads 3: ingest again"),
        (json.dumps({k: v for k, v in values.items() if k != "n"}), "damaged"),
        (json.dumps({**values, "shards": values["shards"][1:]}), "was changed"),
        (json.dumps(values).replace(values["shards"][0]["file"], "/etc/hosts"), "outside its folder"),
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        (json.dumps({**values, "sequences": {**values["sequences"], "file": 5}}), "damaged"),
    ):
        manifest.write_text(text)
        with pytest.raises(DatasetError, match=message):
            EncryptedDataset.open(dataset.path)


def test_an_unlabelled_dataset_says_so(tmp_path: Path, domain: KeyDomain):
    """Without classes there are no labels to read, and the error says what to do."""
    settings = {"dtype": "float32", "frames": 2, "height": 8, "width": 8, "channels": 1, "classes": ()}
    with new_dataset(tmp_path / "new", domain.card(), **settings) as writer:
        writer.add(SequenceRecord("a", "b", 2, "train"), np.zeros((2, 8, 8, 1, 2)), None)
    with pytest.raises(DatasetError, match="no labels"):
        EncryptedDataset.open(tmp_path / "new").labels(np.array([0]))
    with pytest.raises(DatasetError, match="no time gaps"):
        EncryptedDataset.open(tmp_path / "new").gaps(np.array([0]))


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
    """The same content gives the same files and fingerprint, another label or pixel another one."""
    frames, labels = plaintext
    dataset = write_dataset(tmp_path / "a", domain, plaintext)
    again = write_dataset(tmp_path / "b", domain, plaintext)
    assert again.manifest.fingerprint == dataset.manifest.fingerprint
    for file in dataset.path.iterdir():
        assert (again.path / file.name).read_bytes() == file.read_bytes()
    moved = frames.copy()
    moved[5, 1, 2, 3] += 1e-6
    others = [(frames, 1 - labels), (moved, labels)]
    prints = {write_dataset(tmp_path / f"c{i}", domain, other).manifest.fingerprint for i, other in enumerate(others)}
    assert len(prints | {dataset.manifest.fingerprint}) == 3


def test_the_files_are_what_the_format_says(dataset: EncryptedDataset):
    """The format page: the keys of the manifest, names of the shards, little-endian C order, and nothing else."""
    names = {"manifest.json", "sequences.npy", "frames-00000.npy", "labels-00000.npy"}
    assert {f.name for f in dataset.path.iterdir()} == names
    text = (ROOT / "docs" / "reference" / "dataset_format.md").read_text()
    for key in json.loads((dataset.path / "manifest.json").read_text()):
        assert f"`{key}`" in text
    for name in ("frames-00000.npy", "labels-00000.npy"):
        head = (dataset.path / name).read_bytes()[:128]
        assert head.startswith(b"\x93NUMPY\x01\x00")
        assert b"'descr': '<f8', 'fortran_order': False" in head


SMALL = {"dtype": "float32", "frames": 3, "height": 2, "width": 2, "channels": 1, "classes": ()}
GENERATOR = np.random.default_rng(0)


def test_counts_are_those_of_the_records(dataset: EncryptedDataset):
    """Sequences and patients of each split, and the pseudonyms in their order."""
    assert dataset.counts() == dataset.patients() == {"train": 6, "validation": 2, "test": 3}
    assert dataset.ids(np.array([10, 0])) == [f"{10:032x}", f"{0:032x}"]


@pytest.fixture
def sealed(tmp_path: Path, domain: KeyDomain) -> Path:
    """Return a sealed dataset of five sequences, two a shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(format_, "SHARD_BYTES", 2 * 3 * 2 * 2 * 2 * 4)
        settings = {**SMALL, "classes": ("no", "yes")}
        with new_dataset(tmp_path / "sealed", domain.card(), **settings, at_rest=domain.at_rest_key()) as writer:
            for i in range(5):
                record = SequenceRecord(str(i), "p", 3, "train")
                writer.add(record, np.full((3, 2, 2, 1, 2), i + 0.5), np.full((2, 2), i + 0.25))
    return tmp_path / "sealed"


def test_a_sealed_dataset_opens_with_its_key(sealed: Path, domain: KeyDomain):
    """With the domain's key all comes back; without it, what is public; no record stands there in clear."""
    dataset = EncryptedDataset.open(sealed, domain.at_rest_key())
    dataset.verify()
    order = np.array([4, 0, 3])
    np.testing.assert_array_equal(dataset.frames(order)[:, 0, 0, 0, 0, 0], order + 0.5)
    np.testing.assert_array_equal(dataset.labels(order)[:, 0, 0], order + 0.25)
    closed = EncryptedDataset.open(sealed)
    assert closed.counts()["train"] == 5
    closed.verify()
    with pytest.raises(DatasetError, match="sealed at rest: use the domain's at-rest key"):
        closed.frames(order)
    for file in sealed.glob("*.sealed"):
        assert np.float32(1.5).tobytes() not in file.read_bytes()


def test_a_sealed_dataset_finds_malice(sealed: Path, domain: KeyDomain):
    """Records and manifest with checksums made anew by somebody without the key are refused; so is another's key."""
    shards = sorted(sealed.glob("frames-*.sealed"))
    first, second = (shard.read_bytes() for shard in shards[:2])
    shards[0].write_bytes(second)
    shards[1].write_bytes(first)
    dataset = EncryptedDataset.open(sealed, domain.at_rest_key())
    with pytest.raises(DatasetError, match=r"frames-00000\.sealed is damaged: a record cannot be read"):
        dataset.frames(np.array([0]))
    manifest = DatasetManifest.from_json((sealed / "manifest.json").read_text())
    forged = replace(manifest, classes=("yes", "no"))
    tag = json.loads((sealed / "manifest.json").read_text())["tag"]
    (sealed / "manifest.json").write_text(forged.to_json(None).replace('"tag": null', f'"tag": "{tag}"'))
    assert EncryptedDataset.open(sealed).manifest.classes == ("yes", "no")
    with pytest.raises(DatasetError, match="not sealed under this at-rest key"):
        EncryptedDataset.open(sealed, domain.at_rest_key())


def test_the_key_of_another_domain_is_no_damage(sealed: Path, domain: KeyDomain):
    """Another domain's at-rest key is a DomainMismatchError; another key of the same domain opens nothing."""
    with pytest.raises(
        DomainMismatchError,
        match="use the other key; `fedpp-site reencrypt` the dataset",
    ):
        EncryptedDataset.open(sealed, KeyDomain.of_secret(bytes(32), n=2).at_rest_key())
    with pytest.raises(DatasetError, match="not sealed under this at-rest key"):
        EncryptedDataset.open(sealed, AtRestKey(domain.card().fingerprint, bytes(32)))


@pytest.mark.parametrize("index", [-1, 11])
def test_an_index_out_of_range_is_an_index_error(dataset: EncryptedDataset, index: int):
    """No index wraps around, or reads what stands beside the records."""
    for read in (dataset.frames, dataset.labels):
        with pytest.raises(IndexError, match="sequences are 0 to 10"):
            read(np.array([0, index]))


def test_a_shard_that_is_lost_while_reading_is_named(dataset: EncryptedDataset):
    """A file that is gone, or shorter, after opening is a DatasetError, not a traceback or zeros."""
    file = dataset.path / "frames-00000.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(DatasetError, match=r"frames-00000\.npy is damaged: a record cannot be read"):
        dataset.frames(np.array([10]))
    file.unlink()
    with pytest.raises(DatasetError, match=r"cannot read shard .*frames-00000\.npy: No such file"):
        dataset.frames(np.array([0]))


GOLDEN = ROOT / "tests" / "vectors" / "dataset-3"


def golden_rows() -> tuple[np.ndarray, np.ndarray]:
    """Return frames `[3, 2, 2, 2, 1, 2]` and labels `[3, 2, 2]` that float32 holds exactly."""
    return np.arange(48).reshape(3, 2, 2, 2, 1, 2) / 8, np.arange(12).reshape(3, 2, 2) / 4


def write_golden(path: Path, *, sealed: bool = False) -> None:
    """Write the dataset of the golden files."""
    frames, labels = golden_rows()
    domain = KeyDomain.of_secret(bytes(range(32)), n=2)
    key = domain.at_rest_key() if sealed else None
    settings = {"dtype": "float32", "frames": 2, "height": 2, "width": 2, "channels": 1, "classes": ("no", "yes")}
    with new_dataset(path, domain.card(), **settings, gaps="public", at_rest=key) as writer:
        for i, (length, split) in enumerate(((2, "train"), (1, "validation"), (7, "test"))):
            valid = min(length, 2)
            record = SequenceRecord(f"{i:032x}", f"{i // 2:032x}", length, split)
            writer.add(record, frames[i, :valid], labels[i], np.array([0, 0.5])[:valid])


FINDINGS = ROOT / "tests" / "vectors" / "findings-3"
STATES = ((1, 0, UNKNOWN), (0, UNKNOWN, UNKNOWN))
COLOURS = np.arange(24.0).reshape(2, 1, 1, 2, 3, 2)


def write_findings(path: Path) -> None:
    """Write the multi-label, coloured dataset of the golden files."""
    domain = KeyDomain.of_secret(bytes(range(32)), n=2)
    sizes = {"dtype": "float64", "frames": 1, "height": 1, "width": 2, "channels": 3}
    cipher = encryption.SequenceCipher(domain, "float64")
    names = ("Edema", "Fracture", "Effusion")
    with new_dataset(path, domain.card(), **sizes, classes=names, multi_label=True) as writer:
        for i, states in enumerate(STATES):
            record = SequenceRecord(f"{i:032x}", f"{i:032x}", 1, "train")
            writer.add(record, COLOURS[i], cipher.findings(record.id, states))


def test_golden_findings_are_read_and_written(tmp_path: Path):
    """A multi-label dataset of colours is read by every later version; what it was written of gives it again.

    Rows are a product in floating point, whose last bits may be another processor's.
    """
    write_findings(tmp_path / "new")
    golden, new = (EncryptedDataset.open(path) for path in (FINDINGS, tmp_path / "new"))
    golden.verify()
    domain, both = KeyDomain.of_secret(bytes(range(32)), n=2), np.arange(2)
    assert (golden.manifest.multi_label, golden.manifest.classes) == (True, ("Edema", "Fracture", "Effusion"))
    np.testing.assert_array_equal(encryption.decrypt_findings(domain, golden.labels(both)), STATES)
    np.testing.assert_array_equal(golden.frames(both), COLOURS)
    np.testing.assert_allclose(new.labels(both), golden.labels(both), atol=1e-12)
    np.testing.assert_array_equal(new.frames(both), golden.frames(both))


def test_golden_files_are_read_and_written(tmp_path: Path):
    """Files of format 3 are read by every later version, and written byte for byte as they stand there."""
    write_golden(tmp_path / "new")
    assert {f.name for f in (tmp_path / "new").iterdir()} == {f.name for f in GOLDEN.iterdir()}
    for file in GOLDEN.iterdir():
        assert (tmp_path / "new" / file.name).read_bytes() == file.read_bytes(), file.name
    frames, labels = golden_rows()
    frames[1, 1] = 0
    dataset = EncryptedDataset.open(GOLDEN)
    np.testing.assert_array_equal(dataset.frames(np.arange(3)), frames)
    np.testing.assert_array_equal(dataset.labels(np.arange(3)), labels)
    np.testing.assert_array_equal(dataset.gaps(np.arange(3)), [[0, 0.5], [0, 0], [0, 0.5]])
    np.testing.assert_array_equal(dataset.valid(np.arange(3)), [[1, 1], [1, 0], [1, 1]])
    assert dataset.patients() == {"train": 1, "validation": 1, "test": 1}


SEALED = ROOT / "tests" / "vectors" / "sealed-3"


def test_a_golden_sealed_dataset_opens():
    """A dataset that was sealed by an earlier version opens with the key of its domain."""
    dataset = EncryptedDataset.open(SEALED, KeyDomain.of_secret(bytes(range(32)), n=2).at_rest_key())
    dataset.verify()
    frames, labels = golden_rows()
    frames[1, 1] = 0
    np.testing.assert_array_equal(dataset.frames(np.arange(3)), frames)
    np.testing.assert_array_equal(dataset.labels(np.arange(3)), labels)
    np.testing.assert_array_equal(dataset.gaps(np.arange(3)), [[0, 0.5], [0, 0], [0, 0.5]])
