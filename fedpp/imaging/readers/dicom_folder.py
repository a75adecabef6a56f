"""DICOM reader: sequences of a folder of files, or of one file.

A multi-frame file is a sequence of its own. Single-frame files of one patient make one sequence, ordered by study,
series, acquisition and instance. In a folder, files that are no picture of a patient (reports, waveforms, doses,
segmentations) and copies of an image are ignored; one SOPInstanceUID with other pixels or another patient is an
unusable file. Labels come from an optional `labels.csv` (patient, label) in the
folder. Errors name files and never quote their tags.
"""

import filecmp
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom
from pydicom.uid import UID, EnhancedUSVolumeStorage, VLWholeSlideMicroscopyImageStorage

from fedpp.errors import NoImageError, RawDataError, UnusableFileError
from fedpp.imaging.dicom.dicom_codecs import frame_count, stored_frame
from fedpp.imaging.dicom.dicom_file import DAMAGE, frames_announced, is_dicom_content, opened, quiet, require_syntax
from fedpp.imaging.dicom.dicom_order import LIFETIME, Place, day_of, frame_order, in_order, place_of
from fedpp.imaging.dicom.dicom_pixels import display_frame
from fedpp.imaging.dicom.dicom_tags import TagError, text
from fedpp.imaging.readers.folders import files_below
from fedpp.imaging.readers.patient_labels import labelled
from fedpp.imaging.reasons import Doubt, Reason
from fedpp.imaging.sequence import DecodedLater, Frame, FrameFile, FrameFiles, ImageSequence, Refuse, refuse
from fedpp.texts import counted

T = TypeVar("T")

DICOM_SUFFIXES = frozenset((".dcm", ".dicom"))
# Modalities without a picture of a patient, for files without a known SOP class: DICOM PS3.3, C.7.3.1.1.1.
# fmt: off
NO_PICTURE = frozenset((
    "ANN", "ASMT", "AU", "DOC", "ECG", "EEG", "EMG", "EOG", "EPS", "FID", "HD", "IOL", "KER", "KO", "LEN", "M3D",
    "OAM", "OPM", "OPV", "PLAN", "POS", "PR", "REG", "RESP", "RTDOSE", "RTINTENT", "RTPLAN", "RTRAD",
    "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SMR", "SR", "SRF", "STAIN", "TEXTUREMAP", "VA",
))
# fmt: on
_SLIDES_OWN = {"LABEL", "OVERVIEW"}  # third value of ImageType: DICOM PS3.3, C.8.12.4.1.1


@dataclass(frozen=True)
class _Image:
    """Metadata of a file's image, from its tags."""

    name: str
    patient: str
    place: Place
    frames: int
    issuer: str
    birth_date: str
    doubts: tuple[Doubt, ...]  # about its frames

    @property
    def file(self) -> Path:
        return self.place.file


def is_dicom(file: Path) -> bool:
    """Tell whether a file has DICOM's content or suffix; raise `RawDataError` if it cannot be opened."""
    hidden = file.name.startswith(".")  # perhaps metadata of desktop systems, whatever its suffix
    return (file.suffix.lower() in DICOM_SUFFIXES and not hidden) or is_dicom_content(file)


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
                raise _repeated(image, first)
        except UnusableFileError as error:
            refuse(file, error)
            ignored += isinstance(error, NoImageError)
    return list(images.values()), ignored


def _repeated(image: _Image, first: _Image) -> UnusableFileError:
    """Return the error of an image that has the SOPInstanceUID of another: a copy, unless it shows something else."""
    if image.patient == first.patient and (
        filecmp.cmp(image.file, first.file, shallow=False) or _has_equal_pixels(image, first)
    ):
        message = f"{image.file} is a copy of {first.file} (same SOPInstanceUID): remove one of them"
        return NoImageError(message, Reason.COPY)
    other = "other pixels" if image.patient == first.patient else "another patient"
    message = f"{image.file} has the SOPInstanceUID of {first.file} and {other}: keep the right one"
    return UnusableFileError(message, Reason.SAME_UID)


