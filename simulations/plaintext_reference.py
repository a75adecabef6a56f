"""Plaintext reference: the same federation in a hand-written loop over stock Keras models, without any key.

Initial weights, batches, optimizer arithmetic, averaging weights and step of the global model are the federation's, so
that the cipher is the only difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation import global_state
from fedpp.aggregation.server_step import step
from fedpp.cipher.components import Algebra
from fedpp.config.hyperparameters import Dtype
from fedpp.config.model_spec import ModelSpec
from fedpp.config.run_config import SPLITS, RunSettings
from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.imaging.preparation import gaps, pad, prepare
from fedpp.imaging.sequence import ImageSequence
from fedpp.ingest.ingestion import sequence_pseudonym
from fedpp.keys.encryption import PAIRS
from fedpp.learning.batches import Reader
from fedpp.learning.initial_weights import initial_weights
from fedpp.learning.learner import Learner
from fedpp.learning.metrics import presence, softmax
from fedpp.protocol import label_counts
from fedpp.protocol.label_counts import LabelCounts
from fedpp.protocol.run_contract import capped_weights

from .hospitals import Hospitals

Values = NDArray[np.floating]


@dataclass(frozen=True)
class PlaintextSite:
    """One site's prepared sequences `[k, frames, height, width, channels]` with labels, in its dataset's order.

    `valid` and `gaps` are `[k, frames]`, as the encrypted dataset's; `labels` `[k]` are class numbers, or the states
    `[k, findings]` of several findings.
    """

    name: str
    frames: Values
    valid: NDArray[np.bool_]
    gaps: Values | None
    labels: NDArray[np.int64]
    split: Mapping[str, NDArray[np.int64]]


def plaintext_sites(hospitals: Hospitals, network: ModelSpec) -> list[PlaintextSite]:
    """Prepare each hospital's raw sequences in the order of its encrypted dataset."""
    return [
        _plaintext_site(hospitals, network, site.dataset.name, EncryptedDataset.open(site.dataset), raw)
        for site, raw in zip(hospitals.sites, hospitals.raw, strict=True)
    ]


def _plaintext_site(
    hospitals: Hospitals,
    network: ModelSpec,
    name: str,
    dataset: EncryptedDataset,
    raw: Sequence[ImageSequence],
) -> PlaintextSite:
    by_pseudonym = {sequence_pseudonym(hospitals.domain, sequence): sequence for sequence in raw}
    ordered = [by_pseudonym[name] for name in dataset.ids(np.arange(len(dataset)))]
    task = network.task
    prepared = [prepare(s, task.frames, task.height, task.width, task.channels) for s in ordered]
    return PlaintextSite(
        name,
        np.stack([pad(values, task.frames) for values in prepared]),
        np.stack([np.arange(task.frames) < len(values) for values in prepared]),
        np.stack([pad(gaps(s, task.frames), task.frames) for s in ordered]) if task.gaps else None,
        np.array([hospitals.classes.target(s.label) for s in ordered]),
        {split: dataset.indices(split) for split in SPLITS},
    )


