"""The same task trained otherwise: the plaintext reference, all data in one place, each hospital alone.

All are trained by the twin's loop: from the federation's initial weights, for its rounds and local epochs.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpp.config.run_config import SPLITS
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.keys import encryption
from fedpp.learning.encrypted_training import EncryptedTrainer
from fedpp.learning.metrics import count, count_findings, metrics, presence, softmax
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.finding_counts import AnyCounts, total
from fedpp.protocol.run_record import FederationRecord
from fedpp.reporting.report import Baselines, Parity, SharedPatients, SiteBaselines

from .comparison import Comparison
from .hospitals import Hospitals
from .plaintext_reference import PlaintextReference, PlaintextSite, Training, Values, moved, plaintext_sites
from .scenario import Scenario
from .shared_patients import also_tested_elsewhere, shared, trained_and_tested

Note = Callable[[str], None]


def compare(
    scenario: Scenario, hospitals: Hospitals, record: FederationRecord, model_file: Path, note: Note
) -> Comparison:
    """Train the baselines that the scenario asks for; return their test figures, and how far the twin is."""
    datasets = [EncryptedDataset.open(site.dataset) for site in hospitals.sites]
    sites = plaintext_sites(hospitals, record.network)
    reference = PlaintextReference(record.network, _training(scenario))
    initial = reference.initial(hospitals.domain)
    baselines, parity, left_out = Baselines(), None, None
    by_site = {site.name: SiteBaselines() for site in sites}
    if scenario.plaintext_federated:
        note("the plaintext reference")
        weights = reference.federate(sites, initial)
        tests = _tests(reference, weights, sites)
        baselines = replace(baselines, plaintext_federated=metrics(total(tests.values())))
        by_site = {name: replace(by_site[name], plaintext_federated=metrics(own)) for name, own in tests.items()}
        if scenario.scheme == "more":  # the frame form's network sees other frames, and has no slots to compare
            parity = _parity(scenario, hospitals, model_file, reference, sites, weights, note)
    if scenario.plaintext_central:
        note("all data in one place, plaintext")
        unfair = also_tested_elsewhere(datasets)
        left_out = sum(map(len, unfair))
        tests = _tests(reference, reference.federate([pooled(sites, unfair)], initial), sites)
        baselines = replace(baselines, plaintext_central=metrics(total(tests.values())))
        by_site = {name: replace(by_site[name], plaintext_central=metrics(own)) for name, own in tests.items()}
    if scenario.local_baseline:
        alone = {}
        for site in sites:
            note(f"local baseline of {site.name}, plaintext")
            tests = _tests(reference, reference.federate([site], initial), sites)
            alone[site.name] = metrics(total(tests.values()))
            by_site[site.name] = replace(by_site[site.name], local_baseline=metrics(tests[site.name]))
        baselines = replace(baselines, local_baseline=alone)
    patients = SharedPatients(len(shared(datasets)), trained_and_tested(datasets), left_out)
    return Comparison(patients, baselines, by_site, parity)


def pooled(sites: Sequence[PlaintextSite], left_out: Sequence[NDArray[np.int64]]) -> PlaintextSite:
    """Put all sites' sequences into one, but for those training sequences of each that are to be left out."""
    arrays = [f.name for f in fields(PlaintextSite) if isinstance(getattr(sites[0], f.name), np.ndarray)]
    joined = {name: np.concatenate([getattr(site, name) for site in sites]) for name in arrays}
    starts = np.cumsum([0, *(len(site.labels) for site in sites)])
    kept = {split: [site.split[split] for site in sites] for split in SPLITS}
    kept["train"] = [np.setdiff1d(own, left) for own, left in zip(kept["train"], left_out, strict=True)]
    split = {
        name: np.concatenate([own + start for own, start in zip(positions, starts, strict=False)])
        for name, positions in kept.items()
    }
    return replace(sites[0], name="all", split=split, **joined)


def _training(scenario: Scenario) -> Training:
    return Training(
        scenario.rounds,
        scenario.epochs,
        scenario.hyperparameters(),
        scenario.seed,
        scenario.dtype,
        scenario.server_optimizer_config(),
    )


def _tests(
    reference: PlaintextReference, weights: Sequence[Values], sites: Sequence[PlaintextSite]
) -> dict[str, AnyCounts]:
    """Return what these weights do on each site's test split."""
    counted = count_findings if reference.network.multi_label else count
    tested = [(site, site.split["test"]) for site in sites]
    return {
        site.name: counted(site.labels[test], reference.probabilities(weights, site)[test]) for site, test in tested
    }


def _parity(
    scenario: Scenario,
    hospitals: Hospitals,
    model_file: Path,
    reference: PlaintextReference,
    sites: Sequence[PlaintextSite],
    weights: Sequence[Values],
    note: Note,
) -> Parity:
    """Compare the federation's model with the twin's weights."""
    probabilities = [reference.probabilities(weights, site) for site in sites]
    model = EncryptedModel.load(model_file)
    trainer = EncryptedTrainer(
        reference.network, hospitals.domain.computing_key().algebra(), scenario.hyperparameters(), scenario.dtype
    )
    trainer.load(model.rows)
    differences = []
    for site, p in zip(hospitals.sites, probabilities, strict=True):
        dataset = EncryptedDataset.open(site.dataset)
        for split in SPLITS:
            logits = encryption.decrypt(hospitals.domain, trainer.logits(dataset, dataset.indices(split)))
            said = presence(logits) if reference.network.multi_label else softmax(logits)
            differences.append(np.abs(said - p[dataset.indices(split)]).max(initial=0.0))
    initial = reference.initial(hospitals.domain)
    controls = []
    for draw in range(scenario.control_draws):
        note(f"control {draw + 1} of {scenario.control_draws}")
        other = reference.federate(sites, moved(initial, draw))
        pairs = zip(sites, probabilities, strict=True)
        controls.append(float(np.max([np.abs(reference.probabilities(other, s) - p).max() for s, p in pairs])))
    decrypted = [encryption.decrypt(hospitals.domain, model.rows[spec.name]) for spec in reference.network.weights()]
    return Parity(
        max_abs_probability_difference=float(np.max(differences)),
        max_abs_weight_difference=float(np.max([np.abs(a - b).max() for a, b in zip(decrypted, weights, strict=True)])),
        control_probability_differences=tuple(controls),
    )
