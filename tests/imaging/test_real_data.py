"""The real sets, each with `layout="auto"`: counted as their README counts them, every DICOM file read or refused."""

from collections import Counter
from pathlib import Path

import pytest
from conftest import DATA

from fedpp.errors import NoImageError, RawDataError
from fedpp.imaging.readable import readable
from fedpp.imaging.readers.layout import Choices, read_sequences
from fedpp.imaging.sequence import refuse

DICOM = DATA / "dicom"

# What is read of each file: frames, height, width.
SHAPES = {
    "CT_small.dcm": (1, 128, 128),
    "J2K_pixelrep_mismatch.dcm": (1, 512, 512),
    "JPEG-LL.dcm": (1, 1024, 256),
    "MR-SIEMENS-DICOM-WithOverlays.dcm": (1, 484, 484),
    "MR_small.dcm": (1, 64, 64),
    "MR_small_RLE.dcm": (1, 64, 64),
    "MR_small_bigendian.dcm": (1, 64, 64),
    "OBXXXX1A_2frame.dcm": (2, 600, 800),
    "OBXXXX1A_rle_2frame.dcm": (2, 600, 800),
    "SC_rgb_rle_2frame.dcm": (2, 100, 100),
    "ct_image.dcm": (1, 128, 128),
    "dx_image.dcm": (1, 169, 211),
    "eCT_Supplemental.dcm": (2, 512, 512),
    "emri_small.dcm": (10, 64, 64),
    "emri_small_RLE.dcm": (10, 64, 64),
    "emri_small_big_endian.dcm": (10, 64, 64),
    "emri_small_jpeg_2k_lossless.dcm": (10, 64, 64),
    "emri_small_jpeg_ls_lossless.dcm": (10, 64, 64),
    "examples_jpeg2k.dcm": (1, 480, 640),
    "examples_overlay.dcm": (1, 300, 484),
    "examples_palette.dcm": (1, 350, 800),
    "examples_rgb_color.dcm": (1, 240, 320),
    "examples_ybr_color.dcm": (30, 240, 320),
    "explicit_VR-UN.dcm": (1, 512, 512),
    "gdcm-US-ALOKA-16.dcm": (1, 480, 640),
    "image_dfl.dcm": (1, 512, 512),
    "mlut_18.dcm": (1, 512, 512),
    "sm_image.dcm": (25, 10, 10),
    "sm_image_grayscale.dcm": (25, 10, 10),
    "sm_image_jpegls.dcm": (25, 10, 10),
    "vlut_04.dcm": (1, 512, 512),
}
DAMAGED = {
    "MR_truncated.dcm": "holds fewer bytes than its tags say",
    "no_meta.dcm": "is no DICOM file: its header lacks the mark DICM",
}
NO_PICTURES = {
    "badVR.dcm": "RT Dose Storage",
    "liver.dcm": "Segmentation Storage",
    "liver_1frame.dcm": "Segmentation Storage",
    "parametric_map_float.dcm": "Parametric Map Storage",
    "reportsi.dcm": "Basic Text SR Storage",
    "rtdose.dcm": "RT Dose Storage",
    "seg_image_cr_binary.dcm": "Segmentation Storage",
    "seg_image_ct_binary.dcm": "Segmentation Storage",
    "seg_image_sm_control.dcm": "Segmentation Storage",
    "waveform_ecg.dcm": "12-lead ECG Waveform Storage",
}
NO_PATIENT = {"image_dfl.dcm", *(name for name in SHAPES if name.startswith("emri_small"))}


# The same instance as an earlier file, in another encoding.
REPEATED = {
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "OBXXXX1A_rle_2frame.dcm",
    "ct_image.dcm",
}
OTHER_PIXELS = {"examples_palette.dcm"}  # and its name is OBXXXX1A_2frame.dcm's


def test_every_file_is_in_one_of_the_tables():
    """The tables name all 43 files, each once."""
    assert sorted([*SHAPES, *DAMAGED, *NO_PICTURES]) == sorted(file.name for file in DICOM.glob("*.dcm"))
    assert len({*SHAPES, *DAMAGED, *NO_PICTURES}) == len(SHAPES) + len(DAMAGED) + len(NO_PICTURES) == 43


