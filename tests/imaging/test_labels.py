"""Class maps: from a hospital's labels to class numbers, class 0 the negative one."""

import pytest

from fedpp.errors import ConfigError, RawDataError, UsageError
from fedpp.imaging.labels import ClassMap, label_names, label_of
from fedpp.imaging.sequence import ImageSequence
from fedpp.protocol.counts import UNKNOWN


def labelled(*labels: str | None) -> list[ImageSequence]:
    return [ImageSequence(str(i), f"secret{i}", label, ()) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("b", "a", "b"), ("a", "b")),
        (("Edema", "no Edema"), ("no Edema", "Edema")),  # by name alone, the finding would be negative
        (("nothing", "no"), ("no", "nothing")),
        (("COVID", "Normal"), ("Normal", "COVID")),
        (("benign", "adenosis"), ("benign", "adenosis")),
        (("normal", "benign"), ("benign", "normal")),  # both are such words: the first by name
        (("1", "0", "1"), ("label 0", "label 1")),
        (("1,5", "-2.0"), ("label -2.0", "label 1,5")),
    ],
)
def test_two_labels_need_no_choice(labels, classes):
    """The label of health or absence is negative, or else the first by name; a bare number is named as a label."""
    chosen = ClassMap.choose(labelled(*labels), None, None)
    assert chosen.classes == classes
    assert {chosen.number(label) for label in labels} == {0, 1}
    assert classes[chosen.number(labels[0])].endswith(labels[0])


def test_more_labels_need_a_choice():
    """Three labels and more end with the labels and their counts, and the two ways to choose."""
    with pytest.raises(UsageError) as refused:
        ClassMap.choose(labelled("b", "a", "b", "c"), None, None)
    assert str(refused.value) == (
        "3 different labels are 'a' 1, 'b' 2, 'c' 1: choose --negative LABEL, one against all others, or list them, "
        "the negative one first: --classes LABEL,LABEL,..."
    )
    with pytest.raises(UsageError, match="33 different labels: choose") as many:
        ClassMap.choose(labelled(*(f"patient {number}" for number in range(33))), None, None)
    assert "patient" not in str(many.value)


def test_a_list_gives_the_order():
    """With a list, classes are in its order, a label that does not occur included."""
    chosen = ClassMap.choose(labelled("b", "a"), ("b", "a", "c"), None)
    assert [chosen.number(label) for label in "bac"] == [0, 1, 2]


def test_a_list_leaves_other_labels_out():
    """Sequences of labels that are not listed are counted, and have no class."""
    sequences = labelled("b", "a", "x", "b", "y", "x")
    chosen = ClassMap.choose(sequences, ("b", "a"), None)
    assert chosen.taken(sequences) == ([sequences[0], sequences[1], sequences[3]], {"x": 2, "y": 1})
    with pytest.raises(RawDataError, match="none of the classes"):
        chosen.number("x")
    many = labelled("b", "a", *(f"patient {number}" for number in range(33)))
    assert chosen.taken(many) == (many[:2], {"33 other labels": 33})


def test_a_list_may_name_its_labels():
    """A name after a label is the class's; a label that holds the sign itself is meant as it stands."""
    chosen = ClassMap.choose(labelled("0", "1", "2"), ("0=healthy", "1 = tumour"), None)
    assert (chosen.classes, chosen.number("0"), chosen.number("1")) == (("healthy", "tumour"), 0, 1)
    same = ClassMap.choose(labelled("T=1", "T=2"), ("T=1", "T=2"), None)
    assert (same.classes, same.number("T=2")) == (("T=1", "T=2"), 1)
    assert ClassMap.choose(labelled("0", "1", "2"), ("0=healthy", "1=a", "2=b"), "0").classes == ("healthy", "a or b")


def test_a_choice_is_read_as_tables_are():
    """Blanks and Unicode forms of a choice are those of a label in a table."""
    composed = ClassMap.choose(labelled("e\u0301tat"[1:], "a  b"), None, None)
    assert composed.classes == tuple(sorted(("\u0301tat", "a  b")))
    chosen = ClassMap.choose(labelled("\u00e9tat", "a b"), ("  a  b", "e\u0301tat "), None)
    assert [chosen.number("a b"), chosen.number("\u00e9tat")] == [0, 1]
    assert ClassMap.choose(labelled("a b", "c"), None, " a  b ").number("a b") == 0


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        (("x", "Regular", "y"), None, ("Regular", "x or y")),
        (("x", "Regular"), None, ("Regular", "x")),
        (("0", "1", "2"), None, ("label 0", "label 1 or label 2")),
        (("x", "Regular", "y", "z"), ("Regular", "y", "x"), ("Regular", "y or x")),
        (("x", "Regular"), ("Regular", "y", "x"), ("Regular", "y or x")),  # as another site that has y
        (
            tuple(f"finding {n}" for n in range(9)),
            None,
            ("finding 0", f"{', '.join(f'finding {n}' for n in (1, 2, 3, 4))}"),
        ),
    ],
)
def test_one_label_stands_against_the_rest(labels, classes, names):
    """With a negative, it is class 0 and the others are class 1, which names them in at most 60 characters."""
    negative = next(label for label in labels if label in {"Regular", "0", "finding 0"})
    chosen = ClassMap.choose(labelled(*labels), classes, negative)
    assert chosen.classes == names or (chosen.classes[0], chosen.classes[1][: len(names[1])]) == names
    assert len(chosen.classes[1]) <= 60
    assert [chosen.number(label) for label in labels if label != "z"] == [
        int(label != negative) for label in labels if label != "z"
    ]


