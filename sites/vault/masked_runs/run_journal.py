"""Journal of masked runs: all that a vault must not forget, on the disk before the reply that depends on it leaves.

::

    FOLDER/journal.sqlite   contracts, statements, locks, releases, and secrets sealed under a key of domain and site
    FOLDER/arrays/HASH      updates and states, sealed likewise, since rows of weights give the key of the domain away;
                            named by their SHA-256, written and synced before the row that names it

One process at a time has it open. A journal that comes from a backup is not the newest: the vault would sign a second
statement in a place where it has signed another one, which its peers find out (`StatementChains`). Locks are kept for
ever; what a closed round does not need is forgotten.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Self

from fedpp.errors import VaultError
from fedpp.files import lock_folder, make_folder, replace, sync_folder
from fedpp.key_material import seal, subkey, unseal
from fedpp.keys.key_store import Site
from fedpp.keys.sealed_state import RECORD_BYTES, StateSealer

FORMAT = "fedpp-runs-3"
DATABASE, ARRAYS = "journal.sqlite", "arrays"

_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE contracts (
    digest TEXT PRIMARY KEY, nonce TEXT NOT NULL, revision INTEGER NOT NULL, parent TEXT NOT NULL,
    text TEXT NOT NULL, certificates TEXT NOT NULL, dataset TEXT NOT NULL, accepted INTEGER NOT NULL, started INTEGER,
    ended TEXT NOT NULL DEFAULT '', key BLOB
) STRICT;
CREATE UNIQUE INDEX one_of_nonce ON contracts (nonce, revision) WHERE ended != 'abandoned';
CREATE TABLE statements (
    contract TEXT NOT NULL, site TEXT NOT NULL, place INTEGER NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (contract, site, place)
) STRICT;
CREATE TABLE updates (
    weights TEXT NOT NULL, plan TEXT NOT NULL, purpose TEXT NOT NULL, dataset TEXT NOT NULL, file TEXT NOT NULL,
    counts BLOB NOT NULL, nonce TEXT NOT NULL, round INTEGER NOT NULL, PRIMARY KEY (weights, plan, purpose, dataset)
) STRICT;
CREATE TABLE seeds (
    context TEXT PRIMARY KEY, contract TEXT NOT NULL, round INTEGER NOT NULL, seed BLOB NOT NULL
) STRICT;
CREATE TABLE releases (context TEXT PRIMARY KEY, aggregate TEXT NOT NULL, sealed BLOB NOT NULL) STRICT;
CREATE TABLE locks (
    weights TEXT NOT NULL, purpose TEXT NOT NULL, context TEXT NOT NULL, contract TEXT NOT NULL, round INTEGER NOT NULL,
    plan TEXT NOT NULL, PRIMARY KEY (weights, purpose)
) STRICT;
CREATE TABLE forks (
    contract TEXT NOT NULL, site TEXT NOT NULL, one TEXT NOT NULL, other TEXT NOT NULL, PRIMARY KEY (contract, site)
) STRICT;
CREATE TABLE burns (context TEXT PRIMARY KEY) STRICT;
CREATE TABLE stages (
    contract TEXT NOT NULL, round INTEGER NOT NULL, digest TEXT NOT NULL, file TEXT NOT NULL,
    PRIMARY KEY (contract, round)
) STRICT;
"""

Row = tuple[Any, ...]


