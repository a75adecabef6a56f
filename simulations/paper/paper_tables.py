"""Tables of an experiment: Table 1 of the paper, parity of ciphertext and plaintext, and AUC beside HOG's."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpp.config.model_spec import Architecture

from .experiment import Outcome, network_of
from .paper_settings import Settings
from .scores import FIGURES, Figures, Summary, figures, interval
from .study import Fold, Study
from .trial import Trial

CHOSEN_BY_FOLD = "Network chosen by each fold's validation"


@dataclass(frozen=True)
class NetworkRow:
    """Row of Table 1: a network on one side, over the folds of the first seed."""

    network: Architecture
    side: str
    parameters: int
    figures: dict[str, Summary]
    epochs: Summary  # of training; with early stopping the kept weights are an earlier epoch's
    seconds: Summary  # of training alone, without what the curves cost
    seconds_an_epoch: float  # median over all folds' epochs, but the first of each
    ratio: float | None  # of the medians, ciphertext to plaintext


@dataclass(frozen=True)
class ParityRow:
    """Distance of the two sides on one fold, and of plaintext from its controls, moved by one ulp."""

    network: Architecture
    fold: int
    probability: float  # largest difference of a probability, over all sequences
    metric: float  # largest difference of a figure of Table 1 on the test sequences
    control_probabilities: tuple[float, ...]
    control_metrics: tuple[float, ...]
    within: bool | None  # at most the largest of the draws, in probability; None without draws

    @property
    def farther(self) -> int:
        """Count the controls that are farther from plaintext than the ciphertext."""
        return sum(control > self.probability for control in self.control_probabilities)

    @property
    def equal(self) -> bool:
        """Return whether no figure differs."""
        return self.metric == 0.0


@dataclass(frozen=True)
class AucRow:
    """AUC by patient of a network, of `_chosen_by_fold` or of HOG; the interval is of its mean over folds and seeds."""

    name: str
    side: str
    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    validation: float | None  # mean on the validation patients, which decides `best`
    beyond_hog: float | None  # mean difference to HOG in the same folds
    beyond_hog_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Tables:
    """All tables; `best` is the best network on the validation patients, in plaintext if that was run."""

    networks: tuple[NetworkRow, ...]
    parity: tuple[ParityRow, ...]
    auc: tuple[AucRow, ...]
    best: Architecture
    by_fold: tuple[dict[str, Any], ...]  # figures on the test sequences of each trial but controls

    def to_mapping(self) -> dict[str, Any]:
        """Return values for JSON."""
        return asdict(self)


def tables(study: Study, settings: Settings, outcome: Outcome) -> Tables:
    """Compute the tables."""
    evaluated = _Evaluated(study, settings, outcome)
    parity = [_parity_row(evaluated, network, fold) for network in settings.networks for fold in evaluated.first]
    auc = _auc_rows(evaluated)
    with_validation = [row for row in auc if row.side == settings.sides[0] and row.validation is not None]
    best = max(with_validation, key=lambda row: row.validation or 0.0).name
    return Tables(
        tuple(_network_row(evaluated, network, side) for network in settings.networks for side in settings.sides),
        tuple(row for row in parity if row is not None),
        tuple(auc),
        next(network for network in settings.networks if network == best),
        tuple(_by_fold(evaluated)),
    )


@dataclass(frozen=True)
class _Evaluated:
    """Trials of an experiment with their figures, each computed on demand."""

    study: Study
    settings: Settings
    outcome: Outcome

    @cached_property
    def patients(self) -> NDArray[np.str_]:
        return self.study.patients

    @cached_property
    def first(self) -> list[Fold]:
        """The folds of the first seed."""
        return [fold for fold in self.outcome.folds if fold.seed == self.settings.training.seed]

    def trials(self, network: Architecture, side: str, folds: Sequence[Fold]) -> list[Trial]:
        found = [self.outcome.trial(network, fold, side) for fold in folds]
        return [trial for trial in found if trial is not None]

    def at(self, probabilities: NDArray[np.float64], fold: Fold, split: str) -> Figures:
        return figures(self.study.labels, self.patients, probabilities, getattr(fold, split))

    def aucs(self, trials: Sequence[Trial], folds: Sequence[Fold], split: str) -> list[float | None]:
        return [self.at(t.array, f, split).auc_by_patient for t, f in zip(trials, folds, strict=True)]

    @cached_property
    def hog(self) -> list[tuple[Fold, Figures]]:
        """HOG's figures on the test sequences, by fold."""
        known = [(fold, self.outcome.hog.get((fold.seed, fold.number))) for fold in self.outcome.folds]
        return [(fold, self.at(p, fold, "test")) for fold, p in known if p is not None]


def _median_epoch(trials: Sequence[Trial]) -> float:
    """Return the median seconds of an epoch; the first of each training may hold a compilation, if there are others."""
    return float(np.median([second for trial in trials for second in trial.epoch_seconds[1:] or trial.epoch_seconds]))


def _network_row(evaluated: _Evaluated, network: Architecture, side: str) -> NetworkRow:
    settings, folds = evaluated.settings, evaluated.first
    trials = evaluated.trials(network, side, folds)
    of_folds = [evaluated.at(trial.array, fold, "test") for trial, fold in zip(trials, folds, strict=True)]
    median, ratio = _median_epoch(trials), None
    if side == "ciphertext" and "plaintext" in settings.sides:
        ratio = median / _median_epoch(evaluated.trials(network, "plaintext", folds))
    return NetworkRow(
        network,
        side,
        network_of(evaluated.study, settings, network).parameters(),
        {name: Summary.of([values[name] for values in of_folds]) for name in FIGURES},
        Summary.of([float(len(trial.epoch_seconds)) for trial in trials]),
        Summary.of([sum(trial.epoch_seconds) for trial in trials]),
        median,
        ratio,
    )


