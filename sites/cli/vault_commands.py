"""Commands of the vault: `fedpp-site vault`, `health`, `audit-log` and `vault-tls`."""

import argparse
import json
import os
import pwd
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedpp.cli import add_json, path, sha256
from fedpp.errors import ConfigError, FederationError, KeyFileError, VaultError
from fedpp.texts import printable

from .masked_run_commands import RUNS
from .opening import PassphraseSource, add_domain, require_folder, show

READ_ONLY = "create nothing new under a key: no weights, signatures, masks or seals"
NO_POLICY = "default limits, signatures for any app bundle, no masked runs"
UNKNOWN_SIGNER = "(as the log states it: give --certificate to check which site it is)"

if TYPE_CHECKING:
    from fedpp.keys.site_identity import SiteIdentity

    from ..vault.audit.audit_log import AuditLog
    from ..vault.vault_service import History


def add_vault_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `vault`."""
    add_domain(to)
    to.add_argument("--dataset", type=path, required=True, help="encrypted dataset")
    to.add_argument("--address", required=True, help="unix:/path/to/vault.sock, or HOST:PORT with --tls")
    to.add_argument("--tls", type=path, help="folder with ca.pem, cert.pem and key.pem, for HOST:PORT")
    to.add_argument(
        "--allow-user",
        action="append",
        default=[],
        metavar="USER",
        help="name or number of a user that may connect to the Unix socket; may be repeated (default: its group)",
    )
    to.add_argument("--audit-log", type=path, help="file of one signed line a call; needed unless --no-policy is given")
    to.add_argument(
        "--runs", type=path, help="folder of what the vault keeps of masked runs (default: runs in the domain folder)"
    )
    to.add_argument("--read-only", action="store_true", help=READ_ONLY)
    to.add_argument(
        "--policy",
        type=path,
        help="site.yaml: limits of evaluations, last day, app bundles that may run; needed unless --no-policy is given",
    )
    to.add_argument(
        "--no-policy",
        action="store_true",
        help=f"for a trial, start without --policy, and without --audit-log if none is given: {NO_POLICY}",
    )


def vault(
    *,
    domain: Path,
    passphrase: PassphraseSource,
    dataset: Path,
    address: str,
    tls: Path | None,
    allow_user: list[str],
    audit_log: Path | None,
    runs: Path | None,
    read_only: bool,
    policy: Path | None,
    no_policy: bool,
) -> int:
    """Serve the vault on a Unix socket, or over mutual TLS, until SIGTERM or Ctrl-C."""
    _require_decided(policy, audit_log, no_policy=no_policy)
    os.environ["GRPC_VERBOSITY"] = "NONE"  # a refusal is one line of ours; Flower sets another value in its processes
    from fedpp.config.site_policy import SitePolicy
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.keys import key_store
    from fedpp.vault_api.vault_channel import TlsFiles

    from ..vault.masked_runs.run_journal import RunJournal
    from ..vault.private_memory import keep_private
    from ..vault.sd_notify import notify
    from ..vault.vault_server import serve
    from ..vault.vault_service import History, VaultService

    if audit_log and not audit_log.parent.is_dir():
        raise VaultError(f"the folder of the audit log {audit_log} does not exist: create it first")
    if policy is not None:
        SitePolicy.load(policy)  # before the prompt for a passphrase
    users = frozenset(map(_user, allow_user))
    files = TlsFiles.read(tls) if tls else None
    require_folder(domain)
    keep_private()
    site = key_store.open_site(domain, passphrase.read())
    opened = EncryptedDataset.open(dataset, site.domain.at_rest_key())
    past = History()
    if no_policy:
        print(f"--no-policy, for trials only: {NO_POLICY}", file=sys.stderr)
    with (
        _audit(audit_log, site.identity, past) as (audit, keep),
        nullcontext() if read_only else closing(RunJournal.open(runs or domain / RUNS, site)) as journal,
    ):
        service = VaultService(
            site, opened, policy=policy, audit=audit, past=past, read_only=read_only, journal=journal
        )

        def ready() -> None:
            keep()
            print(printable(f"vault ready at {address}"), flush=True)
            notify("READY=1")

        serve(
            service,
            address,
            tls=files,
            users=users,
            ready=ready,
            stopping=lambda: notify("STOPPING=1"),
        )
    return 0


def _require_decided(policy: Path | None, audit_log: Path | None, *, no_policy: bool) -> None:
    """Refuse a vault without policy or audit log that is not said to be a trial, and a trial with a policy."""
    if no_policy and policy:
        raise ConfigError("--no-policy is for a vault without --policy: leave one of them out")
    missing = [name for name, given in (("--policy", policy), ("--audit-log", audit_log)) if given is None]
    if missing and not no_policy:
        raise ConfigError(
            f"{' and '.join(missing)} missing: a vault needs --policy site.yaml, which `fedpp-site policy` writes, and "
            "--audit-log FILE; for a trial give --no-policy in place of --policy"
        )


def _user(text: str) -> int:
    """Return the number of a user that is given by name or number."""
    if text.isascii() and text.isdecimal():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise ConfigError(f"there is no user {text!r:.80}: give --allow-user its name or number") from None


@contextmanager
def _audit(
    log: Path | None, identity: "SiteIdentity", past: "History"
) -> "Iterator[tuple[AuditLog | None, Callable[[], object]]]":
    """Open the audit log; yield it and what keeps a new log, which is removed if the vault does not start."""
    from ..vault.audit.audit_log import AuditLog, Signer

    if log is None:
        print("no --audit-log: calls are logged on stderr only, and lost at a restart", file=sys.stderr)
        yield None, lambda: None
        return
    undo = ExitStack()
    if not os.path.lexists(log):
        undo.callback(log.unlink)
    audit = AuditLog.open(log, Signer.of(identity), past.add)
    try:
        yield audit, undo.pop_all
    finally:
        undo.close()
        audit.close()


def add_health_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `health`."""
    to.add_argument("address", help="unix:/path/to/vault.sock, or HOST:PORT")
    to.add_argument("--tls", type=path, help="folder of a client's certificate, for HOST:PORT")


