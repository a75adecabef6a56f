"""Preparation of raw sequences for a model: frames chosen, resized and standardised, and the time between them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedpp.config.hyperparameters import Dtype
from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.sequence import FrameFiles, ImageSequence

DAYS_A_YEAR = 365.0
CHANNELS = (1, 3)  # grey, or red, green and blue
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Preparation:
    """Shape and number format of prepared sequences; `height` and `width` are in pixels."""

    dtype: Dtype
    frames: int
    height: int
    width: int
    channels: int = 1

    def of(self, sequence: ImageSequence) -> NDArray[np.floating]:
        """Return a prepared sequence `[k, height, width, channels]`, rounded to the dtype."""
        values = prepare(sequence, self.frames, self.height, self.width, self.channels)
        return values.astype(self.dtype, copy=False)


def prepare(sequence: ImageSequence, frames: int, height: int, width: int, channels: int = 1) -> Values:
    """Return `[k, height, width, channels]` of mean 0 and standard deviation 1, or zeros for a constant sequence.

    k is `frames`, chosen evenly with the first and the last, or the length of a shorter sequence. Images are resized
    with antialiasing; the aspect ratio is not kept. Three channels are shifted and scaled alike, which keeps the
    colours' relation; a grey image has three equal channels.
    """
    if channels not in CHANNELS:
        raise ConfigError(f"a prepared sequence has 1 channel or 3, got {channels}")
    if min(frames, height, width) < 1:
        raise ConfigError(f"a prepared sequence needs sizes of at least 1, got {frames} x {height} x {width}")
    wanted = chosen_frames(len(sequence.frames), frames)  # the others are not read
    source = sequence.frames
    coloured = channels > 1
    read = source.take(wanted, colour=coloured) if isinstance(source, FrameFiles) else [source[i] for i in wanted]
    # shifted to start at 0: PIL's float32 would round a small contrast on a large offset away
    offset = min(float(frame.min()) for frame in read)
    values = np.stack([_resized(frame.astype(np.float64) - offset, height, width, channels) for frame in read])
    deviation = values.std()
    if deviation == 0:
        return np.zeros_like(values)
    standardised: Values = (values - values.mean()) / deviation
    return standardised


def gaps(sequence: ImageSequence, frames: int) -> Values:
    """Return `[k]`: `log(1 + days) / log(1 + 365)` between the frames that `prepare` chooses; the first is 0.

    A day is 0.12, a month 0.58 and a year 1. Raises `RawDataError` for a sequence without times.
    """
    if sequence.times is None:
        raise RawDataError("a sequence has no times, so there are no gaps between its frames: ingest without --gaps")
    times = np.array(sequence.times)[chosen_frames(len(sequence.frames), frames)]
    days = np.diff(times, prepend=times[:1])
    logarithms: Values = np.log1p(np.maximum(days, 0.0)) / np.log1p(DAYS_A_YEAR)
    return logarithms


def pad(values: Values, frames: int) -> Values:
    """Return `values [k, ...]`, filled up with zeros to `[frames, ...]`."""
    padded = np.zeros((frames, *values.shape[1:]))
    padded[: len(values)] = values
    return padded


def chosen_frames(length: int, frames: int) -> list[int]:
    """Return the indices of at most `frames` of a sequence's frames, evenly, with the first and the last."""
    if length <= frames:
        return list(range(length))
    chosen: list[int] = np.rint(np.linspace(0, length - 1, frames)).astype(int).tolist()
    return chosen


def _resized(frame: Values, height: int, width: int, channels: int) -> Values:
    """Return `[height, width, channels]` of a grey frame `[.., ..]` or a colour frame `[.., .., channels]`."""
    planes = frame[..., None] if frame.ndim == 2 else frame
    if planes.shape[-1] not in {1, channels}:
        raise RawDataError(f"a frame has {planes.shape[-1]} channels, {channels} are needed")
    resized = np.empty((height, width, planes.shape[-1]))
    for channel in range(planes.shape[-1]):
        image = Image.fromarray(planes[..., channel].astype(np.float32))
        resized[..., channel] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return np.repeat(resized, channels // resized.shape[-1], axis=-1)
