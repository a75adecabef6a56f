"""Texts for people: untrusted text made fit for a log or a terminal, and the name that a mistyped one may stand for."""

import logging
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from unicodedata import decimal, normalize

MAX_CHARACTERS = 1000
# Characters that show nothing: Unicode 15's Default_Ignorable_Code_Point, a blank Braille cell, a null notehead.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)

# Letters (in lower case), dashes and quotes that differ and look alike, some as capitals only; and Turkish i.
_ALIKE = str.maketrans(
    "авекмнорстухіјѕһԁԛԝαβεζηικμνορτυχ\u0131\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2018\u2019\u02bc`",
    "abekmhopctyxijshdqwabezhikmnoptyxi-------''''",
    "\u0307",
)


class PrintableFormatter(logging.Formatter):
    """Log formatter for terminals: a traceback may hold control characters of others' texts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines, each printable."""
        return printable_lines(super().format(record))


def printable_lines(text: str) -> str:
    """Return a text with its lines kept, each `printable`."""
    return "\n".join(map(printable, text.splitlines()))


def printable(text: str) -> str:
    """Return a text on one line, with escapes in place of control characters and bytes that are no text.

    Nothing is lost: a file can be identified by its name. `one_line` is for the messages of other parties.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def one_line(text: str) -> str:
    """Return a text as one line of printable characters, cut where it is long."""
    line = " ".join(text[: 2 * MAX_CHARACTERS].split())
    return "".join(character for character in line if character.isprintable())[:MAX_CHARACTERS]


def short(text: str, longest: int) -> str:
    """Return a text of at most so many characters, with an ellipsis in place of its end."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def counted(count: int, noun: str) -> str:
    """Return a number with its regular noun in singular or plural: 1 patient, 2 patients, 2 classes."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def either(names: Sequence[str], longest: int = 60) -> str:
    """Return "a, b or c", with a count in place of the last names where it would be longer."""
    if len(names) == 1:
        return short(names[0], longest)
    for shown in range(len(names), 0, -1):
        rest = len(names) - shown
        last = f"{rest} more" if rest else names[-1]
        text = f"{', '.join(names[: shown if rest else shown - 1])} or {last}"
        if len(text) <= longest:
            return text
    return f"{len(names)} classes"


def suggestion(given: str, known: Iterable[str]) -> str:
    """Return ", did you mean NAME?" with the known name that is closest to a mistyped one, or nothing."""
    close = get_close_matches(given, list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def look_alike(text: str) -> str:
    """Return the form that texts share which people take for one: another case, blanks, width or Unicode form.

    Letters and digits of other scripts become those that they look like or stand for; what shows nothing is left out.
    """
    if text.isascii():  # tables have millions
        return "".join(text.casefold().replace("`", "'").split())
    folded = normalize("NFKC", INVISIBLE.sub("", normalize("NFKC", text)).casefold())
    digits = "".join(str(decimal(each)) if each.isdecimal() else each for each in folded)
    return "".join(digits.translate(_ALIKE).split())
