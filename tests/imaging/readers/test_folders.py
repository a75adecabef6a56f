"""Folders of raw data that cannot be listed are reported, so that no patient is lost silently."""

from pathlib import Path

import pytest
from conftest import DATA
from raw_images import write_images, write_table
from unprivileged import unprivileged

from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.readers.folders import files_below
from fedpp.imaging.readers.layout import read_sequences
from fedpp.survey.examination import examine

PATIENTS = ("p", "q", "r")


LAYOUTS = {
    "images": "{0}/1.png",
    "breakhis": "{0}/SOB_B_TA-14-465{1}-40-001.png",
    "frames": "{0}/1.png",
    "manifest": "{0}/1.png",
    "chexpert": "{0}/patient0000{1}/study1/view1_frontal.png",
}


def write(root: Path, layout: str) -> None:
    """Write three patients' images in a layout, each patient's in a folder of their own."""
    if layout == "dicom":
        for patient, name in zip(PATIENTS, ("CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm"), strict=True):
            (root / patient).mkdir()
            (root / patient / name).write_bytes((DATA / "dicom" / name).read_bytes())
        return
    files = [LAYOUTS[layout].format(patient, number) for number, patient in enumerate(PATIENTS)]
    write_images(root, *files)
    write_table(root, layout, *zip(files, PATIENTS, strict=True))


@pytest.mark.parametrize("mode", [0o000, 0o444])
@pytest.mark.parametrize("layout", ["dicom", *LAYOUTS])
def test_a_patient_whose_folder_is_closed_is_not_lost(layout: str, mode: int, tmp_path: Path):
    """Reading stops at a folder that may not be listed or entered.

    With a handler it is skipped and reported; a survey has an issue for it.
    """
    write(tmp_path, layout)
    assert examine(tmp_path).patients == len(PATIENTS)  # by root, whose Python nobody may load more of
    with unprivileged(locked=0o777) as root:
        write(root, layout)
        (root / "q").chmod(mode)
        try:
            with pytest.raises(UnusableFileError):
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
    write(tmp_path, "images")
    read_sequences(tmp_path)
    with unprivileged(locked=0o777) as root:
        write(root, "images")
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
    write(tmp_path, "dicom")
    read_sequences(tmp_path)
    with unprivileged(locked=0o777) as root:
        write(root, "dicom")
        (root / "q" / "MR_small.dcm").rename(root / "q" / "IM1")
        assert len(read_sequences(root)[0]) == len(PATIENTS)
        (root / "q" / "IM1").chmod(0)
        with pytest.raises(RawDataError, match=f"cannot read the file {root}/q/IM1: Permission denied"):
            read_sequences(root)


def test_a_link_to_a_folder_is_refused(tmp_path: Path):
    """Links are not followed, since they may form a circle; the error says what to do."""
    write(tmp_path / "raw", "images")
    (tmp_path / "raw" / "r").rename(tmp_path / "r")
    (tmp_path / "raw" / "r").symlink_to(tmp_path / "r")
    with pytest.raises(RawDataError, match="raw/r is a link to a folder, which is not followed: put the folder there"):
        read_sequences(tmp_path / "raw")


def test_files_come_in_the_order_of_their_paths(tmp_path: Path):
    """The order is the same on every file system; folders are no files."""
    write_images(tmp_path, "b/2.png", "a/1.png", "b/1.png", "c.png")
    found = [file.relative_to(tmp_path).as_posix() for file in files_below(tmp_path)]
    assert found == ["a/1.png", "b/1.png", "b/2.png", "c.png"]
