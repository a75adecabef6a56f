"""What every reader gives: one patient's images in the order of time, still in clear."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.float64]  # [height, width], grey


@dataclass(frozen=True)
class ImageSequence:
    """One sequence; frames may differ in size. Neither identifiers nor pixels are shown in its repr."""

    id: str = field(repr=False)
    patient: str = field(repr=False)
    label: str | None
    frames: tuple[Frame, ...] = field(repr=False)
