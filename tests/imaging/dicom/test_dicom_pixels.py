"""Display values: lookup tables, windows, colour and inversion, in real and in generated files."""

import numpy as np
import pydicom
import pytest
from conftest import DATA
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ExplicitVRLittleEndian

from fedpp.imaging.dicom.dicom_pixels import display_frame

DICOM = DATA / "dicom"
STORED = np.array([[0, 1, 100], [1000, 2047, 4095]], dtype=np.uint16)


def image(**tags: object) -> Dataset:
    """Make a 12-bit image of the stored values, in memory."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.Rows, made.Columns = STORED.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.PixelData = STORED.tobytes()
    for name, tag in tags.items():
        setattr(made, name, tag)
    return made


def display_frames(made: Dataset) -> list[np.ndarray]:
    return [display_frame(made, number) for number in range(int(made.get("NumberOfFrames") or 1))]


def test_without_a_window_the_full_range_is_shown():
    """12-bit values are shares of 4095, and a rescale does not change that."""
    np.testing.assert_allclose(display_frames(image())[0], STORED / 4095)
    rescaled = image(RescaleSlope=2, RescaleIntercept=-1000)
    np.testing.assert_allclose(display_frames(rescaled)[0], STORED / 4095)


def test_monochrome1_is_inverted():
    """Where 0 is white, what is shown is one minus the rest, window or not."""
    window = {"WindowCenter": 500, "WindowWidth": 800}
    for tags in ({}, window):
        inverted = display_frames(image(PhotometricInterpretation="MONOCHROME1", **tags))[0]
        np.testing.assert_allclose(inverted, 1 - display_frames(image(**tags))[0])


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(function: str):
    """Each window function after a rescale equals pydicom's own, which spreads it over the range of the output."""
    made = image(RescaleSlope=0.5, RescaleIntercept=-50, WindowCenter=200, WindowWidth=600, VOILUTFunction=function)
    expected = apply_voi_lut(apply_modality_lut(STORED, made), made)
    low, high = -50, 4095 * 0.5 - 50
    np.testing.assert_allclose(display_frames(made)[0], (expected - low) / (high - low), atol=1e-12)


def test_the_first_of_several_windows_counts():
    """A file with two windows is shown by the first."""
    both = image(WindowCenter=[100, 2000], WindowWidth=[200, 4000])
    np.testing.assert_array_equal(display_frames(both)[0], display_frames(image(WindowCenter=100, WindowWidth=200))[0])


@pytest.mark.parametrize("name", ["vlut_04.dcm", "mlut_18.dcm"])
def test_real_lookup_tables_agree_with_pydicom(name: str):
    """Modality and VOI lookup tables of real files order the pixels as pydicom's functions do, to a scale."""
    real = pydicom.dcmread(DICOM / name)
    expected = apply_voi_lut(apply_modality_lut(pixel_array(real), real), real).astype(float)
    shown = display_frames(real)[0]
    assert expected.std() > 0
    assert np.corrcoef(expected.ravel(), shown.ravel())[0, 1] > 1 - 1e-9


def windowed(center: float) -> Dataset:
    """Make the functional group of a frame with a window of width 2000."""
    window, groups = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = center, 2000
    groups.FrameVOILUTSequence = [window]
    return groups


def test_windows_of_single_frames_in_enhanced_images():
    """In an enhanced MR a frame's own window counts before the shared one, and the shared one before none."""
    real = pydicom.dcmread(DICOM / "emri_small.dcm")
    stored = pixel_array(real).astype(float)
    real.SharedFunctionalGroupsSequence = [windowed(500)]
    shared = display_frames(real)
    real.PerFrameFunctionalGroupsSequence = [windowed(300 + 10 * number) for number in range(10)]
    own = display_frames(real)
    for number in (0, 9):
        for shown, center in ((shared, 500), (own, 300 + 10 * number)):
            expected = np.clip((stored[number] - center + 0.5) / 1999 + 0.5, 0, 1)
            np.testing.assert_allclose(shown[number], expected)


