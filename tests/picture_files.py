"""Image files of many kinds, written here or by Pillow, whose pixels are known."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF 2.32, 4.6.5.1.6: from what is stored to what is shown
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: lambda a: np.rot90(a, 1),
}


def encoded(pixels: np.ndarray | Image.Image, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(content, form, **options)
    return content.getvalue()


def tiff(*pages: tuple[np.ndarray, dict[int, int]], order: str = "<") -> bytes:
    """Return a TIFF of grey pages with these tags beside those of size and depth."""
    content = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8))
    for number, (pixels, others) in enumerate(pages):
        kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
        height, width = pixels.shape
        data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        tags = {256: width, 257: height, 258: 8 * pixels.dtype.itemsize, 259: 1, 262: 1, 277: 1, 278: height}
        tags |= {279: len(data), 339: kind} | others
        at = len(content) + 2 + 12 * (len(tags) + 1) + 4
        tags[273] = at
        content += struct.pack(order + "H", len(tags))
        for tag, value in sorted(tags.items()):
            short = tag in {258, 259, 262, 274, 277, 339}
            packed = struct.pack(order + "HH", value, 0) if short else struct.pack(order + "I", value)
            content += struct.pack(order + "HHI", tag, 3 if short else 4, 1) + packed
        after = at + len(data) + len(data) % 2
        content += struct.pack(order + "I", after if number + 1 < len(pages) else 0) + data + bytes(len(data) % 2)
    return bytes(content)


def tiff_of_strips(*strips: bytes, order: str = "<", **tags: int | tuple[int, ...]) -> bytes:
    """Return a TIFF of one page of these strips, with tags named like `t256`."""
    numbers = {int(name[1:]): value if isinstance(value, tuple) else (value,) for name, value in tags.items()}
    numbers |= {273: (0,) * len(strips), 279: tuple(map(len, strips))}
    after = 8 + 2 + 12 * len(numbers) + 4
    outside = {tag: value for tag, value in sorted(numbers.items()) if len(value) > 1}
    places = {}
    for tag, value in outside.items():
        places[tag], after = after, after + 4 * len(value)
    numbers[273] = tuple(after + sum(map(len, strips[:number])) for number in range(len(strips)))
    content = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(numbers))
    for tag, value in sorted(numbers.items()):
        content += struct.pack(order + "HHII", tag, 4, len(value), places.get(tag, value[0]))
    listed = b"".join(struct.pack(f"{order}{len(outside[tag])}I", *numbers[tag]) for tag in outside)
    return content + bytes(4) + listed + b"".join(strips)


def bitmap(colours: np.ndarray, opacity: np.ndarray) -> bytes:
    """Return a BMP of 32 bits whose header (BITMAPV4HEADER) has a mask of opacity."""
    height, width = opacity.shape
    pixels = np.dstack([colours[..., ::-1], opacity])[::-1].tobytes()
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(108 - 56)
    return b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122) + header + pixels


def png(pixels: np.ndarray, depth: int, colour: int, *chunks: tuple[bytes, bytes], rows: bytes | None = None) -> bytes:
    """Return a PNG of rows of whole bytes, with these chunks before its pixels."""
    height, width = pixels.shape[:2]
    plain = b"".join(b"\0" + row.tobytes() for row in pixels) if rows is None else rows
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(plain)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
    return b"\x89PNG\r\n\x1a\n" + body
