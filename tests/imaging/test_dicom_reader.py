"""DICOM folders and files: grouped and ordered, labelled, refused in one line; every real file is tried."""

import csv
import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import DATA, loaded
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from fedpp.errors import RawDataError
from fedpp.imaging.dicom import read_dicom
from fedpp.imaging.layout import read_sequences

DICOM = DATA / "dicom"
INDEX = list(csv.DictReader((DICOM / "index.csv").read_text().splitlines()))
NOT_READ = {
    "reportsi.dcm": "holds no image",
    "waveform_ecg.dcm": "holds no image",
    "no_meta.dcm": "lacks the mark DICM",
    "MR_truncated.dcm": "holds fewer pixels than its header says",
    "badVR.dcm": "damaged",
    "emri_small_jpeg_ls_lossless.dcm": "no decoder for its transfer syntax JPEG-LS Lossless",
    "JPEG-LL.dcm": "no decoder for its transfer syntax JPEG Lossless",
    "sm_image_jpegls.dcm": "no decoder for its transfer syntax JPEG-LS Lossless",
}


def write(file: Path, value: int, *, frames: int = 1, **tags: object) -> Path:
    """Write an 8-bit image of 2 x 2 pixels of this value."""
    image = Dataset()
    image.SOPClassUID = SecondaryCaptureImageStorage
    image.SOPInstanceUID = generate_uid(entropy_srcs=[str(file)])
    image.Rows, image.Columns, image.NumberOfFrames = 2, 2, frames
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    for name, tag in tags.items():
        setattr(image, name, tag)
    image.PixelData = bytes([value]) * 4 * frames
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(file, enforce_file_format=True)
    return file


def values(frames: tuple[np.ndarray, ...]) -> list[int]:
    return [round(float(frame[0, 0]) * 255) for frame in frames]


def test_every_real_file_is_in_the_table():
    """The table of the real files names all 43 of them, so that none goes untried."""
    assert {row["file"] for row in INDEX} == {file.name for file in DICOM.glob("*.dcm")}
    assert len(INDEX) == 43


@pytest.mark.parametrize("row", INDEX, ids=[row["file"] for row in INDEX])
def test_every_real_file_is_read_or_refused(row: dict[str, str], recwarn, capfd):
    """A real file has the frames and size that its header says, or is refused by name; nothing else is printed."""
    file = DICOM / row["file"]
    if file.name in NOT_READ:
        with pytest.raises(RawDataError, match=NOT_READ[file.name]) as refused:
            loaded(read_sequences(file)[0])
        assert str(file) in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not row["patient_id"] or row["patient_id"] not in str(refused.value)
    else:
        ((sequence,), _) = read_sequences(file)
        assert len(sequence.frames) == int(float(row["frames"]))
        size = (int(float(row["rows"])), int(float(row["cols"])))
        assert {frame.shape for frame in sequence.frames} == {size}
        assert all(frame.min() >= 0 and frame.max() <= 1 for frame in sequence.frames)
        assert sequence.label is None
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_a_patients_files_are_one_sequence_in_the_order_of_time(tmp_path: Path):
    """Study date, time, series and instance number order the files, whatever their names."""
    visit = {"PatientID": "p", "StudyDate": "20210102", "StudyTime": "0800"}
    write(tmp_path / "a.dcm", 6, **visit | {"StudyDate": "20220101"})
    write(tmp_path / "b.dcm", 5, **visit | {"StudyTime": "0900"})
    write(tmp_path / "c" / "c.dcm", 4, SeriesNumber=10, InstanceNumber=1, **visit)
    write(tmp_path / "d.dcm", 3, SeriesNumber=9, InstanceNumber=10, **visit)
    write(tmp_path / "e", 2, SeriesNumber=9, InstanceNumber=9, **visit)
    write(tmp_path / "f.dcm", 1, PatientID="other", StudyDate="20190101")
    sequences, images, passed = read_dicom(tmp_path)
    assert {s.patient: values(s.frames) for s in sequences} == {"p": [2, 3, 4, 5, 6], "other": [1]}
    assert (images, passed) == (6, 0)


