"""The frame form of encryption: Algorithm 1 in its second reading, `C = P K`, on frames alone.

P is a frame. Its rows are the frame's own rows of pixels, as the paper prints it, or its patches: squares of `patch`
pixels a side, left to right and top to bottom. A row holds all channels. K is secret and orthogonal (a Gaussian one
costs accuracy), so nothing grows: every row keeps its norm, and stands where its pixels stood. Labels and time gaps are
plain numbers. It is obfuscation and no secrecy: see docs/threats.md.

With patches, a first convolution of the patch's stride, whose kernel is one or several patches wide, spans the same
functions on ciphertext as on plaintext: `P w == C (K^T w)`.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from fedpp.cipher.algebra import Matrix
from fedpp.config.run_config import Dtype
from fedpp.errors import ConfigError
from fedpp.keys.encryption import PAIRS, Values
from fedpp.keys.key_domain import KeyDomain

FrameLayout = Literal["rows", "patches"]

DEFAULT_PATCH = 2  # pixels a side: measured, an ordinary network loses nothing on it (docs/numerics.md)
FRAME_LAYOUTS: tuple[FrameLayout, ...] = get_args(FrameLayout)


class FrameCipher:
    """Encrypts the sequences of one `more-frame` domain; has the methods of `fedpp.keys.encryption.SequenceCipher`.

    The products are computed in float64 and rounded once. There is no noise: `name` has no effect, and what is equal in
    two frames is equal in their ciphertexts.
    """

    def __init__(self, domain: KeyDomain, dtype: Dtype, layout: FrameLayout, patch: int) -> None:
        """Fix the layout; `patch` is the side of a patch in pixels, and 0 for rows."""
        if domain.scheme != "more-frame":
            raise ConfigError(f"frames are mixed under a domain of the scheme more-frame, got {domain.scheme}")
        if layout not in FRAME_LAYOUTS:
            raise ConfigError(f"a frame's layout is one of {', '.join(FRAME_LAYOUTS)}, got {layout!r:.40}")
        if (layout == "patches" and patch < 2) or (layout == "rows" and patch != 0):
            raise ConfigError(f"patches have at least 2 pixels a side, and rows none; got {layout} with patch {patch}")
        self._domain, self._dtype, self._layout, self._patch = domain, np.dtype(dtype), layout, patch
        self._keys: dict[int, Matrix] = {}  # by size, since a key is the same for all frames of a dataset

    def check(self, height: int, width: int) -> None:
        """Raise `ConfigError` unless images of these sizes are whole patches."""
        if self._patch and (height % self._patch or width % self._patch):
            raise ConfigError(
                f"images of {height} x {width} are not made of patches of {self._patch} x {self._patch}: "
                "choose a size that the patch divides"
            )

    def frames(self, name: str, values: Values, out: Values | None = None) -> Values:
        """Encrypt standardised pixels `[frames, height, width, channels]` to `[frames, height, width, channels, 1]`.

        They are written into `out` if it is given, of this shape and dtype, or `ValueError` is raised. Raises
        `ConfigError` for sizes that are not whole patches. Laws: `decrypt_frames(frames(name, x)) == x`; every row of P
        keeps its norm.
        """
        shape = (*values.shape, 1)
        result = np.empty(shape, self._dtype) if out is None else out
        if result.shape != shape or result.dtype != self._dtype:
            raise ValueError(f"frames do not fit into an array of shape {result.shape} and dtype {result.dtype}")
        result[..., 0] = self._mixed(values, inverse=False)
        return result

    def label(self, name: str, number: int, classes: int) -> Values:
        """Return a class number as one-hot `[classes, 1]`: it is a plain number, which the trainer reads."""
        return np.eye(classes, dtype=self._dtype)[number, :, None]

    def findings(self, name: str, states: Sequence[int]) -> Values:
        """Return findings' states as their pairs (absent, present) `[findings, 2, 1]`: plain numbers, too."""
        return PAIRS[list(states)].astype(self._dtype)[..., None]

    def gaps(self, name: str, values: Values) -> Values:
        """Return time gaps `[frames]` as `[frames, 1]`: they are plain numbers, which the trainer reads."""
        return values.astype(self._dtype)[:, None]

    def decrypt_frames(self, rows: Values) -> Values:
        """Return the pixels `[frames, height, width, channels]` of `[..., 1]`, in float64: for the secret zone."""
        return self._mixed(rows[..., 0], inverse=True)

    def _mixed(self, values: Values, *, inverse: bool) -> Values:
        """Return `[frames, height, width, channels]` with each row of P times K, or times K^T, in its place."""
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
