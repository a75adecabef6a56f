"""Benchmark of secure aggregation: every figure is there, and the timed steps are right. No test depends on a time."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from fedpp.aggregation.ring import CHUNK
from simulations.__main__ import main
from simulations.benchmarks import bench_mask


@pytest.mark.parametrize(("sites", "ckks"), [((100,), 1), pytest.param((3, 10, 100), 2, marks=pytest.mark.slow)])
def test_the_command_measures_every_step(
    sites: tuple[int, ...], ckks: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Both rings have seconds and ratios of every step, and CKKS has rows, or one line says why not."""
    monkeypatch.setattr(bench_mask, "SITES", sites)
    monkeypatch.setattr(bench_mask, "CKKS", bench_mask.CKKS[:ckks])
    assert main(["bench", "mask", "--values", "3000", "--json"]) == 0
    printed = capfd.readouterr()
    result = json.loads(printed.out)
    ours, theirs = result["rows"][:2], result["rows"][2:]
    assert [row["case"] for row in ours] == ["3,000 values of 32 bits", "3,000 values of 64 bits"]
    assert [row["mb"] for row in ours] == [0.012, 0.024]
    unmasked = [f"unmask_{number}" for number in sites]
    assert all(row[f"{step}_seconds"] > 0 for row in ours for step in ("mask", "add", "memcpy", *unmasked))
    assert all(row[f"{step}_to_memcpy"] > 0 for row in ours for step in ("mask", "add", *unmasked))
    assert all(row["unmask_100_peak_mb"] > 0 for row in ours)
    if find_spec("tenseal") is None:
        assert theirs == []
        assert "TenSEAL is not installed" in printed.err
        assert printed.err.count("\n") == 1
    else:
        primes = ["60-40-60 bits", "60-60 bits"][:ckks]
        assert [row["case"].rpartition("primes of ")[2] for row in theirs] == primes
        assert all(row["ckks_largest_error"] < 1e-6 for row in theirs)
        assert all(row["bytes_to_ckks"] < 1 for row in theirs)


def test_the_timed_steps_are_a_round():
    """Unmasking inverts the site's step and the streamed sum, over the end of a chunk as well."""
    of, parts = bench_mask._round(32, CHUNK + 5), bench_mask._parts(3)
    values = bench_mask._values(of.length)
    under, total = np.zeros((2, of.length), of.ring.dtype)
    tags = 0
    for part in parts:
        tags += bench_mask._masked(of, part, values, under)
        of.ring.add(total, under)
    unmasked = of.ring.decode(bench_mask._KEY.unmask(of, parts, total, tags), 3 * bench_mask.EXAMPLES)
    np.testing.assert_allclose(unmasked, values, atol=2.0**-of.ring.fraction)
    total, tag = bench_mask._masked_sum(of, parts)
    unmasked = of.ring.decode(bench_mask._KEY.unmask(of, parts, total, tag), 3 * bench_mask.EXAMPLES)
    np.testing.assert_allclose(unmasked[:CHUNK], bench_mask._values(CHUNK), atol=2.0**-of.ring.fraction)
