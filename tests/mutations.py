"""Damages images of all kinds, reads them in a process of limited memory, and reports what happened."""

import io
import resource
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from imagecodecs import jpeg2k_encode, jpeg8_encode, jpegls_encode
from picture_files import encoded, tiff
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import compress
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
)

from fedpp.errors import FedppError
from fedpp.imaging.readers.layout import read_sequences

MEMORY = 2 * 2**30  # bytes of address space that reading may add
HOSTILE = (0, 1, 2**7, 2**8 - 1, 2**15, 60_000, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 2, 2**32 - 1)

Generator = np.random.Generator


@dataclass(frozen=True)
class Reading:
    """What became of a number of damaged files."""

    files: int
    refused: int
    slowest: float  # seconds
    slowest_name: str
    growth: int  # bytes, of the largest size that the process has had
    wrong: list[str]  # what ended in anything but a good read or one line


def sources(real: Path) -> dict[str, bytes]:
    """Return intact files by name: made here, and real DICOM files of up to 100 kB."""
    made = {f"{name}.png": content for name, content in _pngs().items()} | _others()
    made |= {f"{name}.dcm": content for name, content in _dicoms().items()}
    small = (file for file in sorted(real.glob("*.dcm")) if file.stat().st_size < 100_000)
    return made | {f"real {file.name}": file.read_bytes() for file in small}


def read_damaged(intact: dict[str, bytes], seed: int, count: int, folder: Path) -> Reading:
    """Damage `count` files, in turn of each kind and in each way, read them, and report."""
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    generator = np.random.default_rng(seed)
    names = list(intact)
    refused, slowest, slowest_name, wrong = 0, 0.0, "", []
    for number in range(count):
        name, damage = names[number % len(names)], DAMAGES[number // len(names) % len(DAMAGES)]
        shown = f"{name}, {damage.__name__}, seed {seed}, number {number}"
        raw = _written(folder, name, damage(intact[name], generator))
        started = time.perf_counter()
        try:
            _read(raw)
        except FedppError as error:
            refused += 1
            if "\n" in str(error) or raw.name not in str(error):
                wrong.append(f"{shown}: refused with {error}")
        except BaseException as error:  # noqa: BLE001  all else is what is looked for
            wrong.append(f"{shown}: {type(error).__name__}: {error}")
        taken = time.perf_counter() - started
        slowest, slowest_name = max((slowest, slowest_name), (taken, shown))
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return Reading(count, refused, slowest, slowest_name, growth, wrong)


def _written(folder: Path, name: str, content: bytes) -> Path:
    """Write a file, and return what its reader takes: a DICOM file, or the folder of a patient's folder."""
    raw = folder / ("damaged.dcm" if name.endswith(".dcm") else "damaged")
    file = raw if raw.suffix else raw / "patient" / "image.png"  # whatever it is: its name does not count
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return raw


def _read(raw: Path) -> None:
    for sequence in read_sequences(raw, "dicom" if raw.suffix else "images")[0]:
        read = 0
        for frame in sequence.frames:
            read += 1
            if frame.ndim != 2 or frame.dtype != np.float64 or not np.isfinite(frame).all():
                raise AssertionError(f"a frame of {frame.dtype}, {frame.shape}")
        if not 0 < read == len(sequence.frames):
            raise AssertionError(f"{read} frames of {len(sequence.frames)}")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def overwritten(content: bytes, generator: Generator) -> bytes:
    """Write random bytes over some."""
    return _over(content, generator, len(content))


def overwritten_header(content: bytes, generator: Generator) -> bytes:
    """Write random bytes over some of the first."""
    return _over(content, generator, min(len(content), 1200))


def cut(content: bytes, generator: Generator) -> bytes:
    """Leave the end away."""
    return content[: generator.integers(len(content))]


def shifted(content: bytes, generator: Generator) -> bytes:
    """Take a piece out, or put it in twice."""
    first, end = np.sort(generator.integers(len(content), size=2))
    return content[:end] + content[first if generator.integers(2) else end :]


def hostile_number(content: bytes, generator: Generator) -> bytes:
    """Write a number that is too large, or the last before that, over two or four bytes."""
    value, size = HOSTILE[generator.integers(len(HOSTILE))], int(generator.choice((2, 4)))
    order = ("little", "big")[generator.integers(2)]
    place = int(generator.integers(min(len(content), 1200)))
    number = (value % 2 ** (8 * size)).to_bytes(size, order)
    return content[:place] + number + content[place + size :]


def hostile_size(content: bytes, generator: Generator) -> bytes:
    """Write a hostile size into the header: of a PNG with the right checksum, of DICOM in rows, columns or frames."""
    side = HOSTILE[generator.integers(len(HOSTILE))]
    if content.startswith(b"\x89PNG"):
        header = bytearray(content[12:29])
        place = 4 + 4 * generator.integers(2)
        header[place : place + 4] = side.to_bytes(4, "big")
        if generator.integers(2):
            header[4:12] = (60_000).to_bytes(4, "big") * 2
        return content[:12] + bytes(header) + zlib.crc32(header).to_bytes(4, "big") + content[33:]
    for tag in (b"\x28\x00\x10\x00", b"\x28\x00\x11\x00", b"\x28\x00\x00\x01", b"\x28\x00\x01\x01"):
        place = content.find(tag)
        if place > 0 and generator.integers(2):
            content = content[: place + 8] + (side % 2**16).to_bytes(2, "little") + content[place + 10 :]
    place = content.find(b"\x28\x00\x08\x00IS")
    if place > 0 and generator.integers(2):
        length = int.from_bytes(content[place + 6 : place + 8], "little")
        frames = str(side).encode()[:length].ljust(length)
        content = content[: place + 8] + frames + content[place + 8 + length :]
    return content


DAMAGES: tuple[Callable[[bytes, Generator], bytes], ...] = (
    overwritten,
    overwritten_header,
    cut,
    shifted,
    hostile_number,
    hostile_size,
)


def _over(content: bytes, generator: Generator, end: int) -> bytes:
    damaged = bytearray(content)
    for place in generator.integers(end, size=generator.integers(1, 12)):
        damaged[place] = generator.integers(256)
    return bytes(damaged)


def _pngs() -> dict[str, bytes]:
    ramp = np.add.outer(np.arange(40), np.arange(50))
    grey = Image.fromarray((2 * ramp).astype(np.uint8))
    images: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "grey": (grey, {}),
        "deep": (Image.fromarray((400 * ramp).astype(np.uint16)), {}),
        "colour": (Image.merge("RGBA", (grey, grey, grey, grey)), {}),
        "palette": (grey.quantize(16), {"transparency": 3}),
        "one bit": (grey.convert("1"), {}),
        "animated": (grey, {"save_all": True, "append_images": [grey.rotate(90), grey.rotate(180)]}),
    }
    contents = {}
    for name, (image, options) in images.items():
        content = io.BytesIO()
        image.save(content, "PNG", **options)
        contents[name] = content.getvalue()
    return contents


