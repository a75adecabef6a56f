"""Orthogonal frame mixing (`more-frame`): Algorithm 1 read as `C = P K`, applied to frames only.

P is a frame. Its rows are rows of pixels, as the paper prints it, or patches: squares of `patch` pixels a side, left to
right and top to bottom. A row has all channels. K is secret and orthogonal (a Gaussian K costs accuracy): every row
keeps its norm and its place in the frame. Labels and time gaps are plain numbers. This is obfuscation, not secrecy:
see docs/explanation/threats.md.

With patches, a first convolution with the patch's stride, whose kernel is one or several patches wide, spans the same
functions on ciphertext as on plaintext: `P w == C (K^T w)`.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from fedpp.cipher.algebra import Matrix
from fedpp.config.hyperparameters import Dtype
from fedpp.errors import ConfigError
from fedpp.keys.encryption import PAIRS, Values
from fedpp.keys.key_domain import KeyDomain

FrameLayout = Literal["rows", "patches"]

DEFAULT_PATCH = 2  # pixels a side: an ordinary network loses no accuracy with it (docs/explanation/numerics.md)
FRAME_LAYOUTS: tuple[FrameLayout, ...] = get_args(FrameLayout)


class FrameCipher:
    """Encrypts the sequences of one `more-frame` domain, with the methods of `fedpp.keys.encryption.SequenceCipher`.

    Products are computed in float64 and rounded once. There is no noise: `name` has no effect, and equal rows of two
    frames have equal ciphertexts.
    """

    def __init__(self, domain: KeyDomain, dtype: Dtype, layout: FrameLayout, patch: int) -> None:
        """Fix the layout; `patch` is the side of a patch in pixels, or 0 for rows."""
        if domain.scheme != "more-frame":
            raise ConfigError(f"mixing frames needs a domain of the scheme more-frame, got {domain.scheme}")
        if layout not in FRAME_LAYOUTS:
            raise ConfigError(f"a frame's layout is one of {', '.join(FRAME_LAYOUTS)}, got {layout!r:.40}")
        if (layout == "patches" and patch < 2) or (layout == "rows" and patch != 0):
            raise ConfigError(
                f"a patch has at least 2 pixels a side, and rows have patch 0; got {layout} with patch {patch}"
            )
        self._domain, self._dtype, self._layout, self._patch = domain, np.dtype(dtype), layout, patch
        self._keys: dict[int, Matrix] = {}  # by size; one size serves all frames of a dataset

    def check(self, height: int, width: int) -> None:
        """Raise `ConfigError` unless images of this size can be cut into whole patches."""
        if self._patch and (height % self._patch or width % self._patch):
            raise ConfigError(
                f"images of {height} x {width} are not made of patches of {self._patch} x {self._patch}: "
                "choose a size that the patch divides"
            )

    def frames(self, name: str, values: Values, out: Values | None = None) -> Values:
        """Encrypt standardised pixels `[frames, height, width, channels]` to `[frames, height, width, channels, 1]`.

        They are written into `out` if it is given; it must have this shape and dtype, or `ValueError` is raised.
        Raises `ConfigError` for sizes that the patch does not divide. Laws: `decrypt_frames(frames(name, x)) == x`;
        every row of P keeps its norm.
        """
        shape = (*values.shape, 1)
        result = np.empty(shape, self._dtype) if out is None else out
        if result.shape != shape or result.dtype != self._dtype:
            raise ValueError(f"frames do not fit into an array of shape {result.shape} and dtype {result.dtype}")
        result[..., 0] = self._mixed(values, inverse=False)
        return result

    def label(self, name: str, number: int, classes: int) -> Values:
        """Return a class number as one-hot `[classes, 1]`, not encrypted."""
        return np.eye(classes, dtype=self._dtype)[number, :, None]

    def findings(self, name: str, states: Sequence[int]) -> Values:
        """Return findings' states as pairs (absent, present) `[findings, 2, 1]`, not encrypted."""
        return PAIRS[list(states)].astype(self._dtype)[..., None]

    def gaps(self, name: str, values: Values) -> Values:
        """Return time gaps `[frames]` as `[frames, 1]`, not encrypted."""
        return values.astype(self._dtype)[:, None]

    def decrypt_frames(self, rows: Values) -> Values:
        """Decrypt rows `[..., 1]` to pixels `[frames, height, width, channels]` in float64; secret zone only."""
        return self._mixed(rows[..., 0], inverse=True)

    def _mixed(self, values: Values, *, inverse: bool) -> Values:
        """Return `[frames, height, width, channels]` with each row of P replaced by its product with K, or K^T."""
        frames, height, width, channels = values.shape
        self.check(height, width)
        tall, wide = (self._patch, self._patch) if self._layout == "patches" else (1, width)
        size = tall * wide * channels
        if size not in self._keys:
            self._keys[size] = self._domain.frame_key(self._layout, size)
        k = self._keys[size].T if inverse else self._keys[size]
        grid = values.astype(np.float64).reshape(frames, height // tall, tall, width // wide, wide, channels)
        p = grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size)
        c = (p @ k).reshape(frames, height // tall, width // wide, tall, wide, channels)
        return c.transpose(0, 1, 3, 2, 4, 5).reshape(values.shape)
