"""DICOM folders and files: grouped and ordered, labelled, dated, ignored or refused in one line."""

import logging
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import DATA, loaded
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedUSVolumeStorage,
    ExplicitVRLittleEndian,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

from fedpp.errors import NoImageError, RawDataError, UnusableFileError
from fedpp.imaging.readers.dicom_folder import read_dicom
from fedpp.imaging.readers.layout import Choices, read_sequences
from fedpp.imaging.reasons import Doubt, Reason

DICOM = DATA / "dicom"


def write(file: Path, value: int, *, frames: int = 1, syntax: str = ExplicitVRLittleEndian, **tags: object) -> Path:
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
    image.file_meta.TransferSyntaxUID = syntax
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(file, enforce_file_format=True)
    return file


def values(frames: tuple[np.ndarray, ...]) -> list[int]:
    return [round(float(frame[0, 0]) * 255) for frame in frames]


def test_a_patients_files_are_one_sequence_in_the_order_of_time(tmp_path: Path):
    """Study date, time, series and instance number order the files, whatever their names."""
    visit = {"PatientID": "p", "StudyDate": "20210102", "StudyTime": "0800"}
    write(tmp_path / "a.dcm", 6, **visit | {"StudyDate": "20220101"})
    write(tmp_path / "b.dcm", 5, **visit | {"StudyTime": "0900"})
    write(tmp_path / "c" / "c.dcm", 4, SeriesNumber=10, InstanceNumber=1, **visit)
    write(tmp_path / "d.dcm", 3, SeriesNumber=9, InstanceNumber=10, **visit)
    write(tmp_path / "e", 2, SeriesNumber=9, InstanceNumber=9, **visit)
    write(tmp_path / "f.dcm", 1, PatientID="other", StudyDate="20190101")
    sequences, images, ignored = read_dicom(tmp_path)
    assert {s.patient: values(s.frames) for s in sequences} == {"p": [2, 3, 4, 5, 6], "other": [1]}
    assert (images, ignored) == (6, 0)


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


def test_an_image_that_is_there_twice_counts_once(tmp_path: Path):
    """The second file of one SOPInstanceUID is ignored and named, one frame or more, also below another folder."""
    for name, frames in (("a.dcm", 1), ("b.dcm", 2)):
        first = write(tmp_path / name, 7, frames=frames, PatientID="p")
        again = tmp_path / "copies" / name
        again.parent.mkdir(exist_ok=True)
        again.write_bytes(first.read_bytes())
    refusals: dict[str, str] = {}
    sequences, images, ignored = read_dicom(tmp_path, lambda file, error: refusals.update({file.name: str(error)}))
    assert sorted(len(s.frames) for s in sequences) == [1, 2]
    assert (images, ignored) == (2, 2)
    assert f"{tmp_path}/copies/b.dcm is a copy of {tmp_path}/b.dcm" in refusals["b.dcm"]
    assert sum(len(s.frames) for s in read_dicom(tmp_path)[0]) == 3


def test_labels_come_from_the_table(tmp_path: Path):
    """`labels.csv` labels all patients; without it no patient has a label."""
    for patient in ("p", "q"):
        write(tmp_path / f"{patient}.dcm", 7, PatientID=patient)
    assert {s.label for s in read_dicom(tmp_path)[0]} == {None}
    (tmp_path / "labels.csv").write_text("patient,age,label\nq,40,b\np,50,a\nabsent,60,a\n")
    assert {s.patient: s.label for s in read_dicom(tmp_path)[0]} == {"p": "a", "q": "b"}


