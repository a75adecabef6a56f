"""Experiment folder: settings, finished trials and results, each file written whole or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

from fedpp.errors import ConfigError
from fedpp.files import replace

from .paper_settings import Settings
from .trial import Trial

SETTINGS = "settings.json"  # marks an experiment folder, and identifies its trials
TRIALS = "runs"
_UNKNOWN = "unknown"  # a setting of another version
RESULTS = ("paper.json", "table.csv", "curves.csv", "paper.html", "figure4.png", "figure5.png")


class ExperimentFolder:
    """Folder of one experiment's trials, `runs/NAME.json`, all of the same settings and data."""

    def __init__(self, out: Path, settings: Settings, *, overwrite: bool) -> None:
        """Use a folder that `choose` has checked."""
        self.out, self._settings, self._overwrite = out, settings, overwrite

    @classmethod
    def choose(cls, out: Path, data: Path, settings: Settings, *, resume: bool, overwrite: bool) -> "ExperimentFolder":
        """Check the folder before the data are read; nothing is written before `claim`.

        Raises `ConfigError` if it holds another experiment, or other results.
        """
        for inner, outer in ((data, out), (out, data)):
            if inner.resolve().is_relative_to(outer.resolve()):
                raise ConfigError(f"{inner} is inside {outer}: choose another --out, apart from the data")
        present = _present(out)
        if present and not (out / SETTINGS).exists():
            raise ConfigError(f"{out} holds {', '.join(present)} already: choose another --out")
        if present and not overwrite:
            if not resume:
                raise ConfigError(
                    f"{out} holds an experiment already: --resume it, choose another --out, or --overwrite it"
                )
            _require_same_settings(out, settings)
        return cls(out, settings, overwrite=overwrite)

    def claim(self, data: str) -> None:
        """Create the folder, resume its experiment on the data of this fingerprint, or overwrite it.

        Raises `ConfigError` if its trials are of other data.
        """
        values = {**self._settings.to_mapping(), "data": data}
        present = _present(self.out)
        if self._overwrite:
            for name in present:
                shutil.rmtree(self.out / name) if (self.out / name).is_dir() else (self.out / name).unlink()
        elif present and _read(self.out / SETTINGS) != values:
            raise ConfigError(f"the experiment in {self.out} is of other data: choose another --out, or --overwrite it")
        replace(self.out / SETTINGS, _text(values))

    def load(self, name: str) -> Trial | None:
        """Return a finished trial, or None."""
        path = self.out / TRIALS / f"{name}.json"
        try:
            return Trial.from_mapping(_read(path)) if path.exists() else None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ConfigError(f"{path} is damaged: --overwrite the experiment, or delete that file") from None

    def save(self, name: str, trial: Trial) -> None:
        """Save a trial."""
        replace(self.out / TRIALS / f"{name}.json", _text(trial.to_mapping()))


def _present(out: Path) -> list[str]:
    return [name for name in (SETTINGS, TRIALS, *RESULTS) if (out / name).exists()]


def _require_same_settings(out: Path, settings: Settings) -> None:
    saved, given = _read(out / SETTINGS), settings.to_mapping()
    names = {**given, **saved}.keys() - {"data"}
    pairs = [(name, saved.get(name, _UNKNOWN), given.get(name, _UNKNOWN)) for name in sorted(names)]
    others = ", ".join(
        f"{name.replace('_', '-')} was {_shown(was)} and is now {_shown(now)}" for name, was, now in pairs if was != now
    )
    if others:
        raise ConfigError(
            f"the experiment in {out} has other settings: {others}; resume it with its own, or choose another --out"
        )


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise ConfigError(f"{path} is damaged: --overwrite the experiment, or delete that file") from None
    return content


def _text(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, allow_nan=False) + "\n").encode()
