"""Commands about a site's masked runs: `fedpp-site endorse`, `burn`, `abandon`, `lift` and `run-report`."""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from fedpp.cli import add_default, add_json, natural, path, positive, sha256
from fedpp.errors import ConfigError, VaultError
from fedpp.texts import printable

from .opening import PassphraseSource, add_domain, add_passphrase, require_folder, require_new

if TYPE_CHECKING:
    from fedpp.vault_api.vault_client import VaultClient

    from ..vault.masked_runs.accepted_contract import AcceptedContract
    from ..vault.masked_runs.run_site import JournalSite

LIFT_DAYS = 30  # in which a vault may sign a revision by a lifted lock
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


class Leaving(TypedDict):
    """Arguments of commands that sign a statement at the vault, or in its place."""

    vault: str | None
    domain: Path | None
    passphrase: PassphraseSource
    runs: Path | None
    out: Path | None


def add_burn_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `burn`."""
    to.add_argument("contract", type=sha256, metavar="CONTRACT", help="digest of the run's contract")
    to.add_argument("aggregate", type=sha256, metavar="AGGREGATE", help="the sum that this site has not released for")
    _add_leaving(to)


def burn(*, contract: str, aggregate: str, **leaving: Unpack[Leaving]) -> int:
    """Sign that this site releases nothing in the next round, for the coordinator.

    The run then cannot continue with this site; the others can continue without it.
    """
    from ..vault.masked_runs import run_locks

    def ask(client: "VaultClient") -> str:
        return client.burn(contract, aggregate)

    def sign(of: "JournalSite", accepted: "AcceptedContract") -> str:
        return run_locks.burn(of, accepted, aggregate)

    return _leave(contract, ask, sign, **leaving)


def add_abandon_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `abandon`."""
    to.add_argument("contract", type=sha256, metavar="CONTRACT", help="digest of the run's contract")
    _add_leaving(to)


def abandon(*, contract: str, **leaving: Unpack[Leaving]) -> int:
    """Leave a run, or a revision, that this site has not trained in, for good."""
    from ..vault.masked_runs import run_admission

    def sign(_: "JournalSite", accepted: "AcceptedContract") -> str:
        return run_admission.abandon(accepted)

    return _leave(contract, lambda client: client.abandon(contract), sign, **leaving)


def _add_leaving(to: argparse.ArgumentParser) -> None:
    """Add the arguments of commands that sign a statement at the vault, or in its place."""
    to.add_argument("--vault", help="vault that runs: unix:/path/to/vault.sock, or HOST:PORT,tls=FOLDER")
    to.add_argument("--domain", type=path, help="domain folder, where no vault runs and its folder of runs is there")
    add_passphrase(to)
    to.add_argument("--runs", type=path, help=_RUNS_HELP)
    to.add_argument("--out", type=path, help="new file for the statement and those before it, for the coordinator")


def _leave(
    contract: str,
    ask: "Callable[[VaultClient], str]",
    sign: "Callable[[JournalSite, AcceptedContract], str]",
    *,
    vault: str | None,
    domain: Path | None,
    passphrase: PassphraseSource,
    runs: Path | None,
    out: Path | None,
) -> int:
    """Let the vault sign, or without a vault sign with the keys and the journal; print or write the statement."""
    from fedpp.files import replace
    from fedpp.keys import key_store
    from fedpp.protocol.run_statements import SignedStatement
    from fedpp.vault_api.vault_client import VaultClient

    from ..vault.masked_runs.run_journal import RunJournal
    from ..vault.masked_runs.run_locks import without_vault

    if (vault is None) == (domain is None):
        raise ConfigError("name the running --vault, or where none runs the --domain: one of both")
    if out is not None:
        require_new(out)
    if vault is not None:
        with VaultClient(vault) as client:
            statement, known = ask(client), client.where(contract)[0]
    elif domain is not None:
        require_folder(domain)
        site = key_store.open_site(domain, passphrase.read())
        with closing(RunJournal.reopen(runs or domain / RUNS, site)) as journal:
            of, accepted = without_vault(site, journal, contract)
            statement, known = sign(of, accepted), [each.to_json() for each in accepted.chains.after({})]
    if out is None:
        print(statement)
        return 0
    name = SignedStatement.from_json(statement).statement.site
    own = [text for text in known if SignedStatement.from_json(text).statement.site == name]
    replace(out, f"[{','.join(own)}]".encode())
    print(printable(f"{out}  give it to the coordinator's operator"))
    return 0


