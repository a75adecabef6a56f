"""Plain folders of images: one folder a patient, and in it, or in folders below, the images of a sequence.

Images are ordered by the numbers in their names; the pages of a TIFF, GIF, PNG or WebP are frames. Labels come from an
optional `labels.csv` (patient, label), patients being folders.
"""

from pathlib import Path

from fedpp.errors import RawDataError
from fedpp.imaging.readers.folders import files_below
from fedpp.imaging.readers.image_files import doubts_of, frame_files, images_among, in_order
from fedpp.imaging.readers.patient_labels import labelled
from fedpp.imaging.sequence import FrameFiles, ImageSequence, Refuse, refuse


def read_image_folders(root: Path, refuse: Refuse = refuse) -> list[ImageSequence]:
    """Return one sequence for each folder of images below `root`; raise `RawDataError` for images in `root` itself.

    A folder that cannot be listed, a file whose header cannot be read, or an image of a format that is not read goes
    to `refuse`, and is skipped if that returns.
    """
    sequences = []
    for folder, images in sorted(_by_folder(root, refuse).items()):
        patient, *below = folder.relative_to(root).parts
        files = frame_files(in_order(images), refuse)
        if files:
            name = "/".join(below) or "images"
            sequences.append(ImageSequence(name, patient, None, FrameFiles(files), doubts=doubts_of(images)))
    if not sequences:
        raise RawDataError(f"{root} holds no image that can be read")
    return labelled(sequences, root)


def _by_folder(root: Path, refuse: Refuse) -> dict[Path, list[Path]]:
    folders: dict[Path, list[Path]] = {}
    for file in images_among(files_below(root, refuse), refuse):
        folders.setdefault(file.parent, []).append(file)
    if root in folders:
        raise RawDataError(f"{root} holds loose images: put each patient's into a folder, or write a manifest.csv")
    if not folders:
        raise RawDataError(f"{root} holds no image")
    return folders
