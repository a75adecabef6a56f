"""`fedpp-site evaluate` and `predict`: predictions of a model on ciphertext, decrypted in the secret zone."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.cli import add_default, add_json, load_tensorflow, path, share
from fedpp.config.run_config import SPLITS
from fedpp.errors import DatasetError
from fedpp.texts import counted, printable

from .opening import PassphraseSource, add_domain, open_domain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedpp.learning.assessment import Assessment
    from fedpp.learning.exact_metrics import Predictions
    from fedpp.learning.metrics import OperatingPoint


ALL = "all"  # of predict: the sequences of all splits


def add_predict_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict`."""
    _add_model(to)
    to.add_argument(
        "--split",
        choices=(*SPLITS, ALL),
        help="split of the dataset (default: test; all of a dataset without labels)",
    )
    add_json(to)


def add_evaluate_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    _add_model(to)
    add_default(to, "--split", "test", "split of the dataset", SPLITS)
    add_json(to)
    to.add_argument(
        "--sensitivity",
        type=share,
        help="sensitivity to reach on split validation: choose the threshold for it, and evaluate that on --split",
    )


def _add_model(to: argparse.ArgumentParser) -> None:
    to.add_argument("model", type=path, help="model.npz")
    to.add_argument("dataset", type=path, help="encrypted dataset")
    add_domain(to)


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
    from fedpp.learning.assessment import together

    splits = (split,) if sensitivity is None else (split, "validation")
    predictor = _Predictor(model, dataset, domain, passphrase, splits, labelled=True)
    tested = predictor.predictions(split)
    points: list[OperatingPoint | None] = [None] * len(tested)
    if sensitivity is not None:
        from fedpp.learning.exact_metrics import exact_operating_point

        chosen_on = zip(predictor.predictions("validation"), tested, strict=True)
        points = [exact_operating_point(*pair, sensitivity) for pair in chosen_on]
    assessed = predictor.assessed(tested, points)
    examples, patients = len(predictor.names(split)), predictor.patients(split)
    made = together(assessed) if predictor.multi_label else assessed[0].to_mapping()
    if as_json:
        for of_one, own in zip(tested, made["findings"].values() if predictor.multi_label else [made], strict=True):
            curves = of_one.curves()
            own["curves"] = curves and curves.to_mapping()
            if sensitivity is not None:
                own.setdefault("operating_point", None)
        print(json.dumps({"split": split, "examples": examples, "patients": patients, **made}))
        return 0
    print(f"split {split}: {counted(examples, 'sequence')} of {counted(patients, 'patient')}")
    for shown, point in zip(assessed, points, strict=True):
        print("\n".join(shown.lines()))
        if sensitivity is not None and point is None:
            print("no threshold was chosen: split validation has no positive sequence")
    return 0


def predict(
    *, model: Path, dataset: Path, domain: Path, passphrase: PassphraseSource, split: str | None, as_json: bool
) -> int:
    """Print each sequence's decrypted probabilities by pseudonym, and its label; of findings those of presence."""
    predictor = _Predictor(model, dataset, domain, passphrase, () if split is None else (split,), labelled=False)
    rows = predictor.rows(predictor.split)
    if as_json:
        print(json.dumps(rows))
        return 0
    print("\t".join(map(printable, ["sequence", "patient", "split", "label", *(f"P({c})" for c in predictor.classes)])))
    for row in rows:
        facts = (row["sequence"], row["patient"], row["split"], _label_text(row["label"]))
        print("\t".join([*map(printable, facts), *(f"{value:.4f}" for value in row["probabilities"].values())]))
    return 0