@pytest.mark.parametrize(("name", "shape"), SHAPES.items(), ids=SHAPES)
def test_a_file_is_read(name: str, shape: tuple[int, int, int], recwarn, capfd):
    """Alone, a file is one sequence of so many frames of this size, within 0 .. 1; nothing is printed."""
    ((sequence,), _) = read_sequences(DICOM / name)
    frames = list(sequence.frames)
    assert (len(frames), *frames[0].shape) == shape
    assert len({frame.shape for frame in frames}) == 1
    assert all(frame.min() >= 0 and frame.max() <= 1 for frame in frames)
    assert any(frame.std() > 0 for frame in frames)
    assert sequence.label is None
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "reason"), [*DAMAGED.items(), *NO_PICTURES.items()], ids=[*DAMAGED, *NO_PICTURES])
def test_a_file_is_refused(name: str, reason: str, recwarn, capfd):
    """Alone, a file that is broken or no picture is refused in one line with its name and the reason."""
    with pytest.raises(RawDataError, match=reason) as refused:
        read_sequences(DICOM / name)
    assert isinstance(refused.value, NoImageError) == (name in NO_PICTURES)
    assert str(DICOM / name) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_the_folder_is_read_but_for_what_is_refused():
    """Of the folder all files with a patient and a picture are read; each other file is refused by name."""
    refusals: dict[str, RawDataError] = {}

    def record(file: Path, error: RawDataError) -> None:
        refusals[file.name] = error

    sequences, recognised = read_sequences(DICOM, "dicom", Choices(), record)
    assert set(refusals) == {*DAMAGED, *NO_PICTURES, *NO_PATIENT, *REPEATED, *OTHER_PIXELS}
    ignored = {name for name, error in refusals.items() if isinstance(error, NoImageError)}
    assert ignored == {*NO_PICTURES, *REPEATED}
    assert all(name in str(error) for name, error in refusals.items())
    unread = NO_PATIENT | REPEATED | OTHER_PIXELS
    assert sum(len(s.frames) for s in sequences) == sum(SHAPES[name][0] for name in set(SHAPES) - unread)
    assert recognised.startswith("DICOM folder, by the mark in its files, 20 image files")
    assert recognised.endswith("14 DICOM files without a picture, or copies of one, were ignored")
    assert [len(s.frames) for s in readable(sequences, record)] == [len(s.frames) for s in sequences]


def test_the_ultrasound_is_counted():
    """124 sequences of 78 patients, 59, 37, 22 and 6 of the four labels."""
    sequences, recognised = read_sequences(DATA / "ultrasound_sequences")
    assert recognised == (
        "frame folders, listed by index.csv: 124 sequences of 78 patients, 1984 frames, "
        "labels: Bacterial pneumonia 37, COVID-19 22, Regular 59, Viral pneumonia 6"
    )
    assert {len(s.frames) for s in sequences} == {16}
    assert Counter(s.label for s in sequences) == {
        "Regular": 59,
        "Bacterial pneumonia": 37,
        "COVID-19": 22,
        "Viral pneumonia": 6,
    }
    assert {frame.shape for s in sequences for frame in s.frames} == {(64, 64)}
    assert readable(sequences, refuse) == sequences


def test_patients_of_both_sites():
    """Six patients were seen at both X-ray sites."""
    at_a, at_b = (
        {s.patient for s in read_sequences(DATA / "chexpert_layout" / site)[0]} for site in ("site_a", "site_b")
    )
    assert len(at_a & at_b) == 6


def test_the_slides_are_counted():
    """45 slides; 242 benign and 251 malignant images of 140 x 92; 456, 17, 12 and 8 of the four magnifications."""
    sequences, recognised = read_sequences(DATA / "breakhis_layout")
    assert recognised.startswith("BreakHis, by the names of its files")
    assert (len(sequences), len({s.patient for s in sequences})) == (73, 45)
    labels, magnifications = Counter(), Counter()
    for sequence in sequences:
        labels[sequence.label] += len(sequence.frames)
        magnifications[sequence.id.split()[1]] += len(sequence.frames)
    assert labels == {"benign": 242, "malignant": 251}
    assert magnifications == {"100X": 456, "40X": 17, "400X": 12, "200X": 8}
    assert {frame.shape for s in sequences for frame in s.frames} == {(92, 140)}
