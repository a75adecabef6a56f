"""Own update of a site: clipped, with its counts for the round, and made once for its inputs.

Its inputs are the base's weights, the plan, the purpose and the dataset. The update is stored before it is masked, so
that a revision without a site masks the same one anew.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpp.aggregation import round_vector
from fedpp.aggregation.global_state import Vector, in_order, unflat
from fedpp.aggregation.ring import EncodedUpdate
from fedpp.aggregation.round_context import ring_of
from fedpp.aggregation.run_stage import RunStage, member_bound
from fedpp.aggregation.step_bounds import clipped
from fedpp.errors import FedppError
from fedpp.protocol import label_counts
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.label_counts import LabelCounts
from fedpp.protocol.run_contract import FRESH, RunContract
from fedpp.values import canonical

from . import run_refusals
from .accepted_contract import AcceptedContract
from .run_site import RunSite, noted, refused


@dataclass(frozen=True)
class UpdateInputs:
    """Inputs of a site's update: everything that determines it."""

    weights: str  # identifier of the base's weights
    plan: str  # hash of the run specification, round and code
    purpose: str  # train, validation or test
    dataset: str  # fingerprint
    counted: bool  # whether the round opens counts of the base

    @property
    def locks(self) -> tuple[str, ...]:
        """Return the purposes for which a release locks the weights; training also opens counts of validation data."""
        return (self.purpose, "validation") if self.purpose == "train" and self.counted else (self.purpose,)

    @property
    def where(self) -> dict[str, str | int]:
        """Return the columns of the update's row in the journal."""
        return {"weights": self.weights, "plan": self.plan, "purpose": self.purpose, "dataset": self.dataset}


@dataclass(frozen=True)
class OwnUpdate:
    """A site's clipped update, one vector, or None where the round does not train; and its counts for the round."""

    update: Vector | None
    counts: AnyCounts  # of the base
    labels: LabelCounts | None  # of its training split, if the round opens them

    def encoded(self, contract: RunContract, stage: RunStage, weight: int) -> EncodedUpdate:
        """Return x_i, the update times its weight and the words of the counts."""
        rows = None if self.update is None else unflat(self.update, contract.spec.network, stage.state.n)
        network, ring = contract.spec.network, ring_of(contract.spec)
        return round_vector.encoded(stage.due, network, rows, self.counts, weight, ring, self.labels)


def inputs_of(of: RunSite, accepted: AcceptedContract, stage: RunStage) -> UpdateInputs:
    """Return the inputs of the update in the round that follows a stage."""
    contract = accepted.contract
    spec = contract.spec.changed(examples=1, sites=1)  # a smaller cohort has the same inputs
    plan = {
        "bundle": contract.bundle,
        "max_step": contract.max_step,
        "privacy": contract.privacy,
        "round": stage.number + 1,
        "spec": spec.to_json(),
        **({} if stage.labels is None else {"labels": list(stage.labels)}),  # which weigh the loss
    }
    return UpdateInputs(
        stage.weights_id(of.digest_key),
        hashlib.sha256(canonical(plan)).hexdigest(),
        stage.due,
        of.dataset.manifest.fingerprint,
        contract.initial == FRESH or stage.number > 0,  # another run may have opened those of an endorsed model
    )


def stored(of: RunSite, inputs: UpdateInputs) -> OwnUpdate | None:
    """Return the update that was made of these inputs, or None."""
    row = of.journal.row("updates", "file, counts", **inputs.where)
    if row is None:
        return None
    content = of.journal.unseal(row[1], _name(inputs)).decode()
    kind = FindingCounts if of.dataset.manifest.multi_label else Counts
    update = np.frombuffer(of.journal.read(row[0]), "<f8") if row[0] else None
    return OwnUpdate(update, *label_counts.read_labels(json.loads(content), kind))


def make(
    of: RunSite,
    accepted: AcceptedContract,
    stage: RunStage,
    inputs: UpdateInputs,
    update: Vector | None,
    logits: NDArray[np.floating] | None,
) -> OwnUpdate | None:
    """Return a new update of what the trainer sent, or None if something is missing.

    Raises `VaultError` of a fixed text for values that no update can have.
    """
    counted = inputs.counted and of.counts.shape(stage.split)[0] > 0
    if (update is None and stage.due == "train") or (logits is None and counted):
        return None
    try:
        rows = _clipped(of, accepted, stage, update) if stage.due == "train" and update is not None else None
        min_patients = of.policy().evaluation.min_patients
        labels = of.counts.labelled("train", min_patients) if opens_labels(accepted.contract, stage) else None
        if logits is None or not counted:
            return OwnUpdate(rows, of.counts.none(), labels)
        return OwnUpdate(rows, of.counts.count(stage.split, logits, min_patients), labels)
    except FedppError as error:
        raise refused(run_refusals.NO_UPDATE, f"{accepted.digest[:16]}: {error}") from None


def keep(of: RunSite, accepted: AcceptedContract, stage: RunStage, inputs: UpdateInputs, own: OwnUpdate) -> None:
    """Store the update of the round that follows a stage, and forget those of earlier rounds, within `writing`."""
    content = canonical(label_counts.with_labels(own.counts, own.labels))
    nonce, number = accepted.origin, stage.number + 1
    for (earlier,) in of.journal.rows("updates", "DISTINCT round", nonce=nonce):
        if earlier < number:
            of.journal.delete("updates", nonce=nonce, round=earlier)
    of.journal.insert(
        "updates",
        **inputs.where,
        nonce=nonce,
        round=number,
        file=of.journal.keep(own.update.astype("<f8").data) if own.update is not None else "",
        counts=of.journal.seal(content, _name(inputs)),
    )


def opens_labels(contract: RunContract, stage: RunStage) -> bool:
    """Tell whether the round that follows a stage opens the cohort's counts of training labels."""
    return round_vector.opens_labels(stage.due, contract.spec.training.hyperparameters, stage.labels)


def _clipped(of: RunSite, accepted: AcceptedContract, stage: RunStage, update: Vector) -> Vector:
    contract = accepted.contract
    network, n = contract.spec.network, stage.state.n
    largest = member_bound(contract, accepted.own.site)
    rows, names = clipped(unflat(update, network, n), of.algebra, largest, contract.spec.bounds.max_update_value)
    if names:
        noted(f"{accepted.digest[:16]}: the update of {', '.join(names)} was scaled to its bound")
    return np.concatenate(in_order(rows, network)).astype(np.float64, copy=False)


def _name(inputs: UpdateInputs) -> str:
    return f"counts {inputs.weights} {inputs.plan} {inputs.purpose} {inputs.dataset}"
