"""Tables as hospitals have them: each kind in each table is read rightly or refused in one line without a cell.

What is right is written beside the rows by the test itself; the bytes of a table are made by Python's own csv module.
"""

import csv
import gzip
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_images import grey, refused_in_one_line, values

from fedpp.errors import RawDataError
from fedpp.imaging.readers.chexpert import COLUMNS as CHEXPERT
from fedpp.imaging.readers.layout import read_sequences
from fedpp.imaging.sequence import ImageSequence
from fedpp.imaging.tables import header, read_table

LABELS = ("0", "1", "0")  # of the patients patient1, patient2, patient3, whose pixels are 1, 2, 3
PATIENTS = tuple(f"patient{number}" for number in (1, 2, 3))


@dataclass(frozen=True)
class Table:
    """Table of one layout: its file, its columns, and the row of a patient with a label."""

    layout: str
    name: str
    columns: tuple[str, ...]
    row: Callable[[str, str], list[str]]
    label: str  # the column of the label
    negative: str = "0"
    positive: str = "1"


TABLES = (
    Table("images", "labels.csv", ("patient", "label"), lambda patient, label: [patient, label], "label"),
    Table(
        "manifest",
        "manifest.csv",
        ("path", "patient", "time", "label"),
        lambda patient, label: [f"{patient}/study1/view1.png", patient, "2026-01-31", label],
        "label",
    ),
    Table(
        "frames",
        "index.csv",
        ("sequence", "patient", "label"),
        lambda patient, label: [f"{patient}/study1", patient, label],
        "label",
    ),
    Table(
        "chexpert",
        "train.csv",
        CHEXPERT,
        lambda patient, label: [
            f"{patient}/study1/view1.png",
            "Frontal",
            *(label if column == "Pleural Effusion" else "" for column in CHEXPERT[2:]),
        ],
        "Pleural Effusion",
        "no Pleural Effusion",
        "Pleural Effusion",
    ),
)
each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.layout)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one image of each patient, which serves all layouts."""
    folder = tmp_path_factory.mktemp("tables")
    for number, patient in enumerate(PATIENTS, 1):
        (folder / patient / "study1").mkdir(parents=True)
        grey(number).save(folder / patient / "study1" / "view1.png")
    return folder


@pytest.fixture
def read(raw: Path) -> Iterator[Callable[[Table, str | bytes], list[ImageSequence]]]:
    """Return the function that reads the folder with a table of these bytes, recognised or of the given layout."""

    def of(table: Table, content: str | bytes) -> list[ImageSequence]:
        (raw / table.name).write_bytes(content.encode() if isinstance(content, str) else content)
        return read_sequences(raw, table.layout)[0]

    yield of
    for table in TABLES:
        (raw / table.name).unlink(missing_ok=True)


def rows(table: Table) -> list[list[str]]:
    """Return the header and the row of each patient."""
    return [list(table.columns), *map(table.row, PATIENTS, LABELS)]


def text(table: Table, separator: str = ",", end: str = "\n", quoting: int = csv.QUOTE_MINIMAL) -> str:
    """Return the table as Python's csv module writes it."""
    content = io.StringIO()
    csv.writer(content, delimiter=separator, lineterminator=end, quoting=quoting).writerows(rows(table))
    return content.getvalue()


def with_column(table: Table, name: str, cell: str, place: int = 0) -> str:
    """Return the table with one more column of one cell, written by Python's csv module."""
    content = io.StringIO()
    wider = [[*row[:place], cell if number else name, *row[place:]] for number, row in enumerate(rows(table))]
    csv.writer(content, lineterminator="\n").writerows(wider)
    return content.getvalue()


def renamed(table: Table, change: Callable[[str], str]) -> str:
    """Return the table with its first line changed."""
    line, end, others = text(table).partition("\n")
    return change(line) + end + others


def first(table: Table, change: Callable[[list[str]], list[str]]) -> str:
    """Return the table with the first row changed, cells joined by commas as they are."""
    head, first, *others = rows(table)
    return "".join(",".join(row) + "\n" for row in (head, change(first), *others))


SHIFTED, SHORT = "line 2 has more cells", "line 2 has fewer cells"
TWICE = "two columns of one name"
QUOTE = "line 2 has a quote that is not closed on the line, or stands within a cell"
HIDDEN = "line 2: .* a character that is not shown"
Content = Callable[[Table], str | bytes]