def test_colour_becomes_luma():
    """RGB becomes 0.299 R + 0.587 G + 0.114 B of its range, in a real ultrasound."""
    real = pydicom.dcmread(DICOM / "examples_rgb_color.dcm")
    rgb = pixel_array(real).astype(float)
    expected = (0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2]) / 255
    np.testing.assert_allclose(display_frames(real)[0], expected, atol=1e-12)


def test_the_luma_of_a_ybr_cine_is_its_first_channel():
    """The 30-frame JPEG ultrasound in YBR gives its Y, but for the trip through RGB that clips a little."""
    real = pydicom.dcmread(DICOM / "examples_ybr_color.dcm")
    y = pixel_array(real, raw=True)[..., 0] / 255
    shown = np.stack(display_frames(real))
    assert shown.shape == (30, 240, 320)
    assert np.abs(shown - y).mean() < 0.002
    assert np.abs(shown - y).max() < 0.05


def test_a_palette_is_looked_up():
    """A palette image is grey by its colours, and not by its indices."""
    real = pydicom.dcmread(DICOM / "examples_palette.dcm")
    index = pixel_array(real)
    shown = display_frames(real)[0]
    red, green, blue = (
        np.frombuffer(getattr(real, f"{name}PaletteColorLookupTableData"), "<u2") for name in ("Red", "Green", "Blue")
    )
    for value in np.unique(index)[::40]:
        expected = (0.299 * red[value] + 0.587 * green[value] + 0.114 * blue[value]) / 65535
        np.testing.assert_allclose(shown[index == value], expected, atol=2 / 255)


def test_a_table_of_65536_entries_counts_as_0():
    """DICOM writes 2^16 entries as 0 (PS3.3, C.11.1.1.1): the whole table is used."""
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [0, 0, 16], list(range(2**16))
    made = image(ModalityLUTSequence=[table])
    np.testing.assert_allclose(display_frames(made)[0], STORED / 65535)


def test_signed_pixels_keep_their_order():
    """Signed values are shown within the signed range."""
    stored = np.array([[-2048, 0, 2047]], dtype=np.int16)
    made = image(PixelRepresentation=1, Rows=1, PixelData=stored.tobytes())
    np.testing.assert_allclose(display_frames(made)[0], [[0, 2048 / 4095, 1]])


def test_compression_changes_nothing():
    """The same enhanced MR, plain, big-endian, RLE, JPEG-LS and JPEG 2000, and the same slide, give the same frames."""
    for plain, *others in (
        ("emri_small", "emri_small_big_endian", "emri_small_RLE", "emri_small_jpeg_2k_lossless"),
        ("emri_small", "emri_small_jpeg_ls_lossless"),
        ("sm_image", "sm_image_jpegls"),
    ):
        expected = display_frames(pydicom.dcmread(DICOM / f"{plain}.dcm"))
        for name in others:
            np.testing.assert_array_equal(display_frames(pydicom.dcmread(DICOM / f"{name}.dcm")), expected)


@pytest.mark.parametrize(
    "name", ["examples_ybr_color.dcm", "examples_palette.dcm", "examples_rgb_color.dcm", "SC_rgb_rle_2frame.dcm"]
)
def test_colours_are_kept_if_they_are_wanted(name: str):
    """Of a colour image three channels within 0 .. 1, whose luma is what the image is in grey."""
    made = pydicom.dcmread(DICOM / name)
    coloured = display_frame(made, 0, colour=True)
    assert coloured.shape == (made.Rows, made.Columns, 3)
    assert 0 <= coloured.min() < coloured.max() <= 1
    np.testing.assert_allclose(coloured @ (0.299, 0.587, 0.114), display_frame(made, 0), atol=1e-12)


def test_a_grey_image_has_no_colours():
    """It has no third axis, whatever is requested."""
    np.testing.assert_array_equal(display_frame(image(), 0, colour=True), display_frame(image(), 0))
