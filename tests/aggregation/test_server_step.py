"""The server's step against its law, Flower's own strategies and the formulas, on ciphertext and on plain numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi
from flwr.supercore.task_identity import TaskIdentity
from global_states import NETWORK, RULES, Arrays, algebra_of, begun, domain_of, drawn, message

from fedpp.aggregation.global_state import GlobalState
from fedpp.aggregation.server_step import step
from fedpp.cipher.components import Algebra
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.errors import ConfigError, DomainMismatchError, ModelError

CASES = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
ROUNDS = 20
EXAMPLES = (3, 1, 8)


@pytest.fixture(autouse=True)
def _in_a_run() -> None:
    """Tell Flower that messages are made inside a run, as its processes do."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def taken(n: int, rule: ServerOptimizerConfig, rounds: int = ROUNDS, size: float = 0.1) -> GlobalState:
    """Return the state after some rounds of drawn updates."""
    state = begun(drawn(n, 0), rule)
    for number in range(1, rounds + 1):
        state = step(state, drawn(n, number, size), rule, algebra_of(n))
    return state


@CASES
@pytest.mark.parametrize("n", [2, 3])
def test_a_step_commutes_with_decryption(n: int, rule: ServerOptimizerConfig):
    """Decrypted after 20 steps on rows, weights are those of 20 steps on the decrypted numbers, to 1e-12 of them."""
    state, plain = begun(drawn(n, 0), rule), begun(message(drawn(n, 0), n), rule)
    for number in range(1, ROUNDS + 1):
        update = drawn(n, number, 0.1)
        state = step(state, update, rule, algebra_of(n))
        plain = step(plain, message(update, n), rule, Algebra.plaintext())
        assert state.round == plain.round == number
        for name, found in message(state.rows, n).items():
            np.testing.assert_allclose(found, plain.rows[name], rtol=1e-12, atol=1e-12)
    for name, start in message(drawn(n, 0), n).items():
        assert np.abs(plain.rows[name] - start).min() > 1e-6, "every weight has moved"


def flower(rule: ServerOptimizerConfig) -> FedAvg:
    """Return Flower's strategy of a rule; without sampling, no grid is asked for nodes."""
    rates: dict[str, Any] = {"fraction_train": 0.0}
    if rule.name == "fedavg":
        return FedAvg(**rates)
    if rule.name == "fedavgm":
        return FedAvgM(**rates, server_learning_rate=rule.learning_rate, server_momentum=rule.momentum)
    kind = FedAdam if rule.name == "fedadam" else FedYogi
    return kind(**rates, eta=rule.learning_rate, beta_1=rule.momentum, beta_2=rule.beta_2, tau=rule.tau)


def record(weights: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(values)) for name, values in weights.items()})


def reply(weights: Arrays, examples: int) -> Message:
    request = Message(RecordDict(), dst_node_id=1, message_type="train")
    request.metadata.__dict__["_message_id"] = "request"
    content = RecordDict({"arrays": record(weights), "metrics": MetricRecord({"num-examples": examples})})
    return Message(content, reply_to=request)


@pytest.mark.parametrize("name", [name for name in RULES if name != "fedavg slowed"])
def test_steps_are_flower_s(name: str):
    """Over 8 rounds of three sites, the global model is that of Flower's own strategy on the sites' weights."""
    rule, strategy = RULES[name], flower(RULES[name])
    state = begun(drawn(1, 0), rule)
    theirs = record(state.rows)
    for number in range(1, 9):
        assert list(strategy.configure_train(number, theirs, ConfigRecord(), None)) == []
        before = {name: array.numpy() for name, array in theirs.items()}
        moves = [drawn(1, 100 * number + site, 0.1) for site in range(len(EXAMPLES))]
        sites = [{name: before[name] + move for name, move in moved.items()} for moved in moves]
        arrays, _ = strategy.aggregate_train(number, [reply(w, k) for w, k in zip(sites, EXAMPLES, strict=True)])
        assert arrays is not None
        theirs = arrays
        mean = {
            name: sum(k * moved[name] for k, moved in zip(EXAMPLES, moves, strict=True)) / sum(EXAMPLES)
            for name in before
        }
        state = step(state, mean, rule, Algebra.plaintext())
        for weight, array in theirs.items():
            np.testing.assert_allclose(state.rows[weight], array.numpy(), rtol=1e-12, atol=1e-13)


