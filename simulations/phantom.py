"""Phantom hospitals: chest-like DICOM images of simulated patients with a growing or a stable lesion.

Lesion sizes of both classes overlap at every visit; contrast, place and background vary. The lesion's radius at the
last visit separates the classes with an AUC of about 0.8, its change over the visits separates them completely.

Hard phantoms are more like patients: some stable lesions swell and some growing ones hardly grow, so that the change
separates the classes with an AUC of about 0.97, and hospitals differ more in noise, in contrast and in how many of
their patients have a growing lesion.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

GROWING, STABLE = "growing", "stable"

_BITS = 12
_DAYS_BETWEEN_VISITS = 90
_RADII = (0.05, 0.14)  # mean over the visits, as a share of the image's side
_GROWTH = 2.2  # of the radius, from the first visit to the last

_GROWTH_SPREAD = 0.38  # of hard phantoms: standard deviation in both classes, as a share of the logarithm of _GROWTH
_GROWING_SHARES = (0.5, 0.4, 0.3)  # of a hard phantom hospital's patients

_PLACE = 0.03  # largest distance of the lesion from the middle of its lung
_BRIGHTNESS = (0.45, 0.55)

Image = NDArray[np.float64]


@dataclass(frozen=True)
class _Scanner:
    """Scanner of one hospital: contrast, noise and encoding of its images."""

    contrast: float
    noise: float  # standard deviation, as a share of the full range
    photometric: str
    slope: float  # rescale, stored to modality values
    intercept: float


_SCANNERS = (
    _Scanner(1.0, 0.02, "MONOCHROME2", 1.0, 0.0),
    _Scanner(0.75, 0.03, "MONOCHROME1", 1.0, 0.0),
    _Scanner(0.9, 0.025, "MONOCHROME2", 2.0, -1024.0),
)
_HARD_SCANNERS = (
    _Scanner(1.0, 0.02, "MONOCHROME2", 1.0, 0.0),
    _Scanner(0.6, 0.06, "MONOCHROME1", 1.0, 0.0),
    _Scanner(0.8, 0.04, "MONOCHROME2", 2.0, -1024.0),
)


@dataclass(frozen=True)
class _Patient:
    """Anatomy and lesion of one simulated patient; lengths are shares of the image's side."""

    identifier: str
    growing: bool
    lungs: tuple[float, float]  # half axes
    ribs: float  # phase
    lesion: tuple[float, float]  # row, column
    radii: tuple[float, ...]  # of the lesion, by visit
    brightness: float  # of the lesion


def write_phantom(
    folder: Path, *, hospitals: int, patients: int, visits: int, size: int, seed: int, hard: bool = False
) -> list[Path]:
    """Write `hospitals` folders of DICOM files and a labels.csv each; return the folders.

    Each has `patients` patients with `visits` images of `size` x `size` pixels; every second patient has a growing
    lesion, or fewer in `hard` phantoms. The same arguments give the same files.
    """
    folders = []
    for number in range(hospitals):
        generator = np.random.default_rng((seed, number))
        hospital = folder / f"hospital-{number + 1}"
        hospital.mkdir(parents=True)
        people = [
            _patient(f"PHANTOM-{number + 1}-{i + 1:04d}", bool(grows), visits, generator, hard=hard)
            for i, grows in enumerate(generator.permutation(_growing(number, patients, hard=hard)))
        ]
        scanners = _HARD_SCANNERS if hard else _SCANNERS
        for patient in people:
            _write_visits(hospital / patient.identifier, patient, scanners[number % len(scanners)], size, generator)
        with (hospital / "labels.csv").open("w", newline="") as content:
            table = csv.writer(content)
            table.writerow(("patient", "label"))
            table.writerows((p.identifier, GROWING if p.growing else STABLE) for p in people)
        folders.append(hospital)
    return folders


def _growing(hospital: int, patients: int, *, hard: bool) -> NDArray[np.bool_]:
    """Return for as many patients as the hospital has, not yet shuffled, whether their lesion grows."""
    number = np.arange(patients)
    growing: NDArray[np.bool_] = number % 2 == 0
    if hard:
        growing = number < round(_GROWING_SHARES[hospital % len(_GROWING_SHARES)] * patients)
    return growing


