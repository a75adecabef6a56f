"""DICOM files and folders: order, pixels, labels, and files that cannot be read."""

import logging
import os
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from fedpp.errors import RawDataError
from fedpp.imaging.layout import read_sequences

DATA = Path(os.environ.get("FEDPP_DATA", Path(__file__).parents[3] / "shared" / "data")) / "dicom"
REFUSED = {
    "JPEG-LL.dcm": "JPEG Lossless, Non-Hierarchical",
    "MR_truncated.dcm": "cannot be decoded",
    "badVR.dcm": "no image",
    "emri_small.dcm": "no PatientID",
    "emri_small_RLE.dcm": "no PatientID",
    "emri_small_big_endian.dcm": "no PatientID",
    "emri_small_jpeg_2k_lossless.dcm": "no PatientID",
    "emri_small_jpeg_ls_lossless.dcm": "no PatientID",
    "image_dfl.dcm": "no PatientID",
    "liver.dcm": "no image",
    "liver_1frame.dcm": "no image",
    "no_meta.dcm": "not DICOM",
    "reportsi.dcm": "no image",
    "rtdose.dcm": "no image",
    "seg_image_cr_binary.dcm": "no image",
    "seg_image_ct_binary.dcm": "no image",
    "seg_image_sm_control.dcm": "no image",
    "sm_image_jpegls.dcm": "JPEG-LS Lossless",
    "waveform_ecg.dcm": "no image",
}


def _image(pixels, **attributes) -> Dataset:
    """Return an image of 8 or 16 bit grey, or RGB, `[frames?, height, width, 3?]`, of patient PATIENT-X."""
    pixels = np.asarray(pixels)
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    image.PatientID, image.Modality = "PATIENT-X", "OT"
    image.StudyDate, image.StudyTime, image.SeriesNumber, image.InstanceNumber = "20200101", "", 1, 1
    colour = attributes.get("PhotometricInterpretation") == "RGB"
    image.SamplesPerPixel, image.PhotometricInterpretation = (3 if colour else 1), "MONOCHROME2"
    if colour:
        image.PlanarConfiguration = 0
    space = pixels.shape[:-1] if colour else pixels.shape
    image.Rows, image.Columns = space[-2:]
    if len(space) == 3:
        image.NumberOfFrames = space[0]
    bits = 8 * pixels.dtype.itemsize
    image.BitsAllocated, image.BitsStored, image.HighBit = bits, bits, bits - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.PixelData = pixels.tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name, value in attributes.items():
        setattr(image, name, value)
    return image


def _shown(tmp_path: Path, image: Dataset):
    image.save_as(tmp_path / "image.dcm", enforce_file_format=True)
    [sequence], _ = read_sequences(tmp_path / "image.dcm")
    return sequence.frames


