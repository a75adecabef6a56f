"""Masks of secure aggregation: one of each pair of sites, and one of its own, which its owner releases once.

Bonawitz et al. 2017 (CCS): `y_i = x_i + PRG(b_i) + sum_j +-PRG(s_ij)` in Z_2^k, where s_ij is the key that sites i and
j agree on for one context, `+` for the site whose name sorts first. In the sum of all y_i the masks of the pairs
cancel, and the PRG(b_i) come off as soon as all b_i are known. PRG is AES-256-CTR: the keystream of a key as
little-endian numbers of the ring's width. For the vaults: the coordinator adds masked updates, and imports none of it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedpp.aggregation.ring import CHUNK, EncodedUpdate, Ring
from fedpp.aggregation.round_context import MAX_ENCODED_VALUES
from fedpp.errors import MaskError
from fedpp.key_material import KEY_BYTES, keystream, subkey
from fedpp.values import canonical

_SALT = b"fedpp pair mask 2"
_ZEROS = memoryview(bytes(CHUNK * 8))
_BLOCK = 16  # bytes that a cipher may want beyond what it writes


def pair_key(own: X25519PrivateKey, other: bytes, ctx: bytes, one: str, two: str) -> bytes:
    """Return the key of two sites, by name, for one context, from a site's own key and the other's public one.

    Law: `pair_key(a, B, ctx, i, j) == pair_key(b, A, ctx, j, i)`. Raises `MaskError` for a key that fits no pair.
    """
    if one == two:
        raise MaskError(f"a pair mask is of two sites, got {one!r:.80} twice")
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:  # of another length, or a point of small order, by which anyone knows the shared secret
        raise MaskError("a member's ephemeral key is not valid: it must make a new one") from None
    info = {"context": ctx.hex(), "purpose": "pair", "sites": sorted((one, two))}
    return subkey(shared, salt=_SALT, info=canonical(info))


def masked(
    values: EncodedUpdate, ring: Ring, seed: bytes, pairs: Sequence[tuple[bytes, int]]
) -> Iterator[EncodedUpdate]:
    """Yield the masked update chunk by chunk: its own mask added, and those of its pairs by their signs, 1 or -1.

    Law: for sites that all mask with each other's pairs, `unmasked` of the sum and all seeds is the sum of the values.
    No seed and no key may serve a second vector. Raises `MaskError` for what is no update or no key.
    """
    _require(values, ring, (seed, *(key for key, _ in pairs)))
    if any(sign not in {1, -1} for _, sign in pairs):
        raise MaskError("a pair mask is added or subtracted: its sign is 1 or -1")
    return _masked(values, ring, _Stream(seed, ring), [(_Stream(key, ring), sign) for key, sign in pairs])


def unmasked(low: EncodedUpdate, ring: Ring, seeds: Sequence[bytes], out: EncodedUpdate | None = None) -> EncodedUpdate:
    """Return a sum without the masks of these seeds, in `out` if given, which may be the sum itself."""
    _require(low, ring, seeds)
    result = np.empty_like(low) if out is None else out
    streams = [_Stream(seed, ring) for seed in seeds]
    for start in range(0, low.size, CHUNK):
        some = low[start : start + CHUNK]
        for stream in streams:
            some = np.subtract(some, stream.take(some.size), out=result[start : start + CHUNK])
    return result


def _masked(
    values: EncodedUpdate, ring: Ring, own: "_Stream", pairs: Sequence[tuple["_Stream", int]]
) -> Iterator[EncodedUpdate]:
    for start in range(0, values.size, CHUNK):
        some = values[start : start + CHUNK]
        result = np.add(some, own.take(some.size), dtype=ring.dtype)
        for stream, sign in pairs:
            (np.add if sign > 0 else np.subtract)(result, stream.take(some.size), out=result)
        yield result


class _Stream:
    """The keystream of one key, as ring values; each piece is good until the next one is taken."""

    def __init__(self, key: bytes, ring: Ring) -> None:
        self._cipher, self._dtype = keystream(key), ring.dtype
        self._piece = bytearray(CHUNK * ring.dtype.itemsize + _BLOCK)  # kept: fresh memory costs a sixth more

    def take(self, count: int) -> EncodedUpdate:
        self._cipher.update_into(_ZEROS[: count * self._dtype.itemsize], self._piece)
        return np.frombuffer(self._piece, self._dtype, count)


def _require(values: EncodedUpdate, ring: Ring, keys: Sequence[bytes]) -> None:
    ring.require(values)
    if values.ndim != 1 or not 1 <= values.size <= MAX_ENCODED_VALUES:
        raise MaskError(f"a masked update is a vector of 1 to {MAX_ENCODED_VALUES} values, got {values.shape}")
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise MaskError(f"masks have keys of {KEY_BYTES} bytes, and there must be one")
    if len(set(keys)) != len(keys):
        raise MaskError("two masks have one key: each would be known from the other")
