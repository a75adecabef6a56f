"""The folder of an experiment: what is finished is kept there, each file whole or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

from fedpp.errors import ConfigError
from fedpp.files import replace

from .paper_settings import Settings
from .trial import Trial

SETTINGS = "settings.json"  # marks the folder as ours, and says what its trials belong to
TRIALS = "runs"
_UNKNOWN = "unknown"  # a setting to another version
RESULTS = ("paper.json", "table.csv", "curves.csv", "paper.html", "figure4.png", "figure5.png")


class ExperimentFolder:
    """Trials by name, kept as `runs/NAME.json`; of other settings or data there are none."""

    def __init__(self, out: Path, settings: Settings, *, overwrite: bool) -> None:
        """Use a folder that `choose` did not refuse."""
        self.out, self._settings, self._overwrite = out, settings, overwrite

    @classmethod
    def choose(cls, out: Path, data: Path, settings: Settings, *, resume: bool, overwrite: bool) -> "ExperimentFolder":
        """Refuse what can be refused before the data are read; nothing is changed before `claim`.

        Raises `ConfigError` where it holds another experiment, or results of something else.
        """
        for inner, outer in ((data, out), (out, data)):
            if inner.resolve().is_relative_to(outer.resolve()):
                raise ConfigError(f"{inner} lies inside {outer}: choose another --out, apart from the data")
        present = _present(out)
        if present and not (out / SETTINGS).exists():
            raise ConfigError(f"{out} holds {', '.join(present)} already: choose another --out")
        if present and not overwrite:
            if not resume:
                raise ConfigError(
                    f"{out} holds an experiment already: --resume it, choose another --out, or --overwrite it"
                )
            kept = _read(out / SETTINGS)
            if others := _others(kept, settings.to_mapping()):
                raise ConfigError(
                    f"the experiment in {out} has other settings: {others}; resume it with its own, or choose another "
                    "--out"
                )
        return cls(out, settings, overwrite=overwrite)

    def claim(self, data: str) -> None:
        """Make the folder, go on with an unfinished experiment on the data of this fingerprint, or replace one.

        Raises `ConfigError` where its trials are of other data.
        """
        told = {**self._settings.to_mapping(), "data": data}
        present = _present(self.out)
        if self._overwrite:
            for name in present:
                shutil.rmtree(self.out / name) if (self.out / name).is_dir() else (self.out / name).unlink()
        elif present and _read(self.out / SETTINGS) != told:
            raise ConfigError(f"the experiment in {self.out} is of other data: choose another --out, or --overwrite it")
        replace(self.out / SETTINGS, _text(told))

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


def _present(out: Path) -> list[str]:
    return [name for name in (SETTINGS, TRIALS, *RESULTS) if (out / name).exists()]


def _others(kept: dict[str, Any], given: dict[str, Any]) -> str:
    """Return what differs, apart from the data: each setting, what it was, and what was given."""
    names = {**given, **kept}.keys() - {"data"}
    pairs = [(name, kept.get(name, _UNKNOWN), given.get(name, _UNKNOWN)) for name in sorted(names)]
    return ", ".join(
        f"{name.replace('_', '-')} was {_shown(was)} and is now {_shown(now)}" for name, was, now in pairs if was != now
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
