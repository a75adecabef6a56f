"""Run configuration and site configuration: the settings of Flower's two apps, parsed once into typed values.

Nobody else indexes a configuration by string. Each default stands in these declarations; `[tool.flwr.app.config]` of
pyproject.toml repeats them, since Flower only overrides names that stand there, and a test compares the two.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from fedpp.config.hyperparameters import Training
from fedpp.config.server_optimizer import SERVER_NAMES, ServerOptimizerConfig
from fedpp.values import Declared, Flat, hyphenated, is_hex, number, whole

SPLITS = ("train", "validation", "test")
MAX_ATTEMPTS = 100  # of a round
MAX_SITES = 1000  # of a run: a vault is sent their proofs and the list of a sum in one message, under gRPC's limit
MIN_HONEST = 2  # sites of each sum of a masked run: the sum over fewer is one site's update
MAX_EXAMPLES = 2**31  # of all sites together
MIN_BOUND, MAX_BOUND = 2.0**-20, 2.0**20  # of the magnitude of an update's value
LAYOUTS = (  # of raw data
    "auto",
    "frames",
    "manifest",
    "chexpert",
    "mimic-cxr",
    "nih-chestxray14",
    "dicom",
    "breakhis",
    "class-folders",
    "images",
)
WANTED_SENSITIVITY = 0.9  # on validation data, of a report's operating point, unless another is given
SITES_FOLDER = "FEDPP_SITES"  # environment variable: in a simulation, the folder of the site files
BUNDLE = "FEDPP_BUNDLE"  # environment variable: SHA-256 of the app bundle that runs, as the site's launcher measured it

Monitor = Literal["last", "loss", "auc"]
Reporting = Literal["aggregate", "per-site"]


@dataclass(frozen=True)
class UpdateBounds(Declared, label="update bounds"):
    """Limits of an update, which each site checks on its own (`fedpp.aggregation.update_check`)."""

    max_examples: Annotated[
        int, whole(0, MAX_EXAMPLES), "training sequences that a site's update counts at most; 0: all"
    ] = 0
    max_update_value: Annotated[
        float, number(least=MIN_BOUND, most=MAX_BOUND), "largest magnitude of an update's value"
    ] = 8.0
    max_update_norm: Annotated[
        float, number(above=0), "largest norm of an update, as a share of the global model's"
    ] = 10.0
    max_loss_increase: Annotated[float, number(above=0), "largest increase of a site's validation loss, in nats"] = 1.0


@dataclass(frozen=True, kw_only=True)
class RunSettings(Declared, label="run configuration", hyphens=True):
    """What a run does, whoever starts it: a coordinator's run and a simulation's scenario hold it."""

    sites: Annotated[int, whole(1, MAX_SITES), "sites to wait for"]
    quorum: Annotated[
        int, whole(0, MAX_SITES), "fewest sites of a round of a run in clear; 0: more than half of the sites"
    ] = 0
    rounds: Annotated[int, whole(1), "rounds of the run"] = 10
    training: Annotated[Training, Flat()] = Training()
    server_optimizer: Annotated[ServerOptimizerConfig, SERVER_NAMES] = ServerOptimizerConfig()
    strategy: Annotated[str, "strategy of Flower, in place of the server optimizer"] = ""
    strategy_settings: Annotated[str, "settings of the strategy: name=value, name=value"] = ""
    secure_aggregation: Annotated[bool, "updates masked, and states sealed, for the coordinator"] = True
    colluders: Annotated[
        int, whole(1, MAX_SITES), "members of a masked run that may collude with the coordinator; of two sites none"
    ] = 1
    min_honest: Annotated[int, whole(MIN_HONEST, MAX_SITES), "fewest other members, whose sum each update is in"] = (
        MIN_HONEST
    )
    monitor: Annotated[Monitor, "figure of the validation split by which a masked run chooses its result"] = "last"
    patience: Annotated[
        int, whole(), "rounds without a better figure, after which a masked run stops training; 0: all rounds"
    ] = 0
    reporting: Annotated[Reporting, "figures of a masked run: of the cohort alone, or of each site, too"] = "aggregate"
    bounds: Annotated[UpdateBounds, Flat()] = UpdateBounds()
    local_baseline: Annotated[
        bool, "each site of a run in clear also trains a model on its own data alone, for comparison"
    ] = False
    retries: Annotated[
        int, whole(0, MAX_ATTEMPTS - 1), "retries of a round of a run in clear whose model the sites do not accept"
    ] = 2
    wait_seconds: Annotated[
        float, number(above=0), "seconds to wait for enough sites, in a round for its quorum, and for room on the disk"
    ] = 600.0
    round_seconds: Annotated[
        float, number(above=0), "seconds for a round's training, and again for the sites' evaluation of its model"
    ] = 3600.0

    def __post_init__(self) -> None:
        """Refuse values out of range, and a strategy beside what it replaces."""
        super().__post_init__()
        if self.quorum > self.sites:
            raise self._refused(f"quorum must be at most the number of sites, {self.sites}, got {self.quorum}")
        if self.strategy_settings and not self.strategy:
            raise self._refused(f"strategy-settings is for a strategy, got {self.strategy_settings!r:.80}: name one")
        if self.strategy and self.secure_aggregation:
            raise self._refused(
                f"strategy needs secure-aggregation=false: a strategy of Flower reads each update, got "
                f"{self.strategy!r:.80}"
            )
        self._check_contract()
        optimizer = self.server_optimizer
        if self.strategy and (optimizer.name, optimizer.learning_rate) != ("fedavg", 1.0):
            raise self._refused(
                f"strategy takes the place of the server optimizer, got {self.strategy!r:.80} beside "
                f"{optimizer.name} at rate {optimizer.learning_rate:g}: leave out one of them"
            )

    def _check_contract(self) -> None:
        """Refuse settings of masked runs that contradict each other, or would do nothing."""
        if not self.secure_aggregation:
            for name in ("colluders", "min_honest", "monitor", "patience", "reporting"):
                default = self.declarations()[name].default
                if (value := getattr(self, name)) != default:
                    raise self._refused(
                        f"{hyphenated(name)} is of masked runs, got {value} with secure-aggregation=false: leave it out"
                    )
        elif 2 < self.sites < self.min_honest + self.colluders:
            raise self._refused(
                f"sites must be at least min-honest and colluders together, {self.min_honest} + {self.colluders}, got "
                f"{self.sites}: ask more sites to join, or run in clear"
            )
        if self.patience and self.monitor == "last":
            raise self._refused(f"patience needs monitor loss or auc, got {self.patience} with monitor last")

    def min_sites(self) -> int:
        """Return the quorum of a round."""
        return self.quorum or self.sites // 2 + 1


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunSettings):
    """The coordinator's run configuration: the settings, and what a run is started with."""

    card: str  # of the key domain whose members are admitted, JSON
    out: str  # folder for the federation's results
    initial_model: str = ""  # model.npz of an earlier run; in a masked run the digest of a model that all endorsed
    coordinator: str = ""  # its CoordinatorNames, JSON; empty in a simulation

    def __post_init__(self) -> None:
        """Refuse what is of the other kind of run: an initial model, or a local baseline."""
        super().__post_init__()
        if self.local_baseline and self.secure_aggregation:
            raise self._refused(
                "local-baseline is of runs in clear, got true with secure-aggregation=true: leave it out; a "
                "site trains a model of its own with `fedpp-site train`"
            )
        if self.initial_model and is_hex(self.initial_model) != self.secure_aggregation:
            wanted = (
                "the digest of a model that every site has endorsed, as `fedpp-site endorse` prints it"
                if self.secure_aggregation
                else "a model.npz"
            )
            raise self._refused(
                f"initial-model with secure-aggregation={str(self.secure_aggregation).lower()} is {wanted}, got "
                f"{self.initial_model!r:.80}"
            )

    def to_flower(self) -> dict[str, str | int | float]:
        """Return the run configuration of Flower, which has no lists: they are texts such as `16,32`."""
        mapping = self.to_mapping().items()
        return {name: ",".join(map(str, v)) if isinstance(v, list) else v for name, v in mapping}

    def reported(self) -> dict[str, str | int | float]:
        """Return the settings for the run's record: no path, card or host, but whether there was an initial model."""
        private = {"card", "out", "coordinator"}  # the record names the domain
        public = {name: value for name, value in self.to_flower().items() if name not in private}
        return {**public, "initial-model": bool(self.initial_model)}


@dataclass(frozen=True)
class SiteConfig(Declared, label="site configuration", hyphens=True):
    """The ClientApp's node configuration: five addresses inside its own hospital, and its coordinator.

    The vault knows the site's name. A simulation has no coordinator.
    """

    dataset: Path  # folder of the encrypted dataset
    evaluation_key: Path
    vault: str  # gRPC address of the site's vault, such as unix:/run/fedpp/vault.sock
    policy: Path  # what the site allows
    work: Path  # folder that it may write to: models of finished runs, and its state in runs that are not finished
    coordinator: str = ""  # CoordinatorIdentity, JSON

    @property
    def at_rest_key(self) -> Path:
        """Return the key of datasets that are sealed, beside the evaluation key, or where that would be."""
        return self.evaluation_key.with_name("domain.rest")


def to_toml(values: Mapping[str, str | int | float]) -> str:
    """Return settings as TOML, which keeps spaces and quotes that Flower's `key=value` would lose."""
    # A JSON string without escaped surrogates is a TOML string, but for DEL, which TOML wants escaped.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]
    return "".join(lines).replace("\x7f", "\\u007f")
