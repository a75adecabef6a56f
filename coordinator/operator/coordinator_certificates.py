"""Certificates of the coordinator: its own certificate authority (CA), and the TLS certificate of its SuperLink.

Sites get the CA's certificate and trust nothing else. Both private keys stay in the coordinator's state folder, mode
0600. The address for sites can have a certificate of the hospital group instead.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from fedpp.errors import KeyFileError
from fedpp.files import create_exclusively, replace
from fedpp.protocol.coordinator_identity import CoordinatorNames, canonical_host
from fedpp.tls import authority, general_name, issued, private_pem

LOOPBACK = ("localhost", "127.0.0.1")
AUTHORITY_VALIDITY = timedelta(days=3650)
SERVER_VALIDITY = timedelta(days=825)
RENEWAL = timedelta(days=30)  # before its end, a server certificate is renewed


@dataclass(frozen=True)
class Certificates:
    """Files of a CA and its server certificate, in one folder."""

    folder: Path

    @property
    def ca(self) -> Path:
        """Return the CA's certificate: the file for the sites."""
        return self.folder / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """Return the CA's private key."""
        return self.folder / "ca.key"

    @property
    def server(self) -> Path:
        """Return the server's certificate."""
        return self.folder / "server.pem"

    @property
    def server_key(self) -> Path:
        """Return the server's private key."""
        return self.folder / "server.key"


@dataclass(frozen=True)
class Given:
    """Server certificate of another CA, with its chain, and its private key: two PEM files."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raise `KeyFileError` if a server could not use it today."""
        try:
            leaf = x509.load_pem_x509_certificates(self.certificate.read_bytes())[0]
        except (OSError, ValueError) as error:
            raise KeyFileError(
                f"cannot read a certificate from {self.certificate}: {_reason(error)}: name a PEM file of its chain"
            ) from None
        try:
            key = serialization.load_pem_private_key(self.key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
            raise KeyFileError(
                f"cannot read a private key from {self.key}: {_reason(error)}: name its PEM file, without a password"
            ) from None
        if key.public_key() != leaf.public_key():
            raise KeyFileError(f"the private key {self.key} is not that of {self.certificate}: its first certificate")
        start, end, now = leaf.not_valid_before_utc, leaf.not_valid_after_utc, datetime.now(UTC)
        if not start <= now <= end:
            raise KeyFileError(
                f"the certificate {self.certificate} is valid from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, "
                f"and it is {now:%Y-%m-%d %H:%M}: renew it, or set the clock"
            )


def names_of(files: Certificates, given: Given | None) -> CoordinatorNames:
    """Return by what sites may know this coordinator: the names of its certificate, and each CA of its chain."""
    chain = x509.load_pem_x509_certificates((given.certificate if given else files.server).read_bytes())
    held = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = {canonical_host(str(name.value)) for name in held if isinstance(name, x509.DNSName | x509.IPAddress)}
    authorities = [*(chain if given else []), *x509.load_pem_x509_certificates(files.ca.read_bytes())]
    fingerprints = dict.fromkeys(authority.fingerprint(SHA256()).hex() for authority in authorities)
    return CoordinatorNames(tuple(fingerprints), tuple(sorted({*hosts, *LOOPBACK})))


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error).partition("\n")[0]


def ensure(folder: Path, names: Iterable[str]) -> Certificates:
    """Return the certificates in `folder`, created or renewed if they do not have these host names yet.

    Raises `ConfigError` for an invalid host name, `KeyFileError` for damaged files.
    """
    files = Certificates(folder)
    wanted = {general_name(name) for name in (*LOOPBACK, *names)}
    if not folder.exists():
        _create(folder)
    try:
        held, due = _held(files.server)
        if due or not wanted <= held:
            _issue(files, wanted | held)
    except (OSError, ValueError, TypeError) as error:
        raise KeyFileError(
            f"cannot read the certificates in {folder} ({error}): restore them, or use a new state folder"
        ) from None
    return files


def _create(folder: Path) -> None:
    """Write a new CA and a server key under a temporary name, and rename the folder."""
    temporary = Certificates(folder.with_name(f".{folder.name}.tmp"))
    shutil.rmtree(temporary.folder, ignore_errors=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = authority("fedpp coordinator authority", key, AUTHORITY_VALIDITY)
    create_exclusively(temporary.ca_key, private_pem(key))
    create_exclusively(temporary.server_key, private_pem(ec.generate_private_key(ec.SECP256R1())))
    replace(temporary.ca, certificate.public_bytes(serialization.Encoding.PEM))
    temporary.folder.rename(folder)


def _issue(files: Certificates, names: set[x509.GeneralName]) -> None:
    """Sign a certificate for the server's key and these names."""
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    signer = serialization.load_pem_private_key(files.ca_key.read_bytes(), password=None)
    key = serialization.load_pem_private_key(files.server_key.read_bytes(), password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not the private keys that were made here")
    certificate = issued("fedpp SuperLink", key.public_key(), ca, signer, SERVER_VALIDITY, names)
    replace(files.server, certificate.public_bytes(serialization.Encoding.PEM))


def _held(path: Path) -> tuple[set[x509.GeneralName], bool]:
    """Return the names in a server certificate, and whether it is missing or ends soon."""
    if not path.exists():
        return set(), True
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names), certificate.not_valid_after_utc - datetime.now(UTC) < RENEWAL
