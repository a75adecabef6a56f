"""The key commands of `fedpp-site`: found a domain, invite and admit members, rotate keys, revoke a member."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from fedpp.cli import add_default, path
from fedpp.errors import KeyFileError
from fedpp.texts import printable

from .opening import PassphraseSource, add_domain, add_passphrase, card_of, require_folder, require_new

if TYPE_CHECKING:
    from fedpp.cipher.domain_card import DomainCard
    from fedpp.keys.site_identity import MembershipRequest

INVITATIONS, SUCCESSOR = Path("invitations"), Path("successor")


def add_keygen_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `keygen`."""
    from fedpp.cipher.domain_card import SCHEMES

    to.add_argument("--out", type=path, required=True, help="new domain folder")
    add_default(to, "--site", "founder", "public name of this site in reports", str)
    schemes = "more: rows of slots; more-frame: orthogonal frame mixing, plain labels, no key at the trainer"
    add_default(to, "--scheme", "more", schemes, SCHEMES)
    to.add_argument("-n", type=int, help="slots of a ciphertext row, of the scheme more (default: 2, the fastest)")
    add_passphrase(to)


def keygen(
    *, out: Path, site: str, scheme: Literal["more", "more-frame"], n: int | None, passphrase: PassphraseSource
) -> int:
    """Found a key domain: draw its secret, seal it, and write the trainer's keys and the card beside it."""
    from fedpp.keys import key_store
    from fedpp.keys.domain_ca import DomainCA
    from fedpp.keys.key_domain import KeyDomain
    from fedpp.keys.site_identity import SiteIdentity

    identity, domain_ca = SiteIdentity.generate(site), DomainCA.generate()
    domain = KeyDomain.found(domain_ca.public_key, n=n, scheme=scheme)
    key_store.found(out, domain, domain_ca, identity, passphrase.read(new=True))
    _print_domain(out)
    return 0


def add_request_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `request`."""
    to.add_argument("--site", required=True, help="public name of this site in reports")
    to.add_argument("--out", type=path, required=True, help="new folder for the site's identity")
    add_passphrase(to)


def request(*, site: str, out: Path, passphrase: PassphraseSource) -> int:
    """Create a new site's identity; its public half is the membership request, to which a domain is sealed."""
    from fedpp.keys import key_store
    from fedpp.keys.site_identity import SiteIdentity

    identity = SiteIdentity.generate(site)
    key_store.create_identity(out, identity, passphrase.read(new=True))
    print(f"membership request of {printable(identity.name)}")
    print(printable(f"  {out / key_store.SITE_KEY}  for the secret zone only"))
    print(
        printable(
            f"  {out / key_store.REQUEST}  send it to the domain's founder, and read out this phrase by telephone:"
        )
    )
    print(f"  {identity.request().verification_phrase}")
    return 0


def add_invite_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `invite`."""
    add_domain(to)
    to.add_argument("--to", type=path, required=True, metavar="REQUEST", help="site.request of the other site")
    to.add_argument("--phrase", help="verification phrase that the other site read out (default: ask at the terminal)")
    to.add_argument("--out", type=path, required=True, help="new file for the other site")
    _add_again(to)


def invite(*, domain: Path, to: Path, phrase: str | None, out: Path, again: bool, passphrase: PassphraseSource) -> int:
    """Certify another hospital as a member and seal the domain's secret to it, after comparing its phrase."""
    from fedpp.files import create_exclusively
    from fedpp.keys import key_store
    from fedpp.keys.invitation import Invitation
    from fedpp.keys.site_identity import MembershipRequest

    require_folder(domain)
    _require_newest(domain, again=again)
    member = MembershipRequest.load(to)
    require_new(out)
    _require_own_name(domain, member)
    _compare(member.verification_phrase, phrase, f"{member.site} read out by telephone")
    opened = passphrase.read()
    made = Invitation.make(key_store.open_domain(domain, opened), key_store.open_domain_ca(domain, opened), member)
    key_store.add_member(domain, member, made.certificate)  # first: whoever has the secret can be revoked
    create_exclusively(out, made.to_json().encode())
    print(printable(f"{out}  for {member.site} alone; read out this phrase of the domain by telephone:"))
    print(f"  {made.card.verification_phrase}")
    return 0


