"""Streams that pydicom has no decoder for: decoded to the encoded values, and never beyond the image's size."""

import time

import numpy as np
import pytest
from conftest import DATA
from imagecodecs import jpeg8_encode, jpegls_encode
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless

from fedpp.imaging.dicom.dicom_codecs import stored_frame, stream_size

GENERATOR = np.random.default_rng(0)
LOSSLESS = [(JPEGLossless, 4), (JPEGLosslessSV1, 1), (JPEGLSLossless, 0)]  # and the predictor


def compressed(stored: np.ndarray, bits: int, syntax: str, *streams: bytes) -> Dataset:
    """Make an image of these streams, in memory, with the size and type of the stored values."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.Rows, made.Columns, made.NumberOfFrames = *stored.shape[:2], len(streams)
    made.SamplesPerPixel, made.PhotometricInterpretation = (3, "RGB") if stored.ndim == 3 else (1, "MONOCHROME2")
    made.PlanarConfiguration = 0
    made.BitsAllocated = 8 * stored.dtype.itemsize
    made.BitsStored, made.HighBit, made.PixelRepresentation = bits, bits - 1, int(stored.dtype.kind == "i")
    made.PixelData = encapsulate(list(streams))
    made["PixelData"].is_undefined_length = True
    return made


def encoded(stored: np.ndarray, bits: int, syntax: str, predictor: int) -> bytes:
    unsigned = stored.view(f"u{stored.dtype.itemsize}")
    if syntax == JPEGLSLossless:
        return bytes(jpegls_encode(unsigned))  # which takes all bits of 16
    return bytes(jpeg8_encode(unsigned & (2**bits - 1), lossless=True, predictor=predictor, bitspersample=bits))


@pytest.mark.parametrize(("syntax", "predictor"), LOSSLESS)
@pytest.mark.parametrize(
    ("dtype", "bits", "shape"),
    [
        ("u1", 8, (9, 7)),
        ("u2", 12, (9, 7)),
        ("u2", 16, (9, 7)),
        ("i2", 12, (9, 7)),
        ("i2", 16, (9, 7)),
        ("u1", 8, (9, 7, 3)),
    ],
)
def test_lossless_streams_give_what_went_in(syntax: str, predictor: int, dtype: str, bits: int, shape: tuple[int, ...]):
    """Lossless JPEG and JPEG-LS, of 8, 12 and 16 bits, signed and in colour, are decoded to the same values."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if dtype == "i2" else (0, 2**bits)
    frames = GENERATOR.integers(low, high, (3, *shape)).astype(dtype)
    image = compressed(frames[0], bits, syntax, *(encoded(frame, bits, syntax, predictor) for frame in frames))
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(stored_frame(image, number), frame)


def test_a_colour_is_converted_once():
    """A lossless stream of YBR becomes RGB by pydicom, and not before by the decoder."""
    rgb = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    y, b, r = 124, 86, 182  # ITU-R BT.601
    ybr = np.full((8, 8, 3), (y, b, r), np.uint8)
    stream = encoded(ybr, 8, JPEGLosslessSV1, 1)
    assert stream[2:4] == b"\xff\xee"  # Adobe's segment, and components R, G, B: neither is in DICOM's streams
    stream = stream[:2] + stream[18:]
    for old, new in ((b"R", b"\1"), (b"G", b"\2"), (b"B", b"\3")):
        stream = stream.replace(old, new, 2)
    assert stream_size(stream) == (8, 8, 3)
    image = compressed(ybr, 8, JPEGLosslessSV1, stream)
    image.PhotometricInterpretation = "YBR_FULL"
    assert np.abs(stored_frame(image, 0).astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("bits", [8, 12])
def test_extended_jpeg_is_decoded(bits: int):
    """JPEG Extended of 8 and of 12 bits is decoded to nearly what went in."""
    ramp = np.add.outer(np.arange(16), np.arange(16)) * (2**bits // 40)
    stored = ramp.astype(np.uint8 if bits == 8 else np.uint16)
    stream = bytes(jpeg8_encode(stored, 100, bitspersample=bits))
    decoded = stored_frame(compressed(stored, bits, JPEGExtended12Bit, stream), 0)
    assert np.abs(decoded.astype(int) - stored).max() <= 2 ** (bits - 6)


def test_nearly_lossless_streams_are_decoded():
    """JPEG-LS that may be off by two is off by two at most."""
    stored = GENERATOR.integers(0, 2**12, (20, 30)).astype(np.uint16)
    image = compressed(stored, 12, JPEGLSNearLossless, bytes(jpegls_encode(stored, 2)))
    assert np.abs(stored_frame(image, 0).astype(int) - stored).max() == 2


@pytest.mark.parametrize(("syntax", "predictor"), LOSSLESS)
@pytest.mark.parametrize("shape", [(60_000, 60_000), (7, 9), (9, 7, 3)])
def test_a_stream_of_another_size_is_not_decoded(syntax: str, predictor: int, shape: tuple[int, ...]):
    """A stream that claims another size than its image is refused before memory is taken."""
    stored = np.zeros((9, 7), np.uint8)
    stream = bytearray(encoded(stored if len(shape) == 2 else np.zeros(shape, np.uint8), 8, syntax, predictor))
    if len(shape) == 2:
        assert stream_size(bytes(stream)) == (9, 7, 1)
        size = stream.index(b"\x00\x09\x00\x07")
        stream[size : size + 4] = shape[0].to_bytes(2) + shape[1].to_bytes(2)
    assert stream_size(bytes(stream)) == (*shape, 1)[:3]
    with pytest.raises(ValueError, match="another size"):
        stored_frame(compressed(stored, 8, syntax, bytes(stream)), 0)


@pytest.mark.parametrize(
    "name", ["examples_jpeg2k", "emri_small_jpeg_2k_lossless", "examples_ybr_color", "JPEG-LL", "sm_image_jpegls"]
)
def test_real_streams_tell_their_size(name: str):
    """The header of each real stream says what the tags say, and one that is cut in its header says nothing."""
    image = dcmread(DATA / "dicom" / f"{name}.dcm")
    for stream in generate_frames(image.PixelData, number_of_frames=int(image.get("NumberOfFrames") or 1)):
        assert stream_size(stream) == (image.Rows, image.Columns, image.SamplesPerPixel)
        for cut in (0, 1, 2, 6, 9):
            with pytest.raises(Exception, match="frame header|index out of range|unpack_from"):
                stream_size(stream[:cut])


def test_a_cut_jpeg_ls_does_not_keep_the_decoder_for_long():
    """CharLS counts seconds of zeros behind the end of a stream that is cut; it is stopped."""
    image = dcmread(DATA / "dicom" / "emri_small_jpeg_ls_lossless.dcm")
    stream = next(generate_frames(image.PixelData, number_of_frames=10))
    image.NumberOfFrames = 1
    started = time.process_time()
    for cut in range(100, len(stream), 200):
        image.PixelData = encapsulate([stream[:cut]])
        with pytest.raises(RuntimeError, match="all available plugins"):
            stored_frame(image, 0)
    assert time.process_time() - started < 2
