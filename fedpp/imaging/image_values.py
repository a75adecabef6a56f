"""Values of one decoded picture: turned as it is shown, black is 0 and white 255 whatever its depth, opaque.

What is transparent is laid on black. Floating-point values have no depth and stay as they are stored.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from fedpp.imaging.sequence import Frame

WHITE = 255.0  # of a picture of 8 bits, to whose scale the others are brought
_BITS, _PHOTOMETRIC, _FORMAT = 258, 262, 339  # TIFF 6.0: BitsPerSample, PhotometricInterpretation, SampleFormat
_WHITE_IS_ZERO, _SIGNED = 0, 2
_PNG_STEPS = {"L;2": 85, "L;4": 17}  # to 8 bits, which Pillow takes with the pixels, not with the transparent value


@dataclass(frozen=True)
class Depth:
    """Depth of grey values: their bits, 0 for floating-point numbers, and the values of black and of white."""

    bits: int
    black: float
    white: float


EIGHT = Depth(8, 0.0, WHITE)


def depth_of(image: Image.Image) -> Depth:
    """Return the depth of a page's values as Pillow decodes them; it reduces deeper colours to 8 bits.

    Raises `ValueError` for a TIFF that does not say what its zero is.
    """
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if image.format == "TIFF" and _PHOTOMETRIC not in tags:
        raise ValueError("it does not say whether 0 is black or white (PhotometricInterpretation)")
    white_is_zero = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if image.mode == "F":
        return Depth(0, *(1.0, 0.0) if white_is_zero else (0.0, 1.0))
    signed = _first(tags.get(_FORMAT, 1)) == _SIGNED and image.mode in {"L", "I"}
    if not (signed or image.mode == "I" or image.mode.startswith("I;16")):
        return EIGHT  # Pillow inverts these itself
    bits = _first(tags.get(_BITS, 16))
    darkest = -(2.0 ** (bits - 1)) if signed else 0.0
    ends = (darkest, darkest + 2.0**bits - 1)
    return Depth(bits, *reversed(ends) if white_is_zero else ends)


def grey_or_colour(image: Image.Image, *, colour: bool) -> Frame:
    """Return a page's values `[height, width]`, or `[height, width, 3]` of a colour image if colour is wanted.

    Raises `ValueError` for a transparent colour that does not differ from others any more.
    """
    depth, form = depth_of(image), image.format  # loading and turning may take these away
    key = _transparent(image)
    image.load()
    if image.format != "TIFF":  # which Pillow turns itself
        image = ImageOps.exif_transpose(image)
    if depth != EIGHT:
        values = _scaled(np.asarray(image), depth)
        return values if key is None else np.where(np.asarray(image) == key, 0.0, values)
    if key is not None:
        image.info["transparency"] = key
    shown = image.convert("RGB") if form == "BMP" and _is_unseen(image) else _on_black(image)
    return np.asarray(shown.convert("RGB" if colour else "L"), dtype=np.float64)


def _scaled(stored: NDArray[np.generic], depth: Depth) -> Frame:
    """Return stored values with black at 0 and white at 255; floating-point values inverted if white is zero."""
    if stored.dtype == np.uint8:  # signed values that Pillow takes for others
        stored = stored.view(np.int8)
    elif stored.dtype == np.int32 and min(depth.black, depth.white) == 0:
        stored = stored.view(np.uint32)
    values = stored.astype(np.float64)
    if depth.bits == 0:
        return values if depth.black == 0 else depth.black - values
    scaled: Frame = (values - depth.black) * (WHITE / (depth.white - depth.black))
    return scaled


def _transparent(image: Image.Image) -> int | tuple[int, ...] | bytes | None:
    """Return the value of transparent pixels, on the scale of the decoded ones, or None; of a palette, as it is."""
    key: int | tuple[int, ...] | bytes | None = image.info.get("transparency")
    raw = image.tile[0].args if isinstance(image, PngImageFile) and image.tile else None
    if isinstance(key, int) and raw in _PNG_STEPS:
        return key * _PNG_STEPS[raw]
    if raw == "RGB;16B" and key not in {None, (0, 0, 0)}:
        raise ValueError("its transparent colour has 16 bits, which are not decoded: save it without one")
    return key


def _on_black(image: Image.Image) -> Image.Image:
    """Return a picture without transparency; CIELAB as RGB."""
    if image.mode == "LAB":
        return image.convert("RGB")
    if not image.has_transparency_data:
        return image
    shown = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if _is_unseen(shown):
        raise ValueError("all of it is transparent, over colours that differ: save it without transparency")
    return Image.alpha_composite(Image.new("RGBA", shown.size, (0, 0, 0, 255)), shown).convert("RGB")


def _is_unseen(image: Image.Image) -> bool:
    """Return whether an RGBA picture of several colours is transparent as a whole, usual in a BMP's fourth byte."""
    if image.mode != "RGBA":
        return False
    pixels = np.asarray(image)
    return not pixels[..., 3].any() and bool(np.ptp(pixels, axis=(0, 1)).any())


def _first(value: object) -> int:
    number = value[0] if isinstance(value, tuple) else value
    if not isinstance(number, int):
        raise TypeError(f"a tag holds {type(number).__name__} in the place of a whole number")
    return number