def add_accept_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `accept`."""
    to.add_argument("invitation", type=path, help="file from the domain's founder")
    to.add_argument(
        "--identity", type=path, required=True, help="folder from `request`, or domain folder of the key epoch before"
    )
    add_passphrase(to)
    to.add_argument("--phrase", help="verification phrase that the founder read out (default: ask at the terminal)")
    to.add_argument("--out", type=path, required=True, help="new domain folder")
    _add_again(to)


def accept(
    *, invitation: Path, identity: Path, phrase: str | None, out: Path, again: bool, passphrase: PassphraseSource
) -> int:
    """Open an invitation with this site's identity, and write the domain into a new folder."""
    from fedpp.files import replace
    from fedpp.keys import key_store
    from fedpp.keys.invitation import Invitation

    made = Invitation.load(invitation)
    _require_earlier(identity, made.card)
    _require_one_successor(identity, made.card, again=again)
    opened = passphrase.read()
    # The old card must be the one that is sealed with its secret: anybody can exchange the file domain.card.
    member = (identity / key_store.SECRET_KEY).exists()
    followed = member and made.follows(key_store.open_domain(identity, opened).card())
    if not followed or phrase is not None:
        _compare(made.card.verification_phrase, phrase, f"the founder of domain {made.card.id} read out by telephone")
    own = key_store.open_identity(identity, opened)
    key_store.join(out, key_store.Site(made.accept(own), own, made.certificate), opened)
    if _is_next(identity, made.card):
        replace(identity / SUCCESSOR, f"{made.card.fingerprint}\n".encode(), mode=0o644)
    _print_domain(out)
    return 0


def add_rotate_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `rotate`."""
    add_domain(to)
    to.add_argument("--out", type=path, required=True, help="new domain folder, of the new key epoch")
    _add_again(to)


def rotate(*, domain: Path, out: Path, again: bool, passphrase: PassphraseSource) -> int:
    """Start a new key epoch with a new secret, and write an invitation for every member."""
    return _rotate(domain, out, passphrase, again=again, revoked=None)


def add_revoke_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `revoke`."""
    add_rotate_arguments(to)
    to.add_argument("site", help="public name of the member that leaves")


def revoke(*, domain: Path, out: Path, again: bool, passphrase: PassphraseSource, site: str) -> int:
    """Start a new key epoch without one member: only the others are invited."""
    return _rotate(domain, out, passphrase, again=again, revoked=site)


def add_card_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `card`."""
    to.add_argument("domain", type=path, help="domain folder")


def card(*, domain: Path) -> int:
    """Print a domain's public card, and on stderr its verification phrase."""
    require_folder(domain)
    shown = card_of(domain)
    print(shown.to_json(), end="")
    print(f"verification phrase {shown.verification_phrase}", file=sys.stderr)
    return 0


def _add_again(to: argparse.ArgumentParser) -> None:
    to.add_argument("--again", action="store_true", help="accept that the key epoch has a successor, if it is unused")


def _rotate(domain: Path, out: Path, passphrase: PassphraseSource, *, again: bool, revoked: str | None) -> int:
    from fedpp.files import create_exclusively, make_folder, new_folder, replace
    from fedpp.keys import key_store
    from fedpp.keys.domain_ca import DomainCA
    from fedpp.keys.invitation import Invitation
    from fedpp.keys.site_identity import MembershipRequest

    require_folder(domain)
    _require_newest(domain, again=again)
    members = key_store.members(domain)
    if revoked == MembershipRequest.load(domain / key_store.REQUEST).site:
        raise KeyFileError(f"{revoked!r} is this site itself, which starts the key epoch: it cannot revoke itself")
    staying = [member for member in members if member.site != revoked]
    if revoked is not None and len(staying) == len(members):
        raise KeyFileError(f"{revoked!r} is no member here: members are {_names(members)}")
    opened = passphrase.read()
    old, old_ca = key_store.open_domain(domain, opened), key_store.open_domain_ca(domain, opened)
    identity, new_ca = key_store.open_identity(domain, opened), DomainCA.generate()
    new = old.successor(new_ca.public_key)
    succession = old_ca.succession(old.card(), new.card())
    invitations = {member: Path(INVITATIONS, f"{member.fingerprint[:16]}.invitation") for member in staying}
    with new_folder(out) as folder:
        key_store.found(folder, new, new_ca, identity, opened)
        make_folder(folder / INVITATIONS, 0o755)
        for member, file in invitations.items():
            made = Invitation.make(new, new_ca, member, succession=succession)
            create_exclusively(folder / file, made.to_json().encode())
            key_store.add_member(folder, member, made.certificate)
    replace(domain / SUCCESSOR, f"{new.card().fingerprint}\n".encode(), mode=0o644)
    _print_domain(out)
    for member, file in invitations.items():
        print(printable(f"  {out / file}  for {member.site}: `fedpp-site accept` it"))
    folders = f"--domain {quote(str(domain))} --to {quote(str(out))}"
    print(printable(f"re-encrypt datasets and models: `fedpp-site reencrypt WHAT {folders}`"))
    return 0


