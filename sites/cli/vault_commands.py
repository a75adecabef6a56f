"""`fedpp-site vault`, `health`, `audit-log` and `vault-tls`: the commands of the secret zone's service."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpp.cli import path, sha256

from .opening import passphrase_of, require_folder, show

READ_ONLY = "make nothing new under a key: no weights, signatures, masks or seals"
UNKNOWN_SIGNER = "(the log's own word: give --certificate to check whose it is)"

if TYPE_CHECKING:
    from fedpp.errors import KeyFileError

    from ..vault.audit_chain import Record
    from ..vault.evaluation_limits import EvaluationCall


def vault(options: argparse.Namespace) -> int:
    """Serve the vault on a Unix socket, or over mutual TLS, until SIGTERM or Ctrl-C."""
    os.environ["GRPC_VERBOSITY"] = "NONE"  # a refusal is one line, ours; Flower sets another in what it starts
    from fedpp.config.site_policy import SitePolicy
    from fedpp.dataset.encrypted_dataset import EncryptedDataset
    from fedpp.errors import VaultError
    from fedpp.keys import key_store
    from fedpp.vault_api.vault_channel import TlsFiles

    from ..vault.audit_log import AuditLog, Signer
    from ..vault.sd_notify import notify
    from ..vault.vault_aggregation import UnmaskedRound, past_unmasked
    from ..vault.vault_server import serve
    from ..vault.vault_service import VaultService, past_score

    if options.audit_log and not options.audit_log.parent.is_dir():
        raise VaultError(f"the folder of the audit log {options.audit_log} is not there: make its folder first")
    if options.policy is not None:
        SitePolicy.load(options.policy)  # before a passphrase is asked for
    tls = TlsFiles.read(options.tls) if options.tls else None
    require_folder(options.domain)
    site = key_store.open_site(options.domain, passphrase_of(options))
    dataset = EncryptedDataset.open(options.dataset, site.domain.at_rest_key())
    past: list[EvaluationCall] = []
    unmasked: list[UnmaskedRound] = []

    def seen(record: "Record") -> None:
        past.extend(past_score(record))
        unmasked.extend(past_unmasked(record))

    audit, begun = None, False
    if options.audit_log:
        begun = not os.path.lexists(options.audit_log)
        audit = AuditLog.open(options.audit_log, Signer.of(site.identity), seen)
    else:
        print("no --audit-log: calls are logged on stderr only, and forgotten at a restart", file=sys.stderr)

    def ready() -> None:
        nonlocal begun
        begun = False  # it stays, whatever comes
        print(f"vault ready at {options.address}", flush=True)
        notify("READY=1")

    try:
        service = VaultService(
            site,
            dataset,
            policy=options.policy,
            audit=audit,
            past=past,
            unmasked=unmasked,
            read_only=options.read_only,
        )
        serve(service, options.address, tls=tls, ready=ready, stopping=lambda: notify("STOPPING=1"))
    finally:
        if audit is not None:
            if begun:  # by a start that failed: no vault was here
                options.audit_log.unlink()
            audit.close()
    return 0


def health(options: argparse.Namespace) -> int:
    """Ask a vault whether it can answer."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the one line of ours says what gRPC's lines of a handshake do
    from ..vault.vault_health import require_health

    require_health(options.address, options.tls)
    print("serving")
    return 0


def audit_log(options: argparse.Namespace) -> int:
    """Check every line of a vault's audit log: its form, number, chain and signature."""
    from fedpp.cipher.domain_card import DomainCard
    from fedpp.errors import FederationError
    from fedpp.keys.key_store import CARD
    from fedpp.protocol.membership import Certificate

    from ..vault.audit_chain import verify

    key, site = None, ""
    if options.certificate:
        try:
            certificate = Certificate.from_json(options.certificate.read_text().strip())
        except (OSError, UnicodeDecodeError, FederationError) as error:
            raise _unread(options.certificate, error) from None
        card = DomainCard.load(options.card or options.certificate.with_name(CARD.name))
        try:
            certificate.require(card.certifying_key, card.fingerprint)
        except FederationError as error:
            raise _unread(options.certificate, error) from None
        key, site = certificate.member.signing_key, certificate.member.site
    found = verify(options.file, public_key=key, head=options.head)
    told: dict[str, Any] = {
        "records": found.records,
        "first": found.first,
        "last": found.last,
        "head": found.head,
        "signed by": f"{site}, {found.public_key}" if site else f"{found.public_key} {UNKNOWN_SIGNER}",
    }
    if found.after_known_head is not None:
        told["records after --head"] = found.after_known_head
    if options.json:
        print(json.dumps({name.replace(" --", " ").replace(" ", "_"): value for name, value in told.items()}))
    else:
        show(options, told)
    return 0


def _unread(certificate: Path, error: Exception) -> "KeyFileError":
    from fedpp.errors import KeyFileError

    reason = error.strerror if isinstance(error, OSError) else str(error)
    return KeyFileError(f"cannot read the certificate {certificate}: {reason}: name a site.certificate")


def vault_tls(options: argparse.Namespace) -> int:
    """Make the certificates of a vault and a trainer that are on two machines."""
    from ..vault.vault_certificates import HOLDERS, create

    create(options.out, options.name)
    for holder in HOLDERS:
        print(f"{options.out / holder}  for the {holder} alone: ca.pem, cert.pem, key.pem")
    print(f"{options.out / 'ca.key'}  certifies more of them: keep it away from both machines")
    return 0


def add_vault_arguments(to: argparse.ArgumentParser) -> None:
    """Add what `vault` takes beside the domain."""
    to.add_argument("--dataset", type=path, required=True)
    to.add_argument("--address", required=True, help="unix:/path/to/vault.sock, or HOST:PORT with --tls")
    to.add_argument("--tls", type=path, help="folder with ca.pem, cert.pem and key.pem, for HOST:PORT")
    to.add_argument("--audit-log", type=path, help="file that gets one signed line a call (default: stderr only)")
    to.add_argument("--read-only", action="store_true", help=READ_ONLY)
    to.add_argument("--policy", type=path, help="site.yaml: what Score tells at most, for how long, and to which code")


def add_health_arguments(to: argparse.ArgumentParser) -> None:
    """Add what `health` takes."""
    to.add_argument("address", help="unix:/path/to/vault.sock, or HOST:PORT")
    to.add_argument("--tls", type=path, help="folder of a client's certificate, for HOST:PORT")


def add_vault_tls_arguments(to: argparse.ArgumentParser) -> None:
    """Add what `vault-tls` takes."""
    to.add_argument("--out", type=path, required=True, help="new folder")
    to.add_argument("--name", required=True, help="host name or address by which trainers reach the vault")


def add_audit_log_arguments(to: argparse.ArgumentParser) -> None:
    """Add what `audit-log` takes."""
    to.add_argument("action", choices=("verify",))
    to.add_argument("file", type=path, help="the log")
    to.add_argument("--certificate", type=path, help="of the site that must have signed it")
    to.add_argument("--card", type=path, help="of the domain that certified it (default domain.card beside it)")
    to.add_argument("--head", type=sha256, help="a head that was noted earlier: proves that nothing was cut since")
