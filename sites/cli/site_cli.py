"""`fedpp-site`: what a hospital does with its keys, its data and its trainer.

Exit status 0: done; 1: failed, with one line on stderr; 2: wrong usage. Results go to stdout, notes to stderr.
TensorFlow and Flower are imported by the commands that use them.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedpp.cipher.domain_card import SCHEMES
from fedpp.cli import Parser, natural, path, positive, rate, run_command, share
from fedpp.config.model_spec import ARCHITECTURES, GAPS
from fedpp.config.run_config import DTYPES, LAYOUTS, SPLITS
from fedpp.texts import PrintableFormatter

from . import (
    approval_commands,
    data_commands,
    key_commands,
    model_commands,
    pull_command,
    reencrypt_command,
    train_command,
    vault_commands,
)

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[Parser]  # noqa: SLF001  it has no public name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return run_command(_parser(), arguments)


def identity(options: argparse.Namespace) -> int:
    """Make the key pair by which SuperLink knows this site's node."""
    from ..node.node_identity import create_identity

    public = create_identity(options.out)
    print(f"give {public} to the coordinator for `python -m coordinator enrol`")
    return 0


def join(options: argparse.Namespace) -> int:
    """Check what can be checked, and run this site's SuperNode until SIGTERM or Ctrl-C."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the one line of ours says what gRPC's lines would
    from ..node.doctor import site_of
    from ..node.join import join as run
    from ..node.trial_vault import TrialVault

    own = (
        None
        if options.domain is None
        else TrialVault(options.domain.resolve(), options.passphrase_file, options.passphrase_fd)
    )
    return run(options.superlink, options.ca, options.identity, site_of(options), own)


def doctor(options: argparse.Namespace) -> int:
    """Check what can be checked before `join`: keys, certificates, coordinator, clock, vault, dataset, policy."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from ..node.doctor import doctor as run

    return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="fedpp-site", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_key_commands(commands)
    _add_data_commands(commands)
    _add_model_commands(commands)
    _add_vault_commands(commands)
    _add_federation_commands(commands)
    return parser


def _add_key_commands(commands: "_Commands") -> None:
    """Add the life of a key."""
    keys = _command(commands, key_commands.keygen, json_output=False)
    keys.add_argument("--out", type=path, required=True, help="new domain folder")
    keys.add_argument("--site", default="founder", help="this site's public name in reports (default founder)")
    keys.add_argument(
        "--scheme",
        choices=SCHEMES,
        default="more",
        help="more: rows of slots; more-frame: mixed frames, plain labels, no key at the trainer (default more)",
    )
    keys.add_argument("-n", type=int, help="more: slots of a ciphertext row (default 2, the fast one)")
    _add_passphrase(keys)

    new = _command(commands, key_commands.recipient, json_output=False)
    new.add_argument("--site", required=True, help="this site's public name in reports")
    new.add_argument("--out", type=path, required=True, help="new folder for the site's identity")
    _add_passphrase(new)

    shared = _command(commands, key_commands.share, json_output=False)
    _add_domain(shared)
    shared.add_argument("--to", type=path, required=True, metavar="RECIPIENT", help="the other site's site.request")
    shared.add_argument("--words", help="what it told you by telephone (else it is asked)")
    shared.add_argument("--out", type=path, required=True, help="new file for the other site")
    _add_again(shared)

    accepted = _command(commands, key_commands.accept, json_output=False)
    accepted.add_argument("share", type=path, help="file that the domain's founder sent")
    accepted.add_argument("--identity", type=path, required=True, help="folder of recipient, or of the epoch before")
    _add_passphrase(accepted)
    accepted.add_argument("--words", help="what the founder told you by telephone (else it is asked)")
    accepted.add_argument("--out", type=path, required=True, help="new domain folder")

    for begun in (
        _command(commands, key_commands.rotate, json_output=False),
        revoked := _command(commands, key_commands.revoke, json_output=False),
    ):
        _add_domain(begun)
        begun.add_argument("--out", type=path, required=True, help="new domain folder, of the new epoch")
        _add_again(begun)
    revoked.add_argument("site", help="public name of the member that leaves")

    moved = _command(commands, reencrypt_command.reencrypt)
    moved.add_argument("what", type=path, help="encrypted dataset, model.npz or checkpoint.sealed of the old epoch")
    _add_domain(moved)
    moved.add_argument(
        "--to", type=path, required=True, metavar="DOMAIN", help="of the new epoch, under the same passphrase"
    )
    moved.add_argument("--dataset", type=path, help="of a checkpoint: its dataset, re-encrypted")
    moved.add_argument("--out", type=path, required=True, help="new folder or file")

    shown = _command(commands, key_commands.card, json_output=False)
    shown.add_argument("domain", type=path, help="domain folder")


