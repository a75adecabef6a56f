"""Node identity of a site: the key pair by which SuperLink recognizes its node."""

import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedpp.errors import ConfigError, FederationError, KeyFileError
from fedpp.files import create_exclusively
from fedpp.flower.node_record import NodeRecord
from fedpp.protocol.coordinator_identity import CoordinatorIdentity

PRIVATE_KEY = "node.key"
PUBLIC_KEY = "node.pub"
REFUSED = "refused"  # folder of the bundles that wait for a review
SUPERNODE_LOG = "supernode.log"  # Flower's messages since `join` started; the previous log has the suffix .1


def create_identity(folder: Path) -> Path:
    """Make the node's key pair, ECDSA P-384 in SSH formats; return the public key's path.

    Raises `FileExistsError` where a key is there already: a site that loses its key must be enrolled again.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    try:
        create_exclusively(folder / PRIVATE_KEY, private)
    except FileExistsError:
        raise FileExistsError(
            f"{folder / PRIVATE_KEY} is there already: choose another --out, keys are not overwritten"
        ) from None
    (folder / PUBLIC_KEY).write_bytes(public + b"\n")
    return folder / PUBLIC_KEY


def require_coordinator(folder: Path, coordinator: CoordinatorIdentity) -> None:
    """Raise `FederationError` if the identity was used with another coordinator.

    A statement, state or reply that was made for one must not serve another.
    """
    record = NodeRecord.load(folder)
    if record is not None and record.coordinator not in {"", coordinator.to_json()}:
        before = CoordinatorIdentity.from_json(record.coordinator)
        raise FederationError(
            f"{folder} was used with the coordinator {before}, not with {coordinator}: make another identity for this "
            "one with `fedpp-site identity`, and have it enrolled"
        )


def require_key(folder: Path) -> None:
    """Raise `ConfigError` if there is no private key, `KeyFileError` if it is another's to read, or of another kind."""
    path = folder / PRIVATE_KEY
    try:
        content, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}: make it with `fedpp-site identity --out {folder}`") from None
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}; it must be this user's own") from None
    if mode & 0o077:
        raise KeyFileError(f"{path} is open to others, mode {mode:04o}: run `chmod 600 {path}`")
    try:
        key = serialization.load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise KeyFileError(
            f"{path} is no unencrypted ECDSA P-384 key in SSH format: restore it, or make another identity and enrol it"
        )
