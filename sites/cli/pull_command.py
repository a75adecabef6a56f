"""`fedpp-site pull`: unseal the model of a finished run in the secret zone of a member."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from fedpp.cli import load_tensorflow, note, path
from fedpp.errors import ConfigError, DomainMismatchError, ModelError
from fedpp.texts import printable

from .opening import PassphraseSource, add_domain, open_domain, require_new

if TYPE_CHECKING:
    from fedpp.aggregation.global_state import GlobalState
    from fedpp.keys.key_domain import KeyDomain
    from fedpp.learning.model_file import EncryptedModel
    from fedpp.protocol.certified_model import CertifiedModel

CIPHERTEXT, PLAIN = ".npz", ".keras"
WHICH = "name the coordinator's model.sealed, or with --identity the number of a run in clear"
IN_CLEAR = "of a run in clear: the coordinator made it, and nobody certified it"


def add_pull_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `pull`."""
    add_domain(to)
    to.add_argument(
        "run",
        metavar="RUN",
        type=path,
        help="file model.sealed, a local model.npz, or with --identity the number of a run in clear",
    )
    to.add_argument(
        "--identity", type=path, help="identity folder of the joined site, whose node kept the model of a run in clear"
    )
    to.add_argument("--partial", action="store_true", help="take the state of a masked run that has not ended")
    to.add_argument("--in-clear", action="store_true", help="take the model of a run in clear, which nobody certified")
    to.add_argument("--out", type=path, required=True, help="new file: model.npz (ciphertext) or model.keras (plain)")


def pull(
    *,
    run: Path,
    identity: Path | None,
    domain: Path,
    partial: bool,
    in_clear: bool,
    out: Path,
    passphrase: PassphraseSource,
) -> int:
    """Unseal the model of a finished run: as ciphertext (--out model.npz), or for plain images (--out model.keras)."""
    from fedpp.files import create_exclusively

    if out.suffix not in {CIPHERTEXT, PLAIN}:
        raise ConfigError(f"--out names model.npz, of ciphertext, or model.keras, for plain images; got {out}")
    require_new(out)
    source = source_of(run, identity)
    key = open_domain(domain, passphrase)
    if is_local(source):
        return _convert(source, key, out)
    found = opened(source, key, partial=partial, in_clear=in_clear)
    state = found.state
    if out.suffix == CIPHERTEXT:
        create_exclusively(out, state.model().content())
    else:
        create_exclusively(out, plain_model(state, key))
        note("this file holds the model in clear, readable for whoever gets it")
    print(printable(f"{out}  round {state.round}, classes {', '.join(state.classes)}"))
    print(printable(found.origin))
    return 0


def is_local(file: Path) -> bool:
    """Tell whether a file is a site's own `model.npz`, as `train` or `pull` writes it."""
    return file.is_file() and is_zipfile(file)


def _convert(file: Path, domain: "KeyDomain", out: Path) -> int:
    """Write a site's own model for plain images; raise `ModelError` for another model."""
    from fedpp.files import create_exclusively
    from fedpp.learning.model_file import EncryptedModel

    if out.suffix == CIPHERTEXT:
        raise ModelError(f"{file} is a model.npz already: name --out model.keras, for plain images")
    model = EncryptedModel.load(file)
    _require_domain(model.domain, domain)
    create_exclusively(out, plain_model(model, domain))
    note("this file holds the model in clear, readable for whoever gets it")
    print(printable(f"{out}  of {file}, classes {', '.join(model.classes)}"))
    return 0


@dataclass(frozen=True)
class PulledModel:
    """A state, and a line that says who vouches for it."""

    state: "GlobalState"
    origin: str


def source_of(named: Path, identity: Path | None) -> Path:
    """Return the model file of a run, named by its path or by its number among those that this site's node kept."""
    if identity is None:
        if named.name.isdecimal() and not named.exists():
            raise ModelError(
                f"there is no file {named}: if it is a run's number, name the node that kept its model (--identity)"
            )
        return named
    kept = identity / "models" / f"{named}.state"
    if not kept.is_file():
        there = ", ".join(sorted(file.stem for file in kept.parent.glob("*.state")))
        kept_now = f"it has {there}" if there else "it keeps those of runs in clear"
        raise ModelError(
            f"this site's node kept no model of run {named}: {kept_now}; "
            "of another, name the coordinator's model.sealed, without --identity"
        )
    return kept