@quiet()
def _has_equal_pixels(one: _Image, other: _Image) -> bool:
    """Tell whether two files hold the same pixels, perhaps in two encodings; raise for one that cannot be decoded."""
    if one.frames != other.frames:
        return False
    files = [(image.file, _opened(image.file, image.frames)) for image in (one, other)]
    for number in range(one.frames):
        first, second = (_decoded(file, opened, stored_frame, number) for file, opened in files)
        if not np.array_equal(first, second):
            return False
    return True


def _grouped(images: Sequence[_Image]) -> list[ImageSequence]:
    """Return a sequence for each multi-frame file, and then one for each patient's other files."""
    by_patient: dict[str, list[_Image]] = {}
    for image in images:
        by_patient.setdefault(image.patient, []).append(image)
    doubts = {patient: _doubts(of_patient) for patient, of_patient in by_patient.items()}
    cines = [
        ImageSequence(
            image.name,
            image.patient,
            None,
            FrameFiles([FrameFile(image.file, image.frames, _frames)]),
            doubts=(*image.doubts, *doubts[image.patient]),
        )
        for image in images
        if image.frames > 1
    ]
    visits = {
        patient: [image for image in of_patient if image.frames == 1] for patient, of_patient in by_patient.items()
    }
    return cines + [_visits(patient, single, doubts[patient]) for patient, single in visits.items() if single]


def _doubts(images: Iterable[_Image]) -> tuple[Doubt, ...]:
    """Return the doubts about whether a patient's images are one person's."""
    issuers, birth_dates = zip(*((image.issuer, image.birth_date) for image in images), strict=True)
    found = {Doubt.ISSUERS: set(issuers), Doubt.BIRTH_DATES: set(birth_dates)}
    return tuple(doubt for doubt, values in found.items() if len(values - {""}) > 1)


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
        patient = text(image, "PatientID")
        if not patient and not single:
            message = f"{file} names no patient (PatientID), so no split by patient is safe: add it"
            raise UnusableFileError(message, Reason.NO_PATIENT)
        require_syntax(image, file)
        birth_date = str(image.get("PatientBirthDate") or "").strip()
        frames = frames_announced(image, file)
        return _Image(
            str(image.get("SOPInstanceUID") or file),
            patient or f"file {file}",
            place_of(image, file),
            frames,
            " ".join(str(image.get("IssuerOfPatientID") or "").casefold().split()),
            str(day_of(birth_date) or birth_date),
            _doubts_of_frames(image, frames) if frames > 1 else (),
        )
    except DAMAGE as error:
        message = f"{file} has a damaged tag among patient, date and numbers: {type(error).__name__}"
        raise UnusableFileError(message, Reason.DAMAGED) from None


def _doubts_of_frames(image: pydicom.Dataset, frames: int) -> tuple[Doubt, ...]:
    width, height = (int(image.get(f"TotalPixelMatrix{side}") or 0) for side in ("Columns", "Rows"))
    tiled = width > int(image.get("Columns") or 0) or height > int(image.get("Rows") or 0)
    found = {Doubt.ORDER: frame_order(image, frames)[1] and not tiled, Doubt.TILES: tiled}
    return tuple(doubt for doubt, there in found.items() if there)


