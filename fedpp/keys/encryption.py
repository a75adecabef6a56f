"""Encryption under a key domain: pack values with their decoys, and multiply by SK.

The slots 1 .. n-1 carry a decoy that must stay finite through training: inputs uniform at the data's scale,
labels one-hot. (Weights get theirs in `fedpp.learning.initial`.) Everything is computed in float64 and rounded
once to the dtype of the rows.
"""

import numpy as np
from numpy.typing import NDArray

from fedpp.cipher import algebra
from fedpp.config import Dtype
from fedpp.keys.domain import KeyDomain

Values = NDArray[np.floating]


def encrypt_values(domain: KeyDomain, values: Values, dtype: Dtype) -> Values:
    """Encrypt `[...]` to rows `[..., n]`.

    Decoys are uniform, with the values' mean and standard deviation (1 around a constant): larger ones, as the
    whole range would give, cost the message's slot bits, since all slots of a ciphertext share its rounding.
    """
    mean, deviation = float(values.mean()), float(values.std()) or 1.0
    reach = np.sqrt(3.0) * deviation
    decoys = domain.noise().uniform(mean - reach, mean + reach, (*values.shape, domain.n - 1))
    return _encrypt(domain, values, decoys, dtype)


def encrypt_labels(domain: KeyDomain, labels: NDArray[np.integer], classes: int, dtype: Dtype) -> Values:
    """Encrypt class numbers `[k]` to one-hot rows `[k, classes, n]` with one-hot decoys."""
    decoys = domain.noise().integers(classes, size=(len(labels), domain.n - 1))
    one_hot = np.eye(classes)
    return _encrypt(domain, one_hot[labels], np.moveaxis(one_hot[decoys], 1, 2), dtype)


def decrypt(domain: KeyDomain, rows: Values) -> Values:
    """Return the messages `[...]` of rows `[..., n]`, in float64."""
    return algebra.decrypt(rows.astype(np.float64), domain.matrix())[..., 0]


def _encrypt(domain: KeyDomain, values: Values, decoys: Values, dtype: Dtype) -> Values:
    slots = np.concatenate([values[..., None], decoys], axis=-1).astype(np.float64)
    return algebra.encrypt(slots, domain.matrix()).astype(dtype)
