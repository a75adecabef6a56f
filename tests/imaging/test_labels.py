"""Class maps: from a hospital's labels to class numbers, class 0 the negative one."""

import pytest

from fedpp.errors import ConfigError, RawDataError
from fedpp.imaging.labels import ClassMap, label_names
from fedpp.imaging.sequence import ImageSequence
from fedpp.protocol.counts import UNKNOWN


def labelled(*labels: str | None) -> list[ImageSequence]:
    return [ImageSequence(str(i), f"secret{i}", label, ()) for i, label in enumerate(labels)]


def test_labels_are_sorted_without_a_choice():
    """With no choice, classes are the labels in the order of the alphabet."""
    chosen = ClassMap.choose(labelled("b", "a", "b"), None, None)
    assert chosen.classes == ("a", "b")
    assert [chosen.number("a"), chosen.number("b")] == [0, 1]


def test_a_list_gives_the_order():
    """With a list, classes are in its order, a label that does not occur included."""
    chosen = ClassMap.choose(labelled("b", "a"), ("b", "a", "c"), None)
    assert [chosen.number(label) for label in "bac"] == [0, 1, 2]


def test_one_label_stands_against_the_rest():
    """With a negative, it is class 0 and all the others are class 1."""
    chosen = ClassMap.choose(labelled("x", "Regular", "y"), None, "Regular")
    assert chosen.classes == ("Regular", "not Regular")
    assert [chosen.number(label) for label in ("Regular", "x", "y")] == [0, 1, 1]


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
        (("a", "b"), ("a", "c"), None, RawDataError, "labels 'b' are none of the classes a, c"),
        (("a", "a"), None, None, RawDataError, "all sequences have the label 'a'"),
        (tuple(map(str, range(33))), None, None, RawDataError, "there are 33 different labels, more than 32"),
        (("a", "b"), ("a", "b"), "a", ConfigError, "choose one of them"),
        (("a", "b"), ("a",), None, ConfigError, "at least two"),
        (("a", "b"), ("a", "a"), None, ConfigError, "at least two"),
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
        ClassMap(("Regular", "not Regular"), "Regular").number(None)


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
    assert (chosen, chosen.target("b")) == (ClassMap(("a", "b")), 1)


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