def _others() -> dict[str, bytes]:
    ramp = (2 * np.add.outer(np.arange(40), np.arange(50))).astype(np.uint8)
    grey, colour = Image.fromarray(ramp), Image.fromarray(np.dstack([ramp, ramp[::-1], ramp[:, ::-1]]))
    film = {"save_all": True, "append_images": [grey.rotate(90), grey.rotate(180)]}
    exif = Image.Exif()
    exif[274] = 6
    return {
        "turned.jpg": encoded(grey, "JPEG", exif=exif),
        "progressive.jpg": encoded(colour, "JPEG", progressive=True),
        "restarts.jpg": encoded(colour, "JPEG", restart_marker_blocks=4),
        "thumbnail.jpg": encoded(colour, "MPO", save_all=True, append_images=[colour.reduce(4)]),
        "film.gif": encoded(grey, "GIF", **film),
        "film.webp": encoded(colour, "WEBP", **film),
        "still.webp": encoded(colour, "WEBP", exif=exif),
        "pyramid.tif": tiff((ramp, {262: 0}), (ramp[::2, ::2].copy(), {254: 1})),
        "deep.tif": tiff((ramp.astype(np.uint16) * 257, {274: 3}), (ramp, {}), order=">"),
        "jpeg.tif": encoded(colour, "TIFF", compression="jpeg"),
        "lzw.tif": encoded(colour, "TIFF", compression="tiff_lzw"),
        "fax.tif": encoded(grey.convert("1"), "TIFF", compression="group4"),
        "plain.bmp": encoded(colour, "BMP"),
    }


def _dicoms() -> dict[str, bytes]:
    ramp = np.add.outer(np.arange(40), np.arange(50))
    grey, deep = (2 * ramp).astype(np.uint8), (400 * ramp).astype(np.uint16)
    colour = np.stack([grey, grey[::-1], grey], -1)
    jpegs = [bytes(jpeg8_encode(image)) for image in (grey, grey[::-1])]
    lossless = bytes(jpeg8_encode(deep, lossless=True, bitspersample=16))
    return {
        "plain": _dicom(ExplicitVRLittleEndian, grey, grey.tobytes()),
        "implicit": _dicom(ImplicitVRLittleEndian, deep, deep.tobytes()),
        "colour": _dicom(ExplicitVRLittleEndian, colour, colour.tobytes()),
        "cine": _dicom(ExplicitVRLittleEndian, grey, grey.tobytes() * 5, 5),
        "deflated": _dicom(DeflatedExplicitVRLittleEndian, grey, grey.tobytes() * 3, 3),
        "run lengths": _run_lengths(deep),
        "jpeg": _dicom(JPEGBaseline8Bit, grey, encapsulate(jpegs), 2),
        "jpeg 2000": _dicom(JPEG2000Lossless, deep, encapsulate([jpeg2k_encode(deep, codecformat="j2k")])),
        "jpeg lossless": _dicom(JPEGLosslessSV1, deep, encapsulate([lossless])),
        "jpeg-ls": _dicom(JPEGLSLossless, colour, encapsulate([bytes(jpegls_encode(colour))] * 3), 3),
    }


def _image(syntax: str, stored: np.ndarray, pixels: bytes, frames: int = 1) -> Dataset:
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = UltrasoundMultiFrameImageStorage, "1.2.3"
    image.PatientID, image.StudyDate, image.NumberOfFrames = "p", "20240101", f"{frames:06}"
    image.SamplesPerPixel, image.PhotometricInterpretation = (3, "RGB") if stored.ndim == 3 else (1, "MONOCHROME2")
    image.Rows, image.Columns, image.PlanarConfiguration = *stored.shape[:2], 0
    bits = 8 * stored.dtype.itemsize
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = bits, bits, bits - 1, 0
    image.WindowCenter, image.WindowWidth, image.RescaleSlope, image.RescaleIntercept = 100, 200, 2, -50
    image.PixelData = pixels
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    image["PixelData"].VR = "OW" if bits == 16 else "OB"
    return image


def _saved(image: Dataset) -> bytes:
    content = io.BytesIO()
    image.save_as(content, enforce_file_format=True)
    return content.getvalue()


def _dicom(syntax: str, stored: np.ndarray, pixels: bytes, frames: int = 1) -> bytes:
    return _saved(_image(syntax, stored, pixels, frames))


def _run_lengths(stored: np.ndarray) -> bytes:
    image = _image(ExplicitVRLittleEndian, stored, stored.tobytes())
    compress(image, RLELossless)
    return _saved(image)