def _patient(
    identifier: str,
    growing: bool,  # noqa: FBT001
    visits: int,
    generator: np.random.Generator,
    *,
    hard: bool = False,
) -> _Patient:
    # Both classes share the distribution of the mean radius, which is wide compared with the growth.
    mean = np.exp(generator.uniform(*np.log(_RADII)))
    grown = growing + (generator.normal(0, _GROWTH_SPREAD) if hard else 0)
    radii = mean * _GROWTH ** (grown * np.linspace(-0.5, 0.5, visits)) * generator.uniform(0.97, 1.03, visits)
    return _Patient(
        identifier,
        growing,
        (generator.uniform(0.30, 0.36), generator.uniform(0.15, 0.18)),
        generator.uniform(0, 2 * np.pi),
        (0.5 + generator.uniform(-_PLACE, _PLACE), 0.26 + generator.uniform(-_PLACE, _PLACE)),
        tuple(radii),
        generator.uniform(*_BRIGHTNESS),
    )


def _drawn(patient: _Patient, radius: float, size: int, generator: np.random.Generator) -> Image:
    """Draw one visit, `[size, size]` within 0 .. 1: lungs dark, body, ribs and lesion bright."""
    jitter = generator.normal(0, 0.01, 2)
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size - jitter[:, None, None]

    def soft(distance: Image, width: float) -> Image:
        edge: Image = 1 / (1 + np.exp(np.clip(distance / width, -50, 50)))
        return edge

    body = soft(np.hypot((rows - 0.55) / 0.62, (columns - 0.5) / 0.46) - 1, 0.04)
    lungs = sum(
        soft(np.hypot((rows - 0.5) / patient.lungs[0], (columns - center) / patient.lungs[1]) - 1, 0.06)
        for center in (0.26, 0.74)
    )
    ribs = np.sin(2 * np.pi * (rows * 7 + (columns - 0.5) ** 2 * 3) + patient.ribs) ** 2
    distance = np.hypot(rows - patient.lesion[0], columns - patient.lesion[1])
    lesion = soft(distance - radius, 0.012)
    image: Image = 0.65 * body - 0.4 * lungs + 0.06 * ribs * body + patient.brightness * lesion
    return image


def _write_visits(
    folder: Path, patient: _Patient, scanner: _Scanner, size: int, generator: np.random.Generator
) -> None:
    folder.mkdir()
    top = 2**_BITS - 1
    for visit, radius in enumerate(patient.radii):
        shown = 0.5 + scanner.contrast * (_drawn(patient, radius, size, generator) - 0.5)
        shown += generator.normal(0, scanner.noise, shown.shape)
        stored = np.rint(np.clip(shown, 0, 1) * top)
        if scanner.photometric == "MONOCHROME1":
            stored = top - stored
        _write(folder / f"visit-{visit + 1}.dcm", patient.identifier, visit, stored.astype(np.uint16), scanner)


def _write(file: Path, patient: str, visit: int, stored: NDArray[np.uint16], scanner: _Scanner) -> None:
    day = np.datetime64("2021-01-04") + visit * _DAYS_BETWEEN_VISITS
    image = Dataset()
    image.SOPClassUID = DigitalXRayImageStorageForPresentation
    image.SOPInstanceUID = generate_uid(entropy_srcs=[patient, str(visit), "image"])
    image.StudyInstanceUID = generate_uid(entropy_srcs=[patient, str(visit), "study"])
    image.SeriesInstanceUID = generate_uid(entropy_srcs=[patient, str(visit), "series"])
    image.Modality = "DX"
    image.PatientID = patient
    image.PatientName = f"Phantom^{patient}"
    image.StudyDate = str(day).replace("-", "")
    image.StudyTime = "093000"
    image.SeriesNumber, image.InstanceNumber = 1, 1
    image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = scanner.photometric
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, _BITS, _BITS - 1
    image.PixelRepresentation = 0
    image.RescaleSlope, image.RescaleIntercept = scanner.slope, scanner.intercept
    full = scanner.slope * (2**_BITS - 1)
    image.WindowCenter, image.WindowWidth = scanner.intercept + full / 2, full
    image.PixelData = stored.astype("<u2").tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.save_as(file, enforce_file_format=True)
