"""Tables beside raw images: text files of rows with a header, written by the hospital; one reader for all layouts.

A table that can be read in two ways is refused: a shifted row or an open quote would make figures wrong, or put a
patient's name among the public names of classes. No message quotes a cell: any may identify a patient.
"""

import csv
import gzip
import os
import re
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from unicodedata import category, normalize

from fedpp.errors import RawDataError
from fedpp.texts import INVISIBLE, look_alike

NO_IMAGE = "names no image: add a line for each"  # of an empty table of images
MAX_BYTES = 2**28
MAX_LINE = 100_000  # characters; the csv module has a bound of its own above it
MAX_CELL = 10_000  # characters
Line = tuple[int, dict[str, str]]  # the number of a table's line, and its cells by column

_SEPARATORS = (",", ";", "\t")
_BREAK = re.compile(r"\r\n|\r|\n")
_CHOICE = re.compile(r'\s*"?sep=[,;\t]"?\s*', re.IGNORECASE)  # first line of a table that Excel is to open
_LOST = "\N{REPLACEMENT CHARACTER}"  # of a text that was decoded wrongly before


@dataclass(frozen=True)
class _Table:
    """Text of a table: its separator, its columns' names in one form, and the numbered lines below its header."""

    separator: str
    names: list[str]
    lines: list[tuple[int, str]]


def read_table(
    table: Path,
    columns: Sequence[str],
    empty: str,
    optional: Sequence[str] = (),
    other_names: Mapping[str, str] = MappingProxyType({}),
) -> list[Line]:
    """Return a table's rows that are not empty: the cells of `columns`, and of those `optional` ones that it has.

    The text is UTF-8, or UTF-16 with its mark; of comma, semicolon and tab, the header tells which separates cells.
    A column is found in any case, and keyed as the caller writes it. Blanks around a cell are no part of it: "P1 " is
    the patient "P1". Raises `RawDataError` for a table that cannot be read in one way only, that lacks one of
    `columns`, that has one of `other_names` in place of the optional column that it maps to, or that has no row
    (message `empty`).
    """
    known = (*columns, *optional)
    found = _parsed(_text(table), known)
    _check_header(table, found, columns)
    _check_names(table, found.names, other_names)
    rows = [(line, _split(table, line, text, found.separator)) for line, text in found.lines]
    rows = [(line, cells) for line, cells in rows if any(cells)]
    _check_rows(table, found.names, rows)
    if not rows:
        raise RawDataError(f"{table} {empty}")
    places = {name: found.names.index(look_alike(name)) for name in known if look_alike(name) in found.names}
    return [(line, {name: _shown(table, line, name, cells[at]) for name, at in places.items()}) for line, cells in rows]


def header(table: Path, columns: Sequence[str]) -> set[str]:
    """Return those of `columns` that a table has, none if it cannot be opened: to recognise a table.

    One that `read_table` refuses is recognised, too, so that it is refused and not ignored.
    """
    try:
        text = _decoded(_content(table, MAX_LINE), "replace") if is_file(table) else ""
    except (OSError, EOFError, zlib.error):
        return set()
    names = _parsed(text.replace("\0", ""), columns).names
    return {name for name in columns if look_alike(name) in names}


def file_inside(root: Path, name: str) -> Path | None:
    """Return the path below `root` that a table names, or None if it leads outside.

    Where nothing has that name, Windows's separator and the Unicode forms NFC and NFD are tried, too. Links are
    followed later: the folder's owner sets them, not the table.
    """
    plain = name.replace("\\", "/")
    forms = dict.fromkeys((name, plain, normalize("NFC", plain), normalize("NFD", plain)))
    several = len(forms) > 1  # rarely: tables have hundreds of thousands of rows
    written = next((form for form in forms if several and os.path.lexists(root / form)), name)
    relative = Path(os.path.relpath(root / written, root))
    return None if relative.parts[:1] == (os.pardir,) else root / relative


def is_file(path: Path) -> bool:
    """Tell whether a file exists; False for a name that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113  `Path.is_file` raises for it


def is_folder(path: Path) -> bool:
    """Tell whether a folder exists; False for a name that no folder can have."""
    return os.path.isdir(path)  # noqa: PTH112  `Path.is_dir` raises for it


def _text(table: Path) -> str:
    try:
        content = _content(table, MAX_BYTES + 1)
        text = _decoded(content)
    except UnicodeDecodeError:
        what = "it is neither UTF-8 nor UTF-16 with its mark: save it as CSV in UTF-8"
        raise RawDataError(f"cannot read the table {table}: {what}") from None
    except FileNotFoundError:
        raise RawDataError(
            f"{table.parent} has no {table.name}: name the folder that has it, or another layout"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise RawDataError(f"cannot read the table {table}: it is cut or damaged: copy it again") from None
    except OSError as error:
        raise RawDataError(f"cannot read the table {table}: {error.strerror}: check its permissions") from None
    if len(content) > MAX_BYTES:
        raise RawDataError(f"{table} has more than {MAX_BYTES} bytes: is it a table?")
    if "\0" in text:
        line = 1 + len(_BREAK.findall(text, 0, text.index("\0")))
        raise RawDataError(f"cannot read the table {table}: line {line} is no text: save it as CSV in UTF-8")
    return text


def _content(table: Path, most: int) -> bytes:
    """Return a table's first bytes; those of one named `.gz` are decompressed."""
    with gzip.open(table) if table.suffix.lower() == ".gz" else table.open("rb") as file:
        return file.read(most)


