"""Server optimizer step: the next global state from the mean update, computed at every site to the same bits.

FedAvg: McMahan et al. 2017 (arXiv:1602.05629), Algorithm 1. FedAvgM: Hsu et al. 2019 (arXiv:1909.06335), section 4.3.
FedAdam and FedYogi: Reddi et al. 2021 (arXiv:2003.00295), Algorithm 2. The arithmetic is that of Flower 1.41, which
differs from Algorithm 2 in two ways: second moments start at 0, where the paper has at least tau^2, and FedAdam
corrects the moments' bias towards zero, as if one more round had been taken.

Bit for bit on every machine: only additions, multiplications, divisions, square roots and comparisons of float64
numbers, elementwise and one at a time. No matrix product, no sum along an axis and no power: their last bits depend on
the library.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation.global_state import GlobalState, Rows
from fedpp.arrays import are_finite, spans
from fedpp.cipher.components import Algebra, Slots
from fedpp.config.server_optimizer import ServerOptimizerConfig
from fedpp.errors import DomainMismatchError, ModelError

Values = NDArray[np.floating]
Moments = dict[str, Values]  # of one weight


def step(
    state: GlobalState, mean_update: Rows, rule: ServerOptimizerConfig, algebra: Algebra, *, attempt: int = 1
) -> GlobalState:
    """Return the state of the next round, of this attempt, for the mean of the sites' updates, float64 `[*shape, n]`.

    Law: decrypted, it is the step of the decrypted update on the decrypted state. Raises `ModelError` for an update
    that does not fit, or a step to values that are not finite.
    """
    _require(state, mean_update, rule, algebra)
    rows: dict[str, Values] = {}
    moments: dict[str, Values] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, before in state.rows.items():
            own = {moment: state.moments[f"{moment}/{name}"] for moment in rule.moments}
            rows[name], after = _stepped(before, mean_update[name], own, rule, algebra, state.round + 1)
            moments |= {f"{moment}/{name}": value for moment, value in after.items()}
    if not are_finite([*rows.values(), *moments.values()]):
        raise ModelError(
            f"{rule.name} moved the global model to values that are not finite, at rate {rule.learning_rate:g}: "
            "lower server-learning-rate, or the sites' own"
        )
    return replace(state, round=state.round + 1, attempt=attempt, rows=rows, moments=moments)


def _stepped(
    before: Values, update: Values, moments: Moments, rule: ServerOptimizerConfig, algebra: Algebra, number: int
) -> tuple[Values, Moments]:
    """Return one weight's rows and moments after round `number`, from 1, computed piece by piece."""
    rows: Values = np.empty(before.shape, before.dtype)
    after: Moments = {name: np.empty(value.shape) for name, value in moments.items()}

    def flat(values: Values) -> Values:
        return values.reshape(*values.shape[: values.ndim - before.ndim], -1, algebra.n)

    source, mean, target = map(flat, (before, update, rows))
    old, new = ({name: flat(values) for name, values in of.items()} for of in (moments, after))
    for span in spans(len(target)):
        some = np.s_[..., span, :]
        change, moved = _change(mean[some], {name: values[some] for name, values in old.items()}, rule, algebra, number)
        target[some] = source[some].astype(np.float64) + change
        for name, values in moved.items():
            new[name][some] = values
    return rows, after


def _change(
    update: Values, moments: Moments, rule: ServerOptimizerConfig, algebra: Algebra, number: int
) -> tuple[Values, Moments]:
    """Return the change of one weight's rows in round `number`, from 1, and their moments after it."""
    if rule.name == "fedavg":
        return rule.learning_rate * update, {}
    if rule.name == "fedavgm":
        first = rule.momentum * moments["first"] + update
        return rule.learning_rate * first, {"first": first}
    first = rule.momentum * moments["first"] + (1 - rule.momentum) * update
    grow = _adam if rule.name == "fedadam" else _yogi
    second = tuple(
        grow(old, slot * slot, rule.beta_2)
        for old, slot in zip(_whole(moments["second"], algebra), algebra.decrypted(update), strict=True)
    )
    rate = _rate(rule, number)
    change = tuple(
        rate * slot / (np.sqrt(square) + rule.tau)
        for slot, square in zip(algebra.decrypted(first), second, strict=True)
    )
    return algebra.encrypted(change), {"first": first, "second": _parted(second, algebra)}


def _adam(second: Values, square: Values, beta_2: float) -> Values:
    return beta_2 * second + (1 - beta_2) * square


def _yogi(second: Values, square: Values, beta_2: float) -> Values:
    return second - (1 - beta_2) * square * np.sign(second - square)


def _rate(rule: ServerOptimizerConfig, number: int) -> float:
    """Return the learning rate of a round; FedAdam's includes Flower's bias correction, which counts from 2."""
    if rule.name == "fedyogi":
        return rule.learning_rate
    root = float(np.sqrt(1 - _power(rule.beta_2, number + 1)))
    return rule.learning_rate * root / (1 - _power(rule.momentum, number + 1))


def _power(base: float, exponent: int) -> float:
    result = 1.0
    while exponent:
        if exponent % 2:
            result *= base
        base, exponent = base * base, exponent // 2
    return result


def _whole(parts: Values, algebra: Algebra) -> Slots:
    """Return second moments by slot from the rows of `_parted`, and 0 where rounding made them negative."""
    rows, lost = (algebra.decrypted(part) for part in parts)
    sums = (kept + rest for kept, rest in zip(rows, lost, strict=True))
    return tuple(np.where(value < 0, 0.0, value) for value in sums)


def _parted(slots: Slots, algebra: Algebra) -> Values:
    """Return second moments as rows `[2, *shape, n]`: rows, and the rows of their rounding errors."""
    rows = algebra.encrypted(slots)
    lost = tuple(value - kept for value, kept in zip(slots, algebra.decrypted(rows), strict=True))
    return np.stack([rows, algebra.encrypted(lost)])


def _require(state: GlobalState, update: Rows, rule: ServerOptimizerConfig, algebra: Algebra) -> None:
    if state.domain != algebra.domain or state.n != algebra.n:
        raise DomainMismatchError(
            f"the state belongs to domain {state.domain[:16]} of {state.n} slots, "
            f"the key to {algebra.domain[:16]} of {algebra.n}: take the other"
        )
    if rule != state.rule:
        raise ModelError(f"the state was started with server-optimizer {state.rule}, got {rule}: use the same")
    expected = {name: ("float64", rows.shape) for name, rows in state.rows.items()}
    if {name: (str(values.dtype), values.shape) for name, values in update.items()} != expected:
        raise ModelError("the mean update has other names, dtypes or shapes than the global model")
