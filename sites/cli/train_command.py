"""`fedpp-site train`: a site's own model, trained on its ciphertext alone; it can be killed and resumed."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.cli import load_tensorflow
from fedpp.errors import DatasetError, ModelError

from .opening import show, trainers_at_rest_key, trainers_dataset, trainers_key
from .training_settings import TrainingSettings, settings_of

if TYPE_CHECKING:
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.learning.checkpoint import Checkpoint
    from fedpp.learning.early_stopping import EarlyStopping
    from fedpp.learning.encrypted_training import EncryptedTrainer

MODEL, CHECKPOINT = "model.npz", "checkpoint.sealed"
STOPPING = "stopping/"  # what the early stopping remembers, in a checkpoint
NETWORKS = ("", f"{STOPPING}best/")  # where weights stand in a checkpoint, those of the best epoch the second time


def train(options: argparse.Namespace) -> int:
    """Train on this site's ciphertext alone, with Keras's progress bar; write an encrypted model."""
    from fedpp.learning.initial_weights import encrypted_initial_weights
    from fedpp.learning.model_file import EncryptedModel

    at_rest = trainers_at_rest_key(options)
    begun = _begun(options, at_rest)
    dataset = trainers_dataset(options)
    manifest = dataset.manifest
    key = trainers_key(options, dataset)
    if not manifest.classes:
        raise DatasetError(f"{options.dataset} has no labels to train on: ingest it with labels")
    dataset.verify()
    settings = settings_of(options, begun, manifest)
    for split in ("train", *(["validation"] if settings.patience else [])):
        if not len(dataset.indices(split)):
            raise DatasetError(f"{options.dataset} has no sequence in split {split}: ingest it with other shares")
    network = settings.network(manifest)

    load_tensorflow(deterministic=True)  # resumed, it goes on to the same weights, bit for bit
    from fedpp.learning.encrypted_training import EncryptedTrainer

    trainer = EncryptedTrainer(network, key.algebra(), settings.hyperparameters, settings.dtype)
    # Under the key: the run's seed alone does not tell the weights. Their rows tell the key all the same (threats.md).
    trainer.load(encrypted_initial_weights(network, key.weight_seed(settings.seed, 0), key))
    with _stopping(options, settings, trainer, dataset) as stopping:
        options.out.mkdir(parents=True, exist_ok=True)  # before hours of training, not after
        bar = sys.stderr.isatty() and not options.json
        checkpoints = _Checkpoints(options.out / CHECKPOINT, at_rest, settings, trainer, stopping, tell=not bar)
        checkpoints.begin(begun)
        try:
            losses = _fit(trainer, dataset, settings, checkpoints, stopping, verbose=int(bar))
        except ModelError:  # it diverged, and resumed it would again
            (options.out / CHECKPOINT).unlink(missing_ok=True)
            raise
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
    settings: TrainingSettings,
    checkpoints: "_Checkpoints",
    stopping: "EarlyStopping | None",
    verbose: int,
) -> list[float]:
    import keras

    saving = keras.callbacks.LambdaCallback(on_epoch_end=checkpoints.save)
    if checkpoints.done < settings.epochs and not (stopping and stopping.stopped):
        trainer.fit(
            dataset,
            epochs=settings.epochs,
            seed=(settings.seed,),
            done=checkpoints.done,
            callbacks=[saving] if stopping is None else [stopping, saving],
            verbose=verbose,
        )
    elif stopping is not None:  # it was killed between its last epoch and its model
        stopping.keep_best(trainer.model)
    return checkpoints.losses


def _begun(options: argparse.Namespace, at_rest: Any) -> "Checkpoint | None":
    """Return the checkpoint to resume from; raise `ModelError` if the folder holds what must not be overwritten."""
    from fedpp.learning.checkpoint import Checkpoint

    model, checkpoint = options.out / MODEL, options.out / CHECKPOINT
    if model.exists():
        if options.resume:
            checkpoint.unlink(missing_ok=True)  # killed between the two, the training had ended
        raise ModelError(f"{model} is there already: choose another --out, models are not overwritten")
    if not checkpoint.exists():
        if options.resume:
            print(f"{options.out} holds no checkpoint: training starts from the beginning", file=sys.stderr)
        return None
    if not options.resume:
        raise ModelError(f"{options.out} holds a training that did not end: --resume it, or choose another --out")
    return Checkpoint.load(checkpoint, at_rest)


@contextmanager
def _stopping(
    options: argparse.Namespace, settings: TrainingSettings, trainer: "EncryptedTrainer", dataset: "EncryptedDataset"
) -> "Iterator[EarlyStopping | None]":
    """Yield the early stopping by what the vault tells of the validation split, if it is wanted."""
    if settings.patience is None:
        yield None
        return
    from fedpp.config.site_policy import EvaluationLimits
    from fedpp.errors import VaultError
    from fedpp.learning.early_stopping import EarlyStopping
    from fedpp.learning.metrics import metrics
    from fedpp.vault_api.vault_client import VaultClient

    validation = dataset.indices("validation")
    with VaultClient(options.vault) as vault:
        info = vault.info()
        if info.dataset != dataset.manifest.fingerprint:
            raise VaultError(f"the vault at {options.vault} serves another dataset: start it with {options.dataset}")
        patients, least = info.patients["validation"], EvaluationLimits().min_patients
        if patients < least:
            print(
                f"note: split validation has {patients} patients: the vault tells their loss only if min-patients "
                f"in its site.yaml is at most {patients}; without one it is {least}",
                file=sys.stderr,
            )

        def loss(epoch: int) -> float:
            told = metrics(vault.evaluate("validation", trainer.logits(dataset, validation), round=epoch)).loss
            if told is None:
                raise VaultError(f"the vault at {options.vault} told no loss of the validation split: see its log")
            return told

        yield EarlyStopping(loss, patience=settings.patience)


class _Checkpoints:
    """Writes a checkpoint after each epoch, and one before the first."""

    def __init__(
        self,
        path: Path,
        at_rest: Any,
        settings: TrainingSettings,
        trainer: "EncryptedTrainer",
        stopping: "EarlyStopping | None",
        *,
        tell: bool,
    ) -> None:
        self._path, self._at_rest, self._settings, self._tell = path, at_rest, settings, tell
        self._trainer, self._stopping = trainer, stopping
        self.done, self.losses = 0, list[float]()

    def begin(self, begun: "Checkpoint | None") -> None:
        """Go on from a checkpoint, or write the first; what a killed process was writing goes."""
        for name in (CHECKPOINT, MODEL):
            for unfinished in self._path.parent.glob(f".{name}.*.tmp"):
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
        print(f"resuming after epoch {self.done} of {self._settings.epochs}", file=sys.stderr)

    def save(self, epoch: int, logs: dict[str, float]) -> None:
        """Write the state after an epoch, which Keras counts from 0."""
        self.done = epoch + 1
        self.losses.append(float(logs["loss"]))
        self._write()
        if self._tell:
            validation = f", validation loss {logs['val_loss']:.4f}" if "val_loss" in logs else ""
            done = f"epoch {self.done} of {self._settings.epochs}: loss with decoys {self.losses[-1]:.4f}{validation}"
            print(done, file=sys.stderr, flush=True)

    def _write(self) -> None:
        from fedpp.learning.checkpoint import Checkpoint

        arrays = dict(self._trainer.state())
        if self._stopping is not None:
            arrays |= {STOPPING + name: value for name, value in self._stopping.state().items()}
        Checkpoint(self._settings.to_mapping(), self.done, tuple(self.losses), arrays).save(self._path, self._at_rest)
