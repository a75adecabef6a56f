"""`fedpp-site evaluate` and `predict`: predictions of a model on ciphertext, decrypted in the secret zone."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.cli import add_default, add_json, load_tensorflow, path, share
from fedpp.config.run_config import SPLITS
from fedpp.errors import DatasetError
from fedpp.texts import printable

from .opening import PassphraseSource, add_domain, open_domain, show

if TYPE_CHECKING:
    from fedpp.learning.exact_metrics import Predictions


def add_predict_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict`."""
    to.add_argument("model", type=path, help="model.npz")
    to.add_argument("dataset", type=path, help="encrypted dataset")
    add_domain(to)
    add_default(to, "--split", "test", "split of the dataset", SPLITS)
    add_json(to)


def add_evaluate_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    add_predict_arguments(to)
    to.add_argument(
        "--sensitivity",
        type=share,
        help="sensitivity to reach on split validation: choose the threshold for it, and evaluate that on --split",
    )


def evaluate(
    *,
    model: Path,
    dataset: Path,
    domain: Path,
    passphrase: PassphraseSource,
    split: str,
    sensitivity: float | None,
    as_json: bool,
) -> int:
    """Evaluate a model on a split: predict on ciphertext, decrypt in the secret zone; figures and curves are exact."""
    splits = (split,) if sensitivity is None else (split, "validation")
    predictor = _Predictor(model, dataset, domain, passphrase, splits, labelled=True)
    tested = predictor.predictions(split)
    chosen_on = tested if sensitivity is None else predictor.predictions("validation")
    of_each = [_figures(*pair, sensitivity, curves=as_json) for pair in zip(chosen_on, tested, strict=True)]
    if predictor.multi_label:
        from fedpp.learning.metrics import mean_metrics

        mean = mean_metrics([of_one.metrics() for of_one in tested]).to_mapping()
        figures = {"split": split, "examples": len(predictor.names(split)), **mean}
        findings = {
            name: {"known": len(of_one.labels), "present": int(of_one.positive.sum()), **own}
            for name, of_one, own in zip(predictor.classes, tested, of_each, strict=True)
        }
        show({**figures, "findings": findings} if as_json else figures, as_json=as_json)
        if not as_json:
            print("\n".join(map(printable, _table(findings))))
    else:
        figures = {"split": split, "examples": len(tested[0].labels), **of_each[0]}
        show(figures if as_json else _lines(figures), as_json=as_json)
    return 0


def predict(
    *, model: Path, dataset: Path, domain: Path, passphrase: PassphraseSource, split: str, as_json: bool
) -> int:
    """Print the decrypted probabilities of each sequence of a split, by pseudonym; of findings those of presence."""
    predictor = _Predictor(model, dataset, domain, passphrase, (split,), labelled=False)
    probabilities, names = predictor.probabilities(split), predictor.names(split)
    if predictor.multi_label:
        probabilities = probabilities[..., 1]
    classes = predictor.classes
    rows = [(name, dict(zip(classes, p.tolist(), strict=True))) for name, p in zip(names, probabilities, strict=True)]
    if as_json:
        print(json.dumps([{"sequence": name, "split": split, "probabilities": p} for name, p in rows]))
    else:
        print("\t".join(map(printable, [f"sequence of split {split}", *(f"P({name})" for name in classes)])))
        for name, p in rows:
            print("\t".join([printable(name), *(f"{value:.4f}" for value in p.values())]))
    return 0


def _figures(
    validation: "Predictions", tested: "Predictions", sensitivity: float | None, *, curves: bool
) -> dict[str, Any]:
    """Return metrics, the operating point of a sensitivity (None without positives), and curves if they are wanted."""
    from fedpp.learning.exact_metrics import exact_operating_point

    figures: dict[str, Any] = dict(tested.metrics().to_mapping())
    if sensitivity is not None:
        point = exact_operating_point(validation, tested, sensitivity)
        figures["operating_point"] = point and point.to_mapping()
    if curves:
        found = tested.curves()
        figures["curves"] = found and found.to_mapping()
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


def _table(findings: dict[str, dict[str, Any]]) -> list[str]:
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
    return [line("", headings), *(line(name, cells) for name, cells in rows.items())]


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


class _Predictor:
    """A model applied to a dataset, with the domain secret that decrypts its predictions."""

    def __init__(
        self,
        model_file: Path,
        dataset: Path,
        domain: Path,
        passphrase: PassphraseSource,
        splits: tuple[str, ...],
        *,
        labelled: bool,
    ) -> None:
        """Open all of it; raise `DatasetError` where a split has no sequence, before TensorFlow is loaded."""
        from fedpp.config.hyperparameters import Hyperparameters
        from fedpp.dataset.encrypted_dataset import EncryptedDataset
        from fedpp.learning.model_file import EncryptedModel

        self._domain = open_domain(domain, passphrase)
        self._dataset = EncryptedDataset.open(dataset, self._domain.at_rest_key())
        model = EncryptedModel.load(model_file)
        if labelled and not self._dataset.manifest.classes:
            raise DatasetError(f"{dataset} has no labels to evaluate against: ingest it with labels")
        self._dataset.require_domain(self._domain.card().fingerprint)
        for split in splits:
            if not len(self._dataset.indices(split)):
                do = "choose another --split" if split == splits[0] else "--sensitivity chooses its threshold there"
                raise DatasetError(f"{dataset} has no sequence in split {split}: {do}")
        model.require_fitting(self._domain.card().fingerprint, self._dataset.manifest.classes)
        self.classes, self.multi_label = model.classes, model.network.task.multi_label

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
