"""Decodes everything once, and keeps what can be read."""

from collections.abc import Iterable
from dataclasses import replace

from fedpp.errors import RawDataError
from fedpp.imaging.sequence import FrameFile, FrameFiles, ImageSequence, Refuse, last_known


def readable(sequences: Iterable[ImageSequence], refuse: Refuse) -> list[ImageSequence]:
    """Return the sequences with only those of their files whose frames can all be decoded.

    Each other file goes to `refuse`, and is left out if that returns, with the labels and times of its frames; a
    sequence without frames is left out. One frame at a time is in memory, and a file is decoded once for all the
    sequences that it is in. Sequences must be as their reader gave them, or `ValueError` is raised.
    """
    known: dict[FrameFile, bool] = {}
    kept = []
    for sequence in sequences:
        frames = sequence.frames
        if not isinstance(frames, FrameFiles) or len(frames) != sum(file.count for file in frames.files):
            raise ValueError("only sequences of whole files can be looked through")
        for file in frames.files:
            if file not in known:
                known[file] = _decodes(file, refuse)
        whole = [file for file in frames.files if known[file]]
        if len(whole) == len(frames.files):
            kept.append(sequence)
        elif whole:
            mask = [known[file] for file in frames.files for _ in range(file.count)]
            kept.append(keeping(sequence, whole, mask))
    return kept


def _decodes(file: FrameFile, refuse: Refuse) -> bool:
    try:
        for _ in file.read():
            pass
    except RawDataError as error:
        refuse(file.path, error)
        return False
    return True


def keeping(sequence: ImageSequence, files: list[FrameFile], mask: list[bool]) -> ImageSequence:
    """Return a sequence with only those of its files, which hold the frames of a mask; its label is the last known."""
    labels = sequence.labels and tuple(label for label, kept in zip(sequence.labels, mask, strict=True) if kept)
    times = sequence.times and tuple(time for time, kept in zip(sequence.times, mask, strict=True) if kept)
    label = sequence.label
    if labels is not None:
        label = last_known(labels)
    return replace(sequence, label=label, frames=FrameFiles(files), labels=labels, times=times)