class PlaintextReference:
    """Stock Keras model that is trained as the federation trains."""

    def __init__(self, network: ModelSpec, run: RunSettings) -> None:
        self.network, self.run, self.training = network, run, run.training
        self._learner = Learner(network, Algebra.plaintext(), self.training.hyperparameters, self.training.dtype)
        self.model = self._learner.model

    def initial(self, seed: int) -> list[Values]:
        """Return the federation's initial weights, which it draws from this seed, in plaintext."""
        drawn = initial_weights(self.network, seed)
        return [drawn[spec.name].astype(self.training.dtype) for spec in self.network.weights()]

    def federate(self, sites: Sequence[PlaintextSite], weights: Sequence[Values]) -> list[Values]:
        """Return the weights after all rounds."""
        sizes = [len(site.split["train"]) for site in sites]
        examples = capped_weights(sizes) if self.run.secure_aggregation else sizes
        state, labels = self._state(weights), label_counts.total([self._labels(site) for site in sites])
        for round_ in range(1, self.run.rounds + 1):
            before = [rows[..., 0] for rows in state.rows.values()]
            self._learner.balance(labels if round_ > 1 else None)  # a federation knows them when round 1 has ended
            trained = [self._train(site, before, round_) for site in sites]
            update = {
                name: mean_update(examples, after, start)[..., np.newaxis]
                for name, start, *after in zip(state.rows, before, *trained, strict=True)
            }
            state = step(state, update, self.run.server_optimizer, Algebra.plaintext())
        return [rows[..., 0] for rows in state.rows.values()]

    def probabilities(self, weights: Sequence[Values], site: PlaintextSite) -> Values:
        """Return `[k, classes]`, or `[k, findings, 2]` of absence and presence, of all sequences of a site."""
        self.model.set_weights(weights)
        logits = self._learner.predict(inputs_of(site, self.training.dtype), np.arange(len(site.labels)))
        return (presence if self.network.task.multi_label else softmax)(logits.astype(np.float64))

    def _state(self, weights: Sequence[Values]) -> global_state.GlobalState:
        """Return the state of round 0, whose rows have one slot and belong to no domain."""
        named = zip(self.network.weights(), weights, strict=True)
        return global_state.initial(
            {spec.name: values[..., np.newaxis] for spec, values in named},
            network=self.network,
            domain="",
            dtype=self.training.dtype,
            classes=tuple(map(str, range(len(self.network.task.classes)))),
            rule=self.run.server_optimizer,
            salt=global_state.UNSALTED,
        )

    def _labels(self, site: PlaintextSite) -> LabelCounts:
        """Count the labels of a site's training sequences."""
        of_training = site.labels[site.split["train"]]
        if not self.network.task.multi_label:
            return tuple(np.bincount(of_training, minlength=len(self.network.task.classes)).tolist())
        return tuple(np.stack([of_training == 0, of_training == 1], axis=-1).sum(axis=0).ravel().tolist())

    def _train(self, site: PlaintextSite, weights: Sequence[Values], round_: int) -> list[Values]:
        self.model.set_weights(weights)
        self.model.optimizer.restart()
        dtype = self.training.dtype
        labels = labels_of(site, self.network, dtype)
        seed = (self.training.seed, round_)
        self._learner.fit(inputs_of(site, dtype), labels, site.split["train"], epochs=self.training.epochs, seed=seed)
        trained: list[Values] = self.model.get_weights()
        return trained


def mean_update(examples: Sequence[int], trained: Sequence[Values], before: Values) -> NDArray[np.float64]:
    """Return one weight's mean change in float64, weighted by the examples: `sum k_i (w_i - w) / sum k_i`."""
    total = np.zeros(before.shape)
    for k, after in zip(examples, trained, strict=True):
        total += k * (after.astype(np.float64) - before.astype(np.float64))
    return total / sum(examples)


def inputs_of(site: PlaintextSite, dtype: Dtype) -> list[Reader]:
    """Return the readers of a plaintext network's inputs."""
    inputs: list[Reader] = [lambda i: site.frames[i].astype(dtype), lambda i: site.valid[i]]
    times = site.gaps
    return inputs if times is None else [*inputs, lambda i: times[i].astype(dtype)]


def labels_of(site: PlaintextSite, network: ModelSpec, dtype: Dtype) -> Reader:
    """Return the reader of a plaintext network's labels: one-hot, or a pair for each finding."""
    targets = PAIRS if network.task.multi_label else np.eye(len(network.task.classes))
    return lambda i: targets[site.labels[i]].astype(dtype)


def moved(weights: Sequence[Values], seed: int, units: int = 1) -> list[Values]:
    """Return the weights, each moved by `units` units in the last place, up or down at random."""
    generator = np.random.default_rng(seed)
    away = [np.where(generator.integers(2, size=w.shape) > 0, np.inf, -np.inf).astype(w.dtype) for w in weights]
    after = list(weights)
    for _ in range(units):
        after = [np.nextafter(w, to) for w, to in zip(after, away, strict=True)]
    return after
