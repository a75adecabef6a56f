"""Folders of DICOM as hospitals have them: order, copies, persons and headers are right, doubted, or refused."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_images import RAMP, dicom_image, saved
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
    generate_uid,
)

from fedpp.errors import NoImageError, UnusableFileError
from fedpp.imaging.dicom.dicom_order import day_of
from fedpp.imaging.readers.dicom_folder import is_dicom, read_dicom
from fedpp.imaging.readers.layout import Choices, read_sequences
from fedpp.imaging.reasons import Doubt, Reason
from fedpp.imaging.sequence import ImageSequence

SERIES = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3", "SeriesNumber": 1}


def write(file: Path, **tags: object) -> Path:
    """Write an image with these tags, some of which are wrong on purpose."""
    with warnings.catch_warnings(action="ignore"):
        return saved(dicom_image(**tags), file)


def only(folder: Path) -> ImageSequence:
    """Return the only sequence of a folder."""
    ((sequence,), _, _) = read_dicom(folder)
    return sequence


def names(sequence: ImageSequence) -> list[str]:
    return [file.path.name for file in sequence.frames.files]


def refusals_of(folder: Path) -> tuple[list[ImageSequence], dict[str, UnusableFileError]]:
    refused: dict[str, UnusableFileError] = {}
    sequences, _, _ = read_dicom(folder, lambda file, error: refused.update({file.name: error}))
    return sequences, refused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20200105", (2020, 1, 5)),
        ("2020.01.05", (2020, 1, 5)),
        ("2020-01-05", (2020, 1, 5)),
        ("2020-1-5", (2020, 1, 5)),
        ("2020/01/05", (2020, 1, 5)),
        ("05.01.2020", (2020, 1, 5)),
        ("5.1.2020", (2020, 1, 5)),
        ("25/01/2020", (2020, 1, 25)),
        ("01/25/2020", (2020, 1, 25)),
        ("25-01-2020", (2020, 1, 25)),
        ("05/05/2020", (2020, 5, 5)),
        ("05/01/2020", None),
        ("05-01-2020", None),
        ("01.25.2020", None),
        ("2020-0105", None),
        ("2020-01/05", None),
        ("20201305", None),
        ("050120", None),
        ("202001", None),
        ("20200105".translate({ord("0"): "\N{FULLWIDTH DIGIT ZERO}"}), None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_dates_have_one_meaning_or_none(text: str, expected: tuple[int, int, int] | None):
    """Each spelling that can be one day only is that day; what can be two, or none, is unknown."""
    day = day_of(text)
    assert (day and (day.year, day.month, day.day)) == expected


@pytest.mark.parametrize(
    "date",
    ["2020-01-05", "2020/01/05", "05.01.2020", "2020.01.05", "20200105", "20200105120000", "2020-01-05T12:00:00Z"],
)
def test_mixed_spellings_of_dates_are_in_order_of_time(tmp_path: Path, date: str):
    """The 3rd, the 5th in another spelling and the 7th are in that order, two days apart, whatever their names."""
    write(tmp_path / "c.dcm", StudyDate="20200103", StudyTime="120000")
    write(tmp_path / "a.dcm", StudyDate=("LO", date), StudyTime="120000")
    write(tmp_path / "b.dcm", StudyDate=("LO", "2020-01-07"), StudyTime="120000")
    sequence = only(tmp_path)
    assert names(sequence) == ["c.dcm", "a.dcm", "b.dcm"]
    assert sequence.times == (0, 2, 4)
    assert sequence.doubts == ()


@pytest.mark.parametrize("date", ["", "05/01/2020", "5 January", "20200000", "000000"])
def test_a_date_that_is_unknown_makes_the_order_a_guess(tmp_path: Path, date: str):
    """A missing date, or one that may be two, is no text to sort by: the order is said to be a guess, without times."""
    write(tmp_path / "a.dcm", StudyDate="20200103")
    write(tmp_path / "b.dcm", StudyDate=("LO", date))
    sequence = only(tmp_path)
    assert sequence.doubts == (Doubt.ORDER,)
    assert sequence.times is None


@pytest.mark.parametrize(
    ("first", "second", "doubts"),
    [
        ({"StudyTime": "0800"}, {"StudyTime": "0900"}, ()),
        ({"StudyTime": "0800"}, {}, (Doubt.ORDER,)),
        ({"StudyTime": "0800"}, {"StudyTime": "25"}, (Doubt.ORDER,)),
        ({}, {}, (Doubt.ORDER,)),
        ({"StudyTime": "0800"}, {"StudyDate": "20200104"}, ()),
    ],
)
def test_two_visits_of_a_day_need_times(tmp_path: Path, first: dict, second: dict, doubts: tuple[Doubt, ...]):
    """Two studies of one day are in order if both have a time; a time that is missing or damaged is a doubt."""
    for name, tags in (("a.dcm", first), ("b.dcm", second)):
        write(tmp_path / name, **{"StudyDate": "20200103", "StudyInstanceUID": generate_uid()} | tags)
    sequence = only(tmp_path)
    assert names(sequence) == ["a.dcm", "b.dcm"] or doubts
    assert sequence.doubts == doubts


def slices(folder: Path, tags: Sequence[dict[str, object]]) -> ImageSequence:
    """Write and read images of one series, named IM1, IM2, and so on."""
    for number, of_image in enumerate(tags, 1):
        write(folder / f"IM{number}", **SERIES | of_image)
    return only(folder)


def test_a_series_without_numbers_is_in_the_natural_order_of_names(tmp_path: Path):
    """IM1, IM2, IM10: not IM1, IM10, IM2; and it is said to be a guess."""
    sequence = slices(tmp_path, [{}] * 12)
    assert names(sequence) == [f"IM{number}" for number in range(1, 13)]
    assert sequence.doubts == (Doubt.ORDER,)


def test_studies_without_dates_are_in_the_natural_order_of_folders(tmp_path: Path):
    """visit2 is before visit10; the images of one stay together."""
    for visit in (1, 2, 10):
        for number in (1, 2):
            study = {"StudyInstanceUID": f"1.{90 - visit}", "InstanceNumber": number}
            write(tmp_path / f"visit{visit}" / f"{3 - number}.dcm", **SERIES | study)
    sequence = only(tmp_path)
    assert [(f.path.parent.name, f.path.name) for f in sequence.frames.files] == [
        (f"visit{visit}", f"{name}.dcm") for visit in (1, 2, 10) for name in (2, 1)
    ]
    assert sequence.doubts == (Doubt.ORDER,)


def test_one_undated_series_with_numbers_is_no_guess(tmp_path: Path):
    """Images of one series are in the order of their numbers, without a date and against their names."""
    sequence = slices(tmp_path, [{"InstanceNumber": 3 - number} for number in range(3)])
    assert names(sequence) == ["IM3", "IM2", "IM1"]
    assert sequence.doubts == ()


AXIAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]


@pytest.mark.parametrize(("axes", "axis"), [(AXIAL, 2), (SAGITTAL, 0)])
def test_slices_without_numbers_are_in_the_order_of_their_places(tmp_path: Path, axes: list[int], axis: int):
    """Along the normal of the plane; numbers that are there, and differ, come first."""
    corners = [[0.0, 0.0, 0.0] for _ in range(3)]
    for corner, place in zip(corners, (20.0, -5.0, 7.5), strict=True):
        corner[axis] = place if axes == AXIAL else -place
    tags = [{"ImagePositionPatient": corner, "ImageOrientationPatient": axes} for corner in corners]
    unnumbered = slices(tmp_path / "a", tags)
    assert names(unnumbered) == ["IM2", "IM3", "IM1"]
    assert unnumbered.doubts == ()
    numbered = slices(tmp_path / "b", [of | {"InstanceNumber": 3 - i} for i, of in enumerate(tags)])
    assert (names(numbered), numbered.doubts) == (["IM3", "IM2", "IM1"], ())
    repeated = slices(tmp_path / "c", [of | {"InstanceNumber": 1} for of in tags])
    assert (names(repeated), repeated.doubts) == (["IM2", "IM3", "IM1"], ())


@pytest.mark.parametrize(
    ("tags", "doubts"),
    [
        ([{"InstanceNumber": 1}, {"InstanceNumber": 1}], (Doubt.ORDER,)),
        ([{"InstanceNumber": 1}, {}], (Doubt.ORDER,)),
        ([{"SeriesNumber": 1}, {"SeriesNumber": 2, "SeriesInstanceUID": "1.2.4"}], ()),
        ([{"SeriesNumber": 1}, {"SeriesInstanceUID": "1.2.4"}], (Doubt.ORDER,)),
        ([{"AcquisitionNumber": 1, "InstanceNumber": 1}, {"InstanceNumber": 2}], (Doubt.ORDER,)),
    ],
)
def test_numbers_that_do_not_decide_are_a_doubt(tmp_path: Path, tags: list[dict], doubts: tuple[Doubt, ...]):
    """Numbers that repeat or are missing in one of two images leave their order open."""
    assert slices(tmp_path, tags).doubts == doubts


STILLS = {"StudyDate": "20200101", "StudyTime": "100000", **SERIES}
DAYS = {  # tags of a patient's images in their order of time, whether that is a guess, and the days between them
    "times of acquisition": ([{"AcquisitionDateTime": f"2020010{n}120000.5"} for n in (1, 2, 3)], False, [0, 1, 2]),
    "dates of series": ([{"SeriesDate": f"2020010{n}"} for n in (1, 2, 4)], False, [0, 1, 3]),
    "times of content": (
        [{"ContentDate": "20200101", "ContentTime": f"10{n}500", **STILLS} for n in (0, 1, 2)],
        False,
        [0, 0, 0],
    ),
    "times of content, and numbers that are equal": (
        [{"ContentDate": "20200101", "ContentTime": f"10{n}500", "InstanceNumber": 1, **STILLS} for n in (0, 1)],
        False,
        [0, 0],
    ),
    "numbers before times of content": (
        [{"ContentDate": "20200101", "ContentTime": f"1{9 - n}0500", "InstanceNumber": n, **STILLS} for n in (1, 2)],
        False,
        [0, 0],
    ),
    "days of acquisition against numbers of series": (
        [{**STILLS, "AcquisitionDate": f"20200{4 - n}01", "SeriesNumber": n} for n in (1, 2)],
        True,
        [0, 0],
    ),
    "a date that stands for none": ([{"StudyDate": "19000101"}, {"StudyDate": "20200101"}], True, None),
    "dates of another century": ([{"StudyDate": "21800101"}, {"StudyDate": "21800131"}], False, [0, 30]),
}


@pytest.mark.parametrize("kind", DAYS)
def test_images_are_in_the_order_in_which_they_were_taken(kind: str, tmp_path: Path):
    """By whichever event has a date; where dates and numbers contradict each other, the order is a guess."""
    tags, guess, days = DAYS[kind]
    for number, of_image in enumerate(tags):
        study = {"StudyInstanceUID": f"1.2.{9 - number}"}
        write(tmp_path / f"{9 - number}.dcm", **study | of_image, pixels=np.rot90(RAMP, number).astype(np.uint16))
    sequence = only(tmp_path)
    for number, frame in enumerate(sequence.frames):
        np.testing.assert_allclose(frame * 4095, np.rot90(RAMP, number))
    assert sequence.doubts == ((Doubt.ORDER,) if guess else ())
    assert sequence.times == (None if days is None else pytest.approx(days))


@pytest.mark.parametrize("identifier", ["P1", " P1 ", "P\\1", "\u00fc 1", "0"])
def test_a_patient_is_the_text_of_the_tag(identifier: str, tmp_path: Path):
    """Also with a backslash, which DICOM takes for two values; labels.csv has it as it is written."""
    write(tmp_path / "a.dcm", PatientID=identifier, SpecificCharacterSet="ISO_IR 192")
    (tmp_path / "labels.csv").write_text(f"patient,label\n{identifier},ill\n")
    assert (only(tmp_path).patient, only(tmp_path).label) == (identifier.strip(), "ill")


@pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
def test_pixels_of_floating_point_numbers_are_named(keyword: str, tmp_path: Path):
    """They are not called missing."""
    image = dicom_image(PixelData=None, BitsStored=None, HighBit=None, BitsAllocated=32)
    setattr(image, keyword, np.zeros((32, 32)).tobytes())
    with pytest.raises(UnusableFileError, match="has pixels of floating-point numbers") as refused:
        read_dicom(saved(image, tmp_path / "a.dcm"))
    assert refused.value.reason == Reason.NO_DECODER


def test_one_name_of_other_pixels_or_patients_is_lost(tmp_path: Path):
    """Of one SOPInstanceUID, equal pixels of a patient are a copy; another image of that name is lost if skipped."""
    uid = generate_uid()
    write(tmp_path / "a.dcm", SOPInstanceUID=uid, StudyDate="20200101")
    write(tmp_path / "b_same_pixels.dcm", SOPInstanceUID=uid, StudyDate="20200102", SeriesDescription="again")
    rle = dicom_image(SOPInstanceUID=uid)
    rle.compress(RLELossless, generate_instance_uid=False)
    saved(rle, tmp_path / "c_same_pixels_in_rle.dcm")
    write(tmp_path / "d_other_pixels.dcm", SOPInstanceUID=uid, PixelData=(RAMP + 1).astype(np.uint16).tobytes())
    write(tmp_path / "e_other_patient.dcm", SOPInstanceUID=uid, PatientID="q")
    write(
        tmp_path / "f_more_frames.dcm", SOPInstanceUID=uid, NumberOfFrames=2, PixelData=RAMP.astype("<u2").tobytes() * 2
    )
    (tmp_path / "g_same_bytes.dcm").write_bytes((tmp_path / "a.dcm").read_bytes())
    sequences, refused = refusals_of(tmp_path)
    assert [names(sequence) for sequence in sequences] == [["a.dcm"]]
    reasons = {name: (error.reason, isinstance(error, NoImageError)) for name, error in refused.items()}
    copy, lost = (Reason.COPY, True), (Reason.SAME_UID, False)
    assert reasons == {
        "b_same_pixels.dcm": copy,
        "c_same_pixels_in_rle.dcm": copy,
        "d_other_pixels.dcm": lost,
        "e_other_patient.dcm": lost,
        "f_more_frames.dcm": lost,
        "g_same_bytes.dcm": copy,
    }


def test_a_damaged_image_is_no_copy(tmp_path: Path):
    """What cannot be decoded is not passed over as a copy of what can."""
    uid = generate_uid()
    write(tmp_path / "a.dcm", SOPInstanceUID=uid)
    write(tmp_path / "b.dcm", SOPInstanceUID=uid, PixelData=RAMP.astype(np.uint16).tobytes()[:-2])
    _, refused = refusals_of(tmp_path)
    assert refused["b.dcm"].reason == Reason.DAMAGED
    assert not isinstance(refused["b.dcm"], NoImageError)


@pytest.mark.parametrize(
    ("tags", "doubts"),
    [
        (["A", "B"], (Doubt.ISSUERS,)),
        (["A", "a "], ()),
        (["A", ""], ()),
        (["A", None], ()),
    ],
)
def test_two_issuers_of_one_number_are_a_doubt(tmp_path: Path, tags: list[str | None], doubts: tuple[Doubt, ...]):
    """One PatientID of two issuers may be two persons: each of its sequences says so, and no other patient's."""
    for day, issuer in enumerate(tags, 1):
        more = {} if issuer is None else {"IssuerOfPatientID": issuer}
        write(tmp_path / f"{day}.dcm", StudyDate=f"2020010{day}", **more)
    write(tmp_path / "cine.dcm", NumberOfFrames=2, PixelData=RAMP.astype("<u2").tobytes() * 2, IssuerOfPatientID="A")
    write(tmp_path / "other.dcm", PatientID="q", IssuerOfPatientID="B")
    sequences, _, _ = read_dicom(tmp_path)
    assert [s.doubts for s in sequences if s.patient == "p"] == [doubts, doubts]
    assert [s.doubts for s in sequences if s.patient == "q"] == [()]


