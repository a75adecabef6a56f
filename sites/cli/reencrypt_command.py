"""`fedpp-site reencrypt`: datasets, models and checkpoints of one key epoch, re-encrypted under a later one."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.cli import add_json, path
from fedpp.errors import DomainMismatchError, ModelError

from .opening import PassphraseSource, add_domain, require_new, show

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedpp.config.model_spec import ModelSpec
    from fedpp.keys.key_rotation import KeySwitch
    from fedpp.learning.checkpoint import Checkpoint

    Arrays = dict[str, NDArray[np.generic]]
    Rows = dict[str, NDArray[np.floating]]


def add_reencrypt_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `reencrypt`."""
    to.add_argument("what", type=path, help="encrypted dataset, model.npz or checkpoint.sealed of the old key epoch")
    add_domain(to)
    to.add_argument(
        "--to",
        type=path,
        required=True,
        metavar="DOMAIN",
        help="domain folder of the new epoch, of the same passphrase",
    )
    to.add_argument("--dataset", type=path, help="re-encrypted dataset of a checkpoint")
    to.add_argument("--out", type=path, required=True, help="new folder or file")
    add_json(to)


def reencrypt(
    *, what: Path, domain: Path, to: Path, dataset: Path | None, out: Path, passphrase: PassphraseSource, as_json: bool
) -> int:
    """Re-encrypt a dataset, a model or a checkpoint under a later key epoch of its domain."""
    from fedpp.keys import key_store
    from fedpp.keys.key_rotation import KeySwitch
    from fedpp.learning.checkpoint import is_checkpoint

    require_new(out)
    if not what.exists():
        raise ModelError(f"there is no {what}: name a dataset, a model.npz or a checkpoint.sealed")
    opened = passphrase.read()
    switch = KeySwitch(key_store.open_domain(domain, opened), key_store.open_domain(to, opened))
    if what.is_dir():
        figures = _dataset(what, out, switch)
    elif what.suffix == ".npz":
        figures = _model(what, out, switch)
    elif not is_checkpoint(what):
        raise ModelError(f"{what} is no dataset, model or checkpoint: name one of the old key epoch")
    else:
        figures = _checkpoint(what, dataset, out, switch)
    show({**figures, "domain": switch.new.card().fingerprint, "key epoch": switch.new.key_epoch}, as_json=as_json)
    return 0


def _dataset(path: Path, out: Path, switch: "KeySwitch") -> dict[str, Any]:
    from tqdm import tqdm

    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.keys.key_rotation import reencrypt as reencrypt_dataset

    source = EncryptedDataset.open(path, switch.old.at_rest_key())
    source.verify()
    with tqdm(total=len(source), unit="sequence", disable=not sys.stderr.isatty()) as bar:
        reencrypt_dataset(source, out, switch, bar.update)
    return {"dataset": str(out), "sequences": len(source)}


def _model(path: Path, out: Path, switch: "KeySwitch") -> dict[str, Any]:
    from fedpp.learning.model_file import EncryptedModel

    model = EncryptedModel.load(path)
    model.require_fitting(switch.old.card().fingerprint, ())
    rows = {name: switch.rows(values) for name, values in model.rows.items()}
    if switch.old.scheme == "more-frame":
        rows = {**model.rows, **_stem(model.network, model.rows, switch)}
    replace(model, domain=switch.new.card().fingerprint, rows=rows).save(out)
    return {"model": str(out)}


def _stem(network: "ModelSpec", rows: "Rows", switch: "KeySwitch") -> "Rows":
    """Return the first kernel of the frame form, the one weight that is applied to mixed frames, under the new key."""
    if not network.task.patch:
        raise ModelError("a model over mixed rows cannot be re-encrypted: train again on the new dataset")
    return {"stem/kernel": switch.stem(rows["stem/kernel"][..., 0], network.task.patch)[..., None]}


def _checkpoint(path: Path, dataset_path: Path | None, out: Path, switch: "KeySwitch") -> dict[str, Any]:
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.learning.checkpoint import Checkpoint

    from .training_settings import TrainingSettings

    if dataset_path is None:
        raise ModelError("a checkpoint resumes on its dataset: name the re-encrypted one with --dataset")
    if switch.old.scheme == "more-frame":
        raise ModelError("a checkpoint of the frame form holds moments that cannot be re-encrypted: train again")
    checkpoint = Checkpoint.load(path, switch.old.at_rest_key())
    dataset = EncryptedDataset.open(dataset_path, switch.new.at_rest_key())
    dataset.require_domain(switch.new.card().fingerprint)
    settings = TrainingSettings.of_checkpoint(checkpoint.settings)
    if settings.domain != switch.old.card().fingerprint:
        raise DomainMismatchError(f"{path} is of domain {settings.domain[:16]}: name the folder of its epoch")
    moved = replace(settings, domain=dataset.manifest.domain, dataset=dataset.manifest.fingerprint)
    arrays = _switched(checkpoint, settings.network(dataset.manifest), switch)
    replace(checkpoint, settings=moved.to_mapping(), arrays=arrays).save(out, switch.new.at_rest_key())
    return {"checkpoint": str(out), "training epoch": checkpoint.epoch}


def _switched(checkpoint: "Checkpoint", network: "ModelSpec", switch: "KeySwitch") -> "Arrays":
    """Return a training's state under the new key epoch: weights are components, optimizer moments are by slot."""
    import numpy as np

    from .train_command import NETWORKS

    old, new = (domain.computing_key().algebra() for domain in (switch.old, switch.new))
    arrays = dict(checkpoint.arrays)
    for prefix in NETWORKS:
        if prefix + "0000" not in arrays:  # no epoch was the best so far
            continue
        for number, _ in enumerate(network.weights()):
            names = [f"{prefix}{number * old.n + part:04}" for part in range(old.n)]
            parts = tuple(arrays[name].astype(np.float64) for name in names)
            rows = switch.rows(np.stack(old.to_rows(parts), axis=-1))
            for name, part in zip(names, new.from_rows(rows), strict=True):
                arrays[name] = np.asarray(part).astype(arrays[name].dtype)
    return arrays
