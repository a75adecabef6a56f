"""Small trees in the layouts with tables or classes, made by number, with the kinds of damage that hospitals have.

Each picture shows its number, so that `misread` knows patient, order and label of whatever is read, from what was
written and not from the readers.
"""

import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from dicom_images import dicom_image, saved
from PIL import Image
from public_layouts import Tree, chexpert, class_folders, mimic_cxr, nih_chestxray14, number_of

from fedpp.errors import FedppError
from fedpp.imaging.account import Account, Outcome
from fedpp.imaging.readable import readable
from fedpp.imaging.readers.layout import layout_of, missing_patients, read_sequences
from fedpp.imaging.reasons import Doubt
from fedpp.imaging.sequence import ImageSequence

Generator = np.random.Generator

# --- layouts


def _manifest(root: Path, patients: int, seed: int) -> Tree:
    tree = Tree(root, np.random.default_rng(seed))
    rows = []
    for patient in _people(tree, patients):
        label = str(tree.random.choice(["ill", "well", ""]))
        for day in sorted(tree.numbers(1 + seed % 3, 28)):
            name = f"Bilder/{patient}/{tree.written}.jpg"
            tree.image(name, patient, label or None)
            rows.append([name, patient, f"2026-01-{day + 1:02}", label])
    tree.table("manifest.csv", ["path", "patient", "time", "label"], rows)
    return tree


def _frames(root: Path, patients: int, seed: int) -> Tree:
    """Write an index, some of whose sequences have several parts."""
    tree = Tree(root, np.random.default_rng(seed))
    rows = []
    for number, patient in enumerate(_people(tree, patients)):
        label = str(tree.random.choice(["ill", "well", ""]))
        parts = int(tree.random.integers(1, 4))
        for part in range(parts):
            for frame in sorted(tree.numbers(2, 30)):
                tree.image(f"cine{number}/2026-0{part + 1}/{frame}.jpg", patient, label or None)
            rows.append([f"cine{number}", patient, f"2026-0{part + 1}", label])
    tree.table("index.csv", ["sequence", "patient", "time", "label"], rows)
    return tree


def _labelled_dicom(root: Path, patients: int, seed: int) -> Tree:
    tree = Tree(root, np.random.default_rng(seed))
    rows = []
    for patient in (f"00{number}" for number in range(1, patients + 1)):
        label = str(tree.random.choice(["ill", "well"]))
        for visit in range(1 + seed % 3):
            picture = root / f"S{tree.random.integers(3)}" / f"IM{tree.written}.jpg"
            number = tree.image(str(picture.relative_to(root)), patient, label)
            with Image.open(picture) as opened:
                image = dicom_image(np.asarray(opened).astype(np.uint16), BitsStored=8, HighBit=7)
            picture.unlink()
            file = picture.with_suffix(str(tree.random.choice(["", ".dcm"])))
            tree.files[file] = tree.files.pop(picture)
            image.PatientID, image.StudyDate = patient, f"2026010{visit + 1}"
            image.SOPInstanceUID, image.StudyInstanceUID = f"1.2.3.{number}", f"1.2.4.{number}"
            saved(image, file)
        rows.append([patient, label])
    tree.table("labels.csv", ["patient", "label"], rows)
    return tree


def _breakhis(root: Path, patients: int, seed: int) -> Tree:
    tree = Tree(root, np.random.default_rng(seed))
    for slide in tree.numbers(patients, 900):
        kind, label = (("B_TA", "benign"), ("M_DC", "malignant"))[slide % 2]
        for number in sorted(tree.numbers(1 + seed % 4, 30)):
            tree.image(f"{label}/SOB_{kind}-14-{slide}AB-40-{number:03}.png", f"14-{slide}AB", label)
    return tree


def _people(tree: Tree, patients: int) -> list[str]:
    return tree.random.permutation(["P1", "p-2", "00003", "Jos\u00e9", "P 5", "x.y", "7"])[:patients].tolist()


LAYOUTS: dict[str, Callable[[Path, int, int], Tree]] = {
    "chexpert": lambda root, patients, seed: chexpert(root, patients, seed=seed),
    "mimic-cxr": lambda root, patients, seed: mimic_cxr(root, patients, suffix=".csv", seed=seed),
    "nih-chestxray14": lambda root, patients, seed: nih_chestxray14(root, patients, seed=seed),
    "class-folders": lambda root, patients, seed: class_folders(root, patients, splits=seed % 2 == 0, seed=seed),
    "manifest": _manifest,
    "frames": _frames,
    "dicom": _labelled_dicom,
    "breakhis": _breakhis,
}

