"""Image files as they are shown: each kind beside an independent decode, which is NumPy's or a formula's."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from imagecodecs import jpeg8_encode
from picture_files import TURNS, bitmap, encoded, png, tiff, tiff_of_strips
from PIL import Image

from fedpp.errors import UnusableFileError
from fedpp.imaging.images import page_count, read_image, read_pages
from fedpp.imaging.natural_order import natural, order_is_a_guess

Y, X = np.mgrid[:24, :32]
RAMP = ((X * 5 + Y * 4) % 256).astype(np.uint8)  # not symmetric in any way
NOISE = np.random.default_rng(0).integers(0, 256, (24, 32)).astype(np.uint8)
COLOURS = np.dstack([NOISE, NOISE[::-1], NOISE[:, ::-1]])


def frames(folder: Path, content: bytes, *, colour: bool = False) -> list[np.ndarray]:
    """Read a file of this content to the frames that a sequence has of it."""
    (folder / "image").write_bytes(content)
    return list(read_pages(folder / "image", page_count(folder / "image"), colour=colour))


def refused(folder: Path, content: bytes) -> str:
    with pytest.raises(UnusableFileError) as error:
        frames(folder, content)
    assert "\n" not in str(error.value)
    return str(error.value)


def luma(colours: np.ndarray) -> np.ndarray:
    """Return grey by ITU-R BT.601, unrounded."""
    return colours @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_a_picture_is_turned_as_its_orientation_says(form: str, orientation: int, tmp_path: Path):
    """Once, whether Pillow or we turn it, in grey and in colour; an orientation that is none changes nothing."""
    exif = Image.Exif()
    exif[274] = orientation
    options = {"tiffinfo": {274: orientation}} if form == "TIFF" else {"exif": exif}
    options |= {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(form, {})
    shown = TURNS[orientation](COLOURS).astype(float)
    near = {"atol": 4 if form == "JPEG" else 1}
    content = encoded(COLOURS, form, **options)
    np.testing.assert_allclose(frames(tmp_path, content, colour=True)[0], shown, **near)
    np.testing.assert_allclose(frames(tmp_path, content)[0], luma(shown), **near)
    exif[274] = 9
    np.testing.assert_array_equal(frames(tmp_path, encoded(NOISE, "PNG", exif=exif))[0], NOISE)


def test_each_page_has_its_own_orientation(tmp_path: Path):
    """Pages of a TIFF are turned by their own tags, in any order of access, and frames of an APNG by the file's."""
    pages = [(RAMP, {274: 6}), (NOISE, {}), (RAMP.astype(np.uint16) * 257, {274: 5})]
    (tmp_path / "a.tif").write_bytes(tiff(*pages))
    read = read_pages(tmp_path / "a.tif", 3)
    for _ in range(2):
        for number in (2, 0, 1):
            expected = [np.rot90(RAMP, -1), NOISE, RAMP.T][number]
            np.testing.assert_allclose(read[number], expected)
    exif = Image.Exif()
    exif[274] = 8
    film = encoded(RAMP, "PNG", save_all=True, append_images=[Image.fromarray(NOISE)], exif=exif)
    np.testing.assert_array_equal(np.stack(frames(tmp_path, film)), [np.rot90(RAMP), np.rot90(NOISE)])


