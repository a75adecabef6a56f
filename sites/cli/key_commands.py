"""`fedpp-site`: the life of a key. A domain is founded, shared, accepted, rotated, and a member is revoked."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from .opening import passphrase_of, require_folder

if TYPE_CHECKING:
    from fedpp.cipher.domain_card import DomainCard
    from fedpp.keys.site_identity import MembershipRequest

SHARES, SUCCESSOR = Path("shares"), Path("successor")


def keygen(options: argparse.Namespace) -> int:
    """Found a key domain: draw its secret, seal it, and write the trainer's keys and the card beside it."""
    from fedpp.keys import key_store
    from fedpp.keys.domain_ca import DomainCA
    from fedpp.keys.key_domain import KeyDomain
    from fedpp.keys.site_identity import SiteIdentity

    identity, domain_ca = SiteIdentity.generate(options.site), DomainCA.generate()
    domain = KeyDomain.found(domain_ca.public_key, n=options.n, scheme=options.scheme)
    key_store.found(options.out, domain, domain_ca, identity, passphrase_of(options, new=True))
    _tell(options.out)
    return 0


def recipient(options: argparse.Namespace) -> int:
    """Make a new site's own identity: to its public half another hospital seals the domain's secret."""
    from fedpp.keys import key_store
    from fedpp.keys.site_identity import SiteIdentity

    identity = SiteIdentity.generate(options.site)
    key_store.create_identity(options.out, identity, passphrase_of(options, new=True))
    print(f"recipient {identity.name}")
    print(f"  {options.out / key_store.SITE_KEY}  for the secret zone only")
    print(f"  {options.out / key_store.REQUEST}  send it to the domain's founder, and tell these words by telephone:")
    print(f"  {identity.request().verification_phrase}")
    return 0


def share(options: argparse.Namespace) -> int:
    """Seal the domain's secret to another hospital, after comparing its words, and certify it as a member."""
    from fedpp.files import create_exclusively
    from fedpp.keys import key_store
    from fedpp.keys.invitation import Invitation
    from fedpp.keys.site_identity import MembershipRequest

    require_folder(options.domain)
    _require_newest(options)
    to = MembershipRequest.load(options.to)
    _require_new(options.out)
    _require_own_name(options.domain, to)
    _compare(to.verification_phrase, options.words, f"{to.site} told you by telephone")
    passphrase = passphrase_of(options)
    made = Invitation.make(
        key_store.open_domain(options.domain, passphrase), key_store.open_domain_ca(options.domain, passphrase), to
    )
    key_store.add_member(options.domain, to, made.certificate)  # first: whoever has the secret can be revoked
    create_exclusively(options.out, made.to_json().encode())
    print(f"{options.out}  for {to.site} alone; tell it these words of the domain by telephone:")
    print(f"  {made.card.verification_phrase}")
    return 0


def accept(options: argparse.Namespace) -> int:
    """Open a share with this site's identity, and become a member of the domain in a folder of its own."""
    from fedpp.keys import key_store
    from fedpp.keys.invitation import Invitation

    made = Invitation.load(options.share)
    _require_earlier(options.identity, made.card)
    passphrase = passphrase_of(options)
    # What the old epoch's card says must be sealed with its secret: the file domain.card is anybody's to exchange.
    member = (options.identity / key_store.SECRET_KEY).exists()
    followed = member and made.follows(key_store.open_domain(options.identity, passphrase).card())
    if not followed or options.words is not None:
        _compare(
            made.card.verification_phrase, options.words, f"the founder of domain {made.card.id} told you by telephone"
        )
    identity = key_store.open_identity(options.identity, passphrase)
    key_store.join(options.out, key_store.Site(made.accept(identity), identity, made.certificate), passphrase)
    _tell(options.out)
    return 0


def _require_earlier(folder: Path, offered: "DomainCard") -> None:
    """Refuse a folder that is of the share's epoch already, or of a later one."""
    from fedpp.cipher.domain_card import DomainCard
    from fedpp.errors import KeyFileError
    from fedpp.keys import key_store

    if not (folder / key_store.CARD).exists():
        return
    own = DomainCard.load(folder / key_store.CARD)
    if own.id == offered.id and own.key_epoch >= offered.key_epoch:
        raise KeyFileError(
            f"{folder} is of epoch {own.key_epoch} of this domain, the share of epoch {offered.key_epoch}: "
            "nothing to accept"
        )


def rotate(options: argparse.Namespace) -> int:
    """Begin a new epoch of the domain, with a secret drawn afresh, and make a share of it for every member."""
    return _rotate(options, revoked=None)


def revoke(options: argparse.Namespace) -> int:
    """Begin a new epoch of the domain without one member: its secret is shared with the others only."""
    return _rotate(options, revoked=options.site)


def card(options: argparse.Namespace) -> int:
    """Print a domain's public card, and its words."""
    from fedpp.cipher.domain_card import DomainCard
    from fedpp.keys.key_store import CARD

    require_folder(options.domain)
    shown = DomainCard.load(options.domain / CARD)
    print(shown.to_json(), end="")
    print(f"words {shown.verification_phrase}", file=sys.stderr)
    return 0


