"""Texts that came from others, fit for a log and a terminal."""

MAX_CHARACTERS = 1000


def one_line(text: str) -> str:
    """Return a text as one line of printable characters, cut where it is long."""
    line = " ".join(text[: 2 * MAX_CHARACTERS].split())
    return "".join(character for character in line if character.isprintable())[:MAX_CHARACTERS]
