"""Labels in tables: one label has one form, and two classes never look alike; by the same rules in each table."""

from itertools import combinations
from pathlib import Path
from unicodedata import is_normalized

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_images import grey, refused_in_one_line

from fedpp.errors import RawDataError
from fedpp.imaging.label_texts import NO_LABEL, label_texts
from fedpp.imaging.readers.layout import read_sequences
from fedpp.imaging.reasons import Doubt
from fedpp.texts import look_alike

TABLES = {  # of each layout: its table, the header and a row
    "images": ("labels.csv", "patient,label", '{patient},"{label}"'),
    "manifest": ("manifest.csv", "path,patient,label", '{patient}/1.png,{patient},"{label}"'),
    "frames": ("index.csv", "sequence,patient,label", '{patient},{patient},"{label}"'),
}
each_layout = pytest.mark.parametrize("layout", TABLES)
PATIENTS = ("p1", "p2", "p3")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an image of each patient."""
    folder = tmp_path_factory.mktemp("labels")
    for patient in PATIENTS:
        (folder / patient).mkdir()
        grey(1).save(folder / patient / "1.png")
    return folder


def read(raw: Path, layout: str, labels: tuple[str, ...]) -> dict[str, tuple[object, tuple[Doubt, ...]]]:
    """Return the label and the doubts of each patient, read from a table of these labels."""
    name, header, row = TABLES[layout]
    rows = [row.format(patient=patient, label=label) for patient, label in zip(PATIENTS, labels, strict=True)]
    (raw / name).write_text("\n".join((header, *rows)), encoding="utf-8")
    return {sequence.patient: (sequence.label, sequence.doubts) for sequence in read_sequences(raw, layout)[0]}


@each_layout
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("a", "b", "a"), ("a", "b", "a")),
        (("a", "a ", "\u00a0b"), ("a", "a", "b")),
        (("no  finding", "no finding", "no\u2003finding"), ("no finding",) * 3),
        (("Ko\u0308rper", "K\u00f6rper", "b"), ("K\u00f6rper", "K\u00f6rper", "b")),
        (("tumor", "tum\u00f6r", "b"), ("tumor", "tum\u00f6r", "b")),
        (("T1", "T1a", "T01"), ("T1", "T1a", "T01")),
        (("-1", "1", "0"), ("-1", "1", "0")),
        (("1.5", "1", "15"), ("1.5", "1", "15")),
        (("x" * 200, "\u75c5", "b, c; d"), ("x" * 200, "\u75c5", "b, c; d")),
        (("", "b", ""), (None, "b", None)),
    ],
)
def test_a_label_is_read_in_one_form(raw: Path, layout: str, labels: tuple[str, ...], expected: tuple[str, ...]):
    """Blanks and the Unicode form make no other label; whatever people see as another one stays another one."""
    assert read(raw, layout, labels) == dict(zip(PATIENTS, ((label, ()) for label in expected), strict=True))


@each_layout
@pytest.mark.parametrize(
    "word",
    ["nan", "NaN", "N/A", "n/a", "NA", "None", "NULL", "-", "\u2014", "?", "#N/A", "#REF!", "#VALUE!", "<NA>", " . "],
)
def test_a_word_for_no_label_is_none(raw: Path, layout: str, word: str):
    """What programs write where there is no value is no class; it is a doubt, so that it is counted."""
    expected = [("a", ()), (None, (Doubt.NO_LABEL,)), ("b", ())]
    assert read(raw, layout, ("a", word, "b")) == dict(zip(PATIENTS, expected, strict=True))


@each_layout
@pytest.mark.parametrize(
    "other",
    [
        *(
            "Benign 1",
            "BENIGN 1",
            "benign1",
            "\uff42\uff45\uff4e\uff49\uff47\uff4e \uff11",
            "benign \u0661",
            "benign \u00b9",
        ),
        *("b\u0435nign 1", "ben\u0131gn 1", "BEN\u0130GN 1", "\U0001d41benign 1"),
    ],
)
def test_two_labels_that_look_alike_are_refused(raw: Path, layout: str, other: str):
    """Labels that differ in case, blanks, width, digits or letters of other scripts are named by count and line."""
    message = r"writes one label in several forms, that of line 2 \(2 in all\), that of line 3 \(1 in all\): "
    with refused_in_one_line(message, hidden="enign"):
        read(raw, layout, ("benign 1", other, "benign 1"))


@each_layout
@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(
            ("1", "1.0"),
            ("1", "01"),
            ("1", "+1"),
            ("0", "-0"),
            ("1", "1,0"),
            ("10", "1e1"),
            ("1", "1."),
            ("-1", "\u22121.0"),
        ),
        *(
            ("non-small", "non\u2011small"),
            ("o'x", "o\u2019x"),
            ("\ufb01x", "fix"),
            ("stra\u00dfe", "strasse"),
            ("II", "\u2161"),
        ),
    ],
)
def test_two_forms_of_a_number_or_sign_are_refused(raw: Path, layout: str, one: str, other: str):
    """1 and 1.0 would be two classes, and one of two dashes a class of its own."""
    message = r"writes one label in several forms, that of line 2 \(1 in all\), that of line 3 \(2 in all\): "
    with refused_in_one_line(message, hidden=f"'{one}'"):
        read(raw, layout, (one, other, other))


@each_layout
@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("x" * 201, "line 2: label has more than 200 characters"),
        ("a\u200bb", "line 2: label holds a character that is not shown"),
        ("a\u00adb", "line 2: label holds a character that is not shown"),
        ("a\u3164b", "line 2: label holds a character that is not shown"),
        ("a\u202eb", "line 2: label holds a character that is not shown"),
        ("a\x07b", "line 2: label holds a character that is not shown"),
        ("a\tb", "line 2: label holds a character that is not shown"),
        ("a\u2028b", "line 2: label holds a character that is not shown"),
        ("a\ue000b", "line 2: label holds a character that is not shown"),
    ],
)
def test_a_label_that_cannot_be_a_name_is_refused(raw: Path, layout: str, label: str, message: str):
    """Names of classes are public: each is short, and shows all its characters."""
    with refused_in_one_line(message, hidden="xx"):
        read(raw, layout, (label, "c", "d"))


def test_several_labels_of_several_forms_are_counted():
    """The first label is named by its lines, at most eight of its forms, and the others are counted."""
    forms = ["a b c d e", *("a b c d e"[:n] + "a b c d e"[n + 1 :] for n in (1, 3, 5, 7))]
    cells = list(enumerate([*forms, *map(str.upper, forms), "1", "1.0"], 2))
    with refused_in_one_line(
        r"writes 2 labels, the first in several forms, .* line 9 \(1 in all\) and 2 more: ", hidden="a b"
    ):
        label_texts(Path("t.csv"), cells)


def test_words_for_no_label_are_in_the_form_in_which_they_are_compared():
    """A word that was not in its own form would never be found."""
    assert {look_alike(word) for word in NO_LABEL} == NO_LABEL


@given(
    st.lists(
        st.text(st.sampled_from("aA\u0430b1\uff11.0- \u0308\u00e4\u200b") | st.characters(), max_size=5), max_size=6
    )
)
def test_no_two_classes_look_alike(texts: list[str]):
    """Whatever is read is in one form, and any two labels differ for people."""
    try:
        labels = {label for label in label_texts(Path("t.csv"), list(enumerate(texts))) if label}
    except RawDataError as error:
        assert "several forms" in str(error)
        return
    assert all(is_normalized("NFC", label) and label == " ".join(label.split()) for label in labels)
    assert all(look_alike(one) != look_alike(other) for one, other in combinations(labels, 2))
