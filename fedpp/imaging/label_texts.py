"""Texts of labels in tables: those that become the public names of classes, each in one form.

Only what nobody can mean is unified: another Unicode form (NFC), and more or other blanks than one. Whatever else looks
alike is refused, since two classes would be one finding, or one class two.
"""

import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from unicodedata import normalize

from fedpp.config.task import LONGEST_CLASS
from fedpp.errors import RawDataError
from fedpp.texts import look_alike

FORMS = 8  # forms of one label whose lines are named
# What programs and people write where there is no value: pandas, R, Excel, SAS; in one form.
# fmt: off
NO_LABEL = frozenset((
    "nan", "n/a", "#n/a", "na", "#na", "<na>", "none", "null", "nil", "-", "--", "?", ".",
    "#ref!", "#value!", "#name?", "#div/0!", "#null!", "#num!",
))
# fmt: on
_NUMBER = re.compile(r"[+-]?\d+([.,]\d*)?(e[+-]?\d{1,3})?")


def is_no_label(text: str) -> bool:
    """Tell whether a cell says by a word that there is no label; an empty cell is none without a word."""
    return look_alike(text) in NO_LABEL


def label_texts(table: Path, cells: Iterable[tuple[int, str]]) -> list[str | None]:
    """Return the label of each cell, given with its line, or None where it is empty or `is_no_label`.

    Raises `RawDataError` for a label that is too long, and for two that differ only as `look_alike` says or in the
    form of their number, such as 1 and 1.0.
    """
    forms: dict[str, dict[str, list[int]]] = {}
    labels = []
    for line, cell in cells:
        text = " ".join(normalize("NFC", cell).split())
        labels.append(None if not text or is_no_label(text) else text)
        if len(text) > LONGEST_CLASS:
            raise RawDataError(f"{table}, line {line}: label has more than {LONGEST_CLASS} characters: shorten it")
        if labels[-1]:
            forms.setdefault(_form(text), {}).setdefault(text, []).append(line)
    if several := [list(lines.values()) for lines in forms.values() if len(lines) > 1]:
        raise RawDataError(f"{table} writes {_number(len(several))} in several forms, {_listed(several[0])}")
    return labels


def _form(text: str) -> str:
    """Return the form that labels share which may be the same."""
    alike = look_alike(text)
    return str(Fraction(alike.replace(",", "."))) if _NUMBER.fullmatch(alike) else alike


def _number(labels: int) -> str:
    return "one label" if labels == 1 else f"{labels} labels, the first"


def _listed(lines: list[list[int]]) -> str:
    shown = ", ".join(f"that of line {of_form[0]} ({len(of_form)} in all)" for of_form in lines[:FORMS])
    others = f" and {len(lines) - FORMS} more" if len(lines) > FORMS else ""
    return f"{shown}{others}: they differ in case, blanks, letters that look alike, or as 1 and 1.0; write one form"