def test_blanks_in_the_table_are_no_part_of_a_patient(tmp_path: Path):
    """A patient is found in the table whatever blanks are around its cells, as around the tag."""
    write(tmp_path / "p.dcm", 7, PatientID="P1 ")
    (tmp_path / "labels.csv").write_text(" patient , label\n P1 , a \n")
    assert {s.patient: s.label for s in read_dicom(tmp_path)[0]} == {"P1": "a"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("patient,label\nother,a\n", "gives no label to any of the patients"),
        ("patient,label\nsecret,\n", "gives no label to any of the patients"),
        ("patient,label\nsecret,a\nsecret,b\n", "two labels"),
        ("patient,label\n", "gives no label: complete it, or remove it"),
        ("patient,class\nsecret,a\n", "has no column label, it has patient: is its first"),
        ("\xff", "cannot read"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, table: str, message: str):
    """A labels.csv that leaves all patients out, contradicts itself or lacks a column is named; the patient is not."""
    write(tmp_path / "a.dcm", 7, PatientID="secret")
    (tmp_path / "labels.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(RawDataError, match=message) as refused:
        read_dicom(tmp_path)
    assert "secret" not in str(refused.value)


def test_other_objects_are_ignored_in_a_folder(tmp_path: Path):
    """Reports, doses and segmentations are counted and ignored; other files and a desktop's leftovers are no DICOM."""
    write(tmp_path / "a.dcm", 7, PatientID="p")
    for name in ("reportsi", "rtdose", "seg_image_ct_binary"):
        (tmp_path / f"{name}.dcm").write_bytes((DICOM / f"{name}.dcm").read_bytes())
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "._a.dcm").write_bytes(b"left by a desktop")
    sequences, recognised = read_sequences(tmp_path)
    assert len(sequences) == 1
    assert "3 DICOM files without a picture, or copies of one, were ignored" in recognised


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "no_meta.dcm"])
def test_a_broken_file_in_a_folder_is_not_ignored(tmp_path: Path, name: str):
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
    """An image whose rescale makes infinite values is refused: they would spread over the whole sequence."""
    file = write(tmp_path / "endless.dcm", 7, PatientID="p", RescaleSlope="1e308", RescaleIntercept="1e308")
    with pytest.raises(RawDataError, match=r"endless\.dcm: RescaleSlope.*not finite"):
        loaded(read_dicom(file)[0])


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


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 60_000, "Columns": 60_000}, "claims 60000 x 60000 pixels a frame, more than 64000000"),
        ({"NumberOfFrames": 2_000_000_000}, "announces 2000000000 frames and holds fewer pixels"),
    ],
)
def test_a_hostile_header_is_refused_before_memory_is_taken(tmp_path: Path, tags: dict[str, int], message: str):
    """A file that claims more pixels than a frame has, or more frames than it has bytes for, is refused at once."""
    file = write(tmp_path / "huge.dcm", 7, PatientID="p", **tags)
    with pytest.raises(RawDataError, match=rf"huge\.dcm {message}"):
        read_dicom(file)


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("MR_small_RLE.dcm", 2, "announces 2 frames and holds 1"),
        ("examples_jpeg2k.dcm", 2, "announces 2 frames and holds 1"),
        ("emri_small_jpeg_2k_lossless.dcm", 12, "damaged"),
        ("emri_small_jpeg_2k_lossless.dcm", 9, "announces 9 frames and holds 10"),
        ("emri_small.dcm", 11, "announces 11 frames and holds fewer pixels"),
        ("emri_small.dcm", 9, "announces 9 frames and holds 10"),
    ],
)
def test_another_number_of_frames_than_announced_is_refused(tmp_path: Path, name: str, frames: int, message: str):
    """A header that announces more frames than there are, or fewer, is refused: no frame is lost or made up."""
    image = pydicom.dcmread(DICOM / name)
    image.NumberOfFrames = frames
    image.save_as(tmp_path / "frames.dcm")
    with pytest.raises(RawDataError, match=rf"frames\.dcm.*{message}"):
        loaded(read_dicom(tmp_path / "frames.dcm")[0])


@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")  # from pydicom, when the test writes
def test_times_are_days_since_the_first_study(tmp_path: Path):
    """Visits are dated by study date and time; a missing time of day is midnight, and cines have no times."""
    write(tmp_path / "a.dcm", 2, PatientID="p", StudyDate="20240301", StudyTime="120000.5")
    write(tmp_path / "b.dcm", 1, PatientID="p", StudyDate="20240228", StudyTime="12")
    write(tmp_path / "c.dcm", 3, PatientID="p", StudyDate="2024.03.02")
    write(tmp_path / "d.dcm", 4, PatientID="p", StudyDate="20240302", StudyTime="06:00:60")
    write(tmp_path / "cine.dcm", 5, frames=3, PatientID="p", StudyDate="20240101")
    cine, visits = read_dicom(tmp_path)[0]
    assert cine.times is None
    assert values(visits.frames) == [1, 2, 3, 4]
    assert visits.times == pytest.approx((0, 2 + 0.5 / 86_400, 2.5, 2.75 + 59 / 86_400))


@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")  # from pydicom, when the test writes
@pytest.mark.parametrize(
    ("tags", "times"),
    [
        ({"AcquisitionDate": "20240111", "AcquisitionTime": "0600"}, (0, 10.25)),
        ({"ContentDate": "20240111"}, (0, 10)),
        ({"StudyDate": "20241301", "AcquisitionDate": "20240111"}, (0, 10)),
        ({"StudyDate": "20240111", "StudyTime": "25"}, None),
        ({"StudyDate": "20240111-20240112"}, None),
        ({"StudyTime": "1200"}, None),
        ({}, None),
    ],
)
def test_a_missing_date_is_taken_from_another_or_there_are_no_times(
    tmp_path: Path, tags: dict[str, str], times: tuple[float, ...] | None
):
    """Without a study date the acquisition's or content's counts; one image without any leaves all without times."""
    write(tmp_path / "a.dcm", 1, PatientID="p", StudyDate="20240101")
    write(tmp_path / "b.dcm", 2, PatientID="p", **tags)
    ((sequence,), _, _) = read_dicom(tmp_path)
    assert sequence.times == times
    assert sequence.times is None or values(sequence.frames) == [1, 2]


