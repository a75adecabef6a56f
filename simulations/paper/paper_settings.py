"""What is run: the settings of an experiment, parsed once, with the paper's protocol and ours."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from fedpp.config.hyperparameters import Hyperparameters
from fedpp.config.model_spec import ARCHITECTURES, Architecture
from fedpp.config.run_config import DTYPES, LAYOUTS, Dtype
from fedpp.errors import ConfigError
from fedpp.imaging.readers.breakhis import Series
from fedpp.imaging.readers.chexpert import Uncertain, Views
from fedpp.imaging.readers.layout import Choices

Side = Literal["plaintext", "ciphertext"]
Stopping = Literal["none", "early"]
Protocol = Literal["ours", "paper"]

NETWORK_NAMES: Mapping[str, str] = {"cnn": "CNN", "cnn-lstm": "CNN-LSTM", "cnn-bi-lstm": "CNN-Bi-LSTM"}
SIDES: tuple[Side, ...] = get_args(Side)
STOPPINGS: tuple[Stopping, ...] = get_args(Stopping)

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
    "paper": {
        "epochs": 200,
        "batch_size": 256,
        "learning_rate": 1e-4,
        "stopping": "early",
        "label_smoothing": 0.0,
        "filters": (16, 32, 64),
    },
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One experiment. The first seed's folds are run on all `sides`, those of further seeds in plaintext alone.

    What has no default here is the protocol's, or follows from other settings (`of`).
    """

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
    seeds: int = 3
    networks: tuple[Architecture, ...] = ARCHITECTURES
    sides: tuple[Side, ...] = SIDES
    dtype: Dtype = "float32"
    protocol: Protocol
    stopping: Stopping
    epochs: int  # at most, with early stopping
    batch_size: int
    learning_rate: float
    positive_weight: float = 1.0
    label_smoothing: float
    voting: bool = False
    filters: tuple[int, ...]
    dense: int = 64
    lstm: int = 64
    control_draws: int
    hog: bool = True  # HOG features and logistic regression in the same folds

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, lowest in _MIN.items():
            if min(_values(getattr(self, name))) < lowest:
                raise _refused(name, f"at least {lowest}", getattr(self, name))
        for name, known in _CHOICES.items():
            chosen = _values(getattr(self, name))
            if len(set(chosen)) < len(chosen) or not set(chosen) <= set(known):
                raise _refused(name, f"of {', '.join(map(str, known))}", getattr(self, name))
        if not 1e-9 <= self.validation < 1:
            raise _refused("validation", "a share below 1", self.validation)
        self.hyperparameters()
        self._require_fitting()

    def _require_fitting(self) -> None:
        """Refuse settings that contradict each other."""
        if self.sides != SIDES and self.control_draws:
            raise ConfigError("control draws stand beside both sides: run --sides plaintext,ciphertext, or draw none")
        if self.seeds > 1 and "plaintext" not in self.sides:
            raise ConfigError("seeds after the first are run in plaintext, which --sides leaves out: use --seeds 1")
        if len(self.choices.findings) > 1:
            raise ConfigError(f"the paper's tables are of one finding, got {self.target!r}: name one with --target")

    @classmethod
    def of(cls, protocol: Protocol, values: Mapping[str, Any]) -> "Settings":
        """Return a protocol's settings, those of `values` that are not None in their place.

        Control draws are 5 where both sides are run in float32; in float64 there is nothing to excuse.
        """
        given = {name: value for name, value in values.items() if value is not None}
        sides = tuple(given.get("sides", SIDES))
        sides = SIDES if set(sides) == set(SIDES) and len(sides) == len(SIDES) else sides
        draws = 5 if sides == SIDES and given.get("dtype", cls.dtype) == "float32" else 0
        seeds = cls.seeds if "plaintext" in sides else 1
        usual = {"control_draws": draws, "seeds": seeds, **PROTOCOLS[protocol]}
        return cls(**{**usual, **given, "sides": sides, "protocol": protocol})

    @property
    def choices(self) -> Choices:
        """Return what some layouts leave open."""
        return Choices(self.target, self.uncertain, self.views, self.series)

    def hyperparameters(self) -> Hyperparameters:
        """Return how a network learns."""
        return Hyperparameters(
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


_MIN = {"folds": 2, "seed": 0, "control_draws": 0} | dict.fromkeys(
    ("frames", "size", "seeds", "epochs", "filters", "dense", "lstm"), 1
)
_CHOICES: Mapping[str, tuple[object, ...]] = {
    "networks": ARCHITECTURES,
    "sides": SIDES,
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "stopping": STOPPINGS,
    "channels": (1, 3),
}


def _values(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _refused(name: str, wanted: str, value: object) -> ConfigError:
    return ConfigError(f"{name.replace('_', '-')} must be {wanted}, got {value!r:.60}")
