"""HOG baseline, which a network must beat: HOG features of the frames, and logistic regression.

Histograms of oriented gradients after Dalal & Triggs (CVPR 2005): 9 orientations, cells of 8 x 8 pixels, normalised in
blocks of 2 x 2; a sequence has their mean over its frames. The regression has scikit-learn's defaults (C = 1).
Neither was tuned to any data.
"""

import numpy as np
from numpy.typing import NDArray

from fedpp.errors import ConfigError

from .study import Fold, Study

ORIENTATIONS, CELL, BLOCK = 9, 8, 2


def features(frames: NDArray[np.floating], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return `[k, features]` of `[k, frames, height, width, channels]`: the mean over the valid frames.

    With several channels, a pixel's gradient is that of the channel where it is steepest.
    """
    try:
        from skimage.feature import hog
    except ImportError:
        raise ConfigError("the HOG baseline needs scikit-image: pip install '.[simulation]', or --no-hog") from None
    cell = min(CELL, min(frames.shape[2:4]) // BLOCK)
    if cell < 2:
        raise ConfigError(f"images of {frames.shape[2]} x {frames.shape[3]} are too small for HOG: --no-hog, or larger")
    described = [
        [
            hog(frame.astype(np.float64), ORIENTATIONS, (cell, cell), (BLOCK, BLOCK), channel_axis=-1)
            for frame in sequence[of]
        ]
        for sequence, of in zip(frames, valid, strict=True)
    ]
    return np.array([np.mean(vectors, axis=0) for vectors in described])


def probabilities(study: Study, fold: Fold, described: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `[k, classes]` of all sequences, from a regression on the fold's training sequences."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=5000).fit(described[fold.train], study.labels[fold.train])
    result: NDArray[np.float64] = model.predict_proba(described)  # every class is in training (`study.folds`)
    return result
