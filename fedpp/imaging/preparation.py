"""From a raw sequence to what the network sees: frames chosen, resized and standardised."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedpp.errors import ConfigError

from .sequence import FrameFiles, ImageSequence


def prepare(sequence: ImageSequence, frames: int, height: int, width: int) -> NDArray[np.float64]:
    """Return `[frames, height, width, 1]` of mean 0 and standard deviation 1, or zeros if it is constant.

    Frames are chosen evenly, first and last included; a short sequence repeats some. Images are resized with
    antialiasing, the aspect ratio is not kept.
    """
    if min(frames, height, width) < 1:
        raise ConfigError(f"a prepared sequence needs sizes of at least 1, got {frames} x {height} x {width}")
    chosen = np.rint(np.linspace(0, len(sequence.frames) - 1, frames)).astype(int)
    wanted = sorted(set(chosen.tolist()))  # the others are not even read
    source = sequence.frames
    read = source.take(wanted) if isinstance(source, FrameFiles) else [source[i] for i in wanted]
    used = dict(zip(wanted, read, strict=True))
    # shifted to start at 0: PIL's float32 would round a small contrast on a large offset away
    offset = min(float(frame.min()) for frame in used.values())
    resized = {i: _resized(frame.astype(np.float64) - offset, height, width) for i, frame in used.items()}
    values = np.stack([resized[i] for i in chosen])[..., None]
    deviation = values.std()
    if deviation == 0:
        return np.zeros_like(values)
    standardised: NDArray[np.float64] = (values - values.mean()) / deviation
    return standardised


def _resized(frame: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    image = Image.fromarray(frame.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float64)
