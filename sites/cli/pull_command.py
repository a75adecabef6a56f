"""`fedpp-site pull`: the model of a finished run, opened in the secret zone of a member."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.cli import load_tensorflow, path

from .opening import domain_of

if TYPE_CHECKING:
    from fedpp.aggregation.global_state import GlobalState
    from fedpp.keys.key_domain import KeyDomain

CIPHERTEXT, PLAIN = ".npz", ".keras"


def pull(options: argparse.Namespace) -> int:
    """Open the model of a finished run: as ciphertext (--out model.npz), or for plain images (--out model.keras)."""
    from fedpp.errors import ConfigError
    from fedpp.files import create_exclusively

    if options.out.suffix not in {CIPHERTEXT, PLAIN}:
        raise ConfigError(f"--out names model.npz, of ciphertext, or model.keras, for plain images; got {options.out}")
    if options.out.exists():
        raise ConfigError(f"{options.out} is there already: choose another --out, nothing is overwritten")
    source = source_of(options.run_or_file, options.identity)
    domain = domain_of(options)
    state = opened(source, domain)
    if options.out.suffix == CIPHERTEXT:
        create_exclusively(options.out, state.model().content())
    else:
        create_exclusively(options.out, plain_model(state, domain))
        print("note: this file is the model in clear, for whoever gets it", file=sys.stderr)
    print(f"{options.out}  round {state.round}, classes {', '.join(state.classes)}")
    return 0


def source_of(named: Path, identity: Path | None) -> Path:
    """Return the file of a run: named by its path, or by its number among those that this site's node kept."""
    from fedpp.errors import ModelError

    if identity is None:
        if named.name.isdecimal() and not named.exists():
            raise ModelError(
                f"there is no file {named}: if it is a run's number, name the node that kept its model (--identity)"
            )
        return named
    kept = identity / "models" / f"{named}.state"
    if not kept.is_file():
        there = sorted(file.stem for file in kept.parent.glob("*.state"))
        raise ModelError(
            f"this site's node kept no model of run {named}: it has {', '.join(there) or 'none'}; "
            "or name the coordinator's model.sealed, without --identity"
        )
    return kept


def opened(file: Path, domain: "KeyDomain") -> "GlobalState":
    """Return the state in a file, sealed or, of a run without masking, in clear; raise `ModelError` or `MaskError`."""
    from fedpp.aggregation.global_state import GlobalState
    from fedpp.errors import DomainMismatchError, ModelError
    from fedpp.keys.sealed_state import is_sealed

    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read the model {file}: {error.strerror}: name the coordinator's model.sealed, or a run's number "
            "with --identity"
        ) from None
    if is_sealed(content):
        _, records = domain.state_sealer().unseal([content])
        content = b"".join(records)
    state = GlobalState.from_bytes(content)
    if state.domain != domain.card().fingerprint:
        raise DomainMismatchError(
            f"the model belongs to domain {state.domain[:16]}, the key to {domain.card().fingerprint[:16]}: "
            "take the key folder of its epoch"
        )
    return state


def plain_model(state: "GlobalState", domain: "KeyDomain") -> bytes:
    """Return a `.keras` file of stock layers, which takes plain images and answers logits.

    In the frame form the first convolution takes mixed patches: it is given the mixing matrix's share, so that it takes
    plain ones. Raises `ModelError` for mixed rows, which no convolution of plain images equals.
    """
    import tempfile

    load_tensorflow()
    import keras

    from fedpp.errors import ModelError
    from fedpp.keys import encryption
    from fedpp.learning import models

    network = state.network
    if domain.scheme == "more-frame" and not network.patch:
        raise ModelError("a network of mixed rows takes no plain images: ingest patches (--patch 2) and train again")
    weights: list[Any] = [encryption.decrypt(domain, state.rows[spec.name]) for spec in network.weights()]
    if network.patch:
        mixing = domain.frame_key("patches", network.patch**2 * network.channels)
        weights[0] = mixing @ weights[0]
    accumulating = models.plaintext(network, state.dtype)
    accumulating.set_weights([weight.astype(state.dtype) for weight in weights])
    model = keras.Model(accumulating.inputs, accumulating.outputs, name="fedpp")
    with tempfile.TemporaryDirectory(prefix="fedpp-") as folder:
        file = Path(folder) / "model.keras"
        model.save(file)
        return file.read_bytes()


def add_pull_arguments(to: argparse.ArgumentParser) -> None:
    """Add what `pull` takes beside the domain."""
    to.add_argument("run_or_file", metavar="RUN", type=path, help="number of the run, with --identity, or model.sealed")
    to.add_argument("--identity", type=path, help="the joined site's identity, whose node kept the model")
    to.add_argument("--out", type=path, required=True, help="new file: model.npz (ciphertext) or model.keras (plain)")
