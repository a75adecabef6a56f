"""What is run: the settings of an experiment, parsed once, with the paper's protocol and ours."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import inf
from typing import Any, Literal, get_args

from fedpp.config import ARCHITECTURES, DTYPES, LAYOUTS, Architecture, Dtype
from fedpp.errors import ConfigError
from fedpp.imaging.breakhis import Series
from fedpp.imaging.chexpert import Uncertain, Views
from fedpp.imaging.layout import Choices
from fedpp.recipe import Recipe

Side = Literal["plaintext", "ciphertext"]
Stopping = Literal["none", "early"]
Protocol = Literal["ours", "paper"]

SIDES: tuple[Side, ...] = get_args(Side)
STOPPINGS: tuple[Stopping, ...] = get_args(Stopping)
MIN_DELTA, PATIENCE = 0.001, 10  # of early stopping, the paper's: nats, and epochs

# Ours was chosen on the validation patients of the lung ultrasound set (93 sequences are not for training by the
# paper's batch of 256: an epoch is one step). The paper gives no largest number of epochs; 200 is ours.
PROTOCOLS: Mapping[Protocol, Mapping[str, Any]] = {
    "ours": {
        "epochs": 25,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "stopping": "none",
        "label_smoothing": 0.1,
        "filters": (16, 32, 64, 64),
    },
    "paper": {"epochs": 200, "batch_size": 256, "learning_rate": 1e-4, "stopping": "early"},
}


@dataclass(frozen=True)
class Settings:
    """One experiment. The first seed's folds are run on all `sides`, those of further seeds in plaintext alone."""

    layout: str = "auto"
    target: str = "Pleural Effusion"  # CheXpert: the finding, what uncertain ones become, which views count
    uncertain: Uncertain = "ignore"
    views: Views = "frontal"
    series: Series = "magnification"  # BreakHis: what a sequence is
    classes: tuple[str, ...] | None = None
    negative: str | None = None
    predict: Literal["sequence", "visit"] = "sequence"
    frames: int = 4
    size: int = 64
    channels: int = 1
    folds: int = 4
    validation: float = 0.2  # share of those patients who are not in test
    seed: int = 0  # of the first of `seeds`
    seeds: int = 1
    networks: tuple[Architecture, ...] = ARCHITECTURES
    sides: tuple[Side, ...] = SIDES
    dtype: Dtype = "float32"
    protocol: Protocol = "ours"
    stopping: Stopping = "none"
    epochs: int = 25  # at most, with early stopping
    batch_size: int = 16
    learning_rate: float = 1e-3
    positive_weight: float = 1.0
    label_smoothing: float = 0.0
    voting: bool = False
    filters: tuple[int, ...] = (16, 32, 64)
    dense: int = 64
    lstm: int = 64
    control_draws: int = 5
    hog: bool = True  # HOG features and logistic regression in the same folds

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        least = {"frames": 1, "size": 1, "folds": 2, "seeds": 1, "seed": 0, "epochs": 1, "batch_size": 1}
        for name, lowest in {**least, "control_draws": 0, "dense": 1, "lstm": 1}.items():
            if getattr(self, name) < lowest:
                raise _refused(name, f"at least {lowest}", getattr(self, name))
        for name, known in (("networks", ARCHITECTURES), ("sides", SIDES)):
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(known):
                raise _refused(name, f"some of {', '.join(known)}, each once", ",".join(chosen))
        for name, choices in (("dtype", DTYPES), ("layout", LAYOUTS), ("stopping", STOPPINGS), ("channels", (1, 3))):
            if getattr(self, name) not in choices:
                raise _refused(name, f"one of {', '.join(map(str, choices))}", getattr(self, name))
        if not 0 < self.validation < 1:
            raise _refused("validation", "above 0 and below 1", self.validation)
        for name in ("learning_rate", "positive_weight"):
            if not 0 < getattr(self, name) < inf:
                raise _refused(name, "positive and finite", getattr(self, name))
        if not 0 <= self.label_smoothing < 1:
            raise _refused("label_smoothing", "at least 0 and below 1", self.label_smoothing)
        if not self.filters or min(self.filters) < 1:
            raise _refused("filters", "numbers of at least 1", self.filters)
        if len(self.choices.findings) > 1:
            raise ConfigError(f"the paper's tables are of one finding, got {self.target!r}: name one with --target")

    @classmethod
    def of(cls, protocol: Protocol, values: Mapping[str, Any]) -> "Settings":
        """Return a protocol's settings, those of `values` that are not None in their place.

        Control draws are 5 in float32 and none in float64, where there is nothing to excuse.
        """
        given = {name: value for name, value in values.items() if value is not None}
        unknown = set(given) - {field.name for field in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        draws = 5 if given.get("dtype", cls.dtype) == "float32" and set(given.get("sides", SIDES)) == set(SIDES) else 0
        return cls(**{"control_draws": draws, **PROTOCOLS[protocol], **given, "protocol": protocol})

    @property
    def choices(self) -> Choices:
        """Return what some layouts leave open."""
        return Choices(self.target, self.uncertain, self.views, self.series)

    @property
    def recipe(self) -> Recipe:
        """Return how a network learns."""
        return Recipe(
            self.learning_rate,
            self.batch_size,
            positive_weight=self.positive_weight,
            label_smoothing=self.label_smoothing,
        )

    @property
    def all_seeds(self) -> range:
        """Return the seeds of folds, initial weights and batches."""
        return range(self.seed, self.seed + self.seeds)

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings by name, as JSON has them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def _refused(name: str, wanted: str, value: object) -> ConfigError:
    return ConfigError(f"{name.replace('_', '-')} must be {wanted}, got {value!r:.60}")
