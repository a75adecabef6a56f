"""Stages of a masked run: their bytes, their digests, and how one follows from what a round opened."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from global_states import RULES, algebra_of
from run_contracts import Cohort
from run_specs import RUN_SPEC, varied

from fedpp.aggregation import global_state, run_stage
from fedpp.aggregation.global_state import GlobalState
from fedpp.aggregation.run_schedule import RunSchedule
from fedpp.aggregation.run_stage import RunStage, advanced, mean_bound, member_bound, site_bound
from fedpp.aggregation.server_step import step
from fedpp.aggregation.step_bounds import clipped
from fedpp.errors import FedppError, ModelError
from fedpp.learning.metrics import count
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import FindingCounts
from fedpp.protocol.run_contract import NO_HASH, RunContract, capped_weights

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
N = 2
T = "7a" * 32
NETWORK = RUN_SPEC.network
Rows = dict[str, np.ndarray]


def contract_of(**changes: Any) -> RunContract:
    return Cohort.of(3, **changes).contract


def rows_of(seed: int, size: float = 1.0) -> Rows:
    generator = np.random.default_rng(seed)
    return {spec.name: generator.normal(size=(*spec.shape, N)) * size for spec in NETWORK.weights()}


def state_of(seed: int = 0, **changes: Any) -> GlobalState:
    usual: dict[str, Any] = {
        "network": NETWORK,
        "domain": algebra_of(N).domain,
        "dtype": "float64",
        "classes": NETWORK.task.classes,
        "rule": RUN_SPEC.server_optimizer,
        "salt": "5a" * 32,
    }
    return global_state.initial(rows_of(seed), **{**usual, **changes})


def counts_of(loss: float, examples: int = 1) -> Counts:
    """Return counts of right predictions for each of two classes, of this mean loss."""
    p = np.exp(-loss)
    return count([0, 1] * examples, [[p, 1 - p], [1 - p, p]] * examples)


def stepped(seed: int = 0) -> RunStage:
    """Return a stage after two rounds: moments, counts and identifiers are set."""
    contract, stage = contract_of(monitor="loss"), RunStage(state_of(seed))
    for loss in (0.4, 0.3):
        stage = advanced(contract, stage, rows_of(seed + 7, 0.01), counts_of(loss), T, algebra_of(N))
    return stage


def changed_values(stage: RunStage, of: str) -> RunStage:
    """Return the stage with one value of its rows, or of its first or second moments, one bit off."""
    state = stage.state
    arrays = dict(state.rows if of == "rows" else state.moments)
    name = next(name for name in arrays if of == "rows" or name.startswith(of))
    values = arrays[name].copy()
    values.reshape(-1).view(np.uint64)[3] ^= 1
    arrays[name] = values
    return replace(stage, state=replace(state, **{"rows" if of == "rows" else "moments": arrays}))


STATE_FACTS: dict[str, Any] = {
    "round": 9,
    "attempt": 2,
    "salt": "5b" * 32,
    "domain": "e" * 64,
    "classes": ("yes", "no"),
    "rule": replace(RUN_SPEC.server_optimizer, learning_rate=0.2),
}
FACTS: dict[str, Callable[[RunStage], RunStage]] = {
    "one bit of a row": lambda stage: changed_values(stage, "rows"),
    "one bit of a first moment": lambda stage: changed_values(stage, "first"),
    "one bit of a second moment": lambda stage: changed_values(stage, "second"),
    **{
        f"the state's {name}": (
            lambda stage, name=name, value=value: replace(stage, state=replace(stage.state, **{name: value}))
        )
        for name, value in STATE_FACTS.items()
    },
    **{
        f"the schedule's {name}": (
            lambda stage, name=name, value=value: replace(stage, schedule=replace(stage.schedule, **{name: value}))
        )
        for name, value in {"due": "validation", "state": 3, "chosen": 0, "value": 0.25, "stale": 1}.items()
    },
    "no figure": lambda stage: replace(stage, schedule=replace(stage.schedule, value=None)),
    "the counts": lambda stage: replace(stage, counts=counts_of(0.31)),
    "no counts": lambda stage: replace(stage, counts=None),
    "the aggregate": lambda stage: replace(stage, aggregate="7b" * 32),
    "the training labels": lambda stage: replace(stage, labels=(7, 5)),
}


@pytest.mark.parametrize("change", FACTS.values(), ids=FACTS)
def test_the_digest_covers_each_fact(change: Callable[[RunStage], RunStage]):
    """A stage that differs in one fact has another digest, and other bytes, which come back as they were."""
    stage = stepped()
    other = change(stage)
    assert other.digest(KEY) != stage.digest(KEY)
    assert other.to_bytes() != stage.to_bytes()
    assert RunStage.from_bytes(other.to_bytes()) == other


def test_all_facts_are_tried():
    """The list above names every field of a stage, of its state and of its schedule."""
    of_state = {f"the state's {name}" for name in set(GlobalState.__dataclass_fields__) - {"rows", "moments"}}
    of_schedule = {f"the schedule's {name}" for name in RunSchedule.__dataclass_fields__}
    untried = {"the state's network", "the state's dtype"}  # other arrays follow, which have other bytes
    assert of_state | of_schedule == {name for name in FACTS if name.startswith("the s")} | untried


def test_digests_are_keyed():
    """Another key has other identifiers, none is the hash of the bytes, and a short key is refused."""
    stage = stepped()
    assert len({stage.digest(KEY), stage.digest(OTHER_KEY), stage.weights_id(KEY), stage.weights_id(OTHER_KEY)}) == 4
    assert stage.digest(KEY) == stepped().digest(KEY)
    for identifier in (stage.digest, stage.weights_id):
        with pytest.raises(ModelError, match="32 bytes"):
            identifier(KEY[:31])


def test_weights_have_one_identifier_in_every_run():
    """Only the rows and what they are of count: not moments, rounds, schedule, counts or salt."""
    stage = stepped()
    same = {"one bit of a first moment", "one bit of a second moment", "the state's rule"}
    same |= {f"the state's {name}" for name in ("round", "attempt", "salt")}
    same |= {name for name in FACTS if "schedule" in name or "counts" in name}
    same |= {"the aggregate", "no figure", "the training labels"}
    unchanged = {name for name, change in FACTS.items() if change(stage).weights_id(KEY) == stage.weights_id(KEY)}
    assert unchanged == same


@pytest.mark.parametrize(
    "stage",
    [
        RunStage(state_of()),
        stepped(),
        replace(stepped(), schedule=RunSchedule("end", 3, 1, -0.5, 2)),
        RunStage(state_of(rule=RULES["fedavg"], dtype="float32")),
    ],
    ids=["initial", "after two rounds", "ended", "float32"],
)
def test_a_stage_comes_back(stage: RunStage):
    """The law: what is read is what was written, in facts and bits."""
    read = RunStage.from_bytes(stage.to_bytes())
    assert read == stage
    assert read.to_bytes() == stage.to_bytes()
    assert read.digest(KEY) == stage.digest(KEY)


def test_counts_of_findings_come_back():
    """A multi-label stage reads its counts as those of findings."""
    task = NETWORK.task.changed(classes=("Edema", "Fracture"), multi_label=True)
    network = varied(RUN_SPEC, classes=task.classes, multi_label=True).network
    rows = {spec.name: np.zeros((*spec.shape, N)) for spec in network.weights()}
    rule, domain = RULES["fedavg"], algebra_of(N).domain
    state = global_state.initial(
        rows, network=network, domain=domain, dtype="float64", classes=task.classes, rule=rule, salt="5a" * 32
    )
    counts = FindingCounts(5, (counts_of(0.5), counts_of(0.25, 2)))
    stage = RunStage(state, counts=counts)
    assert RunStage.from_bytes(stage.to_bytes()).counts == counts


def test_damaged_bytes_are_no_stage():
    """A flipped byte anywhere, a cut, more bytes, another format, and another text of the same facts are refused."""
    content = stepped().to_bytes()
    for place in range(0, len(content), 211):
        damaged = bytearray(content)
        damaged[place] ^= 1
        with pytest.raises(ModelError):
            RunStage.from_bytes(bytes(damaged))
    for wrong in (b"", content[:-1], content + b"x", stepped().state.to_bytes()):
        with pytest.raises(ModelError):
            RunStage.from_bytes(wrong)


@pytest.mark.parametrize(
    "facts",
    [
        {"schedule": {}},
        {"schedule": 3},
        {"schedule": {"due": "train", "state": 1, "chosen": 2}},
        {"schedule": {"due": "train", "state": -1}},
        {"schedule": {"due": "train", "state": 1.0}},
        {"schedule": {"due": "train", "state": True}},
        {"schedule": {"due": "never"}},
        {"schedule": {"due": []}},
        {"schedule": {"due": "train", "value": 1}},
        {"counts": 3},
        {"counts": {}},
        {"labels": [7]},  # of two classes
        {"labels": [7, "5"]},
        {"labels": 7},
        {"aggregate": "7A" * 32},
        {"aggregate": 7},
        {"more": 1},
    ],
    ids=str,
)
def test_a_header_of_other_facts_is_no_stage(facts: dict[str, Any]):
    """A well-formed container whose facts no run has is refused in one line."""
    stage = stepped()
    usual = stage._facts()
    given = {**usual, **facts}
    if isinstance(given["schedule"], dict) and given["schedule"]:
        given["schedule"] = {**usual["schedule"], **given["schedule"]}
    parts = run_stage.container.parts(run_stage.FORMAT, given, stage.state.to_bytes())
    with pytest.raises(ModelError):
        RunStage.from_bytes(b"".join(parts))


def test_a_round_of_training_steps_the_state():
    """The next state is the server optimizer's step, with the opened counts, the aggregate and the schedule."""
    contract, before, update = contract_of(monitor="loss"), RunStage(state_of()), rows_of(3, 0.01)
    after = advanced(contract, before, update, counts_of(0.4), T, algebra_of(N))
    assert after.state == step(before.state, update, RUN_SPEC.server_optimizer, algebra_of(N))
    assert (after.counts, after.aggregate, after.number, after.due) == (counts_of(0.4), T, 1, "train")
    assert (after.chosen, before.number, before.aggregate, before.counts) == (0, 0, NO_HASH, None)
    assert after.schedule.value == pytest.approx(0.4)