def test_series_of_one_study_stay_together(tmp_path: Path):
    """Series are in the order of their numbers, else of their identifiers, and their images by acquisition first."""
    study = {"PatientID": "p", "StudyDate": "20240101", "StudyInstanceUID": "1.1"}
    write(tmp_path / "a.dcm", 6, SeriesNumber=2, SeriesInstanceUID="1.0", InstanceNumber=1, **study)
    write(tmp_path / "b.dcm", 4, SeriesNumber=1, SeriesInstanceUID="1.9", InstanceNumber=1, **study)
    write(tmp_path / "c.dcm", 5, SeriesNumber=1, SeriesInstanceUID="1.9", InstanceNumber=2, **study)
    write(
        tmp_path / "d.dcm", 1, SeriesNumber=1, SeriesInstanceUID="1.5", AcquisitionNumber=1, InstanceNumber=3, **study
    )
    write(
        tmp_path / "e.dcm", 3, SeriesNumber=1, SeriesInstanceUID="1.5", AcquisitionNumber=10, InstanceNumber=1, **study
    )
    write(
        tmp_path / "f.dcm", 2, SeriesNumber=1, SeriesInstanceUID="1.5", AcquisitionNumber=2, InstanceNumber=2, **study
    )
    write(tmp_path / "g.dcm", 7, SeriesNumber=1, **study | {"StudyInstanceUID": "1.2"})
    assert values(read_dicom(tmp_path)[0][0].frames) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"SOPClassUID": SegmentationStorage}, "Segmentation Storage"),
        ({"SOPClassUID": RTDoseStorage, "Modality": "CT"}, "RT Dose Storage"),
        ({"SOPClassUID": EnhancedUSVolumeStorage, "Modality": "SEG"}, ""),
        ({"SOPClassUID": CTImageStorage, "Modality": "PR"}, ""),
        ({"SOPClassUID": "1.3.12.2.1107.5.9.1", "Modality": "SR"}, "modality SR"),
        ({"SOPClassUID": "1.3.12.2.1107.5.9.1", "Modality": "MR"}, ""),
        ({"SOPClassUID": "1.2.840.10008.1.1", "Modality": "REG"}, "modality REG"),
        ({"SOPClassUID": None, "Modality": "KO"}, "modality KO"),
        ({"SOPClassUID": None}, ""),
    ],
)
def test_pictures_are_recognised_by_sop_class_or_modality(tmp_path: Path, tags: dict[str, str], reason: str):
    """A SOP class of the standard decides, and a modality where there is none: ignored, or refused as a single file."""
    file = write(tmp_path / "odd.dcm", 9, PatientID="p", **{name: tag for name, tag in tags.items() if tag})
    image = pydicom.dcmread(file)
    for name in (name for name, tag in tags.items() if tag is None):
        del image[name]
    image.save_as(file)
    write(tmp_path / "a.dcm", 7, PatientID="p")
    refusals: list[str] = []
    (sequence,), images, ignored = read_dicom(
        tmp_path, lambda path, error: refusals.append(f"{type(error).__name__} {path.name}")
    )
    picture = not reason
    assert (images, ignored) == ((2, 0) if picture else (1, 1))
    assert refusals == ([] if picture else ["NoImageError odd.dcm"])
    assert values(sequence.frames) == ([7, 9] if picture else [7])
    assert len(read_dicom(tmp_path)[0][0].frames) == len(sequence.frames)
    if not picture:
        with pytest.raises(NoImageError, match=rf"odd\.dcm holds no image.*{reason}"):
            read_dicom(file)


def test_a_slides_label_is_no_picture_and_its_tiles_are_a_doubt(tmp_path: Path):
    """The photograph of a slide's label may name the patient; the order of tiles is none of time."""
    slide = {"PatientID": "p", "SOPClassUID": VLWholeSlideMicroscopyImageStorage}
    tiles = {"TotalPixelMatrixColumns": 6, "TotalPixelMatrixRows": 6}
    write(tmp_path / "a.dcm", 1, frames=9, ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], **slide, **tiles)
    labels = {
        write(tmp_path / f"{kind}.dcm", 2, ImageType=["ORIGINAL", "PRIMARY", kind, "NONE"], **slide)
        for kind in ("LABEL", "OVERVIEW")
    }
    refused: dict[Path, UnusableFileError] = {}
    (sequence,), _, _ = read_dicom(tmp_path, refused.__setitem__)
    assert values(sequence.frames) == [1] * 9
    assert sequence.doubts == (Doubt.TILES,)
    assert {path: error.reason for path, error in refused.items()} == dict.fromkeys(labels, Reason.NO_PICTURE)
    assert all(isinstance(error, NoImageError) for error in refused.values())


