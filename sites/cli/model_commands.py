"""`fedpp-site`: what a model predicts, decrypted in the site's secret zone."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from fedpp.cli import load_tensorflow

from .opening import domain_of, show

if TYPE_CHECKING:
    from fedpp.learning.exact_metrics import Predictions


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate a model on a split: predict on ciphertext, decrypt in the secret zone; figures and curves are exact."""
    splits = (options.split,) if options.sensitivity is None else (options.split, "validation")
    predictor = _Predictor(options, splits, labelled=True)
    tested = predictor.predictions(options.split)
    chosen_on = tested if options.sensitivity is None else predictor.predictions("validation")
    of_each = [_figures(*pair, options) for pair in zip(chosen_on, tested, strict=True)]
    if predictor.multi_label:
        from fedpp.learning.metrics import mean_metrics

        mean = mean_metrics([of_one.metrics() for of_one in tested]).to_mapping()
        figures = {"split": options.split, "examples": len(predictor.names(options.split)), **mean}
        findings = {
            name: {"known": len(of_one.labels), "present": int(of_one.positive.sum()), **own}
            for name, of_one, own in zip(predictor.classes, tested, of_each, strict=True)
        }
        show(options, {**figures, "findings": findings} if options.json else figures)
        if not options.json:
            print(_table(findings))
    else:
        figures = {"split": options.split, "examples": len(tested[0].labels), **of_each[0]}
        show(options, figures if options.json else _lines(figures))
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


def _figures(validation: "Predictions", tested: "Predictions", options: argparse.Namespace) -> dict[str, Any]:
    """Return figures, the operating point of a wanted sensitivity (None without positives), and curves for JSON."""
    from fedpp.learning.exact_metrics import exact_operating_point

    figures: dict[str, Any] = dict(tested.metrics().to_mapping())
    if options.sensitivity is not None:
        point = exact_operating_point(validation, tested, options.sensitivity)
        figures["operating_point"] = point and point.to_mapping()
    if options.json:
        curves = tested.curves()
        figures["curves"] = curves and curves.to_mapping()
    return figures


def _lines(figures: dict[str, Any]) -> dict[str, Any]:
    """Return figures with the operating point as lines of its own: the threshold as a probability, and its figures."""
    if "operating_point" not in figures:
        return figures
    plain = dict(figures)
    chosen = plain.pop("operating_point")
    if chosen is None:
        return {**plain, "threshold": None}
    there = {f"{name} there": value for name, value in chosen["decisions"].items()}
    return {**plain, "threshold": chosen["probability"], **there}


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
    """A model, a dataset, and the domain secret that decrypts the predictions."""

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

    def predictions(self, split: str) -> "list[Predictions]":
        """Return the labels and predictions of a split; of several findings, those of each where it is known."""
        from fedpp.keys import encryption
        from fedpp.learning.exact_metrics import Predictions

        rows, probabilities = self._dataset.labels(self._dataset.indices(split)), self.probabilities(split)
        if self.multi_label:
            return Predictions.of_findings(encryption.decrypt_findings(self._domain, rows), probabilities)
        return [Predictions.of(encryption.decrypt_classes(self._domain, rows), probabilities)]
