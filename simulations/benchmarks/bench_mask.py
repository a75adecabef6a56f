"""Benchmark of secure aggregation: masking at a site, adding and unmasking, against memcpy of the same bytes and CKKS.

Each size is measured in processes of its own, so that the peak memory is that of its step. CKKS is TenSEAL's (the extra
`bench`), under parameters that are 128-bit secure by the Homomorphic Encryption Standard (2018): degree 8192 and at
most 218 bits of primes. Two primes serve additions alone; a third leaves room for one product, as is usual.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation.masks import MaskKey
from fedpp.aggregation.ring import CHUNK, EncodedUpdate, Ring
from fedpp.aggregation.round_context import Contribution, Round

from .measuring import MIB, alternating, in_own_process, memory_bytes, result

CASES = ((32, 10**6), (64, 10**6), (32, 10**7), (32, 10**8))  # bits, values of an update
SITES = (3, 10, 100)
CKKS_VALUES = 10**6
CKKS = ((8192, (60, 40, 60)), (8192, (60, 60)))  # degree, bits of primes
CKKS_SITES = 10  # for our part of the row: CKKS decrypts one sum, of any number of sites
MAX_REPETITIONS, REPEATED_VALUES = 15, 5 * 10**7
EXAMPLES = 1000  # of a site
SCALE = 2.0**40

Task = Callable[[], object]
_KEY = MaskKey(bytes(range(32)))


def mask(values: int | None = None) -> dict[str, Any]:
    """Time masking, adding and unmasking of updates of several sizes, or of this many values."""
    cases = CASES if values is None else ((32, values), (64, values))
    rows = [_case(bits, count) for bits, count in cases]
    names = ["fedpp", "numpy", "cryptography"]
    if find_spec("tenseal") is None:
        print("TenSEAL is not installed, so CKKS is not measured: pip install -e '.[bench]'", file=sys.stderr)
    else:
        names.append("tenseal")
        rows += [in_own_process("bench_mask", "ckks", number, values or CKKS_VALUES) for number in range(len(CKKS))]
    return result("mask", rows, names)


def _case(bits: int, length: int) -> dict[str, Any]:
    row = {"case": f"{length:,} values of {bits} bits", "mb": length * bits / 8e6}
    row |= in_own_process("bench_mask", "site", bits, length)
    for sites in SITES:
        row |= in_own_process("bench_mask", "unmask", bits, length, sites)
    return row | {"load": os.getloadavg()[0]}


def _round(bits: int, length: int) -> Round:
    ring = Ring(bits, examples=EXAMPLES * SITES[-1], sites=SITES[-1], bound=8.0)
    return Round("0" * 64, 1, 0, "0" * 64, "0" * 64, length, ring)


def _values(length: int, bits: int = 32) -> NDArray[np.float32 | np.float64]:
    values = np.random.default_rng(0).standard_normal(length, np.float32)
    return values.astype(np.float64) if bits == 64 else values


def _masked(of: Round, part: Contribution, values: NDArray[Any], out: EncodedUpdate) -> int:
    """Encode and mask values chunk by chunk, as a site does; return the tag."""
    masker = _KEY.masker(of, part)
    for start in range(0, values.size, CHUNK):
        encoded = of.ring.encode(values[start : start + CHUNK], EXAMPLES)
        out[start : start + CHUNK] = masker.mask(encoded)
    return masker.tag()


def _masked_sum(of: Round, parts: Sequence[Contribution]) -> tuple[EncodedUpdate, int]:
    """Return the sum of masked updates, of which a chunk is in memory at a time, and the sum of their tags."""
    total, tag = np.zeros(of.length, of.ring.dtype), 0
    encoded = of.ring.encode(_values(min(CHUNK, of.length)), EXAMPLES)
    for part in parts:
        masker = _KEY.masker(of, part)
        for start in range(0, of.length, CHUNK):
            some = total[start : start + CHUNK]
            of.ring.add(some, masker.mask(encoded[: some.size]))
        tag += masker.tag()
    return total, tag


def _parts(count: int) -> list[Contribution]:
    return [Contribution.fresh(f"site-{number}", EXAMPLES, 1) for number in range(count)]


def _repetitions(length: int) -> int:
    return max(1, min(MAX_REPETITIONS, REPEATED_VALUES // length))


def _site(bits: int, length: int) -> dict[str, float]:
    of, (part,), values = _round(bits, length), _parts(1), _values(length, bits)
    under, total, copy = np.ones((3, length), of.ring.dtype)
    tasks: dict[str, Task] = {
        "mask": lambda: _masked(of, part, values, under),
        "add": lambda: of.ring.add(total, under),
        "memcpy": lambda: np.copyto(copy, under),
    }
    seconds = alternating(tasks, _repetitions(length))
    ratios = {f"{name}_to_memcpy": seconds[name] / seconds["memcpy"] for name in ("mask", "add")}
    return {f"{name}_seconds": value for name, value in seconds.items()} | ratios


def _unmask(bits: int, length: int, sites: int) -> dict[str, float]:
    of, parts = _round(bits, length), _parts(sites)
    before = memory_bytes("VmHWM")
    masked, tag = _masked_sum(of, parts)
    total = np.empty_like(masked)
    tasks: dict[str, Task] = {
        "memcpy": lambda: np.copyto(total, masked),  # for the next turn of unmask, which overwrites it
        "unmask": lambda: _KEY.unmask(of, parts, total, tag),
    }
    seconds = alternating(tasks, _repetitions(length))
    name = f"unmask_{sites}"
    return {
        f"{name}_seconds": seconds["unmask"],
        f"{name}_to_memcpy": seconds["unmask"] / seconds["memcpy"],
        f"{name}_peak_mb": (memory_bytes("VmHWM") - before - masked.nbytes) / MIB,
    }


def _ckks(number: int, length: int) -> dict[str, Any]:
    import tenseal

    degree, primes = CKKS[number]
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=list(primes))
    context.global_scale = SCALE
    of, values, slots = _round(32, length), _values(length), degree // 2
    pieces = [values[start : start + slots] for start in range(0, length, slots)]

    def encrypt() -> list[bytes]:
        return [tenseal.ckks_vector(context, piece).serialize() for piece in pieces]

    sent = encrypt()
    sums = [tenseal.ckks_vector_from(context, content) for content in sent]
    parts = _parts(CKKS_SITES)
    under, total = np.ones((2, length), of.ring.dtype)
    masked_sum, tag = _masked_sum(of, parts)

    def add() -> None:
        for piece, content in zip(sums, sent, strict=True):
            piece.add_(tenseal.ckks_vector_from(context, content))

    def decrypt() -> list[list[float]]:
        return [tenseal.ckks_vector_from(context, content).decrypt() for content in sent]

    error = max(float(np.abs(np.subtract(*pair)).max()) for pair in zip(decrypt(), pieces, strict=True))
    tasks: dict[str, Task] = {
        "mask": lambda: _masked(of, parts[0], values, under),
        "add": lambda: of.ring.add(total, under),
        "unmask": lambda: _KEY.unmask(of, parts, masked_sum.copy(), tag),
        "ckks_encrypt": encrypt,
        "ckks_add": add,
        "ckks_decrypt": decrypt,
    }
    seconds = alternating(tasks, 3)
    size = sum(map(len, sent))
    return {
        "case": f"{length:,} values under CKKS, degree {degree}, primes of {'-'.join(map(str, primes))} bits",
        "ckks_mb": size / 1e6,
        **{f"{name}_seconds": value for name, value in seconds.items() if name.startswith("ckks")},
        "ckks_largest_error": error,
        "bytes_to_ckks": under.nbytes / size,
        "mask_to_ckks_encrypt": seconds["mask"] / seconds["ckks_encrypt"],
        "add_to_ckks_add": seconds["add"] / seconds["ckks_add"],
        f"unmask_{CKKS_SITES}_to_ckks_decrypt": seconds["unmask"] / seconds["ckks_decrypt"],
        "round_to_ckks": sum(seconds[name] for name in ("mask", "add", "unmask"))
        / sum(seconds[f"ckks_{name}"] for name in ("encrypt", "add", "decrypt")),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    _step: dict[str, Callable[..., dict[str, Any]]] = {"site": _site, "unmask": _unmask, "ckks": _ckks}
    print(json.dumps(_step[sys.argv[1]](*map(int, sys.argv[2:]))))