DEPTHS = {  # stored values, tags, and what they are on the scale from 0 to 255
    "8 bits": (RAMP, {}, RAMP),
    "signed 8 bits": ((RAMP.astype(int) - 128).astype(np.int8), {}, RAMP),
    "16 bits": (RAMP.astype(np.uint16) * 257, {}, RAMP),
    "signed 16 bits": ((RAMP * 257.0 - 32_768).astype(np.int16), {}, RAMP),
    "32 bits": ((RAMP * 16_843_009.0).astype(np.uint32), {}, RAMP),
    "signed 32 bits": ((RAMP * 16_843_009.0 - 2**31).astype(np.int32), {}, RAMP),
    "floats": (RAMP.astype(np.float32) / 255, {}, RAMP / 255),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_depth_is_brought_to_one_scale(depth: str, order: str, tmp_path: Path):
    """Black is 0 and white 255 for whole numbers of any depth, sign and order of bytes; floats stay as they are."""
    stored, tags, shown = DEPTHS[depth]
    content = tiff((stored, tags), order=order)
    if (depth, order) == ("32 bits", ">"):
        assert "not decoded" in refused(tmp_path, content)
    else:
        np.testing.assert_allclose(frames(tmp_path, content)[0], shown, atol=1e-5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("depth", ["8 bits", "16 bits", "floats"])
def test_white_may_be_zero(depth: str, order: str, tmp_path: Path):
    """A TIFF whose zero is white is shown as its negative, whatever its depth, or refused."""
    stored, _, shown = DEPTHS[depth]
    content = tiff((stored, {262: 0}), order=order)
    if depth == "16 bits" and order == ">":
        assert "not decoded" in refused(tmp_path, content)
    else:
        white = 1 if depth == "floats" else 255
        np.testing.assert_allclose(frames(tmp_path, content)[0], white - shown, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_white_may_be_zero_in_few_bits(depth: int, tmp_path: Path):
    """Pillow turns these itself, and so do we not; a TIFF that does not say what its zero is is refused."""
    few, steps = NOISE >> 8 - depth, 2**depth - 1
    packed = np.zeros((24, 32 * depth // 8), np.uint8)
    for place in range(8 // depth):
        packed |= few[:, place :: 8 // depth] << (8 - depth * (place + 1))
    for photometric, shown in ((1, few), (0, steps - few)):
        content = tiff((packed, {256: 32, 258: depth, 262: photometric}))
        np.testing.assert_array_equal(frames(tmp_path, content)[0], shown * (255 // steps))
    for pixels in (packed, RAMP.astype(np.uint16)):
        content = tiff((pixels, {})).replace(struct.pack("<HH", 262, 3), struct.pack("<HH", 260, 3))
        assert "whether 0 is black" in refused(tmp_path, content)


def test_two_depths_of_one_picture_have_one_contrast(tmp_path: Path):
    """PNG of 8 and of 16 bits, and packed 12 bits of a TIFF, are the same values."""
    deep = RAMP.astype(np.uint16) * 257
    for content in (encoded(RAMP, "PNG"), encoded(Image.fromarray(deep), "PNG"), twelve_bits(RAMP)):
        np.testing.assert_allclose(frames(tmp_path, content)[0], RAMP, atol=0.5)


PAGE = {"t256": 32, "t257": 24, "t262": 1, "t277": 1, "t278": 24}
COLOURED = PAGE | {"t262": 2, "t277": 3, "t284": 2}  # red, green and blue apart


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("bits", [8, 16])
def test_planes_of_colours_are_right_or_refused(bits: int, compressed: bool, order: str, tmp_path: Path):
    """A TIFF's red, green and blue apart: Pillow makes noise of 16 bits that are not compressed."""
    planes = [
        (COLOURS[..., n].astype(int) * (257 if bits == 16 else 1)).astype(f"{order}u{bits // 8}") for n in range(3)
    ]
    strips = [zlib.compress(plane.tobytes()) if compressed else plane.tobytes() for plane in planes]
    tags = COLOURED | {"t258": (bits,) * 3, "t259": 8 if compressed else 1}
    content = tiff_of_strips(*strips, order=order, **tags)
    if bits == 16 and not compressed:
        assert "of planes of more than 8 bits" in refused(tmp_path, content)
    else:
        np.testing.assert_array_equal(frames(tmp_path, content, colour=True)[0], COLOURS)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_compressed_depth_is_right_or_refused(depth: str, order: str, tmp_path: Path):
    """Pillow takes the bytes of some compressed big-endian values in the wrong order."""
    stored, _, shown = DEPTHS[depth]
    kind = {"u": 1, "i": 2, "f": 3}[stored.dtype.kind]
    data = zlib.compress(stored.astype(stored.dtype.newbyteorder(order)).tobytes())
    content = tiff_of_strips(data, order=order, **PAGE, t258=8 * stored.itemsize, t259=8, t339=kind)
    if order == "<" or depth in {"8 bits", "signed 8 bits", "16 bits"}:
        np.testing.assert_allclose(frames(tmp_path, content)[0], shown, atol=1e-5)
    else:
        assert re.search("compressed and big-endian|not decoded", refused(tmp_path, content))


def test_a_volume_in_one_page_is_refused(tmp_path: Path):
    """A page may have a depth, as of microscopes, of which Pillow reads the first slice alone."""
    flat, deep = (tiff_of_strips(NOISE.tobytes(), **PAGE, t258=8, t259=1, t32997=slices) for slices in (1, 5))
    np.testing.assert_array_equal(frames(tmp_path, flat)[0], NOISE)
    assert "is a volume" in refused(tmp_path, deep)


def twelve_bits(pixels: np.ndarray) -> bytes:
    """Return a TIFF of 12 bits, two values in three bytes."""
    values = np.rint(pixels.astype(float) * 4095 / 255).astype(int).ravel()
    one, two = values[::2], values[1::2]
    packed = np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], -1).astype(np.uint8).tobytes()
    tags = [(256, pixels.shape[1]), (257, pixels.shape[0]), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1)]
    tags += [(278, pixels.shape[0]), (279, len(packed))]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4) + packed


ALPHA = np.where((X > 8) & (Y > 5), 255, np.where(X > 4, 128, 0)).astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_what_is_transparent_is_black(form: str, tmp_path: Path):
    """Colours hidden behind transparency are not read, and half of them is half as bright."""
    image = Image.fromarray(np.dstack([COLOURS, ALPHA]))
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    shown = COLOURS * (ALPHA / 255.0)[..., None]
    content = encoded(image, form, **options)
    np.testing.assert_allclose(frames(tmp_path, content, colour=True)[0], shown, atol=1)
    np.testing.assert_allclose(frames(tmp_path, content)[0], luma(shown), atol=1.5)


def test_grey_with_alpha_is_laid_on_black(tmp_path: Path):
    """Of 8 and of 16 bits."""
    shown = NOISE * (ALPHA / 255.0)
    both = np.dstack([NOISE, ALPHA])
    deep = (both.astype(">u2") * 257).astype(">u2")
    for content in (encoded(Image.fromarray(both), "PNG"), encoded(Image.fromarray(both), "TIFF"), png(deep, 16, 4)):
        np.testing.assert_allclose(frames(tmp_path, content)[0], shown, atol=1)


def test_a_transparent_value_is_black(tmp_path: Path):
    """PNG's tRNS: of a palette, of grey of 2, 4, 8 and 16 bits, of colours; a deep colour's is refused."""
    grey = png(NOISE, 8, 0, (b"tRNS", struct.pack(">H", int(NOISE[3, 3]))))
    np.testing.assert_array_equal(frames(tmp_path, grey)[0], np.where(NOISE[3, 3] == NOISE, 0, NOISE))
    deep = NOISE.astype(">u2") * 257
    content = png(deep, 16, 0, (b"tRNS", struct.pack(">H", int(deep[3, 3]))))
    np.testing.assert_allclose(frames(tmp_path, content)[0], np.where(NOISE[3, 3] == NOISE, 0, NOISE))
    for depth in (2, 4):
        few = NOISE[:, ::2] >> 8 - depth  # one value in each place of a byte
        rows = np.zeros((24, 16 * depth // 8), np.uint8)
        for place in range(8 // depth):
            rows |= few[:, place :: 8 // depth] << (8 - depth * (place + 1))
        content = png(few, depth, 0, (b"tRNS", b"\0\2"), rows=b"".join(b"\0" + row.tobytes() for row in rows))
        scaled = few * (255 // (2**depth - 1))
        np.testing.assert_array_equal(frames(tmp_path, content)[0], np.where(few == 2, 0, scaled))
    palette = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)
    opacity = np.linspace(0, 255, 256).astype(np.uint8)
    content = png(NOISE, 8, 3, (b"PLTE", palette.tobytes()), (b"tRNS", opacity.tobytes()))
    shown = palette[NOISE] * (opacity[NOISE] / 255.0)[..., None]
    np.testing.assert_allclose(frames(tmp_path, content, colour=True)[0], shown, atol=1)
    colour = png(COLOURS, 8, 2, (b"tRNS", struct.pack(">HHH", *map(int, COLOURS[2, 2]))))
    shown = np.where((COLOURS[2, 2] == COLOURS).all(-1, keepdims=True), 0, COLOURS)
    np.testing.assert_array_equal(frames(tmp_path, colour, colour=True)[0], shown)
    key = struct.pack(">HHH", 5, 6, 7)
    assert "16 bits" in refused(tmp_path, png(COLOURS.astype(">u2") * 257, 16, 2, (b"tRNS", key)))


def test_a_picture_that_is_transparent_as_a_whole(tmp_path: Path):
    """Of a BMP, whose opacity is zero where a program does not use it, the colours are read; others are refused."""
    for opacity, shown in ((ALPHA, COLOURS * (ALPHA / 255.0)[..., None]), (0 * ALPHA, COLOURS)):
        content = bitmap(COLOURS, opacity)
        np.testing.assert_allclose(frames(tmp_path, content, colour=True)[0], shown, atol=1)
        np.testing.assert_allclose(frames(tmp_path, content)[0], luma(shown), atol=1.5)
    unseen = np.dstack([COLOURS, 0 * ALPHA])
    for form in ("PNG", "TIFF"):
        assert "all of it is transparent" in refused(tmp_path, encoded(unseen, form))
        assert not frames(tmp_path, encoded(0 * unseen, form))[0].any()


@pytest.mark.parametrize("described", ["ImageJ=1.54f\nimages={}\nslices=3\n", '{{"shape": [{}, 24, 32]}}'])
def test_a_stack_in_one_page_is_refused(described: str, tmp_path: Path):
    """Of pictures that lie behind each other without pages of their own, no program but its writer's sees more."""
    pages = [Image.fromarray(page) for page in (RAMP, NOISE, RAMP)]
    tags = {"tiffinfo": {270: described.format(3)}}
    alone = encoded(pages[0], "TIFF", **tags)
    for content, count in ((alone, 1), (encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], **tags), 3)):
        read = frames(tmp_path, content)
        assert len(read) == count
        np.testing.assert_array_equal(read[0], RAMP)
    assert "is a stack of 3 pictures in 1 pages" in refused(tmp_path, alone + NOISE.tobytes() + RAMP.tobytes())


def test_reduced_pages_are_no_frames(tmp_path: Path):
    """Pages that are marked as reduced or as masks, in the old way or the new, wherever they are; or not marked."""
    big, small = RAMP, RAMP[::2, ::2].copy()
    whole = (big, {254: 0})
    for copy in ({254: 1}, {254: 4}, {255: 2}, {254: 9}):
        for pages in (
            [whole, (small, copy)],
            [(small, copy), whole],
            [whole, (small, copy), (NOISE, {}), (small, copy)],
        ):
            read = frames(tmp_path, tiff(*pages))
            assert [frame.tolist() for frame in read] == [
                p.tolist() for p, tags in pages if tags.items() != copy.items()
            ]
    assert "smaller by a whole factor" in refused(tmp_path, tiff((big, {}), (small, {})))
    assert "nothing but reduced copies" in refused(tmp_path, tiff((small, {254: 1})))
    assert len(frames(tmp_path, tiff((big, {}), (NOISE[:-2], {})))) == 2


def test_thumbnails_are_no_frames(tmp_path: Path):
    """Of an MPO the first picture is read; a second one of its size is refused; so is a thumbnail in EXIF no frame."""
    first, small = Image.fromarray(COLOURS), Image.fromarray(COLOURS[::4, ::4].copy())
    content = encoded(first, "MPO", save_all=True, append_images=[small], quality=100, subsampling=0)
    (read,) = frames(tmp_path, content, colour=True)
    np.testing.assert_allclose(read, COLOURS, atol=4)
    assert len(frames(tmp_path, content[: content.rindex(b"\xff\xd8") + 30])) == 1
    both = encoded(first, "MPO", save_all=True, append_images=[first])
    assert "several pictures of one size" in refused(tmp_path, both)
    exif = Image.Exif()
    exif[274] = 3
    exif.get_ifd(1)[513] = 0
    (read,) = frames(tmp_path, encoded(NOISE, "JPEG", quality=100, exif=exif))
    np.testing.assert_allclose(read, NOISE[::-1, ::-1], atol=4)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_a_film_has_the_frames_that_are_shown(form: str, tmp_path: Path):
    """Each frame lies on what its predecessors leave, as their disposal says, and that on black."""
    canvas = np.zeros((8, 8, 4), np.uint8)
    canvas[..., 0], canvas[..., 3] = 200, 255
    patch = np.zeros((8, 8, 4), np.uint8)
    patch[2:4, 2:4] = (0, 0, 240, 255)
    pictures = [Image.fromarray(canvas), Image.fromarray(patch), Image.fromarray(np.roll(patch, 3, axis=0))]
    options = (
        {"lossless": True, "exact": True} if form == "WEBP" else {"disposal": [1, 0, 0] if form == "PNG" else [0, 2, 1]}
    )
    if form == "PNG":
        options |= {"blend": 0}
    content = encoded(pictures[0], form, save_all=True, append_images=pictures[1:], duration=100, **options)
    with Image.open(io.BytesIO(content)) as film:
        shown = []
        for number in range(film.n_frames):
            film.seek(number)
            rgba = np.asarray(film.convert("RGBA")).astype(float)
            shown.append(rgba[..., :3] * rgba[..., 3:] / 255)
    read = frames(tmp_path, content, colour=True)
    assert len(read) == 3
    np.testing.assert_allclose(np.stack(read), np.stack(shown), atol=1)


def test_an_image_that_is_not_in_the_film_is_no_frame(tmp_path: Path):
    """An APNG's default image, for programs without films, is not shown."""
    film = [Image.fromarray(picture) for picture in (255 - RAMP, RAMP, NOISE)]
    content = encoded(film[0], "PNG", save_all=True, append_images=film[1:], default_image=True)
    np.testing.assert_array_equal(np.stack(frames(tmp_path, content)), [RAMP, NOISE])


def test_colours_of_print_are_read(tmp_path: Path):
    """CMYK of TIFF, and of JPEG, which stores its negative, become red, green and blue; so does CIELAB."""
    ink = np.dstack([COLOURS // 2, NOISE // 3])
    shown = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255
    for form, options, near in (("TIFF", {}, 1.5), ("JPEG", {"quality": 100, "subsampling": 0}, 6)):
        content = encoded(Image.fromarray(ink, "CMYK"), form, **options)
        np.testing.assert_allclose(frames(tmp_path, content, colour=True)[0], shown, atol=near)
    lab = np.dstack([RAMP, np.full_like(RAMP, 128), np.full_like(RAMP, 128)])
    content = encoded(Image.frombytes("LAB", (32, 24), lab.tobytes()), "TIFF")
    assert np.corrcoef(frames(tmp_path, content)[0].ravel(), RAMP.ravel())[0, 1] > 0.98


PLAIN = PAGE | {"t258": 8, "t259": 1}
HALVES = NOISE > 127
SMOOTH = np.dstack([X * 8, Y * 10, (X + Y) * 4]).astype(np.uint8)
INVERSE = bytes(value for grey in range(255, -1, -1) for value in (grey, grey, grey, 0))  # a BMP's palette


def bmp(rows: bytes, bits: int, *, top: bool = False, compression: int = 0, palette: bytes = b"") -> bytes:
    """Return a BMP of these rows, the lowest first unless `top`."""
    header = struct.pack("<IiiHHIIiiII", 40, 32, -24 if top else 24, 1, bits, compression, len(rows), 0, 0, 0, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + palette + rows


def old_bmp() -> bytes:
    header = struct.pack("<IHHHH", 12, 32, 24, 1, 24)  # of OS/2
    rows = COLOURS[::-1, :, ::-1].tobytes()
    return b"BM" + struct.pack("<IHHI", 26 + len(rows), 0, 0, 26) + header + rows


def in_runs(row: np.ndarray) -> bytes:
    return b"".join(bytes([1, int(pixel)]) for pixel in row) + b"\0\0"


def jpeg(**options: object) -> bytes:
    return bytes(jpeg8_encode(SMOOTH, 95, **options))


THUMBNAIL = b"Exif\0\0" + encoded(SMOOTH[::4, ::4].copy(), "JPEG")
USUAL: dict[str, tuple[bytes, np.ndarray]] = {  # of other programs and devices, and what they show
    "TIFF, one strip of any height": (tiff_of_strips(NOISE.tobytes(), **PLAIN | {"t278": 2**32 - 1}), NOISE),
    "TIFF, padded": (tiff_of_strips(NOISE.tobytes() + bytes(50), **PLAIN), NOISE),
    "TIFF, strips": (
        tiff_of_strips(*(NOISE[n : n + 10].tobytes() for n in (0, 10, 20)), **PLAIN | {"t278": 10}),
        NOISE,
    ),
    "TIFF, of few tags": (tiff_of_strips(NOISE.tobytes(), t256=32, t257=24, t258=8, t262=1), NOISE),
    "TIFF, deflated in the old way": (tiff_of_strips(zlib.compress(NOISE.tobytes()), **PLAIN | {"t259": 32946}), NOISE),
    "TIFF, bits from below": (
        tiff_of_strips(np.packbits(HALVES, axis=1, bitorder="little").tobytes(), **PLAIN | {"t258": 1, "t266": 2}),
        HALVES * 255,
    ),
    **{f"JPEG, {by}": (jpeg(subsampling=by), SMOOTH) for by in ("444", "422", "420", "411", "440")},
    "JPEG, optimised": (encoded(SMOOTH, "JPEG", quality=95, optimize=True), SMOOTH),
    "JPEG, one restart a block": (encoded(SMOOTH, "JPEG", quality=95, restart_marker_blocks=1), SMOOTH),
    "JPEG, fill bytes": (jpeg().replace(b"\xff\xda", b"\xff\xff\xff\xda", 1), SMOOTH),
    "JPEG, markers in a comment": (jpeg()[:2] + b"\xff\xfe\0\x08\xff\xd9\xff\xd8ab" + jpeg()[2:], SMOOTH),
    "JPEG, thumbnail": (
        jpeg()[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(THUMBNAIL)) + THUMBNAIL + jpeg()[2:],
        SMOOTH,
    ),
    "JPEG, with a film": (jpeg() + b"\0\0\0\x18ftypmp42" + bytes(3000), SMOOTH),
    "GIF, interlaced": (encoded(NOISE, "GIF", interlace=1), NOISE),
    "GIF, comment": (encoded(NOISE, "GIF", comment=b"of a device"), NOISE),
    "PNG, trailer": (encoded(NOISE, "PNG") + b"trailer", NOISE),
    "PNG, of a bit": (encoded(Image.fromarray(HALVES), "PNG"), HALVES * 255),
    "PNG, gamma": (png(NOISE, 8, 0, (b"gAMA", struct.pack(">I", 45_455))), NOISE),
    "PNG, 16 bits of colours": (png(COLOURS.astype(">u2") * 257, 16, 2), COLOURS),
    "BMP, from the top": (bmp(COLOURS[..., ::-1].tobytes(), 24, top=True), COLOURS),
    "BMP, of OS/2": (old_bmp(), COLOURS),
    "BMP, four bytes": (bmp(np.dstack([COLOURS[..., ::-1], 0 * NOISE])[::-1].tobytes(), 32), COLOURS),
    "BMP, palette": (bmp(NOISE[::-1].tobytes(), 8, palette=INVERSE), 255 - NOISE),
    "BMP, runs": (bmp(b"".join(map(in_runs, NOISE[::-1])) + b"\0\1", 8, compression=1, palette=INVERSE), 255 - NOISE),
    "BMP, bits": (bmp(np.packbits(HALVES, axis=1)[::-1].tobytes(), 1, palette=bytes(4) + b"\xff" * 4), HALVES * 255),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_files_are_no_damaged_ones(name: str, tmp_path: Path):
    """What programs and devices write is read as it was written, in grey and in colour."""
    content, shown = USUAL[name]
    near = 8 if name.startswith("JPEG") else 1
    (read,) = frames(tmp_path, content)
    np.testing.assert_allclose(read, luma(shown) if shown.ndim == 3 else shown, atol=near)
    if shown.ndim == 3:
        near = 30 if name.startswith("JPEG") else 1  # whose colours are of blocks
        np.testing.assert_allclose(frames(tmp_path, content, colour=True)[0], shown, atol=near)


FILM = {
    "save_all": True,
    "append_images": [Image.fromarray(COLOURS[::-1].copy()), Image.fromarray(COLOURS.copy() // 2)],
}
INTACT = {
    "grey.png": encoded(NOISE, "PNG"),
    "film.png": encoded(COLOURS, "PNG", **FILM),
    "grey.jpg": encoded(NOISE, "JPEG"),
    "smooth.jpg": encoded(RAMP, "JPEG", quality=60),
    "colour.jpg": encoded(COLOURS, "JPEG", subsampling=2),
    "progressive.jpg": encoded(COLOURS, "JPEG", progressive=True),
    "restarts.jpg": encoded(COLOURS, "JPEG", restart_marker_blocks=2),
    "ink.jpg": encoded(Image.fromarray(COLOURS).convert("CMYK"), "JPEG"),
    "grey.gif": encoded(NOISE, "GIF"),
    "film.gif": encoded(COLOURS, "GIF", **FILM),
    "grey.webp": encoded(COLOURS, "WEBP"),
    "film.webp": encoded(COLOURS, "WEBP", lossless=True, **FILM),
    "raw.tif": encoded(COLOURS, "TIFF"),
    "pages.tif": encoded(COLOURS, "TIFF", compression="tiff_lzw", **FILM),
    "deflated.tif": encoded(NOISE, "TIFF", compression="tiff_deflate"),
    "fax.tif": encoded(Image.fromarray(NOISE > 127), "TIFF", compression="group4"),
    "plain.bmp": encoded(COLOURS, "BMP"),
}


ENDS = {
    "jpg": (b"", b"\xff\xd9", bytes(64), b"\0\xff\xd9"),
    "gif": (b"", b";"),
    "png": (b"", b"\0\0\0\0IEND\xaeB`\x82"),
}


@pytest.mark.parametrize(("name", "end"), [(name, end) for name in INTACT for end in ENDS.get(name[-3:], (b"",))])
def test_a_cut_file_is_refused(name: str, end: bytes, tmp_path: Path):
    """Wherever a file is cut, and whatever is put to its end, it is refused, or all that is shown is still there."""
    intact = INTACT[name]
    whole = np.stack(frames(tmp_path, intact, colour=True))
    refusals = 0
    for place in np.linspace(12, len(intact) - 1, 40).astype(int):
        try:
            read = np.stack(frames(tmp_path, intact[:place] + end, colour=True))
        except UnusableFileError:
            refusals += 1
        else:
            np.testing.assert_array_equal(read, whole)
    assert refusals >= 38


def test_a_jpeg_that_ends_at_a_restart_is_refused(tmp_path: Path):
    """Where a cut leaves whole intervals, a decoder misses no bit, only the markers that follow."""
    intact = encoded(NOISE, "JPEG", restart_marker_blocks=2)
    places = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", intact)]
    assert len(places) == 5
    for place in places:
        assert "cut or damaged" in refused(tmp_path, intact[:place] + b"\xff\xd9")


@pytest.mark.parametrize("form", ["jpeg", "lzma"])
def test_a_cut_strip_of_a_tiff_is_refused(form: str, tmp_path: Path):
    """JPEG inside a TIFF that ends too early; a compression whose decoder does not notice is not read."""
    content = encoded(COLOURS, "TIFF", compression=form)
    with Image.open(io.BytesIO(content)) as image:
        (begin,), (length,) = image.tag_v2[273], image.tag_v2[279]
    if form == "jpeg":
        assert np.corrcoef(frames(tmp_path, content)[0].ravel(), luma(COLOURS).ravel())[0, 1] > 0.8
    for part in (0.4, 0.7, 0.95):
        place = begin + int(length * part)
        rest = (b"\xff\xd9" if form == "jpeg" else b"").ljust(begin + length - place, b"\0")
        assert refused(tmp_path, content[:place] + rest + content[begin + length :])


def test_a_film_that_ends_between_two_frames_is_refused(tmp_path: Path):
    """A GIF goes on to its end mark."""
    first, other = encoded(NOISE, "GIF"), INTACT["film.gif"]
    extension = other.rindex(b"\x21\xf9\x04")
    assert "cut or damaged" in refused(tmp_path, other[:extension])
    assert len(frames(tmp_path, first + b"trailing")) == 1


def test_a_picture_of_too_few_rows_is_refused(tmp_path: Path):
    """A PNG whose stream ends after half of the rows, which Pillow leaves black; nor is a flipped bit read."""
    rows = b"".join(b"\0" + row.tobytes() for row in NOISE[:12])
    assert "cut or damaged" in refused(tmp_path, png(NOISE, 8, 0, rows=rows))
    flipped = bytearray(png(NOISE, 8, 0))
    flipped[60] ^= 1
    assert "cannot read the image" in refused(tmp_path, bytes(flipped))


@pytest.mark.parametrize("interlaced", range(1, 10))
def test_interlaced_pictures_are_whole(interlaced: int, tmp_path: Path):
    """Adam7 of any small size, of which some passes are empty."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    for width in range(1, 10):
        pixels = NOISE[:interlaced, :width]
        rows = b"".join(
            b"\0" + row.tobytes()
            for x, y, dx, dy in passes
            for row in pixels[y::dy, x::dx]
            if pixels[y::dy, x::dx].size
        )
        content = bytearray(png(pixels, 8, 0, rows=rows))
        content[28] = 1
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        np.testing.assert_array_equal(frames(tmp_path, bytes(content))[0], pixels)


def test_pictures_without_pixels_are_refused(tmp_path: Path):
    """A width or a height of zero is no picture, in any format."""
    bitmap = bytearray(encoded(NOISE, "BMP"))
    bitmap[18:22] = bytes(4)
    page = tiff((RAMP[:0], {}))
    for content in (bytes(bitmap), page, png(NOISE[:0], 8, 0), b"", b"\xff\xd8\xff\xd9"):
        assert refused(tmp_path, content)


def test_one_image_is_not_the_first_of_several(tmp_path: Path):
    """Where a layout names one image a file, a film is refused."""
    (tmp_path / "a.png").write_bytes(INTACT["film.png"])
    with pytest.raises(UnusableFileError, match="holds 3 pages, not the 1"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "names",
    [
        ["1", "2", "10"],
        ["img1", "IMG2", "img10"],
        ["f01", "f1", "f002", "f10"],
        ["9" * 400, "1" + "0" * 400],
        ["\N{ARABIC-INDIC DIGIT TWO}", "3", "\N{ARABIC-INDIC DIGIT ONE}0"],
        ["\N{FULLWIDTH DIGIT TWO}", "\N{FULLWIDTH DIGIT ONE}1"],
        ["v1f2", "v1f10", "v2f1"],
        ["2025-9-30", "2025-10-1"],
        ["e\N{COMBINING ACUTE ACCENT}2", "\N{LATIN SMALL LETTER E WITH ACUTE}10"],
        ["0" * 5_000 + "1", "9" * 4_400],
    ],
)
def test_names_are_in_natural_order(names: list[str]):
    """Numbers count and not their digits, case or script; equal numbers keep one order, whichever came first."""
    mixed = np.random.default_rng(0).permutation(names).tolist()
    assert sorted(mixed, key=natural) == sorted(names, key=natural) == names


@pytest.mark.parametrize(
    ("names", "guess"),
    [
        (["1", "2", "10"], False),
        (["IMG_1", "img_2"], False),
        (["scan"], False),
        (["left", "right"], True),
        (["a1", "b1"], True),
        (["a1", "b2"], True),
        (["1", "01"], True),
        (["visit1", "visit2_repeated"], True),
        (["2026-01-31", "2026-02-01"], False),
        (["31.01.2026", "01.02.2026"], True),
        (["12-31-2026 1", "01-02-2027 1"], True),
        (["scan_31.12.25", "scan_05.01.26"], True),
        (["1.1.26", "2.1.26"], True),
        (["12-2025", "01-2026"], True),
        (["scan 12.2025", "scan 1.2026"], True),
        (["31.12.", "05.01."], True),
        (["31122025", "05012026"], True),
        (["scan 12312025", "scan 01052026"], True),
        (["20251231", "20260105"], False),
        (["31-12-25", "05-01-26"], True),
        (["25-12-31", "26-01-05"], True),  # or the 26th of January 2005
        (["25-12-31", "26-13-05"], False),
        (["01-02-03", "01-02-04"], False),
        (["0.25", "0.5"], True),
        (["t0,5 s", "t0,25 s"], True),
        (["1.9", "1.10"], True),
        (["0.25", "0.50", "1.75"], False),
        (["1.2.840.10008", "1.2.840.10009"], False),
        (["1.2.84.1", "1.2.84.2"], False),
        (["P12-2025", "P12-2026"], False),
        (["2026-01-2025", "2026-02-2025"], False),
        (["image_1_2025", "image_2_2025"], False),
    ],
)
def test_an_order_that_is_a_guess_is_known(names: list[str], guess: bool):
    """Names that words tell apart, or dates that begin with the day, do not say which is first."""
    assert order_is_a_guess(names) is guess
