"""The global state's bytes: the golden file, one text for one state, and nothing else read."""

import json
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, TINY
from global_states import NETWORK, RULES, algebra_of, begun, drawn, flat
from hypothesis import given
from hypothesis import strategies as st

from fedpp import container
from fedpp.aggregation.global_state import MAX_ROUND, GlobalState, unflat
from fedpp.aggregation.server_step import step
from fedpp.config.model_spec import ModelSpec
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.errors import FedppError, ModelError
from fedpp.values import canonical

GOLDEN = ROOT / "tests" / "vectors" / "state-1"
SUM = 32
FLIPS = pytest.mark.parametrize(
    "flips", [(1, 16, 255), pytest.param((2, 4, 8, 32, 64, 128), marks=pytest.mark.slow)], ids=["some bits", "others"]
)


def ramp(low: int) -> dict[str, np.ndarray]:
    """Return rows `[*shape, 2]` of multiples of 1/64: the same numbers everywhere."""
    rows, start = {}, low
    for spec in NETWORK.weights():
        size = 2 * int(np.prod(spec.shape))
        rows[spec.name] = (np.arange(start, start + size) * 37 % 101 - 50).reshape(*spec.shape, 2) / 64.0
        start += size
    return rows


def golden_rounds() -> list[GlobalState]:
    """Return rounds 0 to 3 of FedYogi in float32, as the golden files have the first and the last."""
    states = [begun(ramp(0), RULES["fedyogi"], dtype="float32")]
    for number in range(1, 4):
        states.append(step(states[-1], ramp(17 * number), RULES["fedyogi"], algebra_of(2)))
    return states


def test_the_golden_files_are_what_is_written_today():
    """Round 0 and the third after it are, to the bit, what another machine wrote: format, key, steps and rounding."""
    states = golden_rounds()
    for number in (0, 3):
        stored = (GOLDEN / f"round-{number}.state").read_bytes()
        assert states[number].to_bytes() == stored
        assert GlobalState.from_bytes(stored) == states[number]
        assert states[number].digest == sha256(stored).hexdigest()
    names = [name for name, *_ in json.loads(stored.split(b"\n")[1])["arrays"]]
    weights = [spec.name for spec in NETWORK.weights()]
    assert names == [*weights, *(f"{moment}/{name}" for moment in ("first", "second") for name in weights)]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_state_comes_back(rule: ServerOptimizerConfig, dtype: str, n: int):
    """For every rule, dtype and number of slots, what is read is what was written, in facts and bits."""
    state = step(begun(drawn(n, 0), rule, dtype=dtype), drawn(n, 1), rule, algebra_of(n))
    read = GlobalState.from_bytes(state.to_bytes())
    for name in ("round", "domain", "network", "dtype", "classes", "rule", "n", "digest"):
        assert getattr(read, name) == getattr(state, name)
    for ours, theirs in ((state.rows, read.rows), (state.moments, read.moments)):
        assert list(ours) == list(theirs)
        for name, values in ours.items():
            assert values.dtype == theirs[name].dtype
            np.testing.assert_array_equal(values, theirs[name])
    assert read == state
    assert hash(read) == hash(state)


def test_the_order_of_names_is_no_matter():
    """The same rows in another order, and not contiguous, are the same bytes."""
    rows = drawn(2, 0)
    other = {name: np.asfortranarray(rows[name]) for name in reversed(rows)}
    assert begun(rows, RULES["fedadam"]).to_bytes() == begun(other, RULES["fedadam"]).to_bytes()


def test_other_facts_are_another_state():
    """Whatever differs, the digest does: round, domain, classes, rule, dtype, one bit of an array."""
    state = golden_rounds()[0]
    name = NETWORK.weights()[0].name
    moved = {**state.rows, name: np.nextafter(state.rows[name], np.float32(9))}
    others = [
        replace(state, round=1),
        replace(state, domain="f" * 64),
        replace(state, classes=("yes", "no")),
        replace(state, rule=replace(state.rule, tau=0.5)),
        replace(state, rows=moved),
        begun(ramp(0), state.rule),
    ]
    assert len({state.digest, *(other.digest for other in others)}) == len(others) + 1


def test_arrays_cannot_be_written():
    """A state stays what its digest says; the caller's own arrays stay the caller's."""
    rows = drawn(2, 0)
    state = begun(rows, RULES["fedavgm"])
    for values in (*state.rows.values(), *state.moments.values()):
        with pytest.raises(ValueError, match="read-only"):
            values[...] = 0
    assert all(values.flags.writeable for values in rows.values())


