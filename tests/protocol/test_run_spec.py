"""A plan: within bounds, of one spelling, and whole."""

import json
from typing import Any

import pytest
from coordinator_runs import describe
from hypothesis import given
from hypothesis import strategies as st
from run_specs import RUN_SPEC, varied

from fedpp.errors import FederationError
from fedpp.protocol.run_spec import RunSpec

SAID = json.loads(RUN_SPEC.to_json())
HUGE = 10**400  # which no float holds
POSITIVE = ("learning_rate", "server_learning_rate", "server_tau")
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(HUGE) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def refusal(text: str) -> str:
    """Return why a plan is refused, which must be one line."""
    with pytest.raises(FederationError, match="run specification: ") as raised:
        RunSpec.from_json(text)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1100
    return str(raised.value)


def test_equal_plans_are_one_text() -> None:
    """A number that a setting has as a whole one is the same number."""
    whole = varied(RUN_SPEC, max_update_value=8, max_update_norm=10, max_loss_increase=1)
    assert whole == RUN_SPEC
    assert whole.to_json() == RUN_SPEC.to_json() == RunSpec.from_json(whole.to_json()).to_json()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *(
            ({name: value}, f"{name.replace('_', '-')} must be a whole number ")
            for name in ("epochs", "seed", "examples", "sites", "max_examples")
            for value in (-1, 2**63, HUGE, 1.0, True, "1", None, [1])
        ),
        *(({name: 0}, f"{name} must be a whole number ") for name in ("epochs", "examples", "sites")),
        ({"epochs": 1001}, "epochs must be a whole number from 1 to 1000, got 1001"),
        ({"sites": 1001}, "sites must be a whole number from 1 to 1000, got 1001"),
        *(
            ({name: value}, f"{name.replace('_', '-')} must be a finite number ")
            for name in ("max_update_value", "max_update_norm", "max_loss_increase", *POSITIVE)
            for value in (0.0, -1.0, float("nan"), float("inf"), HUGE, True, "1", None, [1.0])
        ),
        *(
            ({name: value}, f"{name.replace('_', '-')} must be a finite number of at least 0")
            for name in ("positive_weight", "label_smoothing", "proximal", "server_momentum", "server_beta_2")
            for value in (-1.0, float("nan"), float("inf"), HUGE, "fast", None)
        ),
        *(({"masked": value}, "masked must be true or false") for value in (1, 0, "yes", None)),
        *(({"dtype": value}, "dtype must be one of float32, float64, got") for value in ("float16", 64, None, [])),
        *(
            ({"domain": value}, "domain must be 64 hexadecimal digits")
            for value in (7, None, "", "d" * 63, "D" * 64, "d" * 64 + "\n")
        ),
        ({"lstm": 10_000}, "a network may have 50000000 parameters"),
        ({"dense": 2**63 - 1, "filters": [2**62]}, "a network may have 50000000 parameters"),
        ({"dense": HUGE}, "dense must be a whole number"),
        *(({"filters": value}, "filters") for value in ("no filters", 7, None, {}, [], [0])),
        ({"classes": ["no"]}, "a network needs two classes"),
        *(({"batch_size": value}, "batch-size must be a whole number") for value in (0, 4097, 2.0, True)),
        ({"server_optimizer": "adam"}, "server-optimizer must be one of"),
        ({"split": "test"}, "unknown 'split'"),
    ],
)
def test_a_plan_out_of_bounds_is_refused(change: dict[str, object], reason: str) -> None:
    """A site does no work for a plan that no coordinator of ours would make."""
    assert reason in refusal(json.dumps({**SAID, **change}))


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "7", "[]", '"x"', "{}", "[" * 100_000, '{"network":' * 50_000, '{"seed":' + "9" * 5000 + "}"],
)
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    """Neither nested, nor huge, nor of another kind: one line says so."""
    refusal(text)


@pytest.mark.parametrize("name", list(SAID))
def test_a_plan_says_everything(name: str) -> None:
    """Nothing is taken for granted that the text does not say."""
    refusal(json.dumps({key: value for key, value in SAID.items() if key != name}))


@given(st.sampled_from(list(SAID)), ANY)
def test_any_value_is_a_plan_s_or_refused(name: str, value: Any) -> None:
    """Whatever stands in a plan, it is read as a plan that reads the same again, or refused."""
    try:
        run_spec = RunSpec.from_json(json.dumps({**SAID, name: value}))
    except FederationError as error:
        assert str(error).isprintable()
    else:
        assert RunSpec.from_json(run_spec.to_json()) == run_spec


def test_a_site_counts_what_the_run_lets_it() -> None:
    """At most so many examples, or all that it has where there is no such bound; the sum of a run is of what counts."""
    bounded, free = varied(RUN_SPEC, max_examples=7), varied(RUN_SPEC, max_examples=0)
    assert [bounded.weight(examples) for examples in (0, 6, 7, 8, 10**9)] == [0, 6, 7, 7, 7]
    assert [free.weight(examples) for examples in (0, 6, 10**9)] == [0, 6, 10**9]
    sites = [describe(name, sequences=(sequences, 2, 1)) for name, sequences in (("a", 3), ("b", 12))]
    assert (bounded.of_sites(sites).examples, free.of_sites(sites).examples) == (10, 15)
