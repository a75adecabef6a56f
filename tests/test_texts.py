"""Texts of others."""

from hypothesis import given
from hypothesis import strategies as st

from fedpp.texts import MOST_CHARACTERS, one_line


@given(st.text(max_size=3000))
def test_a_text_of_others_is_one_printable_line(text: str) -> None:
    """No line break, no terminal's command, no endless line; what was such a line stays as it is."""
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= MOST_CHARACTERS
    assert one_line(line.strip()) == " ".join(line.split())