def add_lift_arguments(to: argparse.ArgumentParser) -> None:
    """Add the arguments of `lift`."""
    to.add_argument("contract", type=sha256, metavar="CONTRACT", help="digest of the run's contract")
    to.add_argument("round", type=positive, metavar="ROUND", help="round for which sites have released their masks")
    to.add_argument("absent", metavar="SITE", help="site that is away, and cannot burn the round")
    add_domain(to)
    to.add_argument("--runs", type=path, help=_RUNS_HELP)
    to.add_argument("--accept-risk", action="store_true", help="confirm what the command says that it puts at risk")


def lift(
    *,
    contract: str,
    round: int,  # noqa: A002
    absent: str,
    domain: Path,
    passphrase: PassphraseSource,
    runs: Path | None,
    accept_risk: bool,
) -> int:
    """Let this site's vault continue a run without a site that is away and has not burned the round."""
    from fedpp.keys import key_store

    from ..vault.masked_runs.run_endorsements import lift as write

    folder = runs or domain / RUNS
    risk = (
        f"{absent} has trained for round {round}, and has not signed that it released nothing. If it has released its "
        f"mask, or a copy of its vault does, whoever has that mask can compute the update of {absent} from two sums. "
        "The run's reports will show that this lock was lifted."
    )
    if not accept_risk:
        raise ConfigError(f"{risk} If {absent} cannot sign a burn, confirm with --accept-risk")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder of runs: name that of this site's vault with --runs")
    require_folder(domain)
    site = key_store.open_site(domain, passphrase.read())
    write(folder, site, contract, round, absent, datetime.now(UTC) + timedelta(days=LIFT_DAYS))
    print(printable(risk), file=sys.stderr)
    print(printable(f"lifted the lock of {absent} in round {round}; the vault logs its use, within {LIFT_DAYS} days"))
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
        print(json.dumps([{name: value for name, value in report.items() if name != "test"} for report in reports]))
        return 0
    for report in reports:
        print(printable(f"contract {report['contract'][:16]} of {', '.join(report['sites'])}"))
        for lock in report["lifted"]:
            print(printable(f"  round {lock['round']}, lock lifted without a burn: {lock['site']}, update at risk"))
        for row in report["rounds"]:
            shown = ", ".join(
                f"{name} {row[name]:.4f}" for name in ("loss", "accuracy", "auc") if row[name] is not None
            )
            print(printable(f"  state {row['state']}, {row['split']}: {row['examples']} sequences, {shown}"))
        for line in report["test"]:
            print(f"  {line}" if line else "")
    return 0


def _report(file: Path) -> dict[str, Any]:
    from fedpp.config.task import Task
    from fedpp.errors import FederationError
    from fedpp.learning.assessment import of_task, together
    from fedpp.protocol.counts import Counts
    from fedpp.protocol.finding_counts import FindingCounts

    try:
        read = json.loads(file.read_text())
        task, rounds, test = Task.from_mapping(read["task"]), [], list[str]()
        for name, mapping in read["rounds"].items():
            number, _, split = name.partition(" ")
            counts = (FindingCounts if task.multi_label else Counts).from_mapping(mapping)
            assessed = of_task(counts, task)
            figures = together(assessed) if task.multi_label else assessed[0].to_mapping()
            rounds.append({"state": int(number), "split": split, "examples": counts.examples, **figures})
            test += [line for of_one in assessed for line in of_one.lines() if split == "test"]
        return {
            "contract": str(read["contract"]),
            "lifted": [{"round": int(lock["round"]), "site": str(lock["site"])} for lock in read["lifted"]],
            "sites": list(map(str, read["sites"])),
            "test": test,
            "rounds": sorted(rounds, key=lambda row: (row["split"] != "validation", row["state"])),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FederationError):
        raise VaultError(f"{file} is damaged: remove it, and the vault writes it anew in the next round") from None
