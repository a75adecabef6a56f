"""Ingest: the content of the written dataset, and that all of it is written or nothing."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FINDINGS, ROOT
from PIL import Image

from fedpp.config.run_config import SPLITS
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import DatasetError, RawDataError, UnusableFileError
from fedpp.imaging.images import read_image
from fedpp.imaging.labels import ClassMap
from fedpp.imaging.preparation import Preparation, gaps, prepare
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence
from fedpp.imaging.splits import UNDIVIDED, SplitPlan
from fedpp.ingest import ingestion as pipeline
from fedpp.ingest.ingestion import IngestSettings, IngestSummary, ingest, sequence_pseudonym
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain

PLAN = SplitPlan("stratified", 0, validation=0.2, test=0.3)
PREPARATION = Preparation("float64", 3, 6, 8)
SETTINGS = IngestSettings(PREPARATION, PLAN)
SMALL = Preparation("float64", 1, 5, 5, channels=3)
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
    class_map, progress = changes.pop("class_map", None), changes.pop("progress", False)
    shape = {name: changes.pop(name) for name in ("frames", "channels") if name in changes}
    settings = replace(SETTINGS, preparation=replace(PREPARATION, **shape), **changes)
    class_map = class_map or ClassMap.choose(sequences, ("well", "ill"), None)
    return ingest(sequences, out, domain=domain, class_map=class_map, settings=settings, progress=progress)


def test_the_dataset_decrypts_to_the_prepared_sequences(sequences, tmp_path: Path, domain: KeyDomain):
    """Every sequence comes back under its pseudonym, with its own frames, label, length, patient and split."""
    plan = replace(PLAN, seed=3)
    run(sequences, tmp_path / "out", domain, split=plan)
    dataset = EncryptedDataset.open(tmp_path / "out")
    dataset.verify()
    splits = plan.assign(sequences, lambda text: domain.pseudonym("split", text))
    frames = encryption.decrypt(domain, dataset.frames(np.arange(24)))
    labels = encryption.decrypt(domain, dataset.labels(np.arange(24))).round().argmax(axis=1)
    raw = {sequence_pseudonym(domain, s): s for s in sequences}
    names = dataset.ids(np.arange(24))
    assert set(names) == set(raw)
    for position, (name, record) in enumerate(zip(names, dataset.sequences, strict=True)):
        s = raw[name]
        np.testing.assert_allclose(frames[position], prepare(s, 3, 6, 8), atol=1e-10)
        assert ("well", "ill")[labels[position]] == s.label
        assert record["length"] == len(s.frames)
        assert record["patient"].decode() == domain.pseudonym("patient", s.patient)
        assert SPLITS[record["split"]] == splits[s.patient]


def test_the_order_on_disk_is_that_of_pseudonyms(sequences, tmp_path: Path, domain: KeyDomain):
    """Neither the order of the files nor that of the patients can be read off the dataset."""
    run(sequences, tmp_path / "out", domain)
    names = EncryptedDataset.open(tmp_path / "out").ids(np.arange(24))
    assert names == sorted(names)
    assert names != [sequence_pseudonym(domain, s) for s in sequences]


def test_the_summary_counts(sequences, tmp_path: Path, domain: KeyDomain):
    """The summary agrees with the manifest, survives JSON, and holds no identifier."""
    summary = run(sequences, tmp_path / "out", domain)
    dataset = EncryptedDataset.open(tmp_path / "out")
    assert summary.sequences == dataset.counts()
    assert summary.patients == dataset.patients()
    assert summary.patients == {split: count // 2 for split, count in summary.sequences.items()}
    assert summary.classes == {"well": 12, "ill": 12}
    assert summary.shape == (3, 6, 8, 1)
    assert summary.domain == dataset.manifest.domain == domain.card().fingerprint
    mapping = summary.to_mapping()
    assert json.loads(json.dumps(mapping)) == mapping
    assert "patient-" not in json.dumps(mapping)
    assert "findings" not in mapping


def test_unlabelled_data_are_ingested(sequences, tmp_path: Path, domain: KeyDomain):
    """Without classes there are frames and no labels."""
    summary = run(sequences, tmp_path / "out", domain, class_map=ClassMap(()))
    assert summary.classes == {}
    assert not list((tmp_path / "out").glob("labels-*"))


def test_pseudonyms_of_different_pairs_differ(domain: KeyDomain):
    """Patient "a" with sequence "b/c", and patient "a/b" with sequence "c", have different pseudonyms."""
    pairs = [("a", "bc"), ("ab", "c"), ("a,", "b"), ("a", ",b"), ('a", "b', "c"), ("a", 'b", "c')]
    names = {sequence_pseudonym(domain, ImageSequence(name, who, None, ())) for who, name in pairs}
    assert len(names) == len(pairs)


class Failing(Sequence[np.ndarray]):
    """Three frames that cannot be read."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: object) -> np.ndarray:
        raise self.error