# fmt: off
READ: dict[str, Content] = {
    "plain": text,
    "byte order mark": lambda t: text(t).encode("utf-8-sig"),
    "UTF-16, little": lambda t: text(t).encode("utf-16"),
    "UTF-16, big": lambda t: b"\xfe\xff" + text(t).encode("utf-16-be"),
    "semicolons": lambda t: text(t, ";"),
    "tabs": lambda t: text(t, "\t"),
    "tabs in UTF-16, as Excel's Unicode text": lambda t: text(t, "\t", "\r\n").encode("utf-16"),
    "lines of Windows": lambda t: text(t, end="\r\n"),
    "lines of old Macs": lambda t: text(t, end="\r"),
    "line ends written twice": lambda t: text(t, end="\r\r\n"),
    "no end of the last line": lambda t: text(t).rstrip("\n"),
    "Excel's choice of a separator": lambda t: ("sep=;\r\n" + text(t, ";", "\r\n")).encode("utf-8-sig"),
    "Excel's choice of a tab": lambda t: ("sep=\t\r\n" + text(t, "\t", "\r\n")).encode("utf-16"),
    "all cells in quotes": lambda t: text(t, quoting=csv.QUOTE_ALL),
    "quotes after blanks": lambda t: text(t, quoting=csv.QUOTE_ALL).replace(',"', ', "'),
    "columns in capitals": lambda t: renamed(t, str.upper),
    "columns with blanks": lambda t: renamed(t, lambda line: f" {line} ".replace(",", " , ")),
    "blanks around cells": lambda t: text(t).replace(",", " \t,  "),
    "no-break spaces around cells": lambda t: text(t).replace(",", "\u00a0,\u2003"),
    "empty lines": lambda t: ("\n \n" + text(t).replace("\n", "\n\n,,,,\n\t\n")),
    "another column, with separators in quotes": lambda t: with_column(t, "note", "a, b; c\td"),
    "another column, its name with a separator": lambda t: with_column(t, 'weight; kg, "net"', "1;2"),
    "another column, its name of many other separators": lambda t: with_column(t, ";" * 40, "1;2"),
    "the header of NIH's table": lambda t: text(t).replace("\n", ",1,2,\n").replace("1,2", "Size[Width,Height]", 1),
    "another column, with quotes": lambda t: with_column(t, "note", 'so-called "mass", 3"'),
    "a column without a name, as of pandas": lambda t: with_column(t, "", "7"),
    "columns without a name at the end": lambda t: text(t).replace("\n", ",,\n"),
    "more than one mark": lambda t: ("\ufeff\ufeff" + text(t)),
}
REFUSED: dict[str, tuple[Content, str]] = {
    "Latin-1": (lambda t: with_column(t, "note", "\xe4").encode("latin-1"), "neither UTF-8 nor UTF-16"),
    "UTF-16 without a mark": (lambda t: text(t).encode("utf-16-le"), "line 1 is no text"),
    "half of a UTF-16 character": (lambda t: text(t).encode("utf-16")[:-1], "neither UTF-8 nor UTF-16"),
    "zero bytes at the end": (lambda t: text(t).encode() + bytes(9), "line 5 is no text"),
    "another separator": (lambda t: text(t, "|"), "has no column|CheXpert's columns"),
    "a separator of the header only": (lambda t: text(t).replace(",", ";", len(t.columns) - 1), SHORT),
    "two columns of one name": (lambda t: with_column(t, t.label, "1", 2), TWICE),
    "two columns, one in capitals": (lambda t: with_column(t, f" {t.label.upper()} ", "1"), TWICE),
    "two other columns of one name": (lambda t: renamed(t, "note,Note,{}".format).replace("\npat", "\n1,2,pat"), TWICE),
    "a row with one cell more, the last empty": (lambda t: first(t, lambda row: [row[0], "", *row[1:]]), SHIFTED),
    "all rows with one cell more": (lambda t: text(t).replace("\npat", "\n,pat"), rf"{SHIFTED} .*\(3 such"),
    "a row with one cell less": (lambda t: first(t, lambda row: row[1:]), SHORT),
    "a cell below no column": (lambda t: (text(t).replace("\n", ",\n").rstrip("\n") + "9\n"), "line 4 has more cells"),
    "a separator in a cell without quotes": (lambda t: first(t, lambda row: [*row[:-1], f"{row[-1]},x"]), SHIFTED),
    "a quote that is not closed": (lambda t: first(t, lambda row: [*row[:-1], '"' + row[-1]]), QUOTE),
    "a quote that is closed on the next line": (lambda t: first(t, lambda row: [*row[:-1], '"a']) + 'p9"\n', QUOTE),
    "a cell with a line break": (lambda t: with_column(t, "note", "one\ntwo"), QUOTE),
    "a quote within a cell": (lambda t: first(t, lambda row: [f'="{row[0]}"', *row[1:]]), QUOTE),
    "a quote that no quote begins": (lambda t: first(t, lambda row: [f'{row[0]}"', *row[1:]]), QUOTE),
    "quotes with a backslash": (lambda t: with_column(t, "note", "x").replace("\nx,", '\n"a \\"b\\" c",', 1), QUOTE),
    "a control character": (lambda t: first(t, lambda row: [row[0], row[1] + "\x1b[2J", *row[2:]]), HIDDEN),
    "a zero-width character": (lambda t: first(t, lambda row: [row[0] + "\u200b", *row[1:]]), HIDDEN),
    "a character that was lost": (lambda t: first(t, lambda row: [row[0] + "\ufffd", *row[1:]]), "line 2: .* was lost"),
    "a mark within the table": (lambda t: text(t).replace("\n", "\n\ufeff", 1), HIDDEN),
    "a long cell": (lambda t: first(t, lambda row: ["x" * 10_001, *row[1:]]), "line 2: .* more than 10000 characters"),
    "a second header": (lambda t: 2 * text(t), "line 5 is a second header"),
    "a comment line": (lambda t: text(t).replace("\n", "\n# patient\n", 1), SHORT),
    "no header": (lambda t: text(t).partition("\n")[2], "none of those expected|CheXpert's columns"),
    "no row": (lambda t: text(t).partition("\n")[0], "train.csv|manifest.csv|index.csv|labels.csv"),
    "nothing": (lambda _: b"", "has no column|CheXpert's columns"),
}
# fmt: on