def _print_domain(folder: Path) -> None:
    from fedpp.keys import key_store

    made = card_of(folder)
    print(f"key domain {made.fingerprint}, key epoch {made.key_epoch}, verification phrase {made.verification_phrase}")
    lines = [f"{folder / key_store.SECRET_KEY}, {key_store.SITE_KEY.name}  for the secret zone only"]
    if (folder / key_store.CA_KEY).exists():
        lines.append(f"{folder / key_store.CA_KEY}  admits members and starts key epochs: keep it apart, with a copy")
    if made.scheme == "more":
        lines.append(f"{folder / key_store.EVALUATION_KEY}  for the trainer: it computes on this domain's ciphertexts")
    lines.append(f"{folder / key_store.AT_REST_KEY}  for the trainer: it opens datasets that are sealed at rest")
    lines.append(f"{folder / key_store.CARD}, {key_store.CERTIFICATE}  public")
    for line in lines:
        print(f"  {printable(line)}")


def _require_earlier(folder: Path, offered: "DomainCard") -> None:
    """Refuse a folder of the invitation's key epoch or of a later one."""
    from fedpp.keys.key_store import CARD

    if not (folder / CARD).exists():
        return
    own = card_of(folder)
    if own.id == offered.id and own.key_epoch >= offered.key_epoch:
        raise KeyFileError(
            f"{folder} is of key epoch {own.key_epoch} of this domain, the invitation of key epoch "
            f"{offered.key_epoch}: nothing to accept"
        )


def _is_next(folder: Path, offered: "DomainCard") -> bool:
    """Tell whether a card is of the key epoch after a folder's."""
    from fedpp.keys.key_store import CARD

    if not (folder / CARD).exists():
        return False
    own = card_of(folder)
    return own.id == offered.id and offered.key_epoch == own.key_epoch + 1


def _require_one_successor(folder: Path, offered: "DomainCard", *, again: bool) -> None:
    """Refuse another successor than the one that this site accepted.

    A founder whose folder comes from a backup has forgotten its rotation, and whom it revoked by it: members remember.
    """
    mark = folder / SUCCESSOR
    if again or not mark.exists() or not _is_next(folder, offered):
        return
    known = mark.read_text().strip()
    if known != offered.fingerprint:
        raise KeyFileError(
            f"{folder} has a successor, {known[:16]}, and this invitation is to another, {offered.fingerprint[:16]}: "
            "the founder's folder may come from a backup that is older than a rotation, and keep whom that revoked; "
            "ask the founder; if the first was never used, --again accepts this one"
        )


def _require_newest(domain: Path, *, again: bool) -> None:
    """Refuse a second successor of a key epoch, which would keep the members that the first one revoked."""
    mark = domain / SUCCESSOR
    if mark.exists() and not again:
        raise KeyFileError(
            f"{domain} has a successor, {mark.read_text()[:16]}: take that folder; if it was never used and is "
            "lost, --again makes another"
        )


def _require_own_name(folder: Path, to: "MembershipRequest") -> None:
    """Refuse a second site of one name: certificates tell members apart by it."""
    from fedpp.keys import key_store
    from fedpp.keys.site_identity import MembershipRequest
    from fedpp.protocol.membership import same_name

    own = MembershipRequest.load(folder / key_store.REQUEST)
    if to == own:
        raise KeyFileError(f"{to.site} is this site itself: name the other hospital's site.request")
    for other in (*key_store.members(folder), own):
        if same_name(other.site, to.site) and other != to:
            raise KeyFileError(f"{other.site} is a member already, with other keys: revoke it, or choose another name")


def _compare(expected: str, given: str | None, source: str) -> None:
    """Compare verification phrases; raise `KeyFileError` where they differ, or there is no terminal to ask at."""
    from fedpp.cipher.verification_phrase import COUNT, letters, same_phrase

    if given is None:
        if not sys.stdin.isatty():
            raise KeyFileError(f"give --phrase with the phrase that {source}: there is no terminal to ask at")
        try:
            given = input(printable(f"the phrase that {source}: "))
        except EOFError:
            raise KeyFileError("no phrase was typed: ask by telephone, and try again") from None
    if len(letters(given)) != len(letters(expected)):
        raise KeyFileError(f"{COUNT} words of five letters are needed, all that {source}: got {given!r:.80}")
    if not same_phrase(
        given, expected
    ):  # the file's own is not printed: whoever copied it from here would compare nothing
        raise KeyFileError("the phrases differ: somebody may have exchanged the file on the way; ask again")


def _names(members: "Sequence[MembershipRequest]") -> str:
    return ", ".join(member.site for member in members) or "none"
