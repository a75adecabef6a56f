"""Images as hospitals have them: stored bits, grey values, tables and colours are right by an oracle, or refused."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import loaded
from dicom_images import RAMP, SIDE, dicom_image, saved
from imagecodecs import jpeg2k_decode, jpeg2k_encode, jpeg8_encode, jpegls_encode
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from fedpp.errors import UnusableFileError
from fedpp.imaging.dicom.dicom_codecs import stored_frame
from fedpp.imaging.readers.dicom_folder import read_dicom
from fedpp.imaging.reasons import Doubt, Reason

RGB = np.stack([RAMP % 251, RAMP % 241, RAMP.T % 239], axis=-1).astype(np.uint8)
LUMA = (0.299, 0.587, 0.114)
ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    JPEG2000Lossless: lambda cells: jpeg2k_encode(cells, codecformat="j2k", reversible=True),
    JPEG2000: lambda cells: jpeg2k_encode(cells, codecformat="j2k", reversible=True),
    JPEGLSLossless: jpegls_encode,
    JPEGLosslessSV1: lambda cells: jpeg8_encode(cells, lossless=True, predictor=1, bitspersample=16),
}


def compressed(image: Dataset, *streams: bytes) -> Dataset:
    image.PixelData = encapsulate([bytes(stream) for stream in streams])
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
    return image


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Dataset], np.ndarray]:
    """Return the function that writes an image, and reads its only frame back."""

    def read(image: Dataset, *, colour: bool = False) -> np.ndarray:
        with warnings.catch_warnings(action="ignore"):  # what is written is wrong on purpose
            file = saved(image, tmp_path / "image.dcm")
        ((sequence,), _, _) = read_dicom(file)
        return sequence.frames.take([0], colour=colour)[0]

    return read


def refusal(read: Callable[[Dataset], np.ndarray], image: Dataset) -> UnusableFileError:
    with pytest.raises(UnusableFileError) as refused:
        read(image)
    return refused.value


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, *ENCODERS])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("shift", [0, 4])
def test_only_the_bits_of_the_pixel_count(syntax: str, signed: bool, shift: int):
    """The values of 12 bits up to HighBit, whatever is in the other 4 of 16, in each way to store them."""
    values = RAMP - 2048 if signed else RAMP
    others = np.uint16(0b1010) if shift else np.uint16(0b1010 << 12)
    cells = ((values & 0xFFF).astype(np.uint16) << shift) | others
    tags = {"HighBit": 11 + shift, "PixelRepresentation": int(signed)}
    stored = cells.astype(">u2") if syntax == ExplicitVRBigEndian else cells
    image = dicom_image(stored, syntax if syntax != RLELossless else ExplicitVRLittleEndian, **tags)
    if syntax == RLELossless:
        image.compress(RLELossless, generate_instance_uid=False)
    elif syntax in ENCODERS:
        image = compressed(image, ENCODERS[syntax](cells))
    np.testing.assert_array_equal(stored_frame(image, 0), values)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"BitsAllocated": 12}, Reason.NO_DECODER),
        ({"BitsAllocated": 24}, Reason.NO_DECODER),
        ({"BitsAllocated": 64, "BitsStored": 64, "HighBit": 63}, Reason.NO_DECODER),
        ({"BitsStored": 0}, Reason.DAMAGED),
        ({"BitsStored": 17, "HighBit": 16}, Reason.DAMAGED),
        ({"HighBit": 16}, Reason.DAMAGED),
        ({"HighBit": 10}, Reason.DAMAGED),
    ],
)
def test_bits_that_cannot_be_are_refused(read, tags: dict[str, int], reason: Reason):
    """Bits that contradict each other, and cells that nobody decodes, are named."""
    error = refusal(read, dicom_image(**tags))
    assert error.reason == reason
    assert "Bits" in str(error)


@pytest.mark.parametrize("bits", [1, 8, 16, 32])
def test_cells_of_each_size_are_read(read, bits: int):
    """Cells of 1, 8, 16 and 32 bits are shares of their range."""
    values = (RAMP * 17 % 2**bits).astype(np.uint32)
    packed = np.packbits(values.astype(np.uint8), bitorder="little") if bits == 1 else values.astype(f"u{bits // 8}")
    image = dicom_image(BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1, PixelData=packed.tobytes())
    np.testing.assert_allclose(read(image), values / (2**bits - 1))


def test_lossy_values_a_little_beyond_their_bits_do_not_wrap(read):
    """White that a lossy codec makes whiter than white stays white; bits of something else are refused."""
    edges = np.kron(np.random.default_rng(0).integers(0, 2, (4, 4)), np.ones((8, 8), np.uint16)) * 4095
    lossy = jpeg2k_encode(edges.astype(np.uint16), codecformat="j2k", level=60)
    assert jpeg2k_decode(lossy).max() > 4095
    shown = read(compressed(dicom_image(None, JPEG2000), lossy))
    assert np.abs(shown - edges / 4095).max() < 0.2
    overlay = jpeg2k_encode((edges * 16).astype(np.uint16), codecformat="j2k", level=60)
    assert refusal(read, compressed(dicom_image(None, JPEG2000), overlay)).reason == Reason.DAMAGED


def window(center: float, width: float) -> np.ndarray:
    """Return the ramp in a window of DICOM's function LINEAR."""
    return np.clip((RAMP - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


FULL = RAMP / 4095
SHOWN = {
    **{
        f"text {vr}": ({"WindowCenter": (vr, "2000"), "WindowWidth": (vr, "3000")}, window(2000, 3000))
        for vr in ("LO", "SH", "ST", "UT", "CS", "UN")
    },
    "numbers": ({"WindowCenter": ("FD", 2000.0), "WindowWidth": ("US", 3000)}, window(2000, 3000)),
    "text of two": ({"WindowCenter": ("ST", "2000\\9"), "WindowWidth": ("ST", " 3000 \\ 9")}, window(2000, 3000)),
    "the second": ({"WindowCenter": ("DS", ["", "2000"]), "WindowWidth": ("DS", ["9", "3000"])}, window(2000, 3000)),
    "a list and one": ({"WindowCenter": ["2000", "9"], "WindowWidth": "3000"}, window(2000, 3000)),
    "width 0": ({"WindowCenter": 0, "WindowWidth": 0}, FULL),
    "width below 0": ({"WindowCenter": 100, "WindowWidth": -5}, FULL),
    "center alone": ({"WindowCenter": 100}, FULL),
    "empty": ({"WindowCenter": "", "WindowWidth": "", "RescaleSlope": "", "RescaleIntercept": ""}, FULL),
    "small shares": (
        {"RescaleSlope": "0.0001", "RescaleIntercept": "0", "WindowCenter": "0.2", "WindowWidth": "0.3"},
        np.clip((RAMP * 0.0001 - 0.2) / 0.3 + 0.5, 0, 1),
    ),
    "function in small letters": (
        {"WindowCenter": 2000, "WindowWidth": 3000, "VOILUTFunction": ("LO", "linear_exact ")},
        np.clip((RAMP - 2000) / 3000 + 0.5, 0, 1),
    ),
    "intercept alone": ({"RescaleIntercept": -1000, "WindowCenter": 1000, "WindowWidth": 3000}, window(2000, 3000)),
    "slope below 0": ({"RescaleSlope": -2, "RescaleIntercept": 5}, 1 - FULL),
    "slope as text": (
        {"RescaleSlope": ("LO", "2.0e0"), "WindowCenter": 4000, "WindowWidth": 6001},
        np.clip((2 * RAMP - 3999.5) / 6000 + 0.5, 0, 1),
    ),
    "tiny slope": ({"RescaleSlope": "1e-300", "RescaleIntercept": "1024"}, FULL),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_grey_values_are_those_of_the_tags(read, kind: str):
    """Numbers count in any VR; a window that is none is none; the full range needs no precision."""
    tags, expected = SHOWN[kind]
    np.testing.assert_allclose(read(dicom_image(**tags)), expected, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")  # from pydicom, when the test writes
@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"RescaleSlope": ("LO", "NaN")}, "RescaleSlope is no finite"),
        ({"RescaleSlope": ("DS", "inf")}, "RescaleSlope is no finite"),
        ({"RescaleSlope": ("LO", "1,5")}, "RescaleSlope is no finite"),
        ({"RescaleSlope": ("LO", "1_0")}, "RescaleSlope is no finite"),
        ({"RescaleSlope": 1, "RescaleIntercept": ("LO", "NaN")}, "RescaleIntercept is no finite"),
        ({"RescaleSlope": 1, "RescaleIntercept": ("FD", float("inf"))}, "RescaleIntercept is no finite"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "0"}, "RescaleSlope and RescaleIntercept"),
        ({"RescaleSlope": "1e-300", "RescaleIntercept": "0", "WindowCenter": 1, "WindowWidth": 2}, "one grey value"),
        ({"WindowCenter": ("LO", "NaN"), "WindowWidth": 5}, "WindowCenter is no finite"),
        ({"WindowCenter": ("LO", "40 HU"), "WindowWidth": 5}, "WindowCenter is no finite"),
        ({"WindowCenter": 5, "WindowWidth": ("FD", float("inf"))}, "WindowWidth is no finite"),
        ({"WindowCenter": 9000, "WindowWidth": 10}, "one grey value"),
        ({"WindowCenter": 500, "WindowWidth": 800, "VOILUTFunction": "GAUSS"}, "VOILUTFunction is none of"),
    ],
)
def test_tags_that_leave_no_grey_values_are_refused(read, tags: dict[str, object], named: str):
    """What is no number, or makes one grey of all pixels, is an error that names the tag, and never zeros."""
    error = refusal(read, dicom_image(**tags))
    assert named in str(error)
    assert error.reason == Reason.GREY


