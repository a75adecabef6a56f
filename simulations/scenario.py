"""A simulated federation's scenario: one YAML file, parsed once, unknown keys rejected."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import yaml

from fedpp.cipher.domain_card import Scheme
from fedpp.config.hyperparameters import Hyperparameters, ServerOptimizer, ServerOptimizerConfig
from fedpp.config.model_spec import Architecture, Gaps
from fedpp.config.run_config import LAYOUTS, WANTED_SENSITIVITY, Dtype
from fedpp.errors import ConfigError
from fedpp.imaging.readers.breakhis import Series
from fedpp.imaging.readers.chexpert import Uncertain, Views
from fedpp.imaging.readers.layout import Choices
from fedpp.imaging.splits import Method, SplitPlan
from fedpp.keys.frame_cipher import DEFAULT_PATCH

FOLDER = Path(__file__).parent / "scenarios"
_ACCEPTED: dict[object, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    str: (str,),
    bool: (bool,),
    int | None: (type(None), int),
    str | None: (type(None), str),
}


@dataclass(frozen=True)
class PhantomData:
    """Phantom hospitals: `patients` a hospital, `visits` a patient, images of `size` x `size` pixels."""

    patients: int = 40
    visits: int = 4
    size: int = 64


@dataclass(frozen=True)
class Scenario:
    """What is simulated. `phantom` is None where the data are given on the command line.

    `hospitals` names folders of the data, one a site; without it the data are divided among the sites by patient.
    """

    name: str
    description: str
    sites: int
    rounds: int
    phantom: PhantomData | None = None
    hospitals: tuple[str, ...] | None = None
    layout: str = "auto"
    target: str = "Pleural Effusion"  # CheXpert: the finding or findings, what uncertain ones become, which views count
    uncertain: Uncertain = "ignore"
    views: Views = "frontal"
    series: Series = "magnification"  # BreakHis: what a sequence is
    classes: tuple[str, ...] | None = None
    negative: str | None = None
    shuffle_labels: bool = False  # a control: nothing can be learned, so the AUC must be about 0.5
    predict: Literal["sequence", "visit"] = "sequence"
    window: int | None = None  # of visits up to the one that is asked about, or as many as frames
    stride: int = 1  # every so many labelled visits
    min_length: int = 1
    max_length: int | None = None  # of a sequence: its last frames
    frames: int = 4
    size: int = 64
    colour: bool = False  # keep red, green and blue
    gaps: Gaps = "none"  # the time between frames, as a feature
    split: Method = "stratified"
    validation: float = 0.15
    test: float = 0.25
    scheme: Scheme = "more"
    secure_aggregation: bool = True  # the coordinator sees masked updates and sealed states alone
    n: int = 2  # slots of `more`
    patch: int = DEFAULT_PATCH  # of the frame form: side of the mixed patches, or 0 for rows
    dtype: Dtype = "float32"
    seed: int = 0
    epochs: int = 2
    batch_size: int = Hyperparameters.batch_size
    micro_batch: int = Hyperparameters.micro_batch  # sequences of a batch in memory at a time
    learning_rate: float = Hyperparameters.learning_rate
    positive_weight: float = (
        Hyperparameters.positive_weight
    )  # of the loss of all but the first class, or of a present finding
    label_smoothing: float = Hyperparameters.label_smoothing
    proximal: float = Hyperparameters.proximal  # of FedProx, 0: none
    server_optimizer: ServerOptimizer = ServerOptimizerConfig.name
    server_learning_rate: float = ServerOptimizerConfig.learning_rate
    server_momentum: float = ServerOptimizerConfig.momentum  # of fedavgm, and beta_1 of fedadam and fedyogi
    server_beta_2: float = ServerOptimizerConfig.beta_2
    server_tau: float = ServerOptimizerConfig.tau
    strategy: str = ""  # of Flower, in place of the server's optimizer; in the frame form without masking alone
    strategy_settings: str = ""
    architecture: Architecture = "cnn-bi-lstm"
    voting: bool = False  # every frame is scored and votes, in place of the LSTM's last state alone
    filters: tuple[int, ...] = (16, 32, 64)
    dense: int = 64
    lstm: int = 64
    plaintext_federated: bool = True  # train the plaintext reference too, for comparison and parity
    plaintext_central: bool = False  # and one on all sites' data in one place
    local_baseline: bool = False  # and one at each site alone
    sensitivity: float = WANTED_SENSITIVITY  # at least this on validation data: where the report's operating point is
    engine: Literal["ray", "in-process"] = "ray"  # in-process: one site after the other, without Ray; for small runs
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
            raise ConfigError(
                f"cannot read scenario {path}: {' '.join(str(error).split())}: correct it, or name another"
            ) from None
        return cls._checked({"name": path.stem, **values} if isinstance(values, dict) else {}, path)

    @classmethod
    def _checked(cls, values: Mapping[str, Any], path: Path) -> Self:
        values = {str(name).replace("-", "_"): value for name, value in values.items()}
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
            if isinstance(values.get("target"), list):
                values["target"] = ",".join(map(str, values["target"]))
            for name in ("classes", "filters", "hospitals"):
                if isinstance(values.get(name), list):
                    values[name] = tuple(values[name])
            return cls(**values)
        except (TypeError, ConfigError) as error:
            raise ConfigError(f"scenario {path}: {error}") from None

    def __post_init__(self) -> None:
        """Refuse values of another type or out of range, and those that would do nothing."""
        for field in fields(self):
            self._check_type(field.name, field.type)
        least = {"seed": 0, "control_draws": 0, "dense": 1, "lstm": 1, "n": 2}
        positive = ("sites", "rounds", "frames", "size", "epochs", "batch_size", "stride", "min_length")
        least |= dict.fromkeys((*positive, "window", "max_length"), 1)
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{_hyphens(name)} must be at least {lowest}, got {value}")
        if not 0 < self.learning_rate < inf:
            raise ConfigError(f"learning-rate must be positive and finite, got {self.learning_rate}")
        if self.layout not in LAYOUTS:
            raise ConfigError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if not 0 < self.sensitivity <= 1:
            raise ConfigError(f"sensitivity must be above 0 and at most 1, got {self.sensitivity}")
        self._check_findings()
        self.plan()
        self.hyperparameters()
        self.server_optimizer_config()
        self._check_strategy()
        self._check_hospitals()
        self._check_lengths()

    def _check_type(self, name: str, kind: object) -> None:
        value = getattr(self, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ConfigError(f"{_hyphens(name)} must be one of {', '.join(get_args(kind))}, got {value!r}")
        accepted = _ACCEPTED.get(kind)
        if accepted and type(value) not in accepted:
            raise ConfigError(f"{_hyphens(name)} must be {accepted[-1].__name__}, got {value!r}")
        item = {"classes": str, "hospitals": str, "filters": int}.get(name)
        if item and value is not None and not (isinstance(value, tuple) and all(type(v) is item for v in value)):
            raise ConfigError(f"{name} must be a list of {item.__name__}, got {value!r}")

    def _check_strategy(self) -> None:
        if self.strategy and self.plaintext_federated:
            raise ConfigError(
                f"the plaintext reference has no Flower strategies, got {self.strategy!r:.80}: set "
                "plaintext-federated: false"
            )

    def _check_findings(self) -> None:
        several = len(self.choices().findings) > 1
        if several and (self.classes is not None or self.negative is not None):
            raise ConfigError("classes and negative are for one label: several findings have their own names")

    def _check_hospitals(self) -> None:
        if self.hospitals is None:
            return
        if self.phantom is not None:
            raise ConfigError("phantom hospitals have no folders of their own: give hospitals or phantom, not both")
        if len(self.hospitals) != self.sites or len(set(self.hospitals)) != self.sites:
            raise ConfigError(f"hospitals must be {self.sites} different folders, one a site, got {self.hospitals}")
        for name in self.hospitals:
            if name in {"", ".", ".."} or Path(name).name != name or not name.isprintable():
                raise ConfigError(f"hospitals must be names of folders in the data, got {name!r}")

    def _check_lengths(self) -> None:
        if self.predict == "visit":
            if self.max_length is not None:
                raise ConfigError("max-length is for predict: sequence; predict: visit has window")
            if self.shuffle_labels:
                raise ConfigError(
                    "shuffle-labels deals one label a patient, and visits have labels of their own: leave one of "
                    "shuffle-labels and predict: visit out"
                )
            if self.min_length > (self.window or self.frames):
                raise ConfigError(f"min-length must be at most the window, got {self.min_length}")
            return
        if self.window is not None or self.stride != 1:
            raise ConfigError("window and stride are for predict: visit; predict: sequence has max-length")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ConfigError(f"max-length must be at least min-length, got {self.max_length}")

    def choices(self) -> Choices:
        """Return what the layout of the data leaves open."""
        return Choices(self.target, self.uncertain, self.views, self.series)

    def hyperparameters(self) -> Hyperparameters:
        """Return how both twins learn."""
        return Hyperparameters(**{f.name: getattr(self, f.name) for f in fields(Hyperparameters)})

    def server_optimizer_config(self) -> ServerOptimizerConfig:
        """Return how both twins' global models are moved by the mean update of a round."""
        numbers = (self.server_learning_rate, self.server_momentum, self.server_beta_2, self.server_tau)
        return ServerOptimizerConfig(self.server_optimizer, *numbers)

    def plan(self) -> SplitPlan:
        """Return how each site's patients are split."""
        return SplitPlan(self.split, self.seed, self.validation, self.test)

    def source(self, data: Path | None) -> Path | PhantomData:
        """Return what the hospitals' data come from; raise `ConfigError` if there is nothing."""
        if data is None:
            if self.phantom is None:
                raise ConfigError(f"scenario {self.name} has no data of its own: name a folder with --data")
            return self.phantom
        for path in (data, *(data / name for name in self.hospitals or ())):
            if not path.exists():
                raise ConfigError(f"{path} does not exist: name the folder of raw data")
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