def test_a_failure_leaves_nothing(sequences, tmp_path: Path, domain: KeyDomain):
    """When the last sequence cannot be read, neither the dataset nor a part of it is left."""
    last = max(range(24), key=lambda i: sequence_pseudonym(domain, sequences[i]))
    sequences[last] = replace(sequences[last], frames=Failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(sequences, tmp_path / "out", domain)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: [], "no sequence to ingest"),
        (lambda s: [*s, s[0]], "two sequences of one patient have the same id"),
        (lambda s: [*s, ImageSequence("x", "y", "other", s[0].frames)], "none of the classes"),
        (lambda s: [replace(s[0], split="train"), *s[1:]], "no split or into two"),
        (lambda s: [replace(one, split=SPLITS[i // 12]) for i, one in enumerate(s)], "no split or into two"),
        (lambda s: [replace(s[0], frames=()), *s[1:]], "no frame"),
    ],
)
def test_bad_sequences_are_refused_before_work_starts(sequences, tmp_path, domain, change, message):
    """What does not fit is one line that names no patient, and nothing is encrypted.

    No sequence, the same one twice, a label outside the classes, a split for some only, two splits of a patient, or a
    sequence of nothing.
    """
    untouched = [replace(s, frames=Failing(AssertionError())) for s in sequences]
    with pytest.raises(RawDataError, match=message) as refused:
        run(change(untouched), tmp_path / "out", domain, class_map=ClassMap(("well", "ill")))
    assert "patient-" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_not_touched(sequences, tmp_path: Path, domain: KeyDomain):
    """A second ingest to the same folder is refused and changes no byte."""
    run(sequences, tmp_path / "out", domain)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(DatasetError, match="not overwritten"):
        run(sequences, tmp_path / "out", domain)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_a_folder_that_cannot_be_written_is_named(sequences, tmp_path: Path, domain: KeyDomain):
    """Below a file no dataset can be written: one line that names the place."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetError, match=f"cannot write the dataset {tmp_path}/file/out"):
        run(sequences, tmp_path / "file" / "out", domain)


def test_no_bar_without_a_terminal(sequences, tmp_path: Path, domain: KeyDomain, capfd):
    """With progress wanted, but no terminal, nothing is printed."""
    run(sequences, tmp_path / "out", domain, progress=True)
    assert capfd.readouterr() == ("", "")


def file_sequences(folder: Path) -> list[ImageSequence]:
    """Return six sequences of image files, the first in grey and the others in colours."""
    sequences = []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 255, (9, 9, 3) if i else (9, 9), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        frames = FrameFiles([FrameFile(folder / f"{i}.png", 1, read_image)])
        sequences.append(ImageSequence(str(i), str(i), None, frames))
    return sequences


def test_all_cores_prepare_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Worker processes give the same images in the same order, and say which file they cannot read."""
    sequences = file_sequences(tmp_path)
    serial = list(pipeline.prepared(sequences, SMALL))
    for name, value in (("SAMPLE", 1), ("MIN_SECONDS", 0.0), ("BATCH", 2), ("AHEAD", 1)):
        monkeypatch.setattr(pipeline, name, value)
    monkeypatch.setattr(pipeline.os, "sched_getaffinity", lambda _: {0, 1})
    np.testing.assert_array_equal(list(pipeline.prepared(sequences, SMALL)), serial)
    assert multiprocessing.active_children() == []
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(UnusableFileError, match=r"cannot read the image .*3\.png: ") as unusable:
        list(pipeline.prepared(sequences, SMALL))
    assert (unusable.value.path, unusable.value.reason) == (tmp_path / "3.png", Reason.DAMAGED)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("cores", [1, 2])
def test_a_picture_of_two_patients_is_found(
    cores: int, tmp_path: Path, domain: KeyDomain, monkeypatch: pytest.MonkeyPatch
):
    """Counted in one process and in several: of patients of two splits it leaks; a blank picture is nobody's."""
    sequences = [
        replace(s, label="ill", split="test" if int(s.patient) > 3 else "train") for s in file_sequences(tmp_path)
    ]
    for copy, of in ((1, 0), (3, 2), (4, 2)):
        (tmp_path / f"{copy}.png").write_bytes((tmp_path / f"{of}.png").read_bytes())
    for number in (6, 7):
        Image.new("L", (9, 9)).save(tmp_path / f"{number}.png")
        frames = FrameFiles([FrameFile(tmp_path / f"{number}.png", 1, read_image)])
        sequences.append(ImageSequence("blank", str(number), "well", frames, split="train"))
    for name, value in (("SAMPLE", 1), ("MIN_SECONDS", 0.0), ("BATCH", 2), ("AHEAD", 1)):
        monkeypatch.setattr(pipeline, name, value)
    monkeypatch.setattr(pipeline.os, "sched_getaffinity", lambda _: set(range(cores)))
    summary = run(sequences, tmp_path / "out", domain)
    assert summary.same_pictures == {"same-image-in-two-splits": 1, "same-image": 1}


PARALLEL = """
import multiprocessing, sys, time
from pathlib import Path
from fedpp.ingest import ingestion
from fedpp.imaging.images import read_image
from fedpp.imaging.preparation import Preparation
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence

if __name__ == "__main__":
    ingestion.SAMPLE, ingestion.MIN_SECONDS, ingestion.os.sched_getaffinity = 1, 0.0, lambda _: {0, 1}
    one = ImageSequence("s", "p", None, FrameFiles([FrameFile(Path(sys.argv[1]), 1, read_image)]))
    for _ in ingestion.prepared([one] * 100, Preparation("float64", 1, 5, 5)):
        if workers := [child.pid for child in multiprocessing.active_children()]:
            print(*workers, flush=True)
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
    dataset = EncryptedDataset.open(tmp_path / "out")
    for split in SPLITS:
        expected = {domain.pseudonym("patient", patient).encode() for patient, s in given.items() if s == split}
        assert set(dataset.sequences["patient"][dataset.indices(split)]) == expected


def test_training_of_the_data_is_divided_for_validation(sequences, tmp_path: Path, domain: KeyDomain):
    """Where the data set only test patients apart, the plan's share of the others is for validation, none for test."""
    tested = {sequences[i].patient for i in range(0, len(sequences), 5)}
    given = [replace(s, split="test" if s.patient in tested else UNDIVIDED) for s in sequences]
    summary = run(given, tmp_path / "out", domain, split=SplitPlan("stratified", validation=0.25, test=0.5))
    others = len({s.patient for s in sequences}) - len(tested)
    assert summary.patients["test"] == len(tested)
    assert summary.patients["validation"] == pytest.approx(others / 4, abs=1)
    assert summary.patients["train"] + summary.patients["validation"] == others


def test_a_new_patient_moves_no_other(sequences, tmp_path: Path, domain: KeyDomain):
    """With hashed splits every patient of a first ingest keeps the split after ten more are added."""
    plan = SplitPlan("hashed")
    more = [replace(sequences[i], patient=f"new-{i}") for i in range(10)]
    for name, all_of_them in (("old", sequences), ("new", [*more, *sequences])):
        run(all_of_them, tmp_path / name, domain, split=plan)
    old, new = (EncryptedDataset.open(tmp_path / name).sequences for name in ("old", "new"))
    after = dict(zip(new["id"], new["split"], strict=True))
    assert len(after) == 34
    assert all(after[row["id"]] == row["split"] for row in old)


def test_the_same_images_give_the_same_dataset(sequences, tmp_path: Path, domain: KeyDomain):
    """A second ingest, in another order of the input, writes the same bytes."""
    for name, all_of_them in (("first", sequences), ("second", sequences[::-1])):
        run(all_of_them, tmp_path / name, domain)
    files = {name: {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("first", "second")}
    assert files["first"] == files["second"]


def test_short_sequences_are_padded(sequences, tmp_path: Path, domain: KeyDomain):
    """With more frames requested than there are, all are there, unrepeated, and the rest is zero and not valid."""
    run(sequences, tmp_path / "out", domain, frames=7)
    dataset = EncryptedDataset.open(tmp_path / "out")
    raw = {sequence_pseudonym(domain, s): s for s in sequences}
    everything = np.arange(24)
    rows, valid = dataset.frames(everything), dataset.valid(everything)
    for position, name in enumerate(dataset.ids(everything)):
        length = len(raw[name].frames)
        assert valid[position].tolist() == [True] * length + [False] * (7 - length)
        prepared = prepare(raw[name], 7, 6, 8)
        np.testing.assert_allclose(encryption.decrypt(domain, rows[position, :length]), prepared, atol=1e-10)
        np.testing.assert_array_equal(rows[position, length:], 0)


@pytest.mark.parametrize("kind", ["public", "encrypted"])
def test_time_gaps_are_kept(sequences, tmp_path: Path, domain: KeyDomain, kind: str):
    """The time between the chosen frames is kept, in clear or as ciphertext, of every sequence or of none."""
    with pytest.raises(RawDataError, match="have no times"):
        run(sequences, tmp_path / "out", domain, gaps=kind)
    timed = [replace(s, times=tuple(float(i * i) for i in range(len(s.frames)))) for s in sequences]
    run(timed, tmp_path / "out", domain, gaps=kind)
    dataset = EncryptedDataset.open(tmp_path / "out")
    values = dataset.gaps(np.arange(24))
    found = encryption.decrypt(domain, values) if kind == "encrypted" else values
    raw = {sequence_pseudonym(domain, s): s for s in timed}
    for position, name in enumerate(dataset.ids(np.arange(24))):
        np.testing.assert_allclose(found[position], gaps(raw[name], 3), atol=1e-12)
    assert np.ptp(found[:, 2]) > 0


def test_a_sealed_dataset_holds_the_same(sequences, tmp_path: Path, domain: KeyDomain):
    """Sealed at rest, frames and labels are those of the open dataset."""
    run(sequences, tmp_path / "open", domain)
    run(sequences, tmp_path / "sealed", domain, at_rest=True)
    plain = EncryptedDataset.open(tmp_path / "open")
    sealed = EncryptedDataset.open(tmp_path / "sealed", domain.at_rest_key())
    np.testing.assert_array_equal(sealed.frames(np.arange(24)), plain.frames(np.arange(24)))
    np.testing.assert_array_equal(sealed.labels(np.arange(24)), plain.labels(np.arange(24)))


def test_missing_classes_are_reported(sequences, tmp_path: Path, domain: KeyDomain):
    """A split without a sequence of some class is named in the summary."""
    assert run(sequences, tmp_path / "a", domain).missing_classes == {}
    given = {patient: "train" if label == "ill" else "test" for patient, label in COHORT.items()}
    summary = run([replace(s, split=given[s.patient]) for s in sequences], tmp_path / "b", domain)
    assert summary.missing_classes == {"train": ["well"], "validation": ["well", "ill"], "test": ["ill"]}


def test_folds_are_not_cut_of_data_with_splits(sequences, tmp_path: Path, domain: KeyDomain):
    """Cross-validation over data that bring splits would test on the same patients each time: refused."""
    given = [replace(s, split="train") for s in sequences]
    with pytest.raises(RawDataError, match="no folds are cut"):
        run(given, tmp_path / "out", domain, split=SplitPlan("stratified", folds=3))


STATES = [("1", "0", None), ("0", None, "1"), (None, None, "0"), ("0", "0", "0")]


@pytest.fixture
def findings(sequences) -> list[ImageSequence]:
    """Return the sequences with the states of three findings."""
    return [replace(s, label=STATES[i % 4]) for i, s in enumerate(sequences)]


def test_several_findings_are_kept_by_their_states(findings, tmp_path: Path, domain: KeyDomain):
    """Each sequence's findings come back, present, absent or unknown, and the summary counts them."""
    summary = run(findings, tmp_path / "out", domain, class_map=ClassMap(FINDINGS, multi_label=True))
    dataset = EncryptedDataset.open(tmp_path / "out")
    assert (dataset.manifest.classes, dataset.manifest.multi_label) == (FINDINGS, True)
    states = encryption.decrypt_findings(domain, dataset.labels(np.arange(24)))
    raw = {sequence_pseudonym(domain, s): s for s in findings}
    for name, found in zip(dataset.ids(np.arange(24)), states, strict=True):
        assert tuple({1: "1", 0: "0", -1: None}[state] for state in found.tolist()) == raw[name].label
    assert summary.classes == {"Edema": 6, "Fracture": 0, "Effusion": 6}
    for split in SPLITS:
        present = encryption.decrypt_findings(domain, dataset.labels(dataset.indices(split))).max(axis=0) == 1
        absent = [name for name, somewhere in zip(FINDINGS, present, strict=True) if not somewhere]
        assert "Fracture" in absent
        assert summary.missing_classes[split] == absent
    assert summary.to_mapping()["findings"] == {
        "Edema": {"present": 6, "absent": 12, "unknown": 6},
        "Fracture": {"present": 0, "absent": 12, "unknown": 12},
        "Effusion": {"present": 6, "absent": 12, "unknown": 6},
    }


def test_colours_are_kept_if_they_are_wanted(tmp_path: Path, domain: KeyDomain):
    """A dataset of three channels decrypts to the prepared colours, grey images among them."""
    coloured = file_sequences(tmp_path)
    summary = run(coloured, tmp_path / "out", domain, class_map=ClassMap(()), channels=3)
    dataset = EncryptedDataset.open(tmp_path / "out")
    assert summary.shape == (3, 6, 8, 3)
    assert dataset.manifest.channels == 3
    raw = {sequence_pseudonym(domain, s): s for s in coloured}
    found = encryption.decrypt(domain, dataset.frames(np.arange(6)))[:, :1]
    for name, values in zip(dataset.ids(np.arange(6)), found, strict=True):
        np.testing.assert_allclose(values, prepare(raw[name], 3, 6, 8, 3), atol=1e-10)
