"""Key store: the folder with one site's keys of one key epoch of one domain, written once and never changed.

::

    secret/domain.key    the domain secret, sealed under a passphrase          secret zone
    secret/site.key      the site's own identity, sealed                       secret zone
    secret/ca.key        the CA key, sealed; only at the founder of the epoch  secret zone, best kept apart
    trainer/domain.eval  the evaluation key, in clear; none with `more-frame`  the trainer
    trainer/domain.rest  the at-rest key, in clear                             the trainer
    domain.card          the domain's public parameters                        everybody
    site.certificate     the site's membership                                 everybody
    site.request         the site's public keys                                everybody
    members/*.request    the other members' public keys, at the domain CA      everybody

Vault and `fedpp-site lookup` add files that change: runs/, lookups.log.

A new hospital starts with a folder of `secret/site.key` and `site.request` only.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from fedpp.cipher.domain_card import DomainCard
from fedpp.errors import FederationError, FedppError, KeyFileError
from fedpp.files import create_exclusively, make_folder
from fedpp.keys.domain_ca import DomainCA
from fedpp.keys.key_domain import KeyDomain
from fedpp.keys.sealed_secret import Passphrase
from fedpp.keys.site_identity import MembershipRequest, SiteIdentity
from fedpp.protocol.membership import Certificate

DOMAIN_FORMAT, SITE_FORMAT, CA_FORMAT = "fedpp-domain-key-2", "fedpp-site-key-1", "fedpp-ca-key-1"

SECRET_KEY = Path("secret/domain.key")
SITE_KEY = Path("secret/site.key")
CA_KEY = Path("secret/ca.key")
EVALUATION_KEY = Path("trainer/domain.eval")
AT_REST_KEY = Path("trainer/domain.rest")
CARD = Path("domain.card")
CERTIFICATE = Path("site.certificate")
REQUEST = Path("site.request")
MEMBERS = Path("members")
PUBLIC = 0o644


@dataclass(frozen=True)
class Site:
    """A site as a member of a domain: the contents of its secret zone."""

    domain: KeyDomain
    identity: SiteIdentity
    certificate: Certificate

    def require_certified(self) -> None:
        """Raise `FederationError` unless the certificate is the domain's, for this identity."""
        card, member = self.domain.card(), self.certificate.member
        self.certificate.require(card.ca_key, card.fingerprint)
        if member != self.identity.member_of(card.fingerprint):
            raise FederationError(
                f"the certificate of {member.site} is not for the keys of {self.identity.name}: accept again"
            )


def found(folder: Path, domain: KeyDomain, domain_ca: DomainCA, founder: SiteIdentity, passphrase: Passphrase) -> Site:
    """Write the folder of the site that founds a key epoch; raise `KeyFileError` if any file exists already."""
    site = Site(domain, founder, domain_ca.certify(founder.request(), domain.card()))
    sealed = passphrase.seal(CA_FORMAT, {"domain": domain.card().fingerprint}, domain_ca.seed_bytes())
    _write(folder, {CA_KEY: sealed}, site, passphrase)
    return site


def join(folder: Path, site: Site, passphrase: Passphrase) -> None:
    """Write the folder of a member; raise `KeyFileError` and change nothing if any file exists already."""
    _write(folder, {}, site, passphrase)


def create_identity(folder: Path, identity: SiteIdentity, passphrase: Passphrase) -> None:
    """Write a new site's identity and membership request; raise `KeyFileError` if one exists already."""
    _create(folder, {SITE_KEY: _site_key(identity, passphrase), REQUEST: identity.request().to_json().encode()})


def add_member(folder: Path, request: MembershipRequest, certificate: Certificate) -> None:
    """Record a member in the domain CA's folder, with its certificate; one recorded before stays unchanged."""
    path = folder / MEMBERS / f"{request.fingerprint[:16]}.request"
    make_folder(path.parent, 0o755)
    for file, text in ((path.with_suffix(".certificate"), certificate.to_json()), (path, request.to_json())):
        if not file.exists():
            create_exclusively(file, text.encode())
            file.chmod(PUBLIC)


