"""Baselines train as the plaintext reference does, and never on a patient whom another hospital tests."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from chexpert_folder import SPOILT
from conftest import TINY

from fedpp.config.run_config import SPLITS
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.learning.metrics import Metrics, count, metrics
from fedpp.protocol.membership import NO_BUNDLE
from fedpp.protocol.run_record import FederationRecord
from fedpp.reporting.report_results import Baselines, SharedPatients, SiteBaselines
from simulations.baselines import compare, pooled
from simulations.comparison import also_tested_elsewhere
from simulations.hospitals import Hospitals, prepare
from simulations.plaintext_reference import PlaintextReference, PlaintextSite, plaintext_sites
from simulations.scenario import Scenario

NETWORK = TINY.changed(frames=3, architecture="cnn")  # which is traced soonest
SEED = 11  # of the initial weights


def scenario(*names: str, **settings: object) -> Scenario:
    given = {"hospitals": names, "predict": "visit", "frames": 3, "size": 8, "epochs": 2, "plaintext_federated": False}
    return Scenario.of(name="tiny", description="", sites=len(names), rounds=2, **{**given, **settings})


def made(chexpert: Path, folder: Path, chosen: Scenario) -> tuple[Hospitals, FederationRecord]:
    """Ingest, and return the hospitals with the record of a federation, of which the baselines use only the network."""
    folder.mkdir()
    hospitals = prepare(chosen, chexpert, folder, folder)
    fingerprint = hospitals.domain.card().fingerprint
    facts = (fingerprint, "more", NO_BUNDLE, "1", True, chosen.run.training.seed, chosen.run.training.dtype, NETWORK)
    return hospitals, FederationRecord(*facts, (), {}, {}, (), {}, 0.0, {})


def local_baselines(chosen: Scenario, hospitals: Hospitals) -> list[Metrics]:
    """Return the figures of each hospital's local baseline on its own test split."""
    reference, figures = PlaintextReference(NETWORK, chosen.run), []
    for here in plaintext_sites(hospitals, NETWORK):
        weights = reference.federate([here], reference.initial(SEED))
        tested = here.split["test"]
        figures.append(metrics(count(here.labels[tested], reference.probabilities(weights, here)[tested])))
    return figures


def site(name: str, count_: int) -> PlaintextSite:
    generator = np.random.default_rng(count_)
    positions = generator.permutation(count_)
    split = dict(zip(SPLITS, map(np.sort, np.split(positions, [count_ // 2, count_ * 3 // 4])), strict=True))
    frames = generator.normal(size=(count_, 2, 8, 8, 1))
    return PlaintextSite(name, frames, frames[..., 0, 0, 0] > 0, None, generator.integers(2, size=count_), split)


def test_pooled_sequences_keep_frames_labels_and_splits():
    """Pooled sequences have their own frames, labels and splits; only `left_out` ones are not trained on."""
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


def test_baselines_of_one_hospital_are_equal(chexpert: Path, tmp_path: Path):
    """With one hospital, local baseline, training on all data in one place and plaintext federation are the same."""
    chosen = scenario("north", plaintext_central=True, local_baseline=True)
    hospitals, record = made(chexpert, tmp_path / "out", chosen)
    compared = compare(chosen, hospitals, record, tmp_path / "no model", SEED, print)
    (figures,) = local_baselines(chosen, hospitals)
    assert compared.together == Baselines(plaintext_central=figures, local_baseline={"north": figures})
    assert compared.by_site == {"north": SiteBaselines(plaintext_central=figures, local_baseline=figures)}
    assert compared.parity is None
    assert compared.patients == SharedPatients(0, 0, 0)


def test_every_baseline_is_evaluated_on_each_site_s_test_split(chexpert: Path, tmp_path: Path):
    """A site's figures are those of the model on its split; the sum of the counts gives the figures of all."""
    chosen = scenario("north", "south", plaintext_federated=True, plaintext_central=True, scheme="more-frame")
    hospitals, record = made(chexpert, tmp_path / "out", chosen)
    compared = compare(chosen, hospitals, record, tmp_path / "no model", SEED, print)
    sites = plaintext_sites(hospitals, NETWORK)
    reference = PlaintextReference(NETWORK, chosen.run)
    datasets = [EncryptedDataset.open(one.dataset) for one in hospitals.sites]
    for name, trained_at in (
        ("plaintext_federated", sites),
        ("plaintext_central", [pooled(sites, also_tested_elsewhere(datasets))]),
    ):
        weights = reference.federate(trained_at, reference.initial(SEED))
        tests = [count(s.labels[s.split["test"]], reference.probabilities(weights, s)[s.split["test"]]) for s in sites]
        assert [getattr(compared.by_site[s.name], name) for s in sites] == list(map(metrics, tests))
        assert getattr(compared.together, name) == metrics(tests[0] + tests[1])
    assert {of_site.local_baseline for of_site in compared.by_site.values()} == {None}


@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 3))])
def test_no_baseline_is_tested_on_what_it_pooled(chexpert: Path, tmp_path: Path, seed: int):
    """Training sequences of patients whom another hospital tests are counted, and not pooled."""
    chosen = scenario("north", "south", plaintext_central=True, local_baseline=True, seed=seed)
    hospitals, record = made(chexpert, tmp_path / "out", chosen)
    notes: list[str] = []
    compared = compare(chosen, hospitals, record, tmp_path / "no model", SEED, notes.append)
    assert notes == [
        "all data in one place, plaintext",
        "local baseline of north, plaintext",
        "local baseline of south, plaintext",
    ]
    datasets = [EncryptedDataset.open(one.dataset) for one in hospitals.sites]
    unfair = also_tested_elsewhere(datasets)
    assert compared.patients == SharedPatients(5, *SPOILT.get(seed, (0, 0)))
    everything = pooled(plaintext_sites(hospitals, NETWORK), unfair)
    names = np.concatenate([dataset.sequences["patient"] for dataset in datasets])
    assert not set(names[everything.split["train"]].tolist()) & set(names[everything.split["test"]].tolist())
    alone = dict(zip(("north", "south"), local_baselines(chosen, hospitals), strict=True))
    assert {name: of_site.local_baseline for name, of_site in compared.by_site.items()} == alone
    assert {f.name for f in fields(Baselines) if getattr(compared.together, f.name) is None} == {"plaintext_federated"}


def test_only_the_chosen_baselines_are_trained(chexpert: Path, tmp_path: Path):
    """Without a baseline there are no figures, and the shared patients are still reported."""
    chosen = scenario("north", "south")
    hospitals, record = made(chexpert, tmp_path / "out", chosen)
    compared = compare(chosen, hospitals, record, tmp_path / "no model", SEED, pytest.fail)
    assert (compared.together, compared.parity) == (Baselines(), None)
    assert compared.by_site == {"north": SiteBaselines(), "south": SiteBaselines()}
    assert compared.patients == SharedPatients(5, 0)
