"""`fedpp-site train`: a site's own model, trained on its ciphertext alone; it can be killed and resumed."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.command import load_tensorflow
from fedpp.recipe import Recipe

from .opening import show, trainers_dataset, trainers_key

if TYPE_CHECKING:
    from fedpp.cipher.dataset import EncryptedDataset
    from fedpp.learning.checkpoint import Checkpoint
    from fedpp.learning.stopping import EarlyStopping
    from fedpp.learning.training import EncryptedTrainer

MODEL, CHECKPOINT = "model.npz", "checkpoint.sealed"
STOPPING = "stopping/"  # what the early stopping remembers, in a checkpoint
DEFAULTS: dict[str, Any] = {
    "epochs": 10,
    "seed": 0,
    "dtype": None,  # the dataset's
    "architecture": "cnn-bi-lstm",
    "voting": False,
    **Recipe().to_mapping(),
    "patience": None,  # no early stopping
}


def train(options: argparse.Namespace) -> int:
    """Train on this site's ciphertext alone, with Keras's progress bar; write an encrypted model."""
    from fedpp.cipher.at_rest import AtRestKey
    from fedpp.errors import DatasetError
    from fedpp.keys.store import AT_REST_KEY
    from fedpp.learning.initial import encrypted_initial_weights
    from fedpp.learning.model_file import EncryptedModel
    from fedpp.network import NetworkSpec, Task

    at_rest = AtRestKey.load(options.domain / AT_REST_KEY)
    begun = _begun(options, at_rest)
    dataset = trainers_dataset(options)
    manifest = dataset.manifest
    key = trainers_key(options, manifest)
    if not manifest.classes:
        raise DatasetError(f"{options.dataset} has no labels to train on: ingest it with labels")
    dataset.require_domain(key.domain)
    dataset.verify()
    settings = _settings(options, begun, dataset)
    network = NetworkSpec.of(Task.of(manifest), architecture=settings["architecture"], voting=settings["voting"])
    recipe = Recipe(**{name: settings[name] for name in Recipe().to_mapping()})
    options.out.mkdir(parents=True, exist_ok=True)  # before hours of training, not after

    load_tensorflow(deterministic=True)  # resumed, it goes on to the same weights, bit for bit
    from fedpp.learning.training import EncryptedTrainer

    trainer = EncryptedTrainer(network, key.algebra(), recipe, settings["dtype"])
    # Under the key: the run's seed alone does not tell the weights. Their rows tell the key all the same (threats.md).
    trainer.load(encrypted_initial_weights(network, key.weight_seed(settings["seed"], 0), key))
    with _stopping(options, settings, trainer, dataset) as stopping:
        checkpoints = _Checkpoints(options.out / CHECKPOINT, at_rest, settings, trainer, stopping)
        checkpoints.begin(begun)
        verbose = 1 if sys.stderr.isatty() and not options.json else 0
        losses = _fit(trainer, dataset, settings, checkpoints, stopping, verbose)
    EncryptedModel(network, key.domain, manifest.classes, trainer.rows()).save(options.out / MODEL)
    (options.out / CHECKPOINT).unlink()
    figures: dict[str, Any] = {"model": str(options.out / MODEL), "epochs": len(losses), "loss_with_decoys": losses}
    if stopping is not None:
        figures |= {"validation_loss": stopping.losses, "best_epoch": stopping.best_epoch}
    show(options, figures)
    return 0


def _fit(
    trainer: "EncryptedTrainer",
    dataset: "EncryptedDataset",
    settings: dict[str, Any],
    checkpoints: "_Checkpoints",
    stopping: "EarlyStopping | None",
    verbose: int,
) -> list[float]:
    import keras

    saving = keras.callbacks.LambdaCallback(on_epoch_end=checkpoints.save)
    if checkpoints.done < settings["epochs"] and not (stopping and stopping.stopped):
        trainer.fit(
            dataset,
            epochs=settings["epochs"],
            seed=(settings["seed"],),
            done=checkpoints.done,
            callbacks=[saving] if stopping is None else [stopping, saving],
            verbose=verbose,
        )
    elif stopping is not None:  # it was killed between its last epoch and its model
        stopping.keep_best(trainer.model)
    return checkpoints.losses


def _begun(options: argparse.Namespace, at_rest: Any) -> "Checkpoint | None":
    """Return the checkpoint to resume from; raise `ModelError` if the folder holds what must not be overwritten."""
    from fedpp.errors import ModelError
    from fedpp.learning.checkpoint import Checkpoint

    model, checkpoint = options.out / MODEL, options.out / CHECKPOINT
    if model.exists():
        raise ModelError(f"{model} is there already: choose another --out, models are not overwritten")
    if not checkpoint.exists():
        if options.resume:
            print(f"{options.out} holds no checkpoint: training starts from the beginning", file=sys.stderr)
        return None
    if not options.resume:
        raise ModelError(f"{options.out} holds a training that did not end: --resume it, or choose another --out")
    return Checkpoint.load(checkpoint, at_rest)


def _settings(options: argparse.Namespace, begun: "Checkpoint | None", dataset: "EncryptedDataset") -> dict[str, Any]:
    """Return the training's settings: the options given, else those that it began with, else the defaults."""
    from fedpp.errors import ConfigError, DatasetError

    given = {name: value for name in DEFAULTS if (value := getattr(options, name)) is not None}
    if "patience" in given and options.vault is None:
        raise ConfigError("--patience needs --vault, which tells the loss of the validation split")
    if options.vault is not None:
        from fedpp.learning.stopping import PATIENCE

        given.setdefault("patience", PATIENCE)
    fixed = {"dataset": dataset.manifest.fingerprint, "domain": dataset.manifest.domain}
    if begun is None:
        return {**DEFAULTS, "dtype": dataset.manifest.dtype, **given, **fixed}
    for name, value in fixed.items():
        if begun.settings[name] != value:
            raise DatasetError(
                f"the training began with {name} {begun.settings[name][:16]}, this is {value[:16]}: give it the same"
            )
    for name, value in given.items():
        if name != "epochs" and begun.settings[name] != value:
            option = name.replace("_", "-")
            raise ConfigError(f"the training began with {option} {begun.settings[name]}, got {value}: leave it out")
    if begun.settings["patience"] is not None and options.vault is None:
        raise ConfigError("the training began with early stopping: give --vault again")
    epochs = given.get("epochs", begun.settings["epochs"])
    if epochs < begun.epoch:
        raise ConfigError(f"the training has {begun.epoch} epochs already, got --epochs {epochs}: give more")
    return {**begun.settings, "epochs": epochs}


