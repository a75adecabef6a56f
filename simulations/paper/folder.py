"""The folder of an experiment: what is finished is kept there, each file whole or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

from fedpp.errors import ConfigError
from fedpp.files import replace

from .settings import Settings
from .trial import Trial

SETTINGS = "settings.json"  # marks the folder as ours, and says what its trials belong to
TRIALS = "runs"
RESULTS = ("paper.json", "table.csv", "curves.csv", "paper.html", "figure4.png", "figure5.png")


class ExperimentFolder:
    """Trials by name, kept as `runs/NAME.json`; of other settings or data there are none."""

    def __init__(self, out: Path) -> None:
        """Use the folder that `claim` prepared."""
        self.out = out

    @classmethod
    def claim(cls, out: Path, data: Path, settings: Settings, *, resume: bool, overwrite: bool) -> "ExperimentFolder":
        """Make the folder, go on with an unfinished experiment of the same settings in it, or replace one.

        Raises `ConfigError` where it holds another experiment, or results of something else.
        """
        told = {**settings.to_mapping(), "data": str(data.resolve())}
        for inner, outer in ((data, out), (out, data)):
            if inner.resolve().is_relative_to(outer.resolve()):
                raise ConfigError(f"{inner} lies inside {outer}: choose another --out, apart from the data")
        present = [name for name in (SETTINGS, TRIALS, *RESULTS) if (out / name).exists()]
        if present and not (out / SETTINGS).exists():
            raise ConfigError(f"{out} holds {', '.join(present)} already: choose another --out")
        if present and not overwrite:
            if not resume:
                raise ConfigError(f"{out} holds an experiment already: --resume it, --overwrite it or choose another")
            if _read(out / SETTINGS) != told:
                raise ConfigError(
                    f"the experiment in {out} has other settings or data: --overwrite it, or choose another"
                )
        if overwrite:
            for name in present:
                shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
        replace(out / SETTINGS, _text(told))
        return cls(out)

    def load(self, name: str) -> Trial | None:
        """Return a finished trial, or None."""
        path = self.out / TRIALS / f"{name}.json"
        try:
            return Trial.from_mapping(_read(path)) if path.exists() else None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ConfigError(f"{path} is damaged: --overwrite the experiment, or delete that file") from None

    def save(self, name: str, trial: Trial) -> None:
        """Keep a trial."""
        replace(self.out / TRIALS / f"{name}.json", _text(trial.to_mapping()))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise ConfigError(f"{path} is damaged: --overwrite the experiment, or delete that file") from None
    return content


def _text(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, allow_nan=False) + "\n").encode()
