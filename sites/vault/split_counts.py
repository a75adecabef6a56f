"""Evaluation counts of one split: the vault decrypts labels and logits, and counts them; no single score leaves it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpp.dataset.encrypted_dataset import EncryptedDataset
from fedpp.errors import VaultError
from fedpp.keys import encryption
from fedpp.keys.key_domain import KeyDomain
from fedpp.learning.metrics import count, count_findings, presence, softmax
from fedpp.protocol.counts import UNKNOWN, Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.label_counts import LabelCounts, of_counts

from .evaluation_limits import rare


@dataclass(frozen=True)
class SplitCounts:
    """Counts predictions of one site's dataset; findings known for fewer than `min_patients` patients are withheld."""

    domain: KeyDomain
    dataset: EncryptedDataset

    def shape(self, split: str) -> tuple[int, ...]:
        """Return the shape `[sequences classes n]` of a split's logits; in multi-label data a class is a finding."""
        return (len(self.dataset.indices(split)), len(self.dataset.manifest.classes), self.domain.n)

    def none(self) -> AnyCounts:
        """Return the counts of no sequence."""
        classes, several = len(self.dataset.manifest.classes), self.dataset.manifest.multi_label
        return FindingCounts.zero(classes) if several else Counts.zero(classes)

    def count(
        self,
        split: str,
        rows: NDArray[np.floating],
        min_patients: int,
        withheld: Callable[[int], None] = lambda _: None,
    ) -> AnyCounts:
        """Return the counts of encrypted logits; `withheld` gets how many findings are not counted."""
        indices = self.dataset.indices(split)
        labels = self.labels(indices)
        with np.errstate(over="ignore", invalid="ignore"):
            logits = encryption.decrypt(self.domain, rows)
        if not np.isfinite(logits).all():
            raise VaultError("the predictions are not finite: the training diverged; lower the learning rate")
        if self.dataset.manifest.multi_label:
            rarely = rare(labels, self.dataset.sequences["patient"][indices], min_patients)
            if rarely.any():
                withheld(int(rarely.sum()))
                labels = np.where(rarely, UNKNOWN, labels)
            return count_findings(labels, presence(logits))
        return count(labels, softmax(logits))

    def labelled(self, split: str, min_patients: int) -> LabelCounts:
        """Return the counts of a split's labels; those of findings as `count` withholds them."""
        return of_counts(self.count(split, np.zeros(self.shape(split)), min_patients))

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return class numbers `[k]`, or findings' states `[k, findings]`."""
        rows = self.dataset.labels(indices)
        if self.dataset.manifest.multi_label:
            return encryption.decrypt_findings(self.domain, rows)
        return encryption.decrypt_classes(self.domain, rows)
