"""`fedpp-site train`: a local model of one site, trained on its ciphertext, with a checkpoint after each epoch."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from fedpp.cli import add_json, load_tensorflow, note, path, positive
from fedpp.config.task import LABELS_NEEDED
from fedpp.errors import DatasetError, ModelError
from fedpp.texts import counted, printable

from .opening import add_domain, show, trainers_at_rest_key, trainers_dataset, trainers_key
from .training_settings import TrainingSettings, add_options, settings_of

if TYPE_CHECKING:
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.learning.checkpoint import Checkpoint
    from fedpp.learning.early_stopping import EarlyStopping
    from fedpp.learning.encrypted_training import EncryptedTrainer

MODEL, CHECKPOINT = "model.npz", "checkpoint.sealed"
STOPPING = "stopping/"  # prefix of early stopping's arrays in a checkpoint
NETWORKS = ("", f"{STOPPING}best/")  # prefixes of weights in a checkpoint: the current ones, those of the best epoch


def add_train_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `train`; the settings have no default here: a checkpoint may hold them."""
    to.add_argument("dataset", type=path, help="encrypted dataset")
    add_domain(to, passphrase=False)
    to.add_argument("--out", type=path, required=True, help="folder for model.npz, and checkpoints until then")
    to.add_argument("--resume", action="store_true", help="continue after the last epoch that was finished")
    add_options(to)
    stopping = to.add_argument_group("early stopping")
    stopping.add_argument("--vault", help="address of the vault that decrypts the validation loss, unix:/path.sock")
    stopping.add_argument("--patience", type=positive, help="epochs without a loss lower by 0.001 (default: 10)")
    add_json(to)


def train(
    *, dataset: Path, domain: Path, out: Path, resume: bool, vault: str | None, as_json: bool, **settings: Any
) -> int:
    """Train on this site's ciphertext, with Keras's progress bar; write an encrypted model.

    `settings` are fields of `TrainingSettings` and of its hyperparameters, None where they were not given.
    """
    from fedpp.learning.initial_weights import encrypted_initial_weights
    from fedpp.learning.model_file import EncryptedModel

    at_rest = trainers_at_rest_key(domain)
    checkpoint = _checkpoint(out, at_rest, resume=resume)
    data = trainers_dataset(dataset, domain)
    manifest = data.manifest
    key = trainers_key(domain, data)
    if not manifest.classes:
        raise DatasetError(f"{dataset} has no labels to train on: {LABELS_NEEDED}")
    data.verify()
    chosen = settings_of(settings, checkpoint, manifest, early_stopping=vault is not None)
    for split in ("train", *(["validation"] if chosen.patience else [])):
        if not len(data.indices(split)):
            raise DatasetError(
                f"{dataset} has no sequence in split {split}: ingest it with other shares (--validation, --test, or "
                "--split stratified of few patients), or with other splits where the data bring their own"
            )
    network = chosen.network(manifest)

    load_tensorflow(deterministic=True)  # a resumed training ends with the same weights, bit for bit
    from fedpp.learning.encrypted_training import EncryptedTrainer

    trainer = EncryptedTrainer(network, key.algebra(), chosen.training.hyperparameters, chosen.training.dtype)
    # Under the key: the run's seed alone does not reveal the weights. Their rows reveal the key anyway (threats.md).
    trainer.load(encrypted_initial_weights(network, key.weight_seed(chosen.training.seed, 0), key))
    with _stopping(vault, chosen, trainer, data) as stopping:
        out.mkdir(parents=True, exist_ok=True)  # before hours of training, not after
        bar = sys.stderr.isatty() and not as_json
        checkpoints = _Checkpoints(out / CHECKPOINT, at_rest, chosen, trainer, stopping, log=not bar)
        checkpoints.start(checkpoint)
        try:
            losses = _fit(trainer, data, chosen, checkpoints, stopping, verbose=int(bar))
        except ModelError:  # it diverged, and would again if it was resumed
            (out / CHECKPOINT).unlink(missing_ok=True)
            raise
        except KeyboardInterrupt:
            again = _resume_command(dataset, domain, out, vault, as_json=as_json)
            raise KeyboardInterrupt(f"resume with `{again}`") from None
    EncryptedModel(network, key.domain, manifest.classes, trainer.rows()).save(out / MODEL)
    (out / CHECKPOINT).unlink()
    figures: dict[str, Any] = {"model": str(out / MODEL), "epochs": len(losses), "loss_with_decoys": losses}
    if stopping is not None:
        figures |= {"validation_loss": stopping.losses, "best_epoch": stopping.best_epoch}
    show(figures, as_json=as_json)
    return 0


