"""From a patient's whole history to the sequences that a network is asked about."""

from collections.abc import Iterable
from dataclasses import replace

from fedpp.errors import ConfigError
from fedpp.imaging.sequence import ImageSequence


def by_visit(
    sequences: Iterable[ImageSequence], *, window: int, stride: int = 1, least: int = 1
) -> list[ImageSequence]:
    """Ask about single visits: each labelled visit with the `window - 1` before it, labelled as it is.

    Of a patient's labelled visits every `stride`-th counts, from the last one back, so that the newest is always
    in; a visit with fewer than `least` visits up to it is left out. Of several findings a visit is labelled if one of
    them is known, and those that are not stay unknown: what an earlier visit said of them may no longer hold. Raises
    `ConfigError` where visits have no labels of their own.
    """
    if min(window, stride, least) < 1 or least > window:
        raise ConfigError(f"window, stride and least must be at least 1, least <= window, got {window, stride, least}")
    windows: list[ImageSequence] = []
    for sequence in sequences:
        if sequence.labels is None:
            raise ConfigError("visits have no labels of their own here: predict a label for the sequence")
        labelled = [i for i, label in enumerate(sequence.labels) if label is not None]
        chosen = [last for last in labelled[::-1][::stride][::-1] if min(last + 1, window) >= least]
        windows += [_part(sequence, max(0, last + 1 - window), last + 1) for last in chosen]
    return windows


def of_length(sequences: Iterable[ImageSequence], *, least: int = 1, most: int | None = None) -> list[ImageSequence]:
    """Keep sequences of at least `least` frames, and of those the last `most` frames."""
    if least < 1 or (most is not None and most < least):
        raise ConfigError(f"lengths must be at least 1 and in order, got {least} to {most}")
    return [
        sequence
        if most is None or len(sequence.frames) <= most
        else replace(
            _part(sequence, len(sequence.frames) - most, len(sequence.frames)), id=sequence.id, label=sequence.label
        )
        for sequence in sequences
        if len(sequence.frames) >= least
    ]


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
