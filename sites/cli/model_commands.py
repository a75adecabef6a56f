"""`fedpp-site evaluate`, `predict` and `lookup`: a model's decrypted predictions, and the patients whose they are.

All of them run in the secret zone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.cli import add_default, add_json, load_tensorflow, path, positive, share
from fedpp.config.run_config import SPLITS
from fedpp.config.task import LABELS_NEEDED
from fedpp.errors import ConfigError, DatasetError, RawDataError, UnusableFileError, UsageError
from fedpp.texts import counted, either, printable
from fedpp.values import is_hex

from .data_commands import add_raw
from .opening import PassphraseSource, add_domain, open_domain, require_folder, show

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedpp.imaging.readers.breakhis import Series
    from fedpp.imaging.readers.layout import Choices
    from fedpp.imaging.readers.studies import Uncertain, Views
    from fedpp.imaging.sequence import ImageSequence
    from fedpp.learning.assessment import Assessment
    from fedpp.learning.exact_metrics import Predictions
    from fedpp.learning.metrics import OperatingPoint
    from fedpp.survey.predictions import Prediction


ALL = "all"  # of predict: the sequences of all splits
WORST = 20  # errors of a kind on a page
NAMED = 8  # unknown pseudonyms in a message


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


def add_lookup_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `lookup`; with those of `ingest` the raw data are read as it read them."""
    add_raw(to)
    to.add_argument(
        "pseudonyms",
        nargs="*",
        default=[],  # else argparse takes them for required
        metavar="PSEUDONYM",
        help="pseudonyms of patients or sequences (default: the first word of each line of standard input)",
    )
    add_domain(to)
    to.add_argument(
        "--predictions", type=path, metavar="FILE", help="output of `predict --json`: look up its sequences"
    )
    to.add_argument(
        "--page",
        type=path,
        metavar="FILE",
        help="page to write of the worst errors among --predictions, in place of names "
        "(HTML with pictures and patients, mode 0600)",
    )
    worst = f"errors of each kind on the page, of several findings for each (default: {WORST})"
    to.add_argument("--worst", type=positive, metavar="N", help=worst)
    to.add_argument("--overwrite", action="store_true", help="replace an earlier page")
    add_json(to)


