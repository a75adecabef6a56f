"""Encryption of sequences under a key domain: pack values with decoys, and multiply by SK (Algorithm 1).

The slots 1 .. n-1 carry decoys that must stay finite through training: inputs uniform at the data's scale, labels
one-hot, findings as pairs. (Decoys of weights come from `fedpp.learning.initial_weights`.)

Decoys are a deterministic function of the domain, the sequence's name and its values, in the construction of
AES-GCM-SIV (RFC 8452): a keyed hash of name and values (here AES-GMAC) seeds a keystream (AES-CTR). So the same raw
data give the same dataset, byte for byte on one machine, and different values never share decoys.
"""

from collections.abc import Callable, Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray
from scipy.linalg.blas import dgemm, sgemm

from fedpp.cipher import algebra
from fedpp.config.hyperparameters import Dtype
from fedpp.errors import DatasetError
from fedpp.keys.key_domain import KeyDomain
from fedpp.protocol.counts import UNKNOWN

Values = NDArray[np.floating]

BLOCK = 8  # values in one row of the matrix products
CHUNK = 2**15  # values encrypted at a time: they and their decoys stay in the processor's cache
_NOISE = np.dtype("<i2")  # resolution of a decoy: finer than the pixels'
_NONCE = bytes(12)  # constant, since the digest is a keyed hash that is never published
_SCALE = 2.0**15  # an integer / 2^15 is uniform in [-1, 1)
_UNIFORM = np.sqrt(3.0)  # uniform in +- sqrt 3 has mean 0 and deviation 1
PAIRS = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # (absent, present) by a finding's state; UNKNOWN is the last
LABEL_TOLERANCE = 0.01  # float32 rows under R of condition 10 stay within 1e-5
LONGEST_GAP = 1.5  # in the measure of `fedpp.imaging.preparation.gaps`, where a year is 1: decoys reach this far


