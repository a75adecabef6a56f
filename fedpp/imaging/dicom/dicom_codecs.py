"""Codecs of DICOM: decompress the stored values of one frame of an image.

pydicom and Pillow decode RLE, JPEG Baseline and JPEG 2000. Lossless and 12-bit JPEG go to libjpeg-turbo, JPEG-LS to
CharLS, as packaged by imagecodecs: they survive damaged streams, where GDCM ends the whole process. A stream's own
header is compared with the image's before it is decoded, since it may claim any size.
"""

import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

from imagecodecs import jpeg8_decode, jpegls_decode
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames, get_frame
from pydicom.pixels.decoders.base import Decoder, DecodeRunner, get_decoder
from pydicom.pixels.utils import get_expected_length, pixel_array
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from fedpp.imaging.images import JPEG_SCAN, MAX_SCANS

Size = tuple[int, int, int]  # height, width, samples

# pydicom's interface of a decoder module: this, `is_available` and the function named in `add_plugin`.
DECODER_DEPENDENCIES = dict.fromkeys(
    (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless), ("imagecodecs",)
)

# CharLS reads up to 2^31 zeros beyond the end of a truncated stream; after these bytes it stops.
_PADDING = bytes(64)
_J2K_START = b"\xff\x4f\xff\x51"  # ITU-T T.800, A.4: SOC, then SIZ
_NO_FRAME_HEADER = {0xC4, 0xC8, 0xCC}  # ITU-T T.81, table B.1: codes within SOF0 .. SOF15 that are no SOF


def is_available(syntax: str) -> bool:
    """Tell pydicom whether `decode_frame` decodes a transfer syntax."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(stream: bytes, runner: DecodeRunner) -> bytes:
    """Decode a frame for pydicom; `runner` describes the frame and receives the decoded form."""
    if runner.transfer_syntax in JPEGLSTransferSyntaxes:
        decoded = jpegls_decode(stream + _PADDING)
        runner.set_option("planar_configuration", 0)
    elif runner.samples_per_pixel == 1:
        decoded = jpeg8_decode(stream)
    else:
        decoded = jpeg8_decode(stream, colorspace="RGB", outcolorspace="RGB")  # equal spaces: no conversion
        runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * decoded.dtype.itemsize)
    return decoded.tobytes()


def stored_frame(image: Dataset, number: int) -> NDArray[Any]:
    """Return the values of a frame, `[height, width]` or `[height, width, 3]`, YBR as RGB.

    pydicom's and the decoders' errors pass through; `ValueError` is for a stream of another size than the image.
    """
    syntax = image.file_meta.TransferSyntaxUID
    if syntax in JPEG2000TransferSyntaxes or syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        stream = get_frame(image.PixelData, number, **_framing(image))
        if stream_size(stream) != (image.Rows, image.Columns, image.SamplesPerPixel):
            raise ValueError("a stream has another size than the image")
        if syntax not in JPEG2000TransferSyntaxes and stream.count(JPEG_SCAN) > MAX_SCANS:
            raise ValueError("a stream has too many scans")
    if not is_available(syntax) or (syntax == JPEGExtended12Bit and image.BitsStored <= 8):
        return pixel_array(image, index=number)
    return _decoder(syntax).as_array(image, index=number)[0]


def frame_count(image: Dataset) -> int:
    """Return the number of frames in the file, by their streams or by the bytes of a frame.

    pydicom's errors pass through; `NotImplementedError` is for a transfer syntax without a decoder.
    """
    get_decoder(image.file_meta.TransferSyntaxUID)
    if image.file_meta.TransferSyntaxUID.is_encapsulated:
        return sum(1 for _ in generate_frames(image.PixelData, **_framing(image)))
    count = max(1, int(image.get("NumberOfFrames") or 1))
    return len(image.PixelData) * count // get_expected_length(image)


def stream_size(stream: bytes) -> Size:
    """Return the size that a stream of JPEG, JPEG-LS or JPEG 2000 claims.

    Raises `ValueError` for a stream without a header, `IndexError` or `struct.error` for a truncated header.
    """
    start = stream.find(_J2K_START)
    if start >= 0 and not stream.startswith(b"\xff\xd8"):
        width, height, left, top = struct.unpack_from(">4I", stream, start + 8)  # Xsiz, Ysiz, XOsiz, YOsiz
        return height - top, width - left, struct.unpack_from(">H", stream, start + 40)[0]
    for marker, segment in _segments(stream):
        if (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME_HEADER) or marker == 0xF7:
            return int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5]), segment[5]
    raise ValueError("a stream has no frame header")


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
