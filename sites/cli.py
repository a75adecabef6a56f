"""`fedpp-site`: what a hospital does with its keys, its data and its trainer.

Exit status 0: done; 1: failed, with one line on stderr; 2: wrong usage. Results go to stdout, notes to stderr.
TensorFlow and Flower are imported by the commands that use them.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedpp.command import load_tensorflow, natural, positive, rate, run_command
from fedpp.config import DTYPES, LAYOUTS, SPLITS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    return run_command(_parser(), arguments)


def keygen(options: argparse.Namespace) -> int:
    """Draw a new domain secret, seal it, and write evaluation key and card beside it."""
    from fedpp.keys import store
    from fedpp.keys.domain import KeyDomain

    domain = KeyDomain.generate(n=options.n)
    store.create(options.out, domain, store.read_passphrase(options.passphrase_file))
    print(f"key domain {domain.card().fingerprint}")
    print(f"  {options.out / store.SECRET_KEY}  for the secret zone only")
    print(f"  {options.out / store.EVALUATION_KEY}  for the trainer: it reads this domain's ciphertexts")
    print(f"  {options.out / store.CARD}  public")
    return 0


def card(options: argparse.Namespace) -> int:
    """Print a domain's public card."""
    from fedpp.cipher.params import DomainCard
    from fedpp.keys.store import CARD

    print(DomainCard.load(options.domain / CARD).to_json(), end="")
    return 0


