"""DICOM reader: sequences of a folder of files, or of one file.

A multi-frame file is a sequence of its own. Single-frame files of one patient make one sequence, ordered by study,
series, acquisition and instance. In a folder, files that are no picture of a patient (reports, waveforms, doses,
segmentations) and copies of an image are ignored. Labels come from an optional `labels.csv` (patient, label) in the
folder. Errors name files and never quote their tags.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import UID, EnhancedUSVolumeStorage

from fedpp.errors import NoImageError, RawDataError, UnusableFileError
from fedpp.imaging.dicom.dicom_codecs import frame_count
from fedpp.imaging.dicom.dicom_file import DAMAGE, frames_announced, has_mark, opened, quiet
from fedpp.imaging.dicom.dicom_pixels import display_frame
from fedpp.imaging.readers.folders import files_below
from fedpp.imaging.readers.patient_labels import labelled
from fedpp.imaging.reasons import Reason
from fedpp.imaging.sequence import DecodedLater, Frame, FrameFile, FrameFiles, ImageSequence, Refuse, refuse

_SUFFIXES = {".dcm", ".dicom"}
_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)", re.ASCII)  # DICOM PS3.5, 6.2: DA, and as it was before 1993
_CLOCK = re.compile(r"(\d\d)(?::?(\d\d)(?::?(\d\d)(?:\.(\d{1,6}))?)?)?", re.ASCII)  # TM

# Modalities without a picture of a patient, for files without a known SOP class: DICOM PS3.3, C.7.3.1.1.1.
# fmt: off
NO_PICTURE = frozenset((
    "ANN", "ASMT", "AU", "DOC", "ECG", "EEG", "EMG", "EOG", "EPS", "FID", "HD", "IOL", "KER", "KO", "LEN", "M3D",
    "OAM", "OPM", "OPV", "PLAN", "POS", "PR", "REG", "RESP", "RTDOSE", "RTINTENT", "RTPLAN", "RTRAD",
    "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SMR", "SR", "SRF", "STAIN", "TEXTUREMAP", "VA",
))
# fmt: on

Order = tuple[str, str, str, int, str, int, int, str]


@dataclass(frozen=True)
class _Image:
    """Metadata of a file's image, from its tags."""

    file: Path
    name: str
    patient: str
    moment: datetime | None
    order: Order
    frames: int


def is_dicom(file: Path) -> bool:
    """Tell whether a file has DICOM's mark or suffix; raise `RawDataError` if it cannot be opened."""
    if file.name.startswith("."):  # metadata of desktop systems
        return False
    return file.suffix.lower() in _SUFFIXES or has_mark(file)


def read_dicom(path: Path, refuse: Refuse = refuse) -> tuple[list[ImageSequence], int, int]:
    """Return the sequences of a folder or file, the number of image files, and the number of ignored files.

    In a folder, a file that cannot be used goes to `refuse`, and is skipped if that returns; one without a picture,
    or a copy of another file, goes there with a `NoImageError`. Raises `RawDataError` for a single file that cannot
    be used, or if there is no image at all.
    """
    if path.is_file():
        return _grouped([_image(path, single=True)]), 1, 0
    images, ignored = _images(path, refuse)
    if not images:
        raise RawDataError(f"{path} holds no DICOM image")
    return labelled(_grouped(images), path), len(images), ignored


def _images(folder: Path, refuse: Refuse) -> tuple[list[_Image], int]:
    """Return the images of a folder, and the number of files that are no picture, or a copy."""
    images: dict[str, _Image] = {}
    ignored = 0
    for file in _marked(files_below(folder, refuse), refuse):
        try:
            image = _image(file)
            first = images.setdefault(image.name, image)
            if first is not image:
                message = f"{file} is a copy of {first.file} (same SOPInstanceUID): remove one of them"
                raise NoImageError(message, Reason.COPY)
        except UnusableFileError as error:
            refuse(file, error)
            ignored += isinstance(error, NoImageError)
    return list(images.values()), ignored


def _grouped(images: Iterable[_Image]) -> list[ImageSequence]:
    """Return a sequence for each multi-frame file, and then one for each patient's other files."""
    sequences = []
    visits: dict[str, list[_Image]] = {}
    for image in images:
        if image.frames > 1:
            frames = FrameFiles([FrameFile(image.file, image.frames, _frames)])
            sequences.append(ImageSequence(image.name, image.patient, None, frames))
        else:
            visits.setdefault(image.patient, []).append(image)
    return sequences + [_visits(patient, of_patient) for patient, of_patient in visits.items()]


def _marked(files: Iterable[Path], refuse: Refuse) -> list[Path]:
    """Return the files that are DICOM; one that cannot be opened goes to `refuse`, since it may be."""
    marked = []
    for file in files:
        try:
            if is_dicom(file):
                marked.append(file)
        except UnusableFileError as error:
            refuse(file, error)
    return marked


