"""From raw sequences to an encrypted dataset: what is written, what is not, and that it is all or nothing."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from fedpp import ingest as pipeline
from fedpp.cipher.dataset import EncryptedDataset
from fedpp.config import SPLITS
from fedpp.errors import DatasetError, RawDataError
from fedpp.imaging.images import read_image
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.preparation import prepare
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence
from fedpp.imaging.splits import split_patients
from fedpp.ingest import IngestSummary, ingest, sequence_pseudonym
from fedpp.keys import encryption
from fedpp.keys.domain import KeyDomain

COHORT = {f"patient-{i}": "ill" if i % 2 else "well" for i in range(12)}


@pytest.fixture
def sequences() -> list[ImageSequence]:
    """Return two sequences a patient, of 3 to 5 frames."""
    generator = np.random.default_rng(0)
    return [
        ImageSequence(f"scan-{i}", patient, label, tuple(generator.uniform(size=(3 + i % 3, 9, 12))))
        for i, (patient, label) in enumerate([*COHORT.items(), *COHORT.items()])
    ]


def run(sequences: list[ImageSequence], out: Path, domain: KeyDomain, **changes: object) -> IngestSummary:
    """Ingest with settings of a small dataset, changed as the test wants."""
    settings = {
        "card": domain.card(),
        "pseudonym": domain.pseudonym,
        "encrypt_frames": lambda values: encryption.encrypt_values(domain, values, "float64"),
        "encrypt_labels": lambda labels, k: encryption.encrypt_labels(domain, labels, k, "float64"),
        "class_map": ClassMap.choose(sequences, ("well", "ill"), None) if sequences else ClassMap(()),
        "frames": 3,
        "height": 6,
        "width": 8,
        "seed": 0,
        "validation": 0.2,
        "test": 0.3,
        "dtype": "float64",
        "progress": False,
    }
    return ingest(sequences, out, **{**settings, **changes})


def test_the_dataset_decrypts_to_the_prepared_sequences(sequences, tmp_path: Path, domain: KeyDomain):
    """Every sequence comes back under its pseudonym, with its own frames, label, length, patient and split."""
    run(sequences, tmp_path / "out", domain, seed=3)
    dataset = EncryptedDataset.open(tmp_path / "out")
    dataset.verify()
    splits = split_patients(sequences, 3, validation=0.2, test=0.3, digest=lambda text: domain.pseudonym("split", text))
    frames = encryption.decrypt(domain, dataset.frames(np.arange(24)))
    labels = encryption.decrypt(domain, dataset.labels(np.arange(24))).round().argmax(axis=1)
    raw = {sequence_pseudonym(domain.pseudonym, s): s for s in sequences}
    assert {record.id for record in dataset.manifest.sequences} == set(raw)
    for position, record in enumerate(dataset.manifest.sequences):
        s = raw[record.id]
        np.testing.assert_allclose(frames[position], prepare(s, 3, 6, 8), atol=1e-10)
        assert ("well", "ill")[labels[position]] == s.label
        assert record.length == len(s.frames)
        assert record.patient == domain.pseudonym("patient", s.patient)
        assert record.split == splits[s.patient]


def test_a_patient_is_in_one_split(sequences, tmp_path: Path, domain: KeyDomain):
    """Both sequences of each patient are in the same split, and no split is empty."""
    run(sequences, tmp_path / "out", domain)
    splits: dict[str, set[str]] = {}
    for record in EncryptedDataset.open(tmp_path / "out").manifest.sequences:
        splits.setdefault(record.patient, set()).add(record.split)
    assert len(splits) == 12
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "validation", "test"}


def test_the_order_on_disk_is_that_of_pseudonyms(sequences, tmp_path: Path, domain: KeyDomain):
    """Neither the order of the files nor that of the patients can be read off the dataset."""
    run(sequences, tmp_path / "out", domain)
    names = [record.id for record in EncryptedDataset.open(tmp_path / "out").manifest.sequences]
    assert names == sorted(names)
    assert names != [sequence_pseudonym(domain.pseudonym, s) for s in sequences]


def test_the_summary_counts(sequences, tmp_path: Path, domain: KeyDomain):
    """The summary agrees with the manifest, survives JSON, and holds no identifier."""
    summary = run(sequences, tmp_path / "out", domain)
    manifest = EncryptedDataset.open(tmp_path / "out").manifest
    assert summary.sequences == Counter(record.split for record in manifest.sequences)
    assert summary.patients == {split: count // 2 for split, count in summary.sequences.items()}
    assert summary.classes == {"well": 12, "ill": 12}
    assert summary.shape == (3, 6, 8, 1)
    assert summary.domain == manifest.domain == domain.card().fingerprint
    mapping = summary.to_mapping()
    assert json.loads(json.dumps(mapping)) == mapping
    assert "patient-" not in json.dumps(mapping)


def test_unlabelled_data_are_ingested(sequences, tmp_path: Path, domain: KeyDomain):
    """Without classes there are frames and no labels."""
    summary = run(sequences, tmp_path / "out", domain, class_map=ClassMap(()))
    assert summary.classes == {}
    assert not list((tmp_path / "out").glob("labels-*"))


def test_pseudonyms_of_different_pairs_differ(domain: KeyDomain):
    """Patient "a" with sequence "b/c", and patient "a/b" with sequence "c", have different pseudonyms."""
    pairs = [("a", "bc"), ("ab", "c"), ("a,", "b"), ("a", ",b"), ('a", "b', "c"), ("a", 'b", "c')]
    names = {sequence_pseudonym(domain.pseudonym, ImageSequence(name, who, None, ())) for who, name in pairs}
    assert len(names) == len(pairs)


def test_a_failure_leaves_nothing(sequences, tmp_path: Path, domain: KeyDomain):
    """When encryption fails at the last sequence, neither the dataset nor a part of it is left."""
    left = iter(range(23))

    def failing(values: np.ndarray) -> np.ndarray:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return encryption.encrypt_values(domain, values, "float64")

    with pytest.raises(KeyboardInterrupt):
        run(sequences, tmp_path / "out", domain, encrypt_frames=failing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: [], RawDataError, "no sequence to ingest"),
        (lambda s: [*s, s[0]], RawDataError, "two sequences of one patient have the same id"),
        (lambda s: [*s, ImageSequence("x", "y", "other", s[0].frames)], RawDataError, "none of the classes"),
    ],
)
def test_bad_sequences_are_refused_before_work_starts(sequences, tmp_path, domain, change, error, message):
    """No sequence, the same one twice, or a label outside the classes: refused, and nothing is encrypted."""

    def untouched(values: np.ndarray) -> np.ndarray:
        raise AssertionError(values.shape)

    class_map = ClassMap(("well", "ill"))
    with pytest.raises(error, match=message) as refused:
        run(change(sequences), tmp_path / "out", domain, class_map=class_map, encrypt_frames=untouched)
    assert "patient-" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_not_touched(sequences, tmp_path: Path, domain: KeyDomain):
    """A second ingest to the same folder is refused and changes no byte."""
    run(sequences, tmp_path / "out", domain)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(DatasetError, match="not overwritten"):
        run(sequences, tmp_path / "out", domain)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_a_place_that_cannot_be_written_is_said(sequences, tmp_path: Path, domain: KeyDomain):
    """Below a file no dataset can be written: one line that names the place."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetError, match=f"cannot write the dataset {tmp_path}/file/out"):
        run(sequences, tmp_path / "file" / "out", domain)