def ingest(options: argparse.Namespace) -> int:
    """Read raw sequences, split them by patient, and write them encrypted."""
    from fedpp import ingest as pipeline
    from fedpp.cipher.dataset import require_new
    from fedpp.imaging.labels import ClassMap
    from fedpp.imaging.layout import Choices, read_sequences
    from fedpp.imaging.visits import by_visit, of_length
    from fedpp.keys import encryption

    require_new(options.out)
    domain = _domain(options)
    choices = Choices(options.target, options.uncertain, options.views, options.series)
    sequences, recognised = read_sequences(options.raw, options.layout, choices)
    if options.predict == "visit":
        sequences = by_visit(
            sequences, window=options.window or options.frames, stride=options.stride, least=options.min_length
        )
    else:
        sequences = of_length(sequences, least=options.min_length, most=options.window)
    classes = ClassMap.choose(sequences, classes=options.classes, negative=options.negative)
    summary = pipeline.ingest(
        sequences,
        options.out,
        card=domain.card(),
        pseudonym=domain.pseudonym,
        encrypt_frames=lambda values: encryption.encrypt_values(domain, values, options.dtype),
        encrypt_labels=lambda labels, k: encryption.encrypt_labels(domain, labels, k, options.dtype),
        class_map=classes,
        frames=options.frames,
        height=options.size,
        width=options.size,
        seed=options.seed,
        validation=options.validation,
        test=options.test,
        dtype=options.dtype,
        progress=True,
    )
    print(recognised, file=sys.stderr)
    if classes.classes and options.classes is None and options.negative is None:
        print(
            f"the negative class is {classes.classes[0]!r}, the first by name: --negative or --classes choose another",
            file=sys.stderr,
        )
    _print(options, summary.to_mapping())
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Print what is public about an encrypted dataset, and check every byte of it."""
    from fedpp.cipher.dataset import EncryptedDataset

    dataset = EncryptedDataset.open(options.dataset)
    dataset.verify()
    manifest = dataset.manifest
    _print(
        options,
        {
            "domain": manifest.domain,
            "epoch": manifest.epoch,
            "scheme": manifest.scheme,
            "n": manifest.n,
            "dtype": manifest.dtype,
            "shape": [manifest.frames, manifest.height, manifest.width, manifest.channels],
            "classes": list(manifest.classes),
            "sequences": {split: len(dataset.indices(split)) for split in SPLITS},
            "patients": {split: len({s.patient for s in manifest.sequences if s.split == split}) for split in SPLITS},
            "checksums": "intact",
        },
    )
    return 0


def train(options: argparse.Namespace) -> int:
    """Train on this site's ciphertext alone, with Keras's progress bar; write an encrypted model."""
    from fedpp.cipher.dataset import EncryptedDataset
    from fedpp.cipher.evaluation_key import EvaluationKey
    from fedpp.config import NetworkSpec
    from fedpp.errors import DatasetError, ModelError
    from fedpp.keys.store import EVALUATION_KEY
    from fedpp.learning.initial import encrypted_initial_weights
    from fedpp.learning.model_file import EncryptedModel

    target = options.out / "model.npz"
    if target.exists():
        raise ModelError(f"{target} is there already: choose another --out, models are not overwritten")
    key = EvaluationKey.load(options.domain / EVALUATION_KEY)
    dataset = EncryptedDataset.open(options.dataset)
    manifest = dataset.manifest
    if not manifest.classes:
        raise DatasetError(f"{options.dataset} has no labels to train on: ingest it with labels")
    dataset.require_domain(key.domain)
    options.out.mkdir(parents=True, exist_ok=True)  # before hours of training, not after
    dtype = options.dtype or manifest.dtype
    network = NetworkSpec(manifest.frames, manifest.height, manifest.width, manifest.channels, len(manifest.classes))

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
    _print(options, {"model": str(target), "epochs": options.epochs, "loss_with_decoys": losses})
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Score a model on a split: predict on ciphertext, decrypt in the secret zone."""
    from fedpp.learning.metrics import count, metrics

    labels, probabilities, _ = _predictions(options, labelled=True)
    _print(
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


def vault(options: argparse.Namespace) -> int:
    """Serve the vault on a Unix socket until SIGTERM or Ctrl-C."""
    from fedpp.cipher.dataset import EncryptedDataset

    from .vault import serve

    domain, dataset = _domain(options), EncryptedDataset.open(options.dataset)
    serve(
        domain,
        dataset,
        options.address,
        ready=lambda: print(f"vault ready at {options.address}", flush=True),
    )
    return 0


def identity(options: argparse.Namespace) -> int:
    """Make the key pair by which SuperLink knows this site's node."""
    from .supernode import create_identity

    public = create_identity(options.out)
    print(f"give {public} to the coordinator for `python -m coordinator enrol`")
    return 0


def join(options: argparse.Namespace) -> int:
    """Run this site's SuperNode until SIGTERM or Ctrl-C."""
    from fedpp.config import SiteConfig

    from .supernode import join as run

    site = SiteConfig(options.name, options.dataset.resolve(), options.evaluation_key.resolve(), options.vault)
    return run(options.superlink, options.ca, options.identity, site)


def _domain(options: argparse.Namespace) -> Any:
    from fedpp.keys import store

    return store.open_domain(options.domain, store.read_passphrase(options.passphrase_file))


def _predictions(options: argparse.Namespace, *, labelled: bool) -> tuple[Any, Any, list[str]]:
    """Return true classes `[k]`, probabilities `[k, classes]` and the sequences' pseudonyms."""
    from fedpp.cipher.dataset import EncryptedDataset
    from fedpp.errors import DatasetError
    from fedpp.keys import encryption
    from fedpp.learning.metrics import softmax
    from fedpp.learning.model_file import EncryptedModel

    domain = _domain(options)
    model, dataset = EncryptedModel.load(options.model), EncryptedDataset.open(options.dataset)
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
    return labels, probabilities, [dataset.manifest.sequences[i].id for i in indices]


def _print(options: argparse.Namespace, values: dict[str, Any]) -> None:
    if options.json:
        print(json.dumps(values))
        return
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedpp-site", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int], *, json_output: bool = True) -> argparse.ArgumentParser:
        summary = (run.__doc__ or "").split("\n")[0]
        added = commands.add_parser(run.__name__, help=summary, description=summary)
        added.set_defaults(run=run, json=False)
        if json_output:
            added.add_argument("--json", action="store_true", help="print one JSON value")
        return added

    def domain(to: argparse.ArgumentParser, *, passphrase: bool = True) -> None:
        to.add_argument("--domain", type=Path, required=True, help="domain folder that keygen made")
        if passphrase:
            to.add_argument("--passphrase-file", type=Path, required=True, help="mode 0600, first line counts")

    keys = command(keygen, json_output=False)
    keys.add_argument("--out", type=Path, required=True, help="new domain folder")
    keys.add_argument("--passphrase-file", type=Path, required=True, help="mode 0600, first line counts")
    keys.add_argument("-n", type=int, default=2, help="slots of a ciphertext row (default 2, the fast one)")

    shown = command(card, json_output=False)
    shown.add_argument("domain", type=Path, help="domain folder")

    taken = command(ingest)
    taken.add_argument("raw", type=Path, help="folder of images in one of the layouts, or a DICOM file")
    taken.add_argument("--layout", choices=LAYOUTS, default="auto", help="what is recognised is told (default auto)")
    taken.add_argument("--target", default="Pleural Effusion", help="CheXpert: finding (default Pleural Effusion)")
    taken.add_argument("--uncertain", choices=("ones", "zeros", "ignore"), default="ignore", help="CheXpert: label -1")
    taken.add_argument("--views", choices=("frontal", "first", "all"), default="frontal", help="CheXpert: of a study")
    taken.add_argument("--series", choices=("magnification", "slide"), default="magnification", help="BreakHis")
    taken.add_argument("--predict", choices=("sequence", "visit"), default="sequence", help="what a label is for")
    taken.add_argument(
        "--window", type=positive, help="most visits of a sequence, its newest (visit: default --frames)"
    )
    taken.add_argument("--stride", type=positive, default=1, help="visit: every so many labelled visits (default 1)")
    taken.add_argument("--min-length", type=positive, default=1, help="fewest visits of a sequence (default 1)")
    domain(taken)
    taken.add_argument("--out", type=Path, required=True, help="new folder for the encrypted dataset")
    taken.add_argument("--frames", type=positive, default=4, help="frames of a sequence, chosen evenly (default 4)")
    taken.add_argument("--size", type=positive, default=64, help="height and width in pixels (default 64)")
    taken.add_argument("--classes", type=lambda text: tuple(text.split(",")), help="labels in order, first is negative")
    taken.add_argument("--negative", help="this label against all the rest")
    taken.add_argument("--validation", type=float, default=0.15, help="share of the patients (default 0.15)")
    taken.add_argument("--test", type=float, default=0.25, help="share of the patients (default 0.25)")
    taken.add_argument("--seed", type=natural, default=0, help="of the split (default 0)")
    taken.add_argument("--dtype", choices=DTYPES, default="float32")

    command(inspect).add_argument("dataset", type=Path)

    trained = command(train)
    trained.add_argument("dataset", type=Path)
    domain(trained, passphrase=False)
    trained.add_argument("--epochs", type=positive, default=10)
    trained.add_argument("--batch-size", type=positive, default=8)
    trained.add_argument("--learning-rate", type=rate, default=1e-3)
    trained.add_argument("--seed", type=natural, default=0, help="of initial weights and batches")
    trained.add_argument("--out", type=Path, required=True, help="folder for model.npz")
    trained.add_argument("--dtype", choices=DTYPES, help="default: the dataset's")

    for scored in (command(evaluate), command(predict)):
        scored.add_argument("model", type=Path, help="model.npz")
        scored.add_argument("dataset", type=Path)
        domain(scored)
        scored.add_argument("--split", choices=SPLITS, default="test")

    served = command(vault, json_output=False)
    domain(served)
    served.add_argument("--dataset", type=Path, required=True)
    served.add_argument("--address", required=True, help="unix:/path/to/vault.sock")

    made = command(identity, json_output=False)
    made.add_argument("--out", type=Path, required=True, help="new folder for the node's key pair")

    joined = command(join, json_output=False)
    joined.add_argument("--name", required=True, help="the site's public name in reports")
    joined.add_argument("--superlink", required=True, help="HOST:PORT of the coordinator")
    joined.add_argument("--ca", type=Path, required=True, help="the coordinator's CA certificate")
    joined.add_argument("--identity", type=Path, required=True, help="folder that `identity` made")
    joined.add_argument("--dataset", type=Path, required=True)
    joined.add_argument("--evaluation-key", type=Path, required=True)
    joined.add_argument("--vault", required=True, help="unix:/path/to/vault.sock")
    return parser


if __name__ == "__main__":
    sys.exit(main())