def test_very_many_other_labels_are_not_named():
    """Where there are so many labels that they may be patients, their number is the name."""
    chosen = ClassMap.choose(labelled("well", *(f"patient {number}" for number in range(33))), None, "well")
    assert chosen.classes == ("well", "33 other labels")


def test_unlabelled_data_have_no_classes():
    """Without any label the map is empty."""
    assert ClassMap.choose(labelled(None, None), None, None).classes == ()


@pytest.mark.parametrize(
    ("labels", "classes", "negative", "error", "message"),
    [
        (("a", None, "b"), None, None, RawDataError, "1 of 3 sequences have no label"),
        ((None, None), ("a", "b"), None, RawDataError, "no sequence has a label"),
        ((None, None), None, "a", RawDataError, "no sequence has a label"),
        (("a", "b"), None, "c", RawDataError, "no sequence has the negative label 'c': labels are 'a', 'b'"),
        (("a", "b"), ("c", "d"), None, RawDataError, "no sequence has one of the classes c, d: labels are 'a', 'b'"),
        (("benign", "malignant"), ("benign", "malignat"), None, RawDataError, "'malignat', did you mean malignant?"),
        (("0", "1"), ("0", "1.0"), None, RawDataError, "no sequence has the label '1.0', but '1'"),
        (("a", "a"), None, "a", RawDataError, "all sequences have the negative label 'a'"),
        (("a", "a"), None, None, RawDataError, "all sequences have the label 'a'"),
        (("a", "b"), ("a",), None, ConfigError, "at least two"),
        (("a", "b"), ("a", "a"), None, ConfigError, "at least two"),
        (("a", "b"), ("a=x", "b=x"), None, ConfigError, "at least two"),
        (("a", "b"), ("a=", "b"), None, ConfigError, "at least two"),
    ],
)
def test_what_does_not_fit_is_refused(labels, classes, negative, error, message):
    """Partly labelled data, unknown labels and contradicting choices are refused with what was found."""
    with pytest.raises(error, match=message) as refused:
        ClassMap.choose(labelled(*labels), classes, negative)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("label", ["z", None])
def test_a_label_outside_the_map_is_refused(label):
    """A label that came later, or none, has no class."""
    with pytest.raises(RawDataError, match="none of the classes"):
        ClassMap(("a", "b")).number(label)
    with pytest.raises(RawDataError, match="none of the classes"):
        ClassMap(("Regular", "x or y"), (("Regular",), ("x", "y"))).number(label)


FINDINGS = ("Edema", "Fracture")


def several(*labels: tuple[str | None, ...] | None) -> list[ImageSequence]:
    return [ImageSequence(str(i), f"secret{i}", label, ()) for i, label in enumerate(labels)]


def test_findings_become_states():
    """The names are those of the target, in its order, and a state is 1, 0 or unknown."""
    chosen = ClassMap.choose(several(("1", "0"), (None, "1")), None, None, FINDINGS)
    assert (chosen.classes, chosen.multi_label) == (FINDINGS, True)
    assert chosen.target(("1", None)) == (1, UNKNOWN)
    assert chosen.target(("0", "1")) == (0, 1)


def test_one_label_is_no_finding():
    """Where labels are single, names of findings change nothing."""
    chosen = ClassMap.choose(labelled("b", "a"), None, None, FINDINGS)
    assert (chosen, chosen.target("b")) == (ClassMap(("a", "b"), (("a",), ("b",))), 1)


@pytest.mark.parametrize(
    ("labels", "classes", "negative", "error", "message"),
    [
        ((("1", "0"), None), None, None, RawDataError, "1 of 2 sequences have no label"),
        ((("1", "0"),), ("a", "b"), None, ConfigError, "several findings have their own names"),
        ((("1", "0"),), None, "0", ConfigError, "several findings have their own names"),
    ],
)
def test_findings_that_do_not_fit_are_refused(labels, classes, negative, error, message):
    """A sequence without any known finding, and choices that are for one label, are named."""
    with pytest.raises(error, match=message):
        ClassMap.choose(several(*labels), classes, negative, FINDINGS)


@pytest.mark.parametrize("label", [None, "1", ("1",), ("1", "0", "0")])
def test_a_label_of_other_findings_is_refused(label):
    """Neither one label nor the states of fewer or more findings are read as these."""
    with pytest.raises(RawDataError, match="no tuple of the states of Edema, Fracture"):
        ClassMap(FINDINGS, multi_label=True).target(label)


def test_label_names_are_the_present_findings():
    """A label is its own name; several findings give the names of those present, no label none."""
    assert label_names("x", FINDINGS) == ("x",)
    assert label_names((None, "1"), FINDINGS) == ("Fracture",)
    assert label_names(("0", None), FINDINGS) == label_names(None, FINDINGS) == ()


@pytest.mark.parametrize(
    ("finding", "without", "negative"), [("Edema", "no Edema", "no Edema"), ("No Finding", "any finding", "No Finding")]
)
def test_the_absence_of_a_finding_has_a_readable_name(finding: str, without: str, negative: str) -> None:
    """The sequences without a finding are the negative ones, but for those without "No Finding"."""
    labels = [label_of((state,), (finding,)) for state in ("1", "0")]
    assert labels == [finding, without]
    assert ClassMap.choose(labelled(finding, without), None, None).classes[0] == negative
