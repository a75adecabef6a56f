"""`fedpp-site reencrypt`: datasets, models and checkpoints of a domain's old epoch, taken to a later one."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .opening import passphrase_of, show

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedpp.config.model_spec import ModelSpec
    from fedpp.keys.key_rotation import KeySwitch
    from fedpp.learning.checkpoint import Checkpoint

    Arrays = dict[str, NDArray[np.generic]]
    Rows = dict[str, NDArray[np.floating]]


def reencrypt(options: argparse.Namespace) -> int:
    """Take a dataset, a model or a checkpoint from an old epoch of its domain to a new one."""
    from fedpp.errors import ModelError
    from fedpp.keys import key_store
    from fedpp.keys.key_rotation import KeySwitch
    from fedpp.learning.checkpoint import is_checkpoint

    if options.out.exists():
        raise ModelError(f"{options.out} is there already: choose another --out, nothing is overwritten")
    if not options.what.exists():
        raise ModelError(f"there is no {options.what}: name a dataset, a model.npz or a checkpoint.sealed")
    passphrase = passphrase_of(options)
    switch = KeySwitch(key_store.open_domain(options.domain, passphrase), key_store.open_domain(options.to, passphrase))
    if options.what.is_dir():
        figures = _dataset(options.what, options.out, switch)
    elif options.what.suffix == ".npz":
        figures = _model(options.what, options.out, switch)
    elif not is_checkpoint(options.what):
        raise ModelError(f"{options.what} is no dataset, model or checkpoint: name one of the old epoch")
    else:
        figures = _checkpoint(options, switch)
    show(options, {**figures, "domain": switch.new.card().fingerprint, "key epoch": switch.new.key_epoch})
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
    """Return the first kernel of the frame form, the one weight that saw mixed frames, turned to the new key."""
    from fedpp.errors import ModelError

    if not network.patch:
        raise ModelError("a network over mixed rows cannot be taken to another key: train again on the new dataset")
    return {"stem/kernel": switch.stem(rows["stem/kernel"][..., 0], network.patch)[..., None]}


def _checkpoint(options: argparse.Namespace, switch: "KeySwitch") -> dict[str, Any]:
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.errors import DomainMismatchError, ModelError
    from fedpp.learning.checkpoint import Checkpoint

    from .training_settings import TrainingSettings

    if options.dataset is None:
        raise ModelError("a checkpoint goes on with its dataset: name the re-encrypted one with --dataset")
    if switch.old.scheme == "more-frame":
        raise ModelError(
            "a checkpoint of the frame form holds moments that cannot be taken to another key: train again"
        )
    checkpoint = Checkpoint.load(options.what, switch.old.at_rest_key())
    dataset = EncryptedDataset.open(options.dataset, switch.new.at_rest_key())
    dataset.require_domain(switch.new.card().fingerprint)
    settings = TrainingSettings.from_mapping(checkpoint.settings)
    if settings.domain != switch.old.card().fingerprint:
        raise DomainMismatchError(f"{options.what} is of domain {settings.domain[:16]}: name the folder of its epoch")
    moved = replace(settings, domain=dataset.manifest.domain, dataset=dataset.manifest.fingerprint)
    arrays = _switched(checkpoint, settings.network(dataset.manifest), switch)
    replace(checkpoint, settings=moved.to_mapping(), arrays=arrays).save(options.out, switch.new.at_rest_key())
    return {"checkpoint": str(options.out), "epoch of training": checkpoint.epoch}


def _switched(checkpoint: "Checkpoint", network: "ModelSpec", switch: "KeySwitch") -> "Arrays":
    """Return a training's state in the new epoch: weights are components, the optimizer's moments stand by slot."""
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