def balanced(positive_weight: float = 0.0) -> RunContract:
    """Return a contract of three sites with 12 training sequences, whose loss is balanced or not."""
    usual = contract_of()
    return usual.changed(spec=usual.spec.changed(positive_weight=positive_weight))


def test_training_labels_are_opened_once_and_stay():
    """Round 1 of a balanced run opens them, every later stage has them, and its digest covers them."""
    contract, stage, algebra = balanced(), RunStage(state_of()), algebra_of(N)
    labels: list[Any] = []
    for number in range(5):
        update = rows_of(number, 0.01) if stage.due == "train" else None
        opened = (9, 3) if number == 0 else None
        stage = advanced(contract, stage, update, counts_of(0.4), T, algebra, stage.state, opened)
        labels.append(stage.labels)
        assert RunStage.from_bytes(stage.to_bytes()) == stage
    assert (labels, stage.due) == ([(9, 3)] * 5, "end")


@pytest.mark.parametrize(
    ("positive_weight", "known", "opened", "reason"),
    [
        (0.0, None, None, "opens training labels once"),
        (0.0, (9, 3), (9, 3), "opens training labels once"),
        (1.0, None, (9, 3), "opens training labels once"),
        (0.0, None, (9, 4), "12 training sequences of 2 classes cannot be counted"),
        (0.0, None, (8, 3), "12 training sequences of 2 classes cannot be counted"),
        (0.0, None, (9, 2, 1), "12 training sequences of 2 classes cannot be counted"),
    ],
)
def test_training_labels_that_no_cohort_has_are_refused(positive_weight: float, known: Any, opened: Any, reason: str):
    """They are opened in one round alone, and are of all training sequences that the contract states."""
    stage = replace(RunStage(state_of()), labels=known)
    with pytest.raises(FedppError, match=reason):
        advanced(balanced(positive_weight), stage, rows_of(3, 0.01), counts_of(0.4), T, algebra_of(N), labels=opened)


