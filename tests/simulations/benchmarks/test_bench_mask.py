"""Benchmark of secure aggregation: every figure is there, and the timed steps are right. No test depends on a time."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from fedpp.aggregation.linear_check import ExactSum
from fedpp.aggregation.ring import CHUNK
from fedpp.errors import MaskError
from simulations.__main__ import main
from simulations.benchmarks import bench_mask, other_aggregation
from simulations.benchmarks.bench_mask import Clock, MaskedRound


def test_the_command_measures_every_step(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Rounds of both rings have all figures, with a drop-out where enough sites are left; then come the others."""
    monkeypatch.setattr(bench_mask, "SITES", (3, 4))
    assert main(["bench", "mask", "--values", "3000", "--json"]) == 0
    printed = capfd.readouterr()
    rows = json.loads(printed.out)["rows"]
    ours, theirs = rows[:4], rows[4:]
    assert [row["case"] for row in ours] == [
        f"3,000 values of {bits} bits, {sites} sites" for bits in (32, 64) for sites in (3, 4)
    ]
    for row in ours:
        assert row["site_seconds"] == pytest.approx(sum(row[f"{step}_seconds"] for step in bench_mask.SITE_STEPS))
        assert row["coordinator_seconds"] == pytest.approx(row["add_seconds"] + row["commit_seconds"])
        assert all(value > 0 for name, value in row.items() if name not in {"case", "load"})
    assert [row["site_sends_mb"] for row in ours] == [0.012, 0.012, 0.024, 0.024]
    assert [row["coordinator_sends_mb"] for row in ours] == pytest.approx([0.054, 0.072, 0.09, 0.12])
    assert ["dropout_site_seconds" in row for row in ours] == [False, True, False, True]
    assert [row.get("dropout_coordinator_receives_mb") for row in ours] == [None, 0.084, None, 0.168]
    names = [f"SecAgg+, {shares} shares{away}" for shares in (3, "all") for away in ("", ", one site away")]
    if find_spec("tenseal") is None:
        assert "TenSEAL is not installed" in printed.err
        assert printed.err.count("\n") == 1
    else:
        names = [f"CKKS, degree 8192, primes of {primes} bits" for primes in ("60-40-60", "60-60")] + names
    assert [row["case"].rpartition("beside ")[2] for row in theirs] == names
    for row in theirs:
        sums = [
            sum(row[f"{side}{who}_processor_seconds"] for who in ("site", "coordinator")) for side in ("their_", "")
        ]
        assert row["round_ratio"] == pytest.approx(sums[0] / sums[1])
        assert row["bytes_ratio"] > (0.9 if "away" in row["case"] else 1.9)
        assert row["site_sends_mb"] == (0.024 if "away" in row["case"] else 0.012)
        assert 0 < row["largest_error"] < 1e-4


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("sites", [2, 3, 5])
def test_the_timed_steps_are_a_round(bits: int, sites: int):
    """All steps are timed, the vectors' sum opens the real update, and another sum is refused."""
    of = MaskedRound(bits, CHUNK + 5, sites)
    assert list(of.measured()) == ["mask", "add", "commit", "release", "step"]
    own = of._masked()
    vectors = [vector.copy() for vector in of._vectors(own)]
    assert len(vectors) == sites
    assert np.array_equal(vectors[0], own)

    def summed() -> ExactSum:
        total = ExactSum(of.length, of.ring)
        for vector in vectors:
            total.add(vector)
        return total

    of._open(Clock(), own, summed(), summed().hash)
    with pytest.raises(MaskError, match="stated"):
        of._open(Clock(), own, summed(), "0" * 64)
    vectors[-1][3:4] += of.ring.dtype.type(1)
    with pytest.raises(AssertionError, match="not equal"):
        of._open(Clock(), own, summed(), summed().hash)


def test_a_wrong_mean_of_another_library_is_refused():
    """The benchmark compares with rounds that give the mean, and stops at one that does not."""
    with pytest.raises(ValueError, match="off"):
        other_aggregation._error(np.ones(3), np.zeros(3))