def test_a_multi_frame_file_is_a_sequence_of_its_own(tmp_path: Path):
    """Two cines and two images of one patient are three sequences of different ids."""
    for name, frames in (("a", 3), ("b", 3), ("c", 1), ("d", 1)):
        write(tmp_path / f"{name}.dcm", 7, frames=frames, PatientID="p")
    sequences, _, _ = read_dicom(tmp_path)
    assert sorted(len(s.frames) for s in sequences) == [2, 3, 3]
    assert len({s.id for s in sequences}) == 3


def test_a_folder_image_without_a_patient_is_refused(tmp_path: Path):
    """Whose an image is decides its split: in a folder it must be said, alone it is its own patient."""
    write(tmp_path / "a.dcm", 7, PatientID="p")
    write(tmp_path / "b.dcm", 7, PatientID=" ")
    with pytest.raises(RawDataError, match=r"b\.dcm names no patient \(PatientID\)"):
        read_dicom(tmp_path)
    (alone,), _, _ = read_dicom(tmp_path / "b.dcm")
    assert alone.patient


def test_labels_come_from_the_table(tmp_path: Path):
    """`labels.csv` labels all patients; without it nobody has a label."""
    for patient in ("p", "q"):
        write(tmp_path / f"{patient}.dcm", 7, PatientID=patient)
    assert {s.label for s in read_dicom(tmp_path)[0]} == {None}
    (tmp_path / "labels.csv").write_text("patient,age,label\nq,40,b\np,50,a\nabsent,60,a\n")
    assert {s.patient: s.label for s in read_dicom(tmp_path)[0]} == {"p": "a", "q": "b"}


def test_blanks_in_the_table_are_no_part_of_a_patient(tmp_path: Path):
    """A patient is found in the table whatever blanks stand around its cells, as around the tag."""
    write(tmp_path / "p.dcm", 7, PatientID="P1 ")
    (tmp_path / "labels.csv").write_text(" patient , label\n P1 , a \n")
    assert {s.patient: s.label for s in read_dicom(tmp_path)[0]} == {"P1": "a"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("patient,label\nother,a\n", "gives no label to one of the patients"),
        ("patient,label\nsecret\n", "gives no label to one of the patients"),
        ("patient,label\nsecret,a\nsecret,b\n", "two labels"),
        ("patient,label\n", "gives no label: complete it, or remove it"),
        ("patient,class\nsecret,a\n", "needs the columns patient and label"),
        ("\xff", "cannot read"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, table: str, message: str):
    """A labels.csv that leaves a patient out, contradicts itself or lacks a column is named; the patient is not."""
    write(tmp_path / "a.dcm", 7, PatientID="secret")
    (tmp_path / "labels.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(RawDataError, match=message) as refused:
        read_dicom(tmp_path)
    assert "secret" not in str(refused.value)


def test_what_is_no_image_is_passed_over_in_a_folder(tmp_path: Path):
    """A report beside an image is counted and left out; other files and a desktop's leftovers are no DICOM."""
    write(tmp_path / "a.dcm", 7, PatientID="p")
    (tmp_path / "report.dcm").write_bytes((DICOM / "reportsi.dcm").read_bytes())
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "._a.dcm").write_bytes(b"left by a desktop")
    sequences, recognised = read_sequences(tmp_path)
    assert len(sequences) == 1
    assert "1 DICOM files that are no images were passed over" in recognised


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "no_meta.dcm", "badVR.dcm"])
def test_a_broken_file_in_a_folder_is_not_passed_over(tmp_path: Path, name: str):
    """One broken file among good ones stops the reading, by its name: no image is lost silently."""
    write(tmp_path / "a.dcm", 7, PatientID="p")
    (tmp_path / name).write_bytes((DICOM / name).read_bytes())
    with pytest.raises(RawDataError, match=name):
        loaded(read_sequences(tmp_path)[0])