@quiet()
def _image(file: Path, *, single: bool = False) -> _Image:
    image = opened(file)
    try:
        _check_picture(image, file)
        patient = str(image.get("PatientID") or "").strip()
        if not patient and not single:
            message = f"{file} names no patient (PatientID), so no split by patient is safe: add it"
            raise UnusableFileError(message, Reason.NO_PATIENT)
        moment = _moment(image)
        return _Image(
            file,
            str(image.get("SOPInstanceUID") or file),
            patient or f"file {file}",
            moment,
            _order(image, moment, file),
            frames_announced(image, file),
        )
    except DAMAGE as error:
        message = f"{file} has a damaged tag among patient, date and numbers: {type(error).__name__}"
        raise UnusableFileError(message, Reason.DAMAGED) from None


def _check_picture(image: pydicom.Dataset, file: Path) -> None:
    """Raise `NoImageError` for a file without a picture of a patient: by its SOP class, or else by its modality."""
    kind = UID(str(image.get("SOPClassUID") or ""))
    if kind.type == "SOP Class" and "Storage" in kind.name:
        picture, named = "Image Storage" in kind.name or kind == EnhancedUSVolumeStorage, kind.name
    else:
        modality = str(image.get("Modality") or "")
        picture, named = modality not in NO_PICTURE, f"modality {modality}"
    if not picture:
        message = f"{file} holds no image of a patient, but {named}: name a DICOM file with a picture"
        raise NoImageError(message, Reason.NO_PICTURE)
    if "PixelData" not in image:
        raise NoImageError(f"{file} holds no image: name a DICOM file with pixels", Reason.NO_PICTURE)


def _moment(image: pydicom.Dataset) -> datetime | None:
    """Return the time of an image's study, or else of its acquisition or content; midnight for a date alone."""
    for event in ("Study", "Acquisition", "Content"):
        day = _DATE.fullmatch(str(image.get(f"{event}Date") or "").strip())
        clock = _CLOCK.fullmatch(str(image.get(f"{event}Time") or "").strip() or "00")
        if day and clock:
            year, month, date, hour, minute, second = map(int, (*day.groups(), *clock.groups(default="0")[:3]))
            fraction = int((clock[4] or "").ljust(6, "0"))
            try:
                return datetime(year, month, date, hour, minute, min(second, 59), fraction)  # noqa: DTZ001  DICOM has none
            except ValueError:
                continue
    return None


def _order(image: pydicom.Dataset, moment: datetime | None, file: Path) -> Order:
    """Return an image's sort key among its patient's; images of a series, and of a study, stay together."""
    if moment is None:
        day, clock = str(image.get("StudyDate") or ""), str(image.get("StudyTime") or "")
    else:
        day, clock = f"{moment:%Y%m%d}".zfill(8), f"{moment:%H%M%S.%f}"
    return (
        day,
        clock,
        str(image.get("StudyInstanceUID") or ""),
        int(image.get("SeriesNumber") or 0),
        str(image.get("SeriesInstanceUID") or ""),
        int(image.get("AcquisitionNumber") or 0),
        int(image.get("InstanceNumber") or 0),
        str(file),
    )


def _visits(patient: str, images: list[_Image]) -> ImageSequence:
    ordered = sorted(images, key=lambda image: image.order)
    moments = [image.moment for image in ordered if image.moment is not None]
    times = None
    if len(moments) == len(ordered):
        times = tuple((moment - moments[0]).total_seconds() / 86_400 for moment in moments)
    frames = FrameFiles([FrameFile(image.file, 1, _frames) for image in ordered])
    return ImageSequence("visits", patient, None, frames, times=times)


def _frames(file: Path, count: int, *, colour: bool = False) -> Sequence[Frame]:
    with quiet():
        image = opened(file)
        try:
            held = frame_count(image)
        except DAMAGE as error:
            raise _undecoded(file, image, error) from None
    if held != count:
        message = f"{file} announces {count} frames and holds {held}: get the whole file again"
        raise UnusableFileError(message, Reason.DAMAGED)

    def decoded(number: int) -> Frame:
        with quiet():
            try:
                frame = display_frame(image, number, colour=colour)
            except DAMAGE as error:
                raise _undecoded(file, image, error) from None
        if not np.isfinite(frame).all():
            raise UnusableFileError(f"{file} holds pixels that are not finite", Reason.DAMAGED)
        return frame

    return DecodedLater(count, decoded)


def _undecoded(file: Path, image: pydicom.Dataset, error: Exception) -> UnusableFileError:
    """Return an error that does not quote pydicom's, which may quote a tag."""
    kind, reason = Reason.DAMAGED, f"its pixels or the tags that describe them are damaged ({type(error).__name__})"
    # pydicom raises RuntimeError for a decoder that is missing, and for one that failed
    if isinstance(error, NotImplementedError) or "missing dependencies" in str(error):
        syntax = " ".join(image.file_meta.TransferSyntaxUID.name.split())
        kind, reason = Reason.NO_DECODER, f"no decoder for its transfer syntax {syntax} is installed"
    elif "number of bytes of pixel data" in str(error):
        reason = "it holds fewer pixels than its header says; get the whole file again"
    return UnusableFileError(f"cannot decode the pixels of {file}: {reason}", kind)
