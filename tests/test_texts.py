"""Text from outside."""

import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpp.texts import MAX_CHARACTERS, PrintableFormatter, counted, look_alike, one_line, printable


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


CONTROLS = (
    "".join(map(chr, (*range(32), *range(127, 160))))
    + "\u2028\u2029\u200e\u200f\u061c"
    + "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xDC80, 0xDD00))))
)


@given(st.text(st.one_of(st.characters(), st.sampled_from(CONTROLS), st.integers(0, 0x10FFFF).map(chr)), max_size=200))
def test_a_printable_text_commands_no_terminal(text: str) -> None:
    """Controls of terminals and of writing direction, line ends and undecodable bytes are replaced, and it is UTF-8."""
    shown = printable(text)
    assert not set(shown) & set(CONTROLS)
    assert len(shown.splitlines()) <= 1
    shown.encode()


def test_the_escapes_of_a_file_name_are_legible() -> None:
    """The characters of any language stay as they are, and an escape says which character it replaces."""
    assert printable("Müller 患者 é\\.dcm") == "Müller 患者 é\\.dcm"
    assert printable("a\x1b]0;b\x07\n\u202e\udc80") == r"a\x1b]0;b\x07\n\u202e\udc80"


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("P1", "p1", True),
        ("P 1", "P1 ", True),
        ("Ko\u0308nig", "K\u00f6nig", True),
        ("\uff30\uff11", "P1", True),
        ("P\u200b1", "P1", True),
        ("\u3392", "mhz", True),
        ("\u0420\u0421", "PC", True),
        ("\u0397\u0391", "HA", True),
        ("BEN\u0130GN", "benign", True),
        ("1\u20132", "1-2", True),
        ("K\u00f6nig", "Konig", False),
        ("P1", "P01", False),
        ("P1", "P-1", False),
    ],
)
def test_texts_look_alike(one: str, other: str, *, alike: bool) -> None:
    """Case, blanks, width, Unicode form and letters of other scripts do not count; accents, digits and signs do."""
    assert (look_alike(one) == look_alike(other)) is alike


@given(st.text(max_size=20))
def test_a_form_looks_like_its_text(text: str) -> None:
    """The form has no blanks, and the text in other cases has the same one."""
    assert not any(character.isspace() for character in look_alike(text))
    assert look_alike(f" {text}\u200b") == look_alike(text)


@given(st.text(st.characters(codec="ascii")))
def test_a_form_is_that_of_the_text_in_full_width(text: str) -> None:
    """What is written with ASCII alone has the form that it has in the width of Chinese characters."""
    wide = "".join(chr(ord(each) + 0xFEE0) if "!" <= each <= "~" else each for each in text)
    assert look_alike(wide) == look_alike(text)


@pytest.mark.parametrize(
    ("count", "noun", "expected"),
    [
        (0, "patient", "0 patients"),
        (1, "patient", "1 patient"),
        (2, "image file", "2 image files"),
        (1, "class", "1 class"),
        (3, "class", "3 classes"),
    ],
)
def test_number_has_its_noun_in_the_fitting_form(count: int, noun: str, expected: str) -> None:
    """One is in the singular, all others in the plural."""
    assert counted(count, noun) == expected
