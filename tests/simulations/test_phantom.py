"""Phantom hospitals: reproducible DICOM files, in which only the change over visits separates the classes."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from sklearn.metrics import roc_auc_score

from fedpp.imaging.preparation import prepare
from fedpp.imaging.readers.layout import read_sequences
from simulations import phantom
from simulations.phantom import GROWING, STABLE, write_phantom


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return three hospitals of 14 patients."""
    out = tmp_path_factory.mktemp("phantom")
    return write_phantom(out, hospitals=3, patients=14, visits=4, size=32, seed=5)


def test_every_hospital_is_read_as_dicom(folders: list[Path]):
    """The DICOM reader finds each patient's visits as one sequence, half of them growing; no id is at two hospitals."""
    patients: set[str] = set()
    for folder in folders:
        sequences, recognised = read_sequences(folder)
        assert recognised == (
            "DICOM folder, by the mark in its files, 56 image files, labels from labels.csv: "
            "14 sequences of 14 patients, 56 frames, labels: growing 7, stable 7"
        )
        assert [len(s.frames) for s in sequences] == [4] * 14
        assert [s.label for s in sequences].count(GROWING) == [s.label for s in sequences].count(STABLE) == 7
        patients |= {s.patient for s in sequences}
    assert len(patients) == 42


def test_the_files_are_valid_dicom(folders: list[Path]):
    """Files have the attributes that a reader needs, visits are in order of time, and image UIDs are unique."""
    images = [pydicom.dcmread(file) for folder in folders for file in sorted(folder.rglob("*.dcm"))]
    assert len({image.SOPInstanceUID for image in images}) == len(images) == 168
    for first, second in pairwise(images):
        assert first.PatientID != second.PatientID or first.StudyDate < second.StudyDate
    assert {image.file_meta.MediaStorageSOPClassUID for image in images} == {image.SOPClassUID for image in images}


def test_hospitals_differ_in_their_images(folders: list[Path]):
    """Scanners differ in photometric interpretation, contrast and noise."""
    seen = set()
    for folder in folders:
        frames = np.stack([f for s in read_sequences(folder)[0] for f in s.frames])
        noise = np.diff(frames[:, :3, :3]).std()
        photometric = pydicom.dcmread(next(folder.rglob("*.dcm"))).PhotometricInterpretation
        seen.add((photometric, round(float(frames.std()), 2), round(float(noise), 2)))
    assert len(seen) == 3
    assert {photometric for photometric, _, _ in seen} == {"MONOCHROME1", "MONOCHROME2"}


def test_the_same_seed_is_the_same_bytes(tmp_path: Path):
    """Files do not depend on the time of writing; another seed gives other pixels."""

    def content(name: str, seed: int) -> dict[str, bytes]:
        write_phantom(tmp_path / name, hospitals=2, patients=2, visits=2, size=16, seed=seed)
        files = (f for f in (tmp_path / name).rglob("*") if f.is_file())
        return {str(f.relative_to(tmp_path / name)): f.read_bytes() for f in files}

    first = content("first", 1)
    assert content("again", 1) == first
    other = content("other", 2)
    assert other.keys() == first.keys()
    assert other != first


def test_the_change_separates_the_classes_and_one_visit_does_not():
    """By the lesion's true size, no single visit separates the classes well, and the ratio of last to first does."""
    generator = np.random.default_rng(0)
    people = [phantom._patient("p", bool(i % 2), 4, generator) for i in range(3000)]
    growing = [person.growing for person in people]
    radii = np.array([person.radii for person in people])
    for visit in range(4):
        auc = roc_auc_score(growing, radii[:, visit])
        assert 0.12 < auc < 0.88
    assert roc_auc_score(growing, radii[:, 3] / radii[:, 0]) > 0.999


def test_growth_is_visible_in_prepared_images(folders: list[Path]):
    """After standardisation, the brightening from the first visit to the last separates the classes."""
    labels, brighter = [], []
    for folder in folders:
        for sequence in read_sequences(folder)[0]:
            prepared = prepare(sequence, 4, 16, 16)[..., 0]
            labels.append(sequence.label == GROWING)
            brighter.append(float(np.clip(prepared[3] - prepared[0] - 0.5, 0, None).sum()))
    assert roc_auc_score(labels, brighter) > 0.9


def test_the_change_of_hard_phantoms_overlaps():
    """By the lesions' true sizes, the ratio of last to first separates hard phantoms well, and not completely."""
    generator = np.random.default_rng(0)
    people = [phantom._patient("p", bool(i % 2), 4, generator, hard=True) for i in range(3000)]
    radii = np.array([person.radii for person in people])
    ratios = radii[:, 3] / radii[:, 0]
    growing = np.array([person.growing for person in people])
    assert 0.95 < roc_auc_score(growing, ratios) < 0.985
    assert np.median(ratios[growing]) == pytest.approx(2.2, rel=0.05)
    assert np.median(ratios[~growing]) == pytest.approx(1, rel=0.05)


def test_hard_hospitals_differ_in_prevalence_noise_and_contrast(tmp_path: Path):
    """Of 20 patients 10, 8 and 6 have a growing lesion, and each scanner is noisier or paler than the first."""
    folders = write_phantom(tmp_path, hospitals=3, patients=20, visits=2, size=32, seed=5, hard=True)
    labels, noises = [], []
    for folder in folders:
        sequences, _ = read_sequences(folder)
        labels.append([s.label for s in sequences].count(GROWING))
        frames = np.stack([f for s in sequences for f in s.frames])
        noises.append(np.diff(frames[:, :, :3]).std() / frames.std())
    assert labels == [10, 8, 6]
    assert noises[0] < noises[2] < noises[1]