class SequenceCipher:
    """Encrypts the sequences of one domain, in rows of one dtype.

    Products are computed in the rows' dtype, so float32 rows hold their message to some units of its last place.
    """

    def __init__(self, domain: KeyDomain, dtype: Dtype) -> None:
        """Derive the keys and matrices that every sequence needs."""
        self._n, self._dtype = domain.n, np.dtype(dtype)
        self._r = domain.matrix()
        sk = np.linalg.inv(self._r)
        # Block-diagonal: BLOCK values side by side times this are their BLOCK rows, side by side.
        scales = (1.0, *(_UNIFORM / _SCALE,) * (domain.n - 1))
        self._factors = [
            np.asfortranarray(np.kron(np.eye(BLOCK), row * scale).T, self._dtype)
            for row, scale in zip(sk, scales, strict=True)
        ]
        self._gemm: Callable[..., Values] = sgemm if dtype == "float32" else dgemm
        self._digest = AESGCM(domain.derive("decoy digest", 16))
        self._keystream = Cipher(algorithms.AES(domain.derive("decoy keystream", 16)), modes.CTR(bytes(16))).encryptor()
        self._zeros = memoryview(bytes(CHUNK * _NOISE.itemsize))
        self._integers = np.empty(CHUNK, _NOISE)
        self._integer_blocks = self._integers.reshape(-1, BLOCK).T
        self._buffer = self._integers.view(np.uint8).data
        self._noise = np.empty((CHUNK // BLOCK, BLOCK), self._dtype).T

    def frames(self, name: str, values: Values, out: Values | None = None) -> Values:
        """Encrypt standardised pixels `[...]` of the sequence of this name to rows `[..., n]`.

        They are written into `out` if it is given; it must be C-contiguous and have this shape and dtype, or
        `ValueError` is raised. Decoys are uniform with the pixels' mean and deviation, 0 and 1: larger ones would cost
        the message precision, since all slots of a ciphertext share its rounding.
        """
        message = np.ascontiguousarray(values, self._dtype).reshape(-1)
        self._start("frames", name, message)
        rest = -message.size % BLOCK
        shape = (*values.shape, self._n)
        result = np.empty(shape, self._dtype) if out is None else out
        if result.shape != shape or result.dtype != self._dtype or not result.flags.c_contiguous:
            raise ValueError(f"rows do not fit into an array of shape {result.shape} and dtype {result.dtype}")
        if rest:
            whole = np.empty((message.size + rest, self._n), self._dtype)
            self._multiply(np.append(message, np.zeros(rest, self._dtype)), whole)
            result.reshape(-1, self._n)[:] = whole[: message.size]
        else:
            self._multiply(message, result)
        return result

    def label(self, name: str, number: int, classes: int) -> Values:
        """Encrypt a class number to one-hot rows `[classes, n]` with one-hot decoys."""
        self._start("label", name, np.array([number, classes], np.int64))
        decoys = (self._draw(self._n - 1).astype(np.int64) + int(_SCALE)) % classes
        slots = np.eye(classes)[:, [number, *decoys]]
        return algebra.encrypt(slots, self._r).astype(self._dtype)

    def findings(self, name: str, states: Sequence[int]) -> Values:
        """Encrypt findings' states, 1, 0 or `UNKNOWN`, to rows `[findings, 2, n]`: a pair (absent, present) for each.

        A decoy is a pair (1, 0) or (0, 1) even where the state is unknown, so decoys do not reveal which are known.
        """
        self._start("findings", name, np.array(states, np.int64))
        decoys = self._draw(len(states) * (self._n - 1)).astype(np.int64).reshape(self._n - 1, len(states)) % 2
        slots = np.moveaxis(PAIRS[np.array([states, *decoys])], 0, -1)
        return algebra.encrypt(slots, self._r).astype(self._dtype)

    def gaps(self, name: str, values: Values) -> Values:
        """Encrypt time gaps `[frames]` to rows `[frames, n]` with decoys uniform in 0 .. `LONGEST_GAP`."""
        self._start("gaps", name, np.ascontiguousarray(values, np.float64))
        integers = [self._draw(values.size).astype(np.float64) for _ in range(self._n - 1)]
        decoys = (np.array(integers) / _SCALE + 1.0) * (LONGEST_GAP / 2)
        slots = np.column_stack([values, *decoys])
        return algebra.encrypt(slots, self._r).astype(self._dtype)

    def _multiply(self, message: Values, rows: Values) -> None:
        """Write the rows `[k, n]` of messages `[k]`, k a multiple of `BLOCK`, with noise from the keystream."""
        messages, targets = message.reshape(-1, BLOCK).T, rows.reshape(-1, BLOCK * self._n).T
        for start in range(0, messages.shape[1], CHUNK // BLOCK):
            part = messages[:, start : start + CHUNK // BLOCK]
            target = targets[:, start : start + CHUNK // BLOCK]
            self._gemm(1.0, self._factors[0], part, c=target, overwrite_c=1)
            noise, integers = self._noise[:, : part.shape[1]], self._integer_blocks[:, : part.shape[1]]
            for factors in self._factors[1:]:
                self._draw(part.size)
                np.copyto(noise, integers, casting="unsafe")
                self._gemm(1.0, factors, noise, beta=1.0, c=target, overwrite_c=1)

    def _start(self, kind: str, name: str, values: NDArray[np.generic]) -> None:
        """Start the keystream of these values under this name."""
        tag = self._digest.encrypt(_NONCE, f"{kind}|{name}".encode(), values.view(np.uint8).data)[-16:]
        self._keystream.reset_nonce(tag)

    def _draw(self, count: int) -> NDArray[np.int16]:
        """Return the next integers of the keystream, at most a chunk; the next call overwrites them."""
        size = count * _NOISE.itemsize
        self._keystream.update_into(self._zeros[:size], self._buffer[:size])
        return self._integers[:count]


def decrypt_classes(domain: KeyDomain, rows: Values) -> NDArray[np.int64]:
    """Decrypt labels, rows `[k, classes, n]`, to class numbers `[k]`; raise `DatasetError` if they are not one-hot."""
    one_hot = decrypt(domain, rows)
    numbers: NDArray[np.int64] = one_hot.argmax(axis=1)
    _require_labels(one_hot, np.eye(one_hot.shape[1])[numbers])
    return numbers


def decrypt_findings(domain: KeyDomain, rows: Values) -> NDArray[np.int64]:
    """Decrypt rows `[k, findings, 2, n]` to states `[k, findings]`; raise `DatasetError` if they are not pairs."""
    pairs = decrypt(domain, rows)
    states = np.where(pairs.sum(axis=-1) < 0.5, UNKNOWN, pairs.argmax(axis=-1))
    _require_labels(pairs, PAIRS[states])
    return states


def _require_labels(labels: Values, expected: Values) -> None:
    if not np.allclose(labels, expected, rtol=0.0, atol=LABEL_TOLERANCE):
        raise DatasetError("the dataset's labels do not decrypt to classes: it is damaged, ingest it again")


def decrypt(domain: KeyDomain, rows: Values) -> Values:
    """Return the messages `[...]` of rows `[..., n]`, in float64."""
    return algebra.decrypt(rows.astype(np.float64), domain.matrix())[..., 0]