@pytest.mark.parametrize("name", ["MR_small.dcm", "image_dfl.dcm", "MR_small_RLE.dcm", "reportsi.dcm"])
def test_damaged_files_are_refused_quietly(tmp_path: Path, name: str, recwarn, capfd, caplog):
    """Whatever bytes of a file are changed or cut, it is read or refused in one line: no other error, no warning."""
    generator = np.random.default_rng(0)
    intact = (DICOM / name).read_bytes()
    refused: list[tuple[Path, str]] = []
    for attempt in range(200):
        damaged = bytearray(intact)
        for position in generator.integers(132, min(len(intact), (1500, len(intact))[attempt % 2]), 3):
            damaged[position] = generator.integers(256)
        file = tmp_path / f"{attempt}.dcm"
        file.write_bytes(damaged[: generator.integers(132, 2 * len(intact))])
        try:
            loaded(read_dicom(file)[0])
        except RawDataError as error:
            refused.append((file, str(error)))
        file.unlink()
    assert len(refused) > 20
    assert all(str(file) in message and "\n" not in message for file, message in refused)
    assert not recwarn.list
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path):
    """A float image with one NaN is refused: it would spread over the whole sequence."""
    image = pydicom.dcmread(DICOM / "parametric_map_float.dcm")
    image.FloatPixelData = np.float32("nan").tobytes() + image.FloatPixelData[4:]
    image.save_as(tmp_path / "nan.dcm")
    with pytest.raises(RawDataError, match="not finite"):
        loaded(read_dicom(tmp_path / "nan.dcm")[0])


def test_a_failing_decoder_is_not_called_missing(tmp_path: Path):
    """A damaged JPEG 2000 says that its pixels are damaged, not that a decoder is missing."""
    image = pydicom.dcmread(DICOM / "examples_jpeg2k.dcm")
    image.PixelData = image.PixelData[:60] + bytes(len(image.PixelData) - 60)
    image.save_as(tmp_path / "damaged.dcm")
    with pytest.raises(RawDataError, match="are damaged"):
        loaded(read_dicom(tmp_path / "damaged.dcm")[0])


def test_the_loggers_level_is_put_back():
    """Reading leaves pydicom's logger as it was."""
    logger = logging.getLogger("pydicom")
    logger.setLevel(logging.INFO)
    try:
        loaded(read_dicom(DICOM / "CT_small.dcm")[0])
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("tags", [{"Rows": 60_000, "Columns": 60_000}, {"NumberOfFrames": 2_000_000_000}])
def test_a_hostile_header_is_refused_before_memory_is_taken(tmp_path: Path, tags: dict[str, int]):
    """A file that claims more pixels than any image has is refused by its header."""
    file = write(tmp_path / "huge.dcm", 7, PatientID="p", **tags)
    with pytest.raises(RawDataError, match=r"huge\.dcm claims more than 1000000000 pixels"):
        loaded(read_dicom(file)[0])


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("MR_small_RLE.dcm", 2, "damaged"),
        ("examples_jpeg2k.dcm", 2, "damaged"),
        ("emri_small_jpeg_2k_lossless.dcm", 12, "damaged"),
        ("emri_small_jpeg_2k_lossless.dcm", 9, "announces 9 frames and holds 10"),
        ("emri_small.dcm", 11, "holds fewer pixels than its header says"),
    ],
)
def test_another_number_of_frames_than_announced_is_refused(tmp_path: Path, name: str, frames: int, message: str):
    """A header that announces more frames than there are, or fewer, is told: no frame is lost or made up."""
    image = pydicom.dcmread(DICOM / name)
    image.NumberOfFrames = frames
    image.save_as(tmp_path / "frames.dcm")
    with pytest.raises(RawDataError, match=rf"frames\.dcm.*{message}"):
        loaded(read_dicom(tmp_path / "frames.dcm")[0])