def health(*, address: str, tls: Path | None) -> int:
    """Check whether a vault can reply."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # our one line replaces gRPC's lines about a handshake
    from ..vault.vault_health import require_health

    require_health(address, tls)
    print("serving")
    return 0


def add_audit_log_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `audit-log`."""
    to.add_argument(
        "action",
        choices=("verify", "heads"),
        help="verify: check form, numbers, chain and signatures; heads: print what this site remembers of others' logs",
    )
    to.add_argument("file", type=path, help="the log; for heads the folder of the vault's masked runs")
    to.add_argument("--certificate", type=path, help="certificate of the site that must have signed the log")
    to.add_argument(
        "--card", type=path, help="domain card of the CA that issued the certificate (default: domain.card beside it)"
    )
    to.add_argument("--head", type=sha256, help="head that was noted earlier: proves that nothing was cut since")
    to.add_argument("--heads", type=path, help="what a peer remembers, from its `heads --json`; needs --certificate")
    add_json(to)


def audit_log(
    *,
    action: Literal["verify", "heads"],
    file: Path,
    certificate: Path | None,
    card: Path | None,
    head: str | None,
    heads: Path | None,
    as_json: bool,
) -> int:
    """Check every line of a vault's audit log, or print the heads of all sites' logs that this site remembers."""
    if action == "heads":
        return _show_heads(file, as_json=as_json)
    from fedpp.cipher.domain_card import DomainCard
    from fedpp.keys.key_store import CARD
    from fedpp.protocol.membership import Certificate

    from ..vault.audit import peer_heads
    from ..vault.audit.audit_chain import verify

    key, site = None, ""
    if certificate:
        try:
            certified = Certificate.from_json(certificate.read_text().strip())
            domain = DomainCard.load(card or certificate.with_name(CARD.name))
            certified.require(domain.ca_key, domain.fingerprint)
        except (OSError, UnicodeDecodeError, FederationError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise KeyFileError(
                f"cannot read the certificate {certificate}: {reason}: name a site.certificate"
            ) from None
        key, site = certified.member.signing_key, certified.member.site
    if heads is not None and not site:
        raise ConfigError("--heads needs --certificate, which names the site of the log: give both")
    remembered = {} if heads is None else peer_heads.load(heads, site)
    found = verify(file, public_key=key, head=head, heads=remembered)
    shown: dict[str, Any] = {
        "records": found.records,
        "first": found.first,
        "last": found.last,
        "head": found.head,
        "signed by": f"{site}, {found.public_key}" if site else f"{found.public_key} {UNKNOWN_SIGNER}",
    }
    if remembered:
        shown["heads that a peer remembers"] = len(remembered)
    if found.after_known_head is not None:
        shown["records after --head"] = found.after_known_head
    if as_json:
        print(json.dumps({name.replace(" --", " ").replace(" ", "_"): value for name, value in shown.items()}))
    else:
        show(shown, as_json=False)
    return 0


def _show_heads(runs: Path, *, as_json: bool) -> int:
    """Print the newest head of each site's audit log that the statements of masked runs name."""
    from ..vault.audit.peer_heads import heads_of, stored_statements, to_json

    found = heads_of(stored_statements(runs))
    if as_json:
        print(to_json(found))
    for site, heads in found.items() if not as_json else ():
        newest = max(heads, default=0)
        print(printable(f"{site}  {newest} records, head {heads.get(newest, 'none')}"))
    return 0


def add_vault_tls_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `vault-tls`."""
    to.add_argument("--out", type=path, required=True, help="new folder")
    to.add_argument("--name", required=True, help="host name or address by which trainers reach the vault")


def vault_tls(*, out: Path, name: str) -> int:
    """Create certificates for a vault and a trainer on two machines."""
    from ..vault.vault_certificates import HOLDERS, create

    create(out, name)
    for holder in HOLDERS:
        print(printable(f"{out / holder}  for the {holder} only: ca.pem, cert.pem, key.pem"))
    print(printable(f"{out / 'ca.key'}  certifies further ones: keep it away from both machines"))
    return 0