def _rotate(options: argparse.Namespace, *, revoked: str | None) -> int:
    from fedpp.errors import KeyFileError
    from fedpp.files import create_exclusively, make_folder, new_folder, replace
    from fedpp.keys import key_store
    from fedpp.keys.domain_ca import DomainCA
    from fedpp.keys.invitation import Invitation
    from fedpp.keys.site_identity import MembershipRequest

    require_folder(options.domain)
    _require_newest(options)
    members = key_store.members(options.domain)
    if revoked == MembershipRequest.load(options.domain / key_store.REQUEST).site:
        raise KeyFileError(f"{revoked!r} is this site itself, which makes the epoch: it cannot revoke itself")
    staying = [member for member in members if member.site != revoked]
    if revoked is not None and len(staying) == len(members):
        raise KeyFileError(f"{revoked!r} is no member here: members are {_names(members)}")
    passphrase = passphrase_of(options)
    old, old_issuer = (
        key_store.open_domain(options.domain, passphrase),
        key_store.open_domain_ca(options.domain, passphrase),
    )
    identity, domain_ca = key_store.open_identity(options.domain, passphrase), DomainCA.generate()
    new = old.successor(domain_ca.public_key)
    succession = old_issuer.succession(old.card(), new.card())
    shares = {member: Path(SHARES, f"{member.fingerprint[:16]}.share") for member in staying}
    with new_folder(options.out) as folder:
        key_store.found(folder, new, domain_ca, identity, passphrase)
        make_folder(folder / SHARES, 0o755)
        for member, share in shares.items():
            made = Invitation.make(new, domain_ca, member, succession=succession)
            create_exclusively(folder / share, made.to_json().encode())
            key_store.add_member(folder, member, made.certificate)
    replace(options.domain / SUCCESSOR, f"{new.card().fingerprint}\n".encode(), mode=0o644)
    _tell(options.out)
    for member, share in shares.items():
        print(f"  {options.out / share}  for {member.site}: `fedpp-site accept` it")
    folders = f"--domain {quote(str(options.domain))} --to {quote(str(options.out))}"
    print(f"bring datasets and models along: `fedpp-site reencrypt WHAT {folders}`")
    return 0


def _tell(folder: Path) -> None:
    from fedpp.cipher.domain_card import DomainCard
    from fedpp.keys import key_store

    made = DomainCard.load(folder / key_store.CARD)
    print(f"key domain {made.fingerprint}, epoch {made.key_epoch}, words {made.verification_phrase}")
    print(f"  {folder / key_store.SECRET_KEY}, {key_store.SITE_KEY.name}  for the secret zone only")
    if (folder / key_store.CA_KEY).exists():
        print(f"  {folder / key_store.CA_KEY}  admits members and makes new epochs: keep it apart, and a copy of it")
    if made.scheme == "more":
        print(f"  {folder / key_store.EVALUATION_KEY}  for the trainer: it reads this domain's ciphertexts")
    print(f"  {folder / key_store.AT_REST_KEY}  for the trainer: it opens datasets that are sealed at rest")
    print(f"  {folder / key_store.CARD}, {key_store.CERTIFICATE}  public")


def _require_new(path: Path) -> None:
    from fedpp.errors import KeyFileError

    if path.exists():
        raise KeyFileError(f"{path} is there already: choose another --out, nothing is overwritten")


def _require_newest(options: argparse.Namespace) -> None:
    """Refuse to make a second successor of an epoch, which would have the members that the first one left out."""
    from fedpp.errors import KeyFileError

    mark = options.domain / SUCCESSOR
    if mark.exists() and not options.again:
        raise KeyFileError(
            f"{options.domain} has a successor, {mark.read_text()[:16]}: take that folder; if it was never used and is "
            "lost, --again makes another"
        )


def _require_own_name(folder: Path, to: "MembershipRequest") -> None:
    """Refuse a second site of a name: a certificate tells members apart by it."""
    from fedpp.errors import KeyFileError
    from fedpp.keys import key_store
    from fedpp.keys.site_identity import MembershipRequest
    from fedpp.protocol.membership import same_name

    own = MembershipRequest.load(folder / key_store.REQUEST)
    if to == own:
        raise KeyFileError(f"{to.site} is this site itself: name the other hospital's site.request")
    for other in (*key_store.members(folder), own):
        if same_name(other.site, to.site) and other != to:
            raise KeyFileError(f"{other.site} is a member already, with other keys: revoke it, or choose another name")


def _compare(meant: str, said: str | None, by_whom: str) -> None:
    """Let a person compare words; raise `KeyFileError` where they differ, or nobody can be asked."""
    from fedpp.cipher.verification_phrase import COUNT, letters, same_phrase
    from fedpp.errors import KeyFileError

    if said is None:
        if not sys.stdin.isatty():
            raise KeyFileError(f"give --words with the words that {by_whom}: there is no terminal to ask at")
        try:
            said = input(f"the words that {by_whom}: ")
        except EOFError:
            raise KeyFileError("no words were typed: ask by telephone, and try again") from None
    if len(letters(said)) != len(letters(meant)):
        raise KeyFileError(f"{COUNT} words of five letters are needed, all that {by_whom}: got {len(said.split())}")
    if not same_phrase(said, meant):  # the file's own are not told: whoever copied them from here would compare nothing
        raise KeyFileError("the words differ from this file's: somebody may have exchanged it on the way; ask again")


def _names(members: "Sequence[MembershipRequest]") -> str:
    return ", ".join(member.site for member in members) or "none"
