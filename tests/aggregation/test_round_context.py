"""The facts of a round and of a sum: one spelling each, and nothing else is read."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpp.aggregation.ring import BITS, Ring
from fedpp.aggregation.round_context import MAX_ENCODED_VALUES, MAX_ROUND_TEXT, Aggregate, Contribution, Round
from fedpp.config.run_config import MAX_BOUND, MAX_EXAMPLES, MAX_SITES
from fedpp.errors import MaskError
from fedpp.protocol.membership import is_site_name

HASH = st.text("0123456789abcdef", min_size=64, max_size=64)
HUGE = 10**400  # which no float holds
RING = Ring(64, 20, 3, 8.0)
ROUND = Round("ab" * 32, 1, 2, "cd" * 32, "ef" * 32, 77, RING)
PARTS = (Contribution("north", 5), Contribution("süd", 7))
SUM = Aggregate(PARTS)
RINGS = st.builds(Ring, st.just(64), st.integers(1, 2**20), st.integers(1, MAX_SITES), st.floats(2.0**-20, 2.0**10))
ROUNDS = st.builds(
    Round, HASH, st.integers(0, 2**53), st.integers(0, 2**53), HASH, HASH, st.integers(1, MAX_ENCODED_VALUES), RINGS
)
NAMES = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).filter(is_site_name)
CONTRIBUTIONS = st.builds(Contribution, NAMES, st.integers(1, MAX_EXAMPLES))
SUMS = st.builds(Aggregate, st.lists(CONTRIBUTIONS, max_size=4).map(tuple))
NO_TEXTS = ("", "{", "null", "7", '"x"', "[]", "{}", "[" * 100_000, '{"ring":' * 50_000, '{"parts":' * 50_000)
NO_NUMBERS = (-1, HUGE, 1.0, float("nan"), True, "1", None, [1])


def refused(kind: type[Round] | type[Aggregate], text: str) -> None:
    """Require that a text is refused in one line."""
    with pytest.raises(MaskError) as raised:
        kind.from_json(text)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300


@given(ROUNDS)
def test_a_round_survives_its_json(of: Round) -> None:
    """from_json(of.to_json()) == of."""
    assert Round.from_json(of.to_json()) == of


@given(SUMS)
def test_a_sum_survives_its_json(total: Aggregate) -> None:
    """from_json(total.to_json()) == total."""
    assert Aggregate.from_json(total.to_json()) == total


@pytest.mark.parametrize("of", [ROUND, SUM])
def test_a_changed_byte_is_refused_or_another_value(of: Round | Aggregate) -> None:
    """Each byte, in each of its bits and as each of some others: no value is read from a second text."""
    text, taken = of.to_json(), 0
    for place, byte in enumerate(text):
        for other in {*(chr(ord(byte) ^ 1 << bit) for bit in range(8)), *'0aA-+. "_'} - {byte}:
            changed = text[:place] + other + text[place + 1 :]
            try:
                read = type(of).from_json(changed)
            except MaskError as error:
                assert str(error).isprintable()
            else:
                taken += 1
                assert read != of
                assert read.to_json() == changed
    assert taken > 0, "another digit is another value"


@given(st.data())
def test_a_cut_or_stretched_text_is_refused(data: st.DataObject) -> None:
    """A text that lacks something, or has something more, is refused, or the text of another value."""
    of = data.draw(ROUNDS | SUMS)
    text = of.to_json()
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    changed = text[:start] + data.draw(st.text(max_size=5)) + text[stop:]
    try:
        assert type(of).from_json(changed).to_json() == changed
    except MaskError:
        assert changed != text


@pytest.mark.parametrize("text", NO_TEXTS)
def test_a_text_that_is_no_round_and_no_sum_is_refused(text: str) -> None:
    """Neither nested, nor empty, nor of another kind."""
    refused(Round, text)
    refused(Aggregate, text)


def test_a_text_that_is_too_long_is_refused() -> None:
    """Spaces or digits without end are not read, and not said back."""
    for kind, of in ((Round, ROUND), (Aggregate, SUM)):
        refused(kind, of.to_json() + " " * MAX_ROUND_TEXT)
        refused(kind, " " * 20_000_000 + of.to_json())
    refused(Aggregate, Aggregate(PARTS[:1] * 100_000).to_json())
    refused(Round, ROUND.to_json().replace('"number":1', f'"number":{"9" * 5000}'))
    refused(Aggregate, SUM.to_json().replace('"examples":5', f'"examples":{"9" * 5000}'))


@pytest.mark.parametrize("name", [field.name for field in fields(Round)])
def test_a_round_says_everything(name: str) -> None:
    """A missing fact, and one more, are refused."""
    facts = json.loads(ROUND.to_json())
    refused(Round, json.dumps({**facts, "more": 1}, sort_keys=True, separators=(",", ":")))
    del facts[name]
    refused(Round, json.dumps(facts, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("number", "attempt", "length") for value in NO_NUMBERS),
        *((name, 2**53 + 1) for name in ("number", "attempt")),
        *(("length", value) for value in (0, MAX_ENCODED_VALUES + 1)),
        *(
            (name, value)
            for name in ("run", "base", "run_spec")
            for value in ("", "a" * 63, "A" * 64, "a" * 64 + "\n", 7, None, ["a" * 64])
        ),
        *(("ring", value) for value in (None, 7, [], {}, "x", {"bits": 64})),
        *(("ring", {**vars(RING), name: value}) for name in ("bits", "examples", "sites") for value in NO_NUMBERS),
        *(("ring", {**vars(RING), "bits": value}) for value in (16, 33, 128)),
        ("ring", {**vars(RING), "examples": MAX_EXAMPLES + 1}),
        ("ring", {**vars(RING), "sites": MAX_SITES + 1}),
        *(
            ("ring", {**vars(RING), "bound": value})
            for value in (0.0, -8.0, 8, MAX_BOUND * 2, float("nan"), float("inf"), HUGE, True, "8", None)
        ),
        ("ring", {"bits": 32, "examples": MAX_EXAMPLES, "sites": 1, "bound": MAX_BOUND}),
    ],
)
def test_a_round_has_bounds_and_types(name: str, value: Any) -> None:
    """Every fact is of one type and within its bounds: 1.0 or true, which equal 1, would be a second spelling."""
    facts = {**json.loads(ROUND.to_json()), name: value}
    refused(Round, json.dumps(facts, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize("bits", BITS)
def test_a_round_at_its_bounds_is_one(bits: int) -> None:
    """The least and the largest of each fact are read."""
    least = Round("0" * 64, 0, 0, "f" * 64, "0" * 64, 1, Ring(bits, 1, 1, 2.0**-20))
    largest = Round(
        "f" * 64, 2**53, 2**53, "0" * 64, "f" * 64, MAX_ENCODED_VALUES, Ring(64, MAX_EXAMPLES, MAX_SITES, MAX_BOUND)
    )
    for of in (least, largest):
        assert Round.from_json(of.to_json()) == of


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("examples", value) for value in (*NO_NUMBERS, 0, MAX_EXAMPLES + 1)),
        *(("site", value) for value in ("", " north", "no\nrth", "a" * 201, "\ud800", "\u200b", 7, None, ["north"])),
        *((name, 1) for name in ("nonce", "min_cohort", "more")),
    ],
)
def test_a_contribution_has_bounds_and_types(name: str, value: Any) -> None:
    """A name that no site has, examples beyond the bounds and one more fact are no contribution."""
    first, second = json.loads(SUM.to_json())["parts"]
    text = json.dumps({"parts": [{**first, name: value}, second]}, sort_keys=True, separators=(",", ":"))
    refused(Aggregate, text)


@pytest.mark.parametrize(
    "change",
    [
        *({"parts": value} for value in (None, 7, {}, {"site": 1}, ["north"], [None], [[]], [{}])),
        {"tag": "0"},
        {"more": 1},
    ],
)
def test_a_sum_has_one_spelling(change: dict[str, Any]) -> None:
    """It is a list of contributions, and nothing more."""
    text = json.dumps({**json.loads(SUM.to_json()), **change}, sort_keys=True, separators=(",", ":"))
    refused(Aggregate, text)


def test_examples_add_up() -> None:
    """The sum's examples are those of its contributions."""
    assert (SUM.examples, Aggregate(()).examples) == (12, 0)


def test_what_differs_in_a_fact_is_another_round() -> None:
    """No two rounds have one text."""
    others = [
        replace(ROUND, run="0" * 64),
        replace(ROUND, number=2),
        replace(ROUND, attempt=3),
        replace(ROUND, base="0" * 64),
        replace(ROUND, run_spec="0" * 64),
        replace(ROUND, length=78),
        *(replace(ROUND, ring=replace(RING, **{name: 5})) for name in ("examples", "sites")),
        replace(ROUND, ring=replace(RING, bits=32)),
        replace(ROUND, ring=replace(RING, bound=16.0)),
    ]
    assert len({ROUND.to_json(), *(other.to_json() for other in others)}) == len(others) + 1