def _label_text(label: str | dict[str, bool | None] | None) -> str:
    """Return a label, or the findings that are present, or "-" without any."""
    names = [name for name, present in label.items() if present] if isinstance(label, dict) else [label or ""]
    return ", ".join(filter(None, names)) or "-"


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
        self.labelled = bool(self._dataset.manifest.classes)
        self.split = splits[0] if splits else "test" if self.labelled else ALL
        for split in splits or (self.split,):
            if not len(self._indices(split)):
                do = "choose another --split" if split == self.split else "--sensitivity chooses its threshold there"
                raise DatasetError(f"{dataset} has no sequence in split {split}: {do}")
        model.require_fitting(self._domain.card().fingerprint, self._dataset.manifest.classes)
        self.classes, self.multi_label = model.classes, model.network.task.multi_label

        load_tensorflow()
        from fedpp.learning.encrypted_training import EncryptedTrainer

        algebra = self._domain.computing_key().algebra()
        self._trainer = EncryptedTrainer(model.network, algebra, Hyperparameters(), model.dtype)
        self._trainer.load(model.rows)

    def _indices(self, split: str) -> "NDArray[np.int64]":
        import numpy as np

        return np.arange(len(self._dataset)) if split == ALL else self._dataset.indices(split)

    def names(self, split: str) -> list[str]:
        """Return the pseudonyms of a split's sequences."""
        return self._dataset.ids(self._indices(split))

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Return pseudonyms, split, probabilities and label of each sequence; of findings whether each is present."""
        table, probabilities = self._dataset.sequences[self._indices(split)], self.probabilities(split)
        if self.multi_label:
            probabilities = probabilities[..., 1]
        return [
            {
                "sequence": row["id"].decode(),
                "patient": row["patient"].decode(),
                "split": SPLITS[row["split"]],
                "label": label,
                "probabilities": dict(zip(self.classes, of_one.tolist(), strict=True)),
            }
            for row, label, of_one in zip(table, self._labels(split), probabilities, strict=True)
        ]

    def _labels(self, split: str) -> Sequence[str | dict[str, bool | None] | None]:
        """Return each sequence's label, or the state of each finding; None without labels."""
        from fedpp.keys import encryption

        indices = self._indices(split)
        if not self.labelled:
            return [None] * len(indices)
        rows = self._dataset.labels(indices)
        if not self.multi_label:
            return [self.classes[number] for number in encryption.decrypt_classes(self._domain, rows)]
        states = {1: True, 0: False}
        return [
            {name: states.get(state) for name, state in zip(self.classes, of_one.tolist(), strict=True)}
            for of_one in encryption.decrypt_findings(self._domain, rows)
        ]

    def patients(self, split: str) -> int:
        """Return the number of patients of a split."""
        return self._dataset.patients()[split]

    def probabilities(self, split: str) -> Any:
        """Return `[k, classes]`, or of findings `[k, findings, 2]`: of absence and presence."""
        from fedpp.keys import encryption
        from fedpp.learning.metrics import presence, softmax

        rows = self._trainer.logits(self._dataset, self._indices(split))
        return (presence if self.multi_label else softmax)(encryption.decrypt(self._domain, rows))

    def predictions(self, split: str) -> "list[Predictions]":
        """Return the labels and predictions of a split; of several findings, those of each where it is known."""
        from fedpp.keys import encryption
        from fedpp.learning.exact_metrics import Predictions

        indices = self._dataset.indices(split)
        rows, probabilities = self._dataset.labels(indices), self.probabilities(split)
        patients = self._dataset.sequences["patient"][indices]
        if self.multi_label:
            return Predictions.of_findings(encryption.decrypt_findings(self._domain, rows), probabilities, patients)
        return [Predictions.of(encryption.decrypt_classes(self._domain, rows), probabilities, patients)]

    def assessed(self, tested: "list[Predictions]", points: "Sequence[OperatingPoint | None]") -> "list[Assessment]":
        """Return the assessment of the one label, or of each finding."""
        names = [(name,) for name in self.classes] if self.multi_label else [self.classes]
        return [
            of_one.assessment(classes, finding=self.multi_label, point=point)
            for of_one, classes, point in zip(tested, names, points, strict=True)
        ]
