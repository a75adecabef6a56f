"""A simulated federation's scenario: one YAML file, parsed once, unknown keys rejected."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Any, Self

import yaml

from fedpp.config import DTYPES, Dtype
from fedpp.errors import ConfigError

FOLDER = Path(__file__).parent / "scenarios"
_ACCEPTED: dict[object, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}


@dataclass(frozen=True)
class PhantomData:
    """Phantom hospitals: `patients` a hospital, `visits` a patient, images of `size` x `size` pixels."""

    patients: int = 40
    visits: int = 4
    size: int = 64


@dataclass(frozen=True)
class Scenario:
    """What is simulated. `phantom` is None where the data are given on the command line."""

    name: str
    description: str
    sites: int
    rounds: int
    phantom: PhantomData | None = None
    layout: str = "auto"
    classes: tuple[str, ...] | None = None
    negative: str | None = None
    shuffle_labels: bool = False  # a control: nothing can be learned, so the AUC must be about 0.5
    frames: int = 4
    size: int = 64
    validation: float = 0.15
    test: float = 0.25
    n: int = 2
    dtype: Dtype = "float32"
    seed: int = 0
    epochs: int = 2
    batch_size: int = 8
    learning_rate: float = 1e-3
    filters: tuple[int, ...] = (16, 32, 64)
    dense: int = 64
    lstm: int = 64
    plaintext_federated: bool = True  # train the plaintext twin too, for comparison and parity
    control_draws: int = 0  # of the twin against itself, its initial weights moved by one unit in the last place

    @classmethod
    def load(cls, name: str) -> Self:
        """Read a scenario by its name or its file; raise `ConfigError` for unknown names and keys."""
        path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
        try:
            values = yaml.safe_load(path.read_text())
        except FileNotFoundError:
            raise ConfigError(f"no scenario {name!r}: known are {', '.join(names())}, or name a .yaml file") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read scenario {path}: {' '.join(str(error).split())}") from None
        return cls._checked({"name": path.stem, **values} if isinstance(values, dict) else {}, path)

    @classmethod
    def _checked(cls, values: Mapping[str, Any], path: Path) -> Self:
        values = {name.replace("-", "_"): value for name, value in values.items()}
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        missing = sorted({"description", "sites", "rounds"} - set(values))
        if unknown or missing:
            wrong = [f"unknown {_hyphens(name)}" for name in unknown] + [f"missing {name}" for name in missing]
            raise ConfigError(
                f"scenario {path}: {', '.join(wrong)}; known are {', '.join(sorted(map(_hyphens, known)))}"
            )
        try:
            if isinstance(values.get("phantom"), dict):
                values["phantom"] = PhantomData(**values["phantom"])
            for name in ("classes", "filters"):
                if name in values:
                    values[name] = tuple(values[name])
            return cls(**values)
        except (TypeError, ConfigError) as error:
            raise ConfigError(f"scenario {path}: {error}") from None

    def __post_init__(self) -> None:
        """Refuse values of another type or out of range."""
        for field in fields(self):
            value, accepted = getattr(self, field.name), _ACCEPTED.get(field.type)
            if accepted and type(value) not in accepted:
                raise ConfigError(f"{_hyphens(field.name)} must be {accepted[-1].__name__}, got {value!r}")
        least = {"seed": 0, "control_draws": 0, "dense": 1, "lstm": 1, "n": 2}
        least |= dict.fromkeys(("sites", "rounds", "frames", "size", "epochs", "batch_size"), 1)
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{_hyphens(name)} must be at least {lowest}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < inf:
            raise ConfigError(f"learning-rate must be positive and finite, got {self.learning_rate}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    def source(self, data: Path | None) -> Path | PhantomData:
        """Return what the hospitals' data come from; raise `ConfigError` if there is nothing."""
        if data is None:
            if self.phantom is None:
                raise ConfigError(f"scenario {self.name} has no data of its own: name a folder with --data")
            return self.phantom
        if not data.exists():
            raise ConfigError(f"{data} does not exist: name the folder of raw data")
        return data

    def with_options(self, *, seed: int | None, dtype: Dtype | None, layout: str | None) -> Self:
        """Return this scenario with what the command line says differently."""
        given: dict[str, Any] = {"seed": seed, "dtype": dtype, "layout": layout}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def names() -> list[str]:
    """Return the scenarios that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
