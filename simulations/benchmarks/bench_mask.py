"""Benchmark of secure aggregation: a round at one site and at the coordinator, with and without a drop-out.

One site is real: it makes its keys with all others, masks, states its tag, tests the sum and takes the masks off. The
vectors of the others are drawn as the coordinator adds them, so that memory for a few vectors suffices; the last one is
what makes the sum that of the real update and of zeros, so each measured round opens what it must. After a drop-out a
revision follows: the site masks what it has stored anew, and the coordinator adds vectors of the remaining sites.
Network, disk and signatures are left out, and so is what a step of the model costs (`bench step`).

Beside it, in turns and in seconds of the processor: CKKS, and SecAgg+ of Flower (`other_aggregation`). Each size is
measured in a process of its own, so that its peak memory is its own.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.util import find_spec
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from fedpp.aggregation.linear_check import (
    PRIME,
    ExactSum,
    SumTest,
    require_sum,
    sum_hash,
    sum_tag,
    tag,
    vector_hash,
)
from fedpp.aggregation.pair_masks import masked, pair_key, unmasked
from fedpp.aggregation.ring import EncodedUpdate, Ring
from fedpp.errors import MaskError

from .measuring import MIB, in_own_process, memory_bytes, result
from .other_aggregation import CKKS, SHARES, Costs, ckks_round, secagg_round

CASES = ((32, 10**6), (64, 10**6), (32, 10**7), (32, 10**8))  # bits, values of an update
SITES = (3, 10, 50)
MIN_REVISION = 3  # sites: fewer hide no honest site beside a colluding one, and wait until the lost one is back
BESIDE_VALUES, BESIDE_SITES = 10**6, 10
MAX_REPETITIONS, REPEATED_VALUES = 5, 10**8
EXAMPLES = 1000  # of a site
CONTEXT = b"a round of the benchmark"
_AWAY = "one site away"

Values = NDArray[np.float32 | np.float64]


def mask(values: int | None = None) -> dict[str, Any]:
    """Time rounds of several sizes, or of this many values, and one beside CKKS and Flower's SecAgg+."""
    cases = CASES if values is None else ((32, values), (64, values))
    rows = [in_own_process("bench_mask", "round", *case, sites) for case in cases for sites in SITES]
    names = ["fedpp", "numpy", "cryptography", "flwr"]
    if find_spec("tenseal") is None:
        print("TenSEAL is not installed, so CKKS is not measured: pip install -e '.[bench]'", file=sys.stderr)
    else:
        names.append("tenseal")
    rows += in_own_process("bench_mask", "beside", values or BESIDE_VALUES, BESIDE_SITES)
    return result("mask", rows, names)