@pytest.mark.parametrize(
    ("dates", "doubts"),
    [
        (["19500101", "19500102"], (Doubt.BIRTH_DATES,)),
        (["19500101", "1950-01-01"], ()),
        (["19500101", "01.01.1950"], ()),
        (["19500101", ""], ()),
    ],
)
def test_two_birth_dates_of_one_number_are_a_doubt(tmp_path: Path, dates: list[str], doubts: tuple[Doubt, ...]):
    """Two days of birth are two persons, perhaps; two spellings of one day are not."""
    for day, birth in enumerate(dates, 1):
        write(tmp_path / f"{day}.dcm", StudyDate=f"2020010{day}", PatientBirthDate=("LO", birth))
    assert only(tmp_path).doubts == doubts


def headless(image: Dataset, file: Path, *, meta: bool = False) -> Path:
    """Write a dataset without preamble and mark, with or without the group of the file's meta information."""
    whole = saved(image, file).read_bytes()
    start = 132 if meta else 132 + 12 + int.from_bytes(whole[140:144], "little")
    file.write_bytes(whole[start:])
    return file


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("name", ["IM1", "a.dcm", "scan.png"])
def test_a_file_without_preamble_is_seen(tmp_path: Path, syntax: str, meta: bool, name: str):
    """Whatever its name, a dataset without its header is refused by its reason, and its folder is DICOM."""
    write(tmp_path / "good", PatientID="q")
    file = headless(dicom_image(None, syntax), tmp_path / name, meta=meta)
    assert is_dicom(file)
    sequences, refused = refusals_of(tmp_path)
    assert [sequence.patient for sequence in sequences] == ["q"]
    assert {name: error.reason for name, error in refused.items()} == {name: Reason.NO_HEADER}
    (tmp_path / "good").unlink()
    with pytest.raises(UnusableFileError, match="DICOM without its header"):
        read_sequences(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\0",
        b"patient,label\n" * 300,
        b"\x89PNG\r\n\x1a\n" + bytes(300),
        b"\xff\xd8\xff\xe0" + bytes(300),
        bytes(400),
        b"\x02\0\0\0UL\x04\0" + bytes(300),
        b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100\x07\0\x10\0\x02\0\0\0",
        b"II*\0\x08\0\0\0" + bytes(300),
        b"BM" + bytes(range(256)) * 2,
        b"\x08\x00\x12\x00\xff\xff\xff\xff" + bytes(100),
    ],
)
def test_other_files_are_not_taken_for_dicom(tmp_path: Path, content: bytes):
    """Texts, pictures and bytes that begin a little like a dataset are none."""
    (tmp_path / "other").write_bytes(content)
    assert not is_dicom(tmp_path / "other")