def sealed(body: bytes) -> bytes:
    return body + sha256(body).digest()


def read(content: bytes) -> GlobalState | None:
    """Return the state in some bytes, or None where they are refused in one line; any other error fails."""
    try:
        return GlobalState.from_bytes(content)
    except ModelError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
        return None


@FLIPS
def test_a_flipped_byte_is_refused(flips: tuple[int, ...]):
    """Every byte of a state, of header, arrays or sum, in each of its bits or all: no other state is read."""
    content = (GOLDEN / "round-0.state").read_bytes()
    for place in range(len(content)):
        for flip in flips:
            assert read(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :]) is None


@FLIPS
def test_a_flipped_byte_of_a_header_that_is_summed_again_is_refused_or_what_it_says(flips: tuple[int, ...]):
    """Whoever makes the sum anew gets a refusal, or a state whose bytes are those: never a crash or a second text."""
    body = (GOLDEN / "round-0.state").read_bytes()[:-SUM]
    taken = 0
    for place in range(body.index(b"\n", body.index(b"\n") + 1) + 1):
        for flip in flips:
            forged = sealed(body[:place] + bytes([body[place] ^ flip]) + body[place + 1 :])
            state = read(forged)
            assert state is None or state.to_bytes() == forged
            taken += state is not None
    assert taken > 0, "another digit of a rate is another state"


@given(st.data())
def test_cut_and_stretched_bytes_are_refused(data: st.DataObject):
    """A state that ends early, late, or lacks some bytes within is refused, summed again or not."""
    content = (GOLDEN / "round-3.state").read_bytes()
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, len(content)))
    filling = data.draw(st.binary(max_size=40))
    other = content[:start] + filling + content[stop:]
    assert read(other) is None or other == content
    state = read(sealed(other[:-SUM]))
    assert state is None or state.to_bytes() == sealed(other[:-SUM])


def with_header(**changes: Any) -> bytes:
    """Return round 0 with other facts in its header, its sum made anew."""
    magic, header, arrays = (GOLDEN / "round-0.state").read_bytes()[:-SUM].split(b"\n", 2)
    facts = {name: v for name, v in {**json.loads(header), **changes}.items() if v is not ...}
    return sealed(b"\n".join((magic, json.dumps(facts, sort_keys=True, separators=(",", ":")).encode(), arrays)))


def network_of(**changes: Any) -> str:
    return canonical({**json.loads(NETWORK.to_json()), **changes}).decode()


RULE = RULES["fedyogi"].to_mapping()


def test_the_header_is_made_anew_as_it_was():
    """Without a change, the tests' own header is the state's: so what the next test changes is what is refused."""
    assert with_header() == (GOLDEN / "round-0.state").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"round": ...},
        {"more": 1},
        {"round": -1},
        {"round": MAX_ROUND + 1},
        {"round": 0.0},
        {"round": True},
        {"n": 0},
        {"n": 9},
        {"n": 10**4000},
        {"n": "2"},
        {"dtype": "float16"},
        {"dtype": ["float32"]},
        {"dtype": "float64"},
        {"domain": "F" * 64},
        {"domain": 7},
        {"classes": ["no"]},
        {"classes": ["no", 1]},
        {"classes": "ab"},
        {"classes": {"no": 1, "yes": 2}},
        {"arrays": []},
        {"arrays": [["logits/kernel", "float32", [10**9]]]},
        {"rule": {**RULE, "tau": 1}},
        {"rule": {**RULE, "tau": float("inf")}},
        {"rule": {**RULE, "learning_rate": 10**400}},
        {"rule": {**RULE, "name": ["fedavg"]}},
        {"rule": {**RULE, "name": "fedavg"}},
        {"rule": {"name": "fedyogi"}},
        {"rule": []},
        {"network": {}},
        {"network": "[" * 200_000},
        {"network": network_of(dense=10**9)},
        {"network": network_of(dense=10**4000)},
        {"network": network_of(frames=10**4000)},
        {"network": network_of(filters=[])},
        {"network": network_of(filters=5)},
        {"network": network_of(filters=[], patch=2)},
        {"network": network_of(architecture=["cnn"])},
        {"network": network_of().replace(":", ": ")},
    ],
    ids=lambda changes: json.dumps(changes, default=str)[:60],
)
def test_headers_that_claim_what_is_not_there_are_refused(changes: dict[str, Any]):
    """Facts of other types, out of range, contradictory or huge are one line each, before anything is allocated."""
    assert read(with_header(**changes)) is None


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\n", b"{}\n", b"[]\n", b"5\n", b'"a"\n', b"null\n", b"\xff\n", b'{"round":1}\n'),
        *(b"{" * 5000 + b"\n", b"[" * 200_000 + b"\n", b" " * (container.MAX_HEADER + 1) + b"\n"),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_other_content_is_refused(content: bytes):
    """Nothing, other JSON, other text, deep nesting and long lines are refused, with magic and digest or without."""
    for begin in (b"", b"fedpp-state-1\n"):
        assert read(begin + content) is None
        assert read(sealed(begin + content)) is None


