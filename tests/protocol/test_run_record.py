"""The run record keeps what each site reported, and returns from its file unchanged."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from coordinator_runs import describe

from fedpp.errors import FederationError
from fedpp.learning.metrics import count
from fedpp.protocol.run_record import FederationRecord, RoundRecord
from simulations.benchmarks.simulated_client import findings

ONE, TWO = (count(np.arange(n) % 2, np.full((n, 2), 0.5)) for n in (1, 2))
RECORD = FederationRecord(
    domain="d" * 64,
    scheme="more",
    bundle="b" * 64,
    run="7",
    masked=True,
    seed=3,
    dtype="float32",
    network=TINY,
    sites=(describe("a"), describe("b")),
    datasets={"a": "1" * 64, "b": "2" * 64},
    refused={"c": "another key domain"},
    rounds=(
        RoundRecord(1, ("a",), {"a": TWO}, 1.5, 2, {"b": "update: no reply in time"}),
        RoundRecord(2, ("a", "b"), {"a": TWO, "b": ONE}, 2.5),
    ),
    test={"a": ONE, "b": TWO},
    seconds=5.0,
    settings={"rounds": 2, "learning-rate": 0.1, "secure-aggregation": True, "dtype": "float32"},
    local_baseline={"b": ONE},
)
OF_FINDINGS = replace(
    RECORD,
    network=TINY.changed(multi_label=True),
    rounds=(RoundRecord(1, ("a",), {"a": findings(2), "b": findings(1)}, 1.5),),
    test={"a": findings(2)},
    local_baseline={"a": findings(2)},
)


@pytest.mark.parametrize("record", [RECORD, OF_FINDINGS, replace(RECORD, local_baseline={})])
def test_a_record_returns_from_its_file(record: FederationRecord, tmp_path: Path) -> None:
    """Reading a `federation.json` gives the record that was written, each site's counts included."""
    path = tmp_path / "federation.json"
    path.write_text(json.dumps(record.to_mapping()))
    assert FederationRecord.load(path) == record


def test_a_round_s_total_is_that_of_its_sites() -> None:
    """Every site that answered is in it, once."""
    assert [of.together for of in RECORD.rounds] == [TWO, TWO + ONE]
    assert OF_FINDINGS.rounds[0].together == findings(2) + findings(1)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": [{**RECORD.rounds[0].to_mapping(), "validation": TWO.to_mapping()}]},  # of all sites, as it once was
        {"rounds": [{**RECORD.rounds[0].to_mapping(), "surprise": 1}]},
        {"rounds": [7]},
        {"test": [ONE.to_mapping()]},
        {"local-baseline": {"a": findings(2).to_mapping()}},
        {"surprise": 1},
        {"network": "{}"},
    ],
)
def test_what_is_no_record_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    """Another version's record, and a damaged one, are refused in one line that names the file."""
    path = tmp_path / "federation.json"
    path.write_text(json.dumps({**RECORD.to_mapping(), **changes}))
    with pytest.raises(FederationError, match=rf"{path} is not a federation's record"):
        FederationRecord.load(path)


def test_a_missing_record_is_refused(tmp_path: Path) -> None:
    """A path without a file is named."""
    with pytest.raises(FederationError, match=r"cannot read the federation's record .*federation\.json"):
        FederationRecord.load(tmp_path / "federation.json")
