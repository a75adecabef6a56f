"""X.509 certificates: what the coordinator's certificate authority and a vault's have in common."""

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedpp.errors import ConfigError

CLOCK_SKEW = timedelta(hours=1)


def authority(name: str, key: ec.EllipticCurvePrivateKey, validity: timedelta) -> x509.Certificate:
    """Return the self-signed certificate of an authority for hosts only, not for other authorities."""
    subject = _name(name)
    return (
        _builder(subject, subject, key.public_key(), validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def issued(
    name: str,
    key: ec.EllipticCurvePublicKey,
    domain_ca: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    validity: timedelta,
    hosts: Iterable[x509.GeneralName],
    purposes: Iterable[x509.ObjectIdentifier] = (),
) -> x509.Certificate:
    """Return a certificate by an authority for these hosts, and for these purposes alone, if any are named."""
    ordered = sorted(hosts, key=lambda host: str(host.value))
    issuer_id = domain_ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    unsigned = (
        _builder(_name(name), domain_ca.subject, key, validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
    )
    if ordered:
        unsigned = unsigned.add_extension(x509.SubjectAlternativeName(ordered), critical=False)
    if purposes := list(purposes):
        unsigned = unsigned.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    return unsigned.sign(signer, hashes.SHA256())


def _builder(
    subject: x509.Name, domain_ca: x509.Name, key: ec.EllipticCurvePublicKey, validity: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(domain_ca)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + validity)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def general_name(name: str) -> x509.GeneralName:
    """Return a host name or address for a certificate; raise `ConfigError` for anything else."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise ConfigError(f"--name must be a host name in ASCII or an IP address, got {name!r}") from None


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as unencrypted PEM: for a file of mode 0600 alone."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
