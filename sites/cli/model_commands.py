"""`fedpp-site evaluate` and `predict`: predictions of a model on ciphertext, decrypted in the secret zone."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.cli import add_default, add_json, load_tensorflow, path, share
from fedpp.config.run_config import SPLITS
from fedpp.errors import DatasetError
from fedpp.texts import printable

from .opening import PassphraseSource, add_domain, open_domain

if TYPE_CHECKING:
    from fedpp.learning.assessment import Assessment
    from fedpp.learning.exact_metrics import Predictions
    from fedpp.learning.metrics import OperatingPoint


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
    what = {"split": split, "examples": len(predictor.names(split)), "patients": predictor.patients(split)}
    made = together(assessed) if predictor.multi_label else assessed[0].to_mapping()
    if as_json:
        for of_one, own in zip(tested, made["findings"].values() if predictor.multi_label else [made], strict=True):
            curves = of_one.curves()
            own["curves"] = curves and curves.to_mapping()
            if sensitivity is not None:
                own.setdefault("operating_point", None)
        print(json.dumps({**what, **made}))
        return 0
    print("split {split}: {examples} sequences of {patients} patients".format(**what))
    for shown, point in zip(assessed, points, strict=True):
        print("\n".join(shown.lines()))
        if sensitivity is not None and point is None:
            print("no threshold was chosen: split validation has no positive sequence")
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

    def patients(self, split: str) -> int:
        """Return the number of patients of a split."""
        return self._dataset.patients()[split]

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