def members(folder: Path) -> list[MembershipRequest]:
    """Return the members that the domain CA certified, by name; raise `KeyFileError` for one that it did not."""
    requests = map(MembershipRequest.load, (folder / MEMBERS).glob("*.request"))
    found = sorted(requests, key=lambda request: (request.site, request.fingerprint))
    card = DomainCard.load(folder / CARD)
    for request in found:
        path = folder / MEMBERS / f"{request.fingerprint[:16]}.certificate"
        try:
            certificate = Certificate.from_json(_read(path, "certificate of a member").decode())
            certificate.require(card.ca_key, card.fingerprint)
            certified = certificate.member == request.member_of(card.fingerprint)
        except (FederationError, UnicodeDecodeError):
            certified = False
        if not certified:
            raise KeyFileError(f"{path} is not a certificate of {request.site} by this domain: remove it")
    return found


def open_domain(folder: Path, passphrase: Passphrase) -> KeyDomain:
    """Unseal the domain secret of a folder; raise `KeyFileError` if it cannot be decrypted."""
    return unseal(_read(folder / SECRET_KEY, "domain key"), passphrase, str(folder / SECRET_KEY))


def open_identity(folder: Path, passphrase: Passphrase) -> SiteIdentity:
    """Unseal a site's identity."""
    path = folder / SITE_KEY
    facts, seed = passphrase.unseal(SITE_FORMAT, _read(path, "site's identity"), str(path))
    return SiteIdentity(facts["site"], seed)


def open_domain_ca(folder: Path, passphrase: Passphrase) -> DomainCA:
    """Unseal the CA key, which only the folder that founded the key epoch has."""
    path = folder / CA_KEY
    if not path.exists():
        raise KeyFileError(
            f"there is no {path}: only the site that founded this key epoch invites members and rotates the domain"
        )
    return DomainCA(passphrase.unseal(CA_FORMAT, _read(path, "CA key"), str(path))[1])


def open_site(folder: Path, passphrase: Passphrase) -> Site:
    """Unseal all that the vault of a member needs; raise `KeyFileError` where the parts do not belong together."""
    domain, identity = open_domain(folder, passphrase), open_identity(folder, passphrase)
    try:
        text = _read(folder / CERTIFICATE, "certificate").decode()
        site = Site(domain, identity, Certificate.from_json(text[:-1] if text.endswith("\n") else ""))
        site.require_certified()
    except (FederationError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{folder / CERTIFICATE}: {error}") from None
    return site


def seal(domain: KeyDomain, passphrase: Passphrase) -> bytes:
    """Return the content of the domain's key file."""
    return passphrase.seal(DOMAIN_FORMAT, {"card": asdict(domain.card())}, domain.secret_bytes())


def unseal(content: bytes, passphrase: Passphrase, name: str) -> KeyDomain:
    """Unseal the content of a domain's key file; `name` is for the message."""
    facts, secret = passphrase.unseal(DOMAIN_FORMAT, content, name)
    try:
        return KeyDomain.from_secret_bytes(secret, DomainCard(**facts["card"]))
    except (TypeError, KeyError, FedppError):
        raise KeyFileError(f"{name} is damaged: not a {DOMAIN_FORMAT} file") from None


def _site_key(identity: SiteIdentity, passphrase: Passphrase) -> bytes:
    return passphrase.seal(SITE_FORMAT, {"site": identity.name}, identity.seed_bytes())


def _write(folder: Path, more: dict[Path, bytes], site: Site, passphrase: Passphrase) -> None:
    domain = site.domain
    contents = {
        SECRET_KEY: seal(domain, passphrase),
        SITE_KEY: _site_key(site.identity, passphrase),
        **more,
        AT_REST_KEY: domain.at_rest_key().content(),
        CARD: domain.card().to_json().encode(),
        CERTIFICATE: site.certificate.to_json().encode() + b"\n",
        REQUEST: site.identity.request().to_json().encode(),
    }
    if domain.scheme == "more":
        contents[EVALUATION_KEY] = domain.evaluation_key().content()
    _create(folder, contents)


def _create(folder: Path, contents: dict[Path, bytes]) -> None:
    """Write new files: all or none."""
    known = (SECRET_KEY, SITE_KEY, CA_KEY, EVALUATION_KEY, AT_REST_KEY, CARD, CERTIFICATE, REQUEST)
    if any((folder / name).exists() for name in known):
        raise KeyFileError(f"{folder} has keys already: choose another folder, keys are not overwritten")
    written: list[Path] = []
    try:
        for name, content in contents.items():
            path, private = folder / name, len(name.parts) > 1
            make_folder(folder, 0o755)
            make_folder(path.parent, 0o700 if private else 0o755)
            create_exclusively(path, content)
            written.append(path)
            if not private:
                path.chmod(PUBLIC)
    except BaseException:
        for path in written:
            path.unlink()
        raise


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"cannot read the {what} {path}: {error.strerror}") from None
