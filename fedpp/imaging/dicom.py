"""DICOM: a folder of files, or one file, as grey sequences.

A multi-frame file is a sequence of its own. Single-frame files of one patient make one sequence, in the order
of study date and time, series and instance number. In a folder, files without an image (reports, waveforms)
are passed over. Labels come from an optional `labels.csv` (patient, label) in the folder. Errors name files
and never what their tags hold.
"""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError

from fedpp.errors import RawDataError

from .dicom_pixels import display_frames
from .patient_labels import label_of, read_labels
from .sequence import Frame, FrameFile, FrameFiles, ImageSequence

DEFERRED = 4096  # bytes: larger values, such as pixels, are read when they are used
MOST_PIXELS = 1_000_000_000  # of a file, all frames together: a header may claim any size
_SUFFIXES = {".dcm", ".dicom"}
_MARK_OFFSET, _MARK = 128, b"DICM"  # DICOM PS3.10, 7.1
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

# What pydicom raises on damaged files, in its parser, its conversion of values and its pixel decoders.
_DAMAGE = (
    BytesLengthException,
    InvalidDicomError,
    struct.error,
    zlib.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)

Order = tuple[str, str, int, int, str]


def is_dicom(file: Path) -> bool:
    """Tell whether a file carries the mark of DICOM, or claims to by its name."""
    if file.name.startswith("."):  # what desktops leave beside the files of other systems
        return False
    if file.suffix.lower() in _SUFFIXES:
        return True
    try:
        with file.open("rb") as content:
            content.seek(_MARK_OFFSET)
            return content.read(len(_MARK)) == _MARK
    except OSError:
        return False


def read_dicom(path: Path) -> tuple[list[ImageSequence], int, int]:
    """Return the sequences of a folder or file, the number of image files, and of files passed over.

    Raises `RawDataError` that names the file which cannot be read, or where there is no image at all.
    """
    single = path.is_file()
    files = [path] if single else sorted(f for f in path.rglob("*") if f.is_file() and is_dicom(f))
    labels = {} if single else read_labels(path)
    sequences: list[ImageSequence] = []
    visits: dict[str, list[tuple[Order, Path]]] = {}
    passed = 0
    for file in files:
        with _quiet():
            image = _opened(file)
            if not any(name in image for name in _PIXELS):
                if single:
                    raise RawDataError(f"{file} holds no image: name a DICOM file with pixels")
                passed += 1
                continue
            name, patient, order, count = _identity(image, file)
            if not patient:
                if not single:
                    raise RawDataError(f"{file} names no patient (PatientID), so no split by patient is safe: add it")
                patient = f"file {file}"
        if count > 1:
            frames = FrameFiles([FrameFile(file, count, _frames)])
            sequences.append(ImageSequence(name, patient, label_of(labels, patient, path), frames))
        else:
            visits.setdefault(patient, []).append((order, file))
    for patient, dated in visits.items():
        ordered = FrameFiles([FrameFile(file, 1, _frames) for _, file in sorted(dated)])
        sequences.append(ImageSequence("visits", patient, label_of(labels, patient, path), ordered))
    if not sequences:
        raise RawDataError(f"{path} holds no DICOM image")
    return sequences, len(files) - passed, passed


def _opened(file: Path) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(file, defer_size=DEFERRED)
    except InvalidDicomError:
        raise RawDataError(f"{file} is no DICOM file: its header lacks the mark DICM") from None
    except _DAMAGE as error:
        raise RawDataError(f"{file} is not readable as DICOM: {type(error).__name__}") from None


def _identity(image: pydicom.Dataset, file: Path) -> tuple[str, str, Order, int]:
    """Return the image's name, whose it is, where it stands among that patient's, and its number of frames."""
    try:
        count = max(1, int(image.get("NumberOfFrames") or 1))
        if max(1, int(image.get("Rows") or 0) * int(image.get("Columns") or 0)) * count > MOST_PIXELS:
            raise RawDataError(f"{file} claims more than {MOST_PIXELS} pixels: split it, or get the whole file again")
        name = str(image.get("SOPInstanceUID") or file.name)
        patient = str(image.get("PatientID") or "").strip()
        return (
            name,
            patient,
            (
                str(image.get("StudyDate") or ""),
                str(image.get("StudyTime") or ""),
                int(image.get("SeriesNumber") or 0),
                int(image.get("InstanceNumber") or 0),
                str(file),
            ),
            count,
        )
    except _DAMAGE as error:
        raise RawDataError(
            f"{file} has a damaged tag among patient, date and numbers: {type(error).__name__}"
        ) from None


def _frames(file: Path, count: int) -> tuple[Frame, ...]:
    with _quiet():
        image = _opened(file)
        try:
            frames = tuple(display_frames(image))
        except _DAMAGE as error:
            raise RawDataError(f"cannot decode the pixels of {file}: {_reason(image, error)}") from None
    if len(frames) != count:
        raise RawDataError(f"{file} announces {count} frames and holds {len(frames)}: get the whole file again")
    if not all(np.isfinite(frame).all() for frame in frames):
        raise RawDataError(f"{file} holds pixels that are not finite")
    return frames


def _reason(image: pydicom.Dataset, error: Exception) -> str:
    """Say what is wrong without quoting the error, which may quote a tag."""
    # pydicom raises RuntimeError for a decoder that is missing, and for one that failed
    if isinstance(error, NotImplementedError) or "missing dependencies" in str(error):
        syntax = " ".join(image.file_meta.TransferSyntaxUID.name.split())
        return f"no decoder for its transfer syntax {syntax} is installed"
    if "number of bytes of pixel data" in str(error):
        return "it holds fewer pixels than its header says; get the whole file again"
    return f"its pixels or the tags that describe them are damaged ({type(error).__name__})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom's warnings, which quote tags, off the terminal."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
