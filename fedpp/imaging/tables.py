"""Tables beside raw images: CSV files in UTF-8 with a header, written by the hospital.

No message quotes a cell: if a table's columns are shifted, any cell may identify a patient.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from fedpp.errors import RawDataError

NO_IMAGE = "names no image: add a line for each"  # of an empty table of images
Line = tuple[int, dict[str, str]]  # the number of a table's line, and its cells by column


def read_table(table: Path, columns: Sequence[str], empty: str) -> list[Line]:
    """Return a table's rows that are not empty, cells without surrounding blanks: "P1 " is the patient "P1".

    Raises `RawDataError` for a table that cannot be read, lacks one of `columns`, or has no row (message `empty`).
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = names = [column.strip() for column in reader.fieldnames or ()]
            _check_header(table, names, columns)
            rows = [(reader.line_num, _stripped(table, reader.line_num, row)) for row in reader]
    except UnicodeDecodeError:
        raise RawDataError(f"cannot read the table {table}: it is not UTF-8, save it as CSV in UTF-8") from None
    except FileNotFoundError:
        raise RawDataError(
            f"{table.parent} has no {table.name}: name the folder that has it, or another layout"
        ) from None
    except OSError as error:
        raise RawDataError(f"cannot read the table {table}: {error.strerror}: check its permissions") from None
    except csv.Error as error:
        raise RawDataError(f"cannot read the table {table}: {error}") from None
    if not (rows := [(line, row) for line, row in rows if any(row.values())]):
        raise RawDataError(f"{table} {empty}")
    return rows


def header(table: Path) -> set[str]:
    """Return a table's columns, none if it cannot be read: to recognise a table."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            return {column.strip() for column in next(csv.reader(file), [])}
    except (OSError, UnicodeDecodeError, csv.Error):
        return set()


def file_inside(root: Path, name: str) -> Path | None:
    """Return the path below `root` that a table names, or None if it leads outside.

    Links are followed later: the folder's owner sets them, not the table.
    """
    relative = Path(os.path.relpath(root / name, root))
    return None if relative.parts[:1] == (os.pardir,) else root / relative


def is_file(path: Path) -> bool:
    """Tell whether a file exists; False for a name that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113  `Path.is_file` raises for it


def is_folder(path: Path) -> bool:
    """Tell whether a folder exists; False for a name that no folder can have."""
    return os.path.isdir(path)  # noqa: PTH112  `Path.is_dir` raises for it


def _check_header(table: Path, names: list[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        # without a header line, this is a patient's row: only expected names are quoted
        found = ", ".join(name for name in columns if name in names) or "none of those expected"
        hint = "is its first line a header, with commas?"
        raise RawDataError(f"{table} has no column {', '.join(missing)}, it has {found}: {hint}")
    if any(names.count(name) > 1 for name in names if name):
        raise RawDataError(f"{table} has two columns of one name: rename or remove one of them")


def _stripped(table: Path, line: int, row: dict[str, str | None]) -> dict[str, str]:
    beyond: Sequence[str] = row.pop(None, None) or ()  # type: ignore[call-overload]
    if any(cell.strip() for cell in beyond):
        raise RawDataError(f"{table}, line {line} has more cells than the header: quote a cell that holds a comma")
    return {name: (value or "").strip() for name, value in row.items()}