@dataclass
class Clock:
    """Seconds by the name of the step that took them, on the wall or of the processor."""

    now: Callable[[], float] = perf_counter
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Add the seconds of what is inside to a step."""
        started = self.now()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + self.now() - started


SITE_STEPS = ("mask", "release", "step")  # P1 to P3 of a round
COORDINATOR_STEPS = ("add", "commit")


class MaskedRound:
    """One round of `sites`, of which the first is real."""

    def __init__(self, bits: int, length: int, sites: int) -> None:
        """Draw the real site's update, and the keys of all."""
        self.ring, self.length, self.sites = Ring(bits, EXAMPLES * sites, sites, 8.0), length, sites
        self.values = _values(length, bits)
        self.encoded = self.ring.encode(self.values, EXAMPLES)
        self._own, *others = (X25519PrivateKey.generate() for _ in range(sites))
        self._public = [other.public_key().public_bytes_raw() for other in others]
        self._seeds = [os.urandom(32) for _ in range(sites)]

    def measured(self, now: Callable[[], float] = perf_counter) -> dict[str, float]:
        """Return the seconds of each step; a sum that is not that of the updates raises `MaskError`."""
        clock = Clock(now)
        with clock.of("mask"):
            self.ring.encode(self.values, EXAMPLES, self.encoded)
            own = self._masked()
            vector_hash(own)
        total, test = ExactSum(self.length, self.ring), SumTest()
        for vector in self._vectors(own):
            with clock.of("add"):
                vector_hash(vector)
                total.add(vector)
                test.add(vector)
        with clock.of("commit"):
            stated = total.hash
            test.require(total.low, total.carry)
        self._open(clock, own, total, stated)
        return clock.seconds

    def _open(self, clock: Clock, own: EncodedUpdate, total: ExactSum, stated: str) -> None:
        aggregate = sha256(stated.encode()).hexdigest()
        with clock.of("release"):
            stated_tag = tag(aggregate, own)
        # The others' tags add up to this by the law that the tests prove; each would need its vector again.
        rest = (sum_tag(aggregate, total.low, total.carry) - stated_tag) % PRIME
        tags = [stated_tag, rest, *[0] * (self.sites - 2)]
        with clock.of("step"):
            if sum_hash(total.low, total.carry) != stated:
                raise MaskError("the sum is not the one that was stated")
            require_sum(aggregate, total.low, total.carry, tags, self.ring, self.length)
            opened = unmasked(total.low, self.ring, self._seeds, out=total.low)
            self.ring.decode(opened, self.sites * EXAMPLES)
        np.testing.assert_array_equal(opened, self.encoded)

    def _masked(self) -> EncodedUpdate:
        names = [f"Site {number:02}" for number in range(self.sites)]
        pairs = [
            (pair_key(self._own, public, CONTEXT, names[0], name), 1)
            for public, name in zip(self._public, names[1:], strict=True)
        ]
        result, start = np.empty_like(self.encoded), 0
        for chunk in masked(self.encoded, self.ring, self._seeds[0], pairs):
            result[start : start + chunk.size] = chunk
            start += chunk.size
        return result

    def _vectors(self, own: EncodedUpdate) -> Iterator[EncodedUpdate]:
        """Yield the vectors of all sites: the real one, drawn ones, and what is left of the sum that must open."""
        left, start = np.empty_like(own), 0
        keys = [(seed, 1) for seed in self._seeds[1:]]
        for chunk in masked(self.encoded, self.ring, self._seeds[0], keys):
            left[start : start + chunk.size] = chunk
            start += chunk.size
        yield own
        np.subtract(left, own, out=left)
        for number in range(self.sites - 2):
            drawn = np.random.default_rng(number).integers(0, 1 << self.ring.bits, self.length, own.dtype.type)
            np.subtract(left, drawn, out=left)
            yield drawn.astype(own.dtype, copy=False)
        yield left


def _round(bits: int, length: int, sites: int) -> dict[str, Any]:
    """Measure a round, and a revision of it without one site."""
    before = memory_bytes("VmHWM")
    whole = _medians(MaskedRound(bits, length, sites))
    peak = (memory_bytes("VmHWM") - before) / MIB
    revised = _medians(MaskedRound(bits, length, sites - 1)) if sites > MIN_REVISION else None
    sent, received = length * bits // 8, length * (bits // 8 + 2)
    row = {
        "case": f"{length:,} values of {bits} bits, {sites} sites",
        **{f"{step}_seconds": seconds for step, seconds in whole.items()},
        "site_seconds": sum(whole[step] for step in SITE_STEPS),
        "coordinator_seconds": sum(whole[step] for step in COORDINATOR_STEPS),
        "site_sends_mb": sent / 1e6,
        "site_receives_mb": received / 1e6,
        "coordinator_receives_mb": sites * sent / 1e6,
        "coordinator_sends_mb": sites * received / 1e6,
        "peak_mb": peak,
    }
    if revised is not None:  # the first masking and adding was for nothing
        row |= {
            "dropout_site_seconds": whole["mask"] + sum(revised[step] for step in SITE_STEPS),
            "dropout_coordinator_seconds": whole["add"] + sum(revised[step] for step in COORDINATOR_STEPS),
            "dropout_site_sends_mb": 2 * sent / 1e6,
            "dropout_coordinator_receives_mb": (2 * sites - 1) * sent / 1e6,
        }
    return row | {"load": os.getloadavg()[0]}


