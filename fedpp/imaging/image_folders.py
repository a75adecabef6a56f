"""Plain folders of images: one folder a patient, and in it, or in folders below, the images of a sequence.

Images are ordered by the numbers in their names; the pages of a TIFF or GIF are frames. Labels come from an
optional `labels.csv` (patient, label), patients being folders.
"""

from pathlib import Path

from fedpp.errors import RawDataError

from .images import is_image, natural, page_count, read_pages
from .patient_labels import label_of, read_labels
from .sequence import FrameFile, FrameFiles, ImageSequence


def read_image_folders(root: Path) -> list[ImageSequence]:
    """Return one sequence for each folder of images below `root`; raise `RawDataError` if images lie loose."""
    folders: dict[Path, list[Path]] = {}
    for file in root.rglob("*"):
        if is_image(file) and file.is_file():
            folders.setdefault(file.parent, []).append(file)
    if root in folders:
        raise RawDataError(f"{root} holds loose images: put each patient's into a folder, or write a manifest.csv")
    if not folders:
        raise RawDataError(f"{root} holds no image")
    labels = read_labels(root)
    return [_sequence(root, folder, files, labels) for folder, files in sorted(folders.items())]


def _sequence(root: Path, folder: Path, files: list[Path], labels: dict[str, str]) -> ImageSequence:
    patient, *below = folder.relative_to(root).parts
    ordered = sorted(files, key=lambda file: natural(file.name))
    frames = FrameFiles([FrameFile(file, page_count(file), read_pages) for file in ordered])
    return ImageSequence("/".join(below) or "images", patient, label_of(labels, patient, root), frames)
