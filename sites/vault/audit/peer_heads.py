"""Heads of audit logs that a site's peers remember: each statement of a masked run names its signer's log at the time.

A statement says how many records the log had, and the hash of the newest. Within a contract the vault refuses a log
that went back. Over all contracts that it stored, two heads for one number of records show a fork; and whoever has the
log itself compares it with what others remember: a record that is missing, or another one, shows a cut or a fork.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedpp.errors import FederationError, VaultError
from fedpp.protocol.run_statements import SignedStatement
from fedpp.values import is_hex

from ..masked_runs.run_journal import DATABASE

Heads = dict[int, str]  # records of a log -> hash of the newest


def heads_of(statements: Iterable[SignedStatement]) -> dict[str, Heads]:
    """Return the heads of each site's log that statements name; raise `VaultError` for a log that was forked."""
    found: dict[str, Heads] = {}
    for signed in statements:
        of = signed.statement
        known = found.setdefault(of.site, {})
        if of.log_records and known.setdefault(of.log_records, of.log_head) != of.log_head:
            raise VaultError(
                f"the audit log of {of.site} was forked: two of its statements name another record {of.log_records}, "
                f"{known[of.log_records][:16]} and {of.log_head[:16]}; keep the folder of runs, it is the proof"
            )
    return {site: dict(sorted(heads.items())) for site, heads in sorted(found.items())}


def stored_statements(folder: Path) -> list[SignedStatement]:
    """Return the statements in a folder of masked runs, which a vault may have open; raise `VaultError`."""
    try:  # immutable: without the running vault's lock; a read during its write may have to be repeated
        database = sqlite3.connect(f"{(folder / DATABASE).resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            rows = database.execute("SELECT text FROM statements ORDER BY contract, site, place").fetchall()
        finally:
            database.close()
        return [SignedStatement.from_json(text) for (text,) in rows]
    except (sqlite3.Error, FederationError) as error:
        raise VaultError(
            f"cannot read the statements in {folder} ({error}): name the folder of the vault's --runs, or try again"
        ) from None


def to_json(heads: Mapping[str, Heads]) -> str:
    """Return what `load` reads."""
    return json.dumps(heads)


def load(file: Path, site: str) -> Heads:
    """Return a site's heads from a peer's file; raise `VaultError` for anything else."""
    try:
        heads = {int(records): str(head) for records, head in json.loads(file.read_text())[site].items()}
    except KeyError:
        raise VaultError(f"{file} has no head of {site}: the peer stored no statement of it") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise VaultError(f"cannot read the heads in {file} ({error}): it is from `audit-log heads --json`") from None
    if not all(records > 0 and is_hex(head) for records, head in heads.items()):
        raise VaultError(f"cannot read the heads in {file}: a head is a hash of 64 hexadecimal digits")
    return heads