# --- damage of tables: of one of a tree's


def _lines(change: Callable[[list[str], Generator], list[str]]) -> Callable[[Tree], None]:
    def apply(tree: Tree) -> None:
        tables = [table for table in sorted(tree.root.glob("*.csv")) if len(table.read_text().splitlines()) > 1]
        table = tables[tree.random.integers(len(tables))]
        table.write_text("\n".join(change(table.read_text().splitlines(), tree.random)))

    return apply


def _row(change: Callable[[str], str]) -> Callable[[Tree], None]:
    """Return a change of one row that is not the header."""

    def apply(lines: list[str], generator: Generator) -> list[str]:
        at = int(generator.integers(1, len(lines)))
        return [*lines[:at], change(lines[at]), *lines[at + 1 :]]

    return _lines(apply)


def _written(encoding: str, separator: str = ",", end: str = "\n") -> Callable[[Tree], None]:
    def apply(tree: Tree) -> None:
        for table in tree.root.glob("*.csv"):
            text = table.read_text().replace(",", separator).replace("\n", end)
            table.write_bytes(text.encode(encoding, "replace"))

    return apply


def _doubled(lines: list[str], generator: Generator) -> list[str]:
    """Write a column twice; its first cells are those of another row."""
    head, *rows = [line.split(",") for line in lines]
    at = int(generator.integers(len(head)))
    moved = [*rows[1:], rows[0]]
    doubled = [[*other[at : at + 1], *row] for row, other in zip(rows, moved, strict=True)]
    return [",".join(row) for row in ([head[at], *head], *doubled)]


def _another_order(lines: list[str], generator: Generator) -> list[str]:
    """Move the columns, as people do."""
    cells = [line.split(",") for line in lines]
    order = generator.permutation(len(cells[0]))
    return [",".join(row[at] for at in order) for row in cells]