def _parity_row(evaluated: _Evaluated, network: Architecture, fold: Fold) -> ParityRow | None:
    outcome = evaluated.outcome
    plain, encrypted = (outcome.trial(network, fold, side) for side in ("plaintext", "ciphertext"))
    if plain is None or encrypted is None:
        return None
    draws = [outcome.trial(network, fold, "control", draw) for draw in range(evaluated.settings.control_draws)]
    distances = [_distance(evaluated, fold, plain, other) for other in (encrypted, *draws) if other is not None]
    (probability, metric), *controls = distances
    return ParityRow(
        network,
        fold.number,
        probability,
        metric,
        tuple(probability for probability, _ in controls),
        tuple(metric for _, metric in controls),
        probability <= max(p for p, _ in controls) if controls else None,
    )


def _distance(evaluated: _Evaluated, fold: Fold, first: Trial, other: Trial) -> tuple[float, float]:
    """Return the largest difference of a probability, and of a figure on the test sequences."""
    ours, theirs = (evaluated.at(trial.array, fold, "test") for trial in (first, other))
    pairs = [(ours[name], theirs[name]) for name in FIGURES]
    apart = [abs((a or 0.0) - (b or 0.0)) if (a is None) == (b is None) else 1.0 for a, b in pairs]
    return float(np.abs(first.array - other.array).max()), max(apart)


def _auc_rows(evaluated: _Evaluated) -> list[AucRow]:
    """Return each network's row over its folds and seeds, the row of `_chosen_by_fold`, and HOG's."""
    settings, all_folds = evaluated.settings, evaluated.outcome.folds
    hog = [(fold, of.auc_by_patient) for fold, of in evaluated.hog]
    rows = []
    for network in settings.networks:
        for side in settings.sides:
            folds = evaluated.first if side == "ciphertext" or settings.seeds == 1 else all_folds
            trials = evaluated.trials(network, side, folds)
            tests = list(zip(folds, evaluated.aucs(trials, folds, "test"), strict=True))
            validation = Summary.of(evaluated.aucs(trials, folds, "validation")).mean
            rows.append(_auc_row(network, side, tests, hog, validation))
    if len(settings.networks) > 1:
        rows.append(_auc_row(CHOSEN_BY_FOLD, settings.sides[0], _chosen_by_fold(evaluated), hog))
    if hog:
        rows.append(_auc_row("HOG + logistic regression", "plaintext", hog))
    return rows


def _chosen_by_fold(evaluated: _Evaluated) -> list[tuple[Fold, float | None]]:
    """Return the test AUC of the network chosen separately in each fold, by the validation patients of that fold alone.

    `best` is not so strict: it is chosen over all folds, and one fold's validation patients are tested in another.
    """
    settings, tests = evaluated.settings, []
    for fold in evaluated.outcome.folds:
        trials = [t for network in settings.networks for t in evaluated.trials(network, settings.sides[0], [fold])]
        validation = [auc or 0.0 for trial in trials for auc in evaluated.aucs([trial], [fold], "validation")]
        chosen = trials[int(np.argmax(validation))]
        tests.append((fold, evaluated.at(chosen.array, fold, "test").auc_by_patient))
    return tests


def _auc_row(
    name: str,
    side: str,
    tests: Sequence[tuple[Fold, float | None]],
    hog: Sequence[tuple[Fold, float | None]] = (),
    validation: float | None = None,
) -> AucRow:
    share = float(np.mean([len(fold.test) / len(fold.train) for fold, _ in tests]))
    known = [auc for _, auc in tests if auc is not None]
    baseline = {(fold.seed, fold.number): auc for fold, auc in hog}
    pairs = [(auc, baseline.get((fold.seed, fold.number))) for fold, auc in tests]
    beyond = [a - b for a, b in pairs if a is not None and b is not None]
    bounds = interval(known, share)
    return AucRow(
        name,
        side,
        tuple(known),
        float(np.mean(known)),
        (max(0.0, bounds[0]), min(1.0, bounds[1])) if bounds else None,
        validation,
        float(np.mean(beyond)) if beyond else None,
        interval(beyond, share),
    )


def _by_fold(evaluated: _Evaluated) -> list[dict[str, Any]]:
    """Return a row for each trial but the controls, and for each fold of HOG."""
    outcome = evaluated.outcome
    rows: list[dict[str, Any]] = [
        {
            "network": run.network,
            "side": run.side,
            "seed": run.fold.seed,
            "fold": run.fold.number + 1,
            **evaluated.at(trial.array, run.fold, "test").to_mapping(),
            "validation_auc_by_patient": evaluated.at(trial.array, run.fold, "validation").auc_by_patient,
            "epochs": len(trial.epoch_seconds),
            "kept_epoch": trial.best_epoch,
            "seconds": sum(trial.epoch_seconds),
        }
        for run, trial in zip(outcome.runs, outcome.trials, strict=True)
        if run.side != "control"
    ]
    for fold, of in evaluated.hog:
        rows.append(
            {"network": "hog", "side": "plaintext", "seed": fold.seed, "fold": fold.number + 1, **of.to_mapping()}
        )
    return rows
