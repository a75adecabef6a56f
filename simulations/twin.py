"""The plaintext twin: the same federation by a hand-written loop over stock Keras models, without any key.

Same initial weights, batches, optimizer arithmetic and averaging weights; so what differs is the cipher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from fedpp.cipher.components import Algebra
from fedpp.cipher.dataset import EncryptedDataset
from fedpp.config import SPLITS, Dtype, NetworkSpec
from fedpp.imaging.preparation import gaps, pad, prepare
from fedpp.imaging.sequence import ImageSequence
from fedpp.ingest import sequence_pseudonym
from fedpp.keys.domain import KeyDomain
from fedpp.learning import models
from fedpp.learning.batches import Batches, Reader
from fedpp.learning.initial import initial_weights
from fedpp.learning.metrics import softmax
from fedpp.learning.optimizers import Adam

from .hospitals import Hospitals

Values = NDArray[np.floating]


@dataclass(frozen=True)
class PlaintextSite:
    """One site's prepared sequences `[k, frames, height, width, channels]` in its dataset's order, and labels.

    `valid` and `gaps` are `[k, frames]`, as the encrypted dataset's.
    """

    name: str
    frames: Values
    valid: NDArray[np.bool_]
    gaps: Values | None
    labels: NDArray[np.int64]
    split: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Training:
    """How both twins train."""

    rounds: int
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    dtype: Dtype


def plaintext_sites(hospitals: Hospitals, network: NetworkSpec) -> list[PlaintextSite]:
    """Prepare each hospital's raw sequences in the order of its encrypted dataset."""
    return [
        _plaintext_site(hospitals, network, site.name, EncryptedDataset.open(site.dataset), raw)
        for site, raw in zip(hospitals.sites, hospitals.raw, strict=True)
    ]


def _plaintext_site(
    hospitals: Hospitals,
    network: NetworkSpec,
    name: str,
    dataset: EncryptedDataset,
    raw: Sequence[ImageSequence],
) -> PlaintextSite:
    by_pseudonym = {sequence_pseudonym(hospitals.domain, sequence): sequence for sequence in raw}
    ordered = [by_pseudonym[name] for name in dataset.ids(np.arange(len(dataset)))]
    prepared = [prepare(s, network.frames, network.height, network.width) for s in ordered]
    return PlaintextSite(
        name,
        np.stack([pad(values, network.frames) for values in prepared]),
        np.stack([np.arange(network.frames) < len(values) for values in prepared]),
        np.stack([pad(gaps(s, network.frames), network.frames) for s in ordered]) if network.gaps else None,
        np.array([hospitals.classes.number(s.label) for s in ordered]),
        {split: dataset.indices(split) for split in SPLITS},
    )


class PlaintextTwin:
    """A stock Keras model that is trained as the federation trains."""

    def __init__(self, network: NetworkSpec, training: Training) -> None:
        self.network, self.training = network, training
        self.model = models.plaintext(network, training.dtype)
        self.model.compile(
            optimizer=Adam(Algebra.plaintext(), training.learning_rate),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True, dtype=training.dtype),
            jit_compile=False,
        )

    def initial(self, domain: KeyDomain) -> list[Values]:
        """Return the federation's initial weights, in plaintext."""
        drawn = initial_weights(self.network, domain.initial_seed(self.training.seed))
        return [drawn[spec.name].astype(self.training.dtype) for spec in self.network.weights()]

    def federate(self, sites: Sequence[PlaintextSite], weights: Sequence[Values]) -> list[Values]:
        """Return the weights after all rounds."""
        examples = [len(site.split["train"]) for site in sites]
        for round_ in range(1, self.training.rounds + 1):
            updates = [self._train(site, weights, round_) for site in sites]
            weights = [
                np.sum(
                    [w * w.dtype.type(k / sum(examples)) for k, w in zip(examples, parts, strict=True)],
                    axis=0,
                )
                for parts in zip(*updates, strict=True)
            ]
        return list(weights)

    def probabilities(self, weights: Sequence[Values], site: PlaintextSite) -> Values:
        """Return `[k, classes]` for all of a site's sequences."""
        self.model.set_weights(weights)
        data = Batches(self._inputs(site), None, np.arange(len(site.labels)), self.training.batch_size)
        return softmax(data.predict(self.model).astype(np.float64))

    def _train(self, site: PlaintextSite, weights: Sequence[Values], round_: int) -> list[Values]:
        self.model.set_weights(weights)
        self.model.optimizer.restart()
        one_hot = np.eye(self.network.classes, dtype=self.training.dtype)
        data = Batches(
            self._inputs(site),
            lambda i: one_hot[site.labels[i]],
            site.split["train"],
            self.training.batch_size,
            (self.training.seed, round_),
        )
        data.fit(self.model, self.training.epochs)
        trained: list[Values] = self.model.get_weights()
        return trained

    def _inputs(self, site: PlaintextSite) -> list[Reader]:
        """Return the readers of the network's inputs."""
        dtype = self.training.dtype
        inputs: list[Reader] = [lambda i: site.frames[i].astype(dtype), lambda i: site.valid[i]]
        times = site.gaps
        return inputs if times is None else [*inputs, lambda i: times[i].astype(dtype)]


def moved(weights: Sequence[Values], seed: int) -> list[Values]:
    """Return the weights, each moved up or down by one unit in the last place."""
    generator = np.random.default_rng(seed)
    return [
        np.nextafter(w, np.where(generator.integers(2, size=w.shape) > 0, np.inf, -np.inf).astype(w.dtype))
        for w in weights
    ]
