"""Baselines train as the twin does, and never on a patient whom another hospital tests."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from chexpert_folder import SPOILT

from fedpp.cipher.dataset import EncryptedDataset
from fedpp.config import SPLITS
from fedpp.learning.metrics import Metrics, count, metrics
from fedpp.network import NetworkSpec
from fedpp.protocol.federation import FederationRecord
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.report import Baselines, SharedPatients
from simulations.baselines import compare, pooled
from simulations.hospitals import Hospitals, prepare
from simulations.scenario import Scenario
from simulations.shared_patients import also_tested_elsewhere
from simulations.twin import PlaintextSite, PlaintextTwin, Training, plaintext_sites

NETWORK = NetworkSpec(3, 8, 8, 1, 2, filters=(3, 4), dense=5, lstm=4)


def scenario(*names: str, **settings: object) -> Scenario:
    given = {"hospitals": names, "predict": "visit", "frames": 3, "size": 8, "epochs": 2, "plaintext_federated": False}
    return Scenario("tiny", "", len(names), 2, **{**given, **settings})


def made(chexpert: Path, folder: Path, asked: Scenario) -> tuple[Hospitals, FederationRecord]:
    """Ingest, and return the hospitals with the record of a federation of which only the network counts here."""
    folder.mkdir()
    hospitals = prepare(asked, chexpert, folder, folder)
    fingerprint = hospitals.domain.card().fingerprint
    facts = (fingerprint, "more", NO_BUNDLE, "1", True, asked.seed, asked.dtype, NETWORK)
    return hospitals, FederationRecord(*facts, (), {}, {}, (), {}, 0.0, {})


def alone(asked: Scenario, hospitals: Hospitals, number: int) -> Metrics:
    """Return the figures, on its own test split, of a twin that is trained at one hospital alone."""
    here = plaintext_sites(hospitals, NETWORK)[number]
    twin = PlaintextTwin(NETWORK, Training(2, 2, asked.recipe(), asked.seed, asked.dtype))
    weights = twin.federate([here], twin.initial(hospitals.domain))
    tested = here.split["test"]
    return metrics(count(here.labels[tested], twin.probabilities(weights, here)[tested]))


def site(name: str, count_: int) -> PlaintextSite:
    generator = np.random.default_rng(count_)
    positions = generator.permutation(count_)
    split = dict(zip(SPLITS, map(np.sort, np.split(positions, [count_ // 2, count_ * 3 // 4])), strict=True))
    frames = generator.normal(size=(count_, 2, 8, 8, 1))
    return PlaintextSite(name, frames, frames[..., 0, 0, 0] > 0, None, generator.integers(2, size=count_), split)


def test_pooled_sequences_keep_what_is_theirs():
    """In one place each sequence has its own frames, label and split; only what is left out is not trained on."""
    sites = [site("a", 12), site("b", 7), site("c", 9)]
    left_out = [sites[0].split["train"][:2], np.array([], np.int64), sites[2].split["train"][-1:]]
    everything = pooled(sites, left_out)
    start = 0
    for one, left in zip(sites, left_out, strict=True):
        here = slice(start, start + len(one.labels))
        for name in ("frames", "valid", "labels"):
            np.testing.assert_array_equal(getattr(everything, name)[here], getattr(one, name))
        for split in SPLITS:
            positions = everything.split[split]
            own = positions[(positions >= here.start) & (positions < here.stop)] - start
            assert set(own) == set(one.split[split]) - (set(left) if split == "train" else set())
        start += len(one.labels)
    assert len(everything.labels) == start
    assert everything.gaps is None


def test_one_hospital_alone_is_all_there_is(chexpert: Path, tmp_path: Path):
    """With one hospital, its own training, that of all data in one place and the twin's federation are the same."""
    asked = scenario("north", plaintext_central=True, local_only=True)
    hospitals, record = made(chexpert, tmp_path / "out", asked)
    baselines, parity, patients = compare(asked, hospitals, record, tmp_path / "no model", print)
    figures = alone(asked, hospitals, 0)
    assert baselines.plaintext_central == figures
    assert baselines.local_only is not None
    assert baselines.local_only["north"].together == baselines.local_only["north"].own == figures
    assert parity is None
    assert patients == SharedPatients(0, 0, 0)


@pytest.mark.parametrize("seed", [0, *SPOILT])
def test_no_baseline_is_tested_on_what_it_pooled(chexpert: Path, tmp_path: Path, seed: int):
    """The sequences of shared patients that another hospital tests are counted, and left out of the pooled data."""
    asked = scenario("north", "south", plaintext_central=True, local_only=True, seed=seed)
    hospitals, record = made(chexpert, tmp_path / "out", asked)
    notes: list[str] = []
    baselines, _, patients = compare(asked, hospitals, record, tmp_path / "no model", notes.append)
    assert notes == ["all data in one place, plaintext", "north alone, plaintext", "south alone, plaintext"]
    datasets = [EncryptedDataset.open(one.dataset) for one in hospitals.sites]
    unfair = also_tested_elsewhere(datasets)
    assert patients == SharedPatients(5, int(seed in SPOILT), SPOILT.get(seed, 0))
    everything = pooled(plaintext_sites(hospitals, NETWORK), unfair)
    names = np.concatenate([dataset.sequences["patient"] for dataset in datasets])
    assert not set(names[everything.split["train"]].tolist()) & set(names[everything.split["test"]].tolist())
    assert baselines.local_only is not None
    assert [(name, entry.own) for name, entry in baselines.local_only.items()] == [
        ("north", alone(asked, hospitals, 0)),
        ("south", alone(asked, hospitals, 1)),
    ]
    assert {f.name for f in fields(Baselines) if getattr(baselines, f.name) is None} == {"plaintext_federated"}


def test_what_is_not_asked_for_is_not_trained(chexpert: Path, tmp_path: Path):
    """Without a baseline there are no figures, and the shared patients are still told."""
    asked = scenario("north", "south")
    hospitals, record = made(chexpert, tmp_path / "out", asked)
    baselines, parity, patients = compare(asked, hospitals, record, tmp_path / "no model", pytest.fail)
    assert (baselines, parity) == (Baselines(), None)
    assert patients == SharedPatients(5, 0)
