"""The keys of one site in one epoch of one domain, as a folder that is written once and never changed.

::

    secret/domain.key    the domain secret, sealed under a passphrase             secret zone
    secret/site.key      the site's own identity, sealed                          secret zone
    secret/issuer.key    the certifying key, sealed: only who founded the epoch   secret zone, best kept apart
    trainer/domain.eval  the evaluation key, in clear; none with `more-frame`     the trainer
    trainer/domain.rest  the at-rest key, in clear                                the trainer
    domain.card          what may be known of the domain                          everybody
    site.certificate     the site's membership                                    everybody
    members/*.recipient  the other members, at the issuer                         everybody

A new hospital begins with `secret/site.key` and `site.recipient` alone, in a folder of their own.
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

DOMAIN_FORMAT, SITE_FORMAT, CA_FORMAT = "fedpp-domain-key-2", "fedpp-site-key-1", "fedpp-issuer-key-1"

SECRET_KEY = Path("secret/domain.key")
SITE_KEY = Path("secret/site.key")
CA_KEY = Path("secret/issuer.key")
EVALUATION_KEY = Path("trainer/domain.eval")
AT_REST_KEY = Path("trainer/domain.rest")
CARD = Path("domain.card")
CERTIFICATE = Path("site.certificate")
RECIPIENT = Path("site.recipient")
MEMBERS = Path("members")
PUBLIC = 0o644


@dataclass(frozen=True)
class Site:
    """A site as a member of a domain: what its secret zone holds."""

    domain: KeyDomain
    identity: SiteIdentity
    certificate: Certificate

    def require_certified(self) -> None:
        """Raise `FederationError` unless the certificate is the domain's, for this identity."""
        card, member = self.domain.card(), self.certificate.member
        self.certificate.require(card.certifying_key, card.fingerprint)
        if member != self.identity.member_of(card.fingerprint):
            raise FederationError(
                f"the certificate of {member.site} is not for the keys of {self.identity.name}: accept again"
            )


def found(folder: Path, domain: KeyDomain, domain_ca: DomainCA, founder: SiteIdentity, passphrase: Passphrase) -> Site:
    """Write the folder of the site that makes an epoch; raise `KeyFileError` if any of it is there already."""
    site = Site(domain, founder, domain_ca.certify(founder.recipient(), domain.card()))
    sealed = passphrase.close(CA_FORMAT, {"domain": domain.card().fingerprint}, domain_ca.seed_bytes())
    _write(folder, {CA_KEY: sealed}, site, passphrase)
    return site


def join(folder: Path, site: Site, passphrase: Passphrase) -> None:
    """Write the folder of a member; raise `KeyFileError` if anything of it is there, and then leave all as it was."""
    _write(folder, {}, site, passphrase)


def create_identity(folder: Path, identity: SiteIdentity, passphrase: Passphrase) -> None:
    """Write a new site's identity and its public half; raise `KeyFileError` if one is there."""
    _create(folder, {SITE_KEY: _site_key(identity, passphrase), RECIPIENT: identity.recipient().to_json().encode()})


def add_member(folder: Path, recipient: MembershipRequest, certificate: Certificate) -> None:
    """Note a member in the issuer's folder, with its certificate; one that is there already stays."""
    path = folder / MEMBERS / f"{recipient.fingerprint[:16]}.recipient"
    make_folder(path.parent, 0o755)
    for file, text in ((path.with_suffix(".certificate"), certificate.to_json()), (path, recipient.to_json())):
        if not file.exists():
            create_exclusively(file, text.encode())
            file.chmod(PUBLIC)


def members(folder: Path) -> list[MembershipRequest]:
    """Return the members that the issuer certified, by name; raise `KeyFileError` for one that it did not."""
    found = sorted(
        map(MembershipRequest.load, (folder / MEMBERS).glob("*.recipient")), key=lambda r: (r.site, r.fingerprint)
    )
    card = DomainCard.load(folder / CARD)
    for recipient in found:
        path = folder / MEMBERS / f"{recipient.fingerprint[:16]}.certificate"
        try:
            certificate = Certificate.from_json(_read(path, "certificate of a member").decode())
            certificate.require(card.certifying_key, card.fingerprint)
            certified = certificate.member == recipient.member_of(card.fingerprint)
        except (FederationError, UnicodeDecodeError):
            certified = False
        if not certified:
            raise KeyFileError(f"{path} is no certificate of {recipient.site} by this domain: somebody put it there")
    return found


def open_domain(folder: Path, passphrase: Passphrase) -> KeyDomain:
    """Open the sealed secret of a domain folder; raise `KeyFileError` if that cannot be."""
    return unseal(_read(folder / SECRET_KEY, "domain key"), passphrase, str(folder / SECRET_KEY))


def open_identity(folder: Path, passphrase: Passphrase) -> SiteIdentity:
    """Open a site's identity."""
    path = folder / SITE_KEY
    facts, seed = passphrase.open(SITE_FORMAT, _read(path, "site's identity"), str(path))
    return SiteIdentity(facts["site"], seed)


def open_domain_ca(folder: Path, passphrase: Passphrase) -> DomainCA:
    """Open the certifying key, which only the folder that founded the epoch has."""
    path = folder / CA_KEY
    if not path.exists():
        raise KeyFileError(f"there is no {path}: members are admitted, and epochs made, by who founded this one")
    return DomainCA(passphrase.open(CA_FORMAT, _read(path, "certifying key"), str(path))[1])


def open_site(folder: Path, passphrase: Passphrase) -> Site:
    """Open all that the vault of a member needs; raise `KeyFileError` where its parts do not fit."""
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
    return passphrase.close(DOMAIN_FORMAT, {"card": asdict(domain.card())}, domain.secret_bytes())


def unseal(content: bytes, passphrase: Passphrase, name: str) -> KeyDomain:
    """Open the content of a domain's key file; `name` is for the message."""
    facts, secret = passphrase.open(DOMAIN_FORMAT, content, name)
    try:
        return KeyDomain.from_secret_bytes(secret, DomainCard(**facts["card"]))
    except (TypeError, KeyError, FedppError):
        raise KeyFileError(f"{name} is damaged: not a {DOMAIN_FORMAT} file") from None


def _site_key(identity: SiteIdentity, passphrase: Passphrase) -> bytes:
    return passphrase.close(SITE_FORMAT, {"site": identity.name}, identity.seed_bytes())


def _write(folder: Path, more: dict[Path, bytes], site: Site, passphrase: Passphrase) -> None:
    domain = site.domain
    contents = {
        SECRET_KEY: seal(domain, passphrase),
        SITE_KEY: _site_key(site.identity, passphrase),
        **more,
        AT_REST_KEY: domain.at_rest_key().content(),
        CARD: domain.card().to_json().encode(),
        CERTIFICATE: site.certificate.to_json().encode() + b"\n",
        RECIPIENT: site.identity.recipient().to_json().encode(),
    }
    if domain.scheme == "more":
        contents[EVALUATION_KEY] = domain.evaluation_key().content()
    _create(folder, contents)


def _create(folder: Path, contents: dict[Path, bytes]) -> None:
    """Write new files: all of them, or none."""
    known = (SECRET_KEY, SITE_KEY, CA_KEY, EVALUATION_KEY, AT_REST_KEY, CARD, CERTIFICATE, RECIPIENT)
    if any((folder / name).exists() for name in known):
        raise KeyFileError(f"{folder} holds keys already: choose another folder, keys are not overwritten")
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