def test_an_aggregate_beyond_the_bound_is_scaled():
    """The step is that of the scaled update; one within the bound is taken as it is."""
    contract, before, update = contract_of(), RunStage(state_of()), rows_of(3, 50.0)
    bounded, names = clipped(update, algebra_of(N), mean_bound(contract))
    assert len(names) == len(update)
    after = advanced(contract, before, update, counts_of(0.4), T, algebra_of(N))
    assert after.state == step(before.state, bounded, RUN_SPEC.server_optimizer, algebra_of(N))
    assert after.state != step(before.state, update, RUN_SPEC.server_optimizer, algebra_of(N))


def test_bounds_are_those_of_the_sites_steps():
    """A site's bound follows from its own steps; the mean's is the mean of the bounds by the weights."""
    contract = contract_of(max_step=2.0)  # rate 0.1, 1 epoch, batches of 2; sites of 3, 4 and 5 sequences
    assert [site_bound(contract, sequences) for sequences in (3, 4, 5)] == pytest.approx([0.4, 0.4, 0.6])
    weights = [member.weight for member in contract.cohort]
    expected = (weights[0] * 0.4 + weights[1] * 0.4 + weights[2] * 0.6) / sum(weights)
    assert mean_bound(contract) == pytest.approx(expected)


def test_no_member_makes_its_bound_as_large_as_it_likes():
    """Of three members one counts at most twice what the others do together, whatever size it states."""
    honest, stated = contract_of(), contract_of()
    sizes = [3, 4, 10**6]
    cohort = tuple(
        replace(member, sequences=(size, *member.sequences[1:]), weight=weight)
        for member, size, weight in zip(stated.cohort, sizes, capped_weights(sizes), strict=True)
    )
    spec = stated.spec.changed(examples=sum(member.weight for member in cohort))
    liar = stated.changed(cohort=cohort, spec=spec)
    assert [member_bound(liar, site) for site in liar.names] == [site_bound(honest, size) for size in (3, 4, 14)]
    assert mean_bound(liar) < site_bound(honest, 14)