def test_a_blank_image_may_be_blank(read):
    """Pixels that are all the same are shown so, whatever the window."""
    blank = dicom_image(np.full((4, 4), 7, np.uint16), WindowCenter=9000, WindowWidth=10)
    assert not read(blank).any()


def table(entries: np.ndarray, first: int, bits: int = 16, *, count: int | None = None) -> Dataset:
    """Make a lookup table as implicit VR has it, where a first value below 0 is written as it is in 16 bits."""
    item = Dataset()
    told = len(entries) if count is None else count
    item.add_new("LUTDescriptor", "US", [told % 2**16, first % 2**16, bits])
    item.add_new("LUTData", "OW", entries.tobytes())
    return item


CURVE = (np.arange(4096) ** 2 // 256).astype(np.uint16)  # entries of a table that is no line
HALF = (np.arange(4096) // 16).astype(np.uint8)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("kind", ["rescaled", "signed", "unsigned", "high"])
def test_the_first_value_of_a_table_is_signed_where_its_input_is(read, syntax: str, kind: str):
    """A VOI table from -1024, -2048, 0 or 40000 on maps each value to its entry: implicit VR does not say which."""
    values, first, tags = {
        "rescaled": (RAMP.astype(np.uint16), -1024, {"RescaleSlope": 1, "RescaleIntercept": -1024}),
        "signed": ((RAMP - 2048).astype(np.int16), -2048, {}),
        "unsigned": (RAMP.astype(np.uint16), 0, {}),
        "high": ((RAMP + 40_000).astype(np.uint16), 40_000, {"BitsStored": 16, "HighBit": 15}),
    }[kind]
    image = dicom_image(values, syntax, VOILUTSequence=[table(CURVE, first)], **tags)
    np.testing.assert_allclose(read(image), CURVE[RAMP] / 65_535)


@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
def test_tables_of_bytes_and_words_are_looked_up(read, sequence: str):
    """Entries of 8 bits may be packed in words or not; values beyond the table have its last entry."""
    for item, expected in (
        (table(HALF, 0, 8), HALF[RAMP] / 255),
        (table(HALF.astype(np.uint16), 0, 8), HALF[RAMP] / 255),
        (table(CURVE[:1001], 500), CURVE[:1001][np.clip(RAMP - 500, 0, 1000)] / 65_535),
        (table(HALF[:1001], 500, 8), HALF[:1001][np.clip(RAMP - 500, 0, 1000)] / 255),
    ):
        np.testing.assert_allclose(read(dicom_image(**{sequence: [item]})), expected)


def damaged_table(**tags: object) -> Dataset:
    item = table(CURVE, 0)
    for keyword, tag in tags.items():
        if tag is None:
            del item[keyword]
        else:
            item.add_new(keyword, *tag)
    return item


@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize(
    ("item", "named"),
    [
        (table(CURVE, 0, count=100), "LUTData holds another number"),
        (table(CURVE, 0, count=0), "LUTData holds another number"),
        (table(CURVE[:100], 0, count=4096), "LUTData holds another number"),
        (table(CURVE, 0, bits=40), "LUTDescriptor tells no bits"),
        (table(np.full(4096, 9, np.uint16), 0), "one grey value"),
        (damaged_table(LUTData=None), "LUTData is missing"),
        (damaged_table(LUTDescriptor=None), "LUTDescriptor is not three"),
        (damaged_table(LUTDescriptor=("US", [4096, 0])), "LUTDescriptor is not three"),
    ],
    ids=range(8),
)
def test_damaged_tables_are_refused(read, sequence: str, item: Dataset, named: str):
    """A table that is shorter or longer than told, of one value, or without its tags is an error that names it."""
    error = refusal(read, dicom_image(**{sequence: [item]}))
    assert named in str(error)
    assert error.reason == Reason.GREY


def groups(**tags: object) -> Dataset:
    found, rescale, voi = Dataset(), Dataset(), Dataset()
    for keyword, tag in tags.items():
        (rescale if "Rescale" in keyword else voi).add_new(keyword, *tag)
    found.PixelValueTransformationSequence, found.FrameVOILUTSequence = [rescale], [voi]
    return found


def test_each_frame_has_its_own_tags(tmp_path: Path):
    """In a file of three frames each is shown by its own rescale and window, of any VR; a bad one is named."""
    of_frames = [
        groups(RescaleSlope=("LO", "2"), WindowCenter=("LO", "4000"), WindowWidth=("LO", "6001")),
        groups(RescaleSlope=("DS", "1"), WindowCenter=("DS", "1000"), WindowWidth=("DS", "3001")),
        groups(RescaleSlope=("DS", "0")),
    ]
    image = dicom_image(NumberOfFrames=3, PixelData=RAMP.astype(np.uint16).tobytes() * 3, WindowCenter=9, WindowWidth=9)
    image.PerFrameFunctionalGroupsSequence = of_frames
    ((sequence,), _, _) = read_dicom(saved(image, tmp_path / "a.dcm"))
    first, second = sequence.frames.take([0, 1])
    np.testing.assert_allclose(first, np.clip((2 * RAMP - 3999.5) / 6000 + 0.5, 0, 1))
    np.testing.assert_allclose(second, np.clip((RAMP - 999.5) / 3000 + 0.5, 0, 1))
    with pytest.raises(UnusableFileError, match="RescaleSlope is 0"):
        sequence.frames.take([2])
    image.PerFrameFunctionalGroupsSequence = of_frames[:2]
    ((sequence,), _, _) = read_dicom(saved(image, tmp_path / "b.dcm"))
    with pytest.raises(UnusableFileError, match="PerFrameFunctionalGroupsSequence has another number"):
        sequence.frames.take([0])


def coloured(pixels: np.ndarray = RGB, syntax: str = ExplicitVRLittleEndian, **tags: object) -> Dataset:
    form = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    return dicom_image(pixels, syntax, **form | {"BitsStored": 8, "HighBit": 7} | tags)


def as_ybr(rgb: np.ndarray) -> np.ndarray:
    """Return Y, Cb and Cr of ITU-R BT.601, full range."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return np.rint(np.clip(rgb @ matrix.T + [0, 128, 128], 0, 255)).astype(np.uint8)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("kind", ["native", "YBR", "RLE", "J2K", "JPEG-LS", "big"])
def test_colours_are_right_in_each_form(read, kind: str, planar: int):
    """Red, green and blue are those that went in, by pixels or planes, as YBR, compressed or big-endian."""
    planes = np.moveaxis(RGB, 2, 0) if planar else RGB
    if kind == "YBR":
        ybr = as_ybr(RGB)
        image = coloured(PhotometricInterpretation="YBR_FULL", PlanarConfiguration=planar)
        image.PixelData = (np.moveaxis(ybr, 2, 0) if planar else ybr).tobytes()
    elif kind == "RLE":
        image = coloured()
        image.compress(RLELossless, generate_instance_uid=False)
        image.PlanarConfiguration = planar
    elif kind == "J2K":
        stream = jpeg2k_encode(RGB, codecformat="j2k", reversible=True, mct=True)
        image = compressed(
            coloured(RGB, JPEG2000Lossless, PhotometricInterpretation="YBR_RCT", PlanarConfiguration=planar), stream
        )
    elif kind == "JPEG-LS":
        image = compressed(coloured(RGB, JPEGLSLossless, PlanarConfiguration=planar), jpegls_encode(RGB))
    else:
        syntax = ExplicitVRBigEndian if kind == "big" else ExplicitVRLittleEndian
        image = coloured(RGB, syntax, PlanarConfiguration=planar, PixelData=("OB", planes.tobytes()))
    shown = read(image, colour=True)
    np.testing.assert_allclose(shown, RGB / 255, atol=2.5 / 255 if kind == "YBR" else 0)
    np.testing.assert_allclose(read(image), shown @ LUMA, atol=1e-12)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("interpretation", ["YBR_FULL", "YBR_FULL_422", "RGB"])
def test_jpeg_colours_are_converted_once(read, interpretation: str, planar: int):
    """A baseline JPEG of YBR or RGB shows its colours, whatever the planes are said to be."""
    space = {"RGB": "RGB"}.get(interpretation, "YCBCR")
    smooth = np.stack([RAMP // 17, 255 - RAMP // 17, np.full_like(RAMP, 90)], axis=-1).astype(np.uint8)
    stream = jpeg8_encode(smooth, 100, colorspace="RGB", outcolorspace=space, subsampling="444")
    image = coloured(smooth, JPEGBaseline8Bit, PhotometricInterpretation=interpretation, PlanarConfiguration=planar)
    assert np.abs(read(compressed(image, stream), colour=True) - smooth / 255).max() < 6 / 255


MARKERS = {  # in front of the segments of a JPEG: nothing, Adobe's with its transform, or JFIF's
    "none": b"",
    "adobe0": b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0",
    "adobe1": b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1",
    "jfif": b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0",
}


def unmarked(stream: bytes) -> bytes:
    """Return a JPEG without its segments of JFIF and Adobe."""
    kept, at = stream[:2], 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4])
        kept += b"" if stream[at + 1] in {0xE0, 0xEE} else stream[at:end]
        at = end
    return kept + stream[at:]


@pytest.mark.parametrize(
    ("space", "marker", "interpretation"),
    [
        *(("RGB", marker, said) for marker in MARKERS for said in ("RGB", "YBR_FULL", "YBR_FULL_422")),
        *(("YCBCR", marker, said) for marker in MARKERS for said in ("YBR_FULL", "YBR_FULL_422")),
        ("YCBCR", "adobe1", "RGB"),
        ("YCBCR", "jfif", "RGB"),
    ],
)
def test_a_jpeg_says_its_colours_by_its_segments(read, space: str, marker: str, interpretation: str):
    """Components named R, G and B are RGB, JFIF and Adobe's transform are YBR; without them the tag decides."""
    smooth = np.stack([RAMP // 17, 255 - RAMP // 17, np.full_like(RAMP, 90)], axis=-1).astype(np.uint8)
    stream = unmarked(jpeg8_encode(smooth, 100, colorspace="RGB", outcolorspace=space, subsampling="444"))
    image = coloured(smooth, JPEGBaseline8Bit, PhotometricInterpretation=interpretation)
    shown = read(compressed(image, stream[:2] + MARKERS[marker] + stream[2:]), colour=True)
    assert np.abs(shown * 255 - smooth).max() < 3.5


NOISE = (np.random.default_rng(0).integers(0, 4096, (64, 64))).astype(np.uint16)
GREY_ENCODERS = ENCODERS | {
    JPEGExtended12Bit: lambda cells: jpeg8_encode(cells, 90, bitspersample=12),
    JPEGBaseline8Bit: lambda cells: jpeg8_encode((cells // 16).astype(np.uint8), 90),
}


@pytest.mark.parametrize("syntax", GREY_ENCODERS)
@pytest.mark.parametrize("kept", [0.98, 0.6])
@pytest.mark.parametrize("ended", [False, True])
def test_a_stream_that_was_cut_is_refused(read, syntax: str, kept: float, ended: bool):
    """What a decoder would fill with grey or noise is an error, also if the stream's end was put back."""
    stream = bytes(GREY_ENCODERS[syntax](NOISE))
    cut = stream[: int(len(stream) * kept)] + (b"\xff\xd9" if ended else b"")
    image = dicom_image(NOISE, syntax)
    if syntax == JPEGBaseline8Bit:
        image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    read(compressed(image, stream))
    assert refusal(read, compressed(image, cut)).reason == Reason.DAMAGED


@pytest.mark.parametrize(
    "tags",
    [
        {"PhotometricInterpretation": "HSV"},
        {"PhotometricInterpretation": "YBR_PARTIAL_422"},
        {"PhotometricInterpretation": "YBR_ICT"},
        {"PixelRepresentation": 1},
        {"PhotometricInterpretation": "YBR_FULL", "BitsStored": 7, "HighBit": 6},
    ],
)
def test_colours_of_other_forms_are_refused(read, tags: dict[str, object]):
    """Colours that are not converted are never shown as if they were red, green and blue."""
    assert refusal(read, coloured(**tags)).reason == Reason.NO_DECODER


def palette_image(
    index: np.ndarray, entries: np.ndarray, first: int = 0, syntax: str = ExplicitVRLittleEndian
) -> Dataset:
    """Make an image with a palette of red, green and blue entries, stored in the byte order of the syntax."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    image = dicom_image(
        index.astype(f"{order}u{index.dtype.itemsize}"), syntax, PhotometricInterpretation="PALETTE COLOR"
    )
    image.BitsStored, image.HighBit = 8 * index.dtype.itemsize, 8 * index.dtype.itemsize - 1
    image.PixelRepresentation = int(index.dtype.kind == "i")
    for colour, name in enumerate(("Red", "Green", "Blue")):
        part = entries[:, colour]
        data = part.astype(f"{order}u2").tobytes()
        if part.dtype.itemsize == 1:  # two in a word, the first in its low byte
            data = np.frombuffer(part.tobytes(), "<u2").astype(f"{order}u2").tobytes()
        descriptor = [len(entries) % 2**16, first, 8 * part.dtype.itemsize]
        image.add_new(f"{name}PaletteColorLookupTableDescriptor", "SS" if first < 0 else "US", descriptor)
        image.add_new(f"{name}PaletteColorLookupTableData", "OW", data)
    return image


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("kind", ["bytes", "many bytes", "words", "signed"])
def test_palettes_give_the_colours_of_their_entries(read, syntax: str, kind: str):
    """A palette of 8 or 16 bits, of more entries than a byte counts, from a value below 0, in both byte orders."""
    generator = np.random.default_rng(0)
    count, bits, first = {
        "bytes": (256, 8, 0),
        "many bytes": (4096, 8, 0),
        "words": (4096, 16, 0),
        "signed": (4096, 16, -2048),
    }[kind]
    entries = generator.integers(0, 2**bits, (count, 3)).astype(f"u{bits // 8}")
    index = (RAMP % count + first).astype("u1" if count == 256 else "i2" if first else "u2")
    shown = read(palette_image(index, entries, first, syntax), colour=True)
    np.testing.assert_allclose(shown, entries[RAMP % count] / (2**bits - 1))


def test_a_palette_in_segments_is_expanded(read):
    """Discrete and linear segments are the entries that they stand for; other kinds are refused."""
    image = palette_image((RAMP % 256).astype(np.uint8), np.zeros((256, 3), np.uint16))
    expected = np.concatenate([[10, 20, 500], np.linspace(500, 50_000, 201)[1:], [7] * 53])
    segments = [0, 3, 10, 20, 500, 1, 200, 50_000, 0, 53, *[7] * 53]
    for name in ("Red", "Green", "Blue"):
        del image[f"{name}PaletteColorLookupTableData"]
        image.add_new(f"Segmented{name}PaletteColorLookupTableData", "OW", np.array(segments, "<u2").tobytes())
    np.testing.assert_allclose(read(image), np.rint(expected)[RAMP % 256] / 65_535)
    image.SegmentedRedPaletteColorLookupTableData = np.array([2, 1, 0, 0], "<u2").tobytes()
    assert refusal(read, image).reason == Reason.GREY


def test_colours_that_are_one_are_refused(read):
    """A palette that makes one colour of different values is an error, as a window would be."""
    image = palette_image((RAMP % 256).astype(np.uint8), np.full((256, 3), 9, np.uint8))
    assert "one grey value" in str(refusal(read, image))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, RLELossless])
def test_streams_without_a_number_of_frames_are_refused(tmp_path: Path, syntax: str):
    """Three streams in a file that does not say how many frames it has are refused, as three native frames are."""
    images = [dicom_image((RAMP // n).astype(np.uint16)) for n in (1, 2, 3)]
    if syntax == RLELossless:
        for image in images:
            image.compress(RLELossless, generate_instance_uid=False)
        streams = [next(generate_frames(image.PixelData, number_of_frames=1)) for image in images]
    else:
        streams = [ENCODERS[syntax](dcm.pixel_array) for dcm in images]
    image = dicom_image(None, syntax)
    image.PixelData = encapsulate([bytes(stream) for stream in streams], has_bot=False)
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
    ((sequence,), _, _) = read_dicom(saved(image, tmp_path / "encapsulated.dcm"))
    with pytest.raises(UnusableFileError, match="announces 1 frame and holds 3"):
        loaded([sequence])
    image.NumberOfFrames = 3
    ((sequence,), _, _) = read_dicom(saved(image, tmp_path / "three.dcm"))
    assert [round(float(frame.max()) * 4095) for frame in sequence.frames] == [RAMP.max() // n for n in (1, 2, 3)]


def test_one_stream_in_several_fragments_is_one_frame(tmp_path: Path):
    """A stream that is cut into fragments is read as one frame."""
    stream = ENCODERS[JPEG2000Lossless](RAMP.astype(np.uint16))
    image = dicom_image(None, JPEG2000Lossless)
    image.PixelData = encapsulate([bytes(stream)], fragments_per_frame=3, has_bot=False)
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
    ((sequence,), _, _) = read_dicom(saved(image, tmp_path / "fragments.dcm"))
    np.testing.assert_allclose(sequence.frames[0], FULL)


def indexed(*indices: list[int]) -> list[Dataset]:
    found = []
    for index in indices:
        content, of_frame = Dataset(), Dataset()
        content.DimensionIndexValues = index
        of_frame.FrameContentSequence = [content]
        found.append(of_frame)
    return found


@pytest.mark.parametrize(
    ("indices", "order", "guessed"),
    [
        ([[1, 3], [1, 1], [1, 2]], [1, 2, 0], False),
        ([[3], [1], [2]], [1, 2, 0], False),
        ([[1, 1], [1, 2], [2, 1]], [0, 1, 2], False),
        ([[1, 1], [2, 1], [1, 2]], [0, 1, 2], False),  # sorted by the last of them
        ([[2, 1], [1, 2], [1, 1]], [0, 1, 2], True),
        ([[1, 2], [1, 1], [1]], [0, 1, 2], False),  # damaged
    ],
)
def test_frames_are_in_the_order_of_their_indices(
    tmp_path: Path, indices: list[list[int]], order: list[int], guessed: bool
):
    """Enhanced images store frames in any order; where more than one index tells it, another one is a guess."""
    stored = [RAMP, RAMP[::-1], RAMP[:, ::-1]]
    pixels = np.stack(stored).astype(np.uint16).tobytes()
    image = dicom_image(NumberOfFrames=3, PixelData=pixels, PerFrameFunctionalGroupsSequence=indexed(*indices))
    ((sequence,), _, _) = read_dicom(saved(image, tmp_path / "a.dcm"))
    for shown, number in zip(sequence.frames, order, strict=True):
        np.testing.assert_allclose(shown * 4095, stored[number])
    assert sequence.doubts == ((Doubt.ORDER,) if guessed else ())


@pytest.mark.parametrize("signed", [False, True])
def test_a_signed_stream_of_unsigned_values_is_refused(read, signed: bool):
    """JPEG 2000 may be signed where the tag says unsigned: 12 bits of it would wrap black to grey."""
    image = dicom_image((RAMP - 2048).astype(np.int16), JPEG2000Lossless, PixelRepresentation=int(signed))
    image = compressed(image, jpeg2k_encode((RAMP - 2048).astype(np.int16), codecformat="j2k", reversible=True))
    if signed:
        np.testing.assert_allclose(read(image) * 4095, RAMP)
    else:
        assert "PixelRepresentation says unsigned" in str(refusal(read, image))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1])
def test_a_stream_of_more_bits_than_its_cells_is_refused(read, syntax: str):
    """Values of 12 bits where the tags say 8 would be read without their highest bits."""
    deep = ENCODERS[syntax](RAMP.astype(np.uint16))
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    assert refusal(read, compressed(dicom_image(None, syntax, **eight), deep)).reason == Reason.DAMAGED
    np.testing.assert_allclose(read(compressed(dicom_image(None, syntax), deep)), FULL)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("interpretation", ["RGB", "YBR_RCT", "YBR_FULL", "YBR_FULL_422"])
def test_colours_of_jpeg_2000_are_those_of_both_or_refused(read, interpretation: str, mixed: bool):
    """Components that the stream mixes are red, green and blue; a tag that says YBR of them is not believed."""
    stored = as_ybr(RGB) if interpretation.startswith("YBR_FULL") and not mixed else RGB
    stream = jpeg2k_encode(stored, codecformat="j2k", reversible=True, mct=mixed)
    image = compressed(coloured(RGB, JPEG2000Lossless, PhotometricInterpretation=interpretation), stream)
    if interpretation.startswith("YBR_FULL") and mixed:
        assert "two kinds of colours" in str(refusal(read, image))
    else:
        np.testing.assert_allclose(read(image, colour=True), RGB / 255, atol=0 if stored is RGB else 2.5 / 255)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (0, 0, 1), (0, 1), (1, 1, 2)])
def test_a_table_of_offsets_in_another_order_is_refused(tmp_path: Path, order: tuple[int, ...]):
    """Frames are stored in their order: offsets that say another one are damaged."""
    streams = [bytes(ENCODERS[JPEG2000Lossless]((RAMP // n).astype(np.uint16))) for n in (1, 2, 3)]
    image = compressed(dicom_image(None, JPEG2000Lossless, NumberOfFrames=3), *streams)
    places = np.frombuffer(image.PixelData[8:20], "<u4")
    table = np.array([places[place] for place in order], "<u4").tobytes()
    item = image.PixelData[:4] + len(table).to_bytes(4, "little")
    image.PixelData = item + table + image.PixelData[20:]
    ((sequence,), _, _) = read_dicom(saved(image, tmp_path / "a.dcm"))
    if order == (0, 1, 2):
        assert [round(float(frame.max()) * 4095) for frame in sequence.frames] == [RAMP.max() // n for n in (1, 2, 3)]
    else:
        with pytest.raises(UnusableFileError) as refused:
            loaded([sequence])
        assert refused.value.reason == Reason.DAMAGED


def test_a_file_reads_as_it_was_made(tmp_path: Path):
    """The generator's plain image is its ramp, by pydicom and by us."""
    file = saved(dicom_image(), tmp_path / "plain.dcm")
    np.testing.assert_array_equal(dcmread(file).pixel_array, RAMP)
    assert RAMP.shape == (SIDE, SIDE)