def test_a_slowed_average_goes_part_of_the_way():
    """FedAvg with a learning rate of 1/2 goes half of the mean update."""
    rows, update, rule = drawn(2, 0), drawn(2, 1), RULES["fedavg slowed"]
    for name, after in step(begun(rows, rule), update, rule, algebra_of(2)).rows.items():
        np.testing.assert_array_equal(after, rows[name] + 0.5 * update[name])


@CASES
def test_every_site_gets_the_same_bits(rule: ServerOptimizerConfig):
    """Sites that make the key, the state and the steps for themselves, some of it by way of bytes, agree to the bit."""
    one, other = taken(3, rule), begun(drawn(3, 0), rule)
    for number in range(1, ROUNDS + 1):
        other = GlobalState.from_bytes(other.to_bytes())
        update = {name: np.asfortranarray(values) for name, values in reversed(drawn(3, number, 0.1).items())}
        other = step(other, update, rule, domain_of(3).evaluation_key().algebra())
    assert one.digest == other.digest
    assert one.to_bytes() == other.to_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@CASES
def test_rows_are_rounded_once(rule: ServerOptimizerConfig, dtype: str):
    """In either dtype the next rows are the float64 sum of rows and step, rounded to the dtype once."""
    rows = {name: values.astype(dtype) for name, values in drawn(2, 0).items()}
    update = drawn(2, 1, 0.1)
    after = step(begun(rows, rule, dtype=dtype), update, rule, algebra_of(2))
    zero = {name: np.zeros_like(values, np.float64) for name, values in rows.items()}
    change = step(begun(zero, rule), update, rule, algebra_of(2)).rows
    for name, values in after.rows.items():
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, (rows[name].astype(np.float64) + change[name]).astype(dtype))


def by_slot(part: np.ndarray, n: int) -> np.ndarray:
    return np.stack(algebra_of(n).decrypted(part))


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_second_moments_do_not_drown_in_the_decoys(name: str):
    """With decoys whose updates are 1e5 times the message's, 20 rounds keep its second moments to 1e-9 of them."""
    rule, n = RULES[name], 2
    of, state = algebra_of(n), begun(drawn(n, 0), RULES[name])
    plain = begun(message(drawn(n, 0), n), rule)
    for number in range(1, ROUNDS + 1):
        slots = {name: of.decrypted(values) for name, values in drawn(n, number).items()}
        update = {name: of.encrypted((1e-3 * first, 1e2 * decoy)) for name, (first, decoy) in slots.items()}
        state = step(state, update, rule, of)
        plain = step(plain, message(update, n), rule, Algebra.plaintext())
    for weight in state.rows:
        rows, lost = (by_slot(part, n)[0] for part in state.moments[f"second/{weight}"])
        expected = plain.moments[f"second/{weight}"][0, ..., 0]
        np.testing.assert_allclose(rows + lost, expected, rtol=1e-9)
        assert np.abs(rows - expected).max() > 1e-9 * np.abs(expected).max(), "the rows alone lose it"


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam", "fedyogi"])
def test_a_state_holds_no_slot_in_clear(rule: str):
    """No column of an array of a state is the message's weights or moments."""
    state, plain = taken(2, RULES[rule], 3), begun(message(drawn(2, 0), 2), RULES[rule])
    for number in range(1, 4):
        plain = step(plain, message(drawn(2, number, 0.1), 2), RULES[rule], Algebra.plaintext())
    held = {**state.rows, **state.moments}
    for name, plaintext in {**plain.rows, **plain.moments}.items():
        parts = held[name] if name.startswith("second") else [held[name]]
        secret = (plaintext[0] if name.startswith("second") else plaintext)[..., 0]
        assert secret.any()
        for column in (part[..., k] for part in parts for k in range(2)):
            assert np.abs(column - secret).max() > 1e-6 * np.abs(secret).max()


