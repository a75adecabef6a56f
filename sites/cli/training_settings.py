"""Settings of a local training: the options given, else those of its checkpoint, else the defaults."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from fedpp.config.hyperparameters import PATIENCE, Hyperparameters
from fedpp.config.model_spec import Architecture, ModelSpec, Task
from fedpp.config.run_config import Dtype
from fedpp.errors import ConfigError, DatasetError, ModelError

if TYPE_CHECKING:
    from fedpp.dataset.dataset_manifest import DatasetManifest
    from fedpp.learning.checkpoint import Checkpoint


@dataclass(frozen=True)
class TrainingSettings:
    """The settings that decide a training's final weights."""

    dataset: str  # its fingerprint
    domain: str  # its key's fingerprint
    dtype: Dtype
    epochs: int = 10
    seed: int = 0
    architecture: Architecture = "cnn-bi-lstm"
    voting: bool = False
    patience: int | None = None  # None: no early stopping
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)

    def network(self, manifest: "DatasetManifest") -> ModelSpec:
        """Return the specification of the model that is trained."""
        return ModelSpec.of(Task.of(manifest), architecture=self.architecture, voting=self.voting)

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings by the names of the options, the hyperparameters' among them."""
        values = asdict(self)
        hyperparameters: dict[str, Any] = values.pop("hyperparameters")
        return values | hyperparameters

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_mapping` returned; raise `ModelError` for what another version wrote."""
        values = {"proximal": Hyperparameters.proximal, **values}  # a checkpoint from before it has none
        of_hyperparameters = {each.name for each in fields(Hyperparameters)}
        own = {each.name for each in fields(cls)} - {"hyperparameters"}
        if set(values) != own | of_hyperparameters:
            raise ModelError("the checkpoint is of another version of fedpp: start again, with another --out")
        hyperparameters = Hyperparameters(**{name: values[name] for name in of_hyperparameters})
        return cls(**{name: values[name] for name in own}, hyperparameters=hyperparameters)


def settings_of(
    options: Mapping[str, Any], begun: "Checkpoint | None", manifest: "DatasetManifest", *, early_stopping: bool
) -> TrainingSettings:
    """Return the settings; raise `ConfigError` or `DatasetError` where options and checkpoint contradict each other."""
    usual = TrainingSettings(manifest.fingerprint, manifest.domain, manifest.dtype)
    given = {name: value for name, value in options.items() if value is not None}
    if "patience" in given and not early_stopping:
        raise ConfigError("--patience needs --vault, which decrypts the loss of the validation split")
    if begun is None:
        patience = {"patience": PATIENCE} if early_stopping else {}
        return TrainingSettings.from_mapping({**usual.to_mapping(), **patience, **given})
    began = TrainingSettings.from_mapping(begun.settings)
    for name in ("dataset", "domain"):
        ours, theirs = getattr(usual, name), getattr(began, name)
        if ours != theirs:
            raise DatasetError(f"the training began with {name} {theirs[:16]}, this is {ours[:16]}: give it the same")
    if (began.patience is not None) != early_stopping:
        had, do = ("without", "leave --vault out") if began.patience is None else ("with", "give --vault again")
        raise ConfigError(f"the training began {had} early stopping: {do}")
    for name, value in given.items():
        before = began.to_mapping()[name]
        if name != "epochs" and before != value:
            raise ConfigError(f"the training began with {name.replace('_', '-')} {before}, got {value}: leave it out")
    epochs = given.get("epochs", began.epochs)
    if epochs < began.epochs:
        raise ConfigError(f"the training began with epochs {began.epochs}, got {epochs}: give more, or leave it out")
    return TrainingSettings.from_mapping({**begun.settings, "epochs": epochs})
