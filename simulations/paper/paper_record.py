"""Result files of an experiment: `paper.json`, two tables as CSV, two figures as PNG, and an HTML page."""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fedpp.config.run_config import SPLITS
from fedpp.files import replace

from . import learning_curves, paper_page
from .conclusions import conclusions
from .experiment import Outcome
from .paper_settings import Settings
from .paper_tables import NetworkRow, Tables
from .scores import FIGURES, Summary, mixed_patients
from .study import Study

_VERSIONS = ("fedpp", "tensorflow", "keras", "numpy", "scikit-learn")
FIGURE_TITLES = {
    "figure4.png": ("accuracy", "Figure 4: accuracy, mean over folds; bands: lowest to highest fold"),
    "figure5.png": ("loss", "Figure 5: cross entropy, mean over folds; bands: lowest to highest fold"),
}


def record(study: Study, settings: Settings, outcome: Outcome, results: Tables, seconds: float) -> dict[str, Any]:
    """Return the record of an experiment as JSON values."""
    positive, patients, counts = study.labels > 0, study.patients, Counter(study.labels.tolist())
    values = {
        "data": {
            "described": study.described,
            "classes": list(study.class_map.classes),
            "sequences": len(study.labels),
            "patients": len(np.unique(patients)),
            "sequences_by_class": {study.class_map.classes[number]: count for number, count in sorted(counts.items())},
            "unlabelled_sequences_left_out": study.unlabelled,
            "patients_with_both_labels": len(mixed_patients(positive, patients)),
        },
        "settings": settings.to_mapping(),
        "folds": [
            {
                "seed": fold.seed,
                "fold": fold.number + 1,
                **{split: _counted(study, patients, getattr(fold, split)) for split in SPLITS},
            }
            for fold in outcome.folds
        ],
        **results.to_mapping(),
        "curves": [
            {
                "network": c.network,
                "side": c.side,
                "curve": c.name,
                **{n: getattr(c, n) for n in ("mean", "lowest", "highest")},
            }
            for c in learning_curves.curves(settings, outcome)
        ],
        "conclusions": conclusions(study, settings, results),
        "seconds": seconds,
        "runs_kept_from_before": outcome.resumed,
        "versions": {name: version(name) for name in (*_VERSIONS, *(["scikit-image"] if settings.hog else []))},
    }
    text: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))  # tuples become lists
    return text


def write(
    out: Path, result: Mapping[str, Any], settings: Settings, results: Tables, made: Sequence[learning_curves.Curve]
) -> None:
    """Write all files, each whole or not at all; all are made before the first is written."""
    charts = {
        kind: [learning_curves.svg(kind, network, made) for network in settings.networks]
        for kind in ("accuracy", "loss")
    }
    files = {
        "table.csv": _csv(table_rows(results.networks)),
        "curves.csv": _csv(learning_curves.rows(made)),
        **{name: learning_curves.png(kind, title, made) for name, (kind, title) in FIGURE_TITLES.items()},
        "paper.html": paper_page.render(result, charts).encode(),
        "paper.json": (json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(),
    }
    for name, content in files.items():
        replace(out / name, content)


def table_rows(networks: Sequence[NetworkRow]) -> list[dict[str, Any]]:
    """Return Table 1 as rows: mean and spread over folds of each figure."""
    rows = []
    for row in networks:
        cells: dict[str, Any] = {"network": row.network, "side": row.side, "parameters": row.parameters}
        for name in FIGURES:
            cells |= _pair(name, row.figures[name])
        cells |= _pair("epochs", row.epochs) | _pair("seconds", row.seconds)
        rows.append({**cells, "seconds_an_epoch": row.seconds_an_epoch, "ratio_to_plaintext": row.ratio})
    return rows


def _pair(name: str, summary: Summary) -> dict[str, float | None]:
    return {f"{name}_mean": summary.mean, f"{name}_spread": summary.spread}


def _counted(study: Study, patients: Any, positions: Any) -> dict[str, int]:
    positive = int((study.labels[positions] > 0).sum())
    return {"sequences": len(positions), "positive": positive, "patients": len(np.unique(patients[positions]))}


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()
