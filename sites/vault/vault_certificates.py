"""Certificates for a vault and a trainer on two machines, issued by a small authority of their own.

`ca.key` certifies further trainers; no running program needs it, so keep it away from both machines. The audit log
names a caller by its certificate's common name.
"""

from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedpp.errors import ConfigError
from fedpp.files import create_exclusively
from fedpp.tls import authority, general_name, issued, private_pem

AUTHORITY_VALIDITY, HOLDER_VALIDITY = timedelta(days=3650), timedelta(days=825)
HOLDERS = {"vault": ExtendedKeyUsageOID.SERVER_AUTH, "trainer": ExtendedKeyUsageOID.CLIENT_AUTH}


def create(folder: Path, host: str) -> None:
    """Write `ca.key`, and folders `vault` and `trainer` with `ca.pem`, `cert.pem` and `key.pem`, into a new folder.

    The vault's certificate is for this host name or address. Raises `ConfigError` if anything is in the folder.
    """
    hosts = [general_name(host)]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already: choose another --out, keys are not overwritten")
    signer = ec.generate_private_key(ec.SECP256R1())
    certifying = authority("fedpp vault authority", signer, AUTHORITY_VALIDITY)
    files = {Path("ca.key"): private_pem(signer)}
    for name, purpose in HOLDERS.items():
        key = ec.generate_private_key(ec.SECP256R1())
        names = hosts if name == "vault" else []
        certificate = issued(name, key.public_key(), certifying, signer, HOLDER_VALIDITY, names, [purpose])
        files[Path(name, "ca.pem")] = _pem(certifying)
        files[Path(name, "cert.pem")] = _pem(certificate)
        files[Path(name, "key.pem")] = private_pem(key)
    for file, content in files.items():
        create_exclusively(folder / file, content)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
