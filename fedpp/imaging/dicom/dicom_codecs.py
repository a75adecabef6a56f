"""Codecs of DICOM: decompress the stored values of one frame of an image.

pydicom and Pillow decode RLE and JPEG 2000. JPEG goes to libjpeg-turbo, JPEG-LS to CharLS, as packaged by
imagecodecs: they survive damaged streams, where GDCM ends the whole process. A stream's own
header is compared with the image's before it is decoded, since it may claim any size. Of each stored value only the
bits that are the pixel's are kept (DICOM PS3.5, 8.1.1), whatever the transfer syntax: others may hold overlays.
"""

import struct
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
from imagecodecs import jpeg8_decode, jpegls_decode
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, generate_frames, get_frame, parse_basic_offsets
from pydicom.pixels.decoders.base import Decoder, DecodeRunner, get_decoder
from pydicom.pixels.processing import convert_color_space
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from fedpp.imaging.dicom.dicom_tags import TagError, first_number
from fedpp.imaging.images import JPEG_SCAN, MAX_SCANS
from fedpp.imaging.reasons import Reason
from fedpp.imaging.whole_jpeg import with_junk

Size = tuple[int, int, int]  # height, width, samples

# pydicom's interface of a decoder module: this, `is_available` and the function named in `add_plugin`.
DECODER_DEPENDENCIES = dict.fromkeys(
    (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless),
    ("imagecodecs",),
)

# CharLS reads up to 2^31 zeros beyond the end of a truncated stream; after these bytes it stops.
_PADDING = bytes(64)
_J2K_START = b"\xff\x4f\xff\x51"  # ITU-T T.800, A.4: SOC, then SIZ
_BIT_TAGS = ("BitsAllocated", "BitsStored", "HighBit")
_ADOBE = 0xEE  # APP14
_NO_FRAME_HEADER = {0xC4, 0xC8, 0xCC}  # ITU-T T.81, table B.1: codes within SOF0 .. SOF15 that are no SOF


def is_available(syntax: str) -> bool:
    """Tell pydicom whether `decode_frame` decodes a transfer syntax."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(stream: bytes, runner: DecodeRunner) -> bytes:
    """Decode a frame for pydicom; `runner` describes the frame and receives the decoded form."""
    if runner.transfer_syntax in JPEGLSTransferSyntaxes:
        decoded = jpegls_decode(stream + _PADDING)
    else:
        decoded = _jpeg(stream, "RGB" if runner.samples_per_pixel > 1 else None)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
        if runner.transfer_syntax not in JPEGLSTransferSyntaxes and (space := _colour_space(stream)):
            runner.set_option("photometric_interpretation", space)
    runner.set_option("bits_allocated", 8 * decoded.dtype.itemsize)
    return decoded.tobytes()


def _jpeg(stream: bytes, space: str | None) -> NDArray[Any]:
    """Decode a JPEG without converting its colours; raise `ValueError` for one that was cut, which libjpeg fills."""
    decode = partial(jpeg8_decode, colorspace=space, outcolorspace=space)  # equal spaces: no conversion
    decoded: NDArray[Any] = decode(stream)
    junked = with_junk(stream)
    if junked is None or not np.array_equal(decoded, decode(junked)):
        raise ValueError("a stream was cut")
    return decoded


def _colour_space(stream: bytes) -> str:
    """Return the colours that a JPEG says it holds: by the names of its components, or by Adobe's segment; or ""."""
    segments = list(_segments(stream))
    if any(_is_frame(marker) and segment[6::3] in {b"RGB", b"rgb"} for marker, segment in segments):
        return "RGB"
    is_ybr = any(
        marker == _ADOBE and segment[:5] == b"Adobe" and segment[11:12] == b"\1" for marker, segment in segments
    )
    return "YBR_FULL" if is_ybr else ""


def _is_frame(marker: int) -> bool:
    return (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME_HEADER) or marker == 0xF7