def opened(file: Path, domain: "KeyDomain", *, partial: bool = False, in_clear: bool = False) -> PulledModel:
    """Return the model in a file: certified by the members of a masked run, or of a run in clear.

    Raises `ModelError` or `MaskError`, and `FederationError` for a certificate that is not the members'. The state of a
    run that had not ended needs `partial`, one in clear `in_clear`; one that is sealed alone is refused.
    """
    from fedpp.aggregation.global_state import GlobalState
    from fedpp.keys.sealed_state import is_sealed
    from fedpp.protocol.certified_model import CertifiedModel, is_certified

    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model {file}: {error.strerror}: {WHICH}") from None
    if is_certified(content):
        return certified_state(CertifiedModel.from_bytes(content), domain, partial=partial)
    if is_sealed(content):
        raise ModelError(
            f"{file} holds a model that a member sealed, of weights that it may have chosen, and nobody certified: "
            "take the model.sealed of a run that its members certified"
        )
    try:
        state = GlobalState.from_bytes(content)
    except ModelError:
        raise ModelError(f"{file} is no model of a run, or is damaged: {WHICH}") from None
    _require_domain(state.domain, domain)
    if not in_clear:
        raise ModelError(
            f"{file} holds a model that nobody sealed or certified: whoever gave it chose its weights; if it is of a "
            "run in clear, --in-clear takes it"
        )
    return PulledModel(state, IN_CLEAR)


def certified_state(model: "CertifiedModel", domain: "KeyDomain", *, partial: bool) -> PulledModel:
    """Return the state of a masked run's model; raise a `FedppError` unless its members certified it.

    Unless `partial`, it must be the state that the run ended with, so that no later one supersedes it.
    """
    from fedpp.keys.sealed_stage import SealedStage

    from ..vault.masked_runs.run_site import digest_key

    _require_domain(model.contract.spec.domain, domain)
    model.require(domain.card().ca_key)
    stage = SealedStage.unseal(domain.state_sealer(), [model.sealed]).stage
    if stage.digest(digest_key(domain)) != model.certificate.state:
        raise ModelError("the sealed state is not the one that the run's members certified: fetch the model again")
    if stage.due != "end" and not partial:
        raise ModelError(
            f"this is the state after round {stage.number} of a run that had not ended: a later one may supersede it; "
            "wait for the run's end, or take it with --partial"
        )
    ended = "the end" if stage.due == "end" else f"round {stage.number}, before the end"
    signers = ", ".join(model.certificate.signers)
    trusted = (
        f"{len(model.certificate.signers)} of {model.contract.n} sites, of which {model.contract.colluders} may collude"
    )
    return PulledModel(stage.state, f"run {model.certificate.run[:16]}, {ended}, certified by {signers}: {trusted}")


def _require_domain(of: str, domain: "KeyDomain") -> None:
    own = domain.card().fingerprint
    if of != own:
        raise DomainMismatchError(
            f"the model belongs to domain {of[:16]}, the key to {own[:16]}: take the key folder of its epoch"
        )


def plain_model(state: "GlobalState | EncryptedModel", domain: "KeyDomain") -> bytes:
    """Return a `.keras` file of stock layers, which maps plain images to logits.

    In the frame form the first convolution takes mixed patches: its kernel is multiplied by the mixing matrix, so that
    it takes plain ones. Raises `ModelError` for mixed rows, which no convolution of plain images equals.
    """
    import tempfile

    load_tensorflow()
    import keras

    from fedpp.keys import encryption
    from fedpp.learning import models

    network = state.network
    if domain.scheme == "more-frame" and not network.task.patch:
        raise ModelError("a network of mixed rows takes no plain images: ingest patches (--patch 2) and train again")
    weights: list[Any] = [encryption.decrypt(domain, state.rows[spec.name]) for spec in network.weights()]
    if network.task.patch:
        mixing = domain.frame_key("patches", network.task.patch**2 * network.task.channels)
        weights[0] = mixing @ weights[0]
    accumulating = models.plaintext(network, state.dtype)
    accumulating.set_weights([weight.astype(state.dtype) for weight in weights])
    model = keras.Model(accumulating.inputs, accumulating.outputs, name="fedpp")
    with tempfile.TemporaryDirectory(prefix="fedpp-") as folder:
        file = Path(folder) / "model.keras"
        model.save(file)
        return file.read_bytes()