@pytest.mark.parametrize("magic", [b"fedpp-state-2", b"fedpp-state-10", b"fedpp-run-1", b""])
def test_another_format_or_version_is_refused(magic: bytes):
    """A whole state under another magic line is refused."""
    body = (GOLDEN / "round-0.state").read_bytes()[:-SUM]
    assert read(sealed(body)) is not None
    assert read(sealed(magic + body[body.index(b"\n") :])) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_is_finite(value: float):
    """Neither made nor read are states with values that are not numbers."""
    rows = ramp(0)
    rows["logits/bias"] = np.full_like(rows["logits/bias"], value)
    with pytest.raises(ModelError, match="not finite"):
        begun(rows, RULES["fedavg"])
    body = (GOLDEN / "round-3.state").read_bytes()[:-SUM]
    assert read(sealed(body[:-8] + np.array([value], "<f8").tobytes())) is None


def test_extreme_numbers_come_back():
    """The largest, the smallest, subnormal ones and the two zeros keep their bits."""
    info = np.finfo(np.float64)
    rows = ramp(0)
    rows["dense/kernel"][0] = [[info.max, -info.max], [info.smallest_subnormal, -0.0]]
    state = begun(rows, RULES["fedavg"])
    stored = GlobalState.from_bytes(state.to_bytes()).rows["dense/kernel"]
    assert stored.tobytes() == rows["dense/kernel"].tobytes()


def test_a_state_that_does_not_fit_together_is_refused():
    """Other names, shapes or dtypes than the network's, and moments that the rule has not, are a ModelError."""
    state = begun(ramp(0), RULES["fedavgm"])
    (name, values), *_ = state.rows.items()
    for changes in (
        {"rows": {}},
        {"rows": {**state.rows, "more": values}},
        {"rows": {**state.rows, name: values[..., :1]}},
        {"rows": {**state.rows, name: values.astype(np.float16)}},
        {"moments": {}},
        {"rule": RULES["fedadam"]},
        {"rule": RULES["fedavg"]},
        {"network": TINY},
        {"dtype": "float32"},
        {"classes": ("no", "yes", "perhaps")},
    ):
        with pytest.raises(FedppError):
            replace(state, **changes)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("network", [NETWORK, TINY, TINY.changed(voting=True)])
def test_an_update_is_one_vector(network: ModelSpec, n: int):
    """It is every weight's values in the network's order, whatever the mapping's, and comes back."""
    specs, generator = network.weights(), np.random.default_rng(0)
    rows = {spec.name: generator.normal(size=(*spec.shape, n)).astype(np.float32) for spec in reversed(specs)}
    vector = flat(rows, network)
    assert (vector.shape, vector.dtype) == ((network.parameters() * n,), np.float64)
    start = 0
    for spec in specs:
        for value in rows[spec.name].ravel():
            assert vector[start] == value
            start += 1
    back = unflat(vector, network, n)
    assert list(back) == [spec.name for spec in specs]
    for name, values in back.items():
        np.testing.assert_array_equal(values, rows[name])


def test_vectors_and_rows_that_do_not_fit_are_refused():
    """Too short, of another dtype or of two axes; rows without a weight, or of another number of slots."""
    rows = ramp(0)
    vector = flat(rows, NETWORK)
    for bad in (vector[:-1], vector.astype(np.float32), vector[None]):
        with pytest.raises(ModelError, match=f"a vector of {vector.size} float64 values, got"):
            unflat(bad, NETWORK, 2)
    with pytest.raises(ModelError, match="float64 values"):
        unflat(vector, NETWORK, 3)
    for other in ({}, {**rows, "logits/bias": rows["logits/bias"][..., :1]}, {**rows, "more": vector}):
        with pytest.raises(ModelError, match="other names or shapes"):
            flat(other, NETWORK)