def stored_frame(image: Dataset, number: int) -> NDArray[Any]:
    """Return the values of a frame, `[height, width]` or `[height, width, 3]`, YBR as RGB.

    Each value is that of its BitsStored bits, whatever the file or its stream holds in the others. pydicom's and the
    decoders' errors pass through; `ValueError` is for a stream of another size than the image, `TagError` for tags
    that describe no pixels.
    """
    syntax, precision = image.file_meta.TransferSyntaxUID, 0
    options: dict[str, Any] = {"index": number, "raw": True, "correct_unused_bits": False}
    lossy = syntax in {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless}
    _check_bits(image)
    if syntax in JPEG2000TransferSyntaxes or syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        stream = get_frame(image.PixelData, number, **_framing(image))
        *size, precision = _claims(stream)
        if tuple(size) != (image.Rows, image.Columns, image.SamplesPerPixel):
            raise ValueError("a stream has another size than the image")
        if syntax not in JPEG2000TransferSyntaxes and stream.count(JPEG_SCAN) > MAX_SCANS:
            raise ValueError("a stream has too many scans")
        if _is_signed(stream) and not image.get("PixelRepresentation"):
            raise TagError("its stream holds signed values, and PixelRepresentation says unsigned", Reason.DAMAGED)
        if precision > _bits(image)[0]:
            raise TagError("its stream holds values of more bits than BitsAllocated", Reason.DAMAGED)
        if _is_mixed(stream) and str(image.PhotometricInterpretation).startswith("YBR_FULL"):
            raise TagError("its stream and PhotometricInterpretation tell two kinds of colours", Reason.DAMAGED)
        lossy = lossy or (syntax == JPEG2000 and not _is_reversible(stream))
        options["planar_configuration"] = 0  # of what is decoded, whatever the tag says
    decoder = _decoder(syntax) if is_available(syntax) else get_decoder(syntax)
    values, form = decoder.as_array(image, **options)
    values = _pixel_bits(values, image, precision, lossy=lossy)
    return _rgb(values, str(form["photometric_interpretation"]), image)


def frame_count(image: Dataset) -> int:
    """Return the number of frames in the file, by their streams or by the bytes of a frame.

    pydicom's errors pass through; `NotImplementedError` is for a transfer syntax without a decoder.
    """
    syntax = image.file_meta.TransferSyntaxUID
    get_decoder(syntax)
    if syntax.is_encapsulated:
        if (offsets := parse_basic_offsets(image.PixelData)) != sorted(set(offsets)):
            raise ValueError("a table of offsets is not in the order of the frames")
        framed = sum(1 for _ in generate_frames(image.PixelData, **_framing(image)))
        starts = _starts_rle if syntax == RLELossless else _starts_stream
        return max(framed, sum(map(starts, generate_fragments(image.PixelData))))  # pydicom joins those of one frame
    _check_bits(image)
    count = max(1, int(image.get("NumberOfFrames") or 1))
    return len(image.PixelData) * count // get_expected_length(image)


def stream_size(stream: bytes) -> Size:
    """Return the size that a stream of JPEG, JPEG-LS or JPEG 2000 claims.

    Raises `ValueError` for a stream without a header, `IndexError` or `struct.error` for a truncated header.
    """
    return _claims(stream)[:3]


def _claims(stream: bytes) -> tuple[int, int, int, int]:
    """Return the height, width, samples and bits of a sample that a stream claims."""
    start = stream.find(_J2K_START)
    if start >= 0 and not stream.startswith(b"\xff\xd8"):
        width, height, left, top = struct.unpack_from(">4I", stream, start + 8)  # Xsiz, Ysiz, XOsiz, YOsiz
        samples, depth = struct.unpack_from(">HB", stream, start + 40)
        return height - top, width - left, samples, (depth & 0x7F) + 1
    for marker, segment in _segments(stream):
        if _is_frame(marker):
            return int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5]), segment[5], segment[0]
    raise ValueError("a stream has no frame header")


def _is_signed(stream: bytes) -> bool:
    """Tell whether the first component of a JPEG 2000 is signed: ITU-T T.800, A.5.1; other JPEGs never are."""
    start = stream.find(_J2K_START)
    return start >= 0 and not stream.startswith(b"\xff\xd8") and stream[start + 42] >= 0x80


def _is_mixed(stream: bytes) -> bool:
    """Return whether a JPEG 2000 has its components mixed, as red, green and blue are: ITU-T T.800, A.6.1."""
    coding = _coding_style(stream)
    return coding >= 0 and stream[coding + 8 : coding + 9] == b"\1"


def _is_reversible(stream: bytes) -> bool:
    """Tell whether a JPEG 2000 uses the reversible wavelet: ITU-T T.800, A.6.1."""
    coding = _coding_style(stream)
    return coding >= 0 and stream[coding + 13 : coding + 14] == b"\1"


