"""Folders of raw data that cannot be listed are reported, so that no patient is lost silently."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from PIL import Image
from unprivileged import unprivileged

from fedpp.errors import RawDataError
from fedpp.imaging.readers.chexpert import COLUMNS as CHEXPERT
from fedpp.imaging.readers.folders import files_below
from fedpp.imaging.readers.layout import read_sequences
from fedpp.survey.examination import examine

PATIENTS = ("p", "q", "r")


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * (1 + len(file.parent.name))).save(file)


def images(root: Path) -> None:
    for patient in PATIENTS:
        picture(root / patient / "1.png")


def dicom(root: Path) -> None:
    for patient, name in zip(PATIENTS, ("CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm"), strict=True):
        (root / patient).mkdir()
        (root / patient / name).write_bytes((DATA / "dicom" / name).read_bytes())


def breakhis(root: Path) -> None:
    for number, patient in enumerate(PATIENTS):
        picture(root / patient / f"SOB_B_TA-14-465{number}-40-001.png")


def frames(root: Path) -> None:
    images(root)
    (root / "index.csv").write_text("sequence,patient,label\n" + "".join(f"{p},{p},a\n" for p in PATIENTS))


def manifest(root: Path) -> None:
    images(root)
    lines = "".join(f"{p}/1.png,{p},2026-01-01,a\n" for p in PATIENTS)
    (root / "manifest.csv").write_text(f"path,patient,time,label\n{lines}")


def chexpert(root: Path) -> None:
    rows = []
    for patient in PATIENTS:
        name = f"{patient}/patient0000{PATIENTS.index(patient)}/study1/view1_frontal.jpg"
        picture(root / name)
        rows.append({**dict.fromkeys(CHEXPERT, "1"), "Path": name, "Frontal/Lateral": "Frontal"})
    with (root / "train.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, CHEXPERT)
        table.writeheader()
        table.writerows(rows)


@pytest.mark.parametrize("mode", [0o000, 0o444])
@pytest.mark.parametrize("written", [images, dicom, breakhis, frames, manifest, chexpert])
def test_a_patient_whose_folder_is_closed_is_not_lost(written: Callable[[Path], None], mode: int, tmp_path: Path):
    """Reading stops at a folder that may not be listed or entered.

    With a handler it is skipped and reported; a survey has an issue for it.
    """
    written(tmp_path)
    assert examine(tmp_path).patients == len(PATIENTS)  # by root, whose Python nobody may load more of
    with unprivileged(locked=0o777) as root:
        written(root)
        (root / "q").chmod(mode)
        try:
            with pytest.raises(RawDataError, match="--skip-unreadable"):
                read_sequences(root)
            refusals: list[Path] = []
            sequences, _ = read_sequences(root, refuse=lambda path, _: refusals.append(path))
            seen = examine(root)
        finally:
            (root / "q").chmod(0o755)
    assert len(sequences) == len(PATIENTS) - 1
    assert refusals
    assert all(root / "q" in (path, *path.parents) for path in refusals)
    assert "unreadable" in {issue.kind for issue in seen.issues}


def test_folders_without_permission_are_named(tmp_path: Path):
    """A folder whose content cannot be accessed is not called empty."""
    images(tmp_path)
    read_sequences(tmp_path)
    with unprivileged(locked=0o777) as root:
        images(root)
        for patient in PATIENTS:
            (root / patient).chmod(0)
        try:
            with pytest.raises(RawDataError, match=f"cannot list the folder {root}/p: Permission denied: check its"):
                read_sequences(root)
        finally:
            for patient in PATIENTS:
                (root / patient).chmod(0o755)


def test_a_file_that_may_be_dicom_and_cannot_be_opened_is_named(tmp_path: Path):
    """Without a suffix DICOM is known by its content alone, so a file that cannot be opened may be DICOM."""
    dicom(tmp_path)
    read_sequences(tmp_path)
    with unprivileged(locked=0o777) as root:
        dicom(root)
        (root / "q" / "MR_small.dcm").rename(root / "q" / "IM1")
        assert len(read_sequences(root)[0]) == len(PATIENTS)
        (root / "q" / "IM1").chmod(0)
        with pytest.raises(RawDataError, match=f"cannot read the file {root}/q/IM1: Permission denied"):
            read_sequences(root)


def test_a_link_to_a_folder_is_refused(tmp_path: Path):
    """Links are not followed, since they may form a circle; the error says what to do."""
    images(tmp_path / "raw")
    (tmp_path / "raw" / "r").rename(tmp_path / "r")
    (tmp_path / "raw" / "r").symlink_to(tmp_path / "r")
    with pytest.raises(RawDataError, match="raw/r is a link to a folder, which is not followed: put the folder there"):
        read_sequences(tmp_path / "raw")


def test_files_come_in_the_order_of_their_paths(tmp_path: Path):
    """The order is the same on every file system; folders are no files."""
    for name in ("b/2", "a/1", "b/1", "c"):
        picture(tmp_path / f"{name}.png")
    found = [file.relative_to(tmp_path).as_posix() for file in files_below(tmp_path)]
    assert found == ["a/1.png", "b/1.png", "b/2.png", "c.png"]