def test_an_image_without_pixels_is_lost(tmp_path: Path):
    """A file of an image's class that was cut before its pixels is no report: it is refused, and counted as lost."""
    for name, tags in (("class.dcm", ("PixelData", "Rows")), ("rows.dcm", ("PixelData", "SOPClassUID"))):
        image = pydicom.dcmread(write(tmp_path / name, 7, PatientID="p"))
        for tag in tags:
            del image[tag]
        image.save_as(tmp_path / name)
        with pytest.raises(UnusableFileError, match="holds no pixels") as refused:
            read_dicom(tmp_path / name)
        assert refused.value.reason == Reason.DAMAGED
        assert not isinstance(refused.value, NoImageError)


def test_a_file_that_cannot_be_used_is_refused_and_skipped(tmp_path: Path):
    """No header, no patient, a damaged tag, a hostile size: each is refused by its name, and the others are read."""
    write(tmp_path / "a.dcm", 7, PatientID="p")
    write(tmp_path / "nobody.dcm", 7)
    write(tmp_path / "huge.dcm", 7, PatientID="p", Rows=60_000, Columns=60_000)
    (tmp_path / "text.dcm").write_text("no DICOM")
    (tmp_path / "cut.dcm").write_bytes((DICOM / "MR_truncated.dcm").read_bytes())
    damaged = write(tmp_path / "tag.dcm", 7, PatientID="p", InstanceNumber="1234").read_bytes()
    (tmp_path / "tag.dcm").write_bytes(damaged.replace(b"1234", b"12x4"))
    refusals: dict[str, str] = {}
    sequences, recognised = read_sequences(
        tmp_path, "auto", Choices(), lambda path, error: refusals.update({path.name: str(error)})
    )
    assert values(sequences[0].frames) == [7]
    assert "1 image file: 1 sequence of 1 patient" in recognised
    assert sorted(refusals) == ["cut.dcm", "huge.dcm", "nobody.dcm", "tag.dcm", "text.dcm"]
    assert all(str(tmp_path / name) in line for name, line in refusals.items())
    (tmp_path / "a.dcm").unlink()
    with pytest.raises(RawDataError, match="holds no DICOM image"):
        read_dicom(tmp_path, lambda *_: None)


def test_frames_are_decoded_one_by_one(tmp_path: Path):
    """A cine that is damaged in one frame gives the others: no frame is decoded for another's sake."""
    image = pydicom.dcmread(DICOM / "emri_small_jpeg_ls_lossless.dcm")
    streams = list(generate_frames(image.PixelData, number_of_frames=10))
    image.PixelData = encapsulate([*streams[:9], streams[9][:60]])
    image.PatientID = "p"
    image.save_as(tmp_path / "cine.dcm")
    ((sequence,), _, _) = read_dicom(tmp_path / "cine.dcm")
    assert len(sequence.frames.take(range(9))) == 9
    with pytest.raises(RawDataError, match=r"cine\.dcm: its pixels or the tags that describe them are damaged"):
        sequence.frames.take([9])


def test_a_deflated_file_that_becomes_huge_is_refused(tmp_path: Path):
    """A file of 300 kB that inflates to 300 MB is refused, and never inflated as a whole."""
    file = write(tmp_path / "bomb.dcm", 7, PatientID="p", syntax=DeflatedExplicitVRLittleEndian)
    assert values(read_dicom(file)[0][0].frames) == [7]
    content = file.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")  # behind the group length of the file meta information
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [deflater.compress(zlib.decompress(content[start:], -zlib.MAX_WBITS))]
    parts += [deflater.compress(struct.pack("<HH2sHI", 0x7FE1, 0x10, b"OB", 0, 300 * 2**20))]
    parts += [deflater.compress(bytes(2**20)) for _ in range(300)]
    file.write_bytes(content[:start] + b"".join(parts) + deflater.flush())
    assert file.stat().st_size < 400_000
    tracemalloc.start()
    try:
        with pytest.raises(RawDataError, match=r"bomb\.dcm becomes more than 268435456 bytes when it is inflated"):
            read_dicom(file)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def test_images_without_an_instance_are_no_copies(tmp_path: Path):
    """Files that do not say which image they are (SOPInstanceUID) are all read, also under one name."""
    for name in ("c.dcm", "d.dcm", "deep/c.dcm"):
        image = pydicom.dcmread(write(tmp_path / name, 2, PatientID="p"))
        del image.SOPInstanceUID
        image.save_as(tmp_path / name)
    ((sequence,), images, ignored) = read_dicom(tmp_path)
    assert (values(sequence.frames), images, ignored) == ([2, 2, 2], 3, 0)
