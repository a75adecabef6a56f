"""Runs of an experiment: every network, seed and fold on every side, each saved as soon as it is finished."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedpp.config.model_spec import Architecture, ModelSpec
from fedpp.reporting.page import duration

from . import hog_baseline
from .experiment_folder import ExperimentFolder
from .paper_settings import Settings
from .sides import CiphertextSide, PlaintextSide, Side
from .study import Fold, Study, folds
from .trial import Trial, train

CIPHERTEXT_COST = 3.0  # in plaintext trainings, until it has been measured


@dataclass(frozen=True)
class Run:
    """Planned training: of a network on a fold, on one side or as a draw of plaintext's control."""

    network: Architecture
    fold: Fold
    side: str  # "plaintext", "ciphertext" or "control"
    draw: int = 0

    @property
    def name(self) -> str:
        """Return the name of its saved trial."""
        side = f"control-{self.draw + 1}" if self.side == "control" else self.side
        return f"{self.network}-seed{self.fold.seed}-fold{self.fold.number + 1}-{side}"

    @property
    def cost(self) -> float:
        """Return its time in plaintext trainings."""
        return CIPHERTEXT_COST if self.side == "ciphertext" else 1.0


@dataclass(frozen=True)
class Outcome:
    """All trials by their run, and HOG's probabilities `[k, classes]` by seed and fold."""

    folds: tuple[Fold, ...]
    runs: tuple[Run, ...]
    trials: tuple[Trial, ...]
    hog: dict[tuple[int, int], NDArray[np.float64]]
    resumed: int = 0  # trials of earlier commands

    def trial(self, network: Architecture, fold: Fold, side: str, draw: int = 0) -> Trial | None:
        """Return one trial, or None if it was not planned."""
        key = (network, fold.seed, fold.number, side, draw)
        for run, trial in zip(self.runs, self.trials, strict=True):
            if (run.network, run.fold.seed, run.fold.number, run.side, run.draw) == key:
                return trial
        return None


def network_of(study: Study, settings: Settings, architecture: Architecture) -> ModelSpec:
    """Return one of the three networks for the study's task."""
    task = study.dataset.manifest.task
    return ModelSpec(task, replace(settings.training.model, architecture=architecture))


def all_runs(settings: Settings, cut: list[Fold]) -> Iterator[Run]:
    """Yield the runs in order: of each fold both sides, then the controls.

    Controls and ciphertext are of the first seed; further seeds show the variation of plaintext over seeds and folds.
    """
    for network in settings.networks:
        for fold in cut:
            first = fold.seed == settings.training.seed
            if "plaintext" in settings.sides:
                yield Run(network, fold, "plaintext")
            if first and "ciphertext" in settings.sides:
                yield Run(network, fold, "ciphertext")
            if first and "plaintext" in settings.sides:
                yield from (Run(network, fold, "control", draw) for draw in range(settings.control_draws))


def perform(study: Study, settings: Settings, saved: ExperimentFolder) -> Outcome:
    """Run what is not saved yet, and HOG in the same folds; the folder is claimed when all checks have passed."""
    cut = [fold for seed in settings.all_seeds for fold in folds(study, settings, seed)]
    networks = {name: network_of(study, settings, name) for name in settings.networks}
    baseline = {}
    if settings.hog:
        described = hog_baseline.features(study.frames, study.valid)
        baseline = {(f.seed, f.number): hog_baseline.probabilities(study, f, described) for f in cut}
    saved.claim(study.fingerprint)
    runs = list(all_runs(settings, cut))
    loaded = {run.name: saved.load(run.name) for run in runs}
    progress = Progress([run for run in runs if loaded[run.name] is None], settings.training.epochs)
    trials: list[Trial] = []
    sides: dict[tuple[Architecture, bool], Side] = {}
    for run in runs:
        trial = loaded[run.name]
        if trial is None:
            encrypted = run.side == "ciphertext"
            if run.network not in {network for network, _ in sides}:
                sides.clear()  # one network's two sides are in memory at a time
            if (run.network, encrypted) not in sides:
                make = CiphertextSide if encrypted else PlaintextSide
                sides[run.network, encrypted] = make(study, networks[run.network], settings)
            trial = _performed(run, sides[run.network, encrypted], progress)
            saved.save(run.name, trial)
        trials.append(trial)
    resumed = sum(trial is not None for trial in loaded.values())
    return Outcome(tuple(cut), tuple(runs), tuple(trials), baseline, resumed)


def _performed(run: Run, side: Side, progress: "Progress") -> Trial:
    seed = run.fold.seed * side.settings.folds + run.fold.number  # of initial weights, another in each fold
    side.start(seed, run.draw if run.side == "control" else None)
    progress.start(run)
    trial = train(side, run.fold, curves=run.side != "control", report=progress.epoch)
    progress.finish(run)
    return trial


class Progress:
    """Progress on stderr with the remaining time: by epoch on a terminal, by run otherwise."""

    def __init__(self, runs: list[Run], epochs: int) -> None:
        """Expect these runs, of at most `epochs` epochs each."""
        self._waiting, self._epochs = list(runs), epochs
        self._total = len(runs)
        self._spent: dict[bool, list[float]] = {False: [], True: []}  # seconds of runs, by whether on ciphertext
        self._started = 0.0
        self._text = ""

    def start(self, run: Run) -> None:
        """Start a run."""
        self._started = time.monotonic()
        draw = f" {run.draw + 1}" if run.side == "control" else ""
        seed = f"seed {run.fold.seed}, fold {run.fold.number + 1}"
        number = self._total - len(self._waiting) + 1
        self._text = f"run {number} of {self._total}: {run.network}, {seed}, {run.side}{draw}"

    def epoch(self, number: int) -> None:
        """Show an epoch, on a terminal."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{self._text}, epoch {number}", end="", file=sys.stderr, flush=True)

    def finish(self, run: Run) -> None:
        """Report the run's time, and the estimated time of the remaining runs."""
        seconds = time.monotonic() - self._started
        self._spent[run.side == "ciphertext"].append(seconds)
        self._waiting.remove(run)
        start = "\r\x1b[K" if sys.stderr.isatty() else ""
        left = f", about {duration(self.left())} left" if self._waiting else ""
        print(f"{start}{self._text}: {seconds:.1f} s{left}", file=sys.stderr, flush=True)

    def left(self) -> float:
        """Estimate the seconds of the remaining runs, by the mean of their kind, or by their cost."""
        means = {kind: float(np.mean(spent)) for kind, spent in self._spent.items() if spent}
        unit = means.get(False, means.get(True, 0.0) / CIPHERTEXT_COST)
        return sum(means.get(run.side == "ciphertext", unit * run.cost) for run in self._waiting)
