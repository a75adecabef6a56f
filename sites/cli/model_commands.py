"""`fedpp-site`: what a model predicts, decrypted in the site's secret zone."""

import argparse
import json
from typing import Any

from fedpp.cli import load_tensorflow

from .opening import domain_of, show


def evaluate(options: argparse.Namespace) -> int:
    """Score a model on a split: predict on ciphertext, decrypt in the secret zone."""
    from fedpp.learning.metrics import metrics
    from fedpp.protocol.finding_counts import FindingCounts

    splits = (options.split,) if options.sensitivity is None else (options.split, "validation")
    predictor = _Predictor(options, splits, labelled=True)
    counts = predictor.counts(options.split)
    figures = {"split": options.split, "examples": counts.examples, **metrics(counts).to_mapping()}
    chosen_on = counts if options.sensitivity is None else predictor.counts("validation")
    if isinstance(counts, FindingCounts) and isinstance(chosen_on, FindingCounts):
        of_each = zip(predictor.classes, chosen_on.findings, counts.findings, strict=True)
        findings = {name: _finding(chosen, tested, options.sensitivity) for name, chosen, tested in of_each}
        show(options, {**figures, "findings": findings} if options.json else figures)
        if not options.json:
            print(_table(findings))
    else:
        point = _operating_point(chosen_on, counts, options.sensitivity)
        show(options, figures | (point if options.json else _lines(point)))
    return 0


def predict(options: argparse.Namespace) -> int:
    """Print the decrypted probabilities of every sequence of a split, by pseudonym; of findings those of presence."""
    predictor = _Predictor(options, (options.split,), labelled=False)
    probabilities, names = predictor.probabilities(options.split), predictor.names(options.split)
    if predictor.multi_label:
        probabilities = probabilities[..., 1]
    classes = predictor.classes
    rows = [(name, dict(zip(classes, p.tolist(), strict=True))) for name, p in zip(names, probabilities, strict=True)]
    if options.json:
        print(json.dumps([{"sequence": name, "split": options.split, "probabilities": p} for name, p in rows]))
    else:
        print("\t".join([f"sequence of split {options.split}", *(f"P({name})" for name in classes)]))
        for name, p in rows:
            print("\t".join([name, *(f"{value:.4f}" for value in p.values())]))
    return 0


def _finding(validation: Any, counts: Any, sensitivity: float | None) -> dict[str, Any]:
    """Return the figures of one finding, over the sequences where it is known."""
    from fedpp.learning.metrics import metrics

    known = {"known": counts.examples, "present": sum(map(sum, counts.confusion[1:]))}
    return {**known, **metrics(counts).to_mapping(), **_operating_point(validation, counts, sensitivity)}


def _operating_point(validation: Any, counts: Any, sensitivity: float | None) -> dict[str, Any]:
    """Return the point of a wanted sensitivity, None where validation has no positive; nothing if none is wanted."""
    from fedpp.learning.metrics import operating_point

    if sensitivity is None:
        return {}
    point = operating_point(validation, counts, sensitivity)
    return {"operating_point": point and point.to_mapping()}


def _lines(point: dict[str, Any]) -> dict[str, Any]:
    """Return an operating point as figures of their own: the threshold as a probability, and what it is worth."""
    if not point:
        return {}
    chosen = point["operating_point"]
    if chosen is None:
        return {"threshold": None}
    return {"threshold": chosen["probability"], **{f"{name} there": v for name, v in chosen["decisions"].items()}}


def _table(findings: dict[str, dict[str, Any]]) -> str:
    """Return the findings' figures as lines, with those of the operating point after the threshold, if there is one."""

    def line(name: str, cells: list[Any]) -> str:
        return f"{name:{width}}" + "".join(f"  {_cell(cell):>11}" for cell in cells)

    width = max(map(len, findings))
    figures = ("known", "present", "auc", "sensitivity", "specificity", "f1")
    headings = list(figures)
    rows = {name: [finding[figure] for figure in figures] for name, finding in findings.items()}
    if any("operating_point" in finding for finding in findings.values()):
        headings += ["threshold", "sensitivity", "specificity"]
        for name, finding in findings.items():
            point = finding["operating_point"] or {"probability": None, "decisions": {}}
            decisions = point["decisions"]
            rows[name] += [point["probability"], decisions.get("sensitivity"), decisions.get("specificity")]
    return "\n".join([line("", headings), *(line(name, cells) for name, cells in rows.items())])


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


class _Predictor:
    """A model, a dataset and the secret that opens what one says of the other."""

    def __init__(self, options: argparse.Namespace, splits: tuple[str, ...], *, labelled: bool) -> None:
        """Open all of it; raise `DatasetError` where a split has no sequence, before TensorFlow is loaded."""
        from fedpp.config.hyperparameters import Hyperparameters
        from fedpp.dataset.encrypted_dataset import EncryptedDataset
        from fedpp.errors import DatasetError
        from fedpp.learning.model_file import EncryptedModel

        self._domain = domain_of(options)
        self._dataset = EncryptedDataset.open(options.dataset, self._domain.at_rest_key())
        model = EncryptedModel.load(options.model)
        if labelled and not self._dataset.manifest.classes:
            raise DatasetError(f"{options.dataset} has no labels to score against: ingest it with labels")
        self._dataset.require_domain(self._domain.card().fingerprint)
        for split in splits:
            if not len(self._dataset.indices(split)):
                do = "choose another --split" if split == options.split else "--sensitivity chooses its threshold there"
                raise DatasetError(f"{options.dataset} has no sequence in split {split}: {do}")
        model.require_fitting(self._domain.card().fingerprint, self._dataset.manifest.classes)
        self.classes, self.multi_label = model.classes, model.network.multi_label

        load_tensorflow()
        from fedpp.learning.encrypted_training import EncryptedTrainer

        algebra = self._domain.computing_key().algebra()
        self._trainer = EncryptedTrainer(model.network, algebra, Hyperparameters(), model.dtype)
        self._trainer.load(model.rows)

    def names(self, split: str) -> list[str]:
        """Return the pseudonyms of a split's sequences."""
        return self._dataset.ids(self._dataset.indices(split))

    def probabilities(self, split: str) -> Any:
        """Return `[k, classes]`, or of findings `[k, findings, 2]`: of absence and presence."""
        from fedpp.keys import encryption
        from fedpp.learning.metrics import presence, softmax

        rows = self._trainer.logits(self._dataset, self._dataset.indices(split))
        return (presence if self.multi_label else softmax)(encryption.decrypt(self._domain, rows))

    def counts(self, split: str) -> Any:
        """Return the counts of a split, of each finding if there are several."""
        from fedpp.keys import encryption
        from fedpp.learning.metrics import count, count_findings

        rows, probabilities = self._dataset.labels(self._dataset.indices(split)), self.probabilities(split)
        if self.multi_label:
            return count_findings(encryption.decrypt_findings(self._domain, rows), probabilities)
        return count(encryption.decrypt_classes(self._domain, rows), probabilities)
