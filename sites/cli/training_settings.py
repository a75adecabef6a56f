"""Settings of a local training: the options given, else those of its checkpoint, else the defaults."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

from fedpp.cli import add_declared
from fedpp.config.hyperparameters import PATIENCE, Training
from fedpp.config.model_spec import ModelSpec
from fedpp.errors import ConfigError, DatasetError, ModelError
from fedpp.values import Declared, Flat, hyphenated, whole

if TYPE_CHECKING:
    from fedpp.dataset.dataset_manifest import DatasetManifest
    from fedpp.learning.checkpoint import Checkpoint

LOCAL = Training(epochs=10)


@dataclass(frozen=True)
class TrainingSettings(Declared, label="training settings"):
    """The settings that decide a training's final weights."""

    dataset: str  # its fingerprint
    domain: str  # its key's fingerprint
    training: Annotated[Training, Flat()]
    patience: Annotated[int, whole(1)] | None = None  # None: no early stopping

    def __post_init__(self) -> None:
        """Refuse values out of range, and what only a federation has."""
        super().__post_init__()
        self.training.hyperparameters.require_fixed()

    def network(self, manifest: "DatasetManifest") -> ModelSpec:
        """Return the specification of the model that is trained."""
        return ModelSpec(manifest.task, self.training.model)

    @classmethod
    def of_checkpoint(cls, values: Mapping[str, Any]) -> Self:
        """Read what a checkpoint holds; raise `ModelError` for what another version wrote."""
        other = ModelError("the checkpoint is of another version of fedpp: start again, with another --out")
        try:
            settings = cls.from_mapping(values)
        except ConfigError:
            raise other from None
        absent = settings.to_mapping().keys() - values.keys()
        if not absent <= {"proximal"}:  # which came later, and is 0 where it is absent
            raise other
        return settings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training; those that are not given have the defaults, or what a checkpoint started with."""
    add_declared(parser, Training, ("epochs", "seed"), LOCAL.values())
    add_declared(parser, Training, ("dtype",), {"dtype": "the dataset's"})
    add_declared(parser.add_argument_group("model"), Training, ("architecture", "voting"))
    learned = ("batch_size", "micro_batch", "learning_rate", "positive_weight", "label_smoothing")
    add_declared(parser.add_argument_group("hyperparameters"), Training, learned)


def settings_of(
    options: Mapping[str, Any], begun: "Checkpoint | None", manifest: "DatasetManifest", *, early_stopping: bool
) -> TrainingSettings:
    """Return the settings; raise `ConfigError` or `DatasetError` where options and checkpoint contradict each other."""
    usual = TrainingSettings(manifest.fingerprint, manifest.domain, LOCAL.changed(dtype=manifest.dtype))
    given = {name: value for name, value in options.items() if value is not None}
    if "patience" in given and not early_stopping:
        raise ConfigError("--patience needs --vault, which decrypts the loss of the validation split")
    if begun is None:
        patience = {"patience": PATIENCE} if early_stopping else {}
        return usual.changed(**{**patience, **given})
    started = TrainingSettings.of_checkpoint(begun.settings)
    before = started.values()
    for name in ("dataset", "domain"):
        ours, theirs = usual.values()[name], before[name]
        if ours != theirs:
            raise DatasetError(f"the training started with {name} {theirs[:16]}, this is {ours[:16]}: give it the same")
    if (started.patience is not None) != early_stopping:
        had, do = ("without", "leave --vault out") if started.patience is None else ("with", "give --vault again")
        raise ConfigError(f"the training started {had} early stopping: {do}")
    for name, value in given.items():
        if name != "epochs" and before[name] != value:
            raise ConfigError(f"the training started with {hyphenated(name)} {before[name]}, got {value}: leave it out")
    epochs = given.get("epochs", before["epochs"])
    if epochs < before["epochs"]:
        raise ConfigError(
            f"the training started with epochs {before['epochs']}, got {epochs}: give more, or leave it out"
        )
    return started.changed(epochs=epochs)