def _resume_command(dataset: Path, domain: Path, out: Path, vault: str | None, *, as_json: bool) -> str:
    """Return the command that resumes a training; its settings stand in the checkpoint."""
    options = ["--domain", str(domain), "--out", str(out), *(["--vault", vault] if vault else [])]
    flags = ["--json"] if as_json else []
    return " ".join(map(quote, ["fedpp-site", "train", str(dataset), *options, *flags, "--resume"]))


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
    if checkpoints.done < settings.training.epochs and not (stopping and stopping.stopped):
        trainer.fit(
            dataset,
            epochs=settings.training.epochs,
            seed=(settings.training.seed,),
            done=checkpoints.done,
            callbacks=[saving] if stopping is None else [stopping, saving],
            verbose=verbose,
        )
    elif stopping is not None:  # killed between its last epoch and its model
        stopping.keep_best(trainer.model)
    return checkpoints.losses


def _checkpoint(out: Path, at_rest: Any, *, resume: bool) -> "Checkpoint | None":
    """Return the checkpoint to resume from; raise `ModelError` if the folder holds what must not be overwritten."""
    from fedpp.learning.checkpoint import Checkpoint

    model, checkpoint = out / MODEL, out / CHECKPOINT
    if model.exists():
        if resume:
            checkpoint.unlink(missing_ok=True)  # the training had ended, and was killed between the two files
        raise ModelError(f"{model} is there already: choose another --out, models are not overwritten")
    if not checkpoint.exists():
        if resume:
            print(printable(f"{out} holds no checkpoint: training starts from the beginning"), file=sys.stderr)
        return None
    if not resume:
        raise ModelError(f"{out} holds an unfinished training: --resume it, or choose another --out")
    return Checkpoint.load(checkpoint, at_rest)


@contextmanager
def _stopping(
    address: str | None, settings: TrainingSettings, trainer: "EncryptedTrainer", dataset: "EncryptedDataset"
) -> "Iterator[EarlyStopping | None]":
    """Yield early stopping by the validation loss that the vault decrypts, if it is wanted."""
    if settings.patience is None or address is None:
        yield None
        return
    from fedpp.config.site_policy import EvaluationLimits
    from fedpp.errors import VaultError
    from fedpp.learning.early_stopping import EarlyStopping
    from fedpp.learning.metrics import metrics
    from fedpp.vault_api.vault_client import VaultClient

    validation = dataset.indices("validation")
    with VaultClient(address) as vault:
        info = vault.info()
        if info.dataset != dataset.manifest.fingerprint:
            raise VaultError(f"the vault at {address} serves another dataset: start it with {dataset.path}")
        patients, minimum = info.patients["validation"], EvaluationLimits().min_patients
        if patients < minimum:
            note(
                f"split validation has {counted(patients, 'patient')}: the vault returns their loss only if "
                f"min-patients in its site.yaml is at most {patients} (default: {minimum})"
            )

        def loss(epoch: int) -> float:
            value = metrics(vault.evaluate("validation", trainer.logits(dataset, validation), round=epoch)).loss
            if value is None:
                raise VaultError(f"the vault at {address} returned no loss of the validation split: see its log")
            return value

        yield EarlyStopping(loss, patience=settings.patience)


class _Checkpoints:
    """Checkpoints of a training, written before the first epoch and after each."""

    def __init__(
        self,
        path: Path,
        at_rest: Any,
        settings: TrainingSettings,
        trainer: "EncryptedTrainer",
        stopping: "EarlyStopping | None",
        *,
        log: bool,
    ) -> None:
        self._path, self._at_rest, self._settings, self._log = path, at_rest, settings, log
        self._trainer, self._stopping = trainer, stopping
        self.done, self.losses = 0, list[float]()

    def start(self, checkpoint: "Checkpoint | None") -> None:
        """Resume from a checkpoint, or write the first; remove the unfinished files of a killed process."""
        for name in (CHECKPOINT, MODEL):
            for unfinished in self._path.parent.glob(f".{name}.*.tmp"):
                unfinished.unlink()
        if checkpoint is None:
            self._write()
            return
        arrays = checkpoint.arrays
        self._trainer.restore({name: value for name, value in arrays.items() if not name.startswith(STOPPING)})
        if self._stopping is not None:
            own = {name.removeprefix(STOPPING): v for name, v in arrays.items() if name.startswith(STOPPING)}
            self._stopping.restore(own)
        self.done, self.losses = checkpoint.epoch, list(checkpoint.losses)
        print(f"resuming after epoch {self.done} of {self._settings.training.epochs}", file=sys.stderr)

    def save(self, epoch: int, logs: dict[str, float]) -> None:
        """Write the state after an epoch, which Keras counts from 0."""
        self.done = epoch + 1
        self.losses.append(float(logs["loss"]))
        self._write()
        if self._log:
            validation = f", validation loss {logs['val_loss']:.4f}" if "val_loss" in logs else ""
            of = f"epoch {self.done} of {self._settings.training.epochs}"
            print(f"{of}: loss with decoys {self.losses[-1]:.4f}{validation}", file=sys.stderr, flush=True)

    def _write(self) -> None:
        from fedpp.learning.checkpoint import Checkpoint

        arrays = dict(self._trainer.state())
        if self._stopping is not None:
            arrays |= {STOPPING + name: value for name, value in self._stopping.state().items()}
        Checkpoint(self._settings.to_mapping(), self.done, tuple(self.losses), arrays).save(self._path, self._at_rest)