def _add_data_commands(commands: "_Commands") -> None:
    """Add images, and datasets of them."""
    looked = _command(commands, data_commands.survey)
    _add_raw(looked)
    looked.add_argument("--out", type=path, help="page to write (HTML with thumbnails, mode 0600)")
    looked.add_argument("--overwrite", action="store_true", help="replace an earlier page")
    looked.add_argument("--strict", action="store_true", help="exit with status 1 if there is any issue")

    _add_ingest_command(commands)
    _command(commands, data_commands.inspect).add_argument("dataset", type=path)

    checked = _command(commands, data_commands.verify)
    checked.add_argument("dataset", type=path)
    checked.add_argument(
        "--domain", type=path, help="domain folder, to check the domain, and the seal of a sealed dataset"
    )


def _add_ingest_command(commands: "_Commands") -> None:
    taken = _command(commands, data_commands.ingest)
    _add_raw(taken)
    _add_domain(taken)
    taken.add_argument("--out", type=path, required=True, help="new folder for the encrypted dataset")
    taken.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read, and tell")
    taken.add_argument("--drop-unlabelled", action="store_true", help="leave out sequences without a label, and tell")
    shape = taken.add_argument_group("sequences")
    shape.add_argument("--predict", choices=("sequence", "visit"), default="sequence", help="what a label is for")
    shape.add_argument(
        "--window", type=positive, help="most visits of a sequence, its newest (visit: default --frames)"
    )
    shape.add_argument("--stride", type=positive, default=1, help="visit: every so many labelled visits (default 1)")
    shape.add_argument("--min-length", type=positive, default=1, help="fewest visits of a sequence (default 1)")
    shape.add_argument("--frames", type=positive, default=4, help="frames, chosen evenly or padded (default 4)")
    shape.add_argument("--size", type=positive, default=64, help="height and width in pixels (default 64)")
    shape.add_argument("--colour", action="store_true", help="keep red, green and blue (default: grey)")
    shape.add_argument("--gaps", choices=GAPS, default="none", help="keep the time between frames (default none)")
    shape.add_argument("--classes", type=lambda text: tuple(text.split(",")), help="labels in order, first is negative")
    shape.add_argument("--negative", help="this label against all the rest")
    shape.add_argument("--patch", type=natural, help="frame form: side of the mixed patches, 0 for rows (default 2)")
    split = taken.add_argument_group("splits, by patient")
    split.add_argument(
        "--split",
        choices=("hashed", "stratified"),
        default="hashed",
        help="hashed: a new patient never moves an old one; stratified: exact shares of each label (default hashed)",
    )
    split.add_argument("--validation", type=float, default=0.15, help="share of the patients (default 0.15)")
    split.add_argument("--test", type=float, default=0.25, help="share of the patients (default 0.25)")
    split.add_argument("--folds", type=positive, help="cross-validation: the number of parts, one of them for testing")
    split.add_argument("--fold", type=natural, default=0, help="the part for testing (default 0)")
    split.add_argument("--seed", type=natural, default=0, help="of the split (default 0)")
    taken.add_argument(
        "--at-rest",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="seal the dataset with AES-256-GCM on the disk (default; a labelled one that is not sealed gives the key)",
    )
    taken.add_argument("--dtype", choices=DTYPES, default="float32")


def _add_model_commands(commands: "_Commands") -> None:
    """Add training and what comes of it at one site."""
    trained = _command(commands, train_command.train)
    trained.add_argument("dataset", type=path)
    _add_domain(trained, sealed=False)
    trained.add_argument("--out", type=path, required=True, help="folder for model.npz, and checkpoints until then")
    trained.add_argument("--resume", action="store_true", help="go on after the last epoch that was finished")
    trained.add_argument("--epochs", type=positive, help="default 10; more may be given to --resume")
    trained.add_argument("--seed", type=natural, help="of initial weights and batches (default 0)")
    trained.add_argument("--dtype", choices=DTYPES, help="default: the dataset's")
    net = trained.add_argument_group("network")
    net.add_argument("--architecture", choices=ARCHITECTURES, help="default cnn-bi-lstm")
    net.add_argument("--voting", action="store_const", const=True, help="every frame is scored and votes")
    learned = trained.add_argument_group("learning")
    learned.add_argument("--batch-size", type=positive, help="sequences of a step (default 8)")
    learned.add_argument("--micro-batch", type=positive, help="of these in memory at a time (default 16)")
    learned.add_argument("--learning-rate", type=rate, help="of Adam (default 0.001)")
    learned.add_argument("--positive-weight", type=rate, help="of the loss of all but the first class (default 1)")
    learned.add_argument("--label-smoothing", type=float, help="Keras's (default 0)")
    stopped = trained.add_argument_group("early stopping, by the key's owner")
    stopped.add_argument("--vault", help="address of the vault that tells the validation loss, unix:/path.sock")
    stopped.add_argument("--patience", type=positive, help="epochs without a loss lower by 0.001 (default 10)")

    evaluated = _command(commands, model_commands.evaluate)
    evaluated.add_argument(
        "--sensitivity",
        type=share,
        help="set the threshold that reaches it on split validation, and tell what it is worth on --split",
    )
    for scored in (evaluated, _command(commands, model_commands.predict)):
        scored.add_argument("model", type=path, help="model.npz")
        scored.add_argument("dataset", type=path)
        _add_domain(scored)
        scored.add_argument("--split", choices=SPLITS, default="test")


