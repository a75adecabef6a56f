"""`fedpp-site`: a site's own models, trained on its ciphertext alone and read in its secret zone."""

import argparse
import json
import sys
from typing import Any

from fedpp.command import load_tensorflow

from .opening import domain_of, show, trainers_dataset


def train(options: argparse.Namespace) -> int:
    """Train on this site's ciphertext alone, with Keras's progress bar; write an encrypted model."""
    from fedpp.cipher.evaluation_key import EvaluationKey
    from fedpp.config import NetworkSpec, Task
    from fedpp.errors import DatasetError, ModelError
    from fedpp.keys.store import EVALUATION_KEY
    from fedpp.learning.initial import encrypted_initial_weights
    from fedpp.learning.model_file import EncryptedModel

    target = options.out / "model.npz"
    if target.exists():
        raise ModelError(f"{target} is there already: choose another --out, models are not overwritten")
    key = EvaluationKey.load(options.domain / EVALUATION_KEY)
    dataset = trainers_dataset(options)
    manifest = dataset.manifest
    if not manifest.classes:
        raise DatasetError(f"{options.dataset} has no labels to train on: ingest it with labels")
    dataset.require_domain(key.domain)
    dataset.verify()
    options.out.mkdir(parents=True, exist_ok=True)  # before hours of training, not after
    dtype = options.dtype or manifest.dtype
    network = NetworkSpec.of(Task.of(manifest))

    load_tensorflow()
    from fedpp.learning.training import EncryptedTrainer

    trainer = EncryptedTrainer(network, key, dtype)
    trainer.load(encrypted_initial_weights(network, options.seed, key))
    losses = trainer.fit(
        dataset,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=(options.seed,),
        verbose=1 if sys.stderr.isatty() and not options.json else 0,
    )
    EncryptedModel(network, key.domain, manifest.classes, trainer.rows()).save(target)
    show(options, {"model": str(target), "epochs": options.epochs, "loss_with_decoys": losses})
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Score a model on a split: predict on ciphertext, decrypt in the secret zone."""
    from fedpp.learning.metrics import count, metrics

    labels, probabilities, _ = _predictions(options, labelled=True)
    show(
        options,
        {
            "split": options.split,
            "examples": len(labels),
            **metrics(count(labels, probabilities)).to_mapping(),
        },
    )
    return 0


def predict(options: argparse.Namespace) -> int:
    """Print the decrypted probabilities of every sequence of a split, by pseudonym."""
    _, probabilities, names = _predictions(options, labelled=False)
    rows = [{"sequence": name, "probabilities": p.tolist()} for name, p in zip(names, probabilities, strict=True)]
    if options.json:
        print(json.dumps(rows))
    else:
        for name, p in zip(names, probabilities, strict=True):
            print(name, *(f"{value:.4f}" for value in p))
    return 0


def _predictions(options: argparse.Namespace, *, labelled: bool) -> tuple[Any, Any, list[str]]:
    """Return true classes `[k]`, probabilities `[k, classes]` and the sequences' pseudonyms."""
    from fedpp.cipher.dataset import EncryptedDataset
    from fedpp.errors import DatasetError
    from fedpp.keys import encryption
    from fedpp.learning.metrics import softmax
    from fedpp.learning.model_file import EncryptedModel

    domain = domain_of(options)
    model, dataset = EncryptedModel.load(options.model), EncryptedDataset.open(options.dataset, domain.at_rest_key())
    if labelled and not dataset.manifest.classes:
        raise DatasetError(f"{options.dataset} has no labels to score against: ingest it with labels")
    dataset.require_domain(domain.card().fingerprint)
    indices = dataset.indices(options.split)
    if not len(indices):
        raise DatasetError(f"{options.dataset} has no sequence in split {options.split}: choose another --split")

    load_tensorflow()
    from fedpp.learning.training import EncryptedTrainer

    trainer = EncryptedTrainer(model.network, domain.evaluation_key(), model.dtype)
    trainer.check_model(model, dataset)
    trainer.load(model.rows)
    probabilities = softmax(encryption.decrypt(domain, trainer.logits(dataset, options.split, batch_size=8)))
    labels = encryption.decrypt(domain, dataset.labels(indices)).argmax(axis=1) if labelled else None
    return labels, probabilities, dataset.ids(indices)
