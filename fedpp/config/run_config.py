"""The settings of a run, parsed once into typed objects that reject what they do not know.

Nobody else indexes a configuration by string. `RunConfig` has no defaults: every default stands in
`[tool.flwr.app.config]` of pyproject.toml, since Flower only overrides names that stand there.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path
from typing import Any, Literal, Self

from fedpp.config.hyperparameters import Hyperparameters, ServerOptimizer, ServerOptimizerConfig
from fedpp.config.model_spec import ARCHITECTURES, Architecture
from fedpp.errors import ConfigError

_PATHS = ("dataset", "evaluation_key", "policy", "work")  # of a site
_NOT_REPORTED = ("card", "out", "initial_model")  # the record names the domain; paths are private

Dtype = Literal["float32", "float64"]

DTYPES: tuple[Dtype, ...] = ("float32", "float64")
SPLITS = ("train", "validation", "test")
MAX_ATTEMPTS = 100  # of a round
MAX_SITES = 1000  # of a run: a vault is sent their proofs and the list of a sum in one message, under gRPC's limit
MAX_EXAMPLES = 2**31  # of all sites together
MIN_BOUND, MAX_BOUND = 2.0**-20, 2.0**20  # of the magnitude of an update's value
SEALED_SUFFIX = ".sealed"  # of a model that the coordinator cannot read
LAYOUTS = ("auto", "frames", "manifest", "chexpert", "dicom", "breakhis", "images")  # of raw data
WANTED_SENSITIVITY = 0.9  # on validation data, of a report's operating point, unless it is told another
SITES_FOLDER = "FEDPP_SITES"  # environment variable: in a simulation, the folder of the site files
BUNDLE = (
    "FEDPP_BUNDLE"  # environment variable: in a deployment, SHA-256 of the app bundle that runs, as the site measured
)


@dataclass(frozen=True)
class RunConfig:
    """What the coordinator is told about one run."""

    card: str  # of the key domain whose members are admitted, JSON
    out: str  # folder for the federation's results
    initial_model: str  # model.sealed, or model.npz, of an earlier run to go on from, or nothing
    sites: int  # how many sites to wait for
    quorum: int  # fewest sites of a round's sum, and of its verdicts; 0: more than half of `sites`
    rounds: int
    epochs: int  # local epochs a round
    batch_size: int
    micro_batch: int  # sequences of a batch in memory at a time
    learning_rate: float
    positive_weight: float  # of the loss of all classes but the first, or of a finding that is present
    label_smoothing: float
    proximal: float  # of FedProx, 0: none
    server_optimizer: ServerOptimizer
    server_learning_rate: float
    server_momentum: float  # of fedavgm, and beta_1 of fedadam and fedyogi
    server_beta_2: float
    server_tau: float
    strategy: str  # of Flower, that makes the new model at the coordinator; nothing: a sum, and the server's optimizer
    strategy_settings: str  # of that strategy: name=value, name=value
    seed: int
    dtype: Dtype
    architecture: Architecture
    voting: bool  # every frame is scored and votes, in place of the LSTM's last state alone
    filters: str  # comma-separated, since Flower's run configuration has no lists
    kernel: int
    dense: int
    lstm: int
    secure_aggregation: bool  # whether updates are masked, and the model sealed, for the coordinator
    max_examples: int  # that a site's update counts, however many it has; 0: all of them
    max_update_value: float  # largest magnitude of an update's value
    max_update_norm: float  # most norm of an update, as a share of the global model's
    max_loss_increase: float  # most that a site's validation loss may rise, in nats
    local_baseline: bool  # whether each site also trains a model on its own data, for comparison
    retries: int  # of a round whose model the sites do not accept
    wait_seconds: float  # how long to wait for enough sites, before the run and in a round, and for room on the disk
    round_seconds: float  # deadline of a round's training, and again of the verdicts on its model

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        self._require_numbers()
        for name, known in (("dtype", DTYPES), ("architecture", ARCHITECTURES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"run setting {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if Path(self.initial_model).suffix == SEALED_SUFFIX and not self.secure_aggregation:
            raise ConfigError(
                f"run setting initial-model names a sealed model, which needs secure aggregation, got "
                f"{self.initial_model!r}: set secure-aggregation=true, or give a model.npz"
            )
        self.hyperparameters()
        self.server_optimizer_config()
        self._require_strategy()
        if min(self.filter_sizes()) < 1:
            raise ConfigError(f"run setting filters must be at least 1 each, got {self.filters!r}")

    def _require_numbers(self) -> None:
        least = {"sites": 1, "rounds": 1, "epochs": 1, "seed": 0, "kernel": 1, "dense": 1, "lstm": 1, "retries": 0}
        least |= {"quorum": 0, "max_examples": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(
                    f"run setting {name.replace('_', '-')} must be at least {lowest}, got {getattr(self, name)}"
                )
        for name, most in (
            ("sites", MAX_SITES),
            ("retries", MAX_ATTEMPTS - 1),
            ("quorum", self.sites),
            ("max_examples", MAX_EXAMPLES),
        ):
            if getattr(self, name) > most:
                raise ConfigError(
                    f"run setting {name.replace('_', '-')} must be at most {most}, got {getattr(self, name)}"
                )
        for name in ("wait_seconds", "round_seconds", "max_update_norm", "max_loss_increase"):
            if not 0 < getattr(self, name) < inf:
                raise ConfigError(
                    f"run setting {name.replace('_', '-')} must be positive and finite, got {getattr(self, name)}"
                )
        if not MIN_BOUND <= self.max_update_value <= MAX_BOUND:
            raise ConfigError(f"run setting max-update-value must be from 2^-20 to 2^20, got {self.max_update_value}")

    def _require_strategy(self) -> None:
        """Refuse a strategy beside what it replaces; `coordinator.server.chosen_strategy` lists the strategies."""
        if not self.strategy:
            if self.strategy_settings:
                raise ConfigError(
                    f"run setting strategy-settings is for a strategy, got {self.strategy_settings!r:.80}: name one"
                )
            return
        if self.secure_aggregation:
            raise ConfigError(
                f"run setting strategy needs secure-aggregation=false: a strategy of Flower reads each update, got "
                f"{self.strategy!r:.80}"
            )
        if (self.server_optimizer, self.server_learning_rate) != ("fedavg", 1.0):
            raise ConfigError(
                f"run setting strategy takes the place of the server's optimizer, got {self.strategy!r:.80} beside "
                f"{self.server_optimizer} at rate {self.server_learning_rate:g}: leave out one of them"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Self:
        """Read Flower's run configuration (names with hyphens); reject unknown, missing and mistyped names."""
        return cls(**_typed(cls, values, "run setting"))

    def told(self) -> dict[str, str | int | float]:
        """Return the settings by name, for the run's record: no path, no card, but whether it goes on from a model."""
        named = {name.replace("_", "-"): value for name, value in asdict(self).items() if name not in _NOT_REPORTED}
        return {**named, "initial-model": bool(self.initial_model)}

    def min_sites(self) -> int:
        """Return the quorum of a round."""
        return self.quorum or self.sites // 2 + 1

    def hyperparameters(self) -> Hyperparameters:
        """Return how the network learns."""
        return Hyperparameters(**{field.name: getattr(self, field.name) for field in fields(Hyperparameters)})

    def server_optimizer_config(self) -> ServerOptimizerConfig:
        """Return how the mean update of a round moves the global model."""
        numbers = (self.server_learning_rate, self.server_momentum, self.server_beta_2, self.server_tau)
        return ServerOptimizerConfig(self.server_optimizer, *numbers)

    def filter_sizes(self) -> tuple[int, ...]:
        """Return `filters` as numbers."""
        try:
            return tuple(int(size) for size in self.filters.split(","))
        except ValueError:
            raise ConfigError(f"run setting filters must be numbers like '16,32,64', got {self.filters!r}") from None