@each_table
@pytest.mark.parametrize("kind", READ)
def test_what_a_table_says_is_read(read: Callable[..., list[ImageSequence]], table: Table, kind: str):
    """However a table is written, each patient has the label that the test wrote, and the pixels of the image."""
    found = read(table, READ[kind](table))
    assert [(s.patient, s.label, values(s.frames)) for s in found] == [
        ("patient1", table.negative, [1]),
        ("patient2", table.positive, [2]),
        ("patient3", table.negative, [3]),
    ]
    assert {doubt for s in found for doubt in s.doubts} == set()


@each_table
@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_table_may_say_in_two_ways_is_refused(
    raw: Path, read: Callable[..., list[ImageSequence]], table: Table, kind: str
):
    """A table that is not sure is refused in one line, which names the table and no cell."""
    content, message = REFUSED[kind]
    with refused_in_one_line(message, hidden="patient1", besides=str(raw)):
        read(table, content(table))


@each_table
@pytest.mark.parametrize(
    "kind", [*READ, *(kind for kind in REFUSED if kind not in {"another separator", "no header", "nothing"})]
)
def test_a_table_is_recognised_whether_it_is_right_or_not(tmp_path: Path, table: Table, kind: str):
    """The header is found in a table that is refused, too: its folder is not taken for one of another layout."""
    content = (READ.get(kind) or REFUSED[kind][0])(table)
    (tmp_path / table.name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert header(tmp_path / table.name, (*table.columns, "other")) == set(table.columns)


def test_what_is_no_table_has_no_header(tmp_path: Path):
    """A folder, a missing file, a damaged archive and bytes have no columns; nothing is raised."""
    (tmp_path / "bytes.csv").write_bytes(bytes(range(256)))
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"patient,label\n")[:12])
    for name in (".", "missing.csv", "bytes.csv", "cut.csv.gz"):
        assert header(tmp_path / name, ("patient", "label")) == set()


def test_a_compressed_table_is_read(tmp_path: Path):
    """A table named .gz is decompressed; one that is cut, or no archive, is refused."""
    table = tmp_path / "labels.csv.gz"
    for content, message in ((gzip.compress(b"patient,label\np,a\n"), ""), (b"patient,label\np,a\n", "cut or damaged")):
        table.write_bytes(content)
        if message:
            with pytest.raises(RawDataError, match=message):
                read_table(table, ("patient",), "")
        else:
            assert read_table(table, ("patient",), "", ("label", "other")) == [(2, {"patient": "p", "label": "a"})]
            table.write_bytes(content[:-9])
            with pytest.raises(RawDataError, match="cut or damaged"):
                read_table(table, ("patient",), "")


SHOWN = st.text(st.characters(exclude_categories=("C", "Z", "M")) | st.sampled_from(' ",;\t'), max_size=6)
CELLS = st.lists(st.tuples(SHOWN, SHOWN, SHOWN), min_size=1, max_size=5)


@given(
    CELLS,
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_cells_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, ...]], separator: str, end: str, encoding: str
):
    """Whatever cells Python's csv module writes are read again without their outer blanks, or refused by their line."""
    file = tmp_path_factory.mktemp("any") / "table.csv"
    with file.open("w", newline="", encoding=encoding) as content:
        csv.writer(content, delimiter=separator, lineterminator=end).writerows([("x", "y", "z"), *cells])
    stripped = [tuple(cell.strip() for cell in row) for row in cells]
    try:
        found = read_table(file, ("y", "x", "z"), "is empty")
    except RawDataError as error:
        hidden = any(not cell.isprintable() for row in stripped for cell in row)
        invisible = "not shown" in str(error) and any(not cell.isascii() for row in stripped for cell in row)
        assert hidden or invisible or not any(map(any, stripped)) or ("x", "y", "z") in stripped, str(error)
    else:
        assert [(row["x"], row["y"], row["z"]) for _, row in found] == [row for row in stripped if any(row)]