def test_no_bar_without_a_terminal(sequences, tmp_path: Path, domain: KeyDomain, capfd):
    """With progress wanted, but no terminal, nothing is printed."""
    run(sequences, tmp_path / "out", domain, progress=True)
    assert capfd.readouterr() == ("", "")


def file_sequences(folder: Path) -> list[ImageSequence]:
    """Return six sequences of image files, each of its own grey."""
    sequences = []
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (9, 9), dtype=np.uint8)).save(folder / f"{i}.png")
        frames = FrameFiles([FrameFile(folder / f"{i}.png", 1, read_image)])
        sequences.append(ImageSequence(str(i), str(i), None, frames))
    return sequences


def test_all_cores_prepare_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Worker processes give the same images in the same order, and say which file they cannot read."""
    sequences = file_sequences(tmp_path)
    serial = list(pipeline.prepared(sequences, 1, 5, 5))
    monkeypatch.setattr(pipeline, "PARALLEL_FROM", 1)
    monkeypatch.setattr(pipeline, "AHEAD", 1)
    monkeypatch.setattr(pipeline.os, "sched_getaffinity", lambda _: {0, 1})
    np.testing.assert_array_equal(list(pipeline.prepared(sequences, 1, 5, 5)), serial)
    assert multiprocessing.active_children() == []
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(RawDataError, match=r"cannot read the image .*3\.png"):
        list(pipeline.prepared(sequences, 1, 5, 5))
    assert multiprocessing.active_children() == []


PARALLEL = """
import multiprocessing, sys, time
from pathlib import Path
from fedpp import ingest
from fedpp.imaging.images import read_image
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence

if __name__ == "__main__":
    ingest.PARALLEL_FROM, ingest.os.sched_getaffinity = 1, lambda _: {0, 1}
    one = ImageSequence("s", "p", None, FrameFiles([FrameFile(Path(sys.argv[1]), 1, read_image)]))
    for _ in ingest.prepared([one] * 100, 1, 5, 5):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(60)
"""


def test_workers_end_with_a_killed_ingest(tmp_path: Path):
    """SIGKILL of the process that ingests leaves no worker waiting for ever."""
    file_sequences(tmp_path)
    program = tmp_path / "program.py"
    program.write_text(PARALLEL)
    command = [sys.executable, str(program), str(tmp_path / "0.png")]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as main:
        assert main.stdout is not None
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert workers
        main.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_splits_of_the_data_are_kept(sequences, tmp_path: Path, domain: KeyDomain):
    """Where the data assign a split, nothing is drawn."""
    given = {s.patient: SPLITS[i % 3] for i, s in enumerate(sequences)}
    run([replace(s, split=given[s.patient]) for s in sequences], tmp_path / "out", domain)
    records = EncryptedDataset.open(tmp_path / "out").manifest.sequences
    pseudonyms = {domain.pseudonym("patient", patient): split for patient, split in given.items()}
    assert {record.patient: record.split for record in records} == pseudonyms
