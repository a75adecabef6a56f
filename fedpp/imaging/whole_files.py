"""Wholeness of image files: Pillow leaves rows black or grey, or frames away, of some that end too early."""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import (
    COMPRESSION,
    JPEGTABLES,
    STRIPBYTECOUNTS,
    STRIPOFFSETS,
    TILEBYTECOUNTS,
    TILEOFFSETS,
    TiffImageFile,
)

from fedpp.imaging.whole_jpeg import is_whole_jpeg

_PNG_HEADER, _PNG_CHUNK = 8, struct.Struct(">I4s")
_CHECKED = (b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf")  # beside the critical chunks, whose names are capital
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7
_PLAIN = ((0, 0, 1, 1),)
_GIF_HEADER, _GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 13, 0x21, 0x2C, 0x3B
# of TIFF: a compression, and the tags of places and lengths of strips and tiles
_JPEG, _PARTS = 7, ((STRIPOFFSETS, STRIPBYTECOUNTS), (TILEOFFSETS, TILEBYTECOUNTS))


def is_whole(content: bytes, image: Image.Image) -> bool:
    """Tell whether a file holds all of its current page, or all of its pages; `image` is opened from its content."""
    if image.format in {"JPEG", "MPO"}:
        return is_whole_jpeg(content, image)
    if isinstance(image, TiffImageFile):
        return is_whole_tiff_page(content, image)
    return {"PNG": is_whole_png, "GIF": is_whole_gif}.get(image.format or "", bool)(content)


def is_whole_tiff_page(content: bytes, image: TiffImageFile) -> bool:
    """Tell whether all strips or tiles of a page are whole, if they are JPEG streams; Pillow checks others."""
    tags = image.tag_v2
    if tags.get(COMPRESSION) != _JPEG:
        return True
    tables = tags.get(JPEGTABLES, b"")[:-2]
    parts = [part for kinds in _PARTS for part in zip(*(tags.get(kind, ()) for kind in kinds), strict=True)]
    streams = (content[offset : offset + length] for offset, length in parts)
    return all(_is_whole_part(tables + stream[2:] if tables else stream, image) for stream in streams)


def is_whole_png(content: bytes) -> bool:
    """Tell whether the chunks of a PNG file that matter are whole, and all rows of all frames are in them."""
    header = b""
    parts: list[tuple[int, int, list[bytes]]] = []  # of each picture: its size and its pieces
    for kind, chunk in _chunks(content):
        if kind == b"IHDR":
            header = chunk
        elif kind == b"IDAT":
            parts = parts or [(*struct.unpack_from(">II", header), [])]
            parts[-1][2].append(chunk)
        elif kind == b"fcTL" and parts:
            parts.append((*struct.unpack_from(">II", chunk, 4), []))
        elif kind == b"fdAT":
            parts[-1][2].append(chunk[4:])
        elif kind == b"IEND":
            return bool(parts) and all(_has_rows(b"".join(pieces), _size(header, *size)) for *size, pieces in parts)
    return False


def is_whole_gif(content: bytes) -> bool:
    """Tell whether a GIF file reaches its end mark."""
    at = _GIF_HEADER + _table(content[10])
    while at < len(content) and content[at] != _GIF_END:
        if content[at] == _GIF_IMAGE:
            at = _after_blocks(content, at + 11 + _table(content[at + 9]))
        elif content[at] == _GIF_EXTENSION:
            at = _after_blocks(content, at + 2)
        else:
            return False
    return at < len(content)


def _is_whole_part(stream: bytes, page: TiffImageFile) -> bool:
    part = JpegImageFile(BytesIO(stream))
    rounded = (page.width + 256) * (page.height + 256)  # tiles go beyond the page
    return part.width * part.height <= rounded and is_whole_jpeg(stream, part)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of each chunk, until one is cut or does not fit its checksum."""
    at = _PNG_HEADER
    while at + 12 <= len(content):
        length, kind = _PNG_CHUNK.unpack_from(content, at)
        chunk, checksum = content[at + 8 : at + 8 + length], content[at + 8 + length : at + 12 + length]
        if (kind[:1].isupper() or kind in _CHECKED) and zlib.crc32(kind + chunk).to_bytes(4) != checksum:
            return
        yield kind, chunk
        at += 12 + length


def _size(header: bytes, width: int, height: int) -> int:
    """Return the number of bytes of a picture's rows, each of which begins with the number of its filter."""
    depth, colour, interlaced = header[8], header[9], header[12]
    size = 0
    for left, top, across, down in _PASSES if interlaced else _PLAIN:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0:
            size += max(0, rows) * (1 + -(-columns * depth * _CHANNELS[colour] // 8))
    return size


def _has_rows(compressed: bytes, size: int) -> bool:
    """Tell whether data hold at least so many bytes, of which few are in memory at one time."""
    inflater = zlib.decompressobj()
    while size > 0 and not inflater.eof:
        piece = inflater.decompress(compressed, min(size, 2**20))
        if not piece:
            return False
        size, compressed = size - len(piece), inflater.unconsumed_tail
    return size <= 0


def _table(flags: int) -> int:
    """Return the number of bytes of a table of colours."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(content: bytes, at: int) -> int:
    """Return the place after blocks that begin with their length, the last of which is empty."""
    while at < len(content) and content[at]:
        at += 1 + content[at]
    return at + 1
