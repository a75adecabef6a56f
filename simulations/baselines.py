"""Baselines of a simulated federation: plaintext federated, all data in one place, each hospital's local baseline.

All are trained by the plaintext reference: from the federation's initial weights, for its rounds and local epochs.
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
from fedpp.learning.exact_metrics import Predictions
from fedpp.learning.metrics import count, count_findings, metrics, presence, softmax
from fedpp.learning.model_file import EncryptedModel
from fedpp.protocol.finding_counts import AnyCounts, total
from fedpp.protocol.run_record import FederationRecord
from fedpp.reporting.report_results import Baselines, Parity, SharedPatients, SiteBaselines

from .comparison import Comparison, also_tested_elsewhere, shared, trained_and_tested
from .hospitals import Hospitals
from .plaintext_reference import PlaintextReference, PlaintextSite, Values, moved, plaintext_sites
from .scenario import Scenario

Note = Callable[[str], None]


def compare(
    scenario: Scenario, hospitals: Hospitals, record: FederationRecord, model_file: Path, seed: int, note: Note
) -> Comparison:
    """Train the scenario's baselines; return their test figures, and the distance of ciphertext from plaintext.

    All start from the federation's initial weights, which it drew from this `seed`.
    """
    datasets = [EncryptedDataset.open(site.dataset) for site in hospitals.sites]
    trainer = _Trainer(scenario, hospitals, record, seed, note)
    sites, parity, left_out = trainer.sites, None, None
    tested: tuple[Predictions, ...] = ()
    tests: dict[str, dict[str, AnyCounts]] = {}  # of a baseline, by site
    local: dict[str, dict[str, AnyCounts]] = {}  # of a site's local baseline, by site
    if scenario.plaintext_federated:
        weights = trainer.train("the plaintext reference", sites)
        tests["plaintext_federated"] = trainer.tests(weights)
        if scenario.scheme == "more":  # the frame form's network sees other frames, and has no slots to compare
            parity, tested = trainer.parity(EncryptedModel.load(model_file), weights)
    if scenario.plaintext_central:
        unfair = also_tested_elsewhere(datasets)
        left_out = sum(map(len, unfair))
        weights = trainer.train("all data in one place, plaintext", [pooled(sites, unfair)])
        tests["plaintext_central"] = trainer.tests(weights)
    if scenario.run.local_baseline:
        local = {s.name: trainer.tests(trainer.train(f"local baseline of {s.name}, plaintext", [s])) for s in sites}
    together = Baselines(
        **{name: metrics(total(of.values())) for name, of in tests.items()},
        local_baseline={name: metrics(total(of.values())) for name, of in local.items()} or None,
    )
    by_site = {
        s.name: SiteBaselines(
            **{name: metrics(of[s.name]) for name, of in tests.items()},
            local_baseline=metrics(local[s.name][s.name]) if local else None,
        )
        for s in sites
    }
    patients = SharedPatients(len(shared(datasets)), trained_and_tested(datasets), left_out)
    return Comparison(patients, together, by_site, parity, tested)


def pooled(sites: Sequence[PlaintextSite], left_out: Sequence[NDArray[np.int64]]) -> PlaintextSite:
    """Return one site with all sites' sequences, without the `left_out` training sequences of each."""
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


class _Trainer:
    """The plaintext reference with the hospitals' data, for all baselines of one scenario."""

    def __init__(
        self, scenario: Scenario, hospitals: Hospitals, record: FederationRecord, seed: int, note: Note
    ) -> None:
        self._scenario, self._hospitals, self._note = scenario, hospitals, note
        self.sites = plaintext_sites(hospitals, record.network)
        self._reference = PlaintextReference(record.network, scenario.run)
        self._initial = self._reference.initial(seed)

    def train(self, what: str, sites: Sequence[PlaintextSite]) -> list[Values]:
        """Return the weights of a federation of these sites."""
        self._note(what)
        return self._reference.federate(sites, self._initial)

    def tests(self, weights: Sequence[Values]) -> dict[str, AnyCounts]:
        """Return the evaluation counts of these weights on each site's test split."""
        counted = count_findings if self._reference.network.task.multi_label else count
        tested = [(site, site.split["test"]) for site in self.sites]
        return {s.name: counted(s.labels[t], self._reference.probabilities(weights, s)[t]) for s, t in tested}

    def parity(self, model: EncryptedModel, weights: Sequence[Values]) -> tuple[Parity, tuple[Predictions, ...]]:
        """Compare the federation's model with the reference's weights, and the reference with its controls.

        Returns the comparison, and the federation's predictions of all test splits, of the label or of each finding.
        """
        domain, network = self._hospitals.domain, self._reference.network
        probabilities = [self._reference.probabilities(weights, site) for site in self.sites]
        controls = []
        for draw in range(self._scenario.control_draws):
            self._note(f"control {draw + 1} of {self._scenario.control_draws}")
            other = self._reference.federate(self.sites, moved(self._initial, draw))
            pairs = zip(self.sites, probabilities, strict=True)
            controls.append(float(np.max([_largest(self._reference.probabilities(other, s), p) for s, p in pairs])))
        decrypted = [encryption.decrypt(domain, model.rows[spec.name]) for spec in network.weights()]
        found = self._probabilities(model)
        differences = [_largest(of_site, expected) for of_site, expected in zip(found, probabilities, strict=True)]
        parity = Parity(
            max_abs_probability_difference=float(np.max(differences)),
            max_abs_weight_difference=float(np.max([_largest(a, b) for a, b in zip(decrypted, weights, strict=True)])),
            control_probability_differences=tuple(controls),
        )
        return parity, self._tested(found)

    def _probabilities(self, model: EncryptedModel) -> list[Values]:
        """Return the federation's probabilities of each site's sequences, decrypted."""
        domain, network, scenario = self._hospitals.domain, self._reference.network, self._scenario
        hyperparameters = scenario.run.training.hyperparameters
        trainer = EncryptedTrainer(
            network, domain.computing_key().algebra(), hyperparameters, scenario.run.training.dtype
        )
        trainer.load(model.rows)
        found = []
        for site in self._hospitals.sites:
            dataset = EncryptedDataset.open(site.dataset)
            by_split = {split: dataset.indices(split) for split in SPLITS}
            logits = [encryption.decrypt(domain, trainer.logits(dataset, indices)) for indices in by_split.values()]
            order = np.argsort(np.concatenate(list(by_split.values())))
            ordered = np.concatenate(logits)[order]
            found.append(presence(ordered) if network.task.multi_label else softmax(ordered))
        return found

    def _tested(self, probabilities: Sequence[Values]) -> tuple[Predictions, ...]:
        tests = [site.split["test"] for site in self.sites]
        labels = np.concatenate([site.labels[t] for site, t in zip(self.sites, tests, strict=True)])
        tested = np.concatenate([p[t] for p, t in zip(probabilities, tests, strict=True)])
        if self._reference.network.task.multi_label:
            return tuple(Predictions.of_findings(labels, tested))
        return (Predictions.of(labels, tested),)


def _largest(one: Values, other: Values) -> float:
    """Return the largest difference; like `np.max`, which the callers need for this, it keeps NaN."""
    return float(np.abs(one - other).max(initial=0.0))
