"""The tables of an experiment: Table 1 of the paper, parity of the two sides, and the AUC beside HOG's."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedpp.config.model_spec import Architecture

from .experiment import Outcome, network_of
from .paper_settings import Settings
from .scores import FIGURES, Figures, Summary, figures, interval
from .study import Fold, Study
from .trial import Trial

CHOSEN_BY_FOLD = "Network chosen by each fold's validation"


@dataclass(frozen=True)
class NetworkRow:
    """One row of Table 1: a network on one side, over the folds of the first seed."""

    network: Architecture
    side: str
    parameters: int
    figures: dict[str, Summary]
    epochs: Summary  # that were run; with early stopping the weights are an earlier one's
    seconds: Summary  # of training alone, without what the curves cost
    seconds_an_epoch: float  # median over all folds' epochs, but the first of each
    ratio: float | None  # of the medians, ciphertext to plaintext


@dataclass(frozen=True)
class ParityRow:
    """How far the two sides are apart on one fold, and how far plaintext is from itself, moved by one ulp."""

    network: Architecture
    fold: int
    probability: float  # largest difference of a probability, over all sequences
    metric: float  # largest difference of a figure of Table 1 on the test sequences
    control_probabilities: tuple[float, ...]
    control_metrics: tuple[float, ...]
    within: bool | None  # at most the largest of the draws, in probability; None without draws

    @property
    def farther(self) -> int:
        """Count the draws that are farther from plaintext than the ciphertext is."""
        return sum(control > self.probability for control in self.control_probabilities)

    @property
    def equal(self) -> bool:
        """Tell whether no figure differs."""
        return self.metric == 0.0


@dataclass(frozen=True)
class AucRow:
    """AUC by patient, and the interval of its mean over folds and seeds.

    It is of a network on a side, of the networks that `_chosen_by_fold` takes, or of HOG.
    """

    name: str
    side: str
    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    validation: float | None  # the mean on the validation patients, by which `best` is chosen among the networks
    beyond_hog: float | None  # mean difference to HOG in the same folds
    beyond_hog_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Tables:
    """All tables; `best` is the network that is best on the validation patients, in plaintext if it was run."""

    networks: tuple[NetworkRow, ...]
    parity: tuple[ParityRow, ...]
    auc: tuple[AucRow, ...]
    best: Architecture
    by_fold: tuple[dict[str, Any], ...]  # of each trial, controls apart: its figures on the test sequences

    def to_mapping(self) -> dict[str, Any]:
        """Return values for JSON."""
        return asdict(self)


def tables(study: Study, settings: Settings, outcome: Outcome) -> Tables:
    """Make the tables."""
    scored = _Scored(study, outcome)
    first = [fold for fold in outcome.folds if fold.seed == settings.seed]
    networks: list[NetworkRow] = []
    for network in settings.networks:
        medians = {side: _median_epoch(_trials(outcome, network, side, first)) for side in settings.sides}
        ratio = medians["ciphertext"] / medians["plaintext"] if len(medians) > 1 else None
        networks += [
            _network_row(scored, settings, network, side, first, medians[side], ratio if side == "ciphertext" else None)
            for side in settings.sides
        ]
    parity = [_parity_row(scored, settings, network, fold) for network in settings.networks for fold in first]
    auc = _auc_rows(scored, settings, first)
    with_validation = [row for row in auc if row.side == settings.sides[0] and row.validation is not None]
    best = max(with_validation, key=lambda row: row.validation or 0.0).name
    return Tables(
        tuple(networks),
        tuple(row for row in parity if row is not None),
        tuple(auc),
        next(network for network in settings.networks if network == best),
        tuple(_by_fold(scored, outcome)),
    )


class _Scored:
    """Figures of trials, each computed when it is asked for."""

    def __init__(self, study: Study, outcome: Outcome) -> None:
        self.study, self.outcome = study, outcome
        self._patients = study.patients

    def test(self, trial: Trial, fold: Fold) -> Figures:
        return self.at(trial.array, fold, "test")

    def at(self, probabilities: Any, fold: Fold, split: str) -> Figures:
        return figures(self.study.labels, self._patients, probabilities, getattr(fold, split))


def _trials(outcome: Outcome, network: Architecture, side: str, folds: Sequence[Fold]) -> list[Trial]:
    found = [outcome.trial(network, fold, side) for fold in folds]
    return [trial for trial in found if trial is not None]


def _median_epoch(trials: Sequence[Trial]) -> float:
    """Return the median second of an epoch; the first of each training may hold a compilation, if there are others."""
    return float(np.median([second for trial in trials for second in trial.epoch_seconds[1:] or trial.epoch_seconds]))


def _network_row(
    scored: _Scored,
    settings: Settings,
    network: Architecture,
    side: str,
    folds: Sequence[Fold],
    median: float,
    ratio: float | None,
) -> NetworkRow:
    trials = _trials(scored.outcome, network, side, folds)
    of_folds = [scored.test(trial, fold) for trial, fold in zip(trials, folds, strict=True)]
    return NetworkRow(
        network,
        side,
        network_of(scored.study, settings, network).parameters(),
        {name: Summary.of([values[name] for values in of_folds]) for name in FIGURES},
        Summary.of([float(len(trial.epoch_seconds)) for trial in trials]),
        Summary.of([sum(trial.epoch_seconds) for trial in trials]),
        median,
        ratio,
    )


def _parity_row(scored: _Scored, settings: Settings, network: Architecture, fold: Fold) -> ParityRow | None:
    plain = scored.outcome.trial(network, fold, "plaintext")
    encrypted = scored.outcome.trial(network, fold, "ciphertext")
    if plain is None or encrypted is None:
        return None
    draws = [scored.outcome.trial(network, fold, "control", draw) for draw in range(settings.control_draws)]
    distances = [_distance(scored, fold, plain, other) for other in (encrypted, *draws) if other is not None]
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


def _distance(scored: _Scored, fold: Fold, first: Trial, other: Trial) -> tuple[float, float]:
    """Return the largest difference of a probability, and of a figure on the test sequences."""
    ours, theirs = scored.test(first, fold), scored.test(other, fold)
    pairs = [(ours[name], theirs[name]) for name in FIGURES]
    apart = [abs((a or 0.0) - (b or 0.0)) if (a is None) == (b is None) else 1.0 for a, b in pairs]
    return float(np.abs(first.array - other.array).max()), max(apart)


def _auc_rows(scored: _Scored, settings: Settings, first: Sequence[Fold]) -> list[AucRow]:
    """Return HOG's row over all folds and seeds, and each network's over those that it was trained on."""
    outcome = scored.outcome
    hog = {key: scored.at(p, _fold(outcome, key), "test").auc_by_patient for key, p in outcome.hog.items()}
    rows = []
    for network in settings.networks:
        for side in settings.sides:
            folds = first if side == "ciphertext" or settings.seeds == 1 else outcome.folds
            trials = _trials(outcome, network, side, folds)
            validation = [
                scored.at(t.array, f, "validation").auc_by_patient for t, f in zip(trials, folds, strict=True)
            ]
            tests = [scored.test(t, f).auc_by_patient for t, f in zip(trials, folds, strict=True)]
            rows.append(_auc_row(network, side, folds, tests, Summary.of(validation).mean, hog))
    if len(settings.networks) > 1:
        rows.append(_chosen_by_fold(scored, settings, hog))
    if hog:
        rows.append(_auc_row("HOG + logistic regression", "plaintext", outcome.folds, list(hog.values()), None, {}))
    return rows


def _chosen_by_fold(scored: _Scored, settings: Settings, hog: dict[tuple[int, int], float | None]) -> AucRow:
    """Return the row of a network chosen anew in each fold, by the validation patients of that fold alone.

    `best` is not so strict: it is chosen over all folds, and one fold's validation patients are tested in another.
    """
    side, folds = settings.sides[0], scored.outcome.folds
    tests = []
    for fold in folds:
        trials = [trial for network in settings.networks for trial in _trials(scored.outcome, network, side, [fold])]
        validation = [scored.at(trial.array, fold, "validation").auc_by_patient or 0.0 for trial in trials]
        tests.append(scored.test(trials[int(np.argmax(validation))], fold).auc_by_patient)
    return _auc_row(CHOSEN_BY_FOLD, side, folds, tests, None, hog)


def _auc_row(
    name: str,
    side: str,
    folds: Sequence[Fold],
    tests: Sequence[float | None],
    validation: float | None,
    hog: dict[tuple[int, int], float | None],
) -> AucRow:
    shares = [len(fold.test) / len(fold.train) for fold in folds]
    share = float(np.mean(shares))
    known = [value for value in tests if value is not None]
    baseline = [hog.get((fold.seed, fold.number)) for fold in folds]
    apart = [a - b for a, b in zip(tests, baseline, strict=True) if a is not None and b is not None]
    return AucRow(
        name,
        side,
        tuple(known),
        float(np.mean(known)),
        _within_0_and_1(interval(known, share)),
        validation,
        float(np.mean(apart)) if apart else None,
        interval(apart, share),
    )


def _within_0_and_1(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if bounds is None else (max(0.0, bounds[0]), min(1.0, bounds[1]))


def _fold(outcome: Outcome, key: tuple[int, int]) -> Fold:
    return next(fold for fold in outcome.folds if (fold.seed, fold.number) == key)


def _by_fold(scored: _Scored, outcome: Outcome) -> list[dict[str, Any]]:
    """Return a row for each trial but the controls, and for each fold of HOG."""
    rows: list[dict[str, Any]] = [
        {
            "network": run.network,
            "side": run.side,
            "seed": run.fold.seed,
            "fold": run.fold.number + 1,
            **scored.test(trial, run.fold).to_mapping(),
            "validation_auc_by_patient": scored.at(trial.array, run.fold, "validation").auc_by_patient,
            "epochs": len(trial.epoch_seconds),
            "kept_epoch": trial.best_epoch,
            "seconds": sum(trial.epoch_seconds),
        }
        for run, trial in zip(outcome.runs, outcome.trials, strict=True)
        if run.side != "control"
    ]
    for (seed, number), probabilities in outcome.hog.items():
        found = scored.at(probabilities, _fold(outcome, (seed, number)), "test").to_mapping()
        rows.append({"network": "hog", "side": "plaintext", "seed": seed, "fold": number + 1, **found})
    return rows
