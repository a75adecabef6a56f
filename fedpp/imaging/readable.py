"""Readable files: decode every file of raw sequences once, and keep those that can be read."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from fedpp.errors import UnusableFileError
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence, Refuse, last_known


def readable(sequences: Iterable[ImageSequence], refuse: Refuse) -> list[ImageSequence]:
    """Return the sequences with only those of their files whose frames can all be decoded.

    Every other file goes to `refuse`, and if that returns, is removed with the labels and times of its frames; so is
    a sequence without frames. One frame at a time is in memory, and a file that several sequences share is decoded
    once. Raises `ValueError` for sequences that are not as their reader returned them.
    """
    known: dict[FrameFile, bool] = {}
    kept = []
    for sequence in sequences:
        files = _whole_files(sequence)
        for file in files:
            if file not in known:
                known[file] = _decodes(file, sequence.patient, refuse)
        whole = [file for file in files if known[file]]
        if whole:
            kept.append(sequence if len(whole) == len(files) else with_files(sequence, whole))
    return kept


def with_files(sequence: ImageSequence, kept: Collection[FrameFile]) -> ImageSequence:
    """Return a sequence with only these of its files, their labels and times; its label is the last one known."""
    files = _whole_files(sequence)
    mask = [file in kept for file in files for _ in range(file.count)]
    labels = sequence.labels and tuple(label for label, keep in zip(sequence.labels, mask, strict=True) if keep)
    times = sequence.times and tuple(time for time, keep in zip(sequence.times, mask, strict=True) if keep)
    label = sequence.label if labels is None else last_known(labels)
    frames = FrameFiles([file for file in files if file in kept])
    return replace(sequence, label=label, frames=frames, labels=labels, times=times)


def _whole_files(sequence: ImageSequence) -> tuple[FrameFile, ...]:
    frames = sequence.frames
    if not isinstance(frames, FrameFiles) or len(frames) != sum(file.count for file in frames.files):
        raise ValueError("only sequences of whole files can be filtered by file")
    return frames.files


def _decodes(file: FrameFile, patient: str, refuse: Refuse) -> bool:
    try:
        for _ in file.read():
            pass
    except UnusableFileError as error:
        error.patient = patient
        refuse(file.path, error)
        return False
    return True