def test_hidden_files_are_dicom_by_their_content_alone(tmp_path: Path):
    """A desktop's leftover with DICOM's suffix is none; a hidden image is read."""
    write(tmp_path / ".hidden")
    (tmp_path / "._a.dcm").write_bytes(b"left by a desktop")
    assert names(only(tmp_path)) == [".hidden"]


@pytest.mark.parametrize(
    ("syntax", "reason", "message"),
    [
        (None, Reason.NO_HEADER, "names no transfer syntax"),
        ("1.2.840.113619.5.2", Reason.NO_DECODER, r"private or unknown transfer syntax 1\.2\.840\.113619\.5\.2"),
        ("1.2.840.10008.1.2.4.999", Reason.NO_DECODER, r"unknown transfer syntax 1\.2\.840\.10008\.1\.2\.4\.999"),
        ("1.2.840.10008.1.2.4.100", Reason.NO_DECODER, "no decoder for its transfer syntax MPEG2"),
    ],
)
def test_transfer_syntaxes_that_are_not_read_are_named(
    tmp_path: Path, syntax: str | None, reason: Reason, message: str
):
    """A missing, a private, an unknown and an undecoded transfer syntax are each said to be that."""
    file = write(tmp_path / "a.dcm")
    other = (syntax or "").encode().ljust(len(ExplicitVRLittleEndian) + 1, b"\0")
    whole = file.read_bytes()
    tag = whole.index(b"\x02\0\x10\0UI")
    length = int.from_bytes(whole[tag + 6 : tag + 8], "little")
    element = b"" if syntax is None else b"\x02\0\x10\0UI" + len(other).to_bytes(2, "little") + other
    file.write_bytes(whole[:132] + whole[144:tag] + element + whole[tag + 8 + length :])
    with pytest.raises(UnusableFileError, match=message) as refused:
        next(iter(only(file).frames))
    assert refused.value.reason == reason


def test_a_directory_of_a_disc_is_no_lost_image(tmp_path: Path):
    """A DICOMDIR adds no image, and none is lost without it."""
    directory = Dataset()
    directory.file_meta = dicom_image().file_meta
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    directory.FileSetID = "DISC"
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    write(tmp_path / "a")
    _, refused = refusals_of(tmp_path)
    assert [type(error) for error in refused.values()] == [NoImageError]
    assert "1 sequence of 1 patient" in read_sequences(tmp_path, "auto", Choices())[1]