def _add_vault_commands(commands: "_Commands") -> None:
    """Add the secret zone's service."""
    served = _command(commands, vault_commands.vault, json_output=False)
    _add_domain(served)
    vault_commands.add_vault_arguments(served)
    vault_commands.add_health_arguments(_command(commands, vault_commands.health, json_output=False))
    vault_commands.add_audit_log_arguments(_command(commands, vault_commands.audit_log))
    vault_commands.add_vault_tls_arguments(_command(commands, vault_commands.vault_tls, json_output=False))


def _add_federation_commands(commands: "_Commands") -> None:
    """Add what runs here of a coordinator's."""
    made = _command(commands, identity, json_output=False)
    made.add_argument("--out", type=path, required=True, help="new folder for the node's key pair")

    decided = _command(commands, approval_commands.policy, json_output=False)
    decided.add_argument("--dataset", type=path, required=True, help="the one dataset that may be used")
    decided.add_argument("--out", type=path, required=True, help="new file, site.yaml")

    read = _command(commands, approval_commands.review)
    read.add_argument("bundle", type=path, help="file BUNDLE.fab, or the hash of a refused one, with --identity")
    read.add_argument("--identity", type=path, help="the joined site's identity, which keeps refused bundles")
    read.add_argument("--out", type=path, required=True, help="new folder for the bundle's files")

    allowed = _command(commands, approval_commands.approve, json_output=False)
    allowed.add_argument("bundle", type=path, help="file BUNDLE.fab, or its hash, or the folder of a dataset")
    allowed.add_argument("--policy", type=path, required=True, help="site.yaml")
    allowed.add_argument("--remove", action="store_true", help="withdraw the approval")

    _add_join_arguments(_command(commands, join, json_output=False))
    examined = _command(commands, doctor)
    _add_join_arguments(examined)
    examined.add_argument("--deep", action="store_true", help="also read every byte of the dataset")

    pulled = _command(commands, pull_command.pull, json_output=False)
    _add_domain(pulled)
    pull_command.add_pull_arguments(pulled)


def _add_join_arguments(to: argparse.ArgumentParser) -> None:
    to.add_argument("--superlink", required=True, help="HOST:PORT of the coordinator")
    to.add_argument("--ca", type=path, required=True, help="the coordinator's CA certificate")
    to.add_argument(
        "--identity", type=path, required=True, help="folder of the node's key, which `join` makes if need be"
    )
    to.add_argument("--dataset", type=path, required=True)
    to.add_argument("--evaluation-key", type=path, help="the trainer's copy of domain.eval (with --domain: in there)")
    to.add_argument("--policy", type=path, required=True, help="site.yaml, which `policy` writes: what may run here")
    vault = to.add_mutually_exclusive_group(required=True)
    vault.add_argument("--vault", help="of the secret zone: unix:/path/to/vault.sock, or HOST:PORT,tls=FOLDER")
    vault.add_argument(
        "--domain", type=path, help="for trials: domain folder, whose vault is started beside the trainer, as this user"
    )
    _add_passphrase(to)


def _command(
    commands: "_Commands", run: Callable[[argparse.Namespace], int], *, json_output: bool = True
) -> argparse.ArgumentParser:
    """Add the command that is named as this function, and described by its first line."""
    summary = (run.__doc__ or "").split("\n")[0]
    added = commands.add_parser(run.__name__.replace("_", "-"), help=summary, description=summary)
    added.set_defaults(run=run, json=False)
    if json_output:
        added.add_argument("--json", action="store_true", help="print one JSON value")
    return added


def _add_passphrase(to: argparse.ArgumentParser) -> None:
    given = to.add_mutually_exclusive_group()
    given.add_argument("--passphrase-file", type=path, help="mode 0600, first line counts")
    given.add_argument("--passphrase-fd", type=natural, metavar="N", help="open file descriptor (else it is asked)")


def _add_domain(to: argparse.ArgumentParser, *, sealed: bool = True) -> None:
    to.add_argument("--domain", type=path, required=True, help="domain folder that keygen or accept made")
    if sealed:
        _add_passphrase(to)


def _add_again(to: argparse.ArgumentParser) -> None:
    to.add_argument("--again", action="store_true", help="even if the epoch has a successor, which was never used")


def _add_raw(to: argparse.ArgumentParser) -> None:
    to.add_argument("raw", type=path, help="folder of images in one of the layouts, or a DICOM file")
    to.add_argument("--layout", choices=LAYOUTS, default="auto", help="what is recognised is told (default auto)")
    to.add_argument(
        "--target",
        default="Pleural Effusion",
        help="CheXpert: finding, or several with commas, or competition for its five (default Pleural Effusion)",
    )
    to.add_argument("--uncertain", choices=("ones", "zeros", "ignore"), default="ignore", help="CheXpert: label -1")
    to.add_argument("--views", choices=("frontal", "first", "all"), default="frontal", help="CheXpert: of a study")
    to.add_argument("--series", choices=("magnification", "slide"), default="magnification", help="BreakHis")


if __name__ == "__main__":
    sys.exit(main())