def _medians(of: MaskedRound) -> dict[str, float]:
    times = [of.measured() for _ in range(max(1, min(MAX_REPETITIONS, REPEATED_VALUES // (of.length * of.sites))))]
    return {step: median(seconds[step] for seconds in times) for step in times[0]}


def _beside(length: int, sites: int) -> list[dict[str, Any]]:
    """Time rounds of ours, of CKKS and of SecAgg+ in turns; the first turn does not count."""
    whole, revised, values = MaskedRound(32, length, sites), MaskedRound(32, length, sites - 1), _values(length)
    tasks: dict[str, Callable[[], Costs]] = {"ours": lambda: _costs(whole), _AWAY: lambda: _costs(whole, revised)}
    if find_spec("tenseal") is not None:
        tasks |= {
            f"CKKS, degree {degree}, primes of {'-'.join(map(str, primes))} bits": ckks_round(
                degree, primes, values, sites
            )
            for degree, primes in CKKS
        }
    for shares in SHARES:
        name = f"SecAgg+, {shares or 'all'} shares"
        tasks[name] = secagg_round(shares or sites, values, sites, away=0)
        tasks[f"{name}, {_AWAY}"] = secagg_round(shares or sites, values, sites, away=1)
    turns = [{name: task() for name, task in tasks.items()} for _ in range(4)][1:]
    medians = {name: Costs.median([turn[name] for turn in turns]) for name in tasks}
    ours, away = medians.pop("ours"), medians.pop(_AWAY)
    return [
        _compared(f"{length:,} values, {sites} sites, beside {name}", theirs, away if _AWAY in name else ours, sites)
        for name, theirs in medians.items()
    ]


def _compared(case: str, theirs: Costs, ours: Costs, sites: int) -> dict[str, Any]:
    return {
        "case": case,
        "their_site_processor_seconds": theirs.site,
        "their_coordinator_processor_seconds": theirs.coordinator,
        "their_site_sends_mb": theirs.sent / 1e6,
        "site_processor_seconds": ours.site,
        "coordinator_processor_seconds": ours.coordinator,
        "site_sends_mb": ours.sent / 1e6,
        "site_ratio": theirs.site / ours.site,
        "coordinator_ratio": theirs.coordinator / ours.coordinator,
        "round_ratio": (theirs.site + theirs.coordinator) / (ours.site + ours.coordinator),
        "all_sites_ratio": theirs.of_all(sites) / ours.of_all(sites),
        "bytes_ratio": theirs.sent / ours.sent,
        "largest_error": theirs.error,
        "load": os.getloadavg()[0],
    }


def _costs(whole: MaskedRound, revised: MaskedRound | None = None) -> Costs:
    """Return what a round costs, and with `revised` one whose first masking and adding was for nothing."""
    seconds, sent = whole.measured(process_time), whole.encoded.nbytes
    lost = {step: seconds[step] for step in ("mask", "add")} if revised else {}
    last = revised.measured(process_time) if revised else seconds
    site, coordinator = (
        sum(of.get(step, 0.0) for of in (lost, last) for step in steps) for steps in (SITE_STEPS, COORDINATOR_STEPS)
    )
    return Costs(site, coordinator, 2 * sent if revised else sent, 2.0**-whole.ring.fraction / EXAMPLES)


def _values(length: int, bits: int = 32) -> Values:
    values = np.random.default_rng(0).standard_normal(length, np.float32)
    return values.astype(np.float64) if bits == 64 else values


if __name__ == "__main__":
    _step: dict[str, Callable[..., Any]] = {"round": _round, "beside": _beside}
    print(json.dumps(_step[sys.argv[1]](*map(int, sys.argv[2:]))))
