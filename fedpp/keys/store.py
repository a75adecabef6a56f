"""The domain secret on disk: sealed under a passphrase with scrypt and AES-256-GCM.

A key file is one line of JSON. All fields but `sealed` are authenticated as associated data, so a changed
header is refused like a changed secret. A domain folder holds `secret/domain.key` (for the secret zone),
`trainer/domain.eval` and `trainer/domain.rest` (evaluation and at-rest key, in clear, for the trainer) and
`domain.card` (for everybody). A domain of the scheme `more-frame` has no evaluation key. A key file that says nothing
of a scheme is of `more`.
"""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedpp.errors import KeyFileError
from fedpp.files import create_exclusively
from fedpp.keys.domain import KeyDomain

FORMAT = "fedpp-domain-key-1"
# RFC 7914; 2^17 x 8 needs 128 MiB and about 0.4 s, the interactive profile of OWASP's password storage page.
LOG2_COST, BLOCK_SIZE, PARALLELISM = 17, 8, 1
MIN_PASSPHRASE = 12

SECRET_KEY = Path("secret/domain.key")
EVALUATION_KEY = Path("trainer/domain.eval")
AT_REST_KEY = Path("trainer/domain.rest")
CARD = Path("domain.card")


def create(folder: Path, domain: KeyDomain, passphrase: bytes) -> None:
    """Write a new domain folder; raise `KeyFileError` if anything of it is there, and then leave all as it was."""
    if any((folder / name).exists() for name in (SECRET_KEY, EVALUATION_KEY, AT_REST_KEY, CARD)):
        raise KeyFileError(f"{folder} holds a key domain already: choose another folder, keys are not overwritten")
    writers: dict[Path, Callable[[Path], None]] = {
        SECRET_KEY: lambda path: create_exclusively(path, seal(domain, passphrase)),
        EVALUATION_KEY: lambda path: domain.evaluation_key().save(path),
        AT_REST_KEY: domain.at_rest_key().save,
        CARD: lambda path: _write_card(path, domain),
    }
    if domain.scheme == "more-frame":
        del writers[EVALUATION_KEY]
    written: list[Path] = []
    try:
        for name, write in writers.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755 if name == CARD else 0o700)
            write(path)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink()
        raise


def _write_card(path: Path, domain: KeyDomain) -> None:
    create_exclusively(path, domain.card().to_json().encode())
    path.chmod(0o644)


def open_domain(folder: Path, passphrase: bytes) -> KeyDomain:
    """Open the sealed secret of a domain folder; raise `KeyFileError` if that cannot be."""
    path = folder / SECRET_KEY
    try:
        content = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"cannot read the domain key {path}: {error.strerror}") from None
    return unseal(content, passphrase, str(path))


def seal(domain: KeyDomain, passphrase: bytes, *, log2_cost: int = LOG2_COST) -> bytes:
    """Return the key file's content."""
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    header = {
        "format": FORMAT,
        "scheme": domain.scheme,
        "n": domain.n,
        "epoch": domain.epoch,
        "scrypt": [log2_cost, BLOCK_SIZE, PARALLELISM],
        "salt": salt.hex(),
        "nonce": nonce.hex(),
    }
    associated = json.dumps(header, sort_keys=True).encode()
    key = Scrypt(salt=salt, length=32, n=2**log2_cost, r=BLOCK_SIZE, p=PARALLELISM).derive(passphrase)
    sealed = AESGCM(key).encrypt(nonce, domain.secret_bytes(), associated)
    return json.dumps({**header, "sealed": sealed.hex()}, sort_keys=True).encode() + b"\n"


def unseal(content: bytes, passphrase: bytes, name: str) -> KeyDomain:
    """Open a key file's content; `name` is for the message."""
    try:
        header = json.loads(content)
        if header["format"] != FORMAT:
            raise KeyFileError(f"{name} has format {header['format']!r}, this program reads {FORMAT}")
        sealed = bytes.fromhex(header.pop("sealed"))
        log2_cost, block_size, parallelism = header["scrypt"]
        if not (10 <= log2_cost <= 20 and block_size == BLOCK_SIZE and parallelism == PARALLELISM):
            raise KeyFileError(f"{name} asks for scrypt parameters {header['scrypt']}: damaged, or not ours")
        salt, nonce = bytes.fromhex(header["salt"]), bytes.fromhex(header["nonce"])
        key = Scrypt(salt=salt, length=32, n=2**log2_cost, r=block_size, p=parallelism).derive(passphrase)
        secret = AESGCM(key).decrypt(nonce, sealed, json.dumps(header, sort_keys=True).encode())
        return KeyDomain(secret, n=header["n"], epoch=header["epoch"], scheme=header.get("scheme", "more"))
    except InvalidTag:
        raise KeyFileError(f"{name} does not open: wrong passphrase, or the file was altered") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KeyFileError(f"{name} is damaged: not a {FORMAT} file") from None


def read_passphrase(path: Path) -> bytes:
    """Read a passphrase file's first line; raise `KeyFileError` if it is missing or too short."""
    try:
        passphrase = path.read_bytes().split(b"\n")[0].strip()
    except OSError as error:
        raise KeyFileError(f"cannot read the passphrase file {path}: {error.strerror}") from None
    if len(passphrase) < MIN_PASSPHRASE:
        raise KeyFileError(
            f"the passphrase in {path} has {len(passphrase)} bytes: use at least {MIN_PASSPHRASE}, "
            f"such as the output of `openssl rand -base64 24`"
        )
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise KeyFileError(f"the passphrase file {path} is open to others: run `chmod 600 {path}`")
    return passphrase
