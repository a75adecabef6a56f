"""Plain folders of images: one folder a patient, and in it, or in folders below, the images of a sequence.

Images are ordered by the numbers in their names; the pages of a TIFF or GIF are frames. Labels come from an
optional `labels.csv` (patient, label), patients being folders.
"""

from pathlib import Path

from fedpp.errors import RawDataError, UnusableFileError
from fedpp.imaging.images import is_image, natural, page_count, read_pages
from fedpp.imaging.readers.folders import files_below
from fedpp.imaging.readers.patient_labels import labelled
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence, Refuse, refuse


def read_image_folders(root: Path, refuse: Refuse = refuse) -> list[ImageSequence]:
    """Return one sequence for each folder of images below `root`; raise `RawDataError` for images in `root` itself.

    A folder that cannot be listed, or a file whose header cannot be read, goes to `refuse`, and is skipped if that
    returns.
    """
    sequences = []
    for folder, images in sorted(_by_folder(root, refuse).items()):
        patient, *below = folder.relative_to(root).parts
        files = _readable(sorted(images, key=lambda file: natural(file.name)), refuse)
        if files:
            sequences.append(ImageSequence("/".join(below) or "images", patient, None, FrameFiles(files)))
    if not sequences:
        raise RawDataError(f"{root} holds no image that can be read")
    return labelled(sequences, root)


def _by_folder(root: Path, refuse: Refuse) -> dict[Path, list[Path]]:
    folders: dict[Path, list[Path]] = {}
    for file in files_below(root, refuse):
        if is_image(file):
            folders.setdefault(file.parent, []).append(file)
    if root in folders:
        raise RawDataError(f"{root} holds loose images: put each patient's into a folder, or write a manifest.csv")
    if not folders:
        raise RawDataError(f"{root} holds no image")
    return folders


def _readable(images: list[Path], refuse: Refuse) -> list[FrameFile]:
    files = []
    for image in images:
        try:
            files.append(FrameFile(image, page_count(image), read_pages))
        except UnusableFileError as error:
            refuse(image, error)
    return files