class RunJournal:
    """An open journal; its callers take turns."""

    def __init__(self, folder: Path, database: sqlite3.Connection, lock: int, key: bytes) -> None:
        """Keep what `open` made."""
        self._folder, self._database, self._lock, self._key = folder, database, lock, key
        self._sealer = StateSealer(FORMAT, subkey(key, salt=b"fedpp run journal 2", info=b"arrays"))

    @classmethod
    def open(cls, folder: Path, site: Site) -> Self:
        """Open or create the journal of a site; raise `VaultError` where another vault has it open."""
        try:
            make_folder(folder, 0o700)
            make_folder(folder / ARRAYS, 0o700)
            lock = lock_folder(folder)
        except OSError as error:
            raise VaultError(f"cannot open the folder of runs {folder}: {error.strerror}") from None
        if lock is None:
            raise VaultError(f"another vault has the folder of runs {folder} open: give each its own --runs")
        try:
            database = _connected(folder / DATABASE)
            try:
                journal = cls(folder, database, lock, _key(site))
                journal._begin({"format": FORMAT, "domain": site.domain.card().fingerprint, "site": _owner(site)})
            except BaseException:
                database.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        return journal

    @classmethod
    def reopen(cls, folder: Path, site: Site) -> Self:
        """Open a journal that is there, while no vault runs on it; raise `VaultError` where there is none."""
        if not (folder / DATABASE).is_file():
            raise VaultError(
                f"there is no journal of runs in {folder}: without it nobody knows what this site has released, and "
                "nothing is signed; name its --runs, or see how-to/restore_a_site.md"
            )
        return cls.open(folder, site)

    def close(self) -> None:
        """Leave the journal to another process."""
        self._database.close()
        os.close(self._lock)

    @property
    def folder(self) -> Path:
        """Return the folder."""
        return self._folder

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make all changes within as one, on the disk at the end, or none."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.commit()
            except BaseException:
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise VaultError(f"the journal of runs cannot be written ({error}): free space, and try again") from None

    def commit(self) -> None:
        """Write the changes to the disk."""
        self._database.execute("COMMIT")

    def insert(self, table: str, **values: str | int | bytes | None) -> None:
        """Add a row, within `writing`; one of the same key must not be there."""
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        self._database.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))  # noqa: S608  names are code

    def update(self, table: str, changes: dict[str, str | int | bytes | None], **where: str | int) -> None:
        """Change rows, within `writing`."""
        change = ", ".join(f"{name} = ?" for name in changes)
        values = (*changes.values(), *where.values())
        self._database.execute(f"UPDATE {table} SET {change} WHERE {_condition(where)}", values)  # noqa: S608  names are code

    def delete(self, table: str, **where: str | int) -> None:
        """Remove rows, within `writing`."""
        self._database.execute(f"DELETE FROM {table} WHERE {_condition(where)}", tuple(where.values()))  # noqa: S608  names are code

    def rows(self, table: str, columns: str, order: str = "", /, **where: str | int) -> list[Row]:
        """Return these columns of the rows that match, in an order if one is given."""
        query = f"SELECT {columns} FROM {table} WHERE {_condition(where)}"  # noqa: S608  names are code
        return self._database.execute(query + (f" ORDER BY {order}" if order else ""), tuple(where.values())).fetchall()

    def row(self, table: str, columns: str, **where: str | int) -> Row | None:
        """Return these columns of the only row that matches, or None."""
        return next(iter(self.rows(table, columns, "", **where)), None)

    def seal(self, content: bytes, what: str) -> bytes:
        """Return a secret as it is stored; `what` is authenticated with it."""
        return seal(self._key, content, what.encode())

    def unseal(self, stored: bytes, what: str) -> bytes:
        """Return a secret that `seal` stored; raise `VaultError` if it was changed or is another one."""
        try:
            return unseal(self._key, stored, what.encode())
        except ValueError:
            raise VaultError("the journal of runs is damaged: a secret in it cannot be decrypted") from None

    def keep(self, *content: bytes | memoryview) -> str:
        """Write an array's bytes to the disk, sealed, and return the hash of what is there: `read` finds it by that."""
        digest = sha256()
        sealed = list(self._sealer.seal(ARRAYS, (bytes(block) for part in content for block in _blocks(part))))
        for part in sealed:
            digest.update(part)
        name = digest.hexdigest()
        try:
            replace(self._folder / ARRAYS / name, *sealed)
            sync_folder(self._folder / ARRAYS)
        except OSError as error:
            raise VaultError(f"the journal of runs cannot be written ({error.strerror}): free space") from None
        return name

    def read(self, name: str) -> memoryview:
        """Return the bytes that `keep` wrote; raise `VaultError` if they are missing or damaged."""
        content = bytearray()
        try:
            with (self._folder / ARRAYS / name).open("rb") as file:
                if file_digest(file, "sha256").hexdigest() != name:
                    raise VaultError(f"the journal of runs is damaged: array {name[:16]} has other bytes")
                file.seek(0)
                for record in self._sealer.unseal(iter(lambda: file.read(RECORD_BYTES), b""))[1]:
                    content += record
        except OSError as error:
            raise VaultError(f"the journal of runs is damaged: array {name[:16]}: {error.strerror}") from None
        return memoryview(content)

    def remove_unnamed(self) -> None:
        """Remove arrays that no row names: of forgotten rounds, or of a write that did not end."""
        named = {name for table in ("updates", "stages") for (name,) in self.rows(table, "file")}
        for path in (self._folder / ARRAYS).iterdir():
            if path.name not in named:
                path.unlink()

    def _begin(self, facts: dict[str, str]) -> None:
        known: Sequence[Row] = self._database.execute("SELECT name FROM sqlite_master").fetchall()
        if not known:
            with self.writing():
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._database.execute(statement)
                for name, value in facts.items():
                    self.insert("facts", name=name, value=value)
            sync_folder(self._folder)
        found = {str(name): str(value) for name, value in self.rows("facts", "name, value")}
        if found != facts:
            wrong = next(name for name, value in facts.items() if found.get(name) != value)
            raise VaultError(
                f"the folder of runs {self._folder} is of another {wrong}, {found.get(wrong)!r:.80}: "
                f"this vault's is {facts[wrong]!r:.80}; give each its own --runs"
            )
        self.remove_unnamed()


def _blocks(content: bytes | memoryview) -> Iterator[memoryview]:
    """Yield content in blocks, none of which is copied."""
    view = memoryview(content).cast("B")
    return (view[start : start + RECORD_BYTES] for start in range(0, len(view), RECORD_BYTES))


def _connected(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
        path.chmod(0o600)
        for setting in (
            "locking_mode = EXCLUSIVE",
            "journal_mode = TRUNCATE",
            "synchronous = FULL",
            "secure_delete = ON",
        ):
            database.execute(f"PRAGMA {setting}")
        database.execute("BEGIN EXCLUSIVE")
        database.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise VaultError(
            f"cannot open the journal of runs {path}: {error}: restore it, or start a new folder"
        ) from None
    return database


def _key(site: Site) -> bytes:
    """Return the key of the stored secrets, which needs the domain's secret and the site's own."""
    return subkey(site.identity.seed_bytes(), salt=site.domain.derive("run journal"), info=b"fedpp run journal 1")


def _owner(site: Site) -> str:
    return f"{site.identity.name} {site.identity.signing_key}"


def _condition(where: dict[str, str | int]) -> str:
    return " AND ".join(f"{name} = ?" for name in where) or "TRUE"