def lookup(
    *,
    raw: Path,
    layout: str,
    target: str,
    uncertain: "Uncertain",
    views: "Views",
    series: "Series",
    pseudonyms: list[str],
    domain: Path,
    passphrase: PassphraseSource,
    predictions: Path | None,
    page: Path | None,
    worst: int | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Print the patients and sequences behind pseudonyms, or write a page of the worst errors; log who asked."""
    from fedpp.imaging.readers.layout import Choices
    from fedpp.keys import key_store
    from fedpp.survey.errors_page import Errors, render
    from fedpp.survey.lookup import look_up, of_patients
    from fedpp.survey.survey_page import require_new, write_page

    from ..vault.audit.lookup_log import record

    _require_fitting(pseudonyms, predictions, page, worst=worst, overwrite=overwrite)
    rows = [] if predictions is None else _predictions(predictions)
    if page is not None:
        require_new(page, overwrite=overwrite, option="--page")
        errors = Errors.of(rows, worst or WORST)
        wanted = list(errors.sequences())
    else:
        wanted = list(dict.fromkeys(row.sequence for row in rows)) or _pseudonyms(pseudonyms)
    require_folder(domain)
    site = key_store.open_site(domain, passphrase.read())
    sequences = _read_again(raw, layout, Choices(target, uncertain, views, series))
    if page is not None:
        patients = {row.patient for row in errors.sequences().values()}
        sequences = of_patients(patients, sequences, site.domain)
    found = look_up(wanted, sequences, site.domain)
    unknown = [pseudonym for pseudonym in wanted if pseudonym not in found]
    record(domain, site.identity, "names" if page is None else "page", list(found), unknown)
    if page is None:
        _show_names({pseudonym: what.names() for pseudonym, what in found.items()}, as_json=as_json)
    _require_all_known(unknown, raw)
    if page is not None:
        write_page(page, render(raw.resolve().name, errors, found), overwrite=overwrite, option="--page")
        print(printable(f"{page} shows images and names of patients: keep it in the secret zone"), file=sys.stderr)
        show(errors.counts(), as_json=as_json)
    return 0


def _require_fitting(
    pseudonyms: list[str], predictions: Path | None, page: Path | None, *, worst: int | None, overwrite: bool
) -> None:
    """Raise `UsageError` for arguments that have no effect together."""
    if predictions is not None and pseudonyms:
        raise UsageError(
            f"--predictions is in place of pseudonyms, and {counted(len(pseudonyms), 'pseudonym')} came, too: give one "
            "of both"
        )
    if page is not None and predictions is None:
        raise UsageError("--page shows the errors among --predictions FILE: write that by `fedpp-site predict --json`")
    if page is None and (worst is not None or overwrite):
        raise UsageError(f"{'--overwrite' if overwrite else '--worst'} is for --page FILE: give that, too")


def _predictions(file: Path) -> "list[Prediction]":
    from fedpp.survey.predictions import load

    try:
        return load(file, file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"cannot read the predictions {file}: {why}") from None


def _pseudonyms(given: list[str]) -> list[str]:
    """Return different pseudonyms of the command line, or else of standard input."""
    from fedpp.survey.predictions import PSEUDONYM_DIGITS

    if not given:
        if sys.stdin.isatty():
            raise UsageError("no pseudonym is given: name some, send some to standard input, or give --predictions")
        words = [line.split()[0] for line in sys.stdin if line.strip()]
        given = words[words[:1] == ["sequence"] :]  # the heading of `predict`
    for place, text in enumerate(given, 1):
        if not is_hex(text, PSEUDONYM_DIGITS):  # which may be a patient's name
            raise ConfigError(
                f"text {place} of {len(given)} is no pseudonym, {PSEUDONYM_DIGITS} hexadecimal digits in lower case: "
                f"it has {counted(len(text), 'character')}; `predict` prints them"
            )
    if not given:
        raise ConfigError("standard input holds no pseudonym: `fedpp-site predict` prints them")
    return list(dict.fromkeys(given))


def _read_again(raw: Path, layout: str, choices: "Choices") -> "list[ImageSequence]":
    """Return the sequences of raw data, without what cannot be used; report how they were read."""
    from fedpp.imaging.account import Account, Outcome
    from fedpp.imaging.readers.layout import read_sequences

    account = Account(raw)
    try:
        sequences, recognised = read_sequences(raw, layout, choices, account)
    except UnusableFileError as error:
        raise RawDataError(f"nothing was read: {error.reason}") from None
    print(printable(recognised), file=sys.stderr)
    if lost := account.count(Outcome.LOST):
        print(f"{counted(lost, 'file')} of raw data cannot be used: `fedpp-site survey` says why", file=sys.stderr)
    return sequences


def _show_names(names: dict[str, dict[str, str | None]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([{"pseudonym": pseudonym, **own} for pseudonym, own in names.items()]))
        return
    print("pseudonym\tpatient\tsequence")
    for pseudonym, own in names.items():
        print("\t".join([pseudonym, *(printable(name or "-") for name in own.values())]))


def _require_all_known(unknown: list[str], raw: Path) -> None:
    """Raise `RawDataError` that names pseudonyms of nobody."""
    if unknown:
        listed = ", ".join(unknown[:NAMED]) + (f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else "")
        raise RawDataError(
            f"no patient and no sequence of {raw} has the pseudonym {listed}: name the raw data, --layout and its "
            "options as at ingest, and the domain folder of the dataset's key epoch"
        )


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
            raise DatasetError(f"{dataset} has no labels to evaluate against: `predict` needs none, or {LABELS_NEEDED}")
        self._dataset.require_domain(self._domain.card().fingerprint)
        self.labelled = bool(self._dataset.manifest.classes)
        self.split = splits[0] if splits else "test" if self.labelled else ALL
        for split in splits or (self.split,):
            if not len(self._indices(split)):
                do = f"choose --split {self._choices(every=not labelled)}"
                chooses = "--sensitivity chooses its threshold there: leave it out, or ingest with other shares"
                raise DatasetError(
                    f"{dataset} has no sequence in split {split}: {do if split == self.split else chooses}"
                )
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

    def _choices(self, *, every: bool) -> str:
        """Return the splits that have sequences; `every`: all of them together are a choice, too."""
        splits = [split for split, count in self._dataset.counts().items() if count]
        return either([*splits, ALL] if every else splits)

    def names(self, split: str) -> list[str]:
        """Return the pseudonyms of a split's sequences."""
        return self._dataset.ids(self._indices(split))

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Return pseudonyms, split, frames, label and probabilities of each sequence; `Prediction` reads them.

        Of findings, they are whether each is present, and its probability.
        """
        table, probabilities = self._dataset.sequences[self._indices(split)], self.probabilities(split)
        if self.multi_label:
            probabilities = probabilities[..., 1]
        return [
            {
                "sequence": row["id"].decode(),
                "patient": row["patient"].decode(),
                "split": SPLITS[row["split"]],
                "frames": int(row["length"]),
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