def _coding_style(stream: bytes) -> int:
    """Return the place of a JPEG 2000's segment of its coding style, or -1: a JPEG has none."""
    start = -1 if stream.startswith(b"\xff\xd8") else stream.find(_J2K_START)
    return -1 if start < 0 else stream.find(b"\xff\x52", start)


def _starts_stream(fragment: bytes) -> bool:
    """Tell whether a fragment begins a stream; these bytes do not occur within one."""
    return fragment.startswith((b"\xff\xd8\xff", _J2K_START, b"\0\0\0\x0cjP  "))


def _starts_rle(fragment: bytes) -> bool:
    """Tell whether a fragment begins with RLE's header: DICOM PS3.5, G.5."""
    return len(fragment) >= 64 and 1 <= int.from_bytes(fragment[:4], "little") <= 15 and fragment[4:8] == b"\x40\0\0\0"


def _check_bits(image: Dataset) -> None:
    """Raise `TagError` for tags of bits that contradict each other, or that no decoder has."""
    allocated, stored, high = _bits(image)
    if allocated not in {1, 8, 16, 32}:
        raise TagError("BitsAllocated is none of 1, 8, 16 and 32", Reason.NO_DECODER)
    if not 1 <= stored <= high + 1 <= allocated:
        raise TagError("BitsAllocated, BitsStored and HighBit contradict each other", Reason.DAMAGED)


def _bits(image: Dataset) -> tuple[int, int, int]:
    """Return BitsAllocated, BitsStored and HighBit."""
    allocated, stored, high = (first_number(image, name) for name in _BIT_TAGS)
    stored = allocated if stored is None else stored
    return int(allocated or 0), int(stored or 0), int((stored or 0) - 1 if high is None else high)


def _pixel_bits(values: NDArray[Any], image: Dataset, precision: int, *, lossy: bool) -> NDArray[Any]:
    """Return the values of the bits up to HighBit alone; `precision` is that of a compressed stream's samples."""
    _, stored, high = _bits(image)
    if precision and precision <= high:  # the stream is of values, not of cells with other bits beside them
        stored = min(stored, precision)
        high = stored - 1
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    depth = 8 * values.dtype.itemsize
    if stored >= depth:
        return values
    if lossy:
        return _clipped(values, stored)
    kept: NDArray[Any] = (values << (depth - 1 - high)) >> (depth - stored)
    return kept


def _clipped(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Return lossy values within their bits: a codec may leave them a little, but bits of something else far."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if values.dtype.kind == "i" else (0, 2**bits - 1)
    excess = max(low - int(values.min()), int(values.max()) - high)
    if excess > (high - low) // 8:
        raise TagError("its stream holds values of more bits than BitsStored", Reason.DAMAGED)
    clipped: NDArray[Any] = np.clip(values, low, high)
    return clipped


def _rgb(values: NDArray[Any], interpretation: str, image: Dataset) -> NDArray[Any]:
    """Return grey values as they are, and colours as RGB; `interpretation` is that of the decoded values."""
    if values.ndim == 2 or (interpretation == "RGB" and values.dtype.kind == "u"):
        return values
    if interpretation not in {"YBR_FULL", "YBR_FULL_422"} or values.dtype != np.uint8 or _bits(image)[1] != 8:
        raise TagError("it has colours of a form (PhotometricInterpretation) that is not converted", Reason.NO_DECODER)
    return convert_color_space(values, "YBR_FULL", "RGB")


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker segments of a JPEG up to its pixels: ITU-T T.81, B.1.1."""
    position = 2
    while stream[:2] == b"\xff\xd8" and position + 4 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        length = int.from_bytes(stream[position + 2 : position + 4])
        segment = stream[position + 4 : position + 2 + length]
        if marker == 0xDA or len(segment) < length - 2:
            return
        yield marker, segment
        position += 2 + length


def _framing(image: Dataset) -> dict[str, Any]:
    offsets = image.get("ExtendedOffsetTable"), image.get("ExtendedOffsetTableLengths")
    return {
        "number_of_frames": int(image.get("NumberOfFrames") or 1),
        "extended_offsets": offsets if all(offsets) else None,
    }


@cache
def _decoder(syntax: UID) -> Decoder:
    decoder = Decoder(syntax)  # not pydicom's shared instance of this syntax
    decoder.add_plugin("imagecodecs", (__name__, "decode_frame"))
    return decoder