def _decoded(content: bytes, errors: str = "strict") -> str:
    encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8"
    return content.decode(encoding, errors).lstrip("\ufeff")


def _parsed(text: str, columns: Sequence[str]) -> _Table:
    """Return the table, its separator being the one with which the header has most of `columns`, or most cells."""
    lines = [(number, line) for number, line in enumerate(_BREAK.split(text), 1) if line.strip()]
    (_, first), *below = lines[1 if lines and _CHOICE.fullmatch(lines[0][1]) else 0 :] or [(1, "")]
    known = set(map(look_alike, columns))
    names = {separator: _names(first, separator) for separator in _SEPARATORS}
    separator = max(names, key=lambda each: (len(known.intersection(names[each])), len(names[each])))
    return _Table(separator, names[separator], below)


def _names(line: str, separator: str) -> list[str]:
    try:
        return [look_alike(cell) for cell in _cells(line, separator)]
    except csv.Error:
        return []


def _cells(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator, strict=True, skipinitialspace=True))


def _check_header(table: Path, found: _Table, columns: Sequence[str]) -> None:
    missing = [name for name in columns if look_alike(name) not in found.names]
    if missing:
        # without a header line, this is a patient's row: only expected names are quoted
        others = ", ".join(name for name in columns if name not in missing) or "none of those expected"
        hint = "is its first line a header, with commas, semicolons or tabs?"
        raise RawDataError(f"{table} has no column {', '.join(missing)}, it has {others}: {hint}")
    if any(found.names.count(name) > 1 for name in found.names if name):
        raise RawDataError(f"{table} has two columns of one name: rename or remove one of them")


def _check_names(table: Path, names: Sequence[str], others: Mapping[str, str]) -> None:
    """Raise `RawDataError` for a column that stands for an optional one, which would be passed over."""
    for name in names:
        if others.get(name, name) not in names:
            raise RawDataError(
                f"{table} has a column {name}, which is not read, and none named {others[name]}: rename it "
                f"{others[name]} if it is that, or else remove it"
            )


def _split(table: Path, number: int, line: str, separator: str) -> list[str]:
    if len(line) > MAX_LINE:
        raise RawDataError(f"{table}, line {number} has more than {MAX_LINE} characters: is it a table?")
    try:
        cells = _cells(line, separator)
    except csv.Error:
        cells = ['"']
    if '"' in line and any('"' in cell and '"{}"'.format(cell.replace('"', '""')) not in line for cell in cells):
        what = "a quote that is not closed on the line, or stands within a cell"
        raise RawDataError(f"{table}, line {number} has {what}: write each row on one line, and such a quote twice")
    return [cell.strip() for cell in cells]


def _check_rows(table: Path, names: list[str], rows: list[tuple[int, list[str]]]) -> None:
    """Raise `RawDataError` for rows that may be shifted, and for a second header, as of two tables in one file."""
    named = max(place for place, name in enumerate(names, 1) if name)
    for line, cells in rows:
        if len(cells) != len(names) or any(cells[named:]):
            differs = "fewer" if len(cells) < len(names) else "more"
            advice = "give each row all its cells, and quote a cell that holds the separator"
            others = sum(len(other) != len(names) for _, other in rows)
            raise RawDataError(
                f"{table}, line {line} has {differs} cells than the header ({others} such lines): {advice}"
            )
        if all(look_alike(cell) == name for cell, name in zip(cells, names, strict=True)):
            raise RawDataError(f"{table}, line {line} is a second header: give each table a file of its own")


def _shown(table: Path, line: int, name: str, cell: str) -> str:
    """Return a cell; raise `RawDataError` for one that people do not see as the program does."""
    if len(cell) > MAX_CELL:
        raise RawDataError(f"{table}, line {line}: {name} has more than {MAX_CELL} characters: is a quote missing?")
    if not cell.isascii() or not cell.isprintable():
        hidden = (not char.isprintable() and category(char) != "Zs" for char in cell)
        if any(hidden) or INVISIBLE.search(cell) or _LOST in cell:
            what = "a character that is not shown, or was lost"
            raise RawDataError(f"{table}, line {line}: {name} holds {what}: write the cell anew")
    return cell
