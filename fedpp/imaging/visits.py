"""Windows of visits: from a patient's whole history to the sequences that a model predicts."""

from collections.abc import Iterable
from dataclasses import replace

from fedpp.errors import ConfigError
from fedpp.imaging.sequence import ImageSequence


def by_visit(
    sequences: Iterable[ImageSequence], *, window: int, stride: int = 1, min_length: int = 1
) -> list[ImageSequence]:
    """Return a sequence for each labelled visit: the visit, its label, and the `window - 1` visits before it.

    Of a patient's labelled visits every `stride`-th is used, counted back from the newest, which is always used; a
    visit with fewer than `min_length` visits up to it is excluded. A multi-label visit counts as labelled if one
    finding is known; unknown findings stay unknown, since an earlier state may be outdated. Raises `ConfigError` for
    sequences whose visits have no labels of their own.
    """
    if min(window, stride, min_length) < 1 or min_length > window:
        raise ConfigError(
            f"window, stride and min_length must be at least 1, min_length <= window, got {window, stride, min_length}"
        )
    windows: list[ImageSequence] = []
    for sequence in sequences:
        if sequence.labels is None:
            raise ConfigError("visits have no labels of their own here: predict a label for the sequence")
        labelled = [i for i, label in enumerate(sequence.labels) if label is not None]
        chosen = [last for last in labelled[::-1][::stride][::-1] if min(last + 1, window) >= min_length]
        windows += [_part(sequence, max(0, last + 1 - window), last + 1) for last in chosen]
    return windows


def of_length(
    sequences: Iterable[ImageSequence], *, min_length: int = 1, max_length: int | None = None
) -> list[ImageSequence]:
    """Return the sequences of at least `min_length` frames, each with its last `max_length` frames."""
    if min_length < 1 or (max_length is not None and max_length < min_length):
        raise ConfigError(f"lengths must be at least 1 and in order, got {min_length} to {max_length}")
    return [_newest(sequence, max_length) for sequence in sequences if len(sequence.frames) >= min_length]


def _newest(sequence: ImageSequence, count: int | None) -> ImageSequence:
    length = len(sequence.frames)
    if count is None or length <= count:
        return sequence
    return replace(_part(sequence, length - count, length), id=sequence.id, label=sequence.label)


def _part(sequence: ImageSequence, first: int, end: int) -> ImageSequence:
    labels = sequence.labels and sequence.labels[first:end]
    return replace(
        sequence,
        id=f"{sequence.id} {end}",
        label=labels[-1] if labels else sequence.label,
        frames=sequence.frames[first:end],
        labels=labels,
        times=sequence.times and sequence.times[first:end],
    )