@contextmanager
def _stopping(
    options: argparse.Namespace, settings: dict[str, Any], trainer: "EncryptedTrainer", dataset: "EncryptedDataset"
) -> "Iterator[EarlyStopping | None]":
    """Yield the early stopping by what the vault tells of the validation split, if it is wanted."""
    if settings["patience"] is None:
        yield None
        return
    from fedpp.errors import VaultError
    from fedpp.learning.metrics import metrics
    from fedpp.learning.stopping import EarlyStopping
    from fedpp.protocol.vault_client import VaultClient

    validation = dataset.indices("validation")
    with VaultClient(options.vault) as vault:
        if vault.info().dataset != dataset.manifest.fingerprint:
            raise VaultError(f"the vault at {options.vault} serves another dataset: start it with {options.dataset}")

        def loss() -> float:
            told = metrics(vault.score("validation", trainer.logits(dataset, validation))).loss
            if told is None:
                raise VaultError("the validation split has no sequence to stop by: ingest with --validation")
            return told

        yield EarlyStopping(loss, patience=settings["patience"])


class _Checkpoints:
    """Writes a checkpoint after each epoch, and one before the first."""

    def __init__(
        self,
        path: Path,
        at_rest: Any,
        settings: dict[str, Any],
        trainer: "EncryptedTrainer",
        stopping: "EarlyStopping | None",
    ) -> None:
        self._path, self._at_rest, self._settings = path, at_rest, settings
        self._trainer, self._stopping = trainer, stopping
        self.done, self.losses = 0, list[float]()

    def begin(self, begun: "Checkpoint | None") -> None:
        """Go on from a checkpoint, or write the first; what a killed process was writing goes."""
        for unfinished in self._path.parent.glob(f".{CHECKPOINT}.*.tmp"):
            unfinished.unlink()
        if begun is None:
            self._write()
            return
        arrays = begun.arrays
        self._trainer.restore({name: value for name, value in arrays.items() if not name.startswith(STOPPING)})
        if self._stopping is not None:
            own = {name.removeprefix(STOPPING): v for name, v in arrays.items() if name.startswith(STOPPING)}
            self._stopping.restore(own)
        self.done, self.losses = begun.epoch, list(begun.losses)
        print(f"resuming after epoch {self.done} of {self._settings['epochs']}", file=sys.stderr)

    def save(self, epoch: int, logs: dict[str, float]) -> None:
        """Write the state after an epoch, which Keras counts from 0."""
        self.done = epoch + 1
        self.losses.append(float(logs["loss"]))
        self._write()

    def _write(self) -> None:
        from fedpp.learning.checkpoint import Checkpoint

        arrays = dict(self._trainer.state())
        if self._stopping is not None:
            arrays |= {STOPPING + name: value for name, value in self._stopping.state().items()}
        Checkpoint(self._settings, self.done, tuple(self.losses), arrays).save(self._path, self._at_rest)
