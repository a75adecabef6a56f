"""Stage of a masked run: the global state, the counts opened in the last round, and the purpose of the next one.

Every vault computes the stages alike and signs their digests; t signatures certify a stage.

Bytes: a container (`fedpp.container`) whose header has the facts, and whose content is the global state's bytes.
"""

import hmac
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Self, get_args

from fedpp import container
from fedpp.aggregation import round_vector, server_step, step_bounds
from fedpp.aggregation.global_state import GlobalState, Rows
from fedpp.aggregation.run_schedule import Due, RunSchedule
from fedpp.cipher.components import Algebra
from fedpp.errors import FederationError, ModelError
from fedpp.protocol import label_counts
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.label_counts import LabelCounts
from fedpp.protocol.run_contract import NO_HASH, RunContract, capped_weights
from fedpp.values import canonical, is_hex

DUE: tuple[Due, ...] = get_args(Due)
FORMAT = "fedpp-stage-1"
FIRST = RunSchedule()
MAX_HEADER = 2**24  # bytes: a confusion of a thousand classes has a million counts


@dataclass(frozen=True)
class RunStage:
    """A state with the run's schedule; equal bytes mean equal stages."""

    state: GlobalState  # the next round's base
    schedule: RunSchedule = FIRST
    counts: AnyCounts | None = None  # opened in the last round, of its base; None before the first
    aggregate: str = NO_HASH  # identifier of the aggregate that was opened, hex
    labels: LabelCounts | None = None  # training labels of the cohort, from round 1 on, where the run balances them

    def __post_init__(self) -> None:
        """Refuse facts that no run has, which may come from a file."""
        of = self.schedule
        counted = (of.state, of.chosen, of.stale)
        if any(type(value) is not int or value < 0 for value in counted) or of.chosen > of.state:
            raise ModelError("a stage's states have whole numbers, and the chosen one is not after the last")
        if of.due not in DUE:
            raise ModelError(f"a stage is due for one of {', '.join(DUE)}, got {of.due!r:.40}")
        if of.value is not None and type(of.value) is not float:
            raise ModelError(f"the chosen state's figure is a number, got {type(of.value).__name__}")
        if not is_hex(self.aggregate):
            raise ModelError(f"a stage's aggregate is 64 hex digits, got {self.aggregate!r:.80}")
        if self.labels is not None and len(self.labels) != label_counts.size(self.state.network.task):
            raise ModelError(f"a stage counts the labels of its task, got {len(self.labels)} counts")

    @property
    def due(self) -> Due:
        """Return what the next round is for."""
        return self.schedule.due

    @property
    def number(self) -> int:
        """Return the round that made the stage, 0 before the first: rounds of training, then the closing ones."""
        return self.schedule.state + {"test": 1, "end": 2}.get(self.due, 0)

    @property
    def chosen(self) -> int:
        """Return the number of the state that is the result so far; the state of that round's stage."""
        return self.schedule.chosen

    @property
    def split(self) -> str:
        """Return the split on which the next round evaluates the state; nothing at the end."""
        return {"train": "validation", "end": ""}.get(self.due, self.due)

    def to_bytes(self) -> bytes:
        """Return the stage as bytes. Law: `from_bytes(to_bytes())` is an equal stage with equal bytes."""
        return b"".join(container.parts(FORMAT, self._facts(), self.state.to_bytes()))

    @classmethod
    def from_bytes(cls, content: container.Content) -> Self:
        """Read what `to_bytes` returned; raise `ModelError` for anything else."""
        try:
            facts, rest = container.unpack(FORMAT, content, MAX_HEADER)
            schedule, counts, labels = RunSchedule(**facts["schedule"]), facts["counts"], facts["labels"]
            state = GlobalState.from_bytes(rest)
            kind = FindingCounts if state.network.task.multi_label else Counts
            stage = cls(
                state,
                schedule,
                None if counts is None else kind.from_mapping(counts),
                facts["aggregate"],
                None if labels is None else tuple(map(int, labels)),
            )
            whole = canonical(stage._facts()) == canonical(facts)
        except (ValueError, TypeError, KeyError, AttributeError, FederationError):
            whole = False
        if not whole:
            raise ModelError(f"not a stage of a run ({FORMAT}), or damaged: get it from another site")
        return stage

    def digest(self, key: bytes) -> str:
        """Return the identifier of everything in the stage, under a key of the domain's epoch, in hex.

        A keyed one, so that nobody outside confirms a guess of the weights.
        """
        mac = hmac.new(_required(key), b"fedpp stage 2\n", sha256)
        mac.update(self.to_bytes())
        return mac.hexdigest()

    def weights_id(self, key: bytes) -> str:
        """Return the identifier of the weights alone, under a key: equal for equal weights in whatever run."""
        mac = hmac.new(_required(key), b"fedpp weights 2\n", sha256)
        for part in _weights(self.state):
            mac.update(part)
        return mac.hexdigest()

    def _facts(self) -> container.Facts:
        counts = None if self.counts is None else self.counts.to_mapping()
        labels = None if self.labels is None else list(self.labels)
        return {"aggregate": self.aggregate, "counts": counts, "labels": labels, "schedule": asdict(self.schedule)}