@pytest.mark.parametrize("file", sorted(DATA.glob("*.dcm")), ids=lambda file: file.name)
def test_every_real_file_is_read_or_refused_in_one_line(file: Path, capfd, caplog):
    """Each of the 43 files gives frames within 0 .. 1, or one line that names the file and the reason."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if file.name in REFUSED:
            with pytest.raises(RawDataError, match=REFUSED[file.name]) as refused:
                read_sequences(file)
            assert str(file) in str(refused.value)
            assert "\n" not in str(refused.value)
        else:
            [sequence], _ = read_sequences(file)
            header = pydicom.dcmread(file)
            assert len(sequence.frames) == int(header.get("NumberOfFrames") or 1)
            assert {frame.shape for frame in sequence.frames} == {(header.Rows, header.Columns)}
            assert min(frame.min() for frame in sequence.frames) >= 0
            assert max(frame.max() for frame in sequence.frames) <= 1
    assert capfd.readouterr() == ("", "")
    assert [record.name for record in caplog.records if record.name.startswith("pydicom")] == []


def test_all_real_files_are_there():
    """The set has its 43 files, so that the test above cannot pass by having none."""
    assert len(list(DATA.glob("*.dcm"))) == 43


def test_real_rescaled_and_compressed_twins_agree():
    """The same MR image, plain, big-endian and run-length coded, gives the same frame."""
    plain, big, coded = (
        read_sequences(DATA / name)[0][0].frames[0]
        for name in ("MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm")
    )
    assert plain.tolist() == big.tolist() == coded.tolist()
    assert plain.std() > 0.05


def test_a_window_maps_rescaled_values(tmp_path: Path):
    """Rescale comes before the window (PS3.3 C.11.2.1.2): its ends are black and white, beyond it is clipped."""
    pixels = np.array([[0, 400], [500, 1500]], np.uint16)
    image = _image(pixels, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[0, 9], WindowWidth=[401, 9])
    # values -1000, -200, 0, 2000; (x - (c - 0.5)) / (w - 1) + 0.5
    assert _shown(tmp_path, image)[0].tolist() == pytest.approx([[0, 0.00125], [0.50125, 1]], abs=1e-6)


def test_monochrome1_is_inverted(tmp_path: Path):
    """The lowest value of MONOCHROME1 is white."""
    image = _image(np.array([[0, 51, 255]], np.uint8), PhotometricInterpretation="MONOCHROME1")
    assert _shown(tmp_path, image)[0].tolist() == [pytest.approx([1.0, 0.8, 0.0])]


def test_signed_pixels_keep_their_order(tmp_path: Path):
    """Without a window, the full signed range is 0 .. 1."""
    frame = _shown(tmp_path, _image(np.array([[-32768, 0, 32767]], np.int16)))[0]
    assert frame.tolist() == [pytest.approx([0.0, 0.5, 1.0], abs=1e-4)]


def test_lookup_tables_are_applied(tmp_path: Path):
    """A modality LUT, then a VOI LUT, map stored values; values outside a table take its ends."""
    modality, voi = Dataset(), Dataset()
    modality.LUTDescriptor, modality.LUTData, modality.ModalityLUTType = [3, 1, 16], [0, 2, 1], "US"
    voi.LUTDescriptor, voi.LUTData = [3, 0, 8], [255, 0, 51]
    image = _image(np.array([[0, 1, 2, 3, 9]], np.uint8), ModalityLUTSequence=[modality], VOILUTSequence=[voi])
    # 0, 1 -> 0 -> 255; 2 -> 2 -> 51; 3, 9 -> 1 -> 0
    assert _shown(tmp_path, image)[0].tolist() == [pytest.approx([1, 1, 0.2, 0, 0])]


def test_each_frame_has_its_own_functional_group(tmp_path: Path):
    """Enhanced images carry rescale per frame and window for all frames."""
    groups = []
    for slope in (1, 2):
        group, transformation = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, 0
        group.PixelValueTransformationSequence = [transformation]
        groups.append(group)
    shared, window = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = 50, 100, "LINEAR_EXACT"
    shared.FrameVOILUTSequence = [window]
    image = _image(
        np.array([[[10, 20]], [[10, 20]]], np.uint8),
        PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=[shared],
    )
    frames = [frame.tolist() for frame in _shown(tmp_path, image)]
    assert frames == [[pytest.approx([0.1, 0.2])], [pytest.approx([0.2, 0.4])]]


def test_colour_becomes_luma(tmp_path: Path):
    """Red, green and blue have the weights of BT.601."""
    pixels = 255 * np.eye(3, dtype=np.uint8)[None]
    frame = _shown(tmp_path, _image(pixels, PhotometricInterpretation="RGB"))[0]
    assert frame.tolist() == [pytest.approx([0.299, 0.587, 0.114], abs=1e-6)]


def test_a_patients_images_are_ordered_by_time(tmp_path: Path):
    """Date, time, series and instance number order the frames, file names and folders do not."""
    expected = [("20191231", "2300", 9, 9), ("20200101", "0900", 1, 2), ("20200101", "0900", 1, 10)]
    expected += [("20200101", "0900", 2, 1), ("20200101", "1000", 1, 1), ("20200102", "0100", 1, 1)]
    for value, (date, time, series, instance) in reversed(list(enumerate(expected))):
        image = _image(
            np.full((2, 2), value, np.uint8),
            StudyDate=date,
            StudyTime=time,
            SeriesNumber=series,
            InstanceNumber=instance,
        )
        folder = tmp_path / "dicom" / f"x{9 - value}"
        folder.mkdir(parents=True)
        image.save_as(folder / "image", enforce_file_format=True)
    [sequence], _ = read_sequences(tmp_path / "dicom")
    assert [round(float(frame[0, 0]) * 255) for frame in sequence.frames] == [0, 1, 2, 3, 4, 5]
    assert sequence.times[0] == "20191231 2300"


def test_a_folder_makes_one_sequence_of_visits_and_one_of_each_cine(tmp_path: Path):
    """Single frames are joined by patient, multi-frame files stay alone; reports are passed over and counted."""
    for number, patient in enumerate(("a", "b", "a")):
        image = _image(np.zeros((2, 2), np.uint8), PatientID=patient, InstanceNumber=number)
        image.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    for number in range(2):
        cine = _image(np.zeros((3, 2, 2), np.uint8), PatientID="a")
        cine.save_as(tmp_path / f"cine{number}.dcm", enforce_file_format=True)
    (tmp_path / "report.dcm").write_bytes((DATA / "reportsi.dcm").read_bytes())
    (tmp_path / "README").write_text("not an image")
    (tmp_path / "labels.csv").write_text("patient,label\na,ill\nb,well\nelsewhere,well\n")
    sequences, described = read_sequences(tmp_path)
    found = sorted((s.patient, len(s.frames), s.label) for s in sequences)
    assert found == [("a", 2, "ill"), ("a", 3, "ill"), ("a", 3, "ill"), ("b", 1, "well")]
    assert len({(s.patient, s.id) for s in sequences}) == 4
    assert described == (
        "DICOM folder, by the mark in its files: 5 image files, 4 sequences of 2 patients, 9 frames, "
        "labels from labels.csv; 1 DICOM files that are no images were passed over"
    )


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ("patient,label\nPATIENT-Y,ill\n", "labels for 0 of 1 patients"),
        ("patient,label\nPATIENT-X,\n", "labels for 0 of 1 patients"),
        ("patient,label\nPATIENT-X,ill\nPATIENT-X,well\n", "line 3 gives a patient a second label"),
        ("PATIENT-X,ill\n", "has no column patient, label"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: str, named: str):
    """A label is missing, double or without a header: one line says so, and names no patient."""
    _image(np.zeros((2, 2), np.uint8)).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (tmp_path / "labels.csv").write_text(labels)
    with pytest.raises(RawDataError) as refused:
        read_sequences(tmp_path)
    assert named in str(refused.value)
    assert "PATIENT" not in str(refused.value)


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "no_meta.dcm"])
def test_a_folder_with_one_damaged_file_is_refused(tmp_path: Path, name: str):
    """A damaged file beside good ones is named, not passed over: a patient would miss a frame."""
    _image(np.zeros((2, 2), np.uint8)).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (tmp_path / name).write_bytes((DATA / name).read_bytes())
    with pytest.raises(RawDataError, match=name):
        read_sequences(tmp_path)