@CASES
@pytest.mark.parametrize("size", [0.0, 1e-160, 1e-30, 1e30, 1e150])
def test_updates_of_any_size_are_taken(rule: ServerOptimizerConfig, size: float):
    """From no update at all to one of 1e150, every value stays finite, and adaptive steps stay bounded."""
    state = begun(drawn(2, 0), rule)
    for number in range(1, 4):
        state = step(state, drawn(2, number, size), rule, algebra_of(2))
    if rule.tau == ServerOptimizerConfig.tau and rule.name in {"fedadam", "fedyogi"}:
        moved = max(np.abs(rows - drawn(2, 0)[name]).max() for name, rows in state.rows.items())
        assert moved < 20 * rule.learning_rate


@CASES
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1.7e308])
def test_a_step_to_no_number_is_refused(rule: ServerOptimizerConfig, value: float):
    """An update that is not finite, or leaves what float64 holds, is one line, and no state."""
    update = {name: np.full_like(values, value) for name, values in drawn(2, 1).items()}
    state = begun(drawn(2, 0), rule)
    with pytest.raises(ModelError, match="not finite, at rate .* lower server-learning-rate"):
        for _ in range(3):
            state = step(state, update, rule, algebra_of(2))


def test_what_does_not_fit_is_refused():
    """Another rule, domain, number of slots, name, shape or dtype than the state's is named."""
    rule, update = RULES["fedadam"], drawn(2, 1)
    state = begun(drawn(2, 0), rule)
    with pytest.raises(ModelError, match="started with server-optimizer .*0.99.* got .*0.5"):
        step(state, update, replace(rule, beta_2=0.5), algebra_of(2))
    with pytest.raises(DomainMismatchError, match="take the other"):
        step(state, update, rule, algebra_of(3))
    with pytest.raises(DomainMismatchError, match="of 2 slots, .* of 1"):
        step(state, update, rule, Algebra.plaintext(state.domain))
    name = NETWORK.weights()[0].name
    for bad in (
        {k: v for k, v in update.items() if k != name},
        {**update, name: update[name][..., :1]},
        {**update, name: update[name].astype(np.float32)},
    ):
        with pytest.raises(ModelError, match="other names, dtypes or shapes"):
            step(state, bad, rule, algebra_of(2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "adam"}, "name must be one of fedavg, fedavgm, fedadam, fedyogi, got 'adam'"),
        ({"learning_rate": 0.0}, "learning-rate must be a finite number above 0, got 0.0"),
        ({"learning_rate": 10**400}, "learning-rate must be a finite number above 0"),
        ({"learning_rate": True}, "learning-rate must be a finite number above 0, got True"),
        ({"momentum": 1.0}, "momentum must be a finite number of at least 0 and below 1, got 1.0"),
        ({"beta_2": -0.1}, "beta-2 must be a finite number of at least 0 and below 1, got -0.1"),
        ({"tau": float("nan")}, "tau must be a finite number above 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str):
    """Each is a ConfigError that names the run's setting and its value."""
    with pytest.raises(ConfigError, match=said):
        ServerOptimizerConfig(**settings)


def test_a_rule_is_what_its_mapping_says():
    """It comes back; whole numbers are the floats that they equal; other names are refused."""
    rule = ServerOptimizerConfig("fedyogi", 1, momentum=0, beta_2=0.5, tau=1)
    assert ServerOptimizerConfig.from_mapping(rule.to_mapping()) == rule
    assert {type(value) for value in rule.to_mapping().values()} == {str, float}
    with pytest.raises(ConfigError, match="server optimizer: unknown 'nesterov'"):
        ServerOptimizerConfig.from_mapping({"name": "fedavg", "nesterov": True})


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
@pytest.mark.parametrize("n", [2, 3])
def test_rounding_below_zero_is_no_second_moment(name: str, n: int):
    """Where only decoys moved, rounding may take the message's second moments below 0: no root of that is taken."""
    rule, of = RULES[name], algebra_of(n)
    for seed in range(20):
        state = begun(drawn(n, 0), rule)
        loud = {name: of.decrypted(values) for name, values in drawn(n, seed, 1e3).items()}
        loud_rows = {name: of.encrypted((0.0 * message, *decoys)) for name, (message, *decoys) in loud.items()}
        still = {name: np.zeros_like(values) for name, values in loud_rows.items()}
        for update in (loud_rows, still, still):
            state = step(state, update, rule, of)
