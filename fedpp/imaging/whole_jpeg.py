"""Wholeness of JPEG files: libjpeg fills what is missing of a picture with grey, and says nothing to Pillow.

Source: ITU-T T.81, annexes B (markers), F and G (scans of sequential and progressive files).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # between segments, and the first one after a scan's data
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_HUFFMAN_FRAMES = range(0xC0, 0xC4)  # SOF0 to SOF3; arithmetic coding may leave the end of its data away
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_RESTARTS, _SCAN, _END = 0xDD, 0xDA, 0xD9
# put behind the data of each scan: a decoder that has all of the data ignores it, another one takes it for pixels
_JUNK = bytes.fromhex("5bd1e88a27c4139f6e02b57a90dd43a8f11c36cb0f7284e95d") * 3


@dataclass
class _Jpeg:
    """What the markers of a JPEG file say, as far as they were read."""

    width: int = 0
    height: int = 0
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)  # of each component: horizontal and vertical
    interval: int = 0  # of restart markers, in units of coded blocks
    precision: dict[tuple[int, int], int] = field(default_factory=dict)  # bits that coefficients lack, from all scans
    ends: list[int] = field(default_factory=list)  # of the data of scans
    complete: bool = True  # Huffman-coded, with all of the restart markers
    ended: bool = False


def is_whole_jpeg(content: bytes, image: Image.Image) -> bool:
    """Tell whether a decodable JPEG file holds all of its first picture, which is opened."""
    jpeg = _parsed(content)
    coefficients = [(component, number) for component in jpeg.sampling for number in range(64)]
    if not (jpeg.complete and jpeg.ended) or any(jpeg.precision.get(key) != 0 for key in coefficients):
        return False
    try:
        return JpegImageFile(BytesIO(_with_junk(content, jpeg.ends))).tobytes() == image.tobytes()
    except OSError:
        return False


def with_junk(content: bytes) -> bytes | None:
    """Return a stream with bytes that a decoder of a whole one ignores, None for a stream that does not end."""
    jpeg = _parsed(content)
    return _with_junk(content, jpeg.ends) if jpeg.ended else None


def _with_junk(content: bytes, ends: list[int]) -> bytes:
    return _JUNK.join(content[begin:end] for begin, end in zip([0, *ends], [*ends, len(content)], strict=True))


def _parsed(content: bytes) -> _Jpeg:
    jpeg = _Jpeg()
    for marker, begin, end in _segments(content):
        segment = content[begin:end]
        if marker in _FRAMES:
            _take_frame(jpeg, marker, segment)
        elif marker == _RESTARTS:
            jpeg.interval = int.from_bytes(segment[:2])
        elif marker == _SCAN:
            last = _MARKER.search(content, end)
            jpeg.ends.append(last.start() if last else len(content))
            _take_scan(jpeg, segment, _RESTART.findall(content, end, jpeg.ends[-1]))
        jpeg.ended = marker == _END
    return jpeg


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield each marker's code, and where the content of its segment begins and ends, up to the end's."""
    at, code = 2, 0
    while code != _END and (found := _MARKER.search(content, at)):
        code = content[found.end() - 1]
        at = found.end() + int.from_bytes(content[found.end() : found.end() + 2])
        yield code, found.end() + 2, at


def _take_frame(jpeg: _Jpeg, marker: int, segment: bytes) -> None:
    jpeg.complete &= marker in _HUFFMAN_FRAMES
    jpeg.height, jpeg.width = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
    jpeg.sampling = {code: (factors >> 4, factors & 15) for code, factors in zip(segment[6::3], segment[7::3])}  # noqa: B905  a third of each


def _take_scan(jpeg: _Jpeg, segment: bytes, restarts: list[bytes]) -> None:
    components = [code for code in segment[1 : 1 + 2 * segment[0] : 2] if code in jpeg.sampling]
    first, last, bits = segment[1 + 2 * segment[0] :][:3]
    for component in components:
        jpeg.precision |= {(component, number): bits & 15 for number in range(first, last + 1)}
    expected = -(-_units(jpeg, components) // jpeg.interval) - 1 if jpeg.interval else 0
    jpeg.complete &= [code[0] - 0xD0 for code in restarts] == [number % 8 for number in range(expected)]


def _units(jpeg: _Jpeg, components: list[int]) -> int:
    """Return the number of coded units of a scan: blocks of one component, or groups of blocks of several."""
    across, down = (max(factors[axis] for factors in jpeg.sampling.values()) for axis in (0, 1))
    if len(components) > 1:
        return -(-jpeg.width // (8 * across)) * -(-jpeg.height // (8 * down))
    horizontal, vertical = jpeg.sampling[components[0]]
    return -(-jpeg.width * horizontal // (8 * across)) * -(-jpeg.height * vertical // (8 * down))
