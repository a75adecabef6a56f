"""Folders of raw data of the kinds that hospitals have, made by number, with the patients and pictures in them.

Most are read rightly; the others are refused. `misread` says what is wrong with a reading: it knows what is right from
the pictures that were written, and not from the readers.
"""

import csv
import io
import shutil
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from imagecodecs import jpeg2k_encode, jpegls_encode
from picture_files import TURNS, bitmap, encoded, png, tiff, tiff_of_strips
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless

from fedpp.errors import FedppError
from fedpp.imaging.account import Account, Outcome
from fedpp.imaging.readable import readable
from fedpp.imaging.readers.layout import layout_of, read_sequences
from fedpp.imaging.reasons import Doubt
from fedpp.imaging.sequence import ImageSequence

ALIKE = 0.97  # correlation of a frame with the picture that was written, which lossy files have and no other picture

Generator = np.random.Generator
Picture = np.ndarray
Encode = Callable[[Picture, Generator], bytes]


@dataclass
class Tree:
    """A folder, and what is in it: pictures of each patient in their order, and the patients' labels."""

    root: Path
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    files: dict[Path, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ordered: bool = True
    kinds: list[str] = field(default_factory=list)


def tree(root: Path, number: int) -> Tree:
    """Write the folder of a number, in place of another one."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    generator = np.random.default_rng(number)
    made = Tree(root)
    with warnings.catch_warnings(action="ignore"):  # pydicom's, of what is written on purpose
        (_images, _frame_folders, _manifest, _dicom)[number % 4](made, generator)
    return made


def misread_trees(numbers: range, root: Path) -> tuple[Counter[str], list[str]]:
    """Read the folders of these numbers; return how many ended in what, and what is wrong, with its number."""
    ends: Counter[str] = Counter()
    found = []
    for number in numbers:
        made = tree(root, number)
        try:
            end, wrong = misread(made)
        except Exception as error:  # noqa: BLE001  all else is what is looked for
            end, wrong = "neither", f"{type(error).__name__}: {error}"
        ends[end] += 1
        if wrong:
            found.append(f"{number}: {wrong}; {', '.join(made.kinds)}")
    return ends, found


def misread(made: Tree) -> tuple[str, str]:
    """Read a folder; return "read" or "refused", and what is wrong: a frame, an order, a label, a patient; or ""."""
    account = Account(made.root)
    try:
        layout = layout_of(made.root)
        sequences = readable(read_sequences(made.root, layout, refuse=account)[0], account)
        account.close(sequences, layout)
    except FedppError as error:
        return "refused", "a message of several lines" if "\n" in str(error) else ""
    lost = [path for path, entry in account.entries.items() if entry.outcome == Outcome.LOST]
    wrong = [text for sequence in sequences for text in _wrong(made, sequence, complete=not lost)]
    accounted = {sequence.patient for sequence in sequences} | {made.files.get(path) for path in lost}
    wrong += [f"a patient was lost: {patient}" for patient in made.pictures if patient not in accounted]
    wrong += [f"nothing is said of {path.name}" for path in made.files if path not in account.entries]
    return "refused" if lost else "read", "; ".join(wrong)


def _wrong(made: Tree, sequence: ImageSequence, *, complete: bool) -> list[str]:
    if sequence.patient not in made.pictures:
        return [f"nobody is {sequence.patient!r}"]
    pictures = made.pictures[sequence.patient]
    places = [_place(frame, pictures) for frame in sequence.frames]
    wrong = ["a frame is none of its patient's pictures"] if None in places else []
    found = [place for place in places if place is not None]
    if made.ordered and found != sorted(set(found)):
        wrong.append(f"the order is {found}")
    if not made.ordered and len(found) > 1 and Doubt.ORDER not in sequence.doubts:
        wrong.append("a guessed order is no doubt")
    if complete and len(found) < len(pictures):
        wrong.append(f"{len(found)} of {len(pictures)} pictures, and none is lost")
    if (sequence.label or "") != made.labels.get(sequence.patient, ""):
        wrong.append(f"the label is {sequence.label!r}")
    return wrong


def _place(frame: Picture, pictures: Sequence[Picture]) -> int | None:
    """Return the number of the picture that a frame shows."""
    alike = [
        frame.shape == picture.shape and frame.std() > 0 and np.corrcoef(frame.ravel(), picture.ravel())[0, 1] > ALIKE
        for picture in pictures
    ]
    return alike.index(True) if any(alike) else None


def _picture(generator: Generator) -> Picture:
    """Return a smooth picture of 8 bits that uses all of them, and is like no other."""
    coarse = Image.fromarray(generator.normal(size=(6, 7)).astype(np.float32))
    values = np.asarray(coarse.resize((40, 32), Image.Resampling.BICUBIC))
    return np.rint((values - values.min()) / np.ptp(values) * 255).astype(np.uint8)


# --- files that show a picture


def _turned(form: str, **options: object) -> Encode:
    def encode(picture: Picture, generator: Generator) -> bytes:
        orientation = int(generator.integers(2, 9))
        stored = np.ascontiguousarray(TURNS[{6: 8, 8: 6}.get(orientation, orientation)](picture))
        exif = Image.Exif()
        exif[274] = orientation
        return encoded(
            stored, form, **({"tiffinfo": {274: orientation}} if form == "TIFF" else {"exif": exif}), **options
        )

    return encode


def _mpo(picture: Picture, _: Generator) -> bytes:
    small = Image.fromarray(255 - picture[::4, ::4]).convert("RGB")
    return encoded(Image.fromarray(picture).convert("RGB"), "MPO", save_all=True, append_images=[small], quality=95)


def _pyramid(picture: Picture, generator: Generator) -> bytes:
    copies = [(255 - picture[::2, ::2], {254: 1}), (255 - picture[::4, ::4], {255: 2})]
    return tiff((picture, {}), *copies[: generator.integers(1, 3)])


def _palette(picture: Picture, generator: Generator) -> bytes:
    order = generator.permutation(256).astype(np.uint8)
    image = Image.fromarray(np.argsort(order).astype(np.uint8)[picture])
    image.putpalette(np.repeat(order, 3).tobytes())
    return encoded(image, str(generator.choice(["PNG", "GIF", "TIFF", "BMP"])))


def _film_without_its_image(picture: Picture, _: Generator) -> bytes:
    film = [Image.fromarray(255 - picture), Image.fromarray(picture)]
    return encoded(film[0], "PNG", save_all=True, append_images=film[1:], default_image=True)


def _transparent(picture: Picture, generator: Generator) -> bytes:
    hidden = np.where(picture == 0, generator.integers(0, 256), picture).astype(np.uint8)
    alpha = np.where(picture == 0, 0, 255).astype(np.uint8)
    return encoded(np.dstack([hidden, hidden, hidden, alpha]), str(generator.choice(["PNG", "TIFF"])))


def _tags(picture: Picture, **others: int | tuple[int, ...]) -> dict[str, int | tuple[int, ...]]:
    height, width = picture.shape
    return {"t256": width, "t257": height, "t258": 8, "t259": 1, "t262": 1, "t277": 1, "t278": height} | others


PICTURES: dict[str, Encode] = {
    "png": lambda a, _: encoded(a, "PNG"),
    "png of 16 bits": lambda a, _: encoded(Image.fromarray(a.astype(np.uint16) * 257), "PNG"),
    "png of colours": lambda a, _: encoded(np.dstack([a] * 3), "PNG"),
    "png of grey and alpha": lambda a, _: png(np.dstack([a, np.full_like(a, 255)]), 8, 4),
    "png turned": _turned("PNG"),
    "png film": _film_without_its_image,
    "jpeg": lambda a, _: encoded(a, "JPEG", quality=95),
    "jpeg progressive": lambda a, _: encoded(np.dstack([a] * 3), "JPEG", quality=95, progressive=True),
    "jpeg with restarts": lambda a, _: encoded(a, "JPEG", quality=95, restart_marker_blocks=3),
    "jpeg turned": _turned("JPEG", quality=95),
    "mpo": _mpo,
    "tiff": lambda a, _: tiff((a, {})),
    "tiff of 16 bits": lambda a, g: tiff((a.astype(np.uint16) * 257, {}), order=str(g.choice(["<", ">"]))),
    "tiff of signed 16 bits": lambda a, _: tiff(((a * 257.0 - 32_768).astype(np.int16), {})),
    "tiff of 32 bits": lambda a, _: tiff(((a * 16_843_009.0).astype(np.uint32), {})),
    "white is zero": lambda a, _: tiff((255 - a, {262: 0})),
    "white is zero in 16 bits": lambda a, _: tiff((65_535 - a.astype(np.uint16) * 257, {262: 0})),
    "tiff compressed": lambda a, g: encoded(
        a, "TIFF", compression=str(g.choice(["tiff_lzw", "tiff_deflate", "packbits"]))
    ),
    "tiff turned": _turned("TIFF"),
    "pyramid": _pyramid,
    "ink": lambda a, _: encoded(Image.fromarray(np.dstack([a * 0, a * 0, a * 0, 255 - a]), "CMYK"), "TIFF"),
    "palette": _palette,
    "transparent": _transparent,
    "bmp": lambda a, _: encoded(a, "BMP"),
    "bmp of four bytes": lambda a, _: bitmap(np.dstack([a] * 3), np.zeros_like(a)),
    "tiff of planes": lambda a, _: tiff_of_strips(*[a.tobytes()] * 3, **_tags(a, t262=2, t277=3, t284=2)),
    "gif": lambda a, _: encoded(a, "GIF"),
    "webp": lambda a, _: encoded(np.dstack([a] * 3), "WEBP", lossless=True),
    "webp turned": _turned("WEBP", quality=95),
}
UNFIT: dict[str, Encode] = {
    "planes of 16 bits": lambda a, _: tiff_of_strips(
        *[(a.astype(np.uint16) * 257).tobytes()] * 3, **_tags(a, t258=(16,) * 3, t262=2, t277=3, t284=2)
    ),
    "compressed, signed, big-endian": lambda a, _: tiff_of_strips(
        zlib.compress((a * 257.0 - 32_768).astype(">i2").tobytes()), order=">", **_tags(a, t258=16, t259=8, t339=2)
    ),
    "transparent as a whole": lambda a, _: encoded(np.dstack([a, a, a, np.zeros_like(a)]), "PNG"),
    "12 bits in 16": lambda a, _: encoded(Image.fromarray(a.astype(np.uint16) * 16), "PNG"),
    "floats": lambda a, _: tiff((a.astype(np.float32), {})),
    "pyramid without marks": lambda a, _: tiff((a, {}), (a[::2, ::2].copy(), {})),
}


def cut(content: bytes, generator: Generator) -> bytes:
    """Leave the end away; most JPEG have another one after it."""
    end = b"\xff\xd9" if content.startswith(b"\xff\xd8") and generator.integers(4) else b""
    return content[: generator.integers(len(content) // 8, len(content))] + end


def nothing(_: bytes, generator: Generator) -> bytes:
    """Put an empty file, or a text, in the place of an image."""
    return b"" if generator.integers(2) else b"The file was not found on this server.\n"


def _file(made: Tree, generator: Generator, picture: Picture) -> bytes:
    """Return a file of any kind that shows a picture; some do not fit beside others, and some are damaged."""
    kind = str(generator.choice([*PICTURES, "one that others may not fit"]))
    kind = str(generator.choice(list(UNFIT))) if kind not in PICTURES else kind
    content = {**PICTURES, **UNFIT}[kind](picture, generator)
    damage = (cut, nothing, *[None] * 40)[generator.integers(42)]
    made.kinds.append(f"{kind} {damage.__name__}" if damage else kind)
    return damage(content, generator) if damage else content


# --- names


ARABIC = str.maketrans("0123456789", "".join(chr(0x660 + digit) for digit in range(10)))
NAMES: dict[str, Callable[[int], str]] = {
    "numbers": lambda n: f"{n + 8}",
    "mixed widths": lambda n: f"img{n + 8:0{1 + n % 4}}",
    "mixed case": lambda n: ("IMG_", "img_", "Img_")[n % 3] + str(n + 8),
    "digits of Arabic": lambda n: f"{n + 8}".translate(ARABIC),
    "dates": lambda n: f"2026-{n + 8:02}-01",
    "long numbers": lambda n: f"1.2.840.{10**30 * (n + 8)}",
}
GUESSES: dict[str, Callable[[int], str]] = {
    "words": lambda n: ("pre", "post", "control", "last")[n % 4] + "x" * (n // 4),
    "days first": lambda n: f"{28 - n:02}.{n + 1:02}.2026",
    "decimals": lambda n: ("0.5", "0.25", "1.125", "1.5")[n % 4] + "0" * (n // 4),
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".JPG", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jfif", ".jpe")
BESIDE: dict[str, tuple[str, bytes]] = {
    "notes": ("notes.txt", b"read me"),
    "of a desktop": ("._1.png", b"\0\5\26\7"),
    "thumbnails": ("Thumbs.db", b"\xd0\xcf\x11\xe0"),
    "format not read": ("99.heic", b"\0\0\0\x18ftypheic"),
    "volume": ("brain.nii.gz", b"\x1f\x8b"),
    "archive": ("more.zip", b"PK\3\4"),
    "of a storage server": ("@eaDir/8.png/SYNO_THUMB.png", encoded(np.eye(9, dtype=np.uint8), "PNG")),
    "mask": ("{}_mask.png", encoded(np.eye(9, dtype=np.uint8), "PNG")),
    "no suffix": ("99", encoded(np.eye(9, dtype=np.uint8), "PNG")),
}


def _patients(made: Tree, generator: Generator, pictures: int) -> list[str]:
    known = generator.permutation(["P1", "p-2", "00003", "Jos\u00e9", "P 5", "x.y"]).tolist()
    patients = known[: generator.integers(1, 5)]
    for patient in patients:
        made.pictures[patient] = [_picture(generator) for _ in range(generator.integers(1, pictures + 1))]
    return patients


def _write_images(made: Tree, generator: Generator, folder: Path, patient: str) -> list[Path]:
    """Write a folder of images in order; another file may be beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = GUESSES if not made.ordered else NAMES
    style = str(generator.choice(list(names)))
    files = []
    for number, picture in enumerate(made.pictures[patient]):
        files.append(folder / (names[style](number) + str(generator.choice(SUFFIXES))))
        files[-1].write_bytes(_file(made, generator, picture))
        made.files[files[-1]] = patient
    if generator.integers(6) == 0:
        kind = str(generator.choice(list(BESIDE)))
        name, content = BESIDE[kind]
        beside = folder / name.format(files[0].stem)
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        made.kinds.append(kind)
    made.kinds.append(style)
    return files


# --- layouts


def _images(made: Tree, generator: Generator) -> None:
    made.ordered = bool(generator.integers(5))
    patients = _patients(made, generator, 4)
    for patient in patients:
        _write_images(made, generator, made.root / patient, patient)
    if generator.integers(2):
        rows = [[patient, _label(made, generator, patient)] for patient in patients]
        _write_table(made, generator, "labels.csv", ["patient", "label"], rows)


def _frame_folders(made: Tree, generator: Generator) -> None:
    made.ordered = bool(generator.integers(5))
    rows = []
    for number, patient in enumerate(_patients(made, generator, 4)):
        _write_images(made, generator, made.root / f"s{number}", patient)
        rows.append([f"s{number}", patient, _label(made, generator, patient)])
    _write_table(made, generator, "index.csv", ["sequence", "patient", "label"], rows)


def _manifest(made: Tree, generator: Generator) -> None:
    rows = []
    for patient in _patients(made, generator, 4):
        files = _write_images(made, generator, made.root / "files" / patient, patient)
        label = _label(made, generator, patient)
        days = sorted(generator.permutation(28)[: len(files)] + 1)
        for file, day in zip(files, days, strict=True):
            rows.append([str(file.relative_to(made.root)), patient, f"2026-01-{day:02}", label])
    generator.shuffle(rows)
    _write_table(made, generator, "manifest.csv", ["path", "patient", "time", "label"], rows)


def _label(made: Tree, generator: Generator, patient: str) -> str:
    """Choose a patient's label; some tables write it in another form of the same text, or write that there is none."""
    label = str(generator.choice(["healthy", "ill", "", "nan", "N/A", "e\u0301tat", "two  words"]))
    right = {"nan": "", "N/A": "", "e\u0301tat": "\u00e9tat", "two  words": "two words"}.get(label, label)
    made.labels[patient] = right
    return label


def _write_table(made: Tree, generator: Generator, name: str, columns: list[str], rows: list[list[str]]) -> None:
    """Write a table in a spelling of some program, sometimes with a fault that must be refused."""
    separator = str(generator.choice([",", ";", "\t"]))
    header = [str(generator.choice([column, column.upper(), f" {column} "])) for column in columns]
    fault = generator.integers(20)
    if fault == 0:
        rows = [*rows[:-1], [*rows[-1], "shifted"]]
    elif fault == 1:
        header = [*header, columns[-1]]
        rows = [[*row, "other"] for row in rows]
    elif fault == 2:
        rows = [[row[0], f"{row[1]}\nsecond line", *row[2:]] for row in rows]
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([header, *rows])
    content = text.getvalue()
    if fault == 3:
        content = content.replace(rows[0][1], f'"{rows[0][1]}', 1)
    encoding = str(generator.choice(["utf-8", "utf-8-sig", "utf-16"]))
    made.kinds.append(f"table with {separator!r} in {encoding}, fault {fault}")
    (made.root / name).write_bytes(content.encode(encoding))


def _dicom(made: Tree, generator: Generator) -> None:
    patients = [patient for patient in _patients(made, generator, 4) if patient.isascii()]
    made.pictures = {patient: made.pictures[patient] for patient in patients or ["P1"] if patient in made.pictures}
    if not made.pictures:
        made.pictures["P1"] = [_picture(generator)]
    for patient, pictures in made.pictures.items():
        dates = bool(generator.integers(3))
        for number, picture in enumerate(pictures):
            folder = made.root / str(generator.integers(3))
            folder.mkdir(exist_ok=True)
            file = folder / f"{patient}-{number + 8}{generator.choice(['.dcm', '', '.DCM'])}"
            made.files[file] = patient
            file.write_bytes(_dicom_file(made, generator, picture, patient, number, dates=dates))


def _dicom_file(made: Tree, generator: Generator, picture: Picture, patient: str, number: int, *, dates: bool) -> bytes:
    stored = picture.astype(np.uint16) * 16  # 12 bits in 16
    image = _dataset(stored)
    image.PatientID, image.SOPInstanceUID = patient, f"1.2.{zlib.crc32(patient.encode())}.{number}"
    image.StudyDate, image.InstanceNumber = (f"2026{number + 1:02}01" if dates else "20260101"), number + 8
    kind = str(generator.choice([*TAGS, *PIXELS, "plain", "cut"]))
    made.kinds.append(f"dicom, {kind}")
    TAGS.get(kind, lambda _: None)(image)
    syntax, pixels = PIXELS.get(kind, lambda stored: (ExplicitVRLittleEndian, stored.tobytes()))(stored)
    image.file_meta.TransferSyntaxUID, image.PixelData = syntax, pixels
    image["PixelData"].VR = "OW" if syntax == ExplicitVRLittleEndian else "OB"
    content = io.BytesIO()
    image.save_as(content, enforce_file_format=True)
    return cut(content.getvalue(), generator) if kind == "cut" else content.getvalue()


def _dataset(stored: Picture) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.SOPClassUID, image.Modality = ComputedRadiographyImageStorage, "CR"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.SeriesNumber = "1.2.3", "1.2.3.4", 1
    image.StudyTime = "120000"
    image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    return image


def _with(**tags: object) -> Callable[[Dataset], None]:
    """Return a function that sets tags of an image."""

    def change(image: Dataset) -> None:
        for name, value in tags.items():
            setattr(image, name, value)

    return change


def _spelt(image: Dataset) -> None:
    day = image.StudyDate
    image.StudyDate = f"{day[:4]}.{day[4:6]}.{day[6:]}"


BARS = ((np.arange(40) // 8 % 2) << 15).astype(np.uint16)
TAGS: dict[str, Callable[[Dataset], None]] = {
    "negative": _with(PhotometricInterpretation="MONOCHROME1"),
    "rescaled": _with(RescaleSlope="2.5", RescaleIntercept="-1024"),
    "window": _with(WindowCenter="2048", WindowWidth="4096"),
    "slope zero": _with(RescaleSlope="0", RescaleIntercept="0"),
    "without a patient": _with(PatientID=""),
    "one number for all": _with(SOPInstanceUID="1.2.3.4.5"),
    "high bit": _with(HighBit=15),
    "date spelt": _spelt,
}
PIXELS: dict[str, Callable[[Picture], tuple[str, bytes]]] = {
    "negative": lambda a: (ExplicitVRLittleEndian, (4095 - a).tobytes()),
    "high bit": lambda a: (ExplicitVRLittleEndian, (a << 4).tobytes()),
    "overlay bits": lambda a: (ExplicitVRLittleEndian, (a | BARS).tobytes()),
    "jpeg 2000": lambda a: (JPEG2000Lossless, encapsulate([jpeg2k_encode(a, codecformat="j2k")])),
    "overlay bits in jpeg 2000": lambda a: (
        JPEG2000Lossless,
        encapsulate([jpeg2k_encode(a | BARS, codecformat="j2k")]),
    ),
    "jpeg-ls": lambda a: (JPEGLSLossless, encapsulate([bytes(jpegls_encode(a))])),
}
