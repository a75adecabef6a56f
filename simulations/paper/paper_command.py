"""Command `python -m simulations paper`: the whole experiment, from data to page."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fedpp.cli import load_tensorflow
from fedpp.errors import ConfigError

from .paper_settings import Settings

_SHOWN = ("accuracy", "sensitivity", "auc_by_patient")  # on a terminal


def run(data: Path, out: Path, settings: Settings, *, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Run the experiment; return its record."""
    if not data.exists():
        raise ConfigError(f"{data} does not exist: name a folder of raw data with --data")
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: choose one of them")
    started = time.monotonic()
    load_tensorflow()
    from . import paper_record
    from .experiment import perform
    from .experiment_folder import ExperimentFolder
    from .learning_curves import curves
    from .paper_tables import tables
    from .study import prepare_study

    saved = ExperimentFolder.choose(out, data, settings, resume=resume, overwrite=overwrite)
    with tempfile.TemporaryDirectory(prefix="fedpp-paper-") as folder:
        _note("reading and encrypting (the key follows from the seed, and protects nothing)")
        study = prepare_study(settings, data, Path(folder) / "dataset", _note)
        outcome = perform(study, settings, saved)
        results = tables(study, settings, outcome)
        made = curves(settings, outcome)
        record = paper_record.record(study, settings, outcome, results, time.monotonic() - started)
    paper_record.write(out, record, settings, results, made)
    return record


def summary(record: dict[str, Any]) -> str:
    """Return the tables as lines for a terminal."""
    from .scores import HEADINGS

    lines = []
    for row in record["networks"]:
        figures = row["figures"]
        shown = "  ".join(f"{HEADINGS[name]} {_pair(figures[name])}" for name in _SHOWN)
        ratio = f", ratio of epochs {row['ratio']:.2f}" if row["ratio"] else ""
        seconds = f"{row['seconds']['mean']:.1f} s a fold with compilation"
        epoch = f"median epoch {row['seconds_an_epoch']:.3g} s"
        lines.append(f"{row['network']:<12} {row['side']:<10}  {shown}  {seconds}, {epoch}{ratio}")
    return "\n".join([*lines, "", *record["conclusions"]])


def _pair(figure: dict[str, float | None]) -> str:
    if figure["mean"] is None:
        return "not defined"
    return f"{figure['mean']:.3f}" + (f" ± {figure['spread']:.3f}" if figure["spread"] is not None else "")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