def _check_picture(image: pydicom.Dataset, file: Path) -> None:
    """Raise `NoImageError` for a file without a picture of a patient: by its SOP class, or else by its modality.

    Raises `UnusableFileError` for an image whose pixels are missing.
    """
    kind = UID(str(image.get("SOPClassUID") or ""))
    if kind.type == "SOP Class" and "Storage" in kind.name:
        picture, named = "Image Storage" in kind.name or kind == EnhancedUSVolumeStorage, kind.name
    else:
        modality = str(image.get("Modality") or "")
        picture, named = modality not in NO_PICTURE, f"modality {modality}"
    if not picture:
        message = f"{file} holds no image of a patient, but {named}: name a DICOM file with a picture"
        raise NoImageError(message, Reason.NO_PICTURE)
    if kind == VLWholeSlideMicroscopyImageStorage and not _SLIDES_OWN.isdisjoint(image.get("ImageType") or ()):
        message = f"{file} shows the label or the whole glass of a slide, on which a patient may be named: leave it out"
        raise NoImageError(message, Reason.NO_PICTURE)
    if "FloatPixelData" in image or "DoubleFloatPixelData" in image:
        message = f"{file} has pixels of floating-point numbers, which are not read: export it with whole ones"
        raise UnusableFileError(message, Reason.NO_DECODER)
    if "PixelData" not in image:
        named = kind or UID(str(image.file_meta.get("MediaStorageSOPClassUID") or ""))
        if "Image Storage" in named.name or "Rows" in image:
            message = f"{file} holds no pixels (PixelData), though it is an image: get the whole file again"
            raise UnusableFileError(message, Reason.DAMAGED)
        raise NoImageError(f"{file} holds no image: name a DICOM file with pixels", Reason.NO_PICTURE)


def _visits(patient: str, images: Iterable[_Image], doubts: tuple[Doubt, ...]) -> ImageSequence:
    places, is_guess = in_order(image.place for image in images)
    moments = [place.moment for place in places if place.moment is not None]
    times = None
    if len(moments) == len(places) and moments[-1] - moments[0] <= LIFETIME:
        times = tuple((moment - moments[0]).total_seconds() / 86_400 for moment in moments)
    frames = FrameFiles([FrameFile(place.file, 1, _frames) for place in places])
    doubts = (Doubt.ORDER, *doubts) if is_guess else doubts
    return ImageSequence("visits", patient, None, frames, times=times, doubts=doubts)


def _frames(file: Path, count: int, *, colour: bool = False) -> Sequence[Frame]:
    with quiet():
        image = _opened(file, count)
        order = _decoded(file, image, lambda opened, frames: frame_order(opened, frames)[0], count)

    def shown(number: int) -> Frame:
        with quiet():
            return _decoded(file, image, partial(display_frame, colour=colour), order[number])

    return DecodedLater(count, shown)


def _opened(file: Path, count: int) -> pydicom.Dataset:
    """Return a file's dataset; raise `UnusableFileError` if it holds another number of frames."""
    image = opened(file)
    try:
        held = frame_count(image)
    except DAMAGE as error:
        raise _undecoded(file, image, error) from None
    if held != count:
        message = f"{file} announces {counted(count, 'frame')} and holds {held}: get the whole file again"
        raise UnusableFileError(message, Reason.DAMAGED)
    return image


def _decoded(file: Path, image: pydicom.Dataset, decode: Callable[[pydicom.Dataset, int], T], number: int) -> T:
    try:
        return decode(image, number)
    except DAMAGE as error:
        raise _undecoded(file, image, error) from None


def _undecoded(file: Path, image: pydicom.Dataset, error: Exception) -> UnusableFileError:
    """Return an error that does not quote pydicom's, which may quote a tag."""
    if isinstance(error, TagError):
        return UnusableFileError(f"cannot decode the pixels of {file}: {error}", error.reason)
    kind, reason = Reason.DAMAGED, f"its pixels or the tags that describe them are damaged ({type(error).__name__})"
    # pydicom raises RuntimeError for a decoder that is missing, and for one that failed
    if isinstance(error, NotImplementedError) or "missing dependencies" in str(error):
        syntax = " ".join(image.file_meta.TransferSyntaxUID.name.split())
        kind, reason = Reason.NO_DECODER, f"no decoder for its transfer syntax {syntax} is installed"
    elif "number of bytes of pixel data" in str(error):
        reason = "it holds fewer pixels than its header says; get the whole file again"
    return UnusableFileError(f"cannot decode the pixels of {file}: {reason}", kind)
