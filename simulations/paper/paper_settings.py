"""What is run: the settings of an experiment, parsed once, with the paper's protocol and ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from fedpp.config.hyperparameters import Training
from fedpp.config.model_spec import ARCHITECTURES, Architecture
from fedpp.config.run_config import LAYOUTS
from fedpp.errors import ConfigError
from fedpp.imaging.readers.breakhis import Series
from fedpp.imaging.readers.layout import Choices
from fedpp.imaging.readers.studies import Uncertain, Views
from fedpp.values import Declared, Flat, Listed, number, one_of, whole

Side = Literal["plaintext", "ciphertext"]
Stopping = Literal["none", "early"]
Protocol = Literal["ours", "paper"]

NETWORK_NAMES: Mapping[str, str] = {"cnn": "CNN", "cnn-lstm": "CNN-LSTM", "cnn-bi-lstm": "CNN-Bi-LSTM"}
SIDES: tuple[Side, ...] = get_args(Side)
Count = Annotated[int, whole(1)]

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
class Settings(Declared, label="the experiment"):
    """One experiment. The first seed's folds are run on all `sides`, those of further seeds in plaintext alone.

    What has no default here is the protocol's, or follows from other settings (`chosen`). Epochs are at most so many
    with early stopping, the seed is the first of `seeds`, and each of `networks` takes the architecture's place.
    """

    layout: Annotated[str, one_of(*LAYOUTS)] = "auto"
    target: str = "Pleural Effusion"  # CheXpert: the finding, what uncertain ones become, which views count
    uncertain: Uncertain = "ignore"
    views: Views = "frontal"
    series: Series = "magnification"  # BreakHis: what a sequence is
    classes: tuple[str, ...] | None = None
    negative: str | None = None
    predict: Literal["sequence", "visit"] = "sequence"
    frames: Count = 4
    size: Count = 64
    channels: Annotated[int, one_of(1, 3)] = 1
    folds: Annotated[int, whole(2)] = 4
    validation: Annotated[float, number(least=1e-9, below=1)] = 0.2  # share of those patients who are not in test
    seeds: Count = 3
    networks: Annotated[tuple[Architecture, ...], Listed(distinct=True)] = ARCHITECTURES
    sides: Annotated[tuple[Side, ...], Listed(distinct=True)] = SIDES
    protocol: Protocol
    stopping: Stopping
    training: Annotated[Training, Flat()]
    control_draws: Annotated[int, whole(0)]
    hog: bool = True  # HOG features and logistic regression in the same folds

    def __post_init__(self) -> None:
        """Refuse values out of range, and settings that contradict each other."""
        super().__post_init__()
        self.training.hyperparameters.require_fixed()
        if self.sides != SIDES and self.control_draws:
            raise ConfigError("control draws stand beside both sides: run --sides plaintext,ciphertext, or draw none")
        if self.seeds > 1 and "plaintext" not in self.sides:
            raise ConfigError("seeds after the first are run in plaintext, which --sides leaves out: use --seeds 1")
        if len(self.choices.findings) > 1:
            raise ConfigError(f"the paper's tables are of one finding, got {self.target!r}: name one with --target")

    @classmethod
    def chosen(cls, protocol: Protocol, values: Mapping[str, Any]) -> Self:
        """Return a protocol's settings, those of `values` that are not None in their place.

        Control draws are 5 where both sides are run in float32; in float64 there is nothing to excuse.
        """
        given = {name: value for name, value in values.items() if value is not None}
        sides = tuple(given.get("sides", SIDES))
        sides = SIDES if set(sides) == set(SIDES) and len(sides) == len(SIDES) else sides
        draws = 5 if sides == SIDES and given.get("dtype", Training.dtype) == "float32" else 0
        seeds = cls.seeds if "plaintext" in sides else 1
        usual = {"control_draws": draws, "seeds": seeds, **PROTOCOLS[protocol]}
        return cls.of(**{**usual, **given, "sides": sides, "protocol": protocol})

    @property
    def choices(self) -> Choices:
        """Return what some layouts leave open."""
        return Choices(self.target, self.uncertain, self.views, self.series)

    @property
    def all_seeds(self) -> range:
        """Return the seeds of folds, initial weights and batches."""
        return range(self.training.seed, self.training.seed + self.seeds)

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings by name, as JSON has them; `networks` stand in place of one architecture."""
        return {name: value for name, value in super().to_mapping().items() if name != "architecture"}
