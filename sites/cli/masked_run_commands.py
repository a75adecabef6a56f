"""Commands about a site's masked runs: `fedpp-site endorse`, `burn` and `run-report`."""

import argparse
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedpp.cli import add_default, add_json, natural, path, sha256
from fedpp.errors import ConfigError, VaultError
from fedpp.texts import printable

from .opening import PassphraseSource, add_domain, require_folder

RUNS = "runs"  # in the domain folder, unless the vault's --runs names another
_RUNS_HELP = "folder of the vault's masked runs (default: runs in the domain folder)"


def add_endorse_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `endorse`."""
    to.add_argument("model", nargs="?", metavar="MODEL", type=path, help="model.npz, from which a run may start")
    to.add_argument("--state", type=sha256, help="digest of a run's state at which this site may join, without MODEL")
    add_domain(to)
    to.add_argument("--runs", type=path, help=_RUNS_HELP)
    add_default(to, "--days", 30, "days for which the endorsement is good", natural)


def endorse(
    *,
    model: Path | None,
    state: str | None,
    domain: Path,
    passphrase: PassphraseSource,
    runs: Path | None,
    days: int,
) -> int:
    """Let masked runs start from a model, or let this site join a run at a state; print what a contract names."""
    from fedpp.keys import key_store
    from fedpp.learning.model_file import EncryptedModel

    from ..vault.masked_runs.run_endorsements import endorse as write
    from ..vault.masked_runs.run_endorsements import model_id

    if (model is None) == (state is None):
        raise ConfigError("name a MODEL, or a run's state with --state: one of both")
    opened = None if model is None else EncryptedModel.load(model)
    require_folder(domain)
    site = key_store.open_site(domain, passphrase.read())
    digest = state or ""
    if opened is not None:
        digest = model_id(site, opened)
    write(runs or domain / RUNS, site, digest, datetime.now(UTC) + timedelta(days=days), opened)
    print(digest)
    return 0


def add_burn_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `burn`."""
    to.add_argument("contract", type=sha256, metavar="CONTRACT", help="digest of the run's contract")
    to.add_argument("aggregate", type=sha256, metavar="AGGREGATE", help="the sum that this site has not released for")
    to.add_argument("--vault", required=True, help="unix:/path/to/vault.sock, or HOST:PORT,tls=FOLDER")


def burn(*, contract: str, aggregate: str, vault: str) -> int:
    """Sign that this site's vault releases nothing in the next round; print the statement, for the coordinator.

    The run then cannot continue with this site; the others can continue without it.
    """
    from fedpp.vault_api.vault_client import VaultClient

    with VaultClient(vault) as client:
        print(client.burn(contract, aggregate))
    return 0


def add_run_report_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `run-report`."""
    to.add_argument("runs", type=path, metavar="FOLDER", help="folder of the vault's masked runs")
    add_json(to)


def run_report(*, runs: Path, as_json: bool) -> int:
    """Print this site's own figures of its masked runs, which left it only within sums over all sites."""
    from ..vault.masked_runs.own_report import REPORTS

    files = sorted((runs / REPORTS).glob("*.json"))
    if not files:
        raise VaultError(f"there are no figures in {runs}: name the folder of the vault's --runs, after a round")
    reports = [_report(file) for file in files]
    if as_json:
        print(json.dumps(reports))
        return 0
    for report in reports:
        print(printable(f"contract {report['contract'][:16]} of {', '.join(report['sites'])}"))
        for row in report["rounds"]:
            shown = ", ".join(
                f"{name} {row[name]:.4f}" for name in ("loss", "accuracy", "auc") if row[name] is not None
            )
            print(printable(f"  state {row['state']}, {row['split']}: {row['examples']} sequences, {shown}"))
    return 0


def _report(file: Path) -> dict[str, Any]:
    from fedpp.errors import FederationError
    from fedpp.learning.metrics import metrics
    from fedpp.protocol.counts import Counts
    from fedpp.protocol.finding_counts import FindingCounts

    try:
        read = json.loads(file.read_text())
        rounds = []
        for name, mapping in read["rounds"].items():
            number, _, split = name.partition(" ")
            counts = (Counts if "confusion" in mapping else FindingCounts).from_mapping(mapping)
            figures = metrics(counts).to_mapping()
            rounds.append({"state": int(number), "split": split, "examples": counts.examples, **figures})
        return {
            "contract": str(read["contract"]),
            "sites": list(map(str, read["sites"])),
            "rounds": sorted(rounds, key=lambda row: (row["split"] != "validation", row["state"])),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FederationError):
        raise VaultError(f"{file} is damaged: remove it, and the vault writes it anew in the next round") from None