TABLES: dict[str, Callable[[Tree], None]] = {
    "a row with one cell more": _row(lambda line: f",{line}"),
    "a row with one cell less": _row(lambda line: line.partition(",")[2]),
    "a row moved to the right": _row(lambda line: f",{line.rpartition(',')[0]}"),
    "a column twice": _lines(_doubled),
    "columns in another order": _lines(_another_order),
    "a row twice": _lines(lambda lines, _: [*lines, lines[-1]]),
    "no header": _lines(lambda lines, _: lines[1:]),
    "a second header": _lines(lambda lines, _: [*lines, lines[0]]),
    "a row less": _lines(lambda lines, generator: lines[:-1] if generator.integers(2) else [lines[0], *lines[2:]]),
    "an open quote": _row(lambda line: f'"{line}'),
    "a line break in a cell": _row(lambda line: line[: len(line) // 2] + "\n" + line[len(line) // 2 :]),
    "a cut table": _lines(lambda lines, _: [*lines[:-1], lines[-1][: len(lines[-1]) // 2]]),
    "empty lines": _lines(lambda lines, _: [line for each in lines for line in (each, "")]),
    "Excel": _written("utf-8-sig", ";", "\r\n"),
    "Unicode text": _written("utf-16", "\t", "\r\n"),
    "an old Mac": _written("utf-8", ",", "\r"),
    "Windows's code page": _written("cp1252"),
    "no mark": _written("utf-16-le"),
}

# --- damage of files: of one or several of a tree's


def _each(change: Callable[[Path, Generator], object]) -> Callable[[Tree], None]:
    """Return a change of some files, perhaps all of one patient."""

    def apply(tree: Tree) -> None:
        files = sorted(tree.files)
        chosen = files[tree.random.integers(len(files))]
        whole = bool(tree.random.integers(2))
        for file in files if whole else [chosen]:
            if tree.files[file] == tree.files[chosen]:
                change(file, tree.random)

    return apply


def _cut(file: Path, generator: Generator) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: generator.integers(len(content))])


def _beside(file: Path, _: Generator) -> None:
    for name in ("Thumbs.db", ".DS_Store", f"._{file.name}", "readme.txt"):
        (file.parent / name).write_bytes(b"no image")


def _masked(file: Path, _: Generator) -> None:
    shutil.copy(file, file.with_stem(f"{file.stem}_mask"))


def _copied(file: Path, _: Generator) -> None:
    (file.parent / "copy").mkdir(exist_ok=True)
    shutil.copy(file, file.parent / "copy" / file.name)


FILES: dict[str, Callable[[Tree], None]] = {
    "cut": _each(_cut),
    "empty": _each(lambda file, _: file.write_bytes(b"")),
    "a text": _each(lambda file, _: file.write_bytes(b"The file was not found on this server.\n")),
    "gone": _each(lambda file, _: file.unlink()),
    "HEIC": _each(lambda file, _: file.rename(file.with_suffix(".heic"))),
    "without suffix": _each(lambda file, _: file.rename(file.with_suffix(""))),
    "a dangling link": _each(lambda file, _: (file.unlink(), file.symlink_to("nowhere"))),
    "of a desktop": _each(_beside),
    "a mask": _each(_masked),
    "a copy": _each(_copied),
}


def tree(root: Path, number: int) -> tuple[Tree, list[str]]:
    """Write the tree of a number in place of another one; return it, and the kinds of damage."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    generator = np.random.default_rng([number, 1])
    names = list(LAYOUTS)
    layout = names[number % len(names)]
    with warnings.catch_warnings(action="ignore"):
        made = LAYOUTS[layout](root, int(generator.integers(2, 6)), number)
    kinds = [layout]
    for damage in (TABLES, FILES):
        if generator.integers(5) < 3 and (damage is FILES or layout not in {"class-folders", "breakhis"}):
            kinds.append(str(generator.choice(list(damage))))
            damage[kinds[-1]](made)
    return made, kinds


def misread_layouts(numbers: range, root: Path) -> tuple[Counter[str], list[str]]:
    """Read the trees of these numbers; return how many ended in what, and what is wrong, with its number."""
    ends: Counter[str] = Counter()
    found = []
    for number in numbers:
        made, kinds = tree(root, number)
        try:
            end, wrong = _misread(made, kinds)
        except Exception as error:  # noqa: BLE001  all else is what is looked for
            end, wrong = "neither", f"{type(error).__name__}: {error}"
        ends[f"{kinds[0]} {end}"] += 1
        if wrong:
            found.append(f"{number}: {wrong}; {', '.join(kinds)}")
    return ends, found


def _misread(made: Tree, kinds: list[str]) -> tuple[str, str]:
    account = Account(made.root)
    try:
        layout = layout_of(made.root)
        sequences = readable(read_sequences(made.root, layout, refuse=account)[0], account)
        account.close(sequences, layout)
    except FedppError as error:
        return "refused", "a message of several lines" if "\n" in str(error) else ""
    if layout != kinds[0]:
        return "read", f"read as {layout}"
    wrong = [text for sequence in sequences for text in _wrong(made, sequence, kinds)]
    lost = account.count(Outcome.LOST)
    patients = {patient for patient, _ in made.shown.values()}
    named = {entry.patient for entry in account.entries.values()} | missing_patients(made.root, layout, sequences)
    unnamed = patients - named
    if unnamed and not _absent(kinds):
        wrong.append(f"{len(unnamed)} patients are neither read nor named")
    wrong += [f"nothing is said of {path.name}" for path in made.files if _exists(path) and path not in account.entries]
    return "refused" if lost else "read", "; ".join(wrong)


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _absent(kinds: list[str]) -> bool:
    """Return whether whole patients may be absent: their files are gone, or the only row of one is.

    MIMIC-CXR-JPG and ChestX-ray14 are often had in part. A patient's only cell may be the one that was damaged.
    """
    return ("gone" in kinds and kinds[0] not in {"manifest", "frames", "chexpert"}) or not {
        "a row less",
        "a row moved to the right",
    }.isdisjoint(kinds)


def _wrong(made: Tree, sequence: ImageSequence, kinds: list[str]) -> list[str]:
    scale = 255 if kinds[0] == "dicom" else 1
    numbers = [number_of(frame * scale) for frame in sequence.frames]
    if not made.shown.keys() >= set(numbers):
        return ["a frame is no picture"]
    ordered = sorted(numbers) if Doubt.ORDER in sequence.doubts and "a copy" in kinds else sorted(set(numbers))
    wrong = [] if numbers == ordered else [f"the order is {numbers}"]
    if {made.shown[number][0] for number in numbers} != {sequence.patient}:
        wrong.append("a picture of another patient")
    known = [label for number in numbers if (label := made.shown[number][1]) is not None]
    unlabelled = sequence.label is None and not {"a row less", "a cut table"}.isdisjoint(kinds)
    if not unlabelled and sequence.label != (known[-1] if known else None):
        wrong.append(f"the label is {sequence.label!r}, not {known[-1:]}")
    return wrong
