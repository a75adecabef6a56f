"""Texts of others."""

import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpp.texts import MAX_CHARACTERS, PrintableFormatter, one_line, printable


@given(st.text(max_size=3000))
def test_a_text_of_others_is_one_printable_line(text: str) -> None:
    """No line break, no terminal's command, no endless line; what was such a line stays as it is."""
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= MAX_CHARACTERS
    assert one_line(line.strip()) == " ".join(line.split())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("no\n such\tsite \r\n", "no such site"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("x" * 5000, "x" * MAX_CHARACTERS),
        (" " * 5000 + "x", ""),
    ],
    ids=["breaks", "a terminal's command", "long", "spaces"],
)
def test_a_line_keeps_its_words_apart_and_ends(text: str, line: str) -> None:
    """What breaks a line parts two words; what does not show is left out; only the beginning is read."""
    assert one_line(text) == line


@given(st.text(max_size=300))
def test_a_printable_text_is_one_line_and_loses_nothing(text: str) -> None:
    """Control characters become escapes from which the text can be restored; a printable text stays as it is."""
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert (shown == text) == text.isprintable()
    if "\\" not in text and text.isascii():
        assert shown.encode().decode("unicode_escape") == text


def _raise(text: str) -> None:
    raise ValueError(text)


def test_a_traceback_reaches_no_terminal_raw() -> None:
    """Its lines stay lines, and an error's text loses its commands for the terminal."""
    try:
        _raise("\x1b[2J\u202egone")
    except ValueError:
        record = logging.LogRecord("fedpp", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    shown = PrintableFormatter("%(levelname)s: %(message)s").format(record).splitlines()
    assert (shown[0], shown[-1]) == ("ERROR: failed", r"ValueError: \x1b[2J\u202egone")
    assert all(line.isprintable() for line in shown)