def test_the_mean_of_clipped_updates_is_within_its_bound():
    """What honest sites send within their own bounds is never scaled as an aggregate."""
    contract, algebra = contract_of(), algebra_of(N)
    direction, total = rows_of(5), dict.fromkeys(rows_of(5), 0.0)
    for member in contract.cohort:  # all in one direction, the longest sum there is
        rows, names = clipped({k: v * 1e3 for k, v in direction.items()}, algebra, member_bound(contract, member.site))
        assert names
        total = {name: total[name] + member.weight / contract.total_weight * rows[name] for name in rows}
    _, names = clipped(total, algebra, mean_bound(contract))
    assert names == []


def run_of(losses: Sequence[float], **changes: Any) -> list[RunStage]:
    """Return the stages of a run that opened these validation losses, the vault keeping the chosen state."""
    contract, stages = contract_of(**changes), [RunStage(state_of())]
    for number, loss in enumerate(losses):
        stage = stages[-1]
        update = rows_of(number, 0.01) if stage.due == "train" else None
        best = stages[stage.chosen].state
        stages.append(advanced(contract, stage, update, counts_of(loss), T, algebra_of(N), best))
    return stages


@pytest.mark.parametrize(
    ("losses", "changes", "tested"),
    [
        ([0.5, 0.4, 0.3, 0.2, 0.9], {}, 3),
        ([0.1, 0.2, 0.3, 0.4, 0.9], {}, 3),
        ([0.5, 0.2, 0.3, 0.4, 0.9], {"monitor": "loss"}, 1),
        ([0.1, 0.2, 0.3, 0.4, 0.9], {"monitor": "loss"}, 0),
        ([0.5, 0.4, 0.3, 0.2, 0.9], {"monitor": "loss"}, 3),
        ([0.5, 0.4, 0.41, 0.42, 0.9], {"monitor": "loss", "patience": 1, "rounds": 9}, 1),
    ],
)
def test_the_chosen_state_is_tested(losses: list[float], changes: dict[str, Any], tested: int):
    """Rounds of training, then validation of the last state, then test of the chosen one, and then the end."""
    stages = run_of(losses, **changes)
    assert [stage.due for stage in stages] == ["train", "train", "train", "validation", "test", "end"]
    assert [stage.number for stage in stages] == [0, 1, 2, 3, 4, 5]
    assert [stage.split for stage in stages] == ["validation"] * 4 + ["test", ""]
    assert stages[4].chosen == tested
    assert stages[4].state == stages[5].state == stages[tested].state
    assert stages[5].counts == counts_of(losses[-1])


def test_a_missing_or_unexpected_update_is_refused():
    """A training round opens an update, no other round does, and none follows the end."""
    contract, stages, algebra = contract_of(), run_of([0.5] * 5), algebra_of(N)
    for number, update in ((0, None), (3, rows_of(0)), (4, rows_of(0))):
        with pytest.raises(ModelError, match="opens an update"):
            advanced(contract, stages[number], update, counts_of(0.5), T, algebra)
    with pytest.raises(FedppError, match="complete"):
        advanced(contract, stages[5], None, counts_of(0.5), T, algebra)


def test_a_missing_chosen_state_is_asked_for():
    """Where an earlier state is the result, a vault without it cannot go on."""
    stages = run_of([0.1, 0.2, 0.3], monitor="loss")
    with pytest.raises(ModelError, match="of round 0, is missing"):
        advanced(contract_of(monitor="loss"), stages[3], None, counts_of(0.4), T, algebra_of(N))