@dataclass(frozen=True)
class SiteConfig:
    """What a site's trainer is told: five addresses inside its own hospital; the vault knows the site's name."""

    dataset: Path  # folder of the encrypted dataset
    evaluation_key: Path
    vault: str  # gRPC address of the site's vault, such as unix:/run/fedpp/vault.sock
    policy: Path  # what the site allows
    work: Path  # folder that it may write to: models of finished runs, and what it remembers of those that go on

    @property
    def at_rest_key(self) -> Path:
        """Return the key of datasets that are sealed, beside the evaluation key, or where that would be."""
        return self.evaluation_key.with_name("domain.rest")

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Self:
        """Read Flower's node configuration or a site file; reject unknown, missing and mistyped names."""
        typed = _typed(cls, values, "site setting")
        return cls(**typed | {name: Path(typed[name]) for name in _PATHS})

    def to_mapping(self) -> dict[str, str]:
        """Return what `from_mapping` reads."""
        return {name.replace("_", "-"): str(value) for name, value in asdict(self).items()}


def to_toml(values: Mapping[str, str | int | float]) -> str:
    """Return settings as TOML, which keeps spaces and quotes that Flower's `key=value` would lose."""
    # A JSON string without escaped surrogates is a TOML string, but for DEL, which TOML wants escaped.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]
    return "".join(lines).replace("\x7f", "\\u007f")


# What Flower's run and node configurations may hold, per annotated type.
_ACCEPTED: dict[object, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    Path: (str,),
}


def _typed(cls: type, values: Mapping[str, object], what: str) -> dict[str, Any]:
    known = {field.name.replace("_", "-"): field for field in fields(cls)}
    unknown = sorted(set(values) - set(known))
    missing = sorted(set(known) - set(values))
    if unknown or missing:
        wrong = [f"unknown {name}" for name in unknown] + [f"missing {name}" for name in missing]
        raise ConfigError(f"{what}s do not fit: {', '.join(wrong)}; known are {', '.join(sorted(known))}")
    typed = {}
    for name, field in known.items():
        accepted = _ACCEPTED.get(field.type, (str,))
        value = values[name]
        if not isinstance(value, accepted) or (isinstance(value, bool) and accepted != (bool,)):
            raise ConfigError(f"{what} {name} must be {accepted[-1].__name__}, got {value!r}")
        typed[field.name] = value
    return typed
