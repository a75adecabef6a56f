"""Course of a masked run: its certified rounds, their opened counts and the next round, from the statements alone.

The coordinator reads no state. Evaluation counts of the cohort, which the certificates state, are public.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from fedpp.aggregation import round_vector
from fedpp.aggregation.run_schedule import RunSchedule
from fedpp.errors import FederationError
from fedpp.protocol.counts import Counts
from fedpp.protocol.finding_counts import AnyCounts, FindingCounts
from fedpp.protocol.label_counts import LabelCounts, read_labels
from fedpp.protocol.run_contract import RunContract
from fedpp.protocol.run_statements import Purpose
from fedpp.protocol.state_certificate import StateCertificate
from fedpp.protocol.statement_chains import StatementChains


@dataclass(frozen=True)
class RunCourse:
    """The certified part of a run."""

    certificate: StateCertificate  # of the newest state, from which the next round starts
    schedule: RunSchedule
    validation: Mapping[int, AnyCounts]  # number of a state -> the cohort's counts on validation data
    test: AnyCounts | None = None  # of the chosen state
    labels: LabelCounts | None = None  # training labels of the cohort, where the run balances them

    @property
    def number(self) -> int:
        """Return the number of the last certified round."""
        return self.certificate.round

    def length(self, contract: RunContract, n: int) -> int:
        """Return the number of values of the next round's vector, for rows of n slots."""
        due, spec = self.schedule.due, contract.spec
        labels = round_vector.opens_labels(due, spec.training.hyperparameters, self.labels)
        return round_vector.length(due, spec.network, n, labels=labels)

    def advanced(self, contract: RunContract, certificate: StateCertificate) -> Self:
        """Return the course after one more certified round; raise `FederationError` if it opened no counts."""
        kind = FindingCounts if contract.spec.task.multi_label else Counts
        try:
            counts, opened = read_labels(json.loads(certificate.counts), kind)
        except ValueError:
            raise FederationError(f"round {certificate.round} opened no counts: use one fedpp at all sites") from None
        schedule = self.schedule.advanced(
            counts, rounds=contract.rounds, monitor=contract.monitor, patience=contract.patience
        )
        after = replace(self, certificate=certificate, schedule=schedule, labels=opened or self.labels)
        if self.schedule.due == "test":
            return replace(after, test=counts)
        return replace(after, validation={**self.validation, self.schedule.state: counts})


def course_of(chains: StatementChains, before: RunCourse | None = None, until: int | None = None) -> RunCourse | None:
    """Return the course of a run, to the round `until` at most; None before all members signed the first state.

    `before` is the course that a revision continues.
    """
    contract = chains.contract
    first = _certificate(chains, contract.start_round)
    if first is None:
        return None
    course = RunCourse(first, RunSchedule(), {}) if before is None else replace(before, certificate=first)
    while course.schedule.due != "end" and course.number != until:
        certificate = _certificate(chains, course.number + 1)
        if certificate is None:
            break
        course = course.advanced(contract, certificate)
    return course


def _certificate(chains: StatementChains, number: int) -> StateCertificate | None:
    purpose: Purpose = "start" if number == chains.contract.start_round else "step"
    try:
        return StateCertificate.made_of(chains.contract, chains.of(purpose, number).values())
    except FederationError:
        return None