def advanced(
    contract: RunContract,
    stage: RunStage,
    mean_update: Rows | None,
    counts: AnyCounts,
    aggregate_id: str,
    algebra: Algebra,
    best: GlobalState | None = None,
    labels: LabelCounts | None = None,
) -> RunStage:
    """Return the next stage from what a round opened: the mean update, if it trained, and the counts of its base.

    `best` is the state that `stage` has as chosen; it is needed where the last state was validated and is no better.
    The counts of training `labels`, of the round that opens them, stay in all later stages. An aggregate beyond the
    step bound is scaled to it. Raises `ModelError` or `FederationError` for what does not fit.
    """
    if (mean_update is None) == (stage.due == "train"):
        raise ModelError(f"a round opens an update if it trains, and in no other case: this one is for {stage.due}")
    schedule = stage.schedule.advanced(
        counts, rounds=contract.rounds, monitor=contract.monitor, patience=contract.patience
    )
    state = stage.state
    if mean_update is not None:
        bounded, _ = step_bounds.clipped(mean_update, algebra, mean_bound(contract))
        state = server_step.step(state, bounded, contract.spec.server_optimizer, algebra)
    elif schedule.due == "test" and schedule.chosen != stage.schedule.state:
        if best is None:
            raise ModelError(f"the chosen state, of round {schedule.chosen}, is missing: get it from another site")
        state = best
    return RunStage(state, schedule, counts, aggregate_id, _labels(contract, stage, labels))


def _labels(contract: RunContract, stage: RunStage, opened: LabelCounts | None) -> LabelCounts | None:
    """Return the counts of training labels after a round; those of the whole cohort's training splits, if it opened."""
    hyperparameters = contract.spec.training.hyperparameters
    if (opened is not None) != round_vector.opens_labels(stage.due, hyperparameters, stage.labels):
        raise ModelError("a run opens training labels once, if its loss is balanced: this round does not fit")
    if opened is None:
        return stage.labels
    return label_counts.require(opened, contract.spec.task, sum(member.sequences[0] for member in contract.cohort))


def site_bound(contract: RunContract, sequences: int) -> float:
    """Return the step bound of the update of a site with so many training sequences."""
    training = contract.spec.training
    steps = step_bounds.local_steps(training, sequences)
    return step_bounds.bound(contract.max_step, training.hyperparameters.learning_rate, steps)


def member_bound(contract: RunContract, site: str) -> float:
    """Return the step bound of a member's update.

    Sizes are what members say: one counts up to 2/n of all, as a weight does, so that none makes its bound as large as
    it likes.
    """
    sizes = capped_weights([member.sequences[0] for member in contract.cohort])
    return site_bound(contract, sizes[contract.names.index(site)])


def mean_bound(contract: RunContract) -> float:
    """Return the bound of the mean update: the mean of the members' bounds by their weights, as RMS is a norm."""
    weighted = sum(member.weight * member_bound(contract, member.site) for member in contract.cohort)
    return weighted / contract.total_weight


def _weights(state: GlobalState) -> Iterator[bytes]:
    facts: dict[str, Any] = {
        "classes": list(state.classes),
        "domain": state.domain,
        "dtype": state.dtype,
        "n": state.n,
        "network": state.network.to_json(),
    }
    yield canonical(facts)
    yield from (rows.astype(rows.dtype.newbyteorder("<")).tobytes() for rows in state.rows.values())


def _required(key: bytes) -> bytes:
    if len(key) < sha256().digest_size:
        raise ModelError(f"a stage's digest needs a key of {sha256().digest_size} bytes, got {len(key)}")
    return key
